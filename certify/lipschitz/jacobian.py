"""How steep differences of logits can be within a region: intervals of the gradient, from the logits back to the input."""

from __future__ import annotations

import torch
from torch import Tensor

from certify.engine.bounds import Bounds
from certify.engine.graph import Node
from certify.engine.rules import Rule
from certify.lipschitz.segments import curve_of, slopes

Interval = tuple[Tensor, Tensor]  # middle and radius


@torch.no_grad()
def gradients(bounds: Bounds, a: Tensor, owner: Tensor) -> Tensor:
    r"""Upper bounds (P, …) of $|\partial (A\,logits) / \partial x|$ at every point of the region, for rows A (P, classes) of
    samples `owner` (P,).

    Slopes lie where the boxes in front of them leave room; what is known of them is multiplied in intervals and carried
    through $A^T$ and $|A|^T$. The largest along an axis has weights between 0 and 1 that sum to 1.

    Reference: the interval form of Zhang, Zhang & Hsieh, "RecurJac", AAAI 2019, arXiv:1810.11783; also Fast-Lip in Weng et
    al., ICML 2018, arXiv:1804.09699.
    """
    graph = bounds.graph
    pending: dict[str, Interval] = {graph.output: (a, torch.zeros_like(a))}
    for name in reversed(list(graph.nodes)):
        if name == graph.input or name not in pending:
            continue
        node, (middle, radius) = graph.nodes[name], pending.pop(name)
        boxes = [bounds.boxes[other] for other in node.inputs]
        for other, (m, r) in zip(
            node.inputs, back(bounds.rules[name], node, middle, radius, boxes, owner), strict=True
        ):
            old = pending.get(other)
            pending[other] = (m, r) if old is None else (old[0] + m, old[1] + r)
    middle, radius = pending[graph.input]
    return (middle.abs() + radius) * (1 + 1e-12)


def back(
    rule: Rule, node: Node, middle: Tensor, radius: Tensor, boxes: list[Interval], owner: Tensor
) -> list[Interval]:
    """Intervals of the gradient in front of a node."""
    if not rule.nonlinear:
        return linear(rule, node, middle, radius, boxes)
    if node.op == "amax":
        dim = node.args[1] if isinstance(node.args[1], int) else node.args[1][0]
        kept = len(node.args) > 2 and node.args[2]
        if not kept:
            middle, radius = middle.unsqueeze(dim), radius.unsqueeze(dim)
        least, most = winners(*boxes[0], dim)
    else:
        least, most = slopes(curve_of(node), *boxes[0])
    ends = [(middle + sign * radius) * slope[owner] for sign in (-1, 1) for slope in (least, most)]
    low, high = torch.stack(ends).aminmax(dim=0)
    return [((low + high) / 2, (high - low) / 2)]


def winners(low: Tensor, high: Tensor, dim: int) -> Interval:
    """How much of the largest value each one can be: all where it beats the others, nothing where one beats it."""
    two = high.topk(min(2, high.shape[dim]), dim).values
    first, second = two.narrow(dim, 0, 1), two.narrow(dim, two.shape[dim] - 1, 1)
    rival = torch.where(high == first, second, first)
    alone = low > rival if high.shape[dim] > 1 else torch.ones_like(low, dtype=torch.bool)
    return alone.to(low), (high >= low.amax(dim, keepdim=True)).to(low)


def linear(rule: Rule, node: Node, middle: Tensor, radius: Tensor, boxes: list[Interval]) -> list[Interval]:
    """Through the adjoint of an operation, and through that of its absolute values for the radius."""
    zeros = [middle.new_zeros(len(middle), *low.shape[1:]) for low, _ in boxes]
    with torch.enable_grad():
        points = [zero.clone().requires_grad_() for zero in zeros]
        middles = torch.autograd.grad(node.run(*points), points, middle)
        reach = [zero.clone().requires_grad_() for zero in zeros]
        low, high = rule.box(node, [(-r, r) for r in reach])
        radii = torch.autograd.grad((high - low) / 2, reach, radius)
    return list(zip(middles, radii, strict=True))
