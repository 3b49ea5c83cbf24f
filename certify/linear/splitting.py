"""Branch and bound on the inputs: a box of few numbers is cut until every part is shown."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from adversarial.threat import Region, Threat
from certify.engine.bounds import Bounds
from certify.engine.front import Front
from certify.errors import CertifyError
from certify.linear.crown import CROWN, Linear


@dataclass(frozen=True)
class InputSplit(Linear):
    """CROWN on parts of an L∞ box, each cut in half along the number that its bound owes most to.

    Complete for boxes of few numbers (a table's, a semantic set's): bounds become exact as parts become small. With many
    numbers split activations instead (`BetaCROWN`).

    Args:
        seconds: of work for an input at most.
        parts: bounded at a time.

    Raises: CertifyError for a threat that is no L∞ box.
    Reference: Wang et al., "Formal security analysis of neural networks using symbolic intervals", USENIX Security 2018,
    arXiv:1804.10829.
    """

    threat: Threat
    seconds: float = 10.0
    parts: int = 64

    @torch.no_grad()
    def margins(self, bounds: Bounds, front: Front) -> Tensor:
        if bounds.region.norm != "linf":
            raise CertifyError(f"expected an L∞ box to split, got a {bounds.region.norm} ball; use BetaCROWN")
        best = CROWN(self.threat).margins(bounds, front)
        for group in (~(best > 0)).any(1).nonzero()[:, 0].tolist():
            end = time.monotonic() + self.seconds
            found = self.searched(bounds, bounds.region[torch.tensor([group])], front.a[group], end)
            best[group] = torch.fmax(best[group], found)
        return best

    def searched(self, bounds: Bounds, region: Region, a: Tensor, end: float) -> Tensor:
        """The least bounds (R,) of one input's rows a (R, classes) over all parts; −∞ where parts are left."""
        low, high = (side.flatten(1) for side in region.box())
        least = a.new_full((len(a),), torch.inf)
        while len(low):
            if time.monotonic() > end:
                return torch.full_like(least, -torch.inf)
            some_low, some_high = low[-self.parts :], high[-self.parts :]
            low, high = low[: -self.parts], high[: -self.parts]
            part = box(region, some_low, some_high)
            inner = Bounds(bounds.graph, part).intervals()
            pulls: dict[str, Tensor] = {}
            inner.tighten()
            front = Front(a.expand(len(part), -1, -1))
            found = inner.carried(bounds.graph.output, front, watch=lambda name, a: pulls.update({name: a}))  # noqa: B023
            found = torch.fmax(found, inner.elided(front))
            done = (found > 0).all(1)
            least = torch.minimum(least, found[done].amin(0)) if bool(done.any()) else least
            if bool(done.all()):
                continue
            if bool((bounds.graph(part.anchor[~done]) @ a.T <= 0).any()):  # the middle of a part breaks the prediction
                return torch.full_like(least, -torch.inf)
            worst = found[~done].argmin(1)
            pull = pulls[bounds.graph.input][~done].flatten(2)[torch.arange(len(worst)), worst].abs()
            some_low, some_high = some_low[~done], some_high[~done]
            place = ((some_high - some_low) * (pull + 1e-12 * pull.amax())).argmax(1, keepdim=True)
            middle = (some_low.gather(1, place) + some_high.gather(1, place)) / 2
            low = torch.cat([low, some_low, some_low.scatter(1, place, middle)])
            high = torch.cat([high, some_high.scatter(1, place, middle), some_high])
        return least


def box(region: Region, low: Tensor, high: Tensor) -> Region:
    """Boxes between points (N, D) as a region."""
    middle = ((low + high) / 2).view(-1, *region.anchor.shape[1:])
    down, up = low - middle.flatten(1), high - middle.flatten(1)
    return Region("linf", middle, down, up, torch.maximum(-down, up).amax(1))
