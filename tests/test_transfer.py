"""Transfer scores against their definitions."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from reprogram.errors import DataError
from reprogram.transfer import log_evidence, logme, prompting_ratio, sliced_wasserstein


@pytest.mark.parametrize("shape", [(30, 5), (12, 40)])
def test_evidence_is_the_density_of_the_targets(shape):
    drawn = np.random.default_rng(0)
    x, y = drawn.standard_normal(shape), drawn.standard_normal(shape[0])

    def density(alpha, beta):
        covariance = x @ x.T / alpha + np.eye(len(x)) / beta
        return multivariate_normal(np.zeros(len(x)), covariance, allow_singular=True).logpdf(y)

    left, spread, _ = np.linalg.svd(x, full_matrices=False)
    found = log_evidence(left.T @ y, y @ y, spread**2, shape, 300)
    best = minimize(lambda logs: -density(*np.exp(logs)), [0.0, 0.0], method="Nelder-Mead", options={"maxiter": 2000})
    assert found == pytest.approx(-best.fun, rel=2e-2)
    assert found <= -best.fun + 1e-6  # the maximum is the maximum


def test_logme_prefers_features_that_tell_the_classes():
    drawn = np.random.default_rng(1)
    y = np.arange(60) % 3
    told = np.eye(3)[y] + 0.2 * drawn.standard_normal((60, 3))
    noise = drawn.standard_normal((60, 3))
    assert logme(told, y) > logme(noise, y)
    assert prompting_ratio(told, noise, y) == -prompting_ratio(noise, told, y) > 0


def test_sliced_wasserstein_of_moved_clouds():
    drawn = np.random.default_rng(2)
    a = drawn.standard_normal((200, 4))
    assert sliced_wasserstein(a, a) == pytest.approx(0, abs=1e-12)
    move = np.array([3.0, 0, 0, 0])
    mean = 4 / (3 * np.pi)  # of |u_1| on the unit sphere of R^4
    assert sliced_wasserstein(a, a + move, projections=4000) == pytest.approx(3 * mean, rel=0.03)
    assert sliced_wasserstein(a[:50], a) < sliced_wasserstein(a[:50], a + move)


@pytest.mark.parametrize(
    "x, y", [(np.zeros((3, 2)), [0, 1]), (np.full((2, 2), np.nan), [0, 1]), (np.zeros(3), [0, 1, 2])]
)
def test_bad_rows_are_one_sentence(x, y):
    with pytest.raises(DataError, match="expected"):
        logme(x, y)
    with pytest.raises(DataError, match="of one width"):
        sliced_wasserstein(np.zeros((2, 3)), np.zeros((2, 4)))
