"""DeepFool and what builds on it: walk to the nearest linearised boundary, again and again, until the goal is reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from adversarial.attacks.base import Attack
from adversarial.attacks.planes import ANY_L0, ANY_L2, candidates, faces_at, nearest, room_at, shorten, steepness
from adversarial.probe import Keep, Probe
from adversarial.streams import Streams
from adversarial.threat import Norm, Region, Threat, norm_of

ENOUGH = 0.999  # share of the way to the plane at which a step within the bounds counts as one that gets there
SETTLED = 0.999  # of the distance before: what is not below it is no improvement
CROSS = 1e-4  # added to every distance: a step that ends on the plane itself has crossed nothing


@dataclass
class Ends:
    """Where walks ended: points (b, …), the gradients there (b, D) of the face that is highest, and whether the goal is
    reached."""

    points: Tensor
    normals: Tensor
    reached: Tensor


@dataclass(frozen=True)
class DeepFool(Attack):
    r"""The way over the nearest linearised boundary: $r \leftarrow r + \arg\min\{\|d\| : f_k(z) + \nabla f_k^Td = 0\}$ with
    the face k that is nearest, then $z = x + (1 + \eta) r$, until the goal is reached.

    Args:
        threat: l2, linf or l1.
        steps: linearisations at most.
        overshoot: $\eta$, as a share of the way.
        classes: true class included, so many of the highest logits of the clean input are looked at; each other one costs a
            backward pass per step. Labels of a `MultiLabel` goal alike; a target has one face.

        exact: steps are the shortest within the bounds instead of cut off at them: a third of the passes on images with
            many features at a bound, for examples some percent farther away.

    Reference: Moosavi-Dezfooli, Fawzi & Frossard, CVPR 2016, arXiv:1511.04599.
    Differs from the paper: l1; bounds.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANY_L2
    steps: int = 50
    overshoot: float = 0.02
    classes: int = 10
    exact: bool = False

    def __post_init__(self) -> None:
        check_numbers(self)

    def search(self, probe: Probe, streams: Streams) -> None:
        norm = probe.region.norm
        if norm == "l0":
            raise ValueError("expected a threat of norm l2, linf or l1 for DeepFool, got l0; use SparseFool")
        rows, places = probe.sound, candidates(probe, self.classes - 1)
        if len(rows):
            walk(self, probe, rows, probe.region.anchor[rows], places, norm)


@dataclass(frozen=True)
class SuperDeepFool(Attack):
    r"""DeepFool, then the clean input's nearest point of the boundary's tangent plane at where that ended:
    $z = x + \frac{w^T(\tilde x - x)}{\|w\|^2} w$, and DeepFool from there, until z itself reaches the goal or no
    longer comes nearer.

    Args:
        threat: l2, linf or l1.
        rounds: of DeepFool and one projection.
        steps, overshoot, classes, exact: of DeepFool.
        bisections: of the way from the clean input to the example at the end.

    Reference: Abdollahpoorrostam, Abroshan & Moosavi-Dezfooli, "SuperDeepFool: a new fast and accurate minimal adversarial
    attack", NeurIPS 2024, arXiv:2303.12481.
    Differs from the paper: other norms; steps and projections are exact within the bounds; a projection goes beyond its plane
    by the overshoot too.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANY_L2
    rounds: int = 100
    steps: int = 100
    overshoot: float = 0.02
    classes: int = 10
    exact: bool = True
    bisections: int = 10

    def __post_init__(self) -> None:
        check_numbers(self, self.rounds)

    def search(self, probe: Probe, streams: Streams) -> None:
        norm = probe.region.norm
        if norm == "l0":
            raise ValueError("expected a threat of norm l2, linf or l1 for SuperDeepFool, got l0; use SparseFool")
        rows, places = probe.sound, candidates(probe, self.classes - 1)
        z, best = probe.region.anchor[rows], torch.full_like(probe.nearest[rows], torch.inf)
        for _ in range(self.rounds):
            if not len(rows):
                break
            region = probe.region[rows]
            ends = walk(self, probe, rows, z, places, norm)
            gap = (ends.normals * region.steps(ends.points)).sum(1)
            onto = (1 + self.overshoot) * nearest(ends.normals, gap, region.low, region.high, norm)
            found = region.distance(ends.points)
            # a walk that ended where it began found its beginning to be an example
            going = ends.reached & (ends.points != z).flatten(1).any(1) & (found < SETTLED * best)
            rows, z, best = rows[going], region.moved(onto)[going], found[going]
        shorten(probe, self.bisections)


@dataclass(frozen=True)
class SparseFool(Attack):
    r"""Few features: cross the plane $w^T(z - x_B) = 0$ with as few coordinates as it takes, where w is the boundary's
    normal at DeepFool's l2 example $\tilde x$ and $x_B = z + \lambda(\tilde x - z)$; again from there until the goal is reached.

    Args:
        threat: l0, whose coordinates are chosen by what each gains up to its bound, or l1, by what it gains per unit.
        rounds: planes at most.
        reach: $\lambda$, how far beyond the boundary the plane lies; larger needs fewer rounds and more features.
        steps, overshoot, classes, exact: of DeepFool.

    Reference: Modas, Moosavi-Dezfooli & Frossard, "SparseFool: a few pixels make a big difference", CVPR 2019,
    arXiv:1811.02248.
    Differs from the paper: all coordinates of a plane are found in one sort. The paper's order is that of l1.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANY_L0
    rounds: int = 20
    reach: float = 3.0
    steps: int = 50
    overshoot: float = 0.02
    classes: int = 10
    exact: bool = True

    def __post_init__(self) -> None:
        check_numbers(self, self.rounds)

    def search(self, probe: Probe, streams: Streams) -> None:
        norm = probe.region.norm
        if norm not in ("l0", "l1"):
            raise ValueError(f"expected a threat of norm l0 or l1 for SparseFool, got {norm}; use DeepFool")
        rows, places = probe.sound, candidates(probe, self.classes - 1)
        z = probe.region.anchor[rows]
        for _ in range(self.rounds):
            if not len(rows):
                return
            region = probe.region[rows]
            ends = walk(self, probe, rows, z, places, "l2")
            gap = self.reach * (ends.normals * (ends.points - z).flatten(1)).sum(1)
            z = region.moved(region.steps(z) + nearest(ends.normals, gap, *room_at(region, z), norm))
            beyond = region.moved((1 + self.overshoot) * region.steps(z))
            keep = ends.reached & ~probe.goal[rows].reached(probe.outputs(beyond, rows))
            rows, z = rows[keep], z[keep]


