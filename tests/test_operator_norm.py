"""Norms of linear maps: exact where they can be, never below a direction's gain, never below the dense matrix's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from certify import CertifyError
from certify.engine import operator_norm as module
from certify.engine.operator_norm import NORMS, conv_norm, operator_norm

ORDER = {"linf": math.inf, "l2": 2, "l1": 1}


def dense(function, shape):
    eye = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return (function(eye) - function(torch.zeros_like(eye))).flatten(1).T.detach()


@pytest.mark.parametrize("norm_in", NORMS)
@pytest.mark.parametrize("norm_out", NORMS)
@given(seed=st.integers(0, 2**20), m=st.integers(1, 6), n=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_no_direction_gains_more_and_where_it_can_be_one_gains_as_much(norm_in, norm_out, seed, m, n):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(m, n, generator=generator, dtype=torch.float64)
    bound = operator_norm(a, norm_in, norm_out)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * n).view(-1, n)
    ends = {"linf": corners, "l1": torch.eye(n, dtype=torch.float64), "l2": torch.linalg.svd(a).Vh}[norm_in]
    tried = torch.cat([ends, a, torch.randn(500, n, generator=generator, dtype=torch.float64)])
    gain = torch.linalg.vector_norm(tried @ a.T, ORDER[norm_out], 1) / torch.linalg.vector_norm(
        tried, ORDER[norm_in], 1
    )
    best = float(gain.nan_to_num(0).amax())
    assert best <= bound
    if (norm_in, norm_out) not in {("linf", "l2"), ("linf", "l1"), ("l2", "l1")}:
        assert best == pytest.approx(bound, rel=1e-10)


def test_a_function_has_the_norms_of_its_matrix():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1).double()
    a = dense(conv, (2, 6, 5))
    for norm_in in NORMS:
        for norm_out in NORMS:
            found = operator_norm(conv, norm_in, norm_out, shape=(2, 6, 5))
            assert found == pytest.approx(operator_norm(a, norm_in, norm_out), rel=1e-12)
    assert operator_norm(conv, shape=(2, 6, 5)) == pytest.approx(float(torch.linalg.matrix_norm(a, 2)), rel=1e-12)
    assert all(parameter.grad is None for parameter in conv.parameters())


@pytest.mark.parametrize("flat", [False, True])
def test_what_a_factorisation_proves_is_the_norm(monkeypatch, flat):
    monkeypatch.setattr(module, "EXACT", 8)
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(60, 90, generator=generator, dtype=torch.float64)
    if flat:  # power iteration does not converge where all singular values are alike
        a = torch.linalg.qr(a.T).Q.T * (1 + 1e-3 * torch.linspace(0, 1, 60, dtype=torch.float64))[:, None]
    exact = float(torch.linalg.matrix_norm(a, 2))
    assert exact <= operator_norm(a) <= exact * (1 + 1e-3)


def test_a_wide_map_has_the_schur_bound(monkeypatch):
    monkeypatch.setattr(module, "LIMIT", 4)
    a = torch.randn(9, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    schur = math.sqrt(float(a.abs().sum(0).amax() * a.abs().sum(1).amax()))
    assert float(torch.linalg.matrix_norm(a, 2)) <= operator_norm(a) <= schur * (1 + 1e-12)


@given(
    seed=st.integers(0, 2**20), stride=st.integers(1, 3), padding=st.integers(0, 2), dilation=st.integers(1, 2),
    kernel=st.integers(1, 3), groups=st.sampled_from([1, 2]), side=st.integers(5, 7),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_convolution_is_below_its_torus(seed, stride, padding, dilation, kernel, groups, side):
    torch.manual_seed(seed)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    weight = torch.randn(4, 4 // groups, kernel, kernel, dtype=torch.float64)
    exact = float(torch.linalg.matrix_norm(dense(lambda x: F.conv2d(x, weight, **options), (4, side, side)), 2))
    found = conv_norm(weight, (side, side), **options)
    taps = weight.view(groups, 4 // groups, 4 // groups, -1).permute(0, 3, 1, 2)
    shifts = (
        torch.linalg.matrix_norm(taps, 2).sum(1).amax()
    )  # a circular convolution is a sum of shifts, one for each tap
    assert exact <= found <= float(shifts) * (1 + 1e-9)


def test_a_circular_convolution_is_exact_and_so_is_its_adjoint():
    torch.manual_seed(0)
    weight = torch.randn(3, 2, 3, dtype=torch.float64)
    circular = dense(lambda x: F.conv1d(F.pad(x, (0, 2), mode="circular"), weight), (2, 8))
    assert conv_norm(weight, [8]) == pytest.approx(float(torch.linalg.matrix_norm(circular, 2)), rel=1e-12)
    turned = nn.ConvTranspose2d(3, 2, 3, stride=2).double()
    exact = float(torch.linalg.matrix_norm(dense(turned, (3, 4, 4)), 2))
    assert exact <= conv_norm(turned.weight, (9, 9), stride=2) <= 1.2 * exact


@pytest.mark.parametrize("call, words", [
    (lambda: operator_norm(torch.ones(2, 2), "l3"), "norms among linf, l2, l1, got 'l3'"),
    (lambda: operator_norm(torch.ones(2)), "a matrix"),
    (lambda: operator_norm(nn.Linear(2, 2)), "pass shape="),
    (lambda: operator_norm(torch.full((2, 2), math.nan)), "finite"),
    (lambda: conv_norm(torch.full((2, 2, 1), math.inf), [3]), "finite"),
])  # fmt: skip
def test_bad_input(call, words):
    with pytest.raises(CertifyError, match=words):
        call()
