r"""Affine forms carried forwards: every value as a centre, a linear function of a few shared symbols, and a remainder of its own.

A value is $c + \sum_s g_s\,\epsilon_s \pm r$: the first symbols are the numbers of the input that the threat moves, together in
its ball, the others in [−1, 1] are what nonlinear operations left open. The cost is one forward pass for each symbol,
however many numbers the model has inside, where lines carried backwards cost one pass for each of those.

References: Singh et al., "Fast and effective robustness certification" (DeepZ), NeurIPS 2018; Xu et al., "Automatic perturbation
analysis for scalable certified robustness and beyond", NeurIPS 2020, arXiv:2002.12920 (its forward mode).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from adversarial.threat import Region
from certify.engine.affine import Affine
from certify.engine.bounds import Bounds
from certify.engine.curves import Curve
from certify.engine.graph import Node
from certify.engine.nonlinear import Chosen, Largest, OneNumber, Product, axis

ORDER = {"linf": 1, "l2": 2, "l1": torch.inf}  # of the norm that is dual to the ball's


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

    room: symbols, at most, for what nonlinear operations leave open, the largest first.
    """

    def __init__(self, bounds: Bounds, room: int):
        self.bounds, self.room = bounds, room
        region = bounds.region
        self.order = ORDER[region.norm]
        self.forms = {bounds.graph.input: begun(region)}
        self.inputs = self.symbols = self.forms[bounds.graph.input].generators.shape[1]

    def run(self) -> Form:
        """All of them in the order of the graph; that of the last node."""
        graph, bounds = self.bounds.graph, self.bounds
        last = {other: name for name, node in graph.nodes.items() for other in node.inputs}
        bounds.narrow(graph.input, bounds.region.box())
        for name, node in graph.nodes.items():
            if name == graph.input:
                continue
            bounds.narrow(name, bounds.interval(name))
            if name in bounds.still:
                self.forms[name] = Form.known(bounds.boxes[name][0])
            else:
                found = self.step(name, node)
                spread = self.spread(found)
                bounds.narrow(name, (found.center - spread, found.center + spread))
                self.forms[name] = self.boxed(name, found)
            for other in node.inputs:
                if last[other] == name:
                    self.forms.pop(other, None)
        return self.forms[graph.output]

    def spread(self, form: Form) -> Tensor:
        """How far values can be from the centre."""
        own, shared = form.generators[:, : self.inputs], form.generators[:, self.inputs :]
        found = form.reach
        if own.shape[1]:
            found = found + torch.linalg.vector_norm(own, self.order, dim=1)
        return found + torch.linalg.vector_norm(shared, 1, dim=1) if shared.shape[1] else found

    def boxed(self, name: str, form: Form) -> Form:
        """The box itself, where that says more than what the form leaves open."""
        low, high = self.bounds.boxes[name]
        middle, half = (low + high) / 2, (high - low) / 2
        better = ~(form.reach <= half)
        if not bool(better.any()):
            return form
        return Form(
            torch.where(better, middle, form.center),
            torch.where(better[:, None], 0.0, form.generators),
            torch.where(better, half, form.reach),
        )

    def step(self, name: str, node: Node) -> Form:
        rule, given = self.bounds.rules[name], [self.forms[other] for other in node.inputs]
        for kind, made in STEPS.items():
            if isinstance(rule, kind):
                return made(self, node, given)
        raise TypeError(f"{type(rule).__name__} has no affine form")  # Step: refused by intervals

    def affine(self, node: Node, given: list[Form]) -> Form:
        rule = self.bounds.rules[node.name]
        symbols = max(form.generators.shape[1] for form in given)
        reach = [form.reach for form in given]
        return Form(
            node.run(*(form.center for form in given)),
            each(node.linear.run, symbols, *(form.wide(symbols) for form in given)),
            node.linear.run(*reach) if rule.absolute is None else rule.absolute(node, *reach),
        )

    def chosen(self, node: Node, given: list[Form]) -> Form:
        by, *values = given
        symbols = max(form.generators.shape[1] for form in values)
        keep = by.center[:, None].expand(-1, symbols, *by.center.shape[1:])
        return Form(
            node.run(by.center, *(form.center for form in values)),
            each(node.linear.run, symbols, keep, *(form.wide(symbols) for form in values)),
            node.linear.run(by.center, *(form.reach for form in values)),
        )

    def product(self, node: Node, given: list[Form]) -> Form:
        x, y = given
        reach = node.run(self.spread(x), self.spread(y))
        reach = reach + node.run(x.center.abs(), y.reach) + node.run(x.reach, y.center.abs())
        symbols = max(form.generators.shape[1] for form in given)
        center = node.run(x.center, y.center)
        found = Form(center, center.new_zeros(len(center), symbols, *center.shape[1:]), torch.zeros_like(center))
        for turn, one, other in ((1, x, y), (-1, y, x)):
            if own := one.generators.shape[1]:
                beside = other.center[:, None].expand(-1, own, *other.center.shape[1:])
                found.generators[:, :own] += each(node.run, own, *(one.generators, beside)[::turn])
        return self.opened(found, reach)

    def curve(self, node: Node, given: list[Form]) -> Form:
        (form,), curve = given, self.bounds.rules[node.name].curve(node)
        slope, low, high = parallel(curve, *self.bounds.boxes[node.inputs[0]])
        found = Form(slope * form.center + (low + high) / 2, slope[:, None] * form.generators, slope.abs() * form.reach)
        return self.opened(found, ((high - low) / 2).clamp(min=0))

    def largest(self, node: Node, given: list[Form]) -> Form:
        """The one with the highest lower end, and by how much another one can be above that."""
        (form,), (low, high) = given, self.bounds.boxes[node.inputs[0]]
        dim, keep = axis(node, low.ndim)
        place = low.argmax(dim, keepdim=True)
        others = high.scatter(dim, place, -torch.inf).amax(dim, keepdim=True)
        more = (others - low.gather(dim, place)).clamp(min=0)
        wide = place[:, None].expand(-1, form.generators.shape[1], *place.shape[1:])
        found = Form(
            form.center.gather(dim, place) + more / 2, form.generators.gather(dim + 1, wide), form.reach.gather(dim, place)
        )
        more = more if keep else more.squeeze(dim)
        found = found if keep else Form(found.center.squeeze(dim), found.generators.squeeze(dim + 1), found.reach.squeeze(dim))
        return self.opened(found, more / 2)

    def opened(self, form: Form, error: Tensor) -> Form:
        """With an error beside it: the largest as symbols, while there is room, the others as reach."""
        count = min(self.room + self.inputs - self.symbols, int((error > 0).flatten(1).sum(1).amax()))
        if count <= 0:
            return replace(form, reach=form.reach + error)
        size, place = error.flatten(1).topk(count, dim=1)
        fresh = error.new_zeros(len(error), count, error[0].numel()).scatter(2, place[..., None], size[..., None])
        rest = error.flatten(1).scatter(1, place, 0.0).view_as(error)
        generators = torch.cat([form.wide(self.symbols), fresh.view(len(error), count, *error.shape[1:])], 1)
        self.symbols += count
        return Form(form.center, generators, form.reach + rest)


