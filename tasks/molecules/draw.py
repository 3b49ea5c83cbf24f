"""Molecules on a grid with their true and predicted values, as PNG or SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reprogram.errors import DataError
from tasks.labels import short


@dataclass(frozen=True)
class Drawing:
    """An image that a notebook shows and `save` writes: `data` is PNG bytes or SVG text."""

    data: bytes | str

    @property
    def format(self) -> str:
        """ "png" or "svg"."""
        return "svg" if isinstance(self.data, str) else "png"

    def save(self, path: str | Path) -> Path:
        """Writes the image; the file must end in the drawing's own format."""
        path = Path(path)
        if path.suffix.lower() != f".{self.format}":
            raise DataError(f"expected a file that ends in .{self.format}, got {path.name!r}; draw with format=")
        path.write_bytes(self.data if isinstance(self.data, bytes) else self.data.encode())
        return path

    def _repr_png_(self) -> bytes | None:
        return self.data if isinstance(self.data, bytes) else None

    def _repr_svg_(self) -> str | None:
        return self.data if isinstance(self.data, str) else None


def draw(
    molecules: Sequence[Any],
    *,
    true: Sequence[float] | None = None,
    predicted: Sequence[float] | None = None,
    deviation: Sequence[float] | None = None,
    legends: Sequence[str] | None = None,
    units: str = "",
    order: str = "given",
    limit: int = 12,
    columns: int = 4,
    size: tuple[int, int] = (260, 220),
    format: str = "svg",
) -> Drawing:
    """The first `limit` molecules (SMILES or RDKit) with "true a, predicted b +- s, error e" below each.

    `order` "worst" and "best" sort by absolute error first. `size` is width and height of one cell in pixels.

    Raises: DataError for an unreadable molecule, lists of different lengths, or an unknown order or format.
    """
    inputs = list(molecules)
    if not inputs or limit < 1 or columns < 1:
        raise DataError(
            f"expected molecules, limit and columns of at least 1, got {len(inputs)}, {limit} and {columns}"
        )
    for what, values in (("true", true), ("predicted", predicted), ("deviation", deviation), ("legends", legends)):
        if values is not None and len(values) != len(inputs):
            raise DataError(f"expected {len(inputs)} values in {what}, one per molecule, got {len(values)}")
    if format not in ("svg", "png"):
        raise DataError(f"expected format svg or png, got {short(format)}")
    rows = _rows(order, true, predicted, len(inputs))[:limit]
    texts = [_text(i, true, predicted, deviation, legends, units) for i in rows]
    return Drawing(_grid([_molecule(inputs[i], i) for i in rows], texts, columns, size, format))


def _rows(order: str, true: Any, predicted: Any, n: int) -> list[int]:
    if order == "given":
        return list(range(n))
    if order not in ("worst", "best") or true is None or predicted is None:
        raise DataError(f"expected order given, or worst or best with true and predicted values, got {short(order)}")
    error = np.abs(np.asarray(true, dtype=float) - np.asarray(predicted, dtype=float))
    return np.argsort(-error if order == "worst" else error, kind="stable").tolist()


def _text(i: int, true: Any, predicted: Any, deviation: Any, legends: Any, units: str) -> str:
    parts = [] if true is None else [f"true {true[i]:.3g}"]
    if predicted is not None:
        parts.append(f"predicted {predicted[i]:.3g}" + ("" if deviation is None else f" +/- {deviation[i]:.2g}"))
    values = ", ".join(parts) + (f" {units}" if units and parts else "")
    error = "" if true is None or predicted is None else f"error {predicted[i] - true[i]:+.2g}"
    return "\n".join(line for line in (str(legends[i]) if legends is not None else "", values, error) if line)


def _molecule(molecule: Any, row: int) -> Any:
    from rdkit import Chem, rdBase

    if isinstance(molecule, Chem.Mol):
        return molecule
    with rdBase.BlockLogs():
        parsed = Chem.MolFromSmiles(molecule) if isinstance(molecule, str) else None
    if parsed is None:
        raise DataError(f"expected a SMILES string or an RDKit molecule, got {short(molecule)} at row {row}")
    return parsed


def _grid(molecules: list[Any], texts: list[str], columns: int, size: tuple[int, int], format: str) -> bytes | str:
    from rdkit.Chem.Draw import rdMolDraw2D

    columns = min(columns, len(molecules))
    lines = -(-len(molecules) // columns)
    canvas = rdMolDraw2D.MolDraw2DSVG if format == "svg" else rdMolDraw2D.MolDraw2DCairo
    drawer = canvas(size[0] * columns, size[1] * lines, size[0], size[1])
    options = drawer.drawOptions()
    options.legendFontSize = 15
    options.legendFraction = 0.08 + 0.08 * max(text.count("\n") + 1 for text in texts)
    drawer.DrawMolecules(molecules, legends=texts)
    drawer.FinishDrawing()
    return drawer.GetDrawingText()


def draw_changes(
    pairs: Sequence[tuple[str, str]], texts: Sequence[tuple[str, str]], *, size: tuple[int, int] = (300, 240),
    format: str = "svg",
) -> Drawing:  # fmt: skip
    """Pairs of molecules, one pair a line, drawn in the same pose; atoms that the other does not have are coloured.

    What two molecules share is their maximum common substructure, rings only matching rings (RDKit's rdFMCS, 2 s a pair).
    """
    from rdkit.Chem.Draw import rdMolDraw2D

    canvas = rdMolDraw2D.MolDraw2DSVG if format == "svg" else rdMolDraw2D.MolDraw2DCairo
    drawer = canvas(size[0] * 2, size[1] * len(pairs), size[0], size[1])
    drawer.drawOptions().legendFontSize = 15
    molecules, changed = [], []
    for i, (first, second) in enumerate(pairs):
        both = _molecule(first, i), _molecule(second, i)
        molecules += both
        changed += _changes(*both)
    drawer.DrawMolecules(molecules, legends=[text for pair in texts for text in pair], highlightAtoms=changed)
    drawer.FinishDrawing()
    return Drawing(drawer.GetDrawingText())


def _changes(first: Any, second: Any) -> tuple[list[int], list[int]]:
    """The atoms of each that are outside of what both share; the second is laid over the first."""
    from rdkit import Chem
    from rdkit.Chem import AllChem, rdFMCS

    AllChem.Compute2DCoords(first)
    found = rdFMCS.FindMCS([first, second], timeout=2, completeRingsOnly=True, ringMatchesRingOnly=True)
    shared = Chem.MolFromSmarts(found.smartsString) if found.numAtoms else None
    if shared is None:
        AllChem.Compute2DCoords(second)
        return [], []
    matches = first.GetSubstructMatch(shared), second.GetSubstructMatch(shared)
    AllChem.GenerateDepictionMatching2DStructure(second, first, list(zip(*matches, strict=True)))
    a, b = (
        [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetIdx() not in match]
        for mol, match in zip((first, second), matches, strict=True)
    )
    return a, b
