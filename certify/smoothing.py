"""Randomised smoothing: the class a model gives most often under noise, and how far an input may move before it changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from adversarial.attacks.combine import share_name
from adversarial.marks import mark_of
from adversarial.processes import gathered, share_of
from adversarial.threat import Ball, Region
from certify.certificate import Certificate
from certify.checks import check_classes, check_labels
from certify.crown import plain
from certify.errors import CertifyError
from certify.graph import check_still
from certify.noise import NOISES
from certify.sampling import BLOCK, Keeper, Sampler
from certify.sequential import draws_for, looks_of, lower_bound, upper_bound

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Smoothing:
    r"""Certificates of the smoothed classifier $g(x) = \arg\max_c P(f(x + \sigma e) = c)$ of any model f, by sampling it.

    A first sample of n0 draws guesses the class; a second one of n gives a lower bound p of its probability (Clopper and
    Pearson), which holds with probability 1 - alpha; `certify.noise` says what radius follows. The certificate is about g,
    so deploy `predict`, not the model itself. Prediction -1: no class was shown to have more than half of the probability.

    Args:
        threat: a Ball of norm l2, l1 or linf (through l2, over √d, d the features that may change) for gaussian noise,
            l1 for laplace, l1 or linf for uniform. An infinite eps asks for radii alone.
        sigma: standard deviation of the noise in each feature, in units of the inputs. (laplace: the scale is σ/√2;
            uniform: the half width is √3 σ.)
        n0, n: draws to guess the class, and to bound its probability.
        alpha: largest probability that what is said of an input is wrong.
        until: "radius" takes all n draws of every input that its guess gets right and whose certificate is not hopeless, and
            shows the radius that n draws show. "threat" stops an input as soon as it is shown that eps is reached or that
            there is no hope; `radius` is then what was shown by the way.
        seed: of the draws. All inputs see the same ones. The guarantee is over draws that whoever chose the inputs did
            not know.

    A model that draws random numbers of its own, anew for each row, may be smoothed: g is then the likeliest class over both.
    A row of logits that are not finite counts against every class.

    Reference: Cohen, Rosenfeld & Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019,
    arXiv:1902.02918.
    Differs from the paper: sampling stops early where more of it changes nothing (`certify.sequential`): on inputs whose guess
    is wrong, once that is shown, and on those that would abstain; an input whose radius is 0 in the paper's sense or
    whose prediction is wrong has radius 0.
    """

    threat: Ball
    sigma: float = 0.25
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    noise: Literal["gaussian", "laplace", "uniform"] = "gaussian"
    until: Literal["radius", "threat"] = "radius"
    seed: int = 0

    def __post_init__(self) -> None:
        check_sampling(self.sigma, self.n0, self.n, self.alpha)
        if self.noise not in NOISES:
            raise CertifyError(f"expected a noise among {', '.join(NOISES)}, got {self.noise!r}")
        if self.until not in ("radius", "threat"):
            raise CertifyError(f"expected until 'radius' or 'threat', got {self.until!r}")
        known, norm = NOISES[self.noise].radius, getattr(self.threat, "norm", None)
        if norm not in known:
            others = ", ".join(f"{name} for {', '.join(noise.radius)}" for name, noise in NOISES.items())
            raise CertifyError(
                f"expected a ball of a norm that the noise has a rule for ({others}), got {norm} for {self.noise}"
            )

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 128, progress: bool = True,
        accelerator: Accelerator | None = None, checkpoint: str | Path | None = None,
    ) -> Certificate:  # fmt: skip
        """Certificates for inputs x (B, …) with labels y (B,).

        Args:
            batch_size: noisy inputs that pass through the model at once.
            accelerator: of several processes, in each of which model, inputs and labels are the same: each samples its share
                of the inputs, all get the whole result.
            checkpoint: a folder; a run that was stopped goes on from it to the numbers of one that was not.

        Raises: CertifyError for a model in training or without logits, labels that are none, an eps that no n draws could show
        in the mode "threat", and a checkpoint of another run.
        """
        region = opened(self.threat, model, x, y)
        own, places = share_of(torch.arange(len(x), device=x.device), accelerator)
        keeper = keeper_of(checkpoint, accelerator, self, model, x, y)
        part = Part(self, region[own], y[own])
        main = accelerator is None or accelerator.is_main_process
        part.run(Sampler(model, x[own], self.noise, self.sigma, self.seed, batch_size), keeper, progress and main)
        found = gathered(part.found(), places, accelerator)
        margin = torch.full_like(found["radius"], torch.nan)
        return Certificate(
            found["prediction"], found["certified"], found["radius"], margin, self.threat, type(self).__name__,
            "probabilistic", 1 - self.alpha,
        )  # fmt: skip

    @torch.no_grad()
    def predict(self, model: nn.Module, x: Tensor, *, batch_size: int = 128) -> Tensor:
        """The smoothed classifier's class (B,) by n draws, -1 where it is not sure: wrong with probability alpha at most.

        The two commonest classes are held against each other by a two-sided binomial test.
        Reference: Cohen, Rosenfeld & Kolter, ICML 2019, PREDICT; Hung & Fithian, 2016, arXiv:1610.03944.
        """
        from scipy.stats import binom

        check_still(model)
        classes = model(x[:1]).shape[1]
        sampler = Sampler(model, x, self.noise, self.sigma, self.seed, batch_size)
        counts = sampler.counts(torch.arange(len(x), device=x.device), self.n, classes)
        top = counts.topk(2, dim=1)
        first, second = top.values.cpu().numpy().T
        sure = 2 * binom.sf(first - 1, first + second, 0.5) <= self.alpha
        return torch.where(torch.as_tensor(sure, device=x.device), top.indices[:, 0], -1)

    def radii(self, p: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Radii in units of eps for lower bounds p of the class's probability, of inputs with so many free features."""
        rule = NOISES[self.noise].radius[self.threat.norm]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(p > 0.5, self.sigma * rule(np.asarray(p), sizes), 0.0)


