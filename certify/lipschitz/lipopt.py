r"""LiPopt: the steepest a small network can be in linf, as a polynomial of its slopes whose largest value a linear program bounds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import combinations_with_replacement, product

from certify.errors import CertifyError
from certify.lipschitz.segments import Chain

Monomial = tuple[int, ...]  # its variables in order, each as often as its power
Polynomial = dict[Monomial, float]
LIMIT = 400_000  # products in one program


def lipopt(network: Chain, degree: int | None = None) -> float:
    r"""An upper bound of $\max\|\nabla f\|_1$ of a chain with one output: its Lipschitz constant in linf.

    The gradient along t in $[-1, 1]^n$ is $p = t^TW_1^T\mathrm{diag}(s_1)W_2^T\cdots w$ with slopes s in their ranges, so all
    variables are numbers z in [0, 1]. The bound is the smallest $\lambda$ with
    $\lambda - p = \sum_{ab} c_{ab} \prod_i z_i^{a_i}(1 - z_i)^{b_i}$, $c \ge 0$, over products of at most `degree` factors (Krivine). Factors share
    a product only where they belong to one unit of the last hidden layer and what feeds it.

    What the solver leaves of this identity is a polynomial; the sum of its coefficients' sizes is added, so that the
    result holds whatever the solver's tolerance.

    Args:
        degree: of the products; the number of layers, the least that there is, by default. More is tighter and much larger.

    Reference: Latorre, Rolland & Cevher, "Lipschitz constant estimation of neural networks via sparse polynomial
    optimization", ICLR 2020, arXiv:2004.08688.
    Raises: CertifyError for a degree below the depth and for a network with too many products.
    """
    if not network.slopes:
        return float(network.weights[0].abs().sum()) * (1 + 1e-12)
    depth = len(network.weights)
    degree = depth if degree is None else degree
    if degree < depth:
        raise CertifyError(f"expected a degree of at least the {depth} layers, got {degree}")
    sizes = [network.weights[0].shape[1], *(len(weight) for weight in network.weights[:-1])]
    firsts = [sum(sizes[:k]) for k in range(len(sizes))]
    shared = list(range(firsts[-1]))
    count = sizes[-1] * math.comb(2 * (len(shared) + 1) + degree, degree)
    if count > LIMIT:
        raise CertifyError(
            f'expected at most {LIMIT} products for LiPopt, got {count} of degree {degree}; use method="local" or "product"'
        )
    p = gradient(network, firsts)
    scale = max(map(abs, p.values()), default=0.0)
    if scale == 0:
        return 0.0
    p = {monomial: value / scale for monomial, value in p.items()}
    products: dict[tuple[Monomial, Monomial], Polynomial] = {}
    for unit in range(firsts[-1], firsts[-1] + sizes[-1]):
        products.update(within([*shared, unit], degree))
    products.pop(((), ()), None)
    return least(p, list(products.values())) * scale * (1 + 1e-12)


def gradient(network: Chain, firsts: list[int]) -> Polynomial:
    """p as a polynomial of z: t = 2z − 1, and each slope goes from the least to the largest."""
    ends = [(-1.0, 1.0), *network.slopes]
    paths = product(*(range(weight.shape[1]) for weight in network.weights))
    weights, found = [weight.tolist() for weight in network.weights], Counter()
    for path in paths:
        value = weights[-1][0][path[-1]]
        for weight, here, after in zip(weights, path, path[1:], strict=False):
            value *= weight[after][here]
        for chosen in product((False, True), repeat=len(path)) if value else ():
            factor, names = value, []
            for first, place, (low, high), taken in zip(firsts, path, ends, chosen, strict=True):
                factor *= high - low if taken else low
                names += [first + place] if taken else []
            if factor:
                found[tuple(names)] += factor
    return dict(found)


def within(variables: list[int], degree: int) -> Iterator[tuple[tuple[Monomial, Monomial], Polynomial]]:
    """Products of at most so many factors z and 1 − z, by their factors, as polynomials."""
    factors = [(variable, side) for variable in variables for side in (False, True)]
    for size in range(degree + 1):
        for chosen in combinations_with_replacement(factors, size):
            plain = tuple(variable for variable, side in chosen if not side)
            other = tuple(variable for variable, side in chosen if side)
            found: Counter[Monomial] = Counter()
            for taken in product((False, True), repeat=len(other)):
                extra = tuple(variable for variable, kept in zip(other, taken, strict=True) if kept)
                found[tuple(sorted(plain + extra))] += (-1.0) ** len(extra)
            yield (plain, other), dict(found)


def least(p: Polynomial, products: list[Polynomial]) -> float:
    """The smallest λ, with what the identity is off by."""
    import numpy as np
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    index = {(): 0}
    for polynomial in (p, *products):
        for monomial in polynomial:
            index.setdefault(monomial, len(index))
    entries = [(index[m], j, v) for j, polynomial in enumerate(products) for m, v in polynomial.items() if v]
    rows, columns, values = (np.array(part) for part in zip(*entries, strict=True))
    matrix = coo_array((values, (rows, columns)), shape=(len(index), len(products))).tocsr()
    goal = np.zeros(len(index))
    for monomial, value in p.items():
        goal[index[monomial]] = value
    # λ is the constant of p + Σ c·product, all other coefficients of which vanish
    cost, rest, right = matrix[[0]].toarray()[0], matrix[1:], -goal[1:]
    solution = linprog(cost, A_eq=rest, b_eq=right, bounds=(0, None), method="highs")
    c = np.zeros(len(products)) if solution.x is None else np.clip(np.nan_to_num(solution.x), 0, None)
    left = matrix @ c + goal
    rounding = 1e-15 * (len(index) + len(products)) * float((abs(matrix) @ c + abs(goal)).sum())
    return float(left[0] + np.abs(left[1:]).sum() + rounding)
