r"""Changes that compose: doing one after the other is doing another one of them, so that noise on the parameters covers an attack.

A change is resolvable when $\phi(\phi(x, \alpha), \beta) = \phi(x, \gamma_\alpha(\beta))$. A vote over random \beta at the attacked
input is then a vote at the clean one with parameters distributed like $\gamma_\alpha(\beta)$, and how far the shares of votes
can move is a matter of two distributions of a few numbers, whatever the model. Each set here is one to `lift`, so that attacks
and `TSS` speak of the same changes; nothing is cut to [0, 1], which would not compose.

Reference: Li et al., "TSS: transformation-specific smoothing for robustness certification", CCS 2021, arXiv:2002.12398.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adversarial.lifting import ParametrisedSet, image, wide
from adversarial.streams import Streams
from certify.errors import CertifyError

CELLS = 200  # of the range of contrasts; each is covered by its worst end


class Resolvable(ParametrisedSet, Protocol):
    """A set whose changes compose; `scale` is the size of the noise, in natural units."""

    def noise(self, streams: Streams, rows: Tensor, draws: int) -> Tensor:
        """Random parameters (b, draws, k), in units of the set's reach."""
        ...

    def covered(self, low: Tensor, high: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """Whether no parameters between low and high (B, k) bring the share p (B,) of a class below that of one with q."""
        ...


def quantile(p: Tensor) -> Tensor:
    return torch.special.ndtri(p)


def cdf(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)


def check_positive(change: object, *names: str) -> None:
    for name in names:
        value = getattr(change, name)
        if not value > 0:
            raise CertifyError(
                f"expected {name} above 0 of {type(change).__name__}, got {value:g}; take a small one for none"
            )


@dataclass(frozen=True)
class HeatBlur(Resolvable):
    r"""A Gaussian blur of variance $v z$, z in [0, 1]; the image ends in mirrors.

    On a grid of pixels variances add up exactly when the kernel is the heat kernel $e^{t\Delta/2}$, whose cosine waves keep
    $e^{-t(1 - \cos(\pi k/n))}$; a sampled Gaussian's do not. The noise is exponential with mean `scale`: at an attacked image the
    variance is a + exponential, $e^{a/scale}$ times as dense above a as at the clean one and none below, so shares obey
    $p' \ge 1 - e^{a/scale}(1 - p)$ and $q' \le e^{a/scale} q$, and all $a < scale \cdot \ln\frac{1}{1 - p + q}$ are covered.

    Args:
        variance: the largest of an attack, in pixels².
        scale: mean of the noise, in pixels².

    Differs from the paper: the kernel, a discrete one (Lindeberg, IEEE PAMI 1990).
    """

    variance: float = 4.0
    scale: float = 4.0
    low = 0.0
    high = 1.0

    def neutral(self, x: Tensor) -> Tensor:
        return image(x).new_zeros(len(x), 1)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        time = self.variance * parameters[:, 0].clamp(min=0)
        for axis in (2, 3):
            waves, rate = cosines(image(x).shape[axis], x)
            kept = torch.exp(-time[:, None] * rate)[:, None, None]
            x = ((x.transpose(axis, 3) @ waves.T) * kept @ waves).transpose(axis, 3)
        return x

    def noise(self, streams: Streams, rows: Tensor, draws: int) -> Tensor:
        return -torch.log1p(-streams.uniform(rows, draws, 1).double()) * self.scale / self.variance

    def covered(self, low: Tensor, high: Tensor, p: Tensor, q: Tensor) -> Tensor:
        return self.variance * high[:, 0] < -self.scale * torch.log1p(q - p)


def cosines(size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal cosine waves (k, n) and how fast each fades."""
    k = torch.arange(size, dtype=torch.float64, device=like.device)
    waves = torch.cos(math.pi * k[:, None] * (k + 0.5) / size) * math.sqrt(2 / size)
    waves[0] = math.sqrt(1 / size)
    return waves.to(like), (1 - torch.cos(math.pi * k / size)).to(like)


@dataclass(frozen=True)
class Roll(Resolvable):
    r"""A shift to the right and down by whole pixels, round(pixels · z), what leaves on one side comes in on the other.

    The noise is Gaussian, rounded after it is added; a whole shift moves its mean, so all with
    $\|shift\|_2 < \frac{scale}{2}(\Phi^{-1}(p) - \Phi^{-1}(q))$ are covered.

    Args:
        pixels: the largest shift of an attack along each axis.
        scale: standard deviation of the noise, in pixels.
    """

    pixels: float = 3.0
    scale: float = 3.0
    low = -1.0
    high = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "pixels", "scale")

    def neutral(self, x: Tensor) -> Tensor:
        return image(x).new_zeros(len(x), 2)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        across, down = (self.pixels * parameters.double()).round().long().unbind(1)
        rows = (torch.arange(x.shape[2], device=x.device) - down[:, None]) % image(x).shape[2]
        columns = (torch.arange(x.shape[3], device=x.device) - across[:, None]) % x.shape[3]
        sample = torch.arange(len(x), device=x.device)[:, None, None]
        return x.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)

    def noise(self, streams: Streams, rows: Tensor, draws: int) -> Tensor:
        return streams.normal(rows, draws, 2).double() * self.scale / self.pixels

    def covered(self, low: Tensor, high: Tensor, p: Tensor, q: Tensor) -> Tensor:
        # a parameter that rounds to half a pixel may become the next whole one
        farthest = (self.pixels * torch.maximum(low.abs(), high.abs()) * (1 + 1e-6) + 0.5).floor()
        return torch.linalg.vector_norm(farthest, dim=1) < self.scale / 2 * (quantile(p) - quantile(q))


@dataclass(frozen=True)
class Gain(Resolvable):
    r"""Brightness and contrast: $e^{c z_2}(x + b z_1)$. Any channels, also series and vectors.

    Gaussian noise on both: after an attack (k, b) the parameters are $N(k, \sigma^2)$ and $N(b, e^{-2k}\tau^2)$: the
    contrast rescales the noise of the brightness. First the scale: of all sets of share p the one that loses most lies
    where the other density is relatively smallest, far from the middle for k > 0, near it for k < 0, which leaves

        $p' = 2 - 2\Phi(e^k \Phi^{-1}(1 - p/2))$ for k > 0, $p' = 2\Phi(e^k \Phi^{-1}((1 + p)/2)) - 1$ for k < 0,

    and q' = 1 - p'(1 - q). Then the shift, of Gaussians of one covariance: covered where
    $\sqrt{(k/\sigma)^2 + (b e^k/\tau)^2} < \frac12(\Phi^{-1}(p') - \Phi^{-1}(q'))$. As this is not monotone in k, the range is
    cut into cells, each with the worst end of every term.

    Args:
        brightness, contrast: b and c, the largest of an attack; c is the logarithm of a factor.
        scale: standard deviations of the noise of the brightness (τ) and of the logarithm of the contrast (σ).
    """

    brightness: float = 0.2
    contrast: float = 0.2
    scale: tuple[float, float] = (0.2, 0.2)
    low = -1.0
    high = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "brightness", "contrast")

    within = (None, None)

    def neutral(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 2)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        shift, factor = self.brightness * parameters[:, 0], torch.exp(self.contrast * parameters[:, 1])
        return wide(factor, x) * (x + wide(shift, x))

    def noise(self, streams: Streams, rows: Tensor, draws: int) -> Tensor:
        size = torch.tensor([self.scale[0] / self.brightness, self.scale[1] / self.contrast], device=rows.device)
        return streams.normal(rows, draws, 2).double() * size

    def covered(self, low: Tensor, high: Tensor, p: Tensor, q: Tensor) -> Tensor:
        shift = self.brightness * torch.maximum(low[:, 0].abs(), high[:, 0].abs())
        found = torch.ones_like(p, dtype=torch.bool)
        share = torch.linspace(0, 1, CELLS + 1, dtype=torch.float64, device=p.device)
        for end in (low[:, 1].clamp(max=0), high[:, 1].clamp(min=0)):
            k = (self.contrast * end.double())[:, None] * share
            far, near = k[:, 1:], k[:, :-1]  # of each cell, seen from no change
            largest = torch.maximum(far, near)
            size = torch.hypot(far.abs() / self.scale[1], shift[:, None] * largest.exp() / self.scale[0])
            left, others = rescaled(p[:, None], far), 1 - rescaled(1 - q[:, None], far)
            found &= (size < (quantile(left) - quantile(others)) / 2).all(1)
        return found


def rescaled(p: Tensor, k: Tensor) -> Tensor:
    """The least share p' of a set with share p when the noise is e^-k times as wide."""
    tighter = 2 - 2 * cdf(k.exp() * quantile(1 - p / 2))
    wider = 2 * cdf(k.exp() * quantile((1 + p) / 2)) - 1
    return torch.where(k > 0, tighter, torch.where(k < 0, wider, p)).clamp(0, 1)
