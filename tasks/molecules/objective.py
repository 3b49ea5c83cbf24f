"""What is optimised: one oracle or several, what their values are worth together, and the ledger of what was asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reprogram.errors import DataError
from reprogram.sources.black_box import attempted
from reprogram.sources.ledger import Ledger
from tasks.molecules.oracles import Oracle, oracle

Preference = Callable[[np.ndarray], np.ndarray]
# columns of the results, in which an objective of that name would write over something else
COLUMNS = frozenset(
    ("search", "rank", "start", "smiles", "fitness", "similarity", "call", "calls", "proposals", "origin", "method", "reason",
     "note")
)  # fmt: skip
UNNAMED = ("<lambda>", "partial")


@dataclass(frozen=True)
class Weighted:
    """Sum of the values, each times its weight."""

    weights: tuple[float, ...]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return values @ np.asarray(self.weights, dtype=float)


@dataclass(frozen=True)
class Lexicographic:
    """The first value up to its goal comes first, then the second up to its own, and so on; then what exceeds the goals.

    Goals are signed like the values: larger is better. A goal reached is worth 1, and the next value counts only then.
    """

    goals: tuple[float, ...]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        goals = np.asarray(self.goals, dtype=float)
        reached = np.cumprod(values >= goals, axis=1)
        counts = np.concatenate([np.ones((len(values), 1)), reached[:, :-1]], axis=1)
        share = np.where(values >= goals, 1.0, 1.0 / (1.0 + np.maximum(goals - values, 0.0)))
        surplus = np.tanh(np.maximum(values - goals, 0.0)).mean(1) * reached[:, -1]
        return (counts * share).sum(1) + surplus


@dataclass(frozen=True)
class Pareto:
    """Minus the rank by non-dominated sorting, ties by crowding distance: NSGA-II's order.

    Reference: Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", IEEE TEVC 2002.
    """

    def __call__(self, values: np.ndarray) -> np.ndarray:
        from moocore import pareto_rank

        ranks = pareto_rank(values, maximise=True).astype(float)
        room = np.zeros(len(values))
        for rank in np.unique(ranks):
            front = np.flatnonzero(ranks == rank)
            room[front] = crowding(values[front])
        return -ranks + room / (1 + room)  # a distance below infinity never outweighs a rank


def crowding(front: np.ndarray) -> np.ndarray:
    """How far apart each point's neighbours are, summed over the values (n, k); the ends of a front count most."""
    distance = np.zeros(len(front))
    for column in front.T:
        order = np.argsort(column, kind="stable")
        spread = max(np.ptp(column), 1e-12)
        gaps = np.full(len(front), 2.0)
        gaps[1:-1] = (column[order][2:] - column[order][:-2]) / spread
        distance[order] += gaps
    return distance


def keyed(one: Oracle, smiles: str) -> bytes:
    """What a ledger knows an oracle's value of a molecule by: another oracle asks anew."""
    return hashlib.sha256(f"{one.identity}\n{smiles}".encode()).digest()


