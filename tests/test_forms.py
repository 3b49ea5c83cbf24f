"""Affine forms carried forwards: every rule against points of the region, and closed forms where nothing is lost."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import certify
from adversarial import Ball, lift
from adversarial.sets import BrightnessContrast, Hue
from adversarial.streams import Streams
from certify.engine.bounds import Bounds
from certify.engine.forms import Forms, doubled
from certify.engine.tracing import trace
from certify.semantic.semantic import Enclosed

POINTS = 50


class Of(nn.Module):
    """A layer, a function, and a layer."""

    def __init__(self, f, wide: int = 8, after: int = 8):
        super().__init__()
        self.first, self.f, self.last = nn.Linear(6, wide), f, nn.Linear(after, 3)

    def forward(self, x):
        return self.last(self.f(self.first(x)))


def attended(x):
    q, k, v = x.view(-1, 2, 12).split(4, 2)
    return F.scaled_dot_product_attention(q, k, v).flatten(1)


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(4, 8, batch_first=True)

    def forward(self, x):
        return self.cells(x.view(-1, 2, 4))[0][:, -1]


FUNCTIONS = {
    "relu": torch.relu, "relu6": F.relu6, "gelu": F.gelu, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "softplus": F.softplus, "hardswish": F.hardswish,
    "exp": torch.exp, "square": torch.square, "cube": lambda x: x.pow(3), "softmax": lambda x: x.softmax(1),
    "normal": nn.LayerNorm(8), "product": lambda x: x * torch.sigmoid(x.flip(1)), "cat": lambda x: torch.cat([x[:, :4] + 1, torch.relu(x[:, 4:])], 1),
    "less": lambda x: 2 - x.abs(), "padded": lambda x: F.pad(torch.relu(x), (1, 1), value=3.0)[:, :8],
    "clamped": lambda x: torch.where(torch.arange(8) % 2 == 0, x.square(), torch.full((8,), 0.5)), "cells": Cells(),
}  # fmt: skip


def points(region, count: int = POINTS) -> torch.Tensor:
    """Corners and points inside (count, B, …)."""
    rows = torch.arange(len(region))
    inside = [region.sample(Streams(region.anchor, seed), rows) for seed in range(count)]
    best = [region.best(torch.randn(region.anchor.shape, dtype=region.anchor.dtype)) for _ in range(count)]
    return torch.stack(inside + best)


def traced(model: nn.Module, x: torch.Tensor):
    return trace(model.double().eval(), x.double())


def covered(graph, x: torch.Tensor, ball: Ball, **options) -> Bounds:
    """Bounds by forms, after every point's values were found inside every node's box."""
    bounds = Bounds(graph, ball.around(x.double()))
    with torch.no_grad():
        Forms(bounds, **options).run()
        z = points(bounds.region)
        for name, value in graph.values(z.flatten(0, 1)).items():
            (low, high), value = bounds.boxes[name], value.unflatten(0, z.shape[:2])
            assert ((value >= low - 1e-9) & (value <= high + 1e-9)).all(), (name, graph.nodes[name].op)
    return bounds


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_rule_covers_what_the_threat_reaches(name):
    torch.manual_seed(0)
    x = torch.rand(2, 6)
    graph = traced(Of(FUNCTIONS[name]), x)
    for norm, eps in {"linf": 0.2, "l2": 0.4, "l1": 0.6}.items():
        covered(graph, x, Ball(norm, eps))


def test_symbols_and_lines_do_not_matter_for_soundness():
    """Deep blocks with nodes that everything leans on: symbols are opened, merged and renewed."""

    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)) for _ in range(2))
            self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))

        def forward(self, x):
            x = self.first(x)
            for block, norm in zip(self.blocks, self.norms, strict=True):
                x = norm(x + torch.relu(block(x)))
            return self.last(x)

    torch.manual_seed(1)
    x = torch.rand(2, 6)
    graph = traced(Blocks(), x)
    for eps, room, share in ((1e-3, 2048, 0.0), (0.1, 5, 0.0), (0.1, 0, 0.25), (1e-3, 0, 0.0), (0.1, 2048, 0.25)):
        covered(graph, x, Ball("linf", eps), room=room, share=share)


def test_pictures_pools_and_attention():
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 4, 3, padding=1, stride=1), nn.BatchNorm2d(4), nn.ReLU6(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, groups=4, padding=1), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    for model, wide, ball in ((network, 36, Ball("linf", 0.05)), (Of(attended, 24, 8), 6, Ball("l2", 0.3))):
        x = torch.rand(2, wide)
        covered(traced(model, x), x, ball)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_linear_models_lose_nothing(norm):
    torch.manual_seed(3)
    model, x = (
        nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 9), nn.Linear(9, 2)).double().eval(),
        torch.rand(4, 5).double(),
    )
    ball = Ball(norm, 0.05, None, None)
    with torch.no_grad():
        y = model(x).argmax(1)
        matrix = model[2].weight @ model[1].weight @ model[0].weight
        row = matrix[0] - matrix[1]
        fall = 0.05 * torch.linalg.vector_norm(row, {"linf": 1, "l2": 2, "l1": torch.inf}[norm])
        gap = (model(x)[:, 0] - model(x)[:, 1]).abs() - fall
    found = certify.CROWN(ball, intermediate="forward")(model, x, y)
    assert torch.allclose(found.margin, gap, atol=1e-9)
    bounds = Bounds(trace(model, x), ball.around(x))
    with torch.no_grad():
        form = Forms(bounds).run()
    assert torch.allclose(form.center, model(x), atol=1e-9) and not form.reach.any()


def test_small_threats_of_deep_models_are_certified():
    """Where intervals say nothing: a deep network at a threat so small that it is almost linear."""
    torch.manual_seed(4)
    layers = [each for _ in range(5) for each in (nn.Linear(32, 32), nn.LayerNorm(32), nn.GELU())]
    model, x = nn.Sequential(*layers, nn.Linear(32, 2)).eval(), torch.randn(2, 32)
    with torch.no_grad():
        y = model(x).argmax(1)
    ball = Ball("linf", 1e-4, None, None)
    assert not certify.IBP(ball)(model, x, y).certified.any()
    found = certify.CROWN(ball, intermediate="forward")(model, x, y)
    assert found.certified.all()


@pytest.mark.parametrize("set", [BrightnessContrast(0.2, 0.2), Hue(0.3)])
def test_sets_of_few_parameters_are_their_own_symbols(set):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    x = torch.rand(2, 3, 6, 6)
    graph, ball = trace(model.eval(), x), lift(set).around(x)
    middle, half = (sum(ball.box()) / 2).flatten(1), ((ball.box()[1] - ball.box()[0]) / 2).flatten(1)
    low, high = middle - half / 8, middle + half / 8
    region = Enclosed(set, low[:, None], high[:, None]).around(x)
    bounds = Bounds(graph.double, doubled(region))
    with torch.no_grad():
        forms = Forms(bounds)
        forms.run()
        assert forms.inputs == low.shape[1]
        for _ in range(POINTS):
            inputs = set.apply(x, low + (high - low) * torch.rand_like(low))
            for name, value in graph.double.values(inputs.double()).items():
                below, above = bounds.boxes[name]
                assert ((value >= below - 1e-5) & (value <= above + 1e-5)).all(), name


def test_the_linear_part_is_the_operation_without_its_constant():
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.ConstantPad1d(1, 2.0), nn.Conv1d(2, 3, 3), nn.Flatten()
    ).double()

    class Around(nn.Module):
        def forward(self, x):
            z = model(x)
            return 1 - torch.cat([z + 2, torch.ones(len(x), 1, dtype=x.dtype)], 1)

    graph = trace(Around().eval(), torch.rand(1, 4).double())
    for name, node in graph.nodes.items():
        if name != graph.input:
            values = [torch.randn(5, *graph.nodes[other].shape).double() for other in node.inputs]
            zeros = [torch.zeros_like(value) for value in values]
            assert torch.allclose(node.linear.run(*values), node.run(*values) - node.run(*zeros)), node.op
