"""Universal adversarial perturbations as they were first made: DeepFool's steps for one input after the other, added up."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adversarial.attacks.deepfool import DeepFool
from adversarial.attacks.universal import Universal
from adversarial.goals import Goal, GoalError, goal_of
from adversarial.probe import inspected, logits_of
from adversarial.streams import seed_of
from adversarial.threat import Ball, ThreatError


@dataclass(frozen=True)
class UAP:
    r"""A perturbation that makes most inputs reach the goal: $v \leftarrow P(v + \Delta v_i)$ for every input i that does not
    reach it with v yet, $\Delta v_i$ being DeepFool's way from $x_i + v$ over the boundary.

    Args:
        threat: the ball around every input, l2 or linf; its bounds cut x + v, its mask the perturbation. One eps for all.
        fooled: share of the inputs at which it ends.
        epochs: passes over the inputs at most.
        steps, overshoot, classes: of DeepFool; a walk that does not arrive within its steps is left out.
        batch_size: inputs that are judged at a time after each pass.

    `generator` draws the order of the inputs, which are taken one by one: `UniversalPerturbation` follows gradients of
    batches, which is much faster. The result belongs to the whole set: leave one out and it changes.

    Reference: Moosavi-Dezfooli et al., "Universal adversarial perturbations", CVPR 2017, arXiv:1610.08401; ten passes at most and
    ten steps of DeepFool as in the authors' code, where passes have no limit.
    Differs from the paper: an input counts as fooled when it reaches the goal, not when its prediction changes; bounds; the
    best of the passes is kept.
    """

    threat: Ball
    fooled: float = 0.8
    epochs: int = 10
    steps: int = 10
    overshoot: float = 0.02
    classes: int = 10
    batch_size: int = 1024

    def __post_init__(self) -> None:
        if self.threat.norm not in ("linf", "l2"):
            raise ThreatError(
                f"expected a ball of norm linf or l2 for a universal perturbation, got {self.threat.norm}"
            )
        if not 0 < self.fooled <= 1 or min(self.epochs, self.steps, self.batch_size) < 1:
            raise ValueError(
                f"expected a share within (0, 1] and at least one epoch, step and input of a batch, got {self}"
            )

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor | Goal, *, generator: torch.Generator | None = None
    ) -> Universal:
        if not len(x):
            raise GoalError("expected at least one input, got none")
        x = x.detach()
        self.threat.around(x)  # refuses inputs outside the bounds
        if torch.as_tensor(self.threat.eps).numel() != 1:
            raise ThreatError("expected one eps for all inputs of a universal perturbation")
        walk = Walk(self, model, x, goal_of(y, x))
        with inspected(model, x):
            return walk.run(torch.Generator().manual_seed(seed_of(generator)))


class Walk:
    """One run: the perturbation, and the passes of every input."""

    def __init__(self, attack: UAP, model: nn.Module, x: Tensor, goal: Goal):
        self.attack, self.model, self.x, self.goal = attack, model, x, goal
        self.forwards = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self.backwards = self.forwards.clone()
        threat = attack.threat
        self.region = replace(threat, low=None, high=None).around(torch.zeros_like(x[:1]))
        nearest = Ball("l2", math.inf, threat.low, threat.high, threat.mask)
        self.deepfool = DeepFool(nearest, steps=attack.steps, overshoot=attack.overshoot, classes=attack.classes)

    def run(self, draws: torch.Generator) -> Universal:
        natural = self.reached(torch.zeros_like(self.x[:1]))
        change = best = torch.zeros_like(self.x[:1])
        success = natural
        for _ in range(self.attack.epochs):
            for row in torch.randperm(len(self.x), generator=draws).tolist():
                if not natural[row]:
                    change = self.onward(change, row)
            found = self.reached(change)
            if found.sum() > success.sum():
                best, success = change, found
            if success.double().mean() >= self.attack.fooled:
                break
        return Universal(best[0], lambda x: self.moved(x, best), success, natural, self.forwards, self.backwards)

    def onward(self, change: Tensor, row: int) -> Tensor:
        """The perturbation with one input's own step, where that input needs it."""
        start = self.moved(self.x[row : row + 1], change)
        rows = torch.tensor([row], device=self.x.device)
        found = self.deepfool.run(self.model, start, self.goal[rows])
        self.forwards[row] += int(found.forwards)
        self.backwards[row] += int(found.backwards)
        if not bool(found.success) or bool(found.natural):
            return change
        return self.region.project(change + found.x_adv - start)

    def moved(self, x: Tensor, change: Tensor) -> Tensor:
        """Inputs with the perturbation, within the bounds."""
        threat = self.attack.threat
        return torch.clamp(
            x + change.to(x.dtype), threat.bound(threat.low, x, -math.inf), threat.bound(threat.high, x, math.inf)
        )

    @torch.no_grad()
    def reached(self, change: Tensor) -> Tensor:
        """Whether each input reaches the goal with this perturbation (n,)."""
        parts = []
        for rows in torch.arange(len(self.x), device=self.x.device).split(self.attack.batch_size):
            outputs = logits_of(self.model(self.moved(self.x[rows], change)), len(rows))
            self.goal[rows].check(outputs)
            parts.append(self.goal[rows].reached(outputs))
        self.forwards += 1
        return torch.cat(parts)
