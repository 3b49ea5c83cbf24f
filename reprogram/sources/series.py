"""Series as inputs, and the sound network CREPE from its wheel: what Voice2Series asks of a source, offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprogram.sources.base import Source
from reprogram.sources.codecs import Batch, Record, shorten

WINDOW = 1024
EPS, PADDING = 1e-3, (31, 32)


def as_series(value: Any, row: int) -> Tensor:
    """One series as float32 (C, L), from a list or array (L,) or (C, L).

    Raises: ValueError, one sentence with the row, for gaps (NaN), infinities, or no series at all.
    """
    try:
        values = torch.as_tensor(np.asarray(value, dtype=np.float32))
    except (TypeError, ValueError):
        raise ValueError(f"expected a series of numbers in row {row}, got {shorten(str(value), 60)}") from None
    values = values[None] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[1] < 1:
        raise ValueError(f"expected a series (length,) or (channels, length) in row {row}, got {tuple(values.shape)}")
    bad = (~values.isfinite()).nonzero().tolist()
    if bad:
        raise ValueError(
            f"expected a series without gaps in row {row}, got {float(values[tuple(bad[0])])} at position {bad[0][1]}; "
            "fill or interpolate it first"
        )
    return values


def standardised(series: Tensor) -> Tensor:
    """Each channel (C, L) with mean 0 and standard deviation 1; a constant one becomes 0."""
    centred = series - series.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)


@dataclass(frozen=True)
class SeriesCodec:
    """Series of one channel as the source takes them: `samples` samples, standardised; shorter ones are stretched.

    Shapes: record `series` (L,); batch `series` (B, L), float32. Several channels are averaged.
    """

    samples: int

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        records = []
        for row, value in enumerate(inputs):
            single = as_series(value, row).mean(0, keepdim=True)
            longer = F.interpolate(single[None], self.samples, mode="linear", align_corners=True)[0]
            records.append({"series": standardised(longer)[0]})
        return records

    def collate(self, records: Sequence[Record]) -> Batch:
        return {"series": torch.stack([record["series"] for record in records])}

    def noise(self, count: int) -> Batch:
        return {"series": torch.randn(count, self.samples)}

    def length(self, record: Record) -> int:
        return 1


class Crepe(nn.Module):
    """Six layers of convolution, ReLU, batch normalisation and pooling over 1024 samples at 16 kHz, then 360 pitches.

    Shapes: series (B, 1024) -> logits (B, 360), the classifier's values in front of its sigmoid; `pooled` gives the
    features in front of the classifier.
    """

    def __init__(self, state: dict[str, Tensor], *, classify: bool = True):
        super().__init__()
        channels = [1, *(state[f"conv{i}.weight"].shape[0] for i in range(1, 7))]
        kernels = [state[f"conv{i}.weight"].shape[2] for i in range(1, 7)]
        self.conv = nn.ModuleList(
            nn.Conv1d(a, b, kernel, stride=4 if i == 0 else 1)
            for i, (a, b, kernel) in enumerate(zip(channels[:-1], channels[1:], kernels, strict=True))
        )
        self.norm = nn.ModuleList(nn.BatchNorm1d(width, eps=EPS) for width in channels[1:])
        self.classifier = nn.Linear(state["classifier.weight"].shape[1], state["classifier.weight"].shape[0])
        self.classify = classify
        self.load(state)

    def load(self, state: dict[str, Tensor]) -> None:
        """The published file holds two-dimensional convolutions of width one."""
        own = {"classifier.weight": state["classifier.weight"], "classifier.bias": state["classifier.bias"]}
        for key, value in state.items():
            name, _, field = key.partition(".")
            if name.startswith("conv"):
                part = "norm" if name.endswith("_BN") else "conv"
                number = int(name.removeprefix("conv").removesuffix("_BN")) - 1
                own[f"{part}.{number}.{field}"] = value.squeeze(-1) if value.ndim == 4 else value
        self.load_state_dict(own)

    def forward(self, series: Tensor) -> Tensor:
        x = standardised(series)[:, None]
        for i, (conv, norm) in enumerate(zip(self.conv, self.norm, strict=True)):
            x = F.max_pool1d(norm(conv(F.pad(x, (254, 254) if i == 0 else PADDING)).relu()), 2)
        x = x.transpose(1, 2).flatten(1)
        return self.classifier(x) if self.classify else x


def read(folder: Path, size: str, name: str, revision: str, returns: str) -> Source:
    """A source from the weight file of one size."""
    state = torch.load(folder / "assets" / f"{size}.pth", map_location="cpu", weights_only=True)
    with torch.random.fork_rng(devices=[]):
        network = Crepe(state, classify=returns == "logits")
    width = 360 if returns == "logits" else network.classifier.in_features
    hertz = 10 * 2 ** ((np.arange(360) * 20 + 1997.3794084376191) / 1200)  # the pitch of each class
    labels = [f"{f:.1f} Hz" for f in hertz] if returns == "logits" else None
    return Source(
        network, SeriesCodec(WINDOW), name=name, takes="series", width=width, returns=returns, labels=labels,
        revision=revision, license="MIT",
    )  # fmt: skip


def load_crepe(folder: Path, revision: str, *, returns: str = "logits") -> Source:
    """CREPE at full size; `returns="features"` stops in front of its 360 pitches."""
    return read(folder, "full", "crepe", revision, returns)


def load_crepe_tiny(folder: Path, revision: str, *, returns: str = "logits") -> Source:
    """CREPE at its smallest size."""
    return read(folder, "tiny", "crepe-tiny", revision, returns)
