r"""Smoothing over pixels at sampled parameters: changes that do not compose, such as turns and scales by interpolation.

Cut the parameters into cells and let $z_i$ be a point of cell i. If everything that the cell makes of x lies within M_i of
$\phi(x, z_i)$ in l2, and Gaussian noise on the pixels of $\phi(x, z_i)$ shows a radius of M_i or more, then the smoothed
classifier keeps its class over the whole cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adversarial.lifting import Lifted, ParametrisedSet
from adversarial.threat import Ball
from certify.certificate import Certificate
from certify.checks import check_labels
from certify.engine.tracing import check_still
from certify.errors import CertifyError
from certify.randomised.sequential import looks_of
from certify.randomised.smoothing import Smoothing
from certify.semantic.cells import cells, counts, parameters, places, walk
from certify.semantic.enclosures import enclosed

ROUNDING = 1e-5  # of a distance, and of the radius that so many draws can show


@dataclass(frozen=True)
class TSSDR:
    r"""Certificates of the smoothed classifier $g(x) = \arg\max_c P(f(x + \sigma e) = c)$ over a lifted set, cell by cell.

    Deploy `predict`, not the model itself; train the model on noisy pixels (`certify.training.gaussian`). A cell's M_i is
    proved: each of its parts is enclosed (`enclosures`), and the farthest corner of the enclosures counts. The cells go from
    the clean input outwards, and an input leaves at its first cell that fails; everything nearer is covered, which gives the
    radius, in the parameters' own units. Draws of a cell stop as soon as M_i is shown.

    Every cell is tested with all of `alpha`: a wrong certificate over all cells needs that one certain cell passes in which
    g does change, and the cells are chosen without looking at any draws (an intersection–union test; so is the radius, which
    is wrong only if the nearest such cell passes).

    Args:
        threat: `lift(set)` of a set with an enclosure: Spatial, Hue, Saturation, Lightness, BrightnessContrast, Occlusion.
        sigma: standard deviation of the noise in each pixel.
        splits: cells of each parameter, one number or one for each. More cells have smaller M_i and take more draws.
        inside: parts of each cell along each parameter; more give a tighter M_i, and take no draws.
        n0, n, alpha, seed: as in `Smoothing`, for each cell.

    Reference: Li et al., "TSS: transformation-specific smoothing for robustness certification", CCS 2021,
    arXiv:2002.12398 (TSS-DR); Berger, "Multiparameter hypothesis testing and acceptance sampling", Technometrics 1982.
    Differs from the paper: M_i comes from enclosures, in place of a Lipschitz constant of the interpolation, so that several
    parameters at once are covered alike; each cell has its own M_i; alpha is not divided by the number of cells; no noise is
    put on brightness besides.
    """

    threat: Lifted
    sigma: float = 0.25
    splits: int | Sequence[int] = 40
    inside: int | Sequence[int] = 10
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.smoothing(1.0)  # refuses its numbers

    def smoothing(self, eps: float | Tensor) -> Smoothing:
        """The smoothing that shows whether pixels may move by these distances."""
        ball = Ball("l2", eps, None, None)
        return Smoothing(ball, self.sigma, self.n0, self.n, self.alpha, until="threat", seed=self.seed)

    @property
    def reach(self) -> float:
        """The largest distance that n draws can show."""
        share = torch.tensor(looks_of(self.n, self.alpha)[self.n], dtype=torch.float64) ** (1 / self.n)
        return self.sigma * float(torch.special.ndtri(share)) * (1 - ROUNDING)

    @torch.no_grad()
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 256) -> Certificate:
        """Certificates for inputs x (B, C, H, W) with labels y (B,); `batch_size` noisy inputs pass through the model at once.

        Raises: CertifyError for a set that has no enclosure, labels that are none, and cells none of which n draws can show.
        """
        check_labels(x, y)
        check_still(model)
        region = parameters(self.threat, x)
        steps = places(self.threat.set, x, region.low.shape[1])
        inside = counts(self.inside, [count and 1 for count in steps])
        low, high = cells(*region.box(), counts(self.splits, steps), steps)
        alive, prediction = torch.ones_like(y, dtype=torch.bool), torch.full_like(y, -1)
        known = []

        def prove(rows: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
            neutral = region.anchor.flatten(1)[rows].double()
            clean = ((low <= neutral) & (neutral <= high)).all(1)
            centre = self.centre(x[rows], (low + high) / 2, clean)
            far = farthest(self.threat.set, x[rows], centre, *cells(low, high, inside))
            known.append(far.amin())
            near, found = far <= self.reach, torch.zeros_like(clean)
            for some in (clean | near).nonzero()[:, 0].split(batch_size):
                smoothing = self.smoothing(upper(far[some].clamp(max=self.reach), x.dtype))
                given = smoothing(model, centre[some], y[rows[some]], batch_size=batch_size, progress=False)
                found[some] = given.certified & near[some]
                own = clean[some]
                prediction.scatter_reduce_(0, rows[some][own], given.prediction[own], "amax")
            return found, torch.full_like(far, torch.nan)

        certified, radius, _ = walk(region, low, high, alive, prove, at_once=batch_size, name=type(self).__name__)
        if min(known) > self.reach:
            raise CertifyError(
                f"expected cells whose inputs lie within {self.reach:.4g} of one of them, which {self.n} draws can show with "
                f"sigma {self.sigma:g}, got {min(known):.4g} at least; take more splits, a larger n or a larger sigma"
            )
        right = prediction == y
        return Certificate(
            prediction, certified & right, torch.where(right, radius, 0), torch.full_like(radius, torch.nan), self.threat,
            type(self).__name__, "probabilistic", 1 - self.alpha,
        )  # fmt: skip

    def predict(self, model: nn.Module, x: Tensor, *, batch_size: int = 256) -> Tensor:
        """The smoothed classifier's class (B,) by n draws, -1 where it is not sure: wrong with probability alpha at most."""
        return self.smoothing(1.0).predict(model, x, batch_size=batch_size)

    def centre(self, x: Tensor, z: Tensor, clean: Tensor) -> Tensor:
        """What the parameters z (n, k) make of inputs; those that are `clean` (n,) stay as they are."""
        return torch.where(clean.view(-1, *(1,) * (x.ndim - 1)), x, self.threat.set.apply(x, z.to(x.dtype)))


def farthest(set: ParametrisedSet, x: Tensor, centre: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """A distance (B,) in l2 from `centre` that no set.apply(x, z) exceeds, z in any of the boxes low to high (B, J, k)."""
    place, found = centre.flatten(1).double(), x.new_zeros(len(x), dtype=torch.float64)
    for ends in zip(low.unbind(1), high.unbind(1), strict=True):
        box = enclosed(set, x, *ends)
        found = torch.maximum(found, torch.maximum(box.high - place, place - box.low).square().sum(1))
    return found.sqrt() * (1 + ROUNDING) + ROUNDING


def upper(size: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers of another precision that are no smaller."""
    found = size.to(dtype)
    return torch.where(found.double() < size, torch.nextafter(found, torch.full_like(found, torch.inf)), found)
