"""`Reprogrammed` inside `transformers.Trainer`: rows as it wants them, and their collator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from reprogram.features import features_of, target_tensor
from reprogram.model import Reprogrammed


def trainer_rows(model: Reprogrammed, inputs: Sequence[Any], y: Any, *, start: bool = True) -> list[dict[str, Any]]:
    """Rows for `Trainer(train_dataset=...)`; targets as `fit` takes them.

    `start=True` also sets the scales of the map from these rows, as `fit` does: pass False for evaluation rows.
    Use with `data_collator=trainer_collator(model)` and `TrainingArguments(remove_unused_columns=False)`.

    Raises: DataError for targets that do not fit the map.
    """
    records, targets = model.encode(list(inputs)), target_tensor(y, model.mapping.kind)
    if start:
        with torch.no_grad():
            model.mapping.prepare(features_of(model, records), targets)
    return [{"x": record, "labels": target} for record, target in zip(records, targets, strict=True)]


def trainer_collator(model: Reprogrammed) -> Callable[[Sequence[dict[str, Any]]], dict[str, Any]]:
    """Rows of `trainer_rows` to one batch."""

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any | Tensor]:
        return {"x": model.collate([row["x"] for row in rows]), "labels": torch.stack([row["labels"] for row in rows])}

    return collate
