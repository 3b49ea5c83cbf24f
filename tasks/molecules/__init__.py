"""Molecules: standardisation, scaffold splits, drawings, optimisation."""

from tasks.data import load_task
from tasks.molecules.constraints import Alerts, Range, Similarity, Substructure
from tasks.molecules.data import from_molecules, read_molecules, resplit, scaffold_split
from tasks.molecules.draw import Drawing, draw
from tasks.molecules.objective import Lexicographic, Objective, Pareto, Weighted
from tasks.molecules.optimisation_result import OptimisationResult
from tasks.molecules.optimize import optimize
from tasks.molecules.oracles import Oracle, oracle
from tasks.molecules.standardise import Standardiser, scaffold, standardise

__all__ = [
    "Alerts",
    "Drawing",
    "Lexicographic",
    "Objective",
    "OptimisationResult",
    "Oracle",
    "Pareto",
    "Range",
    "Similarity",
    "Standardiser",
    "Substructure",
    "Weighted",
    "draw",
    "from_molecules",
    "load_task",
    "optimize",
    "oracle",
    "read_molecules",
    "resplit",
    "scaffold",
    "scaffold_split",
    "standardise",
]
