"""What a user would pick instead of reprogramming, and the controls that say what each part of it is worth."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from reprogram.auto import adapt_auto, default_sources
from reprogram.errors import DataError
from reprogram.model import Reprogrammed
from reprogram.parts import programmable
from reprogram.recipes import adapt
from reprogram.sources import Source
from reprogram.train import predict
from tasks.comparison import Comparison, Row
from tasks.controls import fine_tune, learned, without_network
from tasks.features import FeatureTable
from tasks.learners import Learner, Problem, forest, mapped, mean, ridge, stack
from tasks.metrics import evaluate
from tasks.task import Task

Group = Literal["reprogrammed", "probe", "control", "baseline"]
Cost = Literal["fast", "slow"]
Train = Callable[[Problem], Reprogrammed]

FOREST = Learner(("morgan", "descriptors"), forest, bits=True)
RIDGE = Learner(("descriptors",), ridge)
TANIMOTO = Learner(("morgan",), mapped("tanimoto"))
JOINT_RIDGE = Learner(("minimol", "descriptors"), ridge)
MEAN = (FOREST, RIDGE, Learner(("minimol",), ridge))
STACK = (FOREST, TANIMOTO, RIDGE, JOINT_RIDGE, Learner(("chemnet",), ridge))
DEFAULT_SOURCE = {"molecules": "minimol", "images": "efficientnet-lite0", "series": "crepe", "peptides": "minilm"}


@dataclass(frozen=True)
class Prediction:
    """Predictions of the test rows: values (n,), P(class 1) (n,), probabilities (n, C), or label probabilities (n, T).

    `trainable` counts the numbers learned in program and map, or by fine-tuning; None for methods that are no
    reprogrammed model. `model` is that model, to be saved.
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
    cost: Cost = "fast"
    summary: str = ""
    sources: tuple[str | Source, ...] = ()


def methods(
    source: str | Source = "minimol",
    *,
    modality: str = "molecules",
    table: FeatureTable | None = None,
    epochs: int | None = None,
    checkpoints: Path | None = None,
) -> dict[str, Method]:
    """Every control and baseline beside the reprogrammed `source`, by name; `modality` is that of the task.

    `source="auto"` makes what the product picks by itself a fast method, and runs the others on "minimol". `table` is
    where frozen features are kept; `epochs` shortens whatever is trained by gradient. With a folder `checkpoints`, for
    one task and seed, a program that two methods need ("reprogrammed" and "auto") is trained by the first of them.
    """
    auto = source == "auto"
    if auto and modality not in DEFAULT_SOURCE:
        raise DataError(f"expected a named source for {modality}, got 'auto'; `reprogram sources` has the names")
    kit = Kit(table or FeatureTable(), DEFAULT_SOURCE[modality] if auto else source, epochs, checkpoints)
    found = [*kit.own(), *kit.tuned()]
    if modality == "molecules":
        found = [*kit.picked("fast" if auto else "slow"), *kit.own(), *kit.molecules(), *kit.tuned()]
    elif modality in ("images", "series", "peptides"):
        found[-2:-2] = getattr(kit, modality)()
    return {method.name: method for method in found}


