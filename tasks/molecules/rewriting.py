"""The same molecule written otherwise: other atom orders, explicit hydrogens, Kekulé bonds, other ring numbers, salts, tautomers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from random import Random
from typing import Any

from reprogram.errors import DataError
from tasks.labels import short
from tasks.molecules.standardise import standardise

KINDS = ("random", "hydrogens", "kekule", "rings")  # the very same molecule
OPTIONAL = ("salt", "tautomer")  # another form of the same compound
PATIENCE = 20  # draws in a row that bring nothing new before a kind is given up
SEEDS = 2**31 - 1
# brackets are one piece, so that the charges and isotopes in them are no ring numbers
PIECE = re.compile(r"(\[[^\]]*\])|%\((\d+)\)|%(\d\d)|(\d)")
AMINE = "[NX3;!$(N~[!#6;!#1]);!$(NC=[!#6]);!$(N-C#*);!$(Na);!$(N[c,n]);!$(NC=C);!$([N+])]"
ACID = "[CX3](=O)[OX2H1]"


def rewrites(smiles: str, count: int = 10, kinds: Sequence[str] = KINDS, seed: int = 0) -> list[str]:
    r"""At most `count` other SMILES of the same molecule, all different, none the text itself; kinds take turns.

    Each is read back and compared by its canonical SMILES; what does not come back as the same molecule is left out.
    Fewer come back where a molecule has no more (methane has one order of atoms, an alkane no rings). What a molecule comes
    to depends on itself and `seed` only.

    Args:
        kinds: "random", another order of the atoms; "hydrogens", every hydrogen as an atom or every atom with its count in
            brackets; "kekule", alternating bonds instead of aromatic atoms; "rings", other numbers for the ring closures.
            Of the last three the first one keeps the canonical order, later ones are shuffled. Options that change
            the form of a compound: "salt", ions or a counter-ion where there is an amine or an acid (the largest part,
            neutralised, stays the same); "tautomer" (RDKit's canonical tautomer stays the same).

    Reference: Bjerrum, "SMILES enumeration as data augmentation", 2017, arXiv:1703.07076; Ganeeva et al., "Lost in
    translation: chemical language models and the misunderstanding of molecule structures" (AMORE), EMNLP Findings 2024.
    Raises: DataError for what is no molecule, and for a kind that does not exist.
    """
    return [text for text, _ in drawn(smiles, count, kinds, seed)]


def drawn(smiles: str, count: int, kinds: Sequence[str], seed: int) -> list[tuple[str, str]]:
    """`rewrites`, each with its kind."""
    from rdkit import Chem, rdBase

    unknown = [kind for kind in kinds if kind not in FORMS]
    if unknown or not kinds or count < 0:
        raise DataError(
            f"expected kinds among {', '.join(FORMS)} and a count from 0, got {short(list(kinds))} and {count}"
        )
    name = standardise(smiles)
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(name)
        turns = {
            kind: islice(new(kind, mol, name, Random(f"{seed} {kind} {name}")), count) for kind in dict.fromkeys(kinds)
        }
        found = {smiles.strip(): ""}
        while turns and len(found) <= count:
            for kind in list(turns):
                text = next((text for text in turns[kind] if text not in found), None)
                if text is None:
                    del turns[kind]
                elif len(found) <= count:
                    found[text] = kind
    return list(found.items())[1:]


def new(kind: str, mol: Any, name: str, rng: Random) -> Iterator[str]:
    """Texts of one kind that are the same molecule, each once, until no more come."""
    identity = IDENTITY.get(kind, canonical)
    same, seen, failed = identity(name), {name}, 0
    if same is None:  # it does not survive its own comparison
        return
    for text in FORMS[kind](mol, rng):
        fresh = text not in seen
        seen.add(text)
        if fresh and identity(text) == same:
            failed = 0
            yield text
        else:
            failed += 1
            if failed == PATIENCE:
                return


def canonical(text: str) -> str | None:
    """Canonical SMILES, None for what cannot be read."""
    from rdkit import Chem

    mol = Chem.MolFromSmiles(text)
    return None if mol is None else Chem.MolToSmiles(mol)


def without_ions(text: str) -> str | None:
    """Canonical SMILES of the largest part, neutralised."""
    try:
        return standardise(text, largest_fragment=True, neutralise=True)
    except DataError:
        return None


def one_tautomer(text: str) -> str | None:
    """RDKit's canonical tautomer."""
    from rdkit import Chem

    mol = Chem.MolFromSmiles(text)
    return None if mol is None else Chem.MolToSmiles(tautomers().Canonicalize(mol))


IDENTITY: dict[str, Callable[[str], str | None]] = {"salt": without_ions, "tautomer": one_tautomer}


@lru_cache(maxsize=1)
def tautomers() -> Any:
    from rdkit.Chem.MolStandardize import rdMolStandardize

    found = rdMolStandardize.TautomerEnumerator()
    found.SetRemoveSp3Stereo(False)  # by default stereocentres beside a moving hydrogen are forgotten
    found.SetRemoveBondStereo(False)
    return found


def shuffled(mol: Any, rng: Random, **options: Any) -> str:
    """SMILES of a random order of the atoms: atoms are numbered anew, as RDKit's own option takes no seed."""
    from rdkit import Chem

    order = list(range(mol.GetNumAtoms()))
    rng.shuffle(order)
    return Chem.MolToSmiles(Chem.RenumberAtoms(mol, order), canonical=False, **options)


def other_orders(mol: Any, rng: Random) -> Iterator[str]:
    while True:
        yield shuffled(mol, rng)


def with_hydrogens(mol: Any, rng: Random) -> Iterator[str]:
    """All hydrogens as atoms, then in the brackets of their atoms, then both in turn in other orders."""
    from rdkit import Chem

    full = Chem.AddHs(mol)
    yield Chem.MolToSmiles(full)
    yield Chem.MolToSmiles(mol, allHsExplicit=True)
    while True:
        yield shuffled(full, rng)
        yield shuffled(mol, rng, allHsExplicit=True)


def kekulised(mol: Any, rng: Random) -> Iterator[str]:
    """Nothing where no atom is aromatic. RDKit's choice among the Kekulé forms follows the order of the atoms."""
    from rdkit import Chem

    if not any(atom.GetIsAromatic() for atom in mol.GetAtoms()):
        return
    plain = Chem.Mol(mol)
    Chem.Kekulize(plain, clearAromaticFlags=True)
    yield Chem.MolToSmiles(plain, kekuleSmiles=True)
    while True:
        order = list(range(mol.GetNumAtoms()))
        rng.shuffle(order)
        other = Chem.RenumberAtoms(mol, order)
        Chem.Kekulize(other, clearAromaticFlags=True)
        yield Chem.MolToSmiles(other, canonical=False, kekuleSmiles=True)


def renumbered(mol: Any, rng: Random) -> Iterator[str]:
    """Other ring numbers: small ones of one digit half of the time, else any up to 99. Nothing where there is no ring."""
    from rdkit import Chem

    text = Chem.MolToSmiles(mol)
    numbers = sorted({number_of(piece) for piece in PIECE.finditer(text) if not piece[1]})
    while numbers:
        highest = 9 if rng.random() < 0.5 and len(numbers) < 9 else 99
        if len(numbers) > highest:
            return
        chosen = dict(zip(numbers, rng.sample(range(1, highest + 1), len(numbers)), strict=True))
        yield PIECE.sub(lambda piece, to=chosen: piece[0] if piece[1] else written(to[number_of(piece)]), text)
        text = shuffled(mol, rng)
        numbers = sorted({number_of(piece) for piece in PIECE.finditer(text) if not piece[1]})


def number_of(piece: re.Match[str]) -> int:
    return int(piece[2] or piece[3] or piece[4])


def written(number: int) -> str:
    return str(number) if number < 10 else f"%{number}"


def salts(mol: Any, rng: Random) -> Iterator[str]:
    """An amine or an acid as its salt, with the ions apart or the other partner written whole."""
    from rdkit import Chem

    name, forms = Chem.MolToSmiles(mol), []
    for pattern, place, charge, partners in (
        (AMINE, 0, 1, ("[Cl-]", "[Br-]", "[I-]")), (ACID, 2, -1, ("[Na+]", "[K+]", "[Li+]")),
    ):  # fmt: skip
        for match in mol.GetSubstructMatches(Chem.MolFromSmarts(pattern)):
            ion = Chem.RWMol(mol)
            atom = ion.GetAtomWithIdx(match[place])
            atom.SetFormalCharge(charge)
            atom.SetNoImplicit(False)
            atom.SetNumExplicitHs(0)
            if Chem.SanitizeMol(ion, catchErrors=True) == Chem.SanitizeFlags.SANITIZE_NONE:
                forms += [f"{Chem.MolToSmiles(ion)}.{partner}" for partner in partners]
        if charge == 1 and forms:
            forms += [f"{name}.{partner}" for partner in ("Cl", "Br", "OS(=O)(=O)O")]
    rng.shuffle(forms)
    yield from forms


def tautomeric(mol: Any, rng: Random) -> Iterator[str]:
    from rdkit import Chem

    forms = sorted({Chem.MolToSmiles(form) for form in tautomers().Enumerate(mol)})
    rng.shuffle(forms)
    yield from forms


FORMS: dict[str, Callable[[Any, Random], Iterator[str]]] = {
    "random": other_orders, "hydrogens": with_hydrogens, "kekule": kekulised, "rings": renumbered, "salt": salts,
    "tautomer": tautomeric,
}  # fmt: skip
