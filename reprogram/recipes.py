"""Sensible defaults put together: `adapt` builds, trains and returns a reprogrammed model in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from reprogram.auto import adapt_auto, by_evidence, count_outputs
from reprogram.errors import DataError
from reprogram.features import no_text, target_tensor
from reprogram.forest import ForestMap
from reprogram.gaussian_process import GaussianProcess
from reprogram.label_map import LabelMap
from reprogram.model import Reprogrammed
from reprogram.objectives import adam, supervised
from reprogram.parts import MAPPINGS, build_mapping, build_program
from reprogram.sources import Source, load
from reprogram.stack import Stack
from reprogram.train import History, fit, refresh

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
    seed: int = 0,
    progress: bool = True,
    accelerator: Any = None,
    checkpoint_dir: Any = None,
) -> tuple[Reprogrammed, History]:
    """Reprogram `source` for the labelled `inputs`; returns the trained model and its history.

    Args:
        source: a catalogue name, a hub id or folder, a `Source`, or several sources to stand side by side: a list,
            names joined by "+", or "auto", the molecule sources at hand.
        inputs: what the source reads, for example SMILES strings; they are read as they are written, so bring molecules
            to one form first (`tasks.load_task` does) and predict on the same form.
        y: values (n,) or (n, T), class indices (n,), or 0/1/NaN labels (n, T), after `kind`.
        kind: "regression", "classification" or "multilabel".
        outputs: number of targets or classes; by default read off `y`.
        program: "auto" (deltas for graphs, free embeddings for SMILES and sequences, a soft prompt for texts in words, a
            full additive prompt for images, a padded window for series, none for features), a name of
            `reprogram.parts.PROGRAMS`, or a program.
        mapping: "auto", "gp" (Gaussian process, program trained by its evidence), "linear" (trained with the program),
            "ridge" (closed form; with no program this is the linear probe), a label map of a source that answers with
            classes ("first", "random", "frequency", "iterative", "bayesian", "bayesian+"), or a map. With program and mapping "auto"
            the programmed source stands beside the untouched one and their readouts are weighed on training folds;
            beside other sources a program that does not carry over is left out (`history.stopped` says so).
        epochs: passes over the rows; by default about 20 updates with the evidence, 40 passes with a trained map.
        validation: rows that choose the epoch where no folds are used, and end a training that gets no better for
            10 passes; without them the last epoch is kept.

    Raises:
        DataError: unknown names, or targets that do not fit `kind`, the inputs or `outputs`.
    """
    if mapping not in ("auto", *MAPPINGS) and not isinstance(mapping, nn.Module):
        raise DataError(f"expected mapping to be one of auto, {', '.join(MAPPINGS)}, got '{mapping}'")
    common = {"seed": seed, "progress": progress, "accelerator": accelerator, "checkpoint_dir": checkpoint_dir}
    y = checked_targets(kind, inputs, y, outputs)
    found = sources_of(source)
    if found is None or len(found) > 1:
        if mapping != "auto" or program not in ("auto", "none"):
            raise DataError(
                "expected program 'auto' or 'none' and mapping 'auto' with several sources, for which both are chosen, got "
                f"'{program}' and '{mapping}'; name a source"
            )
        options = common | {"outputs": outputs, "epochs": epochs, "reprogrammed": program == "auto"}
        return adapt_auto(inputs, y, kind=kind, sources=found, **options)
    (source,) = found
    outputs = outputs or count_outputs(kind, y)
    if program == "auto" and mapping == "auto" and len(inputs) >= FEW:
        return adapt_auto(
            inputs, y, kind=kind, outputs=outputs, epochs=epochs, sources=[source], **common
        )  # fmt: skip
    if not source.differentiable and program not in ("auto", "none"):
        raise DataError(
            f"expected a source that gradients pass for a learned program, got '{source.name}'; choose program='none'"
        )
    model = Reprogrammed(
        build_program(program, source, inputs, seed), source, build_mapping(mapping, source.width, outputs, kind, seed)
    )
    data = {"train": (inputs, y)} | ({"validation": validation} if validation is not None else {})
    return model, fit(model, data, **recipe(model, len(inputs), epochs), **common)


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
