"""Lesions, surfaces, volumes, calibration and image thresholds, against independent numbers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from sklearn.metrics import roc_curve

from normscan.errors import ArgumentError
from normscan.metrics import (
    RULES,
    LesionScores,
    MatchRule,
    calibration,
    fpr_at,
    froc,
    image_metrics,
    match_lesions,
    mean_defined,
    surface_distances,
    volume_agreement,
)
from normscan.metrics.agreement import icc
from normscan.metrics.segmentation import SegmentationScores

LEVELS = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 1.0, math.inf])
PAIRS = st.lists(st.tuples(LEVELS, st.booleans()), min_size=1, max_size=30)


@given(PAIRS, st.sampled_from([0.5, 0.8, 0.95]))
def test_image_points_agree_with_a_loop_over_thresholds(pairs, fixed):
    scores, labels = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    result = image_metrics(scores, labels, threshold=0.2, fixed=fixed, replicates=0)
    called = scores > 0.2
    assert result.accuracy.value == np.mean(called == labels)
    if labels.all() or not labels.any():
        names = ("accuracy_max", "sensitivity_at_specificity", "specificity_at_sensitivity")
        assert all(math.isnan(getattr(result, name).value) for name in (*names, "fpr95"))
        assert math.isnan(fpr_at(scores, labels, positive="healthy"))
        return
    assert result.sensitivity.value == called[labels].mean()
    assert result.specificity.value == (~called[~labels]).mean()
    predictions = [scores >= t for t in np.unique(scores)] + [np.zeros(len(pairs), bool)]
    tpr = np.array([p[labels].mean() for p in predictions])
    fpr = np.array([p[~labels].mean() for p in predictions])
    close = np.testing.assert_allclose
    close(result.accuracy_max.value, max(np.mean(p == labels) for p in predictions))
    close(result.sensitivity_at_specificity.value, tpr[fpr <= 1 - fixed + 1e-12].max())
    close(result.specificity_at_sensitivity.value, 1 - fpr[tpr >= fixed - 1e-12].min())
    close(result.fpr95.value, fpr[tpr >= 0.95].min())
    close(fpr_at(scores, labels, fixed, positive="anomalous"), fpr[tpr >= fixed - 1e-12].min())
    # With healthy scans positive, a scan is called healthy below a threshold.
    passed, missed = 1 - fpr, 1 - tpr
    close(fpr_at(scores, labels, fixed, positive="healthy"), missed[passed >= fixed - 1e-12].min())


def test_sensitivity_at_specificity_is_a_point_of_the_curve():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    scores = rng.normal(size=400) + labels
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    result = image_metrics(scores, labels, replicates=200)
    assert result.sensitivity_at_specificity.value == tpr[fpr <= 0.05].max()
    assert result.sensitivity_at_specificity.low < tpr[fpr <= 0.05].max()
    assert result.fpr95_positive == "anomalous" and result.accuracy is None
    moved = image_metrics(np.exp(scores), labels, replicates=200)
    assert moved.to_dict() == result.to_dict()


def test_bad_image_thresholds_are_refused():
    for options in ({"fixed": 1}, {"threshold": math.nan}):
        with pytest.raises(ArgumentError, match="fixed rate"):
            image_metrics([0, 1], [0, 1], **options)
    with pytest.raises(ArgumentError, match="positive"):
        fpr_at([0, 1], [0, 1], positive="sick")


def squares(*boxes, shape=(40, 40)):
    mask = np.zeros(shape, bool)
    for row, column, height, width in boxes:
        mask[row : row + height, column : column + width] = True
    return mask


def counts(match):
    return (match.peaks > -np.inf).sum(), match.sizes.size, match.hits.size, match.alarms.size


def test_rules_differ_as_they_say():
    truth = squares((2, 2, 4, 4), (20, 20, 10, 10))
    predicted = squares((5, 5, 3, 3), (20, 20, 10, 5), (20, 27, 10, 2), (35, 2, 2, 2))
    # The corner of the first lesion is met by one of its 16 pixels; two pieces meet the second.
    assert counts(match_lesions(predicted, truth)) == (2, 2, 3, 1)
    assert counts(match_lesions(predicted, truth, "covered_0.1")) == (1, 2, 2, 2)
    assert counts(match_lesions(predicted, truth, "iou_0.1")) == (1, 2, 1, 3)
    assert counts(match_lesions(predicted, truth, "iou_0.5")) == (1, 2, 1, 3)
    many = MatchRule("iou", 0.1)
    assert counts(match_lesions(predicted, truth, many)) == (1, 2, 2, 2)
    sixty = MatchRule("covered", 0.6)
    assert counts(match_lesions(predicted, truth, sixty)) == (1, 2, 2, 2)  # 0.5 + 0.2 together
    assert counts(match_lesions(predicted, truth, MatchRule("covered", 0.7))) == (0, 2, 0, 4)


def test_one_to_one_takes_the_best_pairs():
    truth = squares((2, 2, 6, 6), (2, 10, 6, 6))
    bridge = squares((2, 2, 6, 14))
    assert counts(match_lesions(bridge, truth)) == (2, 2, 1, 0)
    assert counts(match_lesions(bridge, truth, MatchRule(one_to_one=True))) == (1, 2, 1, 0)


def test_sizes_in_voxels_and_mm3():
    truth = squares((2, 2, 2, 2), (20, 20, 5, 5))
    predicted = squares((2, 2, 2, 2), (20, 20, 5, 5), (30, 2, 1, 7))
    assert counts(match_lesions(predicted, truth, "baur_sizes")) == (1, 2, 1, 0)
    small = MatchRule(smallest_true=5)
    # The lesion of four pixels is neither to be found nor is its prediction a false alarm.
    assert counts(match_lesions(predicted, truth, small)) == (1, 1, 1, 1)
    area = MatchRule(smallest_true=60, unit="mm3")
    match = match_lesions(predicted, truth, area, spacing=(2, 1.5))
    assert counts(match) == (1, 1, 1, 1) and match.sizes.tolist() == [75]
    with pytest.raises(ArgumentError, match="spacing"):
        match_lesions(predicted, truth, area)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3]), st.sampled_from(["any", "covered", "iou"]))
def test_matching_agrees_with_loops(seed, dims, overlap):
    rng = np.random.default_rng(seed)
    shape = (14, 13) if dims == 2 else (6, 8, 7)
    truth = ndimage.binary_dilation(rng.random(shape) > 0.97)
    predicted = ndimage.binary_dilation(rng.random(shape) > 0.97)
    rule = MatchRule(overlap, 0.3 if overlap != "any" else 0, smallest_predicted=2)
    match = match_lesions(predicted, truth, rule)
    ones = np.ones((3,) * dims)
    lesions, n = ndimage.label(truth, ones)
    pieces, m = ndimage.label(predicted, ones)
    kept = [j for j in range(1, m + 1) if (pieces == j).sum() >= 2]
    pairs = set()
    for i in range(1, n + 1):
        lesion = lesions == i
        for j in kept:
            piece = pieces == j
            common = (lesion & piece).sum()
            covered = (lesion & np.isin(pieces, kept)).sum() / lesion.sum()
            iou = common / (lesion | piece).sum()
            if common and {"any": True, "covered": covered > 0.3, "iou": iou >= 0.3}[overlap]:
                pairs.add((i, j))
    found, hits = {i for i, _ in pairs}, {j for _, j in pairs}
    assert counts(match) == (len(found), n, len(hits), len(kept) - len(hits))


def test_lesion_metrics_and_strata():
    scores = LesionScores()
    truth = squares((2, 2, 2, 2), (20, 20, 5, 5))
    scores.add(squares((20, 20, 5, 5)) * 0.9, truth, "a", 0.5)
    scores.add(squares((1, 1, 2, 2)) * 0.8, None, "b", 0.5)
    result = scores.evaluate([10, 100], replicates=50)
    assert (result.sensitivity.value, result.precision.value, result.f1.value) == (0.5, 0.5, 0.5)
    assert result.false_positives_per_scan.value == 0.5 and result.lesions == 2
    assert result.strata["0 to 10"] == {"lesions": 1, "sensitivity": 0.0}
    assert result.strata["10 to 100"] == {"lesions": 1, "sensitivity": 1.0}
    assert math.isnan(result.strata["100 and more"]["sensitivity"])
    assert result.froc["0.125"] == 0.5 and result.froc_mean == 0.5
    json.dumps(result.to_dict(), allow_nan=False)
    healthy = LesionScores()
    healthy.add(np.zeros((4, 4)), None, "b", 0.5)
    empty = healthy.evaluate()
    assert math.isnan(empty.sensitivity.value) and math.isnan(empty.precision.value)
    assert math.isnan(empty.f1.value) and math.isnan(empty.froc_mean)
    missed = LesionScores()
    missed.add(np.zeros((40, 40)), truth, "a", 0.5)
    assert missed.evaluate().f1.value == 0


def test_a_region_cuts_prediction_and_lesion():
    truth, region = squares((2, 2, 2, 2)), squares((10, 10, 20, 20))
    scores = LesionScores()
    scores.add(np.where(region, 0.0, np.nan) + squares((12, 12, 3, 3)), truth, "a", 0.5, region)
    result = scores.evaluate(replicates=0)
    assert result.lesions == 0 and result.false_positives_per_scan.value == 1


def test_froc_reads_the_curve_at_or_below_each_rate():
    # Two scans; lesions with peaks 9, 5, 1 and one missed; alarms with peaks 8, 6, 4, 2.
    lesions = squares((0, 0, 2, 2), (0, 5, 2, 2), (0, 10, 2, 2), (0, 15, 2, 2))
    map = np.zeros((40, 40))
    map[0, 0], map[0, 5], map[0, 10] = 9, 5, 1
    map[20, 0], map[20, 5] = 8, 6
    other = np.zeros((40, 40))
    other[20, 0], other[20, 5] = 4, 2
    matches = [match_lesions(map > 0, lesions, scores=map)]
    matches += [match_lesions(other > 0, lesions * 0, scores=other)]
    curve = froc(matches, (0.125, 0.5, 1, 2, 8))
    # At 0, 1, 2 and 4 alarms: thresholds above 8, above 6, above 4, and none.
    assert curve == {"0.125": 0.25, "0.5": 0.25, "1": 0.5, "2": 0.75, "8": 0.75}


def test_bad_rules_are_refused():
    with pytest.raises(ArgumentError, match="any_overlap"):
        match_lesions([[1]], [[1]], "any_overlp")
    for arguments in (("iou", 0.0), ("iuo", 0.1), ("covered", 2.0)):
        with pytest.raises(ArgumentError, match="match rule"):
            MatchRule(*arguments)
    with pytest.raises(ArgumentError, match="No scan"):
        LesionScores().evaluate()
    scores = LesionScores("iou_0.1")
    scores.add(np.zeros((4, 4)), None, 0, 0.5)
    with pytest.raises(ArgumentError, match="ascend"):
        scores.evaluate([5, 2])
    assert "greedily" in str(RULES["iou_0.5"]) and len(scores) == 1


def slow_surfaces(a, b, spacing):
    """Distances between the surfaces by a search over all pairs of edge voxels."""
    points = [np.argwhere(m & ~ndimage.binary_erosion(m)).astype(float) * spacing for m in (a, b)]
    table = np.linalg.norm(points[0][:, None] - points[1], axis=-1)
    both = [table.min(1), table.min(0)]
    return max(np.percentile(d, 95) for d in both), np.concatenate(both).mean()


@pytest.mark.parametrize(
    ("shape", "spacing"), [((30, 26), (1.0, 1.0)), ((12, 20, 18), (3.0, 0.5, 1))]
)
def test_surface_distances_agree_with_all_pairs(shape, spacing):
    rng = np.random.default_rng(1)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 3)
    a, b = smooth > np.quantile(smooth, 0.8), smooth > np.quantile(smooth, 0.7)
    found = surface_distances(a, b, spacing)
    np.testing.assert_allclose(found, slow_surfaces(a, b, np.array(spacing)), rtol=1e-5)
    assert surface_distances(a, a, spacing) == (0, 0)
    assert all(math.isnan(d) for d in surface_distances(a, b & False, spacing))


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((40, 50), (0.7, 1.3), (3.59345, 1.41185)),
        ((18, 20, 22), (1.0, 0.5, 3.0), (3.16228, 1.0354)),
    ],
)
def test_surface_distances_are_those_of_monai(shape, spacing, expected):
    """Expected: compute_hausdorff_distance and compute_average_surface_distance of MONAI 1.6.1."""
    rng = np.random.default_rng(5)
    a, b = (ndimage.gaussian_filter(rng.normal(size=shape), 2) > 0.02 for _ in range(2))
    np.testing.assert_allclose(surface_distances(a, b, spacing), expected, atol=1e-3)


def test_empty_masks_are_counted_not_averaged():
    value, defined, undefined = mean_defined([2.0, math.nan, 4.0])
    assert (value, defined, undefined) == (3.0, 2, 1)
    assert math.isnan(mean_defined([])[0])
    for spacing in ((1.0,), (1.0, 0.0), (1.0, math.inf)):
        with pytest.raises(ArgumentError, match="spacing"):
            surface_distances([[1]], [[1]], spacing)


def test_icc_is_the_published_worked_example():
    # Shrout and Fleiss 1979, table 2: six targets, four judges; ICC(2,1) = .29.
    ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    assert round(icc(ratings), 2) == 0.29
    assert math.isnan(icc([[1, 1], [1, 1]])) and math.isnan(icc([[1, 2]]))


def test_volume_agreement():
    rng = np.random.default_rng(0)
    true = rng.gamma(2, size=40)
    predicted = true + 0.5 + 0.2 * rng.normal(size=40)
    found = volume_agreement(predicted, true)
    differences = predicted - true
    np.testing.assert_allclose(found.bias, differences.mean())
    np.testing.assert_allclose(found.high - found.low, 2 * 1.96 * differences.std(ddof=1))
    np.testing.assert_allclose(found.pearson, stats.pearsonr(predicted, true)[0])
    assert found.icc < found.pearson  # the bias counts against agreement only
    flat = volume_agreement([1, 1], [1, 2])
    assert math.isnan(flat.pearson) and flat.bias == -0.5
    assert math.isnan(volume_agreement([1], [1]).low)
    for bad in (([], []), ([1, 2], [1]), ([math.nan], [1])):
        with pytest.raises(ArgumentError):
            volume_agreement(*bad)


def test_calibration_of_uniform_and_of_small_p_values():
    rng = np.random.default_rng(1)
    good = calibration(rng.random(500))
    assert good.p_value > 0.05 and good.below["0.05"].low < 0.05 < good.below["0.05"].high
    bad = calibration(rng.random(500) ** 2)
    assert bad.p_value < 1e-6 and bad.below["0.05"].low > 0.05
    # sup |x^2 - x| of p = u^2, whose distribution function is sqrt(p), is 1/4.
    assert abs(bad.distance - 0.25) < 0.06
    low, high = stats.beta.ppf([0.025, 0.975], [3, 4], [8, 7])
    ten = calibration([0.01, 0.02, 0.04, *[0.5] * 7]).below["0.05"]
    np.testing.assert_allclose([ten.value, ten.low, ten.high], [0.3, low, high])
    for values in ([], [1.1], [math.nan]):
        with pytest.raises(ArgumentError, match="p-values"):
            calibration(values)
    with pytest.raises(ArgumentError, match="levels"):
        calibration([0.5], levels=[1])


def test_p_values_that_share_their_healthy_scans_have_a_null_of_their_own():
    """Exchangeable scores: at the level 0.1 the test rejects a tenth; one for independent ones most."""
    from normscan.decide import ScanThreshold

    rng = np.random.default_rng(5)
    shared, independent = [], []
    for _ in range(200):
        p_values = ScanThreshold(rng.normal(size=12)).p_values(rng.normal(size=80))
        shared.append(calibration(p_values, behind=12, repeats=99).p_value)
        independent.append(calibration(p_values).p_value)
    assert stats.binomtest(int(np.sum(np.array(shared) <= 0.1)), 200, 0.1).pvalue > 0.01
    assert np.mean(np.array(independent) <= 0.1) > 0.5
    shifted = ScanThreshold(rng.normal(size=40)).p_values(rng.normal(size=80) + 2)
    assert calibration(shifted, behind=40, repeats=199).p_value == 1 / 200


def test_segmentations_are_judged_by_lesions_surfaces_and_volumes():
    truth = squares((5, 5, 4, 4))
    scores = SegmentationScores()
    scores.add(squares((5, 7, 4, 4)), truth * 1.0, truth, "a", (2.0, 3.0))
    scores.add(truth & False, truth * 1.0, truth, "a", (2.0, 3.0))
    scores.add(squares((1, 1, 1, 1)), np.full((40, 40), -np.inf), truth & False, "b", (2.0, 3.0))
    found = scores.evaluate(replicates=20)
    assert found.lesions.sensitivity.value == 0.5 and found.lesions.precision.value == 0.5
    assert found.hd95.value == 6.0  # two columns of 3 mm
    assert (found.surfaces, found.surfaces_undefined) == (1, 1)
    # 16 pixels of 6 mm2 less in "a", one more in "b": in cm2.
    np.testing.assert_allclose(found.volumes.bias, (-16 * 0.06 + 0.06) / 2)
    json.dumps(found.to_dict(), allow_nan=False)
    region = SegmentationScores(surfaces=False)
    region.add(truth, truth * 1.0, truth, "a", (1, 1), squares((20, 20, 5, 5)))
    assert region.evaluate().lesions.lesions == 0 and region.evaluate().volumes.bias == 0
