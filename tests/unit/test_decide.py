"""Healthy-only thresholds: exact rules, stated rates, brute force and simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from normscan.decide import PixelThreshold, ScanThreshold
from normscan.errors import ArgumentError

LEVELS = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.25, 1.0, math.inf])
SCORES = st.lists(LEVELS, min_size=1, max_size=60)
RATES = st.sampled_from([0.01, 0.05, 0.1, 0.29, 0.5, 0.99])


@given(SCORES, RATES, LEVELS)
def test_decision_is_the_conformal_p_value(scores, fpr, score):
    rule = ScanThreshold.fit(scores, fpr)
    n = len(scores)
    p = (1 + sum(healthy >= score for healthy in scores)) / (n + 1)
    assert rule.p_value(score) == p
    assert rule.is_anomalous(score) == (score > rule.threshold) == (p <= rule.expected_fpr)
    # Never more than the wanted share of the validation scans themselves.
    assert sum(rule.is_anomalous(s) for s in scores) <= max(0, fpr * (n + 1) - 1 + 1e-9)
    assert rule.threshold == sorted(scores)[n - rule.rank]
    assert rule.certified == (rule.expected_fpr <= fpr + 1e-12)


@given(SCORES, RATES)
def test_scan_threshold_round_trip_is_strict_json(scores, fpr):
    rule = ScanThreshold.fit([s / 3 for s in scores], fpr)
    again = ScanThreshold.from_dict(json.loads(json.dumps(rule.to_dict(), allow_nan=False)))
    assert again.to_dict() == rule.to_dict()
    np.testing.assert_array_equal(again.scores, rule.scores)


@pytest.mark.parametrize(
    ("n", "fpr", "rank"),
    [(19, 0.05, 1), (39, 0.05, 2), (38, 0.05, 1), (99, 0.29, 29), (5, 0.05, 1)],
)
def test_rank(n, fpr, rank):
    rule = ScanThreshold.fit(np.arange(n), fpr)
    assert rule.rank == rank and rule.threshold == n - rank


def test_too_few_scans_are_named():
    few, enough = ScanThreshold.fit(np.arange(18)), ScanThreshold.fit(np.arange(19))
    assert not few.certified and few.needed == 19 and "at least 19" in few.describe()
    assert enough.certified and "needed" not in enough.describe()
    assert ScanThreshold.fit([1.0], 0.03).needed == 33


def test_false_positive_rate_is_beta_distributed():
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(3000):
        rule = ScanThreshold.fit(rng.random(60), 0.1)
        rates.append(1 - rule.threshold)  # the exact rate for uniform scores
    np.testing.assert_allclose(np.mean(rates), rule.expected_fpr, rtol=0.03)
    low, high = rule.fpr_interval()
    assert abs(np.mean(np.array(rates) < low) - 0.025) < 0.01
    assert abs(np.mean(np.array(rates) > high) - 0.025) < 0.01
    assert stats.kstest(rates, stats.beta(rule.rank, rule.n - rule.rank + 1).cdf).pvalue > 0.01


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_p_values_are_valid_and_with_ties_conservative(decimals):
    rng = np.random.default_rng(1)
    drawn = rng.normal(size=(4000, 40))
    if decimals is not None:
        drawn = np.round(drawn, decimals)
    p = np.array([ScanThreshold(row[:-1]).p_value(row[-1]) for row in drawn])
    for level in (0.025, 0.05, 0.1, 0.3, 0.5):
        assert np.mean(p <= level) <= level + 3 * math.sqrt(level / 4000)
    if decimals is None:
        assert abs(np.mean(p <= 0.25) - 0.25) < 0.03


def test_subjects_stand_with_their_highest_score():
    rule = ScanThreshold.fit([1.0, 5.0, 2.0, 3.0], 0.4, subjects=["a", "a", "b", "c"])
    assert rule.scores.tolist() == [2.0, 3.0, 5.0] and rule.n == 3
    with pytest.raises(ArgumentError, match="4 scores came with 1 subjects"):
        ScanThreshold.fit(np.arange(4), subjects=["a"])


def test_constant_scores_flag_only_what_is_above():
    rule = ScanThreshold.fit(np.full(30, 0.5))
    assert not rule.is_anomalous(0.5) and rule.is_anomalous(0.5000001)
    assert rule.p_value(0.5) == 1 and rule.p_value(0.6) == 1 / 31


def test_bad_scan_scores_are_refused():
    rule = ScanThreshold.fit([0.0, 1.0])
    for call in (
        lambda: ScanThreshold.fit([]),
        lambda: ScanThreshold.fit([0.0, math.nan]),
        lambda: ScanThreshold.fit([[0.0]]),
        lambda: ScanThreshold.fit([0.0], 0.0),
        lambda: ScanThreshold.fit([0.0], 1.0),
        lambda: rule.is_anomalous(math.nan),
        lambda: rule.p_value(math.nan),
        lambda: rule.fpr_interval(1.0),
        lambda: ScanThreshold.from_dict({}),
        lambda: ScanThreshold.from_dict({**rule.to_dict(), "threshold": 0.5}),
    ):
        with pytest.raises(ArgumentError):
            call()


def slow_fraction(maps, threshold, regions=None):
    regions = regions or [np.ones(m.shape, bool) for m in maps]
    return np.mean([np.mean(m[r] > threshold) for m, r in zip(maps, regions, strict=True)])


def slow_threshold(maps, fpr, regions=None):
    scores = np.unique(np.concatenate([m.ravel() for m in maps]))
    return next(t for t in scores if slow_fraction(maps, t, regions) <= fpr + 1e-12)


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from([None, 1, 3, 10]),
    st.sampled_from([0.01, 0.05, 0.07, 0.3]),
)
def test_pixel_threshold_equals_brute_force(seed, levels, fpr):
    rng = np.random.default_rng(seed)
    shapes = [(10, 10), (5, 8), (2, 3, 4)]
    maps = [rng.random(shape) * rng.integers(1, 3) for shape in shapes]
    if levels:
        maps = [np.clip(np.round(m * levels) / levels, 0, 1) for m in maps]
    maps = [m.astype(np.float32) for m in maps]
    rule = PixelThreshold.fit(iter(maps), fpr)
    assert rule.threshold == slow_threshold(maps, fpr)
    assert slow_fraction(maps, np.float32(rule.threshold)) <= fpr + 1e-12
    np.testing.assert_allclose(
        rule.fraction_above(rule.threshold), slow_fraction(maps, np.float32(rule.threshold))
    )


def test_pixel_threshold_inside_regions():
    rng = np.random.default_rng(3)
    maps = [rng.random((12, 12)).astype(np.float32) for _ in range(4)]
    regions = [rng.random((12, 12)) > 0.4 for _ in maps]
    rule = PixelThreshold.fit(maps, 0.1, regions)
    inside = [m[r][None] for m, r in zip(maps, regions, strict=True)]
    assert rule.threshold == slow_threshold(inside, 0.1)
    added = PixelThreshold(0.1)
    for scores, region in zip(maps, regions, strict=True):
        added.add(np.where(region, scores, np.nan), region)
    assert added.threshold == rule.threshold and len(added) == 4


@pytest.mark.parametrize("shape", [(142, 141), (200, 150), (400, 300)])
def test_large_maps_keep_the_bound_within_a_ten_thousandth(shape):
    rng = np.random.default_rng(4)
    maps = [rng.gamma(1.0 + i, size=shape).astype(np.float32) for i in range(3)]
    rule = PixelThreshold.fit(maps, 0.05)
    assert all(points.size <= 20_001 for points, _ in rule.images)
    for threshold in np.quantile(np.stack(maps), np.linspace(0, 1, 41)).astype(np.float32):
        over = rule.fraction_above(threshold) - slow_fraction(maps, threshold)
        assert -1e-12 <= over <= 1e-4
    for fpr in (0.01, 0.02, 0.05):
        flagged = slow_fraction(maps, np.float32(rule.at(fpr)))
        assert fpr - 1.1e-4 <= flagged <= fpr + 1e-12


def test_saturated_and_constant_maps_flag_nothing():
    saturated = np.zeros((20, 20), np.float32)
    saturated[:10] = 1
    assert PixelThreshold.fit([saturated]).threshold == 1
    assert PixelThreshold.fit([np.full((5, 5), 0.3)]).threshold == np.float32(0.3)
    infinite = PixelThreshold.fit([np.where(saturated, np.inf, 0)])
    assert json.loads(json.dumps(infinite.to_dict(), allow_nan=False))["threshold"] == "inf"


def test_bad_maps_are_refused():
    zeros = np.zeros((3, 3))
    for call in (
        lambda: PixelThreshold.fit([]),
        lambda: PixelThreshold(0.0),
        lambda: PixelThreshold.fit([zeros], 1.0),
        lambda: PixelThreshold.fit([zeros]).at(0.0),
        lambda: PixelThreshold.fit([zeros * np.nan]),
        lambda: PixelThreshold.fit([zeros], regions=[zeros]),
        lambda: PixelThreshold.fit([zeros, zeros], regions=[zeros + 1]),
        lambda: PixelThreshold.fit([zeros], regions=[zeros + 1, zeros + 1]),
    ):
        with pytest.raises(ArgumentError):
            call()


def test_shares_of_healthy_pixels_are_those_of_their_maps():
    rng = np.random.default_rng(0)
    maps = [rng.normal(k, 1, (70 + 30 * k, 90)).astype(np.float32) for k in range(3)]
    found = PixelThreshold.fit(maps).shares()
    scores, shares = np.array(found).T
    assert (np.diff(scores) > 0).all() and (np.diff(shares) <= 0).all()
    counted = [np.mean([np.mean(m > np.float32(score)) for m in maps]) for score in scores]
    np.testing.assert_allclose(shares, counted, atol=1e-4)
    assert shares[0] > 0.99 and shares[-1] == 0 and np.abs(shares - 0.001).min() < 5e-4
    infinite = PixelThreshold.fit([np.array([[0.0, np.inf]])]).shares()
    assert json.loads(json.dumps(infinite, allow_nan=False)) == [[0.0, 0.5]]
