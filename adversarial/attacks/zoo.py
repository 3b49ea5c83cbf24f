"""Minimum-norm attacks from scores: ZOO, one coordinate at a time, and AutoZOOM, one direction in a smaller space."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from adversarial.attacks.base import Attack
from adversarial.attacks.score import adam, check_positive, wide
from adversarial.attacks.windows import as_image
from adversarial.goals import GoalError, LargerError
from adversarial.probe import Keep, Probe
from adversarial.streams import Streams
from adversarial.threat import ANYWHERE, Region, Threat

POINTS = 2048  # asked about at once
CHECKS, FELL = 10, 0.9999  # checks in a run, and the share of the last check's objective that is progress
FINEST = 1e-3  # AutoZOOM: float32 logits do not show a shorter step


@dataclass
class Weights:
    """The weight c of the margin for each sample (b,): ten times more until it succeeds, then bisected."""

    c: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, rows: Tensor, c: float, like: Tensor) -> Weights:
        zeros = torch.zeros(len(rows), dtype=like.dtype, device=like.device)
        return cls(zeros + c, zeros, zeros + torch.inf)

    def __getitem__(self, rows: Tensor) -> Weights:
        return Weights(*(getattr(self, part.name)[rows] for part in fields(self)))

    def after(self, hit: Tensor) -> Weights:
        """The weights to try next when these did or did not succeed (b,)."""
        high, low = torch.where(hit, self.c, self.high), torch.where(hit, self.low, self.c)
        return Weights(torch.where(high.isfinite(), (low + high) / 2, 10 * self.c), low, high)


@dataclass(frozen=True)
class ZOO(Attack):
    r"""$\min \|z - x\|_2^2 + c\,\max(-\text{margin}(z), 0)$ by Adam on random coordinates; the margin's slope is
    $(F(z + h e_i) - F(z - h e_i)) / 2h$.

    Args:
        threat: any `Ball`, without a limit by default; z is projected onto it.
        steps: of Adam in a search, at most; each asks 2 `coordinates` points.
        coordinates: that move in a step.
        rate: of Adam, in the units of the inputs.
        radius: h in the units of the inputs.
        c: first weight of the margin.
        searches: values of c, ten times more until one succeeds and then bisected.

    A search ends for a sample whose objective did not fall over a tenth of the steps.

    Reference: Chen et al., "ZOO: zeroth order optimization based black-box attacks to deep neural networks without
    training substitute models", AISec 2017, arXiv:1708.03999. The numbers are its ones for MNIST.
    Differs from the paper: points are pressed into the bounds (as the authors' code does for MNIST), where it changes
    variables by tanh; the slope of the distance is exact; no hierarchy of image sizes and no importance sampling.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANYWHERE["l2"]
    steps: int = 3000
    coordinates: int = 128
    rate: float = 0.01
    radius: float = 1e-4
    c: float = 0.01
    searches: int = 9

    def __post_init__(self) -> None:
        check_positive(self, "steps", "coordinates", "rate", "radius", "c", "searches")

    def search(self, probe: Probe, streams: Streams) -> None:
        rows = probe.sound
        check_margin(probe, "ZOO")
        region = probe.region[rows]
        free = (((region.low < 0) | (region.high > 0)).sum(1)).clamp(max=self.coordinates)
        for count in free[free > 0].unique().tolist():  # one turn unless masks differ
            some = rows[free == count]
            weights = Weights.of(some, self.c, region.eps)
            for _ in range(self.searches):
                weights = weights.after(self.descend(probe, some, weights.c, count, streams))

    def descend(self, probe: Probe, rows: Tensor, c: Tensor, count: int, streams: Streams) -> Tensor:
        """One search with these weights; which rows succeeded (b,)."""
        every, place, region = torch.zeros_like(rows, dtype=torch.bool), torch.arange(len(rows)), probe.region[rows]
        place = place.to(rows.device)
        z, first = region.anchor.flatten(1).clone(), torch.zeros_like(region.low)
        second, turns, last = first.clone(), first.clone(), torch.full_like(c, torch.inf)
        fixed = (region.low == 0) & (region.high == 0)
        for turn in range(1, self.steps + 1):
            draws = streams.uniform(rows, z.shape[1]).masked_fill(fixed, 2)
            which = draws.topk(count, dim=1, largest=False).indices
            above, below = self.around(probe, z.view_as(region.anchor), rows, which)
            every[place] |= torch.minimum(above, below).amin(1) <= 0
            steps = z - region.anchor.flatten(1)
            slope = c[:, None] * (above - below) / (2 * self.radius) + 2 * steps.gather(1, which)
            m, v, t = (part.gather(1, which) for part in (first, second, turns))
            m, v, way = adam(slope, m, v, t + 1)
            first, second, turns = (
                first.scatter(1, which, m),
                second.scatter(1, which, v),
                turns.scatter(1, which, t + 1),
            )
            moved = z.scatter_add(1, which, -self.rate * way)
            z = region.project(moved.view_as(region.anchor)).flatten(1)
            if turn % max(1, self.steps // CHECKS) == 0:
                objective = c * (above + below).mean(1) / 2 + steps.square().sum(1)
                keep = objective < FELL * last
                rows, place, region, z, c, last = (
                    rows[keep],
                    place[keep],
                    region[keep],
                    z[keep],
                    c[keep],
                    objective[keep],
                )
                first, second, turns, fixed = first[keep], second[keep], turns[keep], fixed[keep]
                if not len(rows):
                    break
        return every

    def around(self, probe: Probe, z: Tensor, rows: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """The hinge above and below z along these coordinates, (b, k) each."""
        found = []
        for part in which.split(max(1, POINTS // (2 * len(rows))), dim=1):
            unit = F.one_hot(part, z[0].numel()).to(z.dtype).view(*part.shape, *z.shape[1:]) * self.radius
            points = torch.cat([z[:, None] + unit, z[:, None] - unit], dim=1)
            found.append(hinge(probe.several(points, rows)).chunk(2, dim=1))
        above, below = zip(*found, strict=True)
        return torch.cat(above, 1), torch.cat(below, 1)


@dataclass(frozen=True)
class AutoZOOM(Attack):
    r"""ZOO with Adam in a smaller image v that is enlarged onto the input, and whole random directions:
    $\hat g = \frac{d}{q\beta} \sum_j (F(v + \beta u_j) - F(v)) u_j$, u on the unit sphere of v's d numbers.

    Args:
        threat: any `Ball`, without a limit by default; enlarged points are projected onto it.
        steps: of Adam; each asks 1 point and the directions.
        directions: q once a sample's example is found; 1 before.
        rate: of Adam, in the units of the inputs.
        radius: beta in the units of the inputs; by default 1 / d, but not below 0.001.
        c: first weight of the margin.
        switch: steps after which c is revised.
        shrink: sides of v as a share of the input's; vectors keep theirs.

    Reference: Tu et al., "AutoZOOM: autoencoder-based zeroth order optimization method for attacking black-box neural
    networks", AAAI 2019, arXiv:1805.11770 (with bilinear enlarging, not an autoencoder).
    Adam begins anew where the first example is found and, from then on, where c is revised.
    Differs from the paper: the slope of the distance is exact; points are pressed into the bounds.
    """

    keep: ClassVar[Keep] = "nearest"

    threat: Threat = ANYWHERE["l2"]
    steps: int = 10000
    directions: int = 4
    rate: float = 2e-3
    radius: float | None = None
    c: float = 1.0
    switch: int = 1000
    shrink: float = 0.5

    def __post_init__(self) -> None:
        check_positive(self, "steps", "directions", "rate", "c", "switch", "shrink")

    def search(self, probe: Probe, streams: Streams) -> None:
        check_margin(probe, "AutoZOOM")
        rows = probe.sound
        region, lens = probe.region[rows], Enlarging.of(probe.region.anchor, self.shrink)
        if not len(rows):
            return
        v = torch.zeros(len(rows), *lens.small, dtype=region.anchor.dtype, device=rows.device)
        radius = self.radius or max(1 / v[0].numel(), FINEST)
        first, second, age = torch.zeros_like(v), torch.zeros_like(v), torch.zeros_like(v[:, :1, :1, :1])
        hit = ever = torch.zeros_like(rows, dtype=torch.bool)
        weights, value = Weights.of(rows, self.c, v), hinge(probe.goal[rows].loss(probe.clean[rows], "margin"))
        for turn in range(self.steps):
            revised = turn > 0 and turn % self.switch == 0
            if revised:
                weights, hit = weights.after(hit), torch.zeros_like(hit)
            broken = value <= 0
            anew = wide(ever if revised else broken & ~ever, v)
            first, second, age = (torch.where(anew, 0, part) for part in (first, second, age))
            hit, ever, age = hit | broken, ever | broken, age + 1
            slope = self.slope(probe, rows, region, lens, v, value, radius, streams)
            slope = wide(weights.c, v) * slope + lens.back(2 * lens.onto(v, region).flatten(1), region)
            first, second, way = adam(slope, first, second, age)
            v = v - self.rate * way
            value = hinge(probe.losses(region.project(region.anchor + lens.onto(v, region)), rows))

    def slope(
        self, probe: Probe, rows: Tensor, region: Region, lens: Enlarging, v: Tensor, value: Tensor, radius: float,
        streams: Streams,
    ) -> Tensor:  # fmt: skip
        """The hinge's gradient by v, from one direction, or several for samples whose example is found."""
        found, total = probe.reached[rows].clone(), torch.zeros_like(v)
        for some, count in ((~found, 1), (found, self.directions)):
            if not some.any():
                continue
            here, part = region[some], v[some]
            u = F.normalize(streams.normal(rows[some], count, part[0].numel()), dim=2).to(v.dtype)
            u = u.view(len(part), count, *part.shape[1:])
            points = [here.project(here.anchor + lens.onto(part + radius * u[:, j], here)) for j in range(count)]
            rise = (hinge(probe.several(torch.stack(points, 1), rows[some])) - value[some, None]) / radius
            total[some] = (rise.view(*rise.shape, 1, 1, 1) * u).mean(1) * part[0].numel()
        return total


@dataclass(frozen=True)
class Enlarging:
    """A linear map from small images to steps: linear interpolation along height and width, as two matrices."""

    small: tuple[int, ...]
    down: Tensor  # (h', h)
    across: Tensor  # (w', w)

    @classmethod
    def of(cls, like: Tensor, shrink: float) -> Enlarging:
        channels, *sides = as_image(like[:1], like).shape[1:]
        smooth = like.ndim > 2 and shrink < 1
        low = [max(1, round(side * shrink)) if smooth else side for side in sides]
        tables = [
            F.interpolate(torch.eye(small, dtype=like.dtype, device=like.device)[None], size=side, mode="linear")[0]
            for small, side in zip(low, sides, strict=True)
        ]
        return cls((channels, *low), *tables)

    def onto(self, v: Tensor, region: Region) -> Tensor:
        """Steps like the anchor; features that cannot move do not."""
        free = (region.low < 0) | (region.high > 0)
        return ((self.down.T @ v @ self.across).flatten(1) * free).view_as(region.anchor)

    def back(self, gradient: Tensor, region: Region) -> Tensor:
        """The gradient by v of a function whose gradient by the steps (b, D) is known."""
        free = (region.low < 0) | (region.high > 0)
        return self.down @ as_image(gradient * free, region.anchor) @ self.across.T


def hinge(margin: Tensor) -> Tensor:
    return (-margin).clamp_min(0)


def check_margin(probe: Probe, name: str) -> None:
    """Refuse goals whose loss does not cross zero where they are reached."""
    if isinstance(probe.goal, LargerError):
        raise GoalError(f"expected classes or labels for {name}, got a regression; use Square, NES or SPSA")
