"""Attacks made of attacks: the worst of several, restarts, the mean over a model's random draws, AutoAttack."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from adversarial.attacks.apgd import APGD
from adversarial.attacks.base import Attack, chosen_rows
from adversarial.attacks.fab import FAB
from adversarial.attacks.square import Square
from adversarial.goals import Goal, LargerError, goal_of
from adversarial.marks import mark_of
from adversarial.probe import Probe, Result
from adversarial.processes import several, share_of, whole
from adversarial.streams import Streams, seed_of
from adversarial.threat import Region, Threat

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class EOT(Attack):
    """An attack on a model that draws random numbers: outputs and gradients are means over `samples` passes.

    Reference: Athalye, Engstrom, Ilyas & Kwok, "Synthesizing robust adversarial examples", ICML 2018, arXiv:1707.07397.
    """

    attack: Attack
    samples: int = 20

    @property
    def threat(self) -> Threat:  # type: ignore[override]
        return self.attack.threat

    def search(self, probe: Probe, streams: Streams) -> None:
        self.attack.search(probe, streams)

    def probe(self, model: nn.Module, region: Region, goal: Goal, dtype: torch.dtype) -> Probe:
        return Probe(model, region, goal, self.attack.keep, dtype=dtype, samples=self.samples)


@dataclass(frozen=True)
class Worst(Attack):
    """Attacks one after the other, each on the samples that those before it did not break.

    With `nearest` every attack sees every sample and the nearest example counts; so it is with the largest error of a
    regression without tolerance. `run(..., checkpoint=folder)` keeps what is finished, and a run that was stopped
    goes on from there.
    """

    attacks: Sequence[Attack]
    nearest: bool = False

    def __post_init__(self) -> None:
        if not self.attacks:
            raise ValueError("expected at least one attack, got none")

    @property
    def threat(self) -> Threat:  # type: ignore[override]
        return self.attacks[0].threat

    def run(
        self, model: nn.Module, x: Tensor, y: Tensor | Goal, *, rows: Tensor | None = None,
        generator: torch.Generator | None = None, batch_size: int = 1024, progress: bool = False,
        accelerator: Accelerator | None = None, checkpoint: str | Path | None = None,
    ) -> Result:  # fmt: skip
        from tqdm.auto import tqdm

        chosen = chosen_rows(x, rows)
        goal, seed = goal_of(y, x), seed_of(generator)
        own, places = share_of(chosen, accelerator)
        folder = None if checkpoint is None else Path(checkpoint) / share_name(accelerator)
        state = Checkpoint(folder, self, model, x, goal, seed, own)
        result, done = state.read()
        shown = progress and (accelerator is None or accelerator.is_main_process)
        bar = tqdm(self.attacks, desc="attacks", delay=2, disable=not shown, initial=done)
        for number, attack in enumerate(self.attacks):
            if number < done:
                continue
            left = torch.arange(len(own), device=own.device)
            if result is not None:
                left = left[~result.natural] if self.nearest or unbounded(goal) else left[~result.success]
            if len(left):
                fresh = torch.Generator().manual_seed(seed + number)
                part = attack.run(model, x, goal, rows=own[left], generator=fresh, batch_size=batch_size)
                result = part if result is None else merged(result, left, part)
            state.write(result, number + 1)
            bar.update()
        bar.close()
        assert result is not None
        return whole(result, places, accelerator)


def share_name(accelerator: Accelerator | None) -> str:
    """The folder within a checkpoint of what one of several processes has finished."""
    return f"{accelerator.process_index}-of-{accelerator.num_processes}" if several(accelerator) else ""  # type: ignore[union-attr]


def unbounded(goal: Goal) -> bool:
    """Whether nothing ever reaches the goal, so that there is always a worse point to look for."""
    return isinstance(goal, LargerError) and goal.tolerance == float("inf")


def merged(result: Result, rows: Tensor, part: Result) -> Result:
    """Results with those of another attack on some of the rows: nearer examples and larger losses stay, passes add up."""
    found = {field.name: getattr(result, field.name).clone() for field in fields(Result)}
    for name in ("forwards", "backwards", "blind"):
        found[name][rows] += getattr(part, name)
    nearer, larger = part.distance < result.distance[rows], part.loss > result.loss[rows]
    for name in ("x_adv", "success", "distance"):
        found[name][rows[nearer]] = getattr(part, name)[nearer]
    for name in ("worst", "loss"):
        found[name][rows[larger]] = getattr(part, name)[larger]
    return Result(**found)


class Checkpoint:
    """Results after each attack in a folder, as safetensors; without a folder they are forgotten."""

    def __init__(
        self, folder: Path | None, attack: Worst, model: nn.Module, x: Tensor, goal: Goal, seed: int, rows: Tensor
    ):  # fmt: skip
        self.folder = folder
        if self.folder is not None:
            self.mark = mark_of(attack, seed, goal, x, rows, model)

    def read(self) -> tuple[Result | None, int]:
        """What is finished, and how many attacks that are."""
        from safetensors.torch import load_file

        if self.folder is None or not (self.folder / "attack.json").is_file():
            return None, 0
        facts = json.loads((self.folder / "attack.json").read_text())
        if facts["mark"] != self.mark:
            raise ValueError(
                f"expected the attack that {self.folder} was begun with, got other attacks, inputs, labels, weights or "
                "seed; choose another folder"
            )
        return Result(**load_file(self.folder / facts["file"])), facts["done"]

    def write(self, result: Result | None, done: int) -> None:
        from safetensors.torch import save_file

        from reprogram.files import atomic_file

        if self.folder is None or result is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"after-{done}.safetensors"
        with atomic_file(self.folder / name) as path:
            save_file({field.name: getattr(result, field.name).contiguous() for field in fields(Result)}, path)
        with atomic_file(self.folder / "attack.json") as path:
            path.write_text(json.dumps({"mark": self.mark, "done": done, "file": name}))


def Restarts(attack: Attack, count: int) -> Worst:
    """The same attack `count` times with other random numbers, on what is not broken yet."""
    return Worst((attack,) * count)


Version = Literal["standard", "plus", "rand"]


def AutoAttack(threat: Threat, version: Version = "standard") -> Worst:
    """AutoAttack as its authors compose it, for any number of classes from two.

    standard: APGD on cross-entropy, APGD on the targeted DLR loss at nine classes, FAB at nine classes, Square with 5000
    queries. plus: five restarts of APGD on cross-entropy and on DLR and of FAB, Square, then both targeted attacks. rand,
    for models that draw random numbers: APGD on both losses with means over 20 passes. With fewer than ten classes all the
    others are aimed at; below four DLR falls back as `goals.dlr` says. For l1 the standard version restarts the first attack
    five times and aims the second at five classes.

    Reference: Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", ICML 2020, arXiv:2003.01690.
    """
    ce, targeted = APGD(threat), APGD(threat, loss="dlr", targets=9)
    dlr, fab_targeted, square = (
        APGD(threat, loss="dlr"),
        FAB(threat, targets=9),
        Square(threat, queries=5000, rescale=False),
    )
    if version == "standard":
        if getattr(threat, "norm", None) == "l1":
            ce, targeted = replace(ce, restarts=5), replace(targeted, targets=5)
        return Worst((ce, targeted, fab_targeted, square))
    if version == "plus":
        five = (replace(ce, restarts=5), replace(dlr, restarts=5), FAB(threat, restarts=5))
        return Worst((*five, square, targeted, fab_targeted))
    if version == "rand":
        return Worst((EOT(ce), EOT(dlr)))
    raise ValueError(f"expected a version among standard, plus and rand, got {version!r}")
