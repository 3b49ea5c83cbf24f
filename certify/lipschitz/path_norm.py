r"""The 1-path norm of a network with one hidden layer, and its proximal step.

Reference: Latorre, Rolland, Hallak & Cevher, "Efficient proximal mapping of the 1-path-norm of shallow networks", ICML 2020,
arXiv:2007.01003.
"""

from __future__ import annotations

import torch
from torch import Tensor


def path_norm(first: Tensor, last: Tensor) -> Tensor:
    r"""$\sum_{ijk} |V_{ki}||W_{ij}|$ for first = W (H, D) and last = V (K, H).

    With an activation whose slopes lie in [-1, 1] it bounds the Lipschitz constant from linf to l1, and is at most the product
    of the layers' norms. Differentiable.
    """
    return (last.abs().sum(0) * first.abs().sum(1)).sum()


@torch.no_grad()
def path_norm_prox(first: Tensor, last: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    r"""The weights nearest to given ones after paying for their path norm:
    $\arg\min \frac12\|W - W_0\|^2 + \frac12\|V - V_0\|^2 + \lambda P(W, V)$, exactly.

    Each hidden unit is a problem of its own, $\frac12\|v - v_0\|^2 + \frac12\|w - w_0\|^2 + \lambda\|v\|_1\|w\|_1$. Where v keeps its s largest
    numbers and w its r largest ones, both norms solve two linear equations; the best pair (s, r) is the answer.

    Differs from the paper: all pairs are looked at, for all units at once, instead of walking along the staircase of those
    that can be the answer; the result is the same.

    Args:
        first: W_0 (H, D); last: V_0 (K, H); weight: λ, not negative.

    Raises: ValueError for a weight below zero.
    """
    if not weight >= 0:
        raise ValueError(f"expected a weight that is not negative, got {weight}")
    rows, columns = first.double(), last.double().T  # (H, D) and (H, K)
    if rows.shape[1] < columns.shape[1]:
        w, v = units(columns, rows, weight)
        return v.to(first), w.T.to(last)
    v, w = units(rows, columns, weight)
    return v.to(first), w.T.to(last)


def units(wide: Tensor, narrow: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Both parts of every unit (H, m) and (H, n): soft thresholds by λ times the other's norm."""
    v, w = (part.abs().sort(1, descending=True).values for part in (wide, narrow))
    sums, energy = v.cumsum(1), v.square().sum(1)
    s = torch.arange(1, v.shape[1] + 1, dtype=v.dtype, device=v.device)
    # one of the two is zero: the other one stays
    best = torch.minimum(energy, w.square().sum(1)) / 2
    keep = energy >= w.square().sum(1)
    p, q = torch.where(keep, sums[:, -1], 0), torch.where(keep, 0, w.sum(1))
    head, tail = w.new_zeros(len(w)), w.square().sum(1)
    rest = energy[:, None] - v.square().cumsum(1)
    for r in range(1, w.shape[1] + 1):
        head, tail = head + w[:, r - 1], tail - w[:, r - 1].square()
        room = 1 - weight**2 * s * r
        size_v = (sums - weight * s * head[:, None]) / room
        size_w = (head[:, None] - weight * r * sums) / room
        value = (s * (weight * size_w).square() + r * (weight * size_v).square() + rest + tail[:, None]) / 2
        value = value + weight * size_v * size_w
        real = (room > 0) & (v > weight * size_w) & (w[:, r - 1, None] > weight * size_v) & (size_v > 0) & (size_w > 0)
        found, place = torch.where(real, value, torch.inf).min(1)
        better = found < best
        best = torch.where(better, found, best)
        p = torch.where(better, size_v.gather(1, place[:, None])[:, 0], p)
        q = torch.where(better, size_w.gather(1, place[:, None])[:, 0], q)
    # a norm of zero keeps the other part as it is and takes its own away
    own = torch.where((p == 0)[:, None], 0, soft(wide, weight * q))
    other = torch.where((q == 0)[:, None], 0, soft(narrow, weight * p))
    return own, other


def soft(x: Tensor, threshold: Tensor) -> Tensor:
    return x.sign() * (x.abs() - threshold[:, None]).clamp_min(0)
