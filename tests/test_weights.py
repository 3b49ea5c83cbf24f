"""Threats on a model's weights: closed forms of a linear layer, the model left alone, one change per sample."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adversarial import APGD, DDN, FGSM, PGD, Ball, Square, Targeted, ThreatError, Weights, evaluate, lift
from adversarial.contract import again, example, holds
from adversarial.goals import margin


def free(norm, eps):
    return Ball(norm, eps, low=None, high=None)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    layer, x = nn.Linear(7, 2).double(), torch.randn(60, 7, dtype=torch.float64)
    y = layer(x).detach().argmax(1)
    return layer, x, y, -margin(layer(x).detach(), y)


def growth(layer, x, y, norm, relative):
    """By how much the margin of the wrong class can grow per unit of eps when the weights move, both rows at once."""
    scale = layer.weight.detach().abs() if relative else torch.ones_like(layer.weight)
    gradient = torch.stack([scale[0] * x, scale[1] * x], 1).flatten(1)  # of the difference, up to signs
    return torch.linalg.vector_norm(gradient, {"linf": 1, "l2": 2}[norm], dim=1)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("linf", 0.08), ("l2", 0.1), ("l2", 0.25)])
def test_a_linear_layer_breaks_exactly_where_its_weights_can_close_the_margin(linear, norm, eps, relative):
    layer, x, y, gap = linear
    reach = eps * growth(layer, x, y, norm, relative)
    if norm == "linf" and not relative:
        assert torch.allclose(reach, 2 * eps * x.abs().sum(1))
    weights = Weights(layer, ["weight"], (7,), relative=relative)
    inputs, threat = weights.beside(x), lift(weights, free(norm, eps))
    feasible = reach > gap
    assert 0 < feasible.sum() < len(x)
    assert torch.equal(FGSM(threat).run(weights.module, inputs, y).success, feasible)
    close = (reach / gap - 1).abs() < 0.02
    for attack in (PGD(threat, early=False), APGD(threat)):
        result = attack.run(weights.module, inputs, y)
        assert torch.equal(result.success[~close], feasible[~close])
    worst = PGD(threat, early=False, loss="margin").run(weights.module, inputs, y)
    assert torch.allclose(worst.loss, reach - gap, rtol=0.02, atol=1e-6)


def test_the_smallest_change_of_weights_is_found(linear):
    layer, x, y, gap = linear
    weights = Weights(layer, (), (7,))
    result = DDN(lift(weights, free("l2", math.inf)), steps=100).run(weights.module, weights.beside(x), y)
    least = gap / math.sqrt(2) / (x.square().sum(1) + 1).sqrt()  # weights and biases
    assert result.success.all() and (result.distance >= least - 1e-9).all()
    assert (result.distance <= 1.05 * least).double().mean() > 0.95


def test_the_laws_and_the_model_is_left_alone():
    model, x, y = example((2, 3), classes=3, count=12)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = Weights(model, ["1.weight", "5.*"], (2, 3))
    inputs = weights.beside(x)
    attack = PGD(lift(weights, free("linf", 0.1)), steps=15)
    result = attack.run(weights.module, inputs, y, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())
    model.eval()
    holds(attack, weights.module, inputs, y, result)
    again(attack, weights.module, inputs, y, result)
    assert (result.success & ~result.natural).any() and torch.equal(result.x_adv[:, :6], x.flatten(1))
    changed = weights.values(result.x_adv)
    assert set(changed) == {"1.weight", "5.weight", "5.bias"}
    for row in result.success.nonzero()[:, 0].tolist():  # each example's weights, put into the model itself
        own = {name: tensor[row] for name, tensor in changed.items()}
        answer = torch.func.functional_call(model, own, (x[row][None],))
        assert answer.argmax() != y[row]
        assert all((own[name] - before[name]).abs().max() <= 0.1 + 1e-9 for name in own)
    target = (y + 1) % 3
    aimed = attack.run(weights.module, inputs, Targeted(target))
    assert (weights.module(aimed.x_adv).argmax(1) == target)[aimed.success].all()
    blind = Square(lift(weights, free("linf", 0.3)), queries=60).run(weights.module, inputs, y)
    assert blind.success.sum() > result.natural.sum()


def test_one_row_after_the_other_is_the_same():
    model, x, y = example()
    model.eval()
    ways = [Weights(model, (), (6,), vectorised=way) for way in (True, False)]
    found = [PGD(lift(w, free("l2", 0.3)), steps=5).run(w.module, w.beside(x), y).x_adv for w in ways]
    assert torch.allclose(*found, atol=1e-9)


def test_accuracy_against_changed_weights(linear):
    layer, x, y, gap = linear
    weights = Weights(layer, ["weight"], (7,), relative=True)
    found = evaluate(
        weights.module, weights.beside(x), y, {"fgsm": lambda ball: FGSM(lift(weights, ball))}, threat=free("linf", 1.0),
        eps=(0.0, 0.05, 0.3), progress=False,
    )  # fmt: skip
    reach = growth(layer, x, y, "linf", True)
    expected = [1.0, *(float((eps * reach <= gap).double().mean()) for eps in (0.05, 0.3))]
    assert [point.accuracy for point in found.curve("fgsm")] == pytest.approx(expected)


def test_the_program_and_the_map_of_a_reprogrammed_model(pixel_source):
    from reprogram import LinearMap, Reprogrammed, programs

    torch.manual_seed(0)
    model = Reprogrammed(programs.Pad(), pixel_source, LinearMap(8, 2, kind="classification")).eval()
    for parameter in model.mapping.parameters():
        nn.init.normal_(parameter)
    view = model.continuous([torch.rand(1, 12, 12) for _ in range(5)])
    before = {name: value.clone() for name, value in view.module.state_dict().items()}
    for names in (["model.program.*"], ["model.mapping.*"]):
        weights = Weights(view.module, names, view.inputs.shape[1:])
        inputs = weights.beside(view.inputs)
        y = weights.module(inputs).argmax(1)
        result = PGD(lift(weights, free("linf", 2.0)), steps=10).run(weights.module, inputs, y)
        assert result.success.any() and (result.blind == 0).all()
    assert all(torch.equal(before[name], value) for name, value in view.module.state_dict().items())


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))

    def forward(self, x):
        return x @ self.weight.T if x.sum() > 0 else -x @ self.weight.T


def test_bad_input(linear):
    layer, x, y, _ = linear
    weights = Weights(layer, (), (7,))
    branches = Weights(Branches(), (), (3,))
    for call, says in (
        (lambda: Weights(layer, ["head.*"], (7,)).beside(x), "names among weight, bias"),
        (lambda: Weights(nn.Flatten(), (), (7,)).beside(x), "a model with parameters"),
        (lambda: weights.beside(x[:, :3]), r"of shape \(B, \*\(7,\)\)"),
        (lambda: PGD(lift(weights, free("linf", 0.1)))(weights.module, x, y), r"make them with beside\(\)"),
        (lambda: PGD(lift(weights))(weights.module, weights.beside(x), y), "a finite eps"),
        (lambda: branches.module(branches.beside(torch.ones(4, 3))), "vectorised=False"),
    ):
        with pytest.raises(ThreatError, match=says):
            call()
    slow = Weights(Branches(), (), (3,), vectorised=False)
    assert slow.module(slow.beside(torch.ones(4, 3))).shape == (4, 2)
