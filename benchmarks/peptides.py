"""Antimicrobial peptides from few labels: reprogrammed language and chemistry models beside composition and scales.

    python -m benchmarks.peptides --quick                                a minute, for a look
    python -m benchmarks.peptides --shard 0/2 & python -m benchmarks.peptides --shard 1/2
    python -m benchmarks.peptides --table                                the Markdown table of what has been measured

Each source is read by its default program (one free embedding per amino acid) and readouts, beside its linear probe, the
same readouts without a program, its random-weight twin, and program and readouts without a network; then what the product
picks by itself, with and without a program, and the baselines.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from benchmarks.harness import Cell, measure, parser
from benchmarks.summary import ordering
from tasks.baselines import Method, methods
from tasks.features import FeatureTable
from tasks.images import sized
from tasks.peptides import antimicrobial
from tasks.task import Task

SOURCES = ("minilm", "rxnfp", "rxnmapper", "chemnet")  # AnnaLOG reads at most 102 letters
OWN = ("reprogrammed", "no-program", "linear-probe", "random-weights", "no-source")
TEST = 1000
TABLE = FeatureTable()


def chosen(sources: list[str]) -> list[Method]:
    """The methods of each source under its name, then the baselines once."""
    found = []
    for source in sources:
        known = methods(source, modality="peptides", table=TABLE)
        found += [replace(known[name], name=f"{name} {source}") for name in OWN]
    found += [known["auto"], known["auto-frozen"]]
    return [*found, *(m for m in known.values() if m.group == "baseline" and m.cost == "fast")]


def task_of(cell: Cell) -> Task:
    """So many labels, drawn by the cell's seed from its own random split; at most TEST test rows."""
    task = sized(antimicrobial(seed=cell["seed"]), {"test": TEST}, seed=cell["seed"])
    return task.subset(cell["labels"], cell["seed"])


def main() -> None:
    options = parser(__doc__, labels=(100, 50, 200, 500), sources=SOURCES).parse_args()
    if options.quick:
        options.labels, options.seeds, options.sources = [50], 1, ["minilm"]
        options.methods = options.methods or ["linear-probe minilm", "forest-composition", "ridge-descriptors"]
    cells = [{"labels": n, "seed": s} for n, s in product(options.labels, range(options.seeds))]
    rows = measure("peptides", options, cells, task_of, lambda cell: chosen(options.sources), table=TABLE)
    steps = [[f"{name} {source}", f"reprogrammed {source}"] for source in options.sources for name in OWN[1:]]
    steps += [["forest-composition", f"reprogrammed {source}"] for source in options.sources]
    steps += [["forest-composition", "auto-frozen"], ["reprogrammed minilm", "auto-frozen"], ["auto-frozen", "auto"]]
    print(ordering(rows, ("labels",), "roc_auc", steps))


if __name__ == "__main__":
    main()