@dataclass(frozen=True)
class Kit:
    """Makes methods on one frozen source out of features, learners and training calls."""

    table: FeatureTable
    source: str | Source
    epochs: int | None
    checkpoints: Path | None = None

    @property
    def label(self) -> str:
        return self.source.name if isinstance(self.source, Source) else self.source

    def picked(self, cost: Cost) -> list[Method]:
        """What the product picks by itself, with and without the reprogrammed source."""
        stacked = "several sources, one reprogrammed, stacked readout"
        return [
            self.trained("auto", "reprogrammed", self.pick(True), stacked, cost),
            self.trained("auto-frozen", "control", self.pick(False), "the same stack without the reprogrammed source", cost),
        ]  # fmt: skip

    def own(self) -> list[Method]:
        """The reprogrammed source beside its probe and its controls."""
        name = self.label
        return [
            self.trained("reprogrammed", "reprogrammed", self.adapt(self.table.source), f"{name}, reprogrammed"),
            self.trained("no-program", "control", self.untouched, f"{name} frozen, the same readouts, no program"),
            self.fixed("linear-probe", "probe", [Learner((self.source,), mapped("ridge"))], f"{name} frozen, ridge"),
            self.trained("random-weights", "control", self.adapt(self.random), f"{name} with random weights, reprogrammed"),
            self.trained("no-source", "control", self.adapt(self.bare), f"program and readout of {name} without its network"),
        ]  # fmt: skip

    def molecules(self) -> list[Method]:
        """What a chemist would fit."""
        return [
            self.fixed("forest-morgan", "baseline", [Learner(("morgan",), forest, bits=True)], "Morgan bits, random forest"),
            self.fixed("forest-morgan-descriptors", "baseline", [FOREST], "Morgan bits and descriptors, random forest"),
            self.fixed("ridge-descriptors", "baseline", [RIDGE], "RDKit descriptors, ridge"),
            self.fixed("gp-tanimoto", "baseline", [TANIMOTO], "Morgan counts, Tanimoto Gaussian process"),
            self.fixed("ridge-minimol-descriptors", "baseline", [JOINT_RIDGE], "MiniMol features and descriptors, ridge"),
            self.fixed("mean", "baseline", MEAN, "mean of forest on Morgan bits and descriptors, ridge on descriptors, on MiniMol"),
            self.fixed("stack", "baseline", STACK, "shrunk stack of forest, Tanimoto process, ridges, ChemNet probe", stack),
        ]  # fmt: skip

    def peptides(self) -> list[Method]:
        """What needs no language model: composition and physicochemical scales."""
        from tasks.peptides import composition_source, descriptor_source

        counts, scales = composition_source(), descriptor_source()
        return [
            self.fixed("forest-composition", "baseline", [Learner((counts,), forest)], "amino-acid composition, random forest"),
            self.fixed("ridge-composition", "baseline", [Learner((counts,), ridge)], "amino-acid composition, ridge"),
            self.fixed("ridge-descriptors", "baseline", [Learner((scales,), ridge)], "physicochemical scales, ridge"),
            self.fixed("forest-descriptors", "baseline", [Learner((counts, scales), forest)], "both, random forest"),
        ]  # fmt: skip

    def images(self) -> list[Method]:
        """What needs no source: grey pixels."""
        from tasks.images import pixel_source

        pixels = pixel_source()
        return [
            self.fixed("ridge-pixels", "baseline", [Learner((pixels,), ridge)], "16×16 grey pixels, ridge"),
            self.fixed("forest-pixels", "baseline", [Learner((pixels,), forest)], "16×16 grey pixels, random forest"),
        ]  # fmt: skip

    def series(self) -> list[Method]:
        """What a user of aeon would fit."""
        from tasks.series import neighbour, rocket, sample_source

        samples = sample_source()
        return [
            self.fixed("ridge-samples", "baseline", [Learner((samples,), ridge)], "64 samples, ridge"),
            Method("dtw", "baseline", lambda task, seed: Prediction(tidy(task.kind, neighbour(task))), "fast", "nearest neighbour, time warping"),
            Method("rocket", "baseline", lambda task, seed: Prediction(tidy(task.kind, rocket(task, seed))), "fast", "random convolutions, ridge"),
        ]  # fmt: skip

    def tuned(self) -> list[Method]:
        """What changes the source's weights."""
        name, source = self.label, self.source
        return [
            self.trained("lora", "baseline", self.tune(8, 3e-4), f"{name}, low-rank updates of its weights", "slow", source),
            self.trained("full-fine-tuning", "baseline", self.tune(None, 3e-5), f"{name}, all weights trained", "slow", source),
        ]  # fmt: skip

    def trained(
        self, name: str, group: Group, train: Train, summary: str, cost: Cost = "fast", *reads: str | Source
    ) -> Method:
        """A method whose `train` gives a model; `reads` are the frozen features it starts from."""

        def run(task: Task, seed: int) -> Prediction:
            problem = problem_of(task, seed)
            model = train(problem)
            values = predict(model, problem.test)
            values = tidy(task.kind, values[:, 0] if task.kind == "regression" else values)
            return Prediction(values, learned(model), model)

        return Method(name, group, run, cost, summary, reads)

    def fixed(
        self, name: str, group: Group, members: Sequence[Learner], summary: str, combine: Callable[..., Any] = mean
    ) -> Method:
        """A method that fits learners on frozen features."""

        def run(task: Task, seed: int) -> Prediction:
            return Prediction(tidy(task.kind, combine(members, self.table, problem_of(task, seed))))

        reads = tuple(dict.fromkeys(source for member in members for source in member.sources))
        return Method(name, group, run, "fast", summary, reads)

    def given(self, problem: Problem) -> dict[str, Any]:
        facts: dict[str, Any] = {"kind": problem.kind, "outputs": problem.outputs, "seed": problem.seed}
        return facts | ({} if self.epochs is None else {"epochs": self.epochs})

    def random(self, source: str | Source, seed: int) -> Source:
        return self.table.source(source, weights="random", seed=seed)

    def bare(self, source: str | Source, seed: int) -> Source:
        return without_network(self.table.source(source), seed=seed)

    def adapt(self, make: Callable[..., Source]) -> Train:
        """Reprogram `make(source, seed=seed)` by the default recipe."""

        def train(p: Problem) -> Reprogrammed:
            source = make(self.source, seed=p.seed)
            return adapt(source, p.inputs, p.y, progress=False, **self.checkpointed(source), **self.given(p))[0]

        return train

    def checkpointed(self, source: Source | None) -> dict[str, Any]:
        """Where the programs of `source` are kept for the next method that needs them."""
        return {"checkpoint_dir": self.checkpoints / source.digest} if self.checkpoints and source else {}

    def pick(self, reprogrammed: bool) -> Train:
        """What "auto" picks from the sources at hand."""
        return lambda p: self.stacked(p, default_sources(self.table.source), reprogrammed)

    def untouched(self, p: Problem) -> Reprogrammed:
        """The default recipe on the source alone, its program left out."""
        return self.stacked(p, [self.table.source(self.source)], False)

    def stacked(self, p: Problem, sources: list[Source], reprogrammed: bool) -> Reprogrammed:
        target = next((source for source in sources if programmable(source)), None) if reprogrammed else None
        options = self.given(p) | self.checkpointed(target) | {"sources": sources, "reprogrammed": reprogrammed}
        return adapt_auto(p.inputs, p.y, progress=False, **options)[0]

    def tune(self, rank: int | None, rate: float) -> Train:
        """Fine-tune the source, started from the linear probe on its features."""

        def train(p: Problem) -> Any:
            source, features = self.table.source(self.source), self.table.features(self.source, p.inputs)
            return fine_tune(source, p.inputs, p.y, features=features, rank=rank, learning_rate=rate, **self.given(p))

        return train


