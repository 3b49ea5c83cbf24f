"""Smoothing: exact where the answer is known, never too sure, the same alone and in a batch, stopped and resumed."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from adversarial import Ball, Spatial, lift
from certify import CertifyError, Smoothing
from certify.randomised.noise import NOISES
from certify.randomised.sampling import BLOCK, Sampler
from certify.randomised.sequential import draws_for, looks_of, lower_bound, upper_bound

QUIET = {"progress": False}


class HalfSpace(nn.Module):
    """Class 1 where w·x > b, else 0; counts the rows it is asked about."""

    def __init__(self, weight, bias):
        super().__init__()
        self.register_buffer("weight", torch.as_tensor(weight, dtype=torch.float32))
        self.bias, self.rows = bias, 0

    def forward(self, x):
        self.rows += len(x)
        z = x.flatten(1) @ self.weight - self.bias
        return torch.stack([-z, z], 1)


def halfspace(d=4, seed=0):
    return HalfSpace(torch.randn(d, generator=torch.Generator().manual_seed(seed)), 0.1).eval()


def points(count=30, d=4, seed=1):
    return torch.rand(count, d, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 400), st.floats(0.0005, 0.2), st.data())
def test_the_bound_is_the_exact_one(n, alpha, data):
    hits = data.draw(st.integers(0, n))
    interval = stats.binomtest(hits, n, alternative="greater").proportion_ci(1 - alpha, method="exact")
    lower = float(lower_bound(np.array(hits), n, alpha))
    assert lower == pytest.approx(interval.low, abs=1e-9)
    if hits:
        assert stats.binom.sf(hits - 1, n, lower) == pytest.approx(alpha, rel=1e-5)
    assert float(upper_bound(np.array(hits), n, alpha)) == pytest.approx(
        stats.binomtest(hits, n, alternative="less").proportion_ci(1 - alpha, method="exact").high, abs=1e-9
    )


@pytest.mark.parametrize("n", [40, 64, 100, 1000, 10_000])
def test_looks_together_spend_alpha(n):
    looks = looks_of(n, 0.01)
    assert sum(looks.values()) == pytest.approx(0.01) and list(looks)[-1] == n
    assert all(count % BLOCK == 0 for count in list(looks)[:-1])


def chance_of_claim(p, threshold, n, alpha):
    """How probable it is that some look's lower bound lies above the threshold: exact, by carrying the law of the counts."""
    law, before, claimed = np.ones(1), 0, 0.0
    for count, share in looks_of(n, alpha).items():
        law = np.convolve(law, stats.binom.pmf(np.arange(count - before + 1), count - before, p))
        above = lower_bound(np.arange(count + 1), count, share) > threshold
        claimed, law, before = claimed + law[above].sum(), np.where(above, 0, law), count
    return claimed


@pytest.mark.parametrize("p", [0.5, 0.7, 0.84, 0.99])
def test_stopping_early_keeps_the_failure_rate(p):
    assert chance_of_claim(p, p, 1000, 0.05) <= 0.05
    assert p > 0.9 or chance_of_claim(p + 0.5 * (1 - p), p, 1000, 0.05) > 0.95  # and finds what is there


@pytest.mark.parametrize("noise, norm", [("gaussian", "l2"), ("laplace", "l1"), ("uniform", "l1")])
@pytest.mark.parametrize("distance", [0.01, 0.1, 0.5, 0.8])
def test_a_half_space_along_an_axis_has_its_exact_distance(noise, norm, distance):
    law = {
        "gaussian": stats.norm(),
        "laplace": stats.laplace(scale=0.5**0.5),
        "uniform": stats.uniform(-(3**0.5), 12**0.5),
    }
    assert law[noise].std() == pytest.approx(1)
    radius = NOISES[noise].radius[norm](np.array(law[noise].cdf(distance)), np.array(9))
    assert radius == pytest.approx(distance, rel=1e-9)


def test_two_cubes_share_what_the_linf_radius_says():
    p, d = 0.9, 5
    r = NOISES["uniform"].radius["linf"](np.array(p), np.array(d))
    assert (1 - r / 12**0.5) ** d == pytest.approx(1.5 - p)  # moved by r in each of d features; p - (1 - that) = 1/2


@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_what_it_says(noise):
    drawn = NOISES[noise].draw(torch.empty(200_000), torch.Generator().manual_seed(0)).double().numpy()
    law = {
        "gaussian": stats.norm(),
        "laplace": stats.laplace(scale=0.5**0.5),
        "uniform": stats.uniform(-(3**0.5), 12**0.5),
    }
    assert stats.kstest(drawn, law[noise].cdf).pvalue > 1e-3
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.01


