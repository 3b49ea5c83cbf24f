"""Programs and maps by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from reprogram.errors import DataError
from reprogram.gaussian_process import GaussianProcess
from reprogram.label_map import METHODS, LabelMap
from reprogram.mapping import LinearMap
from reprogram.programs import (
    Additive,
    Affine,
    Coordinator,
    Dictionary,
    FeatureCanvas,
    FreeEmbeddings,
    GraphDelta,
    Identity,
    LowRank,
    Pad,
    Patches,
    Prefix,
    Resize,
    Rewriter,
    SampleMask,
    SeriesPad,
    SoftPrompt,
    TableTokens,
    TokenGrid,
    moments,
    vocabulary,
)
from reprogram.sources import Source

Make = Callable[[Sequence[Any], int], nn.Module]  # (training inputs, seed) -> program
PROGRAMS: dict[str, Make] = {
    "none": lambda inputs, seed: Identity(),
    "lora": lambda inputs, seed: LowRank(Identity(), seed=seed),
    # molecular graphs
    "delta": lambda inputs, seed: GraphDelta(),
    # tokens
    "free": lambda inputs, seed: FreeEmbeddings(tokens_of(inputs), seed=seed),
    "dense": lambda inputs, seed: Dictionary(tokens_of(inputs), sparsity=None, seed=seed),
    "sparse": lambda inputs, seed: Dictionary(tokens_of(inputs), sparsity=16, seed=seed),
    "rewrite": lambda inputs, seed: Rewriter(tokens_of(inputs), seed=seed),
    "prompt": lambda inputs, seed: SoftPrompt(seed=seed),
    "prefix": lambda inputs, seed: Prefix(seed=seed),
    "words": lambda inputs, seed: TableTokens(**moments(inputs), seed=seed),
    "patches": lambda inputs, seed: Patches(seed=seed),
    # images
    "pad": lambda inputs, seed: Pad(),
    "full": lambda inputs, seed: Additive(),
    "strip": lambda inputs, seed: Additive(region="strip"),
    "patch": lambda inputs, seed: Additive(region="patch"),
    "resize": lambda inputs, seed: Resize(),
    "mask": lambda inputs, seed: SampleMask(seed=seed),
    "affine": lambda inputs, seed: Affine(),
    "coordinator": lambda inputs, seed: Coordinator(seed=seed),
    "grid": lambda inputs, seed: TokenGrid(tokens_of(inputs), seed=seed),
    "canvas": lambda inputs, seed: FeatureCanvas(**moments(inputs)),
    # series
    "series": lambda inputs, seed: SeriesPad(),
}
AUTO = {"graph": "delta", "tokens": "free", "image": "full", "series": "series"}  # by what the source takes
BRIDGES = {  # by what the inputs are and what the source takes, where these differ or another program is usual
    ("texts", "tokens"): "prompt",
    ("series", "tokens"): "patches",
    ("tables", "tokens"): "words",
    ("tables", "image"): "canvas",
    **{(sequences, "image"): "grid" for sequences in ("molecules", "peptides", "reactions", "texts")},
}
NATIVE = {  # what a source reads without a program
    "graph": ("molecules",), "tokens": ("molecules", "peptides", "reactions", "texts"), "image": ("images",), "series": ("series",),
}  # fmt: skip
MAPPINGS = ("gp", "linear", "ridge", *(method for method in METHODS if method != "text"))


def programmable(source: Source) -> bool:
    """Whether a program can be learned in front of `source` by gradient."""
    return source.differentiable and source.takes in AUTO and (source.takes != "tokens" or source.embedding is not None)


def native(source: Source, modality: str | None) -> bool:
    """Whether `source` reads inputs of that modality as they are; None is whatever it was made for."""
    return modality is None or modality in NATIVE.get(source.takes, (modality,))


def default_program(source: Source, inputs: Sequence[Any], modality: str | None = None) -> str:
    """The usual program in front of `source`: by what it takes "delta", "free", "full" or "series", or "none".

    Texts in words are read by the source's own tokenizer and get a "prompt"; SMILES and sequences are foreign to it.
    Where the inputs are of another `modality` than the source, what bridges the two.
    """
    if not programmable(source):
        return "none"
    modality = modality or ("texts" if in_words(inputs) else "")
    return BRIDGES.get((modality, source.takes), AUTO[source.takes])


def build_program(
    program: str | nn.Module, source: Source, inputs: Sequence[Any], seed: int, modality: str | None = None
) -> nn.Module:
    """A program by name, with the vocabulary or the moments of the training inputs where it needs them.

    "auto" is `default_program`.
    """
    if isinstance(program, nn.Module):
        if not hasattr(program, "bind"):
            raise DataError(f"expected a program, got {type(program).__name__}; see reprogram.programs")
        return program
    if program == "auto":
        program = default_program(source, inputs, modality)
    if program not in PROGRAMS:
        raise DataError(f"expected program to be one of auto, {', '.join(PROGRAMS)}, got '{program}'")
    return PROGRAMS[program](inputs, seed)


def build_mapping(mapping: str | nn.Module, width: int, outputs: int, kind: str, seed: int = 0) -> nn.Module:
    """A map by name; "auto" is the Gaussian process."""
    if isinstance(mapping, nn.Module):
        got = getattr(mapping, "kind", None), getattr(mapping, "outputs", None)
        if got != (kind, outputs):
            raise DataError(
                f"expected a map for {kind} with {outputs} outputs, got {type(mapping).__name__} for {got[0]} with {got[1]}"
            )
        return mapping
    if mapping not in ("auto", *MAPPINGS):
        raise DataError(f"expected mapping to be one of auto, {', '.join(MAPPINGS)}, got '{mapping}'")
    if mapping in ("auto", "gp"):
        return GaussianProcess(width, outputs, kind=kind)
    if mapping in METHODS:
        if kind != "classification":
            raise DataError(f"expected classes for the label map '{mapping}', got {kind}; choose gp, linear or ridge")
        return LabelMap(width, outputs, method=mapping, seed=seed)
    return LinearMap(width, outputs, kind=kind, ridge=mapping == "ridge")


def in_words(inputs: Sequence[Any]) -> bool:
    """Whether most inputs are texts of several words; SMILES and sequences hold no space."""
    return sum(isinstance(text, str) and len(text.split()) > 1 for text in inputs) > len(inputs) / 2


def tokens_of(inputs: Sequence[Any]) -> list[str]:
    """The vocabulary of texts or RDKit molecules."""
    return vocabulary([text if isinstance(text, str) else smiles_of(text) for text in inputs])


def smiles_of(molecule: Any) -> str:
    """Canonical SMILES of an RDKit molecule."""
    from rdkit.Chem import MolToSmiles

    return MolToSmiles(molecule)
