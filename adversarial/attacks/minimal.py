"""Attacks that look for the nearest example: the radius of a ball follows whether its last point crossed the boundary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adversarial.attacks.base import Attack
from adversarial.geometry import PROJECTIONS
from adversarial.goals import Goal, GoalError
from adversarial.probe import Keep, Probe
from adversarial.streams import Streams
from adversarial.threat import ANYWHERE, DUAL, Region, Threat, norm_of

EDGE = 1e-6  # share of a feature's width that counts as at its bound


@dataclass(frozen=True)
class DDN(Attack):
    r"""Decoupled direction and norm: steps of fixed length along the gradient, each put back on a sphere whose radius shrinks by
    $1-\gamma$ after an example and grows by $1+\gamma$ otherwise.

    Args:
        threat: a `Ball` of norm l2, by default without a radius.
        steps: gradient steps; 100, 300 and 1000 in the paper.
        step: length of the first step, in units of the box's width; it falls to a hundredth along a cosine.
        radius: of the first sphere, in the same units.
        gamma: by which share the radius changes.
        loss: "ce", "margin" or "dlr".

    Reference: Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and defenses",
    CVPR 2019, arXiv:1811.09600.
    Differs from the paper: no rounding to 256 grey levels; the last point's gradient is not taken.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANYWHERE["l2"]
    steps: int = 100
    step: float = 1.0
    radius: float = 1.0
    gamma: float = 0.05
    loss: str = "ce"

    def __post_init__(self) -> None:
        if self.steps < 2 or self.step <= 0 or self.radius <= 0 or not 0 < self.gamma < 1:
            raise ValueError(f"expected two steps, a step and a radius above 0 and gamma within (0, 1), got {self}")

    def search(self, probe: Probe, streams: Streams) -> None:
        only(probe.region, "DDN", "l2")
        threshold(probe.goal)
        rows = movable(probe)
        if not len(rows):
            return
        region, z = probe.region[rows], probe.region.anchor[rows]
        unit = width(region)
        eps = self.radius * unit
        for step in range(self.steps - 1):
            gradient, _ = probe.gradient(z, rows, self.loss)
            eps = torch.where(probe.latest[rows], (1 - self.gamma) * eps, (1 + self.gamma) * eps)
            length = cosine(self.step, 0.01 * self.step, step / self.steps) * unit
            ahead = region.direction(seeing(gradient, streams, rows)).flatten(1)
            on = eps[:, None] * unit_l2(region.steps(z) + length[:, None] * ahead)
            z = region.project(region.anchor + on.view_as(z))
        probe.outputs(z, rows)


