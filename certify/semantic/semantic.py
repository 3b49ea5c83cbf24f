r"""Proofs for changes with a few parameters: hue, saturation, lightness, brightness and contrast, turns, shifts, occlusion.

The range of the parameters is cut into cells. In each cell every pixel lies between two lines in the parameters
(`enclosures`), which any certifier of linear bounds takes in the place of a ball.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from adversarial.lifting import Lifted
from adversarial.threat import Region, Threat
from certify.certificate import Certificate, Certifier
from certify.checks import check_classes, check_labels
from certify.engine.graph import Graph
from certify.engine.tracing import trace
from certify.linear.crown import CROWN
from certify.semantic.cells import cells, counts, parameters, places, walk
from certify.semantic.enclosures import enclosed


@dataclass(frozen=True, kw_only=True)
class Pieces(Region):
    """Inputs of the model in any of J enclosures, of which every sample has its own; what is seen of it is its hull.

    Legend: S samples, J pieces, k parameters, D values. `row` (B,) is each row's sample; pieces: middle and half (S, J, D)
    of the range of every value, offsets (S, J, D) of the lines below and above it, and their slopes times the parameters'
    half widths (S, J, k, D).
    """

    row: Tensor
    middle: Tensor
    half: Tensor
    below: Tensor
    above: Tensor
    sinking: Tensor
    rising: Tensor

    def __getitem__(self, rows: Tensor) -> Region:
        return replace(super().__getitem__(rows), row=self.row[rows])  # type: ignore[call-arg]

    def symbols(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Centre (B, D), generators (B, k, D) of the parameters in [−1, 1], and what lines leave between them (B, D); None for
        pieces without lines, and for several, which have none in common."""
        if self.middle.shape[1] > 1 or self.rising.shape[3] == 1:
            return None
        below, above, sinking, rising = (
            part[self.row, 0] for part in (self.below, self.above, self.sinking, self.rising)
        )
        apart = (above - below) / 2 + (rising - sinking).abs().sum(1) / 2
        return (below + above) / 2, (rising + sinking) / 2, apart.clamp(min=0)

    def support(self, gradient: Tensor) -> Tensor:
        r"""The largest over the pieces, less what is taken at the anchor: of each the smaller of what its ranges and its lines
        leave, $g^Tm + |g|^Th$ and $g_+^Tb' + g_-^Tb + \sum_k |g_+^Ts'_k + g_-^Ts_k|$."""
        g = gradient.flatten(1)
        found = g.new_empty(len(g))
        for sample in self.row.unique().tolist():
            mine = self.row == sample
            own = g[mine]
            reach = own @ self.middle[sample].T + own.abs() @ self.half[sample].T
            if self.rising.shape[3] > 1:
                up, down = own.clamp(min=0), own.clamp(max=0)
                lines = up @ self.above[sample].T + down @ self.below[sample].T
                for rising, sinking in zip(self.rising[sample].unbind(1), self.sinking[sample].unbind(1), strict=True):
                    lines = lines + (up @ rising.T + down @ sinking.T).abs()
                reach = torch.minimum(reach, lines)
            found = found.masked_scatter(mine, reach.amax(1))
        return found - (g * self.anchor.flatten(1)).sum(1)


@dataclass(frozen=True)
class Enclosed:
    """A threat on inputs: what a set makes of them while its parameters lie in one of J boxes, low to high (B, J, k)."""

    set: Any
    low: Tensor
    high: Tensor

    def around(self, x: Tensor) -> Region:
        found = [enclosed(self.set, x, *ends) for ends in zip(self.low.unbind(1), self.high.unbind(1), strict=True)]
        low, high = torch.stack([one.low for one in found], 1), torch.stack([one.high for one in found], 1)
        half = (self.high - self.low)[..., None] / 2
        pieces = {
            "middle": (low + high) / 2, "half": (high - low) / 2,
            "below": torch.stack([one.below.offset for one in found], 1),
            "above": torch.stack([one.above.offset for one in found], 1),
            "sinking": torch.stack([one.below.slopes for one in found], 1) * half,
            "rising": torch.stack([one.above.slopes for one in found], 1) * half,
        }  # fmt: skip
        low, high = low.amin(1).to(x.dtype), high.amax(1).to(x.dtype)
        middle = (low + high) / 2
        return Pieces(
            norm="linf", anchor=middle.view_as(x), low=low - middle, high=high - middle, eps=x.new_ones(len(x)),
            row=torch.arange(len(x), device=x.device), **{name: piece.to(x.dtype) for name, piece in pieces.items()},
        )  # fmt: skip


@dataclass(frozen=True)
class Semantic:
    """A lifted set, cell by cell, the cells nearest to the clean input first; a sample leaves at its first failure.

    Everything nearer to the clean input than that cell is covered, which gives the radius, in the parameters' own units.
    `margin` is NaN for a sample that left.

    Args:
        threat: `lift(set)` of a Hue, Saturation, Lightness, BrightnessContrast, Spatial, Patch or Occlusion; of another ball
            than linf every cell that it touches is covered.
        certifier: made for each cell's threat; CROWN, IBP, AlphaCROWN, or a function that fills in their options.
            `lambda threat: Cascade(threat, 0)` leaves CROWN to the cells that cheaper bounds do not decide.
        splits: cells of each parameter, one number or one for each (explicit splitting): a certificate each. What goes in
            steps, an Occlusion's row and column, has a cell for each step whatever is given.
        inside: parts of each cell along each parameter (implicit splitting): the model's relaxation is shared, its input
            is concretised in each part, and the worst counts.

    Reference: Mohapatra et al., "Towards verifying robustness of neural networks against a family of semantic
    perturbations", CVPR 2020, arXiv:1912.09533 (Semantify-NN; turns by 0.5 degrees a cell with 100 parts there).
    Differs from the paper: pixels are enclosed by lines that are exact where a change is straight within a part, in the
    place of layers of ReLU in front of the model, which would be relaxed in turn; turned pixels may cross any number of
    cells of the grid, and shifts, scales and several parameters at once are covered alike.
    """

    threat: Lifted
    certifier: Callable[[Threat], Certifier] = CROWN
    splits: int | Sequence[int] = 20
    inside: int | Sequence[int] = 10

    def __call__(self, model: nn.Module | Graph, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Certificates for inputs x (B, …) with labels y (B,).

        Raises: CertifyError for a model or a set that has no bound, and for labels that are none.
        """
        check_labels(x, y)
        region, graph = parameters(self.threat, x), trace(model, x)
        with torch.no_grad():
            logits = torch.cat([graph(rows) for rows in x.split(batch_size)])
        check_classes(y, logits)
        steps = places(self.threat.set, x, region.low.shape[1])
        inside = counts(self.inside, [count and 1 for count in steps])
        low, high = cells(*region.box(), counts(self.splits, steps), steps)

        def prove(rows: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
            threat = Enclosed(self.threat.set, *cells(low, high, inside))
            found = self.certifier(threat)(graph, x[rows], y[rows], batch_size=batch_size)  # type: ignore[arg-type]
            return found.certified, found.margin

        alive = (logits.argmax(1) == y) & logits.isfinite().all(1)
        certified, radius, margin = walk(region, low, high, alive, prove, at_once=batch_size, name=type(self).__name__)
        return Certificate(
            logits.argmax(1), certified, radius, torch.where(certified, margin, torch.nan).to(x.dtype), self.threat,
            type(self).__name__, "deterministic",
        )  # fmt: skip
