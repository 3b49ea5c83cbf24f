r"""Noise for randomised smoothing: how it is drawn, and within what radius a class of probability p stays the likeliest.

All have standard deviation 1 in every coordinate here; `Smoothing` scales them by sigma. With $p \ge P(f(x + \sigma e) = c)$'s
lower bound and nothing known of the other classes, in units of sigma:

gaussian, l2: $\Phi^{-1}(p)$; so for l1, since $\|\delta\|_2 \le \|\delta\|_1$, and over $\sqrt d$ for linf.
laplace, density $\propto e^{-\sqrt2 |e|}$, l1: $-\log(2 (1 - p)) / \sqrt2$.
uniform on $[-\sqrt3, \sqrt3]$, l1: $2\sqrt3\,(p - 1/2)$; linf: $2\sqrt3\,(1 - (3/2 - p)^{1/d})$.

References: Cohen, Rosenfeld & Kolter, ICML 2019, arXiv:1902.02918 (gaussian); Teng, Lee & Yuan, "l1 adversarial robustness
certificates", 2020, and Lecuyer et al., S&P 2019, arXiv:1802.03471 (laplace); Lee, Yuan, Chang & Jaakkola, NeurIPS 2019,
arXiv:1906.04948 (uniform); Yang et al., ICML 2020, arXiv:2002.08118 (all of them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Radius = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (p, free coordinates) -> radius in units of sigma


@dataclass(frozen=True)
class Noise:
    """draw: fill a tensor with independent numbers of standard deviation 1; radius: for each norm that has a rule."""

    draw: Callable[[Tensor, torch.Generator], Tensor]
    radius: Mapping[str, Radius]


def gaussian(p: np.ndarray, size: np.ndarray) -> np.ndarray:
    from scipy.special import ndtri

    return ndtri(p)


def laplace(p: np.ndarray, size: np.ndarray) -> np.ndarray:
    return -np.log(2 * (1 - p)) / np.sqrt(2)


def uniform(p: np.ndarray, size: np.ndarray) -> np.ndarray:
    return 2 * np.sqrt(3) * (p - 0.5)


def uniform_linf(p: np.ndarray, size: np.ndarray) -> np.ndarray:
    return -2 * np.sqrt(3) * np.expm1(np.log1p(0.5 - p) / size)  # two cubes shifted by r share (1 - r / 2√3)^d


def two_sided(empty: Tensor, generator: torch.Generator) -> Tensor:
    """Laplace numbers: the difference of two exponential ones."""
    other = torch.empty_like(empty).exponential_(generator=generator)
    return empty.exponential_(generator=generator).sub_(other).mul_(0.5**0.5)


NOISES: dict[str, Noise] = {
    "gaussian": Noise(
        lambda empty, generator: empty.normal_(generator=generator),
        {"l2": gaussian, "l1": gaussian, "linf": lambda p, size: gaussian(p, size) / np.sqrt(size)},
    ),
    "laplace": Noise(two_sided, {"l1": laplace}),
    "uniform": Noise(
        lambda empty, generator: empty.uniform_(-(3**0.5), 3**0.5, generator=generator),
        {"l1": uniform, "linf": uniform_linf},
    ),
}
