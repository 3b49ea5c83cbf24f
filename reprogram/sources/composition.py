"""What a peptide is made of, as a feature source: no network at all, and hard to beat with few labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reprogram.sources.base import Features, Source
from reprogram.sources.codecs import FeatureCodec, as_text

AMINO_ACIDS = tuple("ACDEFGHIKLMNPQRSTVWY")


def composition(sequences: Sequence[Any]) -> np.ndarray:
    """(n, 21): the share of each amino acid, and log of the length. Raises ValueError naming an empty row."""
    words = [as_text(value, row) for row, value in enumerate(sequences)]
    if "" in words:
        raise ValueError(f"expected an amino-acid sequence in row {words.index('')}, got an empty text; drop it")
    counts = np.array([[word.count(letter) for letter in AMINO_ACIDS] for word in words], dtype=np.float32)
    lengths = np.array([[len(word)] for word in words], dtype=np.float32)
    return np.concatenate([counts / lengths, np.log(lengths)], axis=1)


def load(folder: Path | None = None, revision: str = "") -> Source:
    """`composition` as a frozen source of features."""
    names = [*AMINO_ACIDS, "log length"]
    codec = FeatureCodec(composition)
    return Source(
        Features(names), codec, name="composition", takes="features", width=len(names), revision=revision,
        license="Apache-2.0",
    )  # fmt: skip
