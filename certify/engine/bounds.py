r"""Lower bounds of linear functions of a model's values over a region: intervals forwards, lines backwards.

A function Σ A·value is carried from its node back to the input, each operation replaced by one that lies below and is
linear (`rules`); at the input it is $A\,x_0 + c$ minus how much the region lets it fall.

References: Gowal et al. 2018, arXiv:1810.12715 (intervals); Zhang et al., NeurIPS 2018, arXiv:1811.00866 (CROWN); Xu et al.,
ICLR 2021, arXiv:2011.13824 (slopes that are trained).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from adversarial.threat import Region
from certify.engine.affine import Box, Convolution, Dense, Pointwise
from certify.engine.coupling import Coupling
from certify.engine.fall import DUAL, least, steepness
from certify.engine.front import Front, begun, flat
from certify.engine.graph import Graph
from certify.engine.nonlinear import Chosen, OneNumber, Product, Slopes, Step
from certify.engine.rules import ONE_EACH, rule_of
from certify.errors import CertifyError

NUMBERS = 2**24  # of the largest tensor in front of a node's values: 64 MB in float32
Bound = Callable[[str, Front], Tensor]


class Bounds:
    """Boxes around what every node of a graph can hold when the input lies in a region.

    `boxes` begins with intervals; `tighten` makes those smaller that other rules lean on.
    """

    def __init__(self, graph: Graph, region: Region):
        self.graph, self.region = graph, region
        self.rules = {name: rule_of(node) for name, node in graph.nodes.items() if name != graph.input}
        self.boxes: dict[str, Box] = {}
        self.relaxed: dict[str, tuple[Tensor, ...]] = {}
        self.still: set[str] = set()  # nodes that hold one known value for each sample
        self.sizes: dict[str, int] = {}
        self.done: set[str] = set()
        self.coupling: Coupling | None = None
        self.curved = frozenset(name for name, rule in self.rules.items() if rule.nonlinear)

    def intervals(self) -> Bounds:
        """Boxes by interval arithmetic, never wider than those that are known."""
        self.narrow(self.graph.input, self.region.box())
        for name in self.rules:
            self.narrow(name, self.interval(name))
        return self

    def __getitem__(self, rows: Tensor) -> Bounds:
        """The same for some of the samples, each as often as it is named."""
        found = Bounds(self.graph, self.region[rows])
        found.boxes = {name: (low[rows], high[rows]) for name, (low, high) in self.boxes.items()}
        found.sizes, found.done, found.still = self.sizes, set(self.done), set(self.still)
        found.coupling = None if self.coupling is None else self.coupling[rows]
        return found

    def interval(self, name: str) -> Box:
        node = self.graph.nodes[name]
        boxes = [self.boxes[other] for other in node.inputs]
        if self.still.issuperset(node.inputs):
            value = node.run(*(low for low, _ in boxes))
            return finite(value, value)
        if not isinstance(self.rules[name], (Chosen, Step)) and not all(low.is_floating_point() for low, _ in boxes):
            raise CertifyError(
                f"expected floating point beside what the threat moves, got {node.op} of whole numbers or truth values in "
                f"{node.path or 'the model'}; cast them first"
            )
        low, high = self.rules[name].box(node, boxes)
        if name in self.first:
            middle, reach = self.first[name]
            low, high = torch.maximum(low, middle - reach), torch.minimum(high, middle + reach)
        return finite(low, high)

    @cached_property
    def first(self) -> dict[str, Box]:
        """Of linear layers on the input itself: their values, and how far an L2 or L1 ball lets each number move."""
        found: dict[str, Box] = {}
        region = self.region
        for name, rule in self.rules.items() if region.norm in DUAL and type(region) is Region else ():
            node = self.graph.nodes[name]
            weight = rule.weight(node) if isinstance(rule, Dense | Convolution) else None
            if weight is not None and self.graph.moved(node.inputs[0]):
                steep = steepness(weight.flatten(1), region.norm)
                wide = (-1,) if isinstance(rule, Dense) else (-1, *(1,) * (weight.ndim - 2))
                with torch.no_grad():
                    middle = self.graph.values(region.anchor, name)[name]
                eps = region.eps.view(-1, *(1,) * (middle.ndim - 1))
                found[name] = middle, (steep.view(wide) * eps).expand_as(middle)
        return found

    def narrow(self, name: str, box: Box) -> None:
        """Keep what both this box and the known one hold; what was made of the old one is dropped."""
        low, high = box
        if name in self.boxes:
            low, high = torch.fmax(low, self.boxes[name][0]), torch.fmin(high, self.boxes[name][1])
            # two that only rounding keeps apart: what lies between them must not count as less than nothing
            low, high = torch.minimum(low, high), torch.maximum(low, high)
        self.boxes[name] = low, high
        known = torch.equal(low[:1], high[:1]) and torch.equal(low, high)  # one sample tells nearly always
        if known and bool(low.isfinite().all()):  # what overflows is not known
            self.still.add(name)
        for other in self.graph.readers[name]:
            self.relaxed.pop(other, None)

    def tighten(self) -> Bounds:
        """Backward bounds for every box that a nonlinear rule leans on, in the order of the graph."""
        for name in self.wanted():
            if name not in self.done:
                self.update(name)
                self.done.add(name)
        return self

    def couple(self) -> Bounds:
        """Use that the numbers of a layer share a ball, where the threat is an L2 or L1 ball."""
        if self.region.norm in ("l2", "l1") and self.coupling is None:
            with torch.no_grad():
                self.coupling = Coupling.of(self.graph, self.region, self.boxes)
            self.done.clear()
        return self

    def wanted(self) -> list[str]:
        """Nodes, other than the input, whose boxes nonlinear rules lean on and intervals do not already have exactly."""
        names = {other for name in self.curved for other in self.graph.nodes[name].inputs}
        plain = self.region.norm == "linf" and type(self.region) is Region
        exact = self.exact() if plain else set()
        return [name for name in self.graph.nodes if name in names and name not in exact]

    def exact(self) -> set[str]:
        """Nodes whose intervals nothing can improve: behind one operation that mixes the numbers of an L∞ box, and no other."""
        single, mixed = {self.graph.input}, set()
        for name, rule in self.rules.items():
            node = self.graph.nodes[name]
            if len(node.inputs) > 1 or rule.nonlinear:
                continue
            keeps = node.op in ONE_EACH or (isinstance(rule, Pointwise) and self.local(name))
            if node.inputs[0] in single:
                (single if keeps else mixed).add(name)
            elif node.inputs[0] in mixed and keeps:
                mixed.add(name)
        return single | mixed

    @torch.no_grad()
    def update(self, name: str, bound: Bound | None = None) -> None:
        """The boxes of this node and of those after it, this one bounded backwards where that can matter.

        bound: what gives the least of rows (G, R) instead of lines that leave the least area.
        """
        self.narrow(name, self.backward(name, bound or self.lower))
        self.forward(name)

    def backward(self, name: str, bound: Bound) -> Box:
        """The box of a node, with bounds of rows (G, R) in front of it where a smaller one would matter."""
        low, high = (flat(side, 1) for side in self.boxes[name])
        shape = self.graph.nodes[name].shape
        wanted = flat(self.undecided(name), 1)
        most = int(wanted.sum(1).max())
        places = wanted.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        size = max(1, NUMBERS // (len(low) * self.size(name)))
        for some in places.split(size, 1) if most else ():
            for sign in (1.0, -1.0):
                found = bound(name, begun(shape, some, sign, self.region.anchor, windowed=self.windowed(name)))
                found = torch.where(found.isnan(), -torch.inf, found) * sign  # what overflowed says nothing
                if sign > 0:
                    low = low.scatter_reduce(1, some, found, "amax")
                else:
                    high = high.scatter_reduce(1, some, found, "amin")
        return low.view(-1, *shape), torch.maximum(low, high).view(-1, *shape)

    def forward(self, changed: str) -> None:
        """Interval arithmetic anew for what comes after a node."""
        stale = {changed}
        for name, node in self.graph.nodes.items():
            if stale.intersection(node.inputs):
                stale.add(name)
                self.narrow(name, self.interval(name))

    def undecided(self, name: str) -> Tensor:
        """Places (B, …) of a node at which a smaller box would change a rule that leans on it."""
        low, high = self.boxes[name]
        found = torch.zeros_like(low, dtype=torch.bool)
        for other in self.graph.readers[name]:
            rest = [each for each in self.graph.nodes[other].inputs if each != name]
            if isinstance(self.rules[other], Product) and rest and self.still.issuperset(rest):
                continue  # a product with what does not move loses nothing
            found |= self.rules[other].undecided(self.graph.nodes[other], (low, high))
        return found

    def windowed(self, name: str) -> bool:
        """Whether rows that begin at this node see windows of maps."""
        while name in self.rules:
            node, rule = self.graph.nodes[name], self.rules[name]
            if not self.local(name):
                return False
            if isinstance(rule, Convolution):
                return True
            name = node.inputs[0]
        return False

    def local(self, name: str) -> bool:
        node = self.graph.nodes[name]
        return self.rules[name].local(node, [self.graph.nodes[other].shape for other in node.inputs])

    def size(self, name: str) -> int:
        """Numbers of the largest tensor that one row from this node needs on its way."""
        if name not in self.sizes:
            seen = [1]
            place = torch.zeros(1, 1, dtype=torch.long, device=self.region.anchor.device)
            front = begun(self.graph.nodes[name].shape, place, 1.0, self.region.anchor, windowed=self.windowed(name))
            with torch.no_grad():
                self.carried(name, replace(front, owner=place[0]), watch=lambda _, a: seen.append(a[0, 0].numel()))
            self.sizes[name] = max(seen)
        return self.sizes[name]

    def numbers(self, rows: int) -> int:
        """Numbers in front of a sample's values when all boxes and so many rows of the logits are bounded at a time, at most."""
        counts = {name: 2 * int(self.undecided(name).flatten(1).sum(1).max()) for name in self.wanted()}
        counts[self.graph.output] = rows
        return sum(count * self.size(name) for name, count in counts.items())

    def lower(self, name: str, front: Front) -> Tensor:
        """The least (G, R) that Σ A·value of a node can be."""
        return self.carried(name, front)

    def elided(self, front: Front) -> Tensor:
        """The same for the logits by intervals, of the values in front of the last linear operations."""
        return self.carried(self.graph.output, front, stops=self.curved)

    def carried(
        self, name: str, front: Front, slopes: Slopes | None = None, stops: frozenset[str] = frozenset(), watch: Callable[[str, Tensor], Any] = lambda name, a: None,
    ) -> Tensor:  # fmt: skip
        """A bound carried back to the input, or to the nodes among `stops`, whose boxes are taken.

        slopes: of the lines to use at activations; `watch` is shown all numbers on the way.
        """
        pending, bound = {name: front}, front.a.new_zeros(front.a.shape[:2])
        for current in reversed(self.graph.nodes):
            if current not in pending:
                continue
            front = pending.pop(current)
            if slopes is not None:
                front, held = slopes.held(current, front)
                bound = bound + held
            watch(current, front.a)
            if current == self.graph.input:
                bound = bound + least(front, self.region)
            elif current in stops or current in self.still:
                low, high = (front.pick(side) for side in self.boxes[current])
                bound = bound + front.total(low, front.a.clamp(min=0)) + front.total(high, front.a.clamp(max=0))
            else:
                front = front if front.window is None or self.local(current) else front.dense()
                node = self.graph.nodes[current]
                passed, constant = self.rules[current].back(node, front, self.planes(current), slopes)
                if self.coupling is not None and isinstance(self.rules[current], OneNumber):
                    constant = self.coupling.better(current, front, passed[0].a, self.planes(current), constant)
                bound = bound + constant
                for other, part in zip(node.inputs, passed, strict=True):
                    pending[other] = pending[other] + part if other in pending else part
        return bound

    def planes(self, name: str) -> tuple[Tensor, ...]:
        """What the rule of a node makes of its inputs' boxes."""
        if name not in self.relaxed:
            node = self.graph.nodes[name]
            self.relaxed[name] = self.rules[name].relax(node, [self.boxes[other] for other in node.inputs])
        return self.relaxed[name]


def finite(low: Tensor, high: Tensor) -> Box:
    """A box that overflowed: what is no number may be any, and beyond the largest number lies more than one."""
    if not low.is_floating_point():
        return low, high
    most = torch.finfo(low.dtype).max
    return low.nan_to_num(-torch.inf, most, -torch.inf), high.nan_to_num(torch.inf, torch.inf, -most)
