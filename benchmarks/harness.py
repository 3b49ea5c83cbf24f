"""What every benchmark shares: cells measured one after the other, kept as soon as they are done, resumed after a stop."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from reprogram.files import atomic_file
from reprogram.model import versions
from tasks.baselines import Method, run_all
from tasks.features import FeatureTable
from tasks.task import Task

RESULTS = Path(__file__).parent / "results"
Cell = dict[str, Any]


def parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Options that every benchmark has; `defaults` add lists of its own."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, values in defaults.items():
        found.add_argument(f"--{name}", nargs="+", default=list(values), type=type(values[0]))
    found.add_argument("--seeds", type=int, default=5)
    found.add_argument("--methods", nargs="+", default=[], help="names; by default all that the benchmark runs")
    found.add_argument("--shard", default="0/1", help="this process takes cells i, i + n, … of i/n")
    found.add_argument("--minutes", type=float, default=1e9, help="start no new cell after this many minutes")
    found.add_argument("--quick", action="store_true", help="one small cell")
    found.add_argument("--out", type=Path, default=None)
    found.add_argument("--table", action="store_true", help="only print the table")
    return found


def load_rows(path: Path) -> list[dict]:
    """Rows measured so far."""
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def save_rows(path: Path, rows: list[dict]) -> None:
    """All rows with the versions and the machine's cores, whole or not at all."""
    facts = {"versions": versions(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "rows": rows}
    with atomic_file(path) as writing:
        writing.write_text(json.dumps(facts, indent=0) + "\n")


def measure(
    name: str, options: argparse.Namespace, cells: Sequence[Cell], task_of: Callable[[Cell], Task],
    methods_of: Callable[[Cell], Sequence[Method]], facts_of: Callable[[Cell, str], dict] = lambda cell, method: {}, *,
    own: str = "", table: FeatureTable | None = None,
) -> list[dict]:  # fmt: skip
    """Measure what is missing of this shard's cells; returns every row of every shard.

    A cell is plain facts with a seed; each of its methods becomes one row with these facts, metrics and seconds, and what
    `facts_of` adds when it has run. A method that any shard's file has for a cell is not measured again. Files are called
    after the benchmark, `own`, which keeps apart what runs at the same time, and the shard. `table` is where methods of
    several cells read their features.
    """
    torch.set_num_threads(1)
    label = "-".join(word for word in (own, "quick" if options.quick else options.shard.replace("/", "of")) if word)
    path = options.out or RESULTS / f"{name}-{label}.json"
    files = [path] if options.quick or options.out else sorted({path, *RESULTS.glob(f"{name}-*of*.json")})
    rows, started = load_rows(path), time.monotonic()
    others = [row for file in files if file != path for row in load_rows(file)]
    index, count = map(int, options.shard.split("/"))
    for cell in [] if options.table else list(cells)[index::count]:
        done = {row["method"] for row in rows + others if all(row.get(key) == value for key, value in cell.items())}
        wanted = [m for m in methods_of(cell) if m.name not in done and m.name in (options.methods or [m.name])]
        if not wanted:
            continue
        if (time.monotonic() - started) / 60 > options.minutes:
            break
        task = task_of(cell)
        result = run_all(task, wanted, cell["seed"], table or FeatureTable(), progress=False)
        sizes = {"train": len(task.split["train"]), "test": len(task.split["test"])}
        for row in result.rows:
            values = {k: [round(x, 5) for x in (v.value, v.low, v.high)] for k, v in row.metrics.items()}
            seconds = None if row.seconds is None else round(row.seconds, 2)
            facts = {
                "method": row.method,
                "group": row.group,
                "seconds": seconds,
                "trainable": row.trainable,
                "error": row.error,
            }
            rows.append(cell | sizes | facts | facts_of(cell, row.method) | values)
        save_rows(path, rows)
        shown = ", ".join(f"{r.method} {r.metrics[result.metric].value:.3f}" for r in result.ranked())
        print(" ".join(f"{key} {value}" for key, value in cell.items()), "|", shown, flush=True)
    return [row for file in files for row in load_rows(file)]
