"""scikit-learn estimators: the same models behind fit and predict, for Pipeline, cross_val_score and grid search."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from reprogram.errors import DataError
from reprogram.features import no_text


class _Reprogram(BaseEstimator):
    """Shared by the two estimators: parameters, input checks, tags."""

    def __init__(
        self,
        source: Any = "auto",
        *,
        program: Any = "auto",
        mapping: Any = "auto",
        epochs: int | None = None,
        seed: int = 0,
        progress: bool = False,
    ):
        self.source = source
        self.program = program
        self.mapping = mapping
        self.epochs = epochs
        self.seed = seed
        self.progress = progress

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.target_tags.single_output = True
        tags.non_deterministic = False
        return tags

    def _adapt(self, inputs: Sequence[Any], y: np.ndarray, kind: str) -> None:
        from reprogram.recipes import adapt

        # parts given as objects stay as they were: the next fit, on other rows, must not start from these
        self.model_, self.history_ = adapt(
            self.source, inputs, y, kind=kind, program=copy.deepcopy(self.program), mapping=copy.deepcopy(self.mapping),
            epochs=self.epochs, seed=self.seed, progress=self.progress,
        )  # fmt: skip

    def _predict(self, X: Any) -> np.ndarray:
        from reprogram.train import predict

        check_is_fitted(self, "model_")
        return predict(self.model_, check_inputs(X))


class ReprogramRegressor(RegressorMixin, _Reprogram):
    """Reprogram a frozen source for one or more numbers per input, e.g. a property of molecules given as SMILES.

    Parameters are those of `reprogram.adapt`. After `fit`: `model_` (a `Reprogrammed`), `history_`.
    `fit(X, y)` takes a sequence of strings, RDKit molecules or rows, and values (n,) or (n, T).
    """

    def fit(self, X: Any, y: Any) -> ReprogramRegressor:
        inputs, y = check_inputs(X), check_targets(y)
        check_lengths(inputs, y)
        self._single = y.ndim == 1
        self._adapt(inputs, y.astype(float), "regression")
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Values in the units of y, (n,) or (n, T)."""
        values = self._predict(X)
        return values[:, 0] if self._single else values


class ReprogramClassifier(ClassifierMixin, _Reprogram):
    """Reprogram a frozen source for classes of any label type.

    Parameters are those of `reprogram.adapt`. After `fit`: `classes_`, `model_` (a `Reprogrammed`), `history_`.
    """

    def fit(self, X: Any, y: Any) -> ReprogramClassifier:
        from sklearn.utils.multiclass import check_classification_targets

        inputs, y = check_inputs(X), np.asarray(y)
        check_lengths(inputs, y)
        check_classification_targets(y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(
                f"expected at least two classes, got only one class: {self.classes_.tolist()}; add rows of another"
            )
        self._adapt(inputs, indices, "classification")
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities (n, C), columns in the order of `classes_`."""
        return self._predict(X)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row."""
        return self.classes_[self._predict(X).argmax(1)]


def check_inputs(X: Any) -> list[Any]:
    """A list of inputs from a list, Series, or array; a single column is read as such."""
    if hasattr(X, "ndim") and X.ndim == 2 and X.shape[1] == 1:
        X = np.asarray(X)[:, 0]
    inputs = list(no_text(X))
    if not inputs:
        raise DataError("expected at least one input, got none (0 samples); check the file or the list")
    return inputs


def check_targets(y: Any) -> np.ndarray:
    """Finite numbers."""
    try:
        y = np.asarray(y, dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"expected numbers to predict, got {error}; convert the targets first") from error
    if not np.isfinite(y).all():
        row = int(np.argwhere(~np.isfinite(y.reshape(len(y), -1)).all(1))[0, 0])
        raise DataError(f"expected finite targets, got NaN or infinity in row {row}; drop the row")
    return y


def check_lengths(inputs: list[Any], y: np.ndarray) -> None:
    """One target per input, or a DataError."""
    if len(inputs) != len(y):
        raise DataError(f"expected one target per input, got {len(inputs)} inputs and {len(y)} targets")
