"""Post-processing and reductions against scipy, scikit-image and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.exposure import equalize_hist
from skimage.measure import label, regionprops

from normscan.errors import ArgumentError
from normscan.methods.autoencoders.intensity import equalize
from normscan.scores.postprocess import apply_chain, drop_small, parse
from normscan.scores.reductions import REDUCTIONS, reduce_map


@pytest.fixture(params=[(20, 17), (14, 13, 6)], ids=["2d", "3d"])
def case(request, rng):
    """Map, foreground and image."""
    shape = request.param
    foreground = ndimage.binary_dilation(rng.uniform(size=shape) > 0.97, iterations=3)
    return rng.uniform(size=shape), foreground, rng.uniform(size=(2, *shape))


def by_slice(function, *arrays):
    """Apply a 2D function to each slice of the last axis of 3D arrays."""
    if arrays[0].ndim == 2:
        return function(*arrays)
    parts = [function(*(a[..., k] for a in arrays)) for k in range(arrays[0].shape[-1])]
    return np.stack(parts, axis=-1)


def test_foreground(case):
    anomaly, foreground, image = case
    result = apply_chain(["foreground"], anomaly, foreground, image)
    np.testing.assert_array_equal(result, np.where(foreground, anomaly, 0).astype(np.float32))


@pytest.mark.parametrize("times", [1, 2, 4])
def test_erosion_is_by_a_cross_and_slice_by_slice(case, times):
    anomaly, foreground, image = case

    def erode(mask):
        # The cross so many times over is a diamond; it may reach over the border of the image.
        wide = np.pad(mask, times, constant_values=True)
        y, x = np.mgrid[-times : times + 1, -times : times + 1]
        diamond = np.abs(y) + np.abs(x) <= times
        inner = (slice(times, -times),) * 2
        return ndimage.minimum_filter(wide, footprint=diamond)[inner]

    kept = by_slice(erode, foreground)
    assert 0 < kept.sum() < foreground.sum() or times == 4
    result = apply_chain([f"erode={times}"], anomaly, foreground, image)
    np.testing.assert_allclose(result, anomaly * kept, rtol=1e-6)


def test_erosion_keeps_the_border_of_the_image(rng):
    anomaly, foreground = rng.uniform(0.5, 1, (12, 12)), np.ones((12, 12), bool)
    assert (apply_chain(["erode=3"], anomaly, foreground, anomaly[None]) > 0).all()
    foreground[:, 8:] = False
    result = apply_chain(["erode=3"], anomaly, foreground, anomaly[None])
    assert (result[:, :5] > 0).all() and (result[:, 5:] == 0).all()


def test_erosion_by_nothing_changes_nothing(case):
    anomaly, foreground, image = case
    result = apply_chain(["erode=0"], anomaly, foreground, image)
    np.testing.assert_array_equal(result, anomaly.astype(np.float32))


def test_inner_keeps_where_nearly_all_neighbours_are_foreground(case):
    anomaly, foreground, image = case

    def inner(mask):
        wide = np.pad(mask, 2, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(wide, (5, 5))
        return windows.sum(axis=(2, 3)) >= 24  # 24 of 25 is 0.96

    result = apply_chain(["inner=5"], anomaly, foreground, image)
    expected = anomaly * by_slice(inner, foreground)
    assert (expected > 0).any() and (expected == 0).any()
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def windows_median(x, size):
    wide = np.pad(x, size // 2, mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(wide, (size,) * x.ndim)
    return np.median(windows.reshape(*x.shape, -1), axis=-1)


def test_median_runs_in_all_axes(case):
    anomaly, foreground, image = case
    result = apply_chain(["median=3"], anomaly, foreground, image)
    np.testing.assert_allclose(result, windows_median(anomaly, 3), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("shape", [(3, 2), (40, 31), (37, 50, 33)])
def test_median_in_the_plane_is_that_of_scipy(size, shape, rng):
    anomaly = np.round(rng.normal(size=shape), 1).astype(np.float32)
    found = apply_chain([f"median_inplane={size}"], anomaly, anomaly > 0, anomaly[None])
    whole = (size, size) + (1,) * (len(shape) - 2)
    np.testing.assert_array_equal(found, ndimage.median_filter(anomaly, whole, mode="reflect"))


def test_median_in_the_plane(case):
    anomaly, foreground, image = case
    result = apply_chain(["median_inplane=5"], anomaly, foreground, image)
    expected = by_slice(lambda x: windows_median(x, 5), anomaly)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_smoothing_in_the_plane(case):
    anomaly, foreground, image = case

    def smooth(x, sigma=1.5):
        reach = int(4 * sigma + 0.5)
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        weights /= weights.sum()
        wide = np.pad(x, reach, mode="symmetric")
        rows = np.apply_along_axis(np.convolve, 0, wide, weights, "valid")
        return np.apply_along_axis(np.convolve, 1, rows, weights, "valid")

    result = apply_chain(["smooth=1.5"], anomaly, foreground, image)
    np.testing.assert_allclose(result, by_slice(smooth, anomaly), rtol=1e-5)


def test_hyperintense_keeps_the_brightest_of_the_whole_image(case):
    """A wide dark frame lowers the quantile, so that more of the brain is kept."""
    anomaly, foreground, image = case
    image = image * foreground
    result = apply_chain(["hyperintense=0.8"], anomaly, foreground, image)
    grey = image.mean(0)
    n = grey.size
    brightest = np.sort(grey.ravel())[-int(np.ceil(0.2 * (n - 1) - 1e-9)) - 1 :]
    kept = grey >= np.quantile(grey, 0.8)
    assert abs(int(kept.sum()) - len(brightest)) <= 1
    np.testing.assert_allclose(result, anomaly * kept, rtol=1e-6)
    framed = [
        np.pad(a, [(0, 0)] * (a.ndim - 2) + [(20, 20)] * 2) for a in (anomaly, foreground, image)
    ]
    assert (apply_chain(["hyperintense=0.8"], *framed) > 0).sum() > (result > 0).sum()


def test_otsu_keeps_what_best_divides_the_variance(case):
    anomaly = case[0].astype(np.float32)
    result = apply_chain(["otsu"], anomaly, *case[1:])
    cut = anomaly[result == 0].max()
    assert (anomaly[result > 0] > cut).all() and np.array_equal(
        result[result > 0], anomaly[result > 0]
    )

    def between(threshold):
        upper = anomaly > threshold
        share = upper.mean()
        return share * (1 - share) * (anomaly[upper].mean() - anomaly[~upper].mean()) ** 2

    tried = np.quantile(anomaly, np.linspace(0.01, 0.99, 99))
    assert between(cut) >= 0.999 * max(map(between, tried))


def test_opening_keeps_large_areas_of_a_slice():
    anomaly = np.zeros((12, 12, 3), np.float32)
    anomaly[1:4, 1:4, 0] = 0.5  # 9 pixels
    anomaly[6:8, 6:8, :] = 0.7  # 4 in each of three slices, 12 in space
    anomaly[8, 8, 0] = 0.7  # touches those at a corner
    expected = anomaly * 0
    expected[1:4, 1:4, 0] = 0.5
    everywhere = np.ones(anomaly.shape, bool)
    np.testing.assert_array_equal(
        apply_chain(["opening=5"], anomaly, everywhere, anomaly[None]), expected
    )
    plane = apply_chain(["opening=5"], anomaly[..., 0], everywhere[..., 0], anomaly[None, ..., 0])
    np.testing.assert_array_equal(plane, expected[..., 0])


def test_nonzero_looks_at_all_channels(case):
    anomaly, foreground, image = case
    image = np.stack([image[0], 0 * image[0]])
    image[0, :2] = 0
    image[1, 0] = 1
    result = apply_chain(["nonzero"], anomaly, foreground, image)
    assert not result[1].any()
    np.testing.assert_allclose(result[0], anomaly[0], rtol=1e-6)


def test_steps_act_in_order(case):
    anomaly, foreground, image = case
    first = apply_chain(["foreground", "smooth=2"], anomaly, foreground, image)
    second = apply_chain(["smooth=2", "foreground"], anomaly, foreground, image)
    assert (second[~foreground] == 0).all() and (first[~foreground] > 0).any()


def test_parse():
    assert parse(["erode", "median=7", "smooth=2.5"]) == [
        ("erode", 12.0),
        ("median", 7.0),
        ("smooth", 2.5),
    ]
    with pytest.raises(ArgumentError, match="Did you mean 'median'"):
        parse(["medain=5"])
    with pytest.raises(ArgumentError, match="is no number"):
        parse(["median=five"])


# --- components


def slow_drop_small(segmentation, smallest):
    """By scikit-image's regions, as in the released codes."""
    result = np.zeros_like(segmentation)
    for region in regionprops(label(segmentation, connectivity=segmentation.ndim)):
        if region.area_filled > smallest:
            result[tuple(region.coords.T)] = True
    return result


