"""Attacks that look for the nearest example: their laws, and the exact optimum on linear models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adversarial.attacks.carlini import EAD, CarliniWagner
from adversarial.attacks.minimal import DDN, FMN
from adversarial.attacks.proximal import PDPGD, PROXIMAL, SigmaZero
from adversarial.contract import check_attack, example
from adversarial.goals import GoalError, LargerError, MultiLabel, Targeted, margin
from adversarial.threat import Ball, norm_of

NORMS = ("linf", "l2", "l1", "l0")


def everywhere(norm):
    return Ball(norm, math.inf)


FEW = {
    "ddn": DDN(steps=30), **{f"fmn-{norm}": FMN(everywhere(norm), steps=30) for norm in NORMS},
    "sigma-zero": SigmaZero(steps=40), **{f"pdpgd-{norm}": PDPGD(everywhere(norm), steps=50) for norm in NORMS[:3]},
    "cw": CarliniWagner(searches=3, steps=20, rate=0.1, first=1.0), "ead-en": EAD(searches=3, steps=20, rate=0.1, first=1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", FEW)
def test_the_laws(name):
    check_attack(FEW[name], expected=0.99)


@pytest.mark.parametrize("name", ["fmn-l1", "cw"])
def test_any_shape_and_number_of_classes(name):
    check_attack(FEW[name], shape=(3, 4, 5), classes=2, expected=0.99)
    check_attack(FEW[name], shape=(2, 9), classes=5, expected=0.99)


@pytest.mark.parametrize("norm, eps", [("linf", 0.1), ("l2", 0.25), ("l1", 0.5), ("l0", 2)])
def test_a_radius_is_kept(norm, eps):
    attacks = {"l2": [DDN(Ball("l2", eps), steps=40)], "l0": [SigmaZero(Ball("l0", eps), steps=40)]}.get(
        norm, [PDPGD(Ball(norm, eps), steps=40)]
    )
    for attack in (*attacks, FMN(Ball(norm, eps), steps=30)):
        result = check_attack(attack, expected=0.2)
        assert (result.distance[result.success] <= eps * (1 + 1e-5)).all()


def linear(classes, dtype=torch.float64, size=12):
    """A linear model with inputs some of which lie at their bounds, and their classes."""
    generator = torch.Generator().manual_seed(classes)
    model = nn.Linear(size, classes).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, size, generator=generator))
        x = (1.4 * torch.rand(40, size, generator=generator) - 0.2).clamp(0, 1).to(dtype)
        model.bias.copy_(-(x @ model.weight.T).mean(0))
        return model, x, model(x).argmax(1)


def optimum(model, x, y, norm, low=0.0, high=1.0):
    """The least radius at which the support function of some class' difference reaches its margin, by bisection."""
    logits, best = model(x).detach(), torch.full((len(x),), math.inf, dtype=x.dtype)
    for other in range(logits.shape[1]):
        weight = (model.weight[other] - model.weight[y]).detach()
        gap = (logits.gather(1, y[:, None]) - logits[:, other : other + 1])[:, 0]
        below, above = torch.zeros_like(best), torch.full_like(best, float(x.shape[1]))
        for _ in range(50):
            middle = (below + above) / 2
            radius = middle.ceil() if norm == "l0" else middle
            enough = Ball(norm, radius.clamp_min(1e-12), low, high).around(x).support(weight) >= gap
            below, above = torch.where(enough, below, middle), torch.where(enough, middle, above)
        found = Ball(norm, above.ceil() if norm == "l0" else above, low, high).around(x).support(weight) >= gap - 1e-9
        radius = above.ceil() if norm == "l0" else above
        best = torch.where((y != other) & found, torch.minimum(best, radius), best)
    return best


