"""CNN-Cert: linear bounds with the paper's lines, and the radius that its search finds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from adversarial.streams import Streams
from adversarial.threat import Ball, Region
from certify.certificate import Certificate
from certify.checks import answers, check_classes, check_labels
from certify.engine.bounds import Bounds
from certify.engine.curves import Curve
from certify.engine.front import Front
from certify.engine.graph import Graph
from certify.engine.nonlinear import OneNumber
from certify.engine.tracing import trace
from certify.errors import CertifyError
from certify.linear.crown import Linear
from certify.radius import radius_of

HALVINGS = 20
Relu = Literal["adaptive", "same"]
Rule = Literal["runner-up", "least", "random"]


@dataclass(frozen=True)
class Lines(Linear):
    """Margins bounded backwards with CNN-Cert's lines, for one size of the threat; `CNNCert` searches the sizes.

    With `targets` (B,) only the margin over each input's target counts.
    """

    threat: Ball
    relu: Relu = "adaptive"
    targets: Tensor | None = None

    def part(self, rows: Tensor) -> Lines:
        return self if self.targets is None else replace(self, targets=self.targets[rows])

    def asked(self, logits: Tensor, y: Tensor) -> Front:
        if self.targets is None:
            return super().asked(logits, y)
        classes = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
        return Front((classes[y] - classes[self.targets])[:, None])

    @torch.no_grad()
    def margins(self, bounds: Bounds, front: Front) -> Tensor:
        lined = OneNumber(partial(slopes_of, relu=self.relu))
        bounds.rules |= {name: lined for name, rule in bounds.rules.items() if isinstance(rule, OneNumber)}
        bounds.relaxed.clear()
        return bounds.tighten().lower(bounds.graph.output, front)


def slopes_of(curve: Curve, low: Tensor, high: Tensor, relu: Relu = "adaptive") -> tuple[Tensor, Tensor]:
    """The slopes below and above a curve on [low, high] that CNN-Cert takes."""
    named = curve.knots == (0.0,) and (curve.bends == "+-" or (curve.straight and relu == "same"))
    if not named:  # of least area, which is the adaptive choice for ReLU
        return curve.slope(low, high, lower=True), curve.slope(low, high, lower=False)
    wide = high - low
    narrow = wide <= 1e-6 * (1 + low.abs())
    steep = torch.where(
        narrow, curve.df((low + high) / 2), (curve.f(high) - curve.f(low)) / torch.where(narrow, 1, wide)
    )
    if curve.straight:  # the same slope below and above
        return steep, steep
    middle = curve.df((low + high) / 2)
    touching = tangent(curve, low, high)  # from the left end, above
    mirrored = tangent(Curve(lambda x: -curve.f(-x), lambda x: curve.df(-x), (0.0,), "+-"), -high, -low)
    below = torch.where(low >= 0, steep, torch.where(high <= 0, middle, mirrored))
    above = torch.where(high <= 0, steep, torch.where(low >= 0, middle, touching))
    return below, above


def tangent(curve: Curve, low: Tensor, high: Tensor) -> Tensor:
    """The slope of the line through the left end that touches the curve right of zero; the chord's where it would touch
    beyond the right end."""
    a, b = torch.zeros_like(high), high.clamp(min=0)
    for _ in range(HALVINGS):
        place = (a + b) / 2
        over = curve.df(place) * (place - low) > curve.f(place) - curve.f(low)
        a, b = torch.where(over, place, a), torch.where(over, b, place)
    return (curve.f(b) - curve.f(low)) / (b - low).clamp_min(1e-12)


@dataclass(frozen=True)
class Towards:
    """Changes within a ball that make one other class, each input's target (B,), win over its label: less than the ball."""

    ball: Ball
    targets: Tensor

    @property
    def norm(self) -> str:
        return f"{self.ball.norm} (towards one target class each)"

    @property
    def eps(self) -> float | Tensor:
        return self.ball.eps

    def around(self, x: Tensor) -> Region:
        return self.ball.around(x)


