"""CLEVER beside ART's: CPU time on pictures, and how near the score is to the exact smallest distance on tiny networks.

    python -m benchmarks.clever --quick                     a minute, for a look
    python -m benchmarks.clever                             an estimated 25 minutes of one core
    python -m benchmarks.clever --table                     the Markdown tables of what has been measured

Both in one process, on the same inputs, with the same sizes and radii. "pool 10" draws ten times the samples once and takes
batches from them with repetition, which is all that ART does; "fresh" draws new points for every batch, as in the paper.
The exact distance is a mixed integer program, one for each class; for l2 tangents are added until the gap is below 0.1 %.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adversarial import Ball
from benchmarks.attacks import MODELS, data, network
from benchmarks.harness import RESULTS, load_rows, parser, save_rows
from benchmarks.summary import spread
from certify.clever import CLEVER
from reprogram.files import atomic_file

PEER, ORDER, RADIUS = "ART", {"l2": 2, "linf": np.inf, "l1": 1}, {"l2": 5.0, "linf": 0.3, "l1": 15.0}
SIZES = {"runner-up": (500, 1024), "each": (100, 100)}
TINY, WIDTH, REACH = 5, 10, {"l2": 0.6, "linf": 0.3, "l1": 1.2}  # inputs, hidden units of each layer, radii


def perceptron(x: Tensor, y: Tensor) -> nn.Module:
    """784-256-256-10, two epochs of Adam, from its file when there is one."""
    file = MODELS / "fashion-mlp.pt"
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    if not file.is_file():
        fitted(model, x, y, epochs=2, rate=1e-3)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as path:
            torch.save(model.state_dict(), path)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval().requires_grad_(False)


def fitted(model: nn.Module, x: Tensor, y: Tensor, *, epochs: int, rate: float) -> None:
    optimizer, generator = torch.optim.Adam(model.parameters(), rate), torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()


def tiny(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of two hidden layers that has learned three classes of five numbers, and inputs it is right about."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2000, TINY, generator=generator)
    directions = torch.randn(TINY, 3, generator=generator)
    y = (torch.sin(4 * (x - 0.5) @ directions)).argmax(1)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(TINY, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3))
    fitted(model, x, y, epochs=20, rate=5e-3)
    model.eval().requires_grad_(False)
    inputs = torch.rand(200, TINY, generator=generator)
    truth = torch.sin(4 * (inputs - 0.5) @ directions).argmax(1)
    right = (model(inputs).argmax(1) == truth).nonzero()[:, 0]
    return model, inputs[right], truth[right]


class Program:
    """The nearest point at which a class overtakes the label's, within a box around the input, as a mixed integer program.

    Variables: steps δ, then hidden units h and their switches a for each layer, then the distance t, with sizes of δ before
    it for l1.
    """

    def __init__(self, model: nn.Sequential, x: Tensor, y: int, other: int, norm: str, reach: float):
        layers = [(m.weight.double().numpy(), m.bias.double().numpy()) for m in model if isinstance(m, nn.Linear)]
        self.n, self.norm, self.rows, self.lows = len(x), norm, [], []
        units = sum(len(b) for _, b in layers[:-1])
        self.size = self.n + 2 * units + (self.n if norm == "l1" else 0) + 1
        self.bounds = np.tile([0.0, np.inf], (self.size, 1))
        self.bounds[: self.n] = [-reach, reach]
        self.integer = np.zeros(self.size)
        before, at, start = np.arange(self.n), x.double().numpy(), self.n
        low, high = at - reach, at + reach
        for weight, bias in layers[:-1]:
            h, a = start + np.arange(len(bias)), start + len(bias) + np.arange(len(bias))
            start += 2 * len(bias)
            self.integer[a], self.bounds[a] = 1, [0, 1]
            middle, radius = weight @ ((low + high) / 2) + bias, np.abs(weight) @ ((high - low) / 2) + 1e-9
            shift = bias + (weight @ at if before[0] == 0 else 0)
            for i, (l, u) in enumerate(zip(middle - radius, middle + radius, strict=True)):
                self.above({h[i]: 1, **dict(zip(before, -weight[i], strict=True))}, shift[i])
                self.above({h[i]: -1, a[i]: l, **dict(zip(before, weight[i], strict=True))}, l - shift[i])
                self.above({h[i]: -1, a[i]: max(u, 0)}, 0)
            low, high, before = np.maximum(middle - radius, 0), np.maximum(middle + radius, 0), h
        weight, bias = layers[-1]
        self.above(dict(zip(before, weight[other] - weight[y], strict=True)), bias[y] - bias[other])
        if norm != "l2":
            self.measured(start)

    def above(self, row: dict[int, float], low: float) -> None:
        """Σ row · variables is at least this."""
        found = np.zeros(self.size)
        found[list(row)] = list(row.values())
        self.rows.append(found)
        self.lows.append(low)

    def measured(self, start: int) -> None:
        """t is at least the norm of the steps."""
        t = self.size - 1
        for i, sign in product(range(self.n), (1, -1)):
            self.above({t if self.norm == "linf" else start + i: 1, i: sign}, 0)
        if self.norm == "l1":
            self.above({t: 1, **{start + i: -1 for i in range(self.n)}}, 0)

    def distance(self) -> float:
        """The smallest; infinity where there is no such point in the box."""
        generator = np.random.default_rng(0)
        if self.norm == "l2":
            for u in generator.normal(size=(40, self.n)):
                self.tangent(u)
        for _ in range(60):
            steps, bound = self.solved()
            if steps is None:
                return math.inf
            size = float(np.linalg.norm(steps, ORDER[self.norm]))
            if self.norm != "l2" or size <= bound * 1.001:
                return size
            self.tangent(steps)
        raise RuntimeError(f"expected a gap below 0.1 % after 60 tangents, got {size / bound - 1:.2%}")

    def tangent(self, u: np.ndarray) -> None:
        self.above({self.size - 1: 1, **dict(enumerate(-u / np.linalg.norm(u)))}, 0)

    def solved(self) -> tuple[np.ndarray | None, float]:
        from scipy.optimize import Bounds, LinearConstraint, milp

        cost = np.zeros(self.size)
        cost[-1] = 1
        limits = LinearConstraint(np.array(self.rows), lb=np.array(self.lows))
        found = milp(
            cost,
            constraints=limits,
            bounds=Bounds(*self.bounds.T),
            integrality=self.integer,
            options={"mip_rel_gap": 1e-6},
        )
        return (None, math.inf) if found.x is None else (found.x[: self.n], float(found.fun))


def of_art(
    model: nn.Module, shape: tuple[int, ...], classes: int, clip: tuple[float, float] | None
) -> Callable[..., float]:
    """ART's score with numpy's seed set before each."""
    from art.estimators.classification import PyTorchClassifier
    from art.metrics import clever_t, clever_u

    wrapped = PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=shape, nb_classes=classes, clip_values=clip, device_type="cpu"
    )

    def score(
        x: Tensor, y: int, target: int | None, sizes: tuple[int, int], radius: float, norm: str, seed: int
    ) -> float:
        np.random.seed(seed)  # noqa: NPY002  ART draws from numpy's global generator
        rest = (*sizes, radius, ORDER[norm])
        found = (
            clever_u(wrapped, x.numpy(), *rest, verbose=False)
            if target is None
            else clever_t(wrapped, x.numpy(), target, *rest)
        )
        return float(found)

    return score


def timed(call: Callable[[], float]) -> tuple[float, float]:
    started = time.process_time()
    found = call()
    return found, time.process_time() - started


def of_us(model: nn.Module, x: Tensor, y: Tensor, threat: Ball, targets: str, sizes: tuple[int, int], radius: float, seed: int, pool: int | None) -> float:  # fmt: skip
    certifier = CLEVER(threat, *sizes, radius=radius, targets=targets, pool=pool, seed=seed)  # type: ignore[arg-type]
    return float(certifier(model, x, y).radius)


def pictures(options: Any) -> Iterator[dict]:
    """CPU seconds and scores, one row for each picture and method."""
    x, y, inputs, labels = data()
    for name, model in (("mlp", perceptron(x, y)), ("cnn", network("std", x, y))):
        logits = model(inputs[:200])
        right = (logits.argmax(1) == labels[:200]).nonzero()[: options.count, 0].tolist()
        peer = of_art(model, (1, 28, 28), 10, (0.0, 1.0))
        for norm, targets, seed, row in product(("l2", "linf"), SIZES, range(options.seeds), right):
            cell = {"part": "pictures", "model": name, "norm": norm, "targets": targets, "seed": seed, "row": row}
            z, label, sizes = inputs[row : row + 1], labels[row : row + 1], SIZES[targets]
            target = int(logits[row].argsort(descending=True)[1]) if targets == "runner-up" else None
            runs: dict[str, Callable[[], float]] = {
                PEER: lambda: peer(z[0], int(label), target, sizes, RADIUS[norm], norm, seed),  # noqa: B023
                "pool 10": lambda: of_us(model, z, label, Ball(norm, 0.1), targets, sizes, RADIUS[norm], seed, 10),  # noqa: B023
            }  # fmt: skip
            if targets == "each":
                runs["fresh"] = lambda: of_us(
                    model, z, label, Ball(norm, 0.1), targets, sizes, RADIUS[norm], seed, None
                )  # noqa: B023
            yield from rows_of(cell, runs)


def distances(options: Any) -> Iterator[dict]:
    """Scores beside the exact smallest distance, one row for each input and method."""
    for seed in range(options.seeds):
        model, inputs, labels = tiny(seed)
        peer = of_art(model, (TINY,), 3, None)
        for norm, row in product(REACH, range(min(options.count, len(inputs)))):
            z, label, reach = inputs[row : row + 1], labels[row : row + 1], REACH[norm]
            others = [c for c in range(3) if c != int(label)]
            exact = min(Program(model, z[0], int(label), c, norm, reach).distance() for c in others)
            cell = {"part": "distances", "model": "tiny", "norm": norm, "targets": "each", "seed": seed, "row": row}
            threat, sizes = Ball(norm, 0.1, None, None), (500, 1024)
            runs = {
                PEER: lambda: peer(z[0], int(label), None, sizes, reach, norm, seed),  # noqa: B023
                "pool 10": lambda: of_us(model, z, label, threat, "each", sizes, reach, seed, 10),  # noqa: B023
                "fresh": lambda: of_us(model, z, label, threat, "each", sizes, reach, seed, None),  # noqa: B023
            }
            yield from rows_of(cell | {"exact": round(min(exact, reach), 6), "beyond": exact > reach}, runs)


def rows_of(cell: dict, runs: dict[str, Callable[[], float]]) -> Iterator[dict]:
    for method, call in runs.items():
        score, seconds = timed(call)
        yield cell | {"method": method, "score": round(score, 6), "seconds": round(seconds, 3)}


def table(rows: list[dict]) -> str:
    frame = pd.DataFrame(rows)
    lines = [
        "| model | norm | targets, batches × samples | method | n | score 0 | CPU s for each input | ART's time / its own |",
        "| --- " * 8 + "|",
    ]
    for (model, norm, targets), some in frame[frame.part == "pictures"].groupby(
        ["model", "norm", "targets"], sort=False
    ):
        base = some[some.method == PEER].set_index(["seed", "row"]).seconds
        for method, own in some.groupby("method", sort=False):
            ratio = np.exp(np.log(base / own.set_index(["seed", "row"]).seconds).mean()) if len(base) else math.nan
            sizes = "{} × {}".format(*SIZES[targets])
            lines.append(
                f"| {model} | {norm} | {targets}, {sizes} | {method} | {len(own)} | {(own.score < 1e-3 * own.score.median()).sum()} | "
                f"{spread(own.seconds, 2)} | {ratio:.1f} |"
            )
    lines += [
        "",
        "| norm | method | networks × inputs | score 0 | mean \\|log(score / exact)\\| without these | score above exact | CPU s |",
        "| --- " * 7 + "|",
    ]
    part = frame[frame.part == "distances"]
    for (norm, method), own in part[~part.get("beyond", pd.Series(dtype=bool)).astype(bool)].groupby(
        ["norm", "method"], sort=False
    ):
        gone = own.score < 1e-3 * own.exact
        ratio = np.log(own.score[~gone] / own.exact[~gone])
        lines.append(
            f"| {norm} | {method} | {own.seed.nunique()} × {len(own) / own.seed.nunique():.0f} | {gone.sum()} | {spread(ratio.abs())} | "
            f"{(own.score > own.exact * 1.001).mean():.0%} | {own.seconds.mean():.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    known = parser(__doc__, parts=("pictures", "distances"))
    known.add_argument("--count", type=int, default=10, help="inputs for each seed")
    known.set_defaults(seeds=3)
    options = known.parse_args()
    if options.quick:
        options.count, options.seeds = 1, 1
    torch.set_num_threads(1)
    path = options.out or RESULTS / f"clever-{'quick' if options.quick else options.shard.replace('/', 'of')}.json"
    rows = load_rows(path)
    if not options.table:
        for name in options.parts:
            rows = [row for row in rows if row["part"] != name]
            for row in {"pictures": pictures, "distances": distances}[name](options):
                rows.append(row)
                save_rows(path, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
