"""Metrics of restored images against closed forms, scipy and scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from skimage.metrics import structural_similarity

from normscan.errors import ArgumentError
from normscan.metrics.normative import (
    FORMULAS,
    anomaly_to_healthy,
    feature_distance,
    frechet_distance,
    image_features,
    measure_restoration,
    normative_score,
    restoration_estimates,
    restoration_quality,
    ssim_map,
)


def two_taps(x):
    """A tiny extractor: an edge filter pair, and its pooled squares."""
    kernel = torch.tensor([[[[1.0, -1.0]]], [[[0.5, 0.5]]]])
    first = torch.nn.functional.conv2d(x, kernel, padding=(0, 1))
    return {"fine": first[..., 1:], "coarse": torch.nn.functional.avg_pool2d(first**2, 4)}


def lesion_scan(seed, size=32, channels=1):
    rng = np.random.default_rng(seed)
    healthy = rng.random((channels, size, size))
    lesion = np.zeros((size, size), bool)
    lesion[8:16, 10:20] = True
    return healthy, np.where(lesion, 1 - healthy, healthy), lesion


def test_errors_inside_and_outside_lesions_are_plain_means():
    healthy, scan, lesion = lesion_scan(0, channels=2)
    restored = healthy + 0.125
    foreground = np.ones(lesion.shape, bool)
    foreground[:, :4] = False
    restored[:, :, :4] += 3
    found = measure_restoration(scan * 200, restored * 200, lesion, foreground, data_range=200)
    gap = np.abs(restored - scan).mean(0)
    assert found["mae_healthy"] == pytest.approx(0.125, abs=1e-6)
    assert found["mse_healthy"] == pytest.approx(0.125**2, abs=1e-6)
    assert found["mae_lesion"] == pytest.approx(gap[lesion].mean(), abs=1e-6)
    assert found["mae"] == pytest.approx(gap[foreground].mean(), abs=1e-6)
    assert math.isnan(found["feature"])
    none = measure_restoration(scan, scan)
    assert none["mae"] == 0 and none["ssim"] == pytest.approx(1) and math.isnan(none["mae_lesion"])


def test_a_perfect_restoration_is_conserved_outside_and_corrected_inside():
    healthy, scan, lesion = lesion_scan(1)
    good = measure_restoration(scan, healthy, lesion, extractor=two_taps)
    lazy = measure_restoration(scan, scan, lesion, extractor=two_taps)
    for measure, sign in (("ssim", 1), ("feature", -1)):
        assert sign * (good[f"{measure}_healthy"] - good[f"{measure}_lesion"]) > 0.05
    assert lazy["ssim_lesion"] == pytest.approx(1) and lazy["feature"] == 0
    rows = [good, lazy, good]
    found = restoration_estimates(rows, ["a", "b", "a"], replicates=50)
    contrast = [row["ssim_healthy"] - row["ssim_lesion"] for row in rows]
    assert found["caci"].value == pytest.approx(np.mean(contrast)) and found["caci"].n == 2
    parts = [np.mean([row[k] for row in rows]) for k in ("ssim", "feature", "mae")]
    expected = (parts[0] + 1 - parts[1] + 1 - parts[2]) / 3
    assert found["rqi_unscaled"].value == pytest.approx(expected)


def test_caci_is_clipped_and_healthy_scans_do_not_count():
    healthy, scan, lesion = lesion_scan(2)
    backwards = measure_restoration(scan, np.where(lesion, scan, 1 - scan), lesion)
    plain = measure_restoration(healthy, healthy + 0.1)
    found = restoration_estimates([backwards, plain], replicates=0)
    assert found["caci"].value == 0 and math.isnan(found["feature"].value)
    both = restoration_estimates([measure_restoration(scan, healthy, lesion), plain], replicates=0)
    alone = restoration_estimates([measure_restoration(scan, healthy, lesion)], replicates=0)
    assert both["caci"].value == alone["caci"].value > 0


@pytest.mark.parametrize("shape", [(1, 20, 24), (2, 9, 10, 8), (1, 6, 6)])
def test_ssim_is_scikit_images(shape):
    rng = np.random.default_rng(3)
    a, b = rng.random((2, *shape)).astype(np.float32)
    window = 7 if min(shape[1:]) >= 7 else 5
    expected = [
        structural_similarity(x, y, data_range=1.0, win_size=window, full=True)[1]
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(ssim_map(a, b), np.mean(expected, axis=0), atol=1e-6)
    np.testing.assert_allclose(ssim_map(a * 9, b * 9, 9.0), ssim_map(a, b), atol=1e-5)


def test_feature_distance_by_hand_and_slice_by_slice():
    rng = np.random.default_rng(4)
    a, b = rng.random((2, 1, 8, 8, 3)).astype(np.float32)

    def one_tap(x):
        return {"only": torch.cat([x, 1 - x, x**2], dim=1)}

    def by_hand(x, y):
        u, v = (np.stack([z, 1 - z, z**2]) for z in (x, y))
        u, v = (z / np.linalg.norm(z, axis=0) for z in (u, v))
        return np.sum((u - v) ** 2, axis=0)

    found = feature_distance(a, b, one_tap, batch=2)
    assert found.shape == (8, 8, 3)
    for k in range(3):
        np.testing.assert_allclose(found[..., k], by_hand(a[0, ..., k], b[0, ..., k]), atol=1e-6)
    assert found.min() >= 0 and found.max() <= 4
    flat = feature_distance(
        np.stack([a[0, ..., 0], a[0, ..., 1]]), b[:, ..., 0].repeat(2, 0), one_tap
    )
    each = [by_hand(a[0, ..., k], b[0, ..., 0]) for k in range(2)]
    np.testing.assert_allclose(flat, np.mean(each, axis=0), atol=1e-6)
    assert feature_distance(a, a, two_taps).max() == 0
    batched = feature_distance(a, b, two_taps, batch=1)
    np.testing.assert_allclose(batched, feature_distance(a, b, two_taps), atol=1e-6)


@pytest.mark.parametrize("rows", [(40, 50), (4, 6)])
def test_frechet_distance_is_the_one_with_a_matrix_square_root(rows):
    rng = np.random.default_rng(5)
    mix = rng.normal(size=(8, 8))
    a, b = rng.normal(size=(rows[0], 8)) @ mix + 1, rng.normal(size=(rows[1], 8))
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(ca @ cb + 1e-14 * np.eye(8)).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(ca + cb - 2 * root)
    tolerance = 1e-9 if rows[0] > 8 else 1e-4  # sqrtm of a singular product is inexact
    assert frechet_distance(a, b) == pytest.approx(expected, rel=tolerance)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(32)
    with pytest.raises(ArgumentError, match="same features"):
        frechet_distance(a, b[:, :3])


def test_frechet_distance_is_that_of_monai():
    fid = pytest.importorskip("monai.metrics.fid")
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(60, 6)) @ rng.normal(size=(6, 6)) + 1, rng.normal(size=(50, 6))
    theirs = fid.FIDMetric()(torch.from_numpy(a), torch.from_numpy(b))
    assert frechet_distance(a, b) == pytest.approx(float(theirs), rel=1e-4)


def test_rqi_ranks_the_compared_methods_between_0_and_1():
    rng = np.random.default_rng(6)
    scans = [rng.random((1, 16, 16)) for _ in range(12)]
    subjects = np.repeat(np.arange(6), 2)
    methods = {
        name: [
            measure_restoration(s, s + noise * rng.normal(size=s.shape), extractor=two_taps)
            for s in scans
        ]
        for name, noise in (("best", 0.01), ("middle", 0.1), ("worst", 0.6))
    }
    found = restoration_quality(methods, subjects, replicates=100)
    assert found["best"].value == pytest.approx(1) and found["worst"].value == pytest.approx(0)
    means = {
        n: {k: np.mean([r[k] for r in rows]) for k in r}
        for n, rows in methods.items()
        for r in rows[:1]
    }
    scaled = [
        (means["middle"][k] - means["worst"][k]) / (means["best"][k] - means["worst"][k])
        for k in ("ssim", "feature", "mae")
    ]
    middle = found["middle"]
    assert middle.value == pytest.approx(np.mean(scaled)) and middle.n == 6
    assert middle.low < middle.value < middle.high
    alone = restoration_quality({"best": methods["best"]}, replicates=0)
    assert math.isnan(alone["best"].value)
    with pytest.raises(ArgumentError, match="as many rows"):
        restoration_quality({"a": methods["best"], "b": methods["best"][:3]})


def features(rng, n, shift):
    return rng.normal(size=(n, 5)) + shift


def test_ahi_is_0_unrestored_1_when_restored_to_healthy_and_nan_when_blind():
    rng = np.random.default_rng(7)
    training, healthy, sick = features(rng, 300, 0), features(rng, 40, 0), features(rng, 40, 2)
    none = anomaly_to_healthy(training, healthy, sick, sick)
    full = anomaly_to_healthy(training, healthy, sick, healthy)
    assert none.value == 0 and full.value == pytest.approx(1)
    worse = anomaly_to_healthy(training, healthy, sick, sick + 1)
    assert worse.value == 0 and worse.high == 0
    half = anomaly_to_healthy(training, healthy, sick, sick - 1)
    far, near = frechet_distance(sick, training), frechet_distance(healthy, training)
    expected = (far - frechet_distance(sick - 1, training)) / (far - near)
    assert half.value == pytest.approx(expected) and half.low < half.value < half.high
    blind = anomaly_to_healthy(training, sick, healthy, healthy)
    assert math.isnan(blind.value) and "no further" in blind.reason


def test_ahi_error_is_that_of_repeated_samples_and_goes_by_subject():
    rng = np.random.default_rng(8)
    training = features(rng, 300, 0)
    values, errors = [], []
    for _ in range(40):
        sick = features(rng, 30, 1.5)
        restored = 0.5 * sick
        e = anomaly_to_healthy(training, features(rng, 30, 0), sick, restored)
        values.append(e.value)
        errors.append((e.high - e.low) / (2 * stats.norm.ppf(0.975)))
    assert 0.7 < np.mean(errors) / np.std(values, ddof=1) < 1.4
    healthy, sick = features(rng, 12, 0), features(rng, 12, 1.5)
    owner = np.repeat(np.arange(6), 2)
    one = anomaly_to_healthy(training, healthy, sick, 0.5 * sick)
    pairs = anomaly_to_healthy(training, healthy, sick, 0.5 * sick, owner, owner)
    assert (one.n, pairs.n, one.value) == (24, 12, pairs.value) and one.low != pairs.low


def test_image_features_average_slices_and_channels():
    rng = np.random.default_rng(9)
    volume = rng.random((2, 8, 8, 3)).astype(np.float32)
    found = image_features([volume, volume[..., 0]], two_taps, batch=4)
    assert found.shape == (2, 4)
    each = [image_features([volume[c : c + 1, ..., k]], two_taps) for c in (0, 1) for k in range(3)]
    np.testing.assert_allclose(found[0], np.mean(each, axis=0)[0], rtol=1e-5)


def test_score_and_formulas():
    # PHANES in the released plotting file: RQI 0.89, AHI 0.44, CACI 0.49.
    harmonic = stats.hmean([0.89, 0.49])
    assert normative_score(0.89, 0.44, 0.49) == pytest.approx((harmonic + 0.44) / 2)
    assert normative_score(0, 0.2, 0) == 0.1
    for index in ("rqi", "ahi", "caci"):
        assert "working definition" in FORMULAS[index]


@pytest.mark.parametrize(
    ("scan", "restored", "match"),
    [
        (np.zeros((1, 8, 8)), np.zeros((1, 8, 9)), "agree"),
        (np.zeros((8, 8)), np.zeros((8, 8)), "agree"),
        (np.full((1, 8, 8), math.nan), np.zeros((1, 8, 8)), "finite"),
        (np.zeros((1, 2, 8)), np.zeros((1, 2, 8)), "at least 3 pixels"),
    ],
)
def test_unusable_images_are_refused(scan, restored, match):
    with pytest.raises(ArgumentError, match=match):
        measure_restoration(scan, restored)


def test_a_pretrained_backbone_sees_blur_that_pixel_errors_hardly_see(shared):
    from scipy.ndimage import gaussian_filter

    from normscan.networks.backbones import Backbone

    weights = shared / "weights" / "resnet18_imagenet1k_v1_bnfolded_conv1_to_layer3.pth"
    if not weights.is_file():
        pytest.skip("the resnet18 weights are not on this machine")
    network = Backbone("resnet18.tv_in1k", ("layer1", "layer2"), str(weights))
    rng = np.random.default_rng(10)
    scan = gaussian_filter(rng.random((1, 96, 96)), (0, 2, 2))
    scan = (scan - scan.min()) / np.ptp(scan)
    blurred = gaussian_filter(scan, (0, 3, 3))
    shifted = scan + np.abs(scan - blurred).mean()
    blur = measure_restoration(scan, blurred, extractor=network)
    shift = measure_restoration(scan, shifted, extractor=network)
    assert blur["mae"] == pytest.approx(shift["mae"], rel=1e-4)
    assert blur["feature"] > 3 * shift["feature"] > 0
