"""Which source, program and map? A budgeted search over all of them that looks at training and validation rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprogram.errors import BudgetError, DataError
from reprogram.model import Reprogrammed
from reprogram.objectives import adam
from reprogram.parts import AUTO, PROGRAMS, build_mapping, build_program
from reprogram.sources import Source
from reprogram.train import Training, fit, refresh

if TYPE_CHECKING:
    import optuna

Data = Mapping[str, tuple[Sequence[Any], Any]]
FITTING = {
    "graph": ("none", "delta"),
    "tokens": ("none", "free", "dense", "sparse"),
    "image": ("none", "pad", "full", "resize", "mask", "affine"),
    "series": ("none", "series"),
    "features": ("none",),
}
LABELLED = ("iterative", "bayesian+", "linear")  # maps of a source that answers with classes
RATES = (3e-3, 1e-2, 3e-2)


@dataclass(frozen=True)
class Candidate:
    """One way to reprogram: a source by name, a program and a map by name, a learning rate for both."""

    source: str
    program: str
    mapping: str
    rate: float

    def __str__(self) -> str:
        return f"{self.program} → {self.source} → {self.mapping}, rate {self.rate:g}"


@dataclass(frozen=True)
class Trial:
    """What a candidate reached: the smallest validation loss over `epochs` passes, and whether it was stopped early."""

    candidate: Candidate
    loss: float
    epochs: int
    stopped: bool
    error: str = ""


@dataclass(frozen=True)
class Selection:
    """The answer of `select`: trials, best first, and how to build the best one."""

    trials: tuple[Trial, ...]
    seed: int
    sources: Mapping[str, Source] = field(repr=False)

    @property
    def best(self) -> Candidate:
        """The candidate with the smallest validation loss."""
        return self.trials[0].candidate

    def build(self, inputs: Sequence[Any], outputs: int, kind: str) -> Reprogrammed:
        """A fresh model of the best candidate, to be trained on all rows."""
        return assembled(self.best, self.sources[self.best.source], inputs, outputs, kind, self.seed)

    def why(self) -> str:
        """One sentence: what won, by how much, against the best of each other source."""
        first = self.trials[0]
        others = {t.candidate.source: t for t in reversed(self.trials) if t.candidate.source != first.candidate.source}
        text = f"{first.candidate} has the smallest validation loss, {first.loss:.3g}, of {len(self.trials)} tried"
        beaten = ", ".join(f"{name} at best {trial.loss:.3g}" for name, trial in others.items())
        return f"{text}; {beaten}." if beaten else f"{text}."

    def to_markdown(self) -> str:
        """The ranked table and the reason."""
        lines = ["| rank | program | source | map | rate | validation loss | passes |", "| --- |" + " --- |" * 6]
        for rank, t in enumerate(self.trials, start=1):
            c, passes = t.candidate, f"{t.epochs}{' (stopped)' if t.stopped else ''}"
            loss = t.error or f"{t.loss:.4g}"
            lines.append(f"| {rank} | {c.program} | {c.source} | {c.mapping} | {c.rate:g} | {loss} | {passes} |")
        return "\n".join([*lines, "", self.why()]) + "\n"


def candidates(source: Source, kind: str, programs: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Programs and maps that can stand around a source: (program, map) pairs."""
    fitting = FITTING.get(source.takes, ("none",)) if source.differentiable and source.takes in AUTO else ("none",)
    maps = LABELLED if source.returns == "logits" and kind == "classification" else ("linear",)
    wanted = [p for p in (fitting if programs is None else programs) if p in PROGRAMS]
    return [(program, mapping) for program in wanted for mapping in maps]


def select(
    data: Data, sources: Sequence[Source], *, kind: str, outputs: int, budget: int = 20, epochs: int = 30,
    programs: Sequence[str] | None = None, rates: Sequence[float] = RATES, batch_size: int = 32, seed: int = 0,
    storage: str | Path | None = None, progress: bool = True,
) -> Selection:  # fmt: skip
    """Try `budget` candidates and rank them by validation loss; weak ones are stopped early (successive halving).

    Args:
        data: `{"train": (inputs, targets), "validation": (inputs, targets)}`; nothing else is looked at.
        sources: frozen sources to choose from; each with the programs and maps that fit it, or with `programs` alone.
        budget: candidates tried, also those that are stopped early. `epochs` is the longest training of one.
        storage: a journal file; a search that was stopped goes on from it.

    Reference: Jamieson & Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS
    2016, arXiv:1502.07943 (successive halving); the search is Optuna's TPE (Akiba et al., KDD 2019).
    Raises: DataError for missing validation rows, no source, or when every candidate fails.
    """
    if missing := [part for part in ("train", "validation") if part not in data]:
        raise DataError(f"expected training and validation rows to select on, got no {missing[0]} part")
    if not sources or budget < 1:
        raise DataError(f"expected at least one source and a budget of at least 1, got {len(sources)} and {budget}")
    known = {source.name: source for source in sources}
    study = opened(storage, seed, epochs)
    tried = {str(t.candidate): t for trial in study.trials if (t := finished(trial)) is not None}
    options = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
    with progress_bar(budget, len(tried), progress) as bar:
        for _ in range(10 * budget):  # the search may come back to what it has tried, which costs nothing
            if len(tried) >= budget:
                break
            trial = study.ask()
            candidate = suggested(trial, known, kind, programs, rates)
            if str(candidate) in tried:
                study.tell(trial, tried[str(candidate)].loss)
                continue
            tried[str(candidate)] = run(
                candidate, known[candidate.source], data, kind, outputs, study, trial, **options
            )
            bar.update()
    ranked = sorted(tried.values(), key=lambda t: t.loss)
    if not np.isfinite(ranked[0].loss):
        raise DataError(f"expected a candidate that can be trained, got none: {ranked[0].error}")
    return Selection(tuple(ranked), seed, known)


