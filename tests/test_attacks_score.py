"""Attacks that see scores only: their laws, truth on linear models, and the authors' Square beside ours."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adversarial.attacks.score import NES, SPSA
from adversarial.attacks.simba import SimBA, cosines
from adversarial.attacks.square import Bumps, Square
from adversarial.attacks.windows import bump
from adversarial.attacks.zoo import ZOO, AutoZOOM, Enlarging
from adversarial.contract import check_attack, example
from adversarial.goals import GoalError, LargerError, MultiLabel, margin
from adversarial.probe import Probe
from adversarial.streams import Streams
from adversarial.threat import Ball, ThreatError

EPS = {"linf": 0.15, "l2": 0.35, "l1": 0.8, "l0": 2}


def budgeted():
    for norm, eps in EPS.items():
        ball = Ball(norm, eps)
        if norm != "l0":
            yield pytest.param(Square(ball, queries=40), id=f"square-{norm}")
            yield pytest.param(SPSA(ball, steps=5, pairs=8), id=f"spsa-{norm}")
        yield pytest.param(NES(ball, steps=8, pairs=8), id=f"nes-{norm}")
        yield pytest.param(SimBA(ball, queries=40), id=f"simba-{norm}")
    yield pytest.param(SimBA(Ball("l2", 0.35), queries=40, basis="dct", frequencies=1.0), id="simba-dct")
    yield pytest.param(ZOO(steps=12, searches=2, coordinates=3, rate=0.05, c=1.0), id="zoo")
    yield pytest.param(AutoZOOM(steps=24, switch=12, rate=0.05), id="autozoom")


@pytest.mark.parametrize("attack", list(budgeted()))
def test_the_laws(attack):
    check_attack(attack, expected=0.5, gradients=False)


@pytest.mark.parametrize(("shape", "classes"), [((3, 4, 5), 2), ((2, 9), 5)], ids=["image", "series"])
def test_any_shape_and_any_number_of_classes(shape, classes):
    for attack in (
        Square(Ball("linf", 0.15), queries=30), Square(Ball("l2", 0.35), queries=15), NES(Ball("l2", 0.5), steps=2, pairs=4),
        SimBA(Ball("linf", 0.15), queries=20, basis="dct", frequencies=0.5), AutoZOOM(steps=6, switch=3),
        ZOO(steps=2, searches=1, coordinates=5),
    ):  # fmt: skip
        check_attack(attack, shape=shape, classes=classes, targeted=False, gradients=False)


def linear(classes: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(8, classes).to(dtype)
    x = 0.4 + 0.2 * torch.rand(20, 8, dtype=dtype)
    return model, x, model(x).argmax(1)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 4])
def test_the_nearest_example_of_a_linear_model_is_found(classes):
    model, x, y = linear(classes)
    x = 0.5 + 4 * (x - 0.5)
    y = model(x).argmax(1)
    with torch.no_grad():
        logits = model(x)
        gap = logits.gather(1, y[:, None]) - logits
        length = (model.weight[y][:, None] - model.weight).norm(dim=2)
        planes = (gap / length.clamp_min(1e-9)).scatter(1, y[:, None], torch.inf)
        best, runner_up = planes.amin(1), gap.scatter(1, y[:, None], torch.inf).argmin(1, keepdim=True)
    some = (best > 0.1) & (best < 0.4)  # what Adam's steps resolve and reach
    nearest = planes.gather(1, runner_up)[:, 0][some]  # the margin leads to the runner-up's plane first
    x, y, best = x[some], y[some], best[some]
    assert len(x) >= 4
    ball = Ball("l2", float("inf"), low=-5.0, high=5.0)
    for attack in (
        ZOO(ball, steps=300, searches=4, coordinates=8, c=1.0, rate=0.003),
        AutoZOOM(ball, steps=600, switch=150, rate=0.003, directions=8),
    ):
        result = attack.run(model, x, y)
        assert result.success.all()
        assert (result.distance > 0.999 * best).all()
        ratio = result.distance / nearest
        assert ratio.max() <= 1.05, f"{type(attack).__name__}: {ratio}"


def test_budget_attacks_succeed_where_a_linear_model_allows_it():
    model, x, y = linear(2)
    with torch.no_grad():
        weight, gap = (model.weight[1 - y] - model.weight[y]), -margin(model(x), y)
    for norm in ("linf", "l2", "l1"):
        ball = Ball(norm, gap.median().item() / weight.abs().amax().item() * {"linf": 0.3, "l2": 0.6, "l1": 1.0}[norm])
        possible = ball.around(x).support(weight) / gap
        attacks = [
            Square(ball, queries=300),
            NES(ball, steps=30),
            SPSA(ball, steps=10, pairs=16),
            SimBA(ball, queries=300, step=0.05),
        ]
        for attack in attacks[: 2 if norm == "l1" else 4]:
            success = attack.run(model, x, y).success
            assert not success[possible < 1].any()
            assert success[possible > 1.3].all(), f"{type(attack).__name__} {norm}"


def test_estimates_do_not_depend_on_batch_mates():
    """Every row has directions of its own, and with many of them the estimate is the gradient."""
    from adversarial.attacks.score import estimated
    from adversarial.goals import Untargeted

    model, x, y = linear(3)
    probe = Probe(model, Ball("linf", 1e-3).around(x), Untargeted(y), dtype=x.dtype)
    radius = torch.full((len(x),), 1e-3, dtype=x.dtype)
    draw = Streams(x, 0).signs
    found = estimated(probe, x, probe.open, draw, 400, radius, "margin")
    exact, _ = probe.gradient(x, probe.rows, "margin")
    assert (torch.cosine_similarity(found, exact) > 0.97).all()
    assert (probe.forwards == 802).all()


def test_square_asks_nothing_twice():
    model, x, y = example((1, 6, 6))
    model.eval()
    seen = []

    class Log(nn.Module):
        def forward(self, z):
            seen.append(z.clone())
            return model(z)

    result = Square(Ball("linf", 0.01), queries=200).run(Log(), x[2:3], y[2:3])
    assert not result.success.any() and 150 < int(result.forwards) <= 200
    best, loss = x[2:3], torch.tensor([-torch.inf], dtype=x.dtype)
    for point in seen:
        assert torch.equal(point, x[2:3]) or not torch.equal(point, best)
        now = margin(model(point), y[2:3])
        if now > loss and point is not seen[0]:
            best, loss = point, now


def test_masks_bounds_and_features_that_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(60, 3)).double()
    x = torch.rand(6, 1, 6, 10, dtype=torch.float64) * 255
    y = model(x).argmax(1)
    mask = torch.zeros(1, 6, 10)
    mask[:, 2:5, 3:9] = 1
    for norm, eps in (("linf", 100.0), ("l2", 300.0), ("l1", 900.0)):
        ball = Ball(norm, eps, high=255.0, mask=mask)
        for attack in (Square(ball, queries=100), NES(ball, steps=5, pairs=8), SimBA(ball, queries=100, step=100.0)):
            moved = (attack.run(model, x, y).worst - x).abs()
            assert (moved[:, mask == 0] == 0).all() and moved.amax() > 1
    nothing = Ball("linf", 0.1, high=255.0, mask=torch.zeros(1, 6, 10))
    for attack in (Square(nothing, queries=20), SimBA(nothing, queries=20), ZOO(nothing, steps=2)):
        assert int(attack.run(model, x, y).forwards.max()) <= 2


def test_several_labels_and_regression():
    model, x, _ = example(classes=4)
    model.eval()
    labels = (model(x) > 0).long()
    values = model(x).detach()[:, :1]
    for attack in (
        Square(Ball("linf", 0.2), queries=80),
        NES(Ball("linf", 0.2), steps=5),
        ZOO(steps=40, searches=1, c=10.0),
    ):
        result = attack.run(model, x, MultiLabel(labels))
        assert result.success.any()
        assert torch.equal(((model(result.x_adv) > 0).long() != labels).any(1), result.success)
    alone = nn.Sequential(model, nn.Linear(4, 1).double())
    values = alone(x).detach()
    result = Square(Ball("linf", 0.2), queries=80).run(alone, x, LargerError(values))
    assert ((alone(result.worst) - values).abs() > 0).all()
    with pytest.raises(GoalError, match="got a regression"):
        ZOO().run(alone, x, LargerError(values))


def test_the_pieces():
    waves = cosines(7, 7)
    assert torch.allclose(waves @ waves.T, torch.eye(7, dtype=torch.float64), atol=1e-12)
    at = torch.arange(5)
    peak = bump(at[:, None], torch.tensor(5), at[None], torch.tensor(5), torch.tensor(True), 2)
    assert peak[:2].min() > 0 and peak[2:].max() < 0
    lens = Enlarging.of(torch.zeros(1, 2, 6, 8, dtype=torch.float64), 0.5)
    assert lens.small == (2, 3, 4)
    region = Ball("l2", 1.0).around(torch.full((3, 2, 6, 8), 0.5, dtype=torch.float64))
    v, g = torch.rand(3, *lens.small, dtype=torch.float64), torch.rand(3, 96, dtype=torch.float64)
    assert torch.allclose((lens.onto(v, region).flatten(1) * g).sum(), (v * lens.back(g, region)).sum())
    start = Bumps.around(region).start(Streams(region.anchor, 0), torch.arange(3))
    assert torch.allclose(region.distance(start), region.eps)


def test_what_does_not_fit_is_said_in_one_sentence():
    model, x, y = example()
    ball = Ball("linf", 0.1)
    for call, says in (
        (lambda: Square(ball, queries=1), "at least 2 queries"),
        (lambda: Square(ball, p=0.0), "p above 0"),
        (lambda: Square(Ball("l0", 2)).run(model, x, y), "got l0"),
        (lambda: Square(Ball("l2", float("inf"))).run(model, x, y), "finite eps"),
        (lambda: NES(Ball("l2", float("inf"))).run(model, x, y), "finite eps"),
        (lambda: NES(ball, pairs=0), "pairs above 0"),
        (lambda: SPSA(Ball("l0", 2)).run(model, x, y), "got l0"),
        (lambda: SimBA(ball, basis="wavelet"), "'pixel' or 'dct'"),
        (lambda: SimBA(ball, frequencies=0.0), "frequencies above 0"),
        (lambda: ZOO(coordinates=0), "coordinates above 0"),
        (lambda: AutoZOOM(switch=0), "switch above 0"),
        (lambda: Square(ball, loss="hinge").run(model, x, y), "a loss among"),
    ):
        with pytest.raises((GoalError, ThreatError, ValueError), match=says):
            call()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_square_is_as_strong_as_the_authors(norm):
    square = pytest.importorskip("pyautoattack.square")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(196, 4)).eval()
    x = torch.rand(64, 1, 15, 15)
    y = model(x).argmax(1)
    eps = {"linf": 0.04, "l2": 0.4, "l1": 3.0}[norm]
    ours = Square(Ball(norm, eps), queries=120).run(model, x, y)
    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    with torch.random.fork_rng():
        theirs = square.SquareAttack(model, norm=name, eps=eps, n_queries=120, p_init=0.8, seed=0, device="cpu")
        found = theirs.perturb(x, y)
    broken = (model(found).argmax(1) != y).float().mean()
    assert broken > 0.2 and ours.success.float().mean() >= broken - 0.06
