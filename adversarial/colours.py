"""Sets of colours and of sharpness: hue, saturation, lightness, brightness and contrast, blur."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adversarial.lifting import Scaled, image, wide


def to_hsl(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in [0, 6), saturation and lightness in [0, 1] of RGB images (B, 3, H, W), each (B, H, W). Grey has hue 0."""
    top, which = x.max(1)
    spread = top - x.amin(1)
    safe = torch.where(spread > 0, spread, 1)
    red, green, blue = x.unbind(1)
    hues = torch.stack([((green - blue) / safe) % 6, (blue - red) / safe + 2, (red - green) / safe + 4], 1)
    lightness = top - spread / 2
    room = 1 - (2 * lightness - 1).abs()
    saturation = torch.where(spread > 0, spread / torch.where(room > 0, room, 1), 0).clamp(max=1)
    return hues.gather(1, which[:, None])[:, 0], saturation, lightness


def from_hsl(hue: Tensor, saturation: Tensor, lightness: Tensor) -> Tensor:
    """RGB images of the three, (B, 3, H, W): each channel is a trapezoid in the hue."""
    amplitude = saturation * torch.minimum(lightness, 1 - lightness)
    channels = []
    for phase in (0.0, 4.0, 2.0):
        place = (phase + hue) % 6
        channels.append(lightness - amplitude * torch.minimum(place - 1.5, 4.5 - place).mul(2).clamp(-1, 1))
    return torch.stack(channels, 1)


@dataclass(frozen=True)
class Hue(Scaled):
    r"""All hues turned by an angle: $h + \theta z$ in the HSL hexagon. RGB images.

    Args:
        angle: the largest, in radians.

    Reference: Mohapatra et al., "Towards verifying robustness of neural networks against a family of semantic perturbations",
    CVPR 2020, arXiv:1912.09533; range: Hsiung et al., CVPR 2023, arXiv:2202.04235.
    """

    angle: float = math.pi
    channels = 3

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        hue, saturation, lightness = to_hsl(image(x, 3))
        return from_hsl(hue + (self.angle * 3 / math.pi) * wide(parameters[:, 0], hue), saturation, lightness)


@dataclass(frozen=True)
class Saturation(Scaled):
    r"""Saturation times a factor: $\min(s\,(1 + \delta z), 1)$ in HSL. RGB images. Reference: as `Hue`."""

    change: float = 0.3
    channels = 3

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        hue, saturation, lightness = to_hsl(image(x, 3))
        factor = 1 + self.change * wide(parameters[:, 0], hue)
        return from_hsl(hue, (saturation * factor).clamp(0, 1), lightness)


@dataclass(frozen=True)
class Lightness(Scaled):
    r"""Lightness moved: $l + \delta z$ in HSL, within [0, 1]. RGB images. Reference: as `Hue`."""

    change: float = 0.2
    channels = 3

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        hue, saturation, lightness = to_hsl(image(x, 3))
        return from_hsl(hue, saturation, (lightness + self.change * wide(parameters[:, 0], hue)).clamp(0, 1))


@dataclass(frozen=True)
class BrightnessContrast(Scaled):
    r"""$(1 + c z_2)\,x + b z_1$, within [0, 1]. Any channels, also series and vectors. Reference: as `Hue`."""

    brightness: float = 0.2
    contrast: float = 0.3
    size = 2

    def neutral(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 2)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        shift, factor = self.brightness * parameters[:, 0], 1 + self.contrast * parameters[:, 1]
        return (x * wide(factor, x) + wide(shift, x)).clamp(0, 1)


@dataclass(frozen=True)
class Blur(Scaled):
    r"""A blur of variance $\sigma^2 z$, z in [0, 1]: diffusion by three taps $(t/2, 1-t, t/2)$, often enough that $t \le 1/2$.

    A Gaussian kernel's weights are flat at variance 0, so that no gradient would leave the clean image; these are not.

    Args:
        sigma: the largest standard deviation, in pixels.
    """

    sigma: float = 1.5
    low = 0.0

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        passes = max(math.ceil(2 * self.sigma**2), 1)
        half = wide(parameters[:, 0].clamp(min=0) * self.sigma**2 / passes / 2, image(x))
        for _ in range(passes):
            for axis in (-1, -2):
                x = x + half * (shifted(x, axis, 1) + shifted(x, axis, -1) - 2 * x)
        return x.clamp(0, 1)


def shifted(x: Tensor, axis: int, by: int) -> Tensor:
    """One pixel along an axis; the border repeats."""
    size = x.shape[axis]
    edge = x.narrow(axis, 0, 1) if by > 0 else x.narrow(axis, size - 1, 1)
    parts = (edge, x.narrow(axis, 0, size - 1)) if by > 0 else (x.narrow(axis, 1, size - 1), edge)
    return torch.cat(parts, axis)
