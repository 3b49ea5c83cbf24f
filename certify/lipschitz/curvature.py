"""The largest absolute eigenvalue of Hessians, many points at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from certify.errors import CertifyError

STEPS, TOLERANCE = 500, 1e-3


def largest_curvature(
    function: Callable[[Tensor], Tensor], points: Tensor, moving: Tensor, generator: torch.Generator
) -> Tensor:
    """The largest |eigenvalue| (J, N) of the Hessians of J functions at points (N, …), between coordinates that may move (1, D).

    Power iteration finds the eigenvalue of largest size; a second run, shifted by it, the one at the other end, which
    is the larger one where the first run met both signs at once.

    Raises: CertifyError for functions whose gradient changes though they have no curvature, as those of ReLU networks.
    """
    found = []
    for j in range(function(points[:1].detach()).shape[1]):
        product = hessian(lambda z, j=j: function(z)[:, j], points, moving)
        start = torch.randn(
            points.shape[0], points[0].numel(), device=points.device, dtype=points.dtype, generator=generator
        )
        zero = torch.zeros(len(points), device=points.device, dtype=points.dtype)
        top = dominant(product, start * moving, zero)
        other = dominant(product, start * moving, top) + top
        found.append(torch.maximum(top.abs(), other.abs()))
    return torch.stack(found)


def hessian(function: Callable[[Tensor], Tensor], points: Tensor, moving: Tensor) -> Callable[[Tensor], Tensor]:
    """Products (N, D) of each point's Hessian with a direction of its own."""
    with torch.enable_grad():
        z = points.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(z).sum(), z, create_graph=True)
    linear = not slope.requires_grad

    def product(v: Tensor) -> Tensor:
        if linear:
            return torch.zeros_like(v)
        (found,) = torch.autograd.grad(slope, z, v.view_as(z), retain_graph=True, allow_unused=True)
        return torch.zeros_like(v) if found is None else found.flatten(1) * moving

    if not bool(product(torch.ones_like(slope).flatten(1)).any()) and bool((slope != slope[:1]).any()):
        raise CertifyError(
            "expected a twice differentiable model for order 2, got one whose gradient changes without curvature, as with "
            "ReLU; use order=1"
        )
    return product


def dominant(product: Callable[[Tensor], Tensor], v: Tensor, shift: Tensor) -> Tensor:
    """The eigenvalue (N,) of largest size of each Hessian minus its shift, with its sign."""
    tiny = torch.finfo(v.dtype).tiny
    v = v / v.norm(dim=1, keepdim=True).clamp_min(tiny)
    value = torch.zeros_like(shift)
    for _ in range(STEPS):
        moved = product(v) - shift[:, None] * v
        size = moved.norm(dim=1)
        done = (size - value).abs() <= TOLERANCE * size
        value = size
        sign = torch.where((moved * v).sum(1) < 0, -1.0, 1.0)
        v = moved / size[:, None].clamp_min(tiny)
        if bool(done.all()):
            break
    return value * sign