@pytest.mark.parametrize("shape", [(24, 24), (12, 12, 8)])
@pytest.mark.parametrize("smallest", [0, 2, 7, 30])
def test_small_components_are_dropped(rng, shape, smallest):
    segmentation = rng.uniform(size=shape) > (0.85 if len(shape) == 2 else 0.95)
    expected = slow_drop_small(segmentation, smallest)
    np.testing.assert_array_equal(drop_small(segmentation, smallest), expected)


def test_holes_count_in_and_corners_touch():
    ring = np.zeros((9, 9), bool)
    ring[1:6, 1:6] = True
    ring[2:5, 2:5] = False
    assert drop_small(ring, 24).sum() == 16 and not drop_small(ring, 25).any()
    diamond = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool)
    assert drop_small(diamond, 3).sum() == 4
    # Its middle touches the outside at the corners, so it is no hole.
    assert not drop_small(diamond, 4).any()


# --- reductions


def test_reductions_against_sorted_lists(case):
    anomaly, foreground, _ = case
    inside = sorted(anomaly[foreground].tolist())
    n = len(inside)
    mean = sum(inside) / n
    expected = {
        "mean": sum(anomaly.ravel().tolist()) / anomaly.size,
        "foreground_mean": mean,
        "max": max(anomaly.ravel().tolist()),
        "top_0.1_percent": np.mean(inside[n - max(1, round(0.001 * n)) :]),
        "top_1_percent": np.mean(inside[n - max(1, round(0.01 * n)) :]),
        "top_5_percent": np.mean(inside[n - max(1, round(0.05 * n)) :]),
        "top_10_percent": np.mean(inside[n - max(1, round(0.10 * n)) :]),
        **{f"p_norm_{p}": (sum(v**p for v in inside) / n) ** (1 / p) for p in (2, 4, 8)},
        "std": np.sqrt(sum((v - mean) ** 2 for v in inside) / n),
    }
    assert set(expected) == set(REDUCTIONS)
    for name, value in expected.items():
        assert reduce_map(name, anomaly, foreground) == pytest.approx(value)


