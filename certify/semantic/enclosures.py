r"""What a parametrised set can make of inputs when its parameters lie in a box: a line below and a line above every value.

Every value v of the result satisfies $b + \sum_k s_k (z_k - m_k) \le v(z) \le b' + \sum_k s'_k (z_k - m_k)$ for all z of the box
with middle m, each value with its own b, s, b' and s'. A certifier of linear bounds needs no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from adversarial.colours import BrightnessContrast, Hue, Lightness, Saturation, from_hsl, to_hsl
from adversarial.lifting import image, wide
from adversarial.occlusion import Occlusion
from adversarial.sets import Patch, Spatial
from certify.errors import CertifyError
from certify.semantic.resampling import VALUE, resampled

ROUNDING = 2e-6  # how far `apply` in float32 may be from the exact colours that are enclosed


@dataclass(frozen=True)
class Line:
    """Offsets (B, D) in the middle of the box, slopes (B, k, D) in the parameters."""

    offset: Tensor
    slopes: Tensor


@dataclass(frozen=True)
class Enclosure:
    """Results of inputs (B, …): a line below and one above, and the range of each value, low to high (B, D), which may be
    smaller than the lines leave."""

    below: Line
    above: Line
    low: Tensor
    high: Tensor


def enclosed(set: Any, x: Tensor, low: Tensor, high: Tensor) -> Enclosure:
    """The enclosure of set.apply(x, z) for all z between low and high (B, k), in float64.

    Raises: CertifyError for a set that has none.
    """
    for kind, rule in RULES.items():
        if type(set) is kind:
            return rule(set, x, low.double(), high.double())
    raise CertifyError(
        f"expected a set with an enclosure ({', '.join(kind.__name__ for kind in RULES)}), got {type(set).__name__}; smooth over "
        "its parameters instead"
    )


def bent(f: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, knots: list[Tensor], gain: Tensor) -> Enclosure:
    """Of values f(v), v between low and high (B, 1, H, W) or like the image, straight between the knots (in their order), where
    v moves with the parameters by `gain` (B, k, …).

    Each line is the one, with the slope of the chord or of a piece, that leaves the least area, which is highest, or lowest,
    in the middle.
    """
    ends = [low, *(torch.minimum(torch.maximum(knot, low), high) for knot in knots), high]
    values = torch.stack([f(v) for v in ends])
    places = torch.stack(ends) - (low + high) / 2
    pairs = [(0, -1), *pairwise(range(len(ends)))]
    slopes = torch.stack([slope(values[b] - values[a], places[b] - places[a]) for a, b in pairs])
    lines = []
    for sign in (1, -1):
        heights = torch.stack([(sign * (values - each * places)).amin(0) for each in slopes])
        best = heights.max(0)
        steep = slopes.gather(0, best.indices[None])[0].unsqueeze(1) * gain
        lines.append(Line((sign * (best.values - ROUNDING)).flatten(1), steep.flatten(2)))
    return Enclosure(*lines, (values.amin(0) - ROUNDING).flatten(1), (values.amax(0) + ROUNDING).flatten(1))


def slope(rise: Tensor, run: Tensor) -> Tensor:
    """0 where there is next to no run."""
    far = run > 1e-9
    return torch.where(far, rise / torch.where(far, run, 1), 0)


def hsl(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As (B, 1, H, W) each. They are taken as `apply` takes them, in the precision of x: a dark pixel's are ill-conditioned."""
    hue, saturation, lightness = (part[:, None].double() for part in to_hsl(image(x, 3)))
    return hue, saturation, lightness


def hue(set: Hue, x: Tensor, low: Tensor, high: Tensor) -> Enclosure:
    """The channels are straight in the hue between whole numbers of the hexagon."""
    own, saturation, lightness = hsl(x)
    turn = set.angle * 3 / math.pi
    start, end = own + turn * wide(low[:, 0], own), own + turn * wide(high[:, 0], own)
    count = int((end - start).max()) + 1
    knots = [start.floor() + i for i in range(1, count + 1)]

    def colour(h: Tensor) -> Tensor:
        return from_hsl(*(part[:, 0] for part in torch.broadcast_tensors(h, saturation, lightness)))

    return bent(colour, start, end, knots, torch.full_like(own, turn).unsqueeze(1))


def saturation(set: Saturation, x: Tensor, low: Tensor, high: Tensor) -> Enclosure:
    """The colours are straight in the saturation, which ends at 0 and 1."""
    own_hue, own, lightness = hsl(x)
    start, end = (own * (1 + set.change * wide(side[:, 0], own)) for side in (low, high))

    def colour(s: Tensor) -> Tensor:
        return from_hsl(*(part[:, 0] for part in torch.broadcast_tensors(own_hue, s.clamp(0, 1), lightness)))

    knots = [torch.zeros_like(own), torch.ones_like(own)]
    return bent(colour, start, end, knots, (set.change * own).unsqueeze(1))


