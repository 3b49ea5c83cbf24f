"""Changes with a few parameters: nothing leaves its enclosure, and nothing that is certified is broken."""

from __future__ import annotations

import colorsys
import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adversarial import Spatial, lift
from adversarial.attacks.gradient import PGD
from adversarial.attacks.semantic import GridSearch, WorstOf
from adversarial.sets import Blur, BrightnessContrast, Hue, Lightness, Patch, Saturation
from adversarial.streams import Streams
from adversarial.threat import Ball
from certify import CROWN, IBP, AlphaCROWN, CertifyError
from certify.engine.tracing import trace
from certify.randomised.resolvable import Gain, HeatBlur, Roll, rescaled
from certify.randomised.tss import TSS
from certify.semantic.cells import cells
from certify.semantic.enclosures import enclosed
from certify.semantic.resampling import places, wave
from certify.semantic.semantic import Enclosed, Semantic

COLOURS = (Hue(), Hue(0.3), Saturation(), Saturation(1.5), Lightness(), Lightness(1.0))
TONES = (BrightnessContrast(), BrightnessContrast(0.8, 1.5))
PLACES = (
    Spatial(30, 0), Spatial(180, 0), Spatial(0, 0.1), Spatial(0, 0.4), Spatial(0, 0, 0.3), Spatial(20, 0.1, 0.2), Patch(1, 2, 3, 2),
)  # fmt: skip
SETS = (*COLOURS, *TONES, *PLACES)


def pictures(seed, count=4):
    """Colours of all kinds: random, black, white, grey, pure, and dark."""
    x = torch.rand(count, 3, 6, 7, generator=torch.Generator().manual_seed(seed))
    x[0, :, :2], x[0, :, 2] = 0.0, 1.0
    x[1] = x[1].round()
    x[2] = x[2, :1]
    x[3] = x[3] / 200
    return x


def box_of(set, x, seed, width):
    k = set.neutral(x).shape[1]
    share = torch.rand(len(x), k, generator=torch.Generator().manual_seed(seed)).double()
    low = set.low + (set.high - set.low - width) * share
    return low, low + width


@pytest.mark.parametrize("set", SETS, ids=str)
@pytest.mark.parametrize("share", (0.02, 0.3, 1.0))
def test_no_result_leaves_its_enclosure(set, share):
    x = pictures(0)
    low, high = box_of(set, x, 1, share * (set.high - set.low))
    found, generator = enclosed(set, x, low, high), torch.Generator().manual_seed(2)
    k = low.shape[1]
    ends = [torch.tensor(point) for point in ((0.0,) * k, (1.0,) * k)]
    for place in [*ends, *torch.rand(70, len(x), k, generator=generator)]:
        z = torch.minimum(torch.maximum((low + (high - low) * place).float().double(), low), high)
        values = set.apply(x, z.float()).flatten(1).double()
        steps = (z - (low + high) / 2)[..., None]
        lines = [line.offset + (line.slopes * steps).sum(1) for line in (found.below, found.above)]
        assert (lines[0] <= values + 1e-6).all() and (lines[1] >= values - 1e-6).all()
        assert (values >= found.low - 1e-6).all() and (values <= found.high + 1e-6).all()


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0, 180), st.floats(0, 0.4), st.floats(0, 0.5), st.floats(0.01, 1), st.integers(0, 10**6)
)  # fmt: skip
def test_any_turn_shift_and_size_is_enclosed(rotation, translation, scale, share, seed):
    set, x = Spatial(max(rotation, 1), translation, scale), pictures(seed, 4)[:2, :1]
    low, high = box_of(set, x, seed, 2 * share)
    found, generator = enclosed(set, x, low, high), torch.Generator().manual_seed(seed)
    for place in torch.rand(40, len(x), low.shape[1], generator=generator):
        values = set.apply(x, (low + (high - low) * place).float()).flatten(1).double()
        assert (values >= found.low - 1e-5).all() and (values <= found.high + 1e-5).all()


