"""Attacks that trade the size of a change against the margin, with a search on the trade-off for every sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor

from adversarial.attacks.base import Attack
from adversarial.attacks.minimal import movable, only, seeing, threshold, width
from adversarial.attacks.proximal import RowAdam
from adversarial.geometry import into_box
from adversarial.probe import Keep, Probe
from adversarial.streams import Streams
from adversarial.threat import ANYWHERE, Region, Threat

SHRINK = 0.999999  # of tanh space: a feature at its bound would lie at infinity and never move
LARGEST, TENFOLD, MANY = 1e10, 10.0, 10  # weight that is given up; its growth; searches that end at the upper bound
CHECKS, FALL = 10, 0.9999  # looks at the loss in a run, and below which share of the last it must be


@dataclass
class Weights:
    """The search on each sample's weight of the margin: tenfold until an example is found, then halfway between."""

    now: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def starting(cls, first: float, like: Tensor) -> Weights:
        return cls(torch.full_like(like, first), torch.zeros_like(like), torch.full_like(like, torch.inf))

    def left(self, search: int, searches: int) -> Tensor:
        """Places of the samples that a search goes on with; the last of many goes back to the least weight that worked."""
        if search == searches - 1 and searches >= MANY:
            self.now = torch.where(self.high.isfinite(), self.high, self.now)
        return (self.now <= LARGEST).nonzero()[:, 0]

    def follow(self, left: Tensor, hit: Tensor) -> None:
        """Next weights of those `left`."""
        high = torch.where(hit, torch.minimum(self.high, self.now), self.high)
        low = torch.where(hit, self.low, torch.maximum(self.low, self.now))
        now = torch.where(high.isfinite(), (low + high) / 2, TENFOLD * self.now)
        self.now[left], self.low[left], self.high[left] = now[left], low[left], high[left]


