"""Counting without sorting, streams, and the variants, against slow references."""

from __future__ import annotations

import json
import math
import zipfile

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import auc

from normscan.errors import ArgumentError
from normscan.metrics import PixelScores, StreamingPixelScores, curves, variants
from normscan.metrics.counting import Lookup, bin_start, ordered_keys, scores_of, unsorted_cells

RANKED = ("auroc", "ap", "aupro", "best_dice")
FLOATS = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0, math.inf])


def some_maps(seed, scans=6, shape=(16, 15), levels=None, dims=2):
    rng = np.random.default_rng(seed)
    shape = shape if dims == 2 else (5, *shape)
    maps, masks = [], []
    for i in range(scans):
        mask = ndimage.binary_dilation(rng.random(shape) > 0.98) & bool(i % 3)
        scores = rng.gamma(1.0, size=shape) + mask * rng.random()
        if levels:
            scores = np.clip(np.round(scores * levels) / levels, 0, 1)
        maps.append(scores.astype(np.float32))
        masks.append(mask)
    return maps, masks


def exact(maps, masks, threshold=None, **options):
    pixels = PixelScores()
    for i, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        pixels.add(scores, mask, i)
    return pixels.evaluate(threshold, replicates=0, **options)


def stream(maps, masks, threshold=None, bits=18):
    pixels = StreamingPixelScores(threshold, bits)
    for scores, mask in zip(maps, masks, strict=True):
        pixels.add(scores, mask)
    return pixels


def same(a, b):
    a, b = (json.dumps(x.to_dict(), sort_keys=True) for x in (a, b))
    return a == b


@given(st.lists(FLOATS, min_size=1, max_size=40))
def test_keys_are_in_the_order_of_the_scores(values):
    scores = np.array(values, np.float32)
    keys = ordered_keys(scores)
    np.testing.assert_array_equal(keys[:, None] < keys, scores[:, None] < scores)
    np.testing.assert_array_equal(keys[:, None] == keys, scores[:, None] == scores)
    np.testing.assert_array_equal(scores_of(keys), scores)


@settings(max_examples=60)
@given(st.lists(FLOATS, max_size=12), st.lists(FLOATS, max_size=200), st.integers(0, 10**6))
def test_counting_equals_sorting_for_any_floats(positives, extra, seed):
    positives = np.array(positives, np.float32)
    rng = np.random.default_rng(seed)
    near = np.nextafter(rng.choice(np.append(positives, 0), 100), np.float32(rng.choice([-9, 9])))
    scores = np.concatenate([np.array(extra), near, positives]).astype(np.float32)
    edges = curves.exact_edges(positives)
    parts = np.array_split(rng.permutation(scores), 3)
    np.testing.assert_array_equal(
        unsorted_cells(parts, edges), curves.cells(np.sort(scores), edges)
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(FLOATS, max_size=12), st.booleans(), st.integers(0, 10**6))
@example([-math.inf], True, 0)
def test_looking_up_equals_sorting_for_any_floats(positives, at_bins, seed):
    rng = np.random.default_rng(seed)
    edges = curves.exact_edges(np.array(positives, np.float32))
    if at_bins:
        edges = np.unique(np.append(bin_start(edges[:-1]), np.float32(-np.inf)))[::-1]
    with np.errstate(over="ignore"):
        near = [np.nextafter(edges, np.float32(end)) for end in (-np.inf, np.inf)]
        tails = 10.0 ** rng.uniform(-44, 39, 50)
        scores = np.concatenate([edges, *near, -tails, tails, [0, -0.0]]).astype(np.float32)
    cells = Lookup(edges)(scores)
    np.testing.assert_array_equal(
        np.bincount(cells, minlength=edges.size), curves.cells(np.sort(scores), edges)
    )
    assert (edges[cells] <= scores).all() and (
        scores[cells > 0] < edges[cells - 1][cells > 0]
    ).all()


