"""Raw targets and records as tensors: targets by kind, and the source features of every record, each computed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from reprogram.batching import sorted_batches
from reprogram.errors import DataError
from reprogram.side_by_side import CACHED

if TYPE_CHECKING:
    from reprogram.model import Reprogrammed

Inputs = TypeVar("Inputs", bound=Iterable[Any])
EVALUATION_BATCH = 64
KINDS = ("regression", "classification", "multilabel")


def target_tensor(targets: Any, kind: str) -> Tensor:
    """Targets as float (n, T) with NaN where one is missing, or long (n,) class indices.

    Raises: DataError, one sentence with the row, for what `kind` does not allow.
    """
    if kind not in KINDS:
        raise DataError(f"expected kind to be one of {', '.join(KINDS)}, got {kind!r}")
    try:
        y = np.asarray(targets).astype(float)
    except (TypeError, ValueError):
        raise DataError(f"expected numbers as targets, got {str(targets)[:60]}; number classes from 0") from None
    shapes = (1,) if kind == "classification" else (1, 2)
    if y.ndim not in shapes:
        raise DataError(f"expected targets of shape {'(n,)' if len(shapes) == 1 else '(n,) or (n, T)'}, got {y.shape}")
    allowed = {
        "regression": (~np.isinf(y), "finite values, or NaN where one is missing"),
        "classification": ((y >= 0) & (y == np.floor(y)) & (y < np.inf), "class indices 0, 1, 2, …"),
        "multilabel": ((y == 0) | (y == 1) | np.isnan(y), "labels 0 and 1, or NaN where one is missing"),
    }
    fine, wanted = allowed[kind]
    if not fine.all():
        place = tuple(np.argwhere(~fine)[0])
        raise DataError(f"expected {wanted} as {kind} targets, got {y[place]} in row {place[0]}")
    if empty := [t for t, known in enumerate((~np.isnan(y.reshape(len(y), -1))).any(0)) if not known and len(y)]:
        raise DataError(f"expected at least one known target per column, got none in column {empty[0]}; drop it")
    if kind == "classification":
        return torch.from_numpy(y).long()
    return column(torch.from_numpy(y).float(), kind)


def column(y: Tensor, kind: str) -> Tensor:
    """Values and labels are always (n, T)."""
    return y[:, None] if kind != "classification" and y.ndim == 1 else y


def no_text(inputs: Inputs) -> Inputs:
    """`inputs`, unless it is one text, which would be read letter by letter: then a DataError."""
    if isinstance(inputs, str):
        raise DataError(f"expected a list of inputs, got the text {inputs[:40]!r}; pass [{inputs[:40]!r}]")
    return inputs


def move(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch, also one of batches, with its tensors on `device`."""
    return {k: move(v, device) if isinstance(v, dict) else v.to(device) for k, v in batch.items()}


def source_features(program: nn.Module, source: nn.Module, records: Sequence[dict], accelerator: Any = None) -> Tensor:
    """Frozen features of every record in order, (n, S); what already carries them is only gathered."""
    if CACHED in records[0]:
        return torch.stack([record[CACHED] for record in records])
    device = next((t.device for t in [*source.parameters(), *source.buffers()]), torch.device("cpu"))
    return run_sharded(lambda x: source(program(x)), program, records, accelerator, device)


def features_of(model: Reprogrammed, records: Sequence[dict], accelerator: Any = None) -> Tensor:
    """Source features of every record under the model's present program, (n, S)."""
    return source_features(model.program, model.source, records, accelerator)


@torch.no_grad()
def run_sharded(
    function, program: nn.Module, records: Sequence[dict], accelerator: Any, device: torch.device
) -> Tensor:
    """`function` of every record's batch, rows in order; over several processes each row is computed once."""
    from accelerate.utils import gather_object

    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator is not None else (0, 1)
    pieces = []
    for rows in sorted_batches([program.length(r) for r in records], EVALUATION_BATCH)[rank::world]:
        pieces.append((rows, function(move(program.collate([records[i] for i in rows]), device)).cpu()))
    if world > 1:
        pieces = gather_object(pieces)
    order = torch.tensor([i for rows, _ in pieces for i in rows]).argsort()
    return torch.cat([values for _, values in pieces])[order].to(device)
