"""Does a budget of 20 runs find what the full grid finds?

    python -m benchmarks.selection --quick                               a minute, for a look
    python -m benchmarks.selection --shard 0/2 & python -m benchmarks.selection --shard 1/2
    python -m benchmarks.selection --table                               the Markdown tables of what has been measured

Every candidate that `select` may choose is trained once, as `select` trains it, and keeps its validation losses. A search is
then replayed against them: training is a function of rows and seed, so the search is told exactly what it would have
measured, and ten search seeds cost nothing. Rows are drawn anew from all rows of a task: 48 train, 48
validate, at most 300 test. Small image sources are read at 32 pixels; "fixed" sources give features only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from benchmarks.harness import Cell, measure, parser
from benchmarks.replay import searches
from reprogram.selection import Candidate, judged, pool, trained
from reprogram.sources import FeatureCodec, Features, Source, load
from reprogram.train import predict
from tasks.baselines import Method, Prediction
from tasks.features import FeatureTable
from tasks.images import digits, fashion_mnist
from tasks.molecules import load_task
from tasks.peptides import antimicrobial, descriptor_source
from tasks.series import ucr
from tasks.task import Task

ROWS, TEST, EPOCHS, LONGEST = 48, 300, 10, 40
TABLE = FeatureTable()
MEASURED: dict[tuple[str, int, str], dict] = {}
READ: dict[str, Task] = {}
POOLS: dict[str, tuple[list[Source], list[Candidate]]] = {}


@dataclass(frozen=True)
class Kind:
    """What the tasks of one kind of input choose from."""

    sources: Callable[[], list[Source]]
    programs: tuple[str, ...]
    rates: tuple[float, ...]


def called(source: Source, name: str) -> Source:
    """The source under a name of its own."""
    source.name = name
    return source


def fixed(source: Source) -> Source:
    """Its frozen features, computed once, as a source that no program can stand in front of."""
    return Source(
        Features([source.name]), FeatureCodec(lambda inputs: TABLE.features(source, inputs)), name=source.name,
        takes="features", width=source.width,
    )  # fmt: skip


def image_sources() -> list[Source]:
    """EfficientNet-Lite0 by size, by what it returns and with random weights."""
    plain = {
        size: called(load("efficientnet-lite0", size=size, returns="features"), f"features {size}")
        for size in (32, 48, 64)
    }
    logits = {size: called(load("efficientnet-lite0", size=size), f"logits {size}") for size in (32, 64)}
    shown = [plain[48], plain[64], plain[64].randomised(0), logits[64]]
    return [logits[32], plain[32].randomised(0), plain[32], *map(fixed, shown)]


def series_sources() -> list[Source]:
    """CREPE by what it returns and with random weights."""
    both = [load("crepe-tiny", returns=returns) for returns in ("logits", "features")]
    return [called(made, f"{made.returns}{mark}") for source in both for made, mark in (
        (source.randomised(0), ":random0"), (source, ""))]  # fmt: skip


def molecule_sources() -> list[Source]:
    """Networks of molecules, their random twins, and what needs no network."""
    networks = [load(name) for name in ("chemnet", "minilm", "minimol")]
    twins = [source.randomised(0) for source in networks]
    programmed = load("annalog")
    return [programmed.randomised(0), programmed, *map(fixed, [*networks, *twins, load("morgan"), load("descriptors")])]


def peptide_sources() -> list[Source]:
    """The same networks on letters, beside composition and scales."""
    networks = [load(name) for name in ("chemnet", "minilm")]
    twins = [source.randomised(0) for source in networks]
    programmed, own = load("annalog"), [load("composition"), descriptor_source()]
    return [programmed.randomised(0), programmed, *map(fixed, [*networks, *twins, *own])]


WIDE = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
IMAGES = Kind(image_sources, ("none", "pad", "full", "affine"), (3e-3, 1e-2, 3e-2))
SERIES = Kind(series_sources, ("none", "series"), WIDE)
MOLECULES = Kind(molecule_sources, ("none", "free", "dense"), WIDE)
PEPTIDES = Kind(peptide_sources, ("none", "free", "dense"), WIDE)
TASKS: dict[str, tuple[Kind, Callable[[], Task]]] = {
    "gunpoint": (SERIES, lambda: ucr("gunpoint")),
    "freesolv": (MOLECULES, lambda: load_task("freesolv", split="random")),
    "digits": (IMAGES, digits),
    "italypowerdemand": (SERIES, lambda: ucr("italypowerdemand")),
    "antimicrobial": (PEPTIDES, antimicrobial),
    "osuleaf": (SERIES, lambda: ucr("osuleaf")),
    "fashion-mnist": (IMAGES, fashion_mnist),
    "b3db": (MOLECULES, lambda: load_task("b3db", split="random")),
    "arrowhead": (SERIES, lambda: ucr("arrowhead")),
    "solubility": (MOLECULES, lambda: load_task("solubility", split="random")),
}


def whole(name: str) -> Task:
    """All rows of a task, read once."""
    if name not in READ:
        READ[name] = TASKS[name][1]()
    return READ[name]


def task_of(cell: Cell) -> Task:
    """The cell's rows, drawn by its seed from all rows of the task, classes in proportion; no long text."""
    from sklearn.model_selection import train_test_split

    task = whole(cell["task"])
    rows = np.array([i for i, x in enumerate(task.inputs) if not isinstance(x, str) or len(x) <= LONGEST])
    own = (lambda r: task.targets[r]) if task.kind == "classification" else (lambda r: None)
    seed, held = cell["seed"], min(TEST, len(rows) - 2 * ROWS)
    some, _ = (rows, None) if len(rows) == 2 * ROWS + held else train_test_split(
        rows, train_size=2 * ROWS + held, stratify=own(rows), random_state=seed)  # fmt: skip
    test, rest = train_test_split(some, train_size=held, stratify=own(some), random_state=seed)
    train, validation = train_test_split(rest, train_size=ROWS, stratify=own(rest), random_state=seed)
    return replace(task, split={"train": train, "validation": validation, "test": test})


