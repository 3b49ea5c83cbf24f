"""Common corruptions at five severities: what sensors, lenses and files do, with no adversary. Images, and series."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adversarial.attacks import image_corruptions as of
from adversarial.attacks import weather
from adversarial.attacks.image_corruptions import rows_of
from adversarial.goals import Goal, GoalError, goal_of
from adversarial.lifting import image
from adversarial.probe import inspected, logits_of
from adversarial.streams import Streams, seed_of
from adversarial.threat import Ball, ThreatError

SEVERITIES = (1, 2, 3, 4, 5)
Corruption = Callable[[Tensor, int, Streams], Tensor]  # inputs, severity from 0 to 4, random numbers


def noise(x: Tensor, level: int, streams: Streams) -> Tensor:
    """Gaussian, in units of each channel's own deviation."""
    own = x.std(-1, keepdim=True, correction=0)
    return x + (0.1, 0.2, 0.4, 0.6, 1.0)[level] * own * streams.normal(rows_of(x), *x.shape[1:]).to(x.dtype)


def dropout(x: Tensor, level: int, streams: Streams) -> Tensor:
    """Random moments are lost in all channels, which hold their mean instead."""
    lost = streams.uniform(rows_of(x), x.shape[-1]) < (0.05, 0.1, 0.2, 0.35, 0.5)[level]
    lost = lost.view(len(x), *(1,) * (x.ndim - 2), -1)
    return torch.where(lost, x.mean(-1, keepdim=True), x)


def warp(x: Tensor, level: int, streams: Streams) -> Tensor:
    """Time runs faster and slower: a smooth curve through four random shifts of at most a share of the length."""
    length = x.shape[-1]
    shifts = (2 * streams.uniform(rows_of(x), 1, 4).to(x.dtype) - 1) * (0.02, 0.04, 0.08, 0.12, 0.16)[level]
    ends = F.pad(shifts, (1, 1))  # beginning and end stay
    curve = F.interpolate(ends, size=length, mode="linear", align_corners=True)[:, 0]
    place = (torch.arange(length, dtype=x.dtype, device=x.device) + curve * length).clamp(0, length - 1)
    low = place.floor().clamp(max=max(length - 2, 0))
    share = (place - low).view(len(x), *(1,) * (x.ndim - 2), -1)
    index = low.long().view(share.shape).expand_as(x)
    return x.gather(-1, index) * (1 - share) + x.gather(-1, (index + 1).clamp(max=length - 1)) * share


IMAGES: dict[str, Corruption] = {
    "gaussian_noise": of.gaussian_noise, "shot_noise": of.shot_noise, "impulse_noise": of.impulse_noise,
    "defocus_blur": of.defocus_blur, "glass_blur": of.glass_blur, "motion_blur": of.motion_blur, "zoom_blur": of.zoom_blur,
    "snow": weather.snow, "fog": weather.fog, "brightness": of.brightness, "contrast": of.contrast, "saturate": of.saturate,
    "pixelate": of.pixelate, "jpeg": of.jpeg, "elastic": of.elastic,
}  # fmt: skip
SERIES: dict[str, Corruption] = {"noise": noise, "dropout": dropout, "warp": warp}


