"""Smoothing that also looks at the gradient of the class's probability, which the same draws give: larger l1, linf and subspace radii."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from adversarial.processes import gathered, share_of
from adversarial.threat import Ball, Region
from certify.certificate import Certificate
from certify.errors import CertifyError
from certify.randomised.sampling import BLOCK, Precision, Sampler
from certify.randomised.smoothing import Part, Smoothing, below, check_sampling, keeper_of, opened
from certify.randomised.worst_case import along, within

if TYPE_CHECKING:
    from accelerate import Accelerator

SPREAD = 0.25 + 3 / math.sqrt(
    8 * math.pi * math.e
)  # e (1{hit} - 1/2) is sub-Gaussian with this variance in every direction


@dataclass(frozen=True)
class FirstOrderSmoothing:
    r"""Certificates of the classifier smoothed by Gaussian noise, from its probability and the gradient of it.

    The draws that are counted also estimate $y_1 = \sigma \nabla p$; with bounds of its norms the worst classifier that agrees
    with all of it is found (`worst_case`). Never less than the probability alone shows at (1 - share) alpha, which is
    a little less than at all of alpha. What is gained: most for l1, for linf in few dimensions, and for a `mask` of the
    threat (one colour channel: steps within a subspace); nothing to speak of for l2 balls of all features.

    Args:
        threat: a Ball of norm l2, l1 or linf; features that its mask freezes are the subspace's outside.
        share: of alpha, for the bounds of the gradient; the rest is for the probability's.
        sigma, n0, n, alpha, precision, seed: as for `Smoothing`.

    Reference: Mohapatra, Ko, Weng, Chen, Liu & Daniel, "Higher-order certification for randomized smoothing", NeurIPS 2020,
    arXiv:2010.06651.
    Differs from the paper: the gradient has a tenth of alpha instead of a half, since its bounds hardly change with it; every
    bound's part of it is counted; the tail of the product of two means is Chernoff's for any number of features; l1 and linf
    radii cover every direction, not only the axes or corners.
    """

    threat: Ball
    sigma: float = 0.25
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    share: float = 0.1
    precision: Precision = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise CertifyError(f"expected a share of alpha between 0 and 1 for the gradient, got {self.share}")
        check_sampling(self.sigma, self.n0, self.n, self.alpha * (1 - self.share), self.precision)
        if getattr(self.threat, "norm", None) not in ("l2", "l1", "linf"):
            raise CertifyError(
                f"expected a ball of norm l2, l1 or linf for the gradient's rules, got {getattr(self.threat, 'norm', None)}"
            )
        if self.n <= BLOCK:
            raise CertifyError(f"expected more than {BLOCK} draws, so that two halves can be compared, got {self.n}")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 128, progress: bool = True,
        accelerator: Accelerator | None = None, checkpoint: str | Path | None = None,
    ) -> Certificate:  # fmt: skip
        """Certificates for inputs x (B, …) with labels y (B,); arguments and errors as for `Smoothing`."""
        from tqdm.auto import tqdm

        region = opened(self.threat, model, x, y)
        own, places = share_of(torch.arange(len(x), device=x.device), accelerator)
        plain = Smoothing(
            self.threat,
            self.sigma,
            self.n0,
            self.n,
            self.alpha * (1 - self.share),
            precision=self.precision,
            seed=self.seed,
        )
        part, keeper = (
            Part(plain, region[own], y[own], moments=True),
            keeper_of(checkpoint, accelerator, self, model, x, y),
        )
        shown = progress and (accelerator is None or accelerator.is_main_process)
        part.run(Sampler(model, x[own], plain, batch_size), keeper, shown)
        found = part.found()
        moves = ((region[own].low < 0) | (region[own].high > 0)).any(1)
        known = ((found["radius"] > 0) & moves).nonzero()[:, 0].tolist()
        for row in tqdm(known, desc="worst cases", delay=2, disable=not shown):
            radius = self.radius(part, region[own], row)
            found["radius"][row] = torch.maximum(found["radius"][row], below(np.array(radius), x.dtype).to(x.device))
        found["certified"] = (found["prediction"] == y[own]) & (found["radius"] >= region[own].eps.to(found["radius"]))
        found = gathered(found, places, accelerator)
        margin = torch.full_like(found["radius"], torch.nan)
        return Certificate(
            found["prediction"], found["certified"], found["radius"], margin, self.threat, type(self).__name__,
            "probabilistic", 1 - self.alpha,
        )  # fmt: skip

    def predict(self, model: nn.Module, x: Tensor, *, batch_size: int = 128) -> Tensor:
        """As `Smoothing.predict`."""
        plain = Smoothing(
            self.threat, self.sigma, self.n0, self.n, self.alpha, precision=self.precision, seed=self.seed
        )
        return plain.predict(model, x, batch_size=batch_size)

    def radius(self, part: Part, region: Region, row: int) -> float:
        """The radius of one input, in units of eps."""
        free = ((region.low[row] < 0) | (region.high[row] > 0)).cpu().numpy()
        gradient = Gradient(part.state["sums"][:, row].double().cpu().numpy(), self.n)
        p, alpha = float(part.state["lower"][row]), self.alpha * self.share
        if self.threat.norm == "l2":
            whole = bool(free.all())
            inside = gradient.longest(free, alpha if whole else alpha / 2)
            return self.sigma * along(p, inside, 0.0 if whole else gradient.shortest(~free, alpha / 2))
        length, corner = gradient.shortest(np.ones_like(free), alpha / 2), free.sum() ** 0.5
        if self.threat.norm == "l1":
            return self.sigma * within(p, gradient.largest(free, alpha / 2), length)
        return self.sigma * within(p, gradient.total(free, alpha / 2) / corner, length) / corner


class Gradient:
    r"""Bounds of norms of $y_1 = E\,e\,(1\{hit\} - 1/2)$ from the sums of two halves of n draws, each failing with
    probability alpha at most.

    With X and Y the halves' means, $X^TY$ is $\|y_1\|^2$ plus a part that is linear in their errors and the errors' own product.
    """

    def __init__(self, sums: np.ndarray, n: int):
        sizes = [sum(min(BLOCK, n - start) for start in range(half * BLOCK, n, 2 * BLOCK)) for half in (0, 1)]
        self.n, self.sizes, self.means, self.mean = n, sizes, sums / np.array(sizes)[:, None], sums.sum(0) / n

    def largest(self, some: np.ndarray, alpha: float) -> float:
        """At most this is the largest component among `some`."""
        return float(np.abs(self.mean[some]).max()) + math.sqrt(2 * SPREAD * math.log(2 * some.sum() / alpha) / self.n)

    def total(self, some: np.ndarray, alpha: float) -> float:
        """At most this is the sum of their sizes: the largest of 2^d signed sums, each over √d sub-Gaussian."""
        d = int(some.sum())
        return float(np.abs(self.mean[some]).sum()) + math.sqrt(
            2 * SPREAD * d * (d * math.log(2) - math.log(alpha)) / self.n
        )

    def longest(self, some: np.ndarray, alpha: float) -> float:
        """At most this is their length."""
        product, tail, shift = self.parts(some, alpha)
        return shift + math.sqrt(max(shift**2 + product + tail, 0.0))

    def shortest(self, some: np.ndarray, alpha: float) -> float:
        """At least this is their length."""
        product, tail, shift = self.parts(some, alpha)
        return max(math.sqrt(max(shift**2 + product - tail, 0.0)) - shift, 0.0)

    def parts(self, some: np.ndarray, alpha: float) -> tuple[float, float, float]:
        """X·Y; what the errors' product exceeds with probability alpha / 2; half of what the linear part does, per length."""
        from scipy.optimize import minimize_scalar

        d, logarithm, (one, two) = int(some.sum()), math.log(2 / alpha), self.sizes

        def chernoff(scale: float) -> float:  # log E exp(scale X'Y' / v) <= -d/2 log(1 - scale²)
            return (logarithm - d / 2 * math.log1p(-(scale**2))) / scale

        best = minimize_scalar(chernoff, bounds=(1e-6, 1 - 1e-9), method="bounded").fun
        shift = math.sqrt(SPREAD * (1 / one + 1 / two) * logarithm / 2)
        product = float(self.means[0][some] @ self.means[1][some])
        return product, SPREAD / math.sqrt(one * two) * float(best), shift