SHARP = {
    "ddn-l2": DDN(steps=150), **{f"fmn-{norm}": FMN(everywhere(norm), steps=200) for norm in NORMS},
    "sigma-zero-l0": SigmaZero(steps=200), **{f"pdpgd-{norm}": PDPGD(everywhere(norm), steps=300) for norm in ("linf", "l2", "l1")},
    "cw-l2": CarliniWagner(searches=9, steps=200, first=0.01),
}  # fmt: skip
LONG = {
    **{f"pdpgd-{norm}": PDPGD(everywhere(norm), steps=2000) for norm in ("linf", "l2", "l1")},
    "cw-l2": CarliniWagner(steps=1000), "ead-l1": EAD(rule="l1", beta=0.03, first=0.1),
}  # fmt: skip


# a few hundred steps of two players still go back and forth; counts of features are whole numbers
WORST = {"pdpgd-linf": 1.15, "pdpgd-l2": 1.15, "pdpgd-l1": 1.15, "fmn-l0": 2.0, "sigma-zero-l0": 2.0}


def ratios(attack, norm):
    """How much farther than the exact optimum the examples of a linear model are."""
    model, x, y = linear(2)
    best = optimum(model, x, y, norm)
    result = attack.run(model, x, y)
    assert torch.equal(result.success, best.isfinite())
    ratio = (result.distance / best)[result.success]
    assert (ratio >= 1 - 1e-6).all()
    return ratio


@pytest.mark.parametrize("name", SHARP)
def test_the_nearest_example_of_a_linear_model(name):
    ratio = ratios(SHARP[name], name.rpartition("-")[2])
    assert ratio.max() <= WORST.get(name, 1.05) and ratio.median() <= 1.05


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_the_nearest_example_of_a_linear_model_with_many_steps(name):
    ratio = ratios(LONG[name], name.rpartition("-")[2])
    assert ratio.max() <= (1.1 if name == "ead-l1" else 1.05) and ratio.median() <= 1.02


def test_the_least_elastic_cost_of_a_linear_model():
    """Its conditions of optimality leave one number free, the plane's multiplier: found by bisection."""
    model, x, y = linear(2)
    weight, beta = (model.weight[1 - y] - model.weight[y]).detach(), 1e-3
    gap = -(model(x).detach().diff(dim=1)[:, 0] * torch.where(y == 0, 1, -1))
    room = torch.where(weight > 0, 1 - x, x)
    below, above = torch.zeros_like(gap), torch.full_like(gap, 1e4)

    def change(multiplier):
        return torch.minimum(((multiplier[:, None] * weight.abs() - beta) / 2).clamp_min(0), room)

    for _ in range(80):
        middle = (below + above) / 2
        across = (change(middle) * weight.abs()).sum(1) >= gap
        below, above = torch.where(across, below, middle), torch.where(across, middle, above)
    best, result = change(above), EAD(searches=6, steps=100, rate=0.05, first=0.1, beta=beta).run(model, x, y)
    costs = [d.square().sum(1) + beta * d.sum(1) for d in ((result.x_adv - x).abs(), best)]
    ratio = (costs[0] / costs[1])[result.success]
    assert result.success.all() and ratio.min() >= 1 - 1e-6 and ratio.median() <= 1.02 and ratio.max() <= 1.05**2


def test_a_weight_that_only_momentum_made_work_is_not_taken():
    """Moments of the run before carry the next one over the boundary; a bracket below the least weight that works would do."""
    ratio = ratios(CarliniWagner(steps=300), "l2")
    assert ratio.max() <= 1.02


@pytest.mark.parametrize("name", ["ddn-l2", "fmn-linf", "fmn-l2"])
def test_the_nearest_of_several_classes(name):
    """An attack may end at another class' boundary than the nearest."""
    model, x, y = linear(4)
    best = optimum(model, x, y, name.rpartition("-")[2])
    ratio = SHARP[name].run(model, x, y).distance / best
    assert ratio.median() <= 1.05 and ratio.max() < 1.6


