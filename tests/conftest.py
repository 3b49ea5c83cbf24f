"""Tiny models whose answers are known, shared by every test."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)


class TinyEncoder(nn.Module):
    """Masked mean of tanh(embedding @ W): a token source small enough to reason about."""

    def __init__(self, vocabulary: int = 24, width: int = 8):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.mix = nn.Linear(width, width)

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None):
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        mask = attention_mask[..., None].to(x.dtype)
        return (torch.tanh(self.mix(x)) * mask).sum(1) / mask.sum(1)


@pytest.fixture
def tiny_source():
    """A frozen token source over single characters with a start (0), an end (1), a pad (2) and an unknown token (3)."""
    from reprogram.sources import TokenCodec, load

    torch.manual_seed(7)
    network = TinyEncoder()
    characters = {c: i for i, c in enumerate("CNOcno()=#123FSHlrB", start=4)}
    codec = TokenCodec(list, characters, unknown=3, pad=2, before=(0,), after=(1,), max_length=64)
    return load(network, codec=codec, takes="tokens", width=8, embedding=network.embed.weight, name="tiny")


@pytest.fixture
def toy():
    """60 SMILES-like strings and a target that is a known function of them: the share of carbon minus of oxygen."""
    generator = torch.Generator().manual_seed(3)
    texts = []
    for _ in range(60):
        length = int(torch.randint(3, 14, (1,), generator=generator))
        texts.append("".join("CNOcnF"[i] for i in torch.randint(6, (length,), generator=generator).tolist()))
    y = [(t.count("C") - 2 * t.count("O")) / len(t) * 5 + 20 for t in texts]
    return texts, y
