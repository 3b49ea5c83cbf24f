"""Sound, and exact where exact is known: bounds of small networks of every operation."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adversarial import Spatial, lift
from adversarial.attacks.gradient import PGD
from adversarial.streams import Streams
from adversarial.threat import Ball
from certify import (
    CROWN,
    IBP,
    SDPCROWN,
    AlphaCROWN,
    BetaCROWN,
    Cascade,
    CertifyError,
    InputSplit,
    PolyhedralEnvelope,
    WongKolter,
)
from certify.engine.ascent import Ascent
from certify.engine.bounds import Bounds
from certify.engine.coupling import lagrangian
from certify.engine.curves import CURVES
from certify.engine.front import Front
from certify.engine.tracing import trace

NORMS, TRACE = ("linf", "l2", "l1"), trace


class Named(nn.Module):
    """A function as a module, with two linear layers around it."""

    def __init__(self, middle, inputs=5, width=6, outputs=3):
        super().__init__()
        self.first, self.last, self.middle = nn.Linear(inputs, width), nn.Linear(width, outputs), middle

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class Attention(nn.Module):
    """A transformer layer over embeddings (B, L, D), with a learned first token."""

    def __init__(self, width=8, heads=2):
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, width) * 0.3)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.up, self.down, self.head, self.heads = (
            nn.Linear(width, 12),
            nn.Linear(12, width),
            nn.Linear(width, 3),
            heads,
        )

    def forward(self, x):
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        q, k, v = (
            part.view(len(x), x.shape[1], self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norms[0](x)).chunk(3, -1)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norms[1](x))))
        return self.head(x[:, 0])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.LSTM(3, 3, batch_first=True, bidirectional=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.cells(x)[0].mean(1))


class Residual(nn.Module):
    """Convolutions with normalisation, an average, a largest value and a skip, after a resized and padded input."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, stride=1, padding=1), nn.BatchNorm2d(4)
        self.second, self.group = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.GroupNorm(2, 4)
        self.last = nn.Linear(4 * 9, 3)
        self.norm.running_mean.uniform_(-0.2, 0.2)
        self.norm.running_var.uniform_(0.5, 1.5)

    def forward(self, x):
        x = F.pad(F.interpolate(x, size=(4, 4), mode="bilinear", align_corners=False), (1, 1, 1, 1), value=0.3)
        x = F.relu6(self.norm(self.first(x)))
        x = x + F.hardswish(self.group(self.second(x)))
        return self.last(F.avg_pool2d(F.max_pool2d(x, 3, stride=1, padding=1), 2, 2).flatten(1))


def wide(factory):
    torch.manual_seed(0)
    return factory().eval().requires_grad_(False)


ACTIVATIONS = {
    "relu": nn.ReLU(), "leaky": nn.LeakyReLU(0.1), "relu6": nn.ReLU6(), "hardtanh": nn.Hardtanh(-0.3, 0.4), "elu": nn.ELU(), "selu": nn.SELU(),
    "gelu": nn.GELU(), "gelu-tanh": nn.GELU(approximate="tanh"), "silu": nn.SiLU(), "mish": nn.Mish(), "softplus": nn.Softplus(),
    "hardswish": nn.Hardswish(), "hardsigmoid": nn.Hardsigmoid(), "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(), "softmax": nn.Softmax(-1),
    "log-softmax": nn.LogSoftmax(-1), "layer-norm": nn.LayerNorm(6), "rms-norm": nn.RMSNorm(6), "batch-norm": nn.BatchNorm1d(6),
}  # fmt: skip
FUNCTIONS = {
    "abs": torch.abs, "exp": torch.exp, "square": torch.square, "itself": lambda x: x * x, "cube": lambda x: x**3, "fourth": lambda x: x**4,
    "clamp": lambda x: x.clamp(-0.2, 0.5), "atan": torch.atan, "erf": torch.erf, "sqrt": lambda x: torch.sqrt(x.abs() + 0.1),
    "log": lambda x: torch.log(x.square() + 0.5), "reciprocal": lambda x: 1 / (x.square() + 0.5),
    "product": lambda x: x * x.flip(1), "quotient": lambda x: x / (1 + torch.exp(x.flip(1))), "maximum": lambda x: torch.maximum(x, -x.roll(1, 1)),
    "negative scale": lambda x: torch.tanh(-2 * x + 0.3), "minus": lambda x: torch.tanh(1 - x) - 0.5 * x, "sum": lambda x: x - x.mean(1, keepdim=True),
    "where": lambda x: torch.where(torch.arange(6) % 2 == 0, torch.relu(x), x),
}  # fmt: skip


