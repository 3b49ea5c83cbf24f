r"""Implicit networks that are contractions of the maximum norm: $z = \mathrm{relu}(Az + Ux + b)$, $y = Cz + c$.

With $\mu(A) = \max_i A_{ii} + \sum_{j \ne i} |A_{ij}| d_i / d_j < 1$ there is one fixed point for every input. In the norm
$\max_i d_i|z_i|$ the averaged step $z + \alpha(\mathrm{relu}(Az + q) - z)$, $\alpha = 1/(1 - \min_i A_{ii}^-)$, contracts by
$1 - \alpha(1 - \mu^+)$, so the fixed point is no further from any z than $|\mathrm{relu}(Az + q) - z| / (1 - \mu^+)$: what
an iteration leaves open is known.

Reference: Jafarpour et al., "Robust implicit networks via non-Euclidean contractions", NeurIPS 2021, arXiv:2106.03194.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adversarial.threat import Region, Threat
from certify.certificate import Certificate, proof
from certify.checks import answers, check_labels
from certify.engine.answers import check_precise
from certify.errors import CertifyError
from certify.linear.crown import bounded, plain

CAP = 10_000  # of steps, where a contraction is so weak that its own number of steps is beyond use


class Solved(NamedTuple):
    """A point near a fixed point (B, n), and how far each number can be from it (B, n)."""

    point: Tensor
    error: Tensor


class NEMON(nn.Module):
    r"""An implicit network whose matrix has $\mu(A) \le m < 1$ by construction.

    $A = mI + D^{-1}TD - \mathrm{diag}(|T|1) - \mathrm{diag}(a^2)$ with $D = \mathrm{diag}(e^\eta)$; T, η and a are free.

    Args:
        inputs, width, classes: numbers of an input, which is flattened, of hidden units, and of logits.
        m: the largest $\mu(A)$, below 1.
        tol: how far a hidden unit may be from the fixed point's, in the norm above.

    Gradients are those of the fixed point, by the implicit function theorem.

    Reference: Jafarpour et al., NeurIPS 2021, arXiv:2106.03194.
    Differs from the paper: the iteration ends when the known distance to the fixed point is below `tol`.

    Raises: CertifyError for m of 1 or more.
    """

    def __init__(self, inputs: int, width: int, classes: int, *, m: float = 0.5, tol: float = 1e-5):
        super().__init__()
        if not m < 1 or width < 1 or not tol > 0:
            raise CertifyError(f"expected m below 1, a width and a tol above 0, got {m}, {width} and {tol}")
        self.m, self.tol = m, tol
        self.input, self.output = nn.Linear(inputs, width), nn.Linear(width, classes)
        self.mixing = nn.Parameter(torch.empty(width, width).uniform_(-1, 1) / math.sqrt(width))
        self.log_weights, self.damping = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    @property
    def weights(self) -> Tensor:
        """d (n,), of the norm in which the network contracts."""
        return self.log_weights.exp()

    def matrix(self) -> Tensor:
        """A (n, n)."""
        turned = self.mixing * self.weights / self.weights[:, None]
        return turned + torch.diag(self.m - self.mixing.abs().sum(1) - self.damping.square())

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        """The fixed point (B, n)."""
        q, a = self.input(x.flatten(1)), self.matrix()
        with torch.no_grad():
            z = self.solve(lambda z: torch.relu(z @ a.T + q), torch.relu(q), a).point
        if not torch.is_grad_enabled() or not (q.requires_grad or a.requires_grad):
            return z
        found = torch.relu(z @ a.T + q)
        active = (found > 0).to(z)

        def adjoint(gradient: Tensor) -> Tensor:
            """g with g = gradient + Aᵀ S g, a contraction like the network's, in the dual norm; `tol` is relative."""
            with torch.no_grad():
                scale = (gradient.abs() / self.weights).sum(1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
                unit = gradient / scale
                return self.solve(lambda g: unit + (g * active) @ a, unit, a, dual=True).point * scale

        found.register_hook(adjoint)
        return found

    def gap(self, a: Tensor) -> Tensor:
        """1 − μ⁺ of the matrix as it was rounded. Raises: CertifyError where that is no contraction."""
        found = (1 - contraction(a.double(), self.weights.double())) * (1 - 1e-12 * len(a))
        if bool(found <= 0):
            raise CertifyError(f"expected a matrix with a mu below 1, got {1 - float(found):.9g}; take a smaller m")
        return found.to(a)

    def solve(self, step: Callable[[Tensor], Tensor], z: Tensor, a: Tensor, *, dual: bool = False) -> Solved:
        """The fixed point of a step that contracts as A does, by averages from z, which may hold several points in a row."""
        weights = self.weights.repeat(z.shape[1] // len(a))
        alpha, gap = 1 / (1 - a.diagonal().clamp(max=0).amin()), self.gap(a)

        def distance(change: Tensor) -> Tensor:
            """To the fixed point, at most (B,)."""
            size = change.abs()
            return ((size / weights).sum(1) if dual else (size * weights).amax(1)) / gap

        change, rate = step(z) - z, float(1 - alpha * gap)
        first = float(distance(change).amax()) / self.tol
        needed = math.ceil(math.log(first) / -math.log(rate)) if 1 < first < math.inf and 0 < rate < 1 else 1
        if needed > CAP:
            raise CertifyError(
                f"expected a contraction that ends within {CAP} steps, got one of {needed}; take a smaller m or a larger tol"
            )
        for _ in range(needed + 1):
            if bool((distance(change) <= self.tol).all()):
                break
            z = z + alpha * change
            change = step(z) - z
        left = distance(change)[:, None]
        return Solved(z, left * weights if dual else left / weights)


def contraction(a: Tensor, weights: Tensor) -> Tensor:
    """μ⁺: the logarithmic norm of A in max d|z|, or 0 where it is negative, which ReLU makes of it."""
    turned = a * weights[:, None] / weights
    return (turned.abs().sum(1) - turned.diagonal().abs() + turned.diagonal()).amax().clamp(min=0)


def batches(threat: Threat, model: nn.Module, x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Region, Tensor, ...]]:
    """Regions, logits, labels, and C_y − C_j with its offsets, for some samples at a time, checked."""
    check_labels(x, y)
    if not isinstance(model, NEMON):
        raise CertifyError(f"expected a NEMON, got {type(model).__name__}; other networks are certified by CROWN")
    check_precise(x)
    region, logits = bounded(plain(threat.around(x))), answers(model, x, y, size)
    for some in torch.arange(len(x), device=x.device).split(size):
        weight, bias = model.output.weight, model.output.bias
        labels = y[some]
        yield region[some], logits[some], labels, weight[labels].unsqueeze(1) - weight, bias[labels].unsqueeze(1) - bias


@dataclass(frozen=True)
class MixedMonotone:
    r"""A box around the fixed points of all inputs of a threat, from one larger implicit network.

    With M the matrix A without its negative entries off the diagonal and N = A − M, the pair
    $\bar z = \mathrm{relu}(M\bar z + N\underline z + \bar q)$, $\underline z = \mathrm{relu}(M\underline z + N\bar z + \underline q)$
    has the same μ, and its fixed point bounds z where $\underline q \le Ux + b \le \bar q$. The margins' rows $C_y - C_j$ are
    taken together (the relative classifier). What the iteration leaves open is added to the box, and `tol` of the model's own
    iteration to the margins.

    Reference: Jafarpour et al., "Robustness certificates for implicit neural networks: a mixed monotone contractive
    approach", L4DC 2022, arXiv:2112.05310.
    Differs from the paper: $\underline q$ and $\bar q$ are exact for balls of l2 and l1 too.
    """

    threat: Threat

    @torch.no_grad()
    def __call__(self, model: NEMON, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Certificates for inputs x (B, …) with labels y (B,) of a `NEMON`.

        Raises: CertifyError for another model, a lifted threat, and wrong labels.
        """
        parts = []
        for region, logits, labels, weight, bias in batches(self.threat, model, x, y, batch_size):
            low, high = box(model, region)
            floor = (weight.clamp(min=0) * low[:, None] + weight.clamp(max=0) * high[:, None]).sum(2) + bias
            margins = floor - model.tol * (weight.abs() / model.weights).sum(2)
            safe = margins.scatter(1, labels[:, None], torch.inf).amin(1) > 0
            parts.append(proof(self, logits, labels, margins, torch.where(safe, region.eps, 0), region.eps))
        return Certificate.joined(parts)


@torch.no_grad()
def box(model: NEMON, region: Region) -> tuple[Tensor, Tensor]:
    """Bounds (B, n) of the hidden units over a region."""
    a, u = model.matrix(), model.input.weight
    own = a.clamp(min=0) + torch.diag(a.diagonal().clamp(max=0))
    other = a - own
    middle = model.input(region.anchor.flatten(1))
    up, down = (torch.stack([region.support(sign * row.expand(len(region), -1)) for row in u], 1) for sign in (1, -1))

    def step(z: Tensor) -> Tensor:
        high, low = z.chunk(2, 1)
        return torch.relu(
            torch.cat([high @ own.T + low @ other.T + middle + up, low @ own.T + high @ other.T + middle - down], 1)
        )

    found = model.solve(step, torch.relu(torch.cat([middle + up, middle - down], 1)), a)
    high, low = (found.point + found.error).chunk(2, 1)[0], (found.point - found.error).chunk(2, 1)[1]
    return low.clamp(min=0), high


def lipschitz(model: NEMON, norm: str) -> Tensor:
    r"""How much, in max d|z|, the fixed point moves at most for a step of unit norm of the input: $\|U\| / (1 - \mu^+)$."""
    dual = {"linf": 1, "l2": 2, "l1": math.inf}[norm]
    rows = torch.linalg.vector_norm(model.input.weight, dual, dim=1) * model.weights
    return rows.amax() / model.gap(model.matrix())


@dataclass(frozen=True)
class ImplicitLipschitz:
    r"""A radius from the Lipschitz bound of an implicit network: $\min_j (f_y - f_j) / \big(\sum_i |C_y - C_j|_i / d_i \cdot L\big)$.

    Reference: Jafarpour et al., NeurIPS 2021, arXiv:2106.03194.
    Differs from the paper: each margin has its own constant; l2 and l1 by the norms of the rows of U.
    """

    threat: Threat

    @torch.no_grad()
    def __call__(self, model: NEMON, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Certificates for inputs x (B, …) with labels y (B,) of a `NEMON`.

        Raises: CertifyError for another model, a lifted threat or one of l0, and wrong labels.
        """
        if getattr(self.threat, "norm", None) not in ("linf", "l2", "l1"):
            raise CertifyError(f"expected a Ball in linf, l2 or l1 for a Lipschitz bound, got {self.threat}")
        parts, moved = [], lipschitz(model, self.threat.norm) if isinstance(model, NEMON) else 0.0
        for region, logits, labels, weight, _ in batches(self.threat, model, x, y, batch_size):
            reach = (weight.abs() / model.weights).sum(2)
            # the logits at hand and those that an attack would see are each up to tol from the fixed points' own
            middle = model(region.anchor)
            clean = middle.gather(1, labels[:, None]) - middle - 2 * model.tol * reach
            margins = clean - region.eps[:, None] * moved * reach
            radius = (clean / (moved * reach)).scatter(1, labels[:, None], torch.inf).amin(1)
            parts.append(proof(self, logits, labels, margins, radius, region.eps))
        return Certificate.joined(parts)
