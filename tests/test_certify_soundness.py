"""No certified point is ever broken: random small networks against attacks, exact search and exact arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import adversarial
from adversarial import Ball
from adversarial.streams import Streams
from certify import CROWN, IBP, SDPCROWN, AlphaCROWN
from certify.contract import margins
from certify.engine.tracing import trace

CERTIFIERS = {
    "IBP": IBP, "CROWN-IBP": lambda ball: CROWN(ball, "ibp"), "CROWN": CROWN, "SDPCROWN": SDPCROWN,
    "AlphaCROWN": lambda ball: AlphaCROWN(ball, iterations=3),
}  # fmt: skip
ACTIVATIONS = (
    nn.ReLU, nn.ReLU, nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.Hardswish,
)  # fmt: skip
ATTACKS = (  # one after the other, beside PGD, random points and corners, which every network meets
    lambda ball: adversarial.APGD(ball, steps=25), lambda ball: adversarial.Square(ball, queries=60),
    lambda ball: adversarial.DeepFool(ball), lambda ball: adversarial.FAB(ball, steps=15),
    lambda ball: adversarial.FMN(ball, steps=30), lambda ball: adversarial.MIM(ball),
    lambda ball: adversarial.NES(ball, steps=5), lambda ball: adversarial.FGSM(ball),
)  # fmt: skip
INPUTS = 18


class Skip(nn.Module):
    """x + f(x)."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.layers(x)


class Drawn:
    """A network and threats drawn from a seed."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers, self.shape = getattr(self, self.one("dense", "picture", "series"))()
            self.model = nn.Sequential(*layers).eval().requires_grad_(False)
            self.x = torch.rand(INPUTS, *self.shape)
        with torch.no_grad():
            self.model[-1].weight *= 3
            self.model[-1].bias -= self.model(self.x).mean(0)
        self.y = self.model(self.x).argmax(1)

    def one(self, *choices):
        return choices[self.random.integers(len(choices))]

    def count(self, low, high):
        return int(self.random.integers(low, high + 1))

    def act(self):
        return self.one(*ACTIVATIONS)()

    def dense(self):
        inputs, width, classes = self.count(2, 8), self.count(4, 16), self.count(2, 4)
        layers = [nn.Linear(inputs, width), self.act()]
        for _ in range(self.count(0, 2)):
            middle = [nn.Linear(width, width), self.act()]
            middle += [nn.LayerNorm(width)] if self.random.random() < 0.1 else []
            layers += [Skip(*middle, nn.Linear(width, width))] if self.random.random() < 0.3 else middle
        return [*layers, nn.Linear(width, classes)], (inputs,)

    def picture(self):
        planes, side, wide, classes = self.count(1, 2), self.count(4, 6), self.count(2, 4), self.count(2, 4)
        first = nn.Conv2d(planes, wide, 3, stride=self.count(1, 2), padding=1)
        layers = [first, *self.normal(nn.BatchNorm2d, wide), self.act()]
        if self.random.random() < 0.4:
            layers.append(Skip(nn.Conv2d(wide, wide, 3, padding=1), *self.normal(nn.BatchNorm2d, wide), self.act()))
        layers += self.one([], [nn.AvgPool2d(2)], [nn.MaxPool2d(2)], [nn.MaxPool2d(3, 1, 1)], [nn.ZeroPad2d(1)])
        return self.closed(layers, (planes, side, side), classes)

    def series(self):
        planes, length, wide, classes = self.count(1, 2), self.count(6, 12), self.count(2, 4), self.count(2, 3)
        layers = [nn.Conv1d(planes, wide, 3, padding=self.count(0, 1)), *self.normal(nn.BatchNorm1d, wide), self.act()]
        layers += self.one([], [nn.AvgPool1d(2)], [nn.MaxPool1d(2)])
        return self.closed(layers, (planes, length), classes)

    def normal(self, kind, wide):
        if self.random.random() < 0.6:
            return []
        layer = kind(wide)
        layer.running_mean.uniform_(-0.3, 0.3)
        layer.running_var.uniform_(0.3, 2.0)
        layer.weight.data.uniform_(-1.5, 1.5)  # below zero too: a sign that is lost shows
        return [layer]

    def closed(self, layers, shape, classes):
        """With a hidden layer or without one, then the logits."""
        size = nn.Sequential(*layers).eval()(torch.zeros(1, *shape)).numel()
        layers = [*layers, nn.Flatten()]
        if self.random.random() < 0.5:
            layers, size = [*layers, nn.Linear(size, 8), self.act()], 8
        return [*layers, nn.Linear(size, classes)], shape

    def threats(self):
        """One of each norm, with bounds and without, one eps or one for each input, sometimes a mask."""
        usual = {"linf": 0.03, "l2": 0.06, "l1": 0.15}
        for norm, size in usual.items():
            eps = size * float(np.exp(self.random.uniform(-1.5, 1.5)))
            sizes = eps * torch.from_numpy(np.exp(self.random.uniform(-1, 1, INPUTS))).float()
            low, high = self.one((0.0, 1.0), (None, None), (-0.5, 1.01))
            mask = None if self.random.random() < 0.8 else torch.from_numpy(self.random.random(self.shape) < 0.7)
            yield Ball(norm, self.one(eps, eps, sizes), low, high, mask)


@torch.no_grad()
def least(model, ball, x, y, count=12):
    """The least margin (B,) over random points, corners and the points of PGD."""
    region, streams, rows = ball.around(x), Streams(x, 0), torch.arange(len(x))
    points = [region.anchor]
    for _ in range(count):
        z = region.sample(streams, rows)
        points += [z, region.best(z - region.anchor)]
    points = torch.stack(points)
    found = margins(model(points.flatten(0, 1)), y.repeat(len(points))).view(len(points), -1).amin(0)
    with torch.enable_grad():
        worst = adversarial.PGD(ball, steps=10, loss="margin", early=False).run(model, x, y).worst
    return torch.minimum(found, margins(model(worst), y))


def examined(seed):
    """Hold every certifier to one network's threats; how many inputs were certified."""
    drawn = Drawn(seed)
    model, x, y = drawn.model, drawn.x, drawn.y
    graph, total = trace(model, x), 0
    for ball in drawn.threats():
        truth = least(model, ball, x, y)
        slack = 1e-4 * (1 + truth.abs())  # float32
        found = {name: make(ball)(graph, x, y) for name, make in CERTIFIERS.items()}
        for name, certificate in found.items():
            about = f"seed {seed}, {name}, {ball.norm} {ball.eps}, {model}"
            assert (certificate.margin <= truth + slack).all(), f"a bound is above a margin that was found: {about}"
            assert not (certificate.certified & (truth <= 0)).any(), f"a certified input was broken: {about}"
            if "LayerNorm" not in repr(model):  # of which a bound may be so loose that it is not finite
                assert certificate.margin.isfinite().all(), about
        held = torch.stack([certificate.certified for certificate in found.values()]).any(0)
        if held.any():
            attack = ATTACKS[seed % len(ATTACKS)](ball)
            result = attack.run(model, x, y, rows=held.nonzero()[:, 0])
            assert not result.success.any(), f"{type(attack).__name__} broke a certified input: seed {seed}, {ball}"
        assert (found["CROWN"].margin >= found["IBP"].margin - slack).all()
        assert (found["AlphaCROWN"].margin >= found["CROWN"].margin - slack).all()
        total += int(held.sum())
    return total


