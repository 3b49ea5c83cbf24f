"""Slopes of lines that are trained: every slope gives a bound, so the best of an ascent is one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from certify.engine.bounds import Bounds
from certify.engine.curves import Curve
from certify.engine.front import Front
from certify.engine.graph import Node


class Trained:
    """Slopes of their own for every row, which begin as those of least area and stay among those the curve has on the box;
    what is straight keeps its line above, a chord."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[Tensor, ...]] = {}
        self.ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def of(self, node: Node, curve: Curve, lines: tuple[Tensor, ...], rows: int) -> tuple[Tensor, Tensor]:
        if node.name not in self.known:
            below, _, above, _, low, high = (line.detach().expand(-1, rows, *line.shape[2:]) for line in lines)
            tried = curve.slopes(low, high)
            self.ranges[node.name] = tried.amin(0), tried.amax(0)
            trained = (below,) if curve.straight else (below, above)
            self.known[node.name] = tuple(slope.clone().requires_grad_() for slope in trained)
        below, *above = self.known[node.name]
        return below, above[0] if above else lines[2]

    def held(self, name: str, front: Front) -> tuple[Front, Tensor | float]:
        return front, 0.0

    def learned(self) -> list[Tensor]:
        return [slope for slopes in self.known.values() for slope in slopes]

    @torch.no_grad()
    def keep(self) -> None:
        """Press the slopes back into their ranges."""
        for name, slopes in self.known.items():
            for slope in slopes:
                slope.clamp_(*self.ranges[name])


@dataclass(frozen=True)
class Ascent:
    """The best bounds that trained slopes reach, never below those with the slopes of least area.

    Args:
        until: stop when all bounds are above it.
    """

    bounds: Bounds
    iterations: int = 20
    rate: float = 0.1
    decay: float = 0.98
    until: float = torch.inf

    def __call__(self, name: str, front: Front) -> Tensor:
        """The least (G, R) of a node's rows."""
        return self.watched(name, front, Trained())[0]

    def watched(self, name: str, front: Front, slopes: Trained) -> tuple[Tensor, dict[str, Tensor]]:
        """The same, and what was in front of every value in the last pass."""
        fronts: dict[str, Tensor] = {}

        def watch(name: str, a: Tensor) -> None:
            fronts[name] = a.detach()

        return self.climbed(lambda: self.bounds.carried(name, front, slopes, watch=watch), lambda: [slopes]), fronts

    def jointly(self, front: Front) -> Tensor:
        """The least (G, R) of the logits' rows, the slopes of boxes inside trained for it too, with slopes of their own."""
        slopes: defaultdict[tuple[str, int], Trained] = defaultdict(Trained)

        def once() -> Tensor:
            inner = copy(self.bounds)
            inner.boxes, inner.relaxed = dict(inner.boxes), {}
            for name in inner.wanted():
                turn = count()
                inner.boxes[name] = inner.backward(
                    name, lambda name, rows, turn=turn: inner.carried(name, rows, slopes[name, next(turn)])
                )
            return inner.carried(inner.graph.output, front, slopes["", 0])

        return self.climbed(once, lambda: list(slopes.values()))

    def climbed(self, bound: Callable[[], Tensor], slopes: Callable[[], list[Trained]]) -> Tensor:
        """The best of a bound while slopes, known after its first pass, are trained."""
        with torch.enable_grad():
            found = bound()
            best, every = found.detach(), slopes()
            learned = [slope for each in every for slope in each.learned()]
            if not learned or not self.iterations:
                return best
            optimizer = torch.optim.Adam(learned, self.rate, maximize=True)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.decay)
            for _ in range(self.iterations):
                optimizer.zero_grad()
                found.sum().backward()
                optimizer.step()
                for each in every:
                    each.keep()
                schedule.step()
                found = bound()
                best = torch.fmax(best, found.detach())
                if bool((best > self.until).all()):
                    break
        return best
