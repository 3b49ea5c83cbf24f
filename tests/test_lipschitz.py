"""Lipschitz constants are never too small, whatever a solver says, and exact where they can be."""

from __future__ import annotations

import itertools
import math
import types
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import certify
from adversarial import Spatial, lift
from adversarial.attacks.gradient import PGD
from adversarial.threat import Ball, norm_of
from certify import CertifyError, Lipschitz
from certify.engine.bounds import Bounds
from certify.engine.curves import CURVES
from certify.engine.operator_norm import NORMS
from certify.engine.tracing import trace
from certify.lipschitz import lipsdp as sdp
from certify.lipschitz import product as products
from certify.lipschitz.jacobian import gradients
from certify.lipschitz.lipopt import lipopt
from certify.lipschitz.lipschitz import constants, in_double
from certify.lipschitz.lipsdp import lipsdp
from certify.lipschitz.path_norm import path_norm, path_norm_prox
from certify.lipschitz.product import Product
from certify.lipschitz.segments import Chain, chain, doubled, slopes

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
CPU = torch.device("cpu")
METHODS = [(norm, method) for norm in NORMS for method in ("product", "local")]
METHODS += [("l2", "lipsdp-neuron"), ("l2", "lipsdp-layer"), ("linf", "lipopt")]


def perceptron(*sizes, activation=nn.ReLU, seed=0):
    torch.manual_seed(seed)
    layers = [part for n, m in itertools.pairwise(sizes) for part in (nn.Linear(n, m), activation())]
    return nn.Sequential(*layers[:-1]).eval().requires_grad_(False)


@cache
def traced(*sizes, activation=nn.ReLU, seed=0):
    model = perceptron(*sizes, activation=activation, seed=seed)
    return model, trace(model, torch.rand(1, sizes[0]))


