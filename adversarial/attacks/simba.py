"""SimBA: one step along one vector of an orthonormal basis at a time, kept when it helps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adversarial.attacks.base import Attack
from adversarial.attacks.score import check_positive
from adversarial.attacks.windows import as_image
from adversarial.probe import Probe
from adversarial.streams import Streams
from adversarial.threat import Region, Threat


@dataclass(frozen=True)
class SimBA(Attack):
    r"""Walk along random vectors q of a basis, each once: keep $z + \epsilon q$ if it raises the loss, else try $z - \epsilon q$.

    At most two queries a vector; after the last one the order is drawn anew.

    Args:
        threat: any norm; every proposal is projected onto it.
        queries: forward passes per sample, the one of the clean input included.
        step: length of a step in the units of the inputs.
        basis: "pixel", one feature at a time, or "dct", cosine waves over the last two dimensions (over the last one of
            series and vectors), one channel at a time.
        frequencies: "dct": the share of lowest frequencies along each dimension that is used.
        loss: "ce" (the paper's: the probability of the class falls), "margin" or "dlr".

    Reference: Guo et al., "Simple black-box adversarial attacks", ICML 2019, arXiv:1905.07121.
    The default budget is the paper's 10000 vectors. Differs from the paper: steps end inside the threat; a step that its
    projection undoes costs no query.
    """

    threat: Threat
    queries: int = 20000
    step: float = 0.2
    basis: str = "pixel"
    frequencies: float = 0.125
    loss: str = "ce"

    def __post_init__(self) -> None:
        check_positive(self, "queries", "step", "frequencies")
        if self.basis not in ("pixel", "dct"):
            raise ValueError(f"expected basis 'pixel' or 'dct', got {self.basis!r}")

    def search(self, probe: Probe, streams: Streams) -> None:
        rows = probe.open
        region = probe.region[rows]
        waves = Waves(region.anchor, self.frequencies if self.basis == "dct" else 0)
        z, loss = region.anchor.clone(), probe.goal[rows].loss(probe.clean[rows], self.loss)
        turn, order = 0, torch.zeros(0, 0)
        while len(rows) and turn < self.queries:
            if turn % waves.count == 0:
                order = streams.uniform(rows, waves.count).argsort(dim=1, stable=True)
            vector = waves.take(order[:, turn % waves.count], region) * self.step
            left = torch.ones_like(rows, dtype=torch.bool)
            for sign in (1, -1):
                left = left & self.tried(probe, rows, region, z, loss, sign * vector, left)
            turn += 1
            keep = ~probe.reached[rows] & (probe.forwards[rows] < self.queries)
            if not keep.all():
                rows, region, z, loss, order = rows[keep], region[keep], z[keep], loss[keep], order[keep]

    def tried(
        self, probe: Probe, rows: Tensor, region: Region, z: Tensor, loss: Tensor, vector: Tensor, left: Tensor
    ) -> Tensor:
        """Move z and loss, in place, where a step raises the loss; which rows it did not help (b,)."""
        new = region.project(z + vector)
        moved = (new - z).abs().flatten(1).amax(1) > torch.finfo(z.dtype).eps ** 0.5 * self.step
        asked = (left & moved & (probe.forwards[rows] < self.queries)).nonzero()[:, 0]
        if not len(asked):
            return left
        values = probe.losses(new[asked], rows[asked], self.loss)
        better = values > loss[asked]
        taken = asked[better]
        z[taken], loss[taken] = new[taken], values[better]
        return left.index_fill(0, taken, False)


class Waves:
    """A basis of a sample's features: unit vectors, or products of cosine waves on one channel."""

    def __init__(self, like: Tensor, share: float):
        channels, *sides = as_image(like[:1], like).shape[1:]
        self.share, self.shape = share, (channels, *sides)
        self.low = [max(1, math.ceil(min(share, 1.0) * side)) if share else side for side in sides]
        self.count = channels * math.prod(self.low)
        self.tables = [cosines(side, low).to(like) for side, low in zip(sides, self.low, strict=True)] if share else []

    def take(self, which: Tensor, region: Region) -> Tensor:
        """The vectors of these numbers (b,), without the features that cannot move, like the anchor."""
        size = math.prod(self.low)
        channel, place = which // size, which % size
        if self.share:
            down, across = self.tables[0][place // self.low[1]], self.tables[1][place % self.low[1]]
            wave = down[:, :, None] * across[:, None, :]
            on = torch.arange(self.shape[0], device=which.device) == channel[:, None]
            vector = (on[:, :, None, None] * wave[:, None]).flatten(1)
        else:
            vector = torch.zeros_like(region.low).scatter(1, which[:, None], 1)
        return (vector * ((region.low < 0) | (region.high > 0))).view_as(region.anchor)


def cosines(side: int, count: int) -> Tensor:
    """The first rows of the orthonormal discrete cosine transform (count, side)."""
    frequency, place = torch.arange(count, dtype=torch.float64)[:, None], torch.arange(side, dtype=torch.float64)
    waves = torch.cos(math.pi * frequency * (place + 0.5) / side) * math.sqrt(2 / side)
    waves[0] /= math.sqrt(2)
    return waves
