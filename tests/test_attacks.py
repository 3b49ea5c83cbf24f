"""The laws of every attack, and the truth on linear models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adversarial.attacks.apgd import APGD
from adversarial.attacks.gradient import BIM, FGSM, MIM, PGD
from adversarial.contract import check_attack, example
from adversarial.goals import GoalError, LargerError, MultiLabel, Targeted, dlr, dlr_targeted, margin
from adversarial.threat import Ball, ThreatError

EPS = {"linf": 0.15, "l2": 0.35, "l1": 0.8, "l0": 2}
BUDGET = {"fgsm": FGSM, "pgd": PGD, "bim": BIM, "mim": MIM, "apgd": APGD}


def of_each_norm():
    for name, make in BUDGET.items():
        for norm, eps in EPS.items():
            if (name, norm) != ("apgd", "l0"):
                yield pytest.param(make(Ball(norm, eps)), id=f"{name}-{norm}")
    yield pytest.param(APGD(Ball("linf", 0.15), loss="dlr", targets=2), id="apgd-t")
    yield pytest.param(PGD(Ball("linf", 0.15), restarts=3, loss="margin", early=False), id="pgd-restarts")


@pytest.mark.parametrize("attack", list(of_each_norm()))
def test_the_laws(attack):
    check_attack(attack, expected=0.4)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 9)], ids=["image", "series"])
@pytest.mark.parametrize("classes", [2, 5])
def test_any_shape_and_any_number_of_classes(shape, classes):
    for norm in ("linf", "l1"):
        check_attack(PGD(Ball(norm, EPS[norm])), shape=shape, classes=classes)
    check_attack(APGD(Ball("l2", 0.3), loss="dlr"), shape=shape, classes=classes)
    check_attack(APGD(Ball("linf", 0.1), loss="dlr", targets=9), shape=shape, classes=classes)


@pytest.mark.parametrize("norm", EPS)
def test_linear_models_are_attacked_at_their_optimum(norm):
    """On a linear model an attack succeeds exactly where the support function exceeds the margin."""
    torch.manual_seed(0)
    model = nn.Linear(20, 2).double()
    x = torch.rand(60, 20, dtype=torch.float64)
    logits = model(x).detach()
    y = logits.argmax(1)
    weight = (model.weight[1 - y] - model.weight[y]).detach()
    gap = -margin(logits, y)
    for factor in (0.3, 1.0, 2.0):
        ball = Ball(norm, max(1, round(factor * EPS[norm])) if norm == "l0" else factor * EPS[norm])
        region = ball.around(x)
        feasible = region.support(weight) > gap
        assert torch.equal(FGSM(ball).run(model, x, y).success, feasible)
        if norm != "l0":
            close = (region.support(weight) / gap - 1).abs() < 0.05
            for attack in (APGD(ball), APGD(ball, loss="dlr", targets=1)):
                assert torch.equal(attack.run(model, x, y).success[~close], feasible[~close])


def test_a_regression_ends_at_its_largest_error():
    torch.manual_seed(0)
    model = nn.Linear(5, 1).double()
    x = 0.5 + 0.2 * torch.rand(8, 5, dtype=torch.float64)
    values = model(x).detach()[:, 0] - 0.01
    ball = Ball("linf", 0.1)
    result = BIM(ball, steps=20).run(model, x, LargerError(values))
    most = 0.01 + 0.1 * model.weight.abs().sum().item()
    assert torch.allclose((model(result.worst)[:, 0] - values).abs(), torch.full((8,), most, dtype=torch.float64))
    assert not result.success.any()
    some = BIM(ball, steps=20).run(model, x, LargerError(values, tolerance=0.9 * most))
    assert some.success.all() and ((model(some.x_adv)[:, 0] - values).abs() > 0.9 * most).all()


def test_several_labels():
    model, x, _ = example(classes=4)
    model.eval()
    labels = (model(x) > 0).long()
    result = PGD(Ball("linf", 0.2)).run(model, x, MultiLabel(labels))
    assert result.success.float().mean() > 0.5
    changed = ((model(result.x_adv) > 0).long() != labels).any(1)
    assert torch.equal(changed, result.success)


def test_losses_of_few_classes():
    z, y, t = torch.tensor([[2.0, 1.0, -1.0, 0.5]]), torch.tensor([0]), torch.tensor([3])
    assert dlr(z, y).item() == pytest.approx(-1 / 1.5)
    assert dlr_targeted(z, y, t).item() == pytest.approx(-1.5 / (2 - (0.5 - 1) / 2))
    for classes in (2, 3):
        few = z[:, :classes]
        assert math.isfinite(dlr(few, y)) and math.isfinite(dlr_targeted(few, y, torch.tensor([1])))
        assert (dlr(few, y) > 0) == (margin(few, y) > 0)


def test_what_does_not_fit_is_said_in_one_sentence():
    model, x, y = example()
    model.eval()
    ball = Ball("linf", 0.1)
    attack = PGD(ball)
    softmax = nn.Sequential(model, nn.Softmax(1))
    for call, says in (
        (lambda: attack(softmax, x, y), "expected logits, got rows"),
        (lambda: attack(model, x, y + 2), "labels from 0 to 2, got"),
        (lambda: attack(model, x, y * 0 - 1), "labels from 0 to 2, got -1 in row 0"),
        (lambda: attack(model, x, torch.eye(3)[y]), "one-hot"),
        (lambda: attack(model, x, torch.eye(3, dtype=torch.long)[y]), "one-hot"),
        (lambda: attack(model, x, y.double()), "class indices"),
        (lambda: attack(model, x.numpy(), y), "inputs as a tensor"),
        (lambda: attack(model, x, y.numpy()), "labels as a tensor"),
        (lambda: attack(model, x, y.to("meta")), "labels on the inputs' device cpu, got meta"),
        (lambda: attack(nn.Linear(6, 3, device="meta"), x.float(), y), "inputs on the model's device meta, got cpu"),
        (lambda: attack(model, x, LargerError(x[:, :3] * torch.nan)), "finite values"),
        (lambda: attack(model, x, y[:3]), "a label for each of 12"),
        (lambda: attack(model, x * 3, y), r"inputs within \[0.0, 1.0\]"),
        (lambda: attack(model, x.float(), y), "float64"),
        (lambda: attack(model, x * torch.nan, y), "finite inputs"),
        (lambda: attack(model, x[:0], y[:0]), "at least one input"),
        (lambda: attack(model, (x * 255).to(torch.uint8), y), "floating point"),
        (lambda: attack(nn.Sequential(model, Nothing()), x, y), r"expected logits \(12, classes\)"),
        (lambda: attack(nn.Sequential(model, Broken()), x, y), "finite logits"),
        (lambda: Ball("linf", 0.0), "eps above 0"),
        (lambda: Ball("l3", 0.1), "a norm among"),
        (lambda: Ball("linf", math.nan), "eps above 0"),
        (lambda: Ball("l2", torch.ones(5)).around(x), "one for each of 12"),
        (lambda: Ball("linf", torch.ones(5)).around(x), "an eps to broadcast with inputs"),
        (lambda: Ball("linf", 0.1, mask=torch.ones(5)).around(x), "a mask to broadcast with inputs"),
        (lambda: Ball("linf", 0.1, low=torch.zeros(5)).around(x), "bounds to broadcast with inputs"),
        (lambda: Ball("linf", 0.1, low=1.0, high=0.0).around(x), "low <= high"),
        (lambda: APGD(ball, steps=0), "at least one step"),
        (lambda: PGD(ball, steps=0), "at least one step"),
        *(
            (lambda make=make, norm=norm: make(Ball(norm, math.inf, None, None))(model, x, y), "a finite eps")
            for make in (FGSM, PGD, APGD)
            for norm in ("linf", "l2")
        ),
        (lambda: attack(model, x, Targeted(y + 7)), "targets from 0"),
    ):
        with pytest.raises((GoalError, ThreatError, ValueError), match=says):
            call()


class Nothing(nn.Module):
    def forward(self, z):
        return None


class Broken(nn.Module):
    def forward(self, z):
        return z / 0


class Answer(nn.Module):
    def __init__(self, model, kind):
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, x):
        z = self.model(x)
        return {"tuple": (z, x), "dict": {"logits": z}, "output": type("Output", (), {"logits": z})()}[self.kind]


@pytest.mark.parametrize("kind", ["tuple", "dict", "output"])
def test_logits_are_found_in_what_a_model_returns(kind):
    model, x, y = example()
    attack = PGD(Ball("linf", 0.1))
    assert torch.equal(attack(Answer(model, kind), x, y), attack(model, x, y))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_in_the_threat_up_to_its_rounding(dtype):
    model, x, y = example()
    model, x = model.to(dtype), x.to(dtype)
    result = PGD(Ball("linf", 0.2)).run(model, x, y)
    assert result.x_adv.dtype == dtype and result.success.any()
    assert ((result.x_adv.double() - x.double()).abs() <= 0.2 + 2**-8).all()


def test_gradients_that_say_nothing_are_counted():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([x.sum(1).round(), -x.sum(1).round()], 1)

    x = torch.rand(4, 3, dtype=torch.float64)
    y = Flat()(x).argmax(1)
    result = PGD(Ball("linf", 0.01), steps=5).run(Flat(), x, y)
    assert torch.equal(result.blind, result.backwards) and (result.blind > 0).all()


def test_gradients_that_are_nan_move_nothing_and_are_counted():
    class Kink(nn.Module):
        def forward(self, x):
            zero = (x - x.detach()).sum(1)
            return torch.stack([zero.square().sqrt(), 0 * zero - 1], 1)  # the root's slope at 0 is infinite, times 0

    x, y = torch.rand(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    for attack in (FGSM(Ball("l2", 0.1)), PGD(Ball("linf", 0.1), steps=3), APGD(Ball("linf", 0.1), steps=5)):
        result = attack.run(Kink(), x, y)
        assert result.x_adv.isfinite().all() and result.worst.isfinite().all() and not result.success.any()
        assert torch.equal(result.blind, result.backwards) and (result.blind > 0).all()


def test_no_room_for_a_sample_leaves_it_as_it_is():
    model, x, y = example()
    model.eval()
    eps = torch.full((len(x),), 0.3, dtype=torch.float64)
    eps[4:6] = 0.0
    for norm in ("linf", "l2"):
        result = PGD(Ball(norm, eps)).run(model, x, y)
        assert torch.equal(result.worst[4:6], x[4:6]) and result.success.sum() > result.natural.sum()


def test_bounds_of_a_sample_are_its_own_in_every_batch():
    model, x, y = example()
    model.eval()
    eps = torch.linspace(0.01, 0.3, len(x), dtype=torch.float64)
    whole = PGD(Ball("linf", eps)).run(model, x, y)
    parts = PGD(Ball("linf", eps)).run(model, x, y, batch_size=5)
    assert torch.equal(whole.x_adv, parts.x_adv)
    assert ((whole.x_adv - x).abs().amax(1) <= eps + 1e-9).all() and whole.success[-4:].any()
