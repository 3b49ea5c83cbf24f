"""Nearest examples by Adam's steps, each followed by a threshold that undoes small changes: sigma-zero and PDPGD."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adversarial.attacks.base import Attack
from adversarial.attacks.minimal import cosine, movable, only, seeing, threshold, width, widths
from adversarial.geometry import into_box
from adversarial.probe import Keep, Probe
from adversarial.streams import Streams
from adversarial.threat import ANYWHERE, Threat

FIRST, SECOND, STEADY = 0.9, 0.999, 1e-8  # Adam's decays, and what keeps its denominator from zero
LOGARITHM = math.log(1e6)  # bound on the logarithm of the weights' ratio
NEWTON = 6  # steps for the l2 threshold; each about squares the error


class RowAdam:
    """Adam for rows that come and go: each has moments and a count of steps of its own.

    Reference: Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015, arXiv:1412.6980.
    """

    def __init__(self, like: Tensor):
        self.mean, self.square = torch.zeros_like(like), torch.zeros_like(like)
        self.count = torch.zeros_like(like[:, :1])

    def step(self, rows: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """What to go against (b, D), for a learning rate of 1, and by what it was divided."""
        mean, square = self.mean[rows].lerp(gradient, 1 - FIRST), self.square[rows].lerp(gradient.square(), 1 - SECOND)
        count = self.count[rows] + 1
        self.mean[rows], self.square[rows], self.count[rows] = mean, square, count
        size = (square / (1 - SECOND**count)).sqrt() + STEADY
        return mean / (1 - FIRST**count) / size, size


@dataclass(frozen=True)
class SigmaZero(Attack):
    r"""$\sigma$-zero, for l0: Adam on $\max(-margin, 0) + \frac1D\sum_i \frac{\delta_i^2}{\delta_i^2 + \sigma}$ with normalised
    gradients; after every step changes below a threshold $\tau$ are undone, which rises after an example and falls otherwise.

    Args:
        threat: a `Ball` of norm l0, by default without a limit.
        steps: gradient steps.
        rate: Adam's learning rate, in units of a feature's width; it falls to a tenth along a cosine.
        sigma: how close to a count the smooth one is, in squares of the same units.
        tau: the first threshold, in the same units.
        change: of the threshold, as a share of the learning rate.

    A sample leaves when one changed feature is enough.

    Reference: Cinà et al., "σ-zero: gradient-based optimization of l0-norm adversarial examples", ICLR 2025, arXiv:2402.01879.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANYWHERE["l0"]
    steps: int = 1000
    rate: float = 1.0
    sigma: float = 1e-3
    tau: float = 0.3
    change: float = 0.01

    def __post_init__(self) -> None:
        if self.steps < 2 or min(self.rate, self.sigma, self.tau, self.change) <= 0:
            raise ValueError(f"expected two steps and rate, sigma, tau and change above 0, got {self}")

    def search(self, probe: Probe, streams: Streams) -> None:
        only(probe.region, "SigmaZero", "l0")
        need, rows = threshold(probe.goal), movable(probe)
        region = probe.region[rows]
        place, adam = torch.arange(len(rows), device=rows.device), RowAdam(region.low)
        u, tau, span = torch.zeros_like(region.low), torch.full_like(region.eps, self.tau), widths(region)
        z = region.anchor
        for step in range(self.steps - 1):
            if not len(rows):
                return
            gradient, loss = probe.gradient(z, rows, "margin")
            keep = probe.nearest[rows] > 1
            if not keep.all():
                rows, region, place, u, tau, span = (v[keep] for v in (rows, region, place, u, tau, span))
                gradient, loss = gradient[keep], loss[keep]
            slope = -span * seeing(gradient, streams, rows).flatten(1) * (loss < need)[:, None]
            smooth = 2 * u * self.sigma / (u.square() + self.sigma).square() / u.shape[1]
            downhill = slope + torch.where(span > 0, smooth, 0)
            largest = downhill.abs().amax(1, keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)
            rate = cosine(self.rate, self.rate / 10, step / self.steps)
            moved = span * (u - rate * adam.step(place, downhill / largest)[0])
            u = into_box(moved, region.low, region.high) / span.clamp_min(torch.finfo(u.dtype).tiny)
            less = self.change * rate
            tau = torch.where(probe.latest[rows], tau + less, tau - less).clamp(0, 1)
            u = torch.where(u.abs() < tau[:, None], 0, u)
            z = region.moved(span * u)
        if len(rows):
            probe.outputs(z, rows)