def outputs_of(task: Task) -> int:
    """Numbers that a map of the task gives."""
    return len(task.classes) if task.kind == "classification" else 1


def known(cell: Cell) -> tuple[list[Source], list[Candidate]]:
    """Sources and candidates of a cell's task, loaded once."""
    kind = TASKS[cell["task"]][0]
    if cell["task"] not in POOLS:
        sources = next((s for name, (s, _) in POOLS.items() if TASKS[name][0] is kind), None) or kind.sources()
        POOLS[cell["task"]] = sources, pool(sources, whole(cell["task"]).kind, kind.programs, kind.rates)
    return POOLS[cell["task"]]


def candidate_run(candidate: Candidate, cell: Cell) -> Callable[[Task, int], Prediction]:
    """Train one candidate as `select` does, and keep what `select` would see of it."""

    def run(task: Task, seed: int) -> Prediction:
        source = next(s for s in known(cell)[0] if s.name == candidate.source)
        data = {part: task.part(part) for part in ("train", "validation")}
        model, history = trained(candidate, source, data, task.kind, outputs_of(task), epochs=EPOCHS, seed=seed)
        facts: dict[str, Any] = {"curve": [round(v, 6) for v in history.column("validation_loss")]}
        facts["validation_loss"] = round(judged(model, *data["validation"]), 6)
        MEASURED[cell["task"], seed, str(candidate)] = facts
        values = predict(model, task.part("test")[0])
        return Prediction(
            values[:, 1] if values.shape[1] == 2 else values, sum(p.numel() for _, p in model.trainable())
        )

    return run


def chosen(cell: Cell) -> list[Method]:
    """Every candidate of the cell's task."""
    return [Method(str(c), "reprogrammed", candidate_run(c, cell)) for c in known(cell)[1]]


def facts_of(cell: Cell, method: str) -> dict[str, Any]:
    """The candidate's parts, its validation losses and the metric that judges it."""
    candidate = next(c for c in known(cell)[1] if str(c) == method)
    return {
        "source": candidate.source, "program": candidate.program, "mapping": candidate.mapping, "rate": candidate.rate,
        "metric": whole(cell["task"]).metric,
    } | MEASURED.get((cell["task"], cell["seed"], method), {})  # fmt: skip


def main() -> None:
    options = parser(__doc__, tasks=tuple(TASKS)).parse_args()
    if options.quick:
        options.tasks, options.seeds = ["gunpoint"], 1
    cells = [{"task": task, "seed": seed} for seed, task in product(range(options.seeds), options.tasks)]
    print(searches(measure("selection", options, cells, task_of, chosen, facts_of), EPOCHS))


if __name__ == "__main__":
    main()
