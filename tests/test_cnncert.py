"""CNN-Cert's bounds against patch tensors written out by hand, its lines against their curves, its radius against samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from adversarial.attacks.gradient import PGD
from adversarial.goals import Targeted
from adversarial.threat import Ball
from certify import Certificate, CertifyError, CNNCert, WongKolter, trace
from certify.engine.curves import CURVES
from certify.linear.cnncert import Lines, slopes_of

DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


class Skip(nn.Module):
    """A residual block with folded batch normalisation, both kinds of pooling, and a head."""

    def __init__(self, activation):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])
        self.activation, self.head = activation, nn.Linear(3 * 4, 3)
        for norm in self.norms:
            norm.running_mean.uniform_(-0.3, 0.3)
            norm.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.3, 0.3)

    def forward(self, x):
        x = self.activation(self.norms[0](self.first(x)))
        x = self.activation(x + self.norms[1](self.second(x)))
        return self.head(nn.functional.avg_pool2d(nn.functional.max_pool2d(x, 3, 1), 2).flatten(1))


def made(factory, seed=0):
    torch.manual_seed(seed)
    return factory().double().eval().requires_grad_(False)


def convolutions():
    relu = nn.ReLU()
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, 2, 1), relu, nn.Conv2d(3, 4, 2, 1, 1), relu, nn.Conv2d(4, 3, 5), nn.Flatten()
    )


def margins_by_patches(layers, x, eps, dual, y):
    """CNN-Cert by its recursion: A of (place, place, row, window, window, channel), grown backwards, in numpy."""
    weights = [layer.weight.numpy().transpose(0, 2, 3, 1) for layer in layers]  # (out, k, k, in)
    biases = [layer.bias.numpy() for layer in layers]
    turn = np.eye(len(biases[-1]))[y] - np.eye(len(biases[-1]))
    weights[-1], biases[-1] = np.einsum("rj,jklc->rklc", turn, weights[-1]), turn @ biases[-1]
    images, steps = [x.numpy().transpose(1, 2, 0)], [(layer.stride[0], layer.padding[0]) for layer in layers]
    low, high = [], []

    def look(image, size, stride, padding, places):
        """What windows see, zero outside: (place, place, window, window, channel)."""
        wide = np.pad(image, ((padding, size + padding), (padding, size + padding), (0, 0)))
        rows = [
            [wide[stride * i : stride * i + size, stride * j : stride * j + size] for j in range(places)]
            for i in range(places)
        ]
        return np.array(rows)

    def bound(k, places, sign):
        """The least of sign·(output of layer k), everywhere."""
        a = np.broadcast_to(sign * weights[k], (places, places, *weights[k].shape))
        (stride, padding), total = steps[k], np.broadcast_to(sign * biases[k], (places, places, len(biases[k])))
        for i in range(k - 1, -1, -1):
            bottom, top = (look(side[i], a.shape[3], stride, padding, places)[:, :, None] for side in (low, high))
            wide = np.where(top > bottom, top - bottom, 1)
            chord = np.where(bottom >= 0, 1.0, np.where(top <= 0, 0.0, top / wide))
            under = np.where((bottom < 0) & (top > 0), (top >= -bottom).astype(float), chord)
            inside = look(np.ones_like(low[i]), a.shape[3], stride, padding, places)[:, :, None]
            gap = np.where((bottom < 0) & (top > 0), -chord * bottom, 0)
            total = total + (np.minimum(a, 0) * gap).sum((3, 4, 5))
            a = (np.maximum(a, 0) * under + np.minimum(a, 0) * chord) * inside
            total = total + (a * biases[i]).sum((3, 4, 5))
            (s, p), window, kernel = steps[i], a.shape[3], weights[i].shape[1]
            grown = np.zeros((*a.shape[:3], s * (window - 1) + kernel, s * (window - 1) + kernel, weights[i].shape[3]))
            for u in range(window):
                for v in range(window):
                    grown[:, :, :, s * u : s * u + kernel, s * v : s * v + kernel] += np.einsum(
                        "yxrj,jklc->yxrklc", a[:, :, :, u, v], weights[i]
                    )
            a, stride, padding = grown, stride * s, padding * s + p
        inside = look(np.ones_like(images[0]), a.shape[3], stride, padding, places)[:, :, None]
        seen = look(images[0], a.shape[3], stride, padding, places)[:, :, None]
        size = np.linalg.norm((a * inside).reshape(*a.shape[:3], -1), dual, axis=3)
        return (a * seen).sum((3, 4, 5)) + total - eps * size

    size = len(images[0])
    for k, (stride, padding) in enumerate(steps):
        places = (size + 2 * padding - weights[k].shape[1]) // stride + 1
        below = bound(k, places, 1)
        if k == len(steps) - 1:
            return np.delete(below[0, 0], y).min()
        low.append(below)
        high.append(-bound(k, places, -1))
        size = places
    return None


@pytest.mark.parametrize("norm", DUAL)
def test_bounds_equal_the_papers_patch_tensors(norm):
    model = made(convolutions)
    x = torch.rand(3, 2, 7, 7, dtype=torch.float64)
    y = model(x).argmax(1)
    layers = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    traced = trace(model, x)
    for eps, close in ((0.003, 1e-9), (0.05, 5e-3)):  # in the larger one intervals cut a few boxes more
        eps = eps * {"linf": 1, "l2": 3, "l1": 10}[norm]
        found = Lines(Ball(norm, eps, None, None))(traced, x, y).margin
        for row in range(3):
            exact = margins_by_patches(layers, x[row], eps, DUAL[norm], int(y[row]))
            assert float(found[row]) == pytest.approx(exact, abs=close)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "atan"])
def test_lines_are_the_papers(name):
    curve = CURVES[name]()
    generator = torch.Generator().manual_seed(0)
    ends = torch.randn(500, 2, generator=generator, dtype=torch.float64) * 3
    low, high = ends.amin(1), ends.amax(1)
    below, above = slopes_of(curve, low, high)
    chord = (curve.f(high) - curve.f(low)) / (high - low)
    middle = curve.df((low + high) / 2)
    right, left = low >= 0, high <= 0
    assert torch.allclose(below[right], chord[right]) and torch.allclose(above[right], middle[right])
    assert torch.allclose(above[left], chord[left]) and torch.allclose(below[left], middle[left])
    across = ~(right | left)
    for slope, end, lower in ((above, low, False), (below, high, True)):
        offset = curve.intercept(low, high, slope, lower=lower)
        line = slope * end + offset
        assert torch.allclose(line[across], curve.f(end)[across], atol=1e-4)  # through the far end
    same = slopes_of(CURVES["relu"](), low, high, "same")
    assert torch.equal(same[0], same[1])


@pytest.mark.parametrize(
    "norm, activation",
    [
        ("linf", nn.ReLU()),
        pytest.param("l2", nn.Sigmoid(), marks=pytest.mark.slow),
        pytest.param("l1", nn.Tanh(), marks=pytest.mark.slow),
    ],
)
def test_no_attack_succeeds_within_a_radius(norm, activation):
    model = made(lambda: Skip(activation))
    x = torch.rand(3, 1, 6, 6, dtype=torch.float64)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    eps = {"linf": 0.02, "l2": 0.05, "l1": 0.1}[norm]
    found = CNNCert(Ball(norm, eps), steps=4)(model, x, y)
    assert found.radius[0] == 0 and not found.certified[0] and (found.radius[1:] > 0).all()
    assert torch.equal(found.certified, found.radius >= eps) and found.guarantee == "deterministic"
    assert found.certified[(found.margin > 0) & (found.prediction == y)].all()
    ball = Ball(norm, found.radius.clamp_min(1e-9))
    worst = PGD(ball, loss="margin", steps=20)(model, x, y)
    assert (model(worst).argmax(1) == y)[1:].all()


PADDED = nn.Sequential(
    nn.Conv2d(2, 4, 4, padding="same"), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect")
)
CHAINS = {
    "one dimension": (lambda: [nn.Conv1d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv1d(4, 3, 3), nn.ReLU()], (2, 12)),
    "padded": (lambda: [*PADDED, nn.ReLU()], (2, 6, 5)),
    "transposed": (lambda: [nn.Conv2d(2, 4, 3, 2), nn.ReLU(), nn.ConvTranspose2d(4, 3, 3, 2), nn.ReLU()], (2, 7, 7)),
    "pooled": (lambda: [nn.Conv2d(2, 4, 3), nn.AvgPool2d(2), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.ReLU()], (2, 8, 8)),
    "made an image": (
        lambda: [nn.Linear(6, 16), nn.Unflatten(1, (1, 4, 4)), nn.ReLU(), nn.Conv2d(1, 3, 3), nn.ReLU()],
        (6,),
    ),
    "deep": (lambda: [part for i in range(5) for part in (nn.Conv2d(4 if i else 2, 4, 3, 1, 1), nn.ReLU())], (2, 6, 6)),
    "tokens": (lambda: [nn.Linear(4, 5), nn.ReLU()], (3, 4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_two_engines_give_the_same_bounds(name):
    torch.manual_seed(0)
    layers, shape = CHAINS[name]
    model, x = nn.Sequential(*layers(), nn.Flatten(), nn.LazyLinear(3)).double(), torch.rand(3, *shape).double()
    model(x)
    model.eval().requires_grad_(False)
    y, traced = model(x).argmax(1), trace(model, x)
    for norm, eps in (("linf", 0.003), ("l2", 0.01), ("l1", 0.03)):
        ball = Ball(norm, eps)
        dual, lines = WongKolter(ball)(traced, x, y).margin, Lines(ball, "same")(traced, x, y).margin
        assert torch.allclose(dual, lines, atol=1e-9)


def test_same_slopes_are_those_of_the_dual():
    model = made(convolutions)
    x = torch.rand(3, 2, 7, 7, dtype=torch.float64)
    y = model(x).argmax(1)
    ball, traced = Ball("linf", 0.01), trace(model, x)
    found = Lines(ball, "same")(traced, x, y)
    assert torch.allclose(found.margin, WongKolter(ball)(traced, x, y).margin, atol=1e-8)
    assert (Lines(ball)(traced, x, y).radius >= found.radius).all()


def test_a_ball_larger_than_the_box_reaches_its_corners():
    for dtype in (torch.float32, torch.float64):
        x, slope = torch.rand(2, 5, dtype=dtype), torch.randn(2, 5, dtype=dtype)
        slope[:, 0] = 0
        whole = Ball("linf", 1.0).around(x).support(slope)
        for eps in (3.0, 1e4, 1e8):
            assert torch.allclose(Ball("l2", eps).around(x).support(slope), whole)


def straight():
    torch.manual_seed(0)
    model = nn.Linear(5, 4).double().eval().requires_grad_(False)
    x = torch.randn(6, 5, dtype=torch.float64)
    return model, x, model(x).argmax(1)


def distances(model, x, y, targets, norm):
    """How far each input is from where its target wins over its label."""
    out, rows = model(x), model.weight[y] - model.weight[targets]
    gap = out.gather(1, y[:, None]) - out.gather(1, targets[:, None])
    return gap[:, 0] / torch.linalg.vector_norm(rows, DUAL[norm], dim=1)


@pytest.mark.parametrize("norm", DUAL)
def test_targeted_radii_of_a_linear_model_are_its_distances(norm):
    model, x, y = straight()
    ball, ordered, traced = Ball(norm, 0.3, None, None), model(x).argsort(1), trace(model, x)
    rules = {"runner-up": ordered[:, -2], "least": ordered[:, 0]}
    for given, targets in (*rules.items(), *(((y + k) % 4,) * 2 for k in (1, 2, 3))):
        found, exact = CNNCert(ball, targets=given, steps=25)(traced, x, y), distances(model, x, y, targets, norm)
        assert torch.equal(found.threat.targets, targets)
        assert torch.allclose(found.radius, exact, rtol=1e-4) and (found.radius <= exact * (1 + 1e-9)).all()
        assert torch.equal(found.certified, found.radius >= 0.3)
    every = torch.stack([distances(model, x, y, (y + k) % 4, norm) for k in (1, 2, 3)]).amin(0)
    assert torch.allclose(CNNCert(ball, steps=25)(traced, x, y).radius, every, rtol=1e-4)


def test_random_targets_are_other_classes_and_an_inputs_own():
    model, x, y = straight()
    traced, ball = trace(model, x), Ball("l2", 0.1, None, None)
    drawn = torch.stack([CNNCert(ball, targets="random", seed=seed).chosen(traced, x, y, 64) for seed in range(30)])
    assert (drawn != y).all() and all(set(drawn[:, row].tolist()) == {0, 1, 2, 3} - {int(y[row])} for row in range(6))
    alone = CNNCert(ball, targets="random", steps=1)(traced, x[3:4], y[3:4])
    assert alone.threat.targets[0] == drawn[0, 3]


def test_targets_say_less_than_all_classes_and_no_attack_reaches_them():
    model = made(lambda: Skip(nn.ReLU()))
    x = torch.rand(4, 1, 6, 6, dtype=torch.float64)
    y = model(x).argmax(1)
    ball, traced, targets = Ball("linf", 0.02), trace(model, x), (y + torch.tensor([1, 2, 1, 2])) % 3
    every, one = CNNCert(ball, steps=4)(traced, x, y), CNNCert(ball, targets=targets, steps=4)(traced, x, y)
    other = CNNCert(ball, targets=(2 * targets - y) % 3, steps=4)(traced, x, y)  # of three classes the third
    assert torch.allclose(torch.minimum(one.radius, other.radius), every.radius, rtol=0.2)
    assert (one.radius >= every.radius * 0.8).all() and (one.radius > every.radius * 1.2).any()
    again = CNNCert(ball, targets=targets, steps=4)(traced, x, y, batch_size=3)
    assert torch.allclose(again.radius, one.radius) and torch.allclose(again.margin, one.margin)
    worst = PGD(Ball("linf", one.radius), loss="margin", steps=20)(model, x, Targeted(targets, y))
    assert (model(worst).argmax(1) != targets).all()
    assert "linf (towards one target class each) eps 0.02" in one.summary()
    assert Certificate.from_dict(one.to_dict()).threat["targets"]["numbers"] == targets.tolist()
    wrong = CNNCert(ball, targets=y, steps=2)(traced, x, targets)
    assert (wrong.radius == 0).all() and not wrong.certified.any()


@pytest.mark.parametrize(
    "targets, says",
    [
        (torch.tensor([1, 2]), "targets .6,. of whole numbers"), (torch.zeros(6), "targets .6,. of whole numbers"),
        (torch.full((6,), 4), "targets from 0 to 3 other than the label, got 4"), ("nearest", "'runner-up', 'least' or 'random'"),
    ],
)  # fmt: skip
def test_targets_that_are_none_are_refused(targets, says):
    model, x, y = straight()
    with pytest.raises(CertifyError, match=says):
        CNNCert(Ball("l2", 0.1, None, None), targets=targets)(model, x, y)
    with pytest.raises(CertifyError, match="other than the label, got 0 for label 0 in row 0"):
        CNNCert(Ball("l2", 0.1, None, None), targets=y * 0)(model, x, y * 0)


def test_a_threat_without_a_size_is_refused():
    x, y = torch.rand(2, 5), torch.tensor([0, 1])
    model = trace(nn.Linear(5, 3).eval(), x)
    with pytest.raises(CertifyError, match="a Ball in linf, l2 or l1"):
        CNNCert(Ball("l0", 2))(model, x, y)
    with pytest.raises(CertifyError, match="start and steps above 0"):
        CNNCert(Ball("linf", 0.1), start=0.0)(model, x, y)
