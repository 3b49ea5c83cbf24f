"""Peptides: antimicrobial sequences against others, and what a chemist would fit on them without a language model."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from reprogram.errors import DataError
from reprogram.sources import FeatureCodec, Features, Source
from tasks.arrays import from_arrays
from tasks.task import Task

SCALES = 110  # numbers per sequence in `descriptors`
INSTALL = "pip install --no-deps modlamp"


def antimicrobial(*, seed: int = 0, **options: Any) -> Task:
    """Antimicrobial peptides (class AMP) against sequences of the same lengths from UniProt, 5,200 in all, less repeats.

    A sequence that stands in both classes is left out; options are those of `from_arrays`.

    Reference: Müller, Gabernet, Hiss & Schneider, "modlAMP: Python for antimicrobial peptides", Bioinformatics 2017.
    Raises: DataError with the command that brings the data when it is absent.
    """
    import pandas as pd

    spec = find_spec("modlamp")
    file = Path(next(iter(spec.submodule_search_locations))) / "data" / "AMPvsUniProt.csv" if spec else None
    if file is None or not file.is_file():
        raise DataError(f"expected the peptides that come with modlamp, got none; run: {INSTALL}")
    table = pd.read_csv(file, skiprows=1, header=None, names=["sequence", "label"], skipinitialspace=True)
    table["sequence"] = table["sequence"].str.strip().str.upper()
    table = table.drop_duplicates()
    table = table[~table["sequence"].duplicated(keep=False)].reset_index(drop=True)
    options = {
        "name": "antimicrobial", "classes": ("UniProt", "AMP"), "metric": "roc_auc", "license": "BSD-3-Clause (wheel)",
        "source": "Müller et al., modlAMP, Bioinformatics 2017, doi:10.1093/bioinformatics/btx285", "fractions": (0.6, 0.1, 0.3),
    } | options  # fmt: skip
    return from_arrays(table["sequence"].tolist(), table["label"].tolist(), modality="peptides", seed=seed, **options)


def descriptors(sequences: Sequence[str]) -> np.ndarray:
    """(n, D): the physicochemical scales of the package `peptides`, averaged over each sequence, and its global values.

    Raises: DataError with the command that brings the package.
    """
    try:
        from peptides import Peptide
    except ImportError as error:
        raise DataError("expected the package peptides, got none; run: pip install peptides") from error
    rows = []
    for sequence in sequences:
        peptide = Peptide(sequence)
        whole = [peptide.boman(), peptide.charge(), peptide.hydrophobicity(), peptide.isoelectric_point(), peptide.aliphatic_index(),
                 peptide.instability_index(), peptide.molecular_weight(), peptide.hydrophobic_moment()]  # fmt: skip
        rows.append([*peptide.descriptors().values(), *whole])
    return np.asarray(rows, dtype=np.float32)


def descriptor_source() -> Source:
    """`descriptors` as a frozen source of features; the package is only needed when features are asked for."""
    names = [f"scale {i}" for i in range(SCALES)]
    return Source(Features(names), FeatureCodec(descriptors), name="peptides", takes="features", width=SCALES)
