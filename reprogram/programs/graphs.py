"""Programs for molecular graph sources: learned changes of atom and bond features."""

from __future__ import annotations

import torch
from torch import nn

from reprogram.config import configurable
from reprogram.programs.base import SourceCodec
from reprogram.sources.base import Source
from reprogram.sources.codecs import Batch


@configurable
class GraphDelta(SourceCodec):
    r"""Learned deltas on a graph source's inputs: $a' = a + aW_a + b_a$ for atoms, $e' = e + eW_e + b_e$ for bonds.

    Atom and bond features are mostly one-hot, so a row of W is the delta of one element, charge or bond type, and b the
    one universal prompt. All start at 0: the start is exactly the unprogrammed source.

    Shapes: atoms (N, 85), bonds (E, 13), W square. Trainable: 7,225 + 85 + 169 + 13 numbers for MiniMol.
    Reference: universal prompts on graph inputs, Fang et al., "Universal Prompt Tuning for Graph Neural Networks",
    NeurIPS 2023, arXiv:2209.15240. Differs from the paper: the delta depends on the features linearly instead of by
    attention over a few basis vectors, and bonds have their own.
    """

    def __init__(self, *, linear: bool = True):
        super().__init__()
        self.linear = linear

    def bind(self, source: Source) -> None:
        if source.takes != "graph":
            raise ValueError(
                f"expected a source that takes graphs, got '{source.name}' ({source.takes}); use minimol or a token program"
            )
        new = getattr(self, "bound_to", None) is None
        super().bind(source)
        self.names = tuple(source.codec.widths)
        for name, width in source.codec.widths.items() if new else ():
            if self.linear:
                self.register_parameter(f"{name}_matrix", nn.Parameter(torch.zeros(width, width)))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(width)))

    def forward(self, batch: Batch) -> Batch:
        changed = dict(batch)
        for name in self.names:
            value = batch[name]
            delta = getattr(self, f"{name}_bias")
            if self.linear:
                delta = delta + value @ getattr(self, f"{name}_matrix")
            changed[name] = value + delta
        return changed
