"""Predictive values against Bayes' rule, simulation and published examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from normscan.errors import ArgumentError
from normscan.metrics.predictive import decision_metrics, proportion, shift_prevalence


def counted(tp, fp, fn, tn):
    decisions = np.repeat([1, 1, 0, 0], [tp, fp, fn, tn])
    return decisions, np.repeat([1, 0, 1, 0], [tp, fp, fn, tn])


def test_likelihood_ratios_of_a_published_example():
    # Canadian Medical Association Journal tutorial on likelihood ratios (PMC2517891, table 5).
    for cells, published in (
        ((20, 15, 10, 55), (3.1, 1.9, 5.2, 0.42, 0.25, 0.71)),
        ((15, 5, 8, 52), (7.4, 3.0, 18.0, 0.38, 0.22, 0.67)),
    ):
        found = decision_metrics(*counted(*cells))
        plus, minus = found.lr_positive, found.lr_negative
        values = [plus.value, plus.low, plus.high, minus.value, minus.low, minus.high]
        np.testing.assert_allclose(values, published, rtol=0.025)


def test_predictive_values_follow_bayes_and_monte_carlo():
    found = decision_metrics(*counted(240, 87, 178, 288), prevalence=0.03)
    se, sp = 240 / 418, 288 / 375
    assert found.ppv.value == pytest.approx(0.03 * se / (0.03 * se + 0.97 * (1 - sp)))
    assert found.npv.value == pytest.approx(0.97 * sp / (0.97 * sp + 0.03 * (1 - se)))
    assert found.flagged.value == pytest.approx(0.03 * se + 0.97 * (1 - sp))
    rng = np.random.default_rng(0)
    a, b = rng.beta(240.5, 178.5, 200_000), rng.beta(288.5, 87.5, 200_000)
    drawn = {
        "ppv": 0.03 * a / (0.03 * a + 0.97 * (1 - b)),
        "npv": 0.97 * b / (0.97 * b + 0.03 * (1 - a)),
        "lr_positive": a / (1 - b),
        "lr_negative": (1 - a) / b,
        "flagged": 0.03 * a + 0.97 * (1 - b),
    }
    for name, values in drawn.items():
        estimate = getattr(found, name)
        expected = np.quantile(values, [0.025, 0.975])
        np.testing.assert_allclose([estimate.low, estimate.high], expected, rtol=0.012)
    own = decision_metrics(*counted(240, 87, 178, 288))
    assert own.ppv.value == pytest.approx(240 / 327) and own.prevalence == 418 / 793


def test_empty_cells_one_class_and_repeated_scans():
    found = decision_metrics(*counted(20, 0, 5, 40), prevalence=0.1)
    assert found.ppv.value == 1 and 0 < found.ppv.low < 1 and "empty" in found.ppv.reason
    assert math.isinf(found.lr_positive.value) and math.isfinite(found.lr_positive.low)
    healthy = decision_metrics([0, 1, 0], [0, 0, 0])
    assert math.isnan(healthy.ppv.low) and healthy.specificity.low > 0
    assert math.isnan(healthy.sensitivity.value)
    decisions, labels = counted(20, 6, 5, 40)
    thrice = decision_metrics(np.tile(decisions, 3), np.tile(labels, 3), np.tile(np.arange(71), 3))
    naive = decision_metrics(np.tile(decisions, 3), np.tile(labels, 3))
    once = decision_metrics(decisions, labels)
    assert thrice.sensitivity.method == "bca" and thrice.sensitivity.value == 0.8
    width = {
        k: v.sensitivity.high - v.sensitivity.low
        for k, v in {"thrice": thrice, "naive": naive, "once": once}.items()
    }
    assert width["naive"] < 0.7 * width["once"] and abs(width["thrice"] / width["once"] - 1) < 0.2
    with pytest.raises(ArgumentError, match="prevalence"):
        decision_metrics(decisions, labels, prevalence=1.0)


def test_one_false_alarm_of_repeated_scans():
    """Without that subject the likelihood ratio is infinite, which no interval may end on."""
    labels = np.r_[np.zeros(20), np.ones(20)].astype(int)
    flagged = np.zeros(40, int)
    flagged[[0, *range(20, 34)]] = 1
    some = decision_metrics(flagged, labels, np.arange(40) // 2)
    ratio = some.lr_positive
    assert ratio.method == "percentile" and ratio.low <= ratio.value and ratio.high == np.inf
    none = decision_metrics(flagged & labels, labels, np.arange(40) // 2)
    assert none.lr_positive.value == np.inf and none.lr_positive.method == "none"
    for found in (some, none):
        assert 0 < found.sensitivity.low < 0.7 < found.sensitivity.high < 1


def test_proportions_are_wilson_and_clopper_pearson():
    wilson, exact = proportion(10, 20), proportion(10, 20, "exact")
    np.testing.assert_allclose([wilson.low, wilson.high], [0.299, 0.701], atol=5e-4)
    expected = [stats.beta.ppf(0.025, 10, 11), stats.beta.ppf(0.975, 11, 10)]
    np.testing.assert_allclose([exact.low, exact.high], expected, rtol=1e-9)
    assert math.isnan(proportion(0, 0).value)
    with pytest.raises(ArgumentError, match="successes"):
        proportion(3, 2)


@given(st.floats(0, 1), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_shifted_probabilities_keep_the_likelihood_ratio(p, prevalence, target):
    moved = float(shift_prevalence(p, prevalence, target))
    assert 0 <= moved <= 1
    back = float(shift_prevalence(moved, target, prevalence))
    assert back == pytest.approx(p, abs=1e-9)
    if 0.001 < p < 0.999:
        odds = (p / (1 - p)) / (prevalence / (1 - prevalence))
        assert moved / (1 - moved) == pytest.approx(odds * target / (1 - target), rel=1e-6)


def test_nothing_flagged_in_several_scans_a_subject():
    """The bound is that of the subjects; resamples alone would say 0 to 0."""
    subjects = [f"s{i // 3}" for i in range(60)]
    labels = np.array([i // 3 < 8 for i in range(60)], int)
    found = decision_metrics(np.zeros(60), labels, subjects, replicates=50)
    bounds = {"sensitivity": (0, 8), "specificity": (12, 12)}
    for name, (successes, trials) in bounds.items():
        interval = getattr(found, name)
        expected = stats.binomtest(successes, trials).proportion_ci(0.95, "exact")
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
        assert interval.value == successes / trials and interval.n == trials and interval.reason
    assert found.false_alarms.high == pytest.approx(1 - expected.low)


def test_an_interval_holds_its_value_where_a_cell_is_empty():
    found = decision_metrics([1] * 8 + [0] * 12, [1] * 8 + [0] * 12)
    for name in ("ppv", "npv", "lr_negative"):
        interval = getattr(found, name)
        assert interval.low <= interval.value <= interval.high
    assert found.ppv.value == 1 and found.ppv.low < 0.8
