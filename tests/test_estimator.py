"""The estimators inside scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks as checks

import reprogram as rp

SMILES = [
    "CCO", "CCN", "CCC", "CCCC", "CCCCO", "c1ccccc1", "c1ccccc1O", "CC(=O)O", "CCOC", "CCCl", "CCBr", "CC#N", "CCCCCC", "OCCO",
    "CC(C)O", "CC(C)C", "CNC", "CCS", "C1CCCCC1", "C1CCOC1", "Cc1ccccc1", "CC=O", "CCC=O", "COC", "CF",
]  # fmt: skip
Y = np.array([s.count("O") * 2.0 - s.count("C") * 0.5 for s in SMILES])


@pytest.mark.parametrize("source, program", [("descriptors", "auto"), ("morgan", "auto")])
def test_cross_validation_and_pipeline_on_smiles(source, program):
    model = rp.ReprogramRegressor(source, program=program)
    pipeline = make_pipeline(FunctionTransformer(lambda x: [s.strip() for s in x]), model)
    scores = cross_val_score(pipeline, [f" {s} " for s in SMILES], Y, cv=3, scoring="r2", error_score="raise")
    assert np.isfinite(scores).all()


def test_classifier_keeps_the_users_labels():
    labels = np.where(np.median(Y) < Y, "high", "low")
    model = rp.ReprogramClassifier("descriptors").fit(SMILES, labels)
    assert set(model.predict(SMILES)) <= {"high", "low"}
    assert model.predict_proba(SMILES).shape == (25, 2) and model.score(SMILES, labels) > 0.8


def test_several_targets_keep_their_shape():
    model = rp.ReprogramRegressor("descriptors").fit(SMILES, np.stack([Y, -Y], 1))
    assert model.predict(SMILES).shape == (25, 2)
    assert rp.ReprogramRegressor("descriptors").fit(SMILES, Y).predict(SMILES).shape == (25,)


def test_clone_and_repr_use_the_parameters():
    model = rp.ReprogramRegressor("chemnet", epochs=3, seed=4)
    assert clone(model).get_params() == model.get_params() and "chemnet" in repr(model)


@pytest.mark.parametrize(
    "inputs, y, match",
    [
        ([], [], "at least one"),
        (["CCO"], [1.0, 2.0], "one target"),
        (["CCO", "CC"], [1.0, np.nan], "row 1"),
        ("CCO", [1.0], "list"),
    ],
)
def test_bad_input_is_one_sentence(inputs, y, match):
    with pytest.raises(ValueError, match=match):
        rp.ReprogramRegressor("descriptors").fit(inputs, y)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="only one class"):
        rp.ReprogramClassifier("descriptors").fit(SMILES[:5], ["a"] * 5)


CHECKS = (
    checks.check_estimator_cloneable, checks.check_estimator_repr, checks.check_no_attributes_set_in_init,
    checks.check_parameters_default_constructible, checks.check_mixin_order, checks.check_get_params_invariance,
    checks.check_set_params, checks.check_do_not_raise_errors_in_init_or_set_params, checks.check_valid_tag_types,
    checks.check_estimator_tags_renamed,
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("estimator", [rp.ReprogramRegressor, rp.ReprogramClassifier], ids=lambda c: c.__name__)
def test_scikit_learns_own_checks(estimator, check):
    """The checks that need no table of numbers; scikit-learn itself skips the others for text input."""
    check(estimator.__name__, estimator("descriptors"))


@pytest.mark.parametrize("estimator", [rp.ReprogramRegressor, rp.ReprogramClassifier], ids=lambda c: c.__name__)
@pytest.mark.filterwarnings("ignore:Can't test estimator")
def test_check_estimator(estimator):
    checks.check_estimator(estimator("descriptors"))
