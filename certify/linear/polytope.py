r"""The convex outer adversarial polytope of a ReLU network and its dual network, whose every value is a bound.

Each ReLU whose input lies in $[\ell, u]$, $\ell < 0 < u$, becomes the triangle $z \ge 0$, $z \ge \hat z$,
$z \le u(\hat z - \ell)/(u - \ell)$. A feasible point of the linear program's dual is a backward pass through a network of
the same weights, $\nu_i = D_i W_i^T\nu_{i+1}$ with $D = u/(u - \ell)$ where a ReLU is undecided:

$$c^T\hat z \ge \sum_i b_i^T\nu_{i+1} + x^T\nu_1 - \max_{\delta}(-\delta^T\nu_1) + \sum_{i,j} \ell_{ij}[-\nu_{ij}]_+$$

(ν is minus the paper's). ℓ and u come from the same bound, one layer after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from adversarial.threat import Region, Threat
from certify.certificate import Certificate, proof
from certify.checks import check_classes, check_labels
from certify.engine.graph import Graph, Node
from certify.engine.rules import rule_of
from certify.engine.tracing import trace
from certify.errors import CertifyError
from certify.linear.crown import bounded, plain
from certify.linear.windows import NUMBERS, Rows, Whole, rows_of

Box = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DualNetwork:
    """A network of affine operations and ReLU, one after the other, read backwards.

    Made once with `of`, it follows its model's parameters while these are trained (what is computed from them, such as
    folded normalisation, stays as it was). All that it gives is differentiable in the parameters and in the region.

    Reference: Wong & Kolter, "Provable defenses against adversarial examples via the convex outer adversarial polytope",
    ICML 2018, arXiv:1711.00851.
    """

    chain: tuple[Node, ...]

    @classmethod
    def of(cls, model: nn.Module | Graph, x: Tensor) -> DualNetwork:
        """The dual of a model in evaluation mode for inputs like x (B, …).

        Raises: CertifyError for a model that is not such a chain.
        """
        graph = trace(model, x)
        chain = tuple(graph.nodes.values())
        for before, node in pairwise(chain):
            if node.inputs != (before.name,) or (node.op != "relu" and rule_of(node).nonlinear):
                raise CertifyError(
                    f"expected a chain of linear layers and ReLU, got {node.op} of {', '.join(node.inputs)} in "
                    f"{node.path or 'the model'}; use CROWN, which has rules for other operations and branches"
                )
        parameters = {} if isinstance(model, Graph) else {p.data_ptr(): p for p in model.parameters() if p.numel()}
        return cls(tuple(replace(node, args=tuple(live(each, parameters) for each in node.args)) for node in chain))

    def boxes(self, region: Region) -> dict[int, Box]:
        """Bounds (n, …) of what goes into each ReLU, by its place in the chain."""
        known: dict[int, Box] = {}
        for place, node in enumerate(self.chain):
            if node.op == "relu":
                shape = self.chain[place - 1].shape
                parts = [self.bound(rows, place - 1, region, known) for rows in self.portions(shape, region)]
                low, high = (torch.cat(sides, 1).view(-1, *shape) for sides in zip(*parts, strict=True))
                known[place] = low, torch.maximum(low, high)
        return known

    def portions(self, shape: torch.Size, region: Region) -> list[Rows]:
        """Rows that pick every number of a value, as many at a time as memory holds."""
        numbers = len(region) * max(node.shape.numel() for node in self.chain)
        each = shape[1:].numel() if len(shape) == 3 else 1
        some = torch.arange(shape.numel() // each, device=region.anchor.device)
        return [rows_of(shape, part, region.anchor) for part in some.split(max(1, NUMBERS // (numbers * each)))]

    def bound(self, rows: Rows, place: int, region: Region, known: dict[int, Box]) -> Box:
        """The least and the most (n, R) of Σ a·value for rows in front of the value at a place."""
        rows, low, high = self.back(rows, place, known)
        least, most = rows.reach(region)
        return low + least, high + most

    def back(self, rows: Rows, place: int, known: dict[int, Box]) -> tuple[Rows, Tensor, Tensor]:
        """ν in front of the input, and what is added to ν·x below and above: two parallel planes."""
        low = high = torch.zeros(())
        for i in range(place, 0, -1):
            node, shape = self.chain[i], self.chain[i - 1].shape
            if node.op == "relu":
                slope, gap = chord(*known[i])
                low, high = low + rows.part(high=0.0).dot(gap), high + rows.part(low=0.0).dot(gap)
                rows = rows.times(slope)
            else:
                rows, constant = rows.through(node, shape)
                low, high = low + constant, high + constant
        return rows, low, high

    def margins(self, region: Region, y: Tensor) -> Tensor:
        """Lower bounds (n, classes) of the logit of y minus each; zero at y itself.

        Their negative stands for logits in the robust loss, `cross_entropy(-margins, y)`.
        """
        return self.bound(self.differences(region, y), len(self.chain) - 1, region, self.boxes(region))[0]

    def planes(self, region: Region, y: Tensor) -> tuple[Tensor, Tensor]:
        """a (n, classes, …) and b (n, classes): the margins are nowhere in the region below a·x + b."""
        rows, low, _ = self.back(self.differences(region, y), len(self.chain) - 1, self.boxes(region))
        return rows.a.expand(len(y), *rows.a.shape[1:]), low

    def differences(self, region: Region, y: Tensor) -> Whole:
        eye = torch.eye(self.chain[-1].shape.numel(), dtype=region.anchor.dtype, device=y.device)
        return Whole(eye[y].unsqueeze(1) - eye)


def chord(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The slope of ReLU's lines below and above, and how far the one above lies over zero at zero."""
    undecided = ~((low >= 0) | (high <= 0))  # what is not a number is undecided, and stays so
    width = torch.where(undecided, high - low, 1.0)
    slope = torch.where(undecided, high / width, (low >= 0).to(low))
    return slope, torch.where(undecided, -slope * low, 0.0)


