"""A task from bundled data, a file, a folder or a data set, whatever its inputs are: read, cleaned, merged, split, reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reprogram.errors import DataError
from tasks import bundled
from tasks.labels import short
from tasks.modalities import MODALITIES, Modality, known
from tasks.reader import Reader, cleaned, inputs_of, nothing_left
from tasks.readers import Table, read
from tasks.task import Dropped, ReadReport, Task, shown, without_row

FRACTIONS = (0.8, 0.1, 0.1)


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
        raise DataError(f"expected {known(asked).name}, got {table.modality} in {table.origin}; choose other data")
    if asked is not None or table.modality is not None:
        return known(asked or str(table.modality))
    there = {str(column).strip().lower() for column in table.columns}
    return next((m for m in MODALITIES.values() if there & set(m.columns)), MODALITIES["molecules"])


def bundled_entry(data: Any) -> bundled.Bundled | bundled.Made | None:
    """The bundled task that `data` names, unless a file or folder has that name."""
    return bundled.TASKS.get(data.lower()) if isinstance(data, str) and not Path(data).exists() else None


def open_table(data: Any, kind: str | None = None) -> Table:
    """A bundled task by name, its labels read as `kind`, or anything `read` takes."""
    return bundled.read_bundled(data.lower(), kind) if bundled_entry(data) else read(data)


def read_inputs(
    data: Any, *, modality: str | None = None, input: str | None = None, leave_out: Sequence[str] = (),
    kind: str | None = None, **options: Any,
) -> Inputs:  # fmt: skip
    """Inputs to predict on, from anything `load_task` reads or a list; nothing is merged or reordered.

    `leave_out` names label columns of a table of numbers; `kind` is what a bundled task's labels are read as, and `options`
    are the task's `preprocessing`.
    """
    what = known(modality or "molecules")
    listed = isinstance(data, list | tuple)
    table = Table({}, range(len(data)), "the list", structures=list(data)) if listed else open_table(data, kind)
    what = what if listed else modality_of(table, modality)
    values = inputs_of(table, what, input, leave_out, options.pop("columns", None))
    clean, dropped = cleaned(values, table, what, what.clean(**options))
    if not clean:
        raise nothing_left(table, what, dropped)
    report = ReadReport(
        table.origin, table.numbering, len(table.rows), len(clean), tuple(dropped), what=what.name, one=what.one
    )
    return Inputs(list(clean.values()), list(clean), report, table)
