"""Closed-form solutions behind the maps: ridge, Gaussian-process conditioning, evidence, calibration, stacking."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprogram.errors import DataError


def solve_linear(kind: str, outputs: int, z: Tensor, y: Tensor, center: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (T, S) and bias (T,) of the linear probe on standardised features z (n, S), by scikit-learn.

    Values: ridge, penalty by leave-one-out among 13 from 0.1 to 1e5. Classes: logistic regression, penalty by
    cross-validated log loss; a label column with one observed value keeps its prior.
    """
    from sklearn.linear_model import RidgeCV

    z64 = z.double().numpy()
    if kind == "classification":
        return solve_classes(z64, y.numpy(), outputs)
    weight, bias = torch.zeros(outputs, z.shape[1]), torch.zeros(outputs)
    for t, target in enumerate(y.double().T):
        known = ~target.isnan().numpy()
        if not known.any():
            bias[t] = torch.nan  # no label, no prediction: a stack leaves it out
        elif kind == "regression":
            model = RidgeCV(np.logspace(-1, 5, 13)).fit(z64[known], ((target - center[t]) / scale[t]).numpy()[known])
            weight[t], bias[t] = torch.from_numpy(model.coef_), float(model.intercept_)
        else:
            both, offset = solve_classes(z64[known], target.numpy()[known].astype(int), 2)
            weight[t], bias[t] = both[1] - both[0], offset[1] - offset[0]
    return weight, bias


def solve_classes(z: np.ndarray, y: np.ndarray, outputs: int) -> tuple[Tensor, Tensor]:
    """Logits of logistic regression (multinomial above two classes) with the penalty by cross-validated log loss.

    A class with one row leaves no two folds to choose by: the penalty is then fixed. Absent classes, and one class
    alone, get their smoothed share of the rows.
    """
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

    seen = np.bincount(y, minlength=outputs)
    present = np.flatnonzero(seen)
    weight, bias = torch.zeros(outputs, z.shape[1]), torch.from_numpy(np.log((seen + 0.5) / (len(y) + 0.5 * outputs)))
    rare = int(seen[present].min())
    if len(present) < 2 or (outputs == 2 and rare < 2):
        return weight, bias.float()
    if rare < 2:
        model = LogisticRegression(C=1e-2, max_iter=300)
    else:
        model = LogisticRegressionCV(
            Cs=np.logspace(-5, 0, 6), cv=min(5, rare), scoring="neg_log_loss", max_iter=300, tol=1e-3,
            use_legacy_attributes=False, l1_ratios=(0.0,),
        )  # fmt: skip
    model.fit(z, y)
    # two classes have one model between them: half of it for one, half against the other
    signs = np.array([[-0.5], [0.5]]) if len(present) == 2 else np.eye(len(present))
    weight[present] = torch.from_numpy(signs @ model.coef_).float()
    bias -= bias[present].mean().item()  # solved logits are centred; those of absent classes stay in proportion
    bias[present] = torch.from_numpy(signs @ model.intercept_)
    return weight, bias.float()


def negative_log_evidence(covariance: Tensor, noise: Tensor, targets: Tensor) -> Tensor:
    r"""$\tfrac12 y^\top C^{-1} y + \tfrac12\log|C|$ summed over targets, each over its own observed rows."""
    total = covariance.new_zeros(())
    for known, columns in group_by_mask(targets):
        c = covariance[known][:, known]
        factor = torch.linalg.cholesky(c + noise * torch.eye(len(c), dtype=c.dtype, device=c.device))
        y = targets[known][:, columns]
        whitened = torch.linalg.solve_triangular(factor, y, upper=False)
        total = total + whitened.square().sum() / 2 + len(columns) * factor.diagonal().log().sum()
    return total


def group_by_mask(targets: Tensor) -> list[tuple[Tensor, list[int]]]:
    """(observed rows, target columns that share them): complete targets cost one factorisation, not T."""
    groups: dict[bytes, tuple[Tensor, list[int]]] = {}
    for t in range(targets.shape[1]):
        known = ~targets[:, t].isnan()
        groups.setdefault(known.cpu().numpy().tobytes(), (known.nonzero()[:, 0], []))[1].append(t)
    return [group for group in groups.values() if len(group[0])]


def spread_rows(n: int, limit: int) -> Tensor:
    """At most `limit` of n row indices, drawn once with a fixed seed so that refits agree."""
    if n <= limit:
        return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:limit].sort().values


