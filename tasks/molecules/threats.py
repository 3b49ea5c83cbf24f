"""What may stand for a molecule: its other SMILES, which must not change a prediction, and its nearest analogues.

`rewrite_robustness` measures what rewrites do to a model; `Rewrites` and `Analogues` are spaces for the searches of
`adversarial.attacks.discrete`, `MoleculeScore` is what these ask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adversarial.attacks.discrete import score_of
from adversarial.goals import Goal
from reprogram.errors import DataError
from reprogram.model import Reprogrammed
from reprogram.train import predict
from tasks.metrics import Estimate, bootstrap_draws, interval_of
from tasks.molecules.analogues import Analogue, analogues
from tasks.molecules.molecule import Molecule, parsed
from tasks.molecules.rewriting import KINDS, OPTIONAL, drawn, rewrites

__all__ = [
    "KINDS", "OPTIONAL", "Analogue", "Analogues", "MoleculeScore", "Rewrites", "Rewritten", "analogues", "rewrite_robustness",
    "rewrites",
]  # fmt: skip


@dataclass(frozen=True)
class Rewrites:
    """The space of one molecule's SMILES: every step is `count` other texts of the same molecule."""

    count: int = 20
    kinds: tuple[str, ...] = KINDS

    def neighbours(self, candidate: str, rng: Random) -> list[str]:
        return rewrites(candidate, self.count, self.kinds, rng.getrandbits(31))

    def mutated(self, candidate: str, rng: Random) -> str:
        return next(iter(rewrites(candidate, 1, (rng.choice(self.kinds),), rng.getrandbits(31))), candidate)

    def crossed(self, first: str, second: str, rng: Random) -> str:
        """Two texts of one molecule have no mixture; one of them."""
        return rng.choice((first, second))


@dataclass(frozen=True)
class Analogues:
    """The space of valid molecules around `start`, one edit a step, never less similar to it than `least`."""

    start: str
    least: float = 0.6
    count: int | None = None

    def alike(self, smiles: str) -> bool:
        own, other = parsed(self.start), parsed(smiles)
        return isinstance(own, Molecule) and isinstance(other, Molecule) and own.similarity(other) >= self.least

    def neighbours(self, candidate: str, rng: Random) -> list[str]:
        near = (other.smiles for other in analogues(candidate))
        return [smiles for smiles in near if self.alike(smiles)][: self.count]

    def mutated(self, candidate: str, rng: Random) -> str:
        near = self.neighbours(candidate, rng)
        return rng.choice(near) if near else candidate

    def crossed(self, first: str, second: str, rng: Random) -> str:
        """One of both: a mixture of graphs would leave the neighbourhood."""
        return rng.choice((first, second))


@dataclass(frozen=True)
class MoleculeScore:
    """Scores of SMILES under a model of molecules, for `DiscreteSearch`; minus infinity for what the model cannot read."""

    model: Reprogrammed
    goal: Goal

    def __call__(self, candidates: list[str], rows: list[int]) -> Tensor:
        outputs, kept = readable(self.model, candidates)
        scores = torch.full((len(candidates),), -torch.inf, dtype=torch.float64)
        if len(kept):
            found = logits(self.model.mapping.kind, torch.from_numpy(outputs).double())
            goal = self.goal[torch.tensor(rows)[kept]]
            goal.check(found)
            scores[kept] = score_of(found, goal)
        return scores


def logits(kind: str, predicted: Tensor) -> Tensor:
    """Log-probabilities of classes, logits of labels, values as they are."""
    tiny = torch.finfo(torch.float32).tiny
    if kind == "classification":
        return predicted.clamp_min(tiny).log()
    return torch.logit(predicted, eps=1e-12) if kind == "multilabel" else predicted


def readable(model: Reprogrammed, texts: Sequence[str], accelerator: Any = None) -> tuple[np.ndarray, list[int]]:
    """Predictions (k, T) for the texts that a model can read, and which these are: some rewrites are too long for it."""
    kept = list(range(len(texts)))
    try:
        return predict(model, list(texts), accelerator=accelerator), kept
    except ValueError:
        kept = [place for place in kept if reads(model, texts[place])]
    if not kept:
        return np.zeros((0, model.mapping.outputs)), kept
    return predict(model, [texts[place] for place in kept], accelerator=accelerator), kept


