"""The steps from a table to a task: inputs cleaned, labels read, repeats merged, rows split, all of it reported."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

import numpy as np

from reprogram.errors import DataError
from tasks.labels import Labels, Value, check_types, encode, infer_kind, parse, short
from tasks.merge import Merge, merge
from tasks.metrics import rank_metric
from tasks.modalities import Modality
from tasks.readers import Table
from tasks.splits import WORDS, Split, check_fractions, given_split, group_split, random_split
from tasks.task import Dropped, ReadReport, Task, shown, without_row

FEW_VALUES = 10


@dataclass(frozen=True)
class Reader:
    """The steps from a table to a task."""

    table: Table
    modality: Modality
    input: str | None
    target: str | Sequence[str] | None
    split: str | None
    positive: str | None
    tolerance: float | None
    accepts: Callable[[Any], Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def task(self, kind: str | None, seed: int, fractions: Sequence[float], **facts: str) -> Task:
        shares = check_fractions(fractions)
        table, what = self.table, self.modality
        clean_one = what.clean(**self.options)
        column = None if table.structures is not None or what.wide else input_column(table, what, self.input)
        parts = self.split_column()
        targets = self.targets(column, parts)
        labels = {c: self.parsed(c, kind) for c in targets}
        measured = number_columns(table, [*targets, parts]) if what.wide and table.structures is None else None
        inputs = inputs_of(table, what, column, (), measured)
        clean, dropped = cleaned(inputs, table, what, clean_one, self.accepts)
        dropped += without_labels(clean, labels, table)
        if not clean:
            raise nothing_left(table, what, sorted(dropped, key=lambda d: d.row))
        words = table.column(parts) if parts else None
        dropped += without_part(clean, words, table) if parts and parts == table.parted and self.split is None else []
        asked = kind
        kind = infer_kind({c: [values[i] for i in clean] for c, values in labels.items()}, kind)
        merged = merge(
            clean,
            labels,
            table.rows,
            words=words,
            numeric=kind == "regression",
            tolerance=self.tolerance,
            modality=what,
        )
        if not merged.inputs:
            raise DataError(f"expected usable labels in {table.origin}, got conflicting classes for every {what.one}")
        encoded = encode(merged.labels, kind=kind, positive=self.positive, order=dict(table.order))
        cut, note = self.cut(merged, parts, encoded, seed, shares)
        report = ReadReport(
            origin=table.origin,
            numbering=table.numbering,
            read=len(table.rows),
            kept=len(merged.inputs),
            dropped=tuple(sorted([*dropped, *merged.dropped], key=lambda d: d.row)),
            merged=tuple(merged.groups),
            notes=tuple(
                n for n in (note, whole_numbers(encoded, targets, asked), repeats(what, merged.inputs, cut)) if n
            ),
            what=what.name,
            one=what.one,
        )
        metric = what.metric if encoded.kind == "classification" else rank_metric(encoded.kind)
        again = changed(clean_one) | ({} if measured is None else {"columns": measured})
        return Task(
            inputs=merged.inputs, targets=encoded.targets, kind=encoded.kind, metric=metric, classes=encoded.classes,
            target_names=tuple(targets), label_classes=encoded.label_classes, split=cut, report=report, preprocessing=again,
            modality=what.name, input_name=column or "", **facts,
        )  # fmt: skip

    def split_column(self) -> str | None:
        if self.split in ("random", *self.modality.groups):
            return None
        if self.split == "scaffold":
            raise DataError(f"expected split 'random' or a column for {self.modality.name}, got 'scaffold'")
        if self.split is not None:
            return self.table.find(self.split)
        column = self.table.parted
        known = {WORDS.get(word) for word in self.table.column(column)} if column else set()
        return column if {"train", "test"} <= known else None

    def targets(self, column: str | None, parts: str | None) -> list[str]:
        table = self.table
        if self.target is not None:
            wanted = [self.target] if isinstance(self.target, str) else list(self.target)
            found = [table.find(c) for c in wanted]
            if not found or len(set(found)) != len(found) or column in found:
                raise DataError(f"expected distinct target columns beside the {self.modality.one}, got {short(wanted)}")
            return found
        if table.labelled is not None:
            return [table.labelled]
        free = [c for c in table.columns if c not in (column, parts, table.parted, table.identity)]
        if not free and table.modality == "images":
            raise DataError(
                f"expected pictures in folders named like their class in {table.origin}, got no such folder; arrange them as "
                f"{table.origin}/cat/1.png"
            )
        if len(free) != 1:
            there = ", ".join(short(c, 40) for c in free[:20]) or "no other column"
            raise DataError(f"expected one target column in {table.origin}, got {there}; choose with target=")
        return free

    def parsed(self, column: str, kind: str | None) -> list[Value]:
        rows = self.table.rows
        values = [parse(v, row, column) for v, row in zip(self.table.column(column), rows, strict=True)]
        if kind == "classification" and len({type(v) for v in values if v is not None}) > 1:
            # classes asked for by name may look like numbers: "1", "2", "2b"
            return [f"{v:.12g}" if isinstance(v, float) else v for v in values]
        check_types(values, rows, column)
        return values

    def cut(
        self, merged: Merge, parts: str | None, labels: Labels, seed: int, shares: tuple[float, float, float]
    ) -> tuple[Split, str]:
        note, by = "", self.modality.groups.get(self.split or self.modality.split)
        if parts:
            share = shares[1] / (shares[0] + shares[1])
            cut, note = given_split(merged.words, merged.rows, parts, seed=seed, share=share)
        elif by is None:
            cut = random_split(len(merged.inputs), seed=seed, fractions=shares)
        else:
            cut = group_split([by(value) for value in merged.inputs], fractions=shares)
        train = labels.targets[cut["train"]]
        if labels.kind != "multilabel" and len(np.unique(train)) < 2:
            what = "values" if labels.kind == "regression" else "classes"
            raise DataError(
                f"expected at least two {what} in the training part, got one in {len(train)} rows; split otherwise"
            )
        return cut, note


def input_column(table: Table, what: Modality, asked: str | None) -> str:
    """The column that holds the inputs: the one asked for, else the first of the usual names."""
    if asked is not None:
        return table.find(asked)
    there = {str(column).strip().lower() for column in table.columns}
    return table.find(next((name for name in what.columns if name in there), what.columns[0]))


def inputs_of(
    table: Table, what: Modality, asked: str | None, leave_out: Sequence[str], columns: Sequence[str] | None
) -> Sequence[Any]:
    """One raw input per row: structures of the file, rows of its numbers, or the cells of a column."""
    if table.structures is not None:
        return table.structures
    if what.wide:
        gone = [c for c in leave_out if c in table.columns]
        found = number_columns(table, gone) if columns is None else [table.find(c) for c in columns]
        parsed = [[number(v, row, c) for v, row in zip(table.column(c), table.rows, strict=True)] for c in found]
        for name, values in zip(found, parsed, strict=True):
            if (bad := next((i for i, v in enumerate(values) if isinstance(v, str)), None)) is not None:
                raise DataError(
                    f"expected numbers in column {short(name)}, got {short(values[bad])} at row {table.rows[bad]}; "
                    "encode or drop that column"
                )
        filled = np.array([[np.nan if v is None else v for v in values] for values in parsed], dtype=np.float32)
        return list(filled.T)
    values = table.column(input_column(table, what, asked))
    if what.name == "images" and table.folder is not None:  # paths in a table are meant from where the table lies
        return [str(table.folder / v.strip()) if isinstance(v, str) and v.strip() else v for v in values]
    return values


def number(value: Any, row: int, column: str) -> Value:
    """A cell of a table of numbers: false and true are 0 and 1."""
    return parse(int(value) if isinstance(value, bool | np.bool_) else value, row, column)


def number_columns(table: Table, leave_out: Sequence[str | None]) -> list[str]:
    """The columns of a table of numbers, without the named ones."""
    found = [c for c in table.columns if c not in leave_out and c != table.parted]
    if not found:
        raise DataError(f"expected columns of numbers in {table.origin}, got none beside the labels")
    return found


def cleaned(
    values: Sequence[Any], table: Table, what: Modality, clean_one: Callable[[Any], Any],
    accepts: Callable[[Any], Any] | None = None,
) -> tuple[dict[int, Any], list[Dropped]]:  # fmt: skip
    """Inputs in their standard form by position, and the rows that were refused with the reason."""
    from tqdm.auto import tqdm

    clean: dict[int, Any] = {}
    dropped: list[Dropped] = []
    for i, value in enumerate(tqdm(values, desc="read", unit="row", delay=2, leave=False)):
        try:
            found = clean_one(value)
            if accepts is not None:
                accepts(found)
            clean[i] = found
        except (ValueError, TypeError) as refusal:
            dropped.append(Dropped(table.rows[i], shown(value), without_row(refusal)))
    return clean, dropped


def repeats(what: Modality, inputs: Sequence[Any], cut: Split) -> str:
    """A note where test rows stand in the training part too, which is so only where equal inputs are not joined."""
    seen = {what.digest(inputs[i]) for i in cut["train"]} if not what.joins else set()
    count = sum(what.digest(inputs[i]) in seen for i in cut["test"]) if seen else 0
    return f"{count} of {len(cut['test'])} test rows equal a training row" if count else ""


def whole_numbers(encoded: Labels, targets: Sequence[str], asked: str | None) -> str:
    """A hint where a few whole numbers were read as values, which may have been meant as classes."""
    values = np.unique(encoded.targets) if encoded.kind == "regression" and asked is None else np.zeros(0)
    if not 2 < len(values) <= FEW_VALUES or np.any(values != np.round(values)):
        return ""
    return (
        f"{targets[0]} holds {len(values)} different whole numbers and was read as values; for classes say "
        "kind classification"
    )


def without_labels(clean: dict[int, Any], labels: dict[str, list[Value]], table: Table) -> list[Dropped]:
    """Takes rows with an infinite label, or with none, out of `clean`."""
    dropped = []
    for i in list(clean):
        values = {c: labels[c][i] for c in labels}
        endless = [c for c, v in values.items() if isinstance(v, float) and math.isinf(v)]
        if endless or all(v is None for v in values.values()):
            reason = f"the label in column {short(endless[0])} is infinite" if endless else "the label is missing"
            dropped.append(Dropped(table.rows[i], shown(clean.pop(i)), reason))
    return dropped


def without_part(clean: dict[int, Any], words: Sequence[Any], table: Table) -> list[Dropped]:
    """Takes rows of parts that are none of train, validation and test out of `clean`."""
    strange = [i for i in clean if WORDS.get(str(words[i]).strip().lower()) is None]
    return [Dropped(table.rows[i], shown(clean.pop(i)), f"its part {short(words[i])} is none of ours") for i in strange]


def nothing_left(table: Table, what: Modality, dropped: list[Dropped]) -> DataError:
    """The error where no row can be used: it shows the first refusal."""
    if not dropped:
        return DataError(f"expected at least one {what.one} in {table.origin}, got none")
    first = dropped[0]
    return DataError(
        f"expected at least one usable {what.one} in {table.origin}, got none in {len(table.rows)} rows; "
        f"the first, row {first.row} {short(first.input)}: {first.reason}"
    )


def changed(clean_one: Any) -> dict[str, Any]:
    """The options of a standardiser that are not the default ones."""
    if not is_dataclass(clean_one) or isinstance(clean_one, type):
        return {}
    return {key: value for key, value in asdict(clean_one).items() if value != getattr(type(clean_one)(), key)}