class Walker(Protocol):
    """What `walk` asks of an attack."""

    steps: int
    overshoot: float
    classes: int
    exact: bool


def check_numbers(attack: Walker, rounds: int = 1) -> None:
    if attack.steps < 1 or rounds < 1 or attack.classes < 2:
        raise ValueError(f"expected at least one step and round and two classes, got {attack}")


def walk(how: Walker, probe: Probe, rows: Tensor, start: Tensor, places: Tensor, norm: Norm) -> Ends:
    """DeepFool from `start`; a row leaves where its goal is reached, or where it no longer moves."""
    ends = Ends(start.clone(), torch.zeros_like(start).flatten(1), torch.zeros_like(rows, dtype=torch.bool))
    z, way, left = start, torch.zeros_like(start).flatten(1), torch.arange(len(rows), device=rows.device)
    for step in range(how.steps + 1):
        here = rows[left]
        region, goal = probe.region[here], probe.goal[here]
        gradients, values, outputs = probe.jacobian(z, here, faces_at(goal, places[here]))
        gradients, reached = gradients.flatten(2), goal.reached(outputs)
        way = way + to_plane(region, z, gradients, values, norm, how.exact)
        ahead = region.moved(region.steps(start[left]) + (1 + how.overshoot) * way)
        going = ~reached & (ahead != z).flatten(1).any(1) & (step < how.steps)
        done, highest = left[~going], values.argmax(1)[~going]
        ends.points[done], ends.reached[done] = z[~going], reached[~going]
        ends.normals[done] = gradients[(~going).nonzero()[:, 0], highest]
        left, z, way = left[going], ahead[going], way[going]
        if not len(left):
            break
    return ends


def to_plane(region: Region, z: Tensor, gradients: Tensor, values: Tensor, norm: Norm, exact: bool) -> Tensor:
    """The shortest step (b, D) to the nearest of the linearised faces; if exact the shortest within the bounds, where they
    leave room for one."""
    slope = steepness(gradients, norm).clamp_min(torch.finfo(values.dtype).tiny)
    distance = (-values).clamp_min(0) / slope
    gaps, each = (distance + CROSS) * slope, torch.arange(len(z), device=z.device)
    face = distance.argmin(1)
    free = torch.where(region.low == region.high, 0, torch.inf).to(z.dtype)
    step = nearest(gradients[each, face], gaps[each, face], -free, free, norm)
    if exact or norm == "l1":  # without bounds one feature alone would take all of an l1 way
        low, high = room_at(region, z)
        lengths = torch.full_like(distance, torch.inf)
        lengths[each, face] = length_within(gradients[each, face], gaps[each, face], low, high, norm)
        row, other = (distance < lengths[each, face][:, None]).nonzero(as_tuple=True)  # bounds only lengthen a step
        lengths[row, other] = length_within(gradients[row, other], gaps[row, other], low[row], high[row], norm)
        face = lengths.argmin(1)
        within = nearest(gradients[each, face], gaps[each, face], low, high, norm)
        step = torch.where(lengths[each, face].isfinite()[:, None], within, step)
    return step


def length_within(w: Tensor, gap: Tensor, low: Tensor, high: Tensor, norm: Norm) -> Tensor:
    """Length (n,) of the shortest step to each plane within the bounds, infinite where they end before it."""
    step = nearest(w, gap, low, high, norm)
    return torch.where((w * step).sum(1) >= ENOUGH * gap, norm_of(step, norm), torch.inf)
