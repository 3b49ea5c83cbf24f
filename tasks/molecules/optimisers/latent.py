"""Searches in the space of a frozen encoder–decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from reprogram.gradient import sphere_estimate
from tasks.molecules.latent import Codes, Space
from tasks.molecules.optimisers.base import Draws, parents, readable
from tasks.molecules.search import Known, Search


@dataclass(frozen=True)
class Sampling:
    """Neighbours of the starts, drawn again and again: nothing is learned, so this is what a search has to beat."""

    temperature: float = 1.0
    batch: int = 48
    name = "sampling"
    latent = True

    def __call__(self, search: Search, space: Space, draws: Draws) -> None:
        codes = space.encode(readable(space, [molecule.smiles for molecule in search.starts]))
        while True:
            some = codes[draws.numpy.choice(len(codes), min(len(codes), self.batch), replace=False)]
            copies = max(1, self.batch // len(some))
            search(space.neighbours(some, copies, temperature=self.temperature, generator=draws.torch), "sample")


@dataclass(frozen=True)
class Evolution:
    """The best molecules so far are encoded, and neighbours are drawn of each: evolution with a decoder as mutation."""

    parents: int = 8
    children: int = 6
    temperature: float = 1.0
    name = "evolution"
    latent = True

    def __call__(self, search: Search, space: Space, draws: Draws) -> None:
        own = readable(space, [molecule.smiles for molecule in search.starts])
        while True:
            best = readable(space, parents(search, self.parents)) or own[: self.parents]
            copies = self.parents * self.children // len(best)
            found = space.neighbours(space.encode(best), copies, temperature=self.temperature, generator=draws.torch)
            search(found, "sample")


def losses(search: Search, found: list[Known], weight: float) -> torch.Tensor:
    """QMO's loss of each proposal: minus its fitness plus `weight` times its violation.

    What was not sent (no molecule, infeasible, or past the budget) takes the fitness of the worst start, which is that of
    its values alone: a start may be infeasible, and then whatever is feasible has to look better, not worse.
    """
    fitness = search.objective.fitness(search.values())
    worth = dict(zip((call.smiles for call in search.calls), fitness, strict=True))
    begun = [worth.get(molecule.smiles, -np.inf) for molecule in search.starts]
    worst = min((value for value in begun if np.isfinite(value)), default=0.0)
    values = []
    for known in found:
        own = worth.get(known.molecule.smiles, worst) if known.molecule else worst
        violation = min(known.violation, 1.0)  # no molecule: as far from feasible as can be
        values.append(-(own if np.isfinite(own) else worst) + weight * violation)
    return torch.tensor(values, dtype=torch.float32)


@dataclass(frozen=True)
class QMO:
    r"""Query-based molecule optimisation: zeroth-order descent of $-f + \lambda \max(0, \delta - sim)$ in the latent space.

    From a start's code z, `steps` times: the gradient estimated from `directions` random directions of length `radius`
    around z, and a step of Adam (or of its sign, as the authors later found sturdier); then again from the start.
    `radius` and `rate` are in standard deviations of the code: the usable window of ANNalog's memory is 0.75 to 1.

    Reference: Hoffman et al., "Optimizing molecules using efficient queries from property evaluations", Nature Machine
    Intelligence 2022, arXiv:2011.01921; sign descent: Lo & Chen, Digital Discovery 2023.
    Differs from the paper: the space is ANNalog's memory, not CDDD's 512 numbers; an infeasible molecule is not sent to
    the oracle, its loss is that of the start plus the hinge; every probe counts as a result, not only the iterate.
    """

    directions: int = 50
    steps: int = 20
    radius: float = 0.9
    rate: float = 0.3
    weight: float = 0.25
    descent: Literal["adam", "sign"] = "adam"
    name = "qmo"
    latent = True

    def __call__(self, search: Search, space: Space, draws: Draws) -> None:
        starts = readable(space, [molecule.smiles for molecule in search.starts])
        while True:
            self.descend(space.encode([starts[draws.numpy.integers(len(starts))]]), search, space, draws)

    def descend(self, code: Codes, search: Search, space: Space, draws: Draws) -> None:
        """One restart."""
        scale = code.scale
        z = torch.nn.Parameter(code.values[0].flatten().clone())
        optimizer = torch.optim.Adam([z], lr=self.rate * scale)

        def asked(points: torch.Tensor) -> torch.Tensor:
            return losses(search, search(space.decode(code.like(points)), "probe"), self.weight)

        for _ in range(self.steps):
            here = asked(z.detach()[None])[0]
            radius = self.radius * scale * z.numel() ** 0.5
            z.grad = sphere_estimate(asked, z.detach(), here, self.directions, radius, draws.torch)
            if self.descent == "adam":
                optimizer.step()
            else:
                z.data -= self.rate * scale * z.grad.sign()


@dataclass(frozen=True)
class LatentCMA:
    """The covariance matrix adaptation evolution strategy on a start's code, with a diagonal covariance.

    `sigma` is the first step in standard deviations of the code. By the library `cma`.
    Reference: Hansen, "The CMA Evolution Strategy: A Tutorial", 2016, arXiv:1604.00772.
    """

    popsize: int = 48
    sigma: float = 0.75
    weight: float = 0.25
    name = "cma-es"
    latent = True

    def __call__(self, search: Search, space: Space, draws: Draws) -> None:
        import cma

        starts = readable(space, [molecule.smiles for molecule in search.starts])
        while True:
            code = space.encode([starts[draws.numpy.integers(len(starts))]])
            options = {"verbose": -9, "CMA_diagonal": True, "popsize": self.popsize}
            options["seed"] = int(draws.numpy.integers(1, 2**31))
            strategy = cma.CMAEvolutionStrategy(
                code.values.flatten().double().numpy(), self.sigma * code.scale, options
            )
            while not strategy.stop():
                asked = strategy.ask()
                points = code.like(torch.from_numpy(np.stack(asked)).float())
                found = losses(search, search(space.decode(points), "cma-es"), self.weight)
                strategy.tell(asked, found.tolist())


@dataclass(frozen=True)
class LatentEvolution:
    """Noise on the codes of the best molecules so far, decoded greedily; `noise` in standard deviations of a code."""

    parents: int = 8
    children: int = 6
    noise: tuple[float, float] = (0.6, 1.1)
    name = "latent-evolution"
    latent = True

    def __call__(self, search: Search, space: Space, draws: Draws) -> None:
        own = readable(space, [molecule.smiles for molecule in search.starts])
        while True:
            best = readable(space, parents(search, self.parents)) or own[: self.parents]
            copies = self.parents * self.children // len(best)
            search(space.decode(space.encode(best).perturbed(copies, self.noise, draws.torch)), "noise")
