"""Changes with a few parameters: nothing leaves its enclosure, and nothing that is certified is broken."""

from __future__ import annotations

import colorsys
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
from adversarial.threat import Ball
from certify import CROWN, IBP, AlphaCROWN, CertifyError
from certify.enclosures import enclosed
from certify.graph import trace
from certify.resampling import places, wave
from certify.semantic import Enclosed, Semantic, cells

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
    for place in [*ends, *torch.rand(150, len(x), k, generator=generator)]:
        z = torch.minimum(torch.maximum((low + (high - low) * place).float().double(), low), high)
        values = set.apply(x, z.float()).flatten(1).double()
        line = found.centre + (found.slopes * (z - (low + high) / 2)[..., None]).sum(1)
        assert ((values - line).abs() <= found.radius + 1e-6).all()
        assert (values >= found.low - 1e-6).all() and (values <= found.high + 1e-6).all()


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0, 180), st.floats(0, 0.4), st.floats(0, 0.5), st.floats(0.01, 1), st.integers(0, 10**6)
)  # fmt: skip
def test_any_turn_shift_and_size_is_enclosed(rotation, translation, scale, share, seed):
    set, x = Spatial(max(rotation, 1), translation, scale), pictures(seed, 4)[:2, :1]
    low, high = box_of(set, x, seed, 2 * share)
    found, generator = enclosed(set, x, low, high), torch.Generator().manual_seed(seed)
    for place in torch.rand(60, len(x), low.shape[1], generator=generator):
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
                assert torch.allclose(found.centre.view(3, -1)[:, place], expected, atol=1e-4)


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


def test_finer_parts_certify_more_and_samples_do_not_meet():
    _, graph, x, y = problem()
    threat = lift(Spatial(15, 0))
    coarse, implicit, explicit = (Semantic(threat, CROWN, *n)(graph, x, y) for n in ((4, 1), (4, 10), (12, 10)))
    assert (implicit.radius >= coarse.radius).all() and (explicit.radius >= implicit.radius - 0.5).all()
    assert implicit.certified_accuracy >= coarse.certified_accuracy
    assert explicit.certified_accuracy >= implicit.certified_accuracy and explicit.certified.any()
    alone = [Semantic(threat, CROWN, 4, 10)(graph, x[i : i + 1], y[i : i + 1]).radius for i in range(3)]
    assert torch.allclose(torch.cat(alone), implicit.radius[:3])
    parts = Semantic(threat, CROWN, 4, 10)(graph, x, y, batch_size=3)
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
    model, _, x, y = problem(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Semantic(lift(Hue(0.1)), CROWN, 2, 2)(model, x, y)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()) and not model.training
    with pytest.raises(CertifyError, match="a lifted set"):
        Semantic(Ball("linf", 0.1))(model, x, y)
    with pytest.raises(CertifyError, match="a set with an enclosure"):
        Semantic(lift(Blur()))(model, x, y)
    with pytest.raises(CertifyError, match="linf, l2 or l1"):
        Semantic(lift(Spatial(), Ball("l0", 1, -1, 1)))(model, x, y)
    with pytest.raises(CertifyError, match="parts for 3 parameters"):
        Semantic(lift(Spatial()), CROWN, (2, 2))(model, x, y)
    with pytest.raises(CertifyError, match="at least one input"):
        Semantic(lift(Hue()))(model, x[:0], y[:0])
    with pytest.raises(CertifyError, match="in evaluation mode"):
        Semantic(lift(Hue()))(network().train(), x, y)
