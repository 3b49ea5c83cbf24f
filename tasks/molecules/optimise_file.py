"""Optimising the molecules of a file: words from the command line as constraints, preferences and an objective."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reprogram.errors import DataError
from tasks.labels import short
from tasks.molecules.constraints import Alerts, Constraint, Range, Similarity, Substructure
from tasks.molecules.data import read_molecules
from tasks.molecules.objective import Lexicographic, Pareto, Preference, Weighted
from tasks.molecules.optimisation_result import OptimisationResult
from tasks.molecules.optimize import optimize
from tasks.molecules.oracles import oracle

PREFERENCES = {"weighted": Weighted, "lexicographic": Lexicographic}


def optimize_file(
    starts: Any, objective: Sequence[str] = ("qed",), out: str | Path = "runs/optimised", *, input: str | None = None,
    similarity: float | None = 0.4, within: Sequence[str] = (), keep: Sequence[str] = (), forbid: Sequence[str] = (),
    alerts: bool = False, prefer: str | None = None, timeout: float | None = None, failing: bool = False,
    cleaning: dict[str, bool] | None = None, **options: Any,
) -> OptimisationResult:  # fmt: skip
    """`optimize` for every molecule of a table, SDF or list, its words read as the command line writes them.

    Args:
        objective: what `oracles.oracle` reads, one or several.
        within: "property:low:high", either bound may be empty.
        keep, forbid: SMARTS patterns.
        prefer: "weighted:1,0.5", "lexicographic:0.9,-3" with a goal for each objective, or "pareto", the default of several.
        timeout, failing: those of `oracles.Oracle`.
        cleaning: options of `tasks.molecules.Standardiser`.
        options: those of `optimize`.

    Raises: DataError for a row that is no molecule, with its number; for a word that cannot be read.
    """
    found = read_molecules(starts, smiles=input or "smiles", **(cleaning or {}))
    if found.report.dropped:
        row = found.report.dropped[0]
        raise DataError(
            f"expected a molecule in every row, got {short(row.input)} in row {row.row}: {row.reason}; mend it or take it "
            f"out ({len(found.report.dropped)} such rows)"
        )
    constraints: list[Constraint] = [] if similarity is None else [Similarity(similarity)]
    constraints += [range_of(word) for word in within]
    constraints += [Substructure(smarts) for smarts in keep]
    constraints += [Substructure(smarts, forbidden=True) for smarts in forbid]
    constraints += [Alerts()] if alerts else []
    asked = [oracle(word, timeout=timeout, failing=failing) for word in objective]
    return optimize(found.inputs, asked, tuple(constraints), prefer=preference(prefer, len(asked)), out=out, **options)


def range_of(word: str) -> Range:
    """ "logp:1:4" as a constraint."""
    parts = word.split(":")
    try:
        low, high = (
            float(part) if part else sign * float("inf") for part, sign in zip(parts[1:], (-1, 1), strict=True)
        )
    except ValueError:
        raise DataError(f"expected property:low:high such as logp:1:4 or weight::500, got {short(word)}") from None
    return Range(parts[0], low, high)


def preference(word: str | None, count: int) -> Preference | None:
    """ "weighted:1,2", "lexicographic:0.9,0.5" or "pareto" for so many objectives."""
    if word is None:
        return None
    name, _, rest = word.partition(":")
    if name == "pareto" and not rest:
        return Pareto()
    try:
        numbers = tuple(float(part) for part in rest.split(","))
    except ValueError:
        numbers = ()
    if name not in PREFERENCES or len(numbers) != count:
        raise DataError(
            f"expected weighted: or lexicographic: with {count} numbers, one for each objective, or pareto, got {short(word)}"
        )
    return PREFERENCES[name](numbers)
