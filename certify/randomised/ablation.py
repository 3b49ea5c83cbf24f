r"""Randomised ablation: a vote over inputs of which all but a few random places are hidden, proof against changes of few places.

Of d places a random set of k is kept, every other one is replaced by NULL. Two inputs that differ in r places look
different to the model only if one of these r is kept, so the share of votes of every class moves by at most

    $\Delta = 1 - \binom{d-r}{k} / \binom{d}{k}$.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor, nn

from adversarial.streams import Streams
from adversarial.threat import Ball
from certify.certificate import Certificate
from certify.checks import check_labels
from certify.engine.tracing import check_still
from certify.errors import CertifyError
from certify.randomised.votes import BoundsOf, check_bounds, check_sampling, counted, shares

SLACK = 1e-12  # of a difference of shares, for what floating point rounds
Encode = Callable[[Tensor, Tensor], Tensor]  # inputs (b, …) and what is kept, like one channel of them -> inputs


def doubled(x: Tensor, kept: Tensor) -> Tensor:
    """Every channel v as two, (v, 1 - v) where it is kept, and (0, 0), which no value in [0, 1] gives, where it is not.

    (B, C, …) becomes (B, 2C, …), a table (B, D) becomes (B, 2D).
    """
    return torch.cat([torch.where(kept, x, 0), torch.where(kept, 1 - x, 0)], 1)


@dataclass(frozen=True)
class Filled:
    """One number in the place of NULL, for a model that takes inputs of their own shape."""

    value: float = 0.0

    def __call__(self, x: Tensor, kept: Tensor) -> Tensor:
        return torch.where(kept, x, self.value)


@dataclass(frozen=True)
class Ablation:
    r"""Radius in places that may hold anything, from votes over inputs of which `keep` random places are seen.

    A place is a feature of a table (B, D), else everything at one position (B, C, positions…): an l0 ball of eps features
    reaches at most eps positions. With a lower bound p of the share of the class that `n0` draws named, the radius
    is the largest r with $p - \Delta(r) > 1/2$, worked out in whole numbers. `bounds="both"` also bounds the shares of
    all other classes from above by q (half of alpha each side) and asks for $p - q > 2\Delta(r)$, which pays where
    the votes of the others are spread.

    Args:
        threat: a `Ball` of norm "l0"; its bounds and mask may only shrink the set, which stays covered.
        keep: places that are kept, k; 45 of 784 for MNIST and 75 of 1024 for CIFAR-10 in the paper.
        n0, n: draws that name the class, and that count it.
        alpha: probability of a wrong statement about one input.
        encode: how a hidden place looks; the model must take the result. Train it on `ablated` inputs.

    Reference: Levine & Feizi, "Robustness certificates for sparse adversarial attacks by randomized ablation", AAAI
    2020, arXiv:1911.09272.
    Differs from the paper: `bounds="both"` takes Clopper–Pearson bounds of all classes at once (Bonferroni).
    """

    threat: Ball
    keep: int
    n0: int = 1000
    n: int = 10_000
    alpha: float = 0.05
    bounds: BoundsOf = "top"
    encode: Encode = doubled
    seed: int = 0

    def __post_init__(self) -> None:
        check_sampling(self.alpha, self.n0, self.n)
        if (norm := getattr(self.threat, "norm", type(self.threat).__name__)) != "l0":
            raise CertifyError(f"expected an l0 ball, got {norm}; randomised ablation covers changed places")
        check_bounds(self.bounds, self.n, self.alpha)
        if self.keep < 1:
            raise CertifyError(f"expected at least one place to keep, got {self.keep}")

    @torch.no_grad()
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Certificates for inputs x (B, …) with labels y (B,); radius is a whole number of places.

        Raises: CertifyError for labels that are none, and for draws too few to certify anything.
        """
        check_labels(x, y)
        check_still(model)
        region, streams = self.threat.around(x), Streams(x, self.seed)

        def draw(rows: Tensor, draws: int) -> Tensor:
            return self.drawn(region.anchor[rows], streams, rows, draws)  # what the threat lies around

        named = counted(model, y, draw, self.n0, batch_size).argmax(1)
        counts = counted(model, y, draw, self.n, batch_size)
        low, high = shares(counts, named, self.n, self.alpha, self.bounds)
        places = math.prod(self.positions(x))
        radius = torch.tensor(
            [-1 if p - q <= SLACK else reach(p - q - SLACK, places, self.keep) for p, q in zip(low.tolist(), high.tolist(), strict=True)],
            device=x.device,
        )  # fmt: skip
        prediction = torch.where(radius >= 0, named, -1)
        certified = (prediction == y) & (radius >= region.eps)
        radius = torch.where(prediction == y, radius, 0).double()
        return Certificate(
            prediction, certified, radius, torch.full_like(radius, torch.nan), self.threat, type(self).__name__,
            "probabilistic", 1 - self.alpha,
        )  # fmt: skip

    def drawn(self, x: Tensor, streams: Streams, rows: Tensor, draws: int) -> Tensor:
        """So many random ablations of each of these inputs, (b·draws, …)."""
        shape = self.positions(x)
        places = math.prod(shape)
        if self.keep >= places:
            raise CertifyError(f"expected fewer places to keep than the {places} there are, got {self.keep}")
        order = streams.bits(rows, draws * places).view(-1, places)
        kept = torch.zeros(order.shape, dtype=torch.bool, device=x.device)
        kept.scatter_(1, order.topk(self.keep, 1).indices, True)
        kept = kept.view(-1, *(() if x.ndim == 2 else (1,)), *shape)
        return self.encode(x.repeat_interleave(draws, 0), kept)

    def ablated(self, x: Tensor, seed: int) -> Tensor:
        """One random ablation of each input: what the model is trained on, with another seed for each epoch."""
        return self.drawn(x, Streams(x, seed), torch.arange(len(x), device=x.device), 1)

    @staticmethod
    def positions(x: Tensor) -> torch.Size:
        """Shape of the places of one input."""
        return x.shape[1:] if x.ndim == 2 else x.shape[2:]


@lru_cache(maxsize=4096)
def reach(gap: float, places: int, keep: int) -> int:
    r"""The largest r with $2\Delta(r)$ below `gap`, by whole numbers alone; 0 is below every gap above 0."""
    share = 1 - Fraction(gap) / 2  # Δ < gap / 2 where C(d - r, k) / C(d, k) is above this
    whole = math.comb(places, keep)
    low, high = 0, places
    while low < high:
        middle = (low + high + 1) // 2
        if math.comb(places - middle, keep) > share * whole:
            low = middle
        else:
            high = middle - 1
    return low
