"""Deep prompts: learned vectors in front of the tokens, and others in their places before every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reprogram.config import configurable
from reprogram.errors import DataError
from reprogram.programs.tokens import SoftPrompt
from reprogram.sources.base import Source
from reprogram.sources.codecs import Batch, Record
from reprogram.sources.layers import DEEP, states_read


@configurable
class Prefix(nn.Module):
    r"""A soft prompt that is renewed before every layer: $[\_, H_k] = \text{layer}_k([P_{k-1}, H_{k-1}])$.

    $P_0$ is a `SoftPrompt`; $P_1, P_2, \dots$ take the places of what became of it, in all layers or in the first `depth`
    alone (`depth=1` is the soft prompt). They start as what the frozen layers themselves make of $P_0$ alone, so that
    each layer first reads states of a kind it knows.

    Shapes: prompt (P, D), deep (depth - 1, P, hidden width); the source reads P + L embeddings and averages over all of
    them, as with a soft prompt. Trainable: P (D + (depth - 1) hidden width).
    Reference: Liu et al., "P-Tuning v2", ACL 2022, arXiv:2110.07602; Jia et al., "Visual Prompt Tuning" (VPT-deep), ECCV
    2022, arXiv:2203.12119.
    Differs from the paper: as in VPT-deep a layer's own frozen projections make keys and values of the prompt, which
    P-Tuning v2 learns outright.
    Raises: ValueError for a source without transformer layers; DataError for a depth that it does not have.
    """

    def __init__(self, *, prompt_length: int = 8, depth: int | None = None, seed: int = 0):
        super().__init__()
        self.depth = depth
        self.soft = SoftPrompt(prompt_length=prompt_length, seed=seed)

    def bind(self, source: Source) -> None:
        new = getattr(self.soft, "bound_to", None) is None
        layers = getattr(getattr(source, "network", None), "layers", None)
        if not callable(layers) or not layers():
            raise ValueError(
                f"expected a source of transformer layers for deep prompts, got '{source.name}'; use SoftPrompt or another source"
            )
        self.soft.bind(source)
        if new:
            self.deep = nn.Parameter(self.start(source.network, layers()))

    @torch.no_grad()
    def start(self, network: nn.Module, layers: Sequence[nn.Module]) -> Tensor:
        """(depth - 1, P, hidden width): the states of the soft prompt on its own."""
        states = states_read(network, layers, self.soft.prompt[None])
        if any(part.shape[:2] != (1, self.soft.prompt_length) for part in states):
            raise ValueError(
                f"expected layers that read (rows, positions, width), got {tuple(states[0].shape)}; use SoftPrompt"
            )
        depth = len(states) if self.depth is None else self.depth
        if not 1 <= depth <= len(states):
            raise DataError(f"expected depth from 1 to {len(states)}, the layers of the source, got {depth}")
        return torch.stack(states)[1:depth, 0].clone() if depth > 1 else states[0].new_zeros(0, *states[0].shape[1:])

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        return self.soft.encode(inputs)

    def collate(self, records: Sequence[Record]) -> Batch:
        return self.soft.collate(records)

    def length(self, record: Record) -> int:
        return self.soft.length(record)

    def forward(self, batch: Batch) -> Batch:
        return self.soft(batch) | {DEEP: self.deep}
