"""A rectangle that moves: every place and every grey is enclosed, and what is certified holds at all of them."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from adversarial import Ball, GridSearch, Occlusion, ThreatError, WorstOf, lift
from certify import CROWN, TSSDR, CertifyError, Semantic
from certify.semantic.cells import steps
from certify.semantic.enclosures import enclosed


def pictures(count=4, channels=1, shape=(5, 6), seed=0):
    return torch.rand(count, channels, *shape, generator=torch.Generator().manual_seed(seed))


def covered(set, x, grey):
    """Every image (B, …) that a rectangle of this grey leaves, by slices; the first without one."""
    found = [x]
    for top, left in product(range(x.shape[2] - set.height + 1), range(x.shape[3] - set.width + 1)):
        image = x.clone()
        image[:, :, top : top + set.height, left : left + set.width] = grey
        found.append(image)
    return torch.stack(found)


def parameters(set, x, grey):
    """The same ones' parameters (P, k), in the middle of each place."""
    rows, columns = set.places(x)[:2]
    share = [] if set.grey[0] == set.grey[1] else [(grey - set.grey[0]) / (set.grey[1] - set.grey[0])]
    every = [
        [(row + 0.5) / rows, (column + 0.5) / columns, *share] for row in range(1, rows) for column in range(columns)
    ]
    return torch.tensor([[0.0, 0.0, *([0.0] if share else [])], *every])


@pytest.mark.parametrize("set", [Occlusion(2, 3), Occlusion(5, 6), Occlusion(1, 1, (0.3, 0.3)), Occlusion(3, 1, (0.2, 0.7))], ids=str)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_every_place_is_covered_once(set, channels):
    x = pictures(2, channels)
    assert torch.equal(set.apply(x, set.neutral(x)), x)
    for grey in {set.grey[0], (set.grey[0] + set.grey[1]) / 2, set.grey[1]}:
        z = parameters(set, x, grey)
        made = torch.stack([set.apply(x, one.expand(2, -1)) for one in z])
        assert torch.allclose(made, covered(set, x, grey), atol=1e-6)
    assert len(z) == 1 + (set.places(x)[0] - 1) * set.places(x)[1]


def test_gradients_reach_image_and_grey():
    set, x = Occlusion(2, 2), pictures(1).double().requires_grad_()
    z = torch.tensor([[0.5, 0.5, 0.5]], dtype=torch.float64, requires_grad=True)
    set.apply(x, z).sum().backward()
    assert z.grad.tolist() == [[0.0, 0.0, 4.0]] and int((x.grad == 0).sum()) == 4


def test_places_meet_without_a_gap():
    for count in range(1, 300):
        first, last = steps(count, torch.zeros(1, dtype=torch.float64))
        place = torch.arange(count)
        for side in (first, last):
            assert torch.equal((side * count).floor().clamp(max=count - 1).long(), place)
        assert torch.equal(torch.nextafter(last[:-1], first[1:]), first[1:]) and last[-1] == 1 and first[0] == 0


@pytest.mark.parametrize("set", [Occlusion(2, 3), Occlusion(2, 2, (0.4, 0.4)), Occlusion(4, 1, (0.2, 0.7))], ids=str)
def test_no_result_leaves_its_enclosure(set):
    x, generator = pictures(3, 2), torch.Generator().manual_seed(1)
    size = set.neutral(x).shape[1]
    for width in (0.0, 0.1, 0.5, 1.0):
        low = (1 - width) * torch.rand(3, size, generator=generator).double()
        found = enclosed(set, x, low, low + width)
        for share in torch.rand(300, 3, size, generator=generator).round(decimals=1).double():
            z = low + width * share
            values, away = set.apply(x, z).flatten(1).double(), (z - low - width / 2)[..., None]
            assert (values >= found.low).all() and (values <= found.high).all()
            below, above = (line.offset + (line.slopes * away).sum(1) for line in (found.below, found.above))
            assert (values >= below - 1e-9).all() and (values <= above + 1e-9).all()


def test_one_place_is_enclosed_exactly():
    set, x = Occlusion(2, 3, (0.1, 0.6)), pictures(2)
    low = torch.tensor([[0.5, 0.4, 0.25]]).expand(2, 3).double()
    high = low + torch.tensor([0.0, 0.0, 0.5])
    found = enclosed(set, x, low, high)
    for side, z in ((found.low, low), (found.high, high)):
        assert torch.allclose(side, set.apply(x, z).flatten(1).double(), atol=2e-6)
    assert (found.above.slopes[:, 2] == 0.5).sum() == 12 and (found.above.offset - found.below.offset).max() < 3e-6


