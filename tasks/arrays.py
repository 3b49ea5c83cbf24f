"""A task from inputs and labels in memory, whatever the inputs are: images, series, texts, rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reprogram.errors import DataError
from tasks.labels import check_types, encode, infer_kind, parse
from tasks.metrics import METRICS, rank_metric
from tasks.splits import given_split, random_split
from tasks.task import ReadReport, Task

FRACTIONS = (0.8, 0.1, 0.1)


def from_arrays(
    inputs: Sequence[Any],
    y: Sequence[Any],
    *,
    name: str = "data",
    modality: str = "arrays",
    kind: str | None = None,
    positive: str | None = None,
    classes: Sequence[str] | None = None,
    metric: str | None = None,
    split: str | Sequence[str] = "random",
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    units: str = "",
    source: str = "",
    license: str = "",
) -> Task:
    """A task from n inputs and n labels: numbers for regression, names or whole numbers for classes.

    Args:
        kind: "classification" or "regression"; by default classes for texts, whole numbers and booleans.
        classes: names of the classes 0, 1, … where `y` numbers them; `positive` names class 1 of two.
        metric: what ranks methods; by default "rmse", and "accuracy" for classes.
        split: "random", drawn with `seed` in `fractions`, or a word train, validation or test for each row; validation
            rows are drawn from train where no row is marked so.

    Raises: DataError, one sentence, for missing or constant labels, unequal lengths, or an unknown split.
    """
    inputs, labels = list(inputs), list(y)
    if len(inputs) != len(labels) or not inputs:
        raise DataError(
            f"expected one label per input and at least one, got {len(inputs)} inputs and {len(labels)} labels"
        )
    if kind is None:
        kind = "classification" if np.asarray(labels).dtype.kind in "iubUSO" else "regression"
    if kind == "multilabel":
        raise DataError(
            "expected one label per input, got kind multilabel; put the labels in columns and use load_task"
        )
    if classes is not None:
        labels = [named(label, list(classes), row) for row, label in enumerate(labels)]
    parsed = [parse(label, row, "label") for row, label in enumerate(labels)]
    if (missing := next((row for row, label in enumerate(parsed) if label is None), None)) is not None:
        raise DataError(f"expected a label for every input, got none at row {missing}; drop the row")
    check_types(parsed, range(len(parsed)), "label")
    columns = {"label": parsed}
    order = {"label": tuple(map(str, classes))} if classes is not None else None
    encoded = encode(columns, kind=infer_kind(columns, kind), positive=positive, order=order)
    metric = metric or ("accuracy" if encoded.kind == "classification" else rank_metric(encoded.kind))
    if metric not in METRICS:
        raise DataError(f"expected a metric among {', '.join(METRICS)}, got {metric!r}")
    parts, note = divided(split, len(inputs), seed, fractions)
    report = ReadReport(name, read=len(inputs), kept=len(inputs), notes=(note,) if note else (), what="inputs")
    return Task(
        name, inputs, encoded.targets, encoded.kind, metric, encoded.classes, ("label",), units=units, source=source,
        license=license, split=parts, report=report, modality=modality,
    )  # fmt: skip


def named(label: Any, classes: list[str], row: int) -> str:
    """The name of class number `label`; a name stays."""
    if isinstance(label, str):
        if label not in classes:
            raise DataError(f"expected a class among {', '.join(classes[:20])}, got {label[:40]!r} at row {row}")
        return label
    if int(label) != label or not 0 <= label < len(classes):
        raise DataError(f"expected class numbers 0 to {len(classes) - 1}, got {label} at row {row}")
    return str(classes[int(label)])


def divided(
    split: str | Sequence[str], count: int, seed: int, fractions: Sequence[float]
) -> tuple[Mapping[str, np.ndarray], str]:
    """The split, and a note where validation had to be drawn."""
    if isinstance(split, str):
        if split != "random":
            raise DataError(f"expected split 'random' or a word for each of {count} rows, got {split!r}")
        return random_split(count, seed=seed, fractions=fractions), ""
    if len(split) != count:
        raise DataError(f"expected a word of the split for each of {count} rows, got {len(split)}")
    return given_split(split, range(count), "split", seed=seed)
