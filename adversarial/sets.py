"""Changes with a few parameters: colour, blur, place, a patch. `lift` makes a threat of one, whose variables are the parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from adversarial.colours import Blur, BrightnessContrast, Hue, Lightness, Saturation
from adversarial.lifting import Lifted, ParametrisedSet, Scaled, image, lift
from adversarial.occlusion import Occlusion
from adversarial.threat import ThreatError
from adversarial.weights import Weights

__all__ = [
    "Blur", "BrightnessContrast", "Hue", "Lifted", "Lightness", "Occlusion", "ParametrisedSet", "Patch", "Saturation",
    "Spatial", "Together", "Weights", "lift",
]  # fmt: skip


@dataclass(frozen=True)
class Spatial(Scaled):
    """Rotation, translation and scale about the centre, by bilinear resampling; outside the image there is 0.

    Parameters, of those whose reach is not 0: z of the angle, of the shift to the right and down, of the logarithm of the scale.

    Args:
        rotation: largest angle, in degrees.
        translation: largest shift, as a share of width and height.
        scale: largest change of size as a share: 0.1 from 1/1.1 to 1.1.

    Reference: Engstrom et al., "Exploring the landscape of spatial robustness", ICML 2019, arXiv:1712.02779.
    Differs from the paper: scale.
    """

    rotation: float = 30.0
    translation: float = 0.1
    scale: float = 0.0

    @property
    def reach(self) -> tuple[float, ...]:
        """Radians, two shifts in units of half an image, logarithm of the size."""
        return (
            math.radians(self.rotation), 2 * self.translation, 2 * self.translation, math.log1p(self.scale),
        )  # fmt: skip

    @property
    def size(self) -> int:  # type: ignore[override]
        return sum(reach > 0 for reach in self.reach)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        height, width = image(x).shape[2:]
        given = iter(parameters.unbind(1))
        still = parameters.new_zeros(len(parameters))
        angle, right, down, grown = (next(given) * reach if reach else still for reach in self.reach)
        factor = torch.exp(-grown)  # from a place of the result to one of the image
        cos, sin = factor * angle.cos(), factor * angle.sin()
        # coordinates run from -1 to 1 both ways, so a turn of an oblong image has to know its sides
        across, along = sin * height / width, -sin * width / height
        rows = [cos, across, -(cos * right + across * down), along, cos, -(along * right + cos * down)]
        grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False).clamp(0, 1)


@dataclass(frozen=True)
class Patch(ParametrisedSet):
    """Any pixels within a rectangle; the parameters are its pixels, C·height·width of them.

    Args:
        top, left: its corner, in pixels.
        height, width: its size, in pixels.

    Reference: Brown et al., "Adversarial patch", 2017, arXiv:1712.09665 (there one for all images: `UniversalPatch`).
    """

    top: int
    left: int
    height: int
    width: int
    low = 0.0
    high = 1.0

    def inside(self, x: Tensor) -> tuple[slice, ...]:
        bottom, right = self.top + self.height, self.left + self.width
        if min(self.top, self.left, self.height - 1, self.width - 1) < 0 or bottom > x.shape[2] or right > x.shape[3]:
            raise ThreatError(f"expected a patch within {tuple(x.shape[2:])} pixels, got {self}")
        return (slice(None), slice(None), slice(self.top, bottom), slice(self.left, right))

    def neutral(self, x: Tensor) -> Tensor:
        return image(x)[self.inside(x)].flatten(1)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        patched, place = x.clone(), self.inside(image(x))
        patched[place] = parameters.view(patched[place].shape)
        return patched


@dataclass(frozen=True)
class Together(ParametrisedSet):
    """Sets one after the other, with the parameters of all side by side; a `Patch` may only be the first.

    Reference: Hsiung et al., "Towards compositional adversarial robustness", CVPR 2023, arXiv:2202.04235.
    Differs from the paper: the order is the user's, not optimised.
    """

    sets: Sequence[ParametrisedSet]

    def __post_init__(self) -> None:
        if not self.sets or any(isinstance(one, Patch) for one in self.sets[1:]):
            raise ThreatError("expected at least one set and a patch, if any, as the first")

    @property
    def low(self) -> float:
        return min(one.low for one in self.sets)

    @property
    def high(self) -> float:
        return max(one.high for one in self.sets)

    def neutral(self, x: Tensor) -> Tensor:
        return torch.cat([one.neutral(x) for one in self.sets], 1)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        for one in self.sets:
            size = one.neutral(x[:1]).shape[1]
            # each has bounds of its own
            x, parameters = one.apply(x, parameters[:, :size].clamp(one.low, one.high)), parameters[:, size:]
        return x