@pytest.mark.parametrize("norm", list(PROXIMAL))
def test_proximal_steps_are_minima(norm):
    generator = torch.Generator().manual_seed(0)
    u, metric = torch.randn(20, 7, generator=generator).double(), 0.1 + torch.rand(20, 7, generator=generator).double()
    weight = 3 * torch.rand(20, 1, generator=generator).double()

    def cost(d):
        return (metric * (d - u).square()).sum(1) / 2 + weight[:, 0] * norm_of(d, norm)

    found = PROXIMAL[norm](u, metric, weight)
    for scale in (1e-3, 1e-1, 1.0):
        for _ in range(50):
            noise = scale * torch.randn(20, 7, generator=generator).double()
            assert (cost(found) <= cost(found + noise) + 1e-9).all()
    assert (cost(found) <= cost(torch.zeros_like(u)) + 1e-9).all() and (cost(found) <= cost(u) + 1e-9).all()


@pytest.mark.parametrize("name", ["ddn", "fmn-linf", "fmn-l0", "sigma-zero", "pdpgd-l1", "cw", "ead-en"])
def test_frozen_features_stay_and_bounds_may_be_any(name):
    model, x, y = linear(3)
    mask = torch.arange(12) % 3 > 0
    kind, norm = type(FEW[name]), FEW[name].threat.norm
    result = kind(Ball(norm, math.inf, mask=mask), **options(FEW[name])).run(model, x, y)
    assert result.success.float().mean() > 0.9 and (result.x_adv == x)[:, ~mask].all()
    stretched = nn.Linear(12, 3).double()
    with torch.no_grad():
        stretched.weight.copy_(model.weight / 255), stretched.bias.copy_(model.bias)
    wide = kind(Ball(norm, math.inf, 0.0, 255.0), **options(FEW[name])).run(stretched, 255 * x, y)
    assert wide.success.float().mean() > 0.95  # lengths are in units of the box
    free = kind(Ball(norm, math.inf, None, None), **options(FEW[name])).run(model, x, y)
    assert free.success.float().mean() > 0.95
    nothing = kind(Ball(norm, math.inf, mask=torch.zeros(12)), **options(FEW[name])).run(model, x, y)
    assert not nothing.success.any() and (nothing.forwards == 1).all()


def options(attack):
    return {name: value for name, value in vars(attack).items() if name != "threat"}


def test_other_goals():
    model, x, y = example(classes=4)
    model.eval()
    labels = (model(x) > 0).long()
    target = (y + 1) % 4
    for attack in FEW.values():
        assert attack.run(model, x, MultiLabel(labels)).success.float().mean() > 0.9
        aimed = attack.run(model, x, Targeted(target))
        assert aimed.success.float().mean() > 0.7 and (model(aimed.x_adv).argmax(1) == target)[aimed.success].all()
    single = nn.Linear(6, 1).double()
    values = single(x).detach()[:, 0]
    for attack in FEW.values():
        far = attack.run(single, x, LargerError(values, tolerance=0.1))
        assert far.success.all() and ((single(far.x_adv)[:, 0] - values).abs() > 0.1).all()
        with pytest.raises(GoalError, match="finite tolerance"):
            attack.run(single, x, LargerError(values))


def test_confidence_is_reached():
    model, x, y = linear(3)
    for attack in (
        CarliniWagner(searches=5, steps=60, rate=0.05, first=0.5, confidence=0.3),
        EAD(searches=5, steps=60, rate=0.05, first=0.5, confidence=0.3),
    ):
        result = attack.run(model, x, y)
        found = margin(model(result.x_adv), y)
        assert result.success.float().mean() > 0.9 and found[result.success].min() >= 0.3


def test_the_two_rules_of_ead_keep_what_they_say():
    model, x, y = linear(3)
    common = {"searches": 5, "steps": 60, "rate": 0.05, "first": 0.5, "beta": 0.01}
    found = {rule: EAD(rule=rule, **common).run(model, x, y) for rule in ("en", "l1")}
    change = {rule: (result.x_adv - x).abs() for rule, result in found.items()}
    elastic = {rule: (d.square() + 0.01 * d).sum(1) for rule, d in change.items()}
    assert (elastic["en"] <= elastic["l1"]).all() and (found["l1"].distance <= found["en"].distance).all()
    assert (found["l1"].distance < found["en"].distance).any()