def test_no_certified_point_of_a_few_networks_is_broken():
    certified = [examined(seed) for seed in range(4)]
    assert 0.1 < sum(certified) / (4 * INPUTS * 3) < 0.95  # neither all nor none: the question was open


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_no_certified_point_of_many_networks_is_broken(part):
    """In all 10,800 combinations of network, input and threat, each for every certifier."""
    certified = [examined(1000 + 20 * part + i) for i in range(20)]
    assert 0.1 < sum(certified) / (20 * INPUTS * 3) < 0.95


# exact search


def layers_of(model):
    return [
        (layer.weight.double().numpy(), layer.bias.double().numpy()) for layer in model if isinstance(layer, nn.Linear)
    ]


def exact_margin(model, x, y, ball):
    """The least margin over a threat by mixed-integer linear programming, and the point that has it.

    Variables: the point, how far each feature lies from x, then for each hidden layer its values after ReLU and a binary
    for each. ReLU of z within [l, u]: a >= 0, a >= z, a <= u·b, a <= z - l·(1 - b).
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    layers, best, point = layers_of(model), math.inf, None
    region = ball.around(x[None])
    floor, ceiling = region.floor[0].double().numpy(), region.ceiling[0].double().numpy()
    size, hidden = len(floor), [len(bias) for _, bias in layers[:-1]]
    total = 2 * size + 2 * sum(hidden)
    low, high = np.full(total, -np.inf), np.full(total, np.inf)
    low[:size], high[:size], low[size : 2 * size] = floor, ceiling, 0.0
    rows, least, most = [], [], []

    def add(parts, lower, upper):
        row = np.zeros(total)
        for where, values in parts:
            row[where] += values
        rows.append(row)
        least.append(lower)
        most.append(upper)

    anchor = x.double().numpy()
    for i in range(size):  # distance >= |point - x|
        add([(i, 1.0), (size + i, -1.0)], -np.inf, anchor[i])
        add([(i, 1.0), (size + i, 1.0)], anchor[i], np.inf)
    if ball.norm == "l1":
        add([(slice(size, 2 * size), 1.0)], -np.inf, float(ball.eps))
    front, at, (down, up), whole = slice(0, size), 2 * size, (floor, ceiling), np.zeros(total)
    for (weight, bias), count in zip(layers, hidden, strict=False):
        middle, reach = weight @ (down + up) / 2 + bias, np.abs(weight) @ (up - down) / 2
        least_z, most_z = middle - reach - 1e-9, middle + reach + 1e-9
        for k in range(count):
            a, b = at + k, at + count + k
            low[a], low[b], high[b], whole[b] = 0.0, 0.0, 1.0, 1
            add([(a, 1.0), (front, -weight[k])], bias[k], np.inf)
            add([(a, 1.0), (b, -max(most_z[k], 0.0))], -np.inf, 0.0)
            add([(a, 1.0), (front, -weight[k]), (b, -min(least_z[k], 0.0))], -np.inf, bias[k] - min(least_z[k], 0.0))
        front, at, (down, up) = slice(at, at + count), at + 2 * count, (np.maximum(least_z, 0), np.maximum(most_z, 0))
    weight, bias = layers[-1]
    for other in range(len(bias)):
        if other == y:
            continue
        aim = np.zeros(total)
        aim[front] = weight[y] - weight[other]
        found = milp(
            aim, integrality=whole, bounds=Bounds(low, high), constraints=LinearConstraint(np.array(rows), least, most),
            options={"mip_rel_gap": 0.0},
        )  # fmt: skip
        assert found.success
        if found.fun + bias[y] - bias[other] < best:
            best, point = found.fun + bias[y] - bias[other], found.x[:size]
    return best, point


def tiny(seed, sizes=(3, 6, 5, 3)):
    torch.manual_seed(seed)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())][:-1]
    model = nn.Sequential(*layers).double().eval().requires_grad_(False)
    x = torch.rand(3, sizes[0], dtype=torch.float64)
    return model, x, model(x).argmax(1)


def searched(seed):
    model, x, y = tiny(seed)
    graph = trace(model, x)
    for norm, eps in (("linf", 0.15), ("l1", 0.3)):
        for low, high in ((0.0, 1.0), (None, None)):
            ball = Ball(norm, eps * (0.3 + seed % 5 / 3), low, high)
            bounds = {name: make(ball)(graph, x, y) for name, make in CERTIFIERS.items()}
            tried = least(model, ball, x, y)
            for row in range(len(x)):
                exact, point = exact_margin(model, x[row], int(y[row]), ball)
                z = torch.from_numpy(point)[None]
                assert ball.contains(z, x[row : row + 1], tol=1e-6).all()
                assert margins(model(z), y[row : row + 1]).item() == pytest.approx(
                    exact, abs=1e-5
                )  # the search is right
                assert tried[row] >= exact - 1e-6  # and no attack finds less
                for name, found in bounds.items():
                    assert found.margin[row] <= exact + 1e-6, (seed, name, ball)
                    assert not (found.certified[row] and exact < -1e-6)


def test_bounds_of_tiny_networks_lie_below_the_exact_margin():
    for seed in range(2):
        searched(seed)


@pytest.mark.slow
def test_bounds_of_many_tiny_networks_lie_below_the_exact_margin():
    for seed in range(100, 140):
        searched(seed)


# rounding


def test_bounds_in_float32_exceed_those_in_float64_by_rounding_alone():
    """The allowance: 2e-5 of the largest number among the logits' bounds, which is 170 roundings of float32."""
    for seed in range(200, 202):
        drawn = Drawn(seed)
        model, x, y = drawn.model, drawn.x, drawn.y
        single, precise = trace(model, x), trace(model.double(), x.double())
        for ball in drawn.threats():
            exact = replace(ball, eps=ball.eps.double()) if isinstance(ball.eps, torch.Tensor) else ball
            for make in (IBP, CROWN):
                rough, fine = make(ball)(single, x, y).margin.double(), make(exact)(precise, x.double(), y).margin
                scale = 1 + fine.abs() + precise(x.double()).abs().amax(1)
                assert (rough <= fine + 2e-5 * scale).all(), (seed, ball.norm, make)


