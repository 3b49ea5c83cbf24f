"""Attacks made of attacks: nothing is lost between them, a stopped run goes on, random models are averaged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adversarial import (
    APGD,
    BIM,
    EOT,
    FAB,
    FGSM,
    PGD,
    AutoAttack,
    Ball,
    LargerError,
    Restarts,
    Square,
    Worst,
    check_attack,
)
from adversarial.contract import example

BALL = Ball("linf", 0.12)


def test_the_laws():
    check_attack(Worst((FGSM(BALL), FAB(BALL, steps=10), Square(BALL, queries=50))), expected=0.5)
    check_attack(Restarts(PGD(BALL, steps=5), 3), expected=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_autoattack_breaks_what_its_parts_break(classes):
    model, x, y = example(count=24, classes=classes)
    model.eval()
    whole = AutoAttack(Ball("linf", 0.05)).run(model, x, y)
    for part in AutoAttack(Ball("linf", 0.05)).attacks:
        alone = part.run(model, x, y)
        assert not (alone.success & ~whole.success).any()
    assert whole.success.any() and not whole.success.all()
    assert (whole.forwards[whole.success] < whole.forwards[~whole.success].min()).all()


def test_versions_are_those_of_the_paper():
    standard, plus, rand = (AutoAttack(BALL, version).attacks for version in ("standard", "plus", "rand"))
    assert [type(a).__name__ for a in standard] == ["APGD", "APGD", "FAB", "Square"]
    assert [getattr(a, "targets", 0) for a in standard] == [0, 9, 9, 0] and standard[3].queries == 5000
    assert [getattr(a, "restarts", 1) for a in plus] == [5, 5, 5, 1, 1, 1]
    sparse = AutoAttack(Ball("l1", 3.0)).attacks
    assert sparse[0].restarts == 5 and sparse[1].targets == 5 and sparse[2].targets == 9
    assert all(isinstance(a, EOT) and a.samples == 20 for a in rand)
    with pytest.raises(ValueError, match="standard, plus and rand"):
        AutoAttack(BALL, "best")


def test_a_stopped_run_goes_on(tmp_path):
    model, x, y = example()
    model.eval()

    class Stops(PGD):
        def search(self, probe, streams):
            if stop:
                raise KeyboardInterrupt
            super().search(probe, streams)

    small = Ball("linf", 0.05)
    attack = Worst((FGSM(small), Stops(small, steps=5), APGD(small, steps=20)))
    stop = True
    with pytest.raises(KeyboardInterrupt):
        attack.run(model, x, y, checkpoint=tmp_path)
    stop = False
    counted = []
    model[1].register_forward_hook(lambda *_: counted.append(1))
    found = attack.run(model, x, y, checkpoint=tmp_path)
    resumed = len(counted)
    whole = attack.run(model, x, y)
    assert resumed < len(counted) - resumed  # what was finished was not run again
    assert torch.equal(found.x_adv, whole.x_adv) and torch.equal(found.forwards, whole.forwards)
    with pytest.raises(ValueError, match="another folder"):
        attack.run(model, x + 0.01, y, checkpoint=tmp_path)


def test_the_worst_of_a_regression():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.rand(10, 6, dtype=torch.float64)
    goal = LargerError(model(x).detach()[:, 0] + 0.01)
    both = Worst((BIM(BALL, steps=2), BIM(BALL, steps=20, step=0.2)))
    found, parts = both.run(model, x, goal), [part.run(model, x, goal) for part in both.attacks]
    assert (found.loss >= torch.stack([part.loss for part in parts]).amax(0) - 1e-12).all()
    assert torch.allclose((model(found.worst)[:, 0] - goal.values).abs(), found.loss)


class Noisy(nn.Module):
    """Logits whose signal a single pass hides in noise."""

    def __init__(self, model, scale):
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, x):
        return self.model(x) + self.scale * torch.randn(len(x), 3, dtype=x.dtype)


def test_means_over_draws_see_through_noise():
    model, x, y = example(count=40)
    model.eval()
    torch.manual_seed(0)
    attack = PGD(Ball("linf", 0.1), steps=10, early=False)
    result = EOT(attack, samples=20).run(Noisy(model, 0.3), x, y)
    assert (result.forwards == 240).all() and (result.backwards == 200).all()  # the clean pass and the last one too
    truth = attack.run(model, x, y)
    wrong = model(result.worst).argmax(1) != y
    assert (wrong == truth.success).double().mean() > 0.85
