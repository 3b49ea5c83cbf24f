"""What a run depends on, as a short text: a stopped run may only go on from its own file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn


def mark_of(*things: Any) -> str:
    """A digest of settings, tensors and models: every number of a tensor counts, and everything a dataclass holds; of a model
    also its modules' classes and what they print of themselves, not other attributes, which may count calls; of other objects
    the class."""
    total = hashlib.sha256()
    for piece in pieces(things):
        total.update(piece)
    return total.hexdigest()


def pieces(thing: Any) -> Iterator[bytes]:
    if isinstance(thing, torch.Tensor):
        yield f"{thing.dtype} {tuple(thing.shape)} ".encode()
        yield thing.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(thing, nn.Module):
        yield from pieces(thing.state_dict())
        for name, module in thing.named_modules():
            yield f"{name} {type(module).__module__}.{type(module).__qualname__} {module.extra_repr()}".encode()
            yield from pieces({key: each for key, each in module.named_buffers(recurse=False) if each is not None})
    elif is_dataclass(thing) and not isinstance(thing, type):
        yield type(thing).__qualname__.encode()
        for field in fields(thing):
            yield from pieces((field.name, getattr(thing, field.name)))
    elif isinstance(thing, Mapping):
        yield from pieces(list(thing.items()))
    elif isinstance(thing, (list, tuple)):
        yield f"{len(thing)} ".encode()
        for one in thing:
            yield from pieces(one)
    else:
        plain = thing is None or isinstance(thing, (str, int, float, bool))
        yield (repr(thing) if plain else getattr(thing, "__qualname__", type(thing).__qualname__)).encode()
