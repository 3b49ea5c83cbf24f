r"""How far an input may move when a class's probability under Gaussian noise and its gradient are known in part.

In units of sigma: of a classifier f let $y_0 = E f(e)$ and $y_1 = E\,e f(e)$, e standard normal. Along a direction v at
distance r the class keeps $E f(e)\,w(e)$, $w = e^{r v^Te - r^2/2}$. With $p \le y_0$, $m \le v^Ty_1$ and q at most the length
of y_1 across v, weak duality gives for all $a, b, c \ge 0$, with s and t independent and standard normal,

$$E f w \ge c\,p + a\,m + b\,q - E\big(c + a s + b t - w(s)\big)_+ .$$

So whatever the solver finds is a bound: it may be loose, never wrong. At the best (a, b, c) it is the worst case exactly.

Reference: Mohapatra, Ko, Weng, Chen, Liu & Daniel, "Higher-order certification for randomized smoothing", NeurIPS 2020,
arXiv:2010.06651.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

ROUGH, FINE = (
    np.linspace(-9.5, 9.5, count) for count in (761, 12161)
)  # to look for the best numbers, and for their bound
SLACK = 1e-6  # of a probability: for the sum over the fine grid in the place of the integral
STEP = 1.01  # ratio of neighbouring shares of the gradient that are looked at one by one


def slab(p: float, m: float) -> float:
    """The radius of a known component along the direction alone (q = 0): that of the worst slab z2 < s < z1.

    Its numbers solve Φ(z1) - Φ(z2) = p and φ(z2) - φ(z1) = m; the radius solves Φ(z1 - r) - Φ(z2 - r) = 1/2.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    low = float(norm.ppf(p))
    if m <= -norm.pdf(low):
        return low
    if m >= norm.pdf(low):
        return np.inf
    middle = float(norm.ppf((1 + p) / 2))
    side = -abs(m)

    def gap(z: float) -> float:
        return norm.pdf(norm.ppf(max(norm.cdf(z) - p, 0))) - norm.pdf(z) - side

    upper = middle if gap(middle) <= 0 else brentq(gap, low, middle)
    lower = float(norm.ppf(norm.cdf(upper) - p))
    upper, lower = (upper, lower) if m <= 0 else (-lower, -upper)
    far = low + 1
    while norm.cdf(upper - far) - norm.cdf(lower - far) > 0.5 and far < 40:
        far += 1
    return float(brentq(lambda r: norm.cdf(upper - r) - norm.cdf(lower - r) - 0.5, low - 1e-9, far)) - 1e-9


def falls(numbers: np.ndarray, s: np.ndarray, p: float, m: float, q: float, r: float) -> tuple[float, np.ndarray]:
    """The bound at a, b, c with its sign turned, and its gradient; sums over a grid s."""
    from scipy.special import ndtr

    a, b, c = numbers
    weight = np.exp(-(s**2) / 2) / np.sqrt(2 * np.pi) * (s[1] - s[0])
    inner = c + a * s - np.exp(r * s - r**2 / 2)
    share, bell = ndtr(inner / b), np.exp(-((inner / b) ** 2) / 2) / np.sqrt(2 * np.pi)
    value = weight @ (inner * share + b * bell) - c * p - a * m - b * q
    return value, np.array([weight @ (s * share) - m, weight @ bell - q, weight @ share - p])


def kept(p: float, m: float, q: float, r: float) -> float:
    """A lower bound of what the class's probability is at distance r."""
    from scipy.optimize import minimize
    from scipy.special import ndtri

    height = float(np.exp(r * ndtri(p) - r**2 / 2))
    start, bounds = np.array([r / 2, r / 2, 1]) * height, [(0, None), (1e-3 * height, None), (0, None)]
    options = {"maxiter": 100, "ftol": 1e-10}
    found = minimize(falls, start, (ROUGH, p, m, q, r), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return -falls(found.x, FINE, p, m, q, r)[0] - SLACK


def safe_at(p: float, m: float, q: float, r: float, low: float) -> bool:
    """Whether the class keeps more than half at distance r, where `low` is safe whatever the gradient is."""
    if r <= low:
        return True
    return kept(p, m, q, r) > 0.5 if q > 0 else slab(p, m) > r


def largest(safe: Callable[[float], bool], low: float, steps: int = 9) -> float:
    """The largest distance that bisection finds safe, `low` being so."""
    high = low + 0.25
    while safe(high):
        low, high = high, 2 * high
        if high > 40:
            return low
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if safe(middle) else (low, middle)
    return low


def along(p: float, inside: float, across: float) -> float:
    """Radius for steps within a subspace, where y_1 is at most `inside` long, and at least `across` outside of it."""
    from scipy.stats import norm

    low = float(norm.ppf(p))
    if across <= 0:
        return max(low, slab(p, -inside))
    return largest(lambda r: safe_at(p, -inside, across, r, low), low)


def within(p: float, most: float, length: float) -> float:
    r"""Radius R of a polytope around 0 of which R is the length of its shortest steps to a corner (l1) or its longest (linf).

    A step of length R/κ goes against the gradient by at most κ `most` per length, κ ≥ 1, and y_1 is at least `length` long.
    (l1: `most` bounds its largest component, and κ is a direction's l1 norm; linf: its mean component times √d.) The paper
    takes κ = 1, against the gradient; here all directions are covered, in cells κ to `STEP` κ: a cell's steps are no longer
    than R/κ, and of its gradients the most opposed counts, and the least length across.
    """
    from scipy.stats import norm

    low = float(norm.ppf(p))

    def across(share: float) -> float:
        return max(length**2 - share**2, 0.0) ** 0.5

    def safe(radius: float) -> bool:
        ratio = 1.0
        while radius / ratio > low:  # against the gradient
            if not safe_at(p, -STEP * ratio * most, across(STEP * ratio * most), radius / ratio, low):
                return False
            ratio *= STEP
        ratio = 1.0
        while slab(p, ratio * most) < radius / ratio:  # along it
            if not safe_at(p, ratio * most, across(STEP * ratio * most), radius / ratio, low):
                return False
            ratio *= STEP
        return True

    return largest(safe, low)
