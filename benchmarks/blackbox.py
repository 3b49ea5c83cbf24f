"""Reprogramming from answers alone: every way to spend the same number of queries, beside the white-box model.

    python -m benchmarks.blackbox --quick                                a minute, for a look
    python -m benchmarks.blackbox                                        digits, 10 shots, 0.1 % of BlackVIP's queries
    python -m benchmarks.blackbox --table                                the Markdown table of what has been measured

The box is EfficientNet-Lite0 at 64×64 pixels behind a `BlackBox` that counts. "white box" trains the same program by
backpropagation; "no program" is a map alone, one query per image. Each goes with the label map or with a linear map.
BlackVIP's defaults ask 10 times about each image in each of 5000 passes: 50,000 queries per training image. The budget is
0.1 % of that, 50 queries per image, because 1 % costs hours on two cores with methods that estimate gradients; the others
ask less. "primed" asks once about each image, "primed in rounds" four times; both have the box's own network, without its
classes, as local encoder, which is the kindest case. Test rows are predicted past the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Cell, measure, parser
from benchmarks.summary import ordering
from reprogram.label_map import LabelMap
from reprogram.mapping import LinearMap
from reprogram.model import Reprogrammed
from reprogram.objectives import adam
from reprogram.programs import Coordinator, Identity
from reprogram.recipes import STEPS
from reprogram.sources import BlackBox, Source, load
from reprogram.surrogate import Through, prime, reprime
from reprogram.train import fit, predict, refresh
from tasks.baselines import Method, Prediction
from tasks.images import digits, sized
from tasks.task import Task

SIDE, TEST, SHOTS, EPOCHS, ROUNDS, BLACKVIP = 64, 400, 10, 32, 4, 50_000
MAPS = ("labels", "linear")
FLOOR, CEILING = "no program, labels", "white box, labels"
# The rates in STEPS were chosen by the loss of 160 training rows (seed 100, not measured) after 4000 queries. Adam's rate: of RGF out of
# 0.03 and 0.1 (smaller ones lost at 5600 queries, as did radius 0.01 and 0.1), of coordinates out of 0.03, 0.1 and 0.3;
# SPSA's out of 0.01, 0.03 and 0.1, with correction out of 0.003, 0.01 and 0.03; CMA's sigma out of 0.03, 0.1 and 0.3.
WHITE = (
    1e-2  # by the training loss of the white box on seed 100, out of 0.001, 0.003, 0.01 and 0.03; primed takes the same
)
EACH = {"rgf": 7, "spsa": 11, "spsa-gc": 11, "coordinate": 11, "cma": 33}  # queries per image and pass, with the map's
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


def head(task: Task, mapping: str, closed: bool = False) -> Any:
    """A label map, or a linear map on log probabilities: trained with the program, or in closed form where there is none."""
    count = len(task.classes)
    return LabelMap(1000, count) if mapping == "labels" else LinearMap(1000, count, kind="classification", ridge=closed)


def from_queries(name: str, budget: int) -> Callable[[Task, int], Prediction]:
    """Train the coordinator by a gradient step until the budget is spent."""

    def run(task: Task, seed: int) -> Prediction:
        (make, rates, clip), each = STEPS[name], EACH[name]
        x, y = task.part("train")
        source = boxed(budget)
        model = Reprogrammed(Coordinator(seed=seed), source, head(task, "labels"))
        fit(
            model, {"train": (x, y)}, gradient=make(), optimizer=rates, clip=clip, hooks=[refresh],
            epochs=math.ceil((budget / len(x) - 1) / each), batch_size=32, seed=seed, progress=False,
        )  # fmt: skip
        SPENT[budget, seed, name] = source.network.queries
        return answered(model, task)

    return run


def primed(budget: int, mapping: str, rounds: int = 0) -> Callable[[Task, int], Prediction]:
    """One pass over the box, or one in each round, and everything else on the local stand-in."""

    def run(task: Task, seed: int) -> Prediction:
        x, y = task.part("train")
        source, local = boxed(budget), hidden("features")
        data, rates = {"train": (x, y)}, adam(program=WHITE)
        stand_in = LinearMap(local.width, 1000) if rounds else prime(source, local, x, seed=seed, progress=False)
        model = Reprogrammed(Coordinator(seed=seed), local, Through(stand_in, head(task, mapping)))
        if rounds:
            reprime(
                source, model, data, rounds=rounds, optimizer=rates, epochs=EPOCHS // rounds, seed=seed, progress=False
            )
        else:
            fit(model, data, optimizer=rates, epochs=EPOCHS, hooks=[refresh], seed=seed, progress=False)
        SPENT[budget, seed, named("primed in rounds" if rounds else "primed", mapping)] = source.network.queries
        return answered(model, task)

    return run


def mapped(budget: int, mapping: str) -> Callable[[Task, int], Prediction]:
    """No program: one query per image, and a map."""

    def run(task: Task, seed: int) -> Prediction:
        source = boxed(budget)
        model = Reprogrammed(Identity(), source, head(task, mapping, closed=True))
        fit(model, {"train": task.part("train")}, epochs=0, seed=seed, progress=False)
        SPENT[budget, seed, named("no program", mapping)] = source.network.queries
        return answered(model, task)

    return run


def white(mapping: str) -> Callable[[Task, int], Prediction]:
    """The same program and map by backpropagation."""

    def run(task: Task, seed: int) -> Prediction:
        model = Reprogrammed(Coordinator(seed=seed), hidden(), head(task, mapping))
        fit(
            model, {"train": task.part("train")}, optimizer=adam(program=WHITE), epochs=EPOCHS, hooks=[refresh], seed=seed,
            progress=False,
        )  # fmt: skip
        return answered(model, task)

    return run


def named(method: str, mapping: str) -> str:
    """The method with its map."""
    return f"{method}, {mapping}"


def chosen(cell: Cell) -> list[Method]:
    """Every way to spend the cell's budget."""
    budget = cell["budget"]
    found = [Method(named("no program", m), "control", mapped(budget, m)) for m in MAPS]
    found += [Method(named("white box", m), "control", white(m)) for m in MAPS]
    found += [Method(named("primed", m), "reprogrammed", primed(budget, m)) for m in MAPS]
    found += [Method(named("primed in rounds", "labels"), "reprogrammed", primed(budget, "labels", ROUNDS))]
    return [*found, *(Method(name, "reprogrammed", from_queries(name, budget)) for name in STEPS)]


