"""A graph as nonlinear operations with linear maps between them, in double precision."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from certify.engine.curves import Curve
from certify.engine.graph import Graph, Node
from certify.engine.operator_norm import LIMIT, LinearMap
from certify.engine.rules import OneNumber, rule_of
from certify.errors import CertifyError

FAR, STEEPEST = 1e30, 1e6  # slopes are looked at up to there, and above the second a curve counts as unbounded


def doubled(graph: Graph) -> Graph:
    """The same graph with weights in double precision."""

    def double(argument: Any) -> Any:
        if torch.is_tensor(argument):
            return argument.double() if argument.is_floating_point() else argument
        if isinstance(argument, (list, tuple)):
            return type(argument)(double(each) for each in argument)
        return argument

    nodes = {
        name: replace(node, args=double(node.args), kwargs={key: double(v) for key, v in node.kwargs.items()})
        for name, node in graph.nodes.items()
    }
    return replace(graph, nodes=nodes)


def is_anchor(graph: Graph, name: str) -> bool:
    """Whether a node is where a linear map begins: the input, or something nonlinear."""
    return name == graph.input or rule_of(graph.nodes[name]).nonlinear


@dataclass(frozen=True)
class Segment:
    """The linear map (with a constant) from anchors to a node."""

    graph: Graph
    end: str
    inside: tuple[str, ...]
    anchors: tuple[str, ...]

    @classmethod
    def to(cls, graph: Graph, end: str) -> Segment:
        """What leads to a node from the nearest anchors."""
        wanted, inside, anchors = {end}, [], []
        for name in reversed(list(graph.nodes)):
            if name in wanted:
                if is_anchor(graph, name):
                    anchors.append(name)
                else:
                    inside.append(name)
                    wanted.update(graph.nodes[name].inputs)
        return cls(graph, end, tuple(reversed(inside)), tuple(reversed(anchors)))

    def size(self, anchor: str) -> int:
        """Of the smaller side of the map from an anchor."""
        return min(self.graph.nodes[name].shape.numel() for name in (anchor, self.end))

    def at(self, anchor: str, device: torch.device) -> LinearMap:
        """The map from one anchor, all others held at zero."""

        def function(value: Tensor) -> Tensor:
            found = {other: value.new_zeros(len(value), *self.graph.nodes[other].shape) for other in self.anchors}
            found[anchor] = value
            for name in self.inside:
                node = self.graph.nodes[name]
                found[name] = node.run(*(found[other] for other in node.inputs))
            return found[self.end]

        return LinearMap.of_function(function, self.graph.nodes[anchor].shape, device)


def curve_of(node: Node) -> Curve:
    """What a node does to each number. Raises: CertifyError for an operation that does something else."""
    rule = rule_of(node)
    if not isinstance(rule, OneNumber):
        raise CertifyError(
            f"expected linear operations and functions of one number, got {node.op} in {node.path or 'the model'}; it has no "
            "such Lipschitz bound: use CROWN or smoothing"
        )
    return rule.curve(node)


def slopes(curve: Curve, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest slope of a curve on [low, high].

    On a piece that bends one way the slope is monotone, so its ends are enough; the middle speaks for straight ones, whose
    derivative at a knot may be the neighbour's.
    """
    least, most = torch.full_like(low, math.inf), torch.full_like(low, -math.inf)
    for start, end in curve.pieces():
        a, b = low.clamp(max(start, -FAR), min(end, FAR)), high.clamp(max(start, -FAR), min(end, FAR))
        there = (low <= end) & (high >= start)
        for place in (a, b, (a + b) / 2):
            slope = curve.df(place)
            least = torch.where(there, torch.minimum(least, slope), least)
            most = torch.where(there, torch.maximum(most, slope), most)
    return least, most


def steepest(node: Node) -> tuple[float, float]:
    """The smallest and the largest slope a node has anywhere. Raises: CertifyError where there is none."""
    curve = curve_of(node)
    least, most = slopes(curve, *(torch.tensor([side], dtype=torch.float64) for side in (max(curve.low, -FAR), FAR)))
    found = float(least), float(most)
    if not all(math.isfinite(slope) and abs(slope) < STEEPEST for slope in found):
        raise CertifyError(
            f"expected functions with a largest slope, got {node.op} in {node.path or 'the model'}; it has a bound within a region "
            'only: use method="local" or CROWN'
        )
    return found


@dataclass(frozen=True)
class Chain:
    """A network of linear layers and functions of one number, one after the other.

    weights: matrices (out, in), one more than there are slopes; slopes: least and largest of the function after each.
    """

    weights: list[Tensor]
    slopes: list[tuple[float, float]]


def chain(graph: Graph, device: torch.device) -> Chain:
    """A graph (in double precision) as a chain. Raises: CertifyError for one that branches or is too wide for dense matrices."""
    weights, found, end = [], [], graph.output
    while True:
        segment = Segment.to(graph, end)
        if len(segment.anchors) != 1:
            raise CertifyError(
                f"expected layers one after the other, got {len(segment.anchors)} that lead to {end}; for residual networks use "
                'method="product" or "local"'
            )
        anchor = segment.anchors[0]
        sizes = [graph.nodes[name].shape.numel() for name in (anchor, end)]
        if max(sizes) > LIMIT:
            raise CertifyError(
                f'expected layers of at most {LIMIT} numbers, got one of {max(sizes)}; use method="product"'
            )
        weights.append(torch.cat(list(segment.at(anchor, device).columns())).T)
        if anchor == graph.input:
            return Chain(weights[::-1], found[::-1])
        found.append(steepest(graph.nodes[anchor]))
        end = graph.nodes[anchor].inputs[0]
