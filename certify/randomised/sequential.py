r"""Bounds of a probability from counts, and when to look at the counts so that all bounds together fail as seldom as one.

A sample's draws are looked at after 64, 128, 256, … and at last after all n of them. An interval of each look fails with
probability $\alpha_j$, and $\sum_j \alpha_j = \alpha$; so with probability $1 - \alpha$ none of them fails, whichever
look ended the sampling. Half of alpha goes to the last look, the rest in equal parts to those before it.

Giving up needs no such care: a sample that is given up loses a claim, and what is not claimed cannot be wrong. So the upper
bounds that show that there is no hope are free, and a sample whose only claim is made after all n draws keeps all of alpha.

References: Clopper & Pearson, Biometrika 1934; sequential certification with a split of alpha: Horváth, Müller, Fischer &
Vechev, ICLR 2022, arXiv:2106.06946.
"""

from __future__ import annotations

from itertools import takewhile

import numpy as np

FIRST = 64


def lower_bound(hits: np.ndarray, n: int, alpha: float | np.ndarray) -> np.ndarray:
    """Clopper and Pearson's one-sided lower bound of a probability of which `hits` of n draws are known; 0 for alpha 0."""
    from scipy.stats import beta

    hits, alpha = np.asarray(hits), np.asarray(alpha)
    some = (hits > 0) & (alpha > 0)
    return np.where(some, beta.ppf(np.where(some, alpha, 0.5), np.maximum(hits, 1), n - hits + 1), 0.0)


def upper_bound(hits: np.ndarray, n: int, alpha: float | np.ndarray) -> np.ndarray:
    """The upper bound that goes with it; 1 for alpha 0."""
    return 1 - lower_bound(n - np.asarray(hits), n, alpha)


def looks_of(n: int, alpha: float) -> dict[int, float]:
    """After how many draws to look, and what each look's interval may fail by."""
    early = list(takewhile(lambda count: count < n, (FIRST << k for k in range(64))))
    if not early:
        return {n: alpha}
    return {count: alpha / 2 / len(early) for count in early} | {n: alpha / 2}


def draws_for(p: float, alpha: float) -> int:
    """How many draws, all of them hits, it takes for a lower bound above p."""
    return int(np.floor(np.log(alpha) / np.log(p))) + 1
