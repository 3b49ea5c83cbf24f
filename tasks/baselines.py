"""What a user would pick instead of reprogramming, and the controls that say what each part of it is worth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from reprogram.auto import SOURCES, default_sources
from reprogram.errors import DataError
from reprogram.sources import Source
from tasks.comparison import Comparison, Row
from tasks.features import FeatureTable
from tasks.kit import Kit
from tasks.method import Group, Method, Prediction, tidy
from tasks.metrics import evaluate
from tasks.task import Task

__all__ = [
    "Group",
    "Method",
    "Prediction",
    "compare",
    "measured",
    "methods",
    "run_all",
    "selected",
    "tidy",
]


def methods(
    source: str | Source = "minimol",
    *,
    modality: str = "molecules",
    inputs: Sequence[Any] = (),
    table: FeatureTable | None = None,
    epochs: int | None = None,
    checkpoints: Path | None = None,
) -> dict[str, Method]:
    """Every control and baseline beside the reprogrammed `source`, by name; `modality` is that of the task.

    `source="auto"` runs them on the usual source of the modality, for images at a size that fits `inputs`; what the
    product picks by itself where a modality has several sources is then a fast method. `table` is where frozen
    features are kept; `epochs` shortens whatever is trained by gradient. With a folder `checkpoints`, for one task and
    seed, a program that two methods need ("reprogrammed" and "auto") is trained by the first of them.
    """
    auto, table = source == "auto", table or FeatureTable()
    width = len(inputs[0]) if modality == "tables" and len(inputs) else 0
    kit = Kit(table, usual(modality, inputs, table) if auto else source, epochs, checkpoints, modality, width)
    picked = kit.picked("fast" if auto else "slow") if len(SOURCES.get(modality, ())) > 1 else []
    without_source = getattr(kit, modality, list)()
    return {method.name: method for method in [*picked, *kit.own(), *without_source, *kit.tuned()]}


def usual(modality: str, inputs: Sequence[Any], table: FeatureTable) -> str | Source:
    """The source that stands for a modality: MiniMol for molecules, else the first of `default_sources`."""
    return "minimol" if modality == "molecules" else default_sources(table.source, modality=modality, inputs=inputs)[0]


def compare(
    task: Task,
    *,
    source: str | Source | None = None,
    include: str | Sequence[str | Method] = "fast",
    seed: int = 0,
    epochs: int | None = None,
    table: FeatureTable | None = None,
    progress: bool = True,
) -> Comparison:
    """Run methods on one task, each trained on its training part and asked once for its test part.

    Args:
        source: what is reprogrammed, probed and fine-tuned: a catalogue name, a hub id, a `Source`, or "auto"; by default
            the usual one of the task's modality.
        include: "fast", "all", or names of `methods()` and your own `Method` objects.
        epochs: passes over the training rows for whatever is trained by gradient; by default each method's own.
        table: a `FeatureTable` to share frozen features between calls, or to keep them in a folder.

    A method that cannot run here, for example because its weights are absent, is a row with the reason.

    Raises: DataError for an unknown method, or a task without a training or test part.
    """
    table = FeatureTable() if table is None else table
    source = source or usual(task.modality, task.inputs, table)
    empty = [part for part in ("train", "test") if not len(task.part(part)[0])]
    if empty:
        raise DataError(f"expected rows in the {empty[0]} part of '{task.name}', got none; split it otherwise")
    with TemporaryDirectory() as folder:
        known = methods(
            source, modality=task.modality, inputs=task.inputs, table=table, epochs=epochs, checkpoints=Path(folder)
        )
        return run_all(task, selected(known, include), seed, table, progress)


def run_all(task: Task, chosen: Sequence[Method], seed: int, table: FeatureTable, progress: bool) -> Comparison:
    """Every chosen method on one task, in turn."""
    from tqdm.auto import tqdm

    rows, predictions, models = [], {}, {}
    bar = tqdm(chosen, desc=f"compare on {task.name}", unit="method", disable=not progress)
    for method in bar:
        bar.set_postfix_str(method.name)
        row, prediction = measured(method, task, seed, table)
        rows.append(row)
        if prediction is not None:
            predictions[method.name] = prediction.values
            if method.group == "reprogrammed" and prediction.model is not None:
                models[method.name] = prediction.model
    return Comparison(task, tuple(rows), predictions, seed, models)


def selected(known: dict[str, Method], include: str | Sequence[str | Method]) -> list[Method]:
    """The methods that `include` names, in its order."""
    if include in ("fast", "all"):
        return [m for m in known.values() if include == "all" or m.cost == "fast"]
    wanted = [include] if isinstance(include, str) else list(include)
    if unknown := [name for name in wanted if isinstance(name, str) and name not in known]:
        raise DataError(f"expected 'fast', 'all' or methods among {', '.join(known)}, got {unknown[0]!r}")
    chosen = [known[name] if isinstance(name, str) else name for name in wanted]
    names = [method.name for method in chosen]
    if len(set(names)) != len(names) or not names:
        raise DataError(f"expected different methods, at least one, got {names}")
    return chosen


def measured(method: Method, task: Task, seed: int, table: FeatureTable) -> tuple[Row, Prediction | None]:
    """A method's row, its time with the features it reads as if it ran alone; a reason instead where it cannot run."""
    facts: dict[str, Any] = {"method": method.name, "group": method.group, "summary": method.summary}
    read = [*task.part("train")[0], *task.part("test")[0]]
    try:
        for name in method.sources:
            table.prepare(name, task.inputs, read)
        start = time.perf_counter()
        prediction = method.run(task, seed)
        seconds = time.perf_counter() - start + sum(table.seconds(name, len(read)) for name in method.sources)
        metrics = evaluate(task.kind, task.part("test")[1], prediction.values, seed=seed)
    except Exception as error:  # one method must not cost the others, nor a model that was trained before them
        return Row(**facts, error=" ".join(str(error).split()).rstrip(".") or type(error).__name__), None
    return Row(**facts, metrics=metrics, seconds=seconds, trainable=prediction.trainable), prediction