def test_the_same_counts_have_the_published_radius():
    model, x = halfspace(), points()
    y = model(x).argmax(1)
    found = Smoothing(Ball("l2", 0.1), sigma=0.3, n=1000, seed=5)(model, x, y, **QUIET)
    sampler = Sampler(model, x, Smoothing(Ball("l2", 0.1), sigma=0.3, seed=5), 64)
    for row in range(len(x)):
        noise = torch.cat([sampler.draw([row], number)[0] for number in range(2 + math.ceil(1000 / BLOCK))]) * 0.3
        first, second = noise[:100], noise[2 * BLOCK :][:1000]
        guess = int(torch.bincount(model(x[row] + first).argmax(1), minlength=2).argmax())
        k = int((model(x[row] + second).argmax(1) == guess).sum())
        p = stats.beta.ppf(0.001, k, 1000 - k + 1)
        expected = 0.3 * stats.norm.ppf(p) if p > 0.5 and guess == y[row] else 0.0
        assert float(found.radius[row]) == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert float(found.radius[row]) <= expected
        assert int(found.prediction[row]) == (guess if p > 0.5 else -1)
    assert torch.equal(found.certified, found.radius >= 0.1) and found.margin.isnan().all()
    assert (found.guarantee, found.confidence, found.method) == ("probabilistic", 0.999, "Smoothing")
    assert (found.prediction == -1).any() and found.certified.any()


@pytest.mark.parametrize("noise, norm", [("gaussian", "l2"), ("gaussian", "l1"), ("gaussian", "linf"), ("laplace", "l1"), ("uniform", "l1"), ("uniform", "linf")])  # fmt: skip
@pytest.mark.parametrize("until", ["radius", "threat"])
def test_no_radius_beyond_the_distance_to_the_plane(noise, norm, until):
    """At alpha 0.05 fewer than 5 % of 400 inputs, seen with 4 seeds, may have a radius that is too large."""
    model, x = halfspace(), points(100)
    y, dual = model(x).argmax(1), {"l2": 2, "l1": math.inf, "linf": 1}[norm]
    with torch.no_grad():
        exact = model(x).abs()[:, 0] / torch.linalg.vector_norm(model.weight, dual)
    wrong = claims = 0
    for seed in range(4):
        options = {"sigma": 0.5, "n": 300, "alpha": 0.05, "noise": noise, "until": until, "seed": seed}
        found = Smoothing(Ball(norm, 0.05), **options)(model, x, y, **QUIET)
        wrong += int((found.radius > exact).sum())
        claims += int((found.radius > 0).sum())
    assert wrong <= stats.binom.ppf(0.999, 400, 0.05) and claims > 100


def test_the_threat_is_decided_with_fewer_draws():
    model, x = halfspace(), points(60)
    y = model(x).argmax(1)
    whole = Smoothing(Ball("l2", 0.1), n=10_000)(model, x, y, **QUIET)
    model.rows = 0
    soon = Smoothing(Ball("l2", 0.1), n=10_000, until="threat")(model, x, y, **QUIET)
    assert model.rows < 0.3 * 60 * 10_000
    assert (whole.certified == soon.certified).float().mean() > 0.95
    assert (soon.radius[soon.certified] >= 0.1).all()


def test_what_is_hopeless_or_wrong_costs_little():
    model, x = HalfSpace(torch.tensor([1.0, 0.0]), 0.5).eval(), torch.full((2, 2), 0.5)
    x[1, 0] = 0.9
    wrong = torch.tensor([0, 0])  # the first is on the plane, the second of class 1
    found = Smoothing(Ball("l2", 0.1), n=100_000)(model, x[1:], wrong[1:], **QUIET)
    assert model.rows < 1000 and found.prediction.tolist() == [1] and found.radius.tolist() == [0.0]
    assert not found.certified.any()
    far = Smoothing(Ball("l2", 0.1), n=20_000, sigma=10.0)
    model.rows = 0
    three = nn.Sequential(model, nn.Linear(2, 3)).eval()
    with torch.no_grad():  # no class has half: two of them share a side
        three[1].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
        three[1].bias.copy_(torch.tensor([0.0, 0.0, 5.0]))
    found = far(three, x[1:], torch.tensor([2]), **QUIET)
    assert found.prediction.tolist() == [-1] and model.rows < 20_000


def test_a_sample_does_not_depend_on_its_batch():
    model, x = halfspace(), points(7)
    y = model(x).argmax(1)
    for until in ("radius", "threat"):
        smoothing = Smoothing(Ball("l2", torch.linspace(0.05, 0.3, 7)), n=500, until=until)
        whole = smoothing(model, x, y, **QUIET)
        for size in (1, 50, 1000):
            assert torch.equal(smoothing(model, x, y, batch_size=size, **QUIET).radius, whole.radius)
        for row in range(7):
            one = Smoothing(Ball("l2", float(torch.linspace(0.05, 0.3, 7)[row])), n=500, until=until)
            alone = one(model, x[row : row + 1], y[row : row + 1], **QUIET)
            assert alone.radius == whole.radius[row] and alone.certified == whole.certified[row]


