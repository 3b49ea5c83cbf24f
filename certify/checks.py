"""What every certifier asks of its input."""

from __future__ import annotations

import torch
from torch import Tensor

from certify.errors import CertifyError


def check_labels(x: Tensor, y: Tensor) -> None:
    """Raise CertifyError unless there are inputs and y (B,) holds whole numbers, one for each."""
    if len(x) == 0:
        raise CertifyError("expected at least one input, got none")
    if y.dtype not in (torch.int64, torch.int32) or y.shape != (len(x),):
        raise CertifyError(f"expected labels ({len(x)},) of whole numbers, got {tuple(y.shape)} of {y.dtype}")


def check_floating(x: Tensor) -> None:
    """Raise CertifyError for inputs that are not floating point."""
    if not x.is_floating_point():
        raise CertifyError(f"expected inputs of floating point, got {x.dtype}; scale them to the threat's bounds first")


def check_classes(y: Tensor, logits: Tensor) -> None:
    """Raise CertifyError unless logits are (B, classes) and every label is one of these classes."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise CertifyError(f"expected logits (B, classes) of two classes or more, got {tuple(logits.shape)}")
    outside = (y < 0) | (y >= logits.shape[1])
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise CertifyError(f"expected labels from 0 to {logits.shape[1] - 1}, got {int(y[row])} in row {row}")
