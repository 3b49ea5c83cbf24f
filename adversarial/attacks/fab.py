"""The fast adaptive boundary attack: walk along the boundary towards the clean input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from adversarial.attacks.apgd import begin
from adversarial.attacks.base import Attack
from adversarial.attacks.planes import ANY_L2, candidates, faces_at, nearest, room_at, shorten, steepness
from adversarial.goals import Untargeted
from adversarial.probe import Keep, Probe
from adversarial.streams import Streams
from adversarial.threat import Region, Threat, norm_of


@dataclass(frozen=True)
class FAB(Attack):
    r"""Between two projections on the linearised boundary, that of the iterate and that of the clean input:
    $z \leftarrow (1 - a)(z + \eta d_z) + a(x + \eta d_x)$ with $a = \min(\|d_z\| / (\|d_z\| + \|d_x\|), a_{max})$; where z
    reaches the goal it goes back, $z \leftarrow x + \beta(z - x)$.

    Args:
        threat: l2, linf or l1. No feature moves farther than eps, so with a finite one the projections of linf stay in the
            ball; what lies beyond it is no example.
        steps: linearisations of every restart.
        restarts: the first begins at the clean input, others at random within half the distance that was found.
        targets: with a number, so many classes that come next to the true one are each aimed at in turn, one backward pass
            per step (FAB-T); else the nearest of all boundaries is, which takes one for every other class.
        classes: for `targets` 0, look at so many of the highest logits only, true class included; all if None.
        share: $a_{max}$, of the clean input's projection.
        overshoot: $\eta$, in units of the way to the boundary.
        back: $\beta$.
        bisections: of the way from the clean input to the example at the end.
        early: a sample leaves when an example within eps is found, which is enough for robust accuracy.

    Reference: Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020,
    arXiv:1907.02044.
    Differs from the paper: the final search bisects, where the paper has three steps of a secant and the authors' code none.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANY_L2
    steps: int = 100
    restarts: int = 1
    targets: int = 0
    classes: int | None = None
    share: float = 0.1
    overshoot: float = 1.05
    back: float = 0.9
    bisections: int = 10
    early: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.targets < 0 or (self.classes or 2) < 2:
            raise ValueError(f"expected at least one step, one restart and two classes, got {self}")

    def search(self, probe: Probe, streams: Streams) -> None:
        if probe.region.norm == "l0":
            raise ValueError("expected a threat of norm l2, linf or l1 for FAB, got l0; use SparseFool or SigmaZero")
        for places in self.aims(probe):
            for restart in range(self.restarts):
                rows = probe.open if self.early else probe.sound
                if not len(rows):
                    return
                region = probe.region[rows]
                z = region.anchor if restart == 0 else beginning(probe, region, rows, streams)
                self.approach(probe, rows, z, places)
        if not self.early:
            shorten(probe, self.bisections)

    def aims(self, probe: Probe) -> list[Tensor]:
        """Places (B, K) of the faces that are walked to together, one after the other."""
        if self.targets and isinstance(probe.goal, Untargeted):
            return list(candidates(probe, self.targets).split(1, dim=1))
        return [candidates(probe, probe.clean.shape[1] if self.classes is None else self.classes - 1)]

    def approach(self, probe: Probe, rows: Tensor, z: Tensor, places: Tensor) -> None:
        """One restart; a row leaves when it no longer moves."""
        for _ in range(self.steps):
            region, goal = probe.region[rows], probe.goal[rows]
            gradients, values, _ = probe.jacobian(z, rows, faces_at(goal, places[rows]))
            onward = self.between(region, z, gradients.flatten(2), values)
            reached = goal.reached(probe.outputs(onward, rows))
            nearer = region.moved(self.back * region.steps(onward))
            onward = torch.where(reached.view(-1, *(1,) * (z.ndim - 1)), nearer, onward)
            keep = (onward != z).flatten(1).any(1)
            if self.early:
                keep &= ~probe.reached[rows]
            rows, z = rows[keep], onward[keep]
            if not len(rows):
                return

    def between(self, region: Region, z: Tensor, gradients: Tensor, values: Tensor) -> Tensor:
        """The next point, between the two projections on the nearest of the linearised faces."""
        norm = region.norm
        slope = steepness(gradients, norm).clamp_min(torch.finfo(values.dtype).tiny)
        face = (values.abs() / slope).argmin(1, keepdim=True)
        w = gradients[torch.arange(len(z), device=z.device), face[:, 0]]
        gap, steps = -values.gather(1, face)[:, 0], region.steps(z)
        here = nearest(w, gap, *room_at(region, z), norm)
        clean = nearest(w, gap + (w * steps).sum(1), region.low, region.high, norm)
        lengths = norm_of(here, norm), norm_of(clean, norm)
        share = lengths[0] / (lengths[0] + lengths[1]).clamp_min(torch.finfo(w.dtype).tiny)
        share = share.clamp(max=self.share)[:, None]
        return region.moved((1 - share) * (steps + self.overshoot * here) + share * self.overshoot * clean)


def beginning(probe: Probe, region: Region, rows: Tensor, streams: Streams) -> Tensor:
    """Random points at half the distance of the examples found, or of eps; with neither at the threat's unit of length."""
    radius = torch.minimum(probe.nearest[rows], region.eps)
    radius = torch.where(radius.isfinite(), radius, torch.ones_like(radius))
    return begin(replace(region, eps=radius / 2), streams, rows)