class Fragile(nn.Module):
    """A model that breaks down after so many rows."""

    def __init__(self, model):
        super().__init__()
        self.model, self.left, self.rows = model, math.inf, 0

    def forward(self, x):
        self.left -= len(x)
        self.rows += len(x)
        if self.left < 0:
            raise KeyboardInterrupt
        return self.model(x)


@pytest.mark.parametrize("until", ["radius", "threat"])
def test_a_stopped_run_goes_on(tmp_path, monkeypatch, until):
    monkeypatch.setattr("certify.randomised.sampling.SECONDS", 0.0)
    model, x = Fragile(halfspace()).eval(), points(9)
    y = model(x).argmax(1)
    smoothing = Smoothing(Ball("l2", 0.2), n=3000, until=until)
    model.rows = 0
    whole, cost = smoothing(model, x, y, **QUIET), model.rows
    model.left = cost // 2
    with pytest.raises(KeyboardInterrupt):
        smoothing(model, x, y, checkpoint=tmp_path / "run", **QUIET)
    model.left, model.rows = math.inf, 0
    rest = smoothing(model, x, y, checkpoint=tmp_path / "run", **QUIET)
    assert torch.equal(rest.radius, whole.radius) and torch.equal(rest.prediction, whole.prediction)
    assert model.rows < 0.7 * cost
    model.rows = 0
    assert torch.equal(smoothing(model, x, y, checkpoint=tmp_path / "run", **QUIET).radius, whole.radius)
    assert model.rows <= 1  # nothing is left to do
    with pytest.raises(CertifyError, match="choose another folder"):
        smoothing(model, x, 1 - y, checkpoint=tmp_path / "run", **QUIET)
    (tmp_path / "run" / "smoothing.safetensors").write_bytes(b"half")
    with pytest.raises(CertifyError, match="a damaged file; delete it"):
        smoothing(model, x, y, checkpoint=tmp_path / "run", **QUIET)


def test_only_free_features_count_for_linf():
    model, x = halfspace(), points(12)
    y, mask = model(x).argmax(1), torch.tensor([1.0, 1.0, 0.0, 0.0])
    l2 = Smoothing(Ball("l2", 0.1), n=500)(model, x, y, **QUIET)
    for ball, d in ((Ball("linf", 0.1), 4), (Ball("linf", 0.1, mask=mask), 2)):
        assert torch.allclose(Smoothing(ball, n=500)(model, x, y, **QUIET).radius, l2.radius / d**0.5, atol=1e-6)
    endless = Smoothing(Ball("l2", math.inf), n=500)(model, x, y, **QUIET)
    assert torch.equal(endless.radius, l2.radius) and not endless.certified.any()


def test_what_is_not_finite_certifies_nothing():
    class Broken(HalfSpace):
        def forward(self, x):
            out = super().forward(x)
            return torch.where(x[:, :1] > 0.5, math.nan, out)

    x = torch.full((1, 2), 0.5)
    model = Broken(torch.tensor([0.0, 1.0]), -5.0).eval()
    assert Smoothing(Ball("l2", 0.1), n=300)(model, x, torch.tensor([1]), **QUIET).prediction.tolist() == [-1]
    assert Smoothing(Ball("l2", 0.1), n=300).predict(model, x + 5).tolist() == [-1]


def test_half_precision_inputs_get_noise_of_full_precision():
    seen = []

    class Half(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.float()[:, :2]

    x = torch.tensor([[0.25, 0.5]], dtype=torch.bfloat16)
    found = Smoothing(Ball("l2", 0.1), n=300)(Half().eval(), x, torch.tensor([1]), **QUIET)
    assert all(one.dtype == torch.bfloat16 for one in seen)
    exact = Smoothing(Ball("l2", 0.1), n=300)(Half().eval(), x.float(), torch.tensor([1]), **QUIET)
    assert found.radius.dtype == torch.float32
    assert torch.allclose(found.radius, exact.radius, atol=0.02) and float(found.radius) > 0


def test_predict_is_the_binomial_test():
    model, x = halfspace(), points(40)
    smoothing = Smoothing(Ball("l2", 0.1), n=200, alpha=0.01, sigma=1.0)
    found = smoothing.predict(model, x)
    counts = Sampler(model, x, smoothing, 128).counts(torch.arange(40), 200)
    for row, (zero, one) in enumerate(counts.tolist()):
        sure = stats.binomtest(max(zero, one), zero + one, 0.5).pvalue <= 0.01
        assert int(found[row]) == (int(one > zero) if sure else -1)
    assert (found == -1).any() and (found != -1).any()


def test_nothing_else_moves():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(8, 3)).eval()
    x = torch.rand(6, 1, 4, 4)
    before, drawn = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    y, options = model(x).argmax(1), {"n": 100, "sigma": 0.05}
    first = Smoothing(Ball("l2", 0.1), **options)(model, x, y, **QUIET)
    assert torch.equal(drawn, torch.get_rng_state()) and not model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(first.radius, Smoothing(Ball("l2", 0.1), **options)(model, x, y, **QUIET).radius)


