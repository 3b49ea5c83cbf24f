"""Attacks on few parameters without gradients: a grid, and the worst of some random points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adversarial.attacks.base import Attack
from adversarial.probe import Probe
from adversarial.streams import Streams
from adversarial.threat import Threat

MOST = 20_000  # points of a grid


@dataclass(frozen=True)
class GridSearch(Attack):
    """Every point of a grid over the region, the nearest first, so that the mildest that reaches the goal is found.

    Args:
        threat: one with few variables, such as `lift(Spatial())`.
        points: of every variable, or one number for each; evenly from end to end. 5 for shifts and 31 for angles in the paper.

    Reference: Engstrom et al., ICML 2019, arXiv:1712.02779.
    Differs from the paper: it ends at the first success instead of the largest loss.
    """

    threat: Threat
    points: int | Sequence[int] = 5

    def search(self, probe: Probe, streams: Streams) -> None:
        rows, grid = probe.open, self.grid(probe.region.low.shape[1])
        if not len(rows):
            return
        low, high = probe.region.box()
        low, high = low.flatten(1), high.flatten(1)
        order = nearest_first(grid.to(low), probe.region[rows].low, probe.region[rows].high)
        for turn in range(len(grid)):
            region = probe.region[rows]
            z = low[rows] + (high - low)[rows] * grid.to(low)[order[:, turn]]
            z = region.project(z.view_as(region.anchor))
            new = region.distance(z) > 0  # the clean input is known
            if new.any():
                probe.outputs(z[new], rows[new])
            keep = ~probe.reached[rows]
            if not keep.all():
                rows, order = rows[keep], order[keep]
                if not len(rows):
                    return

    def grid(self, size: int) -> Tensor:
        """Points of the unit cube (P, size)."""
        counts = [self.points] * size if isinstance(self.points, int) else list(self.points)
        if len(counts) != size or min(counts) < 1 or math.prod(counts) > MOST:
            raise ValueError(
                f"expected points for {size} variables, at most {MOST} together, got {self.points}; use WorstOf or PGD"
            )
        axes = [torch.linspace(0, 1, n) if n > 1 else torch.full((1,), 0.5) for n in counts]
        return torch.cartesian_prod(*axes).view(-1, size)


def nearest_first(grid: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """For each row the numbers (b, P) of grid points, in the order of their distance from the anchor in units of the box."""
    anchor = -low / (high - low).clamp_min(torch.finfo(low.dtype).tiny)
    squares = torch.zeros(len(low), len(grid), dtype=low.dtype, device=low.device)
    for axis in range(grid.shape[1]):  # one by one: a product of matrices rounds otherwise in another batch
        squares += (grid[:, axis] - anchor[:, axis, None]).square()
    return squares.argsort(dim=1, stable=True)


@dataclass(frozen=True)
class WorstOf(Attack):
    """So many random points of the region; a sample leaves at the first that reaches the goal.

    Reference: Engstrom et al., ICML 2019, arXiv:1712.02779 (worst of 10).
    """

    threat: Threat
    count: int = 10

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"expected at least one point, got {self.count}")

    def search(self, probe: Probe, streams: Streams) -> None:
        for _ in range(self.count):
            rows = probe.open
            if not len(rows):
                return
            probe.outputs(probe.region[rows].sample(streams, rows), rows)
