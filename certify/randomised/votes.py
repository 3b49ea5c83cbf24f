"""How sure a count is: bounds of a probability and of a median that hold with a stated confidence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from certify.checks import check_classes, logits_of
from certify.errors import CertifyError

BoundsOf = Literal["top", "both"]


def lower_share(count: Tensor, n: int, alpha: float) -> Tensor:
    """Clopper–Pearson: a probability is below this with probability alpha at most, after `count` of n draws (float64).

    Reference: Clopper & Pearson, Biometrika 1934.
    """
    from scipy.stats import beta

    k = count.detach().cpu().numpy().astype(float)
    found = np.where(k > 0, beta.ppf(alpha, np.maximum(k, 1), n - k + 1), 0.0)
    return torch.from_numpy(found).to(count.device)


def upper_share(count: Tensor, n: int, alpha: float) -> Tensor:
    """The same from above."""
    return 1 - lower_share(n - count, n, alpha)


def median_ranks(n: int, alpha: float) -> tuple[int, int]:
    """Places (from 0) of two order statistics of n draws that hold the median between them with confidence 1 - alpha.

    The l-th smallest is above the median only if fewer than l draws are at or below it, which has probability
    $P[Bin(n, 1/2) < l]$ at most, whatever the distribution. Reference: David & Nagaraja, "Order statistics", 2003, 7.1.

    Raises: CertifyError where n is too small for the confidence.
    """
    from scipy.stats import binom

    place = int(binom.ppf(alpha / 2, n, 0.5))
    while place >= 0 and binom.cdf(place, n, 0.5) > alpha / 2:
        place -= 1
    if place < 0:
        raise CertifyError(
            f"expected enough draws for a median with confidence {1 - alpha:g}, got {n}; take {enough(alpha)} or more"
        )
    return place, n - 1 - place


def enough(alpha: float) -> int:
    """The least n at which the smallest and the largest draw hold the median: $2 \\cdot 2^{-n} \\le \\alpha$."""
    return int(np.ceil(1 - np.log2(alpha)))


def check_sampling(alpha: float, *counts: int) -> None:
    """Raises: CertifyError for an alpha outside (0, 1), and for a count of draws below one."""
    if not 0 < alpha < 1:
        raise CertifyError(f"expected an alpha between 0 and 1, got {alpha}")
    if min(counts) < 1:
        raise CertifyError(f"expected at least one draw, got {min(counts)}")


def check_reach(n: int, alpha: float) -> None:
    """Raises: CertifyError where even n votes of n would not show a majority."""
    if alpha ** (1 / n) <= 0.5:
        least = int(np.floor(np.log(alpha) / np.log(0.5))) + 1
        raise CertifyError(
            f"expected enough draws to show a majority with confidence {1 - alpha:g}, got {n}; take {least} or more"
        )


@torch.no_grad()
def counted(model: nn.Module, y: Tensor, draw: Callable[[Tensor, int], Tensor], n: int, batch_size: int) -> Tensor:
    """Votes of each class (B, K) over n random versions of each of the inputs that y (B,) are the labels of.

    `draw(rows, m)` gives m versions of each of these rows, row after row; a pass of the model reads `batch_size` at most.
    """
    found = []
    with tqdm(total=len(y) * n, desc="votes", delay=2) as bar:
        for rows in torch.arange(len(y), device=y.device).split(batch_size):
            votes, left = torch.zeros(1, dtype=torch.long, device=y.device), n
            while left:
                m = min(left, max(1, batch_size // len(rows)))
                logits = logits_of(model, draw(rows, m))
                check_classes(y, logits)
                votes = votes + tally(chosen(logits).view(len(rows), m), logits.shape[1])
                left -= m
                bar.update(m * len(rows))
            found.append(votes)
    return torch.cat(found)


def shares(counts: Tensor, named: Tensor, n: int, alpha: float, bounds: BoundsOf) -> tuple[Tensor, Tensor]:
    """A lower bound of the named class's share and an upper one of the largest other's (B,), of counts (B, K).

    "top" bounds the first and leaves the rest to the other; "both" bounds all classes, half of alpha on each side, which is
    more where the other votes are spread.
    """
    own, classes = counts.gather(1, named[:, None])[:, 0], counts.shape[1]
    if bounds == "top":
        low = lower_share(own, n, alpha)
        return low, 1 - low
    low = lower_share(own, n, alpha / 2)
    others = counts.scatter(1, named[:, None], 0).amax(1)
    return low, torch.minimum(1 - low, upper_share(others, n, alpha / 2 / (classes - 1)))


def check_bounds(bounds: BoundsOf, n: int, alpha: float) -> None:
    """Raises: CertifyError for bounds that do not exist, and for an n at which nothing can be shown."""
    if bounds not in ("top", "both"):
        raise CertifyError(f'expected bounds "top" or "both", got {bounds!r}')
    check_reach(n, alpha if bounds == "top" else alpha / 2)


def chosen(outputs: Tensor) -> Tensor:
    """The class of each row of logits (n, K); -1, a vote for none, where one is not finite."""
    return torch.where(outputs.isfinite().all(1), outputs.argmax(1), -1)


def tally(votes: Tensor, classes: int) -> Tensor:
    """Votes of each class (B, K) among votes (B, n); those for none are left out."""
    return torch.nn.functional.one_hot(votes + 1, classes + 1)[..., 1:].sum(1)