def test_seeds_differ_and_inputs_have_draws_of_their_own():
    x = points()
    one, other = (Sampler(halfspace(), x, Smoothing(Ball("l2", 0.1), seed=seed), 64).draw([0, 1], 3) for seed in (0, 1))
    assert not torch.equal(one, other) and not torch.equal(one[0], one[1])


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-6, 0.3), st.floats(0.05, 0.99))
def test_one_draw_fewer_would_not_do(alpha, p):
    n = draws_for(p, alpha)
    assert float(lower_bound(np.array(n), n, alpha)) > p * (1 - 1e-9)
    assert n == 1 or float(lower_bound(np.array(n - 1), n - 1, alpha)) <= p * (1 + 1e-9)


def test_what_cannot_be_smoothed_is_said_in_one_sentence():
    model, x, y, ball = halfspace(), points(3), torch.tensor([0, 1, 1]), Ball("l2", 0.1)
    with pytest.raises(CertifyError, match=r"at least 10 draws for an alpha of 0\.001, got 9"):
        Smoothing(ball, n=9)
    for sigma in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(CertifyError, match="sigma above 0"):
            Smoothing(ball, sigma=sigma)
    with pytest.raises(CertifyError, match="alpha between 0 and 1/2"):
        Smoothing(ball, alpha=0.5)
    with pytest.raises(CertifyError, match="at least one draw to guess"):
        Smoothing(ball, n0=0)
    with pytest.raises(CertifyError, match=r"norm that the noise has a rule for .*got l2 for laplace"):
        Smoothing(ball, noise="laplace")
    with pytest.raises(CertifyError, match="got l0 for gaussian"):
        Smoothing(Ball("l0", 2))
    with pytest.raises(CertifyError, match="got None for gaussian"):
        Smoothing(lift(Spatial()))
    with pytest.raises(CertifyError, match="noise among gaussian, laplace, uniform"):
        Smoothing(ball, noise="cauchy")
    with pytest.raises(CertifyError, match="precision None, 'bfloat16' or 'float16'"):
        Smoothing(ball, precision="int8")
    with pytest.raises(CertifyError, match="until 'radius' or 'threat'"):
        Smoothing(ball, until="eps")
    with pytest.raises(CertifyError, match=r"at most 0\.6072, got 2; take a larger n or sigma"):
        Smoothing(Ball("l2", 2.0), n=1000, until="threat")(model, x, y, **QUIET)
    with pytest.raises(CertifyError, match="in evaluation mode"):
        Smoothing(ball)(nn.Sequential(halfspace(), nn.Dropout()).train(), x, y, **QUIET)
    with pytest.raises(CertifyError, match="in evaluation mode"):
        Smoothing(ball).predict(nn.Sequential(halfspace(), nn.Dropout()).train(), x)
    with pytest.raises(CertifyError, match="labels from 0 to 1, got 4 in row 2"):
        Smoothing(ball)(model, x, torch.tensor([0, 1, 4]), **QUIET)
    with pytest.raises(CertifyError, match="at least one input"):
        Smoothing(ball)(model, x[:0], y[:0], **QUIET)
    with pytest.raises(CertifyError, match="two classes or more"):
        Smoothing(ball)(nn.Linear(4, 1).eval(), x, y, **QUIET)


SCRIPT = """
import sys
import torch
from torch import nn
from adversarial import Ball
from certify import Smoothing
from reprogram.train import default_accelerator

accelerator = default_accelerator()
torch.manual_seed(0)
model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.rand(7, 4)
y = model(x).argmax(1)
options = {"accelerator": accelerator, "progress": False}
found = Smoothing(Ball("l2", 0.1), n=1000)(model, x, y, checkpoint=sys.argv[1] + "/kept", **options)
torch.save([found.radius, found.prediction, found.certified], f"{sys.argv[1]}/{accelerator.process_index}.pt")
assert accelerator.num_processes == int(sys.argv[2])
"""


@pytest.mark.slow
def test_two_processes_find_the_same_as_one(tmp_path):
    (tmp_path / "run.py").write_text(SCRIPT)
    found = []
    for count in (1, 2):
        out = tmp_path / str(count)
        out.mkdir()
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        command = [*start, str(tmp_path / "run.py"), str(out), str(count)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        found += [torch.load(out / f"{rank}.pt") for rank in range(count)]
    assert sorted(path.name for path in (tmp_path / "2" / "kept").iterdir()) == ["0-of-2", "1-of-2"]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
