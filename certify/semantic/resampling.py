r"""How dark and how bright each pixel of a turned, shifted or scaled image can get, over a box of angles, shifts and scales.

The place that a pixel is read at moves within a rectangle, found exactly axis by axis: $f\,(u\cos\theta + v\sin\theta)$ is
linear in u, v and the factor f, and a wave in the angle, so that its ends are at corners of (u, v, f) and at the ends or
peaks of the wave. Within one cell of the pixel grid the interpolated value is linear along each axis, so over a rectangle it
is extreme at a corner of one of the cells' pieces: at the rectangle's own ends or at whole numbers between them, however
many cells it spans.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from adversarial.lifting import image
from adversarial.sets import Spatial

PLACE = 1e-6  # how far, as a share of the image's side, places in float32 may be from the exact ones
VALUE = 1e-6
Range = tuple[Tensor, Tensor]


def resampled(set: Spatial, x: Tensor, low: Tensor, high: Tensor) -> Range:
    """Least and largest values (B, D) of set.apply(x, z) over z between low and high (B, k)."""
    across, down = places(set, image(x).shape[2:], low, high)
    values = x.double()
    least, most = torch.full_like(values, torch.inf), torch.full_like(values, -torch.inf)
    for column, row in product(corners(across), corners(down)):
        value = F.grid_sample(
            values, grid(column, row, x.shape[2:]), mode="bilinear", padding_mode="zeros", align_corners=False
        )
        least, most = torch.minimum(least, value), torch.maximum(most, value)
    return (least - VALUE).clamp(0, 1).flatten(1), (most + VALUE).clamp(0, 1).flatten(1)


def places(set: Spatial, shape: torch.Size, low: Tensor, high: Tensor) -> tuple[Range, Range]:
    """Where every pixel is read, in columns and rows from 0: ends (B, H, W)."""
    height, width = shape
    given = iter(zip(low.unbind(1), high.unbind(1), strict=True))
    still = torch.zeros_like(low[:, 0])
    angle, right, sink, grown = (
        tuple(side[:, None, None] * reach for side in next(given)) if reach else (still[:, None, None],) * 2
        for reach in set.reach
    )
    column = torch.arange(width, dtype=low.dtype, device=low.device) - (width - 1) / 2
    row = (torch.arange(height, dtype=low.dtype, device=low.device) - (height - 1) / 2)[:, None]
    u = [column - shift * width / 2 for shift in right]
    v = [row - shift * height / 2 for shift in sink]
    factors = [torch.exp(-size) for size in grown]
    found = []
    for turn, size in ((0.0, width), (math.pi / 2, height)):
        ends = [wave(*torch.broadcast_tensors(a, b), (angle[0] + turn, angle[1] + turn)) for a in u for b in v]
        values = torch.stack([end * f for pair in ends for end in pair for f in factors])
        slack, middle = PLACE * size, (size - 1) / 2
        found.append(
            (
                (values.amin(0) + middle - slack).clamp(-2, size + 1),
                (values.amax(0) + middle + slack).clamp(-2, size + 1),
            )
        )
    return found[0], found[1]


def wave(u: Tensor, v: Tensor, angle: Range) -> Range:
    r"""Least and largest value of $u\cos\theta + v\sin\theta$ over an interval of angles."""
    ends = [u * side.cos() + v * side.sin() for side in angle]
    height, peak = torch.hypot(u, v), torch.atan2(v, u)
    most = torch.where(passed(peak, angle), height, torch.maximum(*ends))
    least = torch.where(passed(peak + math.pi, angle), -height, torch.minimum(*ends))
    return least, most


def passed(place: Tensor, angle: Range) -> Tensor:
    """Whether a place, or one whole turns away, lies in an interval of angles."""
    return place + 2 * math.pi * ((angle[0] - place) / (2 * math.pi)).ceil() <= angle[1]


def corners(ends: Range) -> list[Tensor]:
    """Both ends of intervals and the whole numbers between them."""
    low, high = ends
    between = [torch.minimum(low.floor() + i, high) for i in range(1, int((high.floor() - low.floor()).max()) + 1)]
    return [low, *between, high]


def grid(column: Tensor, row: Tensor, shape: torch.Size) -> Tensor:
    """Columns and rows (B, H, W) as torch's sampling takes them, from -1 to 1."""
    height, width = shape
    return torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], -1)
