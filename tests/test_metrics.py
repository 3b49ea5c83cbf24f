"""Metrics against scikit-learn, under masks, weights and degenerate draws."""

import time

import numpy as np
import pytest
from sklearn import metrics as sk

from tasks.metrics import METRICS, evaluate, rank_metric


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_regression_matches_sklearn(rng):
    y = rng.normal(100, 2, 60)
    p = y + rng.normal(size=60)
    found = evaluate("regression", y, p, resamples=100)
    assert found["rmse"].value == pytest.approx(sk.root_mean_squared_error(y, p))
    assert found["mae"].value == pytest.approx(sk.mean_absolute_error(y, p))
    assert found["r2"].value == pytest.approx(sk.r2_score(y, p))


@pytest.mark.parametrize("decimals", [1, 8])
def test_binary_matches_sklearn_also_with_ties(rng, decimals):
    y = rng.integers(0, 2, 80).astype(float)
    p = np.clip(np.round(rng.random(80) * 0.7 + 0.3 * y, decimals), 0, 1)
    found = {name: e.value for name, e in evaluate("classification", y, p, resamples=50).items()}
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(y, p))
    assert found["pr_auc"] == pytest.approx(sk.average_precision_score(y, p))
    assert found["brier"] == pytest.approx(sk.brier_score_loss(y, p))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, p >= 0.5))
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, p))


def test_two_columns_equal_the_probability_of_class_one(rng):
    y, p = rng.integers(0, 2, 40), rng.random(40)
    assert evaluate("classification", y, p) == evaluate("classification", y, np.stack([1 - p, p], axis=1))


def test_several_classes_match_sklearn(rng):
    y, p = rng.integers(0, 3, 90), rng.dirichlet(np.ones(3), 90)
    found = {name: e.value for name, e in evaluate("classification", y, p, resamples=50).items()}
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr"))
    assert found["pr_auc"] == pytest.approx(sk.average_precision_score(np.eye(3)[y], p))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, p.argmax(1)))
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, p))
    assert found["brier"] == pytest.approx(((p - np.eye(3)[y]) ** 2).sum(1).mean())


def test_multilabel_is_the_macro_mean_over_known_labels(rng):
    y, p = rng.integers(0, 2, (70, 4)).astype(float), rng.random((70, 4))
    y[rng.random(y.shape) < 0.3] = np.nan
    y[:, 3] = np.where(np.isnan(y[:, 3]), np.nan, 1.0)  # one class: no AUC, so it does not enter the mean
    known = ~np.isnan(y)
    found = evaluate("multilabel", y, p, resamples=100)
    aucs = [sk.roc_auc_score(y[known[:, t], t], p[known[:, t], t]) for t in range(3)]
    assert found["roc_auc"].value == pytest.approx(np.mean(aucs))
    briers = [np.mean((y[known[:, t], t] - p[known[:, t], t]) ** 2) for t in range(4)]
    assert found["brier"].value == pytest.approx(np.mean(briers))
    assert found["brier"].n == known.sum()


def test_hidden_labels_change_nothing(rng):
    y, p = rng.normal(size=30), rng.normal(size=30)
    seen = np.r_[y, np.nan, np.nan], np.r_[p, 1e6, -1e6]
    assert evaluate("regression", *seen)["rmse"].value == pytest.approx(evaluate("regression", y, p)["rmse"].value)


@pytest.mark.parametrize("name", list(METRICS))
def test_weights_are_repeats(rng, name):
    metric = METRICS[name]
    y = rng.normal(size=25) if metric.kind == "regression" else rng.integers(0, 2, 25).astype(float)
    p, counts = rng.random(25), rng.integers(0, 4, 25)
    repeated = metric.function(np.repeat(y, counts), np.repeat(p, counts))
    assert float(metric.function(y, p, counts)) == pytest.approx(float(repeated))


@pytest.mark.parametrize("kind", ["regression", "classification", "multilabel"])
def test_intervals_hold_the_value_and_repeat(rng, kind):
    for n in (2, 5, 200):
        y = rng.integers(0, 2, (n, 3) if kind == "multilabel" else n).astype(float)
        y.flat[:2] = 0, 1
        p = rng.random(y.shape)
        found = evaluate(kind, y, p, seed=3, resamples=200)
        assert repr(found) == repr(evaluate(kind, y, p, seed=3, resamples=200))
        for estimate in found.values():
            assert np.isnan(estimate.value) or estimate.low <= estimate.value <= estimate.high
        assert repr(found) != repr(evaluate(kind, y, p, seed=4, resamples=200)) or n < 10


def test_the_interval_agrees_with_theory(rng):
    y = rng.normal(size=400)
    found = evaluate("regression", y, np.zeros(400), resamples=2000)["mae"]
    half = 1.96 * np.abs(y).std() / 20
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_one_class_has_no_auc_but_a_brier_score():
    found = evaluate("classification", np.ones(10), np.full(10, 0.8), resamples=50)
    assert np.isnan(found["roc_auc"].value) and np.isnan(found["roc_auc"].low)
    assert found["brier"].value == pytest.approx(0.04)


def test_rare_class_skips_degenerate_draws(rng):
    y = np.r_[1.0, np.zeros(19)]
    found = evaluate("classification", y, rng.random(20), resamples=300)["roc_auc"]
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_single_row_has_no_interval():
    found = evaluate("regression", [1.0], [2.0])["rmse"]
    assert found.value == 1.0 and np.isnan(found.low)


@pytest.mark.parametrize(
    ("kind", "y", "p", "words"),
    [
        ("regression", [1.0, 2.0], [1.0], "matching shapes"),
        ("regression", [1.0, 2.0], [1.0, np.nan], "finite"),
        ("regression", [np.nan], [1.0], "at least one label"),
        ("classification", [0, 2], [0.1, 0.2], "class indices"),
        ("multilabel", [0, 1], [0.1, 0.2], "matching shapes"),
        ("ranking", [0, 1], [0.1, 0.2], "expected kind"),
    ],
)
def test_bad_input_is_one_sentence(kind, y, p, words):
    with pytest.raises(ValueError, match=words):
        evaluate(kind, y, p)


def test_fast_enough(rng):
    y = rng.integers(0, 2, 642).astype(float)
    evaluate("classification", y, rng.random(642))
    start = time.process_time()
    evaluate("classification", y, rng.random(642))
    assert time.process_time() - start < 2
    assert (rank_metric("regression"), rank_metric("multilabel")) == ("rmse", "roc_auc")
