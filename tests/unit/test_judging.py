"""Scores judged by planted lesions: brute force, closed forms and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from normscan.decide.judging import FEWEST_ABOVE, Trials, choose, judge, judging_rank


def flags(healthy, subjects, scores, owners, fpr):
    trials = Trials.of(subjects, owners, ["a"] * len(owners), fpr)
    return trials.flagged(healthy, scores, np.ones((len(set(subjects)), 1)))[:, 0]


@pytest.mark.parametrize("fpr", [0.05, 0.2])
def test_flagged_is_by_the_highest_scores_of_the_other_subjects(rng, fpr):
    subjects = rng.integers(0, 25, 60).tolist()
    healthy = np.round(rng.normal(size=60), 1)
    owners, scores = subjects[:40], np.round(rng.normal(1, 1, 40), 1)
    expected = []
    for score, owner in zip(scores, owners, strict=True):
        others = {s: -np.inf for s in subjects if s != owner}
        for value, subject in zip(healthy, subjects, strict=True):
            if subject != owner:
                others[subject] = max(others[subject], value)
        kept = sorted(others.values(), reverse=True)
        rank = max(FEWEST_ABOVE, int(fpr * (len(kept) + 1)))
        expected.append(score > kept[rank - 1])
    assert flags(healthy, subjects, scores, owners, fpr).tolist() == expected
    assert 0 < sum(expected) < 40


def test_rank():
    assert [judging_rank(n, 0.05) for n in (2, 3, 4, 59, 80, 200)] == [1, 2, 3, 3, 4, 10]


def test_figures(rng):
    healthy, planted = rng.normal(size=40), rng.normal(1, 1, 90)
    kinds = ["a"] * 60 + ["b"] * 30
    owners = [i % 40 for i in range(90)]
    trials = Trials.of(range(40), owners, kinds, 0.1)
    (found,) = judge({"x": healthy}, {"x": planted}, trials)
    hits = flags(healthy, range(40), planted, owners, 0.1)
    assert found.by_kind == {"a": hits[:60].mean(), "b": hits[60:].mean()}
    assert found.sensitivity == pytest.approx((hits[:60].mean() + hits[60:].mean()) / 2)
    assert found.worst == min(found.by_kind.values()) and found.behind == found.error == 0
    areas = [
        roc_auc_score([0] * 40 + [1] * len(part), [*healthy, *part])
        for part in (planted[:60], planted[60:])
    ]
    assert found.auroc == pytest.approx(np.mean(areas))


def test_the_standard_error_is_that_of_new_subjects():
    """Drawn again from one set of subjects, and over many sets."""

    def one(seed):
        rng = np.random.default_rng(seed)
        healthy = {name: rng.normal(size=50) for name in "xy"}
        planted = {name: rng.normal(1.5, 1, 100) for name in "xy"}
        trials = Trials.of(range(50), [i // 2 for i in range(100)], ["a"] * 100, 0.1)
        found = judge(healthy, planted, trials)
        return found[0].sensitivity - found[1].sensitivity, max(f.error for f in found)

    differences, errors = np.array([one(seed) for seed in range(150)]).T
    assert 0.7 < errors.mean() / differences.std() < 1.4


def scores(rng, shifts, n=60, each=4):
    """Healthy and planted scores whose lesions are shifted by kind."""
    kinds = [f"k{i % len(shifts)}" for i in range(n * each)]
    moved = np.array([shifts[i % len(shifts)] for i in range(n * each)])
    return rng.normal(size=n), moved + rng.normal(size=n * each), kinds


def chosen(rng, **shifts):
    made = {name: scores(rng, shift) for name, shift in shifts.items()}
    kinds = next(iter(made.values()))[2]
    owners = [i // 4 for i in range(len(kinds))]
    healthy, planted = ({n: v[k] for n, v in made.items()} for k in (0, 1))
    return choose(judge(healthy, planted, Trials.of(range(60), owners, kinds, 0.05))).name


def test_a_clearly_better_score_is_chosen(rng):
    assert chosen(rng, usual=(1, 1), better=(3, 3), worse=(0, 0)) == "better"


def test_without_a_clear_gain_the_usual_score_stays():
    stays = [chosen(np.random.default_rng(seed), usual=(2, 2), other=(2, 2)) for seed in range(20)]
    assert stays.count("usual") > 15


def test_the_worst_kind_decides_between_equals():
    """One finds all of one kind, one half of both: the mean is the same."""
    healthy = {name: np.arange(20.0) for name in ("usual", "lopsided", "even")}
    hit, miss = 100.0, -1.0
    planted = {
        "usual": [miss] * 40, "lopsided": [hit] * 20 + [miss] * 20,
        "even": ([hit] * 10 + [miss] * 10) * 2,
    }  # fmt: skip
    kinds, owners = ["a"] * 20 + ["b"] * 20, list(range(20)) * 2
    judged = judge(healthy, planted, Trials.of(range(20), owners, kinds, 0.06))
    assert [j.sensitivity for j in judged] == [0, 0.5, 0.5]
    assert choose(judged).name == "even"
