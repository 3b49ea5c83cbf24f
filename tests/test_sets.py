"""Sets of few parameters: what they do, that they are differentiable, and that attacks run on them."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch
from torch import nn

from adversarial.attacks.apgd import APGD
from adversarial.attacks.gradient import BIM, FGSM, PGD
from adversarial.attacks.semantic import GridSearch, WorstOf
from adversarial.colours import from_hsl, to_hsl
from adversarial.contract import check_attack, example
from adversarial.goals import Untargeted
from adversarial.sets import (
    Blur,
    BrightnessContrast,
    Hue,
    Lightness,
    Patch,
    Saturation,
    Spatial,
    Together,
    lift,
)
from adversarial.threat import Ball, ThreatError

SETS = {
    "hue": Hue(), "saturation": Saturation(0.9), "lightness": Lightness(0.4), "brightness": BrightnessContrast(0.4, 0.6),
    "blur": Blur(), "spatial": Spatial(40, 0.3, 0.3), "patch": Patch(1, 2, 3, 2),
    "together": Together((Hue(), BrightnessContrast(0.3, 0.3), Spatial(30, 0.2))),
}  # fmt: skip
SHAPE = (3, 6, 5)


def images(count=4, shape=SHAPE, seed=0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", SETS)
def test_laws_of_a_set(name):
    one, x = SETS[name], images()
    neutral = one.neutral(x)
    assert torch.allclose(one.apply(x, neutral), x, atol=1e-12)
    threat = lift(one)
    region = threat.around(x)
    rows = torch.arange(len(x))
    assert torch.equal(region.apply(region.anchor, rows), x)
    some = threat.ball.sample(neutral, torch.Generator().manual_seed(1))
    moved = one.apply(x, some)
    assert moved.shape == x.shape and (moved >= 0).all() and (moved <= 1).all() and (moved != x).any()
    assert torch.allclose(one.apply(x[2:3], some[2:3]), moved[2:3], atol=1e-12)
    assert torch.equal(region[rows[1:3]].apply(some[1:3], rows[1:3]), region.apply(some, rows)[1:3])
    assert one.apply(x.float(), some.float()).dtype == torch.float32


@pytest.mark.parametrize("name", SETS)
def test_gradients_are_those_of_finite_differences_also_at_the_clean_image(name):
    one, x = SETS[name], images(2, seed=3)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    region = lift(one).around(x)
    rows = torch.arange(2)
    for place in (0.3, 0.0):
        z = (region.anchor + place * (region.high if name == "patch" else 1.0)).clamp(0.0, 1.0)
        z = z.requires_grad_()
        (gradient,) = torch.autograd.grad((region.apply(z, rows) * weight).sum(), z)
        assert gradient.abs().sum() > 0
        if place == 0.0 and name != "blur":
            continue  # kinks: of resampling between pixels, of clamps, of the ends
        step = 1e-6
        for column in range(min(z.shape[1], 4)):
            ahead = z.detach().clone()
            ahead[:, column] += step
            slope = ((one.apply(x, ahead) - one.apply(x, z.detach())) * weight).flatten(1).sum(1) / step
            assert torch.allclose(slope, gradient[:, column], rtol=1e-3, atol=1e-4)


def test_colours_agree_with_the_standard_library():
    x = images(1, (3, 8, 9), 5)
    x[0, :, 0, 0] = 0.4  # grey
    x[0, :, 0, 1] = torch.tensor([1.0, 0.0, 0.0])
    hue, saturation, lightness = to_hsl(x)
    assert torch.allclose(from_hsl(hue, saturation, lightness), x)
    turned = Hue(math.pi).apply(x, torch.tensor([[0.4]], dtype=torch.float64))
    vivid = Saturation(0.5).apply(x, torch.tensor([[-0.6]], dtype=torch.float64))
    for i in range(8):
        for j in range(9):
            h, lightness_, s = colorsys.rgb_to_hls(*x[0, :, i, j].tolist())
            assert hue[0, i, j].item() / 6 == pytest.approx(h) and saturation[0, i, j].item() == pytest.approx(s)
            assert turned[0, :, i, j].tolist() == pytest.approx(colorsys.hls_to_rgb((h + 0.2) % 1, lightness_, s))
            assert vivid[0, :, i, j].tolist() == pytest.approx(colorsys.hls_to_rgb(h, lightness_, 0.7 * s))


def test_places_are_those_of_the_geometry():
    x = torch.zeros(1, 1, 8, 4, dtype=torch.float64)
    x[0, 0, 1, 2] = 1.0

    def brightest(image):
        return divmod(int(image.argmax()), 4)

    shifted = Spatial(0, 0.25).apply(x, torch.tensor([[-1.0, 1.0]], dtype=torch.float64))
    assert brightest(shifted) == (3, 1) and shifted.max() == pytest.approx(1.0)  # a quarter of 4 columns, of 8 rows
    turned = Spatial(180, 0).apply(x, torch.tensor([[1.0]], dtype=torch.float64))
    assert brightest(turned) == (6, 1)
    square = torch.zeros(1, 1, 5, 9, dtype=torch.float64)
    square[0, 0, 2, 6] = 1.0  # two columns right of the centre: a quarter turn keeps the distance on an oblong image
    quarter = Spatial(90, 0).apply(square, torch.tensor([[1.0]], dtype=torch.float64))
    assert divmod(int(quarter.argmax()), 9) in ((4, 4), (0, 4)) and quarter.max() == pytest.approx(1.0)
    grown = Spatial(0, 0, 1.0).apply(torch.ones(1, 1, 8, 8).double(), torch.tensor([[-1.0]], dtype=torch.float64))
    assert grown[0, 0, 0].sum() == 0 and grown.sum() == pytest.approx(16)  # half the size: a quarter of the light
    identity = Spatial(30, 0.1, 0.2)
    assert identity.size == 4 and Spatial().size == 3


def test_a_blur_keeps_the_light_and_has_its_variance():
    x = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    x[0, 0, 10, 10] = 1.0
    for z in (0.2, 1.0):
        blurred = Blur(2.0).apply(x, torch.tensor([[z]], dtype=torch.float64))[0, 0]
        place = torch.arange(21, dtype=torch.float64) - 10
        assert blurred.sum() == pytest.approx(1.0, abs=1e-3)
        assert (blurred.sum(0) * place**2).sum() == pytest.approx(4.0 * z, rel=0.02)


@pytest.mark.parametrize("name", ["lightness", "brightness", "spatial", "patch", "together"])
def test_ball_attacks_run_unchanged(name):
    attacks = [PGD(lift(SETS[name]), steps=10), APGD(lift(SETS[name]), steps=12)]
    for attack in attacks if name != "together" else attacks[:1]:
        check_attack(attack, shape=SHAPE, expected=0.2 if name != "lightness" else 0.0)


def test_other_balls_and_first_order_attacks():
    threat = lift(Spatial(40, 0.3), Ball("l2", 0.7, -1, 1))
    result = check_attack(PGD(threat, steps=10), shape=SHAPE)
    assert (result.distance[result.success] <= 0.7 + 1e-6).all()
    for attack in (FGSM(lift(BrightnessContrast(0.4, 0.6))), BIM(lift(Blur(2.0))), BIM(lift(Spatial(40, 0.3)))):
        check_attack(attack, shape=SHAPE)
    check_attack(PGD(lift(BrightnessContrast(0.4, 0.6))), shape=(2, 9))  # series


@pytest.mark.parametrize("name", ["hue", "saturation", "blur", "brightness", "spatial"])
def test_grid_and_worst_of(name):
    points = 3 if name == "spatial" else 9
    grid = check_attack(GridSearch(lift(SETS[name]), points), shape=SHAPE, gradients=False)
    check_attack(WorstOf(lift(SETS[name]), 12), shape=SHAPE, gradients=False)
    assert (grid.forwards <= points ** len(SETS[name].neutral(images())[0]) + 1).all() and (grid.backwards == 0).all()


def test_a_grid_finds_what_brute_force_finds():
    model, x, y = example(SHAPE)
    model.eval()
    one = BrightnessContrast(0.4, 0.6)
    result = GridSearch(lift(one), (5, 7)).run(model, x, y)
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for a in torch.linspace(-1, 1, 5).double():
        for b in torch.linspace(-1, 1, 7).double():
            parameters = torch.stack([a, b]).expand(len(x), 2)
            broken = model(one.apply(x, parameters)).argmax(1) != y
            best = torch.where(broken, torch.minimum(best, torch.maximum(a.abs(), b.abs())), best)
    assert torch.equal(result.success, best.isfinite() | result.natural)
    corner = GridSearch(lift(one), 2).run(model, x, Untargeted(y))
    assert (corner.forwards <= 5).all()


def test_foolbox_breaks_the_same_with_the_same_grid():
    foolbox = pytest.importorskip("foolbox", exc_type=ImportError)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 5, 2), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 144, 3)).eval()
    x = torch.nn.functional.interpolate(images(40, (1, 7, 7)), size=(28, 28), mode="bilinear").float()
    with torch.no_grad():
        model[3].bias -= model(x).mean(0)
    y = model(x).argmax(1)
    other = foolbox.attacks.SpatialAttack(max_translation=3, max_rotation=30, num_translations=5, num_rotations=5)
    _, _, success = other(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y)
    own = GridSearch(lift(Spatial(30, 3 / 28)), 5).run(model, x, y).success
    assert (own == success).float().mean() > 0.9 and own.float().mean() > 0.1


def test_bad_input():
    model, x, y = example(SHAPE)
    model.eval()
    for call, says in (
        (lambda: PGD(lift(Hue())).run(model, x[:, :2], y), r"\(B, 3, H, W\)"),
        (lambda: PGD(lift(Spatial())).run(model, x.flatten(1), y), r"\(B, C, H, W\)"),
        (lambda: PGD(lift(Patch(5, 0, 3, 3))).run(model, x, y), "a patch within"),
        (lambda: PGD(lift(Blur())).run(model, 3 * x, y), "inputs within"),
        (lambda: Together((Hue(), Patch(0, 0, 2, 2))), "patch, if any, as the first"),
        (lambda: GridSearch(lift(Hue()), (3, 3)).run(model, x, y), "points for 1 variables"),
        (lambda: GridSearch(lift(Patch(0, 0, 3, 3))).run(model, x, y), "use WorstOf or PGD"),
        (lambda: WorstOf(lift(Hue()), 0), "at least one point"),
    ):
        with pytest.raises((ThreatError, ValueError), match=says):
            call()


def test_models_of_single_precision():
    x = images(6, seed=9).float()
    model = nn.Sequential(nn.Flatten(), nn.Linear(90, 3))
    y = model(x).argmax(1)
    found = PGD(lift(SETS["together"]), steps=5).run(model, x, y)
    assert found.x_adv.dtype == torch.float32 and torch.equal(model(found.x_adv).argmax(1) != y, found.success)
