"""Slopes of lines that are trained: every slope gives a bound, so the best of an ascent is one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certify.engine.bounds import Bounds
from certify.engine.curves import Curve
from certify.engine.front import Front
from certify.engine.graph import Node


class Trained:
    """Slopes of their own for every row, which begin as those of least area and stay among those the curve has on the box;
    what is straight above stays a chord."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[Tensor, Tensor]] = {}
        self.ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def of(self, node: Node, curve: Curve, lines: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        if node.name not in self.known:
            below, _, above, _, low, high = (line.detach() for line in lines)
            tried = curve.slopes(low, high)
            self.ranges[node.name] = tried.amin(0), tried.amax(0)
            self.known[node.name] = (
                below.clone().requires_grad_(),
                above.clone().requires_grad_(not curve.straight),
            )
        return self.known[node.name]

    def held(self, name: str, front: Front) -> tuple[Front, Tensor | float]:
        return front, 0.0

    def learned(self) -> list[Tensor]:
        return [slope for pair in self.known.values() for slope in pair if slope.requires_grad]

    @torch.no_grad()
    def keep(self) -> None:
        """Press the slopes back into their ranges."""
        for name, pair in self.known.items():
            for slope in pair:
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

        with torch.enable_grad():
            found = self.bounds.carried(name, front, slopes, watch=watch)
            best, learned = found.detach(), slopes.learned()
            if not learned or not self.iterations:
                return best, fronts
            optimizer = torch.optim.Adam(learned, self.rate, maximize=True)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.decay)
            for _ in range(self.iterations):
                optimizer.zero_grad()
                found.sum().backward()
                optimizer.step()
                slopes.keep()
                schedule.step()
                found = self.bounds.carried(name, front, slopes, watch=watch)
                best = torch.fmax(best, found.detach())
                if bool((best > self.until).all()):
                    break
        return best, fronts
