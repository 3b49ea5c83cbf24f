"""Rules of operations that are linear in their inputs plus a constant: nothing is lost but correlations in intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from certify.engine.front import Front, Window
from certify.engine.graph import Node, Ref

Box = tuple[Tensor, Tensor]
Absolute = Callable[..., Tensor]
NUMBERS = 2**20  # of a matrix that stands for a convolution of windows: 4 MB
SPOTS = 8  # for each of the kernel's, that a window has where the matrix still costs less than the convolution


class Affine:
    """Any of them, its adjoint by automatic differentiation."""

    nonlinear = False

    def __init__(self, absolute: Absolute | None = None):
        # the operation with the absolute values of its coefficients; None when none is negative
        self.absolute = absolute

    def undecided(self, node: Node, box: Box) -> Tensor:
        return torch.zeros_like(box[0], dtype=torch.bool)

    def local(self, node: Node, shapes: list[torch.Size]) -> bool:
        return False

    def box(self, node: Node, boxes: list[Box]) -> Box:
        if self.absolute is None:
            return node.run(*(low for low, _ in boxes)), node.run(*(high for _, high in boxes))
        middle = node.run(*((low + high) / 2 for low, high in boxes))
        radius = self.absolute(node, *((high - low) / 2 for low, high in boxes))
        return middle - radius, middle + radius

    def relax(self, node: Node, boxes: list[Box]) -> tuple[Tensor, ...]:
        """One row of zeros of each input, and what the operation makes of them."""
        zeros = [torch.zeros_like(low[:1]) for low, _ in boxes]
        return *zeros, node.run(*zeros)

    def back(
        self, node: Node, front: Front, relaxed: tuple[Tensor, ...], slopes: Any = None
    ) -> tuple[list[Front], Tensor]:
        *zeros, constant = relaxed
        trained = torch.is_grad_enabled()  # by the numbers in front, or by the weights
        with torch.enable_grad():
            places = [zero.expand(len(front.rows), *zero.shape[1:]).clone().requires_grad_() for zero in zeros]
            found = torch.autograd.grad(node.run(*places), places, front.rows, create_graph=trained)
        return [front.back(rows) for rows in found], front.total(front.pick(constant))


class Pointwise(Affine):
    """A sum, difference or product with constants, number by number where nothing is spread over an axis."""

    def local(self, node: Node, shapes: list[torch.Size]) -> bool:
        return all(shape == node.shape for shape in shapes)

    def relax(self, node: Node, boxes: list[Box]) -> tuple[Tensor, ...]:
        *zeros, constant = super().relax(node, boxes)
        if not self.local(node, [zero.shape[1:] for zero in zeros]):
            return *zeros, constant
        trained = torch.is_grad_enabled()
        with torch.enable_grad():
            places = [zero.clone().requires_grad_() for zero in zeros]
            factors = torch.autograd.grad(node.run(*places).sum(), places, create_graph=trained)
        return *factors, constant

    def back(
        self, node: Node, front: Front, relaxed: tuple[Tensor, ...], slopes: Any = None
    ) -> tuple[list[Front], Tensor]:
        *factors, constant = relaxed
        if not self.local(node, [factor.shape[1:] for factor in factors]):
            return super().back(node, front, relaxed)
        passed = [front if bool((f == 1).all()) else replace(front, a=front.a * front.pick(f)) for f in factors]
        return passed, front.total(front.pick(constant)) if bool(constant.any()) else front.a.new_zeros(1, 1)


class Dense(Affine):
    """x Wᵀ + b along the last axis."""

    def weight(self, node: Node) -> Tensor | None:
        """W (out, in), None for one row, which leaves one number of each sample."""
        return node.args[1] if node.args[1].ndim == 2 else None

    def back(
        self, node: Node, front: Front, relaxed: tuple[Tensor, ...], slopes: Any = None
    ) -> tuple[list[Front], Tensor]:
        weight = self.weight(node)
        if weight is None:
            return super().back(node, front, relaxed)
        return [replace(front, a=front.a @ weight)], front.total(front.pick(relaxed[-1]))


class Convolution(Affine):
    """A convolution; a window stays one."""

    def local(self, node: Node, shapes: list[torch.Size]) -> bool:
        return settings(node) is not None

    def weight(self, node: Node) -> Tensor | None:
        """W (out, in / groups, …), None for a convolution without that form."""
        found = settings(node)
        return None if found is None else found[0]

    def back(
        self, node: Node, front: Front, relaxed: tuple[Tensor, ...], slopes: Any = None
    ) -> tuple[list[Front], Tensor]:
        found = settings(node)
        if found is None:
            return super().back(node, front, relaxed)
        weight, stride, padding, dilation, groups = found
        front, axes, size = front.clipped(), weight.ndim - 2, relaxed[0].shape[2:]
        constant = front.total(front.pick(relaxed[-1])) if bool(relaxed[-1].any()) else front.a.new_zeros(1, 1)
        turned = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
        if front.window is not None:
            few = SPOTS * weight[0, 0].numel()
            rows = unrolled(front.rows, lambda a: turned(a, weight, None, stride, 0, 0, groups, dilation), few)
            window = Window(
                front.window.place,
                front.window.grid,
                tuple(size),
                tuple(old * s for old, s in zip(front.window.stride, stride, strict=True)),
                tuple(old * s - p for old, s, p in zip(front.window.shift, stride, padding, strict=True)),
            )
            passed = replace(front.back(rows), window=window)
            whole = all(wide >= full for wide, full in zip(rows.shape[2:], size, strict=True))
            return [passed.dense() if whole else passed], constant
        missing = [
            full - ((wide - 1) * s - 2 * p + d * (k - 1) + 1)
            for full, wide, s, p, d, k in zip(
                size, front.a.shape[3:], stride, padding, dilation, weight.shape[2:], strict=True
            )
        ]
        return [front.back(turned(front.rows, weight, None, stride, padding, missing, groups, dilation))], constant


def unrolled(rows: Tensor, linear: Callable[[Tensor], Tensor], spots: int) -> Tensor:
    """A linear map of small maps (N, C, …) as one product with its matrix, where there are many of them and it is small, to
    maps of so many spots at most."""
    inputs = rows[0].numel()
    if len(rows) <= inputs:
        return linear(rows)
    unit = torch.eye(inputs, dtype=rows.dtype, device=rows.device).view(inputs, *rows.shape[1:])
    shape = linear(unit[:1]).shape[1:]
    if inputs * shape.numel() > NUMBERS or shape[1:].numel() > spots:
        return linear(rows)
    return (rows.flatten(1) @ linear(unit).flatten(1)).view(len(rows), *shape)


def settings(node: Node) -> tuple[Tensor, list[int], list[int], list[int], int] | None:
    """Weight, stride, padding, dilation and groups of a convolution; None for one that has no such form."""
    names = ("weight", "bias", "stride", "padding", "dilation", "groups")
    if node.op == "convolution":
        names = ("weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups")
    given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    weight, padding = given["weight"], given.get("padding", 0)
    if not torch.is_tensor(weight) or isinstance(padding, str) or given.get("transposed"):
        return None
    axes = weight.ndim - 2

    def each(value: Any) -> list[int]:
        values = [value] if isinstance(value, int) else list(value)
        return values * axes if len(values) == 1 else values

    return weight, each(given.get("stride", 1)), each(padding), each(given.get("dilation", 1)), given.get("groups", 1)


def weighted(node: Node, *reach: Tensor) -> Tensor:
    """A product with constants: with their absolute values, and without what is added."""
    return node.absolute.run(*reach)


def added(node: Node, *reach: Tensor) -> Tensor:
    """A sum or difference: everything that is uncertain spreads."""
    alpha = node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1.0)  # beside a number it is no keyword
    factors = [1.0, abs(alpha)]
    if node.op == "rsub":
        factors.reverse()
    uncertain = [factor for argument, factor in zip(node.args, factors, strict=False) if isinstance(argument, Ref)]
    return sum(each * factor for each, factor in zip(reach, uncertain, strict=True)).expand(len(reach[0]), *node.shape)
