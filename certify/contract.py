"""What every certifier promises, as one function: for our own tests and for authors of other certifiers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import adversarial
from adversarial.streams import Streams
from adversarial.threat import Ball, Norm, ThreatError
from certify.certificate import Certificate, Certifier
from certify.errors import CertifyError

Maker = Callable[[Ball], Certifier]
Setting = tuple[nn.Sequential, Tensor, Tensor]
SIZES: dict[Norm, tuple[float, float]] = {"linf": (0.005, 0.02), "l2": (0.01, 0.04), "l1": (0.01, 0.05)}


def example(size: int = 6, classes: int = 3, count: int = 16, seed: int = 0) -> Setting:
    """A small ReLU network in float64, inputs within [0, 1], and the classes it gives them with two wrong ones among them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(size, 12), nn.ReLU(), nn.Linear(12, classes)).double().eval()
        x = 0.1 + 0.8 * torch.rand(count, size, dtype=torch.float64)
    with torch.no_grad():
        model[-1].weight *= 4
        model[-1].bias -= model(x).mean(0)  # every class is some input's
        y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % classes
    return model, x, y


def linear(size: int = 6, classes: int = 2, count: int = 16, seed: int = 0) -> Setting:
    """A linear model whose margins are known exactly, inputs and their classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(size, classes)).double().eval()
        x = 0.1 + 0.8 * torch.rand(count, size, dtype=torch.float64)
    with torch.no_grad():
        model[0].bias -= model(x).mean(0)
        return model, x, model(x).argmax(1)


def check_certifier(
    make: Maker, *, norms: Sequence[Norm] = ("linf", "l2", "l1"), setting: Setting | None = None, exact: bool = False,
    low: float | None = 0.0, high: float | None = 1.0, tolerance: float = 1e-9,
) -> dict[str, Certificate]:  # fmt: skip
    """Hold a certifier of balls to the laws and return its certificates by norm.

    Fields mean what `Certificate` says they mean; what a proof covers no attack, no random point and no corner breaks; more
    is certified of a smaller threat; on a linear model margins and radii never exceed the exact ones, and equal them where
    a proof claims to be `exact`; wrong labels, NaN and infinity are never certified; the same call repeats itself, and a
    sample comes to the same alone, in another order and in other batches; model, its mode, gradients and the global
    generator are left as they were; bad input is refused in a sentence.

    Args:
        make: what makes the certifier of a `Ball`, `CROWN` or `lambda ball: Smoothing(ball, sigma=0.25)`; a randomised one
            draws from its own seed.
        norms: those that it knows.
        setting: model, inputs and labels instead of `example()`, for a certifier of some architectures alone.
        exact: whether margins of linear models are exact.
        low, high: bounds of the inputs in the threats.
        tolerance: relative, for margins that are computed in another order or batch.

    Raises: AssertionError naming the law that is broken.
    """
    model, x, y = setting or example()
    flat, found = linear(), {}
    for norm in norms:
        small, large = (Ball(norm, eps, low, high) for eps in SIZES[norm])
        certificate = untouched(make(large), model, x, y)
        means(certificate, model, x, y)
        if certificate.guarantee == "deterministic":
            unbroken(certificate, model, x, y)
        falls(certificate, make(small)(model, x, y))
        on_linear_models(make, large, *flat, exact=exact)
        found[norm] = certificate
    small, large = (Ball(norms[0], eps, low, high) for eps in SIZES[norms[0]])
    again(make(large), found[norms[0]], model, x, y, tolerance)
    finite_only(make(small), model, x, y)
    refuses(make(small), model, x, y)
    return found


def untouched(certifier: Certifier, model: nn.Module, x: Tensor, y: Tensor) -> Certificate:
    """The certificate, when the call left everything as it was."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags, drawn = [p.requires_grad for p in model.parameters()], torch.random.get_rng_state()
    inputs, labels, grads = x.clone(), y.clone(), torch.is_grad_enabled()
    found = certifier(model, x, y)
    assert torch.equal(drawn, torch.random.get_rng_state()), "the global random generator moved"
    assert torch.is_grad_enabled() == grads, "the gradient mode changed"
    assert torch.equal(inputs, x) and torch.equal(labels, y), "inputs or labels changed"
    assert not any(module.training for module in model.modules()), "the model's mode changed"
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items()), (
        "the model's state changed"
    )
    assert [p.requires_grad for p in model.parameters()] == flags, "requires_grad changed"
    assert all(p.grad is None for p in model.parameters()), "gradients were left behind"
    return found


