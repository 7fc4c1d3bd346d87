"""Thresholds by group: p-values by hand, which groups stand alone, the rate by simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from normscan.decide import GroupedThreshold, ScanThreshold, restored
from normscan.errors import ArgumentError

SIZES = {"A": 20, "B": 19, "C": 12, "D": 8, "E": 3}


def made(rng, fpr: float = 0.05, sizes=None) -> GroupedThreshold:
    sizes = sizes or SIZES
    return GroupedThreshold({g: rng.normal(size=n) for g, n in sizes.items()}, "scanner", fpr)


def test_which_groups_stand_alone(rng):
    """19 healthy subjects can promise 5 %; the others are put together, here 23."""
    found = made(rng)
    assert set(found.alone) == {"A", "B"} and found.together == ("C", "D", "E")
    assert found.rest.n == 23 and found.n == 62
    assert made(rng, sizes={"A": 20, "C": 5}).rest is None


@pytest.mark.parametrize("group", [*SIZES, "F", "", None])
def test_p_values_by_hand(group, rng):
    found = made(rng)
    if group in ("A", "B"):
        known = found.groups[group]
    elif group in ("C", "D", "E"):
        known = np.concatenate([found.groups[g] for g in "CDE"])
    else:
        known = np.concatenate(list(found.groups.values()))
    threshold, said = found.among({"scanner": group})
    for score in (-1.0, 0.3, 1.7, 9.0):
        p_value, anomalous = threshold.judge([score])
        assert p_value == pytest.approx((1 + (known >= score).sum()) / (len(known) + 1))
        assert anomalous == (score > np.sort(known)[-max(1, int(0.05 * (len(known) + 1)))])
    assert f"{len(known)} healthy subjects" in said


def test_what_is_not_told_is_no_group(rng):
    found = made(rng, sizes={"": 30, "A": 30})
    assert set(found.alone) == {"A"} and found.together == ()
    assert found.among({})[0] is found and found.n == 60


def test_a_subject_stands_once(rng):
    found = GroupedThreshold.of_subjects(
        [1.0, 5.0, 2.0, 3.0], ["A", "A", "B", "B"], "scanner", 0.5, ["s", "s", "t", "u"]
    )
    assert {g: v.tolist() for g, v in found.groups.items()} == {"A": [5.0], "B": [2.0, 3.0]}


def test_it_is_stored(rng):
    found = made(rng)
    again = restored(json.loads(json.dumps(found.to_dict())))
    assert again.to_dict() == found.to_dict() and again.describe() == found.describe()
    assert type(restored(ScanThreshold([1.0, 2.0]).to_dict())) is ScanThreshold
    broken = {**found.to_dict(), "groups": {"A": [0.0]}}
    with pytest.raises(ArgumentError, match="not the one"):
        restored(broken)
    with pytest.raises(ArgumentError, match="at least one"):
        GroupedThreshold({}, "scanner")


def test_the_rate_within_groups_by_simulation():
    """Scanner B scores two deviations higher. Apart both keep 10 %; together B is flagged often.

    Of a continuous distribution the rate over cohorts is rank / (n + 1) exactly, so the mean of 400
    cohorts with 200 new scans each lies within four of its standard errors.
    """
    rng, new = np.random.default_rng(0), 200
    shifts, sizes = {"A": 0.0, "B": 2.0, "C": 1.0, "D": 1.0}, {"A": 30, "B": 19, "C": 5, "D": 7}
    rates: dict[str, list[float]] = {g: [] for g in shifts}
    together: dict[str, list[float]] = {g: [] for g in shifts}
    for _ in range(400):
        groups = {g: shifts[g] + rng.normal(size=n) for g, n in sizes.items()}
        found = GroupedThreshold(groups, "scanner", 0.1)
        for g, shift in shifts.items():
            scores = shift + rng.normal(size=new)
            rates[g].append(float(np.mean(scores > found.among({"scanner": g})[0].threshold)))
            together[g].append(float(np.mean(scores > found.threshold)))
    # 3 of 31, 2 of 20, and the 12 of C and D, which score alike, together: 1 of 13.
    for g, promised in {"A": 3 / 31, "B": 2 / 20, "C": 1 / 13, "D": 1 / 13}.items():
        error = np.std(rates[g]) / np.sqrt(len(rates[g]))
        assert abs(np.mean(rates[g]) - promised) < 4 * error, g
    assert np.mean(together["A"]) < 0.02 and np.mean(together["B"]) > 0.2