class Function(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


MODELS = {name: (lambda layer=layer: Named(layer), (5,)) for name, layer in ACTIVATIONS.items()}
MODELS |= {name: (lambda f=f: Named(Function(f)), (5,)) for name, f in FUNCTIONS.items()}
MODELS |= {"attention": (Attention, (4, 8)), "lstm": (Recurrent, (2, 3)), "residual": (Residual, (2, 3, 3))}


def cached():
    known = {}
    return lambda model, x: known.setdefault(id(model), TRACE(model, x) if id(model) not in known else None)


def least_margin(model, ball, x, y, count=400):
    """The least margin (B,) over points of the threat: random ones, and those of PGD."""
    region, rows = ball.around(x), torch.arange(len(x))
    streams = Streams(x, 0)
    points = [region.sample(streams, rows) for _ in range(count)]
    points.append(PGD(ball, loss="margin", early=False).run(model, x, y).worst)
    found = torch.full((len(x),), math.inf, dtype=x.dtype)
    for z in points:
        out = model(z)
        others = out.scatter(1, y[:, None], -math.inf).amax(1)
        found = torch.minimum(found, out.gather(1, y[:, None])[:, 0] - others)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_no_point_of_the_threat_is_below_a_bound(name, monkeypatch):
    monkeypatch.setattr("certify.linear.crown.trace", cached())  # the same for all threats
    factory, shape = MODELS[name]
    model = wide(factory)
    small = 0.1 if name == "attention" else 1.0
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    y = model(x).argmax(1)
    for norm, eps in (("linf", 0.05), ("l2", 0.1), ("l1", 0.15)):
        ball = Ball(norm, small * eps)
        truth = least_margin(model, ball, x, y, 40)
        found = {}
        for certifier in (IBP(ball), CROWN(ball, "ibp"), CROWN(ball), SDPCROWN(ball)):
            certificate = certifier(model, x, y)
            found[certifier] = certificate.margin
            assert (certificate.margin <= truth + 1e-5 * (1 + truth.abs())).all(), (norm, certificate.method)
            assert torch.equal(certificate.certified, certificate.margin > 0)
        interval, _, crown, together = found.values()
        assert (crown >= interval - 1e-5).all() and (together >= crown - 1e-5).all()


@pytest.mark.parametrize("name", sorted(set(CURVES) - {"pow", "clamp", "clamp_min", "clamp_max"}))
def test_lines_keep_to_their_side_of_a_curve(name):
    curve = CURVES[name]()
    generator = torch.Generator().manual_seed(0)
    ends = torch.randn(400, 2, generator=generator, dtype=torch.float64) * 3
    low, high = ends.amin(1), ends.amax(1)
    if math.isfinite(curve.low):
        low, high = low - ends.amin() + curve.low + 0.01, high - ends.amin() + curve.low + 0.01
    x = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, 400, dtype=torch.float64)
    values = curve.f(x)
    slopes = [curve.slope(low, high, lower=side) for side in (True, False)]
    below, b, above, c = curve.lines(low, high)
    assert (below[:, None] * x + b[:, None] <= values + 1e-9 * (1 + values.abs())).all()
    assert (above[:, None] * x + c[:, None] >= values - 1e-9 * (1 + values.abs())).all()
    for line, offset, slope, lower in ((below, b, slopes[0], True), (above, c, slopes[1], False)):
        area = (line - slope) * (low + high) / 2 + offset - curve.intercept(low, high, slope, lower=lower)
        assert (area.abs() <= 1e-6 * (1 + high - low)).all()  # no worse than the best of the four tried
    slopes += [torch.randn(len(low), generator=generator, dtype=torch.float64) for _ in range(3)]
    for slope in slopes:
        gaps = values - slope[:, None] * x
        for lower in (True, False):
            line = curve.intercept(low, high, slope, lower=lower)[:, None]
            assert ((gaps - line if lower else line - gaps) >= -1e-9 * (1 + gaps.abs())).all()
            steep = gaps.diff(dim=1).abs().amax(1)  # and touch it, up to the grid
            assert ((gaps - line).abs().amin(1) <= steep + 1e-9).all()
    least, most = curve.range(low, high)
    assert (least <= values.amin(1) + 1e-9).all() and (most >= values.amax(1) - 1e-9).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_model_has_its_exact_margin(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 9), nn.Linear(9, 4)).double().eval()
    x = torch.rand(20, 7, dtype=torch.float64)
    y = model(x).argmax(1)
    eps = 0.3 if norm != "l1" else 0.8
    ball = Ball(norm, eps)
    weight, out = model[1].weight @ model[0].weight, model(x)
    exact = torch.full((20,), math.inf, dtype=torch.float64)
    for other in range(4):
        slope = weight[other] - weight[y]
        gap = out.gather(1, y[:, None])[:, 0] - out[:, other] - ball.around(x).support(slope)
        exact = torch.where(y == other, exact, torch.minimum(exact, gap))
    found = CROWN(ball)(model, x, y)
    assert torch.allclose(found.margin, exact, atol=1e-9)
    assert (least_margin(model, ball, x, y, 50) >= exact - 1e-9).all()


