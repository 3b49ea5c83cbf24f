"""What a label column means: numbers, classes or several yes/no labels, and how they become an array."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from reprogram.errors import DataError
from tasks.task import KINDS

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "<na>", "#n/a", "-nan"})
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE | re.ASCII)
# of a pair of class names, the one listed here is class 0; otherwise names sort
NEGATIVE = frozenset(
    {"0", "-1", "-", "false", "f", "no", "n", "neg", "negative", "inactive", "nontoxic", "non-toxic", "impermeable"}
)
Value = float | str | None


def short(value: object, limit: int = 60) -> str:
    """The value on one line, shortened for a message."""
    text = ascii(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def parse(value: Any, row: int, column: str) -> Value:
    """A label as a number, a text, or None where it is missing."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | float | np.integer | np.floating | Decimal):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        return None if number != number else number
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in MISSING:
            return None
        return float(text) if NUMBER.fullmatch(text) else text
    what = f"{short(value)} ({type(value).__name__})"
    raise DataError(f"expected numbers or class names in column {short(column)}, got {what} at row {row}")


def check_types(values: Sequence[Value], rows: Sequence[int], column: str) -> None:
    """One type per column: the first value of the rarer type is named."""
    counts = Counter(type(v) for v in values if v is not None)
    if len(counts) < 2:
        return
    usual = float if counts[float] >= counts[str] else str
    row, value = next((r, v) for r, v in zip(rows, values, strict=True) if v is not None and type(v) is not usual)
    wanted = "numbers" if usual is float else "class names"
    got = f"{short(_name(value))} at row {row}"
    raise DataError(f"expected only {wanted} in column {short(column)}, got {got}; correct or empty that cell")


@dataclass(frozen=True)
class Labels:
    """Targets (n,) or (n, T), their kind, the names of the classes or labels, and of each label's two classes."""

    targets: np.ndarray
    kind: str
    classes: tuple[str, ...]
    label_classes: tuple[tuple[str, ...], ...] = ()


def infer_kind(columns: dict[str, list[Value]], kind: str | None = None) -> str:
    """The kind the user asked for, else what the labels look like.

    Several columns are a multilabel task. One column of text, or of two values, is classification; of more numbers,
    regression.
    """
    if kind is not None and kind not in KINDS:
        raise DataError(f"expected a kind among {', '.join(KINDS)}, got {short(kind)}")
    if len(columns) > 1:
        if kind not in (None, "multilabel"):
            raise DataError(f"expected one target column for {kind}, got {len(columns)}; train one task per column")
        return "multilabel"
    (values,) = columns.values()
    distinct = {v for v in values if v is not None}
    numeric = all(isinstance(v, float) for v in distinct)
    if kind == "regression" and not numeric:
        raise DataError(f"expected numbers in column {short(next(iter(columns)))} for regression, got class names")
    return kind or ("regression" if numeric and len(distinct) != 2 else "classification")


def encode(
    columns: dict[str, list[Value]],
    *,
    kind: str,
    positive: str | None = None,
    order: dict[str, tuple[str, ...]] | None = None,
) -> Labels:
    """One array from parsed label columns (every row holds at least one label).

    Of two classes the `positive` one is class 1; by default the later by name, unless the other one is a known word
    for "no".
    """
    order = order or {}
    if kind == "multilabel":
        return _multilabel(columns, positive, order)
    ((column, values),) = columns.items()
    distinct = {v for v in values if v is not None}
    if kind == "regression":
        if len(distinct) < 2:
            raise DataError(f"expected labels that vary in column {short(column)}, got a constant {_shown(distinct)}")
        return Labels(np.asarray(values, dtype=float), kind, ())
    if len(distinct) < 2:
        raise DataError(f"expected two classes in column {short(column)}, got one class only {_shown(distinct)}")
    if len(distinct) > max(20, len(values) // 2):
        raise DataError(
            f"expected class labels in column {short(column)}, got {len(distinct)} different texts in {len(values)} rows; "
            "write numbers with a decimal point"
        )
    classes = _classes(distinct, column, positive, order.get(column))
    places = {name: float(i) for i, name in enumerate(classes)}
    return Labels(np.asarray([places[_name(v)] for v in values]), kind, classes)


def _multilabel(columns: dict[str, list[Value]], positive: str | None, order: dict[str, tuple[str, ...]]) -> Labels:
    targets, pairs = [], []
    for column, values in columns.items():
        distinct = {v for v in values if v is not None}
        if len(distinct) > 2:
            raise DataError(
                f"expected two values in every column of a multilabel task, got {len(distinct)} in {short(column)}; "
                "train numbers or more classes as a task of their own"
            )
        if len(distinct) < 2:
            raise DataError(f"expected both classes in column {short(column)}, got one class only {_shown(distinct)}")
        pairs.append(_classes(distinct, column, positive, order.get(column)))
        places = {name: float(i) for i, name in enumerate(pairs[-1])}
        targets.append([math.nan if v is None else places[_name(v)] for v in values])
    return Labels(np.asarray(targets, dtype=float).T, "multilabel", tuple(columns), tuple(pairs))


def _classes(
    distinct: set[float | str], column: str, positive: str | None, order: tuple[str, ...] | None
) -> tuple[str, ...]:
    names = [_name(v) for v in sorted(distinct, key=lambda v: (isinstance(v, str), v))]
    if order and set(names) <= set(order):
        names = [name for name in order if name in names]
    if len(names) != 2:
        return tuple(names)
    if positive is not None:
        if str(positive) not in names:
            raise DataError(f"expected positive= to be one of {names} in column {short(column)}, got {short(positive)}")
        return tuple(sorted(names, key=lambda name: name == str(positive)))
    if not order and (names[1].lower() in NEGATIVE) != (names[0].lower() in NEGATIVE):
        names.sort(key=lambda name: name.lower() not in NEGATIVE)
    return tuple(names)


def _name(value: Value) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _shown(distinct: set[float | str]) -> str:
    return f"({short(_name(next(iter(distinct))))})" if distinct else "(no labels)"