def test_ranges_of_one_parameter_are_tight():
    x = pictures(3)
    for set in (*COLOURS, *TONES[:1], Spatial(0, 0.2)):
        low, high = box_of(set, x, 4, 1.2)
        found, k = enclosed(set, x, low, high), low.shape[1]
        axes = torch.cartesian_prod(*(torch.linspace(0, 1, 501 if k == 1 else 25),) * k).view(-1, k)
        values = torch.stack([set.apply(x, (low + (high - low) * place).float()).flatten(1) for place in axes])
        assert float((found.high - values.amax(0)).max()) < 0.08 and float((values.amin(0) - found.low).max()) < 0.08
        assert float((found.high - values.amax(0)).mean()) < 0.01


def test_a_wave_is_largest_where_it_is():
    generator = torch.Generator().manual_seed(0)
    u, v, start = torch.randn(3, 500, generator=generator, dtype=torch.float64)
    width = torch.rand(500, generator=generator, dtype=torch.float64) * 8
    low, high = wave(u, v, (start, start + width))
    angles = start + width * torch.linspace(0, 1, 3001, dtype=torch.float64)[:, None]
    values = u * angles.cos() + v * angles.sin()
    assert (values.amin(0) >= low - 1e-12).all() and (values.amax(0) <= high + 1e-12).all()
    assert torch.allclose(values.amin(0), low, atol=1e-4) and torch.allclose(values.amax(0), high, atol=1e-4)


def test_a_still_image_is_read_where_it_is():
    none = torch.zeros(1, 4, dtype=torch.float64)
    (left, right), (top, bottom) = places(Spatial(10, 0.1, 0.1), (5, 6), none, none)
    columns, rows = torch.arange(6.0).expand(5, 6), torch.arange(5.0)[:, None].expand(5, 6)
    for side in (left, right):
        assert torch.allclose(side[0].float(), columns, atol=1e-4)
    for side in (top, bottom):
        assert torch.allclose(side[0].float(), rows, atol=1e-4)


def test_colours_agree_with_the_standard_library():
    x = pictures(5)[:1]
    for set, axis, amount in ((Hue(1.0), 0, 1.0 / (2 * 3.141592653589793)), (Lightness(0.2), 1, 0.2)):
        for z in (-1.0, 0.3, 1.0):
            point = torch.full((1, 1), z, dtype=torch.float64)
            found = enclosed(set, x, point, point)
            for place, pixel in enumerate(x[0].flatten(1).T.double().tolist()):
                hls = list(colorsys.rgb_to_hls(*pixel))
                hls[axis] = hls[axis] + amount * z if axis == 0 else min(max(hls[axis] + amount * z, 0), 1)
                expected = torch.tensor(colorsys.hls_to_rgb(*hls), dtype=torch.float64)
                assert torch.allclose(found.low.view(3, -1)[:, place], expected, atol=1e-4)


# ---- certificates


def network(channels=3, side=6):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * side * side, 12), nn.ReLU(), nn.Linear(12, 3)
    ).eval()  # fmt: skip


@cache
def traced():
    return trace(network(), torch.rand(1, 3, 6, 6))


def problem(count=6):
    """A model, its operations, inputs and what it says of them."""
    x = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(6))
    return network(), traced(), x, network()(x).argmax(1).detach()


