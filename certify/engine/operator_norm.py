r"""Upper bounds of $\|A\|_{p\to r} = \max_{\|x\|_p\le1}\|Ax\|_r$ that rounding cannot turn into lower ones.

Power iteration finds the spectral norm from below, so it only guesses here: what is returned is an eigenvalue of
$A^TA$ or $AA^T$ by a backward stable method with its error added, or a number t for which a Cholesky factorisation of
$tI - A^TA$ exists.

References: Rump, "Verification of positive definiteness", BIT 2006 (what a Cholesky factorisation that does not break off proves);
Sedghi, Gupta & Long, "The singular values of convolutional layers", ICLR 2019, arXiv:1805.10408 (one small matrix for each
frequency).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from certify.errors import CertifyError

Norm = Literal["linf", "l2", "l1"]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
LIMIT = 4096  # on the smaller side of a matrix: its Gram matrix then takes 128 MB
EXACT = 512  # up to which all eigenvalues cost less than guesses
NUMBERS = 2**22  # of a block of columns: 32 MB
EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class LinearMap:
    """A linear map from rows (B, inputs) to rows (B, outputs), with its adjoint, in double precision."""

    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    inputs: int
    outputs: int
    device: torch.device

    @classmethod
    def of_matrix(cls, matrix: Tensor) -> LinearMap:
        matrix = matrix.detach().double()
        return cls(lambda x: x @ matrix.T, lambda y: y @ matrix, matrix.shape[1], matrix.shape[0], matrix.device)

    @classmethod
    def of_function(cls, function: Callable[[Tensor], Tensor], shape: Sequence[int], device: torch.device) -> LinearMap:
        """Of what is linear up to a constant: (B, *shape) to (B, …), each sample by itself."""
        inputs = math.prod(shape)
        with torch.no_grad():
            constant = function(torch.zeros(1, *shape, dtype=torch.float64, device=device))

        def adjoint(y: Tensor, again: bool = False) -> Tensor:
            with torch.enable_grad():
                x = y.new_zeros(len(y), *shape, requires_grad=True)
                found = torch.autograd.grad(function(x), x, y.view(-1, *constant.shape[1:]), create_graph=again)[0]
            return found.reshape(len(y), inputs)

        def forward(x: Tensor) -> Tensor:  # the adjoint's adjoint: subtracting a large constant would round
            with torch.enable_grad():
                y = x.new_zeros(len(x), constant.numel(), requires_grad=True)
                return torch.autograd.grad(adjoint(y, again=True), y, x)[0]

        return cls(forward, adjoint, inputs, constant.numel(), device)

    @property
    def transposed(self) -> LinearMap:
        return LinearMap(self.adjoint, self.forward, self.outputs, self.inputs, self.device)

    def columns(self) -> Iterator[Tensor]:
        """The matrix's columns as rows (b, outputs), some at a time."""
        size = max(1, NUMBERS // max(self.inputs, self.outputs))
        for some in torch.arange(self.inputs, device=self.device).split(size):
            unit = torch.zeros(len(some), self.inputs, dtype=torch.float64, device=self.device)
            yield self.forward(unit.scatter_(1, some[:, None], 1.0))

    def gram(self) -> Tensor:
        """$A^TA$ or $AA^T$, whichever is smaller."""
        narrow = self if self.inputs <= self.outputs else self.transposed
        return torch.cat([narrow.adjoint(columns) for columns in narrow.columns()])


def operator_norm(
    linear: Tensor | Callable[[Tensor], Tensor], norm_in: Norm = "l2", norm_out: Norm = "l2", *,
    shape: Sequence[int] | None = None, device: torch.device | str = "cpu",
) -> float:  # fmt: skip
    r"""An upper bound of the norm of a linear map, exact up to rounding but for "linf" to "l1" or "l2" and "l2" to "l1".

    Args:
        linear: a matrix (outputs, inputs), or a function from (B, *shape) to (B, …) that treats each sample by itself and is
            linear up to a constant; it is called in double precision.
        shape: of one input of a function; `device`: where it computes.

    The three norms named above are NP-hard; they are bounded by norms of row or column sums and by the spectral norm.
    A map with more than 4096 numbers on its smaller side has only
    $\|A\|_2 \le \sqrt{\|A\|_1\|A\|_\infty}$; for convolutions use `conv_norm`.

    Raises: CertifyError for norms that are not among linf, l2, l1, and for a map that is not finite.
    """
    if norm_in not in NORMS or norm_out not in NORMS:
        raise CertifyError(f"expected norms among {', '.join(NORMS)}, got {norm_in!r} and {norm_out!r}")
    if torch.is_tensor(linear):
        if linear.ndim != 2:
            raise CertifyError(
                f"expected a matrix (outputs, inputs), got {tuple(linear.shape)}; pass a function with shape="
            )
        found = LinearMap.of_matrix(linear)
    elif shape is None:
        raise CertifyError("expected the shape of one input of a linear function, got none; pass shape=")
    else:
        found = LinearMap.of_function(linear, shape, torch.device(device))
    return norms_of(found, [(norm_in, norm_out)])[norm_in, norm_out]


def norms_of(linear: LinearMap, wanted: Sequence[tuple[Norm, Norm]]) -> dict[tuple[Norm, Norm], float]:
    """Several norms of one map, all from one look at its matrix."""
    hard = {("l2", "l2"), ("linf", "l2"), ("l2", "l1"), ("linf", "l1")}
    bounds = entrywise(linear)
    if hard.intersection(wanted):
        n, m = linear.inputs, linear.outputs
        spectral = math.sqrt(bounds["l1", "l1"] * bounds["linf", "linf"])
        if min(n, m) <= LIMIT:
            spectral = min(spectral, math.sqrt(largest_eigenvalue(linear.gram(), max(n, m))))
        wider = {("l2", "l2"): 1.0, ("linf", "l2"): n, ("l2", "l1"): m, ("linf", "l1"): n * m}
        bounds |= {key: min(bounds[key], spectral * math.sqrt(size)) for key, size in wider.items()}
    if not all(math.isfinite(bounds[key]) for key in wanted):
        raise CertifyError("expected a linear map of finite numbers, got one with NaN or infinity")
    return {key: bounds[key] * (1 + 8 * EPS) for key in wanted}


def entrywise(linear: LinearMap) -> dict[tuple[Norm, Norm], float]:
    """What sums over rows and columns say of every norm."""
    turned = linear.inputs > linear.outputs
    narrow = linear.transposed if turned else linear
    across = torch.zeros(2, narrow.outputs, dtype=torch.float64, device=linear.device)
    along, largest = [], []
    for columns in narrow.columns():
        size = columns.abs()
        along.append(torch.stack([size.sum(1), size.square().sum(1)]))
        across += torch.stack([size.sum(0), size.square().sum(0)])
        largest.append(size.amax())
    sums = [torch.cat(along, 1), across]
    (column, column2), (row, row2) = reversed(sums) if turned else sums
    exact: dict[tuple[Norm, Norm], Tensor] = {
        ("l1", "l1"): column.amax(), ("l1", "l2"): column2.amax().sqrt(), ("l1", "linf"): torch.stack(largest).amax(),
        ("l2", "linf"): row2.amax().sqrt(), ("linf", "linf"): row.amax(),
        ("l2", "l2"): row2.sum().sqrt(), ("linf", "l2"): row.norm(), ("l2", "l1"): column.norm(), ("linf", "l1"): row.sum(),
    }  # fmt: skip
    rounding = 1 + 2 * EPS * (linear.inputs + linear.outputs)
    return {key: float(value) * rounding for key, value in exact.items()}


def largest_eigenvalue(gram: Tensor, inner: int) -> float:
    """An upper bound of the largest eigenvalue of $A^TA$ as it was computed from columns of `inner` numbers."""
    if not bool(gram.isfinite().all()):
        return math.inf
    n, trace = len(gram), float(gram.diagonal().sum())
    gram = (gram + gram.T) / 2
    rounding = 4 * EPS * (n + inner) * trace
    if n <= EXACT:
        return max(float(torch.linalg.eigvalsh(gram)[-1]), 0.0) + rounding
    guess, unit = from_below(gram), torch.eye(n, dtype=gram.dtype, device=gram.device)
    for slack in (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1):
        t = guess * (1 + slack)
        if int(torch.linalg.cholesky_ex(t * unit - gram).info) == 0:
            return t * (1 + 2 * EPS * n * (n + 2)) + rounding
    return trace + rounding


def from_below(gram: Tensor, width: int = 8, steps: int = 40) -> float:
    """The largest Ritz value of a block of directions after so many multiplications."""
    generator = torch.Generator(gram.device).manual_seed(0)
    block = torch.randn(len(gram), width, dtype=gram.dtype, device=gram.device, generator=generator)
    for _ in range(steps):
        block = torch.linalg.qr(gram @ block).Q
    return float(torch.linalg.eigvalsh(block.T @ gram @ block)[-1])


def conv_norm(
    weight: Tensor, size: Sequence[int], *, stride: int | Sequence[int] = 1, padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1, groups: int = 1,
) -> float:  # fmt: skip
    r"""An upper bound of the spectral norm of a convolution with zero padding: that of the circular one on a torus the padded
    image fits in, of which it is a part.

    A stride s takes every s-th output: the pixels of each s × s cell become channels, which turns the stride into 1 and
    moves numbers only. The circular convolution is one matrix for each frequency.

    Args:
        weight: (out, in / groups, *kernel), of 1, 2 or 3 axes; for a transposed convolution the same tensor as it is stored.
        size: of the images that go in, for a transposed convolution of those that come out, without padding.
    """
    axes = weight.ndim - 2
    stride, padding, dilation = (
        [v] * axes if isinstance(v, int) else list(v) * (axes if len(v) == 1 else 1)
        for v in (stride, padding, dilation)
    )
    out, per, *kernel = weight.shape
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    torus = [-(-max(n + 2 * p, r) // s) * s for n, p, r, s in zip(size, padding, reach, stride, strict=True)]
    spread = torch.zeros(out, per, *torus, dtype=torch.float64, device=weight.device)
    spread[(..., *(slice(0, r, d) for r, d in zip(reach, dilation, strict=True)))] = weight.detach().double()
    cells = [part for n, s in zip(torus, stride, strict=True) for part in (n // s, s)]
    phases = spread.view(out, per, *cells).permute(0, 1, *range(3, 3 + 2 * axes, 2), *range(2, 2 + 2 * axes, 2))
    spectrum = torch.fft.rfftn(phases, dim=list(range(2 + axes, 2 + 2 * axes)))
    matrices = spectrum.reshape(groups, out // groups, per * math.prod(stride), -1).permute(3, 0, 1, 2).flatten(0, 1)
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.mT
    rows, inner, best = matrices.shape[1], matrices.shape[2], 0.0
    for some in matrices.split(max(1, NUMBERS // (rows * max(rows, inner)))):
        gram = some @ some.mH
        trace = gram.diagonal(dim1=1, dim2=2).real.sum(1)
        if not bool(trace.isfinite().all()):
            raise CertifyError("expected a convolution of finite numbers, got one with NaN or infinity")
        rounding = 4 * EPS * (rows + inner + 8 * math.log2(2 + math.prod(torus))) * trace
        best = max(best, float((torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0) + rounding).amax()))
    return math.sqrt(best) * (1 + 8 * EPS)