def progress_bar(total: int, done: int, shown: bool) -> Any:
    """tqdm over candidates."""
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=min(done, total), desc="select", unit="run", disable=not shown)


def suggested(
    trial: optuna.Trial, known: Mapping[str, Source], kind: str, programs: Sequence[str] | None, rates: Sequence[float]
) -> Candidate:
    """The candidate that the search wants next; a source's programs and maps are asked about under its own name."""
    name = trial.suggest_categorical("source", sorted(known))
    pairs = candidates(known[name], kind, programs)
    program = trial.suggest_categorical(f"program of {name}", list(dict.fromkeys(p for p, _ in pairs)))
    mapping = trial.suggest_categorical(f"map of {name}", list(dict.fromkeys(m for _, m in pairs)))
    trial.set_user_attr("candidate", [name, program, mapping, rate := trial.suggest_categorical("rate", list(rates))])
    return Candidate(name, program, mapping, rate)


def opened(storage: str | Path | None, seed: int, epochs: int) -> optuna.Study:
    """A study, from its journal where there is one."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kept = None
    if storage is not None:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        Path(storage).parent.mkdir(parents=True, exist_ok=True)
        kept = JournalStorage(JournalFileBackend(str(storage)))
    return optuna.create_study(
        study_name="reprogram", storage=kept, load_if_exists=True, direction="minimize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=8),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, epochs // 9), reduction_factor=3),
    )  # fmt: skip


def assembled(
    candidate: Candidate, source: Source, inputs: Sequence[Any], outputs: int, kind: str, seed: int
) -> Reprogrammed:
    """A fresh model of a candidate."""
    program = build_program(candidate.program, source, inputs, seed)
    return Reprogrammed(program, source, build_mapping(candidate.mapping, source.width, outputs, kind, seed))


def run(
    candidate: Candidate, source: Source, data: Data, kind: str, outputs: int, study: optuna.Study, trial: optuna.Trial,
    *, epochs: int, batch_size: int, seed: int,
) -> Trial:  # fmt: skip
    """Train one candidate; its validation loss after every pass decides whether it goes on."""
    from optuna.trial import TrialState

    pruned = False

    def tell(state: Training) -> None:
        nonlocal pruned
        trial.report(state.history.epochs[-1]["validation_loss"], state.epoch + 1)
        pruned = trial.should_prune()
        state.stop = state.stop or pruned

    try:
        model = assembled(candidate, source, data["train"][0], outputs, kind, seed)
        learns = any(True for _ in model.trainable())
        rates = adam(program=candidate.rate, mapping=candidate.rate)
        history = fit(
            model, data, optimizer=rates, epochs=epochs if learns else 1, batch_size=batch_size,
            patience=max(5, epochs // 3), hooks=[refresh, tell], seed=seed, progress=False,
        )  # fmt: skip
    except BudgetError:
        raise
    except ValueError as error:  # this one cannot be built or trained on these rows; others may
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=TrialState.FAIL)
        return Trial(candidate, float("inf"), 0, False, str(error))
    found = Trial(candidate, min(history.column("validation_loss")), len(history.epochs), pruned)
    trial.set_user_attr("best", found.loss)
    trial.set_user_attr("epochs", found.epochs)
    if pruned:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, found.loss)
    return found


def finished(trial: optuna.trial.FrozenTrial) -> Trial | None:
    """A trial of an earlier search as a row; None for one that was cut off or only came back to another."""
    facts = trial.user_attrs
    if not trial.state.is_finished() or not {"best", "error"} & set(facts):
        return None
    candidate = Candidate(*facts["candidate"])
    if "error" in facts:
        return Trial(candidate, float("inf"), 0, False, facts["error"])
    return Trial(candidate, facts["best"], facts["epochs"], trial.state.name == "PRUNED")
