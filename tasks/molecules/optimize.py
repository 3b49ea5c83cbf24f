"""Better molecules from few evaluations of a property: starts, an objective, constraints and a budget in, molecules out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from reprogram.errors import BudgetError, DataError
from reprogram.files import atomic_file, check_place
from reprogram.sources.ledger import Ledger
from tasks.labels import short
from tasks.molecules import latent
from tasks.molecules.constraints import Constraint, Similarity
from tasks.molecules.latent import Space, entry
from tasks.molecules.molecule import Molecule, start
from tasks.molecules.objective import Objective, Preference
from tasks.molecules.optimisation_result import OptimisationResult, Run
from tasks.molecules.optimisers import METHODS, Draws, GraphGA, Optimiser
from tasks.molecules.search import Finished, Limits, Search

PROPOSALS = 10  # written for each call that may be made
LIMITS = ("budget", "proposals")  # may grow in a run's folder: its ledger has what was answered before


def optimize(
    starts: Iterable[Any], objective: Any = "qed", constraints: Sequence[Constraint] = (Similarity(0.4),), *,
    budget: int = 500, space: Any = "annalog", seed: int = 0, method: str | Optimiser = "guided",
    prefer: Preference | None = None, goal: float | None = None, proposals: int | None = None,
    together: bool | None = None, out: str | Path | None = None, progress: bool = True,
) -> OptimisationResult:  # fmt: skip
    """Molecules near the starts, or grown out of them, that the objective likes better.

    Args:
        starts: SMILES or RDKit molecules.
        objective: a name ("qed", "plogp", "min:sa", a GuacaMol objective), the folder of a trained artefact,
            "command:…", a function of a list of SMILES, an `Oracle`, a list of those, or an `Objective`, which brings
            its own `prefer` and ledger. A run knows a function by its name only: change the name with what it measures.
        constraints: what every molecule must fulfil before it is asked for.
        budget: molecules the oracle may be asked for in all, starts included; every start has an equal share. A molecule
            counts when it is valid, feasible and new to its search.
        space: "annalog", a sequence-to-sequence model's folder or hub id, or a pair (encode, decode) of functions.
        method: a name of `tasks.molecules.optimisers.METHODS`, or an optimiser.
        prefer: what several objectives are worth together: `Pareto` by default, `Weighted` or `Lexicographic`.
        goal: a start's search ends when its only objective reaches this value, or the fitness of several does.
        proposals: molecules a method may write in all, valid or not; ten times the budget by default.
        together: whether the starts are one population; by default they are unless a constraint compares with the start.
        out: a folder for the ledger, finished searches and results. A run that was stopped goes on from there without
            asking anything twice, also with a larger budget; several processes (`accelerate launch`) share the searches
            and the ledger, one population is one search.

    Returns the best molecule of every search with every call that was made. Same seed, same result.

    Raises: DataError for an unusable start, a budget below the number of starts, or a folder of another run; what the
    oracle raises, everything answered before being kept in `out`.
    """
    molecules = [start(one, row) for row, one in enumerate(starts)]
    ways = METHODS.get(method) if isinstance(method, str) else method
    if ways is None:
        raise DataError(f"expected a method among {', '.join(METHODS)}, got {short(method)}")
    folder = None if out is None else Path(out)
    target = asked_for(objective, prefer, folder, budget)
    plan = Plan.made(molecules, constraints, budget, proposals, target.enough(goal), together)
    place = latent.space(space)
    config = {
        "starts": [molecule.smiles for molecule in molecules],
        "objectives": [f"{'max' if one.maximise else 'min'} {one.identity}" for one in target.oracles],
        "prefer": described(target.prefer), "constraints": [described(one) for one in constraints], "budget": budget,
        "proposals": sum(one.proposals for one in plan.limits), "goal": goal, "method": described(ways), "space": place.name, "seed": seed, "together": len(plan.groups) == 1,
    }  # fmt: skip
    store = Store(folder, config)

    def result(runs: Sequence[Run]) -> OptimisationResult:
        return OptimisationResult(
            tuple(runs), tuple(target.names), tuple(bool(one.maximise) for one in target.oracles), config,
            target.ledger.summary(), main_process(),
        )  # fmt: skip

    found: dict[int, Run] = {}
    try:
        runs = searched(plan, target, ways, place, seed, store, progress, found)
    except BaseException:  # also a key pressed: what was measured is worth looking at
        some = [run for _, run in sorted(found.items()) if run.calls]
        if folder is not None and some and main_process():
            with suppress(Exception):  # the error that ended the search is the one to tell
                result(some).save(folder)
        raise
    if folder is not None and main_process():
        result(runs).save(folder)
    return result(runs)


def described(part: Any) -> str:
    """How a run knows its parts again in another process, where an object without a text of its own lies elsewhere."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(part))


