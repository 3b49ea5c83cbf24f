"""One rule per kind of operation: its interval, and how a linear lower bound passes through it.

A bound of P rows is held as numbers A (P, …) in front of a node's value: Σ A·value is what is bounded from below. `owner`
(P,) says which sample each row speaks of; what depends on the sample only is (B, …).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from certify.curves import CURVES, Curve
from certify.errors import CertifyError
from certify.graph import Node, Ref

Box = tuple[Tensor, Tensor]
Slopes = tuple[Tensor, Tensor]  # of the lines below and above, for each row or for each sample


class Rule(Protocol):
    """What an operation does to boxes and to linear bounds.

    nonlinear: whether `back` leans on the inputs' boxes; `undecided` says at which places of one of them (B, …) it does.
    """

    nonlinear: bool

    def box(self, node: Node, boxes: list[Box]) -> Box: ...
    def back(
        self, node: Node, a: Tensor, owner: Tensor, boxes: list[Box], slopes: Slopes | None
    ) -> tuple[list[Tensor], Tensor]: ...
    def undecided(self, node: Node, box: Box) -> Tensor: ...


def total(a: Tensor, values: Tensor) -> Tensor:
    """Σ A·value for each row (P,)."""
    return (a * values).flatten(1).sum(1)


class Affine:
    """Everything that is linear in its inputs plus a constant."""

    nonlinear = False

    def __init__(self, absolute: Callable[..., Tensor] | None = None):
        self.absolute = (
            absolute  # the operation with the absolute values of its coefficients; None when none is negative
        )

    def undecided(self, node: Node, box: Box) -> Tensor:
        return torch.zeros_like(box[0], dtype=torch.bool)

    def box(self, node: Node, boxes: list[Box]) -> Box:
        if self.absolute is None:
            return node.run(*(low for low, _ in boxes)), node.run(*(high for _, high in boxes))
        middle = node.run(*((low + high) / 2 for low, high in boxes))
        radius = self.absolute(node, *((high - low) / 2 for low, high in boxes))
        return middle - radius, middle + radius

    def back(
        self, node: Node, a: Tensor, owner: Tensor, boxes: list[Box], slopes: Slopes | None
    ) -> tuple[list[Tensor], Tensor]:
        shapes = [low.shape[1:] for low, _ in boxes]
        with torch.enable_grad():
            zeros = [a.new_zeros(len(a), *shape, requires_grad=True) for shape in shapes]
            found = torch.autograd.grad(node.run(*zeros), zeros, a, create_graph=a.requires_grad)
        with torch.no_grad():
            constant = node.run(*(a.new_zeros(1, *shape) for shape in shapes))
        return list(found), total(a, constant)


def weighted(node: Node, *reach: Tensor) -> Tensor:
    """A product with constants: with their absolute values, and without what is added."""

    def bare(argument: Any) -> Any:
        if torch.is_tensor(argument) and argument.is_floating_point():
            return argument.abs()
        return abs(argument) if isinstance(argument, (int, float)) else argument

    args = [bare(argument) for argument in node.args]
    if node.op in ("linear", "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d"):
        args[2:3] = [None] * len(args[2:3])
    if node.op == "addmm":
        args[0] = torch.zeros_like(args[0])
    return replace(node, args=tuple(args), kwargs={name: bare(value) for name, value in node.kwargs.items()}).run(
        *reach
    )


def added(node: Node, *reach: Tensor) -> Tensor:
    """A sum or difference: everything that is uncertain spreads."""
    factors = [1.0, abs(node.kwargs.get("alpha", 1.0))]
    if node.op == "rsub":
        factors.reverse()
    uncertain = [factor for argument, factor in zip(node.args, factors, strict=False) if isinstance(argument, Ref)]
    return sum(each * factor for each, factor in zip(reach, uncertain, strict=True)).expand(len(reach[0]), *node.shape)


class OneNumber:
    """A function of each number by itself."""

    nonlinear = True

    def curve(self, node: Node) -> Curve:
        return CURVES[node.op](*node.args[1:], **node.kwargs)

    def checked(self, node: Node, box: Box) -> tuple[Curve, Tensor, Tensor]:
        curve = self.curve(node)
        if not bool((box[0] > curve.low).all()):
            raise CertifyError(
                f"expected values above {curve.low:g} where {node.op} is taken in {node.path or 'the model'}, got bounds "
                f"from {float(box[0].min()):g}; the threat is too large for this model's bounds: use a smaller eps, tighter "
                "bounds (CROWN), or smoothing"
            )
        return curve, *box

    def box(self, node: Node, boxes: list[Box]) -> Box:
        curve, low, high = self.checked(node, boxes[0])
        return curve.range(low, high)

    def back(
        self, node: Node, a: Tensor, owner: Tensor, boxes: list[Box], slopes: Slopes | None
    ) -> tuple[list[Tensor], Tensor]:
        curve, low, high = self.checked(node, boxes[0])
        positive, negative = a.clamp(min=0), a.clamp(max=0)
        if slopes is None:  # lines of the sample, then one of them for each row
            lines = [line[owner] for line in self.lines(curve, low, high)]
        else:
            low, high = low[owner], high[owner]
            lines = [slopes[0], curve.intercept(low, high, slopes[0], lower=True)]
            lines += [slopes[1], curve.intercept(low, high, slopes[1], lower=False)]
        below, b, above, c = lines
        return [positive * below + negative * above], total(positive, b) + total(negative, c)

    def undecided(self, node: Node, box: Box) -> Tensor:
        curve, low, high = self.curve(node), *box
        if not curve.straight:
            return high > low
        return torch.stack([(low < knot) & (knot < high) for knot in curve.knots]).any(0)

    @staticmethod
    def lines(curve: Curve, low: Tensor, high: Tensor) -> list[Tensor]:
        """Slope and intercept of the line below, then of the one above."""
        found = []
        for lower in (True, False):
            slope = curve.slope(low, high, lower=lower)
            found += [slope, curve.intercept(low, high, slope, lower=lower)]
        return found


class Product:
    r"""A product of two values, $xy$ or $XY$: between the planes $\bar y x + \bar x y - \bar x\bar y \mp r_x r_y$, with middles
    and radii of both boxes, which is McCormick's bound averaged over its two planes."""

    nonlinear = True

    def undecided(self, node: Node, box: Box) -> Tensor:
        return box[1] > box[0]

    def box(self, node: Node, boxes: list[Box]) -> Box:
        (x, rx), (y, ry) = (((low + high) / 2, (high - low) / 2) for low, high in boxes)
        if node.op == "mul":  # the four corners are exact
            corners = torch.stack([i * j for i in boxes[0] for j in boxes[1]])
            return corners.amin(0), corners.amax(0)
        middle, radius = node.run(x, y), node.run(x.abs(), ry) + node.run(rx, y.abs()) + node.run(rx, ry)
        return middle - radius, middle + radius

    def back(
        self, node: Node, a: Tensor, owner: Tensor, boxes: list[Box], slopes: Slopes | None
    ) -> tuple[list[Tensor], Tensor]:
        (x, rx), (y, ry) = (((low + high) / 2, (high - low) / 2) for low, high in boxes)
        middle, gap = node.run(x, y)[owner], node.run(rx, ry)[owner]
        x, y = x[owner], y[owner]
        with torch.enable_grad():
            points = [x.detach().requires_grad_(), y.detach().requires_grad_()]
            found = torch.autograd.grad(node.run(*points), points, a, create_graph=a.requires_grad)
        return list(found), -total(a, middle) - total(a.abs(), gap)


