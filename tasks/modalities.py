"""What an input can be: where a table holds it, how it is brought to one form, how its rows are split by default."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from reprogram.errors import DataError
from reprogram.sources.composition import AMINO_ACIDS
from tasks.labels import short


class Picture(str):
    """The path of a picture that has been read; `digest` is its file's SHA-256, so that nobody reads it again to compare."""

    digest: str

    @classmethod
    def read(cls, path: str) -> Picture:
        """Raises: ValueError for a file that holds no picture."""
        from reprogram.sources.images import as_image, opened

        found = cls(path)
        image, content = opened(path, 0)
        as_image(image, 0)
        found.digest = sha256(content).hexdigest()
        return found


@dataclass(frozen=True)
class Modality:
    """One kind of input.

    `columns` are the names under which a table usually holds it; none where the input is the numbers of all columns but
    the labels. `clean(**options)` makes the function that brings an input to one form, or refuses it by a ValueError.
    `groups` are splits by a property of an input, the first of them is the default; without any rows are drawn at random.
    `joins` says whether equal inputs become one row.
    """

    name: str
    one: str
    columns: tuple[str, ...]
    clean: Callable[..., Callable[[Any], Any]]
    metric: str = "accuracy"
    groups: Mapping[str, Callable[[Any], str]] = field(default_factory=dict)
    joins: bool = True

    def digest(self, value: Any) -> str:
        """SHA-256 of what an input holds, wherever it lies: a text, a file's content, or numbers. Equal ones are one input."""
        if isinstance(value, Picture):
            return value.digest
        if isinstance(value, str | Path):
            return sha256(Path(value).read_bytes() if self.name == "images" else str(value).encode()).hexdigest()
        array = np.asarray(value)
        return sha256(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()

    @property
    def split(self) -> str:
        """The default split."""
        return next(iter(self.groups), "random")

    @property
    def wide(self) -> bool:
        """Whether an input is a row of numbers."""
        return not self.columns


def molecule(**options: Any) -> Callable[[Any], str]:
    """Canonical SMILES; options are those of `tasks.molecules.Standardiser`."""
    from tasks.molecules.standardise import Standardiser

    if unknown := sorted(set(options) - set(Standardiser.__dataclass_fields__)):
        known = ", ".join(Standardiser.__dataclass_fields__)
        raise TypeError(f"expected options of load_task or among {known}, got {unknown[0]!r}")
    return Standardiser(**options)


def scaffold_of(smiles: str) -> str:
    """Bemis-Murcko scaffold."""
    from tasks.molecules.standardise import scaffold

    return scaffold(smiles)


def plain(clean: Callable[[Any], Any]) -> Callable[..., Callable[[Any], Any]]:
    """A form without options."""

    def made(**options: Any) -> Callable[[Any], Any]:
        if options:
            raise DataError(f"expected {sorted(options)[0]} for molecules only, got it for other inputs; leave it out")
        return clean

    return made


def said(value: Any) -> str:
    """The text in a cell."""
    text = "" if value is None or value != value else str(value).strip()
    if not text:  # "NA" is a peptide and a word
        raise DataError("the cell is empty")
    return text


def peptide(value: Any) -> str:
    """Upper-case letters of the twenty amino acids."""
    text = said(value).upper()
    if strange := sorted(set(text) - set(AMINO_ACIDS)):
        raise DataError(f"{short(strange[0])} is not one of the twenty amino acids")
    return text


def text(value: Any) -> str:
    """The text, its white space made single."""
    return re.sub(r"\s+", " ", said(value))


def reaction(value: Any) -> str:
    """`reactants>>products` in canonical SMILES without atom numbers, agents among the reactants.

    Reference: Schwaller et al., "Mapping the space of chemical reactions using attention-based neural networks", Nature
    Machine Intelligence 2021, arXiv:2012.06051, whose model reads reactions so.
    """
    sides = said(value).split()[0].split(">")
    if len(sides) != 3:
        raise DataError("it is no reaction SMILES: expected reactants>agents>products")
    left, right = ".".join(side for side in sides[:2] if side), sides[2]
    if not left or not right:
        raise DataError(f"it has no {'products' if left else 'reactants'}")
    return f"{canonical(left)}>>{canonical(right)}"


def canonical(molecules: str) -> str:
    """Molecules joined by dots, each canonical and unnumbered, in alphabetical order."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        whole = Chem.MolFromSmiles(molecules)
        if whole is None:
            raise DataError(f"RDKit cannot read {short(molecules)}")
        for atom in whole.GetAtoms():
            atom.SetAtomMapNum(0)
        return ".".join(sorted(Chem.MolToSmiles(whole).split(".")))


def picture(value: Any) -> Any:
    """A readable image: a path, or an image in memory."""
    from reprogram.sources.images import as_image

    if isinstance(value, str | Path):
        return Picture.read(said(value))
    as_image(value, 0)
    return value


def signal(value: Any) -> np.ndarray:
    """A series (C, L); what is missing at its end was never there."""
    from reprogram.sources.series import as_series

    found = np.asarray(value, dtype=np.float32)
    if found.ndim == 1 and np.isnan(found).any():
        found = found[: len(found) - int(np.argmin(np.isnan(found[::-1])))]
    as_series(found, 0)
    return np.atleast_2d(found)


def numbers(value: Any) -> np.ndarray:
    """A row of finite numbers (D,)."""
    found = np.asarray(value, dtype=np.float32)
    if not np.isfinite(found).all():
        raise DataError("a number is missing or infinite")
    return found


MODALITIES = {
    found.name: found
    for found in (
        Modality("molecules", "molecule", ("smiles",), molecule, "roc_auc", {"scaffold": scaffold_of}),
        Modality("peptides", "peptide", ("sequence", "peptide"), plain(peptide), "roc_auc"),
        Modality("reactions", "reaction", ("reaction", "rxn"), plain(reaction), "roc_auc"),
        Modality("texts", "text", ("text", "sentence"), plain(text)),
        Modality("images", "image", ("image", "file", "path"), plain(picture)),
        Modality("series", "series", (), plain(signal), joins=False),
        Modality("tables", "row", (), plain(numbers), joins=False),
    )
}


def known(name: str) -> Modality:
    """The modality of that name. Raises DataError with the names there are."""
    if name not in MODALITIES:
        raise DataError(f"expected a modality among {', '.join(MODALITIES)}, got {short(name)}")
    return MODALITIES[name]
