"""The weather of ImageNet-C that needs no photographs: snow and fog; images (B, C, H, W) within [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adversarial.attacks.image_corruptions import pixels, rows_of, streaked, zoomed
from adversarial.streams import Streams

LIGHT = (0.299, 0.587, 0.114)  # shares of red, green and blue in how bright a pixel looks


def snow(x: Tensor, level: int, streams: Streams) -> Tensor:
    """Flakes, the largest of a random field, as streaks that fall, over a paler image; and the same turned by 180°."""
    mean, spread, size, least, radius, sigma, share = (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8), (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7), (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[level]  # fmt: skip
    field = mean + spread * streams.normal(rows_of(x), 1, *x.shape[2:]).to(x.dtype)
    field = zoomed(field, max(pixels(x, size), 1.0))
    angle = (streams.uniform(rows_of(x)) - 0.5).to(x.dtype) * (math.pi / 2) - math.pi / 2
    flakes = streaked(torch.where(field < least, 0, field).clamp(0, 1), radius, sigma, angle)
    pale = torch.maximum(x, 1.5 * light(x) + 0.5)
    return share * x + (1 - share) * pale + flakes + flakes.rot90(2, (2, 3))


def light(x: Tensor) -> Tensor:
    """How bright a pixel looks (B, 1, H, W); of other than three channels the mean."""
    if x.shape[1] != len(LIGHT):
        return x.mean(1, keepdim=True)
    return (x * torch.tensor(LIGHT, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)).sum(1, keepdim=True)


def fog(x: Tensor, level: int, streams: Streams) -> Tensor:
    """Clouds of a random fractal, over a darker image so that the brightest point stays within what it was."""
    thickness, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[level]
    top = x.amax((1, 2, 3), keepdim=True)
    return (x + thickness * clouds(x, decay, streams)) * top / (top + thickness)


def clouds(x: Tensor, decay: float, streams: Streams) -> Tensor:
    """Heights (B, 1, H, W) between 0 and 1 by the diamond-square algorithm on a torus.

    Every round doubles the sides: a new point is the mean of its four neighbours plus noise, whose size falls by the
    square of `decay` from round to round.

    Reference: Fournier, Fussell & Carpenter, "Computer rendering of stochastic models", CACM 1982.
    """
    height, width = x.shape[2:]
    field, size, rows = x.new_zeros(len(x), 1, 1), 1.0, rows_of(x)
    while field.shape[1] < max(height, width):
        noise = size * (2 * streams.uniform(rows, 3, *field.shape[1:]).to(x.dtype) - 1)
        pairs = field + field.roll(-1, 1)
        centre = (pairs + pairs.roll(-1, 2)) / 4 + noise[:, 0]
        across = (field + field.roll(-1, 2) + centre + centre.roll(1, 1)) / 4 + noise[:, 1]
        down = (pairs + centre + centre.roll(1, 2)) / 4 + noise[:, 2]
        even, odd = torch.stack([field, across], 3).flatten(2), torch.stack([down, centre], 3).flatten(2)
        field, size = torch.stack([even, odd], 2).flatten(1, 2), size / decay**2
    field = field - field.amin((1, 2), keepdim=True)
    field = field / field.amax((1, 2), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return field[:, None, :height, :width]