def dense_crown(weights, biases, x, eps, margins):
    """CROWN of a ReLU network by explicit matrices, one input at a time: layer after layer, then the margins."""

    def bound(matrix, offset, layer, lows, highs):
        for k in range(layer, 0, -1):
            low, high = lows[k - 1], highs[k - 1]
            chord = torch.where(high > low, high.clamp(min=0) / (high - low), 0)
            chord = torch.where(low >= 0, 1.0, torch.where(high <= 0, 0.0, chord))
            lower = torch.where(low >= 0, 1.0, torch.where(high <= 0, 0.0, (high >= -low).double()))
            top = torch.where((low < 0) & (high > 0), -chord * low, 0)
            positive, negative = matrix.clamp(min=0), matrix.clamp(max=0)
            offset = offset + negative @ top
            matrix = positive * lower + negative * chord
            offset, matrix = offset + matrix @ biases[k - 1], matrix @ weights[k - 1]
        return matrix @ x - eps * matrix.abs().sum(1) + offset

    lows, highs = [], []
    for layer, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
        lows.append(bound(weight, bias, layer, lows, highs))
        highs.append(-bound(-weight, -bias, layer, lows, highs))
    return bound(margins @ weights[-1], margins @ biases[-1], len(weights) - 1, lows, highs)


def test_crown_equals_a_dense_computation():
    torch.manual_seed(0)
    sizes = (6, 20, 20, 15, 4)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    model = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1]).double().eval()
    x = torch.rand(8, 6, dtype=torch.float64)
    y = model(x).argmax(1)
    found = CROWN(Ball("linf", 0.1, None, None))(model, x, y).margin
    for row in range(8):
        margins = torch.stack([torch.eye(4)[y[row]] - torch.eye(4)[k] for k in range(4) if k != y[row]]).double()
        dense = dense_crown([p.weight.data for p in layers], [p.bias.data for p in layers], x[row], 0.1, margins)
        assert found[row] >= dense.amin() - 1e-9  # intervals may cut a box a little more
        assert found[row] == pytest.approx(float(dense.amin()), abs=1e-5)


def test_trained_slopes_only_help():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 4)).eval()
    x = torch.rand(16, 6)
    y = model(x).argmax(1)
    ball = Ball("linf", 0.25)
    crown, alpha = CROWN(ball)(model, x, y), AlphaCROWN(ball)(model, x, y)
    assert (alpha.margin >= crown.margin).all() and (alpha.margin > crown.margin + 1e-4).any()
    assert (alpha.margin <= least_margin(model, ball, x, y) + 1e-5).all()


