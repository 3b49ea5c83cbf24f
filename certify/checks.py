"""What every certifier asks of its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from certify.engine.graph import Graph
from certify.engine.tracing import check_still
from certify.errors import CertifyError


def answers(model: nn.Module | Graph, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """Logits (B, classes) of inputs, of which y are labels. Raises: CertifyError for a model in training, and as `logits_of`."""
    if batch_size < 1:
        raise CertifyError(f"expected a batch_size above 0, got {batch_size}")
    if not isinstance(model, Graph):
        check_still(model)
    logits = torch.cat([logits_of(model, rows) for rows in x.split(batch_size)])
    check_classes(y, logits)
    return logits


@torch.no_grad()
def logits_of(model: nn.Module | Graph, x: Tensor) -> Tensor:
    """What a model says of inputs. Raises: CertifyError where it cannot take them, and where that is no tensor."""
    try:
        found = model(x)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise CertifyError(
            f"expected a model that takes inputs {tuple(x.shape)} of {x.dtype}, got one that refuses them ({reason})"
        ) from error
    if not isinstance(found, Tensor):
        raise CertifyError(
            f"expected a model that returns its logits as a tensor, got a {type(found).__name__}; wrap it in a module whose "
            "forward returns them"
        )
    return found


def check_labels(x: Tensor, y: Tensor) -> None:
    """Raise CertifyError unless there are inputs and y (B,) holds whole numbers, one for each."""
    for what, value in (("inputs", x), ("labels", y)):
        if not isinstance(value, Tensor):
            raise CertifyError(f"expected {what} as a tensor, got a {type(value).__name__}; torch.as_tensor makes one")
    if x.ndim == 0 or len(x) == 0:
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
