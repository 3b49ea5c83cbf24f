"""The nearest other molecules: one atom, bond or small fragment changed, each valid, the most similar first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from reprogram.errors import DataError
from tasks.labels import short
from tasks.molecules.molecule import Molecule, parsed
from tasks.molecules.standardise import standardise

ELEMENTS = (6, 7, 8, 9, 16, 17, 35)  # C N O F S Cl Br
AROMATIC = (6, 7, 8, 16)
CROWDED = "[$([#16;v3,v4,v5,v6;!$([#16]=O)]),$([Cl,Br,I;v3,v5,v7])]"
FRAGMENTS = ("OC", "C#N", "C(F)(F)F", "N(C)C", "C(C)C", "C(=O)C", "C(=O)O", "S(C)(=O)=O", "[N+](=O)[O-]")


@dataclass(frozen=True)
class Analogue:
    """Another molecule, how alike it is (Tanimoto of Morgan fingerprints, 0 to 1), and which edit made it."""

    smiles: str
    similarity: float
    edit: str


def analogues(
    smiles: str, count: int | None = None, *, edits: Sequence[str] | None = None, least: float = 0.0
) -> list[Analogue]:
    """Every valid molecule one edit away, the most similar first; at most `count`, of at least `least` similarity.

    Each is sanitised, read back from its canonical SMILES, in one piece, without radicals or crowded atoms that the start has not. An
    analogue is another molecule: its true value may differ, so a changed prediction is a question, not yet an error.

    Args:
        edits: of "element" (an atom becomes another), "bond" (single, double, triple), "add" (a hydrogen becomes an atom),
            "remove" (an atom with one neighbour), "fragment" (a hydrogen, or an atom with one neighbour, becomes a group).

    Raises: DataError for what is no molecule, or several, and for an edit that does not exist.
    """
    from rdkit import Chem, rdBase

    chosen = tuple(EDITS) if edits is None else tuple(edits)
    if any(edit not in EDITS for edit in chosen):
        raise DataError(f"expected edits among {', '.join(EDITS)}, got {short(list(chosen))}")
    start = parsed(standardise(smiles))
    if start is None:
        raise DataError(f"expected one molecule to edit, got {short(smiles)}; drop counter-ions first")
    found: dict[str, Analogue] = {}
    odd = oddities(start.mol)
    with rdBase.BlockLogs():
        plain = Chem.Mol(start.mol)
        Chem.Kekulize(plain, clearAromaticFlags=True)
        for edit in chosen:
            for changed in EDITS[edit](start.mol if edit == "element" else plain):
                other = finished(changed)
                if other is None or other == start or other.smiles in found or oddities(other.mol) > odd:
                    continue
                found[other.smiles] = Analogue(other.smiles, start.similarity(other), edit)
    kept = sorted((one for one in found.values() if one.similarity >= least), key=lambda a: (-a.similarity, a.smiles))
    return kept[:count]


def finished(changed: Any) -> Molecule | None:
    """A sanitised molecule that RDKit reads back, or None."""
    from rdkit import Chem

    if Chem.SanitizeMol(changed, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
        return None
    # an edit may end or make a stereocentre; what is left of the old marks must fit
    Chem.AssignStereochemistry(changed, cleanIt=True, force=True)
    return parsed(Chem.MolToSmiles(changed))


def oddities(mol: Any) -> int:
    """Radical electrons, and atoms with more bonds than they usually have, which RDKit lets pass."""
    from rdkit import Chem

    radicals = sum(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())
    return radicals + len(mol.GetSubstructMatches(Chem.MolFromSmarts(CROWDED)))


def free(atom: Any) -> bool:
    """Whether a hydrogen of this atom may be replaced."""
    return atom.GetTotalNumHs() > 0


def relaxed(atom: Any) -> None:
    """Let RDKit count the hydrogens anew."""
    atom.SetNoImplicit(False)
    atom.SetNumExplicitHs(0)


def elements(mol: Any) -> Iterator[Any]:
    """Neutral atoms become another element; in an aromatic ring only such as can be aromatic."""
    from rdkit import Chem

    for atom in mol.GetAtoms():
        if atom.GetFormalCharge() or atom.GetAtomicNum() == 1:
            continue
        for number in AROMATIC if atom.GetIsAromatic() else ELEMENTS:
            if number != atom.GetAtomicNum():
                changed = Chem.RWMol(mol)
                other = changed.GetAtomWithIdx(atom.GetIdx())
                other.SetAtomicNum(number)
                other.SetIsotope(0)
                relaxed(other)
                yield changed


def bonds(mol: Any) -> Iterator[Any]:
    """Another order for every bond that is not aromatic."""
    from rdkit import Chem

    orders = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)
    for bond in mol.GetBonds():
        for order in orders:
            if order != bond.GetBondType():
                changed = Chem.RWMol(mol)
                one = changed.GetBondWithIdx(bond.GetIdx())
                one.SetBondType(order)
                one.SetStereo(Chem.BondStereo.STEREONONE)
                for atom in (one.GetBeginAtom(), one.GetEndAtom()):
                    relaxed(atom)
                yield changed


def additions(mol: Any) -> Iterator[Any]:
    """A hydrogen becomes an atom."""
    from rdkit import Chem

    for atom in filter(free, mol.GetAtoms()):
        for number in ELEMENTS:
            changed = Chem.RWMol(mol)
            relaxed(changed.GetAtomWithIdx(atom.GetIdx()))
            place = changed.AddAtom(Chem.Atom(number))
            changed.AddBond(atom.GetIdx(), place, Chem.BondType.SINGLE)
            yield changed


def removals(mol: Any) -> Iterator[Any]:
    """An atom with one neighbour becomes hydrogen."""
    from rdkit import Chem

    for atom in mol.GetAtoms():
        if atom.GetDegree() == 1:
            changed = Chem.RWMol(mol)
            relaxed(changed.GetAtomWithIdx(atom.GetNeighbors()[0].GetIdx()))
            changed.RemoveAtom(atom.GetIdx())
            yield changed


def fragments(mol: Any) -> Iterator[Any]:
    """A small group in the place of a hydrogen, or of an atom with one single bond."""
    from rdkit import Chem

    for text in FRAGMENTS:
        group = Chem.MolFromSmiles(text)
        for atom in mol.GetAtoms():
            if free(atom):
                yield joined(mol, group, atom.GetIdx(), None)
            if atom.GetDegree() == 1 and atom.GetBonds()[0].GetBondType() == Chem.BondType.SINGLE:
                yield joined(mol, group, atom.GetNeighbors()[0].GetIdx(), atom.GetIdx())


def joined(mol: Any, group: Any, place: int, gone: int | None) -> Any:
    """A group bonded by its first atom to the atom `place`; the atom `gone` leaves."""
    from rdkit import Chem

    changed = Chem.RWMol(Chem.CombineMols(mol, group))
    relaxed(changed.GetAtomWithIdx(place))
    changed.AddBond(place, mol.GetNumAtoms(), Chem.BondType.SINGLE)
    if gone is not None:
        changed.RemoveAtom(gone)
    return changed


EDITS: dict[str, Callable[[Any], Iterator[Any]]] = {
    "element": elements, "bond": bonds, "add": additions, "remove": removals, "fragment": fragments,
}  # fmt: skip