@pytest.mark.parametrize(
    ("set", "splits", "inside"),
    [
        (Hue(0.6), 4, 3), (Saturation(0.5), 4, 2), (Lightness(0.1), 4, 2), (BrightnessContrast(0.1, 0.2), 3, 2),
        (Spatial(10, 0), 6, 8), (Spatial(0, 0.05), 3, 3), (Patch(2, 2, 1, 1), 1, 1),
    ],
    ids=str,
)  # fmt: skip
def test_nothing_certified_is_broken(set, splits, inside):
    model, graph, x, y = problem()
    y = torch.cat([y[:-1], (y[-1:] + 1) % 3])  # a wrong label
    threat = lift(set)
    found = Semantic(threat, CROWN, splits, inside)(graph, x, y)
    assert not found.certified[-1] and found.radius[-1] == 0 and (found.radius <= 1).all()
    assert torch.equal(found.certified, found.radius == 1) and found.guarantee == "deterministic"
    assert torch.equal(found.certified, found.margin > 0)
    attacks = [PGD(threat, loss="margin"), WorstOf(threat, 60)]
    if set.neutral(x).shape[1] <= 2:
        attacks.append(GridSearch(threat, 9))
    for attack in attacks:
        broken = attack.run(model, x, y).success
        assert not (broken & found.certified).any()
    inner = Ball("linf", found.radius.clamp_min(1e-6), set.low, set.high)
    if not isinstance(set, Patch):
        broken = WorstOf(lift(set, inner), 60).run(model, x, y).success
        assert not (broken & (found.radius > 0)).any()
    assert found.certified.any()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_no_random_network_is_broken_where_certified(seed):
    """Random networks, sets, cells and images against the worst of a fine grid."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3)
    ).eval()  # fmt: skip
    x = torch.rand(10, 3, 6, 6)
    graph, y = trace(model, x), model(x).argmax(1)
    size = 0.05 + 0.5 * torch.rand(1).item()
    for set in (
        Hue(size),
        Saturation(size),
        Lightness(size),
        BrightnessContrast(size / 2, size),
        Spatial(40 * size, 0.1 * size),
    ):
        k = set.neutral(x).shape[1]
        found = Semantic(lift(set), CROWN, 2, 3 if k < 3 else 2)(graph, x, y)
        success = GridSearch(lift(set), 301 if k == 1 else 17 if k == 2 else 9).run(model, x, y).success
        assert not (success & found.certified).any()


def test_finer_parts_certify_more_and_samples_do_not_meet():
    _, graph, x, y = problem()
    threat = lift(Spatial(15, 0))
    coarse, implicit, explicit = (Semantic(threat, CROWN, *n)(graph, x, y) for n in ((4, 1), (4, 6), (8, 6)))
    assert (implicit.radius >= coarse.radius).all() and (explicit.radius >= implicit.radius - 0.5).all()
    assert implicit.certified_accuracy >= coarse.certified_accuracy
    assert explicit.certified_accuracy >= implicit.certified_accuracy and explicit.certified.any()
    alone = [Semantic(threat, CROWN, 4, 6)(graph, x[i : i + 1], y[i : i + 1]).radius for i in range(3)]
    assert torch.allclose(torch.cat(alone), implicit.radius[:3])
    parts = Semantic(threat, CROWN, 4, 6)(graph, x, y, batch_size=3)
    assert torch.allclose(parts.radius, implicit.radius) and torch.equal(parts.certified, implicit.certified)


def test_other_certifiers_balls_and_own_sizes():
    model, graph, x, y = problem()
    set = BrightnessContrast(0.05, 0.1)
    margins = [Semantic(lift(set), one, 2, 2)(graph, x, y).margin for one in (IBP, CROWN, lambda t: AlphaCROWN(t, 5))]
    known = [~torch.isnan(margin) for margin in margins]
    assert (known[1] | ~known[0]).all() and (known[2] | ~known[1]).all() and known[2].any()
    assert (margins[1] >= margins[0] - 1e-5)[known[0]].all() and (margins[2] >= margins[1] - 1e-5)[known[1]].all()
    round_ball, square = Ball("l2", 1.0, -1, 1), Ball("linf", 1.0, -1, 1)
    inside = Semantic(lift(BrightnessContrast(0.2, 0.4), round_ball), CROWN, 4, 2)(graph, x, y)
    outside = Semantic(lift(BrightnessContrast(0.2, 0.4), square), CROWN, 4, 2)(graph, x, y)
    assert inside.certified_accuracy >= outside.certified_accuracy
    broken = WorstOf(lift(BrightnessContrast(0.2, 0.4), round_ball), 100).run(model, x, y).success
    assert not (broken & inside.certified).any()
    each = torch.linspace(0.1, 1, len(x))
    found = Semantic(lift(set, Ball("linf", each, -1, 1)), CROWN, 2, 2)(graph, x, y)
    assert torch.allclose(found.radius[found.certified], each[found.certified])


def test_a_piece_is_bounded_exactly_by_a_linear_model():
    """Brightness alone is straight: the margin of a linear model is that at the worse end, whatever the cells."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 2)).double().eval()
    x = 0.3 + 0.4 * torch.rand(5, 3, 6, 6, dtype=torch.float64)
    y = model(x).argmax(1)
    set = BrightnessContrast(0.2, 0.0)
    found = Semantic(lift(set, Ball("linf", 1.0, -1, 1)), CROWN, (2, 1), (2, 1))(model, x, y)
    ends = [model((x + 0.2 * side).clamp(0, 1)) for side in (-1, 1)]
    margin = torch.stack([(out.gather(1, y[:, None]) - out.gather(1, 1 - y[:, None]))[:, 0] for out in ends]).amin(0)
    assert torch.equal(found.certified, margin > 0)
    assert torch.allclose(found.margin[found.certified], margin[found.certified], atol=1e-3)


