"""A global Lipschitz constant from the norms of linear maps and the slopes between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from adversarial.threat import DUAL
from certify.engine.graph import Graph, Node
from certify.engine.operator_norm import LIMIT, NORMS, LinearMap, Norm, conv_norm, norms_of
from certify.engine.rules import rule_of
from certify.lipschitz.segments import Segment, is_anchor, steepest

ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
Constants = dict[Norm, float]  # how much a value can change in each norm for a unit of the input's change


class Product:
    r"""$|g(x) - g(x')| \le L\|x - x'\|_p$ for differences of two logits g: products of norms along every path to them.

    The linear operations between two nonlinear ones are one map (a convolution with its normalisation, a residual sum),
    whose norm is exact where its smaller side has at most 4096 numbers; three constants, one for each norm a layer's
    values can be measured in, are carried and the best way through each map is taken. A convolution
    that is larger has the norm of its torus, everything else that is larger $\sqrt{\|A\|_1\|A\|_\infty}$.

    Reference: Szegedy et al., "Intriguing properties of neural networks", ICLR 2014, arXiv:1312.6199, section 4.3.
    """

    def __init__(self, graph: Graph, norm: Norm, device: torch.device):
        self.graph, self.device = graph, device
        size = graph.nodes[graph.input].shape.numel()
        power = {"linf": 0.0, "l2": 0.5, "l1": 1.0}
        self.known: dict[str, Constants] = {
            graph.input: {other: size ** max(power[other] - power[norm], 0.0) for other in NORMS}
        }
        for name, node in graph.nodes.items():
            if name != graph.input and is_anchor(graph, name):
                steep = 1.0 if node.op == "amax" else max(abs(slope) for slope in steepest(node))
                before = self.before(Segment.to(graph, node.inputs[0]))
                self.known[name] = {other: steep * value for other, value in before.items()}
        last = Segment.to(graph, graph.output)
        self.rows = {anchor: rows_of(last.at(anchor, device)) for anchor in last.anchors}

    def __call__(self, y: int, other: int) -> float:
        """The constant of logit y minus another one."""
        total = 0.0
        for anchor, rows in self.rows.items():
            row = rows[y] - rows[other]
            ways = [float(torch.linalg.vector_norm(row, ORDER[DUAL[n]])) * c for n, c in self.known[anchor].items()]
            total += min(ways) * (1 + 1e-14 * len(row))
        return total

    def before(self, segment: Segment) -> Constants:
        """Constants of what a nonlinear operation takes."""
        if segment.anchors == (segment.end,):
            return self.known[segment.end]
        found = dict.fromkeys(NORMS, 0.0)
        if all(segment.size(anchor) <= LIMIT for anchor in segment.anchors):
            for anchor in segment.anchors:
                norms = norms_of(segment.at(anchor, self.device), [(a, b) for a in NORMS for b in NORMS])
                for out in NORMS:
                    found[out] += min(norms[way, out] * self.known[anchor][way] for way in NORMS)
            return found
        return step_by_step(segment, self.known, self.device)


def rows_of(linear: LinearMap) -> Tensor:
    """The matrix of a map with few outputs."""
    return torch.cat(list(linear.transposed.columns()))


def step_by_step(segment: Segment, known: dict[str, Constants], device: torch.device) -> Constants:
    """Constants at the end of a map too large to be written down: norm by norm, operation after operation."""
    found = {anchor: known[anchor] for anchor in segment.anchors}
    for name in segment.inside:
        node = segment.graph.nodes[name]
        own = [found[other] for other in node.inputs]
        norms = norms_of_node(node, [segment.graph.nodes[other].shape for other in node.inputs], device)
        found[name] = {
            n: sum(norm[n] * constants[n] for norm, constants in zip(norms, own, strict=True)) for n in NORMS
        }
    return found[segment.end]


def norms_of_node(node: Node, shapes: Sequence[torch.Size], device: torch.device) -> list[Constants]:
    r"""Norms of a linear operation in each of its inputs, from its interval: the reach of $[-r, r]$ is $|A|r$."""
    rule, found = rule_of(node), []
    for i, shape in enumerate(shapes):
        reach = [torch.zeros(1, *other, dtype=torch.float64, device=device) for other in shapes]
        reach[i] = torch.ones(1, *shape, dtype=torch.float64, device=device).requires_grad_()
        with torch.enable_grad():
            low, high = rule.box(node, [(-r, r) for r in reach])
            radius = (high - low) / 2
            (columns,) = torch.autograd.grad(radius.sum(), reach[i])
        rounding = 1 + 1e-14 * (columns.numel() + radius.numel())
        row, column = float(radius.detach().amax()) * rounding, float(columns.amax()) * rounding
        found.append({"linf": row, "l1": column, "l2": min(math.sqrt(row * column), convolution(node, shape))})
    return found


def convolution(node: Node, shape: torch.Size) -> float:
    """The spectral norm of a convolution; infinity for anything else."""
    if node.op not in ("conv1d", "conv2d", "conv3d") or any(isinstance(argument, str) for argument in node.args):
        return math.inf
    options = dict(zip(("stride", "padding", "dilation", "groups"), node.args[3:], strict=False)) | {
        key: value for key, value in node.kwargs.items() if key in ("stride", "padding", "dilation", "groups")
    }
    return conv_norm(node.args[1], shape[1:], **options)
