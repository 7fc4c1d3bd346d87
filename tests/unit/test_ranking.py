"""Ranks over data sets and Holm's correction against Demšar's article, scipy and statsmodels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from normscan.errors import ArgumentError
from normscan.metrics.comparisons import holm, rank_methods


def test_holm_worked_example_and_ties():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    # statsmodels 0.15 multipletests(..., method="holm").
    given_p = [0.0001, 0.51, 0.0004, 0.012, 0.0019, 0.03, 0.03, 0.9]
    expected = [0.0008, 1.0, 0.0028, 0.06, 0.0114, 0.12, 0.12, 1.0]
    np.testing.assert_allclose(holm(given_p), expected)
    np.testing.assert_allclose(holm([math.nan, 0.02, 0.5]), [math.nan, 0.04, 0.5])
    assert holm([]).size == 0


def test_critical_differences_are_those_of_demsar():
    # Demšar 2006, table 5a, alpha 0.05 and 0.10, k = 2..10; his example has k = 4 on 14 sets.
    tables = {
        0.05: [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164],
        0.10: [1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920],
    }
    rng = np.random.default_rng(0)
    for alpha, row in tables.items():
        for k, q in enumerate(row, start=2):
            found = rank_methods(rng.random((14, k)), [str(i) for i in range(k)], alpha=alpha)
            q_found = found.critical_difference / math.sqrt(k * (k + 1) / (6 * 14))
            assert abs(q_found - q) < 1.1e-3
    assert abs(rank_methods(rng.random((14, 4)), "abcd").critical_difference - 1.25) < 5e-3


def test_ranks_of_demsars_example():
    # Table 6: AUC of four variants of C4.5. The tie in row 13 comes from printing three digits:
    # the article ranks its third method second and its fourth third.
    text = """.763 .768 .771 .798 .599 .591 .590 .569 .954 .971 .968 .967 .628 .661 .654 .657
        .882 .888 .886 .898 .936 .931 .916 .931 .661 .668 .609 .685 .583 .583 .563 .625
        .775 .838 .866 .875 1 1 1 1 .940 .962 .965 .962 .619 .666 .614 .669
        .972 .981 .9751 .975 .957 .978 .946 .970"""
    table = np.array(text.split(), dtype=float).reshape(14, 4)
    found = rank_methods(table, ["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"], alpha=0.10)
    assert found.methods == ("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5")
    np.testing.assert_allclose(found.mean_ranks, [1.964, 2.000, 2.893, 3.143], atol=5e-4)
    uncorrected = 12 * 14 / (4 * 5) * (np.sum(found.mean_ranks**2) - 4 * 25 / 4)
    assert uncorrected == pytest.approx(9.28, abs=5e-3) and found.chi_square > uncorrected
    assert found.critical_difference == pytest.approx(1.12, abs=5e-3)
    # At 0.10 C4.5 differs from C4.5+m and C4.5+m+cf, C4.5+cf from neither.
    assert found.groups == ((0, 2), (2, 3))


@given(st.integers(0, 10**6), st.sampled_from([None, 1]))
@settings(max_examples=20)
def test_friedman_equals_scipy_with_ties(seed, digits):
    table = np.random.default_rng(seed).random((9, 4))
    table = table if digits is None else np.round(table, digits)
    found = rank_methods(table, "abcd")
    expected = stats.friedmanchisquare(*table.T)
    np.testing.assert_allclose([found.chi_square, found.chi_square_p], expected, rtol=1e-9)
    assert found.f_statistic == pytest.approx(8 * found.chi_square / (27 - found.chi_square))
    assert (np.diff(found.mean_ranks) >= 0).all() and found.mean_ranks.sum() == pytest.approx(10)


def test_bars_join_what_does_not_differ():
    table = np.arange(5.0) * -1 + np.zeros((30, 1))
    table[::3, :2] = table[::3, 1::-1]
    found = rank_methods(table, "abcde", alpha=0.05)
    assert found.methods == tuple("abcde") and math.isinf(found.f_statistic) is False
    inside = np.abs(np.subtract.outer(found.mean_ranks, found.mean_ranks))
    differ = inside > found.critical_difference
    np.testing.assert_array_equal(differ, found.p_values < 0.05)
    for i, j in itertools.combinations(range(5), 2):
        joined = any(first <= i and j <= last for first, last in found.groups)
        assert joined != differ[i, j]
    low = rank_methods(-table, "abcde", higher_is_better=False)
    assert low.methods == found.methods
    with pytest.raises(ArgumentError, match="1 are NaN"):
        rank_methods([[1, math.nan], [1, 2]], "ab")
