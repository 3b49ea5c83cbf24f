"""Rows over several processes: each takes its share, and the results are gathered once."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adversarial.probe import Result

if TYPE_CHECKING:
    from accelerate import Accelerator


def several(accelerator: Accelerator | None) -> bool:
    return accelerator is not None and accelerator.num_processes > 1


def share_of(rows: Tensor, accelerator: Accelerator | None) -> tuple[Tensor, Tensor]:
    """The rows (b,) of this process and their places among all; the last of them may be repeated, so that every process
    has as many."""
    places = torch.arange(len(rows), device=rows.device)
    if several(accelerator):
        with accelerator.split_between_processes(places.tolist(), apply_padding=True) as own:  # type: ignore[union-attr]
            places = torch.tensor(own, device=rows.device)
    return rows[places], places


def gathered(parts: dict[str, Tensor], places: Tensor, accelerator: Accelerator | None) -> dict[str, Tensor]:
    """What all processes found, each tensor in the order of all rows; every process gets it."""
    if not several(accelerator):
        return parts
    from accelerate.utils import gather

    everything: dict[str, Any] = gather({**parts, "": places})
    everywhere = everything.pop("")
    first = torch.empty(int(everywhere.max()) + 1, dtype=torch.long, device=places.device)
    first[everywhere] = torch.arange(len(everywhere), device=places.device)
    return {name: values[first] for name, values in everything.items()}


def whole(result: Result, places: Tensor, accelerator: Accelerator | None) -> Result:
    """The result of all rows, from every process's own."""
    found = {field.name: getattr(result, field.name) for field in fields(Result)}
    return Result(**gathered(found, places, accelerator))


def agreed(value: Any, accelerator: Accelerator | None) -> Any:
    """The main process's value, in every process."""
    if not several(accelerator):
        return value
    from accelerate.utils import broadcast_object_list

    values = [value]
    broadcast_object_list(values)
    return values[0]
