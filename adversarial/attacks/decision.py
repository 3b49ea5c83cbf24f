"""What attacks on decisions share: a budget of queries, points to begin at, searches along a line.

Points are given as steps (b, D) from the clean input and pressed into the bounds whenever the model is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from adversarial.probe import Probe
from adversarial.streams import Streams
from adversarial.threat import ANYWHERE, Ball, Norm, Region, Threat, norm_of

PIECE, WORK = 128, 1 << 23  # most points of a row in one call, most numbers in one call
ANY_L2, ANY_LINF = ANYWHERE["l2"], ANYWHERE["linf"]
SPARE = 24  # queries kept for the step after an estimate
DEEPEST = 60  # halvings of a bracket


class Decisions:
    """A probe that says yes or no, within a budget. A row that has spent its queries hears no and is not asked.

    `queries` bounds the forward passes of each sample, that of the clean input included.
    """

    def __init__(self, probe: Probe, threat: Threat, queries: int):
        self.probe, self.queries = probe, queries
        self.region = unbounded(threat, probe.region)
        self.short = probe.region.eps.isfinite()

    def left(self, rows: Tensor) -> Tensor:
        """Queries that these rows may still make (b,)."""
        return self.queries - self.probe.forwards[rows]

    def going(self, rows: Tensor) -> Tensor:
        """Rows with queries left, less those that are broken within a finite eps (b,)."""
        return (self.left(rows) > 0) & ~(self.short & self.probe.reached)[rows]

    def __call__(self, steps: Tensor, rows: Tensor) -> Tensor:
        """Whether the goal is reached at these steps (b,)."""
        able = self.left(rows) > 0
        if not len(rows):
            return able
        if able.all():
            return self.probe.decides(self.region[rows].moved(steps), rows)
        answer = torch.zeros_like(able)
        answer[able] = self(steps[able], rows[able])
        return answer

    def press(self, steps: Tensor, rows: Tensor) -> Tensor:
        """The nearest steps within the bounds."""
        return torch.clamp(steps, self.region.low[rows], self.region.high[rows])

    def reach(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the steps (b, D); where there are none, four times the input's root mean square, at least four."""
        size = 4 * self.region.anchor[rows].flatten(1).square().mean(1, keepdim=True).sqrt().clamp_min(1)
        return torch.maximum(self.region.low[rows], -size), torch.minimum(self.region.high[rows], size)


def unbounded(threat: Threat, region: Region) -> Region:
    """The region without its eps: these attacks come from outside the ball."""
    return replace(threat, eps=float("inf")).around(region.anchor) if isinstance(threat, Ball) else region


def check(queries: int, threat: Threat, norms: tuple[Norm, ...], who: str) -> None:
    """Refuse a budget or a norm that an attack has no use for."""
    if queries < 1:
        raise ValueError(f"expected at least one query, got {queries}")
    norm = getattr(threat, "norm", norms[0])
    if norm not in norms:
        raise ValueError(f"expected a threat of norm {' or '.join(norms)} for {who}, got {norm}")


