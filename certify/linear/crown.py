"""Certifiers by linear bounds: intervals, CROWN, and CROWN with trained slopes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from adversarial.threat import Region, Threat, identity
from certify.certificate import Certificate, Certifier
from certify.checks import answers, check_labels
from certify.engine.ascent import Ascent
from certify.engine.bounds import NUMBERS, Bounds
from certify.engine.forms import forward_margins
from certify.engine.front import Front
from certify.engine.graph import Graph
from certify.engine.tracing import trace
from certify.errors import CertifyError


class Linear(Certifier, Protocol):
    """Certifiers by linear bounds; `margins` is what each one does."""

    threat: Threat

    def margins(self, bounds: Bounds, front: Front) -> Tensor: ...

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Certificates for inputs x (B, …) with labels y (B,).

        Raises: CertifyError for a model or a threat that has no bound, and for labels that are none.
        """
        check_labels(x, y)
        region = bounded(plain(self.threat.around(x)))
        logits, graph = answers(model, x, y, batch_size), trace(model, x)
        if len(x) <= batch_size:
            return self.batch(graph, region, logits, y)
        rows = torch.arange(len(x), device=x.device)
        return Certificate.joined(
            [self.part(some).batch(graph, region[some], logits[some], y[some]) for some in rows.split(batch_size)]
        )

    def part(self, rows: Tensor) -> Linear:
        """The certifier of some of the inputs, for one that has something of its own for each."""
        return self

    def started(self, graph: Graph, region: Region) -> Bounds:
        """The bounds that `margins` begins with."""
        return Bounds(graph, region).intervals()

    def asked(self, logits: Tensor, y: Tensor) -> Front:
        """The margins that have to stay above zero: the label's over every other class."""
        return Front(differences(y, logits.shape[1], logits.dtype))

    def batch(self, graph: Graph, region: Region, logits: Tensor, y: Tensor) -> Certificate:
        found = self.margins(self.started(graph, region), self.asked(logits, y)).amin(1)
        prediction = logits.argmax(1)
        certified = (found > 0) & found.isfinite() & (prediction == y)
        radius = torch.where(certified, region.eps, 0)
        return Certificate(prediction, certified, radius, found, self.threat, type(self).__name__, "deterministic")


