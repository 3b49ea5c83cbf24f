"""What every attack shares: the way it is called. Its own part is `search`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor, nn

from adversarial.goals import Goal, GoalError, goal_of
from adversarial.probe import Keep, Probe, Result, inspected
from adversarial.processes import share_of, whole
from adversarial.streams import Streams, seed_of
from adversarial.threat import Region, Threat, identity

if TYPE_CHECKING:
    from accelerate import Accelerator


class Attack(Protocol):
    """`attack(model, x, y)` gives inputs of the threat around x (B, …) that the model gets wrong, x itself where it found none.

    `model` is any module that returns logits (B, T), or an object with `logits`. `y` are classes (B,), or a `Goal`:
    `Targeted`, `MultiLabel`, `LargerError`. What a sample comes to depends on the sample and the seed of `generator` only,
    not on the others in its batch (up to the rounding of the model's own arithmetic). The model runs in evaluation mode
    and is left as it was; the global random generator is not touched. A clean input that reaches the goal is its own
    example.

    `run` gives the whole `Result`, with success, distance and passes for each sample, in pieces of `batch_size`; with
    `rows`, numbers of inputs (k,), for these alone. With an `accelerator` of several processes, in each of which model,
    inputs, labels and generator are the same, each process attacks its share of the rows and all get the whole result.

    Raises: ThreatError and GoalError (both ValueError), each with one sentence.
    """

    keep: ClassVar[Keep] = "first"

    threat: Threat

    def search(self, probe: Probe, streams: Streams) -> None: ...

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor | Goal, **options: object) -> Tensor:
        return self.run(model, x, y, **options).x_adv  # type: ignore[arg-type]

    def run(
        self, model: nn.Module, x: Tensor, y: Tensor | Goal, *, rows: Tensor | None = None,
        generator: torch.Generator | None = None, batch_size: int = 1024, progress: bool = False,
        accelerator: Accelerator | None = None,
    ) -> Result:  # fmt: skip
        from tqdm.auto import tqdm

        chosen = chosen_rows(x, rows)
        goal, seed = goal_of(y, x), seed_of(generator)
        own, places = share_of(chosen, accelerator)
        with inspected(model, x):
            precise = x if x.dtype == torch.float64 else x.float()
            region = self.threat.around(precise)  # of all at once: bounds may be a sample's own
            shown = progress and (accelerator is None or accelerator.is_main_process)
            parts = []
            for some in tqdm(own.split(batch_size), desc=type(self).__name__, delay=2, disable=not shown):
                probe = self.probe(model, part_of(region, some), goal[some], x.dtype)
                self.search(probe, Streams(precise[some], seed))  # anchors of a lifted threat are all alike
                parts.append(probe.result())
        return whole(Result.joined(parts), places, accelerator)

    def probe(self, model: nn.Module, region: Region, goal: Goal, dtype: torch.dtype) -> Probe:
        """The model as this attack asks it."""
        return Probe(model, region, goal, self.keep, dtype=dtype)


def chosen_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """Numbers of the inputs to attack (k,), by default of all. Raises GoalError for none."""
    if not len(x) or (rows is not None and not len(rows)):
        raise GoalError("expected at least one input, got none")
    return torch.arange(len(x), device=x.device) if rows is None else rows


def part_of(region: Region, rows: Tensor) -> Region:
    """The region around some inputs, numbered from 0."""
    part = region[rows]
    if region.apply is identity:
        return part
    return replace(part, apply=lambda z, own: region.apply(z, rows[own]))