def begin(
    asked: Decisions, streams: Streams, rows: Tensor, given: Tensor | None, tries: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The rows for which a point was found that reaches the goal, and the steps to it.

    The `given` inputs come first, the nearest before others; then `tries` random ones, uniform in the bounds and equal
    over blocks of 1, 4, 16, … features, for models to which all noise looks the same.
    """
    low, high = asked.reach(rows)
    steps, found = torch.zeros_like(low), torch.zeros_like(rows, dtype=torch.bool)
    anchor = asked.region.anchor[rows].flatten(1)
    if given is not None:
        given = checked(given, asked.region.anchor)
        order = torch.cdist(anchor, given).argsort(1)
    count, size = 0 if given is None else len(given), low.shape[1]
    lengths = [4**power for power in range(32) if 4**power <= max(size // 2, 1)]
    for trial in range(count + tries):
        some = (~found & asked.going(rows)).nonzero()[:, 0]
        if not len(some):
            break
        if trial < count and given is not None:
            steps[some] = given[order[some, trial]] - anchor[some]
        else:
            length = lengths[(trial - count) % len(lengths)]
            level = streams.uniform(rows[some], -(-size // length)).to(low.dtype).repeat_interleave(length, 1)[:, :size]
            steps[some] = low[some] + (high[some] - low[some]) * level
        found[some] = asked(steps[some], rows[some])
    found &= asked.going(rows)
    return rows[found], asked.press(steps[found], rows[found])


def checked(given: Tensor, anchor: Tensor) -> Tensor:
    """Starts (N, D) like the inputs."""
    if given.shape[1:] != anchor.shape[1:]:
        raise ValueError(
            f"expected starts of shape (N, {', '.join(map(str, anchor.shape[1:]))}), got {tuple(given.shape)}"
        )
    return given.to(anchor).flatten(1)


def toward(steps: Tensor, share: Tensor, norm: Norm) -> Tensor:
    """The part of these steps with `share` (b,) of their length: scaled, or for linf cut off."""
    if norm == "linf":
        size = share * steps.abs().amax(1)
        return torch.clamp(steps, -size[:, None], size[:, None])
    return share[:, None] * steps


def bisect(ask: Callable[[Tensor, Tensor], Tensor], low: Tensor, high: Tensor, tol: Tensor) -> Tensor:
    """The upper ends, where the goal is reached, of brackets [low, high] halved down to `tol`; all (b,).

    `ask(middle, some)` answers for some of the rows by their places.
    """
    low, high = low.clone(), high.clone()
    for _ in range(DEEPEST):
        middle = (low + high) / 2
        some = ((high - low > tol) & (middle > low) & (middle < high)).nonzero()[:, 0]
        if not len(some):
            break
        yes, tried = ask(middle[some], some), middle[some]
        high[some] = torch.where(yes, tried, high[some])
        low[some] = torch.where(yes, low[some], tried)
    return high


def gallop(ask: Callable[[Tensor, Tensor], Tensor], high: Tensor, first: float) -> tuple[Tensor, Tensor]:
    """A bracket just below points `high` (b,) that reach the goal: steps down of `first` of it, each twice the last."""
    low, top = torch.zeros_like(high), high.clone()
    some, drop = torch.arange(len(high), device=high.device), first
    while len(some) and drop < 1:
        tried = (1 - drop) * high[some]
        yes = ask(tried, some)
        low[some[~yes]] = tried[~yes]
        some = some[yes]
        top[some] = tried[yes]
        drop *= 2
    return low, top


def boundary(asked: Decisions, rows: Tensor, steps: Tensor, norm: Norm, tol: float) -> Tensor:
    """Steps cut short to where the goal is still just reached, up to the share `tol` of their length."""

    def ask(share: Tensor, some: Tensor) -> Tensor:
        return asked(toward(steps[some], share, norm), rows[some])

    one = torch.ones_like(steps[:, 0])
    least = max(tol, 4 * torch.finfo(steps.dtype).eps)  # nothing finer can be told apart
    share = bisect(ask, torch.zeros_like(one), one, least * one)
    return toward(steps, share, norm)


def nearer(
    asked: Decisions, rows: Tensor, ray: Tensor, high: Tensor, tol: float, first: float = 0.01
) -> Tensor:  # fmt: skip
    """How far along rays (b, D) the goal is still just reached, below `high` (b,) where it is; up to the share `tol`."""

    def ask(distance: Tensor, some: Tensor) -> Tensor:
        return asked(distance[:, None] * ray[some], rows[some])

    low, high = gallop(ask, high, first)
    return bisect(ask, low, high, max(tol, 4 * torch.finfo(high.dtype).eps) * high)


def length(steps: Tensor, norm: Norm) -> Tensor:
    """Norm (b, 1), at least the smallest number."""
    return norm_of(steps, norm)[:, None].clamp_min(torch.finfo(steps.dtype).tiny)


def noise(streams: Streams, rows: Tensor, count: int, size: int) -> Tensor:
    """Random directions (b, count, size): sums of two bytes, centred.

    Near enough to Gaussian for a direction, ten times cheaper, and whole numbers, so the same in every batch.
    """
    total = count * size
    bits = streams.bits(rows, -(-total // 4))
    lanes = (bits & 0x00FF00FF00FF00FF) + ((bits >> 8) & 0x00FF00FF00FF00FF)
    return (lanes.view(torch.int16)[:, :total] - 255).view(len(rows), count, size)


def normal(
    asked: Decisions, streams: Streams, rows: Tensor, steps: Tensor, spread: Tensor, counts: Tensor, *,
    sphere: Norm | None = None, draw: Callable[[Streams, Tensor, int, int], Tensor] = noise,
) -> Tensor:  # fmt: skip
    r"""The boundary's normal (b, D) towards the goal, from `counts` (b,) decisions at distance `spread` (b,) around `steps`:
    $\frac1n\sum_i (\phi_i - \bar\phi) u_i$ with $\phi_i = \pm 1$ and the moves $u_i$, in units of `spread`, as they came
    out within the bounds; with `sphere` also at the distance from the clean input that `steps` have in that norm.

    Rows in pieces, so that no call grows with the batch; a row's own pieces depend on its count only.
    """
    signed, moved, votes = torch.zeros_like(steps), torch.zeros_like(steps), torch.zeros_like(spread)
    spread = torch.maximum(spread, finest(asked, rows))
    need, piece, size = counts.clone(), PIECE, steps.shape[1]
    while piece:
        some = (need >= piece).nonzero()[:, 0]
        if not len(some):
            piece //= 2
            continue
        for part in some.split(max(1, WORK // (piece * size))):
            own, centre, wide = rows[part], steps[part][:, None], spread[part, None, None]
            u = draw(streams, own, piece, size).to(steps.dtype)
            u = u * (wide / u.norm(dim=2, keepdim=True).clamp_min(1e-12))
            if sphere is not None:
                u = resized(centre + u, centre, sphere) - centre
            z, u = around(asked.region[own], centre, u)
            phi = 2 * asked.probe.decides(z, own).to(u.dtype) - 1
            u = u / wide
            signed[part] += (phi[:, :, None] * u).sum(1)
            moved[part] += u.sum(1)
            votes[part] += phi.sum(1)
        need[some] -= piece
    counts = counts.clamp_min(1)[:, None]
    mean = votes[:, None] / counts
    return torch.where(mean.abs() == 1, signed, signed - mean * moved) / counts


def finest(asked: Decisions, rows: Tensor) -> Tensor:
    """The least length (b,) of a random move that rounding does not spoil."""
    flat = asked.region.anchor[rows].flatten(1)
    return 64 * torch.finfo(flat.dtype).eps * flat.abs().amax(1).clamp_min(1) * flat.shape[1] ** 0.5


def resized(points: Tensor, like: Tensor, norm: Norm) -> Tensor:
    """Points (b, n, D) scaled to the norm of others (b, 1, D)."""
    order = {"l2": 2.0, "linf": float("inf")}[norm]
    tiny = torch.finfo(points.dtype).tiny
    return points * (
        torch.linalg.vector_norm(like, order, dim=2, keepdim=True)
        / torch.linalg.vector_norm(points, order, dim=2, keepdim=True).clamp_min(tiny)
    )


def around(region: Region, centre: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Points (b, n, …) at moves u (b, n, D) from these steps (b, 1, D), pressed into the bounds, and the moves that are left."""
    flat = region.anchor.flatten(1)[:, None]
    z = torch.clamp(flat + centre + u, flat + region.low[:, None], flat + region.high[:, None])
    return z.view(*u.shape[:2], *region.anchor.shape[1:]), z - (flat + centre)
