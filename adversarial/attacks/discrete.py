"""Search over discrete substitutes: greedy, beam, genetic, and guided by gradients. What a candidate is, only its space knows."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import torch

from adversarial.attacks.asking import Ask, DiscreteSearch, Found, Known, Plan, Space, reached_at, score_of

__all__ = ["Beam", "DiscreteSearch", "Found", "Genetic", "Greedy", "HotFlip", "Space", "reached_at", "score_of"]


@dataclass(frozen=True)
class Beam(DiscreteSearch):
    """The best `width` candidates so far, each replaced by any of its neighbours that is better.

    Args:
        width: candidates that are kept; 1 is greedy search.
        steps: how often the neighbours of what is kept are scored.
        sample: so many random ones of the neighbours instead of all.
        queries: candidates scored at most, the start included.

    Reference: Ebrahimi et al., ACL 2018, arXiv:1712.06751 (beam); Yoo et al., "Searching for a search method",
    BlackboxNLP 2020, arXiv:2009.06368 (compared with others).
    """

    width: int = 5
    steps: int = 10
    sample: int | None = None
    queries: int = 1000

    def plan(self, known: Known, rng: Random) -> Plan:
        kept, seen = [(known.scores[known.start], known.start)], {known.start}
        for _ in range(self.steps):
            near = dict.fromkeys(n for _, c in kept for n in known.space.neighbours(c, rng) if n not in seen)
            fresh = list(near)
            if self.sample is not None and len(fresh) > self.sample:
                fresh = rng.sample(fresh, self.sample)
            if not fresh:
                return
            replies = yield Ask(fresh)
            seen.update(fresh)
            kept += [(value, candidate) for (value, _), candidate in zip(replies, fresh, strict=True)]
            kept = sorted(kept, key=lambda one: -one[0])[: self.width]


def Greedy(steps: int = 10, sample: int | None = None, queries: int = 1000) -> Beam:
    """Beam search with one place: the best of all neighbours, as long as one is better."""
    return Beam(1, steps, sample, queries)


@dataclass(frozen=True)
class Genetic(DiscreteSearch):
    r"""A population: parents are drawn with probability $\propto e^{score}$, crossed, and the child is mutated; the best stays.

    Args:
        population: 60 in the paper.
        generations: 20 in the paper.
        temperature: scores are divided by it before parents are drawn.
        queries: candidates scored at most, the start included.

    Reference: Alzantot et al., "Generating natural language adversarial examples", EMNLP 2018, arXiv:1804.07998.
    Differs from the paper: a mutation is any substitute, not the best one of a place, so it costs one query.
    """

    population: int = 60
    generations: int = 20
    temperature: float = 1.0
    queries: int = 1300

    def plan(self, known: Known, rng: Random) -> Plan:
        people = [known.space.mutated(known.start, rng) for _ in range(self.population)]
        for _ in range(self.generations + 1):
            replies = yield Ask(people)
            values = [value for value, _ in replies]
            top = max(values)
            weights = torch.tensor([(value - top) / self.temperature for value in values], dtype=torch.float64).exp()
            parents = rng.choices(people, weights.tolist(), k=2 * (self.population - 1))
            couples = zip(parents[::2], parents[1::2], strict=True)
            children = [known.space.mutated(known.space.crossed(a, b, rng), rng) for a, b in couples]
            people = [people[values.index(top)], *children]


@dataclass(frozen=True)
class HotFlip(DiscreteSearch):
    r"""Beam search over the flips whose first-order gain $\nabla_{e_l}^T (E_v - E_{x_l})$ is largest; needs `swaps=`.

    One forward and one backward pass of a candidate rank all its flips.

    Args:
        width: candidates kept.
        steps: flips at most.
        queries: candidates scored at most, the start included.

    Reference: Ebrahimi, Rao, Lowd & Dou, "HotFlip: white-box adversarial examples for text classification", ACL 2018,
    arXiv:1712.06751.
    Differs from the paper: a candidate enters the next beam by its true score plus one flip's gain, not by a sum of gains.
    """

    width: int = 10
    steps: int = 10
    queries: int = 1000

    def plan(self, known: Known, rng: Random) -> Plan:
        kept, seen = [known.start], {known.start}
        for _ in range(self.steps):
            replies = yield Ask(kept, flips=self.width + len(seen))
            promise: dict[Any, float] = {}
            for value, flips in replies:
                for gain, candidate in flips:
                    if candidate not in seen:
                        promise[candidate] = max(promise.get(candidate, -torch.inf), value + gain)
            kept = sorted(promise, key=lambda candidate: -promise[candidate])[: self.width]
            if not kept:
                return
            seen.update(kept)
        yield Ask(kept)