@dataclass(frozen=True)
class PDPGD(Attack):
    r"""Primal-dual proximal gradient attack for linf, l2 and l1: two players, one lowers $\lambda_0\|\delta\|_p + \lambda_1
    \log(1 + e^{-margin})$ in the change by Adam and the norm's proximal step, the other raises it in the weights.

    Args:
        threat: a `Ball`, by default l2 without a radius.
        steps: gradient steps.
        rate: Adam's learning rate, in units of a feature's width; it falls geometrically to `fall` of it.
        dual_rate: step of the logarithm of $\lambda_1 / \lambda_0$; it falls to a tenth in a straight line.
        ratio: the first $\lambda_0 / \lambda_1$.
        average: decay of the mean of the weights over steps.

    Reference: Matyasko & Chau, "PDPGD: primal-dual proximal gradient descent adversarial attack", 2021, arXiv:2106.01538.
    Differs from the paper: the proximal step in Adam's metric is solved exactly instead of by five inner iterations; l2 takes a
    proximal step as well; l0 is left out, where hard thresholds undo every step for long: use `SigmaZero`.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANYWHERE["l2"]
    steps: int = 500
    rate: float = 0.1
    fall: float = 0.01
    dual_rate: float = 0.1
    ratio: float = 0.01
    average: float = 0.9

    def __post_init__(self) -> None:
        if self.steps < 2 or min(self.rate, self.fall, self.dual_rate, self.ratio) <= 0 or not 0 <= self.average < 1:
            raise ValueError(
                f"expected two steps, rates, fall and ratio above 0 and an average within [0, 1), got {self}"
            )

    def search(self, probe: Probe, streams: Streams) -> None:
        only(probe.region, "PDPGD", *PROXIMAL)
        need, rows = threshold(probe.goal), movable(probe)
        if not len(rows):
            return
        region = probe.region[rows]
        place, adam = torch.arange(len(rows), device=rows.device), RowAdam(region.low)
        span = widths(region)
        dual = torch.full_like(region.eps, -math.log(self.ratio))
        weight = torch.sigmoid(dual)
        z = region.anchor
        for step in range(self.steps - 1):
            gradient, loss = probe.gradient(z, rows, "margin")
            rate, share = self.rate * self.fall ** (step / self.steps), step / self.steps
            slope = -torch.sigmoid(need - loss)[:, None] * span * seeing(gradient, streams, rows).flatten(1)
            ahead, size = adam.step(place, slope)
            u = into_box(region.steps(z) - rate * span * ahead, region.low, region.high)
            metric = size / rate / span.square().clamp_min(torch.finfo(u.dtype).tiny)
            z = region.moved(PROXIMAL[region.norm](u, metric, ((1 - weight) / weight / width(region))[:, None]))
            sign = torch.where(probe.latest[rows], -1.0, 1.0)
            dual = (dual + self.dual_rate * (1 - 0.9 * share) * sign).clamp(-LOGARITHM, LOGARITHM)
            weight = torch.lerp(torch.sigmoid(dual), weight, self.average)
        probe.outputs(z, rows)


def shrink_l1(u: Tensor, metric: Tensor, weight: Tensor) -> Tensor:
    r"""$\arg\min_d \frac12\sum_i m_i (d_i - u_i)^2 + w\|d\|_1$ for rows u, metric m (b, D) and weights w (b, 1)."""
    return u.sign() * (u.abs() - weight / metric).clamp_min(0)


def shrink_l2(u: Tensor, metric: Tensor, weight: Tensor) -> Tensor:
    r"""The same with the l2 norm: $d_i = m_i u_i n / (m_i n + w)$ where n is the norm of d.

    n is the root of $\sum_i (m_i u_i / (m_i n + w))^2 = 1$; Newton's steps on one over its square root, which is almost
    straight, come from below.
    """
    pull = metric * u
    norm = torch.zeros_like(weight)
    for _ in range(NEWTON):
        part = pull / (metric * norm + weight)
        total = part.square().sum(1, keepdim=True)
        slope = (part.square() * metric / (metric * norm + weight)).sum(1, keepdim=True)
        norm = norm + (total.sqrt() - 1) * total / slope.clamp_min(torch.finfo(u.dtype).tiny)
        norm = norm.clamp_min(0)
    return pull * norm / (metric * norm + weight)


def shrink_linf(u: Tensor, metric: Tensor, weight: Tensor) -> Tensor:
    r"""The same with the linf norm: changes are cut off at t, where $\sum_i m_i \max(|u_i| - t, 0) = w$."""
    size, order = u.abs().sort(1, descending=True)
    mass = metric.gather(1, order).cumsum(1)
    pull = (metric.gather(1, order) * size).cumsum(1)
    cut = (pull - weight) / mass  # if the k largest are cut off; the right k is where this is largest
    most = cut.amax(1, keepdim=True).clamp_min(0)
    return torch.minimum(torch.maximum(u, -most), most)


PROXIMAL = {"linf": shrink_linf, "l2": shrink_l2, "l1": shrink_l1}
