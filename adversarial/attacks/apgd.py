"""Auto-PGD: a step length that halves itself where the loss stops growing; no length to choose."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from adversarial.attacks.base import Attack
from adversarial.attacks.gradient import filled, sparse
from adversarial.goals import Goal, Targeted, Untargeted
from adversarial.probe import Probe
from adversarial.streams import Streams
from adversarial.threat import Region, Threat

MOMENTUM, ENOUGH = 0.75, 0.75  # share of the plain step; share of steps that must raise the loss
TOGETHER = 1024  # points of one pass when every row is aimed at several classes at once
FIRST, SHRINK, LEAST = 0.22, 0.03, 0.06  # of the steps: first checkpoint, how much shorter each next, shortest
SPARSE, SHORTER, SMALLEST, PERIOD, SETTLED = 0.2, 1.5, 10.0, 0.04, 0.95  # l1: first share of features, and its schedule


@dataclass
class State:
    """What one restart knows of each sample that is left."""

    rows: Tensor
    region: Region
    aim: Goal
    z: Tensor
    before: Tensor
    best: Tensor
    gradient: Tensor
    best_gradient: Tensor
    loss: Tensor
    best_loss: Tensor
    length: Tensor  # (b,) of a step
    rose: Tensor  # steps since the last checkpoint that raised the loss
    checked: Tensor  # best loss at the last checkpoint
    halved: Tensor  # whether the step was halved there
    share: Tensor  # l1: of the features that move
    support: Tensor  # l1: features changed at the last checkpoint

    def keep(self, rows: Tensor) -> State:
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True)
class APGD(Attack):
    r"""Auto-PGD for linf, l2 and l1.

    Steps have momentum; at checkpoints that come faster and faster a sample's step is halved, and it goes back to its best
    point, when fewer than three quarters of the steps raised its loss, or neither step nor best loss changed. For l1 the
    steps are sparse and the radius shrinks from three times eps to eps.

    Args:
        threat: a `Ball` (for l1 its radius is scaled), or anything else whose region is not l0.
        steps: 100 in the paper.
        restarts: random beginnings for those that are not broken yet.
        loss: "ce" or "dlr", also "margin".
        targets: with a number, so many classes that come next to the true one are each aimed at, all at once; `loss` should
            then be "dlr". A goal that is no class label is aimed at as it is.

    Reference: Croce & Hein, ICML 2020, arXiv:2003.01690; l1: Croce & Hein, ICML 2021, arXiv:2103.01208.
    Differs from the authors' code: the first check counts its last step too; a sample that is broken leaves at once.
    """

    threat: Threat
    steps: int = 100
    restarts: int = 1
    loss: str = "ce"
    targets: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.targets < 0:
            raise ValueError(f"expected at least one step and one restart, got {self}")

    def search(self, probe: Probe, streams: Streams) -> None:
        if probe.region.norm == "l0":
            raise ValueError("expected a threat of norm linf, l2 or l1 for APGD, got l0; use PGD or SigmaZero")
        classes = runners_up(probe, self.targets) if self.targets and isinstance(probe.goal, Untargeted) else None
        probe.copies, count = classes is not None, 1 if classes is None else classes.shape[1]
        for _ in range(self.restarts):
            for rows in probe.open.split(max(TOGETHER // count, 1)):
                self.restart(probe, rows, classes, streams)
        probe.copies = False

    def restart(self, probe: Probe, own: Tensor, classes: Tensor | None, streams: Streams) -> None:
        """One run from random beginnings for these rows, with as many copies of each as it has `classes` to aim at.

        The aim gives the loss, the probe's goal the end; copies leave together.
        """
        if not len(own):
            return
        probe.region[own].check_bounded()
        count = 1 if classes is None else classes.shape[1]
        rows = own.repeat_interleave(count)
        aim, region = probe.goal[rows], probe.region[rows]
        if classes is not None:
            aim = Targeted(classes[own].flatten(), aim.labels)
        if region.norm != "l1":
            self.ascend(probe, aim, rows, region, begun(probe.region[own], streams, own, count), self.steps)
            return
        start = None
        shares = (round(0.3 * self.steps), round(0.3 * self.steps))
        for factor, steps in zip((3.0, 2.0, 1.0), (*shares, self.steps - sum(shares)), strict=True):
            wide = replace(region, eps=factor * region.eps)
            if start is None:
                first = replace(probe.region[own], eps=factor * probe.region[own].eps)
                start = begun(first, streams, own, count)
            best = self.ascend(probe, aim, rows, wide, wide.project(start), max(steps, 1))
            some = ~probe.reached[rows]
            rows, region, aim, start = rows[some], region[some], aim[some], best
            if not len(rows):
                return

    def ascend(self, probe: Probe, aim: Goal, rows: Tensor, region: Region, z: Tensor, steps: int) -> Tensor:
        """`steps` steps within a region; the best points of the rows that are not broken."""
        size = region.low.shape[1]
        gradient, loss = probe.gradient(z, rows, self.loss, aim)
        state = State(
            rows, region, aim, z, z, z, gradient, gradient, loss, loss,
            length=(1.0 if region.norm == "l1" else 2.0) * region.eps, rose=torch.zeros_like(rows), checked=loss.clone(),
            halved=torch.ones_like(rows, dtype=torch.bool), share=torch.full_like(loss, SPARSE),
            support=torch.full_like(loss, size),
        )  # fmt: skip
        period = max(int(FIRST * steps), 1) if region.norm != "l1" else max(int(PERIOD * steps), 1)
        since = 0
        for step in range(steps):
            state = self.stepped(probe, state, first=step == 0, last=step == steps - 1)
            since += 1
            if since == period:
                if region.norm == "l1":
                    self.adapt_sparse(state)
                else:
                    self.adapt(state, period)
                    period = max(period - max(int(SHRINK * steps), 1), max(int(LEAST * steps), 1))
                since = 0
            keep = ~probe.reached[state.rows]
            if not keep.all():
                state = state.keep(filled(keep) if keep.any() else keep)
                if not len(state.rows):
                    break
        return state.best[~probe.reached[state.rows]]

    def stepped(self, probe: Probe, state: State, *, first: bool, last: bool) -> State:
        """One step with momentum, and what the model says there."""
        region, wide = state.region, (-1, *(1,) * (state.z.ndim - 1))
        length = state.length.view(wide)
        if region.norm == "l1":
            z = region.project(state.z + length * sparse(region, state.z, state.gradient, state.share))
        else:
            z = region.project(state.z + length * region.direction(state.gradient))
            plain = 1.0 if first else MOMENTUM
            mixed = torch.add(state.z, z - state.z, alpha=plain).add_(state.z - state.before, alpha=1 - plain)
            z = region.project(mixed)
        state.before, state.z, old = state.z, z, state.loss
        if last:  # nobody asks for its gradient
            state.loss = probe.losses(z, state.rows, self.loss, state.aim)
        else:
            state.gradient, state.loss = probe.gradient(z, state.rows, self.loss, state.aim)
        state.rose = state.rose + (state.loss > old)
        better = state.loss > state.best_loss
        state.best_loss = torch.where(better, state.loss, state.best_loss)
        state.best = torch.where(better.view(wide), z, state.best)
        state.best_gradient = torch.where(better.view(wide), state.gradient, state.best_gradient)
        return state

    @staticmethod
    def adapt(state: State, period: int) -> None:
        """Halve the step where it no longer pays, and go back to the best point."""
        stuck = state.rose <= ENOUGH * period
        halve = stuck | (~state.halved & (state.best_loss <= state.checked))
        state.length = torch.where(halve, state.length / 2, state.length)
        wide = halve.view(-1, *(1,) * (state.z.ndim - 1))
        state.z, state.gradient = (
            torch.where(wide, state.best, state.z),
            torch.where(wide, state.best_gradient, state.gradient),
        )
        state.loss = torch.where(halve, state.best_loss, state.loss)
        state.halved, state.checked, state.rose = halve, state.best_loss.clone(), torch.zeros_like(state.rose)

    @staticmethod
    def adapt_sparse(state: State) -> None:
        """l1: move fewer features when the change has become sparser, else shorten the step."""
        changed = (state.region.steps(state.best) != 0).sum(1).to(state.share.dtype)
        sparser = changed < SETTLED * state.support
        state.share = changed / state.region.low.shape[1] / SHORTER
        eps = state.region.eps
        state.length = torch.where(sparser, eps, state.length / SHORTER).clamp(min=eps / SMALLEST, max=eps)
        state.support = changed
        wide = sparser.view(-1, *(1,) * (state.z.ndim - 1))
        state.z, state.gradient = (
            torch.where(wide, state.best, state.z),
            torch.where(wide, state.best_gradient, state.gradient),
        )
        state.loss = torch.where(sparser, state.best_loss, state.loss)


def runners_up(probe: Probe, count: int) -> Tensor:
    """The class with the highest logit but the true one for every clean input, then the next: at most `count` (B, K)."""
    order = probe.clean.scatter(1, probe.goal.labels[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
    return order[:, : min(count, order.shape[1] - 1)]


def begun(region: Region, streams: Streams, rows: Tensor, count: int) -> Tensor:
    """`count` beginnings of each row, (b · count, …)."""
    return torch.stack([begin(region, streams, rows) for _ in range(count)], 1).flatten(0, 1)


def begin(region: Region, streams: Streams, rows: Tensor) -> Tensor:
    """Where a run begins: uniform numbers scaled to touch the ball (linf), Gaussian ones of length eps (l2), or projected (l1)."""
    size = region.low.shape[1]
    if region.norm == "linf":
        noise = 2 * streams.uniform(rows, size) - 1
        noise = noise / noise.abs().amax(1, keepdim=True)
        reach = torch.maximum(region.high, -region.low)
        return region.project(
            region.anchor + (noise * torch.minimum(reach, region.eps[:, None])).view_as(region.anchor)
        )
    noise = streams.normal(rows, size)
    if region.norm == "l2":
        noise = noise / noise.norm(dim=1, keepdim=True) * region.eps[:, None]
    return region.project(region.anchor + noise.view_as(region.anchor))