def network(x):
    """Classes of which every one is some picture's."""
    torch.manual_seed(2)
    size = 4 * x[0, 0].numel()
    model = nn.Sequential(
        nn.Conv2d(x.shape[1], 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(size, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[-1].bias -= model(x).mean(0)
    return model


def unbroken(model, set, x, y, greys):
    """Whether every place and grey is predicted as the label (B,)."""
    every = torch.cat([covered(set, x, float(grey)) for grey in greys])
    return (model(every.flatten(0, 1)).view(len(every), len(x), -1).argmax(2) == y).all(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_single_grey_is_decided_exactly(channels):
    x = pictures(16, channels)
    model = network(x)
    y = model(x).argmax(1)
    for grey in (0.0, 0.5):
        set = Occlusion(2, 2, (grey, grey))
        found = Semantic(lift(set))(model, x, y)
        truth = unbroken(model, set, x, y, [grey])
        assert torch.equal(found.certified, truth) and 0 < int(truth.sum()) < 16
        assert torch.equal(found.certified, found.radius == 1) and found.guarantee == "deterministic"


def test_nothing_certified_is_broken_at_any_place_and_grey():
    set, x = Occlusion(2, 2, (0.3, 0.7)), pictures(12)
    model = network(x)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    found = Semantic(lift(set), CROWN, splits=2, inside=1)(model, x, y)
    truth = unbroken(model, set, x, y, torch.linspace(0.3, 0.7, 41))
    assert not (found.certified & ~truth).any() and found.certified.any() and not found.certified[0]
    rows = set.places(x)[0]
    attack = GridSearch(lift(set), (rows + 1, 12, 5)).run(model, x, y)
    assert not (attack.success & found.certified).any()
    for row in range(12):  # nearer than the radius nothing is broken either
        if 0 < found.radius[row] < 1:
            near = lift(set, Ball("linf", float(found.radius[row]) * (1 - 1e-6), 0.0, 1.0))
            assert not WorstOf(near, 100).run(model, x[[row]], y[[row]]).success.any()


def test_a_linear_model_has_its_exact_margin():
    """Straight in the grey: the worst place at its worse end."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, 2)).double().eval()
    x, set = pictures(8).double(), Occlusion(2, 3, (0.2, 0.9))
    y = model(x).argmax(1)
    found = Semantic(lift(set), splits=1, inside=1)(model, x, y)
    ends = torch.cat([covered(set, x, grey) for grey in set.grey])
    out = model(ends.flatten(0, 1)).view(len(ends), 8, 2)
    margin = (out.gather(2, y.expand(len(ends), 8)[..., None]) - out.gather(2, 1 - y.expand(len(ends), 8)[..., None]))[
        ..., 0
    ].amin(0)
    assert torch.equal(found.certified, margin > 0)
    assert torch.allclose(found.margin[found.certified], margin[found.certified], atol=1e-4) and found.certified.any()


def test_smoothing_covers_it_alike():
    """A half space of the image's sum: the smoothed classifier is the model itself."""
    set, x = Occlusion(2, 2, (0.0, 0.1)), pictures(12)
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, 2)).eval()
    with torch.no_grad():
        model[1].weight[:] = torch.tensor([[-1.0], [1.0]])
        model[1].bias[:] = torch.tensor([1.0, -1.0]) * (x.flatten(1).sum(1).median() - 3)
    y = torch.ones(12, dtype=torch.long)
    found = TSSDR(lift(set), sigma=0.2, splits=1, inside=1, n=500)(model, x, y)
    truth = unbroken(model, set, x, y, [0.0, 0.05, 0.1])
    assert found.certified.any() and not truth.all() and not (found.certified & ~truth).any()


def test_bad_input():
    x, y = pictures(2), torch.tensor([0, 1])
    for make, says in (
        (lambda: Occlusion(0, 1), "a pixel or more"), (lambda: Occlusion(1, 1, (0.7, 0.2)), "0 <= grey <= grey <= 1"),
        (lambda: Occlusion(1, 1, (0.0, 1.5)), "0 <= grey"), (lambda: lift(Occlusion(6, 1)).around(x), "within .5, 6. pixels"),
        (lambda: lift(Occlusion(1, 1)).around(x[0]), "expected images"),
    ):  # fmt: skip
        with pytest.raises(ThreatError, match=says):
            make()
    with pytest.raises(CertifyError, match="parts for 3 parameters"):
        Semantic(lift(Occlusion(1, 1)), splits=(2, 2))(network(x), x, y)