STEPS: dict[type, Callable[[Forms, Node, list[Form]], Form]] = {
    Affine: Forms.affine, Chosen: Forms.chosen, Product: Forms.product, OneNumber: Forms.curve, Largest: Forms.largest,
}  # fmt: skip


def begun(region: Region) -> Form:
    """The inputs of a region: a symbol for each number that moves."""
    low, high = region.box()
    moves = (high > low).flatten(1).any(0).nonzero()[:, 0]
    center = (low + high) / 2 if region.norm == "linf" else region.anchor
    size = ((high - low) / 2).flatten(1)[:, moves]
    if region.norm != "linf":
        size = region.eps[:, None] * (high > low).flatten(1)[:, moves]
    generators = center.new_zeros(len(center), len(moves), center[0].numel())
    generators[:, torch.arange(len(moves), device=moves.device), moves] = size
    return Form(center, generators.view(len(center), -1, *center.shape[1:]), torch.zeros_like(center))


def each(run: Callable[..., Tensor], symbols: int, *values: Tensor) -> Tensor:
    """An operation on values (B, S, …), symbol by symbol."""
    found = run(*(value.flatten(0, 1) for value in values))
    return found.unflatten(0, (-1, symbols)) if symbols else found.view(len(values[0]), 0, *found.shape[1:])


def parallel(curve: Curve, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One slope, with the intercepts of a line below and of one above: of those tried that which leaves least between."""
    best = None
    for slope in curve.slopes(low, high):
        below, above = curve.intercept(low, high, slope, lower=True), curve.intercept(low, high, slope, lower=False)
        if best is None:
            best = slope, below, above
        else:
            nearer = above - below < best[2] - best[1]
            best = tuple(torch.where(nearer, new, old) for new, old in zip((slope, below, above), best, strict=True))
    return best
