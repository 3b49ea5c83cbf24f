"""A molecule as a search sees it: read once, its fingerprint made when first asked for."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

from reprogram.errors import DataError
from tasks.molecules.standardise import Standardiser

RADIUS, BITS = 2, 2048


@lru_cache(maxsize=1)
def morgan() -> Any:
    """The fingerprint of every similarity constraint: Morgan, radius 2, 2048 bits, as QMO and the JT-VAE measure it."""
    from rdkit.Chem import rdFingerprintGenerator

    return rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)


class Molecule:
    """A canonical SMILES with its RDKit molecule. Two are equal when their SMILES are."""

    def __init__(self, smiles: str, mol: Any):
        self.smiles, self.mol = smiles, mol

    @cached_property
    def fingerprint(self) -> Any:
        """Bit vector for Tanimoto similarity."""
        return morgan().GetFingerprint(self.mol)

    def similarity(self, other: Molecule) -> float:
        """Tanimoto similarity of the Morgan fingerprints, 0 to 1."""
        from rdkit.DataStructs import TanimotoSimilarity

        return float(TanimotoSimilarity(self.fingerprint, other.fingerprint))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Molecule) and other.smiles == self.smiles

    def __hash__(self) -> int:
        return hash(self.smiles)

    def __repr__(self) -> str:
        return f"Molecule({self.smiles!r})"


def parsed(text: str) -> Molecule | None:
    """What a generator wrote, or None: no molecule, no atoms, several fragments, or it cannot be read back."""
    from rdkit import Chem, rdBase

    if not text or "." in text or "*" in text:
        return None
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(text)
        if mol is None or mol.GetNumAtoms() == 0:
            return None
        smiles = Chem.MolToSmiles(mol)
        # a canonical form that RDKit refuses would be lost in the user's table
        again = mol if smiles == text else Chem.MolFromSmiles(smiles)
    return None if again is None else Molecule(smiles, again)


def start(text: Any, row: int) -> Molecule:
    """What a user gave to begin with. Raises DataError that names the row."""
    try:
        smiles = Standardiser()(text)
    except DataError as error:
        raise DataError(f"expected a molecule to start from in row {row}, got {str(text)[:80]!r}: {error}") from None
    if "." in smiles:
        raise DataError(
            f"expected one molecule in row {row}, got the fragments {smiles[:80]!r}; drop counter-ions first "
            "(--largest-fragment, or tasks.molecules.standardise(..., largest_fragment=True))"
        )
    found = parsed(smiles)
    if found is None:
        raise DataError(
            f"expected a molecule to start from in row {row}, got {smiles[:80]!r}, which has no readable form"
        )
    return found
