"""Metrics by kind of task, each with a 95 % bootstrap interval; missing labels count for nothing.

Every metric takes row weights w (..., n) and works on the last axis, so a thousand resamples cost one sort.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from reprogram.errors import DataError

Array = np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval and the number of labels behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Metric:
    """`function(y, p, weights=None)` of one target; multilabel averages the metrics of kind "classification"."""

    function: Callable[..., Array]
    larger_is_better: bool
    kind: str


def _weights(y: Array, weights: Array | None) -> Array:
    return np.ones(len(y)) if weights is None else np.asarray(weights, dtype=float)


def _ratio(top: Array, bottom: Array) -> Array:
    """top / bottom, NaN where bottom is zero: a resample with one class only has no AUC and is skipped later."""
    bottom = np.asarray(bottom, dtype=float)
    return np.divide(top, bottom, out=np.full(bottom.shape, np.nan), where=bottom > 0)


def _mean(values: Array, weights: Array) -> Array:
    return _ratio(weights @ values, weights.sum(-1))


def rmse(y: Array, p: Array, weights: Array | None = None) -> Array:
    """Root of the mean squared error, in the units of y."""
    return np.sqrt(_mean((y - p) ** 2, _weights(y, weights)))


def mae(y: Array, p: Array, weights: Array | None = None) -> Array:
    """Mean absolute error, in the units of y."""
    return _mean(np.abs(y - p), _weights(y, weights))


def r2(y: Array, p: Array, weights: Array | None = None) -> Array:
    """Coefficient of determination, 1 - sum (y - p)^2 / sum (y - mean y)^2; NaN when y is constant."""
    w = _weights(y, weights)
    shifted = y - y.mean()  # sums of squares around a near-zero mean do not cancel
    spread = w @ shifted**2 - _ratio((w @ shifted) ** 2, w.sum(-1))
    floor = 1e-12 * (w @ shifted**2)
    return 1 - _ratio(w @ (y - p) ** 2, np.where(spread > floor, spread, 0.0))


def _tied(p: Array, descending: bool) -> tuple[Array, Array]:
    """The order of the scores and where each run of equal scores starts."""
    order = np.argsort(-p if descending else p, kind="stable")
    ranked = p[order]
    return order, np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])


def _roc_auc(y: Array, p: Array, w: Array) -> Array:
    order, starts = _tied(p, descending=False)
    positive = np.add.reduceat((w * y)[..., order], starts, axis=-1)
    negative = np.add.reduceat((w * (1 - y))[..., order], starts, axis=-1)
    below = np.cumsum(negative, axis=-1) - negative / 2
    return _ratio((positive * below).sum(-1), positive.sum(-1) * negative.sum(-1))


def _pr_auc(y: Array, p: Array, w: Array) -> Array:
    order, starts = _tied(p, descending=True)
    hits = np.add.reduceat((w * y)[..., order], starts, axis=-1)
    seen = np.cumsum(np.add.reduceat(w[..., order], starts, axis=-1), axis=-1)
    precision = np.nan_to_num(_ratio(np.cumsum(hits, axis=-1), seen))
    return _ratio((hits * precision).sum(-1), hits.sum(-1))


def _one_vs_rest(function: Callable[..., Array], y: Array, p: Array, w: Array) -> Array:
    """Binary as it is; more classes as the mean over the classes that occur."""
    if p.ndim == 1:
        return function(y, p, w)
    return _nanmean(np.stack([function((y == c).astype(float), p[:, c], w) for c in range(p.shape[1])]))


def _nanmean(values: Array) -> Array:
    valid = ~np.isnan(values)
    return _ratio(np.where(valid, values, 0).sum(0), valid.sum(0))


def roc_auc(y: Array, p: Array, weights: Array | None = None) -> Array:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half."""
    return _one_vs_rest(_roc_auc, y, p, _weights(y, weights))


def pr_auc(y: Array, p: Array, weights: Array | None = None) -> Array:
    """Average precision, sum over thresholds of (recall step) x precision."""
    return _one_vs_rest(_pr_auc, y, p, _weights(y, weights))


def brier(y: Array, p: Array, weights: Array | None = None) -> Array:
    """Mean squared error of the probabilities, summed over classes when there are more than two."""
    error = (p - y) ** 2 if p.ndim == 1 else ((p - np.eye(p.shape[1])[y.astype(int)]) ** 2).sum(1)
    return _mean(error, _weights(y, weights))


def accuracy(y: Array, p: Array, weights: Array | None = None) -> Array:
    """Share of rows whose likeliest class is right; a binary probability of 0.5 or more is class 1."""
    chosen = p >= 0.5 if p.ndim == 1 else p.argmax(1)
    return _mean((chosen == y).astype(float), _weights(y, weights))


def log_loss(y: Array, p: Array, weights: Array | None = None) -> Array:
    """Mean negative log-likelihood in nats, probabilities kept one float step away from zero."""
    columns = np.stack([1 - p, p], axis=1) if p.ndim == 1 else p / p.sum(1, keepdims=True)
    likely = columns[np.arange(len(y)), y.astype(int)]
    return _mean(-np.log(np.maximum(likely, np.finfo(float).eps)), _weights(y, weights))


