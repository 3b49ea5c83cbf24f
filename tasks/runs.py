"""From data to a folder: train a task, keep its checkpoints, write its artefact with report and figures."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from reprogram.auto import default_sources
from reprogram.config import build, to_spec
from reprogram.errors import DataError
from reprogram.files import check_place
from reprogram.model import Reprogrammed
from reprogram.parts import build_program
from reprogram.recipes import adapt, sources_of
from reprogram.selection import Selection
from reprogram.sources import Source
from reprogram.train import History, default_accelerator, predict
from tasks.baselines import Group, Method, Prediction, compare, methods, selected, tidy
from tasks.comparison import Comparison
from tasks.controls import learned
from tasks.data import bundled_entry, load_task, modality_of, open_table
from tasks.inference import digest
from tasks.publish import facts, publish, reported
from tasks.report import Report
from tasks.searched import searched
from tasks.task import Task

CHECKPOINT = "checkpoint"
COMPARE = ("none", "fast", "all")


@dataclass(frozen=True)
class Run:
    """What `train_task` made: the model, its report, the folder they were written to, and what a budget tried.

    `main` is False on the helper processes of a run over several, which write and print nothing.
    """

    model: Reprogrammed
    report: Report
    folder: Path
    main: bool = True
    selection: Selection | None = None


def train_task(
    task: Task,
    out: str | Path,
    *,
    source: str | Source = "auto",
    program: str | nn.Module = "auto",
    mapping: str | nn.Module = "auto",
    epochs: int | None = None,
    budget: int | None = None,
    seed: int = 0,
    beside: str = "none",
    accelerator: Any = None,
    progress: bool = True,
) -> Run:
    """Reprogram `source` for `task`, measure it on the test part, and write everything into the folder `out`.

    The folder gets the artefact, `report.json`, `report.md`, `dropped.csv`, `merged.csv` where rows held the same
    input, and figures, all or nothing. A killed run goes on from its last checkpoint when it is started again with
    the same arguments; other arguments start anew. `beside` is "none", or which controls and baselines to run too:
    "fast" or "all". With a `budget` so many combinations of source (of "auto": more than the usual ones), program, map
    and learning rate are tried on held-out rows and the best is trained on all; the ranked table goes into
    `selection.md`. Over several processes the main one writes.

    Raises: DataError when the data or the names do not fit, or `out` cannot be written.
    """
    if beside not in COMPARE:
        raise DataError(f"expected compare to be one of {', '.join(COMPARE)}, got '{beside}'")
    out, accelerator = Path(out), accelerator or default_accelerator()
    check_place(out)
    settings = to_spec({"source": source, "program": program, "mapping": mapping, "epochs": epochs, "seed": seed})
    settings |= {} if budget is None else {"budget": budget}
    start = time.perf_counter()
    with checkpoints(out, fingerprint(task, settings), accelerator) as checkpoint_dir:
        common = {"progress": progress, "accelerator": accelerator, "checkpoint_dir": checkpoint_dir}
        model, history, selection = learnt(task, source, program, mapping, budget, epochs, seed, **common)
        guesses = {part: guess(model, task, part, accelerator) for part in ("validation", "test")}
        own = own_method(model, source, guesses["test"], task.modality)
        result = stand_beside(
            task, own, source, beside, seed, time.perf_counter() - start, progress and accelerator.is_main_process
        )
        settings |= {"method": own.name, "group": own.group}
        report = reported(result, model, history, selection, settings, accelerator.num_processes)
        if accelerator.is_main_process:
            model.metadata = facts(task, result[own.name].metrics, settings)
            publish(out, model, report, task, guesses, history=history, selection=selection)
        accelerator.wait_for_everyone()
    return Run(model, report, out, accelerator.is_main_process, selection)


def learnt(
    task: Task,
    source: Any,
    program: Any,
    mapping: Any,
    budget: int | None,
    epochs: int | None,
    seed: int,
    **options: Any,
) -> tuple[Reprogrammed, History, Selection | None]:
    """The model of a task; with a budget the best that a search found, and the search."""
    if budget is not None:
        return searched(task, source, program, mapping, budget, epochs, seed, **options)
    model, history = adapt(
        source, *task.part("train"), kind=task.kind, outputs=task.outputs, program=program, mapping=mapping, epochs=epochs,
        validation=task.part("validation"), modality=task.modality, seed=seed, **options,
    )  # fmt: skip
    return model, history, None


def prepare_task(
    data: str, *, train_size: int | None = None, seed: int = 0, target: Sequence[str] | None = None, source: Any = None,
    **options: Any,
) -> Task:  # fmt: skip
    """A task from a bundled name, a file or a folder, cut to `train_size` labels; options are those of `load_task`.

    Texts that `source` cannot take (too long, an element it does not know) are dropped like unreadable ones.
    """
    entry = bundled_entry(data)
    found = data if entry else open_table(data)
    what = entry.modality if entry else modality_of(found, options.get("modality")).name
    accepts = None if source is None else accepted_by(source, what)
    task = load_task(found, target=list(target) if target else None, seed=seed, accepts=accepts, **options)
    return task if train_size is None else task.subset(train_size, seed)


def accepted_by(source: Any, modality: str = "molecules") -> Callable[[Any], None] | None:
    """A function that raises ValueError for a text that a network of `source` cannot take; features take any."""
    if modality not in ("molecules", "peptides", "reactions", "texts"):
        return None
    found = sources_of(source)
    networks = default_sources(modality=modality) if found is None else found
    networks = [one for one in networks if one.takes in ("graph", "tokens")]

    def check(text: str) -> None:
        for one in networks:
            one.codec.encode([text])
            if one.takes == "tokens" and len(text) > one.codec.max_length // 4:  # the usual program may have less room
                program = build_program("auto", one, [text], 0, modality)
                program.bind(one)
                program.encode([text])

    return check


def spec_or_name(value: str) -> Any:
    """A name as it is, or the object of a JSON spec `{"_target_": "reprogram...", ...}`."""
    if not value.lstrip().startswith("{"):
        return value
    try:
        return build(json.loads(value))
    except json.JSONDecodeError as error:
        raise DataError(f"expected a name or a JSON spec with _target_, got {value[:80]} ({error.msg})") from None


def fingerprint(task: Task, settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change with any row, label, part or setting of a run."""
    total = hashlib.sha256(json.dumps([settings, task.kind, len(task)], sort_keys=True).encode())
    for value in task.inputs:
        total.update(digest(value, task.modality).encode())
    total.update(np.ascontiguousarray(task.targets).tobytes())
    for part in sorted(task.split):
        total.update(part.encode() + np.asarray(task.split[part], dtype=np.int64).tobytes())
    return total.hexdigest()[:16]