@dataclass(frozen=True)
class CNNCert:
    """The radius that CNN-Cert certifies for convolutional networks with general activations.

    A bound is carried backwards from the margins, each activation between two lines: ReLU below by 0 or the identity,
    whichever leaves less, sigmoid, tanh and arctan by the chord and the tangent at the middle where they bend one way, and
    by tangents through the ends of the interval where zero lies inside. Convolutions, average and max pooling, skips and
    batch normalisation (folded as b = β − γμ/s) are the shared rules'.

    Args:
        threat: a ball of linf, l2 or l1; its eps is what `certified` asks for.
        relu: "same" takes the chord's slope below ReLU too (Fast-Lin); the paper's "ada" is "adaptive".
        start, steps: of the search on log eps.
        targets: classes (B,), or the rule for them, to show a radius against each input's target alone: "runner-up", the
            likeliest other class than the label, "least", the least likely, "random", any of the others. Nothing is then
            said of further classes; the certificate's threat, `Towards`, says so and holds the targets.
        seed: of the random targets.

    Reference: Boopathy et al., "CNN-Cert: an efficient framework for certifying robustness of convolutional neural
    networks", AAAI 2019, arXiv:1811.12395.
    Differs from the paper: it runs on the engine of `CROWN`, with the same bounds as the paper's recursions; boxes inside
    never get wider than intervals, the line below a maximum is that of its largest lower bound, and no operation that the
    engine knows is left out. The untargeted radius, which is the default, is against all other classes at once.
    """

    threat: Ball
    relu: Relu = "adaptive"
    start: float = 0.05
    steps: int = 15
    targets: Rule | Tensor | None = None
    seed: int = 0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Certificates whose radius is the largest that the search finds, for inputs x (B, …) with labels y (B,).

        Raises: CertifyError for a model or a threat that has no bound, and for labels that are none.
        """
        check_labels(x, y)
        answers(model, x[:1], y, 1)
        graph = trace(model, x)
        once = Lines(self.threat, self.relu, self.chosen(graph, x, y, batch_size))
        asked = once(graph, x, y, batch_size=batch_size)
        radius = radius_of(once, graph, x, y, start=self.start, steps=self.steps, batch_size=batch_size)
        radius = torch.maximum(radius, asked.radius)
        certified = (radius > 0) & (radius >= self.threat.around(x).eps)  # also by a larger ball
        # what a larger ball shows, this one's bound may not
        margin = torch.where(certified & ~asked.certified, torch.nan, asked.margin)
        threat = self.threat if once.targets is None else Towards(self.threat, once.targets)
        return replace(
            asked, certified=certified, radius=radius, margin=margin, threat=threat, method=type(self).__name__
        )

    @torch.no_grad()
    def chosen(self, graph: Graph, x: Tensor, y: Tensor, batch_size: int) -> Tensor | None:
        """The targets (B,), if any. Raises: CertifyError for what are none."""
        if self.targets is None:
            return None
        logits = torch.cat([graph(rows) for rows in x.split(batch_size)])
        check_classes(y, logits)
        if isinstance(self.targets, Tensor):
            return checked(self.targets.to(y.device), y, logits.shape[1])
        own, rows = y[:, None].long(), torch.arange(len(y), device=y.device)
        if self.targets == "runner-up":
            return logits.scatter(1, own, -torch.inf).argmax(1)
        if self.targets == "least":
            return logits.scatter(1, own, torch.inf).argmin(1)
        if self.targets == "random":
            drawn = Streams(x, self.seed).integers(rows, logits.shape[1] - 1)
            return drawn + (drawn >= y)
        raise CertifyError(f"expected targets (B,), 'runner-up', 'least' or 'random', got {self.targets!r}")


def checked(targets: Tensor, y: Tensor, classes: int) -> Tensor:
    """Targets that are other classes than the labels. Raises: CertifyError."""
    if targets.dtype not in (torch.int64, torch.int32) or targets.shape != y.shape:
        raise CertifyError(
            f"expected targets ({len(y)},) of whole numbers, got {tuple(targets.shape)} of {targets.dtype}"
        )
    bad = (targets < 0) | (targets >= classes) | (targets == y)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise CertifyError(
            f"expected targets from 0 to {classes - 1} other than the label, got {int(targets[row])} for label {int(y[row])} in "
            f"row {row}"
        )
    return targets.long()
