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
from certify.checks import answers, check_labels
from certify.engine.affine import Box
from certify.engine.bounds import Bounds
from certify.engine.fall import least
from certify.engine.front import Front, begun
from certify.engine.graph import Graph
from certify.engine.rules import rule_of
from certify.engine.tracing import trace
from certify.errors import CertifyError
from certify.linear.crown import bounded, plain

NUMBERS = 2**25  # of the largest tensor of rows: 128 MB in float32


@dataclass(frozen=True)
class DualNetwork:
    """A network of affine operations and ReLU, one after the other, read backwards.

    Made once with `of`, it follows its model's parameters while these are trained (what is computed from them, such as
    folded normalisation, stays as it was). All that it gives is differentiable in the parameters and in the region.

    Reference: Wong & Kolter, "Provable defenses against adversarial examples via the convex outer adversarial polytope",
    ICML 2018, arXiv:1711.00851.
    """

    graph: Graph

    @classmethod
    def of(cls, model: nn.Module | Graph, x: Tensor) -> DualNetwork:
        """The dual of a model in evaluation mode for inputs like x (B, …).

        Raises: CertifyError for a model that is not such a chain.
        """
        graph = trace(model, x)
        for before, node in pairwise(graph.nodes.values()):
            if node.inputs != (before.name,) or (node.op != "relu" and rule_of(node).nonlinear):
                raise CertifyError(
                    f"expected a chain of linear layers and ReLU, got {node.op} of {', '.join(node.inputs)} in "
                    f"{node.path or 'the model'}; use CROWN, which has rules for other operations and branches"
                )
        parameters = {} if isinstance(model, Graph) else {p.data_ptr(): p for p in model.parameters() if p.numel()}
        nodes = {
            name: replace(node, args=tuple(live(each, parameters) for each in node.args))
            for name, node in graph.nodes.items()
        }
        return cls(replace(graph, nodes=nodes))

    def boxes(self, region: Region) -> dict[str, Box]:
        """Bounds (n, …) of what goes into each ReLU, by the ReLU's name."""
        known: dict[str, Box] = {}
        for name, node in self.graph.nodes.items():
            if node.op == "relu":
                parts = [self.bound(node.inputs[0], front, region, known) for front in self.portions(name, region)]
                low, high = (torch.cat(sides, 1).view(-1, *node.shape) for sides in zip(*parts, strict=True))
                known[name] = low, torch.maximum(low, high)
        return known

    def portions(self, name: str, region: Region) -> list[Front]:
        """Rows that pick every number that goes into a ReLU, alike for all samples; as many at a time as memory holds, and
        whole channels of maps."""
        shape, windowed = self.graph.nodes[name].shape, Bounds(self.graph, region).windowed(name)
        size = len(region) * max(node.shape.numel() for node in self.graph.nodes.values())
        channel = shape[1:].numel() if windowed else 1
        places = torch.arange(shape.numel(), device=region.anchor.device)[None]
        some = places.split(channel * max(1, NUMBERS // (size * channel)), 1)
        return [begun(shape, each, 1.0, region.anchor, windowed=windowed) for each in some]

    def bound(self, name: str, front: Front, region: Region, known: dict[str, Box]) -> Box:
        """The least and the most (n, R) of Σ A·value for rows in front of a node."""
        front, low, high = self.back(name, front, known)
        least, most = self.reach(front, region)
        return low + least, high + most

    def back(self, name: str, front: Front, known: dict[str, Box]) -> tuple[Front, Tensor, Tensor]:
        """ν in front of the input, and what is added to ν·x below and above: two parallel planes."""
        low = high = front.a.new_zeros(1, 1)
        while name != self.graph.input:
            node = self.graph.nodes[name]
            name = node.inputs[0]
            if node.op == "relu":
                slope, gap = (front.pick(each) for each in chord(*known[node.name]))
                lifted = (front.a * gap).flatten(2)  # what is negative counts below, what is positive above
                middle, size = lifted.sum(2) / 2, torch.linalg.vector_norm(lifted, 1, dim=2) / 2
                front, low, high = front.times(slope), low + (middle - size), high + (middle + size)
                continue
            rule, shape = rule_of(node), self.graph.nodes[name].shape
            zeros = front.a.new_zeros(1, *shape)
            front = front if front.window is None or rule.local(node, [shape]) else front.dense()
            (front,), constant = rule.back(node, front, rule.relax(node, [(zeros, zeros)]))
            low, high = low + constant, high + constant
        return front, low, high

    def reach(self, front: Front, region: Region) -> Box:
        """The least and the most (n, R) of Σ A·x in a region."""
        if region.norm == "linf":  # the box is the ball, and has both at once
            low, high = region.box()
            middle = front.total(front.pick((low + high) / 2))
            radius = front.total(front.pick((high - low) / 2), front.a.abs())
            return middle - radius, middle + radius
        front = front.of_each(len(region))
        return least(front, region), -least(replace(front, a=-front.a), region)

    def margins(self, region: Region, y: Tensor) -> Tensor:
        """Lower bounds (n, classes) of the logit of y minus each; zero at y itself.

        Their negative stands for logits in the robust loss, `cross_entropy(-margins, y)`.
        """
        return self.bound(self.graph.output, self.differences(region, y), region, self.boxes(region))[0]

    def planes(self, region: Region, y: Tensor) -> tuple[Tensor, Tensor]:
        """a (n, classes, …) and b (n, classes): the margins are nowhere in the region below a·x + b."""
        front, low, _ = self.back(self.graph.output, self.differences(region, y), self.boxes(region))
        return front.a, low.expand(front.a.shape[:2])

    def differences(self, region: Region, y: Tensor) -> Front:
        """Rows (n, classes, classes) that take each logit from that of y."""
        classes = self.graph.nodes[self.graph.output].shape.numel()
        eye = torch.eye(classes, dtype=region.anchor.dtype, device=y.device)
        return Front(eye[y].unsqueeze(1) - eye)


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
        """Certificates for inputs x (B, …) with labels y (B,), whose radius is eps where all of the threat is shown, else 0.

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
    region, logits = bounded(plain(threat.around(x))), answers(model, x, y, size)
    dual = DualNetwork.of(model, x)
    for some in torch.arange(len(x), device=x.device).split(size):
        yield region[some], logits[some], y[some], dual
