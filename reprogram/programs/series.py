"""Programs for series: into the sound network's window, or as words of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprogram.config import configurable
from reprogram.errors import DataError
from reprogram.programs.base import first_binding
from reprogram.sources.base import Source
from reprogram.sources.codecs import Batch, Record
from reprogram.sources.series import as_series, standardised


@configurable
class SeriesPad(nn.Module):
    r"""The series inside a window of trainable noise: $x' = \text{pad}(x) + M \odot \theta$, M is 1 where no sample lies.

    The standardised series is placed `replicas` times at even distances along the source's window; θ fills the rest and,
    in training, loses a share `dropout` of its numbers at each step. A series longer than its place is resampled to it.
    Channels are averaged.

    Shapes: series (B, L), L at most the window's length -> series (B, window). Trainable: window.
    Reference: Yang, Tsai & Chen, "Voice2Series: Reprogramming Acoustic Models for Time Series Classification", ICML 2021,
    arXiv:2106.09296. Differs from the released code, which adds θ without the mask the paper has; θ starts at 0.
    """

    def __init__(self, *, replicas: int = 1, dropout: float = 0.4):
        super().__init__()
        if replicas < 1 or not 0 <= dropout < 1:
            raise DataError(f"expected at least one replica and dropout in [0, 1), got {replicas} and {dropout}")
        self.replicas, self.dropout = replicas, dropout

    def bind(self, source: Source) -> None:
        if source.takes != "series":
            raise ValueError(
                f"expected a source that takes series, got '{source.name}' ({source.takes}); use crepe, or Patches for tokens"
            )
        self.window = source.codec.samples
        if self.window // self.replicas < 2:
            raise DataError(f"expected replicas that fit into {self.window} samples, got {self.replicas}")
        if first_binding(self, source):
            self.theta = nn.Parameter(torch.zeros(self.window))

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        place, records = self.window // self.replicas, []
        for row, value in enumerate(inputs):
            single = as_series(value, row).mean(0, keepdim=True)
            if single.shape[1] > place:
                single = F.interpolate(single[None], place, mode="linear", align_corners=True)[0]
            records.append({"series": standardised(single)[0]})
        return records

    def collate(self, records: Sequence[Record]) -> Batch:
        lengths = torch.tensor([len(record["series"]) for record in records])
        padded = nn.utils.rnn.pad_sequence([record["series"] for record in records], batch_first=True)
        return {"series": padded, "lengths": lengths}

    def length(self, record: Record) -> int:
        return 1

    def forward(self, batch: Batch) -> Batch:
        series, lengths = batch["series"], batch["lengths"][:, None]
        place = self.window // self.replicas
        at = torch.arange(self.window, device=series.device) % place - (place - lengths) // 2  # (B, window)
        inside = (at >= 0) & (at < lengths) & (torch.arange(self.window, device=series.device) < place * self.replicas)
        placed = series.gather(1, at.clamp(0, series.shape[1] - 1)) * inside
        noise = F.dropout(self.theta, self.dropout, self.training)
        return {"series": placed + noise * ~inside}


@configurable
class Patches(nn.Module):
    r"""Pieces of a series written in a language model's words: cross-attention from patches to word prototypes.

    Each standardised channel is cut into patches of `patch` samples every `stride`; a patch embedding asks, a small set
    of prototypes $E' = W E$ of the source's word embeddings E answers, and the answers are the source's input tokens.

    Shapes: series (B, C, L) -> inputs_embeds (B, C P, D), P = ⌊(L - patch) / stride⌋ + 2. Trainable: W (`prototypes` × V,
    V words drawn once from the source's), the patch embedding, three projections and one back to D.
    Reference: Jin et al., "Time-LLM: Time Series Forecasting by Reprogramming Large Language Models", ICLR 2024,
    arXiv:2310.01728. Differs from the paper: queries and keys are compared by cosine with a learned sharpness, because
    with a fresh layer their plain products are so small that every patch gets the same answer; tokens have the size of the
    source's own embeddings; W reads `words` rows of E instead of all; no text prefix; all in float32.
    """

    def __init__(
        self, *, patch: int = 16, stride: int = 8, width: int = 32, heads: int = 8, prototypes: int = 100,
        words: int = 2000, dropout: float = 0.1, seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        if patch < 1 or stride < 1 or width % heads:
            raise DataError(
                f"expected patch and stride of at least 1 and width a multiple of heads, got {patch}, {stride}, {width}, {heads}"
            )
        self.patch, self.stride, self.width, self.heads = patch, stride, width, heads
        self.prototypes, self.words, self.dropout, self.seed = prototypes, words, dropout, seed

    def bind(self, source: Source) -> None:
        if source.takes != "tokens" or source.embedding is None:
            raise ValueError(f"expected a source with a token embedding table, got '{source.name}' ({source.takes})")
        codec, table = source.codec, source.embedding.detach()
        self.limit = codec.max_length - len(codec.before)
        self.register_buffer("before", table[list(codec.before)], persistent=False)
        drawn = torch.randperm(len(table), generator=torch.Generator().manual_seed(self.seed))[: self.words]
        self.register_buffer("vocabulary", table[drawn.sort().values], persistent=False)
        if not first_binding(self, source):
            return
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(self.seed)
            depth = table.shape[1]
            self.mix = nn.Linear(len(self.vocabulary), self.prototypes)
            self.embed = nn.Linear(self.patch, self.width, bias=False)
            self.query = nn.Linear(self.width, self.width)
            self.key, self.value = nn.Linear(depth, self.width), nn.Linear(depth, self.width)
            self.out = nn.Linear(self.width, depth)
            self.sharpness = nn.Parameter(torch.tensor(5.0))
            self.size = nn.Parameter(table.square().mean().sqrt())

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        records = []
        for row, value in enumerate(inputs):
            series = standardised(as_series(value, row))
            short = max(0, self.patch - series.shape[1])
            padded = F.pad(series, (0, self.stride + short), mode="replicate")
            patches = padded.unfold(1, self.patch, self.stride).flatten(0, 1)
            if len(patches) > self.limit:
                raise DataError(
                    f"expected at most {self.limit} patches, got {len(patches)} for the series in row {row}; take a larger stride"
                )
            records.append({"patches": patches})
        return records

    def collate(self, records: Sequence[Record]) -> Batch:
        lengths = torch.tensor([len(record["patches"]) for record in records])
        padded = nn.utils.rnn.pad_sequence([record["patches"] for record in records], batch_first=True)
        return {"patches": padded, "attention_mask": (torch.arange(padded.shape[1]) < lengths[:, None]).long()}

    def length(self, record: Record) -> int:
        return len(record["patches"])

    def forward(self, batch: Batch) -> Batch:
        asked = self.split(self.query(self.embed(batch["patches"])))  # (B, heads, P, width / heads)
        words = F.layer_norm(self.mix(self.vocabulary.T).T, self.vocabulary.shape[1:])  # (prototypes, D)
        keys, values = (self.split(layer(words)[None]) for layer in (self.key, self.value))
        alike = F.normalize(asked, dim=-1) @ F.normalize(keys, dim=-1).transpose(-1, -2)
        chosen = F.dropout((self.sharpness * alike).softmax(-1), self.dropout, self.training)
        tokens = self.out((chosen @ values).transpose(1, 2).flatten(2))
        tokens = self.size * F.layer_norm(tokens, tokens.shape[-1:])
        mask = batch["attention_mask"]
        start = self.before.expand(len(tokens), -1, -1)
        return {
            "inputs_embeds": torch.cat([start, tokens], dim=1),
            "attention_mask": torch.cat([mask.new_ones(start.shape[:2]), mask], dim=1),
        }

    def split(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, heads, N, width / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