@pytest.mark.parametrize("kind", ["smooth", "steps", "one subject leads"])
def test_intervals_are_within_a_thousandth_of_exact_ones(kind, monkeypatch):
    rng, maps = np.random.default_rng(5), []
    masks = rng.random((12, 128, 128)) < 0.1
    for i, mask in enumerate(masks):
        scores = rng.gamma(1.0, size=mask.shape) + mask * rng.gamma(2.0, size=mask.shape)
        if kind == "one subject leads":
            scores += 3 * (i == 0)
        maps.append(np.round(scores, 3) if kind == "steps" else scores)
    pixels = PixelScores()
    for i, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        pixels.add(scores, mask, i // 2)
    coarse = pixels.evaluate(replicates=100)
    monkeypatch.setattr(curves, "FEW_EDGES", 10**9)
    right = pixels.evaluate(replicates=100)
    for name in RANKED:
        a, b = getattr(coarse, name), getattr(right, name)
        assert a.value == b.value and (a.low, a.high) != (b.low, b.high)
        np.testing.assert_allclose(
            [a.low, a.high], [b.low, b.high], rtol=0, atol=1e-3, err_msg=name
        )


@pytest.mark.parametrize(
    "kind", ["smooth", "zeros", "clipped", "half", "heavy tails", "negative", "narrow"]
)
def test_counting_equals_sorting_where_scores_crowd(kind, monkeypatch):
    monkeypatch.setattr("normscan.metrics.counting._BLOCK", 2**12)
    rng = np.random.default_rng(3)
    scores = rng.gamma(1.0, size=300_000)
    if kind == "zeros":
        scores[rng.random(scores.size) < 0.8] = 0
    if kind == "clipped":
        scores = np.clip(scores, 0.5, 2)
    if kind == "half":
        scores = np.float16(scores)
    if kind == "heavy tails":
        scores = 10.0 ** rng.uniform(-44, 38, scores.size)
    if kind == "negative":
        scores = -scores
    if kind == "narrow":  # more edges in a range of keys than it can have bins
        scores = 100 + rng.random(scores.size) / 4
    scores = scores.astype(np.float32)
    positives, parts = scores[:20_000] + np.float32(0.1), [scores[20_000:90_000], scores[90_000:]]
    edges = curves.exact_edges(positives)
    expected = curves.cells(np.sort(scores[20_000:]), edges)
    np.testing.assert_array_equal(unsorted_cells(parts, edges), expected)
    assert expected.sum() == 280_000


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([10, 13, 18]),
    st.sampled_from([0.05, 0.3, 1.0]),
    st.sampled_from([2, 3]),
)
def test_the_exact_value_lies_within_the_bounds_of_a_stream(seed, levels, bits, limit, dims):
    maps, masks = some_maps(seed, levels=levels, dims=dims)
    right = exact(maps, masks, 0.7, limit=limit)
    found = stream(maps, masks, 0.7, bits).evaluate(limit)
    for name in RANKED:
        value, (low, high) = getattr(right, name).value, found.bounds[name]
        if math.isnan(value):
            assert math.isnan(getattr(found, name)) and math.isnan(low) and math.isnan(high)
            continue
        assert 0 <= low <= high + 1e-12 <= 1 + 1e-9
        assert low - 1e-9 <= value <= high + 1e-9, name
        assert low - 1e-9 <= getattr(found, name) <= high + 1e-9, name
    for name in ("dice", "sensitivity"):
        np.testing.assert_allclose(getattr(found, name), getattr(right, name).value)
    for name in ("pixels", "regions", "scans", "prevalence", "evaluated"):
        assert getattr(found, name) == getattr(right, name)
    reached = exact(maps, masks, found.best_dice_threshold).dice
    if masks and any(mask.any() for mask in masks):
        np.testing.assert_allclose(reached.value, found.best_dice)


def test_a_finer_stream_is_closer_and_bounds_are_small():
    maps, masks = some_maps(5, scans=8, shape=(128, 128))
    widths = []
    for bits in (12, 16, 20):
        bounds = stream(maps, masks, bits=bits).evaluate().bounds
        widths.append([high - low for low, high in (bounds[name] for name in RANKED)])
    assert (np.diff(widths, axis=0) < 0).all()
    assert max(widths[-1]) < 2e-3


def test_merging_is_associative_and_equals_one_stream(tmp_path):
    maps, masks = some_maps(1, scans=9)
    parts = [stream(maps[i::3], masks[i::3], 0.5) for i in range(3)]
    left = parts[0].merge(parts[1]).merge(parts[2])
    right = parts[0].merge(parts[1].merge(parts[2]))
    whole = stream(maps, masks, 0.5)
    for name in RANKED:
        values = [getattr(s.evaluate(), name) for s in (left, right, whole)]
        np.testing.assert_allclose(values, values[0], rtol=1e-12)
    assert len(left) == len(whole) == 9 and len(parts[0]) == 3
    left.save(tmp_path / "a.npz")
    assert same(StreamingPixelScores.load(tmp_path / "a.npz").evaluate(), left.evaluate())
    with pytest.raises(ArgumentError, match="can't be merged"):
        left.merge(StreamingPixelScores(0.5, 17))


def test_a_stream_takes_saturated_scores_and_regions():
    scores = np.array([[np.inf, -np.inf, 0, 1]], np.float32)
    mask = np.array([[1, 0, 0, 0]])
    found = stream([scores], [mask]).evaluate()
    assert found.auroc == found.ap == found.best_dice == found.best_iou == 1
    region = StreamingPixelScores()
    region.add(np.array([[1, np.nan]]), None, np.array([[1, 0]]))
    assert region.evaluate().evaluated == "region" and region.evaluate().pixels == 1
    assert math.isnan(region.evaluate().auroc)


