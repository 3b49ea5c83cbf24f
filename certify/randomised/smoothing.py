"""Randomised smoothing: the class a model gives most often under noise, and how far an input may move before it changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from adversarial.attacks.combine import share_name
from adversarial.marks import mark_of
from adversarial.processes import gathered, share_of
from adversarial.threat import Ball, Region, norm_of
from certify.certificate import Certificate
from certify.checks import answers, check_labels
from certify.errors import CertifyError
from certify.linear.crown import plain
from certify.randomised.noise import NOISES
from certify.randomised.sampling import BLOCK, Keeper, Precision, Sampler, blocks
from certify.randomised.sequential import draws_for, looks_of, lower_bound, upper_bound

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Smoothing:
    r"""Certificates of the smoothed classifier $g(x) = \arg\max_c P(f(x + \sigma e) = c)$ of any model f, by sampling it.

    A first sample of n0 draws guesses the class; a second one of n gives a lower bound p of its probability (Clopper and
    Pearson), which holds with probability 1 - alpha; `noise` says what radius follows. The certificate is about g,
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
        precision: "bfloat16" or "float16" smooths the model as it is under `torch.autocast`, which is faster and another
            classifier: take the same in `predict`, as this object does.
        seed: of the draws, of which every input has its own. The guarantee is over draws that whoever chose the inputs did
            not know.

    A model that draws random numbers of its own, anew for each row, may be smoothed: g is then the likeliest class over both.
    A row of logits that are not finite counts against every class.

    Reference: Cohen, Rosenfeld & Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019,
    arXiv:1902.02918.
    Differs from the paper: sampling stops early where more of it changes nothing (`sequential`): on inputs whose guess
    is wrong, once that is shown, and on those that are most surely going to abstain; a wrong prediction has radius 0.
    """

    threat: Ball
    sigma: float = 0.25
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    noise: Literal["gaussian", "laplace", "uniform"] = "gaussian"
    until: Literal["radius", "threat"] = "radius"
    precision: Precision = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_sampling(self.sigma, self.n0, self.n, self.alpha, self.precision)
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
        if self.until == "threat":
            self.check_reachable(region)
        own, places = share_of(torch.arange(len(x), device=x.device), accelerator)
        keeper = keeper_of(checkpoint, accelerator, self, model, x, y)
        part = Part(self, region[own], y[own])
        main = accelerator is None or accelerator.is_main_process
        part.run(Sampler(model, x[own], self, batch_size), keeper, progress and main)
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

        y = torch.zeros(len(x), dtype=torch.long, device=getattr(x, "device", None))
        check_labels(x, y)
        answers(model, x[:1], y, 1)
        counts = Sampler(model, x, self, batch_size).counts(torch.arange(len(x), device=x.device), self.n)
        top = counts.topk(2, dim=1)
        first, second = top.values.cpu().numpy().T
        sure = 2 * binom.sf(first - 1, first + second, 0.5) <= self.alpha
        return torch.where(torch.as_tensor(sure, device=x.device), top.indices[:, 0], -1)

    def radii(self, p: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Radii in units of eps for lower bounds p of the class's probability, of inputs with so many free features."""
        rule = NOISES[self.noise].radius[self.threat.norm]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(p > 0.5, self.sigma * rule(np.asarray(p), sizes), 0.0)

    def check_reachable(self, region: Region) -> None:
        """Raise CertifyError where all n draws could not show any input's eps."""
        alpha, (eps, sizes) = looks_of(self.n, self.alpha)[self.n], sizes_of(region)
        most = self.radii(np.full(len(eps), alpha ** (1 / self.n)), sizes)
        if bool((most < eps).all()):
            row = int((eps - most).argmin())
            raise CertifyError(
                f"expected an eps that {self.n} draws can show at alpha {self.alpha:g} with sigma {self.sigma:g}, "
                f"at most {most[row]:.4g}, got {eps[row]:.4g}; take a larger n or sigma"
            )


