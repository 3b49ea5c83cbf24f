"""The dual network against explicit matrices, linear programs and brute force; envelopes and boxes against their definitions."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adversarial.attacks.gradient import PGD
from adversarial.threat import Ball
from certify import CROWN, CertifyError, NonUniformBox, PolyhedralEnvelope, WongKolter, radius_of, trace
from certify.linear.envelope import distance
from certify.linear.polytope import DualNetwork

NORMS = {"linf": (0.05, 1.0), "l2": (0.15, 2.0), "l1": (0.4, math.inf)}  # a size, and the dual norm


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def mlp(*sizes, seed=0):
    """A network that predicts more than one class in the unit box."""
    torch.manual_seed(seed)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers[:-1]).double().eval().requires_grad_(False)
    model[0].weight *= 3
    model[0].bias -= model[0].weight.sum(1) / 2
    model[-1].bias -= model(torch.full((1, sizes[0]), 0.5, dtype=torch.float64))[0]
    return model


def convolutional(seed=0, shape=(2, 7, 8)):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 6, 3, 1, 1, groups=3), nn.BatchNorm2d(6), nn.ReLU()]
    layers += [nn.Conv2d(6, 4, (3, 2), (1, 2), (1, 0), dilation=(2, 1)), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    model[3].running_mean.uniform_(-0.2, 0.2)
    model[3].running_var.uniform_(0.5, 1.5)
    model = model.eval().requires_grad_(False)
    x = torch.full((1, *shape), 0.5, dtype=torch.float64)
    for layer in model:  # every ReLU is about as often on as off
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.weight *= 3
            layer.bias -= layer(x).transpose(0, 1).flatten(1).mean(1)
        x = layer(x)
    return model


@cache
def known(kind):
    """A model, its trace, and the shape of its inputs: tracing takes longer than most of these tests."""
    model, shape = (mlp(6, 20, 15, 4), (6,)) if kind == "mlp" else (convolutional(), (2, 7, 8))
    return model, trace(model, torch.rand(1, *shape, dtype=torch.float64)), shape


def steps_of(model, shape):
    """A chain of affine maps as dense matrices and offsets, one for each stretch between two ReLUs."""
    found, size = [], shape
    stretch = []
    for layer in [*model, nn.ReLU()]:
        if isinstance(layer, nn.ReLU):
            affine = nn.Sequential(*stretch)
            eye = torch.eye(math.prod(size), dtype=torch.float64).view(-1, *size)
            offset = affine(torch.zeros(1, *size, dtype=torch.float64))
            found.append(((affine(eye) - offset).flatten(1).T, offset.flatten()))
            size, stretch = offset.shape[1:], []
        else:
            stretch.append(layer)
    return found


def fast_lin(steps, x, eps, dual, y):
    """Fast-Lin of one input by explicit matrices: the same slope below and above, and no box."""
    boxes = []
    for k in range(len(steps)):
        matrix, offset = steps[k]
        if k == len(steps) - 1:
            turn = torch.eye(len(offset), dtype=x.dtype)
            matrix, offset = (turn[y] - turn) @ matrix, (turn[y] - turn) @ offset
        low, high = offset.clone(), offset.clone()
        for j in range(k - 1, -1, -1):
            bottom, top = boxes[j]
            undecided = (bottom < 0) & (top > 0)
            slope = torch.where(undecided, top / (top - bottom), (bottom >= 0).double())
            gap = torch.where(undecided, -slope * bottom, 0)
            low, high = low + matrix.clamp(max=0) @ gap, high + matrix.clamp(min=0) @ gap
            matrix = matrix * slope
            low, high = low + matrix @ steps[j][1], high + matrix @ steps[j][1]
            matrix = matrix @ steps[j][0]
        size = eps * torch.linalg.vector_norm(matrix, dual, dim=1)
        boxes.append((low + matrix @ x - size, high + matrix @ x + size))
    return boxes


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["mlp", "convolutional"])
def test_the_dual_equals_explicit_matrices(kind, norm):
    model, traced, shape = known(kind)
    eps, dual = NORMS[norm]
    x = torch.rand(4, *shape, dtype=torch.float64)
    y = model(x).argmax(1)
    ball = Ball(norm, eps, None, None)
    network = DualNetwork.of(traced, x)
    found, boxes = network.margins(ball.around(x), y), network.boxes(ball.around(x))
    assert all(bool(((low < 0) & (high > 0)).any()) for low, high in boxes.values())
    for row in range(len(x)):
        *inner, (low, _) = fast_lin(steps_of(model, shape), x[row].flatten(), eps, dual, y[row])
        assert torch.allclose(found[row], low, atol=1e-9)
        for (bottom, top), (below, above) in zip(inner, boxes.values(), strict=True):
            assert torch.allclose(below[row].flatten(), bottom, atol=1e-9)
            assert torch.allclose(above[row].flatten(), top, atol=1e-9)
    assert torch.allclose(WongKolter(ball)(traced, x, y).margin, found.scatter(1, y[:, None], math.inf).amin(1))


def triangles(steps, x, eps, y, other, boxes):
    """The linear program over the triangles of given boxes: the least margin, by HiGHS."""
    import numpy as np
    from scipy.optimize import linprog

    sizes = [len(x)] + [len(offset) for _, offset in steps[:-1] for _ in range(2)]  # x, then ẑ and z of every layer
    starts = np.concatenate([[0], np.cumsum(sizes)])
    limits = [(float(v) - eps, float(v) + eps) for v in x]
    equal, right, below, most = [], [], [], []

    def row(parts):
        line = np.zeros(starts[-1])
        for start, values in parts:
            line[start : start + len(values)] = values
        return line

    for k, (matrix, offset) in enumerate(steps[:-1]):
        before, inner, after = starts[0 if k == 0 else 2 * k], starts[2 * k + 1], starts[2 * k + 2]
        low, high = (side.numpy() for side in boxes[k])
        limits += list(zip(low, high, strict=True)) + [
            (max(a, 0.0), max(b, 0.0)) for a, b in zip(low, high, strict=True)
        ]
        for j, (a, b) in enumerate(zip(low, high, strict=True)):
            equal.append(row([(inner + j, [1.0]), (before, -matrix[j].numpy())]))
            right.append(float(offset[j]))
            below.append(row([(inner + j, [1.0]), (after + j, [-1.0])]))  # z ≥ ẑ
            most.append(0.0)
            slope = 1.0 if a >= 0 else 0.0 if b <= 0 else b / (b - a)
            below.append(row([(after + j, [1.0]), (inner + j, [-slope])]))
            most.append(-slope * a if a < 0 < b else 0.0)
    turn = steps[-1][0][y] - steps[-1][0][other]
    solved = linprog(row([(starts[-2], turn.numpy())]), below, most, equal, right, limits, method="highs")
    return solved.fun + float(steps[-1][1][y] - steps[-1][1][other])


def test_the_dual_is_never_above_the_linear_program_nor_that_above_brute_force():
    eps = 0.15
    for seed in range(2):
        model = mlp(2, 7, 6, 3, seed=seed)
        x = torch.rand(2, 2, dtype=torch.float64)
        y = model(x).argmax(1)
        region = Ball("linf", eps, None, None).around(x)
        network = DualNetwork.of(model, x)
        found, boxes = network.margins(region, y), list(network.boxes(region).values())
        line = torch.linspace(-eps, eps, 60, dtype=torch.float64)
        for row in range(2):
            logits = model(x[row] + torch.cartesian_prod(line, line))
            own = [(low[row], high[row]) for low, high in boxes]
            for other in {0, 1, 2} - {int(y[row])}:
                exact = float((logits[:, y[row]] - logits[:, other]).min())
                relaxed = triangles(steps_of(model, (2,)), x[row], eps, y[row], other, own)
                assert float(found[row, other]) <= relaxed + 1e-7 and relaxed <= exact + 1e-7


def test_the_dual_equals_the_linear_program_where_every_relu_is_decided():
    model = mlp(3, 8, 3)
    x = torch.rand(3, 3, dtype=torch.float64)
    y, eps = model(x).argmax(1), 1e-4
    region = Ball("linf", eps, None, None).around(x)
    network = DualNetwork.of(model, x)
    ((low, high),) = network.boxes(region).values()
    assert not bool(((low < 0) & (high > 0)).any())
    found = network.margins(region, y)
    for row in range(3):
        for other in {0, 1, 2} - {int(y[row])}:
            relaxed = triangles(steps_of(model, (3,)), x[row], eps, y[row], other, [(low[row], high[row])])
            assert float(found[row, other]) == pytest.approx(relaxed, abs=1e-8)


@pytest.mark.parametrize("norm", NORMS)
def test_margins_hold_at_points_of_the_threat_and_the_box_only_helps(norm):
    (model, traced, _), eps = known("convolutional"), NORMS[norm][0]
    x = torch.rand(5, 2, 7, 8, dtype=torch.float64)
    y = model(x).argmax(1)
    free, boxed = Ball(norm, eps, None, None), Ball(norm, eps)
    found = [WongKolter(ball)(traced, x, y).margin for ball in (free, boxed)]
    assert (found[1] >= found[0] - 1e-9).all()
    generator = torch.Generator().manual_seed(0)
    for ball, least in zip((free, boxed), found, strict=True):
        points = [ball.sample(x, generator) for _ in range(40)]
        logits = model(x)
        points += [ball.around(x).best(F.one_hot(y, 3).double() @ torch.randn(3, x[0].numel()).double()).view_as(x)]
        for point in points:
            logits = model(point)
            truth = logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -math.inf).amax(1)
            assert (truth >= least - 1e-9).all()


def test_the_dual_follows_the_weights_and_has_their_gradient():
    model = convolutional(2).requires_grad_()
    x = torch.rand(2, 2, 7, 8, dtype=torch.float64)
    y = torch.tensor([0, 2])
    network, region = DualNetwork.of(model, x), Ball("linf", 0.05).around(x)

    def loss():
        return F.cross_entropy(-network.margins(region, y), y)

    value = loss()
    value.backward()
    with torch.no_grad():
        for weight in (model[0].weight, model[2].weight, model[5].bias, model[9].weight, model[11].bias):
            place = (0,) * weight.ndim
            step, kept = 1e-6, weight[place].clone()
            weight[place] = kept + step
            above = loss()
            weight[place] = kept - step
            below = loss()
            weight[place] = kept
            assert float(weight.grad[place]) == pytest.approx(float(above - below) / (2 * step), rel=1e-4, abs=1e-7)
    before = [p.detach().clone() for p in model.parameters()]
    WongKolter(Ball("linf", 0.05))(model, x, y)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_factors_and_products_after_the_last_relu_have_their_gradient():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Parameter(torch.rand(4)), nn.Parameter(torch.randn(4, 3))

        def forward(self, x):
            return (x * self.first - 0.3).relu() @ self.last

    model, x, y = Scaled().double().eval(), torch.rand(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    network, region = DualNetwork.of(model, x), Ball("linf", 0.1).around(x)

    def total(first, last):
        with torch.no_grad():
            for parameter, value in ((model.first, first), (model.last, last)):
                parameter.copy_(value)
        return network.margins(region, y).sum()

    found = torch.autograd.grad(total(model.first, model.last), (model.first, model.last))
    values = [each.detach().clone() for each in (model.first, model.last)]
    for place, (value, gradient) in enumerate(zip(values, found, strict=True)):
        step = torch.zeros_like(value)
        step[(1,) * value.ndim] = 1e-6
        shifted = [[v + sign * step if k == place else v for k, v in enumerate(values)] for sign in (1, -1)]
        slope = float(total(*shifted[0]) - total(*shifted[1])) / 2e-6
        assert slope and float(gradient[(1,) * value.ndim]) == pytest.approx(slope, rel=1e-5)


def test_a_transposed_weight_is_not_the_weight():
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return (x @ self.weight.t()).relu() @ self.weight

    model, x = Transposed().eval(), torch.rand(2, 4)
    y = model(x).argmax(1)
    logits = model(x)
    clean = logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -math.inf).amax(1)
    assert torch.allclose(WongKolter(Ball("linf", 1e-6))(model, x, y).margin, clean, atol=1e-4)


def test_training_with_the_dual_raises_what_is_certified():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    x = torch.rand(200, 2)
    y = (x[:, 0] + 0.3 * (6 * x[:, 1]).sin() > 0.6).long()
    ball = Ball("linf", 0.03)
    optimizer, network = torch.optim.Adam(model.parameters(), 0.01), DualNetwork.of(model, x)
    before = WongKolter(ball)(model, x, y).certified_accuracy
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(-network.margins(ball.around(x), y), y).backward()
        optimizer.step()
    after = WongKolter(ball)(model, x, y).certified_accuracy
    assert after > 0.8 and after > before + 0.2


def test_one_sample_at_a_time_and_eps_of_each_sample():
    model, traced, shape = known("convolutional")
    x = torch.rand(4, *shape, dtype=torch.float64)
    y = model(x).argmax(1)
    eps = torch.tensor([0.01, 0.02, 0.05, 0.0], dtype=torch.float64)
    whole = WongKolter(Ball("linf", eps))(traced, x, y)
    for row in range(3):
        alone = WongKolter(Ball("linf", float(eps[row])))(traced, x[row : row + 1], y[row : row + 1], batch_size=1)
        assert float(whole.margin[row]) == pytest.approx(float(alone.margin), abs=1e-5)
    logits = model(x[3:])
    clean = logits[0, y[3]] - logits[0].scatter(0, y[3], -math.inf).amax()
    assert float(whole.margin[3]) == pytest.approx(float(clean), abs=1e-5)
    assert torch.equal(WongKolter(Ball("linf", eps))(traced, x, y, batch_size=3).certified, whole.certified)


@pytest.mark.parametrize("norm", NORMS)
def test_the_radius_of_a_linear_model_is_its_distance(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 9), nn.Linear(9, 4)).double().eval()
    x, dual = torch.rand(12, 7, dtype=torch.float64), NORMS[norm][1]
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4
    weight, out = model[1].weight @ model[0].weight, model(x)
    gap = out.gather(1, y[:, None]) - out
    distance = gap / torch.linalg.vector_norm(weight[y].unsqueeze(1) - weight, dual, dim=2)
    exact = distance.scatter(1, y[:, None], math.inf).amin(1).detach()
    traced = trace(model, x)
    found = radius_of(WongKolter(Ball(norm, 1.0, None, None)), traced, x, y, steps=20)
    assert found[0] == 0 and (found[1:] <= exact[1:] + 1e-9).all()
    assert torch.allclose(found[1:], exact[1:], rtol=2e-3)
    few = radius_of(WongKolter(Ball(norm, 1.0, None, None)), traced, x, y, steps=6)
    assert (few <= found + 1e-9).all()


def test_a_radius_is_certified_itself():
    model, traced, shape = known("mlp")
    x = torch.rand(6, *shape, dtype=torch.float64)
    y = model(x).argmax(1)
    found = radius_of(CROWN(Ball("linf", 1.0)), traced, x, y, steps=6)
    assert (found > 0).any()
    again = CROWN(Ball("linf", found.clamp_min(1e-6)))(traced, x, y)
    assert again.certified[found > 0].all()


@pytest.mark.parametrize("norm", NORMS)
def test_distances_to_planes_are_exact_inside_a_box(norm):
    from scipy.optimize import brentq

    generator = torch.Generator().manual_seed(0)
    a = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    a[:5, 2:] = 0
    x = torch.rand(60, 6, generator=generator, dtype=torch.float64)
    x[5:10, :3] = 1.0  # no room upwards
    height = torch.rand(60, generator=generator, dtype=torch.float64) * 2 - 0.2
    found = distance(a, height, Ball(norm, 100.0).around(x), iterations=40)

    def left(row, r):
        return float(height[row] - Ball(norm, r).around(x[row : row + 1]).support(-a[row : row + 1]))

    for row in range(60):
        if height[row] <= 0:
            assert found[row] == 0
        elif left(row, 50.0) > 1e-9:
            assert found[row] == math.inf
        else:
            assert float(found[row]) == pytest.approx(brentq(lambda r, row=row: left(row, r), 1e-9, 50.0), rel=1e-4)
    early = distance(a, height, Ball(norm, 100.0).around(x), iterations=1)
    assert (early <= found + 1e-9).all() and (found.isinf().any() and found.isfinite().any())


@pytest.mark.parametrize("norm", NORMS)
def test_an_envelope_shows_part_of_a_threat(norm):
    model, traced, _ = known("mlp")
    x = torch.rand(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    exact = radius_of(WongKolter(Ball(norm, 1.0)), traced, x, y, steps=20)
    size = float(exact.median()) * 1.1
    ball = Ball(norm, size)
    found, whole = PolyhedralEnvelope(ball)(traced, x, y), WongKolter(ball)(traced, x, y)
    assert torch.allclose(found.margin, whole.margin) and torch.equal(found.certified, whole.certified)
    assert (found.radius >= whole.radius).all() and (found.radius <= size).all()
    assert ((found.radius > 0) & ~whole.certified).sum() > 5
    some = (found.radius > 0).nonzero()[:, 0]
    worst = PGD(Ball(norm, found.radius[some]), loss="margin", steps=20)(model, x[some], y[some])
    logits = model(worst)
    least = logits.gather(1, y[some, None])[:, 0] - logits.scatter(1, y[some, None], -math.inf).amax(1)
    assert (least >= -1e-6).all()  # a plane that is exact ends at the boundary itself
    few = {kind: radius_of(kind(ball), traced, x, y, start=size, steps=3) for kind in (WongKolter, PolyhedralEnvelope)}
    assert few[PolyhedralEnvelope].mean() > few[WongKolter].mean()


def test_a_box_is_larger_than_the_cube_and_holds():
    model = mlp(5, 16, 12, 3)
    with torch.no_grad():
        model[0].weight[:, 0] *= 0.05  # a feature that matters little
    x = torch.rand(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    traced = trace(model, x)
    certifier = NonUniformBox(Ball("linf", 0.01), iterations=150, every=30)
    found = certifier.widths(traced, x, y)
    cube = radius_of(WongKolter(Ball("linf", 1.0, None, None)), traced, x, y)
    assert (found[0] == 0).all() and (found[1:] > 0).all()
    gain = found[1:].log().mean(1) - cube[1:].log()
    assert (gain > 0).all() and gain.mean() > 0.15
    assert (found[1:, 0] > 2 * found[1:, 1:].mean(1)).all()
    own = Ball("linf", found.clamp_min(1e-12), None, None)
    assert WongKolter(own)(traced, x, y).certified[1:].all()
    worst = PGD(own, loss="margin", steps=20)(model, x, y)
    assert (model(worst).argmax(1) == y)[1:].all()
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        assert (model(own.sample(x, generator)).argmax(1) == y)[1:].all()
    given = certifier(traced, x, y)
    assert torch.equal(given.radius, found.amin(1)) and torch.equal(given.certified, (found >= 0.01).all(1))


def test_the_box_of_a_linear_model_is_known():
    # the largest box under one plane gives every feature the same share of the margin: ε_i = height / (D |a_i|)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 2)).double().eval().requires_grad_(False)
    x = torch.rand(3, 4, dtype=torch.float64)
    logits = model(x)
    y = logits.argmax(1)
    a = (model[0].weight[0] - model[0].weight[1]).abs()
    exact = (logits[:, 0] - logits[:, 1]).abs()[:, None] / (4 * a)
    found = NonUniformBox(Ball("linf", 0.1), iterations=150, every=30).widths(model, x, y)
    assert ((found * a).sum(1) <= (logits[:, 0] - logits[:, 1]).abs() + 1e-9).all()
    assert torch.allclose(found, exact, rtol=0.05)


def test_what_is_no_chain_is_said_in_one_sentence():
    x, y = torch.rand(2, 5), torch.tensor([0, 1])
    ball = Ball("linf", 0.1)
    with pytest.raises(CertifyError, match="chain of linear layers and ReLU, got tanh"):
        WongKolter(ball)(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).eval(), x, y)

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x):
            return x + self.layer(x).relu()

    with pytest.raises(CertifyError, match="chain of linear layers and ReLU, got add of"):
        WongKolter(ball)(Skip().eval(), x, y)
    with pytest.raises(CertifyError, match="labels from 0 to 2, got 3 in row 0"):
        WongKolter(ball)(nn.Linear(5, 3).eval(), x, torch.tensor([3, 0]))
    with pytest.raises(CertifyError, match="a Ball in linf, l2 or l1"):
        radius_of(WongKolter(Ball("l0", 2)), nn.Linear(5, 3).eval(), x, y)
    with pytest.raises(CertifyError, match="for an envelope"):
        PolyhedralEnvelope(Ball("l0", 2))(nn.Linear(5, 3).eval(), x, y)
    with pytest.raises(CertifyError, match="linf without a mask for a box"):
        NonUniformBox(Ball("l2", 0.1))(nn.Linear(5, 3).eval(), x, y)
    with pytest.raises(CertifyError, match="steps above 0"):
        radius_of(WongKolter(ball), nn.Linear(5, 3).eval(), x, y, steps=0)
