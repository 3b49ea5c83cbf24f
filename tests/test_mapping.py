"""Output maps against closed forms and independent libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

import reprogram as rp
from reprogram.kernels import KERNELS
from reprogram.readout import calibrate, condition, folds, negative_log_evidence, solve_linear, stack_weights


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator)
    y = (x[:, :1] * 3 - x[:, 1:2] + 0.1 * torch.randn(40, 1, generator=generator)) * 7 + 100
    return x, y


def posterior(kernel, x, y, new, noise):
    inverse = np.linalg.inv(kernel(x, x) + noise * np.eye(len(x)))
    return kernel(new, x) @ inverse @ y


def test_gaussian_process_equals_scikit_learn(data):
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    x, y = data
    gp = rp.GaussianProcess(6, kernels=("matern",), tune=False)
    with torch.no_grad():
        gp.log_amplitude.fill_(0.3), gp.log_length.fill_(0.2), gp.log_noise.fill_(-1.5)
    gp.prepare(x, y)
    gp.refit(x, y)
    z = gp.select(x).numpy()
    # ours measures distance per dimension: a length l here is l * sqrt(D) there
    kernel = ConstantKernel(np.exp(0.3)) * Matern(np.exp(0.2) * np.sqrt(6), nu=1.5) + WhiteKernel(
        float(gp.noise.detach())
    )
    theirs = GaussianProcessRegressor(kernel, optimizer=None, alpha=0).fit(z, gp.targets(y).numpy()[:, 0])
    new = torch.randn(10, 6)
    expected = theirs.predict(gp.select(new).numpy()) * float(gp.scale) + float(gp.center)
    assert np.allclose(gp(new)[:, 0].detach().numpy(), expected, rtol=2e-4)  # the support is kept in half precision
    evidence = negative_log_evidence(gp.kernel(gp.select(x), gp.select(x)), gp.noise, gp.targets(y)) + 20 * np.log(
        2 * np.pi
    )
    assert np.isclose(float(evidence.detach()), -theirs.log_marginal_likelihood_value_, rtol=1e-6)


def test_evidence_is_the_density_and_masks_rows(data):
    x, y = data
    gp = rp.GaussianProcess(6)
    gp.prepare(x, y)
    covariance = gp.kernel(gp.select(x), gp.select(x)).detach()
    both = torch.cat([gp.targets(y), gp.targets(y)], 1)
    both[:7, 1] = float("nan")
    ours = float(negative_log_evidence(covariance, gp.noise.detach(), both))
    c = (covariance + gp.noise.detach() * torch.eye(40)).numpy()
    truth = sum(
        -multivariate_normal.logpdf(both[rows, t].numpy(), cov=c[np.ix_(rows, rows)])
        - len(rows) / 2 * np.log(2 * np.pi)
        for t, rows in ((0, np.arange(40)), (1, np.arange(7, 40)))
    )
    assert np.isclose(ours, truth, rtol=1e-8)


def test_leave_one_out_equals_brute_force(data):
    x, y = data
    gp = rp.GaussianProcess(6)
    gp.prepare(x, y)
    x, targets, noise = gp.select(x), gp.targets(y), gp.noise.detach()
    with torch.no_grad():
        _, fast = condition(gp.kernel, x, torch.arange(40), noise, targets)
        for i in (0, 13, 39):
            rest = torch.tensor([j for j in range(40) if j != i])
            dual, _ = condition(gp.kernel, x[rest], torch.arange(39), noise, targets[rest])
            assert torch.allclose(gp.kernel(x[i : i + 1], x[rest]) @ dual, fast[i : i + 1], atol=1e-8)


def test_subset_of_regressors_meets_the_exact_process(data):
    """With every row a landmark the approximation is the exact posterior; its leave-one-out uses the same residuals."""
    x, y = data
    gp = rp.GaussianProcess(6, kernels=("matern",))
    gp.prepare(x, y)
    x, targets, noise = gp.select(x), gp.targets(y), gp.noise.detach()
    with torch.no_grad():
        exact, left = condition(gp.kernel, x, torch.arange(40), noise, targets)
        rows = torch.arange(39)  # one row fewer takes the other branch
        near, left_near = condition(gp.kernel, x, rows, noise, targets)
        a, b = gp.kernel(x, x) @ exact, gp.kernel(x, x[rows]) @ near
    assert (a - b).abs().max() < 0.3 and (left - left_near).abs().max() < 0.3


def test_tanimoto_equals_rdkit():
    from rdkit import DataStructs
    from rdkit.Chem import MolFromSmiles
    from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

    generator = GetMorganGenerator(radius=2, fpSize=2048)
    molecules = [MolFromSmiles(s) for s in ("CCO", "CCN", "c1ccccc1O", "CC(=O)Oc1ccccc1C(=O)O")]
    bits = torch.tensor(np.stack([generator.GetFingerprintAsNumPy(m) for m in molecules]).astype(float))
    ours = KERNELS["tanimoto"](bits, bits, torch.ones(()))
    prints = [generator.GetFingerprint(m) for m in molecules]
    theirs = [[DataStructs.TanimotoSimilarity(a, b) for b in prints] for a in prints]
    assert np.allclose(ours.numpy(), theirs)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_positive_semidefinite_with_finite_gradients(name):
    a = torch.rand(20, 5, dtype=torch.float64).requires_grad_(True)
    value = KERNELS[name](a, a, torch.tensor(0.7))
    assert torch.linalg.eigvalsh(value.detach()).min() > -1e-9
    (gradient,) = torch.autograd.grad(value.sum(), a)
    assert gradient.isfinite().all()


def test_ridge_is_scikit_learns(data):
    from sklearn.linear_model import RidgeCV

    x, y = data
    probe = rp.LinearMap(6, ridge=True).refit(x, y)
    z = probe.scaler(x).double().numpy()
    theirs = RidgeCV(np.logspace(-1, 5, 13)).fit(z, y[:, 0].double().numpy())
    assert np.allclose(probe(x)[:, 0].detach().numpy(), theirs.predict(z), rtol=1e-4)


@pytest.mark.parametrize("classes", [2, 4])
def test_logistic_probe_gives_the_probabilities_of_scikit_learn(classes):
    x = torch.randn(120, 5, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] * 2 + x[:, 1]).argsort().argsort() * classes // 120
    probe = rp.LinearMap(5, classes, kind="classification", ridge=True).refit(x, y)
    p = probe(x).softmax(-1).detach()
    assert (p.argmax(1) == y).float().mean() > (0.85 if classes == 2 else 0.6)
    if classes == 2:
        z = probe.scaler(x)
        weight, bias = solve_linear("multilabel", 1, z, y[:, None].float(), torch.zeros(1), torch.ones(1))
        assert torch.allclose(p[:, 1], torch.sigmoid(z @ weight[0] + bias[0]), atol=1e-5)


@pytest.mark.parametrize("kind, outputs", [("regression", 1), ("classification", 3), ("multilabel", 2)])
def test_forest_map_equals_scikit_learn(kind, outputs):
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    x = torch.randn(150, 8, generator=torch.Generator().manual_seed(2))
    value = x[:, 0] * 2 + torch.sin(3 * x[:, 1])
    y = {
        "regression": value[:, None],
        "classification": (value > 0).long() + (value > 1).long(),
        "multilabel": torch.stack([(value > 0).float(), (value > 1).float()], 1),
    }[kind]
    forest = rp.ForestMap(8, outputs, kind=kind).refit(x[:100], y[:100])
    trees, leaves = forest.size()
    if kind == "regression":
        theirs = RandomForestRegressor(trees, max_features=1 / 3, max_leaf_nodes=leaves, random_state=0)
        expected = theirs.fit(x[:100].numpy(), y[:100, 0].numpy()).predict(x.numpy())[:, None]
        ours = forest(x).numpy()
    else:
        columns = [y] if kind == "classification" else [y[:, 0], y[:, 1]]
        fits = [
            RandomForestClassifier(trees, max_leaf_nodes=leaves, random_state=0).fit(
                x[:100].numpy(), c[:100].long().numpy()
            )
            for c in columns
        ]
        expected = (
            fits[0].predict_proba(x.numpy())
            if kind == "classification"
            else np.stack([f.predict_proba(x.numpy())[:, 1] for f in fits], 1)
        )
        ours = forest(x).softmax(-1).numpy() if kind == "classification" else forest(x).sigmoid().numpy()
        expected = np.clip(expected, 1e-3, 1 - 1e-3)
        expected = expected / expected.sum(1, keepdims=True) if kind == "classification" else expected
    assert np.allclose(ours, expected, atol=1e-5 if kind == "regression" else 1e-3)  # probabilities are kept in 16 bits


@pytest.mark.parametrize(
    "kind, outputs", [("regression", 30), ("classification", 2), ("classification", 30), ("multilabel", 30)]
)
def test_a_forest_stays_small_whatever_it_predicts(kind, outputs):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(600, 5, generator=generator), torch.rand(600, outputs, generator=generator)
    y = y if kind == "regression" else y.argmax(1) if kind == "classification" else y.round()
    forest = rp.ForestMap(5, outputs, kind=kind).refit(x, y)
    assert sum(b.numel() * b.element_size() for b in forest.buffers()) < 2.2e6
    assert len(forest.feature[0]) >= 50


def test_a_forest_is_sure_of_one_class_among_many():
    x, y = torch.eye(40).repeat(8, 1), torch.arange(40).repeat(8)
    assert (rp.ForestMap(40, 40, kind="classification").refit(x, y)(x).softmax(1).gather(1, y[:, None]) > 0.95).all()


def test_tiny_and_huge_units_are_units_too():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    y = x[:, :1] + 2
    for scale in (1e-8, 1e8):
        ridge = rp.LinearMap(3, ridge=True).refit(x * scale, y * 1e20)
        assert torch.allclose(ridge(x * scale) / 1e20, y, atol=0.05)


def test_stack_weights_are_convex_and_find_the_good_member():
    generator = np.random.default_rng(0)
    y = generator.normal(size=200)
    members = np.stack(
        [y + 0.1 * generator.normal(size=200), y + generator.normal(size=200), generator.normal(size=200)], 1
    )
    weights = stack_weights(members, y, shrink=0.0)
    assert np.isclose(weights.sum(), 1) and (weights >= 0).all() and weights[0] > 0.9
    assert np.allclose(stack_weights(members, y, shrink=1.0, tolerance=1e9), 1 / 3)
    assert np.isclose(stack_weights(np.stack([y * 0, y * 0], 1), y).sum(), 1)


@pytest.mark.parametrize("kind", ["regression", "classification", "multilabel"])
def test_folds_hold_every_row_once(kind):
    y = torch.tensor([0, 1] * 15 + [0] * 7)
    y = y if kind == "classification" else y[:, None].float()
    tests = torch.cat([test for _, test in folds(kind, y, 4, 0)])
    assert sorted(tests.tolist()) == list(range(37))
    assert all(not set(a.tolist()) & set(b.tolist()) for a, b in folds(kind, y, 4, 0))


def test_stack_leaves_out_rows_that_a_fold_could_not_predict():
    y = np.arange(20.0)
    members = np.stack([y, y[::-1]], 1)
    expected = stack_weights(members[3:], y[3:])
    members[:3, 1] = np.nan
    assert np.allclose(stack_weights(members, y), expected)
    assert np.allclose(stack_weights(members * np.nan, y), 0.5)


def solved_readouts(x, y):
    """Every closed-form map for labels, solved."""
    options = {"kind": "multilabel"}
    for mapping in (
        rp.LinearMap(3, 2, ridge=True, **options),
        rp.GaussianProcess(3, 2, **options),
        rp.ForestMap(3, 2, **options),
    ):
        mapping.prepare(x, y)
        yield mapping.refit(x, y)


def test_a_label_unseen_in_a_fold_is_no_prediction():
    x, y = torch.randn(12, 3), torch.full((12, 2), torch.nan)
    y[:, 0] = torch.arange(12) % 2.0
    for mapping in solved_readouts(x, y):
        assert mapping(x)[:, 0].isfinite().all() and mapping(x)[:, 1].isnan().all()


def test_rare_and_absent_classes_keep_their_share():
    x, y = torch.randn(25, 3), torch.zeros(25, dtype=torch.long)
    y[0] = 1
    for outputs in (2, 3):
        probe = rp.LinearMap(3, outputs, kind="classification", ridge=True).refit(x, y)
        share = probe(x).softmax(-1).mean(0).detach()
        assert share[1] == pytest.approx(1.5 / 26.0, abs=0.03) and (share > 0.005).all()


def test_tanimoto_refuses_what_are_no_counts():
    gp = rp.GaussianProcess(4, kernels=("tanimoto",))
    with pytest.raises(rp.DataError, match="counts"):
        gp.prepare(torch.rand(6, 4), torch.rand(6, 1))
    large = torch.tensor([[300.0, 1, 0, 2], [10, 1, 0, 2], [0, 0, 3, 1], [1, 0, 3, 0]])
    gp.prepare(large, torch.tensor([[1.0], [2], [3], [4]]))
    gp.refit(large, torch.tensor([[1.0], [2], [3], [4]]))
    assert torch.equal(gp(large), gp(large.clamp(max=255)))


def test_calibration_repairs_overconfident_scores():
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(2000, 2, generator=generator)
    y = torch.multinomial(logit.softmax(1), 1, generator=generator)[:, 0]
    slope, offset = calibrate("classification", logit.double() * 5, y)
    assert torch.allclose(slope, torch.full((2,), 0.2), atol=0.03) and offset.abs().max() < 0.2


def test_a_label_seen_in_one_value_only_stays_finite():
    x = torch.randn(12, 3)
    y = torch.stack([torch.ones(12), torch.arange(12) % 2.0], 1)
    for mapping in solved_readouts(x, y):
        assert mapping(x).isfinite().all()
        assert (mapping(x)[:, 0] > 0).all()
