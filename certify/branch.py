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
from certify.ascent import Ascent, Trained
from certify.bounds import Bounds
from certify.crown import AlphaCROWN, Linear
from certify.front import Front
from certify.nonlinear import OneNumber


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
        for group in (best <= 0).any(1).nonzero()[:, 0].tolist():
            rows = (best[group] <= 0).nonzero()[:, 0]
            rows = rows[best[group, rows].argsort()]  # the hardest first: when it fails, nothing else is needed
            end = time.monotonic() + self.seconds
            for row in rows.tolist():
                found = Tree(self, bounds[torch.tensor([group])], front.a[group, row]).searched(end)
                best[group, row] = torch.maximum(best[group, row], found)
                if found <= 0:
                    break
        return best


@dataclass(frozen=True)
class Halves:
    """Domains: signs of the cuts (N, numbers), 0 where there is none, for each activation's input, and where they are."""

    signs: dict[str, Tensor]
    cuts: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.signs.values())))

    def __getitem__(self, rows: Tensor) -> Halves:
        return Halves({k: v[rows] for k, v in self.signs.items()}, {k: v[rows] for k, v in self.cuts.items()})

    @classmethod
    def joined(cls, parts: list[Halves]) -> Halves:
        names = parts[0].signs
        return cls(
            {name: torch.cat([part.signs[name] for part in parts]) for name in names},
            {name: torch.cat([part.cuts[name] for part in parts]) for name in names},
        )

    def split(self, name: str, place: Tensor, cut: Tensor) -> Halves:
        """Both halves (N below, N above) at a place (N,) of an activation's input."""
        rows, found = torch.arange(len(place), device=place.device), []
        for sign in (-1.0, 1.0):
            signs, cuts = self.signs[name].clone(), self.cuts[name].clone()
            signs[rows, place], cuts[rows, place] = sign, cut
            found.append(Halves(self.signs | {name: signs}, self.cuts | {name: cuts}))
        return Halves.joined(found)


