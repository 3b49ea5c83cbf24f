"""Molecules: standardisation, scaffold splits, drawings."""

from tasks.data import load_task
from tasks.molecules.data import from_molecules, read_molecules, resplit, scaffold_split
from tasks.molecules.draw import Drawing, draw
from tasks.molecules.standardise import Standardiser, scaffold, standardise

__all__ = [
    "Drawing",
    "Standardiser",
    "draw",
    "from_molecules",
    "load_task",
    "read_molecules",
    "resplit",
    "scaffold",
    "scaffold_split",
    "standardise",
]
