"""Kernels between feature blocks. Shapes: a (n, D), b (m, D), each returns (n, m)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def linear(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Dot product per dimension; the length scale is not used (its amplitude already scales a linear kernel)."""
    return a @ b.T / a.shape[1]


def matern(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    r"""Matérn 3/2 on the root-mean-square distance r: $(1+\sqrt3 r/\ell)\exp(-\sqrt3 r/\ell)$."""
    squared = (a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T).clamp_min(0) / a.shape[1]
    ratio = (3 * squared + 1e-12).sqrt() / scale  # the offset keeps the gradient finite at zero distance
    return (1 + ratio) * torch.exp(-ratio)


def rbf(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    r"""Squared exponential on the root-mean-square distance r: $\exp(-r^2/2\ell^2)$."""
    squared = (a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T).clamp_min(0) / a.shape[1]
    return torch.exp(-squared / (2 * scale.square()))


def tanimoto(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Tanimoto similarity of non-negative counts, $ab/(a^2+b^2-ab)$ (Ralaivola et al. 2005); no length scale."""
    dot = a @ b.T
    return dot / (a.square().sum(1)[:, None] + b.square().sum(1)[None] - dot).clamp_min(math.ulp(1.0))


KERNELS = {"linear": linear, "matern": matern, "rbf": rbf, "tanimoto": tanimoto}
