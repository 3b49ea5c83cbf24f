"""Random numbers of its own for every sample: what one draws does not depend on which others share its batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GOLDEN = -7046029254386353131  # 2^64 / golden ratio as a signed integer: SplitMix64's step between states
FIRST, SECOND = -4658895280553007687, -7723592293110705685  # its two multipliers


def mixed(z: Tensor) -> Tensor:
    """SplitMix64's output of a state: 64 bits, every one of which depends on every bit of `z`.

    Reference: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    z = (z ^ shifted(z, 30)) * FIRST  # int64 products wrap around, which is what is wanted
    z = (z ^ shifted(z, 27)) * SECOND
    return z ^ shifted(z, 31)


def shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros: torch's own shift of a negative number fills with ones."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


class Streams:
    """One stream of random numbers per sample, seeded by `seed` and the sample's own numbers.

    A row's n-th number is the same alone and in any batch, in any place of it. Equal rows have equal streams.
    """

    def __init__(self, x: Tensor, seed: int):
        raw = x.detach().flatten(1).contiguous().to(torch.float32).view(torch.int32).to(torch.int64)
        places = mixed(torch.arange(1, raw.shape[1] + 1, device=x.device) * GOLDEN)
        # a sum of products wraps around and so does not depend on the order it is taken in
        self.key = mixed((mixed(raw + seed) * (places | 1)).sum(1) + seed)
        self.used = torch.zeros_like(self.key)

    def bits(self, rows: Tensor, count: int) -> Tensor:
        """(len(rows), count) random 64-bit integers; these rows' streams move on."""
        places = self.used[rows, None] + torch.arange(1, count + 1, device=rows.device)
        self.used[rows] += count
        return mixed(self.key[rows, None] + places * GOLDEN)

    def uniform(self, rows: Tensor, *shape: int) -> Tensor:
        """Uniform on [0, 1), (len(rows), *shape)."""
        bits = shifted(self.bits(rows, math.prod(shape)), 40)  # 24 bits: what a float32 holds
        return (bits.to(torch.float32) / (1 << 24)).view(len(rows), *shape)

    def normal(self, rows: Tensor, *shape: int) -> Tensor:
        """Standard normal, (len(rows), *shape)."""
        return torch.special.ndtri(self.uniform(rows, *shape).double() + 2.0**-25).float()

    def signs(self, rows: Tensor, *shape: int) -> Tensor:
        """-1 or 1, (len(rows), *shape)."""
        return (1 - 2 * (self.bits(rows, math.prod(shape)) & 1)).to(torch.float32).view(len(rows), *shape)

    def integers(self, rows: Tensor, high: int, *shape: int) -> Tensor:
        """Whole numbers from 0 below `high`, (len(rows), *shape)."""
        return (shifted(self.bits(rows, math.prod(shape)), 11) % high).view(len(rows), *shape)


def seed_of(generator: torch.Generator | None) -> int:
    """A seed drawn from a generator, 0 without one; the global generator is left alone."""
    return 0 if generator is None else int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
