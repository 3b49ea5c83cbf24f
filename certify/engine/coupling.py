r"""What the numbers of a layer cannot do at once: inside an L2 ball, ReLUs are bounded together instead of one by one.

Boxes say of each number how far it moves, as if all could do so together. An L2 (or L1) threat leaves the whole layer in a
ball, $\|z - \hat z\|_2 \le \rho$. For a bound $\sum_i c_i f(z_i) \ge \sum_i g_i z_i + h$ with any g, every $\lambda \ge 0$ gives

$$h = \sum_i \min_{l_i \le z \le u_i} \Big(c_i f(z) - g_i z + \tfrac\lambda2 (z - \hat z_i)^2\Big) - \tfrac\lambda2 \rho^2,$$

where each minimum is that of a parabola on every straight piece of f.

Reference: Chiu, Chen, Zhang & Zhang, "SDP-CROWN", ICML 2025, arXiv:2506.06665.
Differs from the paper: the box stays in the minimum, so h is never below the paper's; λ is found by a few steps that scale
the distance moved to ρ, not by gradients; leaky, clamped and other straight functions as well as ReLU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adversarial.threat import Region
from certify.engine.affine import Box
from certify.engine.curves import CURVES, Curve
from certify.engine.front import Front, flat
from certify.engine.graph import Graph
from certify.engine.nonlinear import Largest, OneNumber
from certify.engine.operator_norm import operator_norm
from certify.engine.rules import rule_of

STEPS = 3
BLOCK = 2**17  # numbers at a time, to stay in the processor's cache


@dataclass(frozen=True)
class Coupling:
    """Centres (B, …) and radii (B,) of the balls that the values of a graph stay in when its input stays in a region."""

    graph: Graph
    centres: dict[str, Tensor]
    radii: dict[str, Tensor]

    @classmethod
    def of(cls, graph: Graph, region: Region, boxes: dict[str, Box]) -> Coupling:
        radii, norm = {graph.input: region.eps}, region.norm
        nonlinear = frozenset(
            name for name, node in graph.nodes.items() if name != graph.input and rule_of(node).nonlinear
        )
        for name, node in graph.nodes.items():
            if name == graph.input:
                continue
            rule, before = rule_of(node), node.inputs[0]
            if isinstance(rule, OneNumber) and before in radii:
                radii[name] = radii[before] * flat(rule.curve(node).steepest(*boxes[before]), 1).amax(1)
            elif isinstance(rule, Largest) and before in radii:
                radii[name] = radii[before]
            elif not rule.nonlinear and any(rule_of(graph.nodes[reader]).nonlinear for reader in graph.readers[name]):
                anchors = graph.anchors(name, frozenset(radii), nonlinear)
                if anchors is not None:
                    radii[name] = sum(radii[anchor] * gain(graph, anchor, name, nonlinear, norm) for anchor in anchors)
        return cls(graph, graph.values(region.anchor), radii)

    def __getitem__(self, rows: Tensor) -> Coupling:
        """The same for some of the samples."""
        centres, radii = ({k: v[rows] for k, v in each.items()} for each in (self.centres, self.radii))
        return Coupling(self.graph, centres, radii)

    def better(self, name: str, front: Front, passed: Tensor, relaxed: tuple[Tensor, ...], constant: Tensor) -> Tensor:
        """The constant (G, R) under Σ c·f(z) − g·z, for a front c and what passed, g, or the given one where that is larger."""
        node = self.graph.nodes[name]
        before, curve = node.inputs[0], CURVES[node.op](*node.args[1:], **node.kwargs)
        if before not in self.radii or not curve.straight:
            return constant
        front = front.clipped()
        places = [flat(front.pick(each), 2) for each in (*relaxed[4:], self.centres[before])]
        c, g, radius = flat(front.a, 2), flat(passed, 2), front.of(self.radii[before])[:, None]
        size = max(1, BLOCK // (len(c) * c.shape[2]))
        found = []
        for some in torch.arange(c.shape[1], device=c.device).split(size):
            own = [each if each.shape[1] == 1 else each[:, some] for each in places]
            found.append(lagrangian(curve, c[:, some], g[:, some], *own, radius))
        return torch.fmax(constant, torch.cat(found, 1))


def gain(graph: Graph, source: str, target: str, nonlinear: frozenset[str], norm: str) -> float:
    """By how much more a value moves than the one it is linear in, in L2 (an input of an L1 threat in L1)."""
    key = source, target, "l1" if norm == "l1" and source == graph.input else "l2"
    if key not in graph.norms:
        linear, shape = graph.between(source, target, nonlinear), graph.nodes[source].shape
        graph.norms[key] = operator_norm(linear, key[2], "l2", shape=shape, device=graph.device)
    return graph.norms[key]


def lagrangian(curve: Curve, c: Tensor, g: Tensor, low: Tensor, high: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """h (G, R) at the best of a few λ, for rows c and g (G, R, K) and places (G, 1 or R, K); differentiable in c and g."""
    centre = torch.minimum(torch.maximum(centre, low), high)  # rounding may have it outside
    pieces = [
        (slope, offset, low.clamp(start, end), high.clamp(start, end))
        for (start, end), (slope, offset) in zip(curve.pieces(), curve.straights(), strict=True)
    ]

    def at(weight: Tensor) -> tuple[Tensor, Tensor]:
        """h without the last term, and how far the minimum is from the centre, squared."""
        half = weight[..., None] / 2
        best = moved = None
        for slope, offset, a, b in pieces:
            p = c * slope - g
            step = (centre - p * (0.5 / half)).clamp(a, b) - centre
            value = p * (centre + step) + half * step.square()
            if offset:
                value = value + c * offset
            if best is None:
                best, moved = value, step
            else:
                best, moved = torch.minimum(best, value), torch.where(value < best, step, moved)
        return best.sum(2), moved.square().sum(2)

    with torch.no_grad():
        least = torch.finfo(c.dtype).eps  # rows of nothing need no weight, but one that can be divided by
        widest = torch.stack([(c * slope - g).abs() for slope, *_ in pieces]).amax(0)
        weight = widest.square().sum(2).sqrt().clamp_min(least) / radius.clamp_min(least)
        chosen, best = weight, None
        for step in range(STEPS + 1):
            value, moved = at(weight)
            value = value - weight / 2 * radius.square()
            if best is None:
                best = value
            else:
                chosen, best = torch.where(value > best, weight, chosen), torch.maximum(value, best)
            if step < STEPS:
                weight = weight * (moved.sqrt() / radius.clamp_min(least)).clamp(1 / 16, 16)
    if not (c.requires_grad or g.requires_grad):
        return best
    return at(chosen)[0] - chosen / 2 * radius.square()