class Multipliers(Trained):
    """Trained slopes with what the cuts say."""

    def __init__(self, halves: Halves):
        super().__init__()
        self.halves = halves
        self.betas = {
            name: torch.zeros_like(signs).requires_grad_() for name, signs in halves.signs.items() if bool(signs.any())
        }

    def learned(self) -> list[Tensor]:
        return super().learned() + list(self.betas.values())

    def keep(self) -> None:
        super().keep()
        with torch.no_grad():
            for beta in self.betas.values():
                beta.clamp_(min=0)

    def held(self, name: str, front: Front) -> tuple[Front, Tensor | float]:
        if name not in self.betas:
            return front, 0.0
        front = front.dense()
        pull = (self.betas[name] * self.halves.signs[name])[:, None]
        constant = (pull * self.halves.cuts[name][:, None]).sum(2)
        return replace(front, a=front.a - pull.view(len(pull), 1, *front.a.shape[2:])), constant


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
        nothing = {before: self.root.boxes[before][0].flatten(1) * 0 for before in self.before.values()}
        open_, least = Halves(nothing, nothing), self.a.new_tensor(torch.inf)
        first, infinity = True, least
        while len(open_):
            if time.monotonic() > end or (not first and not self.before):
                return -infinity
            some = open_[torch.arange(max(0, len(open_) - self.search.domains), len(open_))]
            open_ = open_[torch.arange(max(0, len(open_) - self.search.domains))]
            found, fronts, bounds = self.bounded(some, self.search.iterations)
            left = (found <= 0).nonzero()[:, 0]
            least = torch.minimum(least, found[found > 0].min()) if len(left) < len(found) else least
            if not len(left):
                continue
            if self.broken(fronts, left):
                return -infinity
            halves = self.branched(some[left], bounds[left], {name: a[left] for name, a in fronts.items()})
            if halves is None:
                return -infinity
            open_, first = Halves.joined([open_, halves]), False
        return least

    def bounded(self, halves: Halves, iterations: int) -> tuple[Tensor, dict[str, Tensor], Bounds]:
        """Bounds (N,) of domains, what was in front of each value, and the boxes; an empty domain has the bound ∞."""
        bounds = self.root[torch.zeros(len(halves), dtype=torch.long, device=self.a.device)]
        empty = torch.zeros(len(halves), dtype=torch.bool, device=self.a.device)
        for name in bounds.graph.nodes:
            if name in halves.signs and bool(halves.signs[name].any()):
                shape = bounds.boxes[name][0].shape
                signs, cuts = halves.signs[name].view(shape), halves.cuts[name].view(shape)
                low = torch.where(signs > 0, cuts, -torch.inf)
                high = torch.where(signs < 0, cuts, torch.inf)
                old_low, old_high = bounds.boxes[name]
                room = 1e-5 * (1 + cuts.abs())  # of rounding: only what is clearly empty is
                empty |= ((low > old_high + room) | (high < old_low - room)).flatten(1).any(1)
                low, high = torch.maximum(low, old_low), torch.minimum(high, old_high)
                bounds.narrow(name, (torch.minimum(low, high), torch.maximum(low, high)))
                bounds.forward(name)
        front = Front(self.a.expand(len(halves), 1, -1))
        ascent = Ascent(bounds, iterations, self.search.rate, until=0.0)
        found, fronts = ascent.watched(bounds.graph.output, front, Multipliers(halves))
        return torch.where(empty, torch.inf, found[:, 0]), fronts, bounds

    def branched(self, halves: Halves, bounds: Bounds, fronts: dict[str, Tensor]) -> Halves | None:
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
        best, chosen = score.new_full((len(halves),), -torch.inf), top.indices[:, 0]
        if top.indices.shape[1] > 1:
            for k in range(top.indices.shape[1]):
                tried = self.at(halves, bounds, top.indices[:, k], spans)
                found = self.bounded(tried, 0)[0].view(2, -1)
                value = torch.where(
                    top.values[:, k] > 0, found.amin(0) + 0.1 * found.amax(0).clamp(max=1.0), -torch.inf
                )
                chosen = torch.where(value > best, top.indices[:, k], chosen)
                best = torch.maximum(best, value)
        return self.at(halves, bounds, chosen, spans)

    def at(self, halves: Halves, bounds: Bounds, place: Tensor, spans: list[tuple[str, str, int]]) -> Halves:
        """Both halves at places (N,) counted over all activations' inputs: (N below, N above)."""
        parts, order, start = [], [], 0
        for before, name, size in spans:
            rows = ((place >= start) & (place < start + size)).nonzero()[:, 0]
            if len(rows):
                inner = place[rows] - start
                cut = self.cut(name, bounds)[rows, inner]
                parts.append(halves[rows].split(before, inner, cut))
                order.append(torch.cat([rows, rows + len(place)]))
            start += size
        return Halves.joined(parts)[torch.cat(order).argsort()]

    def cut(self, name: str, bounds: Bounds) -> Tensor:
        """Where each number (N, numbers) would be split: at the knot nearest to the middle if one is inside."""
        curve = self.root.rules[name].curve(self.root.graph.nodes[name])
        low, high = (side.flatten(1) for side in bounds.boxes[self.before[name]])
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
        gap = torch.where(bounds.undecided(self.before[name]), gap, 0).flatten(1)
        return gap.clamp(min=0) * fronts[name].abs().flatten(1) if name in fronts else torch.zeros_like(gap)

    def broken(self, fronts: dict[str, Tensor], left: Tensor) -> bool:
        """Whether a point where a bound is attained is a true counterexample."""
        front = fronts[self.root.graph.input][left, 0]
        region = self.root.region[torch.zeros(len(front), dtype=torch.long, device=front.device)]
        with torch.no_grad():
            return bool(((self.root.graph(region.best(-front)) * self.a).sum(1) <= 0).any())
