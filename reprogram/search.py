"""A budgeted search over a finite pool: a Gaussian process over what candidates have in common says which is tried next."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reprogram.errors import BudgetError, DataError
from reprogram.files import atomic_file

Told = Callable[[float], bool]
Attempt = Callable[["Candidate", Told], float]
NOISE = 0.3  # variance beside the one that what candidates share explains


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
    """What a candidate reached: its validation loss, infinite for one that was stopped early or failed, and why it failed.

    `curve` has the plain validation loss after every pass, which decides who is stopped.
    """

    candidate: Candidate
    loss: float
    curve: tuple[float, ...]
    stopped: bool = False
    error: str = ""

    @property
    def epochs(self) -> int:
        """Passes over the training rows."""
        return len(self.curve)

    @property
    def rank(self) -> tuple[float, float]:
        """What trials are sorted by: stopped ones come last, by how far they got."""
        return self.loss, min(self.curve, default=float("inf"))

    @property
    def outcome(self) -> str:
        """The loss, the plain one where it was stopped, or the error."""
        return self.error or (f"{min(self.curve):.3g} when stopped" if self.stopped else f"{self.loss:.3g}")


def search(
    pool: Sequence[Candidate], attempt: Attempt, *, budget: int, epochs: int, seed: int = 0,
    first: Sequence[Candidate] = (), journal: str | Path | None = None, identity: str = "",
    progress: bool = True,
) -> list[Trial]:  # fmt: skip
    """Try `budget` candidates of the pool, those in `first` before others; returns the trials in their order.

    `attempt(candidate, told)` trains one, calls `told(validation loss)` after every pass, which says whether to stop, and
    returns the loss to compare by. A candidate is stopped after a third of `epochs` passes when its best loss is worse than
    the median of the others there.

    Reference: Jones, Schonlau & Welch, "Efficient Global Optimization of Expensive Black-Box Functions", 1998 (expected
    improvement); Golovin et al., "Google Vizier", KDD 2017 (the median rule).
    Differs: the process reads normal scores of the losses, so that one that diverged does not stretch the scale; its
    kernel is fixed, for twenty trials teach none.
    """
    from tqdm.auto import tqdm

    trials = recorded(journal, pool, identity)
    likeness = alike(pool)
    places = {candidate: place for place, candidate in enumerate(pool)}
    bar = tqdm(total=min(budget, len(pool)), initial=len(trials), desc="select", unit="run", disable=not progress)
    with bar:
        while len(trials) < min(budget, len(pool)):
            known = [places[t.candidate] for t in trials]
            opening = [places[candidate] for candidate in first if places[candidate] not in known]
            chosen = opening[0] if opening else following(likeness, known, [t.rank for t in trials], seed)
            trials.append(tried(pool[chosen], attempt, trials, max(1, epochs // 3)))
            record(journal, trials, identity)
            bar.update()
    return trials


def tried(candidate: Candidate, attempt: Attempt, before: Sequence[Trial], patience: int) -> Trial:
    """One candidate trained until it ends, is stopped or fails; a spent budget of a black box is no failure of one."""
    others = [min(t.curve[:patience]) for t in before if t.curve]
    curve: list[float] = []
    stopped = False

    def told(loss: float) -> bool:
        nonlocal stopped
        curve.append(loss)
        stopped = len(curve) == patience and len(others) > 2 and bool(min(curve) > np.median(others))
        return stopped

    try:
        loss, error = attempt(candidate, told), ""
    except BudgetError:
        raise
    except (ValueError, TypeError) as reason:  # this one cannot be built or trained on these rows; others may
        loss, error = float("inf"), str(reason)
    return Trial(candidate, float("inf") if stopped else loss, tuple(curve), stopped, error)


def alike(pool: Sequence[Candidate]) -> np.ndarray:
    """Covariances (n, n), 1 on the diagonal: what source, program, map and rate share, alone and together."""
    source, program, mapping = (
        (column[:, None] == column).astype(float)
        for column in (np.array([getattr(c, name) for c in pool]) for name in ("source", "program", "mapping"))
    )
    logs = np.log([c.rate for c in pool])
    near = np.exp(-np.abs(logs[:, None] - logs) / np.log(5))
    here = source * program
    return (source + here + mapping / 2 + source * mapping / 2 + near / 2 + here * near / 2) / 4


def following(likeness: np.ndarray, known: Sequence[int], ranks: Sequence[tuple[float, float]], seed: int) -> int:
    """The place in the pool with the largest expected improvement; chance decides the first and between equals."""
    from scipy.stats import norm, rankdata

    left = np.setdiff1d(np.arange(len(likeness)), known)
    lot = np.random.default_rng([seed, len(known)]).random(len(left))
    if len(known) < 2:
        return int(left[np.argmax(lot)])
    place = {rank: number for number, rank in enumerate(sorted(set(ranks)))}
    scores = norm.ppf((rankdata([place[rank] for rank in ranks]) - 0.5) / len(ranks))
    across = likeness[np.ix_(known, left)]
    solved = np.linalg.solve(likeness[np.ix_(known, known)] + NOISE * np.eye(len(known)), across)
    mean, spread = scores @ solved, np.sqrt(np.clip(1 - (across * solved).sum(0), 1e-9, None))
    steps = (scores.min() - mean) / spread
    gain = spread * (steps * norm.cdf(steps) + norm.pdf(steps))
    return int(left[np.lexsort((lot, gain))[-1]])


def recorded(journal: str | Path | None, pool: Sequence[Candidate], identity: str) -> list[Trial]:
    """Trials of an earlier search that was stopped.

    Raises: DataError for the journal of another search: other rows, settings or candidates.
    """
    if journal is None or not Path(journal).is_file():
        return []
    found = json.loads(Path(journal).read_text())
    if found["identity"] != identity:
        raise DataError(f"expected the journal of this very search in {journal}, got another's; choose another file")
    facts: list[dict[str, Any]] = found["trials"]
    trials = [Trial(**f | {"candidate": Candidate(**f["candidate"]), "curve": tuple(f["curve"])}) for f in facts]
    if strange := [t.candidate for t in trials if t.candidate not in set(pool)]:
        raise DataError(f"expected a journal of the same search, got '{strange[0]}' in {journal}; choose another file")
    return trials


def record(journal: str | Path | None, trials: Sequence[Trial], identity: str) -> None:
    """Write all trials, whole or not at all."""
    if journal is not None:
        with atomic_file(journal) as writing:
            writing.write_text(json.dumps({"identity": identity, "trials": [asdict(trial) for trial in trials]}) + "\n")
