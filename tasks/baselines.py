"""What a user would pick instead of reprogramming, and the controls that say what each part of it is worth."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from reprogram.errors import DataError
from reprogram.recipes import adapt
from reprogram.sources import Source
from reprogram.train import predict
from tasks.comparison import Comparison, Row
from tasks.controls import fine_tune, without_network
from tasks.features import FeatureTable
from tasks.learners import Learner, Problem, forest, mapped, mean, ridge, stack
from tasks.metrics import evaluate
from tasks.task import Task

Group = Literal["reprogrammed", "probe", "control", "baseline"]
GROUPS = ("reprogrammed", "probe", "control", "baseline")

FOREST = Learner(("morgan", "descriptors"), forest, bits=True)
RIDGE = Learner(("descriptors",), ridge)
TANIMOTO = Learner(("morgan",), mapped("tanimoto"))
JOINT_RIDGE = Learner(("minimol", "descriptors"), ridge)
MEAN = (FOREST, RIDGE, Learner(("minimol",), ridge))
STACK = (FOREST, TANIMOTO, RIDGE, JOINT_RIDGE, Learner(("chemnet",), ridge))


@dataclass(frozen=True)
class Prediction:
    """Predictions of the test rows: values (n,), P(class 1) (n,), probabilities (n, C), or label probabilities (n, T).

    `trainable` counts numbers trained by gradient, None where nothing is. `model` is a reprogrammed model, to be saved.
    """

    values: np.ndarray
    trainable: int | None = None
    model: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Method:
    """A way to predict the test part of a task from its training part; `run(task, seed)` never reads a test target.

    `sources` are the frozen features it reads, which `compare` computes once for all methods. `cost` is "slow" for what
    takes minutes and is left out unless asked for.
    """

    name: str
    group: Group
    run: Callable[[Task, int], Prediction]
    cost: Literal["fast", "slow"] = "fast"
    summary: str = ""
    sources: tuple[str | Source, ...] = ()


def methods(
    source: str | Source = "minimol", *, table: FeatureTable | None = None, epochs: int | None = None
) -> dict[str, Method]:
    """Every control and baseline beside the reprogrammed `source`, by name.

    `source="auto"` reprograms what the product picks by itself, and runs probes and controls on "minimol". `table` is
    where frozen features are kept; `epochs` shortens whatever is trained by gradient.
    """
    table = FeatureTable() if table is None else table
    auto, frozen = source == "auto", "minimol" if source == "auto" else source
    label = frozen.name if isinstance(frozen, Source) else frozen

    def adapted(name: str, group: Group, make: Callable[[int], Any], summary: str, cost: Any = "fast") -> Method:
        def run(task: Task, seed: int) -> Prediction:
            problem = problem_of(task, seed)
            model, _ = adapt(
                make(seed), problem.inputs, problem.y, kind=task.kind, outputs=problem.outputs, seed=seed, epochs=epochs,
                progress=False,
            )  # fmt: skip
            return of_model(model, problem)

        return Method(name, group, run, cost, summary)

    def tuned(name: str, rank: int | None, rate: float, summary: str) -> Method:
        def run(task: Task, seed: int) -> Prediction:
            problem = problem_of(task, seed)
            options = {"epochs": epochs} if epochs is not None else {}
            model = fine_tune(
                table.source(frozen), problem.inputs, problem.y, kind=task.kind, outputs=problem.outputs, rank=rank,
                features=table.features(frozen, problem.inputs), learning_rate=rate, seed=seed, **options,
            )  # fmt: skip
            return of_model(model, problem)

        return Method(name, "baseline", run, "slow", summary, (frozen,))

    def fixed(name: str, group: Group, members: Sequence[Learner], combine: Any, summary: str) -> Method:
        def run(task: Task, seed: int) -> Prediction:
            problem = problem_of(task, seed)
            return Prediction(tidy(task.kind, combine(members, table, problem)))

        sources = tuple(dict.fromkeys(s for member in members for s in member.sources))
        return Method(name, group, run, "fast", summary, sources)

    entries = [
        adapted("auto", "reprogrammed", lambda seed: "auto", "several sources, reprogrammed members, stacked readout",
                "fast" if auto else "slow"),
        adapted("reprogrammed", "reprogrammed", lambda seed: table.source(frozen), f"{label}, reprogrammed",
                "slow" if auto else "fast"),
        fixed("gp-probe", "probe", [Learner((frozen,), mapped("gp"))], mean, f"{label} frozen, same readout, no program"),
        fixed("linear-probe", "probe", [Learner((frozen,), mapped("ridge"))], mean, f"{label} frozen, ridge"),
        adapted("random-weights", "control", lambda seed: table.source(frozen, weights="random", seed=seed),
                f"{label} with random weights, reprogrammed"),
        adapted("no-source", "control", lambda seed: without_network(table.source(frozen), seed=seed),
                f"program and readout of {label} without its network"),
        fixed("forest-morgan", "baseline", [Learner(("morgan",), forest, bits=True)], mean, "Morgan bits, random forest"),
        fixed("forest-morgan-descriptors", "baseline", [FOREST], mean, "Morgan bits and descriptors, random forest"),
        fixed("ridge-descriptors", "baseline", [RIDGE], mean, "RDKit descriptors, ridge"),
        fixed("gp-tanimoto", "baseline", [TANIMOTO], mean, "Morgan counts, Tanimoto Gaussian process"),
        fixed("ridge-minimol-descriptors", "baseline", [JOINT_RIDGE], mean, "MiniMol features and descriptors, ridge"),
        fixed("mean", "baseline", MEAN, mean, "mean of forest on Morgan and descriptors, ridge on descriptors, ridge on MiniMol"),
        fixed("stack", "baseline", STACK, stack, "shrunk stack of forest, Tanimoto process, ridges and ChemNet probe"),
        tuned("lora", 8, 3e-4, f"{label}, low-rank updates of its weights"),
        tuned("full-fine-tuning", None, 3e-5, f"{label}, all weights trained"),
    ]  # fmt: skip
    return {method.name: method for method in entries}


def compare(
    task: Task,
    *,
    source: str | Source = "minimol",
    include: str | Sequence[str | Method] = "fast",
    seed: int = 0,
    epochs: int | None = None,
    table: FeatureTable | None = None,
    progress: bool = True,
) -> Comparison:
    """Run methods on one task, each trained on its training part and asked once for its test part.

    Args:
        source: what is reprogrammed, probed and fine-tuned: a catalogue name, a hub id, a `Source`, or "auto".
        include: "fast", "all", or names of `methods()` and your own `Method` objects.
        epochs: passes over the training rows for whatever is trained by gradient; by default each method's own.
        table: a `FeatureTable` to share frozen features between calls, or to keep them in a folder.

    A method that cannot run here, for example because its weights are absent, is a row with the reason.

    Raises: DataError for an unknown method, or a task without a training or test part.
    """
    table = FeatureTable() if table is None else table
    chosen = selected(methods(source, table=table, epochs=epochs), include)
    empty = [part for part in ("train", "test") if not len(task.part(part)[0])]
    if empty:
        raise DataError(f"expected rows in the {empty[0]} part of '{task.name}', got none; split it otherwise")
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
    facts = {"method": method.name, "group": method.group, "summary": method.summary}
    read = [*task.part("train")[0], *task.part("test")[0]]
    try:
        for name in method.sources:
            table.prepare(name, task.inputs, read)
        start = time.perf_counter()
        prediction = method.run(task, seed)
        seconds = time.perf_counter() - start + sum(table.seconds(name, len(read)) for name in method.sources)
        metrics = evaluate(task.kind, task.part("test")[1], prediction.values, seed=seed)
    except (ValueError, ImportError, FileNotFoundError, torch.linalg.LinAlgError) as error:
        return Row(**facts, error=" ".join(str(error).split()).rstrip(".") or type(error).__name__), None
    return Row(**facts, metrics=metrics, seconds=seconds, trainable=prediction.trainable), prediction


def problem_of(task: Task, seed: int) -> Problem:
    """The training part with its labels and the test part without."""
    inputs, y = task.part("train")
    rows = task.split["test"]
    outputs = {"regression": 1, "multilabel": task.targets.shape[-1]}.get(task.kind)
    if outputs is None:
        outputs = max(2, len(task.classes), int(y.max()) + 1)
    return Problem(task.kind, outputs, inputs, y, [task.inputs[i] for i in rows], seed)


def of_model(model: Any, problem: Problem) -> Prediction:
    """A trained model's predictions of the test rows."""
    values = predict(model, problem.test)
    values = values[:, 0] if problem.kind == "regression" else values
    trained = sum(p.numel() for _, p in model.trainable())
    return Prediction(tidy(problem.kind, values), trained, model)


def tidy(kind: str, values: np.ndarray) -> np.ndarray:
    """Two-class probabilities as P(class 1)."""
    return values[:, 1] if kind == "classification" and values.shape[1] == 2 else values
