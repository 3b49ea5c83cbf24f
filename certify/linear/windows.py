r"""Rows of numbers in front of a value, carried backwards through linear operations: whole, or as the windows they see.

A number inside a convolution depends on a patch of what lies before it. Its row is kept as that patch; through one more
convolution of stride s, padding p and kernel k a patch of size κ, stride σ and padding π becomes one of size s(κ − 1) + k,
stride sσ and padding sπ + p, so that rows cost what convolutions do.

Reference: Boopathy et al., "CNN-Cert", AAAI 2019, arXiv:1811.12395, equations 3 to 5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from adversarial.threat import Region
from certify.engine.graph import Node

NUMBERS = 2**25  # of the largest tensor of rows: 128 MB in float32
SCALES = frozenset(("mul", "add", "sub", "div"))


class Rows(Protocol):
    """Numbers a in front of a value, for R rows of n samples; what is the same for all samples or places is kept once.

    dot: Σ a·value, (n, …); times: a times a value (n, …) that is not of the rows; part: between two numbers;
    through: in front of an operation's input instead, and what its constants add; reach: the least and the most of Σ a·x
    over a region (n, …).
    """

    def dot(self, value: Tensor) -> Tensor: ...
    def times(self, value: Tensor) -> Rows: ...
    def part(self, low: float | None = None, high: float | None = None) -> Rows: ...
    def through(self, node: Node, shape: torch.Size) -> tuple[Rows, Tensor]: ...
    def reach(self, region: Region) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Whole:
    """Numbers a (n, R, …) in front of all of a value (n, …)."""

    a: Tensor

    def dot(self, value: Tensor) -> Tensor:
        return torch.einsum("...rd,...d->...r", self.a.flatten(2), value.flatten(1))

    def times(self, value: Tensor) -> Whole:
        return Whole(self.a * value.unsqueeze(1))

    def part(self, low: float | None = None, high: float | None = None) -> Whole:
        return Whole(self.a.clamp(low, high))

    def through(self, node: Node, shape: torch.Size) -> tuple[Whole, Tensor]:
        n, rows = self.a.shape[:2]
        constant = self.dot(node.run(self.a.new_zeros(1, *shape)))
        if node.op == "linear":
            return Whole(self.a @ node.args[1]), constant
        layer = convolution(node)
        if layer is not None:
            return Whole(back(self.a.flatten(0, 1), layer, shape).view(n, rows, *shape)), constant
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            zeros = self.a.new_zeros(n * rows, *shape, requires_grad=True)
            (found,) = torch.autograd.grad(node.run(zeros), zeros, self.a.flatten(0, 1), create_graph=differentiable)
        return Whole(found.view(n, rows, *shape)), constant

    def reach(self, region: Region) -> tuple[Tensor, Tensor]:
        if region.norm == "linf":  # the box is the ball
            return spread(self, *region.box())
        rows = self.a.expand(len(region), *self.a.shape[1:])
        count = rows.shape[1]
        limits = (side[:, None].expand(-1, count, -1).flatten(0, 1) for side in (region.low, region.high))
        return ends(self.dot(region.anchor), rows.flatten(0, 1).flatten(1), region, *limits)


@dataclass(frozen=True)
class Windows:
    """Numbers a (n, R, Y, X, c, h, w) in front of what R·Y·X rows see of a value (n, c, H, W).

    The window of place (y, x) begins at (y, x)·stride − padding; n, Y and X are 1 in `a` where all are alike. `clean`:
    whether the numbers in front of what lies outside the value are zero.
    """

    a: Tensor
    places: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    clean: bool = True

    def seen(self, value: Tensor) -> Tensor:
        """What the windows see of a value (n, c, H, W): a view (n, 1, Y, X, c, h, w), zero outside."""
        (up, left), (down, right) = self.padding, self.stride
        wide = F.pad(value, (left, left, up, up))
        found = wide.unfold(2, self.a.shape[-2], down).unfold(3, self.a.shape[-1], right)
        return found[:, :, : self.places[0], : self.places[1]].permute(0, 2, 3, 1, 4, 5).unsqueeze(1)

    def dot(self, value: Tensor) -> Tensor:
        return torch.einsum("...chw,...chw->...", self.a, self.seen(value)).expand(-1, -1, *self.places).flatten(1)

    def times(self, value: Tensor) -> Windows:
        return replace(self, a=self.a * self.seen(value), clean=True)

    def part(self, low: float | None = None, high: float | None = None) -> Windows:
        return replace(self, a=self.a.clamp(low, high))

    def cleaned(self, shape: torch.Size) -> Windows:
        return self if self.clean else self.times(self.a.new_ones(1, *shape))

    def through(self, node: Node, shape: torch.Size) -> tuple[Rows, Tensor]:
        if node.op in SCALES and node.shape == shape:
            shift = node.run(self.a.new_zeros(1, *shape))
            return self.times(node.run(self.a.new_ones(1, *shape)) - shift), self.dot(shift)
        after = self.cleaned(node.shape)
        layer = convolution(node)
        if layer is None:
            return after.whole(node.shape).through(node, shape)
        bias, (down, right) = layer.bias, layer.stride
        stride = (down * self.stride[0], right * self.stride[1])
        padding = (down * self.padding[0] + layer.padding[0], right * self.padding[1] + layer.padding[1])
        found = grown(after.a.flatten(0, 3), layer)
        found = found.view(*after.a.shape[:4], *found.shape[1:])
        rows = Windows(found, self.places, stride, padding, clean=not any(padding))
        constant = after.a.sum((-1, -2)) @ bias if bias is not None else after.a.new_zeros(1, 1, 1, 1)
        constant = constant.expand(-1, after.a.shape[1], *self.places).flatten(1)
        large = found.shape[-3:].numel() > 2 * shape.numel()
        return (rows.whole(shape) if large else rows), constant

    def whole(self, shape: torch.Size) -> Whole:
        """The same rows with all of a value (c, H, W)."""
        a = self.cleaned(shape).a
        a = a.expand(*a.shape[:2], *self.places, *a.shape[4:])
        (up, left), (c, height, width) = self.padding, shape
        size = (c, height + 2 * up, width + 2 * left)
        place = torch.arange(size[0] * size[1] * size[2], device=a.device).view(1, *size)
        unpadded = replace(self, padding=(0, 0), clean=True)
        where = unpadded.seen(place).expand_as(a).flatten(4)
        found = a.new_zeros(*a.shape[:4], place.numel()).scatter(4, where, a.flatten(4))
        found = found.view(len(a), -1, *size)
        return Whole(found[..., up : up + height, left : left + width])

    def reach(self, region: Region) -> tuple[Tensor, Tensor]:
        if region.norm == "linf":
            return spread(self, *region.box())
        rows = self.cleaned(region.anchor.shape[1:])
        many = (len(region), rows.a.shape[1], *self.places, *rows.a.shape[4:])
        limits = (
            self.seen(side.view_as(region.anchor)).expand(many).flatten(0, 3).flatten(1)
            for side in (region.low, region.high)
        )
        return ends(self.dot(region.anchor), rows.a.expand(many).flatten(0, 3).flatten(1), region, *limits)


def rows_of(shape: torch.Size, some: Tensor, like: Tensor) -> Rows:
    """Rows that pick numbers of a value: whole channels of (c, H, W), as windows of one place, else single places."""
    if len(shape) == 3:
        picked = like.new_zeros(len(some), shape[0]).scatter(1, some[:, None], 1.0)
        return Windows(picked.view(1, len(some), 1, 1, shape[0], 1, 1), (shape[1], shape[2]))
    picked = like.new_zeros(len(some), shape.numel()).scatter(1, some[:, None], 1.0)
    return Whole(picked.view(1, len(some), *shape))


class Convolution(NamedTuple):
    """What a convolution that reads zeros outside is made of; its kernel (out, in, h, w)."""

    weight: Tensor
    bias: Tensor | None = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def size(self, height: int, width: int) -> list[int]:
        """How large an image is of which this much comes out, without padding."""
        sides = zip((height, width), self.stride, self.dilation, self.weight.shape[2:], strict=True)
        return [s * (size - 1) + d * (k - 1) + 1 for size, s, d, k in sides]


def convolution(node: Node) -> Convolution | None:
    """The convolution that an operation is."""
    if node.op != "conv2d" or node.kwargs or (len(node.args) > 4 and isinstance(node.args[4], str)):
        return None
    return Convolution(
        *(tuple(each) * (3 - len(each)) if isinstance(each, (list, tuple)) else each for each in node.args[1:])
    )


def back(a: Tensor, layer: Convolution, shape: torch.Size) -> Tensor:
    """Images (n, c, h, w) back through a convolution of images of this shape."""
    weight, _, stride, padding, dilation, groups = layer
    if groups == 1 and weight[0].numel() <= 2 * len(weight):  # few numbers of each place: faster as one product
        columns = weight.flatten(1).T @ a.flatten(2)
        return F.fold(columns, tuple(shape[1:]), tuple(weight.shape[2:]), dilation, padding, stride)
    bare = layer.size(*a.shape[2:])
    left = [size + 2 * p - covered for size, p, covered in zip(shape[1:], padding, bare, strict=True)]
    return F.conv_transpose2d(a, weight, None, stride, padding, left, groups, dilation)


def grown(a: Tensor, layer: Convolution) -> Tensor:
    """Small images (n, c, h, w) back through a convolution without padding: as one matrix, where that costs less."""
    weight, _, stride, _, dilation, groups = layer
    height, width = layer.size(*a.shape[2:])
    if height * width > 8 * weight.shape[2] * weight.shape[3]:
        return F.conv_transpose2d(a, weight, None, stride, 0, 0, groups, dilation)
    each = torch.eye(a[0].numel(), dtype=a.dtype, device=a.device).view(-1, *a.shape[1:])
    matrix = F.conv_transpose2d(each, weight, None, stride, 0, 0, groups, dilation)
    return (a.flatten(1) @ matrix.flatten(1)).view(len(a), *matrix.shape[1:])


def spread(rows: Rows, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the most of Σ a·x in a box."""
    middle = rows.dot((low + high) / 2)
    radius = replace(rows, a=rows.a.abs()).dot((high - low) / 2)
    return middle - radius, middle + radius


def ends(middle: Tensor, a: Tensor, region: Region, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The same in a ball, for rows a (n·R, D) that see anchors which can move from low to high (n·R, D)."""
    eps = region.eps.repeat_interleave(len(a) // len(region))
    seen = Region(region.norm, torch.zeros_like(a), low, high, eps)
    return middle - seen.support(-a).view_as(middle), middle + seen.support(a).view_as(middle)
