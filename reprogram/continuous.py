"""A reprogrammed model as a function of numbers that can be moved: what attacks and certificates work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from reprogram.errors import DataError

if TYPE_CHECKING:
    from reprogram.model import Reprogrammed

EMBEDDED = {"inputs_embeds", "attention_mask"}


@dataclass(frozen=True)
class Tokens:
    """The tokens behind embeddings, and what may stand in their place.

    Shapes: ids (B, L), -1 where no token may be replaced (padding, special tokens, a prompt); table (V, D), the embedding of
    each id. `words` are the ids that a text can be written with.
    """

    ids: Tensor
    table: Tensor
    words: dict[int, str]


@dataclass(frozen=True)
class View:
    """`module` maps `inputs` (B, …) to the model's outputs (B, T); `free` (B, …) is 1 where an input may be moved.

    For images, series and feature vectors the inputs are the target's own, in front of the program. For tokens they are
    the embeddings that the program wrote, with the attention mask as one more column, which stays as it is; `tokens` says
    which tokens these are embeddings of, unless the program writes a token by its neighbours.
    """

    module: nn.Module
    inputs: Tensor
    free: Tensor
    tokens: Tokens | None = None


class FromInputs(nn.Module):
    """Program, source and mapping of one tensor."""

    def __init__(self, model: Reprogrammed, key: str):
        super().__init__()
        self.model, self.key, self.training = model, key, model.training

    def forward(self, x: Tensor) -> Tensor:
        return self.model.mapping(self.model.source(self.model.program({self.key: x})))


class FromEmbeddings(nn.Module):
    """Source and mapping of embeddings (B, L, D + 1), whose last column is the attention mask."""

    def __init__(self, model: Reprogrammed):
        super().__init__()
        self.model, self.training = model, model.training

    def forward(self, x: Tensor) -> Tensor:
        batch = {"inputs_embeds": x[..., :-1], "attention_mask": x[..., -1].detach().round().long()}
        return self.model.mapping(self.model.source(batch))


def continuous(model: Reprogrammed, inputs: Sequence[Any]) -> View:
    """The view of a model around these inputs.

    Raises: DataError for a source without a gradient, for graphs, for several sources side by side, and for a program that
    writes into the network's inside.
    """
    if not model.source.differentiable:
        raise DataError(f"expected a source with gradients, got '{model.source.name}', which can only be asked")
    batch = model.collate(model.encode(inputs))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    if model.source.takes == "tokens":
        return embedded(model, batch)
    if len(batch) != 1 or not next(iter(batch.values())).is_floating_point():
        raise DataError(
            f"expected a source of images, series, features or tokens by itself, got '{model.source.name}' with "
            f"{', '.join(map(str, batch))}; attack one source at a time"
        )
    (key, x), = batch.items()  # fmt: skip
    return View(FromInputs(model, key), x, torch.ones_like(x))


@torch.no_grad()
def embedded(model: Reprogrammed, batch: dict[str, Tensor]) -> View:
    """The view of a token model."""
    written = model.program(batch)
    if "input_ids" in written and model.source.embedding is not None:  # no program: the source's own table
        written = {**written, "inputs_embeds": model.source.embedding[written["input_ids"]]}
        del written["input_ids"]
    if not {"inputs_embeds"} <= set(written) <= EMBEDDED:
        raise DataError(
            f"expected a program that writes embeddings alone, got {', '.join(sorted(written))}; "
            "take a program without vectors or updates inside the network"
        )
    embeds = written["inputs_embeds"]
    mask = written.get("attention_mask", torch.ones(embeds.shape[:2], device=embeds.device)).to(embeds.dtype)[..., None]
    free = torch.cat([mask.expand_as(embeds), torch.zeros_like(mask)], dim=2)
    inputs = torch.cat([embeds, mask], dim=2)
    return View(FromEmbeddings(model), inputs, free, tokens_of(model, batch, inputs.shape[1]))


def tokens_of(model: Reprogrammed, batch: dict[str, Tensor], length: int) -> Tokens | None:
    """The tokens that the program wrote as rows of a table, in `length` places."""
    program, source = model.program, model.source
    if "target_ids" in batch:
        if not hasattr(program, "table"):
            return None
        return Tokens(program.places(batch), program.table().detach(), {i: token for token, i in program.ids.items()})
    if source.embedding is None:
        return None
    codec, ids, ends = source.codec, batch["input_ids"], batch["attention_mask"].sum(1, keepdim=True)
    place = torch.arange(ids.shape[1], device=ids.device)
    inside = (place >= len(codec.before)) & (place < ends - len(codec.after))
    ids = nn.functional.pad(
        torch.where(inside, ids, -1), (length - ids.shape[1], 0), value=-1
    )  # a prompt stands in front
    special = {codec.pad, codec.unknown, *codec.before, *codec.after}
    return Tokens(ids, source.embedding.detach(), {i: t for t, i in codec.vocabulary.items() if i not in special})
