"""Projections against a convex solver, and against every choice of features for l0."""

from __future__ import annotations

from functools import cache
from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adversarial.threat import Ball

cvxpy = pytest.importorskip("cvxpy")
SIZE, FAR = 6, 100.0
CONE = {"linf": "inf", "l2": 2, "l1": 1}
unit = st.floats(0.0, 1.0, width=32)
far = st.floats(-3.0, 4.0, width=32)
vectors = {"x": st.lists(unit, min_size=SIZE, max_size=SIZE), "u": st.lists(far, min_size=SIZE, max_size=SIZE)}


@st.composite
def cases(draw, norm):
    """A clean input on or within bounds of its own, a far point, and a ball that some features are left out of."""
    x, u = (torch.tensor(draw(vectors[name]), dtype=torch.float64) for name in ("x", "u"))
    below, above = (torch.tensor(draw(vectors["x"]), dtype=torch.float64) for _ in range(2))
    bounded = draw(st.booleans())
    low, high = (x - below, x + above) if bounded else (None, None)
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=SIZE, max_size=SIZE)))
    eps = draw(st.integers(1, SIZE) if norm == "l0" else st.floats(0.01, 3.0))
    return x, u, Ball(norm, eps, low=low, high=high, mask=mask)


def limits(ball, x):
    """Features' lowest and highest values, from the ball's fields alone; no bound is a far one."""
    low = np.full(SIZE, -FAR) if ball.low is None else ball.low.numpy()
    high = np.full(SIZE, FAR) if ball.high is None else ball.high.numpy()
    return np.where(ball.mask, low, x.numpy()), np.where(ball.mask, high, x.numpy())


@cache
def problem(norm, nearest):
    """The nearest point of a threat to `aim`, or the one furthest along it; made once, as that takes most of the time."""
    z = cvxpy.Variable(SIZE)
    given = {name: cvxpy.Parameter(SIZE) for name in ("x", "aim", "low", "high")} | {
        "eps": cvxpy.Parameter(nonneg=True)
    }
    rules = [cvxpy.norm(z - given["x"], CONE[norm]) <= given["eps"], z >= given["low"], z <= given["high"]]
    goal = cvxpy.Minimize(cvxpy.sum_squares(z - given["aim"])) if nearest else cvxpy.Maximize(given["aim"] @ z)
    return cvxpy.Problem(goal, rules), given, z


def solved(ball, x, aim, nearest):
    low, high = limits(ball, x)
    one, given, z = problem(ball.norm, nearest)
    for name, value in {"x": x.numpy(), "aim": aim.numpy(), "low": low, "high": high, "eps": ball.eps}.items():
        given[name].value = value
    one.solve(solver=cvxpy.CLARABEL)
    return torch.from_numpy(z.value)


@pytest.mark.parametrize("norm", CONE)
def test_a_projection_is_that_of_a_convex_solver(norm):
    @settings(max_examples=40, deadline=None)
    @given(case=cases(norm))
    def check(case):
        x, u, ball = case
        found = ball.project(u[None], x[None])[0]
        assert ball.contains(found[None], x[None], 1e-9).all()
        other = solved(ball, x, u, nearest=True)
        assert torch.allclose(found, other, atol=2e-3)  # the solver's own tolerance
        assert (found - u).square().sum() <= (other - u).square().sum() + 1e-5

    check()


@pytest.mark.parametrize("norm", CONE)
def test_the_best_point_of_a_linear_function_is_that_of_a_convex_solver(norm):
    @settings(max_examples=20, deadline=None)
    @given(case=cases(norm))
    def check(case):
        x, gradient, ball = case
        best = ball.around(x[None]).best(gradient[None])[0]
        assert ball.contains(best[None], x[None], 1e-9).all()
        other = solved(ball, x, gradient, nearest=False)
        assert float(gradient @ best) == pytest.approx(float(gradient @ other), abs=1e-4)

    check()


@settings(max_examples=60, deadline=None)
@given(case=cases("l0"))
def test_the_nearest_of_all_choices_of_features(case):
    x, u, ball = case
    low, high = (torch.from_numpy(v) for v in limits(ball, x))
    within = torch.clamp(u, low, high)
    nearest, highest = torch.inf, -torch.inf
    for size in range(ball.eps + 1):
        for chosen in combinations(range(SIZE), size):
            z = x.clone()
            z[list(chosen)] = within[list(chosen)]
            nearest = min(nearest, float((z - u).square().sum()))
            if ball.low is not None:
                z[list(chosen)] = torch.where(u > 0, high, low)[list(chosen)]
                highest = max(highest, float(u @ z))
    found = ball.project(u[None], x[None])[0]
    assert (found != x).sum() <= ball.eps and (found >= low).all() and (found <= high).all()
    assert float((found - u).square().sum()) == pytest.approx(nearest, abs=1e-9)
    if ball.low is not None:
        assert float(u @ ball.around(x[None]).best(u[None])[0]) == pytest.approx(highest, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(x=vectors["x"], u=vectors["u"], sizes=vectors["x"])
def test_a_bound_for_every_feature(x, u, sizes):
    x, u, sizes = (np.array(v) for v in (x, u, sizes))
    sizes[0] += 0.01
    found = Ball("linf", torch.tensor(sizes)).project(torch.tensor(u)[None], torch.tensor(x)[None])[0].numpy()
    expected = np.clip(u, np.maximum(x - sizes, 0), np.minimum(x + sizes, 1))
    assert np.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_support_is_that_of_the_nearest_points_far_away(norm, dtype):
    """The projection of a very long step is where a linear function is largest: an independent way to the same number."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.rand(*shape, generator=generator, dtype=dtype)

    for spread, reach in product((0, 1, 3), (0.01, 0.1, 1.0, 10.0)):
        g = (drawn(40, 60) - 0.5) * torch.exp(spread * 3 * (drawn(40, 60) - 0.5))
        x = drawn(40, 60)
        low, high = (x - drawn(40, 60) * (drawn(40, 60) < 0.7)), (x + drawn(40, 60) * (drawn(40, 60) < 0.7))
        region = Ball(norm, reach, low, high).around(x)
        far = region.project(x + 1e6 * g.double()).double() if norm == "l2" else region.best(g).double()
        least, found = (g.double() * (far - x.double())).sum(1), region.support(g).double()
        room = 1e-5 if dtype == torch.float32 else 1e-9
        assert bool((found >= least * (1 - room) - room).all())
        assert torch.allclose(found, least, rtol=1e-4 if dtype == torch.float32 else 1e-6)


def test_support_of_a_ball_without_bounds_is_the_dual_norm():
    g = torch.tensor([[0.0, 3.0, -4.0], [0.0, 0.0, 0.0]])
    x = torch.zeros(2, 3)
    assert torch.allclose(Ball("l2", 2.0, None, None).around(x).support(g), torch.tensor([10.0, 0.0]))
    assert torch.allclose(Ball("l1", 2.0, None, None).around(x).support(g), torch.tensor([8.0, 0.0]))
