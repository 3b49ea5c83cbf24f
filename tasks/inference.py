"""A saved model on a file: predictions beside the user's own columns, or metrics against labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprogram.errors import DataError
from reprogram.files import atomic_file, check_place
from reprogram.model import Reprogrammed
from reprogram.train import predict
from tasks.baselines import tidy
from tasks.data import Inputs, read_inputs
from tasks.labels import parse, short
from tasks.metrics import evaluate
from tasks.modalities import MODALITIES
from tasks.readers import Table
from tasks.report import Report, measured
from tasks.task import Dropped, Task, shown, without_row

if TYPE_CHECKING:
    import pandas as pd

REASON = "reason"
MARK = 8
WRITERS = {".csv": {"sep": ","}, ".tsv": {"sep": "\t"}}


@dataclass(frozen=True)
class Predicted:
    """What `predict_file` wrote: `frame` is the user's table with the new columns, `refused` the rows left empty."""

    path: Path
    frame: pd.DataFrame
    refused: tuple[Dropped, ...]
    columns: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Counts, new columns and refused rows as plain values."""
        rows = {"rows": len(self.frame), "predicted": len(self.frame) - len(self.refused)}
        return {
            "out": str(self.path),
            **rows,
            "columns": self.columns,
            "refused": [asdict(row) for row in self.refused],
        }


def predict_file(
    folder: str | Path, data: Any, out: str | Path = "predictions.csv", *, input: str | None = None
) -> Predicted:
    """Predict every row of a table, or every image of a folder, with the artefact in `folder` and write a table.

    Columns and the order of rows stay. A value gets a column `predicted_<target> [units]`; classes get the likeliest
    class and a probability per class; labels a probability each. An input that cannot be read or encoded keeps empty
    predictions and says why in the column `reason`. `input` defaults to the column that the model was trained on.

    Raises: DataError for a damaged artefact, for data without one usable input, and when `out` cannot be written.
    """
    import pandas as pd

    out = Path(out)
    if out.suffix.lower() not in WRITERS:
        raise DataError(f"expected an output that ends in {' or '.join(WRITERS)}, got {short(str(out), 200)}")
    check_place(out.parent)
    model = Reprogrammed.from_pretrained(folder)
    about = model.metadata.get("task", {})
    found = read_like(data, about, input)
    table = found.table
    positions, values, refused = answers(model, found)
    frame = pd.DataFrame({c: table.column(c) for c in table.columns}, index=range(len(table.rows)))
    if table.modality == "molecules":  # structures without a text of their own
        frame[free_name("smiles", frame)] = pd.Series(found.inputs, index=found.positions)
    new = []
    for name, column in named_columns(str(model.mapping.kind), about, values).items():
        new.append(free_name(name, frame))
        frame[new[-1]] = pd.Series(column, index=positions)
    if refused:
        places = {row: i for i, row in enumerate(table.rows)}
        new.append(free_name(REASON, frame))
        frame[new[-1]] = pd.Series({places[d.row]: d.reason for d in refused}).reindex(frame.index, fill_value="")
    with atomic_file(out) as path:
        frame.to_csv(path, index=False, **WRITERS[out.suffix.lower()])
    return Predicted(out, frame, refused, tuple(new))


def read_like(data: Any, about: Mapping[str, Any], input: str | None) -> Inputs:
    """The inputs of new data, read as those of the training were; the labels of a table of numbers are no input."""
    how = {"modality": about.get("modality"), "leave_out": list(about.get("target") or []), "kind": about.get("kind")}
    return read_inputs(
        data, **how, input=input or about.get("input") or about.get("smiles"), **about.get("preprocessing", {})
    )


def answers(model: Reprogrammed, found: Inputs) -> tuple[list[int], np.ndarray, tuple[Dropped, ...]]:
    """Positions of the rows answered, their predictions, and the rows refused by the reader or by the source."""
    refused = list(found.report.dropped)
    pairs = list(zip(found.positions, found.inputs, strict=True))
    try:
        values = predict(model, found.inputs)
    except ValueError:
        # one input the source cannot take (too long, no such token) must not cost the others their answer
        kept = []
        for position, value in pairs:
            try:
                model.encode([value])
                kept.append((position, value))
            except ValueError as error:
                refused.append(Dropped(found.table.rows[position], shown(value), without_row(error)))
        if not kept or len(kept) == len(pairs):
            raise
        pairs, values = kept, predict(model, [value for _, value in kept])
    return [position for position, _ in pairs], values, tuple(sorted(refused, key=lambda d: d.row))


def named_columns(kind: str, about: Mapping[str, Any], values: np.ndarray) -> dict[str, list[Any]]:
    """Predictions under the names a user reads: target and units, class names, label names."""
    targets = list(about.get("target") or [about.get("name") or "value"])
    classes = list(about.get("classes") or range(values.shape[1]))
    numbers = [[float(f"{v:.7g}") for v in column] for column in values.T.tolist()]
    if kind == "regression":
        units = f" [{about['units']}]" if about.get("units") else ""
        names = targets if len(targets) == len(numbers) else [f"{targets[0]}_{t}" for t in range(len(numbers))]
        return {f"predicted_{name}{units}": column for name, column in zip(names, numbers, strict=True)}
    chances = {f"probability_{name}": column for name, column in zip(classes, numbers, strict=True)}
    if kind == "multilabel":
        return chances
    return {f"predicted_{targets[0]}": [classes[i] for i in values.argmax(1)], **chances}


def free_name(name: str, taken: pd.DataFrame) -> str:
    """`name`, numbered where the user's table already has it: predictions of an earlier model stay."""
    number, free = 2, name
    while free in taken.columns:
        free, number = f"{name}_{number}", number + 1
    return free


