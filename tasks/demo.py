"""The main job on real data, offline: reprogram a frozen network for hydration free energies, and see if it pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprogram.errors import DataError
from reprogram.files import check_place
from reprogram.model import Reprogrammed
from tasks.baselines import compare, methods, selected
from tasks.comparison import Comparison
from tasks.features import FeatureTable
from tasks.metrics import METRICS, evaluate, rank_metric
from tasks.molecules import load_task
from tasks.publish import facts, publish
from tasks.report import Report
from tasks.runs import guess
from tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd

SOURCE, LABELS, SIZES = "minimol", 200, (50, 100)
CURVE = ("reprogrammed", "linear-probe", "ridge-descriptors", "forest-morgan-descriptors", "mean")
QUICK = ("reprogrammed", "linear-probe", "ridge-descriptors")


def run_demo(out: str | Path = "runs/demo", *, quick: bool = False, seed: int = 0, progress: bool = True) -> Report:
    """FreeSolv, scaffold split, 200 labels: MiniMol reprogrammed and the "auto" stack beside controls and baselines.

    Of the reprogrammed models the one with the best validation metric is saved in `out`, with card, report and figures;
    the learning curve adds 50 and 100 labels for the cheap methods. `quick` shrinks rows, epochs and methods for a test.

    Raises: DataError when `out` cannot be written or the data is not installed.
    """
    out = Path(out)
    check_place(out)
    task = load_task("freesolv", split="scaffold", seed=seed)
    table, epochs = FeatureTable(), None
    sizes, curve, include = list(SIZES), list(CURVE), [*fast_names(), "auto", "auto-frozen"]
    if quick:
        task, epochs = shrunk(task, 60), 1
        sizes, curve, include = [20], list(QUICK[1:]), list(QUICK)
    options: dict[str, Any] = {"source": SOURCE, "seed": seed, "epochs": epochs, "table": table, "progress": progress}
    full = task.subset(min(LABELS, len(task.split["train"])), seed)
    main = compare(full, include=include, **options)
    smaller = [compare(full.subset(size, seed), include=curve, **options) for size in sizes]
    name, model, guesses = best_on_validation(main)
    report = Report.of(main, saved=name, saved_by="lowest validation error among the reprogrammed models")
    settings = {"source": "auto" if name == "auto" else SOURCE, "method": name, "group": "reprogrammed", "seed": seed}
    model.metadata = facts(full, main[name].metrics, settings)
    publish(out, model, report, full, guesses, curve=curve_frame([*smaller, main], curve))
    return report


def fast_names() -> list[str]:
    """Every method that takes seconds."""
    return [method.name for method in selected(methods(SOURCE), "fast")]


def shrunk(task: Task, rows: int) -> Task:
    """The first `rows` of every part."""
    return replace(task, split={part: index[:rows] for part, index in task.split.items()})


def best_on_validation(comparison: Comparison) -> tuple[str, Reprogrammed, dict[str, np.ndarray]]:
    """The reprogrammed model to keep, chosen without the test rows, and its predictions of both held-out parts."""
    task, metric = comparison.task, rank_metric(comparison.task.kind)
    if not comparison.models:
        raise DataError(
            f"expected a reprogrammed model to save, got none: {'; '.join(r.error for r in comparison.rows)}"
        )
    sign = -1 if METRICS[metric].larger_is_better else 1
    found = {}
    for name, model in comparison.models.items():
        p = guess(model, task, "validation")
        value = evaluate(task.kind, task.part("validation")[1], p, resamples=2)[metric].value
        found[name] = (sign * value, p)
    name = min(found, key=lambda key: found[key][0])
    return name, comparison.models[name], {"validation": found[name][1], "test": comparison.predictions[name]}


def curve_frame(comparisons: Sequence[Comparison], names: Sequence[str]) -> pd.DataFrame:
    """One row per method and label budget, for `reprogram.plot.learning_curve`."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for comparison in comparisons:
        metric = comparison.metric
        for row in comparison.rows:
            if row.method in names and row.metrics:
                e = row.metrics[metric]
                place = {"method": row.method, "train_size": len(comparison.task.split["train"]), "metric": metric}
                rows.append(place | {"value": e.value, "low": e.low, "high": e.high})
    return pd.DataFrame(rows)


def next_steps(out: str | Path) -> list[str]:
    """What to try after the demo."""
    return [
        f"Look at {out}/parity.png, {out}/comparison.png and {out}/learning_curve.png; the card is {out}/README.md.",
        "Next, on your own data:",
        "  reprogram train --data my.csv --smiles smiles --target y --train-size 200 --compare fast --out runs/mine",
        "  reprogram predict runs/mine --data new.csv --out predictions.csv",
        "Other frozen models and data sets: reprogram sources, reprogram tasks.",
    ]
