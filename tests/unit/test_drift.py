"""The drift test: its false-alarm rate holds, changes are found, and a stored test goes on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from normscan.decide.drift import DriftTest, _bets
from normscan.errors import ArgumentError

ALPHA = 0.05


def alarms(streams, scans, healthy, change=None, seed=0):
    """Share of streams that ever raise an alarm, and after how many scans."""
    rng = np.random.default_rng(seed)
    when = []
    for _ in range(streams):
        test = DriftTest(rng.normal(size=healthy))
        scores = rng.normal(size=scans)
        scores = scores if change is None else change(scores)
        for k, (score, tie) in enumerate(zip(scores, rng.random(scans), strict=True), 1):
            test.update(score, tie)
            if test.alarm(ALPHA):
                when.append(k)
                break
    return len(when) / streams, when


def test_every_bet_is_fair():
    for k in range(len(_bets(0.5))):
        mean = integrate.quad(lambda p, k=k: _bets(p)[k], 0, 1)[0]
        assert mean == pytest.approx(1)
        assert min(_bets(p)[k] for p in np.linspace(0, 1, 501)) >= 0


@pytest.mark.parametrize("healthy", [0, 19])
def test_the_false_alarm_rate_holds_for_any_number_of_healthy_scans(healthy):
    rate, _ = alarms(200, 150, healthy)
    # 20 of 200 would be two and a half standard errors above the bound.
    assert rate <= ALPHA + 2.5 * math.sqrt(ALPHA * (1 - ALPHA) / 200)


def test_p_values_are_uniform_and_independent():
    rng = np.random.default_rng(1)
    test = DriftTest(rng.normal(size=19))
    p = np.array(
        [test.update(s, t) for s, t in zip(rng.normal(size=800), rng.random(800), strict=True)]
    )
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(p[1:], p[:-1])[0, 1]) < 0.12


def test_against_a_fixed_reference_the_rate_would_not_hold():
    """Why each p-value is taken among all scores so far."""
    rng = np.random.default_rng(0)
    raised = 0
    for _ in range(60):
        healthy, test = np.sort(rng.normal(size=19)), DriftTest()
        below = np.searchsorted(healthy, rng.normal(size=300))
        p = (19 - below + rng.random(300)) / 20
        shares, wealth, peak = test._shares, 0.0, 0.0
        for each in p:
            shares = 0.99 * shares + 0.01 / len(shares)
            won = shares * _bets(each)
            wealth, shares = wealth + math.log(won.sum()), won / won.sum()
            peak = max(peak, wealth)
        raised += peak > -math.log(ALPHA)
    assert raised / 60 > 3 * ALPHA


@pytest.mark.parametrize(
    ("change", "healthy", "median"),
    [
        (lambda s: s + 1.5, 100, 30),  # another coil: all scores higher
        (lambda s: s - 1.5, 100, 30),  # scans of lower noise
        (lambda s: 3 * s, 100, 80),  # spread to both ends
        (lambda s: s + 1.5 * (np.arange(len(s)) >= 60), 0, 130),  # an update after 60 scans
    ],
)
def test_changes_are_found(change, healthy, median):
    rate, when = alarms(30, 200, healthy, change)
    assert rate > 0.8 and np.median(when) < median


def test_equal_scores_are_no_alarm():
    rng = np.random.default_rng(3)
    test = DriftTest([1.0] * 30)
    for _ in range(300):
        test.update(1.0, rng.random())
    assert not test.alarm(0.01)


def test_a_stored_test_goes_on_as_if_never_stored():
    rng = np.random.default_rng(2)
    reference, scores, ties = rng.normal(size=9), rng.normal(size=40), rng.random(40)
    straight, stored = DriftTest(reference), DriftTest(reference)
    for score, tie in zip(scores, ties, strict=True):
        straight.update(score, tie)
        stored.update(score, tie)
        stored = DriftTest.restored(stored.to_dict(), reference)
    assert stored.to_dict() == straight.to_dict()


@pytest.mark.parametrize(("score", "tie"), [(math.nan, 0.5), (1.0, 1.0), (1.0, -0.1)])
def test_what_is_no_score_is_refused(score, tie):
    with pytest.raises(ArgumentError):
        DriftTest().update(score, tie)
