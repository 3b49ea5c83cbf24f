r"""Functions of one number between straight lines: $kx + b \le f(x)$ on [l, u] for any slope k, and the same from above.

The best b for a slope is $\min_{[l,u]} f(x) - kx$ (minus the convex conjugate of f on the interval). The minimum is at an
end of the interval, at a knot, or where $f' = k$ inside a convex piece; such a place is found by halving, and the value is
taken off a tangent there, so that what halving leaves open errs on the safe side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from certify.errors import CertifyError

HALVINGS = 24
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Curve:
    """A function with its derivative, and what it looks like between its knots.

    bends: "+" convex, "-" concave, "0" straight, one for each piece between -∞, the knots and ∞. At a knot `df` is that of the
        convex piece.
    low: values below which the function has no meaning (the interval must lie above).
    rising: whether it never falls.
    """

    f: Function
    df: Function
    knots: tuple[float, ...]
    bends: str
    low: float = -math.inf
    rising: bool = False

    @property
    def straight(self) -> bool:
        return set(self.bends) == {"0"}

    def range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Its smallest and largest value on [low, high]."""
        if self.rising:
            return self.f(low), self.f(high)
        flat = torch.zeros_like(low)
        return self.intercept(low, high, flat, lower=True), self.intercept(low, high, flat, lower=False)

    def intercept(self, low: Tensor, high: Tensor, slope: Tensor, *, lower: bool) -> Tensor:
        """The best b of a line with this slope; differentiable in the slope, and in the ends where one of them is the place."""
        if not lower:
            return -self.mirrored().intercept(low, high, -slope, lower=True)
        low, high, slope = torch.broadcast_tensors(low, high, slope)
        with torch.no_grad():
            # knots first: where a knot is as low as an end, the line turns around it
            places = [torch.minimum(torch.maximum(torch.full_like(low, knot), low), high) for knot in self.knots]
            places += [low, high]
            values = torch.stack([self.f(x) - slope * x for x in places])
            least, which = values.min(0)
            x = torch.stack(places).gather(0, which[None])[0]
            offset = self.f(x)
            for (start, end), bend in zip(self.pieces(), self.bends, strict=True):
                if bend == "+":
                    place, value, inside = self.valley(low.clamp(start, end), high.clamp(start, end), slope)
                    new = value - slope * place
                    better = inside & ((new < least) | new.isnan())  # what is no number stays none
                    least = torch.where(better, new, least)
                    x, offset = torch.where(better, place, x), torch.where(better, value, offset)
        if low.requires_grad or high.requires_grad:
            first, last = x == low, x == high
            x = torch.where(first, low, torch.where(last, high, x))
            offset = torch.where(first | last, self.f(x), offset)
        return offset - slope * x  # the place stays the best one for small changes of the slope

    def valley(self, a: Tensor, b: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where f' = slope in [a, b] on a convex piece, a value that f − slope·x does not go below there, and whether such a
        place lies inside."""
        inside = (self.df(a) < slope) & (self.df(b) > slope)
        for _ in range(HALVINGS):
            middle = (a + b) / 2
            down = self.df(middle) < slope
            a, b = torch.where(down, middle, a), torch.where(down, b, middle)
        tangent = self.f(a) + self.df(a) * (b - a) - slope * (b - a)  # of f − slope·x at a, followed to b, plus slope·a
        return a, torch.minimum(self.f(a), tangent), inside

    def pieces(self) -> list[tuple[float, float]]:
        ends = [-math.inf, *self.knots, math.inf]
        return list(pairwise(ends))

    def straights(self) -> list[tuple[float, float]]:
        """Slope and value at zero of every piece of a straight curve."""
        if not self.knots:
            zero, unit = self.f(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
            return [(unit - zero, zero)]
        found = []
        for start, end in self.pieces():
            one = start if math.isfinite(start) else min(end, 0.0) - max(1.0, abs(end))
            two = end if math.isfinite(end) else max(one, 0.0) + max(1.0, abs(one))
            low, high = self.f(torch.tensor([one, two], dtype=torch.float64)).tolist()
            slope = (high - low) / (two - one) if two > one else 0.0  # a piece of one point
            found.append((slope, low - slope * one))
        return found

    def steepest(self, low: Tensor, high: Tensor) -> Tensor:
        """The largest |f'| on [low, high]: at an end or where the curve changes its bend."""
        knots = [torch.full_like(low, knot).clamp(low, high) for knot in self.knots]
        return torch.stack([self.df(x).abs() for x in (low, high, *knots)]).amax(0)

    def mirrored(self) -> Curve:
        """Minus the function."""
        turned = self.bends.translate(str.maketrans("+-", "-+"))
        return Curve(lambda x: -self.f(x), lambda x: -self.df(x), self.knots, turned, self.low)

    def slope(self, low: Tensor, high: Tensor, *, lower: bool) -> Tensor:
        """The slope, of the chord's and the tangents' at both ends and the middle, whose line leaves the least area."""
        middle, tried = (low + high) / 2, self.slopes(low, high)
        heights = torch.stack([self.intercept(low, high, k, lower=lower) + k * middle for k in tried])
        best = heights.argmax(0) if lower else heights.argmin(0)
        return tried.gather(0, best[None])[0]

    def parallel(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One slope of those, with the intercepts of a line below and of one above that leave least between them."""
        best: tuple[Tensor, ...] = ()
        for slope in self.slopes(low, high):
            found = slope, *(self.intercept(low, high, slope, lower=side) for side in (True, False))
            nearer = found[2] - found[1] < best[2] - best[1] if best else torch.ones_like(low, dtype=torch.bool)
            best = tuple(torch.where(nearer, new, old) for new, old in zip(found, best or found, strict=True))
        return best

    def lines(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Slope and intercept of the line below on [low, high] and of the one above, each of least area."""
        if self.straight and len(self.knots) == 1:
            return self.around_kink(low, high)
        below, above = self.slope(low, high, lower=True), self.slope(low, high, lower=False)
        b, c = self.intercept(low, high, below, lower=True), self.intercept(low, high, above, lower=False)
        return below, b, above, c

    def around_kink(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same for two straight pieces: the chord on one side, the longer piece on the other."""
        (left, offset), (right, other) = low.new_tensor(self.straights())
        knot, wide = self.knots[0], high - low
        narrow = wide <= 1e-6 * (1 + low.abs())
        start, end = self.f(low), self.f(high)
        longer = torch.where(high - knot >= knot - low, right, left)
        chord = torch.where(narrow, longer, (end - start) / torch.where(narrow, 1.0, wide))
        chords = start - chord * low, end - chord * high
        piece = torch.where(longer == right, other, offset)
        inside = ~((low >= knot) | (high <= knot))  # what is not a number is undecided
        if right >= left:  # convex
            top = torch.where(inside, torch.maximum(*chords), piece)
            return longer, piece, torch.where(inside, chord, longer), top
        bottom = torch.where(inside, torch.minimum(*chords), piece)
        return torch.where(inside, chord, longer), bottom, longer, piece

    def slopes(self, low: Tensor, high: Tensor) -> Tensor:
        """Of the chord and of the tangents at both ends and the middle, stacked."""
        middle, wide = (low + high) / 2, high - low
        narrow = wide <= 1e-6 * (1 + middle.abs())
        chord = torch.where(narrow, self.df(middle), (self.f(high) - self.f(low)) / torch.where(narrow, 1.0, wide))
        return torch.stack([chord, *(self.df(x) for x in (low, high, middle))])


def leaky(slope: float) -> Curve:
    f, df = (lambda x: F.leaky_relu(x, slope)), (lambda x: torch.where(x > 0, 1.0, slope).to(x))
    return Curve(f, df, (0.0,), "00", rising=slope >= 0)


def clamped(low: float | None, high: float | None) -> Curve:
    ends = [end for end in (low, high) if end is not None and math.isfinite(end)]

    def inside(x: Tensor) -> Tensor:
        return ((x >= (-math.inf if low is None else low)) & (x <= (math.inf if high is None else high))).to(x)

    return Curve(
        lambda x: x.clamp(low, high), inside, tuple(float(end) for end in ends), "0" * (len(ends) + 1), rising=True
    )


def derivative(f: Function) -> Function:
    """f' by automatic differentiation."""

    def df(x: Tensor) -> Tensor:
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            return torch.autograd.grad(f(z).sum(), z)[0]

    return df


def power(exponent: float) -> Curve:
    """x^n for whole n; others, and negative ones, above zero."""
    f, df = (lambda x: x.pow(exponent)), (lambda x: exponent * x.pow(exponent - 1))
    if exponent == 0:
        return Curve(f, torch.zeros_like, (), "0", rising=True)
    if exponent == int(exponent) and exponent >= 0:
        return Curve(f, df, (0.0,), "++" if int(exponent) % 2 == 0 else "-+")
    return Curve(f, df, (), "+" if exponent < 0 or exponent > 1 else "-", low=0.0)


def elu(alpha: float = 1.0, scale: float = 1.0, steep: float = 1.0) -> Curve:
    if min(alpha, scale, steep) < 0:
        raise CertifyError(
            f"expected an elu with alpha of 0 or more, got {alpha * scale:g} and {steep:g}; its bounds are not known"
        )

    def f(x: Tensor) -> Tensor:
        return torch.where(x > 0, scale * x, scale * alpha * torch.expm1(steep * x.clamp(max=0)))

    def df(x: Tensor) -> Tensor:
        return torch.where(x > 0, scale, scale * alpha * steep * torch.exp(steep * x.clamp(max=0))).to(x)

    return Curve(f, df, (0.0,), "+0")


# where the second derivative changes its sign, to double precision; of x·Φ(x) it is ±√2
SILU, TANH_GELU = 2.3993572805154677, 1.4185040087908283
MISH = (-2.256376396360793, 1.4905711794854284)


def gelu(approximate: str = "none") -> Curve:
    if approximate != "none":
        return Curve(
            lambda x: F.gelu(x, approximate="tanh"),
            derivative(lambda x: F.gelu(x, approximate="tanh")),
            (-TANH_GELU, TANH_GELU),
            "-+-",
        )
    root = math.sqrt(2.0)

    def df(x: Tensor) -> Tensor:
        return 0.5 * (1 + torch.erf(x / root)) + x * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)

    return Curve(F.gelu, df, (-root, root), "-+-")


def sigmoid_slope(x: Tensor) -> Tensor:
    y = torch.sigmoid(x)
    return y * (1 - y)


def softplus(beta: float = 1.0, threshold: float = 20.0) -> Curve:
    if beta <= 0 or threshold < 20:  # a smaller one jumps
        raise CertifyError(
            f"expected a softplus with beta above 0 and a threshold of 20 or more, got {beta:g} and {threshold:g}"
        )
    return Curve(lambda x: F.softplus(x, beta, threshold), lambda x: torch.sigmoid(beta * x), (), "+")


CURVES: dict[str, Callable[..., Curve]] = {
    "relu": lambda: leaky(0.0), "leaky_relu": lambda slope=0.01: leaky(slope), "abs": lambda: leaky(-1.0),
    "relu6": lambda: clamped(0.0, 6.0), "hardtanh": lambda low=-1.0, high=1.0: clamped(low, high),
    "clamp": lambda min=None, max=None: clamped(min, max), "clamp_min": lambda low: clamped(low, None),
    "clamp_max": lambda high: clamped(None, high),
    "hardsigmoid": lambda: Curve(F.hardsigmoid, lambda x: ((x >= -3) & (x <= 3)).to(x) / 6, (-3.0, 3.0), "000"),
    "hardswish": lambda: Curve(
        F.hardswish, lambda x: torch.where(x.abs() <= 3, (2 * x + 3) / 6, (x > 0).to(x)), (-3.0, 3.0), "0+0"
    ),
    "gelu": lambda approximate="none": gelu(approximate), "silu": lambda: Curve(F.silu, derivative(F.silu), (-SILU, SILU), "-+-"),
    "mish": lambda: Curve(F.mish, derivative(F.mish), MISH, "-+-"), "softplus": softplus,
    "elu": elu, "selu": lambda: elu(1.6732632423543772, 1.0507009873554805),
    "sigmoid": lambda: Curve(torch.sigmoid, sigmoid_slope, (0.0,), "+-", rising=True),
    "tanh": lambda: Curve(torch.tanh, lambda x: 1 - torch.tanh(x).square(), (0.0,), "+-", rising=True),
    "atan": lambda: Curve(torch.atan, lambda x: 1 / (1 + x.square()), (0.0,), "+-", rising=True),
    "erf": lambda: Curve(torch.erf, lambda x: 2 / math.sqrt(math.pi) * torch.exp(-x.square()), (0.0,), "+-", rising=True),
    "exp": lambda: Curve(torch.exp, torch.exp, (), "+", rising=True), "expm1": lambda: Curve(torch.expm1, torch.exp, (), "+", rising=True),
    "log": lambda: Curve(torch.log, torch.reciprocal, (), "-", low=0.0),
    "log1p": lambda: Curve(torch.log1p, lambda x: 1 / (1 + x), (), "-", low=-1.0),
    "sqrt": lambda: Curve(torch.sqrt, lambda x: 0.5 * torch.rsqrt(x), (), "-", low=0.0),
    "rsqrt": lambda: Curve(torch.rsqrt, lambda x: -0.5 * x.pow(-1.5), (), "+", low=0.0),
    "reciprocal": lambda: Curve(torch.reciprocal, lambda x: -x.pow(-2), (), "+", low=0.0),
    "square": lambda: power(2), "pow": power,
}  # fmt: skip
