"""Curves of robustness, their files, and the signs that an attack failed."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch import nn

from adversarial.attacks.gradient import FGSM, PGD
from adversarial.attacks.square import Square
from adversarial.contract import example
from adversarial.evaluate import WORST, Robustness, evaluate
from adversarial.failure import indicators
from adversarial.goals import GoalError
from adversarial.marks import mark_of
from adversarial.threat import Ball

BALL = Ball("linf", 0.1)


@pytest.fixture(scope="module")
def sound():
    model, x, y = example(count=40, classes=4)
    return model.eval(), x, y


def test_accuracy_falls_with_eps_and_the_worst_case_is_below_every_attack(sound, tmp_path):
    model, x, y = sound
    attacks = {"fgsm": FGSM, "pgd": partial(PGD, steps=10)}
    found = evaluate(model, x, y, attacks, threat=BALL, eps=(0.0, 0.05, 0.1, 0.3), progress=False)
    clean = float((model(x).argmax(1) == y).double().mean())
    for name in (*attacks, WORST):
        accuracies = [point.accuracy for point in found.curve(name)]
        assert accuracies[0] == pytest.approx(clean) and accuracies == sorted(accuracies, reverse=True)
        assert all(point.low <= point.accuracy <= point.high for point in found.curve(name))
    for i, point in enumerate(found.curve()):
        assert point.accuracy <= min(found.curve(name)[i].accuracy for name in attacks)
    assert found.curve("pgd")[-1].backwards > 0 == found.curve("pgd")[0].forwards
    found.to_json(tmp_path / "curve.json")
    assert Robustness.from_json(tmp_path / "curve.json") == found
    assert "worst case" in found.to_markdown() and found.plot().get_xlabel() == "eps (linf)"
    with pytest.raises(ValueError, match="an attack among fgsm, pgd, worst case"):
        found.curve("square")


def test_a_stopped_evaluation_goes_on(sound, tmp_path):
    model, x, y = sound
    calls = []

    class Counted(PGD):
        def search(self, probe, streams):
            calls.append(self.threat.eps)
            if len(calls) == 2:
                raise KeyboardInterrupt
            super().search(probe, streams)

    run = partial(
        evaluate, model, x, y, {"pgd": partial(Counted, steps=5)}, threat=BALL, eps=(0.05, 0.1), progress=False
    )
    out = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        run(out=out)
    found = run(out=out)
    assert calls == [0.05, 0.1, 0.1]
    whole = run()
    assert [p.broken for p in found.points] == [p.broken for p in whole.points]
    assert [p["eps"] for p in json.loads(out.read_text())["points"]] == [0.05, 0.1]
    with pytest.raises(ValueError, match="another model, data"):
        run(seed=1, out=out)
    with pytest.raises(ValueError, match="other attacks"):
        evaluate(model, x, y, {"pgd": PGD}, threat=BALL, eps=(0.05, 0.1), out=out, progress=False)


class Masked(nn.Module):
    """A model whose gradients vanish: its logits are rounded, and smooth only below what a float shows."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return (self.model(x) * 20).round() / 20


class Noisy(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) + 2 * torch.randn(len(x), 4, dtype=x.dtype)


def test_signs_of_failure(sound):
    model, x, y = sound
    pgd, square = PGD(BALL, loss="margin", restarts=3), Square(BALL, queries=200)
    fine = indicators(model, x, y, pgd, square)
    assert fine.unavailable_gradients == fine.unstable_predictions == fine.silent_success == 0
    assert fine.black_box_ahead <= 0.05 and fine.unconstrained_failure <= 0.05 and not fine.warnings(0.1)
    masked = indicators(Masked(model), x, y, pgd, square)
    assert masked.unavailable_gradients > 0.9 and masked.black_box_ahead > 0.05
    assert any("masked" in line for line in masked.warnings())
    torch.manual_seed(0)
    assert indicators(Noisy(model), x, y, pgd, square).unstable_predictions > 0.1


def test_an_attack_on_a_surrogate_may_not_transfer():
    x, y = torch.full((8, 2), 0.6), torch.zeros(8, dtype=torch.long)
    model, surrogate = (nn.Linear(2, 2).requires_grad_(False) for _ in range(2))
    for one, feature in ((model, 0), (surrogate, 1)):  # each looks at one feature, with the boundary at 0.5
        one.weight.copy_(torch.eye(2)[feature] * torch.tensor([[1.0], [-1.0]]))
        one.bias.copy_(torch.tensor([-0.5, 0.5]))
    ball = Ball("linf", 0.2)
    pgd, square = PGD(ball, random_start=False), Square(ball, queries=50)
    assert indicators(model, x, y, pgd, square, surrogate=surrogate).transfer_failure == 1
    assert indicators(model, x, y, pgd, square, surrogate=model).transfer_failure == 0


def test_marks_tell_settings_and_every_number_apart():
    long = torch.zeros(5000)
    changed = long.clone()
    changed[2500] = 1e-6  # what printing a tensor leaves out
    marks = [mark_of(PGD(Ball("linf", 0.1)), t) for t in (long, changed)] + [
        mark_of(PGD(Ball("linf", 0.1), steps=7), long)
    ]
    assert len(set(marks)) == 3 and mark_of(PGD(Ball("linf", 0.1)), long.clone()) == marks[0]
    assert mark_of([1, 2], 3) != mark_of([1], [2, 3])


def test_bad_input(sound):
    model, x, y = sound
    with pytest.raises(ValueError, match="at least one attack"):
        evaluate(model, x, y, {}, threat=BALL, eps=(0.1,))
    with pytest.raises(ValueError, match="eps of 0 or more"):
        evaluate(model, x, y, {"pgd": PGD}, threat=BALL, eps=(-0.1,))
    run = partial(evaluate, attacks={"pgd": PGD}, threat=BALL, eps=(0.0,), progress=False)
    for call, says in (
        (lambda: run(model, x[:0], y[:0]), "at least one input"),
        (lambda: run(model, x, torch.eye(4)[y]), "one-hot"),
        (lambda: run(model, x, y + 4), "labels from 0 to 3"),
        (lambda: run(model, x, y[:3]), "a label for each of 40"),
        (lambda: run(nn.Sequential(model, nn.Softmax(1)), x, y), "expected logits"),
    ):
        with pytest.raises(GoalError, match=says):
            call()
