r"""How far the nearest adversarial example is likely to be: the margin over an estimate of how steep it gets nearby."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor, nn

from adversarial.streams import Streams
from adversarial.threat import DUAL, Ball, Region, norm_of
from certify.certificate import Certificate
from certify.checks import answers, check_floating, check_labels
from certify.errors import CertifyError
from certify.lipschitz.curvature import largest_curvature
from certify.lipschitz.weibull import Fit, fit

NUMBERS, POINTS = 2**19, 2**14  # at most so many numbers, and points, enter the model at once


@dataclass(frozen=True)
class Estimate:
    """What CLEVER says of inputs (B,) against classes (B, J), with how well the extreme value law fits.

    targets: the other classes; scores: against each one, at most the radius sampled, 0 where the margin is not above 0.
    lipschitz: the estimated largest gradient norm of the margin (of the second order: largest curvature).
    shape, pvalue: of the law, NaN where all maxima are alike; fallback: where the largest sample stands in for a law
    that does not fit.
    """

    targets: Tensor
    scores: Tensor
    lipschitz: Tensor
    shape: Tensor
    pvalue: Tensor
    fallback: Tensor

    @property
    def score(self) -> Tensor:
        """The smallest of each input's scores (B,)."""
        return self.scores.amin(1)


@dataclass(frozen=True)
class CLEVER:
    r"""$\min_j \min(g_j(x) / L_j, R)$ with $g_j = f_y - f_j$ and $L_j$ the largest dual norm of its gradient within R, which an extreme
    value law estimates from the maxima of batches of random points. An estimate: nothing is ever certified.

    Args:
        threat: a `Ball` of linf, l2 or l1; the score is in units of its eps, its bounds and mask limit the points.
        batches, samples: maxima, and random points for each.
        radius: R, of the ball the points are drawn from and the largest score there is.
        targets: "each" other class (the untargeted score), the "runner-up", the "least" likely or one "random" class.
        order: 2 is for twice differentiable models and l2: from the curvature c, $2g / (\|\nabla g\| + \sqrt{\|\nabla g\|^2 + 2gc})$.
        pool: None draws new points for every batch; a number draws so many times `samples` once, of which each batch
            takes `samples` again with repetition, at a small part of the cost. Maxima then repeat, so that the test often
            refuses the law and the largest sample counts.
        rounds: further balls, each between the score so far and the last ball. What is known of a ball holds for it
            alone, and in a smaller one the model is less steep, so the best score of all is nearer to the true distance.
        seed: of the points; an input's do not depend on which others share its call.

    The model is called with points, not with the inputs' batches: `batch_size` is of the predictions.

    References: Weng et al., ICLR 2018, arXiv:1801.10578, and the authors' code (seven starts, penalty, goodness of fit); second
    order: Weng et al., "On extensions of CLEVER", GlobalSIP 2018, arXiv:1810.08640; the pool: IBM's Adversarial Robustness Toolbox.
    Differs from the paper: points are uniform in the ball of the threat's own norm as there, then moved into the bounds; the
    authors' code draws from the l2 ball for every norm and multiplies steps by a number from U(0, 3). The score is
    for the label, so it is 0 where the model is wrong.
    """

    threat: Ball
    batches: int = 500
    samples: int = 1024
    radius: float = 5.0
    targets: Literal["each", "runner-up", "least", "random"] = "each"
    order: Literal[1, 2] = 1
    pool: int | None = None
    rounds: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.threat, Ball):
            raise CertifyError(f"expected a Ball around the inputs themselves, got {type(self.threat).__name__}")
        if self.threat.norm not in DUAL:
            raise CertifyError(
                f"expected a threat of linf, l2 or l1, got {self.threat.norm}, which has no gradient norm"
            )
        if self.order not in (1, 2) or (self.order == 2 and self.threat.norm != "l2"):
            raise CertifyError(f"expected order 1, or order 2 with l2, got order {self.order} with {self.threat.norm}")
        if min(self.batches, self.samples, 1 if self.pool is None else self.pool) < 1 or self.batches < 2:
            raise CertifyError(
                f"expected two batches or more of one sample or more, got {self.batches} of {self.samples}, pool {self.pool}"
            )
        if self.rounds < 0:
            raise CertifyError(f"expected rounds from 0, got {self.rounds}")
        if not 0 < self.radius < float("inf"):
            raise CertifyError(f"expected a radius above 0 and finite, got {self.radius}")
        if self.targets not in ("each", "runner-up", "least", "random"):
            raise CertifyError(f"expected targets each, runner-up, least or random, got {self.targets!r}")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Estimated radii for inputs x (B, …) with labels y (B,); `certified` is False everywhere.

        Raises: CertifyError for a model in training, labels that are none, and a model of no curvature where order is 2.
        """
        logits = checked(model, x, y, batch_size)
        found = self.estimated(model, x, y, logits)
        nothing = torch.full_like(found.score, torch.nan)
        return Certificate(
            logits.argmax(1), torch.zeros_like(y, dtype=torch.bool), found.score, nothing, self.threat, type(self).__name__, "estimate"
        )  # fmt: skip

    def estimate(self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Estimate:
        """The same with the score against every class and the quality of the fits."""
        return self.estimated(model, x, y, checked(model, x, y, batch_size))

    def estimated(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Estimate:
        """`estimate` where the logits (B, classes) are known."""
        from tqdm.auto import tqdm

        region = self.ball(x)
        streams = Streams(x, self.seed)
        seeds = streams.bits(torch.arange(len(x), device=x.device), 1)[:, 0]
        targets = self.chosen(logits, y, streams)
        rows = [
            self.row(model, region[i : i + 1], int(y[i]), targets[i], int(seeds[i]) & (2**63 - 1))
            for i in tqdm(range(len(x)), desc=type(self).__name__, delay=2)
        ]
        scores, fits = (list(part) for part in zip(*rows, strict=True))
        whole = [
            torch.stack([getattr(each, name) for each in fits]) for name in ("location", "shape", "pvalue", "fallback")
        ]
        return Estimate(targets, torch.stack(scores), *whole)

    def ball(self, x: Tensor) -> Region:
        """Where points are drawn."""
        eps = torch.as_tensor(self.threat.eps)
        if eps.ndim and eps.shape != (len(x),):
            raise CertifyError(f"expected one eps, or one for each of {len(x)} inputs, got {tuple(eps.shape)}")
        return replace(self.threat, eps=self.radius).around(x)

    def chosen(self, logits: Tensor, y: Tensor, streams: Streams) -> Tensor:
        """The other classes (B, J)."""
        others = logits.scatter(1, y[:, None].long(), -torch.inf)
        order = others.argsort(1, descending=True)[:, :-1]
        if self.targets == "each":
            return order
        if self.targets == "random":
            pick = streams.integers(torch.arange(len(y), device=y.device), order.shape[1], 1)
            return order.gather(1, pick)
        return order[:, :1] if self.targets == "runner-up" else order[:, -1:]

    def row(self, model: nn.Module, region: Region, y: int, targets: Tensor, seed: int) -> tuple[Tensor, Fit]:
        """Scores (J,) of one input and what they lean on: of every class those of the ball in which it scores most."""
        margins, generator = Margins(model, y, targets), torch.Generator(region.anchor.device).manual_seed(seed)
        here, slope = margins.gradients(region.anchor, region)
        g, steep = here[:, 0].double(), slope[:, 0].double()
        best, found = self.scored(margins, region, self.radius, g, steep, generator)
        low, high = float(best.amin()), min(self.radius, float((g / steep).amin()))
        for _ in range(self.rounds if low > 0 else 0):
            radius = (low * max(low, high)) ** 0.5
            smaller = replace(self.threat, eps=radius).around(region.anchor)
            scores, other = self.scored(margins, smaller, radius, g, steep, generator)
            better = scores > best
            best = torch.where(better, scores, best)
            names = [field.name for field in fields(Fit)]
            found = Fit(*(torch.where(better, getattr(other, name), getattr(found, name)) for name in names))
            low, high = float(best.amin()), (high if float(scores.amin()) >= radius else radius)
        return best.to(region.anchor), found

    def scored(
        self, margins: Margins, region: Region, radius: float, g: Tensor, steep: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Fit]:
        """Scores (J,) from one ball for margins g and gradient norms at the input."""
        found = fit(self.maxima(margins, region, radius, generator))
        if self.order == 2:
            distance = 2 * g / (steep + (steep.square() + 2 * g.clamp_min(0) * found.location).sqrt())
        else:
            distance = g / found.location
        known = found.location.isfinite() & g.isfinite() & steep.isfinite() & (g > 0)
        return torch.where(known, distance.clamp(max=radius), 0), found

    def maxima(self, margins: Margins, region: Region, radius: float, generator: torch.Generator) -> Tensor:
        """The largest of each batch (J, batches)."""
        if self.pool is not None:
            size = self.pool * self.samples
            values = torch.cat(list(self.values(margins, region, radius, size, generator)), 1)
            values = torch.where(values.isfinite().all(1, keepdim=True), values, torch.nan)  # which batches might miss
            pick = torch.randint(size, (self.batches, self.samples), generator=generator, device=values.device)
            return values.sort(1, descending=True).values[:, pick.amin(1)]
        found = torch.full((len(margins.targets), self.batches), -torch.inf, device=region.anchor.device)
        done = 0
        for values in self.values(margins, region, radius, self.batches * self.samples, generator):
            batch = torch.arange(done, done + values.shape[1], device=values.device) // self.samples
            found = found.scatter_reduce(1, batch.expand(len(found), -1), values.to(found), "amax")
            done += values.shape[1]
        return found

    def values(
        self, margins: Margins, region: Region, radius: float, count: int, generator: torch.Generator
    ) -> Iterator[Tensor]:
        """Gradient norms or curvatures (J, some) at `count` random points."""
        size = region.anchor.numel()
        most = max(1, min(POINTS, NUMBERS // size))
        for start in range(0, count, most):
            points = drawn(region, radius, min(most, count - start), generator)
            if self.order == 1:
                yield margins.gradients(points, region)[1]
            else:
                yield largest_curvature(margins, points, moving(region), generator)


@dataclass(frozen=True)
class Margins:
    """A label's logit minus those of other classes."""

    model: nn.Module
    y: int
    targets: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        """Margins (N, J) at points (N, …)."""
        logits = self.model(points)
        return logits[:, self.y, None] - logits[:, self.targets]

    def gradients(self, points: Tensor, region: Region) -> tuple[Tensor, Tensor]:
        """Margins (J, N) and the dual norms of their gradients (J, N), along what may move; one forward pass for all classes."""
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            margins = self(points)
            last, norms = len(self.targets) - 1, []
            for j in range(last + 1):
                (slope,) = torch.autograd.grad(margins[:, j].sum(), points, retain_graph=j < last)
                slope = slope.flatten(1)
                norms.append(norm_of(slope if unmasked(region) else slope * moving(region), DUAL[region.norm]))
        return margins.detach().T, torch.stack(norms)


