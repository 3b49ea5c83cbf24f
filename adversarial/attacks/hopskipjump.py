"""Attacks on decisions that estimate the boundary's normal from random directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adversarial.attacks.base import Attack
from adversarial.attacks.decision import (
    ANY_L2,
    SPARE,
    Decisions,
    begin,
    boundary,
    check,
    length,
    nearer,
    noise,
    normal,
)  # fmt: skip
from adversarial.attacks.simba import cosines
from adversarial.probe import Keep, Probe
from adversarial.streams import Streams
from adversarial.threat import Norm, Threat, norm_of

MOST, HALVINGS = 10_000, 15  # directions of one estimate, halvings of one step
FEWEST = 50  # directions of GeoDA's first estimate


@dataclass(frozen=True)
class HopSkipJump(Attack):
    r"""Walk along the decision boundary against its estimated normal: $\delta \leftarrow P(\delta + \xi_t\,v_t)$.

    v is the mean of random directions signed by the decision there ("linf": its signs), $\xi_t = \|\delta\|/\sqrt t$ halved
    until the goal is reached, P the search back to the boundary.

    Args:
        threat: a `Ball`, l2 or linf; with a finite eps a sample leaves when it is broken within.
        queries: forward passes per sample, never exceeded.
        directions: of the first estimate; in the t-th $\sqrt t$ times as many, at most 10 000.
        gamma: precision of the search back, $\gamma d^{-3/2}$ (l2) or $\gamma d^{-2}$ (linf) of the distance, d features.
        starts: inputs (N, …) among which to look for a beginning before random ones; a targeted goal needs some.
        tries: random beginnings. A sample without a beginning fails.

    Reference: Chen, Jordan & Wainwright, S&P 2020, arXiv:1904.02144.
    Differs from the paper: directions are sums of two bytes; a step is halved 15 times at most; the search back stops at
    the precision of floating point.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANY_L2
    queries: int = 10_000
    directions: int = 100
    gamma: float = 1.0
    starts: Tensor | None = None
    tries: int = 100

    def __post_init__(self) -> None:
        check(self.queries, self.threat, ("l2", "linf"), "HopSkipJump")

    def search(self, probe: Probe, streams: Streams) -> None:
        asked, norm = Decisions(probe, self.threat, self.queries), probe.region.norm
        rows, steps = begin(asked, streams, probe.sound, self.starts, self.tries)
        size = steps.shape[1]
        tol = self.gamma * size ** (-1.5 if norm == "l2" else -2.0)
        steps = boundary(asked, rows, steps, norm, tol)
        low, high = asked.reach(rows)
        spread = 0.1 * (high - low).amax(1)
        step = 0
        while True:
            going = asked.going(rows) & (asked.left(rows) > SPARE)
            rows, steps, spread = rows[going], steps[going], spread[going]
            if not len(rows):
                return
            step += 1
            most = min(int(self.directions * math.sqrt(step)), MOST)
            counts = (asked.left(rows) - SPARE).clamp(max=most)
            v = normal(asked, streams, rows, steps, spread, counts)
            v = v.sign() if norm == "linf" else v / length(v, "l2")
            steps = boundary(asked, rows, hop(asked, rows, steps, v, norm, step), norm, tol)
            spread = tol * norm_of(steps, norm) * (math.sqrt(size) if norm == "l2" else size)


def hop(asked: Decisions, rows: Tensor, steps: Tensor, v: Tensor, norm: Norm, step: int) -> Tensor:
    """The longest of the steps dist / sqrt(step) times 1, 1/2, 1/4, … along v that still reaches the goal."""
    steps, size = steps.clone(), norm_of(steps, norm) / math.sqrt(step)
    some = torch.arange(len(rows), device=rows.device)
    for _ in range(HALVINGS):
        tried = asked.press(steps[some] + size[some, None] * v[some], rows[some])
        yes = asked(tried, rows[some])
        steps[some[yes]] = tried[yes]
        some = some[~yes]
        if not len(some):
            break
        size = size / 2
    return steps


