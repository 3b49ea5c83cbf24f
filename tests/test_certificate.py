"""What a certificate says: its curve, its words, its files, and several certifiers beside attacks."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from scipy.stats import binomtest
from torch import nn

import certify
from adversarial import FGSM, PGD, Ball
from certify import CROWN, IBP, Certificate, CertifyError
from certify.evaluate import narrowed

NAN, INF = math.nan, math.inf


def certificate(guarantee="deterministic", confidence=None, threat=None, **changes):
    certified = (
        torch.tensor([True, True, False, False]) if guarantee != "estimate" else torch.zeros(4, dtype=torch.bool)
    )
    rows = {"radius": torch.tensor([0.3, 0.2, 0.1, 0.0]), "margin": torch.tensor([1.5, NAN, -INF, INF])}
    about = {"threat": threat or Ball("l2", 0.2), "method": "Some", "guarantee": guarantee, "confidence": confidence}
    return Certificate(**{"prediction": torch.tensor([0, 1, 2, -1]), "certified": certified} | rows | about | changes)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval().requires_grad_(False)
    x = torch.rand(40, 6)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    return model, x, y


def test_a_curve_counts_radii_and_falls():
    shares = certificate().curve((0.3, 0.0, 0.1, 0.25))
    assert [(s.eps, s.accuracy) for s in shares] == [(0.0, 0.75), (pytest.approx(0.1), 0.75), (0.25, 0.25), (0.3, 0.25)]
    low, high = binomtest(3, 4).proportion_ci(method="wilson")
    assert (shares[0].low, shares[0].high, shares[0].n) == (low, high, 4)
    assert certificate(radius=torch.tensor([NAN, 0.0, INF, 1.0])).accuracy_at(2.0).accuracy == 0.25
    assert certificate().plot().get_ylabel() == "certified accuracy"
    guess = certificate("estimate").plot((0.0, 0.1))
    assert guess.get_ylabel() == "estimated accuracy" and "no proof" in guess.get_legend().get_texts()[0].get_text()


def test_the_sentence_says_how_sure_it_is():
    proof = certificate().summary()
    assert "Some proves for 2 of 4 inputs (50.0%" in proof and "within l2 eps 0.2" in proof and "certainty" in proof
    drawn = certificate("probabilistic", 0.999).summary()
    assert "probability 0.999" in drawn and "randomised classifier" in drawn and "abstains for 1" in drawn
    guess = certificate("estimate", threat=Ball("l2", 0.15))
    assert "estimates for 2 of 4" in guess.summary() and "no guarantee" in guess.summary()
    assert "certif" not in guess.summary() and "certified_accuracy" not in guess.to_dict()
    assert "eps 0.1 to 0.4" in certificate(threat=Ball("l1", torch.tensor([0.1, 0.2, 0.3, 0.4]))).summary()


@pytest.mark.parametrize("mask", [None, torch.rand(4, 600) > 0.5])
def test_a_certificate_is_read_as_it_was_written(tmp_path, mask):
    ball = Ball("linf", torch.tensor([0.1, 0.2, 0.3, 0.4]), low=None, high=INF, mask=mask)
    whole = certificate("probabilistic", 0.99, ball, radius=torch.tensor([0.1, 1 / 3, INF, 0.0], dtype=torch.float64))
    whole.to_json(tmp_path / "c.json")
    json.loads((tmp_path / "c.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    read = Certificate.from_json(tmp_path / "c.json")
    for name in ("prediction", "certified", "radius", "margin"):
        ours, theirs = getattr(whole, name), getattr(read, name)
        assert ours.dtype == theirs.dtype and torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0))
    assert (read.method, read.guarantee, read.confidence) == ("Some", "probabilistic", 0.99)
    assert torch.equal(read.threat.eps, ball.eps) and (read.threat.low, read.threat.high) == (None, INF)
    assert mask is None or torch.equal(read.threat.mask, mask)
    assert read.summary() == whole.summary()
    with pytest.raises(CertifyError, match="the values of a certificate"):
        Certificate.from_dict({"method": "x"})


def test_what_is_certified_lies_below_what_attacks_leave(small, tmp_path):
    model, x, y = small
    makers = {"IBP": IBP, "CROWN": CROWN}
    eps = (0.0, 0.01, 0.05, 0.2)
    found = certify.evaluate(model, x, y, makers, threat=Ball("linf", 1.0), eps=eps, progress=False)
    attacked = [point.accuracy for point in found.attacked.curve()]
    for name in makers:
        shares = [point.accuracy for point in found.curve(name)]
        assert shares == sorted(shares, reverse=True) and shares[0] == pytest.approx(39 / 40)
        assert all(share <= bound for share, bound in zip(shares, attacked, strict=True))
        for size, point in zip(eps, found.curve(name), strict=True):
            direct = makers[name](Ball("linf", size))(model, x, y).certified if size else model(x).argmax(1) == y
            assert point.held == tuple(direct.tolist())
    assert found.contradictions() == [] and "no proof stands against an example" in found.to_markdown()
    found.to_json(tmp_path / "all.json")
    assert certify.CertifiedRobustness.from_json(tmp_path / "all.json") == found
    ax = found.plot()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["under attack", "IBP", "CROWN"]
    with pytest.raises(ValueError, match="a certifier among IBP, CROWN"):
        found.curve("DeepZ")


@dataclass(frozen=True)
class Read:
    """A stand-in for certifiers that give a radius: the distance from zero in the first feature."""

    threat: Ball
    guarantee: str = "probabilistic"

    def __call__(self, model, x, y, *, batch_size=64):
        prediction = model(x).argmax(1)
        radius = torch.where(prediction == y, x[:, 0] / 10, 0.0)
        certified = (radius >= self.threat.eps) & (self.guarantee != "estimate")
        margin = torch.full_like(radius, NAN)
        return Certificate(prediction, certified, radius, margin, self.threat, "Read", self.guarantee, 0.99)


@pytest.mark.parametrize(
    ("guarantee", "name"), [("probabilistic", "confidence 0.99"), ("estimate", "an estimate, no proof")]
)
def test_radii_are_read_off_one_run(small, tmp_path, guarantee, name):
    model, x, y = small
    asked = []

    def make(ball):
        asked.append(ball.eps)
        return Read(ball, guarantee)

    ball, eps = Ball("l2", 1.0), (0.0, 0.02, 0.05)
    found = certify.evaluate(model, x, y, {"R": make}, threat=ball, eps=eps, attacks={}, progress=False)
    right = model(x).argmax(1) == y
    expected = [right, right & (x[:, 0] >= 0.2), right & (x[:, 0] >= 0.5)]
    assert [p.held for p in found.curve("R")] == [tuple(rows.tolist()) for rows in expected]
    assert asked == [0.05, 0.05]  # for the mark, and once in earnest
    assert name in found.to_markdown() and found.attacked is None and found.contradictions() == []
    found.to_json(tmp_path / "points.json")
    if guarantee == "estimate":  # which is called certified nowhere
        assert "certified" not in found.to_markdown() + (tmp_path / "points.json").read_text()
    mixed = certify.evaluate(model, x, y, {"R": make, "C": CROWN}, threat=ball, eps=eps, attacks={}, progress=False)
    assert (
        mixed.plot().get_ylabel().startswith("certified or estimated" if guarantee == "estimate" else "certified acc")
    )


def test_a_wrong_proof_is_told(small):
    model, x, y = small
    found = certify.evaluate(
        model, x, y, {"liar": partial(Read, guarantee="deterministic")}, threat=Ball("l2", 1.0), eps=(0.05, 0.099),
        attacks={"PGD": PGD}, progress=False,
    )  # fmt: skip
    lies = tuple(replace(p, held=(True,) * len(x)) for p in found.points)
    wrong = replace(found, points=lies)
    assert len(wrong.contradictions()) >= 1 and "WRONG" in wrong.to_markdown()


def test_a_stopped_evaluation_goes_on(small, tmp_path):
    model, x, y = small
    asked, out = [], tmp_path / "c.json"

    class Counted(CROWN):
        def __call__(self, *args, **options):
            asked.append(self.threat.eps)
            if len(asked) == 2:
                raise KeyboardInterrupt
            return super().__call__(*args, **options)

    run = partial(
        certify.evaluate, model, x, y, {"C": Counted}, threat=Ball("linf", 1.0), eps=(0.01, 0.05), attacks={"f": FGSM},
        progress=False,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        run(out=out)
    found = run(out=out)
    assert asked == [0.05, 0.01, 0.01]
    assert [p.held for p in found.points] == [p.held for p in run().points]
    again = run(out=out)
    assert again == found and len(asked) == 5
    with pytest.raises(ValueError, match="another model, data"):
        certify.evaluate(model, x[:9], y[:9], {"C": CROWN}, threat=Ball("linf", 1.0), eps=(0.1,), out=out)


def test_bounds_of_some_rows(small):
    model, x, y = small
    mask = torch.ones_like(x)
    mask[:, 3:] = 0
    ball = Ball("linf", 1.0, low=x - 0.1, high=None, mask=mask)
    found = certify.evaluate(model, x, y, {"C": CROWN}, threat=ball, eps=(0.02, 0.08), attacks={}, progress=False)
    for point in found.points:
        assert point.held == tuple(CROWN(replace(ball, eps=point.eps))(model, x, y).certified.tolist())
    some = narrowed(replace(ball, eps=torch.arange(1.0, 41.0)), torch.tensor([3, 1]), x)
    assert some.eps.tolist() == [4.0, 2.0] and torch.equal(some.low, (x - 0.1)[[3, 1]])
    arrays = replace(ball, eps=list(range(1, 41)), low=(x - 0.1).numpy(), mask=mask.numpy())
    same = narrowed(arrays, torch.tensor([3, 1]), x)
    assert same.eps.tolist() == [4, 2] and torch.equal(same.low, some.low) and same.mask.shape == some.mask.shape


def test_what_does_not_fit(small, tmp_path):
    model, x, y = small
    ball = Ball("linf", 0.1)
    for makers, eps in (({}, (0.1,)), ({"C": CROWN}, ()), ({"C": CROWN}, (-0.1, 0.1)), ({"C": CROWN}, (0.0,))):
        with pytest.raises(CertifyError, match="sizes of 0 or more with one above"):
            certify.evaluate(model, x, y, makers, threat=ball, eps=eps)
    with pytest.raises(CertifyError, match="at least one input"):
        certify.evaluate(model, x[:0], y[:0], {"C": CROWN}, threat=ball, eps=(0.1,))
    with pytest.raises(CertifyError, match=r"a stopped evaluation in .*, got something else"):
        (tmp_path / "points.json").write_text('{"norm": 1')
        certify.evaluate(model, x, y, {"C": CROWN}, threat=ball, eps=(0.1,), out=tmp_path / "points.json")
