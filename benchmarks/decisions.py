"""Attacks that see decisions only: how near they come after so many queries, beside ART.

    python -m benchmarks.decisions --quick                               a minute, for a look
    python -m benchmarks.decisions                                       128 pictures, an estimated 20 minutes of one core
    python -m benchmarks.decisions --table                               the Markdown table of what has been measured

The plainly trained network of `benchmarks.attacks`. Every row of a batch that enters the network is a query, the search for a
beginning included; what counts is the nearest example that passed through the network within the budget, ours as the attack
returns it, ART's recorded at the network's door. ART attacks one picture at a time.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import adversarial as ours
from benchmarks.attacks import data, network
from benchmarks.harness import RESULTS, load_rows, parser, save_rows
from benchmarks.summary import interval, spread

NORMS, BUDGETS, PEER = ("l2", "linf"), (1000, 5000), "ART HopSkipJump"
OURS: dict[str, Callable[..., Any]] = {
    "HopSkipJump": ours.HopSkipJump, "RayS": ours.RayS, "SignOPT": ours.SignOPT, "GeoDA": ours.GeoDA, "SignFlip": ours.SignFlip,
    "Boundary": ours.Boundary,
}  # fmt: skip


class Spent(Exception):
    """The budget of queries is used up."""


class Door(nn.Module):
    """A model that counts queries about one picture, remembers the nearest example within each budget, then stops."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def begin(self, x: Tensor, y: int, norm: str) -> None:
        self.x, self.y, self.order = x, y, 2 if norm == "l2" else math.inf
        self.queries, self.nearest = 0, dict.fromkeys(BUDGETS, math.inf)

    def forward(self, z: Tensor) -> Tensor:
        z = z.float()
        outputs = self.model(z)
        distance = torch.linalg.vector_norm((z - self.x).flatten(1), self.order, dim=1)
        distance = torch.where(outputs.argmax(1) != self.y, distance, math.inf)
        for budget in BUDGETS:
            within = distance[: max(budget - self.queries, 0)]
            self.nearest[budget] = min(self.nearest[budget], float(within.amin()) if len(within) else math.inf)
        self.queries += len(z)
        if self.queries >= max(BUDGETS):
            raise Spent
        return outputs


def of_art(model: nn.Module, x: Tensor, y: Tensor, norm: str, seed: int) -> dict[int, list[float]]:
    """ART's HopSkipJump with its defaults, on as many iterations as the budget allows."""
    from art.attacks.evasion import HopSkipJump
    from art.estimators.classification import PyTorchClassifier

    door, order = Door(model), 2 if norm == "l2" else np.inf
    door.begin(x[:1], -1, norm)
    wrapped = PyTorchClassifier(
        door,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
    )
    found: dict[int, list[float]] = {budget: [] for budget in BUDGETS}
    for row in range(len(x)):
        np.random.seed(seed)  # noqa: NPY002  ART draws from numpy's global generator
        door.begin(x[row : row + 1], int(y[row]), norm)
        attack = HopSkipJump(wrapped, norm=order, max_iter=200, verbose=False)
        with contextlib.suppress(Spent):
            attack.generate(x=x[row : row + 1].numpy(), y=y[row : row + 1].numpy())
        for budget, distances in found.items():
            distances.append(door.nearest[budget])
    return found


def of_us(name: str, model: nn.Module, x: Tensor, y: Tensor, norm: str, seed: int) -> dict[int, list[float]]:
    ball = ours.Ball(norm, math.inf)  # type: ignore[arg-type]
    runs = {
        budget: OURS[name](ball, queries=budget).run(model, x, y, generator=torch.Generator().manual_seed(seed))
        for budget in BUDGETS
    }
    return {budget: result.distance.tolist() for budget, result in runs.items()}


def table(rows: list[dict]) -> str:
    """Medians over pictures, means over seeds; then our HopSkipJump beside ART's, picture by picture."""
    data = pd.DataFrame(rows)
    data["distances"] = [np.array(one, dtype=float) for one in data.distances]  # None becomes NaN: nothing was found
    heads = ("attack", "norm", "queries", "seeds", "pictures", "found", "median distance", "CPU s for all budgets")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for (attack, norm, budget), some in data.groupby(["attack", "norm", "budget"], sort=False):
        every = np.stack(list(some.distances))
        medians = np.median(np.nan_to_num(every, nan=np.inf), axis=1)
        cells = (attack, norm, budget, *every.shape, f"{np.isfinite(every).mean():.1%}", spread(medians, 4))
        lines.append(f"| {' | '.join(map(str, cells))} | {some.seconds.mean():.1f} |")
    lines += [
        "",
        "| HopSkipJump | queries | distance, ours / ART's (geometric mean over pictures) | nearer |",
        "| --- " * 4 + "|",
    ]
    for (norm, budget), some in data.groupby(["norm", "budget"], sort=False):
        sides = [some[some.attack == name].set_index("seed").distances for name in ("HopSkipJump", PEER)]
        pairs = [np.log(sides[0][seed] / sides[1][seed]) for seed in sides[0].index.intersection(sides[1].index)]
        if pairs:
            ratio = np.mean(pairs, axis=0)
            low, high = np.exp(interval(ratio[np.isfinite(ratio)]))
            lines.append(
                f"| {norm} | {budget} | {np.exp(np.nanmean(ratio)):.3f} ({low:.3f}–{high:.3f}) | {(ratio < 0).mean():.0%} |"
            )
    return "\n".join(lines)


def main() -> None:
    known = parser(__doc__, norms=NORMS, attacks=(PEER, *OURS))
    known.add_argument("--count", type=int, default=128, help="pictures")
    known.set_defaults(seeds=1)
    options = known.parse_args()
    if options.quick:
        options.count, options.norms, options.attacks = 4, ["l2"], ["HopSkipJump", "RayS"]
    torch.set_num_threads(1)
    path = options.out or RESULTS / f"decisions-{'quick' if options.quick else options.shard.replace('/', 'of')}.json"
    rows = load_rows(path)
    if not options.table:
        rows = measure(options, path, rows)
    print(table(rows))


def measure(options: Any, path: Any, rows: list[dict]) -> list[dict]:
    """Run what is missing, and keep it after every attack."""
    x, y, inputs, labels = data()
    model = network("std", x, y)
    with torch.no_grad():
        right = (model(inputs[: 2 * options.count]).argmax(1) == labels[: 2 * options.count]).nonzero()[
            : options.count, 0
        ]
    inputs, labels = inputs[right], labels[right]
    done = {(row["attack"], row["norm"], row["seed"]) for row in rows}
    for seed in range(options.seeds):
        for attack in options.attacks:
            for norm in options.norms:
                if (attack, norm, seed) in done or (attack == "RayS" and norm == "l2"):
                    continue
                started = time.process_time()
                try:
                    found = (
                        of_art(model, inputs, labels, norm, seed)
                        if attack == PEER
                        else of_us(attack, model, inputs, labels, norm, seed)
                    )
                except ImportError:
                    continue
                except ValueError as error:  # an attack that has no such norm
                    print(attack, norm, error)
                    continue
                seconds = round(time.process_time() - started, 2)
                rows += [
                    {
                        "attack": attack,
                        "norm": norm,
                        "budget": budget,
                        "seed": seed,
                        "seconds": seconds,
                        "distances": [round(d, 5) if math.isfinite(d) else None for d in distances],
                    }
                    for budget, distances in found.items()
                ]
                save_rows(path, rows)
    return rows


if __name__ == "__main__":
    main()
