"""Where an adversarial example may lie: a threat knows its own geometry, attacks and certifiers only ask it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from adversarial.geometry import PROJECTIONS, norm_of, support_l2
from adversarial.streams import Streams, seed_of

FEW = 16  # coordinates among which an L1 ball is looked for first
Norm = Literal["linf", "l2", "l1", "l0"]
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
SLACK = 1e-5  # inputs outside the bounds by rounding are moved back, by more are refused


class ThreatError(ValueError):
    """An input, a bound or a size that does not fit the others."""


class Threat(Protocol):
    """A set of inputs around each clean one. `around` is all an attack uses; the rest is for people and tests."""

    def around(self, x: Tensor) -> Region: ...


def identity(z: Tensor, rows: Tensor) -> Tensor:
    return z


@dataclass(frozen=True)
class Region:
    """What a threat is around given inputs: a norm ball in the space of its variables z, cut by a box.

    For a `Ball` the variables are the inputs themselves; `apply` turns the variables of some rows into inputs of the
    model. Shapes: anchor (B, …); low and high, how far z may move from the anchor, (B, D); eps (B,).
    """

    norm: Norm
    anchor: Tensor
    low: Tensor
    high: Tensor
    eps: Tensor
    apply: Callable[[Tensor, Tensor], Tensor] = identity

    @cached_property
    def floor(self) -> Tensor:
        """The box's lowest point, like the anchor."""
        return self.anchor + self.low.view_as(self.anchor)

    @cached_property
    def ceiling(self) -> Tensor:
        """The box's highest point, like the anchor."""
        return self.anchor + self.high.view_as(self.anchor)

    def __len__(self) -> int:
        return len(self.anchor)

    def __getitem__(self, rows: Tensor) -> Region:
        """The same around some of the inputs; `apply` still takes their numbers in the whole batch."""
        return replace(self, anchor=self.anchor[rows], low=self.low[rows], high=self.high[rows], eps=self.eps[rows])

    def moved(self, steps: Tensor) -> Tensor:
        """Points at these steps (B, D) from the anchor, pressed into the box: adding rounds."""
        return torch.clamp(self.anchor + steps.view_as(self.anchor), self.floor, self.ceiling)

    def project(self, z: Tensor) -> Tensor:
        """The nearest point of the region to each z."""
        if self.norm == "linf":  # the box is the ball
            return torch.clamp(z, self.floor, self.ceiling)
        return self.moved(PROJECTIONS[self.norm](self.steps(z), self.eps, self.low, self.high))

    def steps(self, z: Tensor) -> Tensor:
        """How far points are from the anchor, (B, D)."""
        return (z - self.anchor).flatten(1)

    def distance(self, z: Tensor) -> Tensor:
        """Norm of the steps (B,)."""
        return norm_of(self.steps(z), self.norm)

    def check_bounded(self) -> None:
        """Raise ThreatError where there is no end to how far an attack of fixed size may go."""
        sizes = (self.low, self.high) if self.norm in ("linf", "l0") else (self.eps,)
        if not all(bool(size.isfinite().all()) for size in sizes):
            raise ThreatError(
                f"expected a finite eps for an attack within a {self.norm} ball, got none; give one, or use an attack that "
                "looks for the nearest example"
            )

    def contains(self, z: Tensor, tol: float = 1e-5) -> Tensor:
        """Whether each point lies in the region (B,), up to `tol` of its size."""
        steps = self.steps(z)
        inside = (steps <= self.high + tol).all(1) & (steps >= self.low - tol).all(1)
        if self.norm == "linf":  # the box is the ball
            return inside
        return inside & (norm_of(steps, self.norm) <= self.eps * (1 + tol) + tol)

    def direction(self, gradient: Tensor) -> Tensor:
        r"""The step of unit norm along which a linear function with this gradient grows most: $\arg\max_{\|d\|\le1} g^Td$.

        Frozen coordinates do not move (linf: they do, and are projected back). For l1 and l0 it is the one steepest coordinate.
        """
        if self.norm == "linf":  # where there is no room the projection takes the step back
            return gradient.sign()
        g = gradient.flatten(1) * ((self.low < 0) | (self.high > 0))
        if self.norm == "l2":
            return (g / g.norm(dim=1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)).view_as(gradient)
        best = g.abs().argmax(1, keepdim=True)
        return torch.zeros_like(g).scatter(1, best, g.gather(1, best).sign()).view_as(gradient)

    def best(self, gradient: Tensor) -> Tensor:
        r"""The point z of the region where a linear function with this gradient is largest, exactly.

        It is the optimum of a linear model's attack. For l2 the scale of $\min(s|g|, room)$ is found by the projection of
        a far point.
        """
        g = gradient.flatten(1)
        limit = torch.where(g >= 0, self.high, -self.low)
        if self.norm == "linf":
            return self.moved(g.sign() * limit)
        if self.norm == "l2":
            far = 1e4 * self.eps[:, None] * g / g.abs().amax(1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
            return self.moved(PROJECTIONS["l2"](far, self.eps, self.low, self.high))
        order = (g.abs() * (limit if self.norm == "l0" else (limit > 0))).argsort(1, descending=True)
        room = limit.gather(1, order)
        if self.norm == "l1":  # fill the steepest coordinates to the brim
            taken = torch.minimum(room, (self.eps[:, None] - room.cumsum(1) + room).clamp_min(0))
        else:
            taken = room * (torch.arange(room.shape[1], device=room.device) < self.eps[:, None])
        return self.moved(torch.zeros_like(g).scatter(1, order, taken) * g.sign())

    def support(self, gradient: Tensor) -> Tensor:
        r"""$\max_z g^T(z - anchor)$ over the region (B,): by how much a linear function can grow, never understated."""
        g = gradient.flatten(1)
        if self.norm == "l2":
            return support_l2(g, self.eps, self.low, self.high)
        limit, size = torch.where(g >= 0, self.high, -self.low), g.abs()
        if self.norm == "linf":
            return (size * limit).sum(1)
        if self.norm == "l0":
            gain = (size * limit).sort(1, descending=True).values
            return (gain * (torch.arange(gain.shape[1], device=g.device) < self.eps[:, None])).sum(1)
        most = min(FEW, size.shape[1])
        while True:
            steepest, order = (size * (limit > 0)).topk(most, dim=1)
            room = limit.gather(1, order)
            if most == size.shape[1] or bool((room.sum(1) >= self.eps).all()):
                taken = torch.minimum(room, (self.eps[:, None] - room.cumsum(1) + room).clamp_min(0))
                return (taken * steepest).sum(1)
            most = min(8 * most, size.shape[1])

    def box(self) -> tuple[Tensor, Tensor]:
        """The smallest box around the region, as points (low, high)."""
        low, high = self.low, self.high
        if self.norm in ("l2", "l1"):
            low, high = torch.maximum(low, -self.eps[:, None]), torch.minimum(high, self.eps[:, None])
        if self.norm == "l0":
            some = (self.eps >= 1)[:, None]
            low, high = low * some, high * some
        return self.anchor + low.view_as(self.anchor), self.anchor + high.view_as(self.anchor)

    def sample(self, streams: Streams, rows: Tensor) -> Tensor:
        """A point of the region for each of these rows of the streams; uniform for linf, then projected for the others.

        l2: a random direction with a radius that is uniform in volume; l1: Laplace numbers, scaled alike (uniform in the
        ball); l0: uniform numbers in `eps` random coordinates. Reference: Barthe et al., Annals of Probability 2005.
        """
        size = self.low.shape[1]
        if self.norm == "linf":
            return self.moved(self.low + (self.high - self.low) * streams.uniform(rows, size).to(self.low.dtype))
        if self.norm == "l0":
            where = streams.uniform(rows, size).argsort(1).argsort(1) < self.eps[:, None]
            value = self.low + (self.high - self.low) * streams.uniform(rows, size).to(self.low.dtype)
            return self.moved(value * where)
        if self.norm == "l2":
            noise = streams.normal(rows, size)
        else:
            half = streams.uniform(rows, size) - 0.5
            noise = -half.sign() * torch.log1p(-(2 * half.abs()).clamp(max=1 - 1e-7))
        radius = streams.uniform(rows, 1).pow(1 / size) * self.eps[:, None]
        length = norm_of(noise, self.norm)[:, None].clamp_min(torch.finfo(noise.dtype).tiny)
        steps = (noise / length * radius).to(self.low.dtype)
        return self.moved(PROJECTIONS[self.norm](steps, self.eps, self.low, self.high))


@dataclass(frozen=True)
class Ball:
    """Inputs within `eps` of the clean one in a norm, inside [low, high].

    `eps` is one number, one per sample (B,), or for "linf" of any shape that broadcasts with the inputs (one bound per
    feature or pixel); for "l0" it counts features; infinity leaves the bounds alone, for attacks that look for the nearest
    example. `low` and `high` are numbers or tensors, None for no bound. Only what
    `mask` (broadcast with the inputs) marks with 1 may change.

    Raises: ThreatError for an eps that is not above zero or does not fit, and for inputs outside the bounds.
    """

    norm: Norm
    eps: float | Tensor
    low: float | Tensor | None = 0.0
    high: float | Tensor | None = 1.0
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.norm not in PROJECTIONS:
            raise ThreatError(f"expected a norm among {', '.join(PROJECTIONS)}, got {self.norm!r}")
        try:
            eps = torch.as_tensor(self.eps, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise ThreatError(f"expected an eps of numbers, got {self.eps!r}") from None
        if not bool((eps >= 0).all()) or not bool((eps > 0).any()):
            got = self.eps if eps.numel() == 1 else f"{eps.numel()} of which one is {float(eps.flatten().min()):g}"
            raise ThreatError(f"expected an eps above 0, got {got}")

    def around(self, x: Tensor) -> Region:
        if not x.is_floating_point():
            raise ThreatError(f"expected inputs of floating point, got {x.dtype}; scale them to the bounds first")
        low, high = self.bound(self.low, x, -torch.inf), self.bound(self.high, x, torch.inf)
        if not bool((low <= high).all()):
            raise ThreatError(f"expected bounds with low <= high, got {self.low} and {self.high}")
        anchor = torch.clamp(x.detach(), low, high)
        if not bool(((x.detach() - anchor).abs() <= SLACK).all()):
            raise self.outside(x, low, high)
        down, up = low - anchor, high - anchor
        eps, rows = self.sizes(x)
        down, up = torch.maximum(down, -eps), torch.minimum(up, eps)
        if self.mask is not None:
            mask = self.like(self.mask, x, "a mask").to(torch.bool)
            down, up = torch.where(mask, down, 0), torch.where(mask, up, 0)
        return Region(self.norm, anchor, down.flatten(1), up.flatten(1), rows)

    def outside(self, x: Tensor, low: Tensor, high: Tensor) -> ThreatError:
        """What to say of inputs that are no numbers or lie beyond the bounds."""
        if not bool(x.isfinite().all()):
            row = int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
            return ThreatError(f"expected finite inputs, got {x[row][~x[row].isfinite()][0].item()} in row {row}")
        beyond = (x < low - SLACK) | (x > high + SLACK)
        row = int(beyond.flatten(1).any(1).nonzero()[0])
        worst = x[row].flatten()[beyond[row].flatten()][0].item()
        return ThreatError(
            f"expected inputs within [{self.low}, {self.high}], got {worst:g} in row {row}; scale them or pass low= and high="
        )

    def bound(self, value: float | Tensor | None, x: Tensor, free: float) -> Tensor:
        """A bound (…) that broadcasts with x."""
        return self.like(torch.as_tensor(free if value is None else value, dtype=x.dtype), x, "bounds")

    def like(self, value: Tensor, x: Tensor, what: str) -> Tensor:
        """A tensor of the shape of x and where x is."""
        found = torch.as_tensor(value, device=x.device)
        try:
            return found.broadcast_to(x.shape)
        except RuntimeError:
            raise ThreatError(
                f"expected {what} to broadcast with inputs {tuple(x.shape)}, got {tuple(found.shape)}"
            ) from None

    def sizes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """How far each feature may move at most, like x, and eps for each sample (B,)."""
        eps = torch.as_tensor(self.eps, dtype=x.dtype, device=x.device)
        if eps.ndim == 0 or (eps.shape == (len(x),) and x.ndim > 1) or eps.shape == (len(x),):
            rows = eps.expand(len(x))
            wide = rows.view(-1, *(1,) * (x.ndim - 1)).expand_as(x)
            return (torch.full_like(x, torch.inf) if self.norm == "l0" else wide), rows
        if self.norm != "linf":
            raise ThreatError(
                f"expected one eps, or one for each of {len(x)} samples, for {self.norm}, got {tuple(eps.shape)}"
            )
        wide = self.like(eps, x, "an eps")
        return wide, wide.flatten(1).amax(1)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The nearest point of the threat around x to each x_adv."""
        return self.around(x).project(x_adv)

    def contains(self, x_adv: Tensor, x: Tensor, tol: float = 1e-5) -> Tensor:
        """Whether x_adv lies in the threat around x (B,)."""
        return self.around(x).contains(x_adv, tol)

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A random point of the threat around each x."""
        return self.around(x).sample(Streams(x, seed_of(generator)), torch.arange(len(x), device=x.device))

    def scaled(self, factor: float) -> Ball:
        """The same with eps times `factor`."""
        return replace(self, eps=self.eps * factor)


ANYWHERE: dict[Norm, Ball] = {
    norm: Ball(norm, float("inf")) for norm in PROJECTIONS
}  # as near as possible within [0, 1]
