"""First-order smoothing: exact on half-spaces, never beyond the truth, its bounds of the gradient hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from adversarial import Ball
from certify import CertifyError, FirstOrderSmoothing, Smoothing
from certify.randomised.first_order import SPREAD, Gradient
from certify.randomised.sampling import BLOCK
from certify.randomised.worst_case import along, kept, slab, within

QUIET = {"progress": False}


def limits(p):
    low = stats.norm.ppf(p)
    return low, stats.norm.pdf(low)


@pytest.mark.parametrize("p", [0.55, 0.8, 0.99, 0.9999])
def test_a_half_space_leaves_no_room_but_one_that_is_not_gains(p):
    low, most = limits(p)
    assert slab(p, -most) == pytest.approx(low) and slab(p, -2 * most) == pytest.approx(low)
    radii = [slab(p, share * most) for share in (-0.9, -0.5, 0.0, 0.5, 0.9)]
    assert all(a < b for a, b in zip([low, *radii], radii, strict=False))
    assert slab(p, most) == math.inf


@pytest.mark.parametrize("p, m", [(0.6, -0.2), (0.9, -0.1), (0.99, -0.01), (0.9, 0.05)])
def test_a_slab_has_the_numbers_it_was_found_from(p, m):
    """A classifier that is one on the worst slab loses its majority at this radius, so no larger one is right."""
    z = np.linspace(-12, 12, 400_001)
    density, r = stats.norm.pdf(z) * (z[1] - z[0]), slab(p, m)
    ends = np.linspace(stats.norm.ppf(p), 9, 20_001)
    first = stats.norm.ppf(np.maximum(stats.norm.cdf(ends) - p, 0))
    if m > 0:
        ends, first = -first, -ends
    best = np.abs(stats.norm.pdf(first) - stats.norm.pdf(ends) - m).argmin()
    inside = (z > first[best]) & (z < ends[best])
    assert density[inside].sum() == pytest.approx(p, abs=1e-3)
    assert (density * np.exp(r * z - r**2 / 2))[inside].sum() == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize("p, cosine", [(0.7, 0.9), (0.9, 0.7), (0.99, 0.5)])
def test_the_bound_stays_below_a_half_space_with_the_same_numbers(p, cosine):
    """The half-space at an angle to the step has this probability and gradient; nothing may be promised beyond its plane."""
    low, most = limits(p)
    m, q = -most * cosine, most * (1 - cosine**2) ** 0.5
    for r in (0.5, 1.0, 2.0):
        truth = stats.norm.cdf(low - r * cosine)
        assert kept(p, m, q, r) <= truth + 1e-9
    exact = low / cosine
    radius = within(p, most * cosine, most)
    # the multipliers of an exactly known half-space are infinite, so the solver comes part of the way
    assert low + 0.2 * (exact - low) < radius <= exact


@pytest.mark.parametrize("seed", range(8))
def test_no_classifier_with_these_numbers_does_worse(seed):
    """Random classifiers of the plane, on a grid: what they keep is at least what was promised of their numbers."""
    generator = np.random.default_rng(seed)
    side = np.linspace(-6, 6, 481)
    s, t = np.meshgrid(side, side, indexing="ij")
    weight = stats.norm.pdf(s) * stats.norm.pdf(t) * (side[1] - side[0]) ** 2
    curve = generator.normal(size=4)
    f = (s + curve[0] * t + 0.5 * curve[1] * np.sin(2 * t) + 0.3 * curve[2] * s * t < 1.0 + abs(curve[3])).astype(float)
    p, m, q = ((weight * f * g).sum() for g in (1.0, s, t))
    for r in (0.3, 0.8, 1.5):
        truth = (weight * f * np.exp(r * s - r**2 / 2)).sum()
        assert kept(p, m, abs(q), r) <= truth + 1e-4


def test_more_knowledge_never_hurts():
    for p in (0.6, 0.9, 0.99):
        low, most = limits(p)
        assert along(p, 2 * most, 0.0) == pytest.approx(low)
        some = [along(p, 0.5 * most, share * most) for share in (0.0, 0.3, 0.6)]
        assert low < some[0] <= some[1] + 2e-3 <= some[2] + 4e-3


def test_the_spread_is_enough():
    """E exp(λ (z - E z)) <= exp(SPREAD λ²/2) for the worst signs of z = ±s/2: opposite to s within some |s|, with it beyond
    (or turned round), which the Lagrangian of a fixed mean gives."""
    s = np.linspace(-12, 12, 24_001)
    weight, worst = stats.norm.pdf(s) * (s[1] - s[0]), 0.0
    for edge in np.linspace(0, 4, 41):
        z = np.abs(s) / 2 * np.where(np.abs(s) > edge, 1, -1)
        for scale in (*np.linspace(-8, -0.05, 40), *np.linspace(0.05, 8, 40)):
            grown = math.log(weight @ np.exp(scale * (z - weight @ z)))
            worst = max(worst, 2 * grown / scale**2)
    assert 0.24 < worst <= SPREAD


@pytest.mark.parametrize("d, n", [(2, 300), (30, 500)])
def test_the_gradients_bounds_hold(d, n):
    """At alpha 0.2 of 400 half-spaces' estimates; the truth is φ(b) along the normal."""
    generator, b, all_of = np.random.default_rng(0), 0.7, np.ones(d, bool)
    truth = np.zeros(d)
    truth[0] = -stats.norm.pdf(b)
    failed = dict.fromkeys(("largest", "total", "longest", "shortest"), 0)
    for _ in range(400):
        e = generator.normal(size=(n, d))
        z, half = e * ((e[:, :1] < b) - 0.5), np.arange(n) // BLOCK % 2
        found = Gradient(np.stack([z[half == k].sum(0) for k in (0, 1)]), n)
        assert found.sizes == [(half == 0).sum(), (half == 1).sum()]
        failed["largest"] += np.abs(truth).max() > found.largest(all_of, 0.2)
        failed["total"] += np.abs(truth).sum() > found.total(all_of, 0.2)
        failed["longest"] += np.linalg.norm(truth) > found.longest(all_of, 0.2)
        failed["shortest"] += np.linalg.norm(truth) < found.shortest(all_of, 0.2)
    assert all(count <= stats.binom.ppf(0.999, 400, 0.2) for count in failed.values())


