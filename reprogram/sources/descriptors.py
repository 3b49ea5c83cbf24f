"""Feature sources from RDKit: no network at all, and the strongest opponents in low data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reprogram.sources.base import Features, Source
from reprogram.sources.codecs import FeatureCodec, as_text, shorten

LARGEST = 1e5
LICENSE = "BSD-3-Clause"


def molecules(inputs: Sequence[Any]) -> list[Any]:
    """RDKit molecules of SMILES strings. Raises ValueError naming the first row that cannot be read."""
    from rdkit import Chem
    from rdkit.rdBase import BlockLogs

    read = []
    with BlockLogs():
        for row, value in enumerate(inputs):
            smiles = as_text(value, row)
            molecule = Chem.MolFromSmiles(smiles)
            if molecule is None or molecule.GetNumAtoms() == 0:
                raise ValueError(f"expected a readable molecule in row {row}, got {shorten(smiles)}; drop it")
            read.append(molecule)
    return read


def descriptors(inputs: Sequence[Any]) -> np.ndarray:
    """RDKit's list of descriptors, (n, 217) for RDKit 2026.9: NaN is 0 and everything lies within +-1e5.

    Ipc grows like the factorial of the atoms, partial charges are NaN for metals: both would wreck a linear readout.
    """
    from rdkit.Chem import Descriptors
    from rdkit.rdBase import BlockLogs

    with BlockLogs():
        rows = [list(Descriptors.CalcMolDescriptors(molecule).values()) for molecule in molecules(inputs)]
    table = np.nan_to_num(np.array(rows, dtype=np.float64), nan=0.0, posinf=LARGEST, neginf=-LARGEST)
    return table.clip(-LARGEST, LARGEST).astype(np.float32)


class MorganCounts:
    """How often each circular substructure up to `radius` bonds occurs, folded to `bits`: (n, bits).

    Reference: Rogers and Hahn, "Extended-Connectivity Fingerprints", J. Chem. Inf. Model. 2010.
    """

    def __init__(self, *, radius: int = 2, bits: int = 2048):
        self.radius, self.bits = radius, bits

    def __call__(self, inputs: Sequence[Any]) -> np.ndarray:
        from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

        generator = GetMorganGenerator(radius=self.radius, fpSize=self.bits)
        return np.stack([generator.GetCountFingerprintAsNumPy(m) for m in molecules(inputs)]).astype(np.float32)


def load(folder: Path, revision: str) -> Source:
    """RDKit descriptors as a source."""
    from rdkit.Chem import Descriptors

    names = [name for name, _ in Descriptors.descList]
    return Source(
        Features(names), FeatureCodec(descriptors), name="descriptors", takes="features", width=len(names),
        revision=revision, license=LICENSE, differentiable=True,
    )  # fmt: skip


def load_morgan(folder: Path, revision: str, *, radius: int = 2, bits: int = 2048) -> Source:
    """Morgan substructure counts as a source."""
    codec = FeatureCodec(MorganCounts(radius=radius, bits=bits))
    return Source(
        Features([f"morgan counts radius={radius} bits={bits}"]), codec, name="morgan", takes="features", width=bits,
        revision=revision, license=LICENSE,
    )  # fmt: skip