def differences(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Rows (B, classes − 1, classes) that take the label's logit minus another one."""
    identity = torch.eye(classes, dtype=dtype, device=y.device)
    every, others = identity[y][:, None] - identity, ~torch.eye(classes, dtype=torch.bool, device=y.device)[y]
    return every[others].view(len(y), classes - 1, classes)


@dataclass(frozen=True)
class IBP(Linear):
    r"""Interval bounds, $[\mu - r, \mu + r]$ through every operation; the last linear one is taken together with the margins.

    Reference: Gowal et al., "On the effectiveness of interval bound propagation", 2018, arXiv:1810.12715.
    """

    threat: Threat

    @torch.no_grad()
    def margins(self, bounds: Bounds, front: Front) -> Tensor:
        return bounds.elided(front)


@dataclass(frozen=True)
class CROWN(Linear):
    """Linear bounds carried backwards from the margins to the input.

    Args:
        intermediate: where the boxes inside come from: "crown", a backward pass for each number that is not decided
            by intervals, "ibp", intervals alone (CROWN-IBP), which is much faster and looser, or "forward", affine forms in
            the numbers that the threat moves (`engine.forms`), in double precision: for deep models, frozen sources among
            them, under small threats, where intervals say nothing and passes for each number do not end.

    Reference: Zhang et al., "Efficient neural network robustness certification with general activation functions",
    NeurIPS 2018, arXiv:1811.00866; CROWN-IBP: Zhang et al., ICLR 2020, arXiv:1906.06316.
    Differs from the paper: the line below an activation is the one of least area among the chord's slope and the tangents
    at the ends and the middle, which for ReLU is the paper's adaptive choice; boxes never get wider than intervals.
    """

    threat: Threat
    intermediate: Literal["crown", "ibp", "forward"] = "crown"

    def __post_init__(self) -> None:
        if self.intermediate not in ("crown", "ibp", "forward"):
            raise CertifyError(f"expected intermediate 'crown', 'ibp' or 'forward', got {self.intermediate!r}")

    def started(self, graph: Graph, region: Region) -> Bounds:
        bounds = Bounds(graph, region)
        return bounds if self.intermediate == "forward" else bounds.intervals()  # forms have boxes of their own

    @torch.no_grad()
    def margins(self, bounds: Bounds, front: Front) -> Tensor:
        if self.intermediate == "forward":
            return forward_margins(bounds, front)
        if self.intermediate == "crown":
            bounds.tighten()
        return torch.fmax(bounds.elided(front), bounds.lower(bounds.graph.output, front))


@dataclass(frozen=True)
class SDPCROWN(Linear):
    """CROWN whose ReLUs are bounded together inside the L2 ball that an L2 or L1 threat leaves each layer in (`coupling`).

    For L∞ threats it is CROWN: a ball around the cube says less than the cube.

    Reference: Chiu et al., "SDP-CROWN", ICML 2025, arXiv:2506.06665.
    Differs from the paper: see `coupling`; slopes are those of CROWN (`AlphaCROWN(coupled=True)` trains them).
    """

    threat: Threat

    @torch.no_grad()
    def margins(self, bounds: Bounds, front: Front) -> Tensor:
        return CROWN(self.threat).margins(bounds.couple(), front)


@dataclass(frozen=True)
class AlphaCROWN(Linear):
    """CROWN whose slopes are trained, one for each row and activation, by ascent of the bound.

    Args:
        slopes: "last" trains those of the margins alone (about half to three quarters of the whole gain at a twentieth of
            its cost); "full" also those of every box inside, all together for the margins. It keeps what is in front of
            every number that is not decided, some 1.5 GB for a network with two convolutions on 28 × 28 pixels.
        coupled: also bound ReLUs together, as `SDPCROWN` does.
        iterations: of Adam.
        rate: its rate, times `decay` after each step.

    Reference: Xu et al., "Fast and complete", ICLR 2021, arXiv:2011.13824.
    Differs from the paper: each number on each way has slopes of its own, as in the authors' code.
    """

    threat: Threat
    slopes: Literal["last", "full"] = "last"
    coupled: bool = False
    iterations: int = 20
    rate: float = 0.1
    decay: float = 0.98

    def margins(self, bounds: Bounds, front: Front) -> Tensor:
        bounds = bounds.couple() if self.coupled else bounds
        ascent = Ascent(bounds, self.iterations, self.rate, self.decay)
        best = CROWN(self.threat).margins(bounds, front)
        if self.slopes == "full":
            open_ = (~(best > 0)).any(1).nonzero()[:, 0]
            for some in open_.split(max(1, NUMBERS // bounds.numbers(front.a.shape[1]))):
                if len(some):
                    found = replace(ascent, bounds=bounds[some]).jointly(Front(front.a[some]))
                    best[some] = torch.fmax(best[some], found)
            return best
        group, row = (~(best > 0)).nonzero(as_tuple=True)
        for some in torch.arange(len(group)).split(max(1, NUMBERS // bounds.size(bounds.graph.output))):
            if len(some):
                each = Front(front.a[group[some], row[some]][:, None], group[some])
                found = ascent(bounds.graph.output, each)[:, 0]
                best[group[some], row[some]] = torch.fmax(best[group[some], row[some]], found)
        return best


def plain(region: Region) -> Region:
    """A region of the inputs themselves. Raises: CertifyError for a lifted set."""
    if region.apply is not identity:
        raise CertifyError(
            "expected a threat on the inputs themselves, got a lifted set; its proofs are Semantic's, its votes TSS's"
        )
    return region


def bounded(region: Region) -> Region:
    """A region that has an end. Raises: CertifyError."""
    low, high = region.box()
    if not bool((high - low).amax() < torch.inf):
        raise CertifyError("expected a threat with a finite eps or bounds, got one without an end; give eps=")
    return region
