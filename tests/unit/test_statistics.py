"""Statistics against scipy, published worked examples, brute force and simulation."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from normscan.errors import ArgumentError
from normscan.metrics.comparisons import (
    compare_scores,
    delong_test,
    holm,
    per_subject,
    permutation_test,
    wilcoxon,
)
from normscan.metrics.estimates import bootstrap, resamples
from normscan.metrics.images import image_metrics
from normscan.metrics.statistics import bca, delong, over_seeds, scan_statistic
from normscan.metrics.subgroups import band_names, subgroups

# Albumin, K-G score (10 minus it), total protein, outcome of 43 patients with ovarian cancer:
# DeLong et al. 1988, complete records as printed in SAS/STAT, PROC LOGISTIC example 8.
TEXT = """
    3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0
    1.6 5.6 5 1 3.8 5.7 5 1 3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1
    3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0 4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1
    3.7 7.4 5 1 3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1 4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0
    1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1 2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0
    4.0 7.0 7 1 3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1"""
OVARIAN = np.array(TEXT.split(), dtype=float).reshape(-1, 4)
SCORES = np.stack([OVARIAN[:, 0], 10 - OVARIAN[:, 2], OVARIAN[:, 1]])
OUTCOME = OVARIAN[:, 3]


def cohort(seed, subjects=40, most=4, effect=1.0):
    """Scores of two methods: scans of a subject share a random effect; some subjects are mixed."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(subjects), rng.integers(1, most + 1, subjects))
    labels = rng.random(subject.size) < np.where(subject % 3 == 0, 0.5, subject % 3 - 1)
    shared = rng.normal(size=subjects)[subject]
    a, b = (shared + rng.normal(size=subject.size) + effect * labels for _ in range(2))
    return np.stack([a, b]), labels, subject


# BCa


def mean_of(values):
    return lambda weights: {"mean": weights @ values / weights.sum(-1)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_bca_equals_scipy_on_the_same_resamples(seed, confidence):
    values = np.random.default_rng(seed).gamma(1.0, size=25)
    weights = np.concatenate(list(resamples(25, 1500, seed, 2000)))
    same = SimpleNamespace(bootstrap_distribution=mean_of(values)(weights)["mean"])
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=0, bootstrap_result=same, confidence_level=confidence
    ).confidence_interval
    found = bca(
        mean_of(values),
        {"mean": values.mean()},
        25,
        replicates=1500,
        seed=seed,
        confidence=confidence,
    )["mean"]
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-12)
    assert (found.method, found.reason, found.replicates_used) == ("bca", "", 1500)


def test_bca_in_chunks_is_the_same_and_keeps_the_point():
    values = np.random.default_rng(1).gamma(1.0, size=30)
    few = bca(mean_of(values), {"mean": 7.0}, 30, replicates=200, cells=2**18)["mean"]
    many = bca(mean_of(values), {"mean": 7.0}, 30, replicates=200)["mean"]
    assert few == many and few.value == 7.0


def test_bca_falls_back_to_the_percentile_interval_and_says_why():
    values = np.arange(9.0)

    def highest(weights):
        drawn = np.where(weights > 0, values, -np.inf).max(-1)
        return {"constant": drawn * 0 + 2, "top": drawn + 1, "fragile": fragile(weights)}

    def fragile(weights):
        return np.where(weights[:, 0] > 0, weights @ values, np.nan)

    point = {"constant": 2.0, "top": 20.0, "fragile": values.sum()}
    plain = bootstrap(highest, point, 9, replicates=300)
    found = bca(highest, point, 9, replicates=300)
    reasons = {
        "constant": "no single subject changes the value",
        "top": "all replicates lie on one side of the value",
        "fragile": "undefined without one of the subjects",
    }
    for name, reason in reasons.items():
        e, p = found[name], plain[name]
        np.testing.assert_array_equal(
            (e.low, e.high, e.replicates_used), (p.low, p.high, p.replicates_used)
        )
        # Replicates that all agree are no interval.
        assert (e.method, e.reason) == ("none" if name == "constant" else "percentile", reason)
    assert found["fragile"].replicates_used < 300
    none = bca(mean_of(values[:1]), {"mean": 0.0}, 1)["mean"]
    assert math.isnan(none.low) and none.reason == "one subject"
    with pytest.raises(ArgumentError, match="confidence"):
        bca(highest, point, 9, confidence=1.0)


