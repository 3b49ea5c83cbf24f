"""How robust a model is: accuracy under attack against eps, with intervals, counts and signs that an attack failed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adversarial.attacks.base import Attack, chosen_rows
from adversarial.goals import goal_of
from adversarial.marks import mark_of
from adversarial.probe import inspected, logits_of
from adversarial.processes import agreed, gathered, share_of
from adversarial.shares import curve_of, finished, line, names_of, table, wilson
from adversarial.threat import Ball
from reprogram.files import atomic_file

if TYPE_CHECKING:
    from accelerate import Accelerator
    from matplotlib.axes import Axes

WORST = "worst case"
Maker = Callable[[Ball], Attack]


@dataclass(frozen=True)
class Point:
    """Accuracy under one attack at one eps: `low` to `high` is Wilson's 95 % interval over n samples.

    `broken` says of each sample whether it was broken; `forwards` and `backwards` are passes per sample at this eps alone.
    """

    attack: str
    eps: float
    accuracy: float
    low: float
    high: float
    n: int
    forwards: float
    backwards: float
    seconds: float
    broken: tuple[bool, ...]

    @property
    def name(self) -> str:
        return self.attack


@dataclass(frozen=True)
class Robustness:
    """Accuracy under several attacks and in the worst case over them, at several eps."""

    norm: str
    points: tuple[Point, ...]
    mark: str = ""

    def curve(self, attack: str = WORST) -> list[Point]:
        """One attack's points by growing eps. Raises ValueError for a name that is not there."""
        return curve_of(self.points, attack, "an attack")

    def to_json(self, path: str | Path) -> None:
        with atomic_file(path) as writing:
            writing.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def from_json(cls, path: str | Path) -> Robustness:
        return cls.from_dict(json.loads(Path(path).read_text()))

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Robustness:
        """Inverse of `dataclasses.asdict`."""
        points = tuple(Point(**point | {"broken": tuple(point["broken"])}) for point in facts["points"])
        return cls(facts["norm"], points, facts["mark"])

    def to_markdown(self) -> str:
        """A line per attack, a column per eps."""
        lines = table(self.points, "accuracy under", self.norm)
        return "\n".join([*lines, "", f"n = {self.points[0].n}, 95 % intervals (Wilson) over samples"])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Accuracy against eps, a line per attack; the band is the interval of the worst case."""
        from reprogram.plot import COLOURS, new_axes

        ax = ax or new_axes()
        for i, name in enumerate(names_of(self.points)):
            worst = name == WORST  # broad and behind: it lies on the strongest attack
            line(ax, self.curve(name), broad=worst, band=worst, **({} if worst else {"color": COLOURS[i % 6]}))
        return finished(ax, self.norm, "accuracy under attack")


def evaluate(
    model: nn.Module, x: Tensor, y: Tensor, attacks: Mapping[str, Maker], *, threat: Ball, eps: Sequence[float],
    seed: int = 0, batch_size: int = 1024, out: str | Path | None = None, progress: bool = True,
    accelerator: Accelerator | None = None,
) -> Robustness:  # fmt: skip
    """Accuracy under each attack at each eps, and in the worst case over all of them.

    Args:
        model, x, y: a module that returns logits, inputs (B, …) and classes (B,).
        attacks: by name, what makes an attack of a threat: `PGD`, `AutoAttack`, `lambda ball: PGD(ball, steps=100)`.
        threat: norm, bounds and mask; its eps is replaced.
        eps: sizes; 0 gives the clean accuracy. A sample that an attack broke at a smaller one counts as broken at a larger
            one, which holds its example too.
        out: a JSON file; a run that was stopped goes on from what it holds.
        accelerator: of several processes, in each of which model, inputs and labels are the same: each process attacks its
            share of the samples, all return the same points, and the main one writes. Seconds are the main process's.

    Raises: ValueError for no attack, no eps or a negative one, and for a file of another evaluation; GoalError for no input
    and for labels that are not classes.
    """
    from tqdm.auto import tqdm

    if not attacks or not eps or min(eps) < 0:
        raise ValueError(f"expected at least one attack and eps of 0 or more, got {list(attacks)} and {list(eps)}")
    main = accelerator is None or accelerator.is_main_process
    mark = mark_of(
        model, x, y, threat, {name: make(replace(threat, eps=max(eps) or 1.0)) for name, make in attacks.items()}, seed
    )
    found = agreed(kept(out, mark) if main else None, accelerator)
    clean = wrong(model, x, y, batch_size, accelerator)
    cells = [(name, size) for name in attacks for size in sorted(set(eps))]
    broken = dict.fromkeys(attacks, clean)
    for name, size in tqdm(cells, desc="attack", delay=2, disable=not (progress and main)):
        point = next((p for p in found if (p.attack, p.eps) == (name, float(size))), None)
        if point is None:
            own = None if size == 0 else attacks[name](replace(threat, eps=size))
            point = measured(name, float(size), model, x, y, own, broken[name], seed, batch_size, accelerator)
            found.append(point)
            if out is not None and main:
                Robustness(threat.norm, tuple(found), mark).to_json(out)
        broken[name] = torch.tensor(point.broken, device=x.device)
    return agreed(Robustness(threat.norm, (*found, *worst_case(found)), mark), accelerator)


def measured(
    name: str, eps: float, model: nn.Module, x: Tensor, y: Tensor, attack: Attack | None, broken: Tensor, seed: int,
    batch_size: int, accelerator: Accelerator | None,
) -> Point:  # fmt: skip
    """One attack at one eps, on what is not broken yet."""
    rows, started = (~broken).nonzero()[:, 0], time.perf_counter()
    forwards = backwards = 0
    if attack is not None and len(rows):
        generator = torch.Generator().manual_seed(seed)
        options = {"generator": generator, "batch_size": batch_size, "accelerator": accelerator}
        result = attack.run(model, x, y, rows=rows, **options)  # type: ignore[arg-type]
        broken = broken.clone()
        broken[rows[result.success]] = True
        forwards, backwards = int(result.forwards.sum()), int(result.backwards.sum())
    return point_of(name, eps, broken, forwards, backwards, time.perf_counter() - started)


def point_of(name: str, eps: float, broken: Tensor, forwards: int, backwards: int, seconds: float) -> Point:
    n, right = len(broken), int((~broken).sum())
    passes = forwards / n, backwards / n
    return Point(name, eps, right / n, *wilson(right, n), n, *passes, round(seconds, 3), tuple(broken.tolist()))


def worst_case(points: Sequence[Point]) -> list[Point]:
    """A sample counts as right at an eps where no attack broke it."""
    if len({point.attack for point in points}) < 2:
        return [replace(point, attack=WORST) for point in points]
    found = []
    for size in sorted({point.eps for point in points}):
        some = [point for point in points if point.eps == size]
        broken = torch.tensor([point.broken for point in some]).any(0)
        n = len(broken)
        forwards, backwards = (round(n * sum(getattr(p, name) for p in some)) for name in ("forwards", "backwards"))
        found.append(point_of(WORST, size, broken, forwards, backwards, sum(point.seconds for point in some)))
    return found


@torch.no_grad()
def wrong(model: nn.Module, x: Tensor, y: Tensor, batch_size: int, accelerator: Accelerator | None = None) -> Tensor:
    """Which clean samples the model gets wrong (B,)."""
    goal = goal_of(y, x)
    own, places = share_of(chosen_rows(x, None), accelerator)
    answers = []
    with inspected(model, x):
        for rows in own.split(batch_size):
            outputs = logits_of(model(x[rows]), len(rows))
            goal[rows].check(outputs)
            answers.append(goal[rows].reached(outputs))
    return gathered({"wrong": torch.cat(answers)}, places, accelerator)["wrong"]


def kept(out: str | Path | None, mark: str) -> list[Point]:
    """Points of a run that was stopped."""
    if out is None or not Path(out).is_file():
        return []
    before = Robustness.from_json(out)
    if before.mark != mark:
        raise ValueError(
            f"expected the evaluation that {out} was begun with, got another model, data, threat, seed or other attacks; "
            "choose another file"
        )
    return [point for point in before.points if point.attack != WORST]