def asked_for(objective: Any, prefer: Preference | None, folder: Path | None, budget: int) -> Objective:
    """The objective with a ledger that lies in the run's folder."""
    if isinstance(objective, Objective):
        if prefer is not None:
            raise DataError("expected prefer within the Objective, got it beside it; write Objective(..., prefer=...)")
        if folder is not None and objective.ledger.file is None:
            raise DataError(
                "expected an Objective with a ledger in a file for a run that can go on, got one in memory; "
                f"write Objective(..., ledger=Ledger({str(folder / 'ledger.db')!r}, budget={budget}))"
            )
        return objective
    many = list(objective) if isinstance(objective, (list, tuple)) else [objective]
    ledger = Ledger(None if folder is None else folder / "ledger.db", budget=budget)
    return Objective(many, prefer=prefer, ledger=ledger)


@dataclass(frozen=True)
class Plan:
    """Which starts are searched from together, under which constraints and limits."""

    groups: tuple[tuple[Molecule, ...], ...]
    constraints: tuple[Constraint, ...]
    limits: tuple[Limits, ...]

    @classmethod
    def made(
        cls, molecules: Sequence[Molecule], constraints: Sequence[Constraint], budget: int, proposals: int | None,
        goal: float, together: bool | None,
    ) -> Plan:  # fmt: skip
        """Equal shares for every search. Raises DataError where a share would be empty."""
        if not molecules:
            raise DataError("expected at least one molecule to start from, got none")
        unique = list(dict.fromkeys(molecules))
        one = not any(constraint.own for constraint in constraints) if together is None else together
        groups = (tuple(unique),) if one else tuple((molecule,) for molecule in unique)
        written = PROPOSALS * budget if proposals is None else proposals
        least = len(groups) * (max(map(len, groups)) + 1)
        if budget < least or written < len(groups):
            raise DataError(
                f"expected a budget of at least {least} calls and {len(groups)} proposals, because the {len(unique)} "
                f"starts are measured first, got {budget} and {written}; raise it or take fewer starts"
            )
        limits = tuple(
            Limits(share(budget, len(groups), i), share(written, len(groups), i), goal) for i in range(len(groups))
        )
        return cls(groups, tuple(constraints), limits)


def share(total: int, parts: int, index: int) -> int:
    """The share of one of so many parts, as equal as whole numbers allow."""
    return total // parts + (index < total % parts)


