"""What a returned molecule must fulfil: each constraint says by how much a molecule fails it, 0 where it does not.

Constraints cost nothing: a molecule that fails one is never sent to an oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Protocol

from reprogram.errors import DataError
from tasks.labels import short
from tasks.molecules.molecule import Molecule
from tasks.molecules.properties import PROPERTIES


class Constraint(Protocol):
    """`violation` is 0 where the molecule is fine, larger the further off; `own` says whether it speaks of the start."""

    own: bool

    def violation(self, molecule: Molecule, start: Molecule) -> float: ...


@dataclass(frozen=True)
class Similarity:
    """Tanimoto similarity to the start of at least `least` (Morgan fingerprints, radius 2, 2048 bits)."""

    least: float = 0.4
    own: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise DataError(f"expected a similarity from 0 to 1, got {self.least}")

    def violation(self, molecule: Molecule, start: Molecule) -> float:
        return max(0.0, self.least - molecule.similarity(start))


@dataclass(frozen=True)
class Range:
    """A property of `tasks.molecules.properties` from `low` to `high`, in its own units."""

    name: str
    low: float = float("-inf")
    high: float = float("inf")
    own: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.name not in PROPERTIES:
            raise DataError(f"expected a property among {', '.join(PROPERTIES)}, got {short(self.name)}")
        if not self.low <= self.high:
            raise DataError(f"expected a range with low <= high for {self.name}, got {self.low} to {self.high}")

    def violation(self, molecule: Molecule, start: Molecule) -> float:
        value = PROPERTIES[self.name](molecule.mol)
        return max(0.0, self.low - value, value - self.high)


@dataclass(frozen=True)
class Substructure:
    """A SMARTS pattern that must be kept, or with `forbidden` must be absent.

    Raises: DataError for a pattern that RDKit cannot read.
    """

    smarts: str
    forbidden: bool = False
    own: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        _ = self.pattern

    @cached_property
    def pattern(self) -> Any:
        from rdkit import Chem, rdBase

        with rdBase.BlockLogs():
            pattern = Chem.MolFromSmarts(self.smarts)
        if pattern is None:
            raise DataError(f"expected a SMARTS pattern, got {short(self.smarts)}")
        return pattern

    def violation(self, molecule: Molecule, start: Molecule) -> float:
        return float(molecule.mol.HasSubstructMatch(self.pattern) == self.forbidden)


@lru_cache(maxsize=4)
def catalogue(names: tuple[str, ...]) -> Any:
    """RDKit's filter catalogue of those names."""
    from rdkit.Chem import FilterCatalog

    known = FilterCatalog.FilterCatalogParams.FilterCatalogs
    options = FilterCatalog.FilterCatalogParams()
    for name in names:
        if name.upper() not in known.names:
            raise DataError(f"expected structural alerts among {', '.join(known.names)}, got {short(name)}")
        options.AddCatalog(known.names[name.upper()])
    return FilterCatalog.FilterCatalog(options)


@dataclass(frozen=True)
class Alerts:
    """No structural alert of RDKit's catalogues beyond those of the start.

    Reference: Baell & Holloway, Journal of Medicinal Chemistry 2010 (PAINS); Brenk et al., ChemMedChem 2008.
    """

    catalogues: tuple[str, ...] = ("PAINS", "BRENK")
    own: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        catalogue(self.catalogues)

    def found(self, molecule: Molecule) -> set[str]:
        """Descriptions of the alerts in a molecule."""
        return {entry.GetDescription() for entry in catalogue(self.catalogues).GetMatches(molecule.mol)}

    def violation(self, molecule: Molecule, start: Molecule) -> float:
        alerts = self.found(molecule)
        return float(len(alerts - self.found(start))) if alerts else 0.0


def total(constraints: Sequence[Constraint], molecule: Molecule, start: Molecule) -> float:
    """Sum of the violations; it stops at nothing, so that it stays comparable between molecules."""
    return sum(constraint.violation(molecule, start) for constraint in constraints)
