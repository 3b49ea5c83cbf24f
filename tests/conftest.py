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


class TinyPixels(nn.Module):
    """A fixed linear classifier of 8 classes on 3×32×32 pixels, with a saturating layer so that it is no linear model."""

    def __init__(self, side: int = 32, classes: int = 8):
        super().__init__()
        self.first = nn.Linear(3 * side * side, 24)
        self.last = nn.Linear(24, classes)

    def forward(self, pixels):
        return self.last(torch.tanh(self.first(pixels.flatten(1) - 0.5) * 4)) * 4


def make_pixel_source():
    """A frozen image source of 32×32 pixels and 8 classes that answers with logits."""
    from reprogram.sources import load
    from reprogram.sources.images import ImageCodec

    torch.manual_seed(11)
    return load(
        TinyPixels(), codec=ImageCodec((32, 32)), takes="image", width=8, returns="logits", name="tiny-pixels",
        labels=[f"class {i}" for i in range(8)],
    )  # fmt: skip


@pytest.fixture
def pixel_source():
    return make_pixel_source()


@pytest.fixture
def pictures():
    """48 grey 12×12 pictures of three classes, bright in the left, right or lower part, and their classes."""
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(48) % 3
    images = 0.3 * torch.rand(48, 12, 12, generator=generator)
    images[y == 0, :, :5] += 0.6
    images[y == 1, :, 7:] += 0.6
    images[y == 2, 7:] += 0.6
    return [image.numpy() for image in images], y.tolist()


class TinySound(nn.Module):
    """Convolution and pooling over 64 samples into 6 classes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 6, 9, stride=4)
        self.last = nn.Linear(6, 6)

    def forward(self, series):
        return self.last(torch.tanh(self.conv(series[:, None])).mean(2)) * 5


@pytest.fixture
def sound_source():
    """A frozen series source of 64 samples and 6 classes that answers with logits."""
    from reprogram.sources import load
    from reprogram.sources.series import SeriesCodec

    torch.manual_seed(13)
    return load(
        TinySound(), codec=SeriesCodec(64), takes="series", width=6, returns="logits", name="tiny-sound"
    )  # fmt: skip


def make_bert_source(seed: int = 17, layers: int = 3):
    """A frozen random BERT over single characters, in the wrapper that every encoder of the hub gets."""
    from transformers import BertConfig, BertModel

    from reprogram.sources import TokenCodec, load
    from reprogram.sources.hub import MeanPooled

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=24, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.4,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    characters = {c: i for i, c in enumerate("CNOcno()=#123FSHlrB", start=4)}
    codec = TokenCodec(list, characters, unknown=3, pad=2, before=(0,), after=(1,), max_length=64)
    table = model.get_input_embeddings().weight
    return load(MeanPooled(model), codec=codec, takes="tokens", width=16, embedding=table, name="tiny-bert")


@pytest.fixture
def bert_source():
    return make_bert_source()