class Largest:
    """The largest along an axis: CNN-Cert's planes.

    Reference: Boopathy et al., "CNN-Cert", AAAI 2019, arXiv:1811.12395, appendix on max pooling.
    """

    nonlinear = True

    def undecided(self, node: Node, box: Box) -> Tensor:
        return box[1] > box[0]

    def box(self, node: Node, boxes: list[Box]) -> Box:
        return node.run(boxes[0][0]), node.run(boxes[0][1])

    def back(
        self, node: Node, a: Tensor, owner: Tensor, boxes: list[Box], slopes: Slopes | None
    ) -> tuple[list[Tensor], Tensor]:
        dims = node.args[1] if len(node.args) > 1 else list(range(1, boxes[0][0].ndim))
        dims = [dims] if isinstance(dims, int) else list(dims)
        if len(dims) != 1:
            raise CertifyError(
                f"expected a largest value along one axis, got {len(dims)} in {node.path or 'the model'}"
            )
        dim, keep = dims[0], len(node.args) > 2 and node.args[2]
        low, high = boxes[0]
        least, most = low.amax(dim, keepdim=True), high.amax(dim, keepdim=True)
        alive = high >= least
        inverse = torch.where(alive & (high > low), 1 / (high - low).clamp_min(1e-12), 0)
        gamma = ((high * inverse).sum(dim, keepdim=True) - 1) / inverse.sum(dim, keepdim=True).clamp_min(1e-12)
        gamma = torch.minimum(torch.maximum(gamma, least), most)
        weight = ((high - gamma) * inverse).clamp(0, 1)
        above = gamma - (weight * low).sum(dim, keepdim=True)
        lowest = torch.zeros_like(low).scatter(dim, low.argmax(dim, keepdim=True), 1.0)
        wide = a if keep else a.unsqueeze(dim)
        positive, negative = wide.clamp(min=0), wide.clamp(max=0)
        return [positive * lowest[owner] + negative * weight[owner]], total(negative, above[owner])


POSITIVE = (
    "view", "reshape", "_unsafe_view", "transpose", "permute", "unsqueeze", "squeeze", "slice", "select", "split", "chunk", "unbind",
    "split_with_sizes", "expand", "cat", "stack", "flip", "roll", "alias", "clone", "contiguous", "detach", "lift_fresh_copy", "dropout",
    "_to_copy", "to", "mean", "sum", "cumsum", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "_adaptive_avg_pool2d", "constant_pad_nd", "pad", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa",
    "index", "index_select", "gather", "narrow", "pixel_shuffle", "pixel_unshuffle", "t", "diagonal", "where", "flatten", "im2col", "unfold",
)  # fmt: skip
WEIGHTED = ("linear", "addmm", "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d")
PRODUCTS = ("mul", "matmul", "mm", "bmm")
RULES: dict[str, Rule] = (
    {name: Affine() for name in POSITIVE}
    | {name: Affine(weighted) for name in WEIGHTED}
    | {name: Affine(added) for name in ("sub", "rsub", "neg")}
    | {name: OneNumber() for name in CURVES}
    | {"amax": Largest()}
)
SCALED, BILINEAR, SUM, DIFFERENCE = Affine(weighted), Product(), Affine(), Affine(added)


def rule_of(node: Node) -> Rule:
    """The rule of an operation. Raises: CertifyError for one that has none."""
    if node.op in PRODUCTS:
        return SCALED if len(node.inputs) == 1 else BILINEAR
    if node.op == "add":
        return SUM if node.kwargs.get("alpha", 1) >= 0 else DIFFERENCE
    if node.op in RULES and (node.op != "index" or len(node.inputs) == 1):
        return RULES[node.op]
    known = ", ".join(sorted({*RULES, *PRODUCTS, "add"}))
    raise CertifyError(
        f"expected operations with a rule, got {node.op} in {node.path or 'the model'}; known are {known}. Rewrite the module "
        "with these, or use smoothing, which needs no rules"
    )
