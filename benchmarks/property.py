"""Low-data molecule properties: reprogrammed sources beside every control and baseline, in one run.

    python -m benchmarks.property --quick                               a minute, for a look
    python -m benchmarks.property --shard 0/2 & python -m benchmarks.property --shard 1/2
    python -m benchmarks.property --methods all                         fine-tuning and whatever else takes long as well
    python -m benchmarks.property --table                               the Markdown table of what has been measured

A cell is (task, split, training rows, seed); every method of a cell sees the same rows. Finished cells are kept, so a
stopped run goes on where it was. Selection inside a method uses its training rows only; test rows are predicted once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.harness import Cell, measure, parser
from benchmarks.summary import summarise
from tasks.baselines import Method, methods, selected
from tasks.bundled import MOLECULES
from tasks.features import FeatureTable
from tasks.molecules import load_task, resplit
from tasks.runs import accepted_by
from tasks.task import Task

TASKS, SPLITS, SIZES = ("freesolv", "solubility", "b3db"), ("scaffold", "random"), ("50", "100", "200", "full")
ROWS = 2000  # a larger task is cut once to this many rows, drawn with seed 0, to fit a two-core machine
TOKEN_SOURCES = ("chemnet", "annalog", "rxnmapper", "rxnfp", "minilm")


@cache
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


def task_of(cell: Cell) -> Task:
    """The cell's split, and its label budget, drawn by its seed."""
    task = resplit(prepared(cell["task"], cell["source"]), cell["split"], seed=cell["seed"])
    return task if cell["size"] == "full" else task.subset(int(cell["size"]), 100 + cell["seed"])


def chosen(cell: Cell, names: Sequence[str], table: FeatureTable, checkpoints: Path) -> list[Method]:
    """Methods by name, or all; by default without fine-tuning, and for token sources without what does not depend on them."""
    own = checkpoints / "-".join(map(str, cell.values()))
    known = methods(cell["source"], table=table, checkpoints=own)
    if names == ["all"]:
        return list(known.values())
    if not names and cell["source"] in TOKEN_SOURCES:
        names = ["reprogrammed", "no-program", "linear-probe", "random-weights", "no-source"]
    return selected(known, names or [*(m.name for m in selected(known, "fast")), "auto", "auto-frozen"])


def main() -> None:
    known = parser(__doc__, tasks=TASKS, splits=SPLITS, sizes=SIZES)
    known.add_argument("--source", default="minimol", help="what is reprogrammed, probed and randomised")
    options = known.parse_args()
    if options.quick:
        options.tasks, options.sizes, options.splits, options.seeds = ["freesolv"], ["50"], ["random"], 1
        options.methods = options.methods or ["reprogrammed", "linear-probe", "ridge-descriptors"]
    cells = [
        {
            "task": name,
            "kind": MOLECULES[name].kind,
            "split": split,
            "size": size,
            "seed": seed,
            "source": options.source,
        }
        for seed, size, split, name in product(range(options.seeds), options.sizes, options.splits, options.tasks)
    ]
    names, options.methods = options.methods, []
    table = FeatureTable(os.environ.get("REPROGRAM_FEATURES"))
    with TemporaryDirectory() as folder:
        rows = measure(
            "property", options, cells, task_of, lambda cell: chosen(cell, names, table, Path(folder)), own=options.source,
            table=table,
        )  # fmt: skip
    print(summarise(rows))


if __name__ == "__main__":
    main()