def rational_bounds(model, x, eps, y):
    """Interval bound and CROWN bound of a ReLU network's margins at one input in exact arithmetic, the latter as published,
    with boxes inside that are the tighter of both kinds."""
    layers = [
        ([[Fraction(v) for v in row] for row in w.tolist()], [Fraction(v) for v in b.tolist()])
        for w, b in layers_of(model)
    ]
    floor, ceiling = [Fraction(v) - eps for v in x.tolist()], [Fraction(v) + eps for v in x.tolist()]

    def interval(row, offset, low, high):
        return offset + sum(w * (lo if w >= 0 else hi) for w, lo, hi in zip(row, low, high, strict=True))

    def backward(row, offset, depth, boxes):
        for (weight, bias), (low, high) in zip(reversed(layers[:depth]), reversed(boxes[:depth]), strict=True):
            moved = []
            for a, lo, hi in zip(row, low, high, strict=True):
                if lo >= 0 or hi <= 0:
                    moved.append(a if lo >= 0 else Fraction(0))
                elif a >= 0:
                    moved.append(a * (1 if hi >= -lo else 0))
                else:
                    moved.append(a * hi / (hi - lo))
                    offset -= a * hi * lo / (hi - lo)
            offset += sum(a * b for a, b in zip(moved, bias, strict=True))
            row = [sum(a * weight[k][j] for k, a in enumerate(moved)) for j in range(len(weight[0]))]
        return interval(row, offset, floor, ceiling)

    boxes, low, high = [], floor, ceiling
    for depth, (weight, bias) in enumerate(layers[:-1]):
        found = []
        for row, b in zip(weight, bias, strict=True):
            minus = [-w for w in row]
            lower = max(interval(row, b, low, high), backward(row, b, depth, boxes))
            found.append((lower, min(-interval(minus, -b, low, high), -backward(minus, -b, depth, boxes))))
        boxes.append(tuple(zip(*found, strict=True)))
        low, high = ([max(v, Fraction(0)) for v in side] for side in boxes[-1])
    weight, bias = layers[-1]
    rows = [
        ([a - b for a, b in zip(weight[y], weight[j], strict=True)], bias[y] - bias[j])
        for j in range(len(bias))
        if j != y
    ]
    return min(max(interval(r, b, low, high), backward(r, b, len(boxes), boxes)) for r, b in rows)


