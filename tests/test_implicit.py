"""Implicit networks: contractions by construction, their one fixed point, its gradient, and bounds that hold."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from adversarial.attacks.gradient import PGD
from adversarial.threat import Ball
from certify import NEMON, CertifyError, ImplicitLipschitz, MixedMonotone, radius_of
from certify.lipschitz.implicit import box, contraction, lipschitz

NORMS = {"linf": 0.05, "l2": 0.1, "l1": 0.3}


def wild(seed, *, m=0.5, inputs=5, width=12, classes=3, tol=1e-9, spread=0.7):
    """A network whose parameters are anything."""
    torch.manual_seed(seed)
    model = NEMON(inputs, width, classes, m=m, tol=tol).double()
    with torch.no_grad():
        for parameter in (model.mixing, model.log_weights, model.damping):
            parameter.normal_(0, spread)
    return model.eval()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), m=st.floats(-2, 0.95))
def test_every_parameter_gives_a_contraction(seed, m):
    model = wild(seed, m=m)
    a, d = model.matrix().detach(), model.weights.detach()
    measure = max(
        float(a[i, i] + sum(abs(a[i, j]) * d[i] / d[j] for j in range(len(a)) if j != i)) for i in range(len(a))
    )
    assert measure <= m + 1e-9 and float(contraction(a, d)) == pytest.approx(max(measure, 0), abs=1e-9)


@pytest.mark.parametrize("m", [-0.5, 0.5, 0.95])
def test_the_fixed_point_is_one_and_the_distance_to_it_is_known(m):
    model = wild(0, m=m)
    x = torch.rand(6, 5, dtype=torch.float64)
    with torch.no_grad():
        a, q, d = model.matrix(), model.input(x), model.weights
        exact = model.solve(lambda z: torch.relu(z @ a.T + q), torch.relu(q), a).point
        assert torch.allclose(torch.relu(exact @ a.T + q), exact, atol=1e-8)
        for _ in range(3):  # from anywhere
            other = model.solve(lambda z: torch.relu(z @ a.T + q), torch.randn_like(exact) * 10, a).point
            assert ((other - exact).abs() * d).amax() <= 2 * model.tol + 1e-12
        model.tol = 0.1
        rough = model.solve(lambda z: torch.relu(z @ a.T + q), torch.randn_like(exact), a)
        assert ((rough.point - exact).abs() <= rough.error + 1e-8).all() and (rough.error * d <= 0.1 + 1e-12).all()
        assert ((rough.point - exact).abs() > 1e-6).any()


def test_gradients_are_those_of_the_fixed_point():
    model = wild(1, inputs=3, width=6, tol=1e-12)
    x = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: model(x), (x,), atol=1e-6, check_undefined_grad=False)
    parameters = [model.mixing, model.log_weights, model.damping, model.input.weight]

    def loss():
        return F.cross_entropy(model(x.detach()), torch.tensor([0, 1, 2, 0]))

    found = torch.autograd.grad(loss(), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, found, strict=True):
            place, step = (0,) * parameter.ndim, 1e-6
            kept = parameter[place].clone()
            sides = []
            for shift in (step, -step):
                parameter[place] = kept + shift
                sides.append(float(loss()))
            parameter[place] = kept
            assert float(gradient[place]) == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("norm", NORMS)
def test_the_box_holds_the_fixed_points_of_all_samples(norm):
    generator = torch.Generator().manual_seed(0)
    for seed in range(2):
        model = wild(seed, m=0.7, tol=1e-7)
        x = torch.rand(5, 5, dtype=torch.float64)
        ball = Ball(norm, NORMS[norm])
        low, high = box(model, ball.around(x))
        with torch.no_grad():
            for _ in range(30):
                z = model.hidden(ball.sample(x, generator))
                assert (z >= low - 1e-6).all() and (z <= high + 1e-6).all()
        model.tol = 0.3  # an iteration that stops early gives a larger box, never a wrong one
        wide = box(model, ball.around(x))
        assert (wide[0] <= low + 1e-9).all() and (wide[1] >= high - 1e-9).all() and (wide[1] > high + 1e-6).any()


@pytest.mark.parametrize("norm", NORMS)
def test_no_attack_succeeds_where_either_certifies(norm):
    model = wild(3, m=0.3, spread=0.1).requires_grad_(False)
    x = torch.rand(40, 5, dtype=torch.float64)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    ball = Ball(norm, NORMS[norm] / 5)
    fooled = model(PGD(ball, loss="margin", steps=20)(model, x, y)).argmax(1) != y
    for certifier in (MixedMonotone(ball), ImplicitLipschitz(ball)):
        found = certifier(model, x, y, batch_size=16)
        assert not (found.certified & fooled).any() and not found.certified[0] and found.radius[0] == 0
        assert found.certified.any() and torch.equal(found.certified, (found.margin > 0) & (found.prediction == y))
    radius = found.radius
    again = ImplicitLipschitz(Ball(norm, radius.clamp_min(1e-9)))(model, x, y).margin
    assert torch.allclose(again[1:], torch.zeros(39, dtype=x.dtype), atol=1e-8)  # the margin ends at the radius
    searched = radius_of(MixedMonotone(ball), model, x, y, steps=8)
    assert (searched[1:] > 0).all() and searched[0] == 0


def test_lipschitz_bounds_hold_between_points():
    for norm, order in (("linf", math.inf), ("l2", 2), ("l1", 1)):
        model = wild(5, m=0.9)
        x, z = torch.randn(2, 200, 5, dtype=torch.float64)
        with torch.no_grad():
            moved = ((model.hidden(x) - model.hidden(z)).abs() * model.weights).amax(1)
        assert (moved <= lipschitz(model, norm) * torch.linalg.vector_norm(x - z, order, dim=1) + 1e-8).all()


def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32) / 16
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], torch.tensor(data.target)[order]


def test_it_learns_digits_and_certifies_them():
    x, y = digits()
    torch.manual_seed(0)
    model = NEMON(64, 30, 10, m=0.5)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(100):
        rows = torch.arange(step * 100, step * 100 + 100) % 1200
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    model.eval()
    x, y = x[1400:], y[1400:]
    with torch.no_grad():
        assert (model(x).argmax(1) == y).float().mean() > 0.9
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shares = [MixedMonotone(Ball("linf", eps))(model, x, y).certified_accuracy for eps in (0.001, 0.01, 0.05)]
    assert shares[0] > 0.85 and shares[0] >= shares[1] >= shares[2]
    lipschitz_share = ImplicitLipschitz(Ball("linf", 0.001))(model, x, y).certified_accuracy
    assert 0 < lipschitz_share <= 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_no_contraction_is_said_in_one_sentence():
    x, y = torch.rand(2, 5), torch.tensor([0, 1])
    with pytest.raises(CertifyError, match="m below 1"):
        NEMON(5, 4, 3, m=1.0)
    for certifier in (MixedMonotone(Ball("linf", 0.1)), ImplicitLipschitz(Ball("linf", 0.1))):
        with pytest.raises(CertifyError, match="expected a NEMON, got Linear"):
            certifier(nn.Linear(5, 3).eval(), x, y)
        with pytest.raises(CertifyError, match="evaluation mode"):
            certifier(NEMON(5, 4, 3), x, y)
    with pytest.raises(CertifyError, match="a Ball in linf, l2 or l1"):
        ImplicitLipschitz(Ball("l0", 2))(NEMON(5, 4, 3).eval(), x, y)


def test_radii_are_around_where_the_bounds_move_an_input():
    """A little above its bounds an input may have another margin than where they move it."""
    model = wild(3, spread=0.3)
    with torch.no_grad():
        model.input.weight.mul_(1e6)
    x, y = torch.full((1, 5), 1 + 8e-6, dtype=torch.float64), torch.tensor([0])
    ball = Ball("linf", 1e-9)
    with torch.no_grad():
        logits = model(x.clamp(max=1))
    apart = (logits - model(x)).abs().max()
    found = ImplicitLipschitz(ball)(model, x, y)
    assert apart > 1e-3 and float(found.margin) <= float(logits[0, 0] - logits[0, 1:].max())


@pytest.mark.parametrize("certifier", [MixedMonotone, ImplicitLipschitz])
def test_numbers_without_an_end_certify_nothing(certifier):
    model, x, y = wild(0), torch.rand(3, 5, dtype=torch.float64), torch.tensor([0, 1, 2])
    for value in (math.inf, math.nan):
        with torch.no_grad():
            model.input.weight[0, 0] = value
        assert not certifier(Ball("linf", 0.01))(model, x, y).certified.any()


def test_a_matrix_that_rounding_took_out_of_its_bounds_is_refused():
    model = NEMON(3, 4, 2, m=0.5).eval()
    model.matrix = lambda: torch.eye(4) + 1e-3  # mu is 1.004
    with pytest.raises(CertifyError, match=r"a matrix with a mu below 1, got 1\.00"):
        MixedMonotone(Ball("linf", 0.1))(model, torch.rand(2, 3), torch.tensor([0, 1]))