def test_bca_covers_a_skewed_mean_better_than_percentiles():
    rng = np.random.default_rng(0)
    hits = {"bca": 0, "percentile": 0}
    for seed in range(300):
        values = rng.lognormal(sigma=1.0, size=20)
        for name, way in (("bca", bca), ("percentile", bootstrap)):
            e = way(mean_of(values), {"mean": values.mean()}, 20, replicates=400, seed=seed)["mean"]
            hits[name] += e.low <= math.exp(0.5) <= e.high
    assert hits["percentile"] < hits["bca"] <= 300


# DeLong


def test_delong_repeats_the_published_example():
    found = delong(SCORES, OUTCOME)
    np.testing.assert_allclose(found.auroc, [0.7366, 0.7258, 0.6478], atol=5e-5)
    errors = np.sqrt(np.diag(found.covariance))
    np.testing.assert_allclose(errors, [0.0927, 0.1028, 0.1000], atol=6e-5)
    symmetric = [found.interval(i, logit=False) for i in range(3)]
    ends = [[e.low, e.high] for e in symmetric]
    published = [[0.5549, 0.9182], [0.5243, 0.9273], [0.4518, 0.8439]]
    np.testing.assert_allclose(ends, published, atol=6e-5)
    contrast = np.array([[1, -1, 0], [0, -1, 1]])
    gap = contrast @ found.auroc
    chi = gap @ np.linalg.inv(contrast @ found.covariance @ contrast.T) @ gap
    assert abs(chi - 2.5340) < 5e-5
    for i, p_value, low, high in ((0, 0.9102, -0.1761, 0.1976), (2, 0.4561, -0.2830, 0.1271)):
        test = delong_test(SCORES[i], SCORES[1], OUTCOME)
        np.testing.assert_allclose(
            [test.p_value, test.low, test.high], [p_value, low, high], atol=6e-5
        )


def slow_covariance(scores, labels, subject):
    """Obuchowski's sums written out, loop by loop."""
    names = sorted(set(subject))
    positives, negatives = np.flatnonzero(labels), np.flatnonzero(~labels)

    def wins(row, i, j):
        return float(row[i] > row[j]) + 0.5 * float(row[i] == row[j])

    area, x, y = [], [], []
    for row in scores:
        area.append(np.mean([wins(row, i, j) for i in positives for j in negatives]))
        v10 = {i: np.mean([wins(row, i, j) for j in negatives]) for i in positives}
        v01 = {j: np.mean([wins(row, i, j) for i in positives]) for j in negatives}
        x.append([sum(v10[i] - area[-1] for i in positives if subject[i] == s) for s in names])
        y.append([sum(v01[j] - area[-1] for j in negatives if subject[j] == s) for s in names])
    x, y, m, n, k = np.array(x), np.array(y), positives.size, negatives.size, len(names)
    kp, kn = len(set(subject[positives])), len(set(subject[negatives]))
    s10, s01 = kp / ((kp - 1) * m) * x @ x.T, kn / ((kn - 1) * n) * y @ y.T
    s11 = k / (k - 1) * x @ y.T
    return np.array(area), s10 / m + s01 / n + s11 / (m * n) + s11.T / (m * n)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([0, 1, 3]))
def test_delong_equals_structural_components(seed, clustered, digits):
    scores, labels, subject = cohort(seed, subjects=12, most=3 if clustered else 1)
    scores = np.round(scores, digits)
    if min(len(set(subject[labels])), len(set(subject[~labels]))) < 2:
        assert np.isnan(delong(scores, labels, subject).covariance).any()
        return
    area, covariance = slow_covariance(scores, labels, subject)
    found = delong(scores, labels, subject)
    np.testing.assert_allclose(found.auroc, area, atol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-12)
    np.testing.assert_allclose(
        found.auroc[0], image_metrics(scores[0], labels, replicates=0).auroc.value
    )


