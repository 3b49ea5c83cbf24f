"""Properties of a molecule that RDKit computes, and the published objectives made of them; larger is better or not.

Legend: every property takes an RDKit molecule and returns a number; a score lies between 0 and 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

Property = Callable[[Any], float]


def qed(mol: Any) -> float:
    """Quantitative estimate of drug-likeness, 0 to 1 (Bickerton et al., Nature Chemistry 2012)."""
    from rdkit.Chem import QED

    return float(QED.qed(mol))


def logp(mol: Any) -> float:
    """Crippen's logP, octanol–water."""
    from rdkit.Chem import Crippen

    return float(Crippen.MolLogP(mol))


@lru_cache(maxsize=1)
def scorer() -> Any:
    """RDKit's own synthetic-accessibility script, which it installs as a contribution beside the package."""
    from rdkit.Chem import RDConfig

    place = str(Path(RDConfig.RDContribDir) / "SA_Score")
    sys.path.append(place)
    try:
        import sascorer
    finally:
        sys.path.remove(place)
    return sascorer


def sa(mol: Any) -> float:
    """Synthetic accessibility, 1 easy to 10 hard (Ertl & Schuffenhauer, Journal of Cheminformatics 2009)."""
    return float(scorer().calculateScore(mol))


def penalised_logp(mol: Any) -> float:
    """Crippen's logP minus synthetic accessibility, as QMO measures it (no term for large rings).

    Greasy chains raise it without end: a benchmark, no goal.
    """
    return logp(mol) - sa(mol)


def weight(mol: Any) -> float:
    """Average molecular weight, g/mol."""
    from rdkit.Chem import Descriptors

    return float(Descriptors.MolWt(mol))


def tpsa(mol: Any) -> float:
    """Topological polar surface area, Å²."""
    from rdkit.Chem import rdMolDescriptors

    return float(rdMolDescriptors.CalcTPSA(mol))


def aromatic_rings(mol: Any) -> float:
    from rdkit.Chem import rdMolDescriptors

    return float(rdMolDescriptors.CalcNumAromaticRings(mol))


def rings(mol: Any) -> float:
    from rdkit.Chem import rdMolDescriptors

    return float(rdMolDescriptors.CalcNumRings(mol))


def heavy(mol: Any) -> float:
    """Atoms that are not hydrogen."""
    return float(mol.GetNumHeavyAtoms())


def atoms(symbol: str) -> Property:
    """How many atoms of an element, hydrogens included."""

    def count(mol: Any) -> float:
        if symbol == "H":
            return float(sum(atom.GetTotalNumHs() for atom in mol.GetAtoms()))
        return float(sum(atom.GetSymbol() == symbol for atom in mol.GetAtoms()))

    return count


def all_atoms(mol: Any) -> float:
    return float(mol.GetNumAtoms() + sum(atom.GetTotalNumHs() for atom in mol.GetAtoms()))


# ---- how a number becomes a score


def bell(of: Property, centre: float, width: float) -> Property:
    """1 at the centre, falling like a Gaussian on both sides."""
    return lambda mol: float(np.exp(-0.5 * ((of(mol) - centre) / width) ** 2))


def above(of: Property, bound: float, width: float) -> Property:
    """1 from the bound upwards, half a Gaussian below."""
    return lambda mol: float(np.exp(-0.5 * (min(of(mol) - bound, 0.0) / width) ** 2))


def below(of: Property, bound: float, width: float) -> Property:
    """1 up to the bound, half a Gaussian above."""
    return lambda mol: float(np.exp(-0.5 * (max(of(mol) - bound, 0.0) / width) ** 2))


def up_to(of: Property, bound: float) -> Property:
    """In proportion up to the bound, 1 from there."""
    return lambda mol: min(of(mol) / bound, 1.0)


def geometric(*scores: Property) -> Property:
    """Geometric mean: one zero spoils all."""
    return lambda mol: float(np.prod([score(mol) for score in scores]) ** (1 / len(scores)))


def arithmetic(*scores: Property) -> Property:
    return lambda mol: float(np.mean([score(mol) for score in scores]))


# ---- GuacaMol's objectives that need nothing but RDKit


