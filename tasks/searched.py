"""A budgeted search before a training: on held-out rows, never on test rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reprogram.auto import default_sources
from reprogram.errors import DataError
from reprogram.model import Reprogrammed
from reprogram.recipes import sources_of
from reprogram.selection import Selection, select
from reprogram.train import History
from tasks.task import Task


def searched(
    task: Task, source: Any, program: Any, mapping: Any, budget: int, epochs: int | None, seed: int, *,
    progress: bool, accelerator: Any, checkpoint_dir: Path,
) -> tuple[Reprogrammed, History, Selection]:  # fmt: skip
    """The best of `budget` combinations on held-out rows, trained on all of them; a search that was killed goes on."""
    if program != "auto" or mapping != "auto":
        raise DataError(
            "expected program and mapping 'auto' with a budget, which chooses both, got others; leave them out"
        )
    data, everything = held_out(task, seed)
    known = sources_of(source)
    known = default_sources(modality=task.modality, inputs=task.inputs, more=True) if known is None else known
    found = select(
        data, known, kind=task.kind, outputs=task.outputs, budget=budget, epochs=30 if epochs is None else epochs,
        modality=task.modality, seed=seed, storage=checkpoint_dir / "selection.json", progress=progress,
    )  # fmt: skip
    options = {"progress": progress, "accelerator": accelerator, "checkpoint_dir": checkpoint_dir}
    return *found.train(everything, task.outputs, task.kind, **options), found


def held_out(task: Task, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rows to search on, as train and validation, and all of them as train; test rows are in neither.

    Where the task has fewer than one validation row for four training rows, too few to compare anything on, a third of
    both together is held out.
    """
    from sklearn.model_selection import train_test_split

    train, validation = (np.asarray(task.split[part], dtype=int) for part in ("train", "validation"))
    rows = np.concatenate([train, validation])
    if len(validation) < len(train) / 4:
        y = task.targets[rows]
        both = task.kind == "classification" and np.unique(y, return_counts=True)[1].min() > 1
        train, validation = train_test_split(rows, test_size=1 / 3, random_state=seed, stratify=y if both else None)
    parts = {"train": train, "validation": validation, "all": rows}
    found = {name: ([task.inputs[i] for i in chosen], task.targets[chosen]) for name, chosen in parts.items()}
    return {name: found[name] for name in ("train", "validation")}, {"train": found["all"]}