class Part:
    """The inputs of one process: guessed, then counted block by block until nothing is open.

    With `moments` it also sums up, over even and odd blocks apart, draws times whether they hit, less a half (2, B, D).
    """

    def __init__(self, smoothing: Smoothing, region: Region, y: Tensor, *, moments: bool = False):
        self.smoothing, self.y, self.dtype, self.moments = smoothing, y, region.anchor.dtype, moments
        self.looks, self.first = looks_of(smoothing.n, smoothing.alpha), blocks(smoothing.n0)
        self.eps, self.sizes = sizes_of(region)

    def run(self, sampler: Sampler, keeper: Keeper, progress: bool) -> None:
        from tqdm.auto import tqdm

        n = self.smoothing.n
        self.state = keeper.read() or self.begun(sampler)
        for name in self.state.keys() - {"lower", "drawn"}:
            self.state[name] = self.state[name].to(self.y.device)
        drawn = int(self.state["drawn"])
        with tqdm(total=n, initial=drawn, desc="smoothing", unit="draw", delay=2, disable=not progress) as bar:
            while bool(self.state["open"].any()):
                rows, count = self.state["open"].nonzero()[:, 0], min(BLOCK, n - drawn)
                seen = partial(self.add, half=drawn // BLOCK % 2) if self.moments else None
                classes = sampler.classes(rows, self.first + drawn // BLOCK, count, seen)
                self.state["hits"][rows] += (classes == self.state["guess"][rows, None]).sum(1)
                drawn += count
                if drawn in self.looks:
                    self.look(drawn)
                self.state["drawn"] = torch.tensor(drawn)
                keeper.write(self.state, now=not bool(self.state["open"].any()))
                bar.update(count)
                bar.set_postfix(inputs=len(rows), refresh=False)

    def begun(self, sampler: Sampler) -> dict[str, Tensor]:
        """The state after the guesses."""
        rows = torch.arange(len(self.y), device=self.y.device)
        guess = sampler.counts(rows, self.smoothing.n0).argmax(1)
        sums = {"sums": sampler.x.new_zeros(2, *sampler.x.flatten(1).shape)} if self.moments else {}
        return sums | {
            "guess": guess, "hits": torch.zeros_like(guess), "open": torch.ones_like(guess, dtype=torch.bool),
            "lower": torch.zeros(len(guess), dtype=torch.float64), "drawn": torch.tensor(0),
        }  # fmt: skip

    def add(self, rows: Tensor, classes: Tensor, noise: Tensor, half: int) -> None:
        """What these draws add to the sums."""
        centred = (classes == self.state["guess"][rows, None]).to(noise.dtype) - 0.5
        self.state["sums"][half, rows] += torch.einsum("kc,kcd->kd", centred, noise.flatten(2))

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


def sizes_of(region: Region) -> tuple[np.ndarray, np.ndarray]:
    """Each input's eps, and how many of its features may change."""
    free = (region.low < 0) | (region.high > 0)
    return region.eps.double().cpu().numpy(), free.sum(1).clamp(min=1).cpu().numpy()


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
    region = plain(threat.around(x))
    answers(model, x[:1], y, 1)
    # the noise is around the input, the threat around where its bounds moved it, by rounding
    region = replace(region, eps=region.eps + norm_of((x.detach() - region.anchor).flatten(1), region.norm))
    return region


def keeper_of(
    checkpoint: str | Path | None, accelerator: Accelerator | None, certifier: object, model: nn.Module, x: Tensor, y: Tensor
) -> Keeper:  # fmt: skip
    """What keeps finished inputs in a folder, marked by all that their certificates depend on; nothing without one."""
    if checkpoint is None:
        return Keeper(None, "")
    return Keeper(Path(checkpoint) / share_name(accelerator), mark_of(certifier, model, x, y))


def check_sampling(sigma: float, n0: int, n: int, alpha: float, precision: Precision) -> None:
    """Raise CertifyError for sizes with which nothing could ever be shown."""
    if not 0 < sigma < float("inf"):
        raise CertifyError(f"expected a sigma above 0, got {sigma}")
    if not 0 < alpha < 0.5:
        raise CertifyError(f"expected an alpha between 0 and 1/2, got {alpha}")
    if n0 < 1:
        raise CertifyError(f"expected at least one draw to guess the class by, got n0 {n0}")
    if precision not in (None, "bfloat16", "float16"):
        raise CertifyError(f"expected a precision None, 'bfloat16' or 'float16', got {precision!r}")
    needed = draws_for(0.5, alpha)
    if n < needed:
        raise CertifyError(
            f"expected at least {needed} draws for an alpha of {alpha:g}, got {n}: fewer always abstain, even if all agree"
        )
