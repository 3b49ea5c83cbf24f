"""Universal changes, and common corruptions."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from torch import nn

from adversarial.attacks.corruption import IMAGES, SERIES, CorruptionErrors, corrupt, corruption_errors
from adversarial.attacks.image_corruptions import filtered, gaussian
from adversarial.attacks.uap import UAP
from adversarial.attacks.universal import UniversalPatch, UniversalPerturbation
from adversarial.attacks.weather import clouds
from adversarial.contract import Counted, example
from adversarial.goals import GoalError, LargerError, MultiLabel, Targeted
from adversarial.streams import Streams
from adversarial.threat import Ball, ThreatError

SHAPE = (3, 12, 10)


def pictures(count=6, shape=SHAPE, seed=0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- universal


ATTACKS = {
    "linf": UniversalPerturbation(Ball("linf", 0.25), batch_size=5), "l2": UniversalPerturbation(Ball("l2", 1.5), batch_size=5),
    "l1": UniversalPerturbation(Ball("l1", 6.0), batch_size=5, step=0.05), "patch": UniversalPatch(5, 4, batch_size=5, step=0.2),
    "placed": UniversalPatch(5, 4, (1, 2), batch_size=5, step=0.2),
    "uap-linf": UAP(Ball("linf", 0.25)), "uap-l2": UAP(Ball("l2", 1.5)),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_laws_of_universal_changes(name):
    model, x, y = example(SHAPE, count=24)
    model.train()
    counted, drawn = Counted(model), torch.random.get_rng_state()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = ATTACKS[name](counted, x, y, generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn, torch.random.get_rng_state()) and model.training and model[4].training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert int(found.forwards.sum()) == counted.forwards and int(found.backwards.sum()) == counted.backwards
    model.eval()
    adversarial = found.apply(x)
    assert torch.equal(model(adversarial).argmax(1) != y, found.success)
    assert torch.equal(model(x).argmax(1) != y, found.natural)
    assert torch.equal(found.apply(x[3:5]), adversarial[3:5])  # one by one the same
    assert (adversarial >= 0).all() and (adversarial <= 1).all()
    if "patch" not in name and name != "placed":
        assert ATTACKS[name].threat.contains(adversarial, x).all()
    else:
        assert ((adversarial != x).flatten(1).sum(1) <= 3 * 5 * 4).all()
        first = UniversalPatch.pasted(ATTACKS[name], torch.zeros_like(x), torch.ones(1, 3, 5, 4).double(), 0)
        assert (first.flatten(1).sum(1) == 60).all()
    assert found.fooling_rate >= {"l1": 0.1}.get(name, 0.3)
    again = ATTACKS[name](model, x, y, generator=torch.Generator().manual_seed(3))
    assert torch.equal(again.change, found.change)


def test_a_linear_binary_model_has_a_universal_optimum():
    """All inputs of one class and a linear model: the steepest point of the ball is best for every one of them."""
    torch.manual_seed(0)
    model = nn.Linear(10, 2).double()
    x = 0.4 + 0.2 * torch.rand(200, 10, dtype=torch.float64)
    x = x[model(x).argmax(1) == 0]
    y = torch.zeros(len(x), dtype=torch.long)
    weight = (model.weight[1] - model.weight[0]).detach()
    gap = (model(x)[:, 0] - model(x)[:, 1]).detach()
    for norm, dual in (("linf", weight.abs().sum()), ("l2", weight.norm())):
        eps = float(gap.median() / dual)  # half of them can be reached
        found = UniversalPerturbation(Ball(norm, eps, low=None, high=None), epochs=30, clip=9.0, step=0.3)(model, x, y)
        best = eps * (weight.sign() if norm == "linf" else weight / weight.norm())
        optimal = model(x + best).argmax(1) != y
        assert 0.4 < optimal.double().mean() < 0.6
        assert torch.allclose(found.change, best, atol=2e-3) and (found.success != optimal).sum() <= 1


def test_uap_fools_what_one_step_can_and_stops():
    """All inputs of one class and a linear model: every DeepFool step points the same way, so one pass is enough."""
    torch.manual_seed(0)
    model = nn.Linear(10, 2).double()
    x = 0.4 + 0.2 * torch.rand(200, 10, dtype=torch.float64)
    x = x[model(x).argmax(1) == 0]
    y = torch.zeros(len(x), dtype=torch.long)
    weight = (model.weight[1] - model.weight[0]).detach()
    far = float((model(x)[:, 0] - model(x)[:, 1]).max() / weight.norm())
    found = UAP(Ball("l2", 2 * far, low=None, high=None), fooled=1.0)(model, x, y)
    assert found.fooling_rate == 1 and torch.allclose(found.change / found.change.norm(), weight / weight.norm())
    assert (
        found.change.norm() <= 1.05 * far + 1e-3 and (found.backwards <= 2).all()
    )  # 2 % beyond the farthest, and no more
    target = UAP(Ball("l2", 2 * far, low=None, high=None))(model, x, Targeted(torch.ones_like(y)))
    assert target.success.double().mean() >= 0.8


def test_a_mask_a_target_and_other_goals():
    model, x, y = example(SHAPE, count=16)
    model.eval()
    mask = torch.zeros(SHAPE)
    mask[:, :6] = 1
    found = UniversalPerturbation(Ball("linf", 0.5, mask=mask), epochs=4)(model, x, y)
    assert (found.change[:, 6:] == 0).all() and (found.apply(x)[:, :, 6:] == x[:, :, 6:]).all()
    target = UniversalPerturbation(Ball("linf", 0.5))(model, x, Targeted(torch.ones_like(y)))
    assert target.success.double().mean() > 0.8 and (model(target.apply(x)).argmax(1) == 1).double().mean() > 0.8
    labels = (model(x) > 0).long()
    assert UniversalPerturbation(Ball("linf", 0.5))(model, x, MultiLabel(labels)).fooling_rate > 0.5
    values = model(x)[:, 0].detach()
    regression = nn.Sequential(model, First())
    assert UniversalPerturbation(Ball("linf", 0.3))(regression, x, LargerError(values, 0.2)).fooling_rate > 0.3


class First(nn.Module):
    def forward(self, z):
        return z[:, :1]


def test_bad_input_of_universal_changes():
    model, x, y = example(SHAPE)
    ball = Ball("linf", 0.1)
    for call, says in (
        (lambda: UniversalPerturbation(Ball("l0", 3)), "norm linf, l2 or l1"),
        (lambda: UAP(Ball("l1", 3.0)), "norm linf or l2"),
        (lambda: UAP(ball, fooled=0.0), "a share within"),
        (lambda: UAP(ball)(model, x[:0], y[:0]), "at least one"),
        (lambda: UniversalPerturbation(Ball("linf", torch.full((12,), 0.1)))(model, x, y), "one eps"),
        (lambda: UniversalPerturbation(ball, epochs=0)(model, x, y), "at least one epoch"),
        (lambda: UniversalPerturbation(ball)(model, 2 * x, y), "inputs within"),
        (lambda: UniversalPerturbation(ball)(model, x, y[:3]), "a label for each"),
        (lambda: UniversalPerturbation(ball)(model, x[:0], y[:0]), "at least one"),
        (lambda: UniversalPatch(13, 2)(model, x, y), "a patch within"),
        (lambda: UniversalPatch(3, 3, (10, 0))(model, x, y), "a patch within"),
        (lambda: UniversalPatch(3, 3)(model, x.flatten(1), y), r"\(B, C, H, W\)"),
    ):
        with pytest.raises(ValueError, match=says):
            call()


# ---- corruptions


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("shape", [SHAPE, (1, 28, 28), (3, 40, 56)], ids=["small", "grey", "oblong"])
def test_laws_of_image_corruptions(name, shape):
    if name == "saturate" and shape[0] == 1:
        with pytest.raises(ThreatError, match="3, H, W"):
            corrupt(pictures(2, shape), name, 1)
        return
    x = pictures(4, shape)
    drawn = torch.random.get_rng_state()
    found = [corrupt(x, name, severity, generator=torch.Generator().manual_seed(2)) for severity in range(1, 6)]
    assert torch.equal(drawn, torch.random.get_rng_state())
    for one in found:
        assert one.shape == x.shape and one.dtype == x.dtype and (one >= 0).all() and (one <= 1).all()
    assert (found[4] - x).abs().mean() > 0.01
    alone = corrupt(x[2:3], name, 3, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(alone, found[2][2:3], atol=1e-12)
    assert corrupt(x.to(torch.bfloat16), name, 1).dtype == torch.bfloat16


def test_severities_get_worse():
    x = torch.nn.functional.interpolate(pictures(4, (3, 7, 7)), size=(56, 56), mode="bilinear")
    for name in set(IMAGES) - {"saturate", "elastic", "pixelate", "snow"}:
        far = [float((corrupt(x, name, severity) - x).square().mean()) for severity in range(1, 6)]
        assert far == sorted(far) and far[0] > 0, name


def test_noise_has_the_moments_that_it_should():
    x = torch.full((4, 3, 64, 64), 0.5, dtype=torch.float64)
    assert corrupt(x, "gaussian_noise", 1).std() == pytest.approx(0.08, rel=0.03)
    for severity, photons in ((1, 60), (4, 5)):
        shot = corrupt(x * 0.4, "shot_noise", severity)
        assert shot.mean() == pytest.approx(0.2, rel=0.02) and shot.var() == pytest.approx(0.2 / photons, rel=0.05)
    salt = corrupt(x, "impulse_noise", 5)
    assert (salt == 1).double().mean() == pytest.approx(0.135, abs=0.01)
    assert (salt == 0).double().mean() == pytest.approx(0.135, abs=0.01)


def test_filters_agree_with_scipy():
    from scipy import ndimage

    x = pictures(2, (2, 15, 11))
    kernel = torch.rand(2, 5, 5, dtype=torch.float64)
    for row in range(2):
        for channel in range(2):
            own = ndimage.correlate(x[row, channel].numpy(), kernel[row].numpy(), mode="mirror")
            assert np.allclose(filtered(x, kernel)[row, channel], own)
    smooth = gaussian(x, 1.0)[1, 1].numpy()
    assert np.allclose(smooth, ndimage.gaussian_filter(x[1, 1].numpy(), 1.0, mode="nearest"))


def test_colour_of_brightness_and_contrast():
    x = torch.tensor([[0.2, 0.4, 0.1], [0.0, 0.0, 0.0]], dtype=torch.float64).view(2, 3, 1, 1).expand(-1, -1, 2, 2)
    brighter = corrupt(x, "brightness", 1)
    assert brighter[0, :, 0, 0].tolist() == pytest.approx([0.25, 0.5, 0.125])
    assert brighter[1, :, 0, 0].tolist() == pytest.approx([0.1, 0.1, 0.1])
    y = pictures(1, (1, 8, 8))
    assert torch.allclose(corrupt(y, "contrast", 3).std() / y.std(), torch.tensor(0.2, dtype=torch.float64))


@pytest.mark.parametrize("severity, factor, shift", [(1, 0.3, 0.0), (3, 2.0, 0.0), (4, 5.0, 0.1)])
def test_saturation_is_that_of_hsv(severity, factor, shift):
    colours = [(0.2, 0.4, 0.1), (0.7, 0.65, 0.68), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0), (0.9, 0.1, 0.9)]
    x = torch.tensor(colours, dtype=torch.float64)[:, :, None, None].expand(-1, -1, 2, 2)
    found = corrupt(x, "saturate", severity)[:, :, 0, 0]
    for colour, one in zip(colours, found.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        assert one == pytest.approx(colorsys.hsv_to_rgb(hue, min(saturation * factor + shift, 1), value), abs=1e-9)


def test_shifts_of_elastic_have_the_published_size():
    """Mean squares at the third severity, in pixels of 224: of the smooth field, and of the corners' steps, two of which
    have the centre between them."""
    ramp = torch.arange(224, dtype=torch.float64) / 224
    x = ramp.expand(20, 1, 224, 224).clone()
    x[:, :, 0, 0] = torch.arange(20)[:, None] / 20  # samples that differ draw different numbers
    shift = 224 * (corrupt(x, "elastic", 3) - x)[:, 0, 80:144, 80:144]
    field, step = 12.2**2 / 3 / (4 * math.pi * 2.44**2), 4.88**2 / 3
    tilt = 2 * (2 * step / 148**2) * 64**2 / 12
    assert shift.var(dim=(1, 2)).mean() == pytest.approx(field + tilt, rel=0.25)
    assert shift.mean((1, 2)).square().mean() == pytest.approx(step / 2, rel=0.6)


def test_fog_is_rough_where_it_should_be():
    """The darkest image gets none; a slower decay leaves more in the finest cells."""
    assert (corrupt(torch.zeros(2, 3, 20, 20), "fog", 3) == 0).all()
    x = pictures(6, (1, 60, 60))
    streams = [Streams(x, 0), Streams(x, 0)]
    smooth, rough = (clouds(x, decay, one) for decay, one in zip((3.0, 1.4), streams, strict=True))
    assert smooth.shape == x.shape and smooth.amin() >= 0 and smooth.amax() <= 1
    assert (rough.diff(dim=3).abs().mean((1, 2, 3)) > smooth.diff(dim=3).abs().mean((1, 2, 3))).all()


def test_snow_lies_on_a_paler_image_and_on_the_same_turned_round():
    x = torch.full((3, 3, 60, 64), 0.2, dtype=torch.float64)
    for severity, share in ((1, 0.8), (5, 0.55)):
        snowy = corrupt(x, "snow", severity)
        pale = share * 0.2 + (1 - share) * (1.5 * 0.2 + 0.5)
        assert (snowy >= pale - 1e-9).all() and snowy.amax() > pale + 0.1
        assert torch.allclose(snowy, snowy.rot90(2, (2, 3)))


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize("shape", [(50,), (2, 50)])
def test_laws_of_series_corruptions(name, shape):
    time = torch.linspace(0, 12, 50, dtype=torch.float64)
    x = 7 * torch.sin(time + torch.arange(5.0).view(-1, *(1,) * len(shape)) * 3) + torch.zeros(5, *shape)
    found = [corrupt(x, name, severity, generator=torch.Generator().manual_seed(1)) for severity in range(1, 6)]
    far = [float((one - x).square().mean()) for one in found]
    assert far == sorted(far) and far[0] > 0 and all(one.shape == x.shape for one in found)
    alone = corrupt(x[1:2], name, 4, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(alone, found[3][1:2])
    if name == "warp":
        assert torch.equal(found[0][..., 0], x[..., 0]) and torch.equal(found[0][..., -1], x[..., -1])
        assert found[4].max() <= x.max() and found[4].min() >= x.min()
    if name == "dropout":
        assert ((found[2] != x).double().mean() - 0.2).abs() < 0.1


def test_errors_of_a_model():
    model, x, y = example(SHAPE, count=20)
    model.train()
    found = corruption_errors(model, x, y, batch_size=7)
    assert model.training and set(found.errors) == set(IMAGES) and found.n == 20
    model.eval()
    assert found.clean == pytest.approx(float((model(x).argmax(1) != y).double().mean()))
    direct = (model(corrupt(x, "jpeg", 2)).argmax(1) != y).double().mean()
    assert found.errors["jpeg"][1] == pytest.approx(float(direct))
    noisy = (model(corrupt(x, "gaussian_noise", 4)).argmax(1) != y).double().mean()
    assert found.errors["gaussian_noise"][3] == pytest.approx(float(noisy))
    assert found.mean >= found.clean
    grey = corruption_errors(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 2).double()), pictures(3, (1, 8, 8)), torch.zeros(3).long()
    )
    assert "saturate" not in grey.errors and "jpeg" in grey.errors
    series = corruption_errors(nn.Linear(30, 2), torch.randn(4, 30), torch.zeros(4).long())
    assert set(series.errors) == set(SERIES)


def test_the_mean_corruption_error_is_that_of_the_formula():
    own = CorruptionErrors({"a": (0.1, 0.2, 0.3, 0.4, 0.5), "b": (0.2,) * 5}, 0.1, 10)
    base = CorruptionErrors({"a": (0.3,) * 5, "b": (0.4,) * 5}, 0.2, 10)
    assert own.mce(own) == own.mce(own, relative=True) == 1
    assert own.mce(base) == pytest.approx((1.5 / 1.5 + 1.0 / 2.0) / 2)
    assert own.mce(base, relative=True) == pytest.approx((1.0 / 0.5 + 0.5 / 1.0) / 2)
    assert own.mean == pytest.approx(0.25)
    with pytest.raises(ValueError, match="a baseline with"):
        own.mce(CorruptionErrors({"a": (0.1,)}, 0.1, 10))


def test_bad_input_of_corruptions():
    x = pictures(2)
    for call, says in (
        (lambda: corrupt(x, "frost", 1), "a corruption among"),
        (lambda: corrupt(x, "contrast", 6), "severity from 1 to 5"),
        (lambda: corrupt(3 * x, "contrast", 1), "inputs within"),
        (lambda: corrupt(x[0], "contrast", 1), r"\(B, C, H, W\)"),
        (lambda: corrupt(x[:, :2], "jpeg", 1), "1 or 3 channels"),
        (lambda: corrupt(torch.arange(5), "noise", 1), "series"),
        (lambda: corruption_errors(nn.Linear(3, 2), torch.zeros(0, 3), torch.zeros(0).long()), "at least one"),
    ):
        with pytest.raises((ThreatError, GoalError), match=says):
            call()
