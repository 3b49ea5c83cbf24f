"""The geometry of threat sets against brute force, a general solver and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from adversarial.streams import Streams
from adversarial.threat import DUAL, Ball

NORMS = ("linf", "l2", "l1", "l0")
numbers = st.integers(0, 10**6)


def case(seed, norm, size=5):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(3, size, dtype=torch.float64, generator=g)
    far = x + 3 * torch.randn(3, size, dtype=torch.float64, generator=g)
    eps = 1 + seed % size if norm == "l0" else 0.02 + 1.5 * torch.rand(3, dtype=torch.float64, generator=g)
    mask = torch.rand(size, generator=g) > 0.2
    mask[0] = True
    return x, far, Ball(norm, eps, mask=mask)


@settings(max_examples=60, deadline=None)
@given(seed=numbers, norm=st.sampled_from(NORMS))
def test_a_projection_is_inside_and_nearest(seed, norm):
    x, far, ball = case(seed, norm)
    region = ball.around(x)
    found = region.project(far)
    assert region.contains(found, 1e-9).all()
    assert torch.allclose(region.project(found), found, atol=1e-9)
    others = torch.stack([region.sample(Streams(x, s), torch.arange(3)) for s in range(40)])
    others = torch.cat([others, region.project(x)[None]])
    assert ((others - far).norm(dim=2) >= (found - far).norm(dim=1) - 1e-9).all()


@settings(max_examples=15, deadline=None)
@given(seed=numbers, norm=st.sampled_from(("l2", "l1")))
def test_a_projection_is_that_of_a_general_solver(seed, norm):
    x, far, ball = case(seed, norm)
    region = ball.around(x)
    found = region.project(far)
    for i in range(3):
        u, eps = (far - x)[i].numpy(), float(region.eps[i])
        low, high = region.low[i].numpy(), region.high[i].numpy()
        # d = p - q with p, q >= 0 makes the l1 ball linear
        size = len(u)
        bounds = [(0, h) for h in high] + [(0, -v) for v in low]
        if norm == "l1":
            limit = {"type": "ineq", "fun": lambda v, eps=eps: eps - v.sum()}
        else:
            limit = {"type": "ineq", "fun": lambda v, eps=eps, n=size: eps**2 - ((v[:n] - v[n:]) ** 2).sum()}
        solved = minimize(
            lambda v, u=u, n=size: ((v[:n] - v[n:] - u) ** 2).sum(), np.zeros(2 * size), bounds=bounds, constraints=[limit],
            method="SLSQP", options={"maxiter": 500, "ftol": 1e-14},
        )  # fmt: skip
        if not solved.success:  # what it returns then may lie outside
            continue
        ours = float(((found - far)[i] ** 2).sum())
        assert ours <= solved.fun + 1e-5


@settings(max_examples=60, deadline=None)
@given(seed=numbers, norm=st.sampled_from(NORMS))
def test_the_best_point_of_a_linear_function(seed, norm):
    x, far, ball = case(seed, norm)
    region, gradient = ball.around(x), far - 0.3
    best = region.best(gradient)
    assert region.contains(best, 1e-9).all()
    worth = ((best - x) * gradient).sum(1)
    assert torch.allclose(worth, region.support(gradient))
    for s in range(30):
        other = region.sample(Streams(x, s), torch.arange(3))
        assert (((other - x) * gradient).sum(1) <= worth + 1e-9).all()
    low, high = region.box()
    assert (best >= low - 1e-9).all() and (best <= high + 1e-9).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_support_without_bounds_is_the_dual_norm(norm):
    x, g = torch.zeros(4, 7, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    region = Ball(norm, 0.3, low=None, high=None).around(x)
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[DUAL[norm]]
    assert torch.allclose(region.support(g), 0.3 * torch.linalg.vector_norm(g, order, dim=1))
    step = region.direction(g)
    assert torch.allclose((step * g).sum(1), torch.linalg.vector_norm(g, order, dim=1))
    assert torch.allclose(region.distance(step), torch.ones(4, dtype=torch.float64))


def test_samples_fill_a_ball():
    x = torch.full((4000, 3), 0.5, dtype=torch.float64) + 1e-9 * torch.arange(4000)[:, None]
    rows = torch.arange(4000)
    for norm in ("linf", "l2", "l1"):
        region = Ball(norm, 0.2).around(x)
        streams = Streams(torch.arange(4000.0)[:, None], 0)
        radius = region.distance(region.sample(streams, rows)) / 0.2
        assert (radius**3).mean().item() == pytest.approx(0.5, abs=0.03)  # uniform in volume
    region = Ball("l0", 2).around(x)
    steps = region.steps(region.sample(Streams(torch.arange(4000.0)[:, None], 0), rows))
    assert ((steps != 0).sum(1) <= 2).all() and ((steps != 0).double().mean(0) - 2 / 3).abs().max() < 0.05


def test_streams_are_samples_own():
    x = torch.rand(50, 4)
    streams, alone = Streams(x, 7), Streams(x[[20]], 7)
    first = streams.uniform(torch.arange(50), 1000)
    assert torch.equal(first[20], alone.uniform(torch.tensor([0]), 1000)[0])
    assert torch.equal(
        streams.normal(torch.tensor([3, 20]), 5)[1], alone.normal(torch.tensor([0]), 5)[0]
    )  # another batch, the same place in the stream
    assert not torch.equal(first[20], Streams(x, 8).uniform(torch.arange(50), 1000)[20])
    assert abs(first.mean().item() - 0.5) < 0.005 and abs(first.std().item() - 12**-0.5) < 0.005
    flat = torch.corrcoef(first)
    assert (flat - torch.eye(50)).abs().max() < 0.2
    normal = streams.normal(torch.arange(50), 2000)
    assert abs(normal.mean().item()) < 0.01 and abs(normal.std().item() - 1) < 0.01
    assert set(streams.signs(torch.arange(50), 9).unique().tolist()) == {-1.0, 1.0}
    whole = streams.integers(torch.arange(50), 7, 3000)
    assert (torch.bincount(whole.flatten()).double() / whole.numel() - 1 / 7).abs().max() < 0.005


def test_bounds_of_their_own():
    x = torch.full((2, 1, 2, 2), 0.5)
    per_sample = Ball("linf", torch.tensor([0.1, 0.2])).around(x)
    assert per_sample.high.amax(1).tolist() == pytest.approx([0.1, 0.2])
    pixels = Ball("linf", torch.tensor([[0.1, 0.0], [0.3, 0.9]])).around(x)
    assert pixels.high[0].tolist() == pytest.approx([0.1, 0.0, 0.3, 0.5])
    wide = Ball("linf", 5.0, low=-1.0, high=torch.tensor([[1.0, 2.0], [3.0, 4.0]])).around(x)
    assert wide.high[0].tolist() == pytest.approx([0.5, 1.5, 2.5, 3.5]) and wide.low[0].tolist() == [-1.5] * 4
    frozen = Ball("l2", 1.0, mask=torch.tensor([[1, 0], [0, 0]])).around(x)
    moved = frozen.project(torch.rand(2, 1, 2, 2))
    assert torch.equal(moved.flatten(1)[:, 1:], x.flatten(1)[:, 1:])
