"""`source="auto"`: frozen sources, a reprogrammed one and a stacked readout, weighed on training folds only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reprogram.errors import DataError
from reprogram.forest import ForestMap
from reprogram.mapping import GaussianProcess, LinearMap, Stack, probabilities
from reprogram.model import Reprogrammed
from reprogram.programs import GraphDelta, Identity
from reprogram.readout import folds
from reprogram.side_by_side import Parallel, SideBySide
from reprogram.sources import Source, catalogue, load
from reprogram.train import History, adam, column, evidence, features_of, fit, target_tensor

SOURCES = ("minimol", "descriptors", "morgan", "chemnet")
FOLDS, STEPS, FULL_BATCH = 3, 20, 256


def adapt_auto(
    inputs: Sequence[Any],
    y: Any,
    *,
    kind: str,
    outputs: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    progress: bool = True,
    accelerator: Any = None,
    checkpoint_dir: Any = None,
    sources: Sequence[Source] | None = None,
    reprogrammed: bool = True,
) -> tuple[Reprogrammed, History]:
    r"""Stack closed-form readouts of several frozen sources and of a reprogrammed graph source.

    A program for the graph source is trained by the evidence of a Gaussian process on its features beside the
    descriptors. It is trained again inside each of three folds, so the out-of-fold predictions that weigh the members
    never saw the rows they are judged on; no validation or test row is touched.

    Args as in `adapt`; `sources` replaces the default ones and `reprogrammed=False` leaves the program out (the control
    that shows what reprogramming adds). Raises DataError when fewer than ten labelled rows are given.
    """
    from reprogram.recipes import count_outputs

    sources = list(sources) if sources is not None else default_sources()
    outputs = outputs or count_outputs(kind, y)
    y = column(target_tensor(y, kind), kind)
    if len(y) < 10:
        raise DataError(f"expected at least 10 labelled rows for source 'auto', got {len(y)}; name one source instead")
    graph = next((s for s in sources if s.takes == "graph" and s.differentiable), None) if reprogrammed else None
    plan = Plan(sources, graph, kind, outputs)
    options = {"epochs": epochs, "seed": seed, "progress": progress, "accelerator": accelerator}
    inputs = list(inputs)
    frozen = plan.assemble(None, plan.members(frozen_only=True))
    records = frozen.encode(inputs)
    fixed = features_of(frozen, records, accelerator).float()

    def features_with(rows: Sequence[int], name: str) -> tuple[Tensor, nn.Module | None, History]:
        """Features of every row under a program trained on `rows` only."""
        if graph is None:
            return fixed, None, History()
        part = [inputs[i] for i in rows], y[list(rows)]
        folder = None if checkpoint_dir is None else Path(checkpoint_dir) / name
        program, history = train_program(plan, *part, checkpoint_dir=folder, **options)
        branch = Reprogrammed(program, graph, LinearMap(graph.width))
        return (
            torch.cat([fixed, features_of(branch, [r[plan.key(graph)] for r in records], accelerator)], 1),
            program,
            history,
        )

    held_out = torch.zeros(len(plan.members()), len(y), outputs, device=fixed.device)
    for number, (train, test) in enumerate(folds(kind, y, FOLDS, seed)):
        features, _, _ = features_with(train.tolist(), f"fold{number}")
        for m, member in enumerate(plan.members()):
            member.to(features.device).prepare(features[train], y[train])
            member.refit(features[train], y[train])
            held_out[m, test] = probabilities(kind, member(features[test])).detach()
    features, program, history = features_with(range(len(y)), "all")
    model = plan.assemble(program, plan.members()).to(features.device)
    model.mapping.fit_members(features, y)
    model.mapping.set_weights(held_out, y)
    return model.eval(), history


def default_sources(load: Callable[[str], Source] = load) -> list[Source]:
    """The molecule sources whose weights are present."""
    present = {info.name for info in catalogue() if info.present}
    return [load(name) for name in SOURCES if name in present]


def train_program(
    plan: Plan, inputs: Sequence[Any], y: Tensor, *, epochs: int | None, checkpoint_dir: Any, **options: Any
) -> tuple[nn.Module, History]:
    """A graph program by evidence, the graph source standing beside the descriptors when they are there."""
    beside = [s for s in plan.sources if s.name == "descriptors"]
    pair = SideBySide([plan.graph, *beside])
    program = GraphDelta()
    mapping = GaussianProcess(pair.width, plan.outputs, kind=plan.kind, columns=pair.columns)
    model = Reprogrammed(Parallel([program, *(Identity() for _ in beside)]), pair, mapping)
    steps = -(-len(inputs) // FULL_BATCH)
    history = fit(
        model, {"train": (inputs, y.cpu().numpy())}, loss=evidence, optimizer=adam(program=1e-3, mapping=2e-2),
        epochs=max(1, STEPS // steps) if epochs is None else epochs, batch_size=FULL_BATCH, checkpoint_dir=checkpoint_dir,
        **options,
    )  # fmt: skip
    return program.requires_grad_(False), history


class Plan:
    """Which sources stand side by side and which readouts are stacked over them."""

    def __init__(self, sources: list[Source], graph: Source | None, kind: str, outputs: int):
        self.sources, self.graph, self.kind, self.outputs = sources, graph, kind, outputs
        self.all = [*sources, *([graph] if graph is not None else [])]  # the reprogrammed branch comes last
        self.width = sum(source.width for source in self.all)
        self.columns = SideBySide(self.all).columns

    def key(self, source: Source) -> str:
        return str(self.sources.index(source))

    def assemble(self, program: nn.Module | None, members: list[nn.Module]) -> Reprogrammed:
        """The stacked model over the frozen sources, with the reprogrammed branch when there is a program."""
        sources = self.all if program is not None else self.sources
        programs = [Identity() for _ in self.sources] + ([program] if program is not None else [])
        return Reprogrammed(Parallel(programs), SideBySide(sources), Stack(members))

    def members(self, *, frozen_only: bool = False) -> list[nn.Module]:
        """Fresh readouts: every useful grouping of sources, each frozen grouping once more with the reprogrammed one."""
        at = {source.name: block for source, block in zip(self.sources, self.columns, strict=False)}
        dense = [at[name] for name in at if name != "morgan"]
        strong = [at[name] for name in ("minimol", "descriptors") if name in at] or dense[:1]
        readouts = [self.ridge(strong), self.gp(strong, "linear", "matern")]
        if "descriptors" in at and len(strong) > 1:
            readouts.append(self.gp([at["descriptors"]], "linear", "matern"))
        if len(dense) > len(strong):
            readouts.append(self.gp(dense, "matern"))
        if "morgan" in at:
            readouts.append(self.gp([at["morgan"]], "tanimoto"))
        if "descriptors" in at:
            columns = [at[name] for name in ("descriptors", "morgan") if name in at]
            readouts.append(ForestMap(self.width, self.outputs, kind=self.kind, columns=tuple(columns)))
        if self.graph is not None and not frozen_only:
            changed = self.columns[-1]
            beside = [at["descriptors"]] if "descriptors" in at else []
            readouts += [self.ridge([changed, *beside]), self.gp([changed, *beside], "linear", "matern")]
        return readouts

    def gp(self, columns: list[tuple[int, int]], *kernels: str) -> GaussianProcess:
        return GaussianProcess(self.width, self.outputs, kind=self.kind, columns=tuple(columns), kernels=kernels)

    def ridge(self, columns: list[tuple[int, int]]) -> LinearMap:
        return LinearMap(self.width, self.outputs, kind=self.kind, ridge=True, columns=tuple(columns))