def means(found: Certificate, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Fields are of the right shapes and agree with each other."""
    for name in ("prediction", "certified", "radius", "margin"):
        assert getattr(found, name).shape == (len(x),), f"{name} has not one value for each input"
    assert found.certified.dtype == torch.bool, "certified is no truth value"
    assert not bool((found.certified & (found.prediction != y)).any()), "a wrong prediction is certified"
    assert bool((found.radius[found.prediction != y] == 0).all()), "a wrong prediction has a radius"
    assert bool((found.radius >= 0).all()), "a radius is negative or NaN"
    eps = torch.as_tensor(found.threat.eps).expand(len(x))
    assert bool((found.radius >= eps * (1 - 1e-6))[found.certified].all()), "a radius is smaller than what is certified"
    if found.guarantee == "estimate":
        assert not bool(found.certified.any()), "an estimate is called certified"
    if found.guarantee == "probabilistic":
        assert found.confidence is not None and 0 < found.confidence < 1, "a probability without its confidence"
    else:
        assert found.confidence is None, "a confidence where nothing is random"
    if found.guarantee == "deterministic":
        with torch.no_grad():
            assert torch.equal(found.prediction, model(x).argmax(1)), "predictions are not the model's"
        known = ~found.margin.isnan()
        assert not bool((found.certified & known & (found.margin <= 0)).any()), "certified without a margin"


@torch.no_grad()
def least_margin(model: nn.Module, ball: Ball, x: Tensor, y: Tensor, *, count: int = 100) -> Tensor:
    """The least margin (B,) that was found over points of the threat: of PGD and APGD, random ones, and corners."""
    region, rows, streams = ball.around(x), torch.arange(len(x), device=x.device), Streams(x, 0)
    points = [region.anchor, *(region.sample(streams, rows) for _ in range(count))]
    corners = [region.anchor + (z - region.anchor).sign() * 1e6 for z in points[1:]]
    points += [region.best(corner - region.anchor) for corner in corners]
    with torch.enable_grad():
        points.append(adversarial.PGD(ball, loss="margin", early=False).run(model, x, y).worst)
        points.append(adversarial.APGD(ball, loss="dlr" if int(y.max()) > 2 else "ce").run(model, x, y).worst)
    found = torch.full((len(x),), math.inf, dtype=x.dtype, device=x.device)
    for z in points:
        found = torch.minimum(found, margins(model(z), y))
    return found


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """The label's logit minus the largest other one (B,)."""
    others = logits.scatter(1, y[:, None], -math.inf).amax(1)
    return logits.gather(1, y[:, None])[:, 0] - others


def unbroken(found: Certificate, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """No point of the threat contradicts a proof."""
    truth = least_margin(model, found.threat, x, y)
    assert not bool((found.certified & (truth <= 0)).any()), "a certified input was broken"
    known = ~found.margin.isnan()
    slack = 1e-6 * (1 + truth.abs())
    assert not bool((known & (found.margin > truth + slack)).any()), "a margin lies above one that was found"
    wide = found.radius.isfinite() & (found.radius > 0)
    if bool(wide.any()):  # what it says of sizes above the one that was asked
        rows = wide.nonzero()[:, 0]
        ball = replace(found.threat, eps=found.radius[rows] * (1 - 1e-6))
        least = least_margin(model, ball, x[rows], y[rows], count=20)
        assert not bool((least <= 0).any()), "an input was broken within its radius"


def falls(less: Certificate, more: Certificate) -> None:
    """What holds in a ball holds in a smaller one."""
    assert not bool((less.certified & ~more.certified).any()), "less is certified of a smaller threat"


def on_linear_models(make: Maker, ball: Ball, model: nn.Sequential, x: Tensor, y: Tensor, *, exact: bool) -> None:
    """Radii and margins of a linear model of two classes, which are known; smoothing with symmetric noise keeps its classes.

    A randomised certifier may exceed them for as many inputs as its confidence leaves.
    """
    free = replace(ball, low=None, high=None)
    for threat in (ball, free) if exact else (free,):
        try:
            found = make(threat)(model, x, y)
        except CertifyError:  # a certifier that asks for bounds, or for layers that a linear model has not
            continue
        difference = model[0].weight[y] - model[0].weight[1 - y]
        clean = margins(model(x), y).detach()
        reach = threat.around(x).support(-difference.detach())
        dual: Any = {"linf": 1, "l2": 2, "l1": math.inf}[threat.norm]
        nearest = clean / torch.linalg.vector_norm(difference, dual, dim=1).detach()
        if found.guarantee == "estimate":
            continue
        allowed = 0 if found.guarantee == "deterministic" else math.ceil(3 * len(x) * (1 - (found.confidence or 0)))
        over = int((found.certified & (clean - reach < -1e-9)).sum())
        if threat is free:
            over = max(over, int((found.radius.isfinite() & (found.radius > nearest * (1 + 1e-5) + 1e-9)).sum()))
        assert over <= allowed, "more is certified of a linear model than is true"
        if found.guarantee == "deterministic" and not bool(found.margin.isnan().any()):
            assert bool((found.margin <= clean - reach + 1e-9).all()), "a linear model's margin is too large"
            if exact:
                assert torch.allclose(found.margin, clean - reach, atol=1e-7), "a linear model's margin is not exact"


def again(certifier: Certifier, found: Certificate, model: nn.Module, x: Tensor, y: Tensor, tolerance: float) -> None:
    """The same call, another order, every sample alone, and other batches."""
    rows = torch.arange(len(x), device=x.device)
    for order, size, law in (
        (rows, 64, "the same call gave another result"), (rows.flip(0), 64, "another order gave another result"),
        (rows[:4], 1, "a sample alone gave another result"), (rows, 5, "other batches gave another result"),
    ):  # fmt: skip
        other = certifier(model, x[order], y[order], batch_size=size)
        assert torch.equal(other.prediction, found.prediction[order]), law
        assert torch.equal(other.certified, found.certified[order]), law
        for name in ("radius", "margin"):
            ours, theirs = getattr(found, name)[order].double(), getattr(other, name).double()
            assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True), law


class Spoiled(nn.Module):
    """A model with a number added to its first logit."""

    def __init__(self, model: nn.Module, value: float):
        super().__init__()
        self.model = model
        self.register_buffer("offset", torch.zeros(1, dtype=next(model.parameters()).dtype))
        self.offset += value

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        return torch.cat([logits[:, :1] + self.offset, logits[:, 1:]], 1)


def finite_only(certifier: Certifier, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """A model with a weight or a logit that is no number is never certified: nothing is, or it is refused in a sentence."""
    for value in (math.nan, math.inf):  # -inf may be meant: a class that is switched off
        for spoiled in (Spoiled(model, value).eval(), with_weight(model, value)):
            with torch.no_grad():
                labels = spoiled(x).argmax(1)  # even where the labels are those that it gives
            try:
                found = certifier(spoiled, x, labels)
            except (CertifyError, ThreatError):
                continue
            assert not bool(found.certified.any()), f"a model with {value} is certified"
            if found.guarantee != "deterministic":
                assert not bool((found.radius > 0).any()), f"a model with {value} has a radius"


def with_weight(model: nn.Module, value: float) -> nn.Module:
    """A copy whose first weight holds this value."""
    import copy

    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).flatten()[0] = value
    return other


def refuses(certifier: Certifier, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """What no certifier can answer is said, in one sentence."""
    count = model(x[:1]).shape[1]
    wrong = {
        "no input": (model, x[:0], y[:0]), "labels of another length": (model, x, y[:-1]),
        "labels that are no whole numbers": (model, x, y.double()), "a label above the classes": (model, x, y + count),
        "a negative label": (model, x, y - count - 1), "inputs that are NaN": (model, x * math.nan, y),
        "whole numbers for inputs": (model, x.long(), y), "labels in a list": (model, x, y.tolist()),
        "inputs of another width": (model, x[..., :-1], y), "inputs of another precision": (model, x.bfloat16(), y),
        "a model that returns a tuple": (Tupled(model).eval(), x, y),
    }  # fmt: skip
    for what, call in wrong.items():
        refused(certifier, call, what)
    model.train()
    try:
        refused(certifier, (model, x, y), "a model in training mode")
    finally:
        model.eval()


class Tupled(nn.Module):
    """A model that returns its logits in a tuple."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.model(x),)


def refused(certifier: Certifier, call: tuple[nn.Module, Tensor, Any], what: str) -> None:
    try:
        certifier(*call)
    except (CertifyError, ThreatError) as error:
        text = str(error)
        assert text and "\n" not in text and "expected" in text, f"{what}: expected one sentence, got {text!r}"
        return
    raise AssertionError(f"{what} was not refused")
