"""CLEVER: exact where a model is linear or its curvature constant, honest about its fits, and never a proof."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from adversarial import Spatial, lift
from adversarial.threat import Ball, norm_of
from certify import CLEVER, CertifyError
from certify.lipschitz.clever import Margins, drawn
from certify.lipschitz.curvature import largest_curvature
from certify.lipschitz.weibull import STARTS, fit, objective

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
NORMS = list(DUAL)


def perceptron(*sizes, activation=nn.ReLU, seed=0):
    torch.manual_seed(seed)
    layers = [part for n, m in pairwise(sizes) for part in (nn.Linear(n, m), activation())]
    return nn.Sequential(*layers[:-1]).eval()


class Quadratic(nn.Module):
    """Two logits that differ by a quadratic function."""

    def __init__(self, matrix, row, constant):
        super().__init__()
        self.matrix, self.row, self.constant = (torch.as_tensor(each) for each in (matrix, row, constant))

    def forward(self, x):
        g = 0.5 * ((x @ self.matrix) * x).sum(1) + x @ self.row + self.constant
        return torch.stack([g, torch.zeros_like(g)], 1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pool", [None, 3])
def test_a_linear_model_has_its_exact_score(norm, pool):
    model, x = perceptron(6, 4), torch.rand(5, 6)
    logits = model(x).detach()
    y = logits.argmax(1)
    found = CLEVER(Ball(norm, 0.1), batches=10, samples=16, pool=pool).estimate(model, x, y)
    rows = (model[0].weight[y][:, None] - model[0].weight[found.targets]).detach()
    margins = logits.gather(1, y[:, None]) - logits.gather(1, found.targets)
    steep = norm_of(rows.flatten(0, 1), DUAL[norm]).view_as(margins)
    assert torch.allclose(found.scores, margins / steep, rtol=1e-5)
    assert bool(found.fallback.all()) and bool(found.pvalue.isnan().all())


def test_targets_are_the_classes_they_are_called_after():
    model, x = perceptron(4, 8, 5), torch.rand(3, 4)
    logits = model(x).detach()
    y, order = logits.argmax(1), logits.argsort(1, descending=True)
    options = {"batches": 5, "samples": 8}
    threat = Ball("l2", 0.1)
    whole = CLEVER(threat, **options).estimate(model, x, y)
    assert torch.equal(whole.targets, order[:, 1:]) and torch.equal(whole.score, whole.scores.amin(1))
    for name, place in (("runner-up", 1), ("least", -1)):
        assert torch.equal(CLEVER(threat, **options, targets=name).estimate(model, x, y).targets[:, 0], order[:, place])
    drawn_ones = torch.cat(
        [CLEVER(threat, **options, targets="random", seed=s).estimate(model, x, y).targets for s in range(8)], 1
    )
    assert bool((drawn_ones != y[:, None]).all()) and len(drawn_ones.unique()) >= 3


def test_an_estimate_is_never_called_certified_and_changes_nothing():
    model, x = perceptron(4, 8, 3), torch.rand(6, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    found = CLEVER(Ball("linf", 0.1), batches=5, samples=8, radius=0.4)(model, x, y)
    assert found.guarantee == "estimate" and not found.certified.any() and bool(found.margin.isnan().all())
    assert (
        float(found.radius[0]) == 0 and bool((found.radius[1:] > 0).all()) and float(found.radius.max()) <= 0.4 + 1e-6
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("pool", [None, 4])
def test_an_input_has_its_score_in_any_company_and_for_any_seed_its_own(pool):
    model, x = perceptron(4, 8, 3, activation=nn.Tanh), torch.rand(4, 4)
    y = model(x).argmax(1)
    certifier = CLEVER(Ball("l2", 0.1), batches=20, samples=8, radius=1.0, pool=pool)
    whole = certifier(model, x, y).radius
    assert torch.equal(whole[2:3], certifier(model, x[2:3], y[2:3]).radius)
    assert torch.equal(whole, certifier(model, x, y, batch_size=1).radius)
    other = CLEVER(Ball("l2", 0.1), batches=20, samples=8, radius=1.0, pool=pool, seed=1)(model, x, y).radius
    assert not torch.equal(whole, other) and torch.allclose(whole, other, rtol=0.3)


def test_batches_are_those_of_the_order_in_which_points_are_drawn(monkeypatch):
    def seven_at_a_time(self, margins, region, radius, count, generator):
        yield from torch.arange(count).float()[None].split(7, 1)

    monkeypatch.setattr(CLEVER, "values", seven_at_a_time)
    model, x = perceptron(4, 3), torch.rand(1, 4)
    certifier = CLEVER(Ball("l2", 0.1), batches=6, samples=10)
    margins = Margins(model, 0, torch.tensor([1]))
    assert certifier.maxima(margins, certifier.ball(x), 5.0, torch.Generator()).tolist() == [[9.0, 19, 29, 39, 49, 59]]


@pytest.mark.parametrize("norm", NORMS)
def test_points_are_uniform_in_the_ball_and_within_bounds(norm):
    x = torch.full((1, 3), 0.5)
    region = Ball(norm, 2.0, None, None).around(x)
    steps = drawn(region, 2.0, 4000, torch.Generator().manual_seed(0)) - x
    assert stats.kstest((norm_of(steps, norm) / 2).numpy() ** 3, "uniform").pvalue > 1e-3
    assert float(steps.mean(0).abs().max()) < 0.1
    cut = Ball(norm, 2.0, 0.0, 1.0, mask=torch.tensor([1, 1, 0])).around(x)
    points = drawn(cut, 2.0, 500, torch.Generator().manual_seed(0))
    assert bool(((points >= 0) & (points <= 1)).all()) and bool((points[:, 2] == 0.5).all())


def test_a_mask_leaves_out_what_cannot_move():
    model, x = perceptron(4, 2), torch.rand(1, 4)
    logits = model(x).detach()
    y = logits.argmax(1)
    mask = torch.tensor([1, 0, 1, 0])
    found = CLEVER(Ball("l2", 0.1, mask=mask), batches=4, samples=4, radius=50.0)(model, x, y)
    slope = (model[0].weight[0] - model[0].weight[1]).detach() * mask
    assert float(found.radius) == pytest.approx(float((logits[0, 0] - logits[0, 1]).abs() / slope.norm()), rel=1e-5)


def test_the_score_of_a_plane_is_below_the_nearest_example_and_near_it():
    model = perceptron(2, 8, 3, seed=5)
    x = torch.rand(8, 2)
    y = model(x).argmax(1)
    line = torch.linspace(-0.6, 0.6, 241)
    steps = torch.cartesian_prod(line, line)
    for norm in NORMS:
        one = CLEVER(Ball(norm, 0.1, None, None), batches=50, samples=256, radius=0.6)(model, x, y).radius
        more = CLEVER(Ball(norm, 0.1, None, None), batches=50, samples=256, radius=0.6, rounds=3)(model, x, y).radius
        assert bool((more >= one).all()) and bool((more > one * 1.05).any())
        for row in range(8):
            sizes = norm_of(steps[model(x[row] + steps).argmax(1) != y[row]], norm)
            nearest = min(float(sizes.amin()) if len(sizes) else math.inf, 0.6)
            assert 0.2 * nearest <= float(one[row]) <= float(more[row]) <= nearest * 1.02 + 0.005


def test_what_is_not_finite_has_no_score():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.stack([x.sum(1) + 1, torch.sqrt(x[:, 0] - 0.4)], 1)

    x = torch.full((2, 3), 0.5)
    found = CLEVER(Ball("l2", 0.1), batches=4, samples=16, radius=1.0)(
        Odd().eval(), x, torch.zeros(2, dtype=torch.long)
    )
    assert found.radius.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("shape", [1.5, 3.0, 6.0])
def test_a_fit_finds_the_end_of_a_weibull_law(shape):
    random = np.random.default_rng(0)
    maxima = torch.tensor(10 - stats.weibull_min.rvs(shape, 0, 2, size=(8, 500), random_state=random))
    found = fit(maxima)
    assert (
        not found.fallback.any()
        and bool((found.pvalue > 0.01).all())
        and bool((found.location >= maxima.amax(1)).all())
    )
    assert float(found.location.mean()) == pytest.approx(10, abs=0.15)
    assert float(found.shape.mean()) == pytest.approx(shape, rel=0.25)


def test_a_fit_is_at_least_as_likely_as_scipys_and_moves_and_grows_with_its_data():
    random = np.random.default_rng(1)
    maxima = 5 - stats.weibull_min.rvs(2.5, 0, 1, size=200, random_state=random)
    found = fit(torch.tensor(maxima)[None])
    width, top = np.ptp(maxima), maxima.max()
    d = torch.tensor((top - maxima) / width)[None]

    def likelihood(shape, location):
        at = (
            torch.tensor([[math.log(shape)]], dtype=torch.float64),
            torch.tensor([[math.log((location - top) / width)]]),
        )
        return float(objective(d, *at)[0])

    shape, location, _ = stats.weibull_min.fit(-(maxima - top) / width, 1.0)
    assert likelihood(float(found.shape), float(found.location)) <= likelihood(shape, top - location * width) + 1e-6
    moved = fit(torch.tensor(3 * maxima + 7)[None])
    assert float(moved.location) == pytest.approx(3 * float(found.location) + 7, rel=1e-6)


def test_the_derivatives_of_the_objective_are_its_derivatives():
    generator = torch.Generator().manual_seed(0)
    d = torch.rand(2, 30, generator=generator, dtype=torch.float64)
    r, t = (torch.randn(2, len(STARTS), generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    value, gradient, curvature = objective(d, r, t)
    slope = torch.autograd.grad(value.sum(), (r, t), create_graph=True)
    second = [
        *torch.autograd.grad(slope[0].sum(), (r, t), retain_graph=True),
        torch.autograd.grad(slope[1].sum(), t)[0],
    ]
    for own, other in zip((*gradient, *curvature), (*slope, *second), strict=True):
        assert torch.allclose(own, other, rtol=1e-9, atol=1e-10)


def test_a_law_that_does_not_fit_gives_way_to_the_largest_sample():
    two = torch.cat([torch.linspace(0, 0.01, 250), torch.linspace(0.99, 1, 250)])[None].double()
    found = fit(torch.cat([two, torch.ones(1, 500, dtype=torch.float64), torch.full((1, 500), torch.nan)]))
    assert found.fallback.all() and found.location[:2].tolist() == [1.0, 1.0] and bool(found.location[2].isnan())


def test_no_fit_runs_away():
    """One start without a penalty puts the end of the law at infinity for some of these, and the score to zero."""
    random = np.random.default_rng(2)
    size = (15, 100)
    laws = [
        random.normal(size=size),
        random.gumbel(size=size),
        -random.exponential(size=size),
        random.uniform(size=size),
    ]
    maxima = torch.tensor(np.concatenate(laws))
    found = fit(maxima)
    width = maxima.amax(1) - maxima.amin(1)
    assert bool(((found.location - maxima.amax(1)) / width < 5).all())


@pytest.mark.parametrize("eigenvalues", [(3.0, -1.0, 0.5), (-4.0, 1.0, 2.0), (2.0, -2.0, 0.0), (0.0, 0.0, 0.0)])
def test_curvature_is_the_largest_eigenvalue_in_size(eigenvalues):
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    matrix = turn @ torch.diag(torch.tensor(eigenvalues)) @ turn.T
    model = Quadratic(matrix, torch.ones(3), 1.0)
    points, free = torch.randn(5, 3), torch.ones(1, 3, dtype=torch.bool)
    found = largest_curvature(
        lambda z: model(z)[:, :1] - model(z)[:, 1:], points, free, torch.Generator().manual_seed(0)
    )
    assert torch.allclose(found, torch.full((1, 5), max(map(abs, eigenvalues))), rtol=5e-3, atol=1e-6)


def test_the_second_order_of_a_quadratic_is_its_exact_bound():
    model = Quadratic(-torch.eye(3), torch.tensor([0.3, 0.0, 0.0]), 2.0)
    x = torch.zeros(1, 3)
    found = CLEVER(Ball("l2", 0.1, None, None), batches=5, samples=8, order=2)(model.eval(), x, torch.tensor([0]))
    assert float(found.radius) == pytest.approx(-0.3 + math.sqrt(0.09 + 4), rel=2e-3)  # where 2 − 0.3 r − r²/2 = 0
    linear = perceptron(3, 2)
    y = linear(x).argmax(1)
    first, second = (
        CLEVER(Ball("l2", 0.1, None, None), batches=5, samples=8, order=k)(linear, x, y).radius for k in (1, 2)
    )
    assert torch.allclose(first, second, rtol=1e-5)


@pytest.mark.parametrize("call, words", [
    (lambda m, x, y: CLEVER(Ball("l0", 1.0)), "linf, l2 or l1, got l0"),
    (lambda m, x, y: CLEVER(lift(Spatial(), Ball("linf", 0.1))), "a Ball"),
    (lambda m, x, y: CLEVER(Ball("linf", 0.1), order=2), "order 2 with linf"),
    (lambda m, x, y: CLEVER(Ball("l2", 0.1), batches=1), "two batches"),
    (lambda m, x, y: CLEVER(Ball("l2", 0.1), pool=0), "pool 0"),
    (lambda m, x, y: CLEVER(Ball("l2", 0.1), radius=0.0), "a radius above 0"),
    (lambda m, x, y: CLEVER(Ball("l2", 0.1), rounds=-1), "rounds from 0"),
    (lambda m, x, y: CLEVER(Ball("l2", 0.1), targets="worst"), "got 'worst'"),
    (lambda m, x, y: CLEVER(Ball("linf", torch.full((3,), 0.1)))(m, x, y), "one eps"),
    (lambda m, x, y: CLEVER(Ball("l2", 0.1))(m.train(), x, y), "evaluation mode"),
    (lambda m, x, y: CLEVER(Ball("l2", 0.1))(m, x, y + 2), "labels from 0 to 1"),
    (lambda m, x, y: CLEVER(Ball("l2", 0.1))(m, x, y[:1]), "expected labels"),
    (lambda m, x, y: CLEVER(Ball("l2", 0.1), batches=2, samples=64, order=2)(m, x, y), "twice differentiable"),
])  # fmt: skip
def test_bad_input(call, words):
    with pytest.raises(CertifyError, match=words):
        call(perceptron(3, 8, 2), torch.rand(2, 3), torch.tensor([0, 1]))