@dataclass(frozen=True)
class FMN(Attack):
    r"""Fast minimum-norm attack for linf, l2, l1 and l0: gradient steps projected on a ball whose radius is, until the first
    example, the distance to the linearised boundary $\|\delta\|_p + |f| / \|\nabla f\|_q$; afterwards it shrinks below the
    nearest example by $1-\gamma$ and grows by $1+\gamma$ on the right side of the boundary.

    Args:
        threat: a `Ball`, by default l2 without a radius.
        steps: gradient steps; up to 1000 in the paper.
        step: l2 length of the first step, in units of the box's width; it falls to a hundredth along a cosine.
        gamma: first and last share by which the radius changes; for l0 it changes by one feature at least.

    Reference: Pintor et al., "Fast minimum-norm adversarial attacks through adaptive norm constraints", NeurIPS 2021,
    arXiv:2102.12827.
    Differs from the paper: features at the bounds they point to count neither in the distance to the boundary nor in a step,
    the radius goes beyond that distance by $1+\gamma$, and the projection is the exact one on ball and box; without, images with many
    features at their bounds never get across.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANYWHERE["l2"]
    steps: int = 100
    step: float = 1.0
    gamma: tuple[float, float] = (0.05, 0.001)

    def __post_init__(self) -> None:
        if self.steps < 2 or self.step <= 0 or not all(0 < gamma < 1 for gamma in self.gamma):
            raise ValueError(f"expected two steps, a step above 0 and gammas within (0, 1), got {self}")

    def search(self, probe: Probe, streams: Streams) -> None:
        goal = threshold(probe.goal)
        rows = movable(probe)
        if not len(rows):
            return
        region, z = probe.region[rows], probe.region.anchor[rows]
        unit = width(region)
        eps = torch.ones_like(unit)  # l0 alone begins with it
        for step in range(self.steps - 1):
            gradient, loss = probe.gradient(z, rows, "margin")
            if region.norm == "l0":
                keep = probe.nearest[rows] > 1  # no example is nearer
                if not keep.all():
                    rows, region, z, unit, eps = rows[keep], region[keep], z[keep], unit[keep], eps[keep]
                    gradient, loss = gradient[keep], loss[keep]
                    if not len(rows):
                        return
            gamma = cosine(*self.gamma, step / self.steps)
            free, seen = inward(region, z, gradient), seeing(gradient, streams, rows)
            eps = torch.minimum(self.radius(probe, rows, region, z, free, goal - loss, eps, gamma), region.eps)
            length = cosine(self.step, 0.01 * self.step, step / self.steps) * unit
            ahead = unit_l2(free if seen is gradient else inward(region, z, seen))
            z = region.moved(
                PROJECTIONS[region.norm](region.steps(z) + length[:, None] * ahead, eps, *limits(region, eps))
            )
        probe.outputs(z, rows)

    def radius(
        self, probe: Probe, rows: Tensor, region: Region, z: Tensor, free: Tensor, gap: Tensor, eps: Tensor, gamma: float
    ) -> Tensor:  # fmt: skip
        """Of the next ball (b,); `free` is the gradient where features may move."""
        hit, nearest = probe.latest[rows], probe.nearest[rows]
        if region.norm == "l0":
            less = torch.minimum(torch.minimum(eps - 1, (eps * (1 - gamma)).floor()), nearest)
            more = torch.maximum(eps + 1, (eps * (1 + gamma)).floor())
            return torch.where(hit, less, more).clamp(1, region.low.shape[1])
        distance = region.distance(z)
        slope = norm_of(free, DUAL[region.norm])
        across = (1 + gamma) * (distance + gap / slope)  # beyond the boundary: on it rounding would decide
        more = torch.where(probe.reached[rows], (1 + gamma) * eps, across)
        return torch.where(hit, torch.minimum((1 - gamma) * eps, nearest), more)


def only(region: Region, name: str, *norms: str) -> None:
    """Refuse a threat of another norm."""
    if region.norm not in norms:
        raise ValueError(f"expected a threat of norm {' or '.join(norms)} for {name}, got {region.norm}")


def threshold(goal: Goal) -> float:
    """What the margin loss has to exceed for the goal to be reached."""
    found = getattr(goal, "tolerance", 0.0)
    if math.isinf(found):
        raise GoalError(
            "expected LargerError with a finite tolerance, got none; the nearest example needs an error to reach"
        )
    return found


def movable(probe: Probe) -> Tensor:
    """Rows that are right at the start and have a feature that may move."""
    return probe.sound[(probe.region.high > probe.region.low).any(1)[probe.sound]]


def width(region: Region) -> Tensor:
    """Of the widest feature with both bounds (b,), 1 without such: the unit of lengths."""
    span = region.high - region.low
    found = torch.where(span.isfinite(), span, 0).amax(1)
    return torch.where(found > 0, found, 1.0)


def cosine(start: float, end: float, share: float) -> float:
    """From start to end along half a cosine, at this share of the way."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def inward(region: Region, z: Tensor, gradient: Tensor) -> Tensor:
    """The gradient (b, D), zero where its feature is at the bound it points to."""
    steps, g = region.steps(z), gradient.flatten(1)
    edge = EDGE * widths(region)  # rounding leaves points just before a bound
    return torch.where(torch.where(g >= 0, steps < region.high - edge, steps > region.low + edge), g, 0)


def widths(region: Region) -> Tensor:
    """Of every feature (b, D), 1 without bounds."""
    span = region.high - region.low
    return torch.where(span.isfinite(), span, 1.0)


def unit_l2(u: Tensor) -> Tensor:
    return u / u.norm(dim=1, keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)


def seeing(gradient: Tensor, streams: Streams, rows: Tensor) -> Tensor:
    """The gradient, random numbers where a sample's is zero."""
    blind = (gradient == 0).flatten(1).all(1)
    if not blind.any():
        return gradient
    noise = streams.normal(rows[blind], gradient[0].numel()).to(gradient.dtype)
    return gradient.index_put((blind,), noise.view(-1, *gradient.shape[1:]))


def limits(region: Region, eps: Tensor) -> tuple[Tensor, Tensor]:
    """The region's limits, for linf cut to eps as well."""
    if region.norm != "linf":
        return region.low, region.high
    return torch.maximum(region.low, -eps[:, None]), torch.minimum(region.high, eps[:, None])