def evaluate_file(
    folder: str | Path, data: Any, *, input: str | None = None, target: Sequence[str] = (), seed: int = 0
) -> Report:
    """Metrics of the artefact in `folder` on labelled rows, with 95 % bootstrap intervals.

    Every row counts as it is: nothing is merged or split. Rows without a readable input or a finite label are left
    out and counted, and training rows of the model are counted in a note.
    `input` and `target` default to the columns that the model was trained on.

    Raises: DataError for a damaged artefact, a missing column, or labels that are not of the model's kind.
    """
    model = Reprogrammed.from_pretrained(folder)
    about, kind = model.metadata.get("task", {}), str(model.mapping.kind)
    found = read_like(data, about, input)
    table = found.table
    y = labels_of(table, list(target) or list(about.get("target") or []), kind, about)
    positions, values, refused = answers(model, found)
    values = values[:, 0] if kind == "regression" else tidy(kind, values)
    trained = model.metadata.get("training", {})
    name, group = trained.get("method", model.source.name), trained.get("group", "reprogrammed")
    rows = measured(name, group, evaluate(kind, y[positions], values, seed=seed), seed=seed)
    kept = int((~np.isnan(y[positions])).reshape(len(positions), -1).any(1).sum())
    facts = {"origin": table.origin, "read": len(table.rows), "kept": kept, "dropped": len(table.rows) - kept}
    facts |= {
        "unreadable": len(refused),
        "seen_in_training": seen(found.inputs, trained.get("rows", ""), str(about.get("modality"))),
    }
    notes = (
        f"{facts['seen_in_training']} of these {len(found.inputs)} {found.report.what} were training rows of the model: "
        "such metrics are too good.",
    )
    return Report(
        str(about.get("name") or table.origin), kind, str(about.get("units") or ""), tuple(rows),
        notes=notes if facts["seen_in_training"] else (), data=facts,
    )  # fmt: skip


def row_marks(task: Task) -> str:
    """8 hexadecimal digits of each training input's SHA-256, joined: enough to know a row again, not to read it."""
    return "".join(sorted({mark(value, task.modality) for value in task.part("train")[0]}))


def seen(inputs: Sequence[Any], marks: str, modality: str) -> int:
    """How many inputs are among those that `marks` was made of."""
    known = {marks[i : i + MARK] for i in range(0, len(marks), MARK)}
    return sum(mark(value, modality) in known for value in inputs)


def mark(value: Any, modality: str) -> str:
    """The first MARK hexadecimal digits of the SHA-256 of what an input holds."""
    return digest(value, modality)[:MARK]


def digest(value: Any, modality: str) -> str:
    """`Modality.digest` by the name of the modality; a task in memory may have another one."""
    return MODALITIES.get(modality, MODALITIES["tables"]).digest(value)


def labels_of(table: Table, targets: list[str], kind: str, about: Mapping[str, Any]) -> np.ndarray:
    """The label columns as (n,) values or class indices, or (n, T) labels; NaN where a label is missing.

    Class names mean what they meant in training, which `about` remembers.
    """
    if not targets:
        raise DataError(
            f"expected target columns to be named, got none of {len(table.columns)} columns; choose with target"
        )
    names = [table.find(name) for name in targets]
    parsed = {c: [parse(v, row, c) for v, row in zip(table.column(c), table.rows, strict=True)] for c in names}
    if kind == "regression":
        return numbers_of(parsed[names[0]], table, names[0])
    if kind == "classification":
        return indices_of(parsed[names[0]], table, names[0], list(about.get("classes") or []))
    pairs = list(about.get("label_classes") or [["0", "1"]] * len(names))
    if len(pairs) != len(names):
        raise DataError(f"expected {len(pairs)} label columns, as in training, got {len(names)}; name them with target")
    return np.stack([indices_of(parsed[c], table, c, list(pair)) for c, pair in zip(names, pairs, strict=True)], axis=1)


def numbers_of(values: Sequence[Any], table: Table, column: str) -> np.ndarray:
    for row, value in zip(table.rows, values, strict=True):
        if isinstance(value, str):
            raise DataError(f"expected numbers in column {short(column)}, got {short(value)} at row {row}")
    found = np.asarray([np.nan if v is None else v for v in values], dtype=float)
    return np.where(np.isinf(found), np.nan, found)


def indices_of(values: Sequence[Any], table: Table, column: str, classes: list[str]) -> np.ndarray:
    places = {name: float(i) for i, name in enumerate(classes)}
    found = []
    for row, value in zip(table.rows, values, strict=True):
        name = f"{value:.12g}" if isinstance(value, float) else value
        if name is not None and name not in places:
            known = ", ".join(classes)
            raise DataError(f"expected classes {known} in column {short(column)}, got {short(name)} at row {row}")
        found.append(np.nan if name is None else places[name])
    return np.asarray(found)
