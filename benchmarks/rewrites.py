"""What another SMILES of the same molecule does to reprogrammed models, trained with and without such SMILES.

    python -m benchmarks.rewrites --quick                        a minute, for a look
    python -m benchmarks.rewrites                                about an hour of CPU; a stopped run goes on where it was
    python -m benchmarks.rewrites --tasks solubility --sources annalog --methods "every kind"
    python -m benchmarks.rewrites --table                        the Markdown tables of what has been measured

A cell is (task, source, labels, seed): a random split, its molecules canonical. The same TEST test molecules are read as
they are and as `count` rewrites each (other atom orders, explicit hydrogens, Kekulé bonds, other ring numbers), drawn and
not searched for, so that the worst case is a lower bound of what a search would find. Every program and readout is
`adapt(source, …, mapping="gp")` with its other defaults: the default readout is weighed on folds, which would hold copies
of one molecule on both sides. Trainings: "as given", "enumerated" with COPIES other atom orders of every training molecule
beside it, "every kind" with as many rewrites of the kinds in turn. All make 20 updates; 100 labels and their copies are
400 rows, the most for which the readout is exact.

To fit the time, networks of several layers of attention read only FreeSolv, whose SMILES are short, and "every kind" is
trained for the quickest network; the options name what to measure besides. MiniMol reads graphs and `descriptors`
molecules: controls, which must not move. `reprogram predict` standardises molecules first, so there no rewrite reaches a
model; this is about models that are called on texts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from benchmarks.harness import Cell, measure, parser
from benchmarks.property import prepared
from benchmarks.rewrites_table import tables
from reprogram.model import Reprogrammed
from reprogram.recipes import adapt
from reprogram.train import predict
from tasks.bundled import MOLECULES
from tasks.controls import learned
from tasks.features import FeatureTable
from tasks.images import sized
from tasks.method import Method, Prediction, tidy
from tasks.molecules import resplit
from tasks.molecules.threats import KINDS, Rewritten, rewrite_robustness, rewrites
from tasks.runs import accepted_by
from tasks.task import Task

QUICKEST, CONTROLS = "annalog", ("descriptors", "minimol")
SOURCES = {
    "freesolv": (QUICKEST, "chemnet", "rxnmapper", "rxnfp", "minilm", *CONTROLS),
    "b3db": (QUICKEST, *CONTROLS, "chemnet"),
}
SHORTEST = "annalog"  # what it can read, every source can: all of them get the same molecules
TRAININGS: dict[str, tuple[str, ...]] = {"as given": (), "enumerated": ("random",), "every kind": KINDS}
COPIES, TEST = 3, 100
FRACTIONS = (0.6, 0.1, 0.3)  # so that FreeSolv has TEST molecules to test
TABLE = FeatureTable()


def task_of(cell: Cell) -> Task:
    """So many labels and TEST test molecules of a random split, all drawn by the cell's seed."""
    task = resplit(prepared(cell["task"], SHORTEST), "random", seed=cell["seed"], fractions=FRACTIONS)
    return sized(task, {"test": TEST}, seed=cell["seed"]).subset(cell["labels"], 100 + cell["seed"])


@cache
def reader(source: str) -> Callable[[str], bool]:
    """Whether a source can take a text; its rewrites may be longer."""
    check = accepted_by(source)
    assert check is not None

    def reads(text: str) -> bool:
        try:
            check(text)
        except ValueError:
            return False
        return True

    return reads


def enlarged(
    source: str, smiles: list[str], y: np.ndarray, kinds: tuple[str, ...], seed: int
) -> tuple[list, np.ndarray]:
    """The rows, each followed by its rewrites with the same label."""
    if not kinds:
        return smiles, y
    rows = [[text, *filter(reader(source), rewrites(text, COPIES, kinds, seed))] for text in smiles]
    return [text for row in rows for text in row], np.repeat(y, [len(row) for row in rows])


