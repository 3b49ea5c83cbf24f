"""A task from bundled data, a file, a folder or a data set, whatever its inputs are: read, cleaned, merged, split, reported."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from reprogram.errors import DataError
from tasks import bundled
from tasks.labels import Labels, Value, check_types, encode, infer_kind, parse, short
from tasks.merge import Merge, merge
from tasks.metrics import rank_metric
from tasks.modalities import MODALITIES, Modality, modality
from tasks.modalities import modality as known_modality
from tasks.readers import Table, read
from tasks.splits import WORDS, Split, check_fractions, given_split, group_split, random_split
from tasks.task import Dropped, ReadReport, Task, shown, without_row

FRACTIONS = (0.8, 0.1, 0.1)
FEW_VALUES = 10


@dataclass(frozen=True)
class Inputs:
    """Inputs without labels, for prediction: in their standard form, their 0-based positions in the data, the report."""

    inputs: list[Any]
    positions: list[int]
    report: ReadReport
    table: Table


def load_task(
    data: Any,
    *,
    modality: str | None = None,
    input: str | None = None,
    smiles: str | None = None,
    target: str | Sequence[str] | None = None,
    split: str | None = None,
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    kind: str | None = None,
    positive: str | None = None,
    tolerance: float | None = None,
    name: str | None = None,
    units: str = "",
    accepts: Callable[[Any], Any] | None = None,
    **standardisation: Any,
) -> Task:
    """A task from a bundled name ("freesolv", "digits", …: `reprogram tasks`), a file, a folder, a data frame, a data set.

    Files are CSV, TSV, Parquet, SDF (molecules) and .ts (series, its TEST file beside its TRAIN file); a folder holds
    images in folders named like their class; data sets are a pandas DataFrame, a `datasets.Dataset` or `DatasetDict`, or
    a hub id.

    Args:
        modality: what an input is: molecules, peptides, reactions, texts, images (files), series or tables. By default
            that of the bundled task, of the file, or of a column named smiles, sequence, reaction, text or image.
        input: the column that holds it; `smiles` is the same for molecules. Series and tables are the numbers of all
            other columns.
        target: label column; several make a multilabel task. By default the only other column.
        split: "scaffold" (molecules only, their default), "random", or a column of words train, validation, test; data
            in parts keep them by default.
        kind: inferred from the target column unless given; `positive` names class 1 of two.
        tolerance: the spread of repeated measurements still taken as agreement (default: a fifth of their standard
            deviation over the task).
        accepts: asked with every clean input; it may refuse it by a ValueError, which drops the row.

    The other options are those of `tasks.molecules.Standardiser`.

    Raises: DataError, one sentence on what is wrong with the data.
    """
    entry = bundled_entry(data)
    if isinstance(entry, bundled.Made):
        given = {"split": split, "kind": kind, "positive": positive, "name": name, "units": units or None}
        given |= {"fractions": None if fractions is FRACTIONS else fractions}
        if tolerance is not None:
            raise DataError(f"expected no tolerance for the bundled task '{data}', got {tolerance}; leave it out")
        found = made(entry, data, modality, input or smiles or target, given, seed, standardisation)
        return found if accepts is None else accepted(found, accepts)
    table = open_table(data)
    if entry:
        input, target = entry.smiles, target or entry.target
        kind, positive, units = kind or entry.kind, positive or entry.positive, units or entry.units
    what = modality_of(table, modality or ("molecules" if entry or smiles else None))
    label = name or (str(data).lower() if entry else Path(table.origin).stem or table.origin)
    reader = Reader(table, what, input or smiles, target, split, positive, tolerance, accepts, options=standardisation)
    return reader.task(
        kind, seed, fractions, name=label, units=units, source=entry.reference if entry else table.origin,
        license=entry.license if entry else "",
    )  # fmt: skip


def made(
    entry: bundled.Made, name: str, asked: str | None, columns: Any, options: dict[str, Any], seed: int,
    standardisation: dict[str, Any],
) -> Task:  # fmt: skip
    """A bundled task that is no table."""
    if columns:
        raise DataError(f"expected no columns with the bundled task '{name}', got {short(columns)}; leave them out")
    MODALITIES[entry.modality].clean(**standardisation)  # refuses options that are for molecules
    if asked not in (None, entry.modality):
        raise DataError(f"expected {entry.modality} for the bundled task '{name}', got {short(asked)}")
    if options["split"] == "scaffold":
        raise DataError(f"expected split 'random' or its own for the bundled task '{name}', got 'scaffold'")
    return entry.make(seed=seed, **{key: value for key, value in options.items() if value is not None})


def accepted(task: Task, accepts: Callable[[Any], Any]) -> Task:
    """The task without the rows that `accepts` refuses; they stand in its report."""
    refused = {}
    for row in sorted(row for part in task.split.values() for row in part.tolist()):
        try:
            accepts(task.inputs[row])
        except ValueError as error:
            refused[row] = Dropped(row, shown(task.inputs[row]), without_row(error))
    split = {part: np.array([r for r in rows if r not in refused], dtype=int) for part, rows in task.split.items()}
    report = replace(task.report, dropped=tuple(refused.values()), kept=task.report.kept - len(refused))
    return replace(task, split=split, report=report) if refused else task


def modality_of(table: Table, asked: str | None) -> Modality:
    """The modality the user named, else what the data looks like; molecules where nothing tells."""
    if asked is not None and table.modality not in (None, asked):
        raise DataError(f"expected {modality(asked).name}, got {table.modality} in {table.origin}; choose other data")
    if asked is not None or table.modality is not None:
        return modality(asked or str(table.modality))
    there = {str(column).strip().lower() for column in table.columns}
    return next((m for m in MODALITIES.values() if there & set(m.columns)), MODALITIES["molecules"])


def bundled_entry(data: Any) -> bundled.Bundled | bundled.Made | None:
    """The bundled task that `data` names, unless a file or folder has that name."""
    return bundled.TASKS.get(data.lower()) if isinstance(data, str) and not Path(data).exists() else None


def open_table(data: Any) -> Table:
    """A bundled table by name, or anything `read` takes."""
    entry = bundled_entry(data)
    if isinstance(entry, bundled.Made):
        raise DataError(f"expected a file, got the bundled task '{data}', which is no table; name a file or folder")
    return bundled.read_bundled(data.lower()) if entry else read(data)


def read_inputs(
    data: Any, *, modality: str | None = None, input: str | None = None, leave_out: Sequence[str] = (), **options: Any
) -> Inputs:
    """Inputs to predict on, from anything `load_task` reads or a list; nothing is merged or reordered.

    `leave_out` names label columns of a table of numbers; `options` are the task's `preprocessing`.
    """
    what = known_modality(modality or "molecules")
    listed = isinstance(data, list | tuple)
    table = Table({}, range(len(data)), "the list", structures=list(data)) if listed else open_table(data)
    what = what if listed else modality_of(table, modality)
    values = inputs_of(table, what, input, leave_out, options.pop("columns", None))
    clean, dropped = cleaned(values, table, what, what.clean(**options))
    if not clean:
        raise nothing_left(table, what, dropped)
    report = ReadReport(
        table.origin, table.numbering, len(table.rows), len(clean), tuple(dropped), what=what.name, one=what.one
    )
    return Inputs(list(clean.values()), list(clean), report, table)


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
        parsed = [[parse(v, row, c) for v, row in zip(table.column(c), table.rows, strict=True)] for c in found]
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
    seen = {what.content(inputs[i]) for i in cut["train"]} if not what.joins else set()
    count = sum(what.content(inputs[i]) in seen for i in cut["test"]) if seen else 0
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
    from dataclasses import asdict, is_dataclass

    if not is_dataclass(clean_one) or isinstance(clean_one, type):
        return {}
    return {key: value for key, value in asdict(clean_one).items() if value != getattr(type(clean_one)(), key)}