def test_repeated_scans_of_a_subject_add_no_certainty():
    once = delong(SCORES, OUTCOME)
    owner = np.tile(np.arange(43), 3)
    thrice = delong(np.tile(SCORES, 3), np.tile(OUTCOME, 3), owner)
    np.testing.assert_allclose(thrice.covariance, once.covariance, atol=1e-12)
    naive = delong(np.tile(SCORES, 3), np.tile(OUTCOME, 3))
    assert (np.diag(naive.covariance) < np.diag(once.covariance) / 2.5).all()


def test_clustered_delong_agrees_with_the_bootstrap_over_subjects():
    scores, labels, subject = cohort(3, subjects=150)
    found = delong(scores, labels, subject)
    statistic, count = scan_statistic(scores[0], labels, subject)
    drawn = np.concatenate([statistic(w) for w in resamples(count, 2000, 0, 500)])
    ratio = math.sqrt(found.covariance[0, 0]) / np.nanstd(drawn)
    assert 0.93 < ratio < 1.07


def test_delong_without_variance_or_with_one_class():
    perfect = delong([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]).interval()
    assert perfect.value == 1 and math.isnan(perfect.low) and perfect.method == "none"
    assert math.isnan(delong([1.0, 2.0], [1, 1]).interval().value)
    found = delong(SCORES, OUTCOME)
    area, error = found.auroc[0], math.sqrt(found.covariance[0, 0])
    middle, half = math.log(area / (1 - area)), 1.959964 * error / (area * (1 - area))
    ends = [1 / (1 + math.exp(-middle - side * half)) for side in (-1, 1)]
    near = found.interval()
    np.testing.assert_allclose([near.low, near.high], ends, rtol=1e-6)
    same = delong_test(SCORES[0], np.exp(SCORES[0]), OUTCOME)
    assert same.p_value == 1 and same.difference == 0


# Tests between methods


def null_p_values(test, runs=200):
    return np.array([test(seed) for seed in range(runs)])


def assert_uniform(p_values):
    """Under the null: a level isn't exceeded much, and the test isn't mute either."""
    for level in (0.05, 0.2, 0.5):
        share = np.mean(p_values <= level)
        assert abs(share - level) < 4 * math.sqrt(level * (1 - level) / p_values.size)


def test_p_values_are_uniform_where_there_is_no_difference():
    def by_delong(seed):
        scores, labels, subject = cohort(seed, subjects=60)
        return delong_test(scores[0], scores[1], labels, subject).p_value

    def by_permutation(seed):
        scores, labels, subject = cohort(seed, subjects=30)
        return compare_scores(
            scores[0], np.exp(scores[1]) * 9, labels, subject, permutations=99, seed=seed
        ).p_value

    assert_uniform(null_p_values(by_delong, 300))
    assert_uniform(null_p_values(by_permutation, 120))


def test_a_naive_test_of_clustered_scans_would_be_wrong():
    def naive(seed):
        scores, labels, _ = cohort(seed, subjects=20, most=1)
        rows = np.repeat(np.arange(20), 5)
        return delong_test(*scores[:, rows], labels[rows]).p_value

    assert np.mean(null_p_values(naive) <= 0.05) > 0.2


def test_permutation_of_means_equals_scipy_exact_and_drawn():
    rng = np.random.default_rng(4)
    a, b = rng.normal(0.4, size=(2, 8)) * [[1], [0.7]]

    def difference(swap):
        return float(np.mean(np.where(swap, b - a, a - b)))

    expected = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    exact = permutation_test(difference, 8)
    assert exact.test == "permutation, all 256" and math.isclose(exact.p_value, expected)
    drawn = permutation_test(difference, 8, permutations=200, seed=1)
    assert drawn.test == "permutation, 200 drawn" and abs(drawn.p_value - expected) < 0.12
    assert drawn.p_value * 201 == pytest.approx(round(drawn.p_value * 201))
    assert permutation_test(lambda swap: 1.0 - 2 * swap[0], 4).p_value == 1