class Objective:
    """One or several oracles and what their values together are worth.

    `prefer` turns values (n, k), signed so that larger is better, into fitness (n,); it may compare the rows, as Pareto
    ranks do, and is `Pareto` for several oracles: values in different units have no sum. A molecule asked is one query of the `ledger`, whatever the number of oracles, and is never asked twice; a
    call without an answer is repeated `retries` times after `wait`, 2 `wait`, … seconds, and every attempt is paid for.

    Raises: DataError for no oracle, two of one name, or a nameless function with a ledger that outlives it; what the oracles raise; BudgetError from the ledger.
    """

    def __init__(
        self, oracles: Sequence[Any], *, prefer: Preference | None = None, ledger: Ledger | None = None, retries: int = 2,
        wait: float = 0.5,
    ):  # fmt: skip
        self.oracles = [oracle(one) for one in oracles]
        self.names = [one.name for one in self.oracles]
        if not self.oracles or len(set(self.names)) < len(self.names):
            raise DataError(f"expected one or more objectives of different names, got {self.names}")
        if taken := sorted(COLUMNS.intersection(self.names)):
            raise DataError(
                f"expected a name that is no column of the results, got an objective called {taken[0]}; "
                "write tasks.molecules.Oracle(function, 'another name')"
            )
        self.sign = np.array([1.0 if one.maximise else -1.0 for one in self.oracles])
        self.prefer = prefer or (Weighted((1.0,)) if len(self.oracles) == 1 else Pareto())
        rows = len(getattr(self.prefer, "weights", getattr(self.prefer, "goals", self.names)))
        if rows != len(self.names):
            raise DataError(f"expected a number in {self.prefer} for each of {', '.join(self.names)}, got {rows}")
        self.ledger = Ledger() if ledger is None else ledger
        if self.ledger.file is not None and (unnamed := [name for name in self.names if name in UNNAMED]):
            raise DataError(
                f"expected oracles with names, by which a ledger knows their answers, got {unnamed[0]}; "
                "write tasks.molecules.Oracle(function, 'name')"
            )
        self.retries, self.wait = retries, wait

    def evaluate(self, smiles: Sequence[str]) -> np.ndarray:
        """Values (n, k) as the oracles gave them; only what was never asked is asked."""
        known = self.known(smiles)
        new = [text for text in dict.fromkeys(smiles) if not known.keys() >= set(self.keys(text))]
        size = min(one.batch for one in self.oracles)
        for first in range(0, len(new), size):
            known |= self.answered(new[first : first + size], known)
        self.ledger.add("hits", len(smiles) - len(new))
        return np.array([[np.frombuffer(known[key])[0] for key in self.keys(text)] for text in smiles])

    def answered(self, smiles: list[str], known: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """One call's values by key. An oracle's answers are remembered before the next one is asked: it may fail."""
        found: dict[bytes, bytes] = {}

        def ask() -> dict[bytes, bytes]:
            for one in self.oracles:
                some = {key: text for text in smiles if (key := keyed(one, text)) not in known and key not in found}
                fresh = {key: value.tobytes() for key, value in zip(some, one(list(some.values())), strict=True)}
                self.ledger.remember(fresh)
                found.update(fresh)
            return found

        return attempted(ask, self.ledger, len(smiles), self.retries, self.wait, "the objective")

    def affordable(self, smiles: Sequence[str]) -> int:
        """How many of these molecules, from the first, the ledger's budget allows; answered ones are free."""
        known, left = self.known(smiles), self.ledger.left
        for count, text in enumerate(smiles):
            left -= not known.keys() >= set(self.keys(text))
            if left < 0:
                return count
        return len(smiles)

    def known(self, smiles: Sequence[str]) -> dict[bytes, bytes]:
        """What the ledger knows of these molecules."""
        return self.ledger.known([key for text in smiles for key in self.keys(text)])

    def keys(self, smiles: str) -> list[bytes]:
        """What the ledger knows a molecule's values by, oracle by oracle."""
        return [keyed(one, smiles) for one in self.oracles]

    def enough(self, goal: float | None) -> float:
        """The fitness at which a search may stop: that of a value of the only objective; of several, the goal itself."""
        if goal is None:
            return float("inf")
        if isinstance(self.prefer, Pareto):
            raise DataError(
                "expected no goal beside a Pareto front, which has no best molecule; take Lexicographic goals"
            )
        return float(self.fitness(np.array([[goal]]))[0]) if len(self.names) == 1 else goal

    def fitness(self, values: np.ndarray) -> np.ndarray:
        """Fitness (n,) of values (n, k); a molecule that could not be measured is worth minus infinity."""
        measured = ~np.isnan(values).any(1)
        found = np.full(len(values), -np.inf)
        if measured.any():
            found[measured] = self.prefer(values[measured] * self.sign)
        return found
