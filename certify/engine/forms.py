r"""Affine forms carried forwards: every value as a centre, a linear function of a few shared symbols, and a remainder of its own.

A value is $c + \sum_s g_s\,\epsilon_s \pm r$: the first symbols are the numbers of the input that the threat moves, together in
its ball, the others in [−1, 1] are what operations left open. The cost is one forward pass for each symbol, however many
numbers the model has inside, where lines carried backwards cost one pass for each of those. A remainder grows as
intervals do, so it becomes symbols where it can, and at nodes that all later ones lean on it is bounded anew by lines carried back.

References: Singh et al., "Fast and effective robustness certification" (DeepZ), NeurIPS 2018; Xu et al., "Automatic perturbation
analysis for scalable certified robustness and beyond", NeurIPS 2020, arXiv:2002.12920 (its forward mode).
Differs from the papers: symbols are few, and begin anew where lines are carried back. Products and functions of one number lie between
parallel planes with the intercepts of `curves`; layers in between are bounded anew backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from adversarial.threat import Region
from certify.engine.affine import Affine
from certify.engine.bounds import NUMBERS, Bounds
from certify.engine.fall import DUAL, least
from certify.engine.front import Front
from certify.engine.front import begun as rows_of
from certify.engine.graph import Node
from certify.engine.nonlinear import Chosen, Largest, OneNumber, Product, axis
from certify.errors import CertifyError

ROOM = 2048  # symbols for what is left open
SHARE = 0.25  # of a node's width that may be left open before lines are carried back


@dataclass(frozen=True)
class Form:
    """Values (B, …) as `center` + Σ `generators` (B, S, …) · symbol, and anything within `reach` (B, …) of that."""

    center: Tensor
    generators: Tensor
    reach: Tensor

    @classmethod
    def known(cls, value: Tensor) -> Form:
        return cls(value, value.new_zeros(len(value), 0, *value.shape[1:]), torch.zeros_like(value))

    def wide(self, symbols: int) -> Tensor:
        """Generators with zeros for symbols that came later."""
        missing = symbols - self.generators.shape[1]
        return F.pad(self.generators, [0, 0] * (self.center.ndim - 1) + [0, missing]) if missing else self.generators


class Forms:
    """The form of every node of some bounds, whose boxes get no larger by it.

    room: symbols, at most, for what operations leave open.
    share: of a node's width that may be left open; where it is more, and all later nodes lean on this one alone, lines are
        carried back to the input.
    """

    def __init__(self, bounds: Bounds, room: int = ROOM, share: float = SHARE):
        self.bounds, self.room, self.share = bounds, room, share
        self.order = DUAL.get(bounds.region.norm, 1)  # of the dual norm; of a box it is 1
        self.start = begun(bounds.region)
        self.forms = {bounds.graph.input: self.start}
        self.inputs = self.symbols = self.start.generators.shape[1]

    def run(self) -> Form:
        """All of them in the order of the graph; that of the last node."""
        graph, bounds = self.bounds.graph, self.bounds
        last = {other: name for name, node in graph.nodes.items() for other in node.inputs}
        bounds.narrow(graph.input, bounds.region.box())
        self.open(graph.input)
        for name, node in graph.nodes.items():
            if name == graph.input:
                continue
            bounds.narrow(name, bounds.interval(name))
            self.keep(name, Form.known(bounds.boxes[name][0]) if name in bounds.still else self.step(name, node))
            for other in node.inputs:
                if last[other] == name:
                    self.forms.pop(other, None)
            if name not in bounds.still and name != graph.output:
                cut = len(graph.readers[name]) > 1 and bounds.still.issuperset(self.forms.keys() - {name})
                if (cut and self.renewed(name)) or self.bent(name):
                    self.open(name)
        return self.forms[graph.output]

    def bent(self, name: str) -> bool:
        """Whether a node is a function with kinks at some of its numbers, which leaves few open, but those much."""
        rule, node = self.bounds.rules[name], self.bounds.graph.nodes[name]
        if not isinstance(rule, OneNumber) or not rule.curve(node).straight:
            return False
        return bool(rule.undecided(node, self.bounds.boxes[node.inputs[0]]).any())

    def spread(self, form: Form) -> Tensor:
        """How far values can be from the centre."""
        return form.reach + self.own(form) + torch.linalg.vector_norm(form.generators[:, self.inputs :], 1, dim=1)

    def own(self, form: Form) -> Tensor:
        """How far the input's symbols alone can take them."""
        found = form.generators[:, : self.inputs]
        return torch.linalg.vector_norm(found, self.order, dim=1) if found.shape[1] else torch.zeros_like(form.center)

    def keep(self, name: str, form: Form) -> None:
        """A node's form and its box, which takes the form's place where it says more than what the form leaves open."""
        if name not in self.bounds.still:
            spread = self.spread(form)
            self.bounds.narrow(name, (form.center - spread, form.center + spread))
            low, high = self.bounds.boxes[name]
            middle, half = (low + high) / 2, (high - low) / 2
            better = ~(form.reach <= half)
            if bool(better.any()):
                form = Form(
                    torch.where(better, middle, form.center),
                    torch.where(better[:, None], 0.0, form.generators),
                    torch.where(better, half, form.reach),
                )
        self.forms[name] = form

    def step(self, name: str, node: Node) -> Form:
        """The form of a node from those of its inputs."""
        rule, given = self.bounds.rules[name], [self.forms[other] for other in node.inputs]
        return next(made for kind, made in STEPS.items() if isinstance(rule, kind))(self, node, given)

    def affine(self, node: Node, given: list[Form]) -> Form:
        rule, reach = self.bounds.rules[node.name], [form.reach for form in given]
        symbols = max(form.generators.shape[1] for form in given)
        if bool(node.linear.run(*(torch.zeros_like(form.center[:1]) for form in given)).any()):
            raise CertifyError(
                f"expected an operation whose constant part is known, got {node.op} in {node.path or 'the model'}; use "
                "intermediate='crown'"
            )
        return Form(
            node.run(*(form.center for form in given)),
            each(node.linear.run, symbols, *(form.wide(symbols) for form in given)),
            node.linear.run(*reach) if rule.absolute is None else rule.absolute(node, *reach),
        )

    def chosen(self, node: Node, given: list[Form]) -> Form:
        by, *values = given
        symbols = max(form.generators.shape[1] for form in values)
        kept = by.center[:, None].expand(-1, symbols, *by.center.shape[1:])
        return Form(
            node.run(by.center, *(form.center for form in values)),
            each(node.linear.run, symbols, kept, *(form.wide(symbols) for form in values)),
            node.linear.run(by.center, *(form.reach for form in values)),
        )

    def product(self, node: Node, given: list[Form]) -> Form:
        r"""$xy = c_xc_y + c_x\,(y - c_y) + (x - c_x)\,c_y$ and what two spreads make of each other."""
        x, y = given
        reach = node.run(self.spread(x), self.spread(y))
        reach = reach + node.run(x.center.abs(), y.reach) + node.run(x.reach, y.center.abs())
        center, symbols = node.run(x.center, y.center), max(form.generators.shape[1] for form in given)
        generators = center.new_zeros(len(center), symbols, *center.shape[1:])
        for turn, one, other in ((1, x, y), (-1, y, x)):
            if own := one.generators.shape[1]:
                beside = other.center[:, None].expand(-1, own, *other.center.shape[1:])
                generators[:, :own] += each(node.run, own, *(one.generators, beside)[::turn])
        return Form(center, generators, reach)

    def curved(self, node: Node, given: list[Form]) -> Form:
        (form,), curve = given, self.bounds.rules[node.name].curve(node)
        slope, low, high = curve.parallel(*self.bounds.boxes[node.inputs[0]])
        reach = slope.abs() * form.reach + ((high - low) / 2).clamp(min=0)
        return Form(slope * form.center + (low + high) / 2, slope[:, None] * form.generators, reach)

    def largest(self, node: Node, given: list[Form]) -> Form:
        """The one with the highest lower end, and by how much another one can be above that."""
        (form,), (low, high) = given, self.bounds.boxes[node.inputs[0]]
        dim, keep = axis(node, low.ndim)
        place = low.argmax(dim, keepdim=True)
        others = high.scatter(dim, place, -torch.inf).amax(dim, keepdim=True)
        more = (others - low.gather(dim, place)).clamp(min=0) / 2
        wide = place[:, None].expand(-1, form.generators.shape[1], *place.shape[1:])
        center, reach = form.center.gather(dim, place) + more, form.reach.gather(dim, place) + more
        generators = form.generators.gather(dim + 1, wide)
        if keep:
            return Form(center, generators, reach)
        return Form(center.squeeze(dim), generators.squeeze(dim + 1), reach.squeeze(dim))

    def open(self, name: str) -> None:
        """Symbols in the place of remainders, the largest while there is room: what reads them then knows that they are the same
        for all."""
        form = self.forms[name]
        left = form.reach.flatten(1)
        count = min(int((left > 0).sum(1).amax()), self.room + self.inputs - self.symbols)
        if count <= 0 or not bool(left.isfinite().all()):
            return
        size, place = left.topk(count, dim=1)
        fresh = size.new_zeros(len(size), count, left.shape[1]).scatter(2, place[..., None], size[..., None])
        generators = torch.cat([form.wide(self.symbols), fresh.view(len(size), count, *form.reach.shape[1:])], 1)
        self.symbols += count
        self.forms[name] = Form(form.center, generators, left.scatter(1, place, 0.0).view_as(form.reach))

    def renewed(self, name: str) -> bool:
        """Whether too much of a node was left open, and its form is now made of lines carried back, which leave less."""
        form = self.forms[name]
        width = self.spread(form).sum()
        if not width - self.own(form).sum() > self.share * width:
            return False
        (below, bottom), (above, top) = self.lines(name, 1.0), self.lines(name, -1.0)
        gap = Form(form.center, ((above - below) / 2).view(len(above), -1, *form.center.shape[1:]), form.reach)
        apart = self.own(gap).flatten(1)
        bottom, top = bottom - apart, top + apart
        shape = form.center.shape
        found = Form(
            ((bottom + top) / 2).view(shape), ((below + above) / 2).view(len(below), -1, *shape[1:]),
            ((top - bottom) / 2).clamp(min=0).view(shape),
        )  # fmt: skip
        if not self.spread(found).sum() < width:  # NaN as well
            return False
        self.keep(name, found)
        self.symbols = self.inputs  # nothing else is left that knows of the others
        left = 1 - float(self.own(found).sum() / self.spread(found).sum())
        self.share = max(self.share, 2 * left)  # what lines leave open, they would leave open again
        return True

    def lines(self, name: str, sign: float) -> tuple[Tensor, Tensor]:
        """Of all numbers of a node, lines below (above for a sign of −1): in the input's symbols (B, S, K), and offsets (B, K)."""
        bounds, start = self.bounds, self.start
        shape, samples = bounds.graph.nodes[name].shape, len(start.center)
        places = torch.arange(shape.numel(), device=start.center.device).expand(samples, -1)
        slopes, offsets = [], []
        for some in places.split(max(1, NUMBERS // (samples * bounds.graph.widest)), 1):
            seen: dict[str, Tensor] = {}
            front = rows_of(shape, some, sign, start.center, windowed=False)
            lowest = bounds.carried(name, front, watch=seen.__setitem__)
            a = seen[bounds.graph.input]
            constant = lowest - least(Front(a), bounds.region)
            a = a.flatten(2)
            constant = constant + (a * start.center.flatten(1)[:, None]).sum(2)
            constant = constant - (a.abs() * start.reach.flatten(1)[:, None]).sum(2)
            slopes.append(sign * start.generators.flatten(2) @ a.transpose(1, 2))
            offsets.append(sign * constant)
        return torch.cat(slopes, 2), torch.cat(offsets, 1)


STEPS: dict[type, Callable[[Forms, Node, list[Form]], Form]] = {
    Affine: Forms.affine, Chosen: Forms.chosen, Product: Forms.product, OneNumber: Forms.curved, Largest: Forms.largest,
}  # fmt: skip


def begun(region: Region) -> Form:
    """The inputs of a region: a symbol for each number that moves, or the few that the region itself is made of."""
    known = region.symbols() if hasattr(region, "symbols") else None
    if known is not None:
        center, generators, reach = known
        shape = region.anchor.shape[1:]
        return Form(center.view_as(region.anchor), generators.unflatten(2, shape), reach.view_as(region.anchor))
    low, high = region.box()
    free = (high > low).flatten(1)
    moves = free.any(0).nonzero()[:, 0]
    center = region.anchor if region.norm in DUAL else (low + high) / 2
    size = region.eps[:, None] * free if region.norm in DUAL else (high - low).flatten(1) / 2
    generators = center.new_zeros(len(center), len(moves), center[0].numel())
    generators[:, torch.arange(len(moves), device=moves.device), moves] = size[:, moves].to(center)
    return Form(center, generators.view(len(center), -1, *center.shape[1:]), torch.zeros_like(center))


def each(run: Callable[..., Tensor], symbols: int, *values: Tensor) -> Tensor:
    """An operation on values (B, S, …), symbol by symbol."""
    if symbols:
        return run(*(value.flatten(0, 1) for value in values)).unflatten(0, (-1, symbols))
    one = run(*(value.new_zeros(len(value), *value.shape[2:]) for value in values))
    return one.new_zeros(len(one), 0, *one.shape[1:])


def doubled(region: Region) -> Region:
    """The same in double precision."""
    wide = {
        name: value.double()
        for name, value in vars(region).items()
        if torch.is_tensor(value) and value.is_floating_point()
    }
    names = region.__dataclass_fields__
    return replace(region, **{name: value for name, value in wide.items() if name in names})


def forward_margins(bounds: Bounds, front: Front) -> Tensor:
    """The least (B, R) of rows of logits by lines carried back through boxes of affine forms.

    In double precision: single rounds by as much as a small threat moves a deep model.
    """
    graph, region, found = bounds.graph.double, bounds.region, []
    symbols = ROOM + begun(region[torch.arange(1, device=front.a.device)]).generators.shape[1]
    for rows in torch.arange(len(region), device=front.a.device).split(max(1, NUMBERS // (symbols * graph.widest))):
        own = Bounds(graph, doubled(region[rows]))
        Forms(own).run()
        a = Front(front.a[rows].double())
        found.append(torch.fmax(own.elided(a), own.lower(graph.output, a)))
    return torch.cat(found).to(front.a.dtype)