def condition(
    kernel: Callable[[Tensor, Tensor], Tensor], features: Tensor, rows: Tensor, noise: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Dual weights (m, T) of the posterior mean over the support rows, and leave-one-out means (n, T).

    With every row a support row this is exact GP regression and the exact leave-one-out formula (Rasmussen &
    Williams 2006, eq. 5.12); otherwise the subset of regressors, whose leave-one-out uses its hat matrix.
    """
    support = features[rows]
    dual = torch.zeros(len(rows), targets.shape[1], dtype=torch.float64, device=features.device)
    left_out = torch.full_like(targets, torch.nan)
    exact = len(rows) == len(features)
    cross = kernel(features, support)
    inner = cross[rows] if not exact else cross
    for known, columns in group_by_mask(targets):
        y = targets[known][:, columns]
        if exact:
            c = cross[known][:, known]
            inverse = torch.cholesky_inverse(
                torch.linalg.cholesky(c + noise * torch.eye(len(c), dtype=c.dtype, device=c.device))
            )
            weights = inverse @ y
            dual[known[:, None], torch.tensor(columns)] = weights
            left_out[known[:, None], torch.tensor(columns)] = y - weights / inverse.diagonal()[:, None]
            continue
        k = cross[known]
        jitter = 1e-8 * inner.diagonal().mean() * torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
        gram = torch.linalg.cholesky(k.T @ k + noise * (inner + jitter) + jitter)
        solved = torch.cholesky_solve(k.T, gram)
        dual[:, columns] = solved @ y
        hat = (k * solved.T).sum(1).clamp_max(1 - 1e-6)
        fitted = k @ dual[:, columns]
        left_out[known[:, None], torch.tensor(columns)] = y - (y - fitted) / (1 - hat)[:, None]
    return dual, left_out


def calibrate(kind: str, scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset (T,) that turn leave-one-out scores into logits by least cross-entropy (Platt 1999).

    Classes share one slope; labels have their own. A unit prior on log slope keeps tiny sets finite.
    """
    from scipy.optimize import minimize

    columns = scores.shape[1]
    shared = kind == "classification"

    def unpack(v: Tensor) -> tuple[Tensor, Tensor]:
        slope = v[:1].exp().expand(columns) if shared else v[:columns].exp()
        return slope, v[-columns:]

    def objective(v: np.ndarray) -> tuple[float, np.ndarray]:
        v = torch.from_numpy(v).requires_grad_(True)
        slope, offset = unpack(v)
        logits = torch.nan_to_num(scores) * slope + offset
        if shared:
            loss = F.cross_entropy(logits, y.long(), reduction="sum")
        else:
            known = ~y.isnan()
            loss = F.binary_cross_entropy_with_logits(logits[known], y[known].double(), reduction="sum")
        with torch.enable_grad():
            loss = loss + (v[:-columns] - 1).square().sum() / 2 + v[-columns:].square().sum() / 8
        (gradient,) = torch.autograd.grad(loss, v)
        return float(loss.detach()), gradient.numpy()

    start = np.concatenate([np.ones(1 if shared else columns), np.zeros(columns)])
    with torch.enable_grad():
        solution = torch.from_numpy(minimize(objective, start, jac=True, method="L-BFGS-B").x)
    slope, offset = unpack(solution)
    return slope.float(), offset.float()


def stack_weights(
    predictions: np.ndarray, y: np.ndarray, *, shrink: float = 0.5, tolerance: float = 1.25
) -> np.ndarray:
    """Convex weights (M,) of out-of-fold predictions (n, M) for y (n,): non-negative least squares, shrunk to the mean.

    Members whose root-mean-square error exceeds `tolerance` times the best one's are left out first.
    Reference: Wolpert, "Stacked generalization", 1992; Breiman, "Stacked regressions", 1996 (non-negative weights).
    Differs: shrinkage by `shrink` towards equal weights, which steadies weights learned from 50 to 200 labels.
    """
    from scipy.optimize import nnls

    sound = np.isfinite(predictions).all(axis=1)  # a fold without any label of a column predicts nothing there
    predictions, y = predictions[sound], y[sound]
    if not len(y):
        return np.full(predictions.shape[1], 1 / predictions.shape[1])
    center = y.mean()
    errors = np.sqrt(np.mean((predictions - y[:, None]) ** 2, axis=0))
    kept = errors <= tolerance * errors.min()
    solved, _ = nnls(predictions[:, kept] - center, y - center)
    equal = np.full(kept.sum(), 1 / kept.sum())
    solved = solved / solved.sum() if solved.sum() > 1e-9 else equal
    weights = np.zeros(len(kept))
    weights[kept] = (1 - shrink) * solved + shrink * equal
    return weights


def tune_hyperparameters(gp: nn.Module, features: Tensor, y: Tensor, *, iterations: int = 60) -> None:
    """Move the kernel's hyper-parameters to the maximum of the evidence on fixed features, by L-BFGS (scipy)."""
    from scipy.optimize import minimize

    parameters = [gp.log_amplitude, gp.log_length, gp.log_noise]
    sizes = [p.numel() for p in parameters]

    def write(v: np.ndarray) -> None:
        for p, part in zip(parameters, torch.from_numpy(v).split(sizes), strict=True):
            p.data.copy_(part.reshape(p.shape))

    def objective(v: np.ndarray) -> tuple[float, np.ndarray]:
        write(v)
        with torch.enable_grad():
            value = gp.evidence(features.detach(), y)
            gradients = torch.autograd.grad(value, parameters)
        return float(value), torch.cat([g.reshape(-1).double() for g in gradients]).cpu().numpy()

    start = torch.cat([p.detach().reshape(-1).double() for p in parameters]).cpu().numpy()
    bounds = [(-8.0, 8.0)] * len(start)
    write(minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations}).x)


def folds(kind: str, y: Tensor, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Shuffled (train, test) row indices, stratified for classes; as many folds as the rarest class allows."""
    from sklearn.model_selection import KFold, StratifiedKFold

    rows, count = np.zeros(len(y)), min(count, len(y))
    if kind == "classification":
        seen = torch.bincount(y.long())
        count = max(2, min(count, int(seen[seen > 0].min())))
        if int(seen.max()) < 2:
            raise DataError(f"expected classes with at least two rows, got {len(y)} rows of as many classes; add rows")
        cuts = StratifiedKFold(count, shuffle=True, random_state=seed).split(rows, y.cpu().numpy())
    else:
        cuts = KFold(count, shuffle=True, random_state=seed).split(rows)
    return [(torch.from_numpy(train), torch.from_numpy(test)) for train, test in cuts]