def lightness(set: Lightness, x: Tensor, low: Tensor, high: Tensor) -> Enclosure:
    """The colours are straight in the lightness but for the middle, and it ends at 0 and 1."""
    own_hue, own_saturation, own = hsl(x)
    start, end = (own + set.change * wide(side[:, 0], own) for side in (low, high))

    def colour(v: Tensor) -> Tensor:
        return from_hsl(*(part[:, 0] for part in torch.broadcast_tensors(own_hue, own_saturation, v.clamp(0, 1))))

    knots = [torch.full_like(own, place) for place in (0.0, 0.5, 1.0)]
    return bent(colour, start, end, knots, torch.full_like(own, set.change).unsqueeze(1))


def brightness_contrast(set: BrightnessContrast, x: Tensor, low: Tensor, high: Tensor) -> Enclosure:
    """Straight in both parameters, then cut at 0 and 1."""
    x = x.double()
    gain = torch.stack([torch.full_like(x, set.brightness), set.contrast * x], 1)
    middle, half = (low + high) / 2, (high - low) / 2
    spread = [wide_like(side, gain) for side in (middle, half)]
    centre, reach = x + (gain * spread[0]).sum(1), (gain.abs() * spread[1]).sum(1)
    knots = [torch.zeros_like(x), torch.ones_like(x)]
    return bent(lambda v: v.clamp(0, 1), centre - reach, centre + reach, knots, gain)


def wide_like(parameters: Tensor, gain: Tensor) -> Tensor:
    """Parameters (B, k), to broadcast with (B, k, …)."""
    return parameters.view(*parameters.shape, *(1,) * (gain.ndim - 2))


def patch(set: Patch, x: Tensor, low: Tensor, high: Tensor) -> Enclosure:
    """Values between the parameters' own in the rectangle: occlusion by anything."""
    ends = [set.apply(x.double(), side).flatten(1) for side in (low, high)]
    return box(*ends, parameters=low.shape[1])


def occlusion(set: Occlusion, x: Tensor, low: Tensor, high: Tensor) -> Enclosure:
    """Straight in the grey where the rectangle lies at all of the box's places; its greys or the image's own where it lies at
    some."""
    greys = [wide(set.shade(z).to(x.dtype), x).double() for z in (low, (low + high) / 2, high)]
    x, ends = x.double(), (set.corner(x, low), set.corner(x, high))
    always, ever = (torch.ones_like(x, dtype=torch.bool) for _ in range(2))
    for axis, size in ((0, set.height), (1, set.width)):
        first, last = (wide(end[axis], x) for end in ends)
        place = torch.arange(x.shape[2 + axis], device=x.device).view((-1, 1) if axis == 0 else (-1,))
        always &= (last <= place) & (place < first + size)
        ever &= torch.maximum(first, place - size + 1) <= torch.minimum(last, place)
    slack = VALUE if low.shape[1] > 2 else 0.0
    dark, bright = (greys[0] - slack).clamp(min=0), (greys[2] + slack).clamp(max=1)
    least = torch.where(always, dark, torch.where(ever, torch.minimum(x, dark), x)).flatten(1)
    most = torch.where(always, bright, torch.where(ever, torch.maximum(x, bright), x)).flatten(1)
    flat = box(least, most, parameters=low.shape[1])
    if low.shape[1] == 2:
        return flat
    steep = x.new_zeros(len(x), 3, least.shape[1])
    steep[:, 2] = always.flatten(1) * (set.grey[1] - set.grey[0])
    lines = [
        Line(torch.where(always, greys[1] + sign * slack, side.view_as(x)).flatten(1), steep)
        for side, sign in ((least, -1), (most, 1))
    ]
    return Enclosure(*lines, least, most)


def spatial(set: Spatial, x: Tensor, low: Tensor, high: Tensor) -> Enclosure:
    return box(*resampled(set, x, low, high), parameters=low.shape[1])


def box(low: Tensor, high: Tensor, parameters: int) -> Enclosure:
    """Values between low and high (B, D), whatever the parameters."""
    flat = low.new_zeros(len(low), parameters, 1)
    return Enclosure(Line(low, flat), Line(high, flat), low, high)


RULES: dict[type, Callable[..., Enclosure]] = {
    Hue: hue, Saturation: saturation, Lightness: lightness, BrightnessContrast: brightness_contrast, Occlusion: occlusion, Patch: patch,
    Spatial: spatial,
}  # fmt: skip