@contextmanager
def checkpoints(out: Path, name: str, accelerator: Any) -> Iterator[Path]:
    """A folder for this run's checkpoints: kept when the process is killed or the disk fails, gone after success or an
    error of another kind."""
    folder, existed = out / CHECKPOINT / name, out.exists()
    try:
        yield folder
    except Exception as error:
        if accelerator.is_main_process and not isinstance(error.__cause__, OSError):
            shutil.rmtree(folder, ignore_errors=True)
            for place in (out / CHECKPOINT, *(() if existed else (out,))):
                if place.is_dir() and not any(place.iterdir()):
                    place.rmdir()
        raise
    if accelerator.is_main_process:
        shutil.rmtree(out / CHECKPOINT, ignore_errors=True)


def guess(model: Reprogrammed, task: Task, part: str, accelerator: Any = None) -> np.ndarray:
    """Predictions of one part, in the shape that `tasks.evaluate` takes."""
    values = predict(model, task.part(part)[0], accelerator=accelerator)
    return values[:, 0] if task.kind == "regression" else tidy(task.kind, values)


def own_method(model: Reprogrammed, source: str | Source, values: np.ndarray, modality: str = "molecules") -> Method:
    """The trained model as a row of a comparison; without a learned program it is a probe, and called so."""
    programmed = any(True for _ in model.program.parameters())
    label = source.name if isinstance(source, Source) else source
    name = "reprogrammed" if programmed else f"{label}, no program"
    if label == "auto":  # the usual recipe; only for molecules it is more than one source
        name = "auto" if modality == "molecules" else "reprogrammed"
    group: Group = "reprogrammed" if programmed else "probe"
    return Method(
        name, group, lambda task, seed: Prediction(values, learned(model), model), summary=f"{label}, as trained here"
    )


def stand_beside(
    task: Task, own: Method, source: str | Source, beside: str, seed: int, seconds: float, progress: bool
) -> Comparison:
    """The model's row, with controls and baselines where they are asked for."""
    others = [] if beside == "none" else selected(methods(source, modality=task.modality, inputs=task.inputs), beside)
    names = [method.name for method in others if method.name != own.name]
    result = compare(task, source=source, include=[own, *names], seed=seed, progress=progress and bool(names))
    timed = tuple(replace(row, seconds=seconds) if row.method == own.name else row for row in result.rows)
    return replace(result, rows=timed)