@pytest.mark.parametrize("kind", ["no zip", "negative", "outside", "pickle", "bits", "missing"])
def test_hostile_counts_are_refused(tmp_path, kind):
    path = tmp_path / "bad.npz"
    maps, masks = some_maps(1)
    stream(maps, masks).save(path)
    with np.load(path) as stored:
        content = dict(stored)
    if kind == "no zip":
        path.write_bytes(b"PK nothing")
    else:
        if kind == "negative":
            content["positives"][0] = -1
        if kind == "outside":
            content["bins"][0] = 2**18
        if kind == "pickle":
            content["tallies"] = np.array([{}] * 5, object)
        if kind == "bits":
            content["settings"][0] = 40
        if kind == "missing":
            del content["regions"]
        np.savez(path, **content)
    with pytest.raises(ArgumentError, match=r"bad\.npz"):
        StreamingPixelScores.load(path)


def test_a_zip_bomb_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("normscan.metrics.streaming._LARGEST", 2**24)
    path = tmp_path / "bomb.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as f,
    ):
        f.write(bytes(2**24 + 1))
    with pytest.raises(ArgumentError, match=r"bomb\.npz.*larger"):
        StreamingPixelScores.load(path)


def test_bad_streams_are_refused():
    for options in ({"bits": 9}, {"bits": 25}, {"threshold": math.nan}):
        with pytest.raises(ArgumentError):
            StreamingPixelScores(**options)
    with pytest.raises(ArgumentError, match="No scan"):
        StreamingPixelScores().evaluate()
    with pytest.raises(ArgumentError, match="limit"):
        stream(*some_maps(0)).evaluate(0)


def slow_above(maps, masks, threshold):
    """Predicted mask, and true, false and missed pixels."""
    predicted = [m > threshold for m in maps]
    true = sum((p & y).sum() for p, y in zip(predicted, masks, strict=True))
    false = sum((p & ~y).sum() for p, y in zip(predicted, masks, strict=True))
    return predicted, true, false, sum(y.sum() for y in masks) - true


def slow_f1(maps, masks, thresholds):
    values = []
    for threshold in thresholds:
        _, true, false, missed = slow_above(maps, masks, np.float32(threshold))
        values.append(2 * true / (2 * true + false + missed))
    return max(values)


