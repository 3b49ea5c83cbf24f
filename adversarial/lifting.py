"""Changes with a few parameters as threats: what such a set is, and the region around its parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from adversarial.threat import Ball, Region, Threat, ThreatError


class ParametrisedSet(Protocol):
    """`apply(x, parameters)` turns inputs (B, …) and parameters (B, k) into inputs, differentiably in both.

    At `neutral(x)` (B, k) nothing changes. Other than in a `Patch` and in `Weights`, parameters are in units of the set's
    reach: 0 changes nothing, -1 and 1 are the ends. `low` and `high` bound the parameters, `within` the inputs.
    """

    low: float
    high: float
    within: tuple[float | None, float | None] = (0.0, 1.0)

    def neutral(self, x: Tensor) -> Tensor: ...
    def apply(self, x: Tensor, parameters: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Lifted:
    """A threat around parameters: the region's variables are those of a set, `apply` gives the inputs.

    Raises: ThreatError for inputs that the set cannot change.
    """

    set: ParametrisedSet
    ball: Ball

    def around(self, x: Tensor) -> Region:
        x = x.detach()
        Ball("linf", 1.0, *self.set.within).around(x)  # refuses inputs that lie elsewhere
        neutral = self.set.neutral(x)
        apply = self.applied(x, neutral)
        return replace(self.ball.around(neutral), apply=apply)

    def applied(self, x: Tensor, neutral: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        def changed(z: Tensor, rows: Tensor) -> Tensor:
            own = x[rows].to(z.dtype)
            same = (z == neutral[rows].to(z.dtype)).all(1).view(-1, *(1,) * (x.ndim - 1))
            return Unless.apply(self.set.apply(own, z), own, same)

        return changed


class Unless(torch.autograd.Function):
    """`moved`, but exactly `x` where it is the `same`; gradients flow as if it were always `moved`: resampling an image by an
    angle of 0 rounds, and the clean input must come back as it was."""

    @staticmethod
    def forward(ctx: Any, moved: Tensor, x: Tensor, same: Tensor) -> Tensor:
        return torch.where(same, x, moved)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


def lift(set: ParametrisedSet, ball: Ball | None = None) -> Threat:
    """The threat whose variables are a set's parameters: every attack on a region runs on it.

    `ball` limits the parameters, by default all within the set's bounds. A norm counts parameters in units of the set's
    reach, so that an angle and a shift compare.
    """
    return Lifted(set, ball or Ball("linf", max(set.high, -set.low), set.low, set.high))


def image(x: Tensor, channels: int | None = None) -> Tensor:
    """An image (B, C, H, W), else a ThreatError."""
    if x.ndim != 4 or (channels is not None and x.shape[1] != channels):
        raise ThreatError(f"expected images (B, {channels or 'C'}, H, W), got shape {tuple(x.shape)}")
    return x


def wide(parameter: Tensor, x: Tensor) -> Tensor:
    """One number per sample (B,), to broadcast with x."""
    return parameter.view(-1, *(1,) * (x.ndim - 1))


class Scaled(ParametrisedSet, Protocol):
    """A set with `size` parameters in units of its reach."""

    size = 1
    channels: int | None = None
    low = -1.0
    high = 1.0

    def neutral(self, x: Tensor) -> Tensor:
        return image(x, self.channels).new_zeros(len(x), self.size)
