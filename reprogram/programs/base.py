"""What every program is, and the one that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from reprogram.config import configurable
from reprogram.sources.base import Source
from reprogram.sources.codecs import Batch, Record


class Program(Protocol):
    """The first term of the formula: raw inputs to what the frozen source takes.

    `bind` is called once with the source (to read embedding tables and codecs; never to change it), `encode` and
    `collate` are parameter-free and run outside autograd, `forward` is the learned, differentiable part.
    A `project()` method, where present, is called after every optimizer step to restore a constraint.
    """

    def bind(self, source: Source) -> None: ...
    def encode(self, inputs: Sequence[Any]) -> list[Record]: ...
    def collate(self, records: Sequence[Record]) -> Batch: ...
    def length(self, record: Record) -> int: ...
    def forward(self, batch: Batch) -> Batch: ...


def first_binding(program: nn.Module, source: Source) -> bool:
    """True when `program` meets a source for the first time and must create its parameters.

    A trained program may be composed again with the same source and keeps what it learned; with another source it
    raises ValueError, because its parameters would mean something else there.
    """
    before = getattr(program, "bound_to", None)
    if before not in (None, source.name):
        raise ValueError(
            f"expected a new program for source '{source.name}', got one bound to '{before}'; make another"
        )
    program.bound_to = source.name
    return before is None


class SourceCodec(nn.Module):
    """Encode and collate as the source itself does."""

    def bind(self, source: Source) -> None:
        first_binding(self, source)
        object.__setattr__(self, "codec", source.codec)

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        return self.codec.encode(inputs)

    def collate(self, records: Sequence[Record]) -> Batch:
        return self.codec.collate(records)

    def length(self, record: Record) -> int:
        return self.codec.length(record)


@configurable
class Identity(SourceCodec):
    """No program: the source sees its native input. With a trained or closed-form map this is the linear probe."""

    def forward(self, batch: Batch) -> Batch:
        return batch
