"""Metrics against scikit-learn and against slow references written from the definitions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from normscan.errors import ArgumentError
from normscan.metrics import (
    Estimate,
    PixelScores,
    bootstrap_difference,
    curves,
    image_metrics,
    resamples,
)

# Few levels force ties; the infinities are saturated scores.
LEVELS = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.25, 0.5, 1.0, math.inf])
PAIRS = st.lists(st.tuples(LEVELS, st.booleans()), min_size=1, max_size=30)


def ranks(scores):
    """Finite scores in the same order, for scikit-learn, which refuses infinities."""
    return np.unique(scores, return_inverse=True)[1]


def slow_dice(scores, labels, threshold):
    predicted = scores > threshold
    return 2 * (predicted & labels).sum() / max(1, predicted.sum() + labels.sum())


def slow_best_dice(scores, labels):
    thresholds = [np.nextafter(s, np.float32(-np.inf)) for s in np.unique(scores)]
    return max(slow_dice(scores, labels, t) for t in thresholds)


def slow_aupro(maps, masks, limit=0.3):
    """Loop over all thresholds and all components, then integrate with a dense interpolation."""
    regions = []
    for scores, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
        regions += [scores[labels == i] for i in range(1, count + 1)]
    healthy = np.concatenate([m[~y] for m, y in zip(maps, masks, strict=True)])
    if not regions or not healthy.size:
        return math.nan
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]:
        fpr.append(np.mean(healthy >= threshold))
        pro.append(np.mean([np.mean(region >= threshold) for region in regions]))
    area = 0.0
    for i in range(1, len(fpr)):
        x0, x1, y0, y1 = fpr[i - 1], fpr[i], pro[i - 1], pro[i]
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def collect(maps, masks, subjects=None):
    pixels = PixelScores()
    for i, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        pixels.add(scores, mask, i if subjects is None else subjects[i])
    return pixels


def some_maps(seed, scans=8, shape=(24, 20), levels=None):
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(scans):
        mask = ndimage.binary_dilation(rng.random(shape) > 0.99, iterations=1) & bool(i % 3)
        scores = rng.random(shape) + mask * rng.random()
        if levels:
            scores = np.clip(np.round(scores * levels) / levels, 0, 1)
        maps.append(scores.astype(np.float32))
        masks.append(mask)
    return maps, masks


@given(PAIRS)
def test_image_metrics_agree_with_scikit_learn_and_loops(pairs):
    scores, labels = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    result = image_metrics(scores, labels, replicates=0)
    assert result.n == len(pairs) and result.prevalence == labels.mean()
    if labels.all() or not labels.any():
        assert math.isnan(result.auroc.value) and math.isnan(result.ap.value)
        assert math.isnan(result.f1_max.value)
        return
    np.testing.assert_allclose(result.auroc.value, roc_auc_score(labels, ranks(scores)))
    np.testing.assert_allclose(result.ap.value, average_precision_score(labels, ranks(scores)))
    expected = slow_best_dice(ranks(scores).astype(np.float32), labels)
    np.testing.assert_allclose(result.f1_max.value, expected)


@given(PAIRS)
def test_image_metrics_survive_strictly_monotone_maps(pairs):
    scores, labels = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    plain = image_metrics(scores, labels, replicates=20).to_dict()
    with np.errstate(over="ignore"):
        moved = image_metrics(np.exp(scores / 2) - 3, labels, replicates=20).to_dict()
    assert plain == moved


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.sampled_from([None, 1, 2, 5]), st.sampled_from([0.05, 0.3, 1.0]))
def test_pixel_metrics_agree_with_loops(seed, levels, limit):
    maps, masks = some_maps(seed, scans=4, shape=(7, 6), levels=levels)
    scores = np.concatenate([m.ravel() for m in maps])
    labels = np.concatenate([m.ravel() for m in masks])
    result = collect(maps, masks).evaluate(0.7, limit=limit, replicates=0)
    np.testing.assert_allclose(result.aupro.value, slow_aupro(maps, masks, limit), atol=1e-12)
    if not labels.any():
        assert math.isnan(result.ap.value) and math.isnan(result.best_dice_threshold)
        assert math.isnan(result.dice.value)
        return
    np.testing.assert_allclose(result.auroc.value, roc_auc_score(labels, scores))
    np.testing.assert_allclose(result.ap.value, average_precision_score(labels, scores))
    np.testing.assert_allclose(result.best_dice.value, slow_best_dice(scores, labels))
    np.testing.assert_allclose(result.dice.value, slow_dice(scores, labels, np.float32(0.7)))
    reached = slow_dice(scores, labels, np.float32(result.best_dice_threshold))
    np.testing.assert_allclose(result.best_dice.value, reached)


def test_regions_are_26_connected_in_3d_and_8_connected_in_2d():
    volume = np.zeros((4, 4, 4), bool)
    volume[0, 0, 0] = volume[1, 1, 1] = volume[3, 3, 0] = True
    rng = np.random.default_rng(0)
    maps = [rng.random((4, 4, 4)).astype(np.float32)]
    result = collect(maps, [volume]).evaluate(replicates=0)
    assert result.regions == 2
    np.testing.assert_allclose(result.aupro.value, slow_aupro(maps, [volume]))
    assert collect([maps[0][0]], [np.eye(4)]).evaluate(replicates=0).regions == 1


def test_perfect_random_and_inverted_maps():
    mask = np.zeros((20, 20), bool)
    mask[5:9, 5:9] = True
    perfect = collect([mask, mask * 0.0], [mask, mask * 0]).evaluate(0.5, replicates=0)
    for estimate in (perfect.auroc, perfect.ap, perfect.aupro, perfect.best_dice, perfect.dice):
        assert estimate.value == 1
    assert perfect.subject_dice.value == 1  # the empty prediction on the empty mask counts 1
    constant = collect([np.zeros((20, 20))], [mask]).evaluate(0.0, replicates=0)
    assert constant.auroc.value == 0.5 and constant.ap.value == constant.prevalence == 0.04
    np.testing.assert_allclose(constant.aupro.value, 0.15)  # the diagonal up to 0.3
    assert constant.dice.value == 0  # nothing is above the threshold it equals
    assert collect([~mask], [mask]).evaluate(replicates=0).auroc.value == 0


def test_region_restricts_pixels_but_keeps_whole_components():
    rng = np.random.default_rng(1)
    scores, mask = rng.random((9, 9)).astype(np.float32), np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    region = np.ones((9, 9), bool)
    region[4] = False  # cuts the one lesion in two
    pixels = PixelScores()
    pixels.add(np.where(region, scores, np.nan), mask, "a", region)
    result = pixels.evaluate(replicates=0)
    assert (result.regions, result.pixels, result.evaluated) == (1, 72, "region")
    np.testing.assert_allclose(result.auroc.value, roc_auc_score(mask[region], scores[region]))
    pixels.add(scores, None, "b")
    assert pixels.evaluate(replicates=0).evaluated == "mixed"


def test_subject_dice_pools_the_scans_of_a_subject():
    maps, masks = some_maps(3)
    subjects = ["a", "b", "a", "b", "c", "c", "d", "e"]
    result = collect(maps, masks, subjects).evaluate(0.9, replicates=0)
    assert (result.scans, result.subjects) == (8, 5)
    each = []
    for name in sorted(set(subjects)):
        mine = [i for i, s in enumerate(subjects) if s == name]
        scores, labels = np.stack([maps[i] for i in mine]), np.stack([masks[i] for i in mine])
        empty = not labels.any() and not (scores > np.float32(0.9)).any()
        each.append(1.0 if empty else slow_dice(scores, labels, np.float32(0.9)))
    np.testing.assert_allclose(result.subject_dice.value, np.mean(each))


def test_image_bootstrap_equals_repeating_the_scans():
    rng = np.random.default_rng(2)
    labels = rng.random(25) < 0.3
    scores = np.round(rng.normal(size=25) + labels, 1)
    subjects = [f"s{i}" for i in rng.integers(0, 9, 25)]
    result = image_metrics(scores, labels, subjects, replicates=60, seed=5)
    names = list(dict.fromkeys(subjects))
    index = np.array([names.index(s) for s in subjects])
    drawn = []
    for weights in np.concatenate(list(resamples(len(names), 60, 5, 7))):
        rows = np.repeat(np.arange(25), weights[index].astype(int))
        if labels[rows].any() and not labels[rows].all():
            drawn.append(roc_auc_score(labels[rows], scores[rows]))
    expected = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose([result.auroc.low, result.auroc.high], expected)
    assert result.auroc.replicates_used == len(drawn) and result.auroc.n == len(names)


def test_pixel_bootstrap_equals_repeating_the_scans():
    maps, masks = some_maps(4, scans=6)
    result = collect(maps, masks).evaluate(0.8, replicates=25, seed=3)
    drawn = {name: [] for name in ("auroc", "ap", "aupro", "best_dice", "dice")}
    for weights in np.concatenate(list(resamples(6, 25, 3, 25))):
        rows = np.repeat(np.arange(6), weights.astype(int))
        again = collect([maps[i] for i in rows], [masks[i] for i in rows])
        values = again.evaluate(0.8, replicates=0)
        for name, kept in drawn.items():
            kept.append(getattr(values, name).value)
    for name, values in drawn.items():
        expected = np.nanquantile(values, [0.025, 0.975])
        estimate = getattr(result, name)
        np.testing.assert_allclose([estimate.low, estimate.high], expected, err_msg=name)


@pytest.mark.parametrize("kind", ["smooth", "rare", "clipped", "half precision", "inverted"])
def test_binned_metrics_are_within_a_thousandth(kind):
    rng = np.random.default_rng(7)
    negatives = rng.gamma(1.0, size=400_000).astype(np.float32)
    positives = (rng.gamma(3.0, size=40_000) + 0.5).astype(np.float32)
    if kind == "rare":
        positives = positives[:3000] + 4
    if kind == "clipped":
        negatives, positives = np.clip(negatives, 0.7, 2.5), np.clip(positives, 0.7, 2.5)
    if kind == "half precision":
        negatives, positives = np.float32(np.float16(negatives)), np.float32(np.float16(positives))
    if kind == "inverted":
        negatives, positives = -negatives, -positives
    negatives, positives = np.sort(negatives), np.sort(positives)
    weights = 1 / rng.integers(1, 500, positives.size)
    weights[:3] = 1.0
    both = []
    exact = curves.exact_edges(positives)
    mass = curves.cells(positives, exact), curves.cells(negatives, exact)
    for edges in (exact, curves.coarse_edges(exact, *mass)):
        p, n = curves.cells(positives, edges), curves.cells(negatives, edges)
        regions = curves.cells(positives, edges, weights)
        values = [curves.auroc(p, n), curves.average_precision(p, n)]
        both.append([*values, curves.aupro(regions, n), curves.best_dice(p, n)[0]])
    assert edges.size <= 2 * 4096
    np.testing.assert_allclose(both[0], both[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_cumulated_metrics_are_the_plain_ones(limit):
    rng = np.random.default_rng(3)
    positives, negatives = rng.integers(0, 4, (2, 40, 30)).astype(float)
    regions = positives * rng.uniform(0.1, 1, positives.shape)
    positives[0] = regions[0] = negatives[1] = positives[2, 5:] = regions[2, 5:] = 0
    negatives[3, 1:] = 0
    found = curves.cumulated(
        *(np.cumsum(m, axis=1) for m in (positives, negatives, regions)), limit
    )
    expected = {
        "auroc": curves.auroc(positives, negatives),
        "ap": curves.average_precision(positives, negatives),
        "aupro": curves.aupro(regions, negatives, limit),
        "best_dice": curves.best_dice(positives, negatives)[0],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9, err_msg=name)


def test_replicates_with_one_class_are_dropped_and_counted():
    result = image_metrics([0.1, 0.2, 0.9], [0, 0, 1], replicates=500, seed=1)
    # The one anomalous scan is missed with probability (2/3)^3, alone with (1/3)^3.
    assert abs(result.auroc.replicates_used / 500 - (1 - 9 / 27)) < 0.07
    assert (result.auroc.low, result.auroc.high) == (pytest.approx(0.025), 1)  # 1 of 1 pairs


def test_one_subject_or_no_replicate_has_no_interval():
    single = image_metrics([0, 1], [0, 1], ["a", "a"]).auroc
    assert single.value == 1 and math.isnan(single.low) and single.replicates_used == 0
    assert str(single) == "1.000"
    maps, masks = some_maps(0)
    assert math.isnan(collect(maps, masks).evaluate(replicates=0).ap.low)


def test_interval_covers_and_difference_is_paired():
    rng = np.random.default_rng(11)
    covered, wins = 0, 0
    for trial in range(60):
        labels = np.arange(120) % 2
        scores = rng.normal(size=120) + labels * 1.0
        result = image_metrics(scores, labels, replicates=200, seed=trial).auroc
        covered += result.low <= 0.76025 <= result.high  # Phi(1 / sqrt 2)
        worse = scores + 0.3 * rng.normal(size=120) - 0.3 * labels
        wins += bootstrap_difference(scores, worse, labels, replicates=200, seed=trial).low > 0
    assert 51 <= covered <= 60
    assert wins > 40  # unpaired intervals of half-width 0.08 could not tell the two apart
    same = bootstrap_difference(scores, 2 * scores, labels, replicates=50)
    assert same.value == same.low == same.high == 0


def test_seed_decides_the_interval_and_chunks_do_not():
    maps, masks = some_maps(5)
    pixels = collect(maps, masks)
    assert pixels.evaluate(0.5, seed=1) == pixels.evaluate(0.5, seed=1)
    assert pixels.evaluate(seed=1).ap != pixels.evaluate(seed=2).ap
    whole = next(resamples(7, 20, 0, 20))
    np.testing.assert_array_equal(whole, np.concatenate(list(resamples(7, 20, 0, 3))))
    assert (whole.sum(-1) == 7).all()


def test_json_is_strict_and_text_is_short():
    maps, masks = some_maps(6)
    text = json.dumps(collect(maps, [m * 0 for m in masks]).evaluate().to_dict(), allow_nan=False)
    stored = json.loads(text)
    assert stored["auroc"]["value"] is None and stored["best_dice_threshold"] is None
    assert stored["prevalence"] == 0 and stored["subjects"] == 8
    assert str(Estimate(0.9123, 0.8731, 0.9461, 10, 1000)) == "0.912 [0.873, 0.946]"
    assert str(Estimate(math.nan, math.nan, math.nan, 10, 0)) == "undefined"


@pytest.mark.parametrize(
    ("scores", "labels", "subjects", "message"),
    [
        ([], [], None, "one score and one label"),
        ([1.0, 2.0], [1], None, "one score and one label"),
        ([1.0, math.nan], [0, 1], None, "1 of 2 image scores are NaN"),
        ([1.0, 2.0], [0, 2], None, "must be 0"),
        ([1.0, 2.0], [0, 1], ["a"], "2 scores came with 1 subjects"),
    ],
)
def test_bad_image_input_is_refused(scores, labels, subjects, message):
    with pytest.raises(ArgumentError, match=message):
        image_metrics(scores, labels, subjects)


def test_bad_pixel_input_is_refused():
    pixels, zeros = PixelScores(), np.zeros((3, 3))
    with pytest.raises(ArgumentError, match="No scan was added"):
        pixels.evaluate()
    with pytest.raises(ArgumentError, match="1 of 9 evaluated pixels"):
        pixels.add(np.where(np.arange(9).reshape(3, 3) == 4, np.nan, 0), zeros, "a")
    with pytest.raises(ArgumentError, match="lesion mask has shape"):
        pixels.add(zeros, np.zeros((3, 4)), "a")
    with pytest.raises(ArgumentError, match="lesion mask contains NaN"):
        pixels.add(zeros, zeros * np.nan, "a")
    with pytest.raises(ArgumentError, match="inside the evaluation region"):
        pixels.add(zeros, zeros, "a", region=zeros)
    with pytest.raises(ArgumentError, match="2 or 3 dimensions"):
        pixels.add(np.zeros(9), np.zeros(9), "a")
    pixels.add(zeros, zeros, "a")
    for arguments in ({"limit": 0}, {"threshold": math.nan}, {"replicates": -1}, {"confidence": 1}):
        with pytest.raises(ArgumentError):
            pixels.evaluate(**arguments)
    assert len(pixels) == 1


def test_perfect_scores_have_the_exact_interval_of_disjoint_pairs():
    from scipy.stats import binomtest

    found = image_metrics([0.1, 0.2, 0.3, 0.8, 0.9], [0, 0, 0, 1, 1])
    exact = binomtest(2, 2).proportion_ci(0.95, "exact")
    assert (found.auroc.low, found.auroc.high) == pytest.approx((exact.low, 1))
    swapped = image_metrics([0.8, 0.9, 0.7, 0.1, 0.2], [0, 0, 0, 1, 1])
    assert (swapped.auroc.low, swapped.auroc.high) == pytest.approx((0, 1 - exact.low))
    assert math.isnan(found.ap.low)  # every resample gives 1: no interval
