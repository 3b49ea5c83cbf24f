"""Codecs: how raw inputs become the tensors that a network is fed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from reprogram.errors import DataError

Record = dict[str, Tensor]
Batch = dict[str, Tensor]


@runtime_checkable
class Codec(Protocol):
    """How raw inputs become tensors. A codec has no parameters and gives the same record for the same input.

    A codec of images or series also has `noise(n)`, a batch of n random inputs from torch's generator.
    """

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        """One unpadded record per input; raises ValueError naming the row and the input that cannot be encoded."""

    def collate(self, records: Sequence[Record]) -> Batch:
        """Pad or concatenate records into what the network's forward takes as keywords."""

    def length(self, record: Record) -> int:
        """The cost of a record, for batches of similar length."""


def as_text(value: Any, row: int) -> str:
    """`value` as a string; an RDKit molecule becomes its canonical SMILES. Raises DataError for anything else."""
    if isinstance(value, str):
        return value
    if type(value).__module__.startswith("rdkit."):
        from rdkit import Chem

        return Chem.MolToSmiles(value)
    raise DataError(
        f"expected a string or an RDKit molecule in row {row}, got {type(value).__name__}; convert it first"
    )


def shorten(text: str, limit: int = 80) -> str:
    """`text` as it may stand in an error sentence."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


@dataclass(frozen=True)
class TokenCodec:
    """Strings as token ids: `before + ids of tokenize(text) + after`, padded on the right within a batch.

    Shapes: record `input_ids` (L,); batch `input_ids` and `attention_mask` (B, L), int64. `max_length` counts the
    special tokens too. Tokens outside the vocabulary become `unknown`.

    Raises: ValueError for an input longer than `max_length`, because cutting it would silently change the input.
    """

    tokenize: Callable[[str], list[str]]
    vocabulary: dict[str, int]
    unknown: int
    pad: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    max_length: int

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        records = []
        for row, value in enumerate(inputs):
            text = as_text(value, row)
            ids = [
                *self.before,
                *(self.vocabulary.get(token, self.unknown) for token in self.tokenize(text)),
                *self.after,
            ]
            if len(ids) > self.max_length:
                raise ValueError(
                    f"expected at most {self.max_length} tokens, got {len(ids)} for {shorten(text)} in row {row}; "
                    "drop it or choose another source"
                )
            records.append({"input_ids": torch.tensor(ids, dtype=torch.long)})
        return records

    def collate(self, records: Sequence[Record]) -> Batch:
        ids = [record["input_ids"] for record in records]
        lengths = torch.tensor([len(row) for row in ids])
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.pad)
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        return {"input_ids": padded, "attention_mask": mask.long()}

    def length(self, record: Record) -> int:
        return len(record["input_ids"])


@dataclass(frozen=True)
class FeatureCodec:
    """Inputs as one vector each: `function` maps a list of n inputs to an (n, D) array of finite numbers.

    Shapes: record `features` (D,); batch `features` (B, D), float32.

    Raises: ValueError when `function` returns another number of rows, or a NaN or an infinity.
    """

    function: Callable[[Sequence[Any]], Any]

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        if len(inputs) == 0:
            return []
        features = torch.as_tensor(self.function(inputs), dtype=torch.float32)
        if features.ndim != 2 or len(features) != len(inputs):
            raise ValueError(
                f"expected an array of shape ({len(inputs)}, D), got {tuple(features.shape)}; "
                "let the feature function return one row per input"
            )
        bad = (~features.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"expected finite features, got NaN or infinity for {shorten(str(inputs[bad[0]]))} in row {bad[0]}; "
                "drop it"
            )
        return [{"features": row} for row in features]

    def collate(self, records: Sequence[Record]) -> Batch:
        return {"features": torch.stack([record["features"] for record in records])}

    def length(self, record: Record) -> int:
        return 1
