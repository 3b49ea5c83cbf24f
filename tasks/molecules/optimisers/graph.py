"""The genetic algorithm on molecular graphs: no model at all, and hard to beat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

from tasks.molecules.latent import Space
from tasks.molecules.optimisers.base import Draws, parents
from tasks.molecules.search import Search

SIZE = (39.15, 3.5)  # heavy atoms, mean and deviation over the molecules that Jensen's children were kept like


def children(best: list[str], count: int, mutation: float, rng: Random) -> list[str]:
    """`count` molecules: two parents crossed, then mutated with probability `mutation`; one parent alone is mutated.

    A failed operation gives an empty text, and so does a child larger than a size drawn from Jensen's law: the operators,
    those of the library `mol_ga`, have none, and a child that may grow for ever soon does. Parents beyond that law may have
    children that are no larger than they are.
    """
    found = []
    with silenced():
        from mol_ga.graph_ga.gen_candidates import mutate, reproduce

        for _ in range(count):
            first, second = rng.choice(best), rng.choice(best)
            child = mutate(first, rng) if first == second else reproduce(first, second, mutation, rng)
            found.append(child if child and fits(heavy_atoms(child), (first, second), rng) else "")
    return found


@contextmanager
def silenced() -> Iterator[None]:
    """No messages of RDKit inside, and afterwards those that there were before: `mol_ga` turns them off for good."""
    from rdkit import rdBase

    spoke = [
        log for log, _, status in (line.partition(":") for line in rdBase.LogStatus().split()) if status == "enabled"
    ]
    try:
        with rdBase.BlockLogs():
            yield
    finally:
        for log in spoke:
            rdBase.EnableLog(log)


def fits(size: int, own: tuple[str, str], rng: Random) -> bool:
    """Whether a child of so many heavy atoms is kept beside its own parents."""
    return size < rng.gauss(*SIZE) or SIZE[0] < size <= max(map(heavy_atoms, own))


def heavy_atoms(smiles: str) -> int:
    from rdkit import Chem

    return int(Chem.MolFromSmiles(smiles).GetNumHeavyAtoms())


@dataclass(frozen=True)
class GraphGA:
    """Crossover and mutation of the best molecules so far.

    Reference: Jensen, "A graph-based genetic algorithm and generative model/Monte Carlo tree search for the exploration of
    chemical space", Chemical Science 2019; operators by `mol_ga` (Tripp & Hernández-Lobato 2023, arXiv:2310.09267).
    """

    parents: int = 20
    children: int = 48
    mutation: float = 0.5
    name = "graph-ga"
    latent = False

    def __call__(self, search: Search, space: Space, draws: Draws) -> None:
        while True:
            best = parents(search, self.parents)
            search(children(best, self.children, self.mutation, draws.python), "graph")
