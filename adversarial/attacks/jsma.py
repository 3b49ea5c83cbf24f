"""The saliency map attack: pairs of features that raise the target's logit and lower the others'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adversarial.attacks.base import Attack
from adversarial.attacks.planes import ANY_L0, room_at
from adversarial.goals import Goal, GoalError, Targeted, Untargeted
from adversarial.probe import Keep, Probe
from adversarial.streams import Streams
from adversarial.threat import Region, Threat, ThreatError


@dataclass(frozen=True)
class JSMA(Attack):
    r"""Move the pair of features (p, q) with the largest saliency $-\alpha\beta$, where $\alpha > 0$ is the sum of the
    target logit's derivatives and $\beta < 0$ that of all others', until the target wins.

    Args:
        threat: l0, with bounds; its eps counts features.
        step: how far a feature moves at a time, as a share of the way between its bounds; below 0 features decrease.
        share: of the features may change at most.
        pool: among so many features that are most salient by themselves are pairs looked for; all pairs if there are no more.
        targets: for an untargeted goal, so many classes that come next to the true one are each aimed at in turn.

    Reference: Papernot et al., "The limitations of deep learning in adversarial settings", EuroS&P 2016, arXiv:1511.07528.
    Differs from the paper: logits instead of probabilities, whose derivatives vanish where a model is sure; pairs within a
    pool, as their number grows with the square.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANY_L0
    step: float = 1.0
    share: float = 0.145
    pool: int = 128
    targets: int = 1

    def __post_init__(self) -> None:
        if not 0 < abs(self.step) <= 1 or not 0 < self.share <= 1 or self.pool < 2 or self.targets < 1:
            raise ValueError(f"expected a step and a share up to 1, a pool of two and one target at least, got {self}")

    def search(self, probe: Probe, streams: Streams) -> None:
        region = probe.region
        if region.norm != "l0":
            raise ValueError(f"expected a threat of norm l0 for JSMA, got {region.norm}; use DeepFool or PGD")
        if not bool((region.high.isfinite() & region.low.isfinite()).all()):
            raise ThreatError("expected bounds for JSMA, which moves features from one towards the other, got none")
        for targets in self.aims(probe.goal, probe):
            self.move_pairs(probe, probe.sound, targets)

    def aims(self, goal: Goal, probe: Probe) -> list[Tensor]:
        """Classes (B,) to aim at one after the other."""
        if isinstance(goal, Targeted):
            return [goal.targets]
        if not isinstance(goal, Untargeted):
            raise GoalError(f"expected class labels or Targeted for JSMA, got {type(goal).__name__}; use SparseFool")
        others = probe.clean.scatter(1, goal.labels[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
        return list(others[:, : min(self.targets, others.shape[1] - 1)].T)

    def move_pairs(self, probe: Probe, rows: Tensor, targets: Tensor) -> None:
        """Pairs for one target each; a row leaves where its goal is reached, no pair is salient or too many have moved."""
        size = probe.region.low.shape[1]
        most = torch.clamp(probe.region.eps, max=max(self.share * size, 2.0))
        z = probe.region.anchor[rows]
        while len(rows):
            region, goal = probe.region[rows], probe.goal[rows]
            gradients, _, outputs = probe.jacobian(z, rows, own_and_others(targets[rows]))
            onward = region.moved(region.steps(z) + self.pair(region, z, gradients.flatten(2)))
            moved = (region.steps(onward) != 0).sum(1)
            keep = ~goal.reached(outputs) & (onward != z).flatten(1).any(1) & (moved <= most[rows])
            rows, z = rows[keep], onward[keep]

    def pair(self, region: Region, z: Tensor, gradients: Tensor) -> Tensor:
        """The step (b, D) of the most salient pair; none where no pair helps."""
        down, up = room_at(region, z)
        sign = 1.0 if self.step > 0 else -1.0
        room = up if self.step > 0 else -down
        own, others = sign * gradients.unbind(1)[0], sign * gradients.unbind(1)[1]
        rank = scaled(own) - scaled(others)  # both derivatives count alike in the product
        places = rank.masked_fill(room <= 0, -torch.inf).topk(min(self.pool, rank.shape[1]), dim=1).indices
        free = (room > 0).gather(1, places)
        alpha, beta = (g.gather(1, places)[:, :, None] + g.gather(1, places)[:, None, :] for g in (own, others))
        fits = (alpha > 0) & (beta < 0) & free[:, :, None] & free[:, None, :]
        fits &= ~torch.eye(places.shape[1], dtype=torch.bool, device=z.device)
        best = torch.where(fits, -alpha * beta, 0).flatten(1)
        found = best.argmax(1)
        both = places.gather(1, torch.stack([found // places.shape[1], found % places.shape[1]], dim=1))
        length = abs(self.step) * (region.high - region.low).gather(1, both)
        length = torch.minimum(length, room.gather(1, both)) * (best.amax(1) > 0)[:, None]
        return torch.zeros_like(own).scatter(1, both, sign * length)


def own_and_others(targets: Tensor):
    """The target's logit and the sum of the others', as a function of the outputs."""

    def numbers(outputs: Tensor) -> Tensor:
        own = outputs.gather(1, targets[:, None])
        return torch.cat([own, outputs.sum(1, keepdim=True) - own], dim=1)

    return numbers


def scaled(g: Tensor) -> Tensor:
    return g / g.abs().amax(1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
