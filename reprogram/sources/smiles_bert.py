"""Transformers of reaction SMILES from the weight files of `rxnfp` and `rxnmapper`, whose code no longer imports."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import torch

from reprogram.sources.base import Source
from reprogram.sources.codecs import TokenCodec
from reprogram.sources.hub import MeanPooled, quiet

# Atom-wise SMILES tokens; the last branch keeps whatever else there is, so that nothing is dropped in silence.
TOKEN = re.compile(r"\[[^\]]+\]|Br?|Cl?|[NOSPFI]|[bcnops]|%\(\d{3}\)|%\d\d|\d|>>?|[().=#+\-\\/:~@?*$|]|.", re.DOTALL)


def tokenize(smiles: str) -> list[str]:
    """Bracket atoms, two-letter elements, bonds, branches and ring closures."""
    return TOKEN.findall(smiles)


def build(config: dict[str, Any], state: dict[str, torch.Tensor], kind: str) -> torch.nn.Module:
    """A BertModel or AlbertModel with the weights of a checkpoint that may carry a language-model head."""
    from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

    settings, network = (BertConfig, BertModel) if kind == "bert" else (AlbertConfig, AlbertModel)
    # The files date from transformers 2: keep what today's configuration knows, drop its old generation settings.
    known = set(inspect.signature(settings).parameters) - {"self", "kwargs"}
    rename = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    weights = {}
    for key, value in state.items():
        if not key.startswith(f"{kind}.") or "pooler" in key or "position_ids" in key:
            continue
        for old, new in rename.items():
            key = key.replace(old, new)
        weights[key.removeprefix(f"{kind}.")] = value
    with quiet(), torch.random.fork_rng(devices=[]):
        model = network(
            settings(**{key: value for key, value in config.items() if key in known}), add_pooling_layer=False
        )
    model.load_state_dict(weights)
    return model


def read(folder: Path, kind: str, name: str, revision: str) -> Source:
    """A source from a folder with config.json, pytorch_model.bin and vocab.txt."""
    config = json.loads((folder / "config.json").read_text())
    state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    model = build(config, state, kind)
    tokens = (folder / "vocab.txt").read_text().splitlines()
    vocabulary = {token: index for index, token in enumerate(tokens)}
    codec = TokenCodec(
        tokenize, vocabulary, unknown=vocabulary["[UNK]"], pad=vocabulary["[PAD]"], before=(vocabulary["[CLS]"],),
        after=(vocabulary["[SEP]"],), max_length=config["max_position_embeddings"],
    )  # fmt: skip
    return Source(
        MeanPooled(model), codec, name=name, takes="tokens", width=config["hidden_size"],
        embedding=model.get_input_embeddings().weight, revision=revision, license="MIT",
    )  # fmt: skip


def load_rxnfp(folder: Path, revision: str) -> Source:
    """The pretrained BERT of rxnfp: its mean beats the fine-tuned models' class vector on molecule properties."""
    return read(folder / "models" / "transformers" / "bert_pretrained", "bert", "rxnfp", revision)


def load_rxnmapper(folder: Path, revision: str) -> Source:
    """The ALBERT of rxnmapper."""
    return read(folder / "models" / "transformers" / "albert_heads_8_uspto_all_1310k", "albert", "rxnmapper", revision)
