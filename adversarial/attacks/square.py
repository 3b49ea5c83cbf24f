"""Square: random search with windows that shrink, for linf, l2 and l1; one query a proposal."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adversarial.attacks.base import Attack
from adversarial.attacks.windows import Frame, as_image, bump, places, unit, window
from adversarial.probe import Probe
from adversarial.streams import Streams
from adversarial.threat import Region, Threat, ThreatError

HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # proposals of 10000 after which the windows' area halves
TILES = 5  # l2, l1: bumps along each side at the start
SMALLEST = 3  # l2, l1: side of the smallest window
BLOCK = 32  # proposals whose random numbers are drawn at once


@dataclass(frozen=True)
class Square(Attack):
    r"""Random search: change a random window of the image, keep what raises the loss.

    linf: every proposal sets a square window of side $\sqrt{p\,hw}$ to the lowest or highest value that is allowed, one
    sign per channel; the start is vertical stripes. l2 and l1: a window gets a bump of two opposite peaks and what the
    norm leaves unused, a second one gives its own up to it.

    Args:
        threat: linf, l2 or l1, with a finite eps for the last two.
        queries: forward passes per sample, the one of the clean input included.
        p: share of the features that the first windows cover.
        rescale: stretch the schedule of p, made for 10000 queries, to `queries`; AutoAttack does not.
        loss: "margin", "ce" or "dlr".

    The last dimension is the width, the one before it the height, others are channels; (C, L) are channels and a width.
    Where only some features may change, windows lie in the smallest rectangle around these.

    Reference: Andriushchenko et al., "Square attack: a query-efficient black-box adversarial attack via random search",
    ECCV 2020, arXiv:1912.00049; l1: Croce & Hein, ICML 2021, arXiv:2103.01208.
    Differs from the paper: every sample has windows of its own, which reach the last row and column and keep their area
    where the image is too low for a square; a proposal that would change nothing has its signs turned, and is not asked
    about if that changes nothing either.
    """

    threat: Threat
    queries: int = 5000
    p: float = 0.8
    rescale: bool = True
    loss: str = "margin"

    def __post_init__(self) -> None:
        if self.queries < 2 or not 0 < self.p <= 1:
            raise ValueError(f"expected at least 2 queries and p above 0 and at most 1, got {self}")

    def search(self, probe: Probe, streams: Streams) -> None:
        rows = probe.open
        if not len(rows):
            return
        region = probe.region[rows]
        if region.norm not in ("linf", "l2", "l1") or (region.norm != "linf" and not bool(region.eps.isfinite().all())):
            raise ThreatError(f"expected linf, l2 or l1 with a finite eps, got {region.norm} with {region.eps.max():g}")
        moves = (Corners if region.norm == "linf" else Bumps).around(region)
        z = moves.start(streams, rows)
        loss, draws = probe.losses(z, rows, self.loss), region.eps
        for turn in range(self.queries - 2):  # the clean input and the start were asked
            keep = ~probe.reached[rows]
            if not keep.all():
                rows, moves, z, loss = rows[keep], moves.keep(keep), z[keep], loss[keep]
                if not len(rows):
                    return
                draws = draws[keep]
            if turn % BLOCK == 0:
                draws = streams.uniform(rows, BLOCK, moves.count)
            new, some = moves.propose(z, self.share(turn + 1), draws[:, turn % BLOCK])
            found = torch.full_like(loss, -torch.inf)
            if some.all():
                found = probe.losses(new, rows, self.loss)
            elif some.any():
                found[some] = probe.losses(new[some], rows[some], self.loss)
            better = found > loss
            z[better], loss[better] = new[better], found[better]

    def share(self, turn: int) -> float:
        """Of the features, how many a window of this proposal covers."""
        place = turn * 10000 // self.queries if self.rescale else turn
        return self.p / 2 ** bisect_left(HALVED, place)


@dataclass
class Corners:
    """linf: every feature at its lowest or highest value; a point of the region without any projection."""

    frame: Frame
    low: Tensor  # points (b, C, h, w)
    high: Tensor
    shape: torch.Size

    @classmethod
    def around(cls, region: Region) -> Corners:
        z = region.anchor
        low, high = (as_image(region.moved(limit), z) for limit in (region.low, region.high))
        return cls(Frame.around(region), low, high, z.shape[1:])

    @property
    def count(self) -> int:
        """Uniform numbers for a proposal."""
        return 2 + self.low.shape[1]

    def keep(self, rows: Tensor) -> Corners:
        return replace(self, frame=self.frame.keep(rows), low=self.low[rows], high=self.high[rows])

    def start(self, streams: Streams, rows: Tensor) -> Tensor:
        """Vertical stripes."""
        up = streams.uniform(rows, self.low.shape[1], 1, self.low.shape[3]) < 0.5
        return torch.where(up, self.high, self.low).view(-1, *self.shape)

    def propose(self, z: Tensor, share: float, draws: Tensor) -> tuple[Tensor, Tensor]:
        """The next points, and which of them differ from z (b,)."""
        tall, wide = self.frame.sizes(share)
        top, left = self.frame.place(draws, tall, wide)
        where = places(self.low, top, left, tall, wide)  # windows are small: only they are looked at
        low, high, old = (image.flatten(1).gather(1, where) for image in (self.low, self.high, z))
        up = (draws[:, 2:] < 0.5).repeat_interleave(where.shape[1] // self.low.shape[1], 1)
        new = torch.where(up, high, low)
        same = (new == old).all(1)
        if same.any():
            new = torch.where(up ^ same[:, None], high, low)
            same = (new == old).all(1)
        return z.flatten(1).scatter(1, where, new).view_as(z), ~same


@dataclass
class Bumps:
    """l2 and l1: bumps of two opposite peaks, their norm moved from window to window."""

    frame: Frame
    region: Region

    @classmethod
    def around(cls, region: Region) -> Bumps:
        return cls(Frame.around(region), region)

    @property
    def count(self) -> int:
        return 5 + as_image(self.region.anchor[:1], self.region.anchor).shape[1]

    @property
    def power(self) -> int:
        return 2 if self.region.norm == "l2" else 1

    @property
    def fall(self) -> int:
        """How fast peaks fall: those of l1 are the sharper ones."""
        return 2 if self.region.norm == "l2" else 4

    def keep(self, rows: Tensor) -> Bumps:
        return Bumps(self.frame.keep(rows), self.region[rows])

    def start(self, streams: Streams, rows: Tensor) -> Tensor:
        """Bumps side by side, each with its own direction and signs."""
        image = as_image(self.region.anchor, self.region.anchor)
        tile, where, size = [], [], []
        for axis, first, length in ((2, self.frame.top, self.frame.height), (3, self.frame.left, self.frame.width)):
            place = (torch.arange(image.shape[axis], device=image.device) - first[:, None]).clamp_min(0)
            place, tiles = torch.minimum(place, length[:, None] - 1), length[:, None].clamp(max=TILES)
            tile.append(place * tiles // length[:, None])
            begin, end = (-(-(tile[-1] + more) * length[:, None] // tiles) for more in (0, 1))
            where.append(place - begin)
            size.append(end - begin)
        number = (tile[0][:, :, None] * TILES + tile[1][:, None, :]).flatten(1)
        draws = streams.uniform(rows, image.shape[1] + 1, TILES * TILES)
        drawn = draws.gather(2, number[:, None].expand(-1, draws.shape[1], -1)).view(
            -1, draws.shape[1], *image.shape[2:]
        )
        down, across = (part[0][:, :, None] for part in (where, size)), (part[1][:, None, :] for part in (where, size))
        shape = bump(*down, *across, drawn[:, 0] < 0.5, self.fall)[:, None]
        return self.onto(torch.where(drawn[:, 1:] < 0.5, shape, -shape).to(image.dtype), stretch=2 / self.power)

    def propose(self, z: Tensor, share: float, draws: Tensor) -> tuple[Tensor, Tensor]:
        """The next points, and which of them differ from z (b,)."""
        q, steps = self.power, as_image(self.region.steps(z), z)
        tall, wide = self.frame.sizes(share, SMALLEST)
        top, left = self.frame.place(draws, tall, wide)
        taker = window(steps, top, left, tall, wide)
        giver = window(steps, *self.frame.place(draws[:, 2:], tall, wide), tall, wide)
        rows, columns = (torch.arange(n, device=z.device) for n in steps.shape[2:])
        down, across = rows - top[:, None], columns - left[:, None]
        shape = bump(
            down[:, :, None], tall[:, None, None], across[:, None], wide[:, None, None],
            (draws[:, 4] < 0.5)[:, None, None], self.fall,
        )[:, None].to(z.dtype)  # fmt: skip
        shape = unit(torch.where(taker, shape, 0), q)
        room = as_image((self.region.low < 0) | (self.region.high > 0), z)
        new = room * (torch.where((draws[:, 5:] < 0.5)[:, :, None, None], shape, -shape) + unit(steps * taker, q))
        mass = steps.abs().pow(q)
        unused = (self.region.eps.pow(q) - mass.flatten(1).sum(1)).clamp_min(0) / steps.shape[1]
        size = (mass * (taker | giver)).sum((2, 3), keepdim=True) + unused.view(-1, 1, 1, 1)
        size = size.pow(1 / q) if q == 2 else size * steps.shape[1]  # l1: its projection takes back, and makes sparse
        new = torch.where(taker, unit(new, q) * size, torch.where(giver, 0, steps))
        moved = self.onto(new, stretch=1 if q == 2 else None)
        change = (moved - z).abs().flatten(1).amax(1)  # less than rounding would let rounding decide
        return moved, change > torch.finfo(z.dtype).eps ** 0.5 * self.region.eps

    def onto(self, steps: Tensor, stretch: float | None) -> Tensor:
        """The point of the region nearest to these steps, made `stretch` times as long as eps if it is given."""
        flat = steps.flatten(1)
        if stretch is not None:
            length = torch.linalg.vector_norm(flat, self.power, dim=1).clamp_min(torch.finfo(flat.dtype).tiny)
            flat = flat * (stretch * self.region.eps / length)[:, None]
        return self.region.project(self.region.anchor + flat.view_as(self.region.anchor))
