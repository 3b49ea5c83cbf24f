"""A goal seen as planes: the numbers one of which has to rise above zero, and the shortest way to a plane inside a box."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adversarial.goals import Goal, GoalError, LargerError, MultiLabel, Untargeted
from adversarial.probe import Probe
from adversarial.threat import ANYWHERE, DUAL, Norm, Region, norm_of

ANY_L2, ANY_L0 = ANYWHERE["l2"], ANYWHERE["l0"]


def nearest(normal: Tensor, gap: Tensor, low: Tensor, high: Tensor, norm: Norm) -> Tensor:
    r"""The shortest step d within [low, high] with $w^T d = gap$, exactly; normals w (n, D), gaps (n,) of either sign.

    For l2 and linf it is $\operatorname{sign}(w)\min(s\,v, room)$ with v = |w| or 1, for l1 and l0 the coordinates that
    gain most are filled one after the other. Limits are around zero and may be infinite. Where the box ends before the
    plane, it is the corner that comes closest.

    Reference: Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020,
    arXiv:1907.02044.
    """
    w = normal * torch.where(gap < 0, -1.0, 1.0).to(normal.dtype)[:, None]
    largest = w.abs().amax(1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    size, gap = w.abs() / largest, gap.abs() / largest[:, 0]  # squares of small gradients would vanish
    room = torch.where(w > 0, high, -low).clamp_min(0)
    room, gap = torch.where(size > 0, room, 0), torch.where(size.amax(1) > 0, gap, 0)  # no plane, no step
    if norm in ("l2", "linf"):
        return w.sign() * stretched(size, size if norm == "l2" else torch.ones_like(size), room, gap)
    return w.sign() * filled(size, room, gap, by=size if norm == "l1" else size * room)


def stretched(size: Tensor, speed: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    r"""$\min(s\,v, room)$ with $\sum_i |w_i| \min(s\,v_i, room_i) = gap$: straight pieces in s between the coordinates' ends."""
    plain = speed * (gap / (size * speed).sum(1).clamp_min(torch.finfo(gap.dtype).tiny))[:, None]
    over = (plain > room).any(1)
    if not over.any():
        return plain
    size, speed, room, gap = size[over], speed[over], room[over], gap[over, None]
    ends, order = (room / speed.clamp_min(torch.finfo(gap.dtype).tiny)).sort(dim=1, stable=True)
    held = (size * room).gather(1, order).cumsum(1)
    before = torch.cat([torch.zeros_like(gap), held[:, :-1]], dim=1)
    free = (size * speed).gather(1, order).flip(1).cumsum(1).flip(1)
    gains = (before + ends * free).nan_to_num(torch.inf, torch.inf)
    last = (gains < gap).sum(1, keepdim=True)
    piece = last.clamp(max=gains.shape[1] - 1)
    s = (gap - before.gather(1, piece)) / free.gather(1, piece).clamp_min(torch.finfo(gap.dtype).tiny)
    s = torch.where(last == gains.shape[1], torch.inf, s.clamp_min(0))  # out of reach: to the corner
    return plain.index_put((over,), torch.minimum((s * speed).nan_to_num(0.0, torch.inf), room))


def filled(size: Tensor, room: Tensor, gap: Tensor, by: Tensor) -> Tensor:
    """Coordinates filled in the order of `by` until they gain `gap` together."""
    order = by.argsort(dim=1, descending=True, stable=True)
    size, room = size.gather(1, order), room.gather(1, order)
    gained = (size * room).nan_to_num(0.0, torch.inf).cumsum(1)
    before = torch.cat([torch.zeros_like(gap)[:, None], gained[:, :-1]], dim=1)
    missing = (gap[:, None] - before).clamp_min(0)
    taken = torch.minimum(missing / size.clamp_min(torch.finfo(gap.dtype).tiny), room)
    return torch.zeros_like(taken).scatter(1, order, taken)


def room_at(region: Region, z: Tensor) -> tuple[Tensor, Tensor]:
    """How far points of a region may still move down and up (b, D)."""
    steps = region.steps(z)
    return (region.low - steps).clamp(max=0), (region.high - steps).clamp(min=0)


def steepness(gradients: Tensor, norm: Norm) -> Tensor:
    """By how much a linear function grows with a step of unit norm (b, K), for gradients (b, K, D)."""
    dual = DUAL["l1" if norm == "l0" else norm]
    return norm_of(gradients.flatten(0, 1), dual).view(gradients.shape[:2])


def candidates(probe: Probe, count: int) -> Tensor:
    """The places (B, K) among a goal's outputs that come nearest to reaching it for the clean inputs, at most `count`.

    Raises: GoalError for an error without a tolerance, which no boundary belongs to.
    """
    goal, outputs = probe.goal, probe.clean
    if isinstance(goal, LargerError) and goal.tolerance == float("inf"):
        raise GoalError(
            "expected a tolerance of the error for an attack of least norm, got none; pass LargerError(y, tolerance)"
        )
    if isinstance(goal, Untargeted):
        close, count = outputs.scatter(1, goal.labels[:, None], -torch.inf), min(count, outputs.shape[1] - 1)
    elif isinstance(goal, MultiLabel):
        close, count = signed(goal, outputs), min(count, outputs.shape[1])
    else:
        close, count = outputs, 0
    return close.argsort(dim=1, descending=True, stable=True)[:, :count]


def signed(goal: MultiLabel, outputs: Tensor) -> Tensor:
    """Logits that are above zero where a label is decided otherwise."""
    return outputs * (1 - 2 * goal.labels.to(outputs.dtype))


def faces(goal: Goal, outputs: Tensor, places: Tensor) -> Tensor:
    """Numbers (b, K), one of which is above zero where the goal is reached: one for each of the places (b, K), two for each
    value of a regression, the margin alone for other goals."""
    if isinstance(goal, Untargeted):
        return outputs.gather(1, places) - outputs.gather(1, goal.labels[:, None])
    if isinstance(goal, MultiLabel):
        return signed(goal, outputs).gather(1, places)
    if isinstance(goal, LargerError):
        error = outputs - goal.values.view_as(outputs)
        return torch.cat([error, -error], dim=1) - goal.tolerance
    return goal.loss(outputs, "margin")[:, None]


def faces_at(goal: Goal, places: Tensor) -> Callable[[Tensor], Tensor]:
    """`faces` as a function of the outputs alone."""
    return lambda outputs: faces(goal, outputs, places)


def shorten(probe: Probe, bisections: int) -> None:
    """Bisect between the clean inputs and the examples that were found; the probe keeps the nearest."""
    rows = probe.sound[probe.reached[probe.sound]]
    if not len(rows):
        return
    region, far = probe.region[rows], probe.found[rows]
    step, goal = region.steps(far), probe.goal[rows]
    short, long = torch.zeros_like(step[:, :1]), torch.ones_like(step[:, :1])
    for _ in range(bisections):
        middle = (short + long) / 2
        reached = goal.reached(probe.outputs(region.moved(middle * step), rows))[:, None]
        short, long = torch.where(reached, short, middle), torch.where(reached, middle, long)