@pytest.mark.parametrize("metric", ["auroc", "ap", "f1_max"])
def test_permutation_of_scores_equals_enumeration(metric):
    scores, labels, subject = cohort(8, subjects=7)
    a, b = (stats.rankdata(row) for row in scores)
    gaps = []
    for swap in itertools.product((False, True), repeat=7):
        rows = np.array(swap)[np.unique(subject, return_inverse=True)[1]]
        pair = np.where(rows, b, a), np.where(rows, a, b)
        found = [getattr(image_metrics(s, labels, replicates=0), metric).value for s in pair]
        gaps.append(found[0] - found[1])
    expected = np.mean(np.abs(gaps) >= abs(gaps[0]) - 1e-12)
    result = compare_scores(*scores, labels, subject, metric=metric)
    assert result.p_value == pytest.approx(expected) and result.difference == pytest.approx(gaps[0])
    with pytest.raises(ArgumentError, match="auroc, ap, f1_max"):
        compare_scores(*scores, labels, subject, metric="auc")


def test_permutation_test_sees_a_difference():
    scores, labels, subject = cohort(5, subjects=80, effect=3.0)
    noise = np.random.default_rng(0).normal(size=labels.size)
    assert compare_scores(scores[0], noise, labels, subject, permutations=199).p_value == 1 / 200


def test_wilcoxon_averages_scans_and_leaves_out_nan():
    # Wilcoxon, Biometrics Bulletin 1, 1945, table of fertilised plants: W = 24, p near 0.04.
    gap = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48.0])
    found = wilcoxon(gap, np.zeros(15))
    assert found.statistic == 24 and found.p_value == pytest.approx(0.04126, abs=5e-6)
    assert found.n == 15 and found.difference == 24
    repeated = wilcoxon(np.r_[gap + 1, gap - 1, np.nan], np.zeros(31), [*range(15), *range(15), 99])
    assert (repeated.p_value, repeated.n) == (found.p_value, 15)
    assert wilcoxon([1, 2], [1, 2]).p_value == 1
    assert math.isnan(wilcoxon([math.nan], [1.0]).p_value)
    np.testing.assert_array_equal(per_subject([1, 3, math.nan], ["a", "a", "b"]), [2, math.nan])


# Seeds


def test_seeds_and_subjects_give_the_variance_of_both():
    """Crossed random effects: the variance of a mean over S seeds and n subjects is known."""
    rng = np.random.default_rng(0)
    subjects, seeds = 200, 3
    person, run = rng.normal(size=subjects), 0.3 * np.array([-1.0, 0.2, 0.8])
    values = person[None] + run[:, None] + 0.2 * rng.normal(size=(seeds, subjects))
    runs = [lambda w, v=v: w @ v / w.sum(-1) for v in values]
    found = over_seeds(runs, subjects, replicates=4000)
    assert found.mean == pytest.approx(values.mean())
    assert found.std == pytest.approx(values.mean(1).std(ddof=1))
    assert (found.low, found.high) == (min(found.values), max(found.values))
    each = values.mean(0).std() / math.sqrt(subjects)
    both = math.hypot(each, found.std / math.sqrt(seeds))
    widths = [(e.high - e.low) / (2 * 1.96) for e in (found.subjects_only, found.estimate)]
    np.testing.assert_allclose(widths, [each, both], rtol=0.08)
    assert math.isnan(found.p_value) and found.estimate.reason == ""


def test_difference_over_seeds():
    scores, labels, subject = cohort(2, subjects=60, effect=2.0)
    rng = np.random.default_rng(1)
    good = [
        scan_statistic(scores[0] + 0.1 * rng.normal(size=labels.size), labels, subject)[0]
        for _ in range(3)
    ]
    bad = [scan_statistic(rng.normal(size=labels.size), labels, subject)[0] for _ in range(2)]
    found = over_seeds(good, 60, bad, replicates=500)
    ones = np.ones((1, 60))
    means = [np.mean([run(ones)[0] for run in group]) for group in (good, bad)]
    assert found.mean == pytest.approx(means[0] - means[1]) and len(found.values) == 3
    assert found.p_value < 0.02 and found.estimate.low > 0
    same = over_seeds(good[:1], 60, good[:1], replicates=200)
    assert same.p_value == 1 and same.mean == 0
    assert same.estimate.reason.startswith("one seed") and math.isnan(same.std)
    with pytest.raises(ArgumentError, match="at least one run"):
        over_seeds([], 60)


