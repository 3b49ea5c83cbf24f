"""Sign-OPT: descent on the distance to the boundary along a direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adversarial.attacks.base import Attack
from adversarial.attacks.decision import ANY_L2, SPARE, Decisions, begin, check, length, nearer, normal
from adversarial.probe import Keep, Probe
from adversarial.streams import Streams
from adversarial.threat import Threat, norm_of

PRECISE, LEAST_STEP, TURNS = 1e-5, 1e-4, 15  # precision of a distance, shortest step, most tries of a step


@dataclass(frozen=True)
class SignOPT(Attack):
    r"""Descent on the distance g(θ) to the boundary along a direction θ, by the signs of its change.

    $\hat g = \frac1K\sum_k \operatorname{sign}(g(\theta + \beta u_k) - g(\theta))\,u_k$; one decision at distance g(θ) gives
    each sign. The step along $-\hat g$ grows or shrinks until the distance falls.

    Args:
        threat: an l2 `Ball`; with a finite eps a sample leaves when it is broken within.
        queries: forward passes per sample, never exceeded.
        directions: K, of one estimate.
        beginnings: random directions of which the best comes first.
        step: α of the first step. smoothing: β.
        starts, tries: as in `HopSkipJump`.

    Reference: Cheng et al., ICLR 2020, arXiv:1909.10773.
    Differs from the authors' code: points are pressed into the bounds, the moves as they came out there are summed, less their
    mean; the first directions are uniform within the bounds, where Gaussian ones would mostly be cut off; the distance is
    searched from the best one downwards.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANY_L2
    queries: int = 20_000
    directions: int = 200
    beginnings: int = 100
    step: float = 0.2
    smoothing: float = 1e-3
    starts: Tensor | None = None
    tries: int = 100

    def __post_init__(self) -> None:
        check(self.queries, self.threat, ("l2",), "SignOPT")

    def search(self, probe: Probe, streams: Streams) -> None:
        asked = Decisions(probe, self.threat, self.queries)
        rows, steps = begin(asked, streams, probe.sound, self.starts, self.tries)
        theta, g = self.best(asked, streams, rows, steps)
        alpha, beta = torch.full_like(g, self.step), torch.full_like(g, self.smoothing)
        while True:
            going = asked.going(rows) & (asked.left(rows) > SPARE)
            rows, theta, g, alpha, beta = (each[going] for each in (rows, theta, g, alpha, beta))
            if not len(rows):
                return
            counts = (asked.left(rows) - SPARE).clamp(max=self.directions)
            v = normal(asked, streams, rows, g[:, None] * theta, beta * g, counts, sphere="l2")
            theta, g, alpha = self.descend(asked, rows, theta, g, v, alpha)
            stuck = alpha < LEAST_STEP
            alpha, beta = torch.where(stuck, 1.0, alpha), torch.where(stuck, beta / 10, beta)

    def best(
        self, asked: Decisions, streams: Streams, rows: Tensor, steps: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The nearest of several random directions (b, D) and the distances along them."""
        theta, g = steps / length(steps, "l2"), norm_of(steps, "l2")
        g = nearer(asked, rows, theta, g, PRECISE, first=0.5)
        low, high = asked.reach(rows)
        for _ in range(self.beginnings - 1):
            some = asked.going(rows).nonzero()[:, 0]
            other = low[some] + (high - low)[some] * streams.uniform(rows[some], low.shape[1]).to(low.dtype)
            other = other / length(other, "l2")
            yes = asked(g[some, None] * other, rows[some])
            some, other = some[yes], other[yes]
            theta[some], g[some] = other, nearer(asked, rows[some], other, g[some], PRECISE)
        return theta, g

    def descend(
        self, asked: Decisions, rows: Tensor, theta: Tensor, g: Tensor, v: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Steps along v: twice as long while the distance falls; if the first does not help, a quarter as long till one does."""
        best, g, alpha = theta.clone(), g.clone(), alpha.clone()

        def falls(some: Tensor) -> Tensor:
            tried = theta[some] + alpha[some, None] * v[some]
            tried = tried / length(tried, "l2")
            yes = asked(g[some, None] * tried, rows[some])
            part, tried = some[yes], tried[yes]
            distance = nearer(asked, rows[part], tried, g[part], PRECISE)
            less = distance < g[part]
            best[part[less]], g[part[less]] = tried[less], distance[less]
            yes[yes.clone()] = less
            return yes

        places = torch.arange(len(rows), device=rows.device)
        yes = falls(places)
        some, others = places[yes], places[~yes]
        for _ in range(TURNS):
            alpha[some] *= 2
            yes = falls(some)
            alpha[some[~yes]] /= 2
            some = some[yes]
        for _ in range(TURNS):
            alpha[others] /= 4
            others = others[~falls(others)]
        return best, g, alpha
