"""Smoothing over the parameters of changes that compose: blur, shift, brightness and contrast."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adversarial.lifting import Lifted
from adversarial.streams import Streams
from adversarial.threat import Region
from certify.certificate import Certificate
from certify.checks import check_labels
from certify.engine.tracing import check_still
from certify.errors import CertifyError
from certify.randomised.resolvable import Gain, HeatBlur, Resolvable, Roll
from certify.randomised.smoothing import below
from certify.randomised.votes import BoundsOf, check_bounds, check_sampling, counted, shares

HALVINGS = 40


@dataclass(frozen=True)
class TSS:
    """A vote over randomly changed inputs, proof against changes of the same kind. Radius is in units of the ball's eps.

    `n0` draws name a class, `n` more bound its share from below; the set says which parameters cannot turn the vote, and the
    radius is the largest ball of parameters (its smallest box, for l2 and l1) that it covers. Train the model on `changed`
    inputs.

    Args:
        threat: `lift` of a HeatBlur, a Roll or a Gain.
        n0, n: draws that name the class, and that count it.
        alpha: probability of a wrong statement about one input.
        bounds: "top", of the named class alone, or "both", of all classes.

    Reference: Li et al., "TSS: transformation-specific smoothing for robustness certification", CCS 2021,
    arXiv:2002.12398.
    Differs from the paper: shifts go around the image's ends; the changes that do not compose, turns and scales, are
    `TSSDR`'s, another smoothed classifier, and `Semantic` proves them of the model itself.
    """

    threat: Lifted
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    bounds: BoundsOf = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        check_sampling(self.alpha, self.n0, self.n)
        check_bounds(self.bounds, self.n, self.alpha)
        if not isinstance(self.threat, Lifted) or not isinstance(self.threat.set, (HeatBlur, Roll, Gain)):
            raise CertifyError(
                f"expected a lifted set whose changes compose (HeatBlur, Roll, Gain), got {self.threat}; for others use TSSDR or Semantic"
            )
        if self.threat.ball.norm == "l0":
            raise CertifyError("expected a ball of norm linf, l2 or l1 around the parameters, got l0")

    @property
    def set(self) -> Resolvable:
        return self.threat.set  # type: ignore[return-value]

    @torch.no_grad()
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Certificates for inputs x (B, …) with labels y (B,).

        Raises: CertifyError for labels that are none.
        """
        check_labels(x, y)
        check_still(model)
        region, streams = self.threat.around(x), Streams(x, self.seed)

        def draw(rows: Tensor, draws: int) -> Tensor:
            return self.drawn(x, streams, rows, draws)

        named = counted(model, y, draw, self.n0, batch_size).argmax(1)
        counts = counted(model, y, draw, self.n, batch_size)
        p, q = shares(counts, named, self.n, self.alpha, self.bounds)
        sure = p > q
        radius = torch.where(sure, self.radius(region, p, q), 0)
        prediction = torch.where(sure, named, -1)
        certified = (prediction == y) & (radius >= region.eps)
        return Certificate(
            prediction, certified, torch.where(radius < region.eps, below(radius.cpu().numpy(), x.dtype).to(x.device), region.eps), torch.full_like(p, torch.nan), self.threat, type(self).__name__,
            "probabilistic", 1 - self.alpha,
        )  # fmt: skip

    def radius(self, region: Region, p: Tensor, q: Tensor) -> Tensor:
        """The largest size (B,) of the ball, eps at most, that is covered; found by halving, from below."""
        inside, outside = torch.zeros_like(p), region.eps.to(p)
        whole = self.within(region, outside, p, q)
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            good = self.within(region, middle, p, q)
            inside, outside = torch.where(good, middle, inside), torch.where(good, outside, middle)
        return torch.where(whole, region.eps.to(p), inside)

    def within(self, region: Region, size: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """Whether the ball of this size is covered (B,)."""
        anchor = region.anchor.flatten(1).to(p)
        low, high = (
            anchor + torch.minimum(torch.maximum(side.to(p), -size[:, None]), size[:, None])
            for side in (region.low, region.high)
        )
        return self.set.covered(low, high, p, q)

    def drawn(self, x: Tensor, streams: Streams, rows: Tensor, draws: int) -> Tensor:
        """So many random changes of each of these inputs, (b·draws, …)."""
        noise = self.set.noise(streams, rows, draws).flatten(0, 1).to(x.dtype)
        return self.set.apply(x[rows].repeat_interleave(draws, 0), noise)

    def changed(self, x: Tensor, seed: int) -> Tensor:
        """One random change of each input: what the model is trained on, with another seed for each epoch."""
        return self.drawn(x, Streams(x, seed), torch.arange(len(x), device=x.device), 1)
