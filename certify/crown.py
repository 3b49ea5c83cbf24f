"""Certifiers by linear bounds: intervals, CROWN, and CROWN with trained slopes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from adversarial.threat import Region, Threat, identity
from certify.bounds import NUMBERS, Bounds
from certify.certificate import Certificate, Certifier
from certify.checks import check_classes, check_labels
from certify.errors import CertifyError
from certify.graph import Graph, trace
from certify.rules import OneNumber, Slopes


class Linear(Certifier, Protocol):
    """Certifiers by linear bounds; `margins` is what each one does."""

    threat: Threat

    def margins(self, bounds: Bounds, a: Tensor, owner: Tensor) -> Tensor: ...

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Certificates for inputs x (B, …) with labels y (B,).

        Raises: CertifyError for a model or a threat that has no bound, and for labels that are none.
        """
        check_labels(x, y)
        region, graph = bounded(plain(self.threat.around(x))), trace(model, x)
        with torch.no_grad():
            logits = torch.cat([model(rows) for rows in x.split(batch_size)])
        check_classes(y, logits)
        rows = torch.arange(len(x), device=x.device)
        return Certificate.joined(
            [self.batch(graph, region[some], logits[some], y[some]) for some in rows.split(batch_size)]
        )

    def batch(self, graph: Graph, region: Region, logits: Tensor, y: Tensor) -> Certificate:
        x, classes = region.anchor, logits.shape[1]
        bounds = Bounds(graph, region).intervals()
        owner = torch.arange(len(x), device=x.device).repeat_interleave(classes - 1)
        others = torch.stack([torch.cat([torch.arange(k), torch.arange(k + 1, classes)]) for k in range(classes)]).to(
            x.device
        )
        a = x.new_zeros(len(owner), classes)
        a.scatter_(1, others[y].view(-1, 1), -1.0).scatter_(1, y[owner, None], 1.0)
        found = self.margins(bounds, a, owner).view(len(x), -1).amin(1)
        prediction = logits.argmax(1)
        certified = (found > 0) & found.isfinite() & (prediction == y)
        radius = torch.where(certified, region.eps, 0)
        return Certificate(prediction, certified, radius, found, self.threat, type(self).__name__, "deterministic")


@dataclass(frozen=True)
class IBP(Linear):
    r"""Interval bounds, $[\mu - r, \mu + r]$ through every operation; the last linear one is taken together with the margins.

    Reference: Gowal et al., "On the effectiveness of interval bound propagation", 2018, arXiv:1810.12715.
    """

    threat: Threat

    @torch.no_grad()
    def margins(self, bounds: Bounds, a: Tensor, owner: Tensor) -> Tensor:
        return bounds.elided(a, owner)


@dataclass(frozen=True)
class CROWN(Linear):
    """Linear bounds carried backwards from the margins to the input.

    Args:
        intermediate: where the boxes inside come from: "crown", a backward pass for each number that is not decided
            by intervals, or "ibp", intervals alone (CROWN-IBP), which is much faster and looser.

    Reference: Zhang et al., "Efficient neural network robustness certification with general activation functions",
    NeurIPS 2018, arXiv:1811.00866; CROWN-IBP: Zhang et al., ICLR 2020, arXiv:1906.06316.
    Differs from the paper: the line below an activation is the one of least area among the chord's slope and the tangents
    at the ends and the middle, which for ReLU is the paper's adaptive choice; boxes never get wider than intervals.
    """

    threat: Threat
    intermediate: Literal["crown", "ibp"] = "crown"

    @torch.no_grad()
    def margins(self, bounds: Bounds, a: Tensor, owner: Tensor) -> Tensor:
        if self.intermediate == "crown":
            bounds.tighten()
        return torch.maximum(bounds.elided(a, owner), bounds.lower(bounds.graph.output, a, owner))


@dataclass(frozen=True)
class AlphaCROWN(Linear):
    """CROWN whose slopes are trained, one for each margin and activation, by ascent of the bound.

    Args:
        iterations: of Adam.
        rate: its rate, times 0.98 after each step.

    Reference: Xu et al., "Fast and complete", ICLR 2021, arXiv:2011.13824.
    Differs from the paper: the boxes inside stay those of CROWN (about half to three quarters of the whole gain at a
    twentieth of its cost).
    """

    threat: Threat
    iterations: int = 20
    rate: float = 0.1
    decay: float = 0.98

    def margins(self, bounds: Bounds, a: Tensor, owner: Tensor) -> Tensor:
        best = CROWN(self.threat).margins(bounds, a, owner)
        left = (best <= 0).nonzero()[:, 0]
        for some in left.split(max(1, NUMBERS // bounds.widest)) if len(left) else ():
            best[some] = torch.maximum(best[some], self.trained(bounds, a[some], owner[some]))
        return best

    def trained(self, bounds: Bounds, a: Tensor, owner: Tensor) -> Tensor:
        """The best bound (P,) on the way."""
        slopes = self.slopes(bounds, owner)
        learned = [slope for pair in slopes.values() for slope in pair if slope.requires_grad]
        best = a.new_full((len(a),), -torch.inf)
        if not learned:
            return best
        optimizer = torch.optim.Adam(learned, self.rate, maximize=True)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.decay)
        for _ in range(self.iterations):
            found = bounds.lower(bounds.graph.output, a, owner, slopes)
            best = torch.maximum(best, found.detach())
            optimizer.zero_grad()
            found.clamp(max=1.0).sum().backward()
            optimizer.step()
            schedule.step()
        return best

    @staticmethod
    def slopes(bounds: Bounds, owner: Tensor) -> dict[str, Slopes]:
        """Where the slopes begin: the lines of least area; what is straight above stays a chord."""
        found: dict[str, Slopes] = {}
        for name, rule in bounds.rules.items():
            if isinstance(rule, OneNumber):
                node = bounds.graph.nodes[name]
                curve, low, high = rule.checked(node, bounds.boxes[node.inputs[0]])
                with torch.no_grad():
                    below, _, above, _ = rule.lines(curve, low, high)
                found[name] = free(below[owner]), above[owner] if curve.straight else free(above[owner])
        return found


def free(slope: Tensor) -> Tensor:
    return slope.clone().requires_grad_()


def plain(region: Region) -> Region:
    """A region of the inputs themselves. Raises: CertifyError for a lifted set."""
    if region.apply is not identity:
        raise CertifyError("expected a threat on the inputs themselves, got a lifted set, which has no certifier yet")
    return region


def bounded(region: Region) -> Region:
    """A region that has an end. Raises: CertifyError."""
    low, high = region.box()
    if not bool((low.isfinite() & high.isfinite()).all()):
        raise CertifyError("expected a threat with a finite eps or bounds, got one without an end; give eps=")
    return region
