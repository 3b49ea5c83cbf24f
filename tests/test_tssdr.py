"""Smoothing at sampled parameters: no change leaves its cell's distance, and what is said of linear models is exact."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adversarial import Ball, BrightnessContrast, Hue, Lightness, Saturation, Spatial, lift
from adversarial.sets import Blur
from certify import TSSDR, CertifyError
from certify.semantic.cells import cells
from certify.semantic.tssdr import farthest


class HalfSpace(nn.Module):
    """Class 1 where w·x > b."""

    def __init__(self, weight, bias):
        super().__init__()
        self.register_buffer("weight", weight.flatten())
        self.bias = bias

    def forward(self, x):
        z = x.flatten(1) @ self.weight - self.bias
        return torch.stack([-z, z], 1)


def pictures(count=3, channels=1, side=9, seed=0):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def moved(set, x, centre, low, high, share):
    """Distance of set.apply(x, z) from the centre for z at this share of the box (B, k)."""
    z = torch.minimum(torch.maximum((low + (high - low) * share).float().double(), low), high).float()
    return (set.apply(x, z) - centre).flatten(1).double().norm(dim=1)


@pytest.mark.parametrize("reach", [(30, 0, 0), (0, 0, 0.3), (0, 0.15, 0)], ids=str)
@pytest.mark.parametrize("width", [0.02, 0.3])
def test_no_change_is_farther_than_its_cell_says(reach, width):
    """1000 places of a cell for each of three pictures; half of them where pixels are black or white."""
    set, x = Spatial(*reach), pictures()
    x[0] = x[0].round()
    size, generator = set.size, torch.Generator().manual_seed(1)
    low = -1 + (2 - width) * torch.rand(3, size, generator=generator).double()
    high = low + width
    centre = set.apply(x, ((low + high) / 2).float())
    found = [farthest(set, x, centre, *cells(low, high, (parts,) * size)) for parts in (1, 5)]
    assert (found[1] <= found[0]).all()
    shares = torch.linspace(0, 1, 1001)[:, None, None] if size == 1 else torch.rand(1001, 3, size, generator=generator)
    true = torch.stack([moved(set, x, centre, low, high, share) for share in shares])
    assert (true <= found[1]).all()
    if size == 1:
        assert (found[1] <= 1.08 * true.amax(0) + 1e-3).all()  # nor much nearer


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([Spatial(20, 0.1, 0.2), Hue(0.5), Saturation(0.8), Lightness(0.4), BrightnessContrast(0.3, 0.5)]),
    st.floats(0.001, 1.0), st.integers(0, 10**6),
)  # fmt: skip
def test_any_set_with_an_enclosure_has_a_distance(set, width, seed):
    x, generator = pictures(2, 3, 5, seed), torch.Generator().manual_seed(seed)
    size = set.neutral(x).shape[1]
    low = -1 + (2 - width) * torch.rand(2, size, generator=generator).double()
    high = low + width
    centre = set.apply(x, (low + (high - low) * torch.rand(2, size, generator=generator)).float())
    found = farthest(set, x, centre, *cells(low, high, (2,) * size))
    for share in torch.rand(40, 2, size, generator=generator):
        assert (moved(set, x, centre, low, high, share) <= found).all()


def exact(model, set, x, z):
    """Signed distance (Z, B) of the changed inputs from a half space's border: the smoothed classifier's exact radii."""
    return torch.stack([model(set.apply(x, one.expand(len(x), -1)))[:, 1] for one in z]) / model.weight.norm()


def test_a_linear_model_is_covered_where_it_is_true():
    """Each cell of a half space has the radius of its distance to the border; the certificate follows from these."""
    set, x = Spatial(20, 0, 0), pictures(24, side=8)
    weight = torch.randn(64, generator=torch.Generator().manual_seed(3))
    model = HalfSpace(weight, 0.2).eval()
    y, threat = model(x).argmax(1), lift(set)
    found = TSSDR(threat, sigma=0.3, splits=20, inside=4, n=2000)(model, x, y)
    sign = (2 * y - 1)[None]
    least = (sign * exact(model, set, x, torch.linspace(-1, 1, 801)[:, None])).amin(0)
    assert 2 < int(found.certified.sum()) < 22 and (least[found.certified] > 0).all()
    assert found.guarantee == "probabilistic" and found.confidence == 0.999 and found.margin.isnan().all()
    assert torch.equal(found.certified, found.radius == 1)
    low, high = cells(torch.full((24, 1), -1.0), torch.full((24, 1), 1.0), (20,))
    room = torch.full((24,), math.inf)
    for cell in range(20):
        ends, z = (low[:, cell], high[:, cell]), (low[:, cell] + high[:, cell]) / 2
        clean = (ends[0] <= 0) & (ends[1] >= 0)
        centre = torch.where(clean[..., None, None], x, set.apply(x, z.float()))
        far = farthest(set, x, centre, *cells(*ends, (4,)))
        room = torch.minimum(room, sign[0] * model(centre)[:, 1] / weight.norm() - far)
    assert not found.certified[room < 0].any()  # the bound itself fails there, but for one in a thousand
    assert found.certified[room > 0.1].all() and (room > 0.1).any()


def test_a_radius_is_where_the_class_changes():
    """A spot at some angle above a horizon through the middle: a turn of that size takes it below."""
    angle = torch.deg2rad(torch.linspace(10, 70, 7))[:, None, None]
    place = torch.arange(13) - 6.0
    spot = (place[:, None] + 3 * angle.sin()).square() + (place - 3 * angle.cos()).square()
    set, x = Spatial(60, 0, 0), torch.exp(-spot / 6)[:, None]
    weight = (-place.sign())[:, None].expand(13, 13)
    model = HalfSpace(weight, 0.0).eval()
    y = torch.ones(7, dtype=torch.long)
    found = TSSDR(lift(set), sigma=0.4, splits=100, inside=2, n=1000)(model, x, y)
    grid = torch.linspace(-1, 1, 1201)
    least = exact(model, set, x, grid[:, None])
    truth = torch.where(least <= 0, grid.abs()[:, None], torch.inf).amin(0)
    assert (found.radius <= truth + 1e-6).all() and found.certified.tolist() == [False] * 6 + [True]
    assert (found.radius[:6] > truth[:6] - 0.1).all() and (found.radius[2:] > 0.3).all()


def test_a_wrong_certificate_is_as_rare_as_it_says():
    """Brightness along the border's own normal, which ends at 0.999 of the way: the last cell's claim is false by a hair.

    Of 300 inputs at alpha 0.2 no more than 60, by three standard errors 80, may pass.
    """
    set, count, side = BrightnessContrast(0.1, 0.0), 300, 4
    x = 0.4 + 0.2 * pictures(count, side=side)
    x = x - x.mean((1, 2, 3), keepdim=True) + 0.5
    model = HalfSpace(torch.ones(side * side), side * side * (0.5 - 0.1 * 0.999)).eval()
    y = torch.ones(count, dtype=torch.long)
    certifier = TSSDR(lift(set), sigma=0.2, splits=(5, 1), inside=(3, 1), alpha=0.2, n=400)
    found = certifier(model, x, y)
    assert (model(set.apply(x, torch.tensor([[-1.0, 0.0]]).expand(count, 2))).argmax(1) == 0).all()
    wrong = int(found.certified.sum())
    assert 5 < wrong <= 60 + 3 * math.sqrt(300 * 0.2 * 0.8)
    model.bias -= side * side * 0.02
    assert certifier(model, x, y).certified.float().mean() > 0.9  # by a little more it is true


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 3)).eval()


def test_samples_do_not_meet_and_the_model_stays():
    model, x = network(), pictures(6)
    state, y = {name: value.clone() for name, value in model.state_dict().items()}, model(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    certifier = TSSDR(lift(Spatial(5, 0, 0)), sigma=0.1, splits=5, inside=2, n=1000)
    drawn = torch.random.get_rng_state()
    found = certifier(model, x, y)
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert found.radius[0] == 0 and not found.certified[0] and found.prediction[0] != y[0]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    rows = torch.tensor([3, 1])
    for other in (certifier(model, x[rows], y[rows]), certifier(model, x[rows], y[rows], batch_size=64)):
        assert torch.equal(other.radius, found.radius[rows]) and torch.equal(other.prediction, found.prediction[rows])
    sure = found.prediction >= 0
    assert torch.equal(certifier.predict(model, x)[sure], found.prediction[sure])


@pytest.mark.slow
@pytest.mark.parametrize("reach", [(2, 0, 0), (0, 0, 0.05), (0, 0.004, 0)], ids=str)
def test_a_networks_smoothed_class_holds_over_a_grid(reach):
    """Shares of 1000 draws at random places of the ball, four standard errors away from contradicting any certificate."""
    model, set, x = network(), Spatial(*reach), pictures(10, seed=5)
    with torch.no_grad():
        model[-1].bias -= model(x).mean(0)
    y, generator = model(x).argmax(1), torch.Generator().manual_seed(0)
    found = TSSDR(lift(set), sigma=0.1, splits=8, inside=3, n=2000)(model, x, y)
    assert found.certified.any() and not found.certified.all()
    for _ in range(12):
        z = found.radius[:, None] * (2 * torch.rand(10, set.size, generator=generator) - 1)
        at = set.apply(x, z)
        noisy = at[:, None] + 0.1 * torch.randn(10, 1000, *x.shape[1:], generator=generator)
        votes = model(noisy.flatten(0, 1)).argmax(1).view(10, 1000)
        other = torch.stack([(votes == c).float().mean(1) for c in range(3)]).scatter(0, y[None], 0).amax(0)
        own = (votes == y[:, None]).float().mean(1)
        assert (own > other - 4 * 0.5 / 1000**0.5)[found.radius > 0].all()


def test_balls_and_several_parameters():
    model, x = network(), pictures(3)
    y, set = model(x).argmax(1), Spatial(4, 0, 0.04)
    box, round_ball, small = (
        TSSDR(lift(set, ball), sigma=0.2, splits=6, inside=3, n=1000)(model, x, y)
        for ball in (Ball("linf", 1.0, -1, 1), Ball("l2", 1.0, -1, 1), Ball("linf", 0.2, -1, 1))
    )
    assert (round_ball.certified | ~box.certified).all() and (small.certified | ~box.certified).all()
    assert torch.allclose(small.radius[small.certified], torch.tensor(0.2)) and small.certified.any()
    assert (box.radius >= torch.minimum(small.radius, torch.tensor(0.1)) - 1e-6).all()


def test_bad_input():
    model, x, y = network(), pictures(2), torch.tensor([0, 1])
    turn = lift(Spatial(10, 0, 0))
    for make, says in (
        (lambda: TSSDR(Ball("l2", 1.0))(model, x, y), "a lifted set"),
        (lambda: TSSDR(lift(Blur()))(model, x, y), "a set with an enclosure"),
        (lambda: TSSDR(lift(Spatial(), Ball("l0", 1, -1, 1)))(model, x, y), "linf, l2 or l1"),
        (lambda: TSSDR(lift(Spatial(90, 0, 0)), splits=1)(model, x, y), "take more splits"),
        (lambda: TSSDR(turn, splits=0)(model, x, y), "parts for 1 parameters"),
        (lambda: TSSDR(turn, sigma=0.0), "a sigma above 0"),
        (lambda: TSSDR(turn, n=5), "at least 10 draws"),
        (lambda: TSSDR(turn)(network().train(), x, y), "evaluation mode"),
        (lambda: TSSDR(turn, n=50)(model, x, y + 7), "labels from 0 to 2"),
        (lambda: TSSDR(turn)(model, x[:0], y[:0]), "at least one input"),
    ):
        with pytest.raises(CertifyError, match=says):
            make()