def checked(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """Logits of inputs and labels that were checked."""
    check_labels(x, y)
    check_floating(x)
    return answers(model, x, y, batch_size)


def moving(region: Region) -> Tensor:
    """Which coordinates can change, (1, D)."""
    return (region.low < 0) | (region.high > 0)


def unmasked(region: Region) -> bool:
    return bool(moving(region).all())


def drawn(region: Region, radius: float, count: int, generator: torch.Generator) -> Tensor:
    """Points (count, …) uniform in the ball around one input, those outside its bounds moved to the nearest one inside.

    Reference for l1 and l2: Barthe et al., Annals of Probability 2005.
    """
    like = {"device": region.anchor.device, "dtype": region.anchor.dtype, "generator": generator}
    size = region.anchor.numel()
    if region.norm == "linf":
        steps = (2 * torch.rand(count, size, **like) - 1) * radius
    else:
        if region.norm == "l2":
            steps = torch.randn(count, size, **like)
        else:  # Laplace numbers
            half = torch.rand(count, size, **like) - 0.5
            steps = -half.sign() * torch.log1p(-(2 * half.abs()).clamp(max=1 - 1e-7))
        length = torch.rand(count, 1, **like).pow(1 / size) * radius
        steps *= length / norm_of(steps, region.norm)[:, None].clamp_min(1e-30)
    steps = torch.maximum(torch.minimum(steps, region.high), region.low)
    return region.anchor + steps.view(count, *region.anchor.shape[1:])
