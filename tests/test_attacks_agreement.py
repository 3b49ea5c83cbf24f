"""The attacks beside their authors' code and other libraries, on a trained network: as strong within the noise of seeds.

Square, DeepFool, FAB, JSMA, the decision-based and the spatial attacks are compared in the tests of their families.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from adversarial import APGD, FAB, PGD, AutoAttack, Ball, Square
from adversarial.threat import norm_of

EPS = {"linf": 0.12, "l2": 0.7, "l1": 2.0}
NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
STEPS = 50


@pytest.fixture(scope="module")
def trained():
    """A network that tells handwritten digits apart, 8×8 pixels in [0, 1], and pictures that it has not seen."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.images / 16).float()[:, None], torch.tensor(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
    optimizer = torch.optim.Adam(model.parameters(), 0.005)
    for step in range(150):
        rows = torch.arange(64) + 64 * step % 1280
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model.eval().requires_grad_(False), x[1500:1650], y[1500:1650]


@contextmanager
def theirs():
    """Peers set the global seed."""
    with torch.random.fork_rng(devices=[]):
        yield


def broken(model, x_adv, y):
    return model(x_adv).argmax(1) != y


def as_strong(ours, other, room=0.03):
    """Nearly all that the other attack breaks are broken."""
    assert 0.1 < other.double().mean() < 0.95
    assert float((other & ~ours).double().mean()) <= room


def agree(ours, other, room=0.03):
    """The same samples are broken but for a few, as with another seed."""
    as_strong(ours, other, room)
    assert float((ours & ~other).double().mean()) <= room


@pytest.mark.parametrize("norm", EPS)
def test_apgd_on_cross_entropy(trained, norm):
    peer = pytest.importorskip("pyautoattack.autopgd_base")
    model, x, y = trained
    with theirs():
        attack = peer.APGDAttack(
            model, n_iter=STEPS, norm=NAMES[norm], eps=EPS[norm], seed=0, device="cpu", use_largereps=norm == "l1"
        )
        other = broken(model, attack.perturb(x.clone(), y.clone()), y)
    agree(APGD(Ball(norm, EPS[norm]), steps=STEPS).run(model, x, y).success, other)


@pytest.mark.parametrize("norm", EPS)
def test_apgd_on_the_targeted_loss(trained, norm):
    peer = pytest.importorskip("pyautoattack.autopgd_base")
    model, x, y = trained
    with theirs():
        attack = peer.APGDAttack_targeted(
            model, n_iter=STEPS, norm=NAMES[norm], eps=EPS[norm], seed=0, device="cpu", n_target_classes=4,
            use_largereps=norm == "l1",
        )  # fmt: skip
        other = broken(model, attack.perturb(x.clone(), y.clone()), y)
    agree(APGD(Ball(norm, EPS[norm]), steps=STEPS, loss="dlr", targets=4).run(model, x, y).success, other)


@pytest.mark.parametrize("norm", EPS)
def test_targeted_fab(trained, norm):
    peer = pytest.importorskip("pyautoattack.fab_pt")
    model, x, y = trained
    with theirs():
        attack = peer.FABAttack_PT(
            model, norm=NAMES[norm], n_iter=20, eps=10.0, targeted=True, n_target_classes=4, device=torch.device("cpu")
        )
        found = attack.perturb(x.clone(), y.clone())
    ours = FAB(Ball(norm, float("inf")), steps=20, targets=4).run(model, x, y)
    both = broken(model, found, y) & ~ours.natural
    assert ours.success.all() and both.double().mean() > 0.8
    assert ours.distance[both].median() <= 1.01 * norm_of((found - x).flatten(1)[both], norm).median()
    within = norm_of((found - x).flatten(1), norm) <= EPS[norm]
    as_strong(ours.distance <= EPS[norm], (broken(model, found, y) & within) | ours.natural)


def test_square(trained):
    peer = pytest.importorskip("pyautoattack.square")
    model, x, y = trained
    with theirs():
        attack = peer.SquareAttack(model, norm="Linf", eps=EPS["linf"], n_queries=300, p_init=0.8, seed=0, device="cpu")
        other = broken(model, attack.perturb(x.clone(), y.clone()), y)
    ours = Square(Ball("linf", EPS["linf"]), queries=300).run(model, x, y)
    as_strong(ours.success, other)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_of_foolbox(trained, norm):
    foolbox = pytest.importorskip("foolbox")
    model, x, y = trained
    judge = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    make = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    with theirs():
        _, _, other = make(steps=40, rel_stepsize=0.1)(judge, x, y, epsilons=EPS[norm])
    agree(PGD(Ball(norm, EPS[norm]), steps=40, step=0.1).run(model, x, y).success, other)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_of_torchattacks(trained, norm):
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = trained
    make = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    with theirs():
        other = broken(model, make(model, eps=EPS[norm], alpha=0.1 * EPS[norm], steps=40)(x, y), y)
    agree(PGD(Ball(norm, EPS[norm]), steps=40, step=0.1).run(model, x, y).success, other)


@pytest.mark.slow
@pytest.mark.parametrize("norm", EPS)
def test_the_whole_of_autoattack(trained, norm):
    peer = pytest.importorskip("pyautoattack")
    model, x, y = trained
    x, y = x[:60], y[:60]
    with theirs():
        attack = peer.AutoAttack(model, norm=NAMES[norm], eps=EPS[norm], version="standard", seed=0, device="cpu")
        found, _ = attack.run_standard_evaluation(x.clone(), y.clone(), batch_size=60)
    agree(AutoAttack(Ball(norm, EPS[norm])).run(model, x, y).success, broken(model, found, y))
