"""A molecule task from bundled data, a file, a data set, or two lists: standardised, merged, split, reported."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reprogram.errors import DataError
from tasks.labels import Labels, Value, check_types, encode, infer_kind, parse, short
from tasks.metrics import rank_metric
from tasks.molecules import bundled
from tasks.molecules.merge import HELD_OUT, Merge, merge
from tasks.molecules.readers import Table, read
from tasks.molecules.standardise import Standardiser, scaffold
from tasks.splits import WORDS, Split, check_fractions, given_split, group_split, random_split
from tasks.task import Dropped, ReadReport, Task, without_row

FRACTIONS = (0.8, 0.1, 0.1)
FEW_VALUES = 10


@dataclass(frozen=True)
class Molecules:
    """Molecules without labels, for prediction: canonical SMILES, their 0-based positions in the data, the report."""

    inputs: list[str]
    positions: list[int]
    report: ReadReport


def load_task(
    data: Any,
    *,
    smiles: str = "smiles",
    target: str | Sequence[str] | None = None,
    split: str | None = None,
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    kind: str | None = None,
    positive: str | None = None,
    tolerance: float | None = None,
    name: str | None = None,
    units: str = "",
    accepts: Callable[[str], Any] | None = None,
    **standardisation: Any,
) -> Task:
    """A task from a bundled name ("freesolv", "solubility", "b3db"), a CSV, TSV, Parquet or SDF file, a pandas
    DataFrame, a `datasets.Dataset` or `DatasetDict`, or a hub id.

    `split` is "scaffold" (default), "random", or a column of words train, validation, test; a DatasetDict keeps its
    own parts by default. `kind` is inferred from the target column unless given, `positive` names class 1,
    `tolerance` is the spread of repeated measurements still taken as agreement (default: a fifth of their standard
    deviation over the task), `accepts` is asked with every canonical SMILES and may refuse it by a ValueError, which
    drops the row, and the other options are those of `Standardiser`.

    Raises: DataError, one sentence on what is wrong with the data.
    """
    entry, table = bundled_entry(data), open_table(data)
    if entry:
        smiles, target = entry.smiles, target or entry.target
        kind, positive, units = kind or entry.kind, positive or entry.positive, units or entry.units
    label = name or (str(data).lower() if entry else Path(table.origin).stem or table.origin)
    source = entry.reference if entry else table.origin
    standardiser = Standardiser(**_known(standardisation))
    reader = _Reader(table, smiles, target, split, positive, tolerance, standardiser, accepts)
    return reader.task(
        kind, seed, fractions, name=label, units=units, source=source, license=entry.license if entry else ""
    )


def bundled_entry(data: Any) -> bundled.Bundled | None:
    """The bundled task that `data` names, unless a file has that name."""
    return bundled.TASKS.get(data.lower()) if isinstance(data, str) and not Path(data).is_file() else None


def open_table(data: Any) -> Table:
    """Bundled data by name, or anything `read` takes."""
    return bundled.read_bundled(data.lower()) if bundled_entry(data) else read(data)


def from_molecules(
    molecules: Iterable[Any],
    y: Any,
    *,
    names: Sequence[str] | None = None,
    name: str = "molecules",
    **options: Any,
) -> Task:
    """A task from a list of SMILES or RDKit molecules and targets (n,) or (n, T); options are those of `load_task`.

    `names` are the label names of a (n, T) target. A `split` other than "scaffold" and "random" is a list of words.
    """
    inputs = list(molecules)
    values = np.asarray(y, dtype=object)
    if values.ndim not in (1, 2) or len(values) != len(inputs):
        raise DataError(f"expected one target per molecule, got {len(inputs)} molecules and targets {values.shape}")
    columns: dict[str, Any] = {"smiles": inputs}
    labels = list(names or (["y"] if values.ndim == 1 else [f"y{t}" for t in range(values.shape[1])]))
    if len(labels) != (1 if values.ndim == 1 else values.shape[1]) or "smiles" in labels:
        raise DataError(f"expected one name per target column, got {labels} for targets {values.shape}")
    columns |= {label: list(values if values.ndim == 1 else values[:, t]) for t, label in enumerate(labels)}
    split = options.get("split")
    if split is not None and not isinstance(split, str):
        columns["split"], options["split"] = list(split), "split"
    return load_task(columns, smiles="smiles", target=labels, name=name, **options)


def read_molecules(data: Any, *, smiles: str = "smiles", **standardisation: Any) -> Molecules:
    """Molecules to predict on, from anything `load_task` reads or a list of SMILES; nothing is merged or reordered."""
    listed = isinstance(data, list | tuple)
    table = Table({"smiles": list(data)}, range(len(data)), "the list") if listed else open_table(data)
    column = table.structures if table.structures is not None else table.column(table.find(smiles))
    clean, dropped = _standardised(column, table, Standardiser(**_known(standardisation)))
    if not clean:
        raise _nothing_left(table, dropped)
    report = ReadReport(table.origin, table.numbering, len(table.rows), len(clean), tuple(dropped))
    return Molecules(list(clean.values()), list(clean), report)


def scaffold_split(inputs: Sequence[str], *, fractions: Sequence[float] = FRACTIONS) -> Split:
    """Deterministic Bemis-Murcko split: no scaffold is in two parts (see `tasks.splits.group_split`)."""
    return group_split([scaffold(smiles) for smiles in inputs], fractions=fractions)


def resplit(task: Task, split: str, *, seed: int = 0, fractions: Sequence[float] = FRACTIONS) -> Task:
    """The same task under another "scaffold" or "random" split, without reading it again."""
    if split not in ("scaffold", "random"):
        raise DataError(f'expected split "scaffold" or "random", got {short(split)}')
    if split == "scaffold":
        return replace(task, split=scaffold_split(task.inputs, fractions=fractions))
    return replace(task, split=random_split(len(task), seed=seed, fractions=fractions))


@dataclass(frozen=True)
class _Reader:
    """The steps from a table to a task."""

    table: Table
    smiles: str
    target: str | Sequence[str] | None
    split: str | None
    positive: str | None
    tolerance: float | None
    standardiser: Standardiser
    accepts: Callable[[str], Any] | None = None

    def task(self, kind: str | None, seed: int, fractions: Sequence[float], **facts: str) -> Task:
        shares = check_fractions(fractions)
        table = self.table
        structure = None if table.structures is not None else table.find(self.smiles)
        parts = self._split_column()
        targets = self._targets(structure, parts)
        labels = {c: self._parsed(c, kind) for c in targets}
        inputs = table.column(structure) if structure is not None else table.structures or ()
        clean, dropped = _standardised(inputs, table, self.standardiser, self.accepts)
        dropped += _without_labels(clean, labels, table)
        if not clean:
            raise _nothing_left(table, sorted(dropped, key=lambda d: d.row))
        words = table.column(parts) if parts else None
        asked = kind
        kind = infer_kind({c: [values[i] for i in clean] for c, values in labels.items()}, kind)
        merged = merge(clean, labels, table.rows, words=words, numeric=kind == "regression", tolerance=self.tolerance)
        if not merged.inputs:
            raise DataError(f"expected usable labels in {table.origin}, got conflicting classes for every molecule")
        encoded = encode(merged.labels, kind=kind, positive=self.positive, order=dict(table.order))
        cut, note = self._cut(merged, parts, encoded, seed, shares)
        report = ReadReport(
            origin=table.origin,
            numbering=table.numbering,
            read=len(table.rows),
            kept=len(merged.inputs),
            dropped=tuple(sorted([*dropped, *merged.dropped], key=lambda d: d.row)),
            merged=tuple(merged.groups),
            notes=tuple(note for note in (note, whole_numbers(encoded, targets, asked)) if note),
        )
        return Task(
            inputs=merged.inputs, targets=encoded.targets, kind=encoded.kind, metric=rank_metric(encoded.kind),
            classes=encoded.classes, target_names=tuple(targets), label_classes=encoded.label_classes, split=cut, report=report, preprocessing=changed(self.standardiser), **facts,
        )  # fmt: skip

    def _split_column(self) -> str | None:
        if self.split in ("scaffold", "random"):
            return None
        if self.split is not None:
            return self.table.find(self.split)
        column = self.table.parted
        known = {WORDS.get(word) for word in self.table.column(column)} if column else set()
        return column if {"train", "test"} <= known <= set(HELD_OUT) else None

    def _targets(self, structure: str | None, parts: str | None) -> list[str]:
        if self.target is not None:
            wanted = [self.target] if isinstance(self.target, str) else list(self.target)
            found = [self.table.find(c) for c in wanted]
            if not found or len(set(found)) != len(found) or structure in found:
                raise DataError(f"expected distinct target columns beside the SMILES, got {short(wanted)}")
            return found
        free = [c for c in self.table.columns if c not in (structure, parts, self.table.parted)]
        if len(free) != 1:
            there = ", ".join(short(c, 40) for c in free[:20]) or "no other column"
            raise DataError(f"expected one target column in {self.table.origin}, got {there}; choose with target=")
        return free

    def _parsed(self, column: str, kind: str | None) -> list[Value]:
        rows = self.table.rows
        values = [parse(v, row, column) for v, row in zip(self.table.column(column), rows, strict=True)]
        if kind == "classification" and len({type(v) for v in values if v is not None}) > 1:
            # classes asked for by name may look like numbers: "1", "2", "2b"
            return [f"{v:.12g}" if isinstance(v, float) else v for v in values]
        check_types(values, rows, column)
        return values

    def _cut(
        self, merged: Merge, parts: str | None, labels: Labels, seed: int, shares: tuple[float, float, float]
    ) -> tuple[Split, str]:
        note = ""
        if parts:
            share = shares[1] / (shares[0] + shares[1])
            cut, note = given_split(merged.words, merged.rows, parts, seed=seed, share=share)
        elif self.split == "random":
            cut = random_split(len(merged.inputs), seed=seed, fractions=shares)
        else:
            cut = scaffold_split(merged.inputs, fractions=shares)
        train = labels.targets[cut["train"]]
        if labels.kind != "multilabel" and len(np.unique(train)) < 2:
            what = "values" if labels.kind == "regression" else "classes"
            raise DataError(
                f"expected at least two {what} in the training part, got one in {len(train)} rows; split otherwise"
            )
        return cut, note


def _standardised(
    molecules: Sequence[Any], table: Table, standardiser: Standardiser, accepts: Callable[[str], Any] | None = None
) -> tuple[dict[int, str], list[Dropped]]:
    from tqdm.auto import tqdm

    clean: dict[int, str] = {}
    dropped: list[Dropped] = []
    for i, molecule in enumerate(tqdm(molecules, desc="read", unit="row", delay=2, leave=False)):
        try:
            text = standardiser(molecule)
            if accepts is not None:
                accepts(text)
            clean[i] = text
        except ValueError as refusal:
            text = molecule if isinstance(molecule, str) else ""
            dropped.append(Dropped(table.rows[i], text[:200], without_row(refusal)))
    return clean, dropped


def whole_numbers(encoded: Labels, targets: Sequence[str], asked: str | None) -> str:
    """A hint where a few whole numbers were read as values, which may have been meant as classes."""
    values = np.unique(encoded.targets) if encoded.kind == "regression" and asked is None else np.zeros(0)
    if not 2 < len(values) <= FEW_VALUES or np.any(values != np.round(values)):
        return ""
    return (
        f"{targets[0]} holds {len(values)} different whole numbers and was read as values; for classes say "
        "kind classification"
    )


def _without_labels(clean: dict[int, str], labels: dict[str, list[Value]], table: Table) -> list[Dropped]:
    """Takes rows with an infinite label, or with none, out of `clean`."""
    dropped = []
    for i in list(clean):
        values = {c: labels[c][i] for c in labels}
        endless = [c for c, v in values.items() if isinstance(v, float) and math.isinf(v)]
        if endless or all(v is None for v in values.values()):
            reason = f"the label in column {short(endless[0])} is infinite" if endless else "the label is missing"
            dropped.append(Dropped(table.rows[i], clean.pop(i), reason))
    return dropped


def _nothing_left(table: Table, dropped: list[Dropped]) -> DataError:
    if not dropped:
        return DataError(f"expected at least one molecule in {table.origin}, got none")
    first = dropped[0]
    return DataError(
        f"expected at least one usable molecule in {table.origin}, got none in {len(table.rows)} rows; "
        f"the first, row {first.row} {short(first.smiles)}: {first.reason}"
    )


def changed(standardiser: Standardiser) -> dict[str, Any]:
    """The options that are not the default ones."""
    return {key: value for key, value in asdict(standardiser).items() if value != getattr(Standardiser(), key)}


def _known(options: dict[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(options) - set(Standardiser.__dataclass_fields__)):
        known = ", ".join(Standardiser.__dataclass_fields__)
        raise TypeError(f"expected options of load_task or among {known}, got {unknown[0]!r}")
    return options
