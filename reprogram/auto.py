"""The default recipe: a programmed source beside untouched ones, their readouts weighed on training folds only."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reprogram.errors import DataError
from reprogram.features import features_of, target_tensor
from reprogram.forest import ForestMap
from reprogram.gaussian_process import GaussianProcess
from reprogram.mapping import Kind, LinearMap, probabilities
from reprogram.model import Reprogrammed
from reprogram.objectives import adam, evidence, momentum
from reprogram.parts import build_program, programmable
from reprogram.programs import Identity
from reprogram.readout import folds, stack_weights
from reprogram.side_by_side import Parallel, SideBySide
from reprogram.sources import Source, catalogue, load
from reprogram.sources.images import as_image
from reprogram.stack import SHRINK, Stack, unit_scale
from reprogram.train import History, default_accelerator, fit

SOURCES = {
    "molecules": ("minimol", "descriptors", "morgan"),
    "peptides": ("minilm", "composition"),
    "reactions": ("rxnfp",),
    "texts": ("minilm",),
    "images": ("efficientnet-lite0",),
    "series": ("crepe-tiny",),
    "tables": ("efficientnet-lite0",),
}
MORE = {  # what a search looks at besides
    "molecules": ("chemnet", "annalog"),
    "peptides": ("chemnet", "annalog"),
    "reactions": ("rxnmapper",),
    "series": ("crepe", "minilm"),
    "tables": ("minilm",),
}
MEANINGFUL = ("descriptors", "composition")  # sources each of whose features a tree can ask about
STEPS, FULL_BATCH, FEW_ROWS = 20, 256, 100
LEFT_OUT = "the program was left out, because its readouts did not predict held-out rows better than the untouched ones"
SMALL, FOLDS_SMALL, FOLDS = 100, 3, 2  # few rows cannot spare half of them; many rows make each fold expensive


def adapt_auto(
    inputs: Sequence[Any],
    y: Any,
    *,
    kind: str,
    sources: Sequence[Source] | None = None,
    outputs: int | None = None,
    reprogrammed: bool = True,
    modality: str | None = None,
    epochs: int | None = None,
    seed: int = 0,
    progress: bool = True,
    accelerator: Any = None,
    checkpoint_dir: Any = None,
) -> tuple[Reprogrammed, History]:
    r"""Stack closed-form readouts of frozen sources and of a reprogrammed one.

    The first source that can be programmed gets a program, trained by the evidence of a Gaussian process on its features.
    It is trained again inside each fold, so the out-of-fold predictions that weigh the readouts never saw the rows they
    are judged on; no validation or test row is touched. Beside other sources a programmed readout joins only where it
    predicts those rows better than its untouched twin; a source alone is read both ways in any case.

    Args as in `adapt`; `sources` replaces the default ones and `reprogrammed=False` leaves the program out (the control
    that shows what reprogramming adds). Raises DataError when fewer than ten labelled rows are given.
    """
    sources = list(sources) if sources is not None else default_sources(modality=modality, inputs=inputs)
    inputs, y = list(inputs), target_tensor(y, kind)
    if len(y) < 10:
        raise DataError(
            f"expected at least 10 labelled rows to weigh readouts on folds, got {len(y)}; add rows or name a source"
        )
    if not sources:
        raise DataError("expected at least one source, got none; `reprogram sources` has the commands that bring them")
    accelerator = accelerator or default_accelerator()
    plan = Plan(sources, kind, outputs or count_outputs(kind, y), reprogrammed, modality)
    options = {"epochs": epochs, "seed": seed, "progress": progress, "accelerator": accelerator}
    branches = Branches(plan, inputs, y, checkpoint_dir, options)
    readouts = [*plan.untouched(), *plan.programmed()]
    held_out = branches.held_out(readouts, seed)
    weights = plan.weights(held_out, y)
    used = weights.nonzero()[:, 0].tolist()
    z, program, history = branches.fixed, None, History(stopped=LEFT_OUT if plan.target is not None else "")
    if used[-1] >= len(plan.untouched()):
        z, program, history = branches.trained(range(len(y)), "all")
    model = plan.assemble(program, [readouts[m] for m in used])
    model.mapping.fit_members(z, y)
    model.mapping.weights.copy_(weights[used])
    return model.to(accelerator.device).eval(), history


class Branches:
    """Features of every training row: under the frozen sources, and under a program trained on some of the rows."""

    def __init__(self, plan: Plan, inputs: list[Any], y: Tensor, checkpoint_dir: Any, options: dict[str, Any]):
        self.plan, self.inputs, self.y = plan, inputs, y
        self.checkpoint_dir, self.options = checkpoint_dir, options
        self.fixed = self.features(plan.assemble(None, plan.untouched()))

    def features(self, model: Reprogrammed) -> Tensor:
        """Source features of every row, on the CPU, where readouts are solved."""
        accelerator = self.options["accelerator"]
        model.to(accelerator.device)
        return features_of(model, model.encode(self.inputs), accelerator).float().cpu()

    def trained(self, rows: Sequence[int], name: str) -> tuple[Tensor, nn.Module | None, History]:
        """All features with a program trained on `rows` only, that program, and its history; checkpoints under `name`."""
        target = self.plan.target
        if target is None:
            return self.fixed, None, History()
        folder = None if self.checkpoint_dir is None else Path(self.checkpoint_dir) / name
        part = [self.inputs[i] for i in rows], self.y[list(rows)].numpy()
        program, history = train_program(self.plan, *part, checkpoint_dir=folder, **self.options)
        branch = Reprogrammed(program, target, LinearMap(target.width))
        return torch.cat([self.fixed, self.features(branch)], dim=1), program, history

    def held_out(self, readouts: list[nn.Module], seed: int) -> Tensor:
        """Predictions (M, n, T) of every readout for the rows of each fold, neither it nor the program having seen them."""
        kind, y = self.plan.kind, self.y
        found = torch.zeros(len(readouts), len(y), self.plan.outputs)
        for number, (train, test) in enumerate(folds(kind, y, FOLDS_SMALL if len(y) <= SMALL else FOLDS, seed)):
            z, _, _ = self.trained(train.tolist(), f"fold{number}")
            for m, readout in enumerate(copy.deepcopy(readouts)):
                readout.prepare(z[train], y[train])
                readout.refit(z[train], y[train])
                found[m, test] = probabilities(kind, readout(z[test])).detach()
        return found


def default_sources(
    load: Callable[..., Source] = load, modality: str | None = None, inputs: Sequence[Any] = (), more: bool = False
) -> list[Source]:
    """The usual sources of a modality whose weights are present: for molecules ChemNet in the place of an absent MiniMol,
    for images and tables at a size that fits `inputs`. With `more` also others that a search may look at.

    Raises: DataError with the command where none is present.
    """
    modality = modality or "molecules"
    if modality not in SOURCES:
        raise DataError(
            f"expected a modality among {', '.join(SOURCES)} for source 'auto', got '{modality}'; name a source"
        )
    known = {info.name: info for info in catalogue()}
    names = SOURCES[modality] + (MORE.get(modality, ()) if more else ())
    if modality == "molecules" and not known["minimol"].present and not more:
        names = ("chemnet", *names)
    if not any(known[name].present for name in names):
        raise DataError(f"expected a source for {modality}, got none on this machine; run: {known[names[0]].install}")
    sized = {"efficientnet-lite0": {"size": fitting_size(inputs if modality == "images" else ())}}
    return [load(name, **sized.get(name, {})) for name in names if known[name].present]


def fitting_size(images: Sequence[Any], looks: int = 32) -> int:
    """The side at which the largest of the first images loses nothing, from 64 to 224 pixels: costs grow with its square."""
    sides = [max(as_image(value, row).shape[1:]) for row, value in enumerate(images[:looks])]
    return int(np.clip(32 * -(-max(sides, default=0) // 32), 64, 224))


def train_program(
    plan: Plan, inputs: Sequence[Any], y: Any, *, epochs: int | None, seed: int, **options: Any
) -> tuple[nn.Module, History]:
    """The target's program, trained by the evidence of a Gaussian process on its features alone."""
    outputs = plan.outputs
    if plan.kind != "classification":  # a column without a label on these rows has nothing to say
        y = y[:, ~np.isnan(y).all(0)]
        outputs = y.shape[1]
    program = build_program("auto", plan.target, inputs, seed, plan.modality)
    model = Reprogrammed(program, plan.target, GaussianProcess(plan.target.width, outputs, kind=plan.kind, tune=False))
    history = fit(model, {"train": (inputs, y)}, **by_evidence(plan.target, len(inputs), epochs), seed=seed, **options)
    return program.requires_grad_(False), history