METRICS: dict[str, Metric] = {
    "rmse": Metric(rmse, False, "regression"),
    "mae": Metric(mae, False, "regression"),
    "r2": Metric(r2, True, "regression"),
    "roc_auc": Metric(roc_auc, True, "classification"),
    "pr_auc": Metric(pr_auc, True, "classification"),
    "brier": Metric(brier, False, "classification"),
    "accuracy": Metric(accuracy, True, "classification"),
    "log_loss": Metric(log_loss, False, "classification"),
}


def rank_metric(kind: str) -> str:
    """The metric that ranks methods: "rmse" for regression, "roc_auc" for classes and labels."""
    return "rmse" if kind == "regression" else "roc_auc"


def evaluate(kind: str, y: Array, p: Array, *, seed: int = 0, resamples: int = 1000) -> dict[str, Estimate]:
    """Every metric of the kind, with 95 % percentile intervals over `resamples` bootstrap draws of the rows.

    Shapes: y (n,) and p (n,) for regression; y (n,) class indices and p (n,) of P(class 1) or (n, C) for
    classification; y, p (n, T) for multilabel, where a metric is the mean over the labels it exists for.
    NaN in y is a missing label. A metric that does not exist (the AUC of one class) is NaN; resamples without it
    are skipped.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, 1993
    Raises: DataError when shapes differ, predictions are not finite, or no label is there.
    """
    y, p = checked(kind, y, p)
    known = ~np.isnan(y)
    family = "regression" if kind == "regression" else "classification"
    estimates = {}
    for name, metric in METRICS.items():
        if metric.kind == family:
            measure = partial(macro, metric.function, y, p, known)
            draws = bootstrap_draws(measure, len(y), seed, resamples) if len(y) > 1 else np.zeros(0)
            estimates[name] = interval_of(float(measure(np.ones(len(y)))), draws, int(known.sum()))
    return estimates


def macro(function: Callable[..., Array], y: Array, p: Array, known: Array, weights: Array) -> Array:
    if y.ndim == 1:
        return function(y[known], p[known], weights[..., known])
    columns = [t for t in range(y.shape[1]) if known[:, t].any()]
    values = [function(y[known[:, t], t], p[known[:, t], t], weights[..., known[:, t]]) for t in columns]
    return _nanmean(np.stack(values))


def bootstrap_draws(measure: Callable[[Array], Array], n: int, seed: int, resamples: int) -> Array:
    """The metric on `resamples` draws of the rows; one seed gives every metric the same draws."""
    from scipy.stats import bootstrap

    def statistic(rows: Array, axis: int = -1) -> Array:
        # resampling row numbers keeps y, p and every label of a row together, and counts are what the metrics take
        drawn = np.atleast_2d(rows).astype(int)
        offsets = np.arange(len(drawn))[:, None] * n
        counts = np.bincount((drawn + offsets).ravel(), minlength=drawn.size).reshape(drawn.shape)
        return measure(counts.astype(float)).reshape(rows.shape[:-1])

    generator = np.random.default_rng(seed)
    options = {"n_resamples": resamples, "batch": max(1, 4_000_000 // n), "vectorized": True, "method": "percentile"}
    with warnings.catch_warnings():
        # scipy warns of its own interval when a draw has no AUC; ours leaves those draws out
        warnings.simplefilter("ignore")
        return bootstrap((np.arange(n),), statistic, rng=generator, **options).bootstrap_distribution


def interval_of(value: float, draws: Array, n: int) -> Estimate:
    kept = draws[~np.isnan(draws)]
    if np.isnan(value) or not len(kept):
        return Estimate(float(value), float("nan"), float("nan"), n)
    low, high = np.percentile(kept, [2.5, 97.5])
    # a percentile interval of a biased statistic can miss its own point value when n is tiny
    return Estimate(float(value), float(min(low, value)), float(max(high, value)), n)


def checked(kind: str, y: Array, p: Array) -> tuple[Array, Array]:
    if kind not in ("regression", "classification", "multilabel"):
        raise DataError(f"expected kind regression, classification or multilabel, got {kind!r}")
    y, p = np.asarray(y, dtype=float), np.asarray(p, dtype=float)
    shapes = f"y {y.shape} and p {p.shape}"
    if kind != "multilabel":
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        p = p[:, -1] if p.ndim == 2 and p.shape[1] <= (2 if kind == "classification" else 1) else p
    allowed = {"regression": (1,), "classification": (1, 2), "multilabel": (2,)}[kind]
    same = y.shape == p.shape if kind == "multilabel" else y.ndim == 1 and len(y) == len(p)
    if not same or p.ndim not in allowed:
        raise DataError(f"expected targets and predictions of matching shapes for {kind}, got {shapes}")
    if not np.isfinite(p).all():
        row = int(np.argwhere(~np.isfinite(p))[0, 0])
        raise DataError(f"expected finite predictions, got {p[row].tolist()} at row {row}")
    if np.isnan(y).all():
        raise DataError(f"expected at least one label to evaluate on, got {len(y)} rows without any")
    highest = p.shape[1] if kind == "classification" and p.ndim == 2 else 2
    strange = np.setdiff1d(y[~np.isnan(y)], np.arange(highest))
    if kind != "regression" and len(strange):
        raise DataError(f"expected class indices 0 to {highest - 1} as targets, got {strange[0]:g}")
    return y, p
