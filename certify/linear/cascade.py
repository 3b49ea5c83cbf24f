"""Cheap bounds first, dear ones only for what is left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adversarial.threat import Threat
from certify.engine.bounds import Bounds
from certify.engine.front import Front
from certify.linear.branch import BetaCROWN
from certify.linear.crown import CROWN, IBP, SDPCROWN, Linear


@dataclass(frozen=True)
class Cascade(Linear):
    """Intervals, CROWN-IBP, CROWN (for L2 and L1 with ReLUs bounded together), trained slopes, then branch and bound; each
    only for the inputs that the one before leaves open.

    Args:
        seconds: of branch and bound for an input at most; 0 for none.
    """

    threat: Threat
    seconds: float = 10.0

    def margins(self, bounds: Bounds, front: Front) -> Tensor:
        together = SDPCROWN if bounds.region.norm in ("l2", "l1") else CROWN
        stages = (CROWN(self.threat, "ibp"), together(self.threat), BetaCROWN(self.threat, self.seconds))
        best = IBP(self.threat).margins(bounds, front)
        rows = torch.arange(len(best), device=best.device)
        for stage in stages:
            left = (~(best[rows] > 0)).any(1)
            if not bool(left.any()):
                break
            bounds, rows = bounds[left.nonzero()[:, 0]], rows[left]
            found = stage.margins(bounds, Front(front.a[rows]))
            best[rows] = torch.fmax(best[rows], found)
        return best