@torch.no_grad()
def corrupt(x: Tensor, name: str, severity: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Inputs under one corruption: images (B, C, H, W) within [0, 1] and stay there, series (B, …, L) have no bounds.

    Fourteen of the fifteen corruptions of ImageNet-C, without "frost", which needs photographs of it, and one of its four
    spare ones, "saturate". The severities are those of ImageNet-C, for images of 224 pixels, whose lengths in pixels scale
    with the image here; CIFAR-10-C and Tiny-ImageNet-C have milder ones of their own. A sample's random numbers are its own
    and the same at all severities. "saturate" needs three channels, "jpeg" one or three.

    Reference: Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
    ICLR 2019, arXiv:1903.12261.
    Differs from the authors' code in what draws, so that errors do not compare with published ones to the digit: a disk of
    "defocus_blur" is smoothed by its points' shares in pixels; the pixels of "glass_blur" move all at once, by fractions of
    a pixel too; the line of "motion_blur" and "snow" is drawn here instead of by ImageMagick; sizes of flakes and cells are
    whole images enlarged, without cropping to whole pixels; "elastic" reads pixels once, not twice; inputs are not rounded
    to 256 levels but for "jpeg".
    Raises: ThreatError for a name, a severity or inputs that do not fit.
    """
    known = IMAGES | SERIES
    if name not in known or severity not in SEVERITIES:
        raise ThreatError(
            f"expected a corruption among {', '.join(known)} and a severity from 1 to 5, got {name!r} and {severity}"
        )
    if name in SERIES and (x.ndim < 2 or not x.is_floating_point()):
        raise ThreatError(f"expected series (B, …, L) of floating point, got {x.dtype} of shape {tuple(x.shape)}")
    return corrupted(x, name, severity, seed_of(generator))


def corrupted(x: Tensor, name: str, severity: int, seed: int) -> Tensor:
    """`corrupt` with a seed."""
    precise = x if x.dtype == torch.float64 else x.float()
    if name in SERIES:
        return SERIES[name](precise, severity - 1, Streams(precise, seed)).to(x.dtype)
    Ball("linf", 1.0).around(image(x).to(precise.dtype) if x.is_floating_point() else x)  # refuses what is no image
    return IMAGES[name](precise, severity - 1, Streams(precise, seed)).clamp(0, 1).to(x.dtype)


@dataclass(frozen=True)
class CorruptionErrors:
    """Share of n inputs that a model gets wrong, clean and for each corruption at severities 1 to 5."""

    errors: Mapping[str, tuple[float, ...]]
    clean: float
    n: int

    @property
    def mean(self) -> float:
        """Mean error over corruptions and severities, not normalised (as for CIFAR-10-C)."""
        return sum(sum(row) / len(row) for row in self.errors.values()) / len(self.errors)

    def mce(self, baseline: CorruptionErrors, *, relative: bool = False) -> float:
        r"""Mean corruption error: mean over corruptions c of $\sum_s E_{s,c} / \sum_s E^{base}_{s,c}$, 1 for the baseline itself.

        `relative` takes each model's clean error off first. NaN where the baseline makes no error under a corruption.
        """
        if set(self.errors) != set(baseline.errors):
            raise ValueError(f"expected a baseline with {sorted(self.errors)}, got {sorted(baseline.errors)}")
        ratios = []
        for name, row in self.errors.items():
            own, other = sum(row), sum(baseline.errors[name])
            if relative:
                own, other = own - len(row) * self.clean, other - len(row) * baseline.clean
            ratios.append(own / other if other else float("nan"))
        return sum(ratios) / len(ratios)


@torch.no_grad()
def corruption_errors(
    model: nn.Module, x: Tensor, y: Tensor | Goal, *, names: Sequence[str] | None = None,
    generator: torch.Generator | None = None, batch_size: int = 1024,
) -> CorruptionErrors:  # fmt: skip
    """Errors under every corruption at every severity: of `names`, by default all that images, or series, allow.

    `y` are classes or a `Goal`, whose reaching is the error.
    """
    if not len(x):
        raise GoalError("expected at least one input, got none")
    goal, seed = goal_of(y, x), seed_of(generator)
    unknown = [name for name in names or () if name not in IMAGES | SERIES]
    if unknown:
        raise ThreatError(f"expected corruptions among {', '.join(IMAGES | SERIES)}, got {', '.join(unknown)}")
    left_out = () if x.ndim != 4 or x.shape[1] == 3 else ("saturate",) + (("jpeg",) if x.shape[1] != 1 else ())
    chosen = names or [name for name in (IMAGES if x.ndim == 4 else SERIES) if name not in left_out]

    def error(name: str | None, severity: int) -> float:
        wrong = 0
        for rows in rows_of(x).split(batch_size):
            piece = x[rows]
            if name is not None:
                piece = corrupted(piece, name, severity, seed)
            outputs = logits_of(model(piece), len(rows))
            goal[rows].check(outputs)
            wrong += int(goal[rows].reached(outputs).sum())
        return wrong / len(x)

    with inspected(model, x):
        errors = {name: tuple(error(name, severity) for severity in SEVERITIES) for name in chosen}
        return CorruptionErrors(errors, error(None, 0), len(x))