def gains(rows: list[dict]) -> str:
    """Each method's share of the white box's gain over no program, both with the label map, and its queries per image."""
    cells = {(r["budget"], r["seed"], r["method"]): r for r in rows if "accuracy" in r}
    lines = ["| method | seeds | share of the white-box gain (95 % interval over seeds) | queries per image | of BlackVIP's |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for budget, method in dict.fromkeys((b, m) for b, _, m in cells):
        seeds = [
            s for b, s, m in cells if (b, m) == (budget, method) and {(b, s, FLOOR), (b, s, CEILING)} <= set(cells)
        ]
        value = {m: np.array([cells[budget, s, m]["accuracy"][0] for s in seeds]) for m in (method, FLOOR, CEILING)}
        asked = [cells[budget, s, method]["queries"] / cells[budget, s, method]["train"] for s in seeds
                 if cells[budget, s, method]["queries"]]  # fmt: skip
        if seeds:
            share = value[method] - value[FLOOR], value[CEILING] - value[FLOOR]
            low, high = ratio_interval(*share)
            spent = f"{np.mean(asked):.0f} | {np.mean(asked) / BLACKVIP:.3%}" if asked else "none | "
            lines.append(
                f"| {method} | {len(seeds)} | {share[0].sum() / share[1].sum():.2f} ({low:.2f} to {high:.2f}) | {spent} |"
            )
    return "\n".join(lines) + "\n"


def ratio_interval(gain: np.ndarray, whole: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval over seeds of the mean gain as a share of the mean whole one."""
    drawn = np.random.default_rng(0).integers(0, len(gain), (2000, len(gain)))
    low, high = np.percentile(gain[drawn].sum(1) / whole[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    images = SHOTS * 10
    options = parser(__doc__, budgets=(int(images * BLACKVIP * 0.001),)).parse_args()
    shots = SHOTS
    if options.quick:
        options.budgets, options.seeds, shots = [400], 1, 2
        options.methods = options.methods or ["spsa-gc", FLOOR, "no program, linear"]
    cells = [{"budget": b, "seed": s} for s, b in product(range(options.seeds), options.budgets)]
    task = sized(digits(), {"test": TEST})
    rows = measure(
        "blackbox", options, cells, lambda cell: task.shots(shots, seed=cell["seed"]), chosen,
        lambda cell, method: {"queries": SPENT.get((cell["budget"], cell["seed"], method))},
    )  # fmt: skip
    others = [*STEPS, "primed, labels", "primed in rounds, labels", "no program, linear"]
    steps = [[FLOOR, name, CEILING] for name in others] + [["no program, linear", f"{name}, linear"] for name in ("primed", "white box")]  # fmt: skip
    print(ordering(rows, ("budget",), "accuracy", steps))
    print(gains(rows))


if __name__ == "__main__":
    main()
