"""One search: what was proposed, what was sent to the oracle, what is left of the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tasks.molecules.constraints import Constraint, total
from tasks.molecules.molecule import Molecule, parsed
from tasks.molecules.objective import Objective


class Finished(Exception):
    """The search is over; the reason is its text."""


@dataclass(frozen=True)
class Limits:
    """`calls` are unique, valid, feasible molecules sent to the oracle; `proposals` whatever a method writes, valid or
    not; `goal` is a fitness at which a search may stop."""

    calls: int
    proposals: int
    goal: float = float("inf")


@dataclass(frozen=True)
class Call:
    """One molecule that was sent: when, what it is worth, and how it came about."""

    call: int
    proposals: int
    smiles: str
    values: tuple[float, ...]
    origin: str = ""


@dataclass(frozen=True)
class Known:
    """What a search knows of a proposal: None for no molecule; its violation, 0 where feasible; its values if it was sent."""

    molecule: Molecule | None
    violation: float = float("inf")
    values: tuple[float, ...] | None = None


@dataclass
class Search:
    """A search from one start, or from several that make one population.

    A method proposes SMILES by calling it; it answers what they are worth, and raises `Finished` when a limit is reached.
    The starts are measured first; they are no calls of a method, but count as calls of the budget.
    """

    starts: Sequence[Molecule]
    objective: Objective
    constraints: Sequence[Constraint]
    limits: Limits
    calls: list[Call] = field(default_factory=list)
    proposals: int = 0
    known: dict[str, Known] = field(default_factory=dict)
    texts: dict[str, str | None] = field(default_factory=dict)
    report: Callable[[Search, int], None] = lambda search, new: None

    def begin(self) -> None:
        """Measure the starts."""
        for molecule in self.starts:
            self.known[molecule.smiles] = Known(molecule, self.violation(molecule))
        self.send(dict.fromkeys((molecule.smiles for molecule in self.starts), "start"))

    def __call__(self, proposed: Sequence[str], origin: str = "") -> list[Known]:
        """What each proposal is worth; new feasible ones are sent to the oracle while the budget lasts."""
        names = self.look(proposed)
        self.ask(dict.fromkeys((name for name in names if name), origin))
        return [self.known[name] if name else Known(None) for name in names]

    def look(self, proposed: Sequence[str]) -> list[str | None]:
        """The canonical SMILES of each proposal that the budget of proposals still allows, None for no molecule."""
        allowed = proposed[: self.limits.proposals - self.proposals]
        self.proposals += len(allowed)
        return [self.read(text) for text in allowed]

    def ask(self, origins: Mapping[str, str]) -> None:
        """Send these molecules where they are feasible and new, the first ones if the budget does not allow all."""
        new = [name for name in origins if self.worthy(name)][: self.limits.calls - len(self.calls)]
        self.send({name: origins[name] for name in new})
        self.check()

    def read(self, text: str) -> str | None:
        """Canonical SMILES of a proposal, its constraints checked when it is new."""
        if text not in self.texts:
            molecule = parsed(text)
            self.texts[text] = molecule.smiles if molecule else None
            if molecule and molecule.smiles not in self.known:
                self.known[molecule.smiles] = Known(molecule, self.violation(molecule))
        return self.texts[text]

    def worthy(self, name: str) -> bool:
        """Feasible and not yet sent."""
        return self.known[name].violation == 0 and self.known[name].values is None

    def violation(self, molecule: Molecule) -> float:
        """By how much a molecule fails the constraints, seen from the start that it suits best."""
        shared = [constraint for constraint in self.constraints if not constraint.own]
        own = [constraint for constraint in self.constraints if constraint.own]
        # what does not look at the start is measured once, however many starts are one population
        return total(shared, molecule, self.starts[0]) + min(total(own, molecule, start) for start in self.starts)

    def send(self, origins: Mapping[str, str]) -> None:
        """One batch to the oracle: SMILES with what wrote them. What failed before was paid for, so less may be left."""
        if not origins:
            return
        count = self.objective.affordable(list(origins))
        if not count:
            raise Finished("no budget left in the ledger")
        origins = dict(list(origins.items())[:count])
        for (name, origin), row in zip(origins.items(), self.objective.evaluate(list(origins)), strict=True):
            values = tuple(float(value) for value in row)
            self.known[name] = replace(self.known[name], values=values)
            self.calls.append(Call(len(self.calls) + 1, self.proposals, name, values, origin))
        self.report(self, len(origins))

    def check(self) -> None:
        """Raise `Finished` when there is nothing left to do."""
        if self.reached():
            raise Finished("goal reached")
        if len(self.calls) >= self.limits.calls:
            raise Finished("all calls used")
        if self.proposals >= self.limits.proposals:
            raise Finished("all proposals used")

    def reached(self) -> bool:
        if self.limits.goal == float("inf"):
            return False
        return bool(max(self.fitness(), default=-np.inf) >= self.limits.goal)

    def values(self) -> np.ndarray:
        """What the oracles said (n, k), in the order of `calls`."""
        found = [call.values for call in self.calls]
        return np.array(found, dtype=np.float64).reshape(len(found), len(self.objective.names))

    def fitness(self) -> np.ndarray:
        """What every molecule sent is worth beside the others (n,), in the order of `calls`; infeasible starts last."""
        feasible = np.array([self.known[call.smiles].violation == 0 for call in self.calls], dtype=bool)
        worth = np.full(len(feasible), -np.inf)
        # an infeasible start must not push others down a Pareto rank
        worth[feasible] = self.objective.fitness(self.values()[feasible])
        return worth

    def ranked(self) -> list[tuple[float, str]]:
        """Fitness and SMILES of the feasible molecules sent so far, best first, earlier ones first among equals."""
        worth = self.fitness()
        order = np.argsort(-worth, kind="stable")
        return [(float(worth[i]), self.calls[i].smiles) for i in order if worth[i] > -np.inf]

    @property
    def left(self) -> tuple[int, int]:
        """Calls and proposals that are left."""
        return self.limits.calls - len(self.calls), self.limits.proposals - self.proposals
