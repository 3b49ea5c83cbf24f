"""What a user would fit on fixed features: forests, ridge, closed-form maps, their mean and their stack."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reprogram.features import target_tensor
from reprogram.gaussian_process import GaussianProcess
from reprogram.mapping import Kind, probabilities
from reprogram.parts import build_mapping
from reprogram.readout import folds, stack_weights
from reprogram.sources import Source
from tasks.features import FeatureTable

Array = np.ndarray
CLIP = 8.0  # standard deviations: a descriptor that is constant in training must not explode on a test molecule


@dataclass(frozen=True)
class Problem:
    """Labelled training rows and unlabelled test rows: all that a learner ever sees.

    Shapes: y (n,), class indices (n,), or (n, T) with NaN for missing labels; `outputs` is 1, classes, or T.
    """

    kind: Kind
    outputs: int
    inputs: list[str]
    y: Array
    test: list[str]
    seed: int

    def fold(self, train: Array, test: Array) -> Problem:
        """The same problem on some training rows, with others as its test rows."""
        inputs, test_inputs = [self.inputs[i] for i in train], [self.inputs[i] for i in test]
        return Problem(self.kind, self.outputs, inputs, self.y[train], test_inputs, self.seed)


# (x (n, D), y, x_test (m, D), problem) -> (m,) values, (m, C) class probabilities or (m, T) label probabilities
Fit = Callable[[Array, Array, Array, Problem], Array]
Single = Callable[[Array, Array, Array, str, int], Array]  # the same for one target: (x, y, x_test, kind, seed)


@dataclass(frozen=True)
class Learner:
    """A fit on the concatenated features of some sources; `bits` turns circular fingerprint counts into presence."""

    sources: tuple[str | Source, ...]
    fit: Fit
    bits: bool = False

    def __call__(self, table: FeatureTable, problem: Problem) -> Array:
        parts = [(table.features(s, problem.inputs), table.features(s, problem.test)) for s in self.sources]
        if self.bits:
            parts = [(a > 0, b > 0) if s == "morgan" else (a, b) for s, (a, b) in zip(self.sources, parts, strict=True)]
        train, test = (np.concatenate(part, axis=1, dtype=np.float32) for part in zip(*parts, strict=True))
        return self.fit(train, problem.y, test, problem)


def by_label(fit: Single, x: Array, y: Array, x_test: Array, problem: Problem) -> Array:
    """`fit` once, or once per label on the rows where that label is known."""
    if problem.kind == "regression":
        return fit(x, y, x_test, "regression", problem.seed)
    if problem.kind == "classification":
        return classes(fit, x, y.astype(int), x_test, problem.outputs, problem.seed)
    known = ~np.isnan(y)
    rows = [(x[known[:, t]], y[known[:, t], t].astype(int)) for t in range(problem.outputs)]
    return np.stack([classes(fit, some, label, x_test, 2, problem.seed)[:, 1] for some, label in rows], axis=1)


def classes(fit: Single, x: Array, y: Array, x_test: Array, count: int, seed: int) -> Array:
    """Probabilities (m, count) with a column for every class, also for one without a training row."""
    seen = np.bincount(y, minlength=count)
    present = np.flatnonzero(seen)
    if len(present) < 2:
        return np.tile((seen + 0.5) / (seen + 0.5).sum(), (len(x_test), 1))
    full = np.zeros((len(x_test), count))
    full[:, present] = fit(x, y, x_test, "classification", seed)
    return full


def forest(x: Array, y: Array, x_test: Array, problem: Problem) -> Array:
    """Random forest: 200 trees on a third of the features for values, 300 for classes, scikit-learn's defaults else.

    Reference: Breiman, "Random Forests", Machine Learning 2001.
    """
    return by_label(_forest, x, y, x_test, problem)


def _forest(x: Array, y: Array, x_test: Array, kind: str, seed: int) -> Array:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    if kind == "regression":
        return RandomForestRegressor(200, max_features=0.33, n_jobs=1, random_state=seed).fit(x, y).predict(x_test)
    return RandomForestClassifier(300, n_jobs=1, random_state=seed).fit(x, y).predict_proba(x_test)


def ridge(x: Array, y: Array, x_test: Array, problem: Problem) -> Array:
    """Ridge on standardised, clipped features, penalty by leave-one-out; classes by cross-validated logistic loss."""
    return by_label(_ridge, x, y, x_test, problem)


def _ridge(x: Array, y: Array, x_test: Array, kind: str, seed: int) -> Array:
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeCV
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    x, x_test = (np.clip(scaler.transform(part), -CLIP, CLIP) for part in (x, x_test))
    if kind == "regression":
        return RidgeCV(np.logspace(-1, 5, 13)).fit(x, y).predict(x_test)
    rarest = int(np.unique(y, return_counts=True)[1].min())
    if rarest < 2:  # no two folds can hold the class, so nothing can choose the penalty: the middle of the range
        return LogisticRegression(C=1e-2, max_iter=200).fit(x, y).predict_proba(x_test)
    model = LogisticRegressionCV(
        Cs=np.logspace(-5, 0, 6), cv=min(5, rarest), scoring="neg_log_loss", max_iter=200, tol=1e-3,
        use_legacy_attributes=False, l1_ratios=(0.0,),
    )  # fmt: skip
    return model.fit(x, y).predict_proba(x_test)


def mapped(mapping: str) -> Fit:
    """One of the library's own closed-form maps, "ridge", "gp" or "tanimoto", with no program in front."""

    def fit(x: Array, y: Array, x_test: Array, problem: Problem) -> Array:
        features, target = torch.from_numpy(x), target_tensor(y, problem.kind)
        if mapping == "tanimoto":
            readout: Any = GaussianProcess(x.shape[1], problem.outputs, kind=problem.kind, kernels=("tanimoto",))
        else:
            readout = build_mapping(mapping, x.shape[1], problem.outputs, problem.kind)
        readout.prepare(features, target)
        readout.refit(features, target)
        with torch.no_grad():
            values = probabilities(problem.kind, readout(torch.from_numpy(x_test))).double().numpy()
        return values[:, 0] if problem.kind == "regression" else values

    return fit


def mean(members: Sequence[Learner], table: FeatureTable, problem: Problem) -> Array:
    """The plain mean of the members' values or probabilities."""
    return np.mean([member(table, problem) for member in members], axis=0)


def stack(members: Sequence[Learner], table: FeatureTable, problem: Problem) -> Array:
    """Members weighted by non-negative least squares on 5-fold out-of-fold predictions, half-way to equal weights."""
    target = np.eye(problem.outputs)[problem.y.astype(int)] if problem.kind == "classification" else problem.y
    held_out = np.zeros((len(members), *target.shape))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        cuts = folds(problem.kind, target_tensor(problem.y, problem.kind), 5, problem.seed)
    for train, test in cuts:
        fold = problem.fold(train.numpy(), test.numpy())
        for m, member in enumerate(members):
            held_out[m, test.numpy()] = member(table, fold)
    known = ~np.isnan(target)
    # a far tolerance keeps every member, as in the measured peer that this reproduces
    weights = stack_weights(held_out[:, known].T, target[known], tolerance=1e9)
    return np.tensordot(weights, [member(table, problem) for member in members], axes=1)
