"""Will it transfer? Scores of a source for a task from frozen features, before anything is trained.

They are heuristics: none bounds an accuracy. Over 9 tasks with 4 to 10 sources each (`benchmarks.transfer`, 96 rows) LogME
ranks sources with a mean Spearman correlation of 0.44 with the best test metric, the other two with none that shows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from reprogram.errors import DataError

Array = np.ndarray


def logme(features: Any, y: Any, *, kind: str = "classification", steps: int = 11) -> float:
    r"""Log evidence per row of a Bayesian linear model on frozen features, maximised over its two precisions.

    $\frac{1}{n}\max_{\alpha,\beta} \log p(y \mid F, \alpha, \beta)$ for w ~ N(0, 1/α), y ~ N(Fw, 1/β), by MacKay's fixed
    point; classes are averaged one against the rest. Larger is better; comparable between sources on the same rows only.

    Shapes: features (n, D), y (n,) classes or values, or (n, T).
    Reference: You, Liu, Wang & Long, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning", ICML
    2021, arXiv:2102.11005.
    Raises: DataError for unequal lengths, fewer than two rows, or numbers that are not finite.
    """
    x, columns = checked_rows(features, y, kind)
    left, spread, _ = np.linalg.svd(x, full_matrices=False)
    return float(
        np.mean([log_evidence(left.T @ t, float(t @ t), spread**2, x.shape, steps) for t in columns.T]) / len(x)
    )


def checked_rows(features: Any, y: Any, kind: str) -> tuple[Array, Array]:
    """Features (n, D) and target columns (n, T), classes as indicators."""
    x, target = np.asarray(features, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 2 or len(x) != len(target) or len(x) < 2:
        raise DataError(
            f"expected at least two rows of features (n, D) with a target each, got {x.shape} and {target.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(target).all()):
        raise DataError("expected finite features and targets, got NaN or infinity among them")
    if kind == "classification":
        return x, (target[:, None] == np.unique(target)).astype(float)
    return x, target.reshape(len(target), -1)


def log_evidence(rotated: Array, norm: float, eigenvalues: Array, shape: tuple[int, int], steps: int) -> float:
    """Evidence of one target from its coordinates U'y, its squared norm and the squared singular values."""
    n, width = shape
    outside = max(norm - float(rotated @ rotated), 0.0)
    alpha, beta = 1.0, 1.0
    for _ in range(steps):
        ratio = alpha / beta
        weights = float((eigenvalues * rotated**2 / (eigenvalues + ratio) ** 2).sum())
        error = float((rotated**2 * (ratio / (eigenvalues + ratio)) ** 2).sum()) + outside
        gamma = float((eigenvalues / (eigenvalues + ratio)).sum())
        alpha, beta = gamma / max(weights, 1e-12), (n - gamma) / max(error, 1e-12)
    ratio = alpha / beta
    weights = float((eigenvalues * rotated**2 / (eigenvalues + ratio) ** 2).sum())
    error = float((rotated**2 * (ratio / (eigenvalues + ratio)) ** 2).sum()) + outside
    determinant = float(np.log(alpha + beta * eigenvalues).sum()) + (width - len(eigenvalues)) * np.log(alpha)
    fit = width * np.log(alpha) + n * np.log(beta) - determinant - beta * error - alpha * weights
    return float(0.5 * (fit - n * np.log(2 * np.pi)))


def sliced_wasserstein(first: Any, second: Any, *, projections: int = 1000, seed: int = 0) -> float:
    """Mean 1-Wasserstein distance of two clouds of logits along random directions.

    Voice2Series measures it between a source's logits on its own data and on the reprogrammed target's: the nearer, the
    better the transfer, on its sources. A heuristic: the lemma under its bound fails as printed.

    Shapes: first (n, K), second (m, K).
    Reference: Yang, Tsai & Chen, ICML 2021, arXiv:2106.09296; Bonneel et al., "Sliced and Radon Wasserstein Barycenters
    of Measures", 2015.
    """
    from scipy.stats import wasserstein_distance

    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise DataError(f"expected two sets of logits of one width, got {a.shape} and {b.shape}")
    ways = np.random.default_rng(seed).standard_normal((a.shape[1], projections))
    ways /= np.linalg.norm(ways, axis=0)
    return float(np.mean([wasserstein_distance(p, q) for p, q in zip((a @ ways).T, (b @ ways).T, strict=True)]))


def prompting_ratio(prompted: Any, plain: Any, y: Any, *, kind: str = "classification") -> float:
    """Log likelihood ratio per row of prompting against probing: `logme` of prompted features minus that of plain ones.

    Above 0, a program is expected to beat a linear probe. `prompted` are the source's features behind a cheap stand-in
    for the trained program: a few steps of it, or the best of some random ones.

    Shapes: prompted, plain (n, D).
    Reference: Tsao, Hsiung, Chen & Ho, "When Does Visual Prompting Outperform Linear Probing for Vision-Language Models? A
    Likelihood Perspective", 2024, arXiv:2409.01821.
    """
    return logme(prompted, y, kind=kind) - logme(plain, y, kind=kind)
