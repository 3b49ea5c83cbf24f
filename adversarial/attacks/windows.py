"""Windows of images: where Square puts what it changes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from adversarial.threat import Region


@dataclass
class Frame:
    """The rectangle of each sample's rows and columns in which windows lie; fields are (b,)."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor

    @classmethod
    def around(cls, region: Region) -> Frame:
        """The smallest one that holds all features with room."""
        free = as_image((region.low < 0) | (region.high > 0), region.anchor).any(1)
        edges = []
        for line in (free.any(2), free.any(1)):
            first = line.to(torch.uint8).argmax(1)
            last = line.shape[1] - 1 - line.flip(1).to(torch.uint8).argmax(1)
            edges += [first, last - first + 1]
        return cls(edges[0], edges[2], edges[1], edges[3])

    def keep(self, rows: Tensor) -> Frame:
        return Frame(*(getattr(self, field.name)[rows] for field in fields(self)))

    def sizes(self, share: float, least: int = 1) -> tuple[Tensor, Tensor]:
        """Height and width (b,) of a window of this share of the area: square where it fits, odd if `least` is above 1."""
        area = share * self.height * self.width
        side = area.sqrt().round().clamp_min(least)
        if least > 1:
            side = side + 1 - side % 2
        tall = torch.minimum(torch.where(side > self.width, (area / self.width).round(), side), self.height)
        wide = torch.minimum(torch.where(side > self.height, (area / self.height).round(), side), self.width)
        return tall.clamp_min(1).long(), wide.clamp_min(1).long()

    def place(self, draws: Tensor, tall: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
        """Top and left (b,) of a window, from two uniform numbers each."""
        top = (draws[:, 0] * (self.height - tall + 1)).long() + self.top
        return top, (draws[:, 1] * (self.width - wide + 1)).long() + self.left


def as_image(flat: Tensor, like: Tensor) -> Tensor:
    """Rows (b, …) of samples like these as (b, C, h, w)."""
    shape = like.shape[1:]
    height, width = (shape[-2] if len(shape) > 2 else 1), (shape[-1] if len(shape) else 1)
    return flat.reshape(len(flat), math.prod(shape[:-2] if len(shape) > 2 else shape[:-1]), height, width)


def window(image: Tensor, top: Tensor, left: Tensor, tall: Tensor, wide: Tensor) -> Tensor:
    """Which pixels lie in each sample's window (b, 1, h, w)."""
    down = torch.arange(image.shape[2], device=image.device) - top[:, None]
    across = torch.arange(image.shape[3], device=image.device) - left[:, None]
    down, across = (down >= 0) & (down < tall[:, None]), (across >= 0) & (across < wide[:, None])
    return (down[:, :, None] & across[:, None, :])[:, None]


def places(image: Tensor, top: Tensor, left: Tensor, tall: Tensor, wide: Tensor) -> Tensor:
    """Flat places (b, C·H·W) of each sample's window in all channels; H and W are the largest sizes, and in a smaller window
    its last row and column come again."""
    channels, height, width = image.shape[1:]
    down = torch.minimum(torch.arange(int(tall.max()), device=image.device), tall[:, None] - 1) + top[:, None]
    across = torch.minimum(torch.arange(int(wide.max()), device=image.device), wide[:, None] - 1) + left[:, None]
    plane = (down[:, :, None] * width + across[:, None, :]).flatten(1)
    offsets = torch.arange(channels, device=image.device) * (height * width)
    return (plane[:, None, :] + offsets[:, None]).flatten(1)


def bump(down: Tensor, tall: Tensor, across: Tensor, wide: Tensor, upright: Tensor, fall: int) -> Tensor:
    r"""Two opposite peaks side by side, or one over the other where `upright`, at places in a window of this size.

    At distance d (the larger of both axes') from its middle a peak of half size n is $\sum_{j=d+1}^{n+1} j^{-\text{fall}}$ high.
    """
    upright = (upright | (wide < 2)) & (tall > 1)
    along, other = torch.where(upright, down, across), torch.where(upright, across, down)
    size, breadth = torch.where(upright, tall, wide), torch.where(upright, wide, tall)
    half = size // 2
    second = along >= half
    along, size = torch.where(second, along - half, along), torch.where(second, size - half, half)
    distance = torch.maximum((along - size // 2).abs(), (other - breadth // 2).abs())
    reach = torch.maximum(size, breadth) // 2 + 1
    inverse = 1 / torch.arange(1, int(reach.max()) + 1, device=reach.device, dtype=torch.float64).pow(fall)
    sums = torch.cat([inverse.new_zeros(1), inverse.cumsum(0)])
    height = sums[reach] - sums[torch.minimum(distance, reach)]
    return torch.where(second, -height, height)


def unit(image: Tensor, power: int) -> Tensor:
    """Every channel divided by its norm."""
    norm = torch.linalg.vector_norm(image, power, dim=(2, 3), keepdim=True)
    return image / norm.clamp_min(torch.finfo(image.dtype).tiny)