class Picture(nn.Module):
    """Convolutions with a normalisation, a skip, the largest of overlapping cells, an average."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Linear(4 * 4, 3)
        self.norm.running_mean.uniform_(-0.2, 0.2)
        self.norm.running_var.uniform_(0.5, 1.5)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = x + F.silu(self.second(x))
        return self.last(F.avg_pool2d(F.max_pool2d(x, 2, stride=1, padding=1), 2).flatten(1))


@cache
def picture():
    torch.manual_seed(3)
    model, x = Picture().eval().requires_grad_(False), torch.rand(4, 2, 6, 6)
    return model, x, doubled(trace(model, x))


def steepest_seen(model, points, norm, y, other):
    points = points.clone().requires_grad_()
    logits = model(points)
    (slope,) = torch.autograd.grad((logits[:, y] - logits[:, other]).sum(), points)
    return float(norm_of(slope.flatten(1).double(), DUAL[norm]).amax())


@pytest.mark.parametrize("norm, method", METHODS)
def test_a_linear_model_has_its_exact_radius(norm, method):
    (model, graph), x = traced(6, 4), torch.rand(8, 6, generator=torch.Generator().manual_seed(0))
    logits = model(x)
    y = logits.argmax(1)
    y[0] = (y[0] + 1) % 4
    rows = model[0].weight[y][:, None] - model[0].weight
    margins = logits.gather(1, y[:, None]) - logits
    exact = (margins / norm_of(rows.flatten(0, 1), DUAL[norm]).view(8, 4)).nan_to_num(math.inf).amin(1)
    eps = 0.97 * float(exact[1:].median())
    found = Lipschitz(Ball(norm, eps, None, None), method)(graph, x, y)
    assert found.certified.tolist() == (exact >= eps).tolist()
    wanted = exact.clamp(min=0, max=eps if method == "local" else math.inf)
    assert torch.allclose(found.radius, wanted, rtol=2e-5) and not bool((found.radius > exact.clamp(min=0)).any())
    assert found.guarantee == "deterministic" and found.method == f"Lipschitz {method}"


@pytest.mark.parametrize("seed, activation", [(0, nn.ReLU), (1, nn.Tanh), (2, nn.LeakyReLU)])
def test_gradients_lie_below_lipsdp_and_that_below_the_product(seed, activation):
    model, points = perceptron(3, 8, 6, 2, activation=activation, seed=seed), torch.randn(4000, 3) * 2
    graph = doubled(trace(model, points))
    network = chain(graph, CPU)
    one = Chain([*network.weights[:-1], network.weights[-1][:1] - network.weights[-1][1:]], network.slopes)
    seen = steepest_seen(model, points, "l2", 0, 1)
    neuron, layer, product = lipsdp(one, "neuron"), lipsdp(one, "layer"), Product(graph, "l2", CPU)(0, 1)
    dense = math.prod(float(torch.linalg.matrix_norm(weight, 2)) for weight in one.weights)
    assert seen <= neuron <= layer * (1 + 1e-5) and layer <= dense * (1 + 1e-9)
    assert seen <= product <= dense * (1 + 1e-9)


@given(seed=st.integers(0, 2**20), scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0]))
@settings(max_examples=15, deadline=None)
def test_lipsdp_holds_whatever_the_solver_says(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(n, m, generator=generator, dtype=torch.float64) for n, m in ((3, 2), (3, 3), (1, 3))]
    rough = torch.randn(6, generator=generator, dtype=torch.float64) * scale
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdp.Inequality, "solved", lambda self, form: rough.clamp_min(0))
        found = lipsdp(Chain(weights, [(0.0, 1.0), (0.0, 1.0)]))
    assert corners(weights, "l2") <= found


def corners(weights, norm):
    """The steepest of all ways to switch the units on and off."""
    best, bits = 0.0, [0.0, 1.0]
    for switch in itertools.product(bits, repeat=sum(len(w) for w in weights[:-1])):
        row, rest = weights[-1], torch.tensor(switch, dtype=torch.float64)
        for weight in reversed(weights[:-1]):
            row, rest = (row * rest[-len(weight) :]) @ weight, rest[: -len(weight)]
        best = max(best, float(norm_of(row, DUAL[norm])))
    return best


@pytest.mark.parametrize("sizes", [(2, 3, 1), (3, 4, 1), (2, 3, 2, 1)])
def test_lipopt_lies_between_the_best_corner_and_the_product(sizes):
    generator = torch.Generator().manual_seed(len(sizes))
    weights = [torch.randn(m, n, generator=generator, dtype=torch.float64) for n, m in itertools.pairwise(sizes)]
    network = Chain(weights, [(0.0, 1.0)] * (len(weights) - 1))
    exact, found = corners(weights, "linf"), lipopt(network)
    product = math.prod(float(weight.abs().sum(1).amax()) for weight in weights)
    assert exact <= found <= product * (1 + 1e-9)
    if len(sizes) == 3:
        assert lipopt(network, degree=3) <= found * (1 + 1e-6)
        assert exact <= lipopt(network, degree=3)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 1.0])
def test_lipopt_holds_whatever_the_solver_says(monkeypatch, noise):
    import scipy.optimize

    solve, random = scipy.optimize.linprog, np.random.default_rng(0)

    def rough(cost, **options):
        x = solve(cost, **options).x
        return types.SimpleNamespace(x=x + noise * random.normal(size=x.shape))

    monkeypatch.setattr(scipy.optimize, "linprog", rough)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        weights = [torch.randn(m, n, generator=generator, dtype=torch.float64) for n, m in ((2, 3), (3, 1))]
        assert corners(weights, "linf") <= lipopt(Chain(weights, [(0.0, 1.0)]))


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_seen_lie_below_the_bounds_of_pictures(norm):
    model, x, graph = picture()
    product = Product(graph, norm, CPU)
    region = in_double(Ball(norm, 0.3, 0.0, 1.0).around(x))
    bounds = Bounds(graph, region).intervals().tighten()
    a = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64).expand(4, 3)
    steep = gradients(bounds, a, torch.arange(4))
    for seed in range(10):
        points = Ball(norm, 0.3).sample(x, torch.Generator().manual_seed(seed)).requires_grad_()
        logits = model(points)
        (slope,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), points)
        assert bool((slope.abs() <= steep + 1e-5).all())
        assert float(norm_of(slope.flatten(1), DUAL[norm]).amax()) <= product(0, 1) * (1 + 1e-5)
    assert steepest_seen(model, torch.randn(500, 2, 6, 6) * 3, norm, 0, 1) <= product(0, 1) * (1 + 1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_maps_too_large_to_write_down_have_looser_bounds(monkeypatch, norm):
    model, _, graph = picture()
    exact = Product(graph, norm, CPU)(0, 2)
    monkeypatch.setattr(products, "LIMIT", 0)
    loose = Product(graph, norm, CPU)(0, 2)
    assert steepest_seen(model, torch.randn(500, 2, 6, 6) * 3, norm, 0, 2) <= loose and exact <= loose * (1 + 1e-9)


def test_a_convolution_too_large_to_write_down_has_its_torus(monkeypatch):
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(75, 2))
        .eval()
        .requires_grad_(False)
    )
    graph = doubled(trace(model, torch.rand(1, 2, 5, 5)))
    exact = Product(graph, "l2", CPU)(0, 1)
    monkeypatch.setattr(products, "LIMIT", 0)
    assert exact <= Product(graph, "l2", CPU)(0, 1) <= 1.2 * exact


@pytest.mark.parametrize("norm, method", METHODS)
def test_no_certified_input_is_broken(norm, method):
    model, graph = traced(3, 6, 3, activation=nn.Tanh)
    x = torch.rand(24, 3, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    y[::5] = (y[::5] + 1) % 3
    eps = torch.linspace(0.02, 0.3, 24)
    threat = Ball(norm, eps, 0.0, 1.0)
    found = Lipschitz(threat, method)(graph, x, y)
    assert found.certified.any() and not found.certified.all()
    assert not bool(found.certified[model(x).argmax(1) != y].any())
    assert bool((found.radius[found.certified] >= eps[found.certified]).all())
    adversarial = PGD(threat, steps=20)(model, x, y)
    broken = model(adversarial).argmax(1) != y
    assert not bool((found.certified & broken).any())
    logits = model(adversarial)
    margin = logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(1)
    assert bool((found.margin <= margin + 1e-5).all())


@pytest.mark.parametrize("norm, method", METHODS)
def test_a_radius_is_below_every_adversarial_distance(norm, method):
    model, graph = traced(2, 5, 3, seed=4)
    x = torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    found = Lipschitz(Ball(norm, 0.5, None, None), method)(graph, x, y)
    line = torch.linspace(-1, 1, 161)
    steps = torch.cartesian_prod(line, line)
    for row in range(6):
        other = model(x[row] + steps).argmax(1) != y[row]
        if other.any():
            assert float(found.radius[row]) <= float(norm_of(steps[other], norm).amin()) + 1e-6


def test_a_local_bound_knows_bounds_and_mask_and_functions_without_a_largest_slope():
    model = nn.Sequential(nn.Linear(4, 5), Named(torch.exp), nn.Linear(5, 3)).eval().requires_grad_(False)
    x = torch.rand(5, 4)
    y = model(x).argmax(1)
    whole = Lipschitz(Ball("l2", 0.2, None, None), "local")(model, x, y)
    cut = Lipschitz(Ball("l2", 0.2, 0.0, 1.0), "local")(model, x, y)
    masked = Lipschitz(Ball("l2", 0.2, 0.0, 1.0, mask=torch.tensor([1, 0, 0, 1])), "local")(model, x, y)
    assert bool((whole.margin <= cut.margin + 1e-6).all()) and bool((cut.margin < masked.margin).all())
    with pytest.raises(CertifyError, match="a largest slope"):
        Lipschitz(Ball("l2", 0.2))(model, x, y)


class Named(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


@pytest.mark.parametrize("name", sorted(set(CURVES) - {"pow"}))
def test_slopes_hold_what_is_between(name):
    curve = CURVES[name](*{"clamp": (-0.3, 0.8), "clamp_min": (0.2,), "clamp_max": (0.2,)}.get(name, ()))
    generator = torch.Generator().manual_seed(0)
    low, high = (torch.rand(2, 300, generator=generator, dtype=torch.float64) * 8 - 4).sort(0).values
    if math.isfinite(curve.low):
        low, high = low + 5 + curve.low, high + 5 + curve.low
    least, most = slopes(curve, low, high)
    for share in torch.linspace(0, 1, 101, dtype=torch.float64):
        slope = curve.df(low + share * (high - low))
        assert bool(((least - 1e-9 <= slope) & (slope <= most + 1e-9)).all())


@pytest.mark.parametrize(
    ("norm", "method"), [("linf", "product"), ("l1", "local"), ("l2", "lipsdp-neuron"), ("linf", "lipopt")]
)
def test_margins_are_those_of_what_the_threat_lies_around(norm, method):
    """An input may be a little above its bounds; a steep model has another margin where they move it."""
    model = nn.Sequential(nn.Linear(3, 2)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1e5, 0.0, 0.0], [0.0, 0.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([-1e5, 0.3]))
    x, ball = torch.tensor([[1 + 8e-6, 0.5, 0.5]], dtype=torch.float64), Ball(norm, 1e-7)
    found = Lipschitz(ball, method)(model, x, torch.tensor([0]))
    assert found.prediction.tolist() == [0] and not found.certified.any() and not found.radius.any()
    assert float(found.margin) <= -0.3


@pytest.mark.parametrize(
    "certifier", [Lipschitz(Ball("l2", 0.1)), certify.CROWN(Ball("l2", 0.1)), certify.WongKolter(Ball("l2", 0.1))]
)
def test_half_precision_is_no_proof(certifier):
    """Bounds in bfloat16 came out above those of exact arithmetic with the same weights."""
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).bfloat16().eval(), torch.rand(2, 3).bfloat16()
    with pytest.raises(CertifyError, match=r"float32 or float64, got torch\.bfloat16"):
        certifier(model, x, torch.tensor([0, 1]))


def test_nothing_of_a_model_changes():
    model = perceptron(3, 4, 3).requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for norm, method in (("linf", "product"), ("l1", "local"), ("l2", "lipsdp-layer")):
        Lipschitz(Ball(norm, 0.1), method)(model, torch.rand(3, 3), torch.tensor([0, 1, 2]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_path_norm_is_a_sum_over_paths_between_gradient_and_product():
    model = perceptron(3, 5, 2, seed=2)
    first, last = model[0].weight, model[2].weight
    paths = sum(abs(float(last[k, i] * first[i, j])) for i, j, k in itertools.product(range(5), range(3), range(2)))
    assert float(path_norm(first, last)) == pytest.approx(paths, rel=1e-5)
    jacobian = torch.autograd.functional.jacobian(lambda z: model(z).sum(0), torch.randn(200, 3))
    assert (
        float(jacobian.abs().sum((0, 2)).amax())
        <= paths
        <= float(last.abs().sum() * first.abs().sum(1).amax()) * (1 + 1e-6)
    )


def cost(v, w, v0, w0, weight):
    return 0.5 * ((v - v0) ** 2).sum() + 0.5 * ((w - w0) ** 2).sum() + weight * abs(v).sum() * abs(w).sum()


@given(
    seed=st.integers(0, 2**20), m=st.integers(1, 5), n=st.integers(1, 4), weight=st.sampled_from([0.0, 0.05, 0.4, 1.5])
)
@settings(max_examples=30, deadline=None)
def test_the_prox_is_no_worse_than_any_search(seed, m, n, weight):
    random = np.random.default_rng(seed)
    v0, w0 = random.normal(size=m), random.normal(size=n)
    first, last = path_norm_prox(torch.tensor(v0)[None], torch.tensor(w0)[:, None], weight)
    found = cost(first[0].numpy(), last[:, 0].numpy(), v0, w0, weight)
    for _ in range(8):  # alternating minimisation, each half in closed form
        w = w0 * random.uniform(0, 1.5, size=n) * random.choice([0, 1], size=n, p=[0.2, 0.8])
        for _ in range(60):
            v = np.sign(v0) * np.maximum(abs(v0) - weight * abs(w).sum(), 0)
            w = np.sign(w0) * np.maximum(abs(w0) - weight * abs(v).sum(), 0)
        assert found <= cost(v, w, v0, w0, weight) + 1e-12


def test_the_prox_of_many_units_is_that_of_each():
    generator = torch.Generator().manual_seed(0)
    first, last = torch.randn(7, 5, generator=generator), torch.randn(3, 7, generator=generator)
    whole = path_norm_prox(first, last, 0.2)
    for unit in range(7):
        one = path_norm_prox(first[unit : unit + 1], last[:, unit : unit + 1], 0.2)
        assert torch.allclose(whole[0][unit], one[0][0]) and torch.allclose(whole[1][:, unit], one[1][:, 0])
    turned = path_norm_prox(last.T, first.T, 0.2)
    assert torch.allclose(turned[0], whole[1].T, atol=1e-6) and torch.allclose(turned[1], whole[0].T, atol=1e-6)


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(x + torch.relu(self.first(x)))


@pytest.mark.parametrize("call, words", [
    (lambda x, y: Lipschitz(Ball("l2", 0.1), "spectral"), "a method among product, local"),
    (lambda x, y: Lipschitz(Ball("l0", 1.0)), "got l0"),
    (lambda x, y: Lipschitz(lift(Spatial(), Ball("linf", 0.1))), "a Ball"),
    (lambda x, y: Lipschitz(Ball("linf", 0.1), "lipsdp-neuron"), "a threat of l2"),
    (lambda x, y: Lipschitz(Ball("l2", 0.1), "lipopt"), "a threat of linf"),
    (lambda x, y: Lipschitz(Ball("l2", 0.1))(perceptron(3, 4, 2), x, y.float()), "labels"),
    (lambda x, y: Lipschitz(Ball("l2", 0.1))(perceptron(3, 4, 2), x, y + 2), "labels from 0 to 1"),
    (lambda x, y: Lipschitz(Ball("l2", 0.1))(perceptron(3, 4, 2).train(), x, y), "evaluation mode"),
    (lambda x, y: Lipschitz(Ball("l2", 0.1), "lipsdp-layer")(Skip().eval(), x, y), "one after the other"),
    (lambda x, y: Lipschitz(Ball("l2", 0.1))(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).eval(), x, y), "CROWN or smoothing|largest slope"),
    (lambda x, y: Lipschitz(Ball("l2", 0.1), "lipsdp-layer")(perceptron(3, 501, 2), x, y), "at most 500 units"),
    (lambda x, y: Lipschitz(Ball("linf", 0.1), "lipopt")(perceptron(3, 90, 90, 2), x, y), "products for LiPopt"),
    (lambda x, y: lipopt(Chain([torch.ones(2, 2), torch.ones(1, 2)], [(0.0, 1.0)]), degree=1), "at least the 2 layers"),
    (lambda x, y: Lipschitz(Ball("l2", float("inf"), None, None), "local")(perceptron(3, 4, 2), x, y), "finite"),
])  # fmt: skip
def test_bad_input(call, words):
    with pytest.raises(CertifyError, match=words):
        call(torch.rand(2, 3), torch.tensor([0, 1]))


def test_a_negative_weight_of_the_prox_is_refused():
    with pytest.raises(ValueError, match="not negative"):
        path_norm_prox(torch.ones(1, 1), torch.ones(1, 1), -1.0)


def test_constants_do_not_depend_on_the_order_of_a_pair():
    graph = doubled(trace(perceptron(2, 4, 3), torch.rand(1, 2)))
    pair = constants("lipsdp-neuron", graph, "l2", CPU)
    assert pair(0, 2) == pair(2, 0)
