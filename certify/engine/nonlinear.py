"""Rules of operations that are not linear: the planes between which they lie on a box."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from certify.engine.affine import Box
from certify.engine.curves import CURVES, Curve
from certify.engine.front import Front
from certify.engine.graph import Node
from certify.errors import CertifyError


class Slopes(Protocol):
    """What a bound may be trained by."""

    def of(self, node: Node, curve: Curve, lines: tuple[Tensor, ...], rows: int) -> tuple[Tensor, Tensor]:
        """Slopes (G, rows, …) of the lines below and above an activation, given those of least area and the box."""
        ...

    def held(self, name: str, front: Front) -> tuple[Front, Tensor | float]:
        """What is in front of a node with what is known of its value besides its box, and a constant."""
        ...


@dataclass(frozen=True)
class OneNumber:
    """A function of each number by itself, between lines of least area or of chosen slopes."""

    choose: Callable[[Curve, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    nonlinear: ClassVar[bool] = True

    def local(self, node: Node, shapes: list[torch.Size]) -> bool:
        return True

    def curve(self, node: Node) -> Curve:
        return CURVES[node.op](*node.args[1:], **node.kwargs)

    def checked(self, node: Node, box: Box) -> tuple[Curve, Tensor, Tensor]:
        curve = self.curve(node)
        if curve.low > -math.inf and not bool((box[0] > curve.low).all()):
            raise CertifyError(
                f"expected values above {curve.low:g} where {node.op} is taken in {node.path or 'the model'}, got bounds "
                f"from {float(box[0].min()):g}; the threat is too large for this model's bounds: use a smaller eps, tighter "
                "bounds (CROWN), or smoothing"
            )
        return curve, *box

    def box(self, node: Node, boxes: list[Box]) -> Box:
        curve, low, high = self.checked(node, boxes[0])
        return curve.range(low, high)

    def undecided(self, node: Node, box: Box) -> Tensor:
        curve, low, high = self.curve(node), *box
        if not curve.straight:
            return high > low
        if not curve.knots:
            return torch.zeros_like(low, dtype=torch.bool)
        return torch.stack([~((low >= knot) | (high <= knot)) for knot in curve.knots]).any(0)

    def relax(self, node: Node, boxes: list[Box]) -> tuple[Tensor, ...]:
        """Slope and intercept of the line below, then of the one above; then the box."""
        curve, low, high = self.checked(node, boxes[0])
        if self.choose is None:
            return *curve.lines(low, high), low, high
        below, above = self.choose(curve, low, high)
        b, c = curve.intercept(low, high, below, lower=True), curve.intercept(low, high, above, lower=False)
        return below, b, above, c, low, high

    def back(
        self, node: Node, front: Front, relaxed: tuple[Tensor, ...], slopes: Slopes | None = None
    ) -> tuple[list[Front], Tensor]:
        if slopes is not None:
            front = front.clipped()
            curve, picked = self.curve(node), tuple(front.pick(each) for each in relaxed)
            below, above = slopes.of(node, curve, picked, front.a.shape[1])
            b = curve.intercept(*picked[4:], below, lower=True)
            c = picked[3] if above is picked[2] else curve.intercept(*picked[4:], above, lower=False)
            positive, negative = front.a.clamp(min=0), front.a.clamp(max=0)
            passed = positive * below + negative * above
            return [replace(front, a=passed)], front.total(b, positive) + front.total(c, negative)
        below, b, above, c = relaxed[:4]
        passed = front.times(torch.where(front.a > 0, front.pick(below), front.pick(above)))
        constant = front.a.new_zeros(1, 1)
        for line, side in ((b, {"min": 0}), (c, {"max": 0})):
            if bool(line.any()):
                constant = constant + front.total(front.pick(line), front.a.clamp(**side))
        return [passed], constant


class Planes:
    """What rules share that take no windows, and whose planes a smaller box always changes."""

    nonlinear = True

    def local(self, node: Node, shapes: list[torch.Size]) -> bool:
        return False

    def undecided(self, node: Node, box: Box) -> Tensor:
        return box[1] > box[0]


class Product(Planes):
    r"""A product of two values, $xy$ or $XY$: between the planes $\bar y x + \bar x y - \bar x\bar y \mp r_x r_y$, with middles
    and radii of both boxes, which is McCormick's bound averaged over its two planes."""

    def box(self, node: Node, boxes: list[Box]) -> Box:
        (x, rx), (y, ry) = (((low + high) / 2, (high - low) / 2) for low, high in boxes)
        if node.op == "mul":  # the four corners are exact
            corners = torch.stack([i * j for i in boxes[0] for j in boxes[1]])
            return corners.amin(0), corners.amax(0)
        middle, radius = node.run(x, y), node.run(x.abs(), ry) + node.run(rx, y.abs()) + node.run(rx, ry)
        return middle - radius, middle + radius

    def relax(self, node: Node, boxes: list[Box]) -> tuple[Tensor, ...]:
        (x, rx), (y, ry) = (((low + high) / 2, (high - low) / 2) for low, high in boxes)
        return x, y, node.run(x, y), node.run(rx, ry)

    def back(
        self, node: Node, front: Front, relaxed: tuple[Tensor, ...], slopes: Slopes | None = None
    ) -> tuple[list[Front], Tensor]:
        x, y, middle, gap = relaxed
        count = front.a.shape[1]
        with torch.enable_grad():
            points = [front.of(each).detach().repeat_interleave(count, 0).requires_grad_() for each in (x, y)]
            found = torch.autograd.grad(node.run(*points), points, front.rows, create_graph=front.a.requires_grad)
        constant = -front.total(front.pick(middle)) - front.total(front.pick(gap), front.a.abs())
        return [front.back(rows) for rows in found], constant


