"""Tables: the small ones of scikit-learn, and any data frame of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from reprogram.errors import DataError
from reprogram.sources import FeatureCodec, Features, Source
from tasks.arrays import from_arrays
from tasks.modalities import MODALITIES
from tasks.reader import inputs_of
from tasks.readers import read
from tasks.task import Task

TABLES = ("breast-cancer", "diabetes", "iris", "wine")


def table(name: str, *, seed: int = 0, **options: Any) -> Task:
    """One of scikit-learn's tables: breast-cancer, iris and wine (classes), diabetes (regression)."""
    from sklearn import datasets

    if name not in TABLES:
        raise DataError(f"expected a table among {', '.join(TABLES)}, got {name!r}")
    data = getattr(datasets, f"load_{name.replace('-', '_')}")()
    options = {"name": name, "source": "scikit-learn", "license": "CC-BY-4.0", "fractions": (0.6, 0.1, 0.3)} | options
    if name == "diabetes":
        options.setdefault("kind", "regression")
    else:
        options.setdefault("classes", [str(label) for label in data.target_names])
    return from_arrays(list(data.data.astype(np.float32)), data.target, modality="tables", seed=seed, **options)


def number_source(width: int) -> Source:
    """The numbers of a row as a frozen source of features."""
    names = [f"number {i}" for i in range(width)]
    codec = FeatureCodec(lambda inputs: np.stack([np.asarray(row, dtype=np.float32) for row in inputs]))
    return Source(Features(names), codec, name="numbers", takes="features", width=width)


def from_frame(frame: Any, target: str, *, seed: int = 0, **options: Any) -> Task:
    """A pandas data frame of numbers and its column `target`.

    Raises: DataError for a missing target, or a column that holds something else than numbers.
    """
    whole = read(frame)
    target = whole.find(target)
    rows = inputs_of(whole, MODALITIES["tables"], None, (target,), None)
    return from_arrays(rows, whole.column(target), modality="tables", seed=seed, **{"name": "table"} | options)