def test_features_at_their_bounds_move():
    """The tangent's inverse is infinite there, and a projection by rescaling stalls below the boundary."""
    torch.manual_seed(0)
    model = nn.Linear(30, 2).double()
    x = (torch.rand(20, 30) > 0.5).double()
    y = model(x).argmax(1)
    best = optimum(model, x, y, "l2")
    carlini = CarliniWagner(searches=6, steps=80, rate=0.05, first=1.0)
    for attack, most in (
        (FMN(steps=100), 1.05),
        (DDN(steps=100), 1.5),
        (carlini, 1.5),
    ):  # a clipped sphere; a flat tanh
        result = attack.run(model, x, y)
        assert torch.equal(result.success, best.isfinite())
        assert (result.distance / best)[result.success].max() < most, attack


def test_samples_stop_one_by_one():
    model, x, y = linear(3)
    spent = {abort: CarliniWagner(searches=3, steps=100, abort=abort).run(model, x, y) for abort in (True, False)}
    assert (spent[False].forwards == 301).all() and len(spent[True].forwards.unique()) > 3
    assert spent[True].forwards.double().mean() < 200
    single = SigmaZero(steps=100).run(model, x, y)
    assert (single.forwards[single.distance == 1] < 90).all() and (single.forwards[single.distance > 1] == 101).all()


def test_as_near_as_another_implementation():
    fb = pytest.importorskip("foolbox")
    model, x, y = example(shape=(8,), count=32)
    model, x = model.eval().float(), x.float()
    y = model(x).argmax(1)
    peers = {
        "l2-ddn": (fb.attacks.DDNAttack(steps=100), DDN()), "l2-fmn": (fb.attacks.L2FMNAttack(steps=100), FMN()),
        "linf-fmn": (fb.attacks.LInfFMNAttack(steps=100), FMN(everywhere("linf"))),
        "l1-fmn": (fb.attacks.L1FMNAttack(steps=100), FMN(everywhere("l1"))),
        "l2-cw": (
            fb.attacks.L2CarliniWagnerAttack(binary_search_steps=5, steps=100, initial_const=0.1),
            CarliniWagner(searches=5, steps=100, first=0.1),
        ),
    }  # fmt: skip
    wrapped = fb.PyTorchModel(model, bounds=(0, 1), device="cpu")
    for name, (peer, ours) in peers.items():
        norm = name.partition("-")[0]
        theirs = peer(wrapped, x, fb.criteria.Misclassification(y), epsilons=None)[1]
        distance = Ball(norm, math.inf).around(x).distance(theirs)
        result = ours.run(model, x, y)
        assert result.success.all() and result.distance.median() <= 1.02 * distance.median(), name


def test_what_does_not_fit_is_said():
    model, x, y = example()
    for call, says in (
        (lambda: DDN(everywhere("linf"))(model, x, y), "norm l2 for DDN, got linf"),
        (lambda: SigmaZero(everywhere("l1"))(model, x, y), "norm l0 for SigmaZero"),
        (lambda: CarliniWagner(everywhere("l1"))(model, x, y), "norm l2 for CarliniWagner"),
        (lambda: EAD(everywhere("l2"))(model, x, y), "norm l1 for EAD"),
        (lambda: DDN(steps=1), "two steps"), (lambda: FMN(gamma=(0.05, 0)), "gammas within"),
        (lambda: SigmaZero(tau=0), "above 0"), (lambda: PDPGD(average=1.0), "average within"),
        (lambda: CarliniWagner(searches=0), "searches"), (lambda: EAD(rule="l2"), "rule en or l1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            call()
