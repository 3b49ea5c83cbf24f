"""Which certifier to take: the tightest that a few inputs show to fit the time there is, and why."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adversarial.threat import Ball
from certify.certificate import Certificate
from certify.checks import answers, check_labels
from certify.engine.bounds import Bounds
from certify.engine.graph import Graph
from certify.engine.tracing import trace
from certify.errors import CertifyError
from certify.evaluate import Maker, narrowed
from certify.linear.cascade import Cascade
from certify.linear.crown import CROWN, IBP, AlphaCROWN
from certify.randomised.smoothing import Smoothing

PROOFS: dict[str, Maker] = {  # from the cheapest to the tightest
    "IBP": IBP, "CROWN-IBP": partial(CROWN, intermediate="ibp"), "CROWN": CROWN, "AlphaCROWN": AlphaCROWN,
    "Cascade": partial(Cascade, seconds=2.0),
}  # fmt: skip
DEARER = 60  # so many times as long as the method before it; CROWN's backward passes are counted instead
BESIDE = 10  # so much less a backward pass takes among many than among a few
FEWEST, MOST = 500, 100_000  # draws for each input with which smoothing is worth while, and Cohen's number
PROBE_DRAWS = 1000


@dataclass(frozen=True)
class Trial:
    """One method on the probe: how many of `asked` input and eps pairs it certified, and how many seconds it would take for
    everything; `refused` says why it was not run to the end."""

    method: str
    certified: int = 0
    asked: int = 0
    seconds: float = math.nan
    refused: str = ""

    def __str__(self) -> str:
        if self.refused:
            return f"{self.method}: {self.refused}"
        return f"{self.method}: {self.certified} of {self.asked} certified, about {self.seconds:.3g} s for everything"


@dataclass(frozen=True)
class Choice:
    """A certifier by the name of its method and its options, what was tried and why it is this one."""

    method: str
    options: dict[str, Any]
    reason: str
    trials: tuple[Trial, ...]

    @property
    def name(self) -> str:
        """The method with its noise and draws, where it has them."""
        shown = [f"{key} {value:.4g}" for key, value in self.options.items() if key in ("sigma", "n")]
        return f"{self.method} ({', '.join(shown)})" if shown else self.method

    @property
    def make(self) -> Maker:
        """What makes the certifier for a threat."""
        return partial(Smoothing, **self.options) if self.method == "Smoothing" else PROOFS[self.method]

    def explain(self) -> str:
        """Lines of Markdown."""
        return "\n".join([f"Chosen: {self.name}. {self.reason}", "", *(f"- {trial}" for trial in self.trials)])

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Choice:
        """Inverse of `dataclasses.asdict`."""
        return cls(**facts | {"trials": tuple(Trial(**trial) for trial in facts["trials"])})


def choose(
    model: nn.Module, x: Tensor, y: Tensor, threat: Ball, eps: Sequence[float], *, seconds: float = 60.0, probe: int = 4,
    batch_size: int = 64, seed: int = 0,
) -> Choice:  # fmt: skip
    """The certifier that covers most of a few inputs among those that take `seconds` or less for all of them.

    Proofs are tried from the cheapest to the tightest, each on one input first, and not at all where counting its backward
    passes says that this alone would take too long; a model without bounds, and one whose bounds are vacuous (no input of
    the probe is covered at any eps), is smoothed, with as many draws as the time allows.

    Args:
        threat: norm, bounds and mask; its eps is replaced by the sizes above 0 of `eps`.
        seconds: wall seconds for all inputs and sizes; the choice itself is not counted and takes some of them.
        probe: inputs that are tried, of those that the model gets right.
        seed: the smoothing's own draws begin from it, its probe from the next one, so that the choice does not know them.

    Raises: CertifyError for labels that are none, no eps above 0, and no input that the model gets right.
    """
    check_labels(x, y)
    if not isinstance(threat, Ball):
        raise CertifyError(f"expected a Ball around the inputs themselves, got {type(threat).__name__}")
    sizes = sorted({float(size) for size in eps if size > 0})
    if not sizes:
        raise CertifyError(f"expected an eps above 0, got {list(eps)}")
    right = answers(model, x, y, batch_size).argmax(1) == y
    rows = right.nonzero()[:, 0][:probe]
    if not len(rows):
        raise CertifyError(
            "expected at least one input that the model gets right, got none: there is nothing to certify"
        )
    asked = Few(model, x, y, threat, sizes, rows, seconds, batch_size)
    trials = ladder(asked)
    fitting = [trial for trial in trials if not trial.refused]
    best = max(fitting, key=lambda trial: trial.certified, default=None)  # the first, so the cheapest, of equals
    if best is not None and best.certified:
        cheaper = [trial for trial in fitting if trial.certified == best.certified]
        why = "No other method that fits covers more" if len(cheaper) == 1 else "The cheapest of those that cover most"
        reason = f"{why} ({best.certified} of {best.asked} pairs of {len(rows)} inputs and eps)."
        return Choice(best.method, {}, reason, tuple(trials))
    return smoothed(asked, trials, seed)


@dataclass(frozen=True)
class Few:
    """Some rows of the inputs at all sizes, as a small part of the whole task."""

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Ball
    sizes: list[float]
    rows: Tensor
    seconds: float
    batch_size: int

    @property
    def pairs(self) -> int:
        """Inputs and sizes of the whole task."""
        return len(self.x) * len(self.sizes)

    def ball(self, rows: Tensor, size: float) -> Ball:
        return narrowed(replace(self.threat, eps=size), rows, self.x)

    def run(self, make: Maker, model: nn.Module | Graph, rows: Tensor, size: float) -> tuple[Certificate, float]:
        """The certificate of some rows at one size, and the seconds it took."""
        started = time.perf_counter()
        found = make(self.ball(rows, size))(model, self.x[rows], self.y[rows], batch_size=self.batch_size)
        return found, time.perf_counter() - started


def ladder(asked: Few) -> list[Trial]:
    """Trials of proofs, from the cheapest on; the rest is left out once one covers the whole probe."""
    try:
        graph = trace(asked.model, asked.x[:1])
    except CertifyError as error:
        return [Trial("proofs", refused=str(error))]
    trials: list[Trial] = []
    before = 0.0
    for name, make in PROOFS.items():
        started = time.perf_counter()
        try:
            expected = before * dearer(asked, graph, name)
            if expected > asked.seconds / 2:
                much = f"left out with all that is dearer: one input may take {expected:.2g} s"
                trials.append(Trial(name, refused=much))
                break
            trial, before = tried(asked, graph, name, make)
        except CertifyError as error:
            trial, before = Trial(name, refused=str(error)), max(before, time.perf_counter() - started)
        trials.append(trial)
        if trial.seconds > asked.seconds or trial.certified == trial.asked > 0:
            break
    return trials


def dearer(asked: Few, graph: Graph, name: str) -> float:
    """How many times as long as the method before it a method is expected to take for one input."""
    if name != "CROWN":
        return DEARER
    bounds = Bounds(graph, asked.ball(asked.rows[:1], asked.sizes[-1]).around(asked.x[asked.rows[:1]])).intervals()
    undecided = sum(int(bounds.undecided(node).sum()) for node in bounds.wanted())
    return 1 + 2 * undecided / (graph.nodes[graph.output].shape[0] - 1) / BESIDE


def tried(asked: Few, graph: Graph, name: str, make: Maker) -> tuple[Trial, float]:
    """A method on one input at the largest size, then, if all would fit, on the whole probe; and the seconds of one input."""
    _, one = asked.run(make, graph, asked.rows[:1], asked.sizes[-1])
    if one < 1:  # the first call prepares what the second one has
        one = min(one, asked.run(make, graph, asked.rows[:1], asked.sizes[-1])[1])
    if one * asked.pairs / 4 > asked.seconds:  # a batch is quicker than its inputs by themselves
        much = f"one input takes {one:.2g} s, too long for {asked.pairs} in {asked.seconds:g} s"
        return Trial(name, seconds=one * asked.pairs, refused=much), one
    runs = [asked.run(make, graph, asked.rows, size) for size in asked.sizes]
    whole = sum(took for _, took in runs) * len(asked.x) / len(asked.rows)
    certified = sum(int(found.certified.sum()) for found, _ in runs)
    much = f"would take about {whole:.3g} s, more than {asked.seconds:g} s" if whole > asked.seconds else ""
    return Trial(name, certified, len(asked.rows) * len(asked.sizes), whole, much), one


def smoothed(asked: Few, trials: list[Trial], seed: int) -> Choice:
    """Smoothing with the noise that shows most on the probe, and as many draws as the time allows."""
    largest, norm = asked.sizes[-1], asked.threat.norm
    vacuous = any(not trial.refused for trial in trials)
    why = (
        "Bounds are vacuous: no proof that fits covers any input tried."
        if vacuous
        else "No proof could be tried to the end."
    )
    if norm not in ("l2", "l1", "linf"):
        raise CertifyError(f"expected a norm that smoothing knows, l2, l1 or linf, got {norm}; {why}")
    started = time.perf_counter()
    with torch.no_grad():
        asked.model(asked.x[asked.rows[:1]].repeat_interleave(asked.batch_size, 0))
    row = (time.perf_counter() - started) / asked.batch_size
    draws = min(MOST, int(0.8 * asked.seconds / (row * len(asked.x))))
    if draws < FEWEST:
        raise CertifyError(
            f"expected time for {FEWEST} draws for each input or more, got time for {draws}; {why} Give more seconds or "
            "fewer rows"
        )
    region = asked.ball(asked.rows[:1], largest).around(asked.x[asked.rows[:1]])
    free = int(((region.high > 0) | (region.low < 0)).sum())
    unit = largest * (math.sqrt(free) if norm == "linf" else 1.0)
    noise = "uniform" if norm == "l1" else "gaussian"
    pairs, shown = len(asked.rows) * len(asked.sizes), []
    for factor in (0.5, 1.0, 2.0):
        make = partial(Smoothing, sigma=factor * unit, n=min(draws, PROBE_DRAWS), noise=noise, seed=seed + 1)
        found, took = asked.run(make, asked.model, asked.rows, largest)
        count = sum(int(found.reaches(size).sum()) for size in asked.sizes)
        name = f"Smoothing, sigma {factor * unit:.3g}, {make.keywords['n']} draws"
        trials.append(Trial(name, count, pairs, took * len(asked.x) / len(asked.rows)))
        shown.append((count, float(found.radius.mean()), factor * unit))
    count, _, sigma = max(shown, key=lambda one: one[:2])
    reason = (
        f"{why} Smoothing says how a randomised classifier made of this model behaves, with a probability, and so needs no "
        f"bounds; of {pairs} pairs of inputs and eps tried it covers {count}."
    )
    options = {"sigma": sigma, "n": draws, "noise": noise, "seed": seed}
    return Choice("Smoothing", options, reason, tuple(trials))
