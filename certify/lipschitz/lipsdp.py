r"""LipSDP: the smallest $\sqrt\rho$ that a matrix inequality over all layers at once admits as a Lipschitz constant in l2."""

from __future__ import annotations

import contextlib
import math
from typing import Literal

import torch
from torch import Tensor

from certify.engine.operator_norm import EPS, operator_norm
from certify.errors import CertifyError
from certify.lipschitz.segments import Chain

LIMIT = 500  # rows of the matrix: the cone has half its square as many numbers
SMALL = 150  # up to which an interior point method is faster than operator splitting


def lipsdp(network: Chain, form: Literal["neuron", "layer"] = "neuron") -> float:
    r"""A Lipschitz constant in l2 of a chain, never below the true one and never above the product of norms.

    Args:
        form: one multiplier for each "neuron" or for each "layer", which is looser.

    The solver's multipliers are only a guess. With $M(\rho, T)$ the matrix and $\mu$ its largest eigenvalue (with the error of
    computing it), every pair of inputs has $\|\Delta f\|^2 \le \rho\|\Delta x\|^2 + \mu(\|\Delta x\|^2 + \sum_k \|\Delta h_k\|^2)$,
    and the hidden layers change by at most their own products of norms, so that
    $\rho + \mu(1 + \sum_k L_k^2)$ holds for any $T \ge 0$.

    Reference: Fazlyab et al., "Efficient and accurate estimation of Lipschitz constants for deep neural networks", NeurIPS
    2019, arXiv:1906.04893. The coupled "network" form is left out: it is reported not to be an upper bound (Pauli et al., IEEE Control Systems
    Letters 2022, arXiv:2005.02929).
    Raises: CertifyError for a chain of more than 500 units, and where cvxpy is not installed.
    """
    norms = [operator_norm(weight) for weight in network.weights]
    slopes = [max(abs(low), abs(high)) for low, high in network.slopes]
    product = math.prod(norms) * math.prod(slopes)
    if not network.slopes or product == 0:
        return product
    weights = [weight / norm for weight, norm in zip(network.weights, norms, strict=True)]
    if weights[0].shape[1] > weights[0].shape[0]:  # directions that the first layer does not see
        weights[0] = torch.linalg.qr(weights[0].T).R.T
    inequality = Inequality(weights, network.slopes)
    size = len(inequality.output)
    if size > LIMIT:
        raise CertifyError(f'expected at most {LIMIT} units for LipSDP, got {size}; use method="product" or "local"')
    guess = inequality.solved(form)
    reach = 1 + sum(math.prod(slopes[: k + 1]) ** 2 for k in range(len(slopes)))
    easy = torch.cat([weight.new_full((len(weight),), 4.0**-k) for k, weight in enumerate(weights[:-1])])
    tried = [guess + step * easy for step in (0, 1e-9, 1e-7, 1e-5, 1e-3, 0.1)]
    rho = min(inequality.bound(t, reach) for t in tried)
    return min(product, math.sqrt(rho) * math.prod(norms) * (1 + 64 * EPS * size))


class Inequality:
    r"""$M(\rho, T) \preceq 0$ for layers of norm 1 at most: rows and columns are the input and all hidden units."""

    def __init__(self, weights: list[Tensor], slopes: list[tuple[float, float]]):
        self.inputs, hidden = weights[0].shape[1], [len(weight) for weight in weights[:-1]]
        self.hidden = hidden
        size = self.inputs + sum(hidden)
        self.before = torch.block_diag(*weights[:-1]).double()  # A: what every unit's function takes
        self.before = torch.cat([self.before, self.before.new_zeros(sum(hidden), size - self.before.shape[1])], 1)
        self.after = torch.eye(size, dtype=torch.float64, device=self.before.device)[self.inputs :]  # B: its value
        self.output = torch.zeros_like(torch.eye(size, dtype=torch.float64, device=self.before.device))
        self.output[-hidden[-1] :, -hidden[-1] :] = weights[-1].T @ weights[-1]
        self.sum, self.product = (
            torch.cat([self.before.new_full((n,), value) for n, value in zip(hidden, values, strict=True)])
            for values in ([a + b for a, b in slopes], [a * b for a, b in slopes])
        )

    def matrix(self, t: Tensor, rho: float) -> Tensor:
        a, b = self.before, self.after
        mixed = a.T @ ((self.sum * t)[:, None] * b)
        found = mixed + mixed.T + self.output
        found -= 2 * a.T @ ((self.product * t)[:, None] * a) + 2 * b.T @ (t[:, None] * b)
        found.diagonal()[: self.inputs] -= rho
        return found

    def bound(self, t: Tensor, reach: float) -> float:
        """The square of a Lipschitz constant that multipliers t ≥ 0 prove; infinity where they prove none."""
        t, n = t.clamp_min(0), self.inputs
        still = self.matrix(t, 0.0)
        if float(torch.linalg.eigvalsh(still[n:, n:])[-1]) >= 0:
            return math.inf
        schur = still[:n, :n] - still[:n, n:] @ torch.linalg.solve(still[n:, n:], still[n:, :n])
        rho = max(float(torch.linalg.eigvalsh((schur + schur.T) / 2)[-1]), 0.0)
        whole = self.matrix(t, rho)
        error = 16 * EPS * len(whole) * float(torch.linalg.matrix_norm(whole.abs() + self.output.abs()))
        error += 32 * EPS * len(whole) * float(t.amax())
        return rho + (max(float(torch.linalg.eigvalsh(whole)[-1]), 0.0) + error) * reach

    def solved(self, form: str) -> Tensor:
        """Multipliers that a solver finds best; zeros where it finds none."""
        try:
            import cvxpy as cp
        except ImportError as error:
            raise CertifyError("expected cvxpy for LipSDP, got none; pip install cvxpy") from error
        units = sum(self.hidden)
        a, b, output = (each.cpu().numpy() for each in (self.before, self.after, self.output))
        rho = cp.Variable(nonneg=True)
        if form == "neuron":
            t = cp.Variable(units, nonneg=True)
        else:
            spread = torch.block_diag(*(torch.ones(n, 1, dtype=torch.float64) for n in self.hidden)).numpy()
            t = spread @ cp.Variable(len(self.hidden), nonneg=True)
        mixed = a.T @ cp.diag(cp.multiply(self.sum.cpu().numpy(), t)) @ b
        found = mixed + mixed.T + output - 2 * b.T @ cp.diag(t) @ b
        if bool((self.product != 0).any()):
            found = found - 2 * a.T @ cp.diag(cp.multiply(self.product.cpu().numpy(), t)) @ a
        corner = torch.zeros(len(output), dtype=torch.float64)
        corner[: self.inputs] = 1
        problem = cp.Problem(cp.Minimize(rho), [found - rho * torch.diag(corner).numpy() << 0])
        with contextlib.suppress(cp.SolverError):
            problem.solve(solver=cp.CLARABEL if len(output) <= SMALL else cp.SCS)
        value = torch.zeros(units) if t.value is None else torch.as_tensor(t.value)
        return value.to(self.before).nan_to_num(0.0, 0.0, 0.0).clamp_min(0)