class Patience:
    """Tells which samples' loss, looked at every tenth of a run, no longer falls."""

    def __init__(self, rows: Tensor, steps: int, abort: bool):
        self.before: Tensor | None = None
        self.size, self.every, self.abort = len(rows), max(steps // CHECKS, 1), abort

    def looks(self, step: int) -> bool:
        """Whether a tenth of the run ends here."""
        return step % self.every == 0

    def __call__(self, left: Tensor, loss: Tensor, step: int) -> Tensor:
        """Whether each of those `left` goes on."""
        goes = torch.ones_like(left, dtype=torch.bool)
        if not (self.abort and self.looks(step)):
            return goes
        if self.before is None:
            self.before = torch.full((self.size,), torch.inf, dtype=loss.dtype, device=loss.device)
        goes = loss <= FALL * self.before[left]
        self.before[left] = loss
        return goes


@dataclass(frozen=True)
class Tanh:
    r"""Variables w (b, D) without bounds for steps within a box: $\frac{high+low}{2} + \frac{high-low}{2}\tanh w$; plain steps
    where a feature lacks a bound."""

    region: Region
    half: Tensor
    middle: Tensor
    bounded: Tensor

    @classmethod
    def within(cls, region: Region) -> Tanh:
        half, middle = (region.high - region.low) / 2, (region.high + region.low) / 2
        bounded = half.isfinite()
        return cls(region, torch.where(bounded, half, 1), torch.where(bounded, middle, 0), bounded)

    def __getitem__(self, rows: Tensor) -> Tanh:
        return Tanh(*(getattr(self, field.name)[rows] for field in fields(self)))

    def start(self) -> Tensor:
        """The variables of no step."""
        share = torch.where(self.half > 0, -self.middle / self.half, 0)
        return torch.where(self.bounded, torch.atanh(SHRINK * share.clamp(-1, 1)), 0)

    def steps(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The steps, and their derivative."""
        t = torch.tanh(w)
        inside = self.middle + self.half * t, self.half * (1 - t.square())
        return torch.where(self.bounded, inside[0], w), torch.where(self.bounded, inside[1], 1)


@dataclass(frozen=True)
class CarliniWagner(Attack):
    r"""Carlini and Wagner's L2 attack: Adam on $\|\delta\|_2^2 + c\,\max(\kappa - margin, 0)$ in tanh space, where the box has no
    border, with a search on c for every sample. Changes are measured in units of the box's width.

    Args:
        threat: a `Ball` of norm l2, by default without a radius.
        searches: runs with another weight c each; with ten or more the last takes the smallest c that found an example.
        steps: of Adam in a run.
        rate: Adam's learning rate.
        first: the first weight c.
        confidence: $\kappa$, the margin that an example must have.
        abort: a sample leaves a run when its loss fell by less than 0.01% over a tenth of it.
        warm: a run goes on from where the last ended, with Adam's moments; False starts every run at the clean input.

    Reference: Carlini & Wagner, "Towards evaluating the robustness of neural networks", S&P 2017, arXiv:1608.04644.
    Differs from the authors' code: runs go on from the last (`warm`), which takes far fewer steps; a weight counts as one that
    works only if the run's last tenth came to an example, as moments from another weight carry a run beyond the boundary
    for a while; samples abort one by one.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANYWHERE["l2"]
    searches: int = 9
    steps: int = 10_000
    rate: float = 0.01
    first: float = 1e-3
    confidence: float = 0.0
    abort: bool = True
    warm: bool = True

    def __post_init__(self) -> None:
        checked(self)

    def search(self, probe: Probe, streams: Streams) -> None:
        only(probe.region, "CarliniWagner", "l2")
        threshold(probe.goal)
        rows, probe.confidence = movable(probe), self.confidence
        space = Tanh.within(probe.region[rows])
        w, adam = space.start(), RowAdam(space.half)
        weights = Weights.starting(self.first, space.half[:, 0])
        for search in range(self.searches):
            left = weights.left(search, self.searches)
            if not self.warm:
                w, adam = space.start(), RowAdam(space.half)
            weights.follow(left, self.descend(probe, rows, space, weights, left, w, adam, streams))

    def descend(
        self,
        probe: Probe,
        rows: Tensor,
        space: Tanh,
        weights: Weights,
        left: Tensor,
        w: Tensor,
        adam: RowAdam,
        streams: Streams,
    ) -> Tensor:
        """One run of those `left`; moves `w` and `adam`, returns whether each came to an example."""
        hit, patience = torch.zeros_like(rows, dtype=torch.bool), Patience(rows, self.steps, self.abort)
        part = space[left]
        for step in range(self.steps):
            if not len(left):
                break
            unit = width(part.region)[:, None]
            moved, slope = part.steps(w[left])
            gradient, gap = pressure(probe, part.region.moved(moved), rows[left], self.confidence, streams)
            hit[left] |= probe.latest[rows[left]]
            weight = weights.now[left]
            downhill = (2 * moved / unit.square() - weight[:, None] * gradient) * slope
            w[left] -= self.rate * adam.step(left, downhill)[0]
            keep = patience(left, (moved / unit).square().sum(1) + weight * gap, step)
            if not keep.all():
                left = left[keep]
                part = space[left]
            if patience.looks(step):  # a run overshoots as it begins, whatever its weight
                hit[left] = probe.latest[rows[left]]
        return hit


@dataclass(frozen=True)
class EAD(Attack):
    r"""Elastic-net attack: $c\,\max(\kappa - margin, 0) + \|\delta\|_2^2 + \beta\|\delta\|_1$ by gradient steps with momentum, each
    followed by soft thresholding within the box (FISTA), with a search on c for every sample. Changes are measured in units
    of the box's width.

    Args:
        threat: a `Ball` of norm l1, by default without a radius.
        rule: which example is kept, "en" that of least $\|\delta\|_2^2 + \beta\|\delta\|_1$, "l1" that of least $\|\delta\|_1$.
        beta: weight of the l1 norm, and the threshold.
        searches, steps, first, confidence, abort: as in `CarliniWagner`.
        rate: of the first step; it falls with the square root of the steps that are left.

    Reference: Chen et al., "EAD: elastic-net attacks to deep neural networks via adversarial examples", AAAI 2018,
    arXiv:1709.04114.
    The threshold is not multiplied by the rate, so the l1 norm weighs more towards the end of a run; for examples of least
    l1 norm take a larger beta, such as 0.03.
    Differs from the authors' code: points with momentum are pressed into the box and looked at as well, since the gradient is
    taken there; a weight counts as one that works only if the run's last tenth came to an example, as momentum carries a run
    beyond the boundary for a while; samples abort one by one.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANYWHERE["l1"]
    rule: Literal["en", "l1"] = "en"
    beta: float = 1e-3
    searches: int = 9
    steps: int = 1000
    rate: float = 0.01
    first: float = 1e-3
    confidence: float = 0.0
    abort: bool = True

    def __post_init__(self) -> None:
        checked(self)
        if self.rule not in ("en", "l1") or self.beta < 0:
            raise ValueError(f"expected the rule en or l1 and a beta of at least 0, got {self}")

    def search(self, probe: Probe, streams: Streams) -> None:
        only(probe.region, "EAD", "l1")
        threshold(probe.goal)
        rows, probe.confidence = movable(probe), self.confidence
        region = probe.region[rows]
        units = width(probe.region)[:, None]
        probe.cost = (lambda steps, rows: self.elastic(steps / units[rows])) if self.rule == "en" else None
        weights = Weights.starting(self.first, region.eps)
        for search in range(self.searches):
            left = weights.left(search, self.searches)
            weights.follow(left, self.descend(probe, rows, region, weights, left, streams))

    def elastic(self, steps: Tensor) -> Tensor:
        return steps.square().sum(1) + self.beta * steps.abs().sum(1)

    def descend(
        self, probe: Probe, rows: Tensor, everyone: Region, weights: Weights, left: Tensor, streams: Streams
    ) -> Tensor:  # fmt: skip
        """One run of those `left` from the clean input; returns whether each came to an example."""
        hit, patience = torch.zeros_like(rows, dtype=torch.bool), Patience(rows, self.steps, self.abort)
        region = everyone[left]
        unit = width(region)[:, None]
        last = ahead = torch.zeros_like(region.low)
        for step in range(self.steps):
            if not len(left):
                return hit
            gradient, gap = pressure(probe, region.moved(unit * ahead), rows[left], self.confidence, streams)
            hit[left] |= probe.latest[rows[left]]
            weight, rate = weights.now[left], self.rate * math.sqrt(1 - step / self.steps)
            u = ahead - rate * (2 * ahead - weight[:, None] * unit * gradient)
            now = into_box(u.sign() * (u.abs() - self.beta).clamp_min(0), region.low / unit, region.high / unit)
            keep = patience(left, self.elastic(ahead) + weight * gap, step)
            probe.outputs(region.moved(unit * now), rows[left])
            hit[left] |= probe.latest[rows[left]]
            if patience.looks(step):
                hit[left] = probe.latest[rows[left]]
            onward = now + step / (step + 3) * (now - last)
            last, ahead = now, into_box(onward, region.low / unit, region.high / unit)
            if not keep.all():
                left, region, unit, last, ahead = left[keep], region[keep], unit[keep], last[keep], ahead[keep]
        return hit


def checked(attack: CarliniWagner | EAD) -> None:
    """Refuse what cannot be searched with."""
    if min(attack.searches, attack.steps) < 1 or min(attack.rate, attack.first) <= 0 or attack.confidence < 0:
        raise ValueError(
            f"expected searches, steps, a rate and a first weight above 0 and a confidence of 0 or more, got {attack}"
        )


def pressure(
    probe: Probe, z: Tensor, rows: Tensor, confidence: float, streams: Streams
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradient of the margin (b, D), zero where it is large enough, and how much is missing (b,)."""
    gradient, loss = probe.gradient(z, rows, "margin")
    gap = threshold(probe.goal) + confidence - loss
    return seeing(gradient, streams, rows).flatten(1) * (gap >= 0)[:, None], gap.clamp_min(0)