def test_bounds_in_float64_are_those_of_exact_arithmetic_up_to_rounding():
    """The allowance: 1e-13 of numbers of size 1, which is 450 roundings of float64."""
    for seed in range(3):
        model, x, y = tiny(seed, (3, 5, 4, 3))
        graph = trace(model, x)
        for eps in (Fraction(1, 64), Fraction(1, 8)):  # which float64 holds exactly
            found = CROWN(Ball("linf", float(eps), None, None))(graph, x, y).margin
            for row in range(len(x)):
                exact = rational_bounds(model, x[row], eps, int(y[row]))
                assert Fraction(found[row].item()) <= exact + Fraction(1, 10**13)
                assert abs(Fraction(found[row].item()) - exact) < Fraction(1, 10**9)


def test_no_corner_has_a_margin_below_the_bound_in_exact_arithmetic():
    for seed in range(2):
        model, x, y = tiny(seed, (3, 5, 4, 3))
        graph = trace(model, x)
        layers = [
            ([[Fraction(v) for v in row] for row in w.tolist()], [Fraction(v) for v in b.tolist()])
            for w, b in layers_of(model)
        ]
        eps = Fraction(1, 16)
        for make in (IBP, CROWN, AlphaCROWN):
            found = make(Ball("linf", float(eps), None, None))(graph, x, y).margin
            for row, signs in product(range(len(x)), product((-1, 0, 1), repeat=3)):
                value = [Fraction(v) + s * eps for v, s in zip(x[row].tolist(), signs, strict=True)]
                for i, (weight, bias) in enumerate(layers):
                    value = [
                        sum(w * v for w, v in zip(r, value, strict=True)) + b for r, b in zip(weight, bias, strict=True)
                    ]
                    value = value if i == len(layers) - 1 else [max(v, Fraction(0)) for v in value]
                own = int(y[row])
                margin = value[own] - max(v for j, v in enumerate(value) if j != own)
                assert Fraction(found[row].item()) <= margin + Fraction(1, 10**13)


class Huge(nn.Module):
    """A network whose bounds overflow although its values do not."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(torch.exp(60 * F.relu(self.first(x))))


def test_bounds_that_overflow_certify_nothing():
    torch.manual_seed(0)
    model = Huge().eval()
    x = torch.rand(8, 4)
    y, graph = model(x).argmax(1), trace(model, x)
    for make in CERTIFIERS.values():
        found = make(Ball("linf", 3.0, None, None))(graph, x, y)
        assert not found.certified.any() and (found.radius == 0).all()
