"""What planted anomalies say of candidates, against closed forms, scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from normscan.auto.evidence import MOST, Scores, Trial, choose, filled, telling, weigh, weights_of
from normscan.auto.member import quantiles

KINDS = 4


def trial_of(people, images, each, kinds=KINDS):
    """So many images of each subject, and anomalies of every kind in each image."""
    n = people * images
    hosts = np.repeat(np.arange(n), each * kinds)
    return Trial(
        np.repeat(np.arange(people), images), hosts, np.tile(np.arange(kinds), n * each), kinds
    )


def once(trial):
    return np.ones((trial.people, 1))


def test_area_of_a_constant_lift_is_that_of_scikit_learn(rng):
    trial = trial_of(30, 1, 1)
    healthy = rng.normal(size=30)
    found = trial.areas(healthy, healthy[trial.hosts] + 0.7, once(trial))[:, 0]
    both = np.concatenate([healthy, healthy + 0.7])
    whole = roc_auc_score(np.repeat([0, 1], 30), both)
    # That one counts an image beside its own twin, too, which always wins.
    np.testing.assert_allclose(found, (whole * 30**2 - 30) / (30**2 - 30), atol=1e-12)


def test_area_of_normal_scores_is_the_binormal_one(rng):
    trial = trial_of(600, 1, 1, 1)
    healthy = rng.normal(size=600)
    found = trial.areas(healthy, healthy + 1.0, once(trial))[0, 0]
    assert found == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.015)


def test_no_lift_is_chance_and_a_kind_without_anomalies_unknown(rng):
    trial = trial_of(12, 2, 1)
    healthy = rng.normal(size=24)
    gone = Trial(trial.subjects, trial.hosts, np.minimum(trial.kinds, 2), KINDS)
    found = gone.areas(healthy, healthy[gone.hosts], once(gone))[:, 0]
    np.testing.assert_allclose(found[:3], 0.5)
    assert np.isnan(found[3])


def test_drawing_a_subject_twice_is_having_it_twice(rng):
    """Copies of a subject stay one subject: their images are not compared."""
    trial = trial_of(5, 2, 1)
    healthy, planted = rng.normal(size=10), rng.normal(size=40)
    draws = np.array([[2.0], [1], [0], [1], [1]])
    images = [*range(4), 0, 1, *range(6, 10)]
    own = [np.flatnonzero(trial.hosts == i) for i in images]
    subjects = np.array([0, 0, 1, 1, 0, 0, 3, 3, 4, 4])
    again = Trial(subjects, np.repeat(np.arange(10), 4), trial.kinds[np.concatenate(own)], KINDS)
    lift = planted - healthy[trial.hosts]
    expected = again.areas(
        healthy[images], healthy[images][again.hosts] + lift[np.concatenate(own)], np.ones((5, 1))
    )
    np.testing.assert_allclose(trial.areas(healthy, planted, draws), expected)


def test_a_kind_that_tells_nobody_apart_does_not_count():
    """Nobody finds the first, everybody the second, one the third; of the fourth there is none."""
    areas = np.array([[0.5, 0.99, 0.8, np.nan], [0.51, 0.97, 0.5, np.nan]])
    drawn = areas[..., None] + np.array([0, 0.02, -0.02])
    assert telling(drawn).tolist() == [False, False, True, False]
    assert telling(drawn[:, :2]).tolist() == [True, True]  # then all of them do


def test_the_usual_score_stays_unless_another_is_clearly_better(rng):
    noise = rng.normal(size=(2, 3, 100))

    def areas(gain, error):
        drawn = np.stack([0.7 + 0 * noise[0], 0.7 + gain + error * noise[1]])
        return np.concatenate(
            [np.array([0.7, 0.7 + gain])[:, None, None] + np.zeros((2, 3, 1)), drawn], 2
        )

    assert choose(areas(0.02, 0.1)) == 0
    assert choose(areas(0.02, 0.005)) == 1
    assert choose(areas(-0.02, 0.005)) == 0


@pytest.mark.parametrize("seed", range(10))
def test_weights_are_a_choice_of_the_best(seed):
    rng = np.random.default_rng(seed)
    mean = rng.uniform(0.45, 0.95, 9)
    behind = rng.uniform(0.005, 0.05, 9)
    behind[mean.argmax()] = 0
    weights = weights_of(mean, behind)
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
    assert 1 <= (weights > 0).sum() <= MOST
    assert weights.argmax() == mean.argmax()
    assert (np.diff(weights[weights > 0][np.argsort(-mean[weights > 0])]) <= 0).all()


def test_weights_of_what_does_not_differ_are_equal():
    np.testing.assert_allclose(weights_of(np.full(4, 0.7), np.array([0, 0.1, 0.1, 0.1])), 0.25)
    # Differences that are no larger than chance make none.
    mean = np.array([0.70, 0.66, 0.68, 0.72])
    np.testing.assert_allclose(weights_of(mean, np.array([0.2, 0.2, 0.2, 0])), 0.25)
    assert weights_of(np.array([0.4]), np.zeros(1)) == [1]


def test_weights_of_sure_figures_are_squares_of_what_is_above_chance():
    mean = np.array([0.9, 0.85, 0.5, 0.6, 0.54])
    squares = np.array([0.8**2, 0.7**2, 0, 0.2**2, 0])  # the last is under LEAST
    np.testing.assert_allclose(weights_of(mean, np.zeros(5)), squares / squares.sum())


def test_where_nobody_finds_anything_all_weigh_the_same():
    np.testing.assert_allclose(weights_of(np.full(3, 0.5), np.zeros(3)), 1 / 3)
    assert (weights_of(np.full(9, 0.4), np.zeros(9)) > 0).sum() == MOST


def test_kinds_that_do_not_count_are_filled_with_the_others_mean():
    areas = np.array([[0.9, 0.6], [0.7, 0.8], [0.5, 0.4]])[..., None]
    skipped = np.array([[True, False], [False, False], [False, False]])
    np.testing.assert_allclose(filled(areas, skipped)[..., 0], [[0.6, 0.6], [0.7, 0.8], [0.5, 0.4]])


def weighed(people=12, seed=0, **lifts):
    """Candidates whose scores rise by so much for each kind."""
    rng, trial = np.random.default_rng(seed), trial_of(people, 1, 2)
    scores = []
    for given in lifts.values():
        healthy = rng.normal(size=people)
        lift = np.asarray(given)[trial.kinds]
        risen = healthy[trial.hosts] + lift + 0.3 * (lift > 0) * rng.normal(size=len(lift))
        names = {"mean": (healthy, risen), "max": (healthy, healthy[trial.hosts])}
        parts = ({n: v[i] for n, v in names.items()} for i in (0, 1))
        scores.append(Scores(*parts, np.zeros(KINDS, bool)))
    return weigh(trial, scores, seed)


def test_who_finds_more_weighs_more():
    found = weighed(good=[2, 2, 2, 0], fair=[1.5, 1.5, 1.5, 0], useless=[0, 0, 0, 0])
    good, fair, useless = found.weights
    assert good > fair > useless == 0
    assert found.counted.tolist() == [True, True, True, False]
    assert found.chosen == ["mean"] * 3
    assert np.isnan(found.together[3]) and (found.together[:3] > 0.8).all()
    np.testing.assert_allclose(found.mean, found.areas[:, :3].mean(1))


def test_a_kind_left_out_is_judged_by_the_others_choice():
    """The first finds all kinds but the first; so the others' choice is blind to that one."""
    found = weighed(many=[0, 2, 2, 2], one=[2, 0, 0, 0])
    assert found.single[0] < 0.6 < found.areas[1, 0]
    assert (found.single[1:] > 0.8).all()


@pytest.mark.parametrize("seed", range(3))
def test_many_useless_candidates_do_not_hide_a_good_one(seed):
    useless = {f"u{i}": [0, 0, 0, 0] for i in range(20)}
    found = weighed(seed=seed, good=[1.5, 1.5, 1, 1], **useless)
    assert found.weights[0] > 0.7


def test_quantiles_are_those_of_ranks(rng):
    healthy = np.sort(rng.normal(size=9))
    np.testing.assert_allclose(quantiles(healthy, healthy), norm.ppf((np.arange(9) + 0.5) / 9))
    scores = np.sort(rng.normal(scale=5, size=50))
    assert (np.diff(quantiles(scores, healthy)) > 0).all()
    top = quantiles(healthy[-1:] + healthy.std(ddof=1), healthy)
    np.testing.assert_allclose(top, norm.ppf(8.5 / 9) + np.log(2))


def test_quantiles_of_few_or_equal_scores_are_finite():
    scores = np.array([-1.0, 0, 3])
    for healthy in ([], [1.0], [2.0, 2.0]):
        found = quantiles(scores, np.array(healthy))
        assert np.isfinite(found).all() and (np.diff(found) > 0).all()