class Part:
    """The inputs of one process: guessed, then counted block by block until nothing is open."""

    def __init__(self, smoothing: Smoothing, region: Region, y: Tensor):
        self.smoothing, self.y, self.dtype = smoothing, y, region.anchor.dtype
        self.looks = looks_of(smoothing.n, smoothing.alpha)
        self.eps = region.eps.double().cpu().numpy()
        self.sizes = ((region.low < 0) | (region.high > 0)).sum(1).clamp(min=1).cpu().numpy()
        if smoothing.until == "threat":
            self.check_reachable()

    def check_reachable(self) -> None:
        """Raise CertifyError where all n draws could not show the smallest eps."""
        n, alpha = self.smoothing.n, self.looks[self.smoothing.n]
        most = self.smoothing.radii(np.full(len(self.eps), alpha ** (1 / n)), self.sizes)
        if bool((most < self.eps).all()):
            row = int((self.eps - most).argmin())
            raise CertifyError(
                f"expected an eps that {n} draws can show at alpha {self.smoothing.alpha:g} with sigma {self.smoothing.sigma:g}, "
                f"at most {most[row]:.4g}, got {self.eps[row]:.4g}; take a larger n or sigma"
            )

    def run(self, sampler: Sampler, keeper: Keeper, progress: bool) -> None:
        from tqdm.auto import tqdm

        n = self.smoothing.n
        self.state = keeper.read() or self.begun(sampler)
        sampler.generator.set_state(self.state["generator"])
        for name in ("guess", "hits", "open"):
            self.state[name] = self.state[name].to(self.y.device)
        drawn = int(self.state["drawn"])
        with tqdm(total=n, initial=drawn, desc="smoothing", unit="draw", delay=2, disable=not progress) as bar:
            while bool(self.state["open"].any()):
                rows, count = self.state["open"].nonzero()[:, 0], min(BLOCK, n - drawn)
                classes, _ = sampler.classes(rows, count)
                self.state["hits"][rows] += (classes == self.state["guess"][rows, None]).sum(1)
                drawn += count
                if drawn in self.looks:
                    self.look(drawn)
                self.state |= {"drawn": torch.tensor(drawn), "generator": sampler.generator.get_state()}
                keeper.write(self.state, now=drawn == n)
                bar.update(count)
                bar.set_postfix(inputs=len(rows), refresh=False)

    def begun(self, sampler: Sampler) -> dict[str, Tensor]:
        """The state after the guesses."""
        rows = torch.arange(len(self.y), device=self.y.device)
        with torch.no_grad():
            classes = sampler.model(sampler.x[:1]).shape[1]
        guess = sampler.counts(rows, self.smoothing.n0, classes).argmax(1)
        return {
            "guess": guess, "hits": torch.zeros_like(guess), "open": torch.ones_like(guess, dtype=torch.bool),
            "lower": torch.zeros(len(guess), dtype=torch.float64), "drawn": torch.tensor(0),
            "generator": sampler.generator.get_state(),
        }  # fmt: skip

    def look(self, drawn: int) -> None:
        """Better bounds from the counts so far, and which inputs need no more of them."""
        smoothing, hits = self.smoothing, self.state["hits"].cpu().numpy()
        right, last = (self.state["guess"] == self.y).cpu().numpy(), drawn == smoothing.n
        whole = right & (smoothing.until == "radius")  # one claim, after all n draws, with all of alpha
        alpha = np.where(whole, smoothing.alpha * last, self.looks[drawn])
        is_open = self.state["open"].cpu().numpy()
        lower = np.where(is_open, lower_bound(hits, drawn, alpha), 0)
        lower = np.maximum(lower, self.state["lower"].numpy())
        upper = upper_bound(hits, drawn, self.looks[drawn])
        reached = smoothing.radii(lower, self.sizes) >= self.eps
        hopeless = smoothing.radii(upper, self.sizes) < self.eps
        enough = np.where(right, ~whole & (reached | hopeless), True)
        done = (upper <= 0.5) | ((lower > 0.5) & enough) | last
        self.state["lower"] = torch.from_numpy(lower)
        self.state["open"] &= torch.from_numpy(~done).to(self.y.device)

    def found(self) -> dict[str, Tensor]:
        """Prediction, certified and radius of this part's inputs."""
        lower = self.state["lower"].numpy()
        prediction = torch.where(torch.from_numpy(lower > 0.5).to(self.y.device), self.state["guess"], -1)
        radius = below(self.smoothing.radii(lower, self.sizes), self.dtype).to(self.y.device)
        radius = torch.where(prediction == self.y, radius, 0)
        eps = torch.from_numpy(self.eps).to(radius)
        return {"prediction": prediction, "certified": (prediction == self.y) & (radius >= eps), "radius": radius}


