"""The numbers in front of a node's value while a bound is carried back: of the whole value, or of a window of a map."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F


def flat(values: Tensor, lead: int) -> Tensor:
    """All axes after the leading ones as one, also where there is none: a value may be one number for each sample."""
    return values.flatten(lead) if values.ndim > lead else values.unsqueeze(lead)


@dataclass(frozen=True)
class Window:
    """Which part of a map each row sees: from `stride · place + shift` on, along every axis; it may reach outside.

    place: (G, R) number of the place in `grid` where a row began; grid and size: extents of that grid and of the map.
    clean: that the numbers in front of what lies outside are known to be zero. What it composes to behind convolutions is
    CNN-Cert's (Boopathy et al., AAAI 2019, arXiv:1811.12395).
    """

    place: Tensor
    grid: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    shift: tuple[int, ...]
    clean: bool = False

    def outside(self, extent: tuple[int, ...]) -> list[tuple[int, int]]:
        """By how much windows reach beyond the map before and behind, along every axis; negative for room left."""
        return [
            (-shift, shift + (grid - 1) * stride + wide - size)
            for grid, size, stride, shift, wide in zip(
                self.grid, self.size, self.stride, self.shift, extent, strict=True
            )
        ]

    def views(self, values: Tensor, extent: tuple[int, ...]) -> Tensor:
        """All windows (B, places, C, …) of maps (B, C, …), with zeros outside."""
        values = F.pad(values, [each for pair in reversed(self.outside(extent)) for each in pair])
        for axis, (wide, stride) in enumerate(zip(extent, self.stride, strict=True)):
            values = values.unfold(2 + axis, wide, stride)
        axes = len(extent)
        return values.movedim(1, 1 + axes).flatten(1, axes)


@dataclass(frozen=True)
class Front:
    """Linear functions Σ A·value: `a` (G, R, …), R of them for each of G samples.

    owner: numbers of the samples (G,), None for all in their order, or for one group that stands for each of them. With a
    window, A (G, R, C, …) is in front of that part of a map (C, …) only.
    """

    a: Tensor
    owner: Tensor | None = None
    window: Window | None = None

    @property
    def rows(self) -> Tensor:
        """A (G·R, …)."""
        return self.a.flatten(0, 1)

    def back(self, rows: Tensor) -> Front:
        """The same with other numbers (G·R, …)."""
        return replace(self, a=rows.view(*self.a.shape[:2], *rows.shape[1:]))

    def of(self, values: Tensor) -> Tensor:
        """What belongs to the samples (G, …) of values (B, …)."""
        return values if self.owner is None else values[self.owner]

    def pick(self, values: Tensor) -> Tensor:
        """Of values (B, …), or of one row for all, those A is in front of: (G, 1, …), with a window (G, R, …)."""
        if self.window is None:
            return (values if len(values) == 1 else self.of(values))[:, None]
        views = self.window.views(values, self.a.shape[3:])
        place = self.window.place
        if len(values) > 1:
            owner = torch.arange(len(values), device=place.device) if self.owner is None else self.owner
            place = place + owner[:, None] * views.shape[1]
        return views.flatten(0, 1).index_select(0, place.flatten()).unflatten(0, place.shape)

    def total(self, values: Tensor, a: Tensor | None = None) -> Tensor:
        """Σ A·value (G, R) with picked values, for other numbers A of the same shape where given."""
        a = self.a if a is None else a
        if values.shape[1] == 1:
            return torch.matmul(flat(a, 2), flat(values, 2).transpose(1, 2).to(a)).squeeze(-1)
        return flat(a * values, 2).sum(2)

    def of_each(self, samples: int) -> Front:
        """With numbers of its own for every sample, where one group stands for all."""
        a = self.a.expand(samples, *self.a.shape[1:])
        return replace(
            self, a=a, window=self.window and replace(self.window, place=self.window.place.expand(len(a), -1))
        )

    def times(self, values: Tensor) -> Front:
        """In front of what picked values are multiplied with; these are zero outside a map."""
        a = self.a * values
        window = self.window and replace(self.window, place=self.window.place.expand(len(a), -1), clean=True)
        return replace(self, a=a, window=window)

    def clipped(self) -> Front:
        """With zeros in front of what lies outside the map: before, anything may stand there, and what is picked for it must be
        zero for a sum to be right."""
        if self.window is None or self.window.clean:
            return self
        if all(each <= 0 for pair in self.window.outside(self.a.shape[3:]) for each in pair):
            return self
        return self.times(self.pick(self.a.new_ones(1, 1, *self.window.size)))

    def dense(self) -> Front:
        """In front of the whole map."""
        if self.window is None:
            return self
        window, extent, rows = self.window, self.a.shape[3:], self.rows
        margins = [(max(before, 0), max(behind, 0)) for before, behind in window.outside(extent)]
        canvas = [size + before + behind for size, (before, behind) in zip(window.size, margins, strict=True)]
        strides = [prod(canvas[axis + 1 :]) for axis in range(len(canvas))]
        places = torch.unravel_index(window.place.flatten(), window.grid)
        base = sum(
            (place * stride + shift + before) * step
            for place, stride, shift, (before, _), step in zip(
                places, window.stride, window.shift, margins, strides, strict=True
            )
        )
        offsets = torch.zeros(1, dtype=torch.long, device=rows.device)
        for wide, step in zip(extent, strides, strict=True):
            offsets = (offsets[:, None] + torch.arange(wide, device=rows.device) * step).flatten()
        where = (base[:, None] + offsets)[:, None].expand(-1, rows.shape[1], -1)
        whole = rows.new_zeros(len(rows), rows.shape[1], prod(canvas)).scatter(2, where, rows.flatten(2))
        whole = F.pad(whole.unflatten(2, canvas), [-each for pair in reversed(margins) for each in pair])
        return replace(self, window=None).back(whole)

    def __add__(self, other: Front) -> Front:
        """Σ (A + B)·value."""
        one, two = self, other
        if one.window is None or two.window is None or one.window.stride != two.window.stride:
            one, two = one.dense(), two.dense()
        else:
            one, two = aligned(one, two)
        return replace(one, a=one.a + two.a)


def aligned(one: Front, two: Front) -> tuple[Front, Front]:
    """Two windows of the same map, both widened to their common extent."""
    ends = [
        (min(a, b), max(a + wide, b + broad))
        for a, b, wide, broad in zip(one.window.shift, two.window.shift, one.a.shape[3:], two.a.shape[3:], strict=True)
    ]
    clean, shift = one.window.clean and two.window.clean, tuple(low for low, _ in ends)
    found = []
    for front in (one, two):
        pads = [
            (shift - low, high - shift - wide)
            for (low, high), shift, wide in zip(ends, front.window.shift, front.a.shape[3:], strict=True)
        ]
        a = F.pad(front.a, [each for pair in reversed(pads) for each in pair])
        found.append(replace(front, a=a, window=replace(front.window, shift=shift, clean=clean)))
    return found[0], found[1]


def begun(shape: torch.Size, places: Tensor, sign: float, like: Tensor, *, windowed: bool) -> Front:
    """Rows that hold one number of a value each, at places (G, R) of its flattened shape, times a sign."""
    groups, count = places.shape
    if not windowed:
        a = like.new_zeros(groups, count, shape.numel()).scatter_(2, places[..., None], sign)
        return Front(a.view(groups, count, *shape))
    axes, spots = len(shape) - 1, prod(shape[1:])
    a = like.new_zeros(groups, count, shape[0]).scatter_(2, (places // spots)[..., None], sign)
    window = Window(places % spots, tuple(shape[1:]), tuple(shape[1:]), (1,) * axes, (0,) * axes)
    return Front(a.view(groups, count, shape[0], *(1,) * axes), None, window)