def test_each_row_has_slopes_of_its_own():
    """Bounds that are trained beside each other are those that are trained alone; so are the margins'."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4)).eval()
    x = torch.rand(3, 6)
    bounds = Bounds(trace(model, x), Ball("linf", 0.1, None, None).around(x)).intervals().tighten()
    name, rows = bounds.graph.output, torch.randn(3, 5, 4)
    together = Ascent(bounds, 10)(name, Front(rows))
    alone = torch.cat([Ascent(bounds, 10)(name, Front(rows[:, row : row + 1])) for row in range(5)], 1)
    assert torch.allclose(together, alone, atol=1e-4)
    assert bool((together > bounds.lower(name, Front(rows)) + 1e-3).any())


def test_slopes_of_boxes_inside_are_trained_for_the_margins():
    torch.manual_seed(0)
    layers = [nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=1.5 * layer.in_features**-0.5)
    model, x = nn.Sequential(*layers).eval(), torch.randn(20, 6)
    y = model(x).argmax(1)
    ball = Ball("linf", 0.2, None, None)
    last, full = (AlphaCROWN(ball, slopes)(model, x, y).margin for slopes in ("last", "full"))
    left = CROWN(ball)(model, x, y).margin <= 0  # where anything is trained
    assert int(left.sum()) > 5
    assert bool((full >= last - 1e-3)[left].all()) and float((full - last)[left].mean()) > 0.05
    assert bool((full <= least_margin(model, ball, x, y) + 1e-4).all())


def test_numbers_of_a_layer_that_share_a_ball_are_bounded_together():
    torch.manual_seed(0)
    for name in ("relu", "leaky_relu", "relu6", "abs"):
        curve = CURVES[name]()
        c, g, centre = torch.randn(3, 4, 5, 6, dtype=torch.float64)
        low, high = centre - torch.rand_like(centre), centre + torch.rand_like(centre)
        radius = torch.rand(4, 1, dtype=torch.float64) + 0.3
        found = lagrangian(curve, c, g, low, high, centre, radius)
        noise = torch.randn(4000, 4, 5, 6, dtype=torch.float64)
        z = centre + noise / noise.norm(dim=3, keepdim=True) * radius[..., None] * torch.rand(4000, 4, 5, 1) ** (1 / 6)
        z = z.clamp(low, high)  # stays in the ball, whose centre lies in the box
        assert (found <= (c * curve.f(z) - g * z).sum(3).amin(0) + 1e-9).all()
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    for layer in (model[0], model[2]):  # turned, not stretched: each number can move as far as all together
        nn.init.orthogonal_(layer.weight)
    x = torch.rand(8, 64)
    y = model(x).argmax(1)
    for norm, eps in (("l2", 0.4), ("l1", 0.8)):
        ball = Ball(norm, eps)
        crown, together = CROWN(ball)(model, x, y).margin, SDPCROWN(ball)(model, x, y).margin
        trained = AlphaCROWN(ball, coupled=True)(model, x, y).margin
        assert (
            (together >= crown - 1e-6).all() and (together > crown + 1e-3).any() and (trained >= together - 1e-6).all()
        )
        assert (trained <= least_margin(model, ball, x, y) + 1e-5).all()


def exhaustive(model, x, y, eps, count=21):
    """The least margin (B,) over a grid of the box around inputs of two numbers."""
    steps = torch.linspace(-eps, eps, count, dtype=x.dtype)
    grid = torch.cartesian_prod(steps, steps)
    out = model((x[:, None] + grid).flatten(0, 1)).view(len(x), -1, 3)
    label = y[:, None, None].expand(-1, out.shape[1], 1)
    return (out.gather(2, label)[..., 0] - out.scatter(2, label, -math.inf).amax(2)).amin(1)


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.Tanh(), nn.GELU(), nn.Hardtanh(-0.5, 0.5)], ids=lambda a: type(a).__name__
)
def test_branch_and_bound_decides_what_lines_leave_open(activation):
    torch.manual_seed(0)
    layers = [nn.Linear(2, 12), activation, nn.Linear(12, 12), activation, nn.Linear(12, 3)]
    model = nn.Sequential(*layers).double().eval()
    for layer in layers[::2]:
        layer.weight.data.mul_(2.0)
    x = torch.rand(10, 2, dtype=torch.float64)
    y = model(x).argmax(1)
    ball = Ball("linf", 0.25, None, None)
    truth = exhaustive(model, x, y, 0.25)
    crown = CROWN(ball)(model, x, y)
    for certifier in (BetaCROWN(ball, seconds=0.5), InputSplit(ball, seconds=3.0), Cascade(ball, seconds=0.5)):
        found = certifier(model, x, y)
        assert (found.margin <= truth + 1e-9).all() and not (found.certified & (truth <= 0)).any()
        assert (crown.certified <= found.certified).all()  # the cascade stops where margins are above zero
        if isinstance(certifier, InputSplit):  # complete: what is not shown is broken, up to the grid
            assert ((truth > 0.02) <= found.certified).all() and found.certified.sum() >= crown.certified.sum()


class Hidden(nn.Module):
    """Layers that are wired by a function."""

    def __init__(self, f, **layers):
        super().__init__()
        self.f = f
        self.layers = nn.ModuleDict(layers)

    def forward(self, x):
        return self.f(self.layers, x)


def gated():
    torch.manual_seed(0)
    sizes = {"a": (6, 8), "b": (6, 8), "c": (8, 8), "o": (8, 3)}
    return Hidden(
        lambda m, x: m["o"](torch.relu(m["c"](torch.relu(m["a"](x)) * torch.sigmoid(m["b"](x))))),
        **{name: nn.Linear(*size) for name, size in sizes.items()},
    )


def dead_branch():
    """A ReLU that is alive at zero and dead in the region, which there takes the skip beside it away."""
    torch.manual_seed(1)
    model = Hidden(
        lambda m, x: m["o"](torch.relu(m["c"](torch.relu(m["a"](x)) + torch.relu(1 - torch.relu(m["a"](x)))))),
        a=nn.Linear(6, 6), c=nn.Linear(6, 8), o=nn.Linear(8, 3),
    )  # fmt: skip
    nn.init.eye_(model.layers["a"].weight)
    model.layers["a"].bias.data.fill_(5.0)
    model.layers["c"].weight.data.mul_(2)
    model.layers["c"].bias.data = -(model.layers["c"].weight.data.sum(1) * 5.5)
    return model


def padded(activation):
    torch.manual_seed(0)
    maps = [nn.Conv2d(1, 4, 3, padding=1), activation, nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    return nn.Sequential(nn.Unflatten(1, (1, 3, 2)), *maps, nn.Flatten(), nn.Linear(24, 3))


def signed():
    torch.manual_seed(0)
    model = Hidden(lambda m, x: m["o"](torch.relu(m["a"](x) * model.signs)), a=nn.Linear(6, 6), o=nn.Linear(6, 3))
    model.register_buffer("signs", torch.tensor([1, -1, 1, -1, 2, -2]))
    return model


TRAPS = {
    "gated": gated, "dead branch": dead_branch, "padded sigmoid": lambda: padded(nn.Sigmoid()),
    "padded clamp": lambda: padded(nn.Hardtanh(0.3, 2.0)), "padded hardsigmoid": lambda: padded(nn.Hardsigmoid()), "whole numbers": signed,
}  # fmt: skip


@pytest.mark.parametrize("name", TRAPS)
def test_where_bounds_went_wrong_once(name):
    model = TRAPS[name]().double().eval().requires_grad_(False)
    if name == "whole numbers":
        model.signs = model.signs.long()
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, graph = model(x).argmax(1), trace(model, x)
    for ball in (Ball("l1", 0.5, None, None), Ball("l2", 0.5, None, None), Ball("linf", 0.2)):
        truth = least_margin(model, ball, x, y, 60)
        for certifier in (IBP(ball), CROWN(ball), SDPCROWN(ball), AlphaCROWN(ball, "full", coupled=True, iterations=5)):
            assert (certifier(graph, x, y).margin <= truth + 1e-9).all(), (ball.norm, certifier)
        region, streams = ball.around(x), Streams(x, 1)
        bounds = Bounds(graph, region).intervals().couple()
        for inner in bounds.wanted():
            bounds.update(inner, Ascent(bounds, 5))
        for _ in range(100):  # what is said of every value inside holds as well
            values = graph.values(region.sample(streams, torch.arange(len(x))))
            for inner, (low, high) in bounds.boxes.items():
                assert (values[inner] >= low - 1e-9).all() and (values[inner] <= high + 1e-9).all(), inner
            for inner, radius in bounds.coupling.radii.items() if bounds.coupling else ():
                assert ((values[inner] - bounds.coupling.centres[inner]).flatten(1).norm(dim=1) <= radius + 1e-9).all()


def test_a_linear_model_has_nothing_to_split():
    torch.manual_seed(0)
    model, x = nn.Linear(5, 3).eval(), torch.rand(8, 5)
    ball = Ball("linf", 0.9)
    y = model(x).argmax(1)
    exact = CROWN(ball)(model, x, y)
    for certifier in (BetaCROWN(ball, seconds=0.2), Cascade(ball, seconds=0.2)):
        assert torch.equal(certifier(model, x, y).certified, exact.certified)
    assert not exact.certified.all()


def test_more_is_certified_of_a_smaller_threat_and_samples_do_not_meet():
    model = wide(MODELS["residual"][0])
    x = torch.rand(6, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    y = model(x).argmax(1)
    margins = [CROWN(Ball("linf", eps))(model, x, y).margin for eps in (0.01, 0.02, 0.05)]
    assert (margins[0] >= margins[1]).all() and (margins[1] >= margins[2]).all()
    alone = torch.cat([CROWN(Ball("linf", 0.02))(model, x[i : i + 1], y[i : i + 1]).margin for i in range(6)])
    assert torch.allclose(alone, margins[1], atol=1e-4)
    parts = CROWN(Ball("linf", 0.02))(model, x, y, batch_size=4)
    assert torch.allclose(parts.margin, margins[1], atol=1e-4) and len(parts) == 6
    each = Ball("linf", torch.tensor([0.01, 0.02, 0.05, 0.01, 0.02, 0.05]))
    found = CROWN(each)(model, x, y)
    assert torch.allclose(found.margin, torch.stack(margins)[[0, 1, 2, 0, 1, 2], range(6)], atol=1e-4)


def test_the_models_own_numbers_stay():
    model = wide(MODELS["attention"][0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(2, 4, 8)
    AlphaCROWN(Ball("linf", 0.01), iterations=2)(model, x, model(x).argmax(1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_has_no_bound_is_said_in_one_sentence():
    model, x, y = nn.Linear(5, 3).eval(), torch.rand(2, 5), torch.tensor([0, 1])
    ball = Ball("linf", 0.1)
    with pytest.raises(CertifyError, match="in evaluation mode, got one in training"):
        IBP(ball)(nn.Sequential(nn.Dropout(), nn.Linear(5, 3)).train(), x, y)
    with pytest.raises(CertifyError, match="at least one input"):
        IBP(ball)(model, x[:0], y[:0])
    with pytest.raises(CertifyError, match="labels from 0 to 2, got 7 in row 1"):
        IBP(ball)(model, x, torch.tensor([0, 7]))
    with pytest.raises(CertifyError, match="finite eps"):
        IBP(Ball("linf", math.inf, None, None))(model, x, y)
    with pytest.raises(CertifyError, match="two classes or more"):
        IBP(ball)(nn.Linear(5, 1).eval(), x, y)
    with pytest.raises(CertifyError, match="lifted set"):
        IBP(lift(Spatial()))(nn.Flatten(), torch.rand(2, 1, 4, 4), y)
    with pytest.raises(CertifyError, match="operations with a rule, got sin"):
        IBP(ball)(Named(Function(torch.sin)).eval(), x, y)
    with pytest.raises(CertifyError, match="elu with alpha of 0 or more, got -1"):
        IBP(ball)(Named(nn.ELU(-1.0)).eval(), x, y)
    with pytest.raises(CertifyError, match="a threshold of 20 or more"):
        IBP(ball)(Named(nn.Softplus(threshold=1)).eval(), x, y)
    with pytest.raises(CertifyError, match="an L∞ box to split"):
        InputSplit(Ball("l2", 0.1))(model, x, y)
    with pytest.raises(CertifyError, match=r"torch\.export can follow"):
        IBP(ball)(Named(Function(lambda v: v if v.sum() > 0 else -v)).eval(), x, y)
    with pytest.raises(CertifyError, match="values above 0 where log"):
        IBP(ball)(Named(Function(torch.log)).eval(), x, y)
    with pytest.raises(CertifyError, match="mix the samples"):
        IBP(ball)(Named(Function(lambda v: v.cumsum(0))).eval(), x, y)
    with pytest.raises(CertifyError, match="one row per sample"):
        IBP(ball)(Named(Function(lambda v: v.view(-1, 3, 2).permute(1, 0, 2).sum(0).repeat(1, 3))).eval(), x, y)
    with pytest.raises(CertifyError, match="does it draw random numbers"):
        IBP(ball)(Named(Function(lambda v: v + torch.rand(6))).eval(), x, y)


def test_boxes_that_rounding_keeps_apart_stay_boxes():
    """A width below zero would grow from layer to layer, and bounds would come out above the values."""
    torch.manual_seed(0)
    layers = [layer for _ in range(12) for layer in (nn.Linear(30, 30), nn.ReLU())]
    model, x = nn.Sequential(*layers, nn.Linear(30, 3)).eval(), torch.rand(4, 30)
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=0.3)
    graph = trace(model, x)
    bounds = Bounds(graph, Ball("linf", 1e-6, None, None).around(x)).intervals()
    inner = bounds.graph.nodes[list(bounds.graph.nodes)[2]].name
    high = bounds.boxes[inner][1]
    bounds.narrow(inner, (high + 1e-6, high + 2e-6))
    bounds.forward(inner)
    assert all(bool((low <= high).all()) for low, high in bounds.boxes.values())
    with torch.no_grad():
        top = model(x).topk(2, dim=1)
    y, clean = top.indices[:, 0], top.values[:, 0] - top.values[:, 1]
    for ways in ("crown", "forward"):
        found = CROWN(Ball("linf", 1e-6, None, None), ways)(graph, x, y).margin
        assert bool((found <= clean * (1 + 1e-4)).all())


def test_what_overflows_is_not_shown():
    first, second, last = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False), nn.Linear(1, 2)
    first.weight.data = torch.eye(2) * 1e30
    second.weight.data = torch.tensor([[1e30, -1e30]])
    last.weight.data, last.bias.data = torch.tensor([[-1.0], [1.0]]), torch.tensor([1.0, 0.0])
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last).eval()
    x, ball = torch.tensor([[-0.1, -0.1]]), Ball("linf", 0.2, None, None)
    for certifier in (WongKolter(ball), PolyhedralEnvelope(ball)):
        found = certifier(model, x, torch.tensor([0]))
        assert not found.certified.any() and (found.radius == 0).all()


def test_an_envelope_reaches_no_farther_than_a_plane_that_falls_slowly():
    model = nn.Linear(2, 2).double().eval()
    model.weight.data = torch.tensor([[-1.0, -0.9e-7], [0.0, 0.0]], dtype=torch.float64)
    model.bias.data = torch.tensor([1 + 0.45e-7, 0.0], dtype=torch.float64)
    found = PolyhedralEnvelope(Ball("linf", 1.0))(
        model, torch.tensor([[0.99, 0.0]], dtype=torch.float64), torch.tensor([0])
    )
    assert float(found.radius) <= 0.5 and not found.certified.any()
