"""Threats and tensors as plain values of JSON, and back."""

from __future__ import annotations

import base64
import zlib
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adversarial.threat import Ball

FEW = 1024  # numbers that are written one by one; of more, packed bytes


def numbers(values: Tensor) -> list:
    """A tensor as a list; what is not finite becomes "nan", "inf" or "-inf", which JSON has no numbers for."""
    plain = values.detach().cpu()
    if plain.is_floating_point() and not bool(plain.isfinite().all()):
        return [v if np.isfinite(v) else str(v) for v in plain.flatten().tolist()]
    return plain.flatten().tolist()


def tensor(values: list, dtype: str) -> Tensor:
    """The tensor that such a list was, flattened; dtype by its name in torch."""
    return torch.tensor([float(v) if isinstance(v, str) else v for v in values], dtype=getattr(torch, dtype))


def plain(value: Any) -> Any:
    """A value of a threat: numbers and texts as they are, tensors with their shape, dataclasses by their fields."""
    if isinstance(value, Tensor):
        facts = {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
        if value.numel() <= FEW:
            return facts | {"numbers": numbers(value)}
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return facts | {"packed": base64.b64encode(zlib.compress(raw)).decode()}
    if isinstance(value, float) and not np.isfinite(value):
        return {"number": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__} | {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    return getattr(value, "__qualname__", type(value).__qualname__)


def restored(value: Any) -> Any:
    """Inverse of `plain` for numbers, tensors and a `Ball`; any other threat stays the facts that were written."""
    if not isinstance(value, dict):
        return value
    if "number" in value:
        return float(value["number"])
    if "dtype" in value:
        if "numbers" in value:
            return tensor(value["numbers"], value["dtype"]).view(value["shape"])
        raw = bytearray(zlib.decompress(base64.b64decode(value["packed"])))
        return torch.frombuffer(raw, dtype=getattr(torch, value["dtype"])).view(value["shape"])
    if value.get("type") == "Ball":
        return Ball(**{name: restored(one) for name, one in value.items() if name != "type"})
    return value