class Store:
    """Finished searches in a folder, one file each; without a folder they are forgotten."""

    def __init__(self, folder: Path | None, config: dict[str, Any]):
        self.folder, self.config = folder, config
        if folder is None:
            return
        check_place(folder)
        settings = folder / "run.json"
        before = json.loads(settings.read_text()) if settings.is_file() else config
        other = [key for key in config if before.get(key) != json.loads(json.dumps(config[key]))]
        grown = all(key in LIMITS and config[key] >= before[key] for key in other)
        if other and not grown:
            raise DataError(
                f"expected the run that {folder} was begun with, got another {', '.join(other)}; choose another folder "
                "(only budget and proposals may grow)"
            )
        if main_process():
            with atomic_file(settings) as path:
                path.write_text(json.dumps(config, indent=1))

    def read(self, index: int, limits: Limits) -> Run | None:
        """A search that is finished under these limits."""
        if self.folder is None or not (path := self.path(index)).is_file():
            return None
        found = json.loads(path.read_text())
        return Run.from_dict(found["run"]) if found["limits"] == repr(limits) else None

    def write(self, index: int, limits: Limits, run: Run) -> None:
        if self.folder is not None:
            with atomic_file(self.path(index)) as path:
                path.write_text(json.dumps({"limits": repr(limits), "run": asdict(run)}))

    def path(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / "searches" / f"{index:05d}.json"


def state() -> Any:
    """Accelerate's view of the processes; searches may take days, so the slowest is waited for."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))


def main_process() -> bool:
    return bool(state().is_main_process)


def searched(
    plan: Plan, target: Objective, method: Optimiser, place: Space, seed: int, store: Store, progress: bool,
    found: dict[int, Run],
) -> list[Run]:  # fmt: skip
    """Every search of the plan, those of this process run, into `found`, and those of the others collected."""
    from accelerate.utils import gather_object
    from tqdm.auto import tqdm

    own = list(range(len(plan.groups)))[state().process_index :: state().num_processes]
    shown = progress and main_process()
    calls = sum(plan.limits[index].calls for index in own)
    with tqdm(total=calls, desc="optimise", unit="call", delay=2, disable=not shown) as bar:
        for index in own:
            before, run = bar.n, store.read(index, plan.limits[index])
            if run is None:
                run = one_search(plan, index, target, method, place, seed, bar, partial(found.__setitem__, index))
                store.write(index, plan.limits[index], run)
            found[index] = run
            bar.update(plan.limits[index].calls - (bar.n - before))
    if state().num_processes > 1:
        found = {index: run for part in gather_object([found]) for index, run in part.items()}
    return [found[index] for index in sorted(found)]


def one_search(
    plan: Plan, index: int, target: Objective, method: Optimiser, place: Space, seed: int, bar: Any,
    unfinished: Callable[[Run], None] = lambda run: None,
) -> Run:  # fmt: skip
    """From one group of starts until a limit is reached; `unfinished` gets what there is when an error ends it.

    Starts that the space cannot read go the graph route when the method needs the space and has no other start.
    """
    starts = plan.groups[index]
    forms = [entry(place, molecule.smiles) for molecule in starts]
    route = GraphGA() if method.latent and all(form is None for form, _ in forms) else method
    note = remarks(starts, forms, route)
    search = Search(starts, target, plan.constraints, plan.limits[index], report=shown_on(bar))
    try:
        search.begin()
        search.check()
        route(search, place, Draws((seed, index)))
        reason = "the method ended"
    except Finished as end:
        reason = str(end)
    except BudgetError as error:
        reason = f"no budget left ({error})"
    except BaseException:
        unfinished(Run.of(search, route.name, "stopped by an error", note))
        raise
    return Run.of(search, route.name, reason, note)


def remarks(starts: Sequence[Molecule], forms: Sequence[tuple[str | None, str]], route: Optimiser) -> str:
    """Which starts the space reads in another form or not at all, and what becomes of those."""
    lost = "measured but not searched from, as guided or graph-ga would" if route.latent else "searched as a graph"
    said = []
    for molecule, (form, why) in zip(starts, forms, strict=True):
        if form is None:
            said.append(f"{molecule.smiles[:60]} is {lost}: {why}")
        elif why:
            said.append(f"the space reads {molecule.smiles[:60]} {why}")
    return "; ".join(said)


def shown_on(bar: Any) -> Any:
    """What a progress bar shows after a batch: calls so far and the best fitness."""

    def report(search: Search, new: int) -> None:
        bar.update(new)
        best = search.ranked()
        if best:
            bar.set_postfix(best=f"{best[0][0]:.3f}", refresh=False)

    return report
