"""The methods that `compare` runs, made out of features, learners and training calls on one frozen source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reprogram.auto import adapt_auto, default_sources
from reprogram.model import Reprogrammed
from reprogram.parts import programmable
from reprogram.recipes import adapt
from reprogram.sources import Source
from reprogram.train import predict
from tasks.controls import fine_tune, learned, without_network
from tasks.features import FeatureTable
from tasks.learners import Learner, Problem, forest, mapped, mean, ridge, stack
from tasks.method import Cost, Group, Method, Prediction, problem_of, tidy
from tasks.task import Task

Train = Callable[[Problem], Reprogrammed]

FOREST = Learner(("morgan", "descriptors"), forest, bits=True)
RIDGE = Learner(("descriptors",), ridge)
TANIMOTO = Learner(("morgan",), mapped("tanimoto"))
JOINT_RIDGE = Learner(("minimol", "descriptors"), ridge)
MEAN = (FOREST, RIDGE, Learner(("minimol",), ridge))
STACK = (FOREST, TANIMOTO, RIDGE, JOINT_RIDGE, Learner(("chemnet",), ridge))


@dataclass(frozen=True)
class Kit:
    """Makes methods on one frozen source out of features, learners and training calls."""

    table: FeatureTable
    source: str | Source
    epochs: int | None
    checkpoints: Path | None = None
    modality: str | None = None
    width: int = 0  # numbers in a row of a table

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
        frozen = [
            self.trained("no-program", "control", self.untouched, f"{name} frozen, the same readouts, no program"),
            self.fixed("linear-probe", "probe", [Learner((self.source,), mapped("ridge"))], f"{name} frozen, ridge"),
        ]
        return [
            self.trained("reprogrammed", "reprogrammed", self.adapt(self.table.source), f"{name}, reprogrammed"),
            *(frozen if self.modality != "tables" else ()),  # no source reads bare numbers
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
        from tasks.peptides import descriptor_source

        counts, scales = self.table.source("composition"), descriptor_source()
        return [
            self.fixed("forest-composition", "baseline", [Learner((counts,), forest)], "amino-acid composition, random forest"),
            self.fixed("ridge-composition", "baseline", [Learner((counts,), ridge)], "amino-acid composition, ridge"),
            self.fixed("ridge-descriptors", "baseline", [Learner((scales,), ridge)], "physicochemical scales, ridge"),
            self.fixed("forest-descriptors", "baseline", [Learner((counts, scales), forest)], "both, random forest"),
        ]  # fmt: skip

    def texts(self) -> list[Method]:
        """What needs no language model: words and pairs of words."""
        from tasks.texts import tfidf

        def run(task: Task, seed: int) -> Prediction:
            return Prediction(tidy(task.kind, tfidf(problem_of(task, seed))))

        return [
            Method("tfidf", "baseline", run, "fast", "words and pairs of words, TF-IDF, logistic regression or ridge")
        ]

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

        def ridge_samples(task: Task, seed: int) -> Prediction:
            samples = sample_source(len(np.atleast_2d(task.inputs[0])))
            return self.fixed("ridge-samples", "baseline", [Learner((samples,), ridge)], "").run(task, seed)

        return [
            Method("ridge-samples", "baseline", ridge_samples, "fast", "64 samples of each channel, ridge"),
            Method("dtw", "baseline", lambda task, seed: Prediction(tidy(task.kind, neighbour(task))), "fast", "nearest neighbour, time warping"),
            Method("rocket", "baseline", lambda task, seed: Prediction(tidy(task.kind, rocket(task, seed))), "fast", "random convolutions, ridge"),
        ]  # fmt: skip

    def tables(self) -> list[Method]:
        """What anyone would fit."""
        from tasks.tables import number_source

        numbers = number_source(self.width)
        return [
            self.fixed("ridge-numbers", "baseline", [Learner((numbers,), ridge)], "the numbers, ridge"),
            self.fixed("forest-numbers", "baseline", [Learner((numbers,), forest)], "the numbers, random forest"),
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
            options = self.given(p) | self.checkpointed(source) | {"modality": self.modality}
            return adapt(source, p.inputs, p.y, progress=False, **options)[0]

        return train

    def checkpointed(self, source: Source | None) -> dict[str, Any]:
        """Where the programs of `source` are kept for the next method that needs them."""
        return {"checkpoint_dir": self.checkpoints / source.digest} if self.checkpoints and source else {}

    def pick(self, reprogrammed: bool) -> Train:
        """What "auto" picks from the sources at hand."""
        return lambda p: self.stacked(
            p, default_sources(self.table.source, modality=self.modality, inputs=p.inputs), reprogrammed
        )

    def untouched(self, p: Problem) -> Reprogrammed:
        """The default recipe on the source alone, its program left out."""
        return self.stacked(p, [self.table.source(self.source)], False)

    def stacked(self, p: Problem, sources: list[Source], reprogrammed: bool) -> Reprogrammed:
        target = next((source for source in sources if programmable(source)), None) if reprogrammed else None
        options = self.given(p) | self.checkpointed(target) | {"sources": sources, "reprogrammed": reprogrammed}
        options |= {"modality": self.modality}
        return adapt_auto(p.inputs, p.y, progress=False, **options)[0]

    def tune(self, rank: int | None, rate: float) -> Train:
        """Fine-tune the source, started from the linear probe on its features."""

        def train(p: Problem) -> Any:
            source, features = self.table.source(self.source), self.table.features(self.source, p.inputs)
            return fine_tune(source, p.inputs, p.y, features=features, rank=rank, learning_rate=rate, **self.given(p))

        return train
