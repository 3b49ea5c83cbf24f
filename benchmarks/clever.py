"""CLEVER beside ART's: CPU time on pictures, and how near the score is to the exact smallest distance on tiny networks.

    python -m benchmarks.clever --quick                     a minute, for a look
    python -m benchmarks.clever                             an estimated 25 minutes of one core
    python -m benchmarks.clever --table                     the Markdown tables of what has been measured

Both in one process, on the same inputs, with the same sizes and radii. "pool 10" draws ten times the samples once and takes
batches from them with repetition, which is all that ART does; "pool 2, 4 rounds" spends as many gradients on five balls of
shrinking radius; "fresh" draws new points for every batch, as in the paper.
The exact distance is a mixed integer program, one for each class; for l2 tangents are added until the gap is below 0.1 %.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
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
from benchmarks.nearest import ORDER, Program
from benchmarks.summary import spread
from certify.lipschitz.clever import CLEVER
from reprogram.files import atomic_file

PEER, SHRUNK, RADIUS = "ART", "pool 2, 4 rounds", {"l2": 5.0, "linf": 0.3}
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


def of_us(certifier: CLEVER, model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(certifier(model, x, y).radius)


def pictures(options: Any, done: dict[tuple, dict]) -> Iterator[dict]:
    """CPU seconds and scores, one row for each picture and method."""
    x, y, inputs, labels = data()
    for name, model in (("mlp", perceptron(x, y)), ("cnn", network("std", x, y))):
        logits = model(inputs[:200])
        right = (logits.argmax(1) == labels[:200]).nonzero()[: options.count, 0].tolist()
        peer = of_art(model, (1, 28, 28), 10, (0.0, 1.0))
        for norm, targets, seed, row in product(("l2", "linf"), SIZES, range(options.seeds), right):
            cell = {"part": "pictures", "model": name, "norm": norm, "targets": targets, "seed": seed, "row": row}
            target = int(logits[row].argsort(descending=True)[1]) if targets == "runner-up" else None
            pools: dict[str, dict] = {"pool 10": {"pool": 10}, SHRUNK: {"pool": 2, "rounds": 4}}
            pools |= {"fresh": {}} if targets == "each" else {}
            point, certifier = (
                (inputs[row : row + 1], labels[row : row + 1]),
                certifiers(cell, Ball(norm, 0.1), RADIUS[norm]),
            )
            yield from rows_of(cell, lambda: {}, model, peer, target, point, certifier, pools, done)


def distances(options: Any, done: dict[tuple, dict]) -> Iterator[dict]:
    """Scores beside the exact smallest distance, one row for each input and method."""
    pools: dict[str, dict] = {"pool 10": {"pool": 10}, SHRUNK: {"pool": 2, "rounds": 4}, "fresh": {}}
    for seed in range(options.seeds):
        model, inputs, labels = tiny(seed)
        peer = of_art(model, (TINY,), 3, None)
        for norm, row in product(REACH, range(min(options.count, len(inputs)))):
            cell = {"part": "distances", "model": "tiny", "norm": norm, "targets": "each", "seed": seed, "row": row}
            point = inputs[row : row + 1], labels[row : row + 1]
            certifier = certifiers(cell, Ball(norm, 0.1, None, None), REACH[norm], (500, 1024))
            facts = partial(exact, model, *point, norm)
            yield from rows_of(cell, facts, model, peer, None, point, certifier, pools, done)


def exact(model: nn.Sequential, x: Tensor, y: Tensor, norm: str) -> dict:
    """The smallest distance to any other class, as far as the radius."""
    reach, others = REACH[norm], [c for c in range(3) if c != int(y)]
    found = min(Program(model, x[0], int(y), c, norm, reach).distance() for c in others)
    return {"exact": round(min(found, reach), 6), "beyond": found > reach}


def certifiers(cell: dict, threat: Ball, radius: float, sizes: tuple[int, int] | None = None) -> CLEVER:
    """Ours for a cell, with new points."""
    return CLEVER(threat, *(sizes or SIZES[cell["targets"]]), radius=radius, targets=cell["targets"], seed=cell["seed"])


def rows_of(
    cell: dict, facts: Callable[[], dict], model: nn.Module, peer: Callable[..., float], target: int | None,
    point: tuple[Tensor, Tensor], certifier: CLEVER, pools: dict[str, dict], done: dict[tuple, dict],
) -> Iterator[dict]:  # fmt: skip
    """ART's and ours, those that are not done; `facts` are of the cell."""
    x, y = point
    sizes = certifier.batches, certifier.samples
    calls: dict[str, Callable[[], float]] = {
        PEER: partial(peer, x[0], int(y), target, sizes, certifier.radius, cell["norm"], cell["seed"])
    }
    calls |= {name: partial(of_us, replace(certifier, **chosen), model, x, y) for name, chosen in pools.items()}
    missing = [name for name in calls if key({**cell, "method": name}) not in done]
    old = next((done[key({**cell, "method": name})] for name in calls if name not in missing), None)
    known = {} if not missing else facts() if old is None else {n: old[n] for n in ("exact", "beyond") if n in old}
    for name in missing:
        started = time.process_time()
        score = calls[name]()
        seconds = round(time.process_time() - started, 3)
        yield cell | known | {"method": name, "score": round(score, 6), "seconds": seconds}


def key(row: dict) -> tuple:
    return tuple(row[name] for name in ("part", "model", "norm", "targets", "seed", "row", "method"))


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
            done = {key(row): row for row in rows}
            for row in {"pictures": pictures, "distances": distances}[name](options, done):
                rows.append(row)
                save_rows(path, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
