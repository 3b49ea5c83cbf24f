"""Searches replayed against a measured grid: what a budget would have found, without training anything again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.summary import interval
from reprogram.search import Candidate, Told, search
from reprogram.selection import openers
from tasks.metrics import METRICS

BUDGET, SEARCHES, CLOSE = 20, 10, 0.02
DESIGN = ("gunpoint", "freesolv", "digits")  # the criterion, the opening and the noise of `search` were chosen on these


@dataclass(frozen=True)
class Grid:
    """Every candidate of one task and seed: plain validation loss after each pass, the one that `select` compares by, and the
    test metric, larger being better.
    """

    name: str
    candidates: list[Candidate]
    curves: list[list[float]]
    losses: list[float]
    metric: list[float]

    def found(self, budget: int, seed: int, epochs: int) -> tuple[int, int]:
        """The candidate that a search of so many runs chooses, and the passes it has trained in all."""
        known = dict(zip(self.candidates, zip(self.curves, self.losses, strict=True), strict=True))

        def attempt(candidate: Candidate, told: Told) -> float:
            curve, loss = known[candidate]
            for plain in curve:
                if told(plain):
                    break
            return loss

        first = openers(self.candidates, seed)
        trials = search(self.candidates, attempt, budget=budget, epochs=epochs, seed=seed, first=first, progress=False)
        best = min(trials, key=lambda t: t.rank)
        return self.candidates.index(best.candidate), sum(t.epochs for t in trials)

    def close(self, place: int, other: int) -> bool:
        """Whether the test metric is within 2 % of the other's, or better."""
        a, b = self.metric[place], self.metric[other]
        return a >= b - CLOSE * abs(b)

    @property
    def chosen(self) -> int:
        """What the whole grid chooses on validation rows."""
        return int(np.argmin(self.losses))


def grids(rows: Sequence[dict]) -> list[Grid]:
    """The measured grids, without candidates that could not be trained."""
    cells: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        if row.get("curve") and row["metric"] in row:
            cells.setdefault((row["task"], row["seed"]), []).append(row)
    return [
        Grid(
            f"{task} {seed}" if seed else task,
            [Candidate(r["source"], r["program"], r["mapping"], r["rate"]) for r in own],
            [r["curve"] for r in own],
            [r["validation_loss"] for r in own],
            [r[r["metric"]][0] * (1 if METRICS[r["metric"]].larger_is_better else -1) for r in own],
        )
        for (task, seed), own in cells.items()
    ]


def searches(rows: Sequence[dict], epochs: int) -> str:
    """Per task: the whole grid's choice, its best by test, and what searches of 20 runs reach of them."""
    lines = [
        f"| task | candidates | grid's choice | best by test | {BUDGET} runs: mean test metric | within 2 % of the grid's choice "
        "| validation loss within 2 % | within 2 % of the best by test | grid's choice within 2 % of it | share of the grid's passes |",
        "| --- |" + " --- |" * 9,
    ]
    measured, shares = grids(rows), []
    for grid in measured:
        found = [grid.found(BUDGET, seed, epochs) for seed in range(SEARCHES)]
        whole, best = grid.chosen, int(np.argmax(grid.metric))
        near = np.mean([grid.losses[place] <= grid.losses[whole] * (1 + CLOSE) for place, _ in found])
        shares.append([
            np.mean([grid.close(place, whole) for place, _ in found]), near,
            np.mean([grid.close(place, best) for place, _ in found]), float(grid.close(whole, best)),
            np.mean([passes for _, passes in found]) / sum(map(len, grid.curves)),
        ])  # fmt: skip
        reached = np.mean([abs(grid.metric[place]) for place, _ in found])
        numbers = f"{abs(grid.metric[whole]):.3f} | {abs(grid.metric[best]):.3f} | {reached:.3f}"
        lines.append(
            f"| {grid.name} | {len(grid.candidates)} | {numbers} | " + " | ".join(f"{s:.0%}" for s in shares[-1]) + " |"
        )
    if not shares:
        return "nothing measured yet\n"
    table, new = np.array(shares), np.array([grid.name.split()[0] not in DESIGN for grid in measured])
    lines += [
        mean_line("mean", table),
        *([mean_line("without those that the search was designed on", table[new])] if new.any() else []),
    ]
    return "\n".join(lines) + "\n"


def mean_line(name: str, table: np.ndarray) -> str:
    """Means over tasks with their 95 % intervals."""
    columns = [(column.mean(), *interval(column)) for column in table.T]
    return (
        f"| {name}, {len(table)} | | | | | "
        + " | ".join("{:.0%} ({:.0%} to {:.0%})".format(*c) for c in columns)
        + " |"
    )
