"""A rectangle of one grey that covers some place of an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adversarial.lifting import ParametrisedSet, image, wide
from adversarial.threat import ThreatError


@dataclass(frozen=True)
class Occlusion(ParametrisedSet):
    """A rectangle of one grey, the same in all channels, anywhere within the image.

    Parameters, each in [0, 1]: its row and its column, and its grey from the darkest to the brightest unless these are one.
    With n places along an axis place i is that of $z$ from i/n to below (i + 1)/n. The first row's place lies above the
    image, where the rectangle covers nothing; the next is at the image's edge. So 0 changes nothing, and attacks that
    follow gradients find greys but no places: use a grid or random points.

    Args:
        height, width: of the rectangle, in pixels.
        grey: the darkest and the brightest.

    Raises: ThreatError for a rectangle that does not fit the image, and for greys outside [0, 1] or in the wrong order.

    Reference: Mohapatra et al., "Towards verifying robustness of neural networks against a family of semantic
    perturbations", CVPR 2020, arXiv:1912.09533.
    Differs from the paper: a set has one size of the rectangle; its grey is a parameter.
    """

    height: int
    width: int
    grey: tuple[float, float] = (0.0, 1.0)
    low = 0.0
    high = 1.0

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1 or not 0 <= self.grey[0] <= self.grey[1] <= 1:
            raise ThreatError(f"expected a rectangle of a pixel or more and 0 <= grey <= grey <= 1, got {self}")

    def places(self, x: Tensor) -> tuple[int | None, ...]:
        """How many places there are along each parameter; None for one without steps."""
        rows, columns = image(x).shape[2] - self.height + 1, x.shape[3] - self.width + 1
        if min(rows, columns) < 1:
            raise ThreatError(f"expected a rectangle within {tuple(x.shape[2:])} pixels, got {self}")
        return (rows + 1, columns, *(None,) * (self.grey[0] < self.grey[1]))

    def neutral(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), len(self.places(x)))

    def corner(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Its top and left (B,), in whole pixels; a top of -height covers nothing."""
        row, column = (
            (z.double() * count).floor().clamp(0, count - 1).long()
            for z, count in zip(parameters.detach().unbind(1)[:2], self.places(x)[:2], strict=True)
        )
        return torch.where(row > 0, row - 1, -self.height), column

    def shade(self, parameters: Tensor) -> Tensor:
        """Its grey (B,)."""
        dark, bright = self.grey
        share = parameters[:, 2] if dark < bright else torch.zeros_like(parameters[:, 0])
        return (dark + (bright - dark) * share).clamp(0, 1)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        top, left = (wide(side, x) for side in self.corner(x, parameters))
        row, column = torch.arange(x.shape[2], device=x.device)[:, None], torch.arange(x.shape[3], device=x.device)
        covered = (row >= top) & (row < top + self.height) & (column >= left) & (column < left + self.width)
        return torch.where(covered, wide(self.shade(parameters).to(x.dtype), x), x)