def test_reductions_without_a_foreground(rng):
    anomaly = rng.uniform(size=(5, 5))
    nothing, everything = np.zeros((5, 5), bool), np.ones((5, 5), bool)
    for name in REDUCTIONS:
        assert reduce_map(name, anomaly, nothing) == reduce_map(name, anomaly, everything)


def test_an_unknown_reduction_names_the_nearest(rng):
    with pytest.raises(ArgumentError, match="Did you mean 'top_1_percent'"):
        reduce_map("top1percent", np.ones((2, 2)), np.ones((2, 2), bool))


# --- histogram equalisation


@pytest.mark.parametrize("bins", [7, 256])
@pytest.mark.parametrize("n", [50, 4000])
def test_equalisation_against_scikit_image(rng, n, bins):
    values = rng.gamma(2.0, 3.0, n)
    got = equalize(torch.tensor(values), bins)
    np.testing.assert_allclose(got, equalize_hist(values, bins), atol=1e-9)


def test_equalisation_inside_a_mask_as_in_the_article(rng):
    image = rng.gamma(2.0, 3.0, (20, 20))
    mask = rng.uniform(size=(20, 20)) > 0.5
    expected = equalize_hist(image, 256, mask=mask)[mask]
    got = equalize(torch.tensor(image[mask]), 256)
    np.testing.assert_allclose(got, expected, atol=1e-9)


def test_equalising_a_constant_gives_zeros():
    assert equalize(torch.full((5,), 3.0), 256).tolist() == [0] * 5
