"""Sensible defaults put together: `adapt` builds, trains and returns a reprogrammed model in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from reprogram.errors import DataError
from reprogram.mapping import GaussianProcess, LinearMap
from reprogram.model import Reprogrammed
from reprogram.programs import Dictionary, FreeEmbeddings, GraphDelta, Identity, SoftPrompt, vocabulary
from reprogram.sources import Source, load
from reprogram.train import History, adam, evidence, fit, supervised

FULL_BATCH = 256  # rows that one evidence step looks at together
PROGRAMS = ("auto", "none", "delta", "free", "dense", "sparse", "prompt")
MAPPINGS = ("auto", "gp", "linear", "ridge")


def adapt(
    source: str | Source,
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
        source: a catalogue name, a hub id or folder, a `Source`, or "auto": several frozen sources and a reprogrammed one
            under a stacked readout whose weights come from the training rows alone.
        inputs: what the source reads, for example SMILES strings.
        y: values (n,) or (n, T), class indices (n,), or 0/1/NaN labels (n, T), after `kind`.
        kind: "regression", "classification" or "multilabel".
        outputs: number of targets or classes; by default read off `y`.
        program: "auto" (deltas for graphs, free embeddings for tokens, none for features), "none", "delta", "free",
            "dense", "sparse", "prompt", or a program.
        mapping: "auto" or "gp" (Gaussian process, program trained by its evidence), "linear" (trained with the program),
            "ridge" (closed form; with no program this is the linear probe), or a map.
        epochs: passes over the rows; default 20 with the evidence, 40 with a trained map.
        validation: rows that choose the epoch; without them the last epoch is kept.

    Raises:
        DataError: unknown names, or targets that do not fit `kind`.
    """
    if source == "auto":
        from reprogram.auto import adapt_auto

        return adapt_auto(
            inputs, y, kind=kind, outputs=outputs, epochs=epochs, seed=seed, progress=progress, accelerator=accelerator,
            checkpoint_dir=checkpoint_dir,
        )  # fmt: skip
    source = source if isinstance(source, Source) else load(source)
    outputs = outputs or count_outputs(kind, y)
    model = Reprogrammed(
        build_program(program, source, inputs, seed), source, build_mapping(mapping, source.width, outputs, kind)
    )
    data = {"train": (inputs, y)} | ({"validation": validation} if validation is not None else {})
    history = fit(
        model, data, **recipe(model, epochs), seed=seed, progress=progress, accelerator=accelerator,
        checkpoint_dir=checkpoint_dir,
    )  # fmt: skip
    return model, history


def recipe(model: Reprogrammed, epochs: int | None) -> dict[str, Any]:
    """Loss, optimizer, epochs and batch size for a model's map. A closed-form map on a frozen input needs no epoch."""
    learns = any(p.requires_grad for p in model.program.parameters())
    if isinstance(model.mapping, LinearMap) and not model.mapping.ridge:
        return {
            "loss": supervised,
            "optimizer": adam(program=3e-3, mapping=3e-3),
            "epochs": 40 if epochs is None else epochs,
        }
    if not learns:
        return {"epochs": 0}
    options = {
        "optimizer": adam(program=1e-3, mapping=2e-2),
        "epochs": 20 if epochs is None else epochs,
        "batch_size": FULL_BATCH,
    }
    if isinstance(model.mapping, GaussianProcess):
        return {"loss": evidence, **options}
    raise DataError(
        "expected mapping 'gp' or 'linear' to train a program, got a closed-form map; choose one or program='none'"
    )


def count_outputs(kind: str, y: Any) -> int:
    """Targets in `y`, or classes."""
    y = np.asarray(y, dtype=float)
    if kind == "classification":
        return max(2, int(np.nanmax(y)) + 1)
    return 1 if y.ndim == 1 else y.shape[1]


def build_program(program: str | nn.Module, source: Source, inputs: Sequence[Any], seed: int) -> nn.Module:
    """A program by name, with the vocabulary of the training inputs where it needs one."""
    if isinstance(program, nn.Module):
        return program
    if program not in PROGRAMS:
        raise DataError(f"expected program to be one of {', '.join(PROGRAMS)}, got '{program}'")
    if program == "auto":
        program = {"graph": "delta", "tokens": "free"}.get(source.takes, "none")
        program = program if source.differentiable else "none"
    if program == "none":
        return Identity()
    if program == "delta":
        return GraphDelta()
    if program == "prompt":
        return SoftPrompt(seed=seed)
    tokens = vocabulary([text if isinstance(text, str) else smiles_of(text) for text in inputs])
    if program == "free":
        return FreeEmbeddings(tokens, seed=seed)
    return Dictionary(tokens, sparsity=16 if program == "sparse" else None, seed=seed)


def build_mapping(mapping: str | nn.Module, width: int, outputs: int, kind: str) -> nn.Module:
    """A map by name."""
    if isinstance(mapping, nn.Module):
        return mapping
    if mapping not in MAPPINGS:
        raise DataError(f"expected mapping to be one of {', '.join(MAPPINGS)}, got '{mapping}'")
    if mapping in ("auto", "gp"):
        return GaussianProcess(width, outputs, kind=kind)
    return LinearMap(width, outputs, kind=kind, ridge=mapping == "ridge")


def smiles_of(molecule: Any) -> str:
    from rdkit.Chem import MolToSmiles

    return MolToSmiles(molecule)
