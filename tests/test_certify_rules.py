"""Operations with all their arguments: what their rules say of every value, beside what the values are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adversarial.streams import Streams
from adversarial.threat import Ball
from certify import CROWN, IBP, SDPCROWN, BetaCROWN, CertifyError, InputSplit, trace
from certify.engine.ascent import Ascent
from certify.engine.bounds import Bounds
from certify.engine.curves import CURVES
from certify.engine.forms import Forms
from certify.engine.front import Front
from certify.engine.nonlinear import Largest


class Around(nn.Module):
    """A function between two layers."""

    def __init__(self, f, shape=(5,), first=None):
        super().__init__()
        self.f = f
        self.first = first or nn.Linear(shape[-1], 6)
        with torch.no_grad():
            self.last = nn.Linear(f(self.first(torch.rand(2, *shape))).flatten(1).shape[1], 3)

    def forward(self, x):
        return self.last(torch.relu(self.f(self.first(x))).flatten(1))


def built(f, shape=(5,), first=None, dtype=torch.float64):
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = Around(f, shape, first).to(dtype)
    finally:
        torch.set_default_dtype(before)
    x = torch.randn(3, *shape, dtype=dtype, generator=torch.Generator().manual_seed(1)) / 2
    return model.eval().requires_grad_(False), x


def points(region):
    """The anchor, random points and corners of a region."""
    rows, streams = torch.arange(len(region)), Streams(region.anchor, 0)
    generator = torch.Generator().manual_seed(3)
    yield region.anchor
    for _ in range(15):
        yield region.sample(streams, rows)
        yield region.best(torch.randn(region.anchor.shape, generator=generator, dtype=region.anchor.dtype))


def check_every_value(graph, region, tol):
    """No value leaves its box, its ball, or falls below its bounds, in any of the ways these are found."""
    single, lines, trained, carried = (Bounds(graph, region).intervals() for _ in range(4))
    lines.tighten()
    with torch.no_grad():
        Forms(carried).run()
    trained.couple()
    for name in trained.wanted():
        trained.update(name, Ascent(trained, 2))
    front = Front(torch.randn(len(region), 4, *graph.nodes[graph.output].shape).to(region.anchor))
    with torch.no_grad():
        least = [each.lower(graph.output, front) for each in (single, lines, trained)] + [single.elided(front)]
    least.append(Ascent(trained, 3)(graph.output, front))
    for z in points(region):
        with torch.no_grad():
            values = graph.values(z)
        for name, value in values.items():
            slack = tol * (1 + value.abs())
            for each in (single, lines, trained, carried):
                low, high = each.boxes[name]
                assert low.shape == value.shape and not ((value < low - slack) | (value > high + slack)).any(), name
        out = front.total(values[graph.output][:, None])
        assert not any((bound > out + tol * (1 + out.abs())).any() for bound in least)
        for name, radius in trained.coupling.radii.items() if trained.coupling else ():
            far = (values[name] - trained.coupling.centres[name]).reshape(len(region), -1)
            assert not (far.norm(dim=1) > radius * (1 + 1e-6) + tol).any(), name


STEEP = torch.tensor([80.0, 0, 0, 0, 0, -80], dtype=torch.float64)
FUNCTIONS = {
    "sums of multiples": (
        lambda v: torch.rsub(v, 2.0, alpha=3), lambda v: torch.rsub(v, 2.0, alpha=-3), lambda v: torch.add(v, v.flip(1), alpha=-2),
    ),
    "ends": (
        lambda v: v.clamp(torch.full((6,), -0.1).to(v), torch.linspace(0.1, 0.5, 6).to(v)), lambda v: torch.clamp(v, min=v.flip(1)),
        lambda v: v.clamp(-1e30, 1e30), lambda v: v.clamp(max=1e30), lambda v: v.clamp(-math.inf, 0.2), lambda v: v.clamp(-math.inf, math.inf), lambda v: v.clamp(0.3, 0.3),
        lambda v: v.clamp(0.3, -0.2), lambda v: torch.max(v, v.flip(1)), lambda v: torch.min(v, torch.full_like(v, 0.1)),
    ),
    "powers": (lambda v: v**0, lambda v: 2**v, lambda v: torch.true_divide(v, v.square() + 1)),
    "one number each": (
        lambda v: (v[:, -2] + v @ torch.arange(6).to(v) + F.linear(v, torch.arange(6).to(v))).tanh()[:, None],
        lambda v: v.amax(1)[:, None],
    ),
    "constants of all samples": (
        lambda v: v.gather(1, torch.tensor([[0, 3]]).expand(len(v), -1)),
        lambda v: torch.addmm(v, torch.ones(len(v), 6).to(v), torch.ones(6, 6).to(v), beta=-2, alpha=-3),
        lambda v: torch.bmm(-torch.ones(1, 4, 2).to(v).expand(len(v), -1, -1), v.view(-1, 2, 3)).flatten(1),
    ),
    "logarithm of a softmax": (lambda v: torch.log(torch.softmax(v * STEEP.to(v), 1)) + 45,),
}  # fmt: skip
FUNCTIONS = {name: lambda v, parts=parts: torch.cat([f(v) for f in parts], 1) for name, parts in FUNCTIONS.items()}
MAPS = {
    "average with a divisor below zero": lambda v: F.avg_pool2d(v, 2, divisor_override=-2),
    "largest of values below any": lambda v: F.max_pool2d(v - 2.0**34, 3, 2, 1) + 2.0**34,
}


@pytest.mark.parametrize("name", [*FUNCTIONS, *MAPS])
def test_no_value_leaves_what_is_said_of_it(name):
    if name in MAPS:
        model, x = built(MAPS[name], (2, 4, 4), nn.Conv2d(2, 3, 3, padding=1).double())
    else:
        model, x = built(FUNCTIONS[name])
    graph = trace(model, x)
    assert torch.allclose(graph(x), model(x), atol=1e-5)
    eps = torch.tensor([0.02, 0.1, 0.2], dtype=x.dtype)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(4)) < 0.7
    for ball in (Ball("linf", eps, None, None, mask), Ball("l2", 0.3, -2.0, 2.0), Ball("l1", 4 * eps, None, None)):
        check_every_value(graph, ball.around(x), 1e-4 if "below any" in name else 1e-8)


def test_every_search_takes_one_number_for_each_sample():
    model, x = built(FUNCTIONS["one number each"])
    y, graph = model(x).argmax(1), trace(model, x)
    for ball in (Ball("linf", 0.2, None, None), Ball("l2", 0.4, None, None)):
        region, certifiers = ball.around(x), [SDPCROWN(ball), BetaCROWN(ball, seconds=0.2)]
        certifiers += [InputSplit(ball, seconds=0.2)] if ball.norm == "linf" else []
        found = [certifier(graph, x, y) for certifier in certifiers]
        for z in points(region):
            out = model(z)
            gap = out.gather(1, y[:, None])[:, 0] - out.scatter(1, y[:, None], -torch.inf).amax(1)
            assert not any((each.margin > gap + 1e-9).any() for each in found)


REFUSED = {
    "float16 and float64 at _to_copy": lambda v: v.half().to(v.dtype), "sizes that no value decides": lambda v: v[:, torch.tensor([True, False] * 3)],
    "constant numbers beside the value, got others for pow": lambda v: (v.abs() + 1) ** v, "powers of -2": lambda v: (-2.0) ** v.round(),
    "answers one input as it does a batch": lambda v: v.unsqueeze(1).squeeze().flatten(1),
    "differences of infinities": lambda v: torch.softmax(torch.where(torch.arange(6) > 2, v, -torch.inf), 1),
    "got div in the model": lambda v: torch.div(v, 2, rounding_mode="floor"),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_rule_is_refused(message):
    model, x = built(REFUSED[message])
    with pytest.raises(CertifyError, match=message):
        IBP(Ball("linf", 0.1, None, None))(model, x, torch.tensor([0, 1, 2]))


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.last = nn.LSTM(4, 3, proj_size=2, batch_first=True), nn.Linear(2, 3)

    def forward(self, x):
        return self.last(self.cells(x)[0][:, 0])


def test_a_cell_with_a_projection_and_narrow_types_are_refused():
    y, ball = torch.tensor([0, 1]), Ball("linf", 0.1, None, None)
    with pytest.raises(CertifyError, match="an LSTM with projections"):
        IBP(ball)(Cell().eval(), torch.rand(2, 1, 4), y)
    with pytest.raises(CertifyError, match="float32 or float64, got torch"):
        IBP(ball)(nn.Linear(4, 3).bfloat16().eval(), torch.rand(2, 4).bfloat16(), y)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return self.last(x)


def test_a_buffer_that_changes_is_not_the_answer():
    model, x = Counting().eval(), torch.rand(2, 4)
    assert torch.allclose(trace(model, x)(x), model(x))


def test_samples_that_meet_are_seen_from_an_input_of_zeros():
    model, x = built(lambda v: v + v.flip(0))
    with pytest.raises(CertifyError, match="mix the samples"):
        trace(model, torch.zeros_like(x))


# what overflows


def test_what_overflowed_before_a_relu_is_not_known():
    first, second, last = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.Sequential(first, nn.ReLU(), Expanded(), second, nn.ReLU(), last).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        second.weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    x, ball = torch.rand(4, 2), Ball("linf", 3.0, None, None)
    graph = trace(model, x)
    for make in (IBP, CROWN, SDPCROWN):
        found = make(ball)(graph, x, model(x).argmax(1))
        assert not found.certified.any() and (found.radius == 0).all()
    bounds = Bounds(graph, ball.around(x)).intervals()
    assert all(not box.isnan().any() and (box[0] <= box[1]).all() for box in map(torch.stack, bounds.boxes.values()))


class Expanded(nn.Module):
    def forward(self, x):
        return torch.exp(80 * x)


@pytest.mark.parametrize("name", sorted(set(CURVES) - {"pow", "clamp", "clamp_min", "clamp_max"}))
def test_lines_of_a_box_without_an_end_are_none_or_right(name):
    curve = CURVES[name]()
    floor = max(curve.low, -1e4)
    x = torch.cat([torch.linspace(-60, 60, 4001, dtype=torch.float64), torch.tensor([-1e4, 1e4], dtype=torch.float64)])
    for low, high in (
        (-torch.inf, torch.inf),
        (-torch.inf, 3.0),
        (-3.0, torch.inf),
        (1.0, torch.inf),
        (torch.nan, torch.nan),
    ):
        if low <= curve.low and math.isfinite(curve.low):
            continue
        ends = torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64)
        inner = x[(x > floor) & ~(x < low) & ~(x > high)]
        values = curve.f(inner)
        below, b, above, c = curve.lines(*ends)
        assert not (below * inner + b > values + 1e-9 * (1 + values.abs())).any()
        assert not (above * inner + c < values - 1e-9 * (1 + values.abs())).any()
        for slope in torch.linspace(-2, 2, 9, dtype=torch.float64):
            for lower in (True, False):
                line = curve.intercept(*ends, slope[None], lower=lower)
                gap = values - slope * inner
                assert not (
                    (gap < line - 1e-9 * (1 + gap.abs())) if lower else (gap > line + 1e-9 * (1 + gap.abs()))
                ).any()


def test_the_plane_above_a_maximum_holds_at_any_scale():
    model = nn.Sequential(nn.Linear(3, 3), Peak()).double().eval()
    node = next(n for n in trace(model, torch.rand(2, 3, dtype=torch.float64)).nodes.values() if n.op == "amax")
    for scale in (1e-30, 1e-14, 1.0, 1e30, 1.5e308):
        ends = torch.rand(50, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
        low, high = ends.amin(1) * scale, ends.amax(1) * scale
        _, weight, above = Largest().relax(node, [(low, high)])
        for step in torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)] * 3):
            z = low * (1 - step) + high * step
            plane = (weight * z).sum(1) + above[:, 0]
            assert not (plane < z.amax(1) - 1e-12 * scale).any(), scale


class Peak(nn.Module):
    def forward(self, x):
        return torch.cat([x.amax(1, keepdim=True), x], 1)


def test_numbers_whose_squares_underflow_are_counted():
    torch.manual_seed(0)
    first, last = nn.Linear(4, 5), nn.Linear(5, 3)
    first.weight.data.mul_(1e-24)
    first.bias.data.mul_(1e-24)
    last.bias.data.mul_(1e-24)
    model = nn.Sequential(first, nn.ReLU(), last).eval().requires_grad_(False)
    x = torch.rand(6, 4)
    y, single = model(x).argmax(1), trace(model, x)
    double = trace(model.double(), x.double())
    for norm in ("linf", "l2", "l1"):
        ball = Ball(norm, 2.0, None, None)
        for make in (IBP, CROWN, SDPCROWN):
            found, exact = make(ball)(single, x, y).margin.double(), make(ball)(double, x.double(), y).margin
            assert (found <= exact + 1e-5 * exact.abs()).all(), (norm, make)
