"""Searches of many starts side by side: each asks for scores, all are answered in common batches, every query is counted."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

import torch
from torch import Tensor

from adversarial.goals import Goal, LargerError

Candidate = Hashable
# candidates and the rows of the starts they belong to -> (n,), larger is nearer to the goal
Score = Callable[[list[Any], list[int]], Tensor]
# the same -> scores (n,) and an estimate (n, L, V) of what token v in place l would add to the score
Swaps = Callable[[list[Any], list[int]], tuple[Tensor, Tensor]]
Flip = tuple[float, Candidate]


class Space(Protocol):
    """What may stand for a start: all candidates one step away from one, one of them at random, and a mixture of two."""

    def neighbours(self, candidate: Any, rng: Random) -> list[Any]: ...
    def mutated(self, candidate: Any, rng: Random) -> Any: ...
    def crossed(self, first: Any, second: Any, rng: Random) -> Any: ...


@dataclass(frozen=True)
class Found:
    """What a search came to: the start itself where it did not reach the goal.

    `best` is the candidate of highest score that was seen, a success or not. `queries` counts candidates whose score was
    asked, the start included, `backwards` those whose gradient was.
    """

    candidate: Any
    success: bool
    natural: bool
    best: Any
    score: float
    queries: int
    backwards: int


@dataclass(frozen=True)
class Ask:
    """Candidates to be scored; with `flips`, so many single flips of each that promise most by their gradient as well."""

    candidates: list[Any]
    flips: int = 0


Plan = Generator[Ask, list[tuple[float, list[Flip]]], None]


@dataclass
class Known:
    """All that the search from one start has paid for."""

    start: Any
    space: Any
    limit: int
    reached: float
    scores: dict[Any, float] = field(default_factory=dict)
    queries: int = 0
    backwards: int = 0

    def unpaid(self, ask: Ask) -> list[Any]:
        """What has to be asked, no more than the budget allows; a gradient is never known already."""
        wanted = [c for c in dict.fromkeys(ask.candidates) if ask.flips or c not in self.scores]
        return wanted[: max(self.limit - self.queries, 0)]

    @property
    def best(self) -> Any:
        return max(self.scores, key=self.scores.__getitem__)

    @property
    def success(self) -> bool:
        return self.scores[self.best] > self.reached

    @property
    def over(self) -> bool:
        return self.queries >= self.limit or self.success

    def found(self) -> Found:
        best, natural = self.best, self.scores[self.start] > self.reached
        candidate = best if self.success and not natural else self.start
        return Found(candidate, self.success, natural, best, self.scores[best], self.queries, self.backwards)


class DiscreteSearch(Protocol):
    """`search(score, starts, spaces)` looks for a candidate with a score above `reached`, from every start alone.

    The searches of all starts go on side by side, so that `score` and `swaps` get large batches (of at most `batch_size`);
    no candidate is scored twice for a start, and a start whose goal is reached or whose `queries` are used up leaves. What
    one comes to depends on itself and `seed` only. `spaces` is one space for all, or one for each start.

    Raises: ValueError when starts and spaces differ in number, or where a search needs `swaps` and has none.
    """

    queries: int

    def plan(self, known: Known, rng: Random) -> Plan: ...

    def __call__(
        self, score: Score, starts: Sequence[Any], spaces: Any, *, reached: float = 0.0, swaps: Swaps | None = None,
        seed: int = 0, batch_size: int = 256,
    ) -> list[Found]:  # fmt: skip
        starts = list(starts)
        spaces = list(spaces) if isinstance(spaces, (list, tuple)) else [spaces] * len(starts)
        if len(spaces) != len(starts):
            raise ValueError(f"expected a space for each of {len(starts)} starts, got {len(spaces)}")
        if self.queries < 1:
            raise ValueError(f"expected at least one query, got {self.queries}")
        rows = [Known(start, space, self.queries, reached) for start, space in zip(starts, spaces, strict=True)]
        answer(dict.fromkeys(range(len(rows))), rows, [Ask([start]) for start in starts], score, swaps, batch_size)
        plans = {row: self.plan(rows[row], Random(f"{seed} {starts[row]!r}")) for row in range(len(rows))}
        replies: dict[int, Any] = dict.fromkeys(row for row in plans if not rows[row].over)
        while replies:
            asks = {row: ask for row, reply in replies.items() if (ask := following(plans[row], reply)) is not None}
            replies = answer(asks, rows, list(asks.values()), score, swaps, batch_size)
            replies = {row: reply for row, reply in replies.items() if not rows[row].over}
        return [known.found() for known in rows]


def following(plan: Plan, reply: Any) -> Ask | None:
    """What a plan asks next, None at its end."""
    try:
        return plan.send(reply)
    except StopIteration:
        return None


def answer(
    places: Iterable[int], rows: list[Known], asks: list[Ask], score: Score, swaps: Swaps | None, size: int
) -> dict[int, list[tuple[float, list[Flip]]]]:  # fmt: skip
    """Every row's reply to its question; the questions of all rows are asked in common batches."""
    places = list(places)
    plain = [(r, c) for r, ask in zip(places, asks, strict=True) if not ask.flips for c in rows[r].unpaid(ask)]
    steep = [(r, c, a.flips) for r, a in zip(places, asks, strict=True) if a.flips for c in rows[r].unpaid(a)]
    flips: dict[tuple[int, Any], list[Flip]] = {}
    for begin in range(0, len(plain), size):
        piece = plain[begin : begin + size]
        values = score([c for _, c in piece], [r for r, _ in piece]).tolist()
        for (row, candidate), value in zip(piece, values, strict=True):
            rows[row].scores[candidate] = value
            rows[row].queries += 1
    if steep and swaps is None:
        raise ValueError("expected swaps= for a search that follows gradients, got None; TokenScore has them")
    for begin in range(0, len(steep), size):
        some = steep[begin : begin + size]
        values, tables = swaps([c for _, c, _ in some], [r for r, _, _ in some])  # type: ignore[misc]
        for (row, candidate, count), value, table in zip(some, values.tolist(), tables, strict=True):
            rows[row].scores[candidate] = value
            rows[row].queries += 1
            rows[row].backwards += 1
            # kept instead of the tables, which would fill the memory
            flips[row, candidate] = rows[row].space.flips(candidate, table, count)
    return {
        r: [(rows[r].scores.get(c, -torch.inf), flips.get((r, c), [])) for c in ask.candidates]
        for r, ask in zip(places, asks, strict=True)
    }


def score_of(outputs: Tensor, goal: Goal) -> Tensor:
    """Scores (n,) of outputs (n, T): the margin, or for a regression its error."""
    return goal.loss(outputs, "margin")


def reached_at(goal: Goal) -> float:
    """The score above which a goal is reached."""
    return goal.tolerance if isinstance(goal, LargerError) else 0.0
