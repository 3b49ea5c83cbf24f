"""Attacks that linearise the model: the laws, the exact optimum of linear models, and their peers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adversarial.attacks.deepfool import DeepFool, SparseFool, SuperDeepFool
from adversarial.attacks.fab import FAB
from adversarial.attacks.jsma import JSMA
from adversarial.attacks.planes import nearest
from adversarial.contract import check_attack, example
from adversarial.goals import GoalError, LargerError, MultiLabel, Targeted
from adversarial.threat import Ball, ThreatError, norm_of

INF = math.inf
NORMS = ("l2", "linf", "l1")


def every():
    for norm in NORMS:
        yield pytest.param(DeepFool(Ball(norm, INF)), id=f"deepfool-{norm}")
        yield pytest.param(SuperDeepFool(Ball(norm, INF)), id=f"superdeepfool-{norm}")
        yield pytest.param(FAB(Ball(norm, INF), steps=6), id=f"fab-{norm}")
        yield pytest.param(FAB(Ball(norm, INF), steps=4, targets=2, restarts=2), id=f"fab-t-{norm}")
    yield pytest.param(DeepFool(exact=True), id="deepfool-exact")
    yield pytest.param(SparseFool(), id="sparsefool-l0")
    yield pytest.param(SparseFool(Ball("l1", INF)), id="sparsefool-l1")
    yield pytest.param(JSMA(share=1.0, targets=2), id="jsma")


@pytest.mark.parametrize("attack", list(every()))
def test_the_laws(attack):
    check_attack(attack, expected=0.8)


@pytest.mark.parametrize(
    "attack",
    [DeepFool(Ball("l2", 0.4)), SuperDeepFool(Ball("linf", 0.2)), SparseFool(Ball("l0", 3)), FAB(Ball("linf", 0.2), steps=5),
     FAB(Ball("linf", 0.2), steps=5, targets=9, early=True, restarts=2), JSMA(Ball("l0", 4), share=1.0)],
    ids=lambda a: f"{type(a).__name__}-{a.threat.norm}",
)  # fmt: skip
def test_the_laws_within_a_radius(attack):
    check_attack(attack, expected=0.3)


@pytest.mark.parametrize(("shape", "classes"), [((3, 4, 5), 2), ((2, 9), 5)], ids=["image", "series"])
def test_any_shape_and_any_number_of_classes(shape, classes):
    for attack in (DeepFool(), SparseFool(exact=True), FAB(Ball("l1", INF), steps=3, targets=2)):
        check_attack(attack, shape=shape, classes=classes, expected=0.9)
    check_attack(JSMA(share=1.0, pool=8), shape=shape, classes=classes, expected=0.5)


def linear(classes, size=20, count=40):
    torch.manual_seed(classes)
    model = nn.Linear(size, classes).double()
    x = torch.rand(count, size, dtype=torch.float64)
    return model, x, model(x).detach().argmax(1)


def optimum(model, x, y, norm, low=0.0, high=1.0):
    """Least norm of a step within the bounds over one of a linear model's boundaries (B,): for each by bisection over the
    radius, as the largest gain within a ball grows with it."""
    with torch.no_grad():
        logits = model(x)
    least = torch.full((len(x),), INF, dtype=x.dtype)
    for other in range(logits.shape[1]):
        weight = (model.weight[other] - model.weight[y]).detach()
        gap = logits.gather(1, y[:, None])[:, 0] - logits[:, other]
        radius, far = torch.zeros_like(gap), torch.full_like(gap, 40.0)
        for _ in range(40):
            middle = (radius + far) / 2
            wide = Ball(norm, middle.clamp_min(1e-12), low, high).around(x).support(weight)
            radius, far = torch.where(wide >= gap, radius, middle), torch.where(wide >= gap, middle, far)
        least = torch.where((other != y) & (far < 39), torch.minimum(least, far), least)
    return least


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 4])
def test_linear_models_are_crossed_at_the_least_norm(norm, classes):
    model, x, y = linear(classes)
    ball = Ball(norm, INF)
    least = optimum(model, x, y, norm)
    assert least.isfinite().all()
    attacks = [
        SuperDeepFool(ball),
        SuperDeepFool(ball, exact=True),
        DeepFool(ball, exact=True),
        FAB(ball, steps=20, targets=3),
    ]
    if classes == 2 or norm == "l2":  # it chooses the class that is nearest without the bounds
        attacks.append(FAB(ball, steps=20))
    for attack in attacks:
        result = attack.run(model, x, y)
        assert result.success.all()
        assert (result.distance <= 1.05 * least + 1e-3).all(), type(attack).__name__
        assert (result.distance >= least - 1e-9).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_without_bounds_deepfool_needs_one_step(norm):
    model, x, y = linear(5)
    result = DeepFool(Ball(norm, INF, None, None)).run(model, x, y)
    least = optimum(model, x, y, norm, None, None)
    assert ((result.distance >= least - 1e-9) & (result.distance <= 1.021 * least + 2e-4)).all()
    assert (result.forwards == 3).all() and (result.backwards == 8).all()


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_sparsefool_crosses_a_plane_with_as_few_features_as_it_takes(norm):
    model, x, y = linear(2)
    result = SparseFool(Ball(norm, INF), reach=1.0).run(model, x, y)
    assert result.success.all()
    weight, logits = (model.weight[1 - y] - model.weight[y]).detach(), model(x).detach()
    gap = (logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None]))[:, 0]
    gains = (weight.clamp_min(0) * (1 - x) + (-weight).clamp_min(0) * x).sort(1, descending=True).values.cumsum(1)
    fewest = (gains < gap[:, None]).sum(1) + 1
    if norm == "l0":
        assert (result.distance <= fewest + 1).all() and (result.distance >= fewest).all()
    else:
        assert (result.distance <= 1.05 * optimum(model, x, y, norm) + 1e-3).all()


@pytest.mark.parametrize("norm", [*NORMS, "l0"])
def test_the_nearest_point_of_a_plane_within_a_box(norm):
    """No other point of the box that lies on the plane is nearer: the support function of a smaller ball stays below it."""
    torch.manual_seed(0)
    w, x = torch.randn(200, 12, dtype=torch.float64), torch.rand(200, 12, dtype=torch.float64)
    w[:, 3], x[:, :2] = 0, torch.randint(2, (200, 2)).double()
    gap = 3 * torch.randn(200, dtype=torch.float64)
    low, high = -x, 1 - x
    d = nearest(w, gap, low, high, norm)
    assert ((d >= low - 1e-12) & (d <= high + 1e-12)).all()
    gain, most = (w * d).sum(1), torch.where(w * gap[:, None] > 0, high, low).mul(w).sum(1)
    within = gap.abs() <= most.abs()
    assert torch.allclose(gain[within], gap[within]) and torch.allclose(gain[~within], most[~within])
    assert within.sum() > 100 and (~within).sum() > 5
    radius = norm_of(d, norm)
    smaller = radius - 1 if norm == "l0" else 0.999 * radius
    some = within & (smaller > 0)
    ball = Ball(norm, smaller[some]).around(x[some]).support((w * gap.sign()[:, None])[some])
    assert (ball < gap.abs()[some]).all()


def test_a_plane_without_a_box_and_a_normal_of_zeros():
    w, free = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-25, 0.0]]), torch.full((3, 2), INF)
    gap = torch.tensor([-5.0, 1.0, 1e-25])
    assert torch.allclose(nearest(w, gap, -free, free, "l2"), torch.tensor([[-0.6, -0.8], [0, 0], [1, 0]]))
    assert torch.allclose(nearest(w, gap, -free, free, "linf"), torch.tensor([[-5 / 7, -5 / 7], [0, 0], [1, 0]]))
    assert torch.allclose(nearest(w, gap, -free, free, "l1"), torch.tensor([[0, -1.25], [0, 0], [1, 0]]))
    assert nearest(w, gap, -free, free, "l0").isfinite().all()


@pytest.mark.parametrize("make", [DeepFool, SuperDeepFool, SparseFool, FAB, JSMA])
def test_masked_features_do_not_move(make):
    model, x, y = example((8,))
    threat = make().threat
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0])
    attack = make(Ball(threat.norm, INF, -1.0, torch.linspace(1, 3, 8, dtype=torch.float64), mask=mask))
    result = attack.run(model, x, y)
    assert torch.equal(result.x_adv[:, mask == 0], x[:, mask == 0]) and result.success.double().mean() > 0.5


@pytest.mark.parametrize(
    "attack", [DeepFool(), SuperDeepFool(), FAB(steps=8), SparseFool()], ids=lambda a: type(a).__name__
)
def test_several_labels_and_regression(attack):
    model, x, _ = example(classes=4)
    model.eval()
    outputs = model(x).detach()
    labels = (outputs > 0).long()
    found = attack.run(model, x, MultiLabel(labels))
    assert found.success.all() and ((model(found.x_adv) > 0).long() != labels).any(1).all()
    larger = attack.run(model, x, LargerError(outputs, tolerance=0.05))
    assert larger.success.all() and ((model(larger.x_adv) - outputs).abs().amax(1) > 0.05).all()
    with pytest.raises(GoalError, match="a tolerance of the error"):
        attack(model, x, LargerError(outputs))


def test_aimed_at_a_class_and_at_the_next_ones():
    model, x, y = example(classes=5)
    target = (y + 1) % 5
    found = DeepFool().run(model, x, Targeted(target))
    assert torch.equal(model.eval()(found.x_adv).argmax(1)[found.success], target[found.success])
    near, all_of_them = (FAB(steps=10, targets=count).run(model, x, y) for count in (1, 9))
    assert (all_of_them.distance <= near.distance + 1e-9).all()
    sound = ~near.natural
    most = 2 * 10  # a step that reaches the goal goes back and takes another pass
    assert (all_of_them.backwards[sound] <= 4 * most).all() and (near.backwards[sound] <= most).all()


def test_what_does_not_fit_is_said_in_one_sentence():
    model, x, y = example()
    for call, says in (
        (lambda: DeepFool(Ball("l0", 3))(model, x, y), "use SparseFool"),
        (lambda: SuperDeepFool(Ball("l0", 3))(model, x, y), "use SparseFool"),
        (lambda: FAB(Ball("l0", 3))(model, x, y), "for FAB, got l0"),
        (lambda: SparseFool(Ball("l2", 3))(model, x, y), "use DeepFool"),
        (lambda: JSMA(Ball("l2", 3))(model, x, y), "norm l0 for JSMA"),
        (lambda: JSMA(Ball("l0", 3, None, None))(model, x, y), "expected bounds for JSMA"),
        (lambda: JSMA()(model, x, MultiLabel(torch.ones(12, 3))), "for JSMA, got MultiLabel"),
        (lambda: DeepFool(steps=0), "at least one step"),
        (lambda: SparseFool(classes=1), "two classes"),
        (lambda: FAB(restarts=0), "one restart"),
        (lambda: JSMA(step=0.0), "a step and a share"),
    ):
        with pytest.raises((GoalError, ThreatError, ValueError), match=says):
            call()


@pytest.fixture(scope="module")
def trained():
    """A small network that tells three blobs apart, in float32, and inputs of which many lie on the bounds."""
    torch.manual_seed(0)
    y = torch.arange(120) % 3
    x = (torch.randn(3, 30)[y] + torch.randn(120, 30)).mul(0.5).add(0.5).clamp(0, 1)
    model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), x, y


def test_as_near_as_foolbox(trained):
    foolbox = pytest.importorskip("foolbox")
    model, x, y = trained
    judge = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    for norm, peer in (("l2", foolbox.attacks.L2DeepFoolAttack), ("linf", foolbox.attacks.LinfDeepFoolAttack)):
        theirs = peer(steps=50, overshoot=0.02)(judge, x, foolbox.criteria.Misclassification(y), epsilons=None)
        ours = DeepFool(Ball(norm, INF)).run(model, x, y)
        assert ours.success.float().mean() >= theirs[2].float().mean()
        both = theirs[2] & ~ours.natural
        theirs = norm_of((theirs[1] - x)[both], norm).median()
        assert ours.distance[both].median() <= 1.01 * theirs
        assert SuperDeepFool(Ball(norm, INF)).run(model, x, y).distance[both].median() <= theirs


def test_as_near_as_the_authors_fab(trained):
    fab = pytest.importorskip("pyautoattack.fab_pt")
    model, x, y = trained
    for norm, name in (("l2", "L2"), ("linf", "Linf"), ("l1", "L1")):
        peer = fab.FABAttack_PT(model, norm=name, n_iter=20, eps=10.0, device=torch.device("cpu"))
        with torch.random.fork_rng(devices=[]):
            theirs = peer.perturb(x.clone(), y.clone())
        ours = FAB(Ball(norm, INF), steps=20).run(model, x, y)
        both = (model(theirs).argmax(1) != y) & ~ours.natural
        assert ours.success.all() and both.float().mean() > 0.8
        assert ours.distance[both].median() <= 1.01 * norm_of((theirs - x)[both], norm).median()


def test_as_successful_as_the_saliency_maps_of_torchattacks(trained):
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = trained
    x, target = x[y < 2], y[y < 2] + 1  # what torchattacks aims at, of ten classes
    with torch.random.fork_rng(devices=[]):
        theirs = torchattacks.JSMA(model, theta=1.0, gamma=0.5)(x, target - 1)
    ours = JSMA(share=0.5).run(model, x, Targeted(target))
    assert ours.success.float().mean() >= (model(theirs).argmax(1) == target).float().mean() > 0.3
