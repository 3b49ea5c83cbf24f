"""Model reprogramming: a frozen pretrained model does a new low-data task; only an input program and an output map learn."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

from reprogram.config import build, to_spec
from reprogram.errors import BudgetError, DataError
from reprogram.forest import ForestMap
from reprogram.gaussian_process import GaussianProcess
from reprogram.label_map import LabelMap
from reprogram.mapping import LinearMap
from reprogram.model import Reprogrammed
from reprogram.objectives import adam, evidence, momentum, supervised
from reprogram.programs import Dictionary, FreeEmbeddings, GraphDelta, Identity, SoftPrompt, vocabulary
from reprogram.recipes import adapt
from reprogram.selection import select
from reprogram.side_by_side import Parallel, SideBySide
from reprogram.sources import BlackBox, Source, catalogue, load
from reprogram.stack import Stack
from reprogram.surrogate import prime
from reprogram.train import History, fit, predict, predict_stream, refresh
from reprogram.trainer import trainer_collator, trainer_rows

__version__ = "0.1.0"
__all__ = [
    "BlackBox", "BudgetError", "DataError", "Dictionary", "ForestMap", "FreeEmbeddings", "GaussianProcess",
    "GraphDelta", "History", "Identity", "LabelMap", "LinearMap", "Parallel", "ReprogramClassifier",
    "ReprogramRegressor", "Reprogrammed", "SideBySide", "SoftPrompt", "Source", "Stack", "adam", "adapt",
    "build", "catalogue", "evidence", "fit", "load", "momentum", "predict", "predict_stream", "prime", "refresh", "select",
    "supervised", "to_spec", "trainer_collator", "trainer_rows", "vocabulary",
]  # fmt: skip

for _name in ("adversarial", "certify", "tasks"):
    _found = importlib.util.find_spec(_name)
    if _found is not None and _found.origin and Path(_found.origin).parents[1] != Path(__file__).parents[1]:
        warnings.warn(
            f"another package named '{_name}' ({_found.origin}) hides ours; use a virtual environment", stacklevel=2
        )


def __getattr__(name: str):
    """The scikit-learn estimators, imported when first asked for: scikit-learn takes longer to import than all of us."""
    if name in ("ReprogramClassifier", "ReprogramRegressor"):
        from reprogram import estimator

        return getattr(estimator, name)
    raise AttributeError(f"module 'reprogram' has no attribute '{name}'")
