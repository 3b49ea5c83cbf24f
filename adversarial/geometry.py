"""Projections on the intersection of a norm ball and a box, both around zero. Rows u (B, D), limits low <= 0 <= high (B, D)."""

from __future__ import annotations

import torch
from torch import Tensor

SECANTS, FARTHEST = 32, 1e4  # at most, and by how much one may multiply


def norm_of(steps: Tensor, norm: str) -> Tensor:
    """Norm (B,) of rows (B, D); l0 counts what is not zero."""
    if norm == "l0":
        return (steps != 0).sum(1).to(steps.dtype)
    return torch.linalg.vector_norm(steps, {"linf": float("inf"), "l2": 2, "l1": 1}[norm], dim=1)


def into_box(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(u, low), high)


def room(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How far each coordinate may go in its own direction (B, D)."""
    return torch.where(u >= 0, high, -low)


def l1(u: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    r"""The nearest point of $\{\|d\|_1 \le \epsilon\} \cap [low, high]$, exactly; eps (B,).

    It is $\operatorname{sign}(u)\,\min(\max(|u| - \lambda, 0), room)$; its norm falls with $\lambda$ in straight pieces that
    end where a coordinate leaves the box or reaches zero, so sorting these points gives the multiplier.
    Reference: Croce & Hein, "Mind the box: l1-APGD for sparse adversarial attacks", ICML 2021, arXiv:2103.01208.
    """
    clipped = into_box(u, low, high)
    outside = clipped.abs().sum(1) > eps
    if not outside.any():
        return clipped
    some, size = u[outside], u[outside].abs()
    limit = room(some, low[outside], high[outside])
    ends = torch.cat([size - limit, size], dim=1)  # the slope changes by -1 at the first, by +1 at the second
    order = ends.argsort(1)
    points = ends.gather(1, order)
    change = torch.cat([-torch.ones_like(size), torch.ones_like(size)], dim=1).gather(1, order)
    slope = change.cumsum(1)
    norm = limit.sum(1, keepdim=True) + torch.cat(
        [torch.zeros_like(points[:, :1]), (slope[:, :-1] * points.diff(dim=1)).cumsum(1)], dim=1
    )
    # the last point whose norm still exceeds eps; the multiplier lies on the piece that follows
    last = (norm > eps[outside, None]).sum(1, keepdim=True).clamp(1) - 1
    steep = slope.gather(1, last).clamp(max=-1.0)
    multiplier = points.gather(1, last) + (eps[outside, None] - norm.gather(1, last)) / steep
    found = some.sign() * torch.minimum((size - multiplier.clamp_min(0)).clamp_min(0), limit)
    return clipped.index_put((outside,), found)


def l2(u: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    r"""The nearest point of $\{\|d\|_2 \le \epsilon\} \cap [low, high]$, exactly; eps (B,).

    It is $\operatorname{sign}(u)\,\min(s|u|, room)$ for one scale s in (0, 1].
    """
    clipped = into_box(u, low, high)
    outside = clipped.norm(dim=1) > eps
    if not outside.any():
        return clipped
    some, size = u[outside], u[outside].abs()
    limit = room(some, low[outside], high[outside])
    scale = scale_l2(size, eps[outside], limit)
    return clipped.index_put((outside,), some.sign() * torch.minimum(scale[:, None] * size, limit))


def scale_l2(size: Tensor, eps: Tensor, limit: Tensor) -> Tensor:
    r"""The scale s (B,) for which $\min(s\,size, limit)$ is eps long, for rows (B, D) without signs; far beyond where the whole
    box is shorter.

    From the scale without a box it grows as coordinates reach the box and leave their length to the others, until no
    more of them do.
    """
    tiny = torch.finfo(size.dtype).tiny
    scale, held = eps / size.norm(dim=1).clamp_min(tiny**0.5), torch.zeros_like(size, dtype=torch.bool)
    while True:
        full = scale[:, None] * size >= limit
        if bool((full == held).all()):
            return scale
        left = (eps.square() - torch.where(full, limit, 0).square().sum(1)).clamp_min(0)
        free = torch.where(full, 0, size).square().sum(1).clamp_min(tiny)
        grown = (left / free).clamp(max=torch.finfo(size.dtype).max).sqrt()  # infinity times zero is no number
        scale, held = torch.maximum(scale, grown), full


def support_l2(g: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    r"""$\max\{g^Td : \|d\|_2 \le \epsilon, low \le d \le high\}$ (B,), never understated, for rows g (B, D).

    The dual $\min_s \sum_i \max_{d_i}(g_i d_i - d_i^2 / 2s) + \epsilon^2 / 2s$ holds for every s, and is flat around its best
    one, for which d = clamp(s g, low, high) is eps long.
    """
    scale = near_scale_l2(g, eps, low, high)
    d = torch.clamp(scale[:, None] * g, low, high)
    rest = (eps.square() - d.square().sum(1)) / (2 * scale).clamp_min(torch.finfo(g.dtype).tiny)
    return torch.fmin(torch.maximum(g * low, g * high).sum(1), (g * d).sum(1) + rest)


@torch.no_grad()
def near_scale_l2(g: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    r"""The scale s (B,) for which clamp(s g, low, high) is eps long, but for the root of the type's precision.

    Its $\|d\|^2$ is concave in $s^2$, so secants come near from the left; few passes over the rows, where `scale_l2` is exact.
    """
    info = torch.finfo(g.dtype)
    whole = torch.clamp(torch.sign(g) * info.max, low, high).square().sum(1)  # of the box alone
    steep = g.square().sum(1).clamp_min(info.tiny)
    place, step = eps.square() / steep, torch.zeros_like(steep)  # of s²
    length = step
    for _ in range(SECANTS):
        place, before = place + step, length
        length = torch.clamp(place.sqrt()[:, None] * g, low, high).square().sum(1)
        steep = torch.where(step > 0, (length - before) / step, steep)
        missing = torch.where(length < whole, (eps.square() - length).clamp_min(0), 0)
        step = torch.minimum(missing / steep.clamp_min(info.tiny), FARTHEST * place)
        step = torch.where(step > info.eps**0.5 * place, step, 0)
        if not bool(step.any()):
            break
    return place.sqrt()


def l0(u: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The nearest point of the box with at most `eps` coordinates that are not zero, exactly."""
    clipped = into_box(u, low, high)
    gain = u.square() - (u - clipped).square()  # what keeping a coordinate saves
    rank = gain.argsort(1, descending=True).argsort(1)
    return torch.where((rank < eps[:, None]) & (gain > 0), clipped, torch.zeros_like(u))


def linf(u: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The nearest point of the box; `Region` has taken eps (any shape) into its limits."""
    return into_box(u, low, high)


PROJECTIONS = {"linf": linf, "l2": l2, "l1": l1, "l0": l0}
