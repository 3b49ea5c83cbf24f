r"""Lower bounds of linear functions of a model's values over a region: intervals forwards, lines backwards.

A function Σ A·value is carried from its node back to the input, each operation replaced by one that lies below and is
linear (`rules`); at the input it is $A\,x_0 + c$ minus how much the region lets it fall.

References: Gowal et al. 2018, arXiv:1810.12715 (intervals); Zhang et al., NeurIPS 2018, arXiv:1811.00866 (CROWN); Xu et al.,
ICLR 2021, arXiv:2011.13824 (slopes that are trained).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from adversarial.threat import Region
from certify.graph import Graph
from certify.rules import Box, Slopes, rule_of, total

NUMBERS = 2**25  # of the largest tensor in front of a node's values: 128 MB in float32


class Bounds:
    """Boxes around what every node of a graph can hold when the input lies in a region.

    `boxes` begins with intervals; `tighten` makes those smaller that other rules lean on.
    """

    def __init__(self, graph: Graph, region: Region):
        self.graph, self.region = graph, region
        self.rules = {name: rule_of(node) for name, node in graph.nodes.items() if name != graph.input}
        self.boxes: dict[str, Box] = {}
        self.curved = frozenset(name for name, rule in self.rules.items() if rule.nonlinear)
        self.widest = max(node.shape.numel() for node in graph.nodes.values())

    def intervals(self) -> Bounds:
        """Boxes by interval arithmetic, never wider than those that are known."""
        for name, node in self.graph.nodes.items():
            if name == self.graph.input:
                found = self.region.box()
            else:
                found = self.rules[name].box(node, [self.boxes[other] for other in node.inputs])
            if name in self.boxes:
                low, high = self.boxes[name]
                found = torch.maximum(low, found[0]), torch.minimum(high, found[1])
            self.boxes[name] = found
        return self

    def tighten(self) -> Bounds:
        """Backward bounds for every box that a nonlinear rule leans on, in the order of the graph."""
        for name in self.wanted():
            self.update(name)
        return self

    def wanted(self) -> list[str]:
        """Nodes, other than the input, whose boxes nonlinear rules lean on."""
        names = {
            other for name, rule in self.rules.items() if rule.nonlinear for other in self.graph.nodes[name].inputs
        }
        return [name for name in self.graph.nodes if name in names and name != self.graph.input]

    @torch.no_grad()
    def update(self, name: str) -> None:
        """The boxes of this node and of those after it, this one bounded backwards where that can matter."""
        low, high = (side.clone() for side in self.boxes[name])
        wanted = self.undecided(name).flatten(1)
        for sign, side in ((1.0, low), (-1.0, high)):
            rows, places = wanted.nonzero(as_tuple=True)
            for some, where in self.portions(rows, places):
                a = low.new_zeros(len(some), wanted.shape[1])
                a[torch.arange(len(some)), where] = sign
                found = self.lower(name, a.view(-1, *low.shape[1:]), some) * sign
                flat = side.flatten(1)
                better = torch.maximum if sign > 0 else torch.minimum
                flat[some, where] = better(flat[some, where], found)
                side.copy_(flat.view_as(side))
        self.boxes[name] = low, torch.maximum(low, high)
        self.forward(name)

    def forward(self, changed: str) -> None:
        """Interval arithmetic anew for what comes after a node."""
        stale = {changed}
        for name, node in self.graph.nodes.items():
            if stale.intersection(node.inputs):
                stale.add(name)
                low, high = self.boxes[name]
                found = self.rules[name].box(node, [self.boxes[other] for other in node.inputs])
                self.boxes[name] = torch.maximum(low, found[0]), torch.minimum(high, found[1])

    def undecided(self, name: str) -> Tensor:
        """Places (B, …) of a node at which a smaller box would change a rule that leans on it."""
        low, high = self.boxes[name]
        found = torch.zeros_like(low, dtype=torch.bool)
        for other, rule in self.rules.items():
            node = self.graph.nodes[other]
            if name in node.inputs and rule.nonlinear:
                found |= rule.undecided(node, (low, high))
        return found

    def portions(self, rows: Tensor, places: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of samples and places, as many at a time as memory holds."""
        size = max(1, NUMBERS // self.widest)
        if not len(rows):
            return
        yield from zip(rows.split(size), places.split(size), strict=True)

    def lower(self, name: str, a: Tensor, owner: Tensor, slopes: dict[str, Slopes] | None = None) -> Tensor:
        """The least (P,) that Σ A·value of a node can be, for rows A (P, …) of samples `owner` (P,).

        `slopes`: of the lines to use at nonlinear nodes instead of those that leave the least area.
        """
        return self.carried(name, a, owner, slopes or {}, frozenset())

    def elided(self, a: Tensor, owner: Tensor) -> Tensor:
        """The same for the logits by intervals, of the values in front of the last linear operations."""
        return self.carried(self.graph.output, a, owner, {}, self.curved)

    def carried(self, name: str, a: Tensor, owner: Tensor, slopes: dict[str, Slopes], stops: frozenset[str]) -> Tensor:
        """A bound carried back to the input, or to the nodes among `stops`, whose boxes are taken."""
        pending = {name: a}
        bound = a.new_zeros(len(a))
        for current in reversed(list(self.graph.nodes)):
            if current not in pending:
                continue
            front, node = pending.pop(current), self.graph.nodes[current]
            if current in stops:
                low, high = (side[owner] for side in self.boxes[current])
                bound = bound + total(front.clamp(min=0), low) + total(front.clamp(max=0), high)
                continue
            if current == self.graph.input:
                bound = bound + self.least(front, owner)
                continue
            boxes = [self.boxes[other] for other in node.inputs]
            passed, constant = self.rules[current].back(node, front, owner, boxes, slopes.get(current))
            bound = bound + constant
            for other, part in zip(node.inputs, passed, strict=True):
                pending[other] = pending[other] + part if other in pending else part
        return bound

    def least(self, a: Tensor, owner: Tensor) -> Tensor:
        """The least that A·x can be in the region (P,)."""
        region = self.region[owner]
        return (a * region.anchor).flatten(1).sum(1) - region.support(-a)
