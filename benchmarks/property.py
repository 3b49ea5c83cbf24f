"""Low-data molecule properties: reprogrammed sources beside every control and baseline, in one run.

    python -m benchmarks.property --quick                               a minute, for a look
    python -m benchmarks.property --shard 0/2 & python -m benchmarks.property --shard 1/2
    python -m benchmarks.property --table                               the Markdown table of what has been measured

A cell is (task, split, training rows, seed); every method of a cell sees the same rows. Finished cells are kept, so a
stopped run goes on where it was. Selection inside a method uses its training rows only; test rows are predicted once.
"""

from __future__ import annotations

import argparse
import os
import time
from itertools import product
from pathlib import Path

import torch

from benchmarks.harness import RESULTS, load_rows, save_rows
from benchmarks.summary import summarise
from tasks.baselines import compare, methods, selected
from tasks.features import FeatureTable
from tasks.molecules import load_task, resplit
from tasks.runs import accepted_by
from tasks.task import Task

TASKS, SPLITS, SIZES, SEEDS = (
    ("freesolv", "solubility", "b3db"),
    ("scaffold", "random"),
    ("50", "100", "200", "full"),
    5,
)
ROWS = 2000  # a larger task is cut once to this many rows, drawn with seed 0, to fit a two-core machine
TOKEN_SOURCES = ("chemnet", "annalog", "rxnmapper", "rxnfp", "minilm")


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--splits", nargs="+", default=list(SPLITS))
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--source", default="minimol", help="what is reprogrammed, probed and randomised")
    parser.add_argument("--methods", nargs="+", default=["default"], help="'default', 'all' or names")
    parser.add_argument("--shard", default="0/1", help="this process takes cells i, i + n, … of i/n")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no new cell after this many minutes")
    parser.add_argument("--quick", action="store_true", help="one small cell")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--table", action="store_true", help="only print the table")
    return parser.parse_args()


def prepared(name: str, source: str) -> Task:
    """The task without what `source` cannot take, cut to ROWS rows by one fixed draw when it is larger."""
    task = load_task(name, split="random", accepts=accepted_by(source))
    if len(task.inputs) <= ROWS:
        return task
    keep = torch.randperm(len(task.inputs), generator=torch.Generator().manual_seed(0))[:ROWS].sort().values.tolist()
    from tasks.molecules import from_molecules

    return from_molecules(
        [task.inputs[i] for i in keep], [task.classes[int(task.targets[i])] for i in keep], name=name, split="random",
        positive=task.classes[-1],
    )  # fmt: skip


def names(chosen: list[str], source: str) -> list[str]:
    """Method names: the default leaves out fine-tuning, and what does not depend on the source for token sources."""
    known = methods(source)
    if chosen == ["all"]:
        return list(known)
    if chosen != ["default"]:
        return chosen
    if source in TOKEN_SOURCES:
        return ["reprogrammed", "no-program", "linear-probe", "random-weights", "no-source"]
    return [*(m.name for m in selected(known, "fast")), "auto", "auto-frozen"]


def run(options: argparse.Namespace, path: Path) -> None:
    """Measure every cell of this shard that `path` does not hold yet."""
    index, count = map(int, options.shard.split("/"))
    table, started = FeatureTable(os.environ.get("REPROGRAM_FEATURES")), time.monotonic()
    rows = load_rows(path)
    done = {(r["task"], r["split"], r["size"], r["seed"], r["source"], r["method"]) for r in rows}
    cells = list(product(range(options.seeds), options.sizes, options.splits, options.tasks))
    tasks: dict[str, Task] = {}
    for seed, size, split, name in cells[index::count]:
        wanted = [
            m
            for m in names(options.methods, options.source)
            if (name, split, size, seed, options.source, m) not in done
        ]
        if not wanted:
            continue
        if (time.monotonic() - started) / 60 > options.minutes:
            break
        if name not in tasks:
            tasks[name] = prepared(name, options.source)
        task = resplit(tasks[name], split, seed=seed)
        if size != "full":
            task = task.subset(int(size), 100 + seed)
        result = compare(task, source=options.source, include=wanted, seed=seed, table=table, progress=False)
        cell = {"task": name, "kind": task.kind, "split": split, "size": size, "seed": seed, "source": options.source}
        cell |= {"train": len(task.split["train"]), "test": len(task.split["test"])}
        for row in result.rows:
            values = {k: [round(x, 5) for x in (v.value, v.low, v.high)] for k, v in row.metrics.items()}
            seconds = None if row.seconds is None else round(row.seconds, 2)
            rows.append(
                cell | {"method": row.method, "group": row.group, "seconds": seconds, "error": row.error} | values
            )
        save_rows(path, rows)
        print(
            f"{name} {split} {size} seed {seed}: "
            + ", ".join(f"{r.method} {r.metrics[result.metric].value:.3f}" for r in result.ranked()),
            flush=True,
        )


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    if options.quick:
        options.tasks, options.sizes, options.splits, options.seeds = ["freesolv"], ["50"], ["random"], 1
        options.methods = (
            ["reprogrammed", "linear-probe", "ridge-descriptors"] if options.methods == ["default"] else options.methods
        )
    label = "quick" if options.quick else f"{options.source}-{options.shard.replace('/', 'of')}"
    path = options.out or RESULTS / f"property-{label}.json"
    if not options.table:
        run(options, path)
    files = [path] if options.quick or options.out else sorted(RESULTS.glob("property-*of*.json"))
    print(summarise([row for file in files for row in load_rows(file)]))


if __name__ == "__main__":
    main()
