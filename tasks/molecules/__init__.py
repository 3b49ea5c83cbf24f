"""Molecules: readers, standardisation, scaffold splits, drawings."""

from tasks.molecules.bundled import TaskInfo, available
from tasks.molecules.data import Molecules, from_molecules, load_task, read_molecules, resplit, scaffold_split
from tasks.molecules.draw import Drawing, draw
from tasks.molecules.standardise import Standardiser, scaffold, standardise
from tasks.splits import random_split

__all__ = [
    "Drawing",
    "Molecules",
    "Standardiser",
    "TaskInfo",
    "available",
    "draw",
    "from_molecules",
    "load_task",
    "random_split",
    "read_molecules",
    "resplit",
    "scaffold",
    "scaffold_split",
    "standardise",
]
