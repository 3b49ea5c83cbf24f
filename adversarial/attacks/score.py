"""Attacks that estimate the gradient from scores: NES and SPSA. Every sample's estimate has directions of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adversarial.attacks.base import Attack
from adversarial.attacks.gradient import PGD
from adversarial.probe import Probe
from adversarial.streams import Streams
from adversarial.threat import Region, Threat, ThreatError

GROUP = 8  # directions asked about at once; the same for every batch, as a sum's rounding depends on its order


@dataclass(frozen=True)
class NES(Attack):
    r"""Steepest ascent along $\hat g = \frac{1}{2\sigma n} \sum_j (F(z + \sigma u_j) - F(z - \sigma u_j)) u_j$, u Gaussian.

    A step asks 2 `pairs` points around z, then the new z.

    Args:
        threat: where to search; the points around z may lie up to the radius outside.
        steps: at most; with the other defaults 10200 queries.
        pairs: of opposite directions in an estimate.
        radius: standard deviation of a direction, in units of eps (of eps over the root of the number of features for l2,
            over their number for l1, of the box for l0).
        step: length of a step in units of eps.
        decay: of the running mean of estimates; 0 for none.
        loss: "ce", "margin" or "dlr".

    Reference: Ilyas et al., "Black-box adversarial attacks with limited queries and information", ICML 2018,
    arXiv:1804.08598.
    Differs from the paper: radius 0.001 and step 0.01 are given in units of its eps 0.05; other norms; no partial
    information and no search for eps. The authors' code has a decay of 0.9 and halves the step where the loss rose over
    five; neither is in the paper, so neither is a default.
    """

    threat: Threat
    steps: int = 200
    pairs: int = 25
    radius: float = 0.02
    step: float = 0.2
    decay: float = 0.0
    loss: str = "ce"

    def __post_init__(self) -> None:
        check_positive(self, "steps", "pairs", "radius", "step")

    def search(self, probe: Probe, streams: Streams) -> None:
        rows, walk = probe.open, PGD(self.threat, step=self.step)
        region = probe.region[rows]
        z, mean = region.anchor, torch.zeros_like(region.anchor)
        for _ in range(self.steps):
            if not len(rows):
                return
            radius = self.radius * typical(region)
            gradient = estimated(probe, z, rows, streams.normal, self.pairs, radius, self.loss)
            mean = self.decay * mean + (1 - self.decay) * gradient
            z = region.project(z + walk.length(region, z) * walk.ahead(region, z, mean))
            left = ~probe.reached[rows]
            if left.any():
                probe.losses(z[left], rows[left], self.loss)
            keep = ~probe.reached[rows]
            rows, region, z, mean = rows[keep], region[keep], z[keep], mean[keep]


@dataclass(frozen=True)
class SPSA(Attack):
    r"""Adam along $\hat g = \frac{1}{2 \delta n} \sum_j (F(z + \delta u_j) - F(z - \delta u_j)) / u_j$, every number of u -1 or 1.

    Args:
        threat: linf, l2 or l1; the points around z may lie up to the radius outside.
        steps: of Adam, at most; a step asks 2 `pairs` points around z, then the new z.
        pairs: of opposite directions in an estimate.
        radius: size of every number of a direction, in units of eps as for `NES`.
        rate: of Adam, in the same units.
        loss: "margin", "ce" or "dlr".

    Reference: Uesato et al., "Adversarial risk and the dangers of evaluating against weak attacks", ICML 2018,
    arXiv:1802.05666; Spall, IEEE Transactions on Automatic Control 1992.
    Differs from the paper: 64 pairs (it takes up to 4096), as otherwise a hundred steps cost 800000 queries; radius and
    rate, both 0.01 there, are given in units of its eps 8/255; other norms; the walk begins at the clean input.
    """

    threat: Threat
    steps: int = 100
    pairs: int = 64
    radius: float = 0.32
    rate: float = 0.32
    loss: str = "margin"

    def __post_init__(self) -> None:
        check_positive(self, "steps", "pairs", "radius", "rate")

    def search(self, probe: Probe, streams: Streams) -> None:
        rows = probe.open
        region = probe.region[rows]
        if region.norm == "l0":
            raise ThreatError("expected linf, l2 or l1, got l0, which small steps do not explore; use NES or SimBA")
        z, first, second = region.anchor, torch.zeros_like(region.anchor), torch.zeros_like(region.anchor)
        for turn in range(1, self.steps + 1):
            if not len(rows):
                return
            scale = typical(region)
            gradient = estimated(probe, z, rows, streams.signs, self.pairs, self.radius * scale, self.loss)
            first, second, way = adam(gradient, first, second, turn)
            z = region.project(z + self.rate * wide(scale, z) * way)
            left = ~probe.reached[rows]
            if left.any():
                probe.losses(z[left], rows[left], self.loss)
            keep = ~probe.reached[rows]
            rows, region, z, first, second = rows[keep], region[keep], z[keep], first[keep], second[keep]


def estimated(
    probe: Probe, z: Tensor, rows: Tensor, draw: Callable[..., Tensor], pairs: int, radius: Tensor, loss: str
) -> Tensor:
    """Gradient of the loss at z from central differences along random directions; `radius` (b,).

    Rows that reach the goal on the way are asked no more. Features that cannot move are left alone.
    """
    region, total = probe.region[rows], torch.zeros_like(z)
    free = ((region.low < 0) | (region.high > 0)).view_as(z)
    left = torch.arange(len(rows), device=rows.device)
    for begin in range(0, pairs, GROUP):
        left = left[~probe.reached[rows[left]]]
        if not len(left):
            break
        count = min(GROUP, pairs - begin)
        u = draw(rows[left], count, *z.shape[1:]).to(z.dtype) * free[left, None]
        step, centre = wide(radius[left], u) * u, z[left, None]
        values = probe.several(torch.cat([centre + step, centre - step], dim=1), rows[left], loss)
        difference = values[:, :count] - values[:, count:]
        total[left] += (difference.view(*difference.shape, *(1,) * (z.ndim - 1)) * u).sum(1)
    return total / wide(2 * pairs * radius, z)


def adam(
    gradient: Tensor, first: Tensor, second: Tensor, turn: int | Tensor, rates: tuple[float, float] = (0.9, 0.999)
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam's two means after a gradient, and its step of rate 1.

    Reference: Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015, arXiv:1412.6980.
    """
    first = rates[0] * first + (1 - rates[0]) * gradient
    second = rates[1] * second + (1 - rates[1]) * gradient.square()
    return first, second, first / (1 - rates[0] ** turn) / ((second / (1 - rates[1] ** turn)).sqrt() + 1e-8)


def typical(region: Region) -> Tensor:
    """How far a feature moves when the budget is spread evenly (b,).

    Raises: ThreatError where the budget is infinite.
    """
    movable = ((region.low < 0) | (region.high > 0)).sum(1).clamp_min(1)
    if region.norm in ("linf", "l0"):
        found = torch.maximum(region.high, -region.low).amax(1)
    else:
        found = region.eps / (movable.sqrt() if region.norm == "l2" else movable)
    if not bool(found.isfinite().all()):
        raise ThreatError("expected a finite eps, or finite bounds for linf and l0, got infinity")
    return found.clamp_min(torch.finfo(found.dtype).tiny)


def wide(values: Tensor, like: Tensor) -> Tensor:
    """Values (b,) with as many dimensions as `like`."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def check_positive(attack: object, *names: str) -> None:
    """Refuse hyper-parameters that are not above zero."""
    for name in names:
        if not math.isfinite(getattr(attack, name)) or getattr(attack, name) <= 0:
            raise ValueError(f"expected {name} above 0, got {getattr(attack, name)}")
