r"""How far the planes of the dual network let each input go, and the largest box they allow around it.

Inside a region the margins lie above planes $a_j^Tx' + b_j$. What lies between the region's end and the planes' zeros, the
polyhedral envelope, has no adversarial example: a radius for an input whose margins over all of the region are not shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adversarial.geometry import scale_l2
from adversarial.threat import Ball, Region
from certify.certificate import Certificate, proof
from certify.checks import answers, check_labels
from certify.engine.graph import Graph
from certify.engine.tracing import trace
from certify.errors import CertifyError
from certify.linear.polytope import DualNetwork, WongKolter, batches
from certify.radius import radius_of

HALVINGS = 12


@dataclass(frozen=True)
class PolyhedralEnvelope:
    r"""The radius up to which no plane of the dual network lets an input be misclassified.

    $\min(\epsilon, \min_j d_j)$, with $d_j$ the distance, inside the threat, to where the lower plane of the margin to class
    j is zero. A search that sees the threat as shown or not misses what lies between; with this one
    `radius_of` needs fewer steps.

    Args:
        iterations: at most, of the coordinates that are held at the end of the box.

    Reference: Liu et al., "Training provably robust models by polyhedral envelope regularization", IEEE TNNLS 2023,
    arXiv:1912.04792.
    Differs from the paper: of ReLU networks, with the planes of the dual network (the paper's for Fast-Lin).
    """

    threat: Ball
    iterations: int = 20

    @torch.no_grad()
    def __call__(self, model: nn.Module | Graph, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Certificates for inputs x (B, …) with labels y (B,).

        Raises: CertifyError for a model that is no chain of linear layers and ReLU, for a threat that is no ball of linf,
        l2 or l1, and wrong labels.
        """
        if not isinstance(self.threat, Ball) or self.threat.norm == "l0":
            raise CertifyError(f"expected a Ball in linf, l2 or l1 for an envelope, got {self.threat}")
        parts = []
        for region, logits, labels, dual in batches(self.threat, model, x, y, batch_size):
            a, b = dual.planes(region, labels)
            a, classes = a.flatten(2), logits.shape[1]
            heights = (a * region.anchor.flatten(1).unsqueeze(1)).sum(2) + b
            each = region[torch.arange(len(labels), device=x.device).repeat_interleave(classes)]
            rows = a.flatten(0, 1)
            margins = heights - each.support(-rows).view_as(heights)
            far = distance(rows, heights.flatten(), each, iterations=self.iterations).view_as(heights)
            radius = torch.minimum(far.scatter(1, labels[:, None], torch.inf).amin(1), region.eps)
            parts.append(proof(self, logits, labels, margins, radius, region.eps))
        return Certificate.joined(parts)


def distance(a: Tensor, height: Tensor, region: Region, *, iterations: int = 20) -> Tensor:
    """How far (P,) it is, at least, from the anchors to where planes with slopes a (P, D), which are `height` (P,) there, are
    zero, inside regions (P); infinity where they are not zero in the region.

    A plane falls, within r, by a function that is concave in r, so that Newton's steps from below never go beyond its
    root; each one holds those coordinates that have come to the end of the region. It begins at the distance without a box.
    """
    tiny = torch.finfo(a.dtype).tiny
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[region.norm]
    steep = torch.linalg.vector_norm(a, dual, dim=1)
    found = torch.where(height <= 0, 0.0, height / steep.clamp_min(tiny))
    rows = ((height > 0) & found.isfinite()).nonzero()[:, 0]
    for _ in range(iterations):
        if not len(rows):
            break
        fall, slope = descent(a[rows], found[rows], region[rows])
        gap = height[rows] - fall
        falls = (slope > 1e-7 * steep[rows]) & (gap > 1e-6 * height[rows])  # else what was found so far stands
        step = torch.where(falls, gap / slope.clamp_min(tiny), 0.0)
        found[rows] = found[rows] + step
        rows = rows[(step > 0) & step.isfinite()]
    return torch.where(height > region.support(-a), torch.inf, found)


def descent(a: Tensor, r: Tensor, region: Region) -> tuple[Tensor, Tensor]:
    """By how much planes fall at most within radii r (P,), and how fast that grows with r."""
    low, high = torch.maximum(region.low, -r[:, None]), torch.minimum(region.high, r[:, None])
    fall = Region(region.norm, torch.zeros_like(a), low, high, r).support(-a)
    size, room = a.abs(), torch.where(a > 0, -region.low, region.high)
    if region.norm == "linf":
        return fall, (size * (room > r[:, None])).sum(1)
    if region.norm == "l2":
        return fall, r / scale_l2(size, r, torch.minimum(room, r[:, None]))
    order = (size * (room > 0)).argsort(1, descending=True)  # l1: the steepest coordinate that still has room
    left = room.gather(1, order).cumsum(1) > r[:, None]
    return fall, (size.gather(1, order) * left).amax(1)


@dataclass(frozen=True)
class NonUniformBox:
    r"""The largest box around each input, of a half-width for each feature, in which the dual network shows its class.

    $\max \sum_i \log \epsilon_i$ such that the margins over the box stay above `delta`, by an augmented Lagrangian. What it
    ends with is shrunk until it is shown, and shown once more; where that is smaller, the largest cube is kept. Features
    that matter little get wide sides.

    Args:
        threat: a ball of linf; its eps is what a `Certificate` asks of every side, its bounds play no part.
        iterations: of Adam on log ε, with `rate`, which falls to a hundredth.
        penalty, growth, every: weight of the constraint's square, and its factor after so many iterations.
        update: iterations between those of the multipliers.
        delta: what margins keep, as a share of the clean one.

    Reference: Liu et al., "On certifying non-uniform bounds against adversarial attacks", ICML 2019, arXiv:1903.06603.
    Differs from the paper: margins are bounded together with the last layer, in units of the clean one; log ε instead of
    √ε, Adam instead of gradient descent; it begins at the certified cube.
    """

    threat: Ball
    iterations: int = 400
    rate: float = 0.05
    penalty: float = 1.0
    growth: float = 5.0
    every: int = 80
    update: int = 5
    delta: float = 1e-4

    def __call__(self, model: nn.Module | Graph, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Certificates for inputs x (B, …) with labels y (B,), whose radius is the narrowest half-width of the box; they have no
        margin over the threat.

        Raises: CertifyError for a model that is no chain of linear layers and ReLU, another threat, and wrong labels.
        """
        check_labels(x, y)
        prediction = answers(model, x, y, batch_size).argmax(1)
        widths = self.widths(model, x, y.long(), batch_size=batch_size).flatten(1)
        radius, (low, high) = widths.amin(1), self.threat.around(x).box()
        inside = (torch.maximum(high - x, x - low).flatten(1) <= widths).all(1) & (radius > 0)
        none = torch.full_like(radius, torch.nan)
        return Certificate(prediction, inside, radius, none, self.threat, type(self).__name__, "deterministic")

    def widths(self, model: nn.Module | Graph, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Tensor:
        """Half-widths like x of the certified boxes; zero where not even a small cube is certified."""
        if not isinstance(self.threat, Ball) or self.threat.norm != "linf" or self.threat.mask is not None:
            raise CertifyError(f"expected a Ball in linf without a mask for a box, got {self.threat}")
        graph = trace(model, x)
        free = Ball("linf", 1.0, None, None)
        cube = radius_of(WongKolter(free), graph, x, y, batch_size=batch_size)
        found = torch.zeros_like(x)
        for some in (cube > 0).nonzero()[:, 0].split(batch_size):
            found[some] = self.grown(DualNetwork.of(graph, x), x[some], y[some], cube[some])
            shown = WongKolter(replace(free, eps=found[some]))(graph, x[some], y[some], batch_size=batch_size).certified
            found[some[~shown]] = 0
        return found

    def grown(self, dual: DualNetwork, x: Tensor, y: Tensor, cube: Tensor) -> Tensor:
        """The largest box (n, …) on the way from cubes (n,), each shrunk until it is shown."""
        wide = (-1, *(1,) * (x.ndim - 1))
        start = cube.log().view(wide).expand_as(x)
        own = torch.nn.functional.one_hot(y, dual.graph.nodes[dual.graph.output].shape.numel()).bool()

        def slack(sides: Tensor) -> Tensor:
            """How far margins are above what is asked of them, in units of the clean margin."""
            return (dual.margins(Ball("linf", sides.exp(), None, None).around(x), y) / clean - self.delta).where(
                ~own, 1.0
            )

        with torch.no_grad():
            clean = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
            clean = slack(start - 30).where(~own, torch.inf).amin(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        sides, weight = start.clone().requires_grad_(), self.penalty
        optimizer, multipliers = torch.optim.Adam([sides], self.rate), torch.zeros_like(own, dtype=x.dtype)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, self.iterations)
        for step in range(1, self.iterations + 1):
            push = (multipliers - weight * slack(sides)).clamp(min=0) * ~own
            optimizer.zero_grad()
            (push.square().sum(1) / (2 * weight) - sides.flatten(1).mean(1)).sum().backward()
            optimizer.step()
            schedule.step()
            multipliers = push.detach() if step % self.update == 0 else multipliers
            weight *= self.growth if step % self.every == 0 else 1
        with torch.no_grad():
            return self.shrunk(slack, sides.detach(), start).exp()

    @staticmethod
    def shrunk(slack: Callable[[Tensor], Tensor], sides: Tensor, start: Tensor) -> Tensor:
        """The last point on the way from log sides, all smaller by one factor, at which they are shown; else the start."""
        wide = (-1, *(1,) * (sides.ndim - 1))
        least, most = (x.flatten(1).mean(1) for x in (start, sides))
        safe, refused = torch.minimum(least - most, torch.zeros_like(least)), torch.zeros_like(least)
        best = start
        tried = refused
        for _ in range(HALVINGS):
            candidate = sides + tried.view(wide)
            shown = (slack(candidate) > 0).all(1)
            better = shown & (candidate.flatten(1).mean(1) > best.flatten(1).mean(1))
            best = torch.where(better.view(wide), candidate, best)
            safe, refused = torch.where(shown, tried, safe), torch.where(shown, refused, tried)
            tried = (safe + refused) / 2
        return best
