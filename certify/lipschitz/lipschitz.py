"""Certificates from Lipschitz constants: a margin that cannot shrink to zero as fast as the threat allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from adversarial.threat import DUAL, Ball, Region, norm_of
from certify.certificate import Certificate
from certify.checks import answers, check_labels
from certify.engine.bounds import NUMBERS, Bounds
from certify.engine.graph import Graph
from certify.engine.operator_norm import Norm
from certify.engine.tracing import trace
from certify.errors import CertifyError
from certify.linear.crown import bounded
from certify.lipschitz.jacobian import gradients
from certify.lipschitz.lipopt import lipopt
from certify.lipschitz.lipsdp import lipsdp
from certify.lipschitz.product import Product
from certify.lipschitz.segments import Chain, chain, doubled

Method = Literal["product", "local", "lipsdp-neuron", "lipsdp-layer", "lipopt"]
Pair = Callable[[int, int], float]  # label, other class -> Lipschitz constant of the difference of their logits


@dataclass(frozen=True)
class Lipschitz:
    r"""Radius $\min_j g_j(x) / L_j$ with $g_j = f_y - f_j$ and an upper bound $L_j$ of its Lipschitz constant in the threat's norm.

    The difference of two logits is taken into the last layer, which is tighter than $\sqrt2$ times the constant of all
    logits. On a linear model the radius is exact. `method` says how L is bounded:

        "product": norms of the linear maps times slopes, for every architecture of linear operations, functions of one
            number, largest values and sums of branches; all norms; see `Product`.
        "local": intervals of the gradient in the threat, whose bounds and mask count too; also for functions without a
            largest slope; all norms. The radius is at most eps; see `gradients`.
        "lipsdp-neuron", "lipsdp-layer": a semidefinite program for every pair of classes, l2, layers one after the
            other of at most 500 units in all; needs cvxpy; see `lipsdp`.
        "lipopt": a linear program for every pair, linf, very small networks; see `lipopt`.

    Bounds are computed in double precision; the model's own rounding is left out. The radius is in the units of eps.

    Raises: CertifyError for an unknown method, and for a threat that is no Ball of a norm that the method bounds.

    Reference: Tsuzuku et al., "Lipschitz-margin training", NeurIPS 2018, arXiv:1802.04034, for the margin divided by a
    constant; those of the methods stand with them.
    Differs from the paper: a constant for each difference of two logits.
    """

    threat: Ball
    method: Method = "product"

    def __post_init__(self) -> None:
        known = {"product": None, "local": None, "lipsdp-neuron": "l2", "lipsdp-layer": "l2", "lipopt": "linf"}
        if self.method not in known:
            raise CertifyError(f"expected a method among {', '.join(known)}, got {self.method!r}")
        if not isinstance(self.threat, Ball):
            raise CertifyError(
                f"expected a Ball around the inputs themselves, got {type(self.threat).__name__}; use smoothing"
            )
        if self.threat.norm not in DUAL:
            raise CertifyError(f"expected a threat of linf, l2 or l1, got {self.threat.norm}; use CROWN")
        if known[self.method] not in (None, self.threat.norm):
            raise CertifyError(f"expected a threat of {known[self.method]} for {self.method}, got {self.threat.norm}")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Certificates for inputs x (B, …) with labels y (B,).

        Raises: CertifyError for a model or a threat that has no bound, and for labels that are none.
        """
        check_labels(x, y)
        region = self.threat.around(x)
        # the threat lies around where the bounds moved an input, by rounding, and so do the margins
        logits, middle = (answers(model, points, y, batch_size) for points in (x, region.anchor))
        graph = doubled(trace(model, x))
        if self.method == "local":
            rows = torch.arange(len(x), device=x.device).split(batch_size)
            found = [local(graph, in_double(bounded(region[some])), middle[some].double(), y[some]) for some in rows]
            margin, radius = (torch.cat(part) for part in zip(*found, strict=True))
        else:
            pair = cache(constants(self.method, graph, region.norm, x.device))
            margin, radius = everywhere(pair, middle.double(), y, region.eps.double())
        prediction = logits.argmax(1)
        right = (prediction == y) & margin.isfinite() & radius.isfinite()
        radius = torch.where(right, radius.clamp_min(0), 0)
        certified = right & (margin > 0) & (radius >= region.eps)
        return Certificate(
            prediction, certified, radius.to(x), margin.to(x), self.threat, f"Lipschitz {self.method}", "deterministic"
        )


def constants(method: Method, graph: Graph, norm: Norm, device: torch.device) -> Pair:
    """Global constants of every difference of two logits."""
    if method == "product":
        return Product(graph, norm, device)
    network = chain(graph, device)

    def pair(y: int, other: int) -> float:
        *inside, last = network.weights
        one = Chain([*inside, last[y : y + 1] - last[other : other + 1]], network.slopes)
        return lipopt(one) if method == "lipopt" else lipsdp(one, "neuron" if method == "lipsdp-neuron" else "layer")

    return lambda y, other: pair(min(y, other), max(y, other))


def everywhere(pair: Pair, logits: Tensor, y: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest margin within eps and the radius (B,) from global constants."""
    margins = logits.gather(1, y[:, None].long()) - logits
    steep = torch.ones_like(margins)
    for label in y.unique().tolist():
        row = [pair(label, other) if other != label else 1.0 for other in range(logits.shape[1])]
        steep[y == label] = torch.tensor(row, dtype=steep.dtype, device=steep.device)
    own = torch.zeros_like(margins, dtype=torch.bool).scatter(1, y[:, None].long(), True)
    radius = torch.where(own, torch.inf, margins / steep).amin(1)
    return torch.where(own, torch.inf, margins - eps[:, None] * steep).amin(1), rounded_down(radius)


def local(graph: Graph, region: Region, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The same from the gradients within the region; the radius is at most eps."""
    bounds = Bounds(graph, region).intervals().tighten()
    widest = max(node.shape.numel() for node in graph.nodes.values())
    classes = logits.shape[1]
    owner, other = (y[:, None] != torch.arange(classes, device=y.device)).nonzero(as_tuple=True)
    margins = logits[owner, y[owner]] - logits[owner, other]
    lowest, reach = torch.empty_like(margins), torch.empty_like(margins)
    for some in torch.arange(len(owner), device=y.device).split(max(1, NUMBERS // (4 * widest))):
        a = logits.new_zeros(len(some), classes)
        a.scatter_(1, y[owner[some], None], 1.0).scatter_(1, other[some, None], -1.0)
        steep = gradients(bounds, a, owner[some]).flatten(1)
        around = region[owner[some]]
        wide = torch.maximum(around.high, -around.low)
        lowest[some] = margins[some] - replace(around, low=-wide, high=wide).support(steep)
        reach[some] = margins[some] / norm_of(steep * (wide > 0), DUAL[region.norm])
    lowest, reach = (each.view(len(y), -1).amin(1) for each in (lowest, reach))
    radius = torch.where(lowest > 0, region.eps, torch.minimum(rounded_down(reach), region.eps))
    return lowest, radius


def in_double(region: Region) -> Region:
    return replace(region, **{name: getattr(region, name).double() for name in ("anchor", "low", "high", "eps")})


def rounded_down(radius: Tensor) -> Tensor:
    """A radius that survives being kept in single precision."""
    return radius * (1 - 2 * torch.finfo(torch.float32).eps)
