"""Our own search: several ways to write a candidate, used as often as they help, and a model that picks what is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tasks.molecules.latent import Space
from tasks.molecules.optimisers.base import Draws, parents, readable
from tasks.molecules.optimisers.graph import children
from tasks.molecules.search import Search
from tasks.molecules.surrogate import Surrogate

Writer = Callable[[list[str], int], list[str]]


def writers(space: Space, draws: Draws, *, temperature: float, noise: tuple[float, float]) -> dict[str, Writer]:
    """Ways to write molecules near some others: drawn by the decoder, decoded from noise, mutated and crossed as graphs."""

    def sample(best: list[str], count: int) -> list[str]:
        # whole groups only: what the decoder writes is proposed, so nothing is written to be thrown away
        copies = max(1, count // len(best))
        some = [best[i] for i in draws.numpy.permutation(len(best))[: count // copies]]
        return space.neighbours(space.encode(some), copies, temperature=temperature, generator=draws.torch)

    def perturb(best: list[str], count: int) -> list[str]:
        codes = space.encode(best)[draws.numpy.integers(len(best), size=count)]
        return space.decode(codes.perturbed(1, noise, draws.torch))

    def graph(best: list[str], count: int) -> list[str]:
        return children(best, count, 0.5, draws.python)

    return {"sample": sample, "noise": perturb, "graph": graph}


@dataclass
class Bandit:
    """Which way to write is worth how much: successes and failures of each, older ones counting less and less."""

    ways: list[str]
    memory: float = 0.8
    record: dict[str, tuple[float, float]] = field(default_factory=dict)

    def share(self, usable: list[str], count: int, portion: int, rng: np.random.Generator) -> dict[str, int]:
        """`count` proposals in portions, each to the way that is best in a draw from the Beta posteriors."""
        found: dict[str, int] = {}
        for start in range(0, count, portion):
            drawn = {way: rng.beta(*(1 + x for x in self.record.get(way, (0.0, 0.0)))) for way in usable}
            best = max(drawn, key=lambda way: drawn[way])
            found[best] = found.get(best, 0) + min(portion, count - start)
        return found

    def learn(self, counts: dict[str, int], successes: dict[str, int]) -> None:
        """What a generation's proposals came to."""
        for way in self.ways:
            won, lost = (self.memory * x for x in self.record.get(way, (0.0, 0.0)))
            some = successes.get(way, 0)
            self.record[way] = (won + some, lost + counts.get(way, 0) - some)


@dataclass(frozen=True)
class Guided:
    """Evolution with several ways to write a candidate and a model of the objective that picks among what was written.

    Each generation writes molecules near the best `parents`: drawn by the decoder, decoded from noise on their codes, and
    as graphs, each way as often as it led to new parents (Thompson sampling of a Beta–Bernoulli bandit). As many are
    written as the budget of proposals allows for each call that is left; of the feasible ones `asked` are sent, those with
    the best draw from the posterior of a Gaussian process (`Surrogate`). With as many calls as proposals all are sent.
    Starts that the space cannot read are searched as graphs.
    """

    parents: int = 10
    batch: int = 32
    asked: int = 10
    temperature: float = 1.0
    noise: tuple[float, float] = (0.6, 1.1)
    features: tuple[str, ...] = ("descriptors", "morgan")
    name = "guided"
    latent = False

    def __call__(self, search: Search, space: Space, draws: Draws) -> None:
        ways = writers(space, draws, temperature=self.temperature, noise=self.noise)
        bandit, model = Bandit(list(ways)), Surrogate(search.objective, self.features)
        while True:
            best = parents(search, self.parents)
            read = readable(space, best)
            near = {way: best if way == "graph" else read for way in ways}
            usable = [way for way in ways if near[way]]
            calls, proposals = search.left
            spare = proposals / max(calls, 1)  # proposals for each call
            count = int(np.clip(spare * self.asked, self.batch, 20 * self.asked))
            shares = bandit.share(usable, count, 8, draws.numpy)
            origin: dict[str, str] = {}
            for way, some in shares.items():
                found = search.look(ways[way](near[way], some))
                shares[way] = len(found)
                for name in found:
                    if name is not None and search.worthy(name):
                        origin.setdefault(name, way)
            search.ask(self.promising(search, model, origin, max(self.asked, round(count / spare)), draws))
            top = set(parents(search, self.parents))
            bandit.learn(shares, {way: sum(origin.get(name) == way for name in top) for way in ways})

    @staticmethod
    def promising(
        search: Search, model: Surrogate, origin: dict[str, str], quota: int, draws: Draws
    ) -> dict[str, str]:  # fmt: skip
        """The `quota` molecules that look best to the model, best first."""
        if len(origin) <= quota or not model.fit(search):
            return dict(list(origin.items())[:quota])
        names = list(origin)
        measured = search.values()
        drawn = model.draw(search, names, draws.torch)
        worth = search.objective.fitness(np.concatenate([measured, drawn]))[len(measured) :]
        return {names[i]: origin[names[i]] for i in np.argsort(-worth, kind="stable")[:quota]}