# Subgroups


def test_subgroups_count_everyone_and_agree_with_metrics_of_the_group():
    scores, labels, subject = cohort(6, subjects=90, effect=1.5)
    site = np.array(["a", "b", "b"])[subject % 3].astype(object)
    site[subject >= 85] = None
    site[subject == 84] = "tiny"
    found = subgroups(scores[0], labels, site, subject, threshold=0.8, replicates=200)
    assert [g.group for g in found] == ["a", "b", "tiny", "missing"]
    assert sum(g.scans for g in found) == labels.size
    assert sum(g.anomalous for g in found) == labels.sum()
    assert sum(g.subjects for g in found) == 90
    rows = site == "a"
    expected = image_metrics(scores[0][rows], labels[rows], replicates=0)
    rest = image_metrics(scores[0][~rows], labels[~rows], replicates=0)
    first = found[0]
    assert first.metrics["auroc"].value == pytest.approx(expected.auroc.value)
    assert first.metrics["ap"].value == pytest.approx(expected.ap.value)
    flagged = scores[0] > 0.8
    assert first.metrics["sensitivity"].value == pytest.approx(flagged[rows & labels].mean())
    assert first.metrics["specificity"].value == pytest.approx(1 - flagged[rows & ~labels].mean())
    assert first.gaps["auroc"].difference == pytest.approx(expected.auroc.value - rest.auroc.value)
    tiny = found[2]
    assert math.isnan(tiny.metrics["auroc"].value) and math.isnan(tiny.holm["auroc"])
    assert "fewer than 5" in tiny.metrics["auroc"].reason and tiny.metrics["auroc"].n == 1
    tested = [g.gaps["auroc"].p_value for g in found]
    np.testing.assert_allclose([g.holm["auroc"] for g in found], holm(tested))
    assert found[0].to_dict()["metrics"]["auroc"]["value"] == first.metrics["auroc"].value


def test_a_site_where_the_detector_fails_is_seen_and_two_groups_are_one_test():
    scores, labels, subject = cohort(7, subjects=120, most=1, effect=3.0)
    sex = np.where(subject % 2, "F", "M")
    broken = np.where(sex == "F", np.random.default_rng(0).normal(size=labels.size), scores[0])
    found = subgroups(broken, labels, sex, subject, replicates=300)
    assert found[0].gaps["auroc"].difference == -found[1].gaps["auroc"].difference < -0.2
    assert found[0].holm["auroc"] == found[0].gaps["auroc"].p_value < 0.001


def test_gap_p_values_are_uniform_where_groups_are_alike():
    def p_value(seed):
        scores, labels, subject = cohort(seed, subjects=60)
        groups = np.random.default_rng(seed).integers(0, 2, 60)[subject]
        return (
            subgroups(scores[0], labels, groups, subject, replicates=100)[0].gaps["auroc"].p_value
        )

    assert_uniform(null_p_values(p_value, 120))


def test_bands_and_lesion_sizes_against_all_healthy():
    ages = [39.9, 40, 59, 60, None, math.nan]
    names, order = band_names(ages, cuts=[40, 60])
    assert names == ["below 40", "40 to 60", "40 to 60", "60 and above", "missing", "missing"]
    assert order == ["below 40", "40 to 60", "60 and above", "missing"]
    rng = np.random.default_rng(0)
    labels = np.arange(60) < 30
    size = np.where(labels, rng.gamma(2.0, size=60), 0.0)
    scores = size + rng.normal(size=60)
    found = subgroups(scores, labels, size, quantiles=3, share_healthy=True, replicates=50)
    assert [g.anomalous for g in found] == [10, 10, 10] and all(g.scans == 40 for g in found)
    rows = ~labels | (labels & (size >= np.quantile(size[labels], 2 / 3)))
    expected = image_metrics(scores[rows], labels[rows], replicates=0).auroc.value
    assert found[-1].metrics["auroc"].value == pytest.approx(expected)
    with pytest.raises(ArgumentError, match="column of numbers"):
        band_names(["x"], cuts=[1])
    with pytest.raises(ArgumentError, match="ascend"):
        band_names([1], cuts=[2, 1])
