"""Reprogramming from answers alone: every way to spend the same number of queries, beside the white-box model.

    python -m benchmarks.blackbox --quick                                a minute, for a look
    python -m benchmarks.blackbox                                        digits, 16 shots, budgets of 1 % of BlackVIP's and less
    python -m benchmarks.blackbox --table                                the Markdown table of what has been measured

The box is EfficientNet-Lite0 at 64×64 pixels behind a `BlackBox` that counts. "white box" trains the same program by
backpropagation; "no program" is the label map alone, one query per image. BlackVIP's defaults ask 10 times about each image
in each of 5000 passes: 50,000 queries per training image. Test rows are predicted past the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import torch

from benchmarks.harness import Cell, measure, parser
from benchmarks.summary import ordering
from reprogram.gradient import CMAES, SPSA, CoordinateWise, GradientStep, RandomGradientFree
from reprogram.label_map import LabelMap
from reprogram.mapping import LinearMap
from reprogram.model import Reprogrammed
from reprogram.objectives import Optimizer, adam, cma_rates, spsa_rates
from reprogram.programs import Coordinator, Identity
from reprogram.sources import BlackBox, Source, load
from reprogram.surrogate import Through, prime
from reprogram.train import fit, predict, refresh
from tasks.baselines import Method, Prediction
from tasks.images import digits, sized
from tasks.task import Task

SIDE, TEST, SHOTS, BLACKVIP = 64, 700, 16, 50_000
Step = tuple[Callable[[], GradientStep], Optimizer, float]
STEPS: dict[str, Step] = {
    "rgf": (lambda: RandomGradientFree(directions=5, radius=0.01), adam(program=3e-2), 1.0),
    "spsa": (lambda: SPSA(repeats=5), spsa_rates(program=0.01, correction=0), math.inf),
    "spsa-gc": (lambda: SPSA(repeats=5), spsa_rates(program=0.01), math.inf),
    "coordinate": (lambda: CoordinateWise(coordinates=5), adam(program=3e-2), 1.0),
    "cma": (lambda: CMAES(sigma=0.1), cma_rates(), math.inf),
}
KEPT: dict[str, Source] = {}
SPENT: dict[tuple[int, int, str], int] = {}


def hidden(returns: str = "logits") -> Source:
    """The network in the box, loaded once."""
    if returns not in KEPT:
        KEPT[returns] = load("efficientnet-lite0", size=SIDE, returns=returns)
    return KEPT[returns]


def boxed(budget: int) -> Source:
    """The same network, under the same name, as a box that counts and refuses."""
    network = hidden().network
    box = BlackBox(lambda pixels: network(torch.from_numpy(pixels)).softmax(1).numpy(), budget=budget)
    return Source(
        box, hidden().codec, name=hidden().name, takes="image", width=1000, returns="logits", differentiable=False
    )


class Spoken(torch.nn.Module):
    """A network of pixels under the keyword that image sources use."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network(pixels)


def answered(model: Reprogrammed, task: Task) -> Prediction:
    """Test predictions past the ledger: what the network itself says, as log probabilities, in the place of the box."""
    if isinstance(model.source.network, BlackBox):
        said = torch.nn.Sequential(hidden().network, torch.nn.LogSoftmax(1))
        same = Source(Spoken(said), hidden().codec, name=hidden().name, takes="image", width=1000, returns="logits")
        model = Reprogrammed(model.program, same, model.mapping)
    return Prediction(predict(model, task.part("test")[0]), sum(p.numel() for _, p in model.trainable()))


def head(task: Task, mapping: str) -> Any:
    """A label map, or the linear map on log probabilities in closed form."""
    count = len(task.classes)
    return LabelMap(1000, count) if mapping == "labels" else LinearMap(1000, count, kind="classification", ridge=True)


def from_queries(name: str, budget: int) -> Callable[[Task, int], Prediction]:
    """Train the coordinator by a gradient step until the budget is spent."""

    def run(task: Task, seed: int) -> Prediction:
        make, rates, clip = STEPS[name]
        x, y = task.part("train")
        source = boxed(budget)
        model = Reprogrammed(Coordinator(seed=seed), source, head(task, "labels"))
        passes = budget // len(x)  # the ledger ends it earlier
        fit(
            model, {"train": (x, y)}, gradient=make(), optimizer=rates, clip=clip, epochs=max(1, passes // 10),
            batch_size=32, hooks=[refresh], seed=seed, progress=False,
        )  # fmt: skip
        SPENT[budget, seed, name] = source.network.queries
        return answered(model, task)

    return run


def primed(budget: int) -> Callable[[Task, int], Prediction]:
    """One pass over the box, then everything on the local stand-in."""

    def run(task: Task, seed: int) -> Prediction:
        x, y = task.part("train")
        source, local = boxed(budget), hidden("features")
        stand_in = prime(source, local, x, seed=seed, progress=False)
        model = Reprogrammed(Coordinator(seed=seed), local, Through(stand_in, head(task, "labels")))
        fit(
            model,
            {"train": (x, y)},
            optimizer=adam(program=1e-3),
            epochs=60,
            hooks=[refresh],
            seed=seed,
            progress=False,
        )
        SPENT[budget, seed, "primed"] = source.network.queries
        return answered(model, task)

    return run


def mapped(budget: int, mapping: str) -> Callable[[Task, int], Prediction]:
    """No program: one query per image, and a map."""

    def run(task: Task, seed: int) -> Prediction:
        source = boxed(budget)
        model = Reprogrammed(Identity(), source, head(task, mapping))
        fit(model, {"train": task.part("train")}, epochs=0, seed=seed, progress=False)
        SPENT[budget, seed, f"no program, {mapping}"] = source.network.queries
        return answered(model, task)

    return run


def white(task: Task, seed: int) -> Prediction:
    """The same program and map by backpropagation."""
    model = Reprogrammed(Coordinator(seed=seed), hidden(), head(task, "labels"))
    fit(
        model,
        {"train": task.part("train")},
        optimizer=adam(program=1e-3),
        epochs=60,
        hooks=[refresh],
        seed=seed,
        progress=False,
    )
    return answered(model, task)


def chosen(cell: Cell) -> list[Method]:
    """Every way to spend the cell's budget."""
    budget = cell["budget"]
    found = [Method(name, "reprogrammed", from_queries(name, budget)) for name in STEPS]
    found += [Method("primed", "reprogrammed", primed(budget)), Method("white box", "control", white)]
    return [*found, *(Method(f"no program, {m}", "control", mapped(budget, m)) for m in ("labels", "linear"))]


def main() -> None:
    images = SHOTS * 10
    budgets = tuple(int(images * BLACKVIP * share) for share in (0.001, 0.01))
    options = parser(__doc__, budgets=budgets).parse_args()
    shots = SHOTS
    if options.quick:
        options.budgets, options.seeds, shots = [400], 1, 2
        options.methods = options.methods or ["spsa-gc", "no program, labels", "no program, linear"]
    cells = [{"budget": b, "seed": s} for s, b in product(range(options.seeds), options.budgets)]
    task = sized(digits(), {"test": TEST})
    rows = measure(
        "blackbox", options, cells, lambda cell: task.shots(shots, seed=cell["seed"]), chosen,
        lambda cell, method: {"queries": SPENT.get((cell["budget"], cell["seed"], method))},
    )  # fmt: skip
    print(
        ordering(
            rows, ("budget",), "accuracy", [["no program, labels", name, "white box"] for name in (*STEPS, "primed")]
        )
    )


if __name__ == "__main__":
    main()
