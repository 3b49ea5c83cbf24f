"""One molecule in, its canonical SMILES out, or the reason why not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from reprogram.errors import DataError
from tasks.labels import MISSING

# heavy atoms of a SMILES by eye: brackets except [H], then the organic subset
ATOM = re.compile(r"\[(?!\d*H[\d+-]*\])[^\]]*\]|Cl?|Br?|[NOPSFIbcnops*]")


@dataclass(frozen=True, kw_only=True)
class Standardiser:
    """Parses, sanitises and writes canonical SMILES; the steps that change the compound are the user's choice.

    By default the molecule stays what the user gave, salts and charges included, so that training data and later
    queries meet the model alike. `cleanup` rewrites functional groups and metal bonds to one form (RDKit's Cleanup),
    `largest_fragment` drops counter-ions and solvents, `neutralise` removes charges where hydrogens can.
    Larger molecules than `max_atoms` heavy atoms are refused before any costly step.

    Raises: DataError with the reason, when called.
    """

    cleanup: bool = False
    largest_fragment: bool = False
    neutralise: bool = False
    max_atoms: int = 1000

    def __call__(self, molecule: Any) -> str:
        from rdkit import Chem, rdBase

        with rdBase.BlockLogs():
            parsed = self._parse(molecule) if isinstance(molecule, str) else self._accept(molecule)
            if parsed.GetNumAtoms() == 0:
                raise DataError("it has no atoms")
            if parsed.GetNumHeavyAtoms() > self.max_atoms:
                raise DataError(self._too_large(parsed.GetNumHeavyAtoms()))
            changed = self._change(parsed)
            smiles = Chem.MolToSmiles(changed)
            if "*" in smiles:
                raise DataError("it has an unknown atom (*): expected a complete molecule")
            if (changed is not parsed or not isinstance(molecule, str)) and Chem.MolFromSmiles(smiles) is None:
                raise DataError("RDKit cannot read its canonical SMILES back")
            return smiles

    def _parse(self, text: str) -> Any:
        from rdkit import Chem

        words = text.strip().split(maxsplit=1)
        if text.strip().lower() in MISSING:
            raise DataError("there is no SMILES")
        core = words[0]
        if not core.isascii():
            raise DataError(f"a SMILES has no character {next(c for c in core if not c.isascii())!a}")
        atoms = len(ATOM.findall(core)) if len(core) > self.max_atoms else 0
        if atoms > self.max_atoms:
            raise DataError(self._too_large(atoms))
        if len(core) > 50 * self.max_atoms:
            raise DataError(f"its text has {len(core)} characters, too long for {self.max_atoms} atoms")
        # a name after the SMILES is dropped, a CXSMILES extension belongs to the structure
        full = " ".join(words) if len(words) == 2 and words[1].startswith("|") and words[1].isascii() else core
        parsed = Chem.MolFromSmiles(full)
        if parsed is None:
            raise DataError(self._problem(full))
        return parsed

    def _accept(self, molecule: Any) -> Any:
        from rdkit import Chem

        if molecule is None or (isinstance(molecule, float) and molecule != molecule):
            raise DataError("there is no readable structure")
        if not isinstance(molecule, Chem.Mol):
            raise DataError(f"expected a SMILES string or an RDKit molecule, got {type(molecule).__name__}")
        if molecule.GetNumHeavyAtoms() > self.max_atoms:
            raise DataError(self._too_large(molecule.GetNumHeavyAtoms()))
        try:
            copy = Chem.Mol(molecule)
            Chem.SanitizeMol(copy)
            return Chem.RemoveHs(copy)
        except (ValueError, RuntimeError) as error:
            raise DataError(_first_line(error)) from None

    def _change(self, molecule: Any) -> Any:
        from rdkit.Chem.MolStandardize import rdMolStandardize

        try:
            if self.cleanup:
                molecule = rdMolStandardize.Cleanup(molecule)
            if self.largest_fragment:
                molecule = rdMolStandardize.LargestFragmentChooser(preferOrganic=True).choose(molecule)
            if self.neutralise:
                molecule = rdMolStandardize.Uncharger().uncharge(molecule)
        except (ValueError, RuntimeError) as error:
            raise DataError(f"standardisation failed: {_first_line(error)}") from None
        return molecule

    def _too_large(self, atoms: int) -> str:
        return f"it has {atoms} atoms, more than max_atoms={self.max_atoms}"

    @staticmethod
    def _problem(text: str) -> str:
        from rdkit import Chem

        try:
            loose = Chem.MolFromSmiles(text, sanitize=False)
            problems = Chem.DetectChemistryProblems(loose) if loose is not None else ()
        except (ValueError, RuntimeError):
            problems = ()
        return _first_line(problems[0].Message()) if problems else "RDKit cannot parse the SMILES"


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def standardise(molecule: Any, **options: Any) -> str:
    """Canonical SMILES of a SMILES string or RDKit molecule; options are those of `Standardiser`.

    Raises: DataError with the reason of refusal.
    """
    return Standardiser(**options)(molecule)


def scaffold(smiles: str) -> str:
    """Bemis-Murcko scaffold as SMILES, without stereochemistry; empty for a molecule without rings.

    Reference: Bemis and Murcko, J. Med. Chem. 1996, doi:10.1021/jm9602928
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem.Scaffolds import MurckoScaffold

    with rdBase.BlockLogs():
        try:
            return MurckoScaffold.MurckoScaffoldSmiles(mol=Chem.MolFromSmiles(smiles), includeChirality=False)
        except (ValueError, RuntimeError, TypeError):
            # a scaffold RDKit cannot write is a group of its own: it can then not leak between parts
            return smiles