def test_a_union_is_the_worst_of_its_pieces():
    x = pictures(7)
    low, high = cells(*(torch.tensor([[side]] * 4).double() for side in (-1.0, 1.0)), (5,))
    g = torch.randn(4, x[0].numel(), generator=torch.Generator().manual_seed(0))
    whole = Enclosed(Hue(1.0), low, high).around(x)
    pieces = [Enclosed(Hue(1.0), low[:, [j]], high[:, [j]]).around(x) for j in range(5)]
    values = torch.stack([(g * p.anchor.flatten(1)).sum(1) + p.support(g) for p in pieces])
    assert torch.allclose((g * whole.anchor.flatten(1)).sum(1) + whole.support(g), values.amax(0), atol=1e-4)
    rows = torch.tensor([2, 0, 2])
    assert torch.allclose(whole[rows].support(g[rows]), whole.support(g)[rows], atol=1e-4)


def test_weights_stay_and_bad_input_is_said():
    model, graph, x, y = problem(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Semantic(lift(Hue(0.1)), CROWN, 2, 2)(model, x, y)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()) and not model.training
    with pytest.raises(CertifyError, match="a lifted set"):
        Semantic(Ball("linf", 0.1))(graph, x, y)
    with pytest.raises(CertifyError, match="a set with an enclosure"):
        Semantic(lift(Blur()))(graph, x, y)
    with pytest.raises(CertifyError, match="linf, l2 or l1"):
        Semantic(lift(Spatial(), Ball("l0", 1, -1, 1)))(graph, x, y)
    with pytest.raises(CertifyError, match="parts for 3 parameters"):
        Semantic(lift(Spatial()), CROWN, (2, 2))(graph, x, y)
    with pytest.raises(CertifyError, match="at least one input"):
        Semantic(lift(Hue()))(graph, x[:0], y[:0])
    with pytest.raises(CertifyError, match="in evaluation mode"):
        Semantic(lift(Hue()))(network().train(), x, y)


# ---- smoothing over parameters


