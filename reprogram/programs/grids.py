"""A program that paints a text for an image source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from reprogram.config import configurable
from reprogram.errors import DataError
from reprogram.programs.images import ImageProgram
from reprogram.programs.tokens import SPLITTERS
from reprogram.sources.base import Source
from reprogram.sources.codecs import Batch, Record, as_text, shorten


@configurable
class TokenGrid(ImageProgram):
    r"""A text as an image: each token is a learned patch, $\sigma(2\,\theta_{token})$, and patches fill a grid row by row.

    The grid starts as random noise of standard deviation 1 around grey; empty cells stay grey. Token 0 stands for the
    unknown ones.

    Shapes: ids (B, L), L at most (H / patch) (W / patch) -> pixels (B, C, H, W). Trainable: (V + 1) C patch².
    Reference: Neekhara et al., "Cross-modal Adversarial Reprogramming", WACV 2022, arXiv:2102.07325.
    """

    def __init__(self, tokens: Sequence[str], *, patch: int = 16, split: str = "smiles", seed: int = 0):
        super().__init__()
        if split not in SPLITTERS:
            raise DataError(f"expected split to be one of {sorted(SPLITTERS)}, got '{split}'")
        self.tokens, self.patch, self.split, self.seed = tuple(tokens), patch, split, seed
        self.ids = {token: i + 1 for i, token in enumerate(self.tokens)}

    def start(self, source: Source) -> None:
        drawn = torch.Generator().manual_seed(self.seed)
        shape = len(self.tokens) + 1, self.channels, self.patch, self.patch
        self.patches = nn.Parameter(torch.randn(shape, generator=drawn) / 2)

    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        rows, columns = self.size[0] // self.patch, self.size[1] // self.patch
        if rows * columns < 1:
            raise DataError(f"expected a patch no larger than {min(self.size)} pixels, got {self.patch}")
        return rows, columns

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        records, cells = [], math.prod(self.grid())
        for row, text in enumerate(inputs):
            pieces = SPLITTERS[self.split](as_text(text, row))
            if not 0 < len(pieces) <= cells:
                raise DataError(
                    f"expected 1 to {cells} tokens on the grid, got {len(pieces)} for {shorten(str(text))} in row {row}; "
                    "drop it or take smaller patches"
                )
            records.append({"target_ids": torch.tensor([self.ids.get(piece, 0) for piece in pieces])})
        return records

    def collate(self, records: Sequence[Record]) -> Batch:
        ids = [record["target_ids"] for record in records]
        return {"target_ids": nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)}

    def forward(self, batch: Batch) -> Batch:
        ids, (rows, columns) = batch["target_ids"], self.grid()
        cells = (2 * self.patches[ids.clamp_min(0)]).sigmoid()
        cells = torch.where((ids >= 0)[..., None, None, None], cells, 0.5)
        blank = cells.new_full((len(ids), rows * columns - ids.shape[1], *cells.shape[2:]), 0.5)
        cells = torch.cat([cells, blank], dim=1).unflatten(1, (rows, columns))  # (B, rows, columns, C, p, p)
        image = cells.permute(0, 3, 1, 4, 2, 5).reshape(
            len(ids), self.channels, rows * self.patch, columns * self.patch
        )
        room = self.size[0] - image.shape[2], self.size[1] - image.shape[3]
        return {"pixels": F.pad(image, (0, room[1], 0, room[0]), value=0.5)}