@pytest.mark.parametrize("seed", range(4))
def test_variants_agree_with_loops(seed):
    maps, masks = some_maps(seed)
    if seed % 2:
        maps = [np.round(20 * m) / np.float32(20) for m in maps]
    scores = np.concatenate([m.ravel() for m in maps])
    low, high = scores.min(), scores.max()
    best = exact(maps, masks).best_dice.value
    for value, thresholds in (
        (variants.upd_best_dice(maps, masks), np.linspace(high, low, 100)),
        (variants.ader_pixel_f1(maps, masks), low + np.arange(21) / 20 * (high - low)),
        (
            variants.medianomaly_best_dice(maps, masks),
            np.sort(scores)[np.arange(0, scores.size, scores.size // 200)],
        ),
    ):
        np.testing.assert_allclose(value, slow_f1(maps, masks, thresholds))
        assert value <= best
    fpr, pro = [], []
    healthy = sum((~y).sum() for y in masks)
    for threshold in np.arange(200) * (float(high) - float(low)) / 200 + float(low):
        predicted, _, false, _ = slow_above(maps, masks, np.float32(threshold))
        overlaps = []
        for p, y in zip(predicted, masks, strict=True):
            labels, count = ndimage.label(y, np.ones((3, 3)))
            overlaps += [p[labels == i].mean() for i in range(1, count + 1)]
        if false / healthy < 0.3:
            fpr.append(false / healthy)
            pro.append(np.mean(overlaps))
    fpr = (np.array(fpr) - min(fpr)) / (max(fpr) - min(fpr))
    np.testing.assert_allclose(variants.ader_aupro(maps, masks), auc(fpr, pro))


def test_trapezoid_aupr_is_another_number_than_average_precision():
    maps, masks = some_maps(2, scans=8, shape=(64, 64))
    scores = np.concatenate([m.ravel() for m in maps])
    labels = np.concatenate([y.ravel() for y in masks])
    recall, precision = [], []
    for edge in np.linspace(scores.min(), scores.max(), 1001).astype(np.float32):
        called = scores >= edge
        recall.append((called & labels).sum() / labels.sum())
        precision.append((called & labels).sum() / called.sum() if called.any() else 1)
    value = variants.trapezoid_aupr(maps, masks)
    np.testing.assert_allclose(value, auc(recall, precision))
    assert value != pytest.approx(exact(maps, masks).ap.value, abs=1e-6)


def test_variants_are_nan_without_lesions_and_refuse_infinities():
    maps, masks = some_maps(0)
    empty = [y * 0 for y in masks]
    for name in ("ader_aupro", "ader_pixel_f1", "upd_best_dice", "medianomaly_best_dice"):
        assert math.isnan(getattr(variants, name)(maps, empty))
    assert math.isnan(variants.trapezoid_aupr(maps, empty))
    maps[0][0, 0] = np.inf
    with pytest.raises(ArgumentError, match="finite"):
        variants.upd_best_dice(maps, masks)
    with pytest.raises(ArgumentError, match="one for each"):
        variants.upd_best_dice(maps, masks[1:])


def test_mad_is_the_mean_of_seven_and_leaves_nan_out():
    # PatchCore on MVTec AD, ADer's table: mAD 87.2 of metrics that sum to 610.1.
    row = dict.fromkeys(variants.MAD_METRICS, 610.1 / 7)
    assert round(variants.mad([row])[0], 1) == 87.2
    value, left_out = variants.mad([row, {**row, "aupro": math.nan}])
    assert round(value, 1) == 87.2 and left_out == 1
    with pytest.raises(ArgumentError, match="aupro"):
        variants.mad([{k: v for k, v in row.items() if k != "aupro"}])


def test_baur_counts_intersections_in_blocks_of_slices():
    truth, predicted = np.zeros((2, 45, 12, 12), bool)
    truth[18:22, 2:4, 2:4] = True  # crosses the first border: two lesions
    predicted[18:22, 2, 2] = predicted[18:22, 3, 3] = True
    truth[30, 8, 8] = True  # missed
    predicted[42, :2, :4] = True  # eight voxels: a false positive
    predicted[5, 9, :7] = True  # seven: dropped
    assert variants.baur_lesions(predicted, truth) == (2, 1, 1)
    predicted[18:22, 3, 3] = False
    predicted[18:22, 5, 5] = True  # four voxels beside: too few
    assert variants.baur_lesions(predicted, truth) == (2, 1, 1)
    with pytest.raises(ArgumentError, match="volumes"):
        variants.baur_lesions(predicted[0], truth[0])


def test_normative_detection_follows_its_formula():
    lesion, healthy = np.zeros((2, 10, 10), bool)
    lesion[:2, :5] = True
    healthy[5:] = True
    residual = np.zeros((10, 10), np.float32)
    residual[0, :1] = 1
    assert variants.normative_detection(residual, lesion, healthy, 0.5) == 0  # 10 % is not enough
    residual[0, :2] = 1
    assert variants.normative_detection(residual, lesion, healthy, 0.5) == 1
    residual[5:] = 0.1  # 5 / 2: two false positives
    np.testing.assert_allclose(
        variants.normative_detection(residual, lesion, healthy, 0.5), 2 * (1 / 3) / (4 / 3)
    )
    assert math.isnan(variants.normative_detection(residual, healthy * 0, healthy, 0.5))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([None, 1, 3]))
def test_pixel_metrics_lie_in_the_unit_interval_and_survive_monotone_maps(seed, levels):
    maps, masks = some_maps(seed, scans=4, levels=levels)
    found = exact(maps, masks, 0.7)
    ranks = np.unique(np.stack(maps), return_inverse=True)[1].reshape(np.shape(maps))
    moved = exact(
        [np.float32(3) - 1 / (r + np.float32(1)) for r in ranks.astype(np.float32)], masks
    )
    for name in (*RANKED, "best_iou"):
        value = getattr(found, name).value
        assert math.isnan(value) or 0 <= value <= 1 + 1e-12
        np.testing.assert_allclose(getattr(moved, name).value, value, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_iou_and_sensitivity_agree_with_loops(seed):
    maps, masks = some_maps(seed, levels=10 if seed else None)
    found = exact(maps, masks, 0.6)
    _, true, false, missed = slow_above(maps, masks, np.float32(0.6))
    np.testing.assert_allclose(found.iou.value, true / (true + false + missed))
    np.testing.assert_allclose(found.sensitivity.value, true / (true + missed))
    every = [slow_above(maps, masks, t - np.float32(1e-6)) for t in np.unique(np.stack(maps))]
    best = max(t / (t + f + m) for _, t, f, m in every)
    np.testing.assert_allclose(found.best_iou.value, best)
    empty = exact(maps, [y & False for y in masks], 0.6)
    assert math.isnan(empty.iou.value) and math.isnan(empty.sensitivity.value)
    assert math.isnan(empty.best_iou.value)