def by_evidence(source: Source, rows: int, epochs: int | None) -> dict[str, Any]:
    """Options of `fit` for a program trained by the evidence, on equal batches as large as possible; STEPS updates or two
    passes.

    Graphs: plain gradients with momentum, because Adam moves every number of a program by the same amount, also those
    the labels say nothing about, and such a program does not carry over to new scaffolds; below FEW_ROWS rows the rate
    shrinks with them, as the evidence against the untouched source does. Tokens: Adam, with steps in units of the
    source's own rows, because sources differ by orders of magnitude in the scale of their embeddings.
    """
    batches = -(-rows // FULL_BATCH)
    passes = max(2, round(STEPS / batches)) if epochs is None else epochs
    rates = momentum(program=0.05 * min(1.0, rows / FEW_ROWS), mapping=0.01)
    if source.embedding is not None:
        rates = adam(program=0.06 * float(source.embedding.detach().float().square().mean().sqrt()), mapping=2e-2)
    return {"loss": evidence, "optimizer": rates, "batch_size": -(-rows // batches), "epochs": passes}


def count_outputs(kind: str, y: Any) -> int:
    """Targets in `y`, or classes."""
    y = torch.as_tensor(y)
    if kind == "classification":
        return max(2, int(y.max()) + 1)
    return 1 if y.ndim == 1 else y.shape[1]


class Plan:
    """Which sources stand side by side and which readouts are stacked over them."""

    def __init__(
        self, sources: list[Source], kind: Kind, outputs: int, reprogrammed: bool, modality: str | None = None
    ):
        self.modality = modality
        self.sources, self.kind, self.outputs = sources, kind, outputs
        self.target = next((s for s in sources if programmable(s)), None) if reprogrammed else None
        self.all = [*sources, *([self.target] if self.target is not None else [])]  # the programmed branch comes last
        self.columns = SideBySide(self.all).columns
        self.width = self.columns[-1][1]
        self.at = {source.name: block for source, block in zip(sources, self.columns, strict=False)}
        self.dense = [self.at[name] for name in self.at if name != "morgan"] or list(self.at.values())

    def assemble(self, program: nn.Module | None, readouts: list[nn.Module]) -> Reprogrammed:
        """The stacked model: frozen sources, and the programmed branch when there is a program."""
        programs = [*(Identity() for _ in self.sources), *([program] if program is not None else [])]
        return Reprogrammed(Parallel(programs), SideBySide(self.all[: len(programs)]), Stack(readouts))

    def untouched(self) -> list[nn.Module]:
        """Fresh readouts of the frozen sources: ridge, then processes, on all but fingerprints; a forest where features
        mean something one by one; a process that compares fingerprints."""
        found = [self.ridge(self.dense), *self.processes(self.dense)]
        if any(name in self.at for name in MEANINGFUL):
            found.append(self.forest([self.at[name] for name in (*MEANINGFUL, "morgan") if name in self.at]))
        return found + ([self.gp([self.at["morgan"]], "tanimoto")] if "morgan" in self.at else [])

    def programmed(self) -> list[nn.Module]:
        """The processes again, with the programmed branch in the place of its source."""
        if self.target is None:
            return []
        own = self.at[self.target.name]
        return self.processes([self.columns[-1] if block == own else block for block in self.dense])

    def weights(self, held_out: Tensor, y: Tensor) -> Tensor:
        """Weights (M,) of the readouts from their out-of-fold predictions: untouched ones, and programmed ones that beat
        their untouched twin, or all of them for a source alone."""
        matrix, values = unit_scale(self.kind, held_out, y)
        errors = np.nanmean((matrix - values[:, None]) ** 2, axis=0) if len(values) else np.zeros(len(held_out))
        first, ridge = len(errors) - len(self.programmed()), 1
        alone = len(self.sources) == 1
        kept = [m for m in range(len(errors)) if m < first or alone or errors[m] < errors[m - first + ridge]]
        weights = torch.zeros(len(errors), dtype=torch.float64)
        weights[kept] = torch.from_numpy(stack_weights(matrix[:, kept], values, shrink=SHRINK))
        return weights

    def processes(self, columns: list[tuple[int, int]]) -> list[nn.Module]:
        """Values: one with a linear part, one without. Classes: one without, beside the logistic ridge."""
        kernels = [("linear", "matern"), ("matern",)] if self.kind == "regression" else [("matern",)]
        return [self.gp(columns, *names) for names in kernels]

    def gp(self, columns: list[tuple[int, int]], *kernels: str) -> nn.Module:
        return GaussianProcess(self.width, self.outputs, kind=self.kind, columns=tuple(columns), kernels=kernels)

    def ridge(self, columns: list[tuple[int, int]]) -> nn.Module:
        return LinearMap(self.width, self.outputs, kind=self.kind, ridge=True, columns=tuple(columns))

    def forest(self, columns: list[tuple[int, int]]) -> nn.Module:
        return ForestMap(self.width, self.outputs, kind=self.kind, columns=tuple(columns))
