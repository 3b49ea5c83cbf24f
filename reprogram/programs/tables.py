"""Programs for rows of tables: as blocks of colour for an image source, as words for a language source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprogram.config import configurable
from reprogram.errors import DataError
from reprogram.programs.base import first_binding
from reprogram.programs.images import ImageProgram
from reprogram.programs.tokens import starting_rows
from reprogram.sources.base import Source
from reprogram.sources.codecs import Batch, Record, shorten


def as_row(value: Any, row: int, width: int) -> Tensor:
    """One row of a table as float32 (width,). Raises ValueError, one sentence with the row, for anything else."""
    try:
        numbers = torch.as_tensor(np.asarray(value, dtype=np.float32)).flatten()
    except (TypeError, ValueError):
        raise ValueError(
            f"expected {width} numbers in row {row}, got {shorten(str(value), 60)}; encode categories first"
        ) from None
    if len(numbers) != width or not numbers.isfinite().all():
        found = f"{len(numbers)}" if len(numbers) != width else "NaN or infinity among them"
        raise ValueError(f"expected {width} finite numbers in row {row}, got {found}; fill or drop it")
    return numbers


def moments(inputs: Sequence[Any]) -> dict[str, list[float]]:
    """Mean and standard deviation of each column of the training rows, as the programs below take them."""
    table = torch.stack([as_row(value, row, len(np.ravel(inputs[0]))) for row, value in enumerate(inputs)]).double()
    spread = table.std(0, correction=0)
    return {"mean": table.mean(0).tolist(), "std": torch.where(spread > 0, spread, 1.0).tolist()}


@configurable
class FeatureCanvas(ImageProgram):
    r"""A row of a table as an image: one block per feature, its colour $\sigma(2(a_j x_j + b_j))$, in a learned frame.

    x are the standardised features; gains a start at 1, offsets b and the frame at 0 (grey). Blocks stand row by row in a
    square in the middle that covers `share` of each side.

    Shapes: row (B, d) -> pixels (B, C, H, W). Trainable: 2 C d and C numbers per pixel around the blocks.
    Reference: Tsai, Chen & Ho, ICML 2020, arXiv:2007.08714, who place a flat feature vector inside the frame.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, share: float = 0.5):
        super().__init__()
        if len(mean) != len(std) or not mean or not 0 < share <= 1:
            raise DataError(
                f"expected as many means as deviations and a share in (0, 1], got {len(mean)}, {len(std)}, {share}"
            )
        self.share = share
        self.register_buffer("mean", torch.tensor(list(mean)), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)), persistent=False)

    def start(self, source: Source) -> None:
        width = len(self.mean)
        self.gain = nn.Parameter(torch.ones(self.channels, width))
        self.offset = nn.Parameter(torch.zeros(self.channels, width))
        self.frame = nn.Parameter(torch.zeros(self.channels, *self.size))

    def block(self) -> tuple[int, int]:
        """Blocks along a side, and the side of a block in pixels."""
        across = math.ceil(math.sqrt(len(self.mean)))
        side = int(min(self.size) * self.share) // across
        if side < 1:
            raise DataError(f"expected at most {int(min(self.size) * self.share) ** 2} features, got {len(self.mean)}")
        return across, side

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        return [{"row": as_row(value, row, len(self.mean))} for row, value in enumerate(inputs)]

    def forward(self, batch: Batch) -> Batch:
        across, side = self.block()
        x = ((batch["row"] - self.mean) / self.std).clamp(-6, 6)[:, None]  # (B, 1, d)
        colour = F.pad((2 * (self.gain * x + self.offset)).sigmoid(), (0, across**2 - len(self.mean)), value=0.5)
        blocks = colour.unflatten(2, (across, across)).repeat_interleave(side, 2).repeat_interleave(side, 3)
        top, left = ((whole - across * side) // 2 for whole in self.size)
        around = (left, self.size[1] - left - across * side, top, self.size[0] - top - across * side)
        inside = F.pad(torch.ones_like(blocks[:1, :1]), around)
        return {"pixels": F.pad(blocks, around) + (1 - inside) * (2 * self.frame).sigmoid()}


@configurable
class TableTokens(nn.Module):
    r"""A row of a table as a text: one token per feature, $e_j = b_j + x_j a_j$, x standardised.

    The offsets b start as random rows of the source's table, the directions a as others, so the source reads words.

    Shapes: row (B, d) -> inputs_embeds (B, d, D). Trainable: 2 d D.
    Reference: the tokens are those of Gorishniy et al., "Revisiting Deep Learning Models for Tabular Data", NeurIPS 2021,
    arXiv:2106.11959, in front of a frozen source.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, seed: int = 0):
        super().__init__()
        self.seed = seed
        self.register_buffer("mean", torch.tensor(list(mean)), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)), persistent=False)

    def bind(self, source: Source) -> None:
        if source.takes != "tokens" or source.embedding is None:
            raise ValueError(f"expected a source with a token embedding table, got '{source.name}' ({source.takes})")
        codec, table, width = source.codec, source.embedding.detach(), len(self.mean)
        if width + len(codec.before) + len(codec.after) > codec.max_length:
            raise DataError(
                f"expected at most {codec.max_length} features, as many as the source takes tokens, got {width}"
            )
        self.register_buffer("before", table[list(codec.before)], persistent=False)
        self.register_buffer("after", table[list(codec.after)], persistent=False)
        if first_binding(self, source):
            rows = starting_rows(table, [None] * (2 * width), self.seed)[1:]
            self.offset, self.direction = nn.Parameter(rows[:width].clone()), nn.Parameter(rows[width:].clone())

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        return [{"row": as_row(value, row, len(self.mean))} for row, value in enumerate(inputs)]

    def collate(self, records: Sequence[Record]) -> Batch:
        return {"row": torch.stack([record["row"] for record in records])}

    def length(self, record: Record) -> int:
        return 1

    def forward(self, batch: Batch) -> Batch:
        x = ((batch["row"] - self.mean) / self.std).clamp(-6, 6)
        tokens = self.offset + x[..., None] * self.direction
        parts = [self.before.expand(len(x), -1, -1), tokens, self.after.expand(len(x), -1, -1)]
        embeds = torch.cat(parts, dim=1)
        return {
            "inputs_embeds": embeds,
            "attention_mask": torch.ones(embeds.shape[:2], dtype=torch.long, device=x.device),
        }