@lru_cache(maxsize=8)
def counted(kind: str) -> Any:
    """Unfolded count fingerprints by their usual name."""
    from rdkit.Chem import rdFingerprintGenerator as make

    if kind == "AP":
        return make.GetAtomPairGenerator(maxDistance=10)
    options = {"atomInvariantsGenerator": make.GetMorganFeatureAtomInvGen()} if kind.startswith("F") else {}
    return make.GetMorganGenerator(radius=int(kind[-1]) // 2, **options)


def like(smiles: str, kind: str = "ECFP4") -> Property:
    """Tanimoto similarity of counts to a molecule; `kind` is ECFP4, ECFP6, FCFP4 or AP."""
    from rdkit import Chem, DataStructs

    target = counted(kind).GetSparseCountFingerprint(Chem.MolFromSmiles(smiles))
    return lambda mol: float(DataStructs.TanimotoSimilarity(counted(kind).GetSparseCountFingerprint(mol), target))


def isomer(formula: Sequence[tuple[str, int]]) -> Property:
    """Nearness to a molecular formula: each element within 1 and all atoms within 2, geometric mean."""
    parts = [bell(atoms(symbol), count, 1.0) for symbol, count in formula]
    return geometric(*parts, bell(all_atoms, sum(count for _, count in formula), 2.0))


AMLODIPINE = r"Clc1ccccc1C2C(=C(/N/C(=C2/C(=O)OCC)COCCN)C)\C(=O)OC"
CAMPHOR, MENTHOL = "CC1(C)C2CCC1(C)C(=O)C2", "CC(C)C1CCC(C)CC1O"
CELECOXIB = "CC1=CC=C(C=C1)C1=CC(=NN1C1=CC=C(C=C1)S(N)(=O)=O)C(F)(F)F"
FEXOFENADINE = "CC(C)(C(=O)O)c1ccc(cc1)C(O)CCCN2CCC(CC2)C(O)(c3ccccc3)c4ccccc4"
OSIMERTINIB = "COc1cc(N(C)CCN(C)C)c(NC(=O)C=C)cc1Nc2nccc(n2)c3cn(C)c4ccccc34"
PERINDOPRIL = "O=C(OCC)C(NC(C(=O)N1C(C(=O)O)CC2CCCCC12)C)CCC"
SITAGLIPTIN = "Fc1cc(c(F)cc1F)CC(N)CC(=O)N3Cc2nnc(n2CC3)C(F)(F)F"
SILDENAFIL = "CCCC1=NN(C2=C1N=C(NC2=O)C3=C(C=CC(=C3)S(=O)(=O)N4CCN(CC4)C)OCC)C"
TADALAFIL = "O=C1N(CC(N2C1CC3=C(C2C4=CC5=C(OCO5)C=C4)NC6=C3C=CC=C6)=O)C"
ZALEPLON = "O=C(C)N(CC)C1=CC=CC(C2=CC=NC3=C(C=NN23)C#N)=C1"


def sitagliptin() -> Property:
    """Unlike sitagliptin, with its formula, logP and polar surface."""
    from rdkit import Chem

    own = Chem.MolFromSmiles(SITAGLIPTIN)
    return geometric(
        bell(like(SITAGLIPTIN), 0.0, 0.1), bell(logp, logp(own), 0.2), bell(tpsa, tpsa(own), 5.0),
        isomer((("C", 16), ("H", 15), ("F", 6), ("N", 5), ("O", 1))),
    )  # fmt: skip


def guacamol() -> dict[str, Callable[[], Property]]:
    """Objectives by name, made when asked for.

    Reference: Brown et al., "GuacaMol: Benchmarking Models for de Novo Molecular Design", 2019, arXiv:1811.09621; those
    that Gao et al., "Sample Efficiency Matters" (PMO), 2022, arXiv:2206.12411, take over and RDKit computes.
    """
    return {
        "amlodipine-mpo": lambda: geometric(like(AMLODIPINE), bell(rings, 3, 0.5)),
        "celecoxib-rediscovery": lambda: like(CELECOXIB),
        "fexofenadine-mpo": lambda: geometric(
            up_to(like(FEXOFENADINE, "AP"), 0.8), above(tpsa, 90, 10), below(logp, 4, 1)
        ),
        "isomers-c9h10n2o2pf2cl": lambda: isomer(
            (("C", 9), ("H", 10), ("N", 2), ("O", 2), ("P", 1), ("F", 2), ("Cl", 1))
        ),
        "median-1": lambda: geometric(like(CAMPHOR), like(MENTHOL)),
        "median-2": lambda: geometric(like(TADALAFIL, "ECFP6"), like(SILDENAFIL, "ECFP6")),
        "osimertinib-mpo": lambda: geometric(
            up_to(like(OSIMERTINIB, "FCFP4"), 0.8), below(like(OSIMERTINIB, "ECFP6"), 0.85, 0.1), above(tpsa, 100, 10),
            below(logp, 1, 1),
        ),
        "perindopril-mpo": lambda: geometric(like(PERINDOPRIL), bell(aromatic_rings, 2, 0.5)),
        "sitagliptin-mpo": sitagliptin,
        "zaleplon-mpo": lambda: geometric(like(ZALEPLON), isomer((("C", 19), ("H", 17), ("N", 3), ("O", 2)))),
    }  # fmt: skip


PROPERTIES: dict[str, Property] = {
    "qed": qed, "logp": logp, "plogp": penalised_logp, "sa": sa, "weight": weight, "tpsa": tpsa, "heavy": heavy,
}  # fmt: skip
