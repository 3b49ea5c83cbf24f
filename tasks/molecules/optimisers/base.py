"""What every optimiser has: streams of random numbers from one seed, and parents that the space can read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from tasks.molecules.latent import Space, entry
from tasks.molecules.search import Search


class Draws:
    """Independent streams of one seed, one for each library that draws."""

    def __init__(self, seed: Sequence[int]):
        first, second, third = np.random.SeedSequence(list(seed)).spawn(3)
        self.numpy = np.random.default_rng(first)
        self.torch = torch.Generator().manual_seed(int(second.generate_state(1, np.uint64)[0] >> 1))
        self.python = random.Random(int(third.generate_state(1, np.uint64)[0]))


class Optimiser(Protocol):
    """`(search, space, draws)`: propose molecules to the search until it raises `Finished`.

    `latent` says whether it needs every start to be readable by the space.
    """

    name: str
    latent: bool

    def __call__(self, search: Search, space: Space, draws: Draws) -> None: ...


def readable(space: Space, smiles: Sequence[str]) -> list[str]:
    """The forms of these molecules that the space reads, without those that have none."""
    return [form for form, _ in (entry(space, one) for one in smiles) if form is not None]


def parents(search: Search, count: int) -> list[str]:
    """The best molecules so far; while none is feasible, those that fail the constraints least."""
    best = [smiles for _, smiles in search.ranked()[:count]]
    return best or sorted(search.known, key=lambda smiles: search.known[smiles].violation)[:count]
