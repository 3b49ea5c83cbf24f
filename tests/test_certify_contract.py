"""Every certifier keeps to the contract, and the contract notices who does not."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

import certify
from adversarial import Ball
from adversarial.marks import mark_of
from certify.contract import check_certifier, example, least_margin, linear, margins
from certify.engine.graph import Graph
from certify.engine.tracing import trace

L2 = {"norms": ("l2",)}
REGISTRY = {  # a certifier's maker and what it claims; a new one is one line
    "IBP": (certify.IBP, {"exact": True}),
    "CROWN-IBP": (partial(certify.CROWN, intermediate="ibp"), {"exact": True}),
    "CROWN": (certify.CROWN, {"exact": True}),
    "SDPCROWN": (certify.SDPCROWN, {"exact": True}),
    "AlphaCROWN": (
        certify.AlphaCROWN,
        {"exact": True, "tolerance": 0.05},
    ),  # Adam makes steps of rounding in flat places
    "AlphaCROWN, full": (partial(certify.AlphaCROWN, slopes="full"), {"exact": True, "tolerance": 0.05}),
    "Cascade": (partial(certify.Cascade, seconds=1.0), {"exact": True, "tolerance": math.inf}),  # it stops by the clock
    "WongKolter": (certify.WongKolter, {"exact": True}),
    "Lipschitz, product": (certify.Lipschitz, {}),
    "Lipschitz, SDP": (partial(certify.Lipschitz, method="lipsdp-neuron"), L2),
    "Smoothing": (partial(certify.Smoothing, sigma=0.1, n=2000), {"norms": ("l2", "linf")}),
    "Smoothing, uniform": (partial(certify.Smoothing, sigma=0.1, n=2000, noise="uniform"), {"norms": ("l1",)}),
    "CLEVER": (partial(certify.CLEVER, batches=5, samples=10, targets="runner-up"), L2),
}


LONG = {"CLEVER", "Lipschitz, SDP"}
KNOWN = {}


@pytest.fixture(autouse=True)
def traced_once(monkeypatch):
    """Equal models are exported once for all calls: the export is not what is tested here."""

    def cached(model, x):
        if isinstance(model, Graph) or model.training or not x.is_floating_point():
            return trace(model, x)
        key = repr(model), mark_of(model), x.shape[1:]
        return KNOWN.setdefault(key, None) or KNOWN.update({key: trace(model, x)}) or KNOWN[key]

    for name, module in list(sys.modules.items()):
        if name.startswith("certify.") and name != "certify.engine.tracing" and getattr(module, "trace", None) is trace:
            monkeypatch.setattr(module, "trace", cached)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in REGISTRY])
def test_a_certifier_keeps_to_the_contract(name):
    make, claims = REGISTRY[name]
    found = check_certifier(make, **claims).values()
    assert any(certificate.guarantee == "estimate" or certificate.certified.any() for certificate in found)


@dataclass(frozen=True)
class Liar:
    """Intervals, changed in one way."""

    threat: Ball
    lie: str

    def __call__(self, model, x, y, *, batch_size=64):
        if self.lie == "weights":
            with torch.no_grad():
                model[0].weight += 1e-3
        if self.lie == "generator":
            torch.rand(1)
        if self.lie == "whole numbers":
            x = x.to(torch.float64)
        if self.lie == "NaN":
            model = example()[0]
        found = certify.IBP(self.threat)(model.eval() if self.lie == "training" else model, x, y, batch_size=batch_size)
        if self.lie == "mode":
            model.train()
        right, eps = found.prediction == y, self.threat.eps
        if self.lie == "everything":
            return replace(found, certified=right, radius=torch.where(right, eps, 0.0), margin=found.margin * torch.nan)
        if self.lie == "labels":
            return replace(found, certified=torch.ones_like(right), radius=torch.full_like(found.radius, eps))
        if self.lie == "wrong radius":
            return replace(found, radius=torch.full_like(found.radius, eps))
        if self.lie == "estimate":
            return replace(found, guarantee="estimate")
        if self.lie == "confidence":
            return replace(found, guarantee="probabilistic")
        if self.lie == "margin":
            return replace(found, margin=found.margin.abs() + 1e3)
        if self.lie == "radius":
            return replace(found, radius=found.radius * 100)
        if self.lie == "order":
            return replace(found, radius=found.radius + found.certified * torch.arange(len(x)) * 1e-6)
        if self.lie == "drawn radius":  # honest about its kind, too large for a linear model
            return replace(found, guarantee="probabilistic", confidence=0.999, radius=found.radius * 100)
        return found


@pytest.mark.parametrize(
    ("lie", "law"),
    [("weights", "the model's state"), ("mode", "the model's mode"), ("generator", "random generator moved"),
     ("everything", "was broken"), ("labels", "a wrong prediction is certified"), ("wrong radius", "a wrong prediction has"),
     ("estimate", "an estimate is called certified"), ("confidence", "without its confidence"),
     ("margin", "lies above one that was found"), ("radius", "within its radius"), ("order", "another order"),
     ("drawn radius", "more is certified of a linear model"), ("NaN", "is certified"), ("whole numbers", "was not refused"),
     ("training", "was not refused")],
)  # fmt: skip
def test_the_contract_notices_who_does_not(lie, law):
    setting = steep() if lie == "everything" else example()
    with pytest.raises(AssertionError, match=law):
        check_certifier(lambda ball: Liar(ball, lie), norms=("linf",), setting=setting)


def steep():
    """The example with a first layer that makes much of little."""
    model, x, _ = example()
    with torch.no_grad():
        model[0].weight *= 30
    return model, x, model(x).argmax(1)


def test_exactness_is_asked_of_who_claims_it():
    def loose(ball):
        def call(model, x, y, *, batch_size=64):
            found = certify.CROWN(ball)(model, x, y, batch_size=batch_size)
            return replace(found, margin=found.margin - 0.01 * found.margin.abs())

        return call

    check_certifier(loose, norms=("l2",))
    with pytest.raises(AssertionError, match="not exact"):
        check_certifier(loose, norms=("l2",), exact=True)


def test_the_least_margin_of_a_linear_model_is_found():
    model, x, y = linear()
    difference = (model[0].weight[1 - y] - model[0].weight[y]).detach()
    for norm, eps in (("linf", 0.05), ("l2", 0.1), ("l1", 0.2)):
        ball = Ball(norm, eps)
        exact = margins(model(x), y).detach() - ball.around(x).support(difference)
        found = least_margin(model, ball, x, y)
        assert (found >= exact - 1e-9).all() and torch.allclose(found, exact, atol=2e-3)
