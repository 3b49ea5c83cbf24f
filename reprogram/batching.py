"""Which rows form a batch: seeded, length-bucketed, and the same whatever the number of processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def bucketed_batches(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Shuffled batches of row indices whose members have similar lengths, so that little padding is computed.

    Rows are shuffled, cut into pools of 16 batches, sorted within a pool by length give or take a tenth, so that batch
    mates change from epoch to epoch also where one pool holds all rows, cut into batches, and the batches shuffled: every
    row once per epoch, a pure function of (lengths, batch_size, seed, epoch).
    """
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    blurred = (torch.tensor(lengths) * (0.9 + 0.2 * torch.rand(len(lengths), generator=generator))).tolist()
    pool = 16 * batch_size
    batches = []
    for start in range(0, len(order), pool):
        rows = sorted(order[start : start + pool], key=lambda i: blurred[i])
        batches += [rows[k : k + batch_size] for k in range(0, len(rows), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches for evaluation: sorted by length, every row once."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[k : k + batch_size] for k in range(0, len(order), batch_size)]
