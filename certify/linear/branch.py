r"""Branch and bound: where lines are too loose, a number is split in two and both halves are bounded.

A half is a box of an activation's input cut at t, and what the cut says, $s(z - t) \ge 0$ with $s = \pm1$, enters the bound
with a multiplier: $f \ge \min_z f - \beta s (z - t)$ for every $\beta \ge 0$. β is trained together with the slopes.

References: Wang et al., "Beta-CROWN", NeurIPS 2021, arXiv:2103.06624; Bunel et al., JMLR 2020, arXiv:1909.06588 (branching by
what a number's lines lose); De Palma et al., 2021, arXiv:2104.06718 (candidates are bounded before one is chosen).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adversarial.threat import Threat
from certify.engine.ascent import Ascent, Trained
from certify.engine.bounds import Bounds
from certify.engine.front import Front, flat
from certify.engine.nonlinear import OneNumber
from certify.linear.crown import AlphaCROWN, Linear


@dataclass(frozen=True)
class BetaCROWN(Linear):
    """Trained slopes, then branch and bound on the inputs of activations.

    Args:
        seconds: of work for an input at most, all its classes together; what is not shown by then stays open.
        domains: bounded at a time.
        candidates: numbers whose halves are bounded quickly before one is chosen.
        iterations, rate: of the ascent of slopes and multipliers in every half.

    An input stops early when the point at which a bound is attained breaks the prediction. Activations of any kind are
    split: at a knot inside the box, else in its middle. How far it comes depends on the machine's speed.

    Differs from the paper: boxes inside are those of the root, cut by splits and intervals behind them.
    """

    threat: Threat
    seconds: float = 10.0
    domains: int = 32
    candidates: int = 3
    iterations: int = 10
    rate: float = 0.1

    def margins(self, bounds: Bounds, front: Front) -> Tensor:
        best = AlphaCROWN(self.threat, coupled=True).margins(bounds, front)
        for group in (~(best > 0)).any(1).nonzero()[:, 0].tolist():
            rows = (~(best[group] > 0)).nonzero()[:, 0]
            rows = rows[best[group, rows].argsort()]  # the hardest first: when it fails, nothing else is needed
            end = time.monotonic() + self.seconds
            for row in rows.tolist():
                found = Tree(self, bounds[torch.tensor([group])], front.a[group, row]).searched(end)
                best[group, row] = torch.fmax(best[group, row], found)
                if not found > 0:
                    break
        return best


@dataclass(frozen=True)
class Domains:
    """Parts of the root: the boxes (N, numbers) they leave each activation's input."""

    low: dict[str, Tensor]
    high: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.low.values()), ()))

    def __getitem__(self, rows: Tensor | slice) -> Domains:
        return Domains({k: v[rows] for k, v in self.low.items()}, {k: v[rows] for k, v in self.high.items()})

    @classmethod
    def joined(cls, parts: list[Domains]) -> Domains:
        low, high = (
            {name: torch.cat([side[name] for side in sides]) for name in sides[0]}
            for sides in ([part.low for part in parts], [part.high for part in parts])
        )
        return cls(low, high)

    def split(self, name: str, place: Tensor, cut: Tensor) -> Domains:
        """Both halves (N below, N above) at a place (N,) of an activation's input."""
        rows = torch.arange(len(place), device=place.device)
        low, high = self.low[name].clone(), self.high[name].clone()
        low[rows, place], high[rows, place] = cut, cut
        return Domains.joined([Domains(self.low, self.high | {name: high}), Domains(self.low | {name: low}, self.high)])


class Multipliers(Trained):
    """Trained slopes with what the cuts of domains say."""

    def __init__(self, domains: Domains, root: Bounds):
        super().__init__()
        self.cuts: dict[
            str, list[tuple[Tensor, Tensor, float]]
        ] = {}  # multipliers, where numbers end, and on which side
        for name in domains.low:
            ends = zip((domains.low[name], domains.high[name]), root.boxes[name], (1.0, -1.0), strict=True)
            for end, before, sign in ends:
                cut = end != flat(before, 1)
                if bool(cut.any()):
                    beta = torch.zeros_like(end).requires_grad_()
                    self.cuts.setdefault(name, []).append((beta, end, sign * cut))

    def learned(self) -> list[Tensor]:
        return super().learned() + [beta for cuts in self.cuts.values() for beta, _, _ in cuts]

    def keep(self) -> None:
        super().keep()
        with torch.no_grad():
            for cuts in self.cuts.values():
                for beta, _, _ in cuts:
                    beta.clamp_(min=0)

    def held(self, name: str, front: Front) -> tuple[Front, Tensor | float]:
        constant: Tensor | float = 0.0
        for beta, end, sign in self.cuts.get(name, ()):
            front = front.dense()
            pull = (beta * sign)[:, None]
            front = replace(front, a=front.a - pull.view(len(pull), 1, *front.a.shape[2:]))
            constant = constant + (pull * end[:, None]).sum(2)
        return front, constant


