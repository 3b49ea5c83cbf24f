"""Ways to search for better molecules; each is a small dataclass called with a search, a space and its draws."""

from tasks.molecules.optimisers.base import Draws, Optimiser
from tasks.molecules.optimisers.graph import GraphGA
from tasks.molecules.optimisers.guided import Guided
from tasks.molecules.optimisers.latent import QMO, Evolution, LatentCMA, LatentEvolution, Sampling

METHODS: dict[str, Optimiser] = {
    method.name: method
    for method in (Guided(), Evolution(), GraphGA(), Sampling(), QMO(), LatentCMA(), LatentEvolution())
}

__all__ = [
    "METHODS", "QMO", "Draws", "Evolution", "GraphGA", "Guided", "LatentCMA", "LatentEvolution", "Optimiser", "Sampling",
]  # fmt: skip