def training(cell: Cell, name: str, trained: dict[str, tuple[Reprogrammed, Task]]) -> Method:
    """A training of the cell's source; the model is left in `trained` for the rewrites."""

    def run(task: Task, seed: int) -> Prediction:
        smiles, y = enlarged(cell["source"], *task.part("train"), TRAININGS[name], seed)
        source = TABLE.source(cell["source"])
        model, _ = adapt(
            source, smiles, y, kind=task.kind, outputs=task.outputs, mapping="gp", modality="molecules", seed=seed,
            progress=False,
        )  # fmt: skip
        trained[name] = model, task
        values = predict(model, task.part("test")[0])
        values = tidy(task.kind, values[:, 0] if task.kind == "regression" else values)
        return Prediction(values, learned(model), model)

    return Method(name, "control" if cell["source"] in CONTROLS else "reprogrammed", run)


def rewritten(model: Reprogrammed, task: Task, cell: Cell) -> dict[str, Any]:
    """How far rewrites move the model, in all and by kind; changes of values in standard deviations of the label."""
    started = time.perf_counter()
    smiles, y = task.part("test")
    found = rewrite_robustness(model, smiles, y, count=cell["count"], seed=cell["seed"])
    unit = float(np.std(task.targets)) if task.kind == "regression" else 1.0
    facts: dict[str, Any] = {"rewrites": len(found.text), "refused": found.refused, "same": same(found), "unit": unit}
    for name, value in found.summary().items():
        scale = unit if "change" in name else 1.0
        # in a row "error" says why a method failed
        facts["error_given" if name == "error" else name] = [
            round(x / scale, 5) for x in (value.value, value.low, value.high)
        ]
    if task.kind == "regression":
        facts["change_95"] = round(float(np.quantile(found.moved, 0.95)) / unit, 5)
    moved = np.asarray(found.moved) / unit
    forms = np.asarray(found.form)
    facts["moved_by_kind"] = {form: round(float(moved[forms == form].mean()), 5) for form in dict.fromkeys(found.form)}
    return facts | {"attack_seconds": round(time.perf_counter() - started, 2)}


def same(found: Rewritten) -> float:
    """Share of rewrites that InChI, which had no part in making them, takes for the same molecule."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        keys = [Chem.MolToInchiKey(Chem.MolFromSmiles(text)) for text in found.smiles]
        other = [Chem.MolToInchiKey(Chem.MolFromSmiles(text)) for text in found.text]
    return float(np.mean([key == keys[row] for key, row in zip(other, found.row, strict=True)]))


def chosen(cell: Cell, options: argparse.Namespace) -> list[str]:
    """The named trainings, or the default ones of a source."""
    if options.methods:
        return options.methods
    if cell["source"] in CONTROLS:
        return ["as given"]
    return [name for name in TRAININGS if name != "every kind" or cell["source"] == QUICKEST]


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """Every cell, one seed after the other, so that a run stopped early has seen all sources."""
    return [
        {
            "task": name,
            "kind": MOLECULES[name].kind,
            "source": source,
            "labels": n,
            "count": options.count,
            "seed": seed,
        }
        for seed, n, name in product(range(options.seeds), options.labels, options.tasks)
        for source in options.sources or SOURCES.get(name, (QUICKEST,))
    ]


def main() -> None:
    known = parser(__doc__, tasks=tuple(SOURCES), labels=(100,))
    known.add_argument("--sources", nargs="+", default=[], help="by default those of SOURCES")
    known.add_argument("--count", type=int, default=20, help="rewrites of each test molecule")
    known.set_defaults(seeds=3)
    options = known.parse_args()
    if options.quick:
        options.tasks, options.labels, options.seeds, options.count = ["freesolv"], [50], 1, 8
        options.sources, options.methods = options.sources or ["annalog"], options.methods or ["as given", "enumerated"]
    trained: dict[str, tuple[Reprogrammed, Task]] = {}

    def facts_of(cell: Cell, method: str) -> dict[str, Any]:
        return rewritten(*trained.pop(method), cell) if method in trained else {}

    rows = measure(
        "rewrites", options, cells_of(options), task_of,
        lambda cell: [training(cell, name, trained) for name in chosen(cell, options)], facts_of, table=TABLE,
    )  # fmt: skip
    print(tables(rows))


if __name__ == "__main__":
    main()