def below(radius: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The radius as numbers of the inputs' precision that are a little smaller, so that rounding adds nothing and the
    certificate, which holds within but not at the radius, holds there too."""
    wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    found = torch.from_numpy(radius).to(wide)
    return torch.nextafter(torch.nextafter(found, found.new_tensor(-torch.inf)), found.new_tensor(-torch.inf)).clamp(
        min=0
    )


def opened(threat: Ball, model: nn.Module, x: Tensor, y: Tensor) -> Region:
    """The threat around inputs, everything checked that a smoothing asks of its arguments."""
    check_labels(x, y)
    check_still(model)
    region = plain(threat.around(x))
    with torch.no_grad():
        check_classes(y, model(x[:1]))
    return region


def keeper_of(
    checkpoint: str | Path | None, accelerator: Accelerator | None, certifier: object, model: nn.Module, x: Tensor, y: Tensor
) -> Keeper:  # fmt: skip
    if checkpoint is None:
        return Keeper(None, "")
    return Keeper(Path(checkpoint) / share_name(accelerator), mark_of(certifier, model, x, y))


def check_sampling(sigma: float, n0: int, n: int, alpha: float) -> None:
    """Raise CertifyError for sizes with which nothing could ever be shown."""
    if not 0 < sigma < float("inf"):
        raise CertifyError(f"expected a sigma above 0, got {sigma}")
    if not 0 < alpha < 0.5:
        raise CertifyError(f"expected an alpha between 0 and 1/2, got {alpha}")
    if n0 < 1:
        raise CertifyError(f"expected at least one draw to guess the class by, got n0 {n0}")
    needed = draws_for(0.5, alpha)
    if n < needed:
        raise CertifyError(
            f"expected at least {needed} draws for an alpha of {alpha:g}, got {n}: fewer always abstain, even if all agree"
        )
