r"""The end of a distribution from the largest of many samples: the reverse Weibull law, by likelihood from several starts.

With $d = \max m - m$ of maxima m in units of their range, $d$ has the density
$\frac{c}{s}\left(\frac{d + e^t}{s}\right)^{c-1}\exp\left(-\left(\frac{d + e^t}{s}\right)^c\right)$, and the end lies $e^t$ above the largest m. The
scale s has a closed form; the shape and t are found by Newton's method, for all sets of maxima and all starts at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STARTS = (0.1, 1.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # of the shape
PENALTY = 0.01  # on its square, added to minus the logarithm of the likelihood
REFUSED = 1e-3  # fits with a smaller p-value are not used
STEPS, DONE = 100, 1e-8


@dataclass(frozen=True)
class Fit:
    """One row for each set of maxima.

    location: the end of the distribution, or the largest of the maxima where `fallback`.
    shape: of the law; pvalue: of the Kolmogorov–Smirnov test of it; NaN both where the maxima are all alike.
    """

    location: Tensor
    shape: Tensor
    pvalue: Tensor
    fallback: Tensor


@torch.no_grad()
def fit(maxima: Tensor) -> Fit:
    """The law of sets of maxima (P, N): of seven fits the one of the best p-value, the largest maximum where all are poor.

    Reference: Weng et al., "Evaluating the robustness of neural networks: an extreme value theory approach", ICLR 2018,
    arXiv:1801.10578, and the authors' code, from which the starts, the penalty and the fall-back come.
    """
    from scipy.stats import kstwo

    maxima = maxima.double()
    top, bottom = maxima.amax(1), maxima.amin(1)
    width = top - bottom
    alike = ~(width > 1e-6 * top.abs())  # NaN as well
    d = torch.where(alike[:, None], 0.5, (top[:, None] - maxima) / torch.where(alike, 1.0, width)[:, None])
    shape, t = minimised(d)
    scale = (d[:, None] + t.exp()[..., None]).log().mul(shape[..., None]).logsumexp(-1)
    scale = (scale - torch.tensor(float(d.shape[1])).log()) / shape
    distance = kolmogorov(d, shape, t, scale)
    pvalue = torch.as_tensor(kstwo.sf(distance.cpu().numpy(), d.shape[1])).to(d).nan_to_num(-1.0)
    best = pvalue.argmax(1, keepdim=True)
    shape, t, pvalue = (each.gather(1, best)[:, 0] for each in (shape, t, pvalue))
    fallback = alike | (pvalue < REFUSED)
    location = torch.where(fallback, top, top + width * t.exp())
    nothing = torch.full_like(top, torch.nan)
    return Fit(location, torch.where(alike, nothing, shape), torch.where(alike, nothing, pvalue), fallback)


def kolmogorov(d: Tensor, shape: Tensor, t: Tensor, scale: Tensor) -> Tensor:
    """The largest distance (P, S) between the empirical distribution of d (P, N) and the law's."""
    ordered, n = d.sort(1).values[:, None], d.shape[1]
    logs = (ordered + t.exp()[..., None]).log()
    law = -torch.expm1(-(shape[..., None] * (logs - scale[..., None])).exp())
    steps = torch.arange(n + 1, dtype=d.dtype, device=d.device) / n
    return torch.maximum((steps[1:] - law).amax(-1), (law - steps[:-1]).amax(-1))


def minimised(d: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes and t (P, S) at local minima of the objective, one for each start: Levenberg and Marquardt's damped steps."""
    r = torch.tensor(STARTS, dtype=d.dtype, device=d.device).log().expand(len(d), -1).contiguous()
    t = torch.zeros_like(r)
    damping = torch.ones_like(r)
    value, gradient, curvature = objective(d, r, t)
    for _ in range(STEPS):
        step = newton(gradient, curvature, damping)
        tried = (r + step[0]).clamp(-5.0, 8.0), (t + step[1]).clamp(-25.0, 12.0)
        found, new_gradient, new_curvature = objective(d, *tried)
        better = found < value
        moved = torch.where(better, torch.maximum((tried[0] - r).abs(), (tried[1] - t).abs()), 0)
        r, t = torch.where(better, tried[0], r), torch.where(better, tried[1], t)
        value = torch.where(better, found, value)
        gradient = tuple(torch.where(better, new, old) for new, old in zip(new_gradient, gradient, strict=True))
        curvature = tuple(torch.where(better, new, old) for new, old in zip(new_curvature, curvature, strict=True))
        damping = torch.where(better, damping / 5, damping * 4).clamp(1e-9, 1e12)
        if bool(((moved < DONE) & (better | (damping > 1e6))).all()):
            break
    return r.exp(), t


def newton(gradient: tuple[Tensor, ...], curvature: tuple[Tensor, ...], damping: Tensor) -> tuple[Tensor, Tensor]:
    """The step down of a quadratic in two variables, made convex and damped; at most one unit long in each."""
    (a, b, c), (x, y) = curvature, gradient
    middle, spread = (a + c) / 2, ((a - c).square() / 4 + b.square()).sqrt()
    shift = (spread - middle).clamp_min(0) + damping * 1e-3 * (1 + middle.abs() + spread)
    a, c = a + shift, c + shift
    determinant = (a * c - b.square()).clamp_min(1e-300)
    return ((b * y - c * x) / determinant).clamp(-1, 1), ((b * x - a * y) / determinant).clamp(-1, 1)


def objective(d: Tensor, r: Tensor, t: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Minus the mean logarithm of the likelihood at its best scale, with the penalty: its value (P, S), its gradient in the
    shape's logarithm r and in t, and its three second derivatives."""
    c, e, n = r.exp(), t.exp(), d.shape[1]
    u = d[:, None] + e[..., None]
    logs, inverse = u.log(), u.reciprocal()
    powers = c[..., None] * logs
    top = powers.amax(-1, keepdim=True)
    weights = (powers - top).exp()
    total = weights.sum(-1)
    weights = weights / total[..., None]  # u^c of each, as shares of their sum
    log1, log2 = (weights * logs).sum(-1), (weights * logs.square()).sum(-1)
    share = weights * inverse
    near1, near2, mixed = share.sum(-1), (share * inverse).sum(-1), (share * logs).sum(-1)
    mean_log, mean1, mean2 = logs.mean(-1), inverse.mean(-1), inverse.square().mean(-1)
    value = -r + top[..., 0] + (total / n).log() - (c - 1) * mean_log + PENALTY * c.square() / n
    by_c = -1 / c + log1 - mean_log + 2 * PENALTY * c / n
    by_t = e * (c * near1 - (c - 1) * mean1)
    cc = 1 / c.square() + log2 - log1.square() + 2 * PENALTY / n
    ct = e * (near1 + c * mixed - c * near1 * log1 - mean1)
    tt = by_t + e.square() * (c * (c - 1) * near2 - (c * near1).square() + (c - 1) * mean2)
    return value, (c * by_c, by_t), (c.square() * cc + c * by_c, c * ct, tt)
