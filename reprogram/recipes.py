"""Sensible defaults put together: `adapt` builds, trains and returns a reprogrammed model in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from reprogram.auto import adapt_auto, by_evidence, count_outputs, default_sources
from reprogram.errors import DataError
from reprogram.features import no_text, target_tensor
from reprogram.forest import ForestMap
from reprogram.gaussian_process import GaussianProcess
from reprogram.gradient import CMAES, SPSA, CoordinateWise, GradientStep, RandomGradientFree
from reprogram.label_map import LabelMap
from reprogram.model import Reprogrammed
from reprogram.objectives import Optimizer, adam, cma_rates, spsa_rates, supervised
from reprogram.parts import AUTO, BRIDGES, MAPPINGS, build_mapping, build_program, native
from reprogram.sources import Source, load
from reprogram.stack import Stack
from reprogram.train import History, fit, refresh

STEPS: dict[
    str, tuple[Callable[[], GradientStep], Optimizer, float]
] = {  # a step, its rates, the largest gradient norm
    "rgf": (lambda: RandomGradientFree(directions=5, radius=1.0), adam(program=3e-2), 1.0),
    "spsa": (lambda: SPSA(repeats=5), spsa_rates(program=0.01, correction=0), math.inf),
    "spsa-gc": (lambda: SPSA(repeats=5), spsa_rates(program=0.01), math.inf),
    "coordinate": (lambda: CoordinateWise(coordinates=5), adam(program=0.3), 1.0),
    "cma": (lambda: CMAES(sigma=0.1), cma_rates(), math.inf),
}
FEW = 20  # below this many rows there is nothing to cut into folds


def adapt(
    source: str | Source | Sequence[str | Source],
    inputs: Sequence[Any],
    y: Any,
    *,
    kind: str = "regression",
    outputs: int | None = None,
    program: str | nn.Module = "auto",
    mapping: str | nn.Module = "auto",
    epochs: int | None = None,
    validation: tuple[Sequence[Any], Any] | None = None,
    modality: str | None = None,
    gradient: str | GradientStep | None = None,
    seed: int = 0,
    progress: bool = True,
    accelerator: Any = None,
    checkpoint_dir: Any = None,
) -> tuple[Reprogrammed, History]:
    """Reprogram `source` for the labelled `inputs`; returns the trained model and its history.

    Args:
        source: a catalogue name, a hub id or folder, a `Source`, or several sources to stand side by side: a list,
            names joined by "+", or "auto", the usual ones for the modality that are at hand.
        inputs: what the source reads, for example SMILES strings; they are read as they are written, so bring molecules
            to one form first (`tasks.load_task` does) and predict on the same form.
        y: values (n,) or (n, T), class indices (n,), or 0/1/NaN labels (n, T), after `kind`.
        kind: "regression", "classification" or "multilabel".
        outputs: number of targets or classes; by default read off `y`.
        program: "auto" (deltas for graphs, free embeddings for SMILES and sequences, a soft prompt for texts in words, a
            full additive prompt for images, a padded window for series, none for features; where `modality` is
            not the source's own, what bridges the two), a name of `reprogram.parts.PROGRAMS`, or a program.
        mapping: "auto", "gp" (Gaussian process, program trained by its evidence), "linear" (trained with the program),
            "ridge" (closed form; with no program this is the linear probe), a label map of a source that answers with
            classes ("first", "random", "frequency", "iterative", "bayesian", "bayesian+"), or a map. With program and mapping "auto"
            the programmed source stands beside the untouched one and their readouts are weighed on training folds;
            beside other sources a program that does not carry over is left out (`history.stopped` says so).
        epochs: passes over the rows; by default about 20 updates with the evidence, 40 passes with a trained map.
        validation: rows that choose the epoch where no folds are used, and end a training that gets no better for
            10 passes; without them the last epoch is kept.
        modality: what the inputs are, where the source was made for something else or is "auto": "molecules" (auto's
            default), "peptides", "reactions", "texts", "images", "series" or "tables".
        gradient: how a program learns in front of a black box, which answers and lets no gradient pass: "spsa-gc",
            "spsa", "rgf", "coordinate", "cma", or a step of `reprogram.gradient`. None: no program before a black box.

    Raises:
        DataError: unknown names, or targets that do not fit `kind`, the inputs or `outputs`.
    """
    if mapping not in ("auto", *MAPPINGS) and not isinstance(mapping, nn.Module):
        raise DataError(f"expected mapping to be one of auto, {', '.join(MAPPINGS)}, got '{mapping}'")
    common = {"seed": seed, "progress": progress, "accelerator": accelerator, "checkpoint_dir": checkpoint_dir}
    y = checked_targets(kind, inputs, y, outputs)
    found = sources_of(source)
    if found is None and modality not in (None, "molecules"):
        found = default_sources(modality=modality, inputs=inputs)
    if found is None or len(found) > 1:
        check_chosen(program, mapping)
        weighed = True
    else:
        check_kind(found[0], program, modality)
        chosen = program == "auto" and mapping == "auto" and gradient is None
        weighed = chosen and native(found[0], modality) and len(inputs) >= FEW
    if weighed:
        options = common | {"outputs": outputs, "epochs": epochs, "reprogrammed": program == "auto"}
        return adapt_auto(inputs, y, kind=kind, sources=found, modality=modality, **options)
    (source,) = found
    if gradient is not None:
        program, mapping = for_queries(source, program, mapping, kind)
    elif not source.differentiable and program not in ("auto", "none"):
        raise DataError(
            f"expected a source that gradients pass for a learned program, got '{source.name}'; choose program='none', or "
            "a gradient step such as 'spsa-gc'"
        )
    built = build_program(program, source, inputs, seed, modality)
    outputs = outputs or count_outputs(kind, y)
    model = Reprogrammed(built, source, build_mapping(mapping, source.width, outputs, kind, seed))
    data = {"train": (inputs, y)} | ({"validation": validation} if validation is not None else {})
    plan = recipe(model, len(inputs), epochs) | ({} if gradient is None else by_queries(model, gradient, epochs))
    return model, fit(model, data, **plan, **common)


def check_chosen(program: Any, mapping: Any) -> None:
    """DataError where parts are named that several sources cannot share."""
    if mapping != "auto" or program not in ("auto", "none"):
        raise DataError(
            "expected program 'auto' or 'none' and mapping 'auto' with several sources, for which both are chosen, got "
            f"'{program}' and '{mapping}'; name a source"
        )


def check_kind(source: Source, program: Any, modality: str | None) -> None:
    """DataError where neither the source nor a program known to bridge them reads inputs of that modality."""
    if native(source, modality) or isinstance(program, nn.Module) or program not in ("auto", "none"):
        return
    bridge = BRIDGES.get((str(modality), source.takes))
    if bridge is None or program == "none":
        advice = f"take program '{bridge}'" if bridge else "name a source of that kind"
        raise DataError(
            f"expected a source that reads {modality}, got '{source.name}', which takes {source.takes}; {advice}"
        )


def for_queries(source: Source, program: Any, mapping: Any, kind: str) -> tuple[Any, Any]:
    """What "auto" stands for where a program learns from answers: few numbers to learn, a map that needs no gradient."""
    if program == "auto":
        program = "coordinator" if source.takes == "image" else AUTO.get(source.takes, "none")
    if mapping == "auto":
        mapping = "bayesian+" if source.returns == "logits" and kind == "classification" else "linear"
    return program, mapping


def by_queries(model: Reprogrammed, gradient: str | GradientStep, epochs: int | None) -> dict[str, Any]:
    """Options of `fit` for a program that learns from answers: a step by name with its rates, or the user's own."""
    if isinstance(model.mapping, GaussianProcess | ForestMap | Stack):
        raise DataError("expected a label map or mapping 'linear' with a gradient step, got another map; name one")
    if isinstance(gradient, str) and gradient not in STEPS:
        raise DataError(f"expected a gradient step among {', '.join(STEPS)}, got '{gradient}'")
    make, rates, clip = STEPS[gradient] if isinstance(gradient, str) else (lambda: gradient, adam(program=3e-2), 1.0)
    passes = 100 if epochs is None else epochs
    return {
        "gradient": make(),
        "optimizer": rates,
        "clip": clip,
        "epochs": passes,
        "hooks": [refresh],
        "patience": None,
    }


def sources_of(source: Any) -> list[Source] | None:
    """The sources that the user named; None for "auto"."""
    if isinstance(source, str):
        if source == "auto":
            return None
        source = source.split("+") if not Path(source).exists() else source
    several = source if isinstance(source, list | tuple) else [source]
    if not several:
        raise DataError("expected at least one source, got an empty list; `reprogram sources` has the names")
    found = [one if isinstance(one, Source) else load(one) for one in several]
    if len({one.name for one in found}) < len(found):
        raise DataError(f"expected different sources, got {', '.join(one.name for one in found)}; name each once")
    return found


def checked_targets(kind: str, inputs: Sequence[Any], y: Any, outputs: int | None) -> Tensor:
    """Targets as a tensor that fits the inputs, or a DataError."""
    no_text(inputs)
    y = target_tensor(y, kind)
    if len(inputs) != len(y) or not len(y):
        raise DataError(
            f"expected one target per input and at least one, got {len(y)} targets for {len(inputs)} inputs"
        )
    if kind == "classification" and len(y.unique()) < 2:
        raise DataError(f"expected rows of at least two classes, got class {int(y[0])} in all {len(y)} rows")
    if outputs is not None and outputs < count_outputs(kind, y):
        raise DataError(f"expected outputs of at least {count_outputs(kind, y)} for these targets, got {outputs}")
    if outputs is not None and kind != "classification" and outputs != y.shape[1]:
        raise DataError(f"expected {outputs} target columns, got {y.shape[1]}")
    return y


def recipe(model: Reprogrammed, rows: int, epochs: int | None) -> dict[str, Any]:
    """Loss, optimizer, epochs and batch size for a model's map. A closed-form map on a frozen input needs no epoch."""
    if isinstance(model.mapping, LabelMap):
        if model.source.returns != "logits":
            raise DataError(
                f"expected a source that answers with classes for a label map, got '{model.source.name}', which gives features"
            )
        passes = 100 if epochs is None else epochs
        return {"optimizer": adam(program=1e-2), "epochs": passes, "patience": 20, "hooks": [refresh]}
    learns = any(p.requires_grad for p in model.program.parameters())
    solved = isinstance(model.mapping, GaussianProcess | ForestMap | Stack) or getattr(model.mapping, "ridge", False)
    if not solved:
        rates, passes = adam(program=3e-3, mapping=3e-3), 40 if epochs is None else epochs
        return {"loss": supervised, "optimizer": rates, "epochs": passes, "patience": 10}
    if not learns:
        return {"epochs": 0}
    if isinstance(model.mapping, GaussianProcess):
        return by_evidence(model.source, rows, epochs)
    raise DataError(
        "expected mapping 'gp' or 'linear' to train a program, got a closed-form map; choose one or program='none'"
    )
