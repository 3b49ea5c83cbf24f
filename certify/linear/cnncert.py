"""CNN-Cert: linear bounds with the paper's lines, and the radius that its search finds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from adversarial.threat import Ball
from certify.certificate import Certificate
from certify.engine.bounds import Bounds
from certify.engine.curves import Curve
from certify.engine.front import Front
from certify.engine.nonlinear import OneNumber
from certify.engine.tracing import trace
from certify.linear.crown import Linear
from certify.radius import radius_of

HALVINGS = 20
Relu = Literal["adaptive", "same"]


@dataclass(frozen=True)
class Lines(Linear):
    """Margins bounded backwards with CNN-Cert's lines, for one size of the threat; `CNNCert` searches the sizes."""

    threat: Ball
    relu: Relu = "adaptive"

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

    Reference: Boopathy et al., "CNN-Cert: an efficient framework for certifying robustness of convolutional neural
    networks", AAAI 2019, arXiv:1811.12395.
    Differs from the paper: it runs on the engine of `CROWN`, with the same bounds as the paper's recursions; boxes inside
    never get wider than intervals, the line below a maximum is that of its largest lower bound, and no operation that the
    engine knows is left out. The radius is against all other classes at once.
    """

    threat: Ball
    relu: Relu = "adaptive"
    start: float = 0.05
    steps: int = 15

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Certificates whose radius is the largest that the search finds, for inputs x (B, …) with labels y (B,).

        Raises: CertifyError for a model or a threat that has no bound, and for labels that are none.
        """
        graph, once = trace(model, x), Lines(self.threat, self.relu)
        asked = once(graph, x, y, batch_size=batch_size)
        radius = radius_of(once, graph, x, y, start=self.start, steps=self.steps, batch_size=batch_size)
        radius = torch.maximum(radius, asked.radius)
        certified = (radius > 0) & (radius >= self.threat.around(x).eps)  # also by a larger ball
        # what a larger ball shows, this one's bound may not
        margin = torch.where(certified & ~asked.certified, torch.nan, asked.margin)
        return replace(asked, certified=certified, radius=radius, margin=margin, method=type(self).__name__)
