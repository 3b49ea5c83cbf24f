"""Several frozen sources side by side: `mapping ∘ concat(source_i ∘ program_i)`, itself a program and a source."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reprogram.config import build, buildable, configurable
from reprogram.errors import DataError
from reprogram.programs.base import SourceCodec
from reprogram.sources.base import Source
from reprogram.sources.codecs import Batch, Record

CACHED = "source_features"  # the key under which a record carries features that no longer need their source


class SideBySide(nn.Module):
    """Sources side by side as one: features are concatenated, (B, S_1 + … + S_k).

    `columns` gives each source's (start, stop), which maps use as blocks. Frozen and in eval mode like its members.
    """

    takes, returns = "parallel", "features"
    TARGET = "reprogram.side_by_side.side_by_side"

    def __init__(self, sources: Sequence[Source]):
        super().__init__()
        self.members = nn.ModuleList(sources)
        self.name = "+".join(source.name for source in sources)
        self.width = sum(source.width for source in sources)
        self.license = "; ".join(dict.fromkeys(source.license for source in sources if source.license))
        stops = torch.tensor([source.width for source in sources]).cumsum(0).tolist()
        self.columns = tuple(zip([0, *stops[:-1]], stops, strict=True))

    def train(self, mode: bool = True) -> SideBySide:
        return super().train(False)

    @property
    def revision(self) -> str:
        """The members' revisions, by name."""
        return ", ".join(dict.fromkeys(f"{m.name} {m.revision}" for m in self.members if m.revision))

    @property
    def digest(self) -> str:
        """One digest over the members' digests, in order."""
        return hashlib.sha256(" ".join(member.digest for member in self.members).encode()).hexdigest()[:16]

    @property
    def spec(self) -> dict[str, Any]:
        different = list({id(member): member for member in self.members}.values())
        order = [next(i for i, other in enumerate(different) if other is member) for member in self.members]
        return {"_target_": self.TARGET, "sources": [source.spec for source in different], "order": order}

    def forward(self, batch: Batch) -> Tensor:
        parts = (batch[str(i)] for i in range(len(self.members)))
        return torch.cat([apply_source(m, part) for m, part in zip(self.members, parts, strict=True)], dim=1)


@buildable
def side_by_side(sources: Sequence[Source], order: Sequence[int]) -> SideBySide:
    """The form artefacts name: different sources once, and which of them stands where."""
    return SideBySide([sources[i] for i in order])


def rebuilt(spec: dict[str, Any] | None, name: str, given: Source | Sequence[Source] | None) -> nn.Module:
    """The source of an artefact from its spec; the user's own modules, which no spec brings back, are `given` in order.

    Raises: DataError when modules are missing or left over.
    """
    own = [] if given is None else [given] if isinstance(given, nn.Module) else list(given)
    parallel = spec is not None and spec.get("_target_") == SideBySide.TARGET
    parts = spec["sources"] if parallel else [spec]
    if isinstance(given, SideBySide):
        return given
    if own and len(parts) == 1:  # also a named source may be given, to load it once for many artefacts
        parts = [None]
    if parts.count(None) != len(own):
        raise DataError(
            f"expected {parts.count(None)} sources for the own modules in '{name}', got {len(own)}; pass source="
        )
    found = [own.pop(0) if part is None else build(part) for part in parts]
    return side_by_side(found, spec["order"]) if parallel else found[0]


def apply_source(source: nn.Module, batch: Batch) -> Tensor:
    """`source(batch)`, unless the batch already carries its features."""
    return batch[CACHED] if CACHED in batch else source(batch)


def collate_records(program: nn.Module, records: Sequence[Record]) -> Batch:
    """`program.collate`, unless the records already carry source features."""
    if CACHED in records[0]:
        return {CACHED: torch.stack([record[CACHED] for record in records])}
    return program.collate(records)


@configurable
class Parallel(nn.Module):
    """One program per source of a `SideBySide`; records and batches are keyed by the member's position."""

    def __init__(self, programs: Sequence[nn.Module]):
        super().__init__()
        self.programs = nn.ModuleList(programs)

    def bind(self, source: SideBySide) -> None:
        if len(source.members) != len(self.programs):
            raise ValueError(
                f"expected one program per source, got {len(self.programs)} for {len(source.members)} sources"
            )
        for program, member in zip(self.programs, source.members, strict=True):
            program.bind(member)

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        columns = encoded_once(self.programs, inputs)
        return [{str(i): record for i, record in enumerate(row)} for row in zip(*columns, strict=True)]

    def collate(self, records: Sequence[Record]) -> Batch:
        return {str(i): collate_records(p, [r[str(i)] for r in records]) for i, p in enumerate(self.programs)}

    def length(self, record: Record) -> int:
        return max(1 if CACHED in record[str(i)] else p.length(record[str(i)]) for i, p in enumerate(self.programs))

    def forward(self, batch: Batch) -> Batch:
        parts = ((str(i), batch[str(i)], program) for i, program in enumerate(self.programs))
        return {key: part if CACHED in part else program(part) for key, part, program in parts}

    def project(self) -> None:
        for program in self.programs:
            getattr(program, "project", lambda: None)()


def encoded_once(programs: Sequence[nn.Module], inputs: Sequence[Any]) -> list[list[Record]]:
    """Records of the inputs under every program; those that leave the work to the same codec share it."""
    done: dict[int, list[Record]] = {}
    columns = []
    for program in programs:
        key = id(program.codec if type(program).encode is SourceCodec.encode else program)
        if key not in done:
            done[key] = program.encode(inputs)
        columns.append(done[key])
    return columns


def frozen_members(program: nn.Module, source: nn.Module) -> list[tuple[str | None, nn.Module, nn.Module]]:
    """(key, program, source) of each part in front of the map that learns nothing: its features can be kept."""
    if isinstance(program, Parallel):
        triples = zip(map(str, range(len(program.programs))), program.programs, source.members, strict=True)
        return [(key, p, s) for key, p, s in triples if not any(w.requires_grad for w in p.parameters())]
    return [] if any(w.requires_grad for w in program.parameters()) else [(None, program, source)]
