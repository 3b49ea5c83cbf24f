"""A task: inputs, targets, a split, and the report of how they were read. Knows nothing about molecules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from reprogram.errors import DataError

if TYPE_CHECKING:
    import datasets

PARTS = ("train", "validation", "test")
KINDS = ("regression", "classification", "multilabel")


@dataclass(frozen=True)
class Dropped:
    """A row that was not used: its number, its text, and why."""

    row: int
    input: str
    reason: str


def shown(value: Any) -> str:
    """An input as a table of dropped rows shows it: a text, cut; arrays and pictures have none."""
    return str(value)[:200] if isinstance(value, str | PurePath) else ""


def without_row(error: Exception) -> str:
    """The reason of a refusal; its own row count, which is not the user's, is cut out."""
    return re.sub(r" (in|at) row \d+", "", str(error))


@dataclass(frozen=True)
class Merged:
    """Several rows that hold one input; `conflict` says what was done where their labels disagree."""

    input: str
    rows: tuple[int, ...]
    conflict: str = ""


@dataclass(frozen=True)
class ReadReport:
    """What was read, what was dropped and why.

    `numbering` says how rows are counted, e.g. "spreadsheet row, the header is row 1", `what` what a row holds.
    """

    origin: str = "memory"
    numbering: str = "index, from 0"
    read: int = 0
    kept: int = 0
    dropped: tuple[Dropped, ...] = ()
    merged: tuple[Merged, ...] = ()
    notes: tuple[str, ...] = ()
    what: str = "molecules"
    one: str = "molecule"

    @property
    def conflicts(self) -> tuple[Merged, ...]:
        """The merged rows whose labels disagree."""
        return tuple(group for group in self.merged if group.conflict)

    def summary(self) -> str:
        """One line: how many rows were read, kept, dropped, merged, and how many conflicts there were."""
        repeats = sum(len(group.rows) - 1 for group in self.merged)
        parts = [f"{self.origin}: {self.read} rows read, {self.kept} {self.what} kept"]
        parts += [f"{len(self.dropped)} rows dropped"] if self.dropped else []
        parts += [f"{repeats} duplicate rows merged"] if repeats else []
        parts += [f"{len(self.conflicts)} {self.what} with conflicting labels"] if self.conflicts else []
        return ", ".join([*parts, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """The whole report as plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Task:
    """A learning problem with its split: what every method here is trained and judged on.

    `modality` is what an input is: "molecules", "peptides", "reactions", "texts", "images",
    "series" or "tables"; `input_name` is the column it was read from.

    Shapes: n inputs, T labels. `targets` is (n,) in the user's units (regression) or class indices (classification),
    or (n, T) of 0/1 with NaN where a label is missing (multilabel). `classes` names the classes, or the labels of a
    multilabel task, whose two class names, 0 then 1, are in `label_classes`; `target_names` are the columns read. `preprocessing` are
    the options under which inputs were standardised, to be repeated in prediction. `split` holds disjoint row indices for "train", "validation", "test"; rows in none are left out.

    Raises: DataError when shapes, kind or split contradict each other.
    """

    name: str
    inputs: list[Any]
    targets: np.ndarray
    kind: str
    metric: str
    classes: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()
    label_classes: tuple[tuple[str, ...], ...] = ()
    units: str = ""
    source: str = ""
    license: str = ""
    split: Mapping[str, np.ndarray] = field(default_factory=dict)
    report: ReadReport = ReadReport()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    modality: str = "molecules"
    input_name: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"expected a kind among {', '.join(KINDS)}, got {self.kind!r}")
        if len(self.inputs) != len(self.targets):
            raise DataError(f"expected one target per input, got {len(self.inputs)} and {len(self.targets)}")
        if self.targets.ndim != (2 if self.kind == "multilabel" else 1):
            raise DataError(f"expected (n,) targets, or (n, T) for multilabel, got {self.targets.shape}")
        if unknown := sorted(set(self.split) - set(PARTS)):
            raise DataError(f"expected the parts {', '.join(PARTS)} in a split, got {unknown[0]!r}")
        rows = np.concatenate([np.asarray(r, dtype=int) for r in self.split.values()] or [np.zeros(0, dtype=int)])
        if len(np.unique(rows)) != len(rows) or np.any((rows < 0) | (rows >= len(self.inputs))):
            raise DataError("expected a split into disjoint rows of the task, got a row twice or outside the task")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def outputs(self) -> int:
        """How many numbers a map returns for it: one value, a score per class, or a score per label."""
        if self.kind == "classification":
            return len(self.classes)
        return 1 if self.kind == "regression" else self.targets.shape[1]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part} {len(rows)}" for part, rows in self.split.items())
        return f"Task({self.name!r}, {self.kind}, n={len(self)}, {sizes}, metric={self.metric})"

    def part(self, name: str) -> tuple[list[str], np.ndarray]:
        """Inputs and targets of one part of the split: "train", "validation" or "test"."""
        if name not in self.split:
            raise DataError(f"expected a part among {', '.join(self.split)}, got {name!r}")
        rows = self.split[name]
        return [self.inputs[i] for i in rows], self.targets[rows]

    def subset(self, train_size: int, seed: int = 0) -> Task:
        """The same task with a label budget: `train_size` rows of the training part, drawn by `seed`.

        Classes are drawn in proportion, with at least two rows of each where the budget and the data allow it.
        Validation and test stay whole; inputs keep their places, so indices agree between budgets.
        """
        train = np.asarray(self.split["train"])
        if isinstance(train_size, bool) or not isinstance(train_size, int | np.integer) or train_size < 1:
            raise DataError(f"expected a whole number of training labels, at least 1, got train_size={train_size!r}")
        if train_size > len(train):
            raise DataError(f"expected train_size at most {len(train)}, all training rows there are, got {train_size}")
        order = np.random.default_rng(seed).permutation(train)
        if self.kind == "classification":
            order = _by_class(order, self.targets[order].astype(int), int(train_size))
        elif self.kind == "multilabel":
            order = _by_label(order, self.targets[order], int(train_size))
        return replace(self, split={**self.split, "train": np.sort(order[:train_size])})

    def shots(self, count: int, seed: int = 0) -> Task:
        """The same task with `count` training rows of each class, drawn by `seed`; validation and test stay whole.

        Raises: DataError for a task without classes, or a class with fewer rows.
        """
        if self.kind != "classification":
            raise DataError(f"expected classes to count shots of, got {self.kind}; use subset")
        train = np.random.default_rng(seed).permutation(np.asarray(self.split["train"]))
        rows = [train[self.targets[train] == number] for number in range(len(self.classes))]
        if short := [self.classes[c] for c, own in enumerate(rows) if len(own) < count]:
            raise DataError(f"expected at least {count} training rows of each class, got fewer of {short[0]}")
        return replace(self, split={**self.split, "train": np.sort(np.concatenate([own[:count] for own in rows]))})

    def to_dataset(self) -> datasets.DatasetDict:
        """A `datasets.DatasetDict` with one split per part and the columns `input` and `labels`."""
        import datasets

        label: Any = datasets.Value("float64")
        if self.kind == "classification":
            label = datasets.ClassLabel(names=list(self.classes)) if self.classes else datasets.Value("int64")
        elif self.kind == "multilabel":
            label = datasets.Sequence(datasets.Value("float64"))
        features = datasets.Features({"input": datasets.Value("string"), "labels": label})
        parts = {}
        for name in self.split:
            inputs, targets = self.part(name)
            values = targets.astype(int).tolist() if self.kind == "classification" else targets.tolist()
            parts[name] = datasets.Dataset.from_dict({"input": inputs, "labels": values}, features=features)
        return datasets.DatasetDict(parts)


def _by_class(order: np.ndarray, labels: np.ndarray, size: int) -> np.ndarray:
    """Rows with a proportional, at-least-two draw of every class first."""
    classes, counts = np.unique(labels, return_counts=True)
    if size < len(classes):
        raise DataError(f"expected train_size of at least {len(classes)}, one row per class, got {size}")
    floor = np.minimum(counts, 2 if size >= np.minimum(counts, 2).sum() else 1)
    quota = floor.copy()
    while quota.sum() < size:
        # the class furthest below its share gets the next row: exact budgets, and budgets nest for one seed
        lag = np.where(quota < counts, size * counts / counts.sum() - quota, -np.inf)
        quota[np.argmax(lag)] += 1
    chosen = np.zeros(len(order), dtype=bool)
    for value, number in zip(classes, quota, strict=True):
        chosen[np.flatnonzero(labels == value)[:number]] = True
    return np.concatenate([order[chosen], order[~chosen]])


def _by_label(order: np.ndarray, labels: np.ndarray, size: int) -> np.ndarray:
    """Rows with two of each value of every label first, rarest value first, as far as the budget goes."""
    needs = [(int((labels[:, t] == v).sum()), t, v) for t in range(labels.shape[1]) for v in (0.0, 1.0)]
    first: list[int] = []
    for _, t, value in sorted(needs):
        have = sum(labels[i, t] == value for i in first)
        spare = [i for i in np.flatnonzero(labels[:, t] == value).tolist() if i not in first]
        first += spare[: max(0, 2 - have)]
    rest = np.setdiff1d(np.arange(len(order)), first[:size])
    return order[np.concatenate([np.asarray(first[:size], dtype=int), rest])]