def compare(
    task: Task,
    *,
    source: str | Source | None = None,
    include: str | Sequence[str | Method] = "fast",
    seed: int = 0,
    epochs: int | None = None,
    table: FeatureTable | None = None,
    progress: bool = True,
) -> Comparison:
    """Run methods on one task, each trained on its training part and asked once for its test part.

    Args:
        source: what is reprogrammed, probed and fine-tuned: a catalogue name, a hub id, a `Source`, or "auto"; by default
            the one for the task's modality (MiniMol, EfficientNet-Lite0, CREPE, MiniLM).
        include: "fast", "all", or names of `methods()` and your own `Method` objects.
        epochs: passes over the training rows for whatever is trained by gradient; by default each method's own.
        table: a `FeatureTable` to share frozen features between calls, or to keep them in a folder.

    A method that cannot run here, for example because its weights are absent, is a row with the reason.

    Raises: DataError for an unknown method, or a task without a training or test part.
    """
    table = FeatureTable() if table is None else table
    source = source or DEFAULT_SOURCE.get(task.modality, "auto")
    empty = [part for part in ("train", "test") if not len(task.part(part)[0])]
    if empty:
        raise DataError(f"expected rows in the {empty[0]} part of '{task.name}', got none; split it otherwise")
    with TemporaryDirectory() as folder:
        known = methods(source, modality=task.modality, table=table, epochs=epochs, checkpoints=Path(folder))
        return run_all(task, selected(known, include), seed, table, progress)


def run_all(task: Task, chosen: Sequence[Method], seed: int, table: FeatureTable, progress: bool) -> Comparison:
    """Every chosen method on one task, in turn."""
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
    facts: dict[str, Any] = {"method": method.name, "group": method.group, "summary": method.summary}
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


def tidy(kind: str, values: np.ndarray) -> np.ndarray:
    """Two-class probabilities as P(class 1)."""
    return values[:, 1] if kind == "classification" and values.shape[1] == 2 else values
