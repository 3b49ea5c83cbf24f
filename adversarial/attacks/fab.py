"""The fast adaptive boundary attack: walk along the boundary towards the clean input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from adversarial.attacks.apgd import TOGETHER, begin
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
        targets: with a number, so many classes that come next to the true one are each aimed at, all at once, one backward
            pass per step and class, two where a step reaches the goal (FAB-T); else the nearest of all boundaries is, which takes one for every other class.
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
        places = self.aims(probe)
        probe.copies = places.shape[1] > 1
        for restart in range(self.restarts):
            left = probe.open if self.early else probe.sound
            for rows in left.split(max(TOGETHER // places.shape[1], 1)):
                self.restart(probe, streams, rows, places, at_clean=restart == 0)
        probe.copies = False
        if not self.early:
            shorten(probe, self.bisections)

    def aims(self, probe: Probe) -> Tensor:
        """Places (B, C, K): for each of C walks of a row its K faces, of which the nearest one is walked to."""
        if self.targets and isinstance(probe.goal, Untargeted):
            return candidates(probe, self.targets)[:, :, None]
        return candidates(probe, probe.clean.shape[1] if self.classes is None else self.classes - 1)[:, None]

    def restart(self, probe: Probe, streams: Streams, rows: Tensor, places: Tensor, *, at_clean: bool) -> None:
        """Every walk of these rows, from the clean inputs or from random points."""
        if not len(rows):
            return
        count, region = places.shape[1], probe.region[rows]
        starts = [region.anchor if at_clean else beginning(probe, region, rows, streams) for _ in range(count)]
        z, copies = torch.stack(starts, 1).flatten(0, 1), rows.repeat_interleave(count)
        self.approach(probe, copies, z, places[rows].flatten(0, 1))

    def approach(self, probe: Probe, rows: Tensor, z: Tensor, places: Tensor) -> None:
        """One walk each; a row leaves when it no longer moves."""
        for _ in range(self.steps):
            region = probe.region[rows]
            z, gradients, values = self.linearised(probe, rows, z, places)
            onward = self.between(region, z, gradients.flatten(2), values)
            keep = (onward != z).flatten(1).any(1)
            if self.early:
                keep &= ~probe.reached[rows]
            rows, z, places = rows[keep], onward[keep], places[keep]
            if not len(rows):
                return
        probe.outputs(z, rows)

    def linearised(self, probe: Probe, rows: Tensor, z: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients and values of the faces, at points that went back where they reach the goal; the pass that tells is the
        one that gives the others' gradients."""
        gradients, values, outputs = probe.jacobian(z, rows, faces_at(probe.goal[rows], places))
        some = probe.goal[rows].reached(outputs).nonzero()[:, 0]
        if len(some):
            region = probe.region[rows[some]]
            back = region.moved(self.back * region.steps(z[some]))
            again, own, _ = probe.jacobian(back, rows[some], faces_at(probe.goal[rows[some]], places[some]))
            z, gradients, values = (
                whole.index_put((some,), part) for whole, part in ((z, back), (gradients, again), (values, own))
            )
        return z, gradients, values

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
