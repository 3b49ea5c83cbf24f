"""ANNalog, a SMILES-to-SMILES transformer, rebuilt from the weights inside `annalog`; the source is its encoder."""

from __future__ import annotations

import io
import pickle
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from reprogram.sources.base import Source
from reprogram.sources.codecs import TokenCodec
from reprogram.sources.layers import prompted

WIDTH, HEADS, HIDDEN, DEPTH, LENGTH = 256, 8, 512, 3, 102
TOKEN = re.compile(r"\[[^\]]*\]|%\d\d|Br|Cl|.", re.DOTALL)


class Attention(nn.Module):
    """Attention of x (B, L, D) over a memory (B, M, D); `mask` broadcasts to (B, heads, L, M), True = seen."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in (self.query(x), self.key(memory), self.value(memory))
        )
        return self.out(scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Post-norm transformer block; with `cross`, a second attention over the encoder's output stands in between."""

    def __init__(self, *, cross: bool):
        super().__init__()
        self.attention, self.attention_norm = Attention(), nn.LayerNorm(WIDTH)
        self.cross, self.cross_norm = (Attention(), nn.LayerNorm(WIDTH)) if cross else (None, None)
        self.hidden = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))
        self.hidden_norm = nn.LayerNorm(WIDTH)

    def forward(
        self, x: Tensor, mask: Tensor | None, memory: Tensor | None = None, seen: Tensor | None = None
    ) -> Tensor:
        x = self.attention_norm(x + self.attention(x, x, mask))
        if self.cross is not None:
            x = self.cross_norm(x + self.cross(x, memory, seen))
        return self.hidden_norm(x + self.hidden(x))


class Stack(nn.Module):
    """Token table, learned positions and blocks: one side of the encoder-decoder."""

    def __init__(self, vocabulary: int, *, cross: bool):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block(cross=cross) for _ in range(DEPTH))

    def forward(
        self, rows: Tensor, mask: Tensor | None, memory: Tensor | None = None, seen: Tensor | None = None
    ) -> Tensor:
        """`rows` (B, L, D) are rows of the token table, or mixtures of them."""
        if rows.shape[1] > LENGTH:
            raise ValueError(
                f"expected at most {LENGTH} tokens, got {rows.shape[1]}; drop the input or choose another source"
            )
        x = rows * WIDTH**0.5 + self.positions.weight[: rows.shape[1]]
        for block in self.blocks:
            x = block(x, mask, memory, seen)
        return x


class Annalog(nn.Module):
    """The whole network: `encode` gives the memory (B, L, 256), `decode` the logits (B, T, V) of the next tokens."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.encoder, self.decoder = Stack(vocabulary, cross=False), Stack(vocabulary, cross=True)
        self.readout = nn.Linear(WIDTH, vocabulary)

    def encode(self, rows: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.encoder(rows, None if attention_mask is None else attention_mask[:, None, None].bool())

    def decode(self, output_ids: Tensor, memory: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Teacher-forced: position t sees `output_ids` (B, T) up to t and the memory where the mask is 1."""
        steps = output_ids.shape[1]
        past = torch.ones(steps, steps, dtype=torch.bool, device=output_ids.device).tril()
        seen = None if attention_mask is None else attention_mask[:, None, None].bool()
        return self.readout(self.decoder(self.decoder.tokens(output_ids), past, memory, seen))

    def reset_parameters(self) -> None:
        """The initialisation it was trained from: Xavier for every matrix, tables included."""
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.xavier_uniform_(weight)


class AnnalogEncoder(nn.Module):
    """The encoder's output averaged over the tokens, (B, 256); `model` is the whole encoder-decoder.

    Reference: Dai et al., "ANNalog", ChemRxiv 2025, doi:10.26434/chemrxiv-2025-9c1v6.
    Raises: ValueError for more than 102 tokens.
    """

    def __init__(self, model: Annalog):
        super().__init__()
        self.model = model

    def layers(self) -> list[nn.Module]:
        """Where `deep` is read."""
        return list(self.model.encoder.blocks)

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, attention_mask: Tensor | None = None,
        deep: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        rows = self.model.encoder.tokens(input_ids) if inputs_embeds is None else inputs_embeds
        with nullcontext() if deep is None else prompted(self.layers(), deep):
            memory = self.model.encode(rows, attention_mask)
        if attention_mask is None:
            return memory.mean(1)
        mask = attention_mask[..., None].to(memory.dtype)
        return (memory * mask).sum(1) / mask.sum(1).clamp(min=1.0)


class PlainUnpickler(pickle.Unpickler):
    """Reads containers, strings and numbers only: a pickle that names any class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(
            f"expected a pickle of plain containers, got {module}.{name}; do not trust this file"
        )


def read_vocabulary(path: Path) -> dict[str, int]:
    """Token -> id from the vocabulary pickle of the wheel."""
    table = PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    return {str(token): int(index) for token, index in table["stoi"].items()}


PARTS = {
    "decoder.fc_out": "readout",
    "tok_embedding": "tokens",
    "pos_embedding": "positions",
    "layers": "blocks",
    "self_attn_layer_norm": "attention_norm",
    "enc_attn_layer_norm": "cross_norm",
    "ff_layer_norm": "hidden_norm",
    "self_attention": "attention",
    "encoder_attention": "cross",
    "positionwise_feedforward.fc_1": "hidden.0",
    "positionwise_feedforward.fc_2": "hidden.2",
    "fc_q": "query",
    "fc_k": "key",
    "fc_v": "value",
    "fc_o": "out",
}


def torch_name(name: str) -> str:
    """The name in `Annalog` of the weight `name` of the file."""
    for theirs, ours in PARTS.items():
        name = name.replace(theirs, ours)
    return name


def tokenize(smiles: str) -> list[str]:
    """Bracket atoms, two-digit ring closures, Br and Cl as one token, else characters."""
    return TOKEN.findall(smiles)


def load(folder: Path, revision: str) -> Source:
    """The encoder as a source, from the installed package folder of `annalog`."""
    files = folder / "ckpt_and_vocab"
    vocabulary = read_vocabulary(files / "stereo_experiment_vocab_ttf.pkl")
    state = torch.load(files / "Lev_extended.pt", map_location="cpu", weights_only=True)
    model = Annalog(len(vocabulary))
    model.load_state_dict({torch_name(key): value for key, value in state.items()})
    codec = TokenCodec(
        tokenize, vocabulary, unknown=vocabulary["<unk>"], pad=vocabulary["<pad>"], before=(vocabulary["<sos>"],),
        after=(vocabulary["<eos>"],), max_length=LENGTH,
    )  # fmt: skip
    return Source(
        AnnalogEncoder(model), codec, name="annalog", takes="tokens", width=WIDTH,
        embedding=model.encoder.tokens.weight, revision=revision, license="MIT",
    )  # fmt: skip
