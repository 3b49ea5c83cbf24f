"""How low linear functions of the input can fall in a region."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from adversarial.threat import Region
from certify.engine.front import Front

DUAL = {"l2": 2, "l1": torch.inf}
CACHED = 2**18  # numbers of what is passed over many times


def least(front: Front, region: Region) -> Tensor:
    """The least (G, R) that Σ A·x can be."""
    if type(region) is not Region:  # one that knows more than its box
        front = front.dense()
        rows = front.of(torch.arange(len(region), device=front.a.device)).repeat_interleave(front.a.shape[1])
        fall = region[rows].support(-front.rows)
        return front.total(front.pick(region.anchor)) - fall.view(front.a.shape[:2])
    if region.norm == "linf":
        middle, radius = (region.floor + region.ceiling) / 2, (region.ceiling - region.floor) / 2
        return front.total(front.pick(middle)) - front.total(front.pick(radius), front.a.abs())
    if uncut(region):
        size = steepness(front.clipped().a.flatten(2), region.norm)
        return front.total(front.pick(region.anchor)) - front.of(region.eps)[:, None] * size
    wide = front.a.shape
    low, high = (front.pick(each.view_as(region.anchor)).expand(wide).flatten(2) for each in (region.low, region.high))
    eps = front.of(region.eps)[:, None].expand(wide[:2])
    fall = in_parts(partial(support, region), front.a.flatten(2), low, high, eps)
    return front.total(front.pick(region.anchor)) - fall


def uncut(region: Region) -> bool:
    """Whether a region is a whole L2 or L1 ball, cut by no bounds: how far it falls is then the dual norm."""
    eps = region.eps[:, None]
    return region.norm in DUAL and bool((region.low <= -eps).all() & (region.high >= eps).all())


def steepness(rows: Tensor, norm: str) -> Tensor:
    """By how much linear functions (…, D) grow at most along a step of length 1; never below it, also where squares underflow."""
    found = torch.linalg.vector_norm(rows, DUAL[norm], dim=-1)
    return found + (rows.shape[-1] * torch.finfo(rows.dtype).tiny) ** 0.5 if norm == "l2" else found


def support(region: Region, rows: Tensor, low: Tensor, high: Tensor, eps: Tensor) -> Tensor:
    """By how much linear functions (G, R, numbers) can fall in balls like a region's, cut at low and high."""
    a, low, high, eps = (each.flatten(0, 1) for each in (rows, low, high, eps))
    return replace(region, anchor=a, low=low, high=high, eps=eps).support(-a).view(rows.shape[:2])


def in_parts(function: Callable[..., Tensor], rows: Tensor, *others: Tensor) -> Tensor:
    """What a function that passes often over its arguments gives (G, R), for parts that stay in a processor's cache."""
    count, size = rows.shape[1:]
    most = max(1, CACHED // size)
    every = zip(*(each.split(max(1, most // count)) for each in (rows, *others)), strict=True)
    return torch.cat(
        [
            torch.cat([function(*some) for some in zip(*(each.split(most, 1) for each in part), strict=True)], 1)
            for part in every
        ]
    )