class Largest(Planes):
    """The largest along an axis: CNN-Cert's planes.

    Reference: Boopathy et al., "CNN-Cert", AAAI 2019, arXiv:1811.12395, appendix on max pooling.
    """

    def box(self, node: Node, boxes: list[Box]) -> Box:
        return node.run(boxes[0][0]), node.run(boxes[0][1])

    def relax(self, node: Node, boxes: list[Box]) -> tuple[Tensor, ...]:
        """Weights of the plane below, weights and constant of the one above."""
        low, high = boxes[0]
        dim, _ = axis(node, low.ndim)
        least, most = low.amax(dim, keepdim=True), high.amax(dim, keepdim=True)
        alive, wide = high >= least, high - low
        inverse = torch.where(alive & (wide > 0), 1 / wide, 0)
        gamma = ((high * inverse).sum(dim, keepdim=True) - 1) / inverse.sum(dim, keepdim=True)
        gamma = torch.where(wide.isfinite().all(dim, keepdim=True), gamma, most)  # what overflows has no weight
        gamma = torch.minimum(torch.maximum(gamma, least), most)
        weight = ((high - gamma) * inverse).clamp(0, 1)
        lowest = torch.zeros_like(low).scatter(dim, low.argmax(dim, keepdim=True), 1.0)
        return lowest, weight, (gamma - (weight * low).sum(dim, keepdim=True))

    def back(
        self, node: Node, front: Front, relaxed: tuple[Tensor, ...], slopes: Slopes | None = None
    ) -> tuple[list[Front], Tensor]:
        lowest, weight, above = (front.pick(each) for each in relaxed)
        dim, keep = axis(node, relaxed[0].ndim)
        wide = front.a if keep else front.a.unsqueeze(dim + 1)
        negative = wide.clamp(max=0)
        passed = wide.clamp(min=0) * lowest + negative * weight
        return [replace(front, a=passed)], front.total(above, negative)


class Step(Planes):
    """What jumps has no bound but at values that the threat leaves as they are, where it is a constant (`Bounds.interval`)."""

    def box(self, node: Node, boxes: list[Box]) -> Box:
        raise CertifyError(
            f"expected a threat that leaves the values as they are of which {node.op} is taken in {node.path or 'the model'}, got "
            "one that moves them; a jump has no bound: keep them out of the threat with its mask, or use smoothing"
        )

    def relax(self, node: Node, boxes: list[Box]) -> tuple[Tensor, ...]:
        return ()

    def back(
        self, node: Node, front: Front, relaxed: tuple[Tensor, ...], slopes: Slopes | None = None
    ) -> tuple[list[Front], Tensor]:
        raise CertifyError(f"expected {node.op} of values that are known, got it in a bound of what moves")


class Chosen(Planes):
    """One value or another, by a condition that the threat leaves as it is, for each sample its own."""

    def undecided(self, node: Node, box: Box) -> Tensor:
        return torch.zeros_like(box[0], dtype=torch.bool)  # the condition is known: linear in the values

    def box(self, node: Node, boxes: list[Box]) -> Box:
        return node.run(*(low for low, _ in boxes)), node.run(*(high for _, high in boxes))

    def relax(self, node: Node, boxes: list[Box]) -> tuple[Tensor, ...]:
        """The condition and zeros of each value; then what is chosen where the values are zero."""
        still = boxes[0][0], *(torch.zeros_like(low) for low, _ in boxes[1:])
        return *still, node.run(*still)

    def back(
        self, node: Node, front: Front, relaxed: tuple[Tensor, ...], slopes: Slopes | None = None
    ) -> tuple[list[Front], Tensor]:
        chosen, *zeros, constant = relaxed
        with torch.enable_grad():
            places = [front.of(each).repeat_interleave(front.a.shape[1], 0).requires_grad_() for each in zeros]
            by = front.of(chosen).repeat_interleave(front.a.shape[1], 0)
            found = torch.autograd.grad(node.run(by, *places), places, front.rows, create_graph=front.a.requires_grad)
        nothing = replace(front, a=front.a.new_zeros(*front.a.shape[:2], *chosen.shape[1:]))
        return [nothing, *map(front.back, found)], front.total(front.pick(constant))


def axis(node: Node, ndim: int) -> tuple[int, bool]:
    """The axis along which the largest value is taken, and whether it stays. Raises: CertifyError for several."""
    dims = node.args[1] if len(node.args) > 1 else list(range(1, ndim))
    dims = [dims] if isinstance(dims, int) else list(dims)
    if len(dims) != 1:
        raise CertifyError(f"expected a largest value along one axis, got {len(dims)} in {node.path or 'the model'}")
    return dims[0] % ndim, bool(len(node.args) > 2 and node.args[2])