class Tree:
    """The search for one function of one input's logits."""

    def __init__(self, search: BetaCROWN, bounds: Bounds, a: Tensor):
        self.search, self.root, self.a = search, bounds, a
        self.before = {
            name: bounds.graph.nodes[name].inputs[0]
            for name, rule in bounds.rules.items()
            if isinstance(rule, OneNumber) and bounds.graph.nodes[name].inputs[0] != bounds.graph.input
        }

    def searched(self, end: float) -> Tensor:
        """The least bound over all domains when every one is above zero, else −∞: what is left may be lower than what was seen."""
        if not self.before:  # no activation to split
            return self.a.new_tensor(-torch.inf)
        whole = [{b: flat(self.root.boxes[b][side], 1) for b in self.before.values()} for side in (0, 1)]
        open_, infinity = Domains(*whole), self.a.new_tensor(torch.inf)
        least = infinity
        while len(open_):
            if time.monotonic() > end:
                return -infinity
            some, open_ = open_[-self.search.domains :], open_[: -self.search.domains]
            found, fronts, bounds = self.bounded(some, self.search.iterations)
            left = (~(found > 0)).nonzero()[:, 0]
            least = torch.minimum(least, found[found > 0].min()) if len(left) < len(found) else least
            if not len(left):
                continue
            if self.broken(fronts, left):
                return -infinity
            halves = self.branched(some[left], bounds[left], {name: a[left] for name, a in fronts.items()})
            if halves is None:
                return -infinity
            open_ = Domains.joined([open_, halves])
        return least

    def bounded(self, domains: Domains, iterations: int) -> tuple[Tensor, dict[str, Tensor], Bounds]:
        """Bounds (N,) of domains, what was in front of each value, and the boxes; an empty domain has the bound ∞."""
        bounds = self.root[torch.zeros(len(domains), dtype=torch.long, device=self.a.device)]
        empty = torch.zeros(len(domains), dtype=torch.bool, device=self.a.device)
        for name in bounds.graph.nodes:
            if name in domains.low:
                old_low, old_high = bounds.boxes[name]
                low, high = domains.low[name].view_as(old_low), domains.high[name].view_as(old_high)
                if bool((low > old_low).any() | (high < old_high).any()):
                    room = 1e-5 * (1 + low.abs())  # of rounding: only what is clearly empty is
                    empty |= flat((low > old_high + room) | (high < old_low - room), 1).any(1)
                    low, high = torch.maximum(low, old_low), torch.minimum(high, old_high)
                    bounds.boxes[name] = torch.minimum(low, high), torch.maximum(low, high)
                    bounds.forward(name)
        front = Front(self.a.expand(len(domains), 1, -1))
        ascent = Ascent(bounds, iterations, self.search.rate, until=0.0)
        found, fronts = ascent.watched(bounds.graph.output, front, Multipliers(domains, self.root))
        return torch.where(empty, torch.inf, found[:, 0]), fronts, bounds

    def branched(self, domains: Domains, bounds: Bounds, fronts: dict[str, Tensor]) -> Domains | None:
        """Both halves of each domain at its best candidate; None where nothing is left to split."""
        scores, spans = [], []
        for name, before in self.before.items():
            lost = self.lost(name, bounds, fronts)
            scores.append(lost)
            spans.append((before, name, lost.shape[1]))
        score = torch.cat(scores, 1)
        top = score.topk(min(self.search.candidates, score.shape[1]), dim=1)
        if not bool((top.values[:, 0] > 0).all()):
            return None
        best, chosen = score.new_full((len(domains),), -torch.inf), top.indices[:, 0]
        if top.indices.shape[1] > 1:
            for k in range(top.indices.shape[1]):
                tried = self.at(domains, bounds, top.indices[:, k], spans)
                found = self.bounded(tried, 0)[0].view(2, -1)
                value = torch.where(
                    top.values[:, k] > 0, found.amin(0) + 0.1 * found.amax(0).clamp(max=1.0), -torch.inf
                )
                chosen = torch.where(value > best, top.indices[:, k], chosen)
                best = torch.maximum(best, value)
        return self.at(domains, bounds, chosen, spans)

    def at(self, domains: Domains, bounds: Bounds, place: Tensor, spans: list[tuple[str, str, int]]) -> Domains:
        """Both halves at places (N,) counted over all activations' inputs: (N below, N above)."""
        parts, order, start = [], [], 0
        for before, name, size in spans:
            rows = ((place >= start) & (place < start + size)).nonzero()[:, 0]
            if len(rows):
                inner = place[rows] - start
                cut = self.cut(name, bounds)[rows, inner]
                parts.append(domains[rows].split(before, inner, cut))
                order.append(torch.cat([rows, rows + len(place)]))
            start += size
        return Domains.joined(parts)[torch.cat(order).argsort()]

    def cut(self, name: str, bounds: Bounds) -> Tensor:
        """Where each number (N, numbers) would be split: at the knot nearest to the middle if one is inside."""
        curve = self.root.rules[name].curve(self.root.graph.nodes[name])
        low, high = (flat(side, 1) for side in bounds.boxes[self.before[name]])
        middle = (low + high) / 2
        found, distance = middle.clone(), torch.full_like(middle, torch.inf)
        for knot in curve.knots:
            better = (low < knot) & (knot < high) & ((middle - knot).abs() < distance)
            found, distance = torch.where(better, knot, found), torch.where(better, (middle - knot).abs(), distance)
        return found

    def lost(self, name: str, bounds: Bounds, fronts: dict[str, Tensor]) -> Tensor:
        """How far apart the lines are in the middle of the box, times what is in front (N, numbers)."""
        below, b, above, c, low, high = bounds.planes(name)
        middle = (low + high) / 2
        gap = (above * middle + c) - (below * middle + b)
        gap = flat(torch.where(bounds.undecided(self.before[name]), gap, 0), 1)
        return gap.clamp(min=0) * flat(fronts[name].abs(), 2)[:, 0] if name in fronts else torch.zeros_like(gap)

    def broken(self, fronts: dict[str, Tensor], left: Tensor) -> bool:
        """Whether a point where a bound is attained is a true counterexample."""
        front = fronts[self.root.graph.input][left, 0]
        region = self.root.region[torch.zeros(len(front), dtype=torch.long, device=front.device)]
        with torch.no_grad():
            return bool(((self.root.graph(region.best(-front)) * self.a).sum(1) <= 0).any())