class HalfSpace(nn.Module):
    """Class 1 where w·x > 0.1, else 0."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x):
        z = x.flatten(1) @ self.weight - 0.1
        return torch.stack([-z, z], 1)


@pytest.mark.parametrize("norm, dual", [("l2", 2), ("l1", math.inf), ("linf", 1)])
def test_radii_stay_within_the_plane_and_gain_for_l1(norm, dual):
    weight = torch.randn(6, generator=torch.Generator().manual_seed(0))
    model, x = HalfSpace(weight).eval(), torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    exact = model(x).abs()[:, 0] / torch.linalg.vector_norm(weight, dual)
    found = FirstOrderSmoothing(Ball(norm, 0.1), sigma=1.0, n=10_000)(model, x, y, batch_size=4096, **QUIET)
    plain = Smoothing(Ball(norm, 0.1), sigma=1.0, n=10_000, alpha=0.0009)(model, x, y, batch_size=4096, **QUIET)
    assert (found.radius <= exact).all() and (found.radius >= plain.radius).all() and (plain.radius > 0).any()
    assert torch.equal(found.prediction, plain.prediction) and found.confidence == 0.999
    assert torch.equal(found.certified, (found.prediction == y) & (found.radius >= 0.1))
    if norm == "l1":
        assert (found.radius > 1.05 * plain.radius)[plain.radius > 0].all()


def test_steps_of_frozen_features_do_not_count():
    """A plane that a mask lies along: the radius of what is free is far larger than that of the whole."""
    weight = torch.tensor([1.0, 0.2, 0.2])
    model, x = HalfSpace(weight).eval(), torch.full((1, 3), 0.9)
    mask, y = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1])
    options = {"sigma": 1.0, "n": 20_000}
    whole = FirstOrderSmoothing(Ball("l2", 0.5), **options)(model, x, y, **QUIET)
    part = FirstOrderSmoothing(Ball("l2", 0.5, mask=mask), **options)(model, x, y, **QUIET)
    exact = float(model(x)[0, 1] / weight[1:].norm())
    assert 1.2 * float(whole.radius) < float(part.radius) <= exact


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("certify.randomised.sampling.SECONDS", 0.0)
    weight, x = torch.tensor([1.0, 0.5]), torch.rand(3, 2)
    smoothing, left = FirstOrderSmoothing(Ball("l1", 0.1), sigma=1.0, n=1500), [math.inf]

    class Fragile(HalfSpace):
        def forward(self, rows):
            left[0] -= len(rows)
            if left[0] < 0:
                raise KeyboardInterrupt
            return super().forward(rows)

    model = Fragile(weight).eval()
    y = model(x).argmax(1)
    whole = smoothing(model, x, y, **QUIET)
    left[0] = 2000
    with pytest.raises(KeyboardInterrupt):
        smoothing(model, x, y, checkpoint=tmp_path, **QUIET)
    left[0] = math.inf
    assert torch.equal(smoothing(model, x, y, checkpoint=tmp_path, **QUIET).radius, whole.radius)


def test_what_has_no_first_order_is_said():
    with pytest.raises(CertifyError, match="norm l2, l1 or linf for the gradient's rules, got l0"):
        FirstOrderSmoothing(Ball("l0", 2))
    with pytest.raises(CertifyError, match="share of alpha between 0 and 1"):
        FirstOrderSmoothing(Ball("l2", 0.1), share=0.0)
    with pytest.raises(CertifyError, match="more than 64 draws"):
        FirstOrderSmoothing(Ball("l2", 0.1), n=64)
    with pytest.raises(CertifyError, match="at least 11 draws"):
        FirstOrderSmoothing(Ball("l2", 0.1), n=10)