@pytest.mark.parametrize("set", (HeatBlur(3.0, 2.0), Roll(3, 2), Gain(0.3, 0.5, (0.2, 0.3))), ids=str)
def test_changes_compose_as_they_say(set):
    x = torch.rand(5, 3, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        a, b = set.low + (set.high - set.low) * torch.rand(2, 5, set.neutral(x).shape[1], generator=generator).double()
        if isinstance(set, Gain):  # e^k2 (e^k1 (x + b1) + b2) = e^(k1 + k2) (x + b1 + e^-k1 b2)
            both = a + b * torch.stack([torch.exp(-set.contrast * a[:, 1]), torch.ones(5)], 1)
        elif isinstance(set, Roll):
            a = (set.pixels * a).round() / set.pixels  # an attack's own shift is whole
            both = a + b
        else:
            both = a + b
        assert torch.allclose(set.apply(set.apply(x, a), b), set.apply(x, both), atol=1e-10)
    assert torch.allclose(set.apply(x, set.neutral(x)), x, atol=1e-10)


def test_a_heat_blur_is_a_mean_of_neighbours():
    x = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    x[..., 20, 20] = 1
    blurred = HeatBlur(4.0).apply(x, torch.ones(1, 1, dtype=torch.float64))[0, 0]
    place = torch.arange(41) - 20.0
    assert blurred.min() > -1e-12 and float(blurred.sum()) == pytest.approx(1)
    assert float((blurred.sum(0) * place.square()).sum()) == pytest.approx(4.0, abs=1e-6)
    assert torch.allclose(HeatBlur(4.0).apply(torch.ones_like(x), torch.ones(1, 1).double()), torch.ones_like(x))


def test_noise_has_its_size():
    x, rows = torch.rand(2, 1, 4, 4), torch.arange(2)
    blur = HeatBlur(3.0, 2.0).noise(Streams(x, 0), rows, 20000)[..., 0] * 3.0
    assert (
        blur.min() >= 0
        and blur.mean().item() == pytest.approx(2.0, rel=0.03)
        and blur.std().item() == pytest.approx(2.0, rel=0.05)
    )
    gain = Gain(0.3, 0.5, (0.2, 0.4)).noise(Streams(x, 0), rows, 20000).std((0, 1)) * torch.tensor([0.3, 0.5])
    assert gain.tolist() == pytest.approx([0.2, 0.4], rel=0.03)
    assert (Roll(3, 2).noise(Streams(x, 0), rows, 20000) * 3).std().item() == pytest.approx(2.0, rel=0.03)


@settings(max_examples=20, deadline=None)
@given(st.floats(-0.8, 0.8), st.floats(-0.5, 0.5), st.integers(0, 10**6))
def test_no_set_of_gains_loses_more_than_is_said(k, b, seed):
    """Shares of random half planes, bands and discs under the clean and the attacked noise, by the same 40,000 normals."""
    set, generator = Gain(1.0, 1.0, (0.3, 0.4)), torch.Generator().manual_seed(seed)
    z = torch.special.ndtri(
        (torch.quasirandom.SobolEngine(2, True, seed % 1000).draw(40000).double()).clamp(1e-9, 1 - 1e-9)
    )
    clean = z * torch.tensor([0.3, 0.4])
    moved = torch.stack([b + torch.exp(torch.tensor(-k)) * clean[:, 0], k + clean[:, 1]], 1)
    side, centre = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    for f in (
        lambda v: (v / torch.tensor([0.3, 0.4]) * side).sum(1) < centre[0] + 1,
        lambda v: v[:, 0].abs() < 0.5, lambda v: v[:, 0].abs() > 0.05, lambda v: (v - 0.2 * centre).square().sum(1) < 0.5,
        lambda v: v[:, 0] * (-1.0 if b > 0 else 1.0) > -0.3,
    ):  # fmt: skip
        p, after = f(clean).double().mean(), f(moved).double().mean()
        left = rescaled(p, torch.tensor(k, dtype=torch.float64))
        size = torch.hypot(torch.tensor(k / 0.4), torch.tensor(b) * torch.tensor(k).exp() / 0.3)
        assert after >= torch.special.ndtr(torch.special.ndtri(left) - size) - 0.01
        box = torch.tensor([[b, k]]).double()
        if after < 0.49:
            low, high = box.clamp(max=0), box.clamp(min=0)
            assert not set.covered(low, high, p[None] - 0.005, 1 - p[None] + 0.005).item()


class Centre(nn.Module):
    """Class 0 while the middle pixel is above a threshold."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        gap = x[:, 0, 3, 3] - self.threshold
        return torch.stack([gap, -gap], 1)


def test_blur_reaches_the_exact_radius():
    """Blurring a spike lowers it, so class 0 is a set of small variances: the worst case of the bound itself."""
    set, x = HeatBlur(4.0, 1.0), torch.zeros(1, 1, 7, 7)
    x[..., 3, 3] = 1
    far = torch.tensor([[3.0 / 4.0]])  # class 0 up to a variance of 3
    model, y = Centre(float(set.apply(x, far)[0, 0, 3, 3])).eval(), torch.tensor([0])
    p = 1 - math.exp(-3.0)
    exact = -math.log(2 * (1 - p)) / 4.0
    found = TSS(lift(set), n=5000)(model, x, y, batch_size=5000)
    assert exact - 0.06 < found.radius.item() <= exact + 1e-6 and not found.certified.item()
    assert found.guarantee == "probabilistic" and found.confidence == 0.999
    ball = Ball("linf", 0.4, 0.0, 1.0)
    found = TSS(lift(set, ball), n=5000, bounds="both")(model, x, y, batch_size=5000)
    assert found.certified.item() and found.radius.item() == pytest.approx(0.4)
    wrong = TSS(lift(set, ball), n=1000)(model, x, 1 - y, batch_size=5000)
    assert not wrong.certified.item() and wrong.prediction.item() == 0


def test_brightness_and_shifts_reach_their_exact_radii():
    x, y = torch.zeros(1, 1, 7, 7), torch.tensor([0])
    set = Gain(1.0, 1e-6, (0.5, 1e-6))
    found = TSS(lift(set, Ball("linf", torch.tensor([[1.0, 0.0]]), -1, 1)), n=5000)(
        Centre(-0.6).eval(), x, y, batch_size=5000
    )
    assert 0.53 < found.radius.item() <= 0.6  # class 0 while the shift is above -0.6
    assert TSS(lift(set), n=200)(Centre(0.0).eval(), x, y).prediction.item() == -1  # an even vote
    image = torch.zeros(1, 1, 41, 41)
    image[..., 20] = torch.linspace(1, 0, 41)
    shifts = TSS(lift(Roll(8.0, 2.0)), n=5000)(Row().eval(), image, y, batch_size=1000)
    # class 0 while the image moves right by less than 6: two axes, so 6 / sqrt(2) pixels each, that is 4
    assert shifts.radius.item() * 8 == pytest.approx(3.5, abs=1.01)


class Row(nn.Module):
    """Class 0 while the brightest column is left of place 26."""

    def forward(self, x):
        place = x[:, 0].amax(1).argmax(1).float() - 20
        place = torch.where(x[:, 0].amax((1, 2)) > 0, place, 0)
        gap = 6 - 0.5 - place
        return torch.stack([gap, -gap], 1)


def test_bad_input_of_smoothing_over_parameters():
    model, x, y = Centre(0.5).eval(), torch.rand(2, 1, 7, 7), torch.tensor([0, 1])
    for make, says in (
        (lambda: TSS(lift(Hue())), "changes compose"),
        (lambda: TSS(Ball("linf", 0.1)), "changes compose"),
        (lambda: TSS(lift(Roll(), Ball("l0", 1, -1, 1))), "linf, l2 or l1"),
        (lambda: TSS(lift(Roll()), n=5), "show a majority"),
        (lambda: TSS(lift(Roll()), n=50)(Centre(0.5).train(), x, y), "evaluation mode"),
        (lambda: TSS(lift(Roll()), n=50)(model, x, y + 3), "labels from 0 to 1"),
    ):
        with pytest.raises(CertifyError, match=says):
            make()


def test_a_shift_that_rounds_up_is_counted_whole():
    for pixels in range(1, 13):
        for eps in (0.05, 0.35, 0.55, 0.7, 0.95):
            roll = Roll(float(pixels), 3.0)
            most = torch.full((1, 2), eps, dtype=torch.float32)
            steps = roll.apply(torch.arange(64.0).view(1, 1, 1, 64), torch.tensor([[most[0, 0], 0.0]]))[0, 0, 0]
            moved = float((-steps[0]) % 64)
            p = torch.special.ndtr(torch.tensor([moved / 3.0 * 0.999], dtype=torch.float64))
            wide = most.double()
            assert (
                moved == 0
                or not roll.covered(-wide * torch.tensor([1.0, 0.0]), wide * torch.tensor([1.0, 0.0]), p, 1 - p).any()
            )
    with pytest.raises(CertifyError, match="brightness above 0 of Gain"):
        Gain(brightness=0.0)
