"""Boxes of parameters cut into cells, and the walk over them that the certificates of lifted sets share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from tqdm import tqdm

from adversarial.lifting import Lifted, ParametrisedSet
from adversarial.threat import Region, Threat, norm_of
from certify.errors import CertifyError
from certify.linear.crown import bounded

MOST = 100_000  # cells
Prove = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@runtime_checkable
class Stepped(Protocol):
    """A set some of whose parameters go through n places: z from i/n to below (i + 1)/n is place i, 1 is in the last."""

    def places(self, x: Tensor) -> tuple[int | None, ...]:
        """How many of each parameter; None for one without steps."""
        ...


def parameters(threat: Threat, x: Tensor) -> Region:
    """The region of the parameters. Raises: CertifyError for what is not a lifted set, and for an l0 ball."""
    if not isinstance(threat, Lifted):
        raise CertifyError(f"expected a lifted set such as lift(Hue()), got {type(threat).__name__}")
    region = bounded(threat.around(x))
    if region.norm == "l0":
        raise CertifyError("expected a ball of norm linf, l2 or l1 around the parameters, got l0")
    return region


def places(set: ParametrisedSet, x: Tensor, size: int) -> tuple[int | None, ...]:
    """How many places each of so many parameters goes through; None for one without steps."""
    return set.places(x) if isinstance(set, Stepped) else (None,) * size


def counts(given: int | Sequence[int], fixed: Sequence[int | None]) -> tuple[int, ...]:
    """How many parts each parameter is cut into: those that are `fixed`, of the others as many as are `given`."""
    asked = (given,) * len(fixed) if isinstance(given, int) else tuple(given)
    found = tuple(own or other for own, other in zip(fixed, asked, strict=False))
    if len(asked) != len(fixed) or min(asked) < 1 or math.prod(found) > MOST:
        raise CertifyError(
            f"expected numbers of parts for {len(fixed)} parameters, {MOST} cells at most, got {given}; a set of many parameters "
            "takes 1"
        )
    return found


def cells(
    low: Tensor, high: Tensor, counts: tuple[int, ...], places: Sequence[int | None] = ()
) -> tuple[Tensor, Tensor]:
    """Boxes low to high (B, k) cut evenly into boxes (B, N, k); neighbours share their faces exactly.

    A parameter that goes through places has a cell for each, whatever the box.
    """
    low, high = low.flatten(1).double(), high.flatten(1).double()
    index = torch.cartesian_prod(*(torch.arange(n, device=low.device) for n in counts)).view(-1, len(counts))
    size = torch.tensor(counts, dtype=low.dtype, device=low.device)

    def face(number: Tensor) -> Tensor:
        share = (number / size)[None]
        return low[:, None] * (1 - share) + high[:, None] * share

    bottom, top = face(index), face(index + 1)
    for axis, count in enumerate(places):
        if count:
            first, last = steps(count, low)
            bottom[..., axis], top[..., axis] = first[index[:, axis]], last[index[:, axis]]
    return bottom, top


def steps(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last number of every place: no number of [0, 1] is between two of them."""
    place = torch.arange(count + 1, dtype=like.dtype, device=like.device)
    first = place / count
    for _ in range(2):  # a quotient may be one number off, and a product reach a whole number by rounding
        before = torch.nextafter(first, torch.zeros_like(first))
        first = torch.where((before * count).floor() == place, before, first)
        first = torch.where((first * count).floor() < place, torch.nextafter(first, place + 1), first)
    last = torch.nextafter(first[1:], torch.zeros_like(first[1:]))
    return first[:-1], torch.cat([last[:-1], torch.ones_like(last[-1:])])


def nearest(region: Region, low: Tensor, high: Tensor) -> Tensor:
    """The point of each cell (B, N, k) that is nearest to the neutral parameters."""
    return torch.minimum(torch.maximum(region.anchor.flatten(1)[:, None].double(), low), high)


def walk(
    region: Region, low: Tensor, high: Tensor, alive: Tensor, prove: Prove, *, at_once: int, name: str
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Cells (B, N, k) from the neutral parameters outwards; a sample leaves at its first failure, or if not `alive` (B,).

    `prove(rows, low, high)` says of cells (n, k) of these rows (n,) whether nothing in them changes the class, and by which
    margin. Returns, (B,) each: whether the whole ball is covered, the distance of the nearest cell that failed, nearer than
    which everything is covered (eps if none failed), and the least margin.
    """
    middle = region.anchor.flatten(1)[:, None].double()
    steps = nearest(region, low, high) - middle
    away = norm_of(steps.flatten(0, 1), region.norm).view(steps.shape[:2])
    order, eps = away.argsort(dim=1, stable=True), region.eps.double()
    certified, margin = alive.clone(), torch.full_like(eps, torch.inf)
    radius = torch.where(alive, eps, 0)
    with tqdm(total=low.shape[1], desc=name, delay=2) as bar:
        turn = 0
        while turn < low.shape[1] and bool(certified.any()):
            rows = certified.nonzero()[:, 0]
            which = order[rows, turn : turn + max(1, at_once // len(rows))]
            distance = away[rows[:, None], which]
            inside = distance <= eps[rows, None]  # others lie in the corners of a round ball
            shown, least = torch.ones_like(inside), torch.full_like(distance, torch.inf)
            if bool(inside.any()):
                sample, cell = rows[:, None].expand_as(which)[inside], which[inside]
                shown[inside], found = prove(sample, low[sample, cell], high[sample, cell])
                least[inside] = found.double()
            radius[rows] = torch.minimum(radius[rows], torch.where(shown, torch.inf, distance).amin(1))
            certified[rows], margin[rows] = shown.all(1), torch.minimum(margin[rows], least.amin(1))
            bar.update(which.shape[1])
            turn += which.shape[1]
    return certified, lowered(radius, region.eps.dtype), margin


def lowered(radius: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers of another precision that are no larger."""
    found = radius.to(dtype)
    return torch.where(found.double() > radius, torch.nextafter(found, torch.zeros_like(found)), found)
