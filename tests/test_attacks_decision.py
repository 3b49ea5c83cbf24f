"""Attacks that see decisions only: the laws, their budgets, and how near they come on linear models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adversarial.attacks.boundary import Boundary, RayS, SignFlip
from adversarial.attacks.hopskipjump import GeoDA, HopSkipJump
from adversarial.attacks.signopt import SignOPT
from adversarial.contract import check_attack, example
from adversarial.goals import LargerError, MultiLabel, Targeted, margin
from adversarial.threat import Ball

FREE = float("inf")
EACH = {
    "boundary": (Boundary, "l2"), "signflip": (SignFlip, "linf"), "rays": (RayS, "linf"),
    "hopskipjump-l2": (HopSkipJump, "l2"), "hopskipjump-linf": (HopSkipJump, "linf"), "signopt": (SignOPT, "l2"),
    "geoda-l2": (GeoDA, "l2"), "geoda-linf": (GeoDA, "linf"),
}  # fmt: skip
ALL = [pytest.param(*each, id=name) for name, each in EACH.items()]


def few(make):
    """Smaller estimates, so that a small budget sees several turns."""
    return {HopSkipJump: {"directions": 8}, SignOPT: {"directions": 8, "beginnings": 4}}.get(make, {})


@pytest.mark.parametrize(("make", "norm"), ALL)
def test_the_laws(make, norm):
    result = check_attack(make(Ball(norm, FREE), queries=50, **few(make)), gradients=False, expected=0.7)
    sound = ~result.natural
    assert result.forwards.max() <= 50 and result.forwards[sound].min() > 20
    assert (result.forwards[~sound] == 1).all()


@pytest.mark.parametrize(("make", "norm"), ALL)
def test_a_finite_eps_and_any_shape(make, norm):
    shape = (3, 4, 5) if norm == "l2" else (2, 9)
    eps = {"l2": 0.8, "linf": 0.25}[norm]
    result = check_attack(make(Ball(norm, eps), queries=25, **few(make)), shape=shape, classes=2, gradients=False,
                          targeted=False)  # fmt: skip
    broken = result.success & ~result.natural
    assert (result.distance[broken] <= eps + 1e-5).all() and result.forwards.max() <= 25


@pytest.mark.parametrize(("make", "norm"), ALL)
def test_no_query_beyond_the_budget(make, norm):
    model, x, y = example()
    for queries in (1, 2, 13, 47):
        result = make(Ball(norm, FREE), queries=queries).run(model, x, y)
        assert result.forwards.max() <= queries


@pytest.mark.parametrize(
    ("make", "norm", "factor"),
    [
        *(pytest.param(*case, marks=pytest.mark.slow)
          for case in ((Boundary, "l2", 1.1), (SignFlip, "linf", 1.1), (RayS, "linf", 1.05))),
        (HopSkipJump, "l2", 1.05),
        (HopSkipJump, "linf", 1.05), (SignOPT, "l2", 1.05), (GeoDA, "l2", 1.05), (GeoDA, "linf", 1.05),
    ],
)  # fmt: skip
def test_linear_models_give_way_near_their_optimum(make, norm, factor):
    torch.manual_seed(0)
    model = nn.Linear(20, 3).double()
    x = 0.3 + 0.4 * torch.rand(10, 20, dtype=torch.float64)
    y = model(x).argmax(1)
    result = make(Ball(norm, FREE, low=-3.0, high=3.0), queries=1500).run(model, x, y)
    weight, logits = model.weight.detach(), model(x).detach()
    dual = {"l2": 2.0, "linf": 1.0}[norm]
    gaps = (logits.gather(1, y[:, None]) - logits) / torch.linalg.vector_norm(weight[y][:, None] - weight, dual, dim=2)
    least = gaps.scatter(1, y[:, None], torch.inf).amin(1)
    ratio = result.distance / least
    assert result.success.all() and ratio.min() > 1 - 1e-6
    assert ratio.median() < factor, ratio


@pytest.mark.parametrize(("make", "norm"), ALL)
def test_targets_start_from_given_inputs(make, norm):
    model, x, _ = example(classes=4, count=40)
    model.eval()
    y = model(x).argmax(1)
    target = (y[:12] + 1) % 4
    attack = make(Ball(norm, FREE), queries=300, starts=x[12:])
    result = attack.run(model, x[:12], Targeted(target))
    assert result.success.double().mean() > (0.4 if make is RayS else 0.99)
    assert torch.equal(model(result.x_adv).argmax(1) == target, result.success)


@pytest.mark.parametrize(("make", "norm"), ALL)
def test_masks_and_inputs_without_bounds(make, norm):
    model, x, y = example()
    mask = torch.tensor([1, 1, 1, 1, 0, 0])
    result = make(Ball(norm, FREE, low=None, high=None, mask=mask), queries=150).run(model, x, y)
    assert result.success.double().mean() > 0.8 and torch.equal(result.x_adv[:, 4:], x[:, 4:])


def test_several_labels_and_larger_errors():
    model, x, _ = example(classes=4)
    model.eval()
    labels = (model(x) > 0).long()
    result = HopSkipJump(queries=150).run(model, x, MultiLabel(labels))
    assert result.success.all() and torch.equal(((model(result.x_adv) > 0).long() != labels).any(1), result.success)
    line = nn.Linear(5, 1).double()
    z = torch.rand(8, 5, dtype=torch.float64)
    values = line(z).detach()[:, 0]
    some = HopSkipJump(queries=400).run(line, z, LargerError(values, tolerance=0.05))
    best = 0.05 / line.weight.detach().norm()
    assert some.success.all() and some.distance.median() < 1.1 * best


def test_a_batch_of_64_comes_to_what_each_sample_comes_to_alone():
    model, x, y = example(shape=(1, 6, 6), count=64, classes=5)
    attack = HopSkipJump(queries=150, directions=50)
    whole, alone = attack.run(model, x, y), attack.run(model, x[:12], y[:12], batch_size=1)
    assert torch.equal(whole.forwards[:12], alone.forwards)
    assert torch.allclose(whole.x_adv[:12], alone.x_adv, rtol=0, atol=1e-12)


def test_low_frequencies_find_smooth_boundaries():
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4, 2)).double()
    x = torch.rand(12, 1, 16, 16, dtype=torch.float64)
    model[-1].bias.data -= model(x).detach().mean(0)
    y = model(x).argmax(1)
    ball = Ball("l2", FREE, low=-2.0, high=2.0)
    full, few = (GeoDA(ball, queries=500, frequencies=k).run(model, x, y) for k in (None, 4))
    assert few.success.all() and few.distance.median() < full.distance.median()


def test_as_near_as_foolbox_with_as_many_queries():
    foolbox = pytest.importorskip("foolbox")
    model, x, y = example(shape=(1, 6, 6), count=6)
    model, x = model.eval().float(), x.float()
    y = model(x).argmax(1)
    theirs = foolbox.attacks.HopSkipJumpAttack(steps=5, initial_gradient_eval_steps=100, max_gradient_eval_steps=10_000)
    torch.manual_seed(0)
    wrapped, distances = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), []
    for i in range(len(x)):  # alone: in a batch its steps shrink with the batch
        start = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(steps=20)
        _, found, _ = theirs(wrapped, x[i : i + 1], y[i : i + 1], epsilons=None, starting_points=start.run(
            wrapped, x[i : i + 1], foolbox.criteria.Misclassification(y[i : i + 1])))  # fmt: skip
        distances.append((found - x[i : i + 1]).norm())
    ours = HopSkipJump(queries=900).run(model, x, y)
    assert ours.success.all() and ours.distance.median() <= 1.05 * torch.stack(distances).median()


def test_what_does_not_fit_is_said_in_one_sentence():
    model, x, y = example()
    for call, says in (
        (lambda: HopSkipJump(queries=0), "at least one query"),
        (lambda: RayS(Ball("l2", FREE)), "norm linf for RayS, got l2"),
        (lambda: GeoDA(Ball("l1", FREE)), "norm l2 or linf for GeoDA, got l1"),
        (lambda: HopSkipJump(queries=9, starts=torch.rand(3, 7)).run(model, x, y), r"starts of shape \(N, 6\), got"),
    ):
        with pytest.raises(ValueError, match=says):
            call()


def test_a_model_of_one_answer_leaves_the_inputs_as_they_are():
    model = nn.Linear(6, 2).double()
    nn.init.zeros_(model.weight)
    x = torch.rand(4, 6, dtype=torch.float64)
    y = model(x).argmax(1)
    assert len(margin(model(x), y)) == 4
    for make, norm in EACH.values():
        result = make(Ball(norm, FREE), queries=60).run(model, x, y)
        assert not result.success.any() and torch.equal(result.x_adv, x) and result.forwards.max() <= 60
