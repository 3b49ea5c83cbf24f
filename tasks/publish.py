"""What a run leaves in its folder: artefact, report, dropped rows and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from reprogram.card import readouts
from reprogram.files import atomic_folder
from reprogram.model import Reprogrammed
from reprogram.selection import Selection
from reprogram.train import History
from tasks.comparison import Comparison
from tasks.inference import row_marks
from tasks.report import Report
from tasks.task import Task

DROPPED, MERGED, SELECTION = "dropped.csv", "merged.csv", "selection.md"
FIGURES = ("parity.png", "history.png", "comparison.png", "learning_curve.png")
COVERAGE = 0.68  # share of the validation errors that a bar of the parity plot spans: one standard deviation if normal


def reported(
    result: Comparison, model: Reprogrammed, history: History, selection: Selection | None,
    settings: dict[str, Any], processes: int,
) -> Report:  # fmt: skip
    """The report of a comparison, with how the model beside it was trained and why it was chosen."""
    report = Report.of(result, training=training_facts(history, processes), parts=settings, readouts=readouts(model))
    notes = [f"Training: {history.stopped}."] if history.stopped else []
    notes += [f"Chosen on held-out rows: {selection.why()}"] if selection is not None else []
    return replace(report, notes=(*report.notes, *notes))


def training_facts(history: History, processes: int) -> dict[str, Any]:
    """What the report says of the training: epochs run, epoch kept (from 1), its validation loss, processes that shared it."""
    losses, best = history.column("validation_loss"), history.best_epoch
    loss = losses[best] if 0 <= best < len(losses) else None
    return {
        "epochs": len(history.epochs), "best_epoch": best + 1 if losses else None, "validation_loss": loss,
        "processes": processes,
    }  # fmt: skip


def facts(task: Task, metrics: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the artefact remembers: enough for a card, and to name columns and classes of a prediction."""
    about: dict[str, Any] = {
        "name": task.name,
        "modality": task.modality,
        "input": task.input_name,
        "kind": task.kind,
        "metric": task.metric,
        "units": task.units,
        "source": task.source,
    }
    about |= {"license": task.license, "classes": list(task.classes), "label_classes": task.label_classes}
    about |= {"target": list(task.target_names)} | {"preprocessing": dict(task.preprocessing)}
    about = about | {f"{part}_rows": len(rows) for part, rows in task.split.items()}
    about = {key: value for key, value in about.items() if value not in ("", [], (), {})}
    known = {name: asdict(e) for name, e in metrics.items() if math.isfinite(e.low)}
    training = dict(settings) | {"rows": row_marks(task)}
    return {"task": about, "metrics": known, "training": training}


def publish(
    out: Path, model: Reprogrammed, report: Report, task: Task, guesses: Mapping[str, np.ndarray], *,
    history: History | None = None, curve: Any = None, selection: Selection | None = None,
) -> None:  # fmt: skip
    """Write artefact, report, dropped rows and figures into `out`, all or nothing; figures of an older run go."""
    import pandas as pd

    drawn = figures(report, task, guesses, history=history, curve=curve)
    dropped = pd.DataFrame([asdict(row) for row in task.report.dropped], columns=["row", "input", "reason"])
    merged = pd.DataFrame(
        [{"input": m.input, "rows": " ".join(map(str, m.rows)), "conflict": m.conflict} for m in task.report.merged]
    )
    with atomic_folder(out) as writing:
        model.save_pretrained(writing)
        report.write(writing)
        dropped.to_csv(writing / DROPPED, index=False)
        if len(merged):
            merged.to_csv(writing / MERGED, index=False)
        if selection is not None:
            (writing / SELECTION).write_text(selection.to_markdown(), encoding="utf-8")
        for name, ax in drawn.items():
            ax.figure.savefig(writing / name, dpi=150)
    absent = ([] if len(merged) else [MERGED]) + ([] if selection is not None else [SELECTION])
    for name in {*FIGURES, *absent} - set(drawn):
        (out / name).unlink(missing_ok=True)


def figures(
    report: Report, task: Task, guesses: Mapping[str, np.ndarray], *, history: History | None = None, curve: Any = None
) -> dict[str, Any]:
    """The figures that this run has data for, by file name."""
    from reprogram import plot

    drawn = {}
    if task.kind == "regression":
        error = np.abs(task.part("validation")[1] - guesses["validation"])
        reach = float(np.quantile(error, COVERAGE)) if len(error) else 0.0
        y, p = task.part("test")[1], guesses["test"]
        title = f"{task.name}, test rows\nbars: {COVERAGE:.0%} of the validation errors, ±{reach:.2g}"
        drawn["parity.png"] = plot.parity(y, p, low=p - reach, high=p + reach, units=task.units, name=title)
    if history is not None and history.epochs:
        drawn["history.png"] = plot.history(history)
    if len(report.ranked()) > 1:
        drawn["comparison.png"] = report.plot()
    if curve is not None:
        drawn["learning_curve.png"] = plot.learning_curve(curve, label=report.label)
    return drawn