def reads(model: Reprogrammed, text: str) -> bool:
    try:
        model.encode([text])
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Rewritten:
    """What rewrites did to a model's predictions. n molecules, m rewrites that it could read, T outputs.

    clean (n, T): predictions for the texts as given; y the truth or None. For rewrite j: row[j] its molecule, text[j],
    form[j] its kind, output[j] (T,), moved[j] whether the decision flipped (0 or 1), for a regression by how much the
    prediction moved, in its units. `refused` rewrites were too long, or otherwise unreadable, for the model.
    """

    kind: str
    smiles: list[str]
    clean: np.ndarray
    y: np.ndarray | None
    row: np.ndarray
    text: list[str]
    form: list[str]
    output: np.ndarray
    moved: np.ndarray
    refused: int

    def by_kind(self) -> dict[str, dict[str, Estimate]]:
        """`summary` of each kind of rewrite alone."""
        return {form: self.summary(form) for form in dict.fromkeys(self.form)}

    def summary(self, form: str | None = None, *, seed: int = 0, resamples: int = 1000) -> dict[str, Estimate]:
        """Estimates with 95 % intervals over molecules that have a rewrite (of kind `form`).

        "flip_rate" and "flipped": share of rewrites, and of molecules with at least one, that get another decision.
        Regression: "change" and "worst_change", mean over molecules of the mean and the largest move. With the truth also "error"
        (share of wrong decisions, RMSE for a regression) as given, "error_rewritten" over the rewrites, "error_worst" at
        the worst text of each molecule, itself included, and "growth", error_rewritten / error.
        """
        some = np.array([form in (None, each) for each in self.form], dtype=bool)
        rows, n = self.row[some], len(self.smiles)
        has = np.bincount(rows, minlength=n) > 0
        names = ("change", "worst_change") if self.kind == "regression" else ("flip_rate", "flipped")
        values = dict(zip(names, per_molecule(rows, self.moved[some], n), strict=True))
        measures: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            name: lambda w, v=value[has]: mean(v, w) for name, value in values.items()
        }
        if self.y is not None:
            own = loss(self.kind, self.clean, self.y)
            average, worst = per_molecule(rows, loss(self.kind, self.output[some], self.y[rows]), n)
            known = has & ~np.isnan(own)
            own, average, worst = own[known], average[known], np.maximum(own, worst)[known]
            root = np.sqrt if self.kind == "regression" else (lambda value: value)
            errors = {"error": own, "error_rewritten": average, "error_worst": worst}
            measures |= {name: lambda w, v=value: root(mean(v, w)) for name, value in errors.items()}
            measures["growth"] = lambda w: ratio(root(mean(average, w)), root(mean(own, w)))
        found = {}
        for name, measure in measures.items():
            count = int(has.sum()) if name in names else int(known.sum())
            found[name] = estimate(measure, count, seed, resamples)
        return found


def per_molecule(rows: np.ndarray, values: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and largest value of every molecule (n,); NaN where it has none."""
    count = np.bincount(rows, minlength=n)
    average = ratio(np.bincount(rows, weights=values, minlength=n), count)
    largest = np.full(n, -np.inf)
    np.maximum.at(largest, rows, values)
    return average, np.where(count > 0, largest, np.nan)


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return ratio(weights @ values, weights.sum(-1))


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    top, bottom = np.broadcast_arrays(np.asarray(top, dtype=float), np.asarray(bottom, dtype=float))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)


def estimate(measure: Callable[[np.ndarray], np.ndarray], n: int, seed: int, resamples: int) -> Estimate:
    if not n:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    value = float(measure(np.ones(n)))
    return Estimate(value, value, value, 1) if n == 1 else interval_of(
        value, bootstrap_draws(measure, n, seed, resamples), n
    )  # fmt: skip


def decisions(kind: str, output: np.ndarray) -> np.ndarray:
    """Class (m, 1), or labels (m, T)."""
    return output.argmax(1)[:, None] if kind == "classification" else output > 0.5


def loss(kind: str, output: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean over the known targets of squared error or wrong decision (m,); NaN where none is known."""
    known = ~np.isnan(y)
    wrong = (output - y) ** 2 if kind == "regression" else decisions(kind, output) != y
    return ratio(np.where(known, wrong, 0.0).sum(1), known.sum(1))


def moves(kind: str, output: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """How far predictions (m, T) are from the clean ones: the largest difference, or 1 for another decision (m,)."""
    if kind == "regression":
        return np.abs(output - clean).max(1)
    return (decisions(kind, output) != decisions(kind, clean)).any(1).astype(float)


def rewrite_robustness(
    model: Reprogrammed, smiles: Sequence[str], y: Any = None, *, count: int = 10, kinds: Sequence[str] = KINDS,
    seed: int = 0, accelerator: Any = None,
) -> Rewritten:  # fmt: skip
    """Flip rate (classes, labels) or change and error growth (values) of a model under `count` rewrites of every molecule.

    Give the molecules in the form that the model was trained on (`tasks.load_task` makes it canonical). y: the truth,
    (n,) or (n, T), NaN where unknown. A model of graphs or fingerprints reads all rewrites alike and does not move.

    Over the processes of an `accelerator` each text is predicted once.

    Raises: DataError for what is no molecule, with its row, and for a truth of another shape.
    """
    texts = list(smiles)
    clean, kind = predict(model, texts, accelerator=accelerator), model.mapping.kind
    truth = None if y is None else np.asarray(y, dtype=float).reshape(len(texts), -1)
    if truth is not None and truth.shape[1] != (1 if kind == "classification" else clean.shape[1]):
        raise DataError(f"expected a truth for predictions {clean.shape}, got {truth.shape}")
    found = [(row, *one) for row, text in enumerate(texts) for one in of_row(row, text, count, kinds, seed)]
    output, kept = readable(model, [text for _, text, _ in found], accelerator) if found else (clean[:0], [])
    row = np.array([found[place][0] for place in kept], dtype=int)
    return Rewritten(
        kind, texts, clean, truth, row, [found[place][1] for place in kept], [found[place][2] for place in kept],
        output, moves(kind, output, clean[row]), len(found) - len(kept),
    )  # fmt: skip


def of_row(row: int, text: str, count: int, kinds: Sequence[str], seed: int) -> list[tuple[str, str]]:
    """A molecule's rewrites with their kinds; an error names its row."""
    try:
        return drawn(text, count, kinds, seed)
    except DataError as error:
        raise DataError(f"{error} (row {row})") from None
