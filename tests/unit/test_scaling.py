"""Intensities after scaling, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from normscan.preprocess import Preprocess


def scaled(image, inside, slices=False, **settings):
    return Preprocess(limit=1e6, **settings).scale(image.astype(np.float32), inside, slices)


@pytest.fixture
def image(rng):
    return rng.uniform(10, 300, (2, 12, 12))


@pytest.fixture
def inside(rng):
    return rng.uniform(size=(12, 12)) > 0.4


def test_percentile_scaling(image, inside):
    result = scaled(image, inside, scaling="percentile", percentile=95)
    for got, values in zip(result, image, strict=True):
        np.testing.assert_allclose(got, values / np.percentile(values[inside], 95), rtol=1e-5)


def test_percentile_over_the_whole_image(image, inside):
    result = scaled(image, inside, scaling="percentile", percentile=95, over="image")
    for got, values in zip(result, image, strict=True):
        np.testing.assert_allclose(got, values / np.percentile(values, 95), rtol=1e-5)


def test_percentile_scaling_starts_at_a_negative_minimum(image, inside):
    values = image - 100
    result = scaled(values, inside, scaling="percentile", percentile=90)
    for got, channel in zip(result, values, strict=True):
        low = channel.min()
        top = np.percentile(channel[inside], 90)
        np.testing.assert_allclose(got, (channel - low) / (top - low), rtol=1e-4, atol=1e-6)


def test_median_scaling(image, inside):
    result = scaled(image, inside, scaling="median")
    for got, values in zip(result, image, strict=True):
        np.testing.assert_allclose(got, 0.5 * values / np.median(values[inside]), rtol=1e-5)


def test_auto_takes_the_median_in_2d_and_the_percentile_in_3d(rng):
    flat = rng.uniform(1, 9, (1, 10, 10))
    solid = rng.uniform(1, 9, (1, 6, 6, 6))
    all_2d, all_3d = np.ones(flat.shape[1:], bool), np.ones(solid.shape[1:], bool)
    np.testing.assert_allclose(scaled(flat, all_2d), 0.5 * flat / np.median(flat), rtol=1e-5)
    np.testing.assert_allclose(scaled(solid, all_3d), solid / np.percentile(solid, 99), rtol=1e-5)


def test_minmax_scaling(image, inside):
    result = scaled(image, inside, scaling="minmax")
    low, high = image.min((1, 2), keepdims=True), image.max((1, 2), keepdims=True)
    np.testing.assert_allclose(result, (image - low) / (high - low), atol=1e-5)


def test_zscore_scaling(image, inside):
    result = scaled(image, inside, scaling="zscore")
    for got, values in zip(result, image, strict=True):
        part = values[inside]
        np.testing.assert_allclose(got, (values - part.mean()) / part.std(), atol=1e-4)


def test_each_slice_can_be_scaled_on_its_own(rng):
    image = rng.uniform(1, 9, (1, 8, 8, 3)) * [1, 10, 100]
    result = scaled(image, np.ones((8, 8, 3), bool), True, scaling="percentile", per="slice")
    for k in range(3):
        expected = image[..., k] / np.percentile(image[..., k], 99)
        np.testing.assert_allclose(result[..., k], expected, rtol=1e-5)
    together = scaled(image, np.ones((8, 8, 3), bool), True, scaling="percentile")
    np.testing.assert_allclose(together, image / np.percentile(image, 99), rtol=1e-5)


def test_hot_pixels_are_limited_and_an_empty_slice_is_zero():
    values = np.ones((1, 10, 10), np.float32)
    values[0, 0, 0] = 1000
    inside = np.ones((10, 10), bool)
    result = Preprocess(scaling="median", limit=3.0).scale(values, inside, False)
    assert result[0, 0, 0] == 3 and result[0, 1, 1] == 0.5
    empty = Preprocess(scaling="percentile").scale(np.zeros_like(values), inside, False)
    assert (empty == 0).all()
    z = Preprocess(scaling="zscore", limit=0.05).scale(values, inside, False)
    assert z.min() == pytest.approx(-0.05) and z.max() == pytest.approx(0.05)


def test_settings_are_plain_values():
    settings = Preprocess(size=64, spacing=1.5)
    assert Preprocess(**settings.to_dict()) == settings
