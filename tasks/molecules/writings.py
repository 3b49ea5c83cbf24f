"""All SMILES of a molecule and a model that reads them, as `certify.RewriteSmoothing` takes both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from certify.randomised.rewriting import Writings
from reprogram.errors import DataError
from reprogram.model import Reprogrammed
from tasks.molecules.rewriting import KINDS, OPTIONAL, rewrites
from tasks.molecules.standardise import standardise
from tasks.molecules.threats import logits, readable

VARIETY = 3  # the first text of some kinds is the same for every seed


def writings(kinds: Sequence[str] = KINDS) -> Writings:
    """All SMILES of a molecule, drawn by a random kind of `rewrites`; the canonical one where a kind has no other.

    Raises, when it is used: DataError for what is no molecule, and for a kind that does not exist.
    """
    chosen = tuple(kinds)
    other = [kind for kind in chosen if kind in OPTIONAL]
    if other:
        raise DataError(
            f"expected kinds that keep the molecule, got {other[0]}, another form of the compound; leave it out"
        )

    def rewrite(name: str, seed: int) -> str:
        rng = Random(seed)
        found = rewrites(name, VARIETY, (rng.choice(chosen),), rng.getrandbits(31))
        return rng.choice(found) if found else name

    return Writings(standardise, rewrite)


@dataclass(frozen=True)
class Readings:
    """A reprogrammed model as a function of SMILES: logits or values (n, T), NaN where it cannot read one."""

    model: Reprogrammed

    def __call__(self, texts: list[str]) -> Tensor:
        outputs, kept = readable(self.model, texts)
        found = torch.full((len(texts), self.model.mapping.outputs), torch.nan, dtype=torch.float64)
        found[kept] = logits(self.model.mapping.kind, torch.from_numpy(outputs).double())
        return found
