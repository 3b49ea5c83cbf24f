"""Attacks that follow the gradient inside a region: one step, many steps, with momentum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adversarial.attacks.base import Attack
from adversarial.probe import Probe
from adversarial.streams import Streams
from adversarial.threat import Region, Threat


@dataclass(frozen=True)
class FGSM(Attack):
    r"""The point of the region that is worst for the model's linearisation: for linf $x + \epsilon\,\text{sign}(\nabla)$.

    Reference: Goodfellow, Shlens & Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015, arXiv:1412.6572.
    Differs from the paper: other norms, and within the box the exact optimum of the linearisation.
    """

    threat: Threat
    loss: str = "ce"

    def search(self, probe: Probe, streams: Streams) -> None:
        rows = probe.open
        if len(rows):
            region = probe.region[rows]
            region.check_bounded()
            gradient, _ = probe.gradient(region.anchor, rows, self.loss)
            probe.outputs(region.best(gradient), rows)


@dataclass(frozen=True)
class PGD(Attack):
    r"""Projected gradient ascent: $z \leftarrow P(z + \alpha\epsilon\,d(\nabla))$ with the norm's own steepest step d.

    Args:
        threat: where to search.
        steps: gradient steps of every restart.
        step: length of a step in units of eps; for l0 steps always cross the whole box, as shorter ones never replace the
            features that were chosen first.
        random_start: begin at a random point of the region, else at the clean input.
        restarts: beginnings for those that are not broken yet.
        loss: "ce", "margin" or "dlr".
        decay: of the momentum of normalised gradients; 0 for none.
        sparsity: for l1, the share of features that move in a step.
        early: a sample leaves when it is broken. False spends every step to make the loss (`Result.worst`) large.

    Without momentum, a sample whose iterates have come to repeat themselves leaves as well: nothing new would be seen (of
    a model that draws random numbers something would; `EOT` keeps such samples).

    Reference: Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018, arXiv:1706.06083;
    steps for l1: Tramèr & Boneh, NeurIPS 2019, arXiv:1904.13000; for l0: Croce & Hein, ICCV 2019, arXiv:1909.05040.
    """

    threat: Threat
    steps: int = 40
    step: float = 0.25
    random_start: bool = True
    restarts: int = 1
    loss: str = "ce"
    decay: float = 0.0
    sparsity: float = 0.05
    early: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.step <= 0:
            raise ValueError(f"expected at least one step of a length above 0 and one restart, got {self}")

    def search(self, probe: Probe, streams: Streams) -> None:
        for _ in range(self.restarts):
            rows = probe.open if self.early else probe.rows
            if len(rows):
                self.ascend(probe, rows, streams)

    def ascend(self, probe: Probe, rows: Tensor, streams: Streams) -> None:
        """One restart."""
        region = probe.region[rows]
        region.check_bounded()
        z = region.sample(streams, rows) if self.random_start else region.anchor
        momentum, seen, fixed = torch.zeros_like(z), Seen(z, self.steps), not self.decay and probe.samples == 1
        for _ in range(self.steps):
            gradient, _ = probe.gradient(z, rows, self.loss)
            if self.decay:
                momentum = gradient = self.decay * momentum + averaged(gradient)
            z = region.project(z + self.length(region, z) * self.ahead(region, z, gradient))
            keep = ~seen.before(z) if fixed else torch.ones_like(rows, dtype=torch.bool)
            if self.early:
                keep &= ~probe.reached[rows]
            if not keep.all():
                if not keep.any():
                    return
                keep = filled(keep)
                rows, region, z, momentum = rows[keep], region[keep], z[keep], momentum[keep]
                seen.keep(keep)
        probe.outputs(z, rows)

    def ahead(self, region: Region, z: Tensor, gradient: Tensor) -> Tensor:
        """The direction of a step."""
        if region.norm == "l1":
            return sparse(region, z, gradient, self.sparsity)
        if region.norm == "l0":
            return scaled(gradient)
        return region.direction(gradient)

    def length(self, region: Region, z: Tensor) -> Tensor:
        if region.norm == "l0":
            return (region.high - region.low).view_as(z)
        if region.norm == "linf":  # every feature may have a bound of its own
            return self.step * torch.maximum(region.high, -region.low).view_as(z)
        return self.step * region.eps.view(-1, *(1,) * (z.ndim - 1))


def BIM(threat: Threat, steps: int = 10, step: float = 0.1, loss: str = "ce") -> PGD:
    """The basic iterative method: PGD from the clean input.

    Reference: Kurakin, Goodfellow & Bengio, "Adversarial examples in the physical world", 2016, arXiv:1607.02533.
    """
    return PGD(threat, steps=steps, step=step, random_start=False, loss=loss)


def MIM(threat: Threat, steps: int = 10, step: float = 0.1, decay: float = 1.0, loss: str = "ce") -> PGD:
    """The momentum iterative method: steps along a decaying sum of gradients, each divided by its mean absolute value.

    Reference: Dong et al., "Boosting adversarial attacks with momentum", CVPR 2018, arXiv:1710.06081.
    """
    return PGD(threat, steps=steps, step=step, random_start=False, loss=loss, decay=decay)


def filled(keep: Tensor, multiple: int = 16) -> Tensor:
    """`keep` with some other rows, so that their number is a multiple: convolutions prepare themselves anew for every batch
    size, which costs more than a few rows."""
    missing = -int(keep.sum()) % multiple
    return keep | ((~keep).cumsum(0) <= missing) if len(keep) > 2 * multiple else keep


def averaged(gradient: Tensor) -> Tensor:
    """A gradient divided by its mean absolute value."""
    mean = gradient.abs().flatten(1).mean(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / mean.view(-1, *(1,) * (gradient.ndim - 1))


def scaled(gradient: Tensor) -> Tensor:
    """A gradient divided by its largest absolute value."""
    largest = gradient.abs().flatten(1).amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / largest.view(-1, *(1,) * (gradient.ndim - 1))


def sparse(region: Region, z: Tensor, gradient: Tensor, share: float | Tensor) -> Tensor:
    """A step of unit l1 norm, equally into the steepest `share` (one number, or one per sample) of the features that can
    still move."""
    g, steps = gradient.flatten(1), region.steps(z)
    room = torch.where(g >= 0, region.high - steps, steps - region.low)
    size = torch.where(room > 0, g.abs(), 0)
    share = torch.as_tensor(share, dtype=g.dtype, device=g.device).expand(len(g))
    count = (share * g.shape[1]).long().clamp(1, g.shape[1])
    least = size.sort(1, descending=True).values.gather(1, count[:, None] - 1)
    chosen = g.sign() * ((size >= least) & (size > 0))
    return (chosen / chosen.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)


class Seen:
    """Which iterates came by before: without momentum a step depends on where it starts only, so they would come again.

    Points are told apart by their product with one fixed random vector, in float64.
    """

    def __init__(self, z: Tensor, steps: int):
        generator = torch.Generator().manual_seed(0)
        self.probe = torch.randn(z[0].numel(), dtype=torch.float64, generator=generator).to(z.device)
        self.marks = torch.full((len(z), steps + 1), torch.nan, dtype=torch.float64, device=z.device)
        self.count = 0
        self.before(z)

    def before(self, z: Tensor) -> Tensor:
        """Whether each row's point was seen before; it is from now on."""
        mark = z.flatten(1).double() @ self.probe
        found = (self.marks[:, : self.count] == mark[:, None]).any(1)
        self.marks[:, self.count] = mark
        self.count += 1
        return found

    def keep(self, rows: Tensor) -> None:
        self.marks = self.marks[rows]