def live(argument: Any, parameters: dict[int, nn.Parameter]) -> Any:
    """The parameter itself in the place of what was copied of it when the model was traced."""
    own = parameters.get(argument.data_ptr()) if torch.is_tensor(argument) else None
    same = own is not None and own.shape == argument.shape and own.stride() == argument.stride()  # a transpose is not
    return own if same else argument


@dataclass(frozen=True)
class WongKolter:
    """Margins bounded by the dual network of the convex outer adversarial polytope.

    Reference: Wong & Kolter, ICML 2018, arXiv:1711.00851; Wong et al., "Scaling provable adversarial defenses", NeurIPS
    2018, arXiv:1805.12514.
    Differs from the paper: exact, no random projections; a chain of layers, no skips; the box of the inputs is taken into
    account (without one, `Ball(norm, eps, None, None)`, it is the paper's number).
    """

    threat: Threat

    @torch.no_grad()
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Certificates for inputs x (B, …) with labels y (B,).

        Raises: CertifyError for a model that is no chain of linear layers and ReLU, a lifted threat, and wrong labels.
        """
        parts = []
        for region, logits, labels, dual in batches(self.threat, model, x, y, batch_size):
            margins = dual.margins(region, labels)
            safe = margins.scatter(1, labels[:, None], torch.inf).amin(1) > 0
            parts.append(proof(self, logits, labels, margins, torch.where(safe, region.eps, 0), region.eps))
        return Certificate.joined(parts)


def batches(
    threat: Threat, model: nn.Module | Graph, x: Tensor, y: Tensor, size: int
) -> Iterator[tuple[Region, Tensor, Tensor, DualNetwork]]:
    """Regions, logits, labels and the dual network for some samples at a time, checked."""
    check_labels(x, y)
    region, dual = bounded(plain(threat.around(x))), DualNetwork.of(model, x)
    for some in torch.arange(len(x), device=x.device).split(size):
        logits = model(x[some])
        check_classes(y, logits)
        yield region[some], logits, y[some], dual
