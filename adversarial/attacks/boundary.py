"""Attacks on decisions that need no normal: random walks along the boundary, sign flips, rays of signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adversarial.attacks.base import Attack
from adversarial.attacks.decision import ANY_L2, ANY_LINF, Decisions, begin, boundary, check, length, nearer, noise
from adversarial.probe import Keep, Probe
from adversarial.streams import Streams
from adversarial.threat import Threat, norm_of

TOL = 1e-3  # precision of the first search towards the clean input
FACTOR = 1.5  # by which a step grows or shrinks


@dataclass(frozen=True)
class Boundary(Attack):
    r"""A random walk that stays adversarial: a step along the sphere around the clean input, then one towards it.

    $\delta' = \frac{\delta + p}{\sqrt{1 + s^2}}$ with a random p at right angles to δ, $\|p\| = s\|\delta\|$; then δ' is
    shortened to $(1 - t)\|\delta\|$. s and t follow the shares of steps that stay adversarial.

    Args:
        threat: an l2 `Ball`; with a finite eps a sample leaves when it is broken within.
        queries: forward passes per sample, never exceeded.
        along, towards: s and t at first, shares of the distance.
        starts: inputs (N, …) among which to look for a beginning before random ones; a targeted goal needs some.
        tries: random beginnings. A sample without a beginning fails.

    Reference: Brendel, Rauber & Bethge, ICLR 2018, arXiv:1712.04248.
    Differs from the paper: the step along the sphere is tried by itself in every tenth step only; shares are taken of the
    last 10 and 30 tries instead of 1000 and 300 steps, so that steps fit within a thousand queries; a walk ends when its
    step towards the input has become too small to be told apart.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANY_L2
    queries: int = 25_000
    along: float = 0.01
    towards: float = 0.01
    starts: Tensor | None = None
    tries: int = 100

    def __post_init__(self) -> None:
        check(self.queries, self.threat, ("l2",), "Boundary")

    def search(self, probe: Probe, streams: Streams) -> None:
        asked = Decisions(probe, self.threat, self.queries)
        rows, steps = begin(asked, streams, probe.sound, self.starts, self.tries)
        steps = boundary(asked, rows, steps, "l2", TOL)
        s, t = torch.full_like(steps[:, 0], self.along), torch.full_like(steps[:, 0], self.towards)
        sphere, inward = Rate(s, 10, 0.2, 0.5), Rate(s, 30, 0.1, 0.25)
        turn = 0
        while True:
            going = asked.going(rows) & (t > torch.finfo(t.dtype).eps)
            if not going.all():
                rows, steps, s, t = rows[going], steps[going], s[going], t[going]
                sphere.keep(going)
                inward.keep(going)
            if not len(rows):
                return
            middle, end = self.proposed(asked, streams, rows, steps, s, t)
            if turn % 10 == 0:
                factor = sphere.add(asked(middle, rows))
                s, t = s * factor, t * factor
            yes = asked(end, rows)
            steps = torch.where(yes[:, None], end, steps)
            t = t * inward.add(yes)
            turn += 1

    @staticmethod
    def proposed(
        asked: Decisions, streams: Streams, rows: Tensor, steps: Tensor, s: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Where the step along the sphere leads, and the one towards the clean input after it."""
        size = length(steps, "l2")
        p = noise(streams, rows, 1, steps.shape[1])[:, 0].to(steps.dtype)
        p = p - (p * steps).sum(1, keepdim=True) / size.square() * steps
        p = p * (s[:, None] * size / length(p, "l2"))
        middle = asked.press((steps + p) / (1 + s.square()).sqrt()[:, None], rows)
        return middle, middle * ((1 - t)[:, None] * size / length(middle, "l2")).clamp(max=1)


class Rate:
    """How often something worked in the last `window` tries of each row, and what follows for the size of a step."""

    def __init__(self, like: Tensor, window: int, low: float, high: float):
        self.window, self.low, self.high = window, low, high
        self.good, self.count = torch.zeros_like(like), 0

    def add(self, yes: Tensor) -> Tensor:
        """Factor (b,) by which the step changes: one but at the end of a window."""
        self.good, self.count = self.good + yes, self.count + 1
        factor = torch.ones_like(self.good)
        if self.count == self.window:
            share = self.good / self.window
            factor = torch.where(share > self.high, FACTOR, torch.where(share < self.low, 1 / FACTOR, factor))
            self.good, self.count = torch.zeros_like(share), 0
        return factor

    def keep(self, rows: Tensor) -> None:
        self.good = self.good[rows]


@dataclass(frozen=True)
class SignFlip(Attack):
    r"""Shrink the change and flip the signs of a few of its features, each where the goal stays reached.

    In turn $\delta \leftarrow \operatorname{clip}(\delta + \eta, \pm(\|\delta\|_\infty - \alpha))$ with every number of η
    -α or α, and $\delta \leftarrow \delta \odot s$ with a sign $s_i$ that is -1 with probability $p_i$. α and p follow how often
    each works; a $p_i$ falls where a flip of its feature worked, and rises where one of others did.

    Args:
        threat: a linf `Ball`; with a finite eps a sample leaves when it is broken within.
        queries: forward passes per sample, never exceeded.
        shrink: α at first, in units of the inputs.
        flips: p at first; it stays between a tenth and ten times that.
        starts, tries: as in `Boundary`.

    Reference: Chen et al., "Boosting decision-based black-box adversarial attacks with random sign flip", ECCV 2020.
    Differs from the authors' code: one sign is flipped at least, as most proposals for small inputs would change nothing;
    no signs of smaller images, enlarged.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANY_LINF
    queries: int = 10_000
    shrink: float = 0.004
    flips: float = 0.001
    starts: Tensor | None = None
    tries: int = 100

    def __post_init__(self) -> None:
        check(self.queries, self.threat, ("linf",), "SignFlip")

    def search(self, probe: Probe, streams: Streams) -> None:
        asked = Decisions(probe, self.threat, self.queries)
        rows, steps = begin(asked, streams, probe.sound, self.starts, self.tries)
        steps = boundary(asked, rows, steps, "linf", TOL)
        alpha, p = torch.full_like(steps[:, 0], self.shrink), torch.full_like(steps, self.flips)
        shrunk, flipped = Rate(alpha, 10, 0.3, 0.7), Rate(alpha, 10, 0.3, 0.7)
        while True:
            going = asked.going(rows) & (steps != 0).any(1)
            if not going.all():
                rows, steps, alpha, p = rows[going], steps[going], alpha[going], p[going]
                shrunk.keep(going)
                flipped.keep(going)
            if not len(rows):
                return
            size = (norm_of(steps, "linf") - alpha).clamp_min(0)[:, None]
            eta = alpha[:, None] * streams.signs(rows, steps.shape[1]).to(steps.dtype)
            steps, yes = self.moved(asked, rows, steps, asked.press(torch.clamp(steps + eta, -size, size), rows))
            alpha = alpha * shrunk.add(yes)
            signs = self.signs(streams, rows, p, steps)
            steps, yes = self.moved(asked, rows, steps, steps * signs)
            p = p + self.flips * (flipped.add(yes).log().sign()[:, None] + yes[:, None] * signs / 10)
            p = p.clamp(self.flips / 10, self.flips * 10)

    @staticmethod
    def moved(asked: Decisions, rows: Tensor, steps: Tensor, tried: Tensor) -> tuple[Tensor, Tensor]:
        """The steps that were tried, where they reach the goal."""
        yes = asked(tried, rows)
        return torch.where(yes[:, None], tried, steps), yes

    @staticmethod
    def signs(streams: Streams, rows: Tensor, p: Tensor, steps: Tensor) -> Tensor:
        """-1 for features chosen with probability p (b, D) and for at least one, else 1."""
        u = streams.uniform(rows, steps.shape[1]).to(p.dtype) / p
        return torch.where((u < 1) | (u == u.amin(1, keepdim=True)), -1.0, 1.0).to(steps.dtype)


@dataclass(frozen=True)
class RayS(Attack):
    r"""The direction among $\{-1, 1\}^D$ along which the boundary is nearest, found by flipping blocks of signs.

    Blocks halve from all features to single ones; a flip is kept where the goal is reached at the best distance so far,
    which then shrinks to the new boundary.

    Args:
        threat: a linf `Ball`; with a finite eps a sample leaves when it is broken within.
        queries: forward passes per sample, never exceeded.
        tol: precision of the distance, as a share of it.
        starts: inputs (N, …) of which the first that reaches the goal gives the first signs.

    Reference: Chen & Gu, KDD 2020, arXiv:2006.12792.
    Differs from the paper: a first direction goes as far as the bounds let it; a new distance is searched from the best one
    downwards, to a share of it where the authors' code takes 0.001 in l2; blocks without a feature that may change are
    passed over.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANY_LINF
    queries: int = 10_000
    tol: float = 1e-3
    starts: Tensor | None = None

    def __post_init__(self) -> None:
        check(self.queries, self.threat, ("linf",), "RayS")

    def search(self, probe: Probe, streams: Streams) -> None:
        asked, rows = Decisions(probe, self.threat, self.queries), probe.sound
        low, high = asked.reach(rows)
        free, far = low < high, torch.maximum(high, -low).amax(1)
        signs, distance = self.first(asked, streams, rows, far)
        level, block, size = 0, 0, signs.shape[1]
        while True:
            going = asked.going(rows) & (distance > 0)
            rows, free, signs, distance = rows[going], free[going], signs[going], distance[going]
            if not len(rows) or not free.any():
                return
            wide = -(-size // 2**level)
            part = slice(block * wide, min((block + 1) * wide, size))
            self.flip(asked, rows, free, signs, distance, part)
            block += 1
            if part.stop == size:
                level, block = min(level + 1, size.bit_length()), 0

    def first(self, asked: Decisions, streams: Streams, rows: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
        """All signs plus, or those towards a start; the distance to the boundary, as far as possible where there is none."""
        signs, distance = torch.ones_like(asked.region.low[rows]), far.clone()
        if self.starts is not None:
            found, steps = begin(asked, streams, rows, self.starts, 0)
            some = torch.searchsorted(rows, found)
            signs[some] = torch.where(steps < 0, -1.0, 1.0).to(signs)
        some = asked(far[:, None] * signs, rows).nonzero()[:, 0]
        distance[some] = nearer(asked, rows[some], signs[some], far[some], self.tol, first=0.5)
        return signs, distance

    def flip(
        self, asked: Decisions, rows: Tensor, free: Tensor, signs: Tensor, distance: Tensor, part: slice
    ) -> None:  # fmt: skip
        """Flip one block where that brings the boundary nearer, in place."""
        some = free[:, part].any(1).nonzero()[:, 0]
        tried = signs[some]
        tried[:, part] *= -1
        yes = asked(distance[some, None] * tried, rows[some])
        some, tried = some[yes], tried[yes]
        signs[some], distance[some] = tried, nearer(asked, rows[some], tried, distance[some], self.tol)