@dataclass(frozen=True)
class GeoDA(Attack):
    r"""The boundary taken for a plane: go from the clean input along its normal, estimated at the last boundary point.

    $x + r\,v$ with $v = \hat w / \|\hat w\|_2$ ("linf": $\operatorname{sign} \hat w$) and the least r that reaches the
    goal. The T estimates get queries in the ratio $\mu^{-2/3}$, each more than the one before.

    Args:
        threat: a `Ball`, l2 or linf; with a finite eps a sample leaves when it is broken within.
        queries: forward passes per sample, never exceeded.
        iterations: T; by default as many as leave the first estimate 50 queries.
        spread: standard deviation of the random moves, in units of the inputs.
        ratio: $\mu$.
        frequencies: for random moves of so many lowest cosines along each spatial axis; None for all of the space.
        tol: precision of r.
        starts, tries: as in `HopSkipJump`.

    Reference: Rahmati et al., CVPR 2020, arXiv:2003.06468.
    Differs from the authors' code: by default moves are of all frequencies, as inputs need not be images (it has 75 for 224
    pixels); each estimate stands alone; a point that is no nearer is not moved to.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANY_L2
    queries: int = 10_000
    iterations: int | None = None
    spread: float = 2e-4
    ratio: float = 0.6
    frequencies: int | None = None
    tol: float = 1e-4
    starts: Tensor | None = None
    tries: int = 100

    def __post_init__(self) -> None:
        check(self.queries, self.threat, ("l2", "linf"), "GeoDA")

    def search(self, probe: Probe, streams: Streams) -> None:
        asked, norm = Decisions(probe, self.threat, self.queries), probe.region.norm
        rows, steps = begin(asked, streams, probe.sound, self.starts, self.tries)
        steps = boundary(asked, rows, steps, norm, self.tol)
        draw = noise if self.frequencies is None else self.smooth(probe.region.anchor.shape[1:])
        for count in self.schedule():
            going = asked.going(rows) & (asked.left(rows) > SPARE)
            rows, steps = rows[going], steps[going]
            if not len(rows):
                return
            counts = (asked.left(rows) - SPARE).clamp(max=count)
            wide = self.spread * math.sqrt(steps.shape[1])
            v = normal(asked, streams, rows, steps, torch.full_like(steps[:, 0], wide), counts, draw=draw)
            v = v.sign() if norm == "linf" else v / length(v, "l2")
            steps = self.along(asked, rows, steps, v, norm)

    def schedule(self) -> list[int]:
        """Directions of each estimate."""
        if self.iterations is not None:
            return self.shared(self.iterations)
        turns = 1
        while self.shared(turns + 1)[0] >= FEWEST:
            turns += 1
        return self.shared(turns)

    def shared(self, turns: int) -> list[int]:
        """Directions of each of so many estimates."""
        growth = [self.ratio ** (-2 / 3 * turn) for turn in range(turns)]
        return [math.ceil(max(self.queries - SPARE * turns, turns) * each / sum(growth)) for each in growth]

    def along(self, asked: Decisions, rows: Tensor, steps: Tensor, v: Tensor, norm: Norm) -> Tensor:
        """The boundary along v from the clean input, where it is nearer than these steps."""
        steps, now = steps.clone(), norm_of(steps, norm)
        yes = asked(now[:, None] * v, rows)
        some = yes.nonzero()[:, 0]
        found = nearer(asked, rows[some], v[some], now[some], self.tol)
        steps[some] = asked.press(found[:, None] * v[some], rows[some])
        return steps

    def smooth(self, shape: torch.Size) -> Callable[[Streams, Tensor, int, int], Tensor]:
        """Random numbers for the lowest cosines of each spatial axis instead of for each feature."""
        spatial = shape[1:] or shape
        few = [min(self.frequencies or size, size) for size in spatial]

        def draw(streams: Streams, rows: Tensor, count: int, size: int) -> Tensor:
            lead = size // math.prod(spatial)
            u = noise(streams, rows, count * lead, math.prod(few)).double().view(-1, *few)
            for full, low in zip(spatial, few, strict=True):
                u = torch.tensordot(u, cosines(full, low).to(u), dims=([1], [0]))  # the axis moves last; all come by
            return u.reshape(len(rows), count, size)

        return draw
