"""Intensities after scaling, against numpy, closed forms and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.exposure import equalize_hist

from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.errors import ArgumentError, ScanError
from normscan.preprocess import Preprocess
from normscan.preprocess.file_range import file_range
from normscan.scan import Scan


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


def test_equalised_as_scikit_image_does(image, inside):
    result = scaled(image, inside, scaling="equalise")
    for got, values in zip(result, image, strict=True):
        expected = equalize_hist(values.astype(np.float32), nbins=256, mask=inside) * inside
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_range_is_the_same_for_all_scans(image, inside):
    result = scaled(image, inside, scaling="file", range=((0.0, 255.0), (10.0, 20.0)))
    np.testing.assert_allclose(result[0], image[0] / 255, rtol=1e-5)
    np.testing.assert_allclose(result[1], (image[1] - 10) / 10, rtol=1e-5, atol=1e-6)
    with pytest.raises(ArgumentError, match="range"):
        scaled(image, inside, scaling="file")


def test_the_range_of_files_of_8_bits_is_that_of_the_type(rng):
    dim = [Scan.from_array(rng.integers(0, 90, (9, 9)).astype(np.uint8)) for _ in range(3)]
    assert file_range(dim) == ((0, 255),)
    assert file_range([s.with_data(s.data / 255) for s in dim]) == ((0, 1),)  # steps did so
    colour = Scan.from_array(rng.integers(0, 90, (9, 9, 3)).astype(np.uint8))
    assert file_range([colour]) == ((0, 255),) * 3 and file_range([colour], True) == ((0, 255),)


def test_the_range_of_other_files_is_the_cohorts(rng):
    """The median over the scans, which neither a hot pixel nor an odd scan moves."""
    tops = [900, 1000, 1100, 40_000]
    arrays = [np.linspace(0, top, 10_001).reshape(73, 137) for top in tops]
    arrays[0][3, 3] = 65_000
    scans = [Scan.from_array(a.astype(np.uint16)) for a in arrays]
    ((low, high),) = file_range(scans)
    assert low == 0 and high == pytest.approx(0.999 * 1050, rel=1e-3)
    hounsfield = [s.with_data(s.data - 1000) for s in scans]
    ((low, high),) = file_range(hounsfield)
    assert low == pytest.approx(-1000, abs=3) and high == pytest.approx(0.999 * 1050 - 1000, abs=2)


def test_colours_of_16_bits_share_a_range_and_contrasts_do_not(rng):
    data = rng.uniform(0, 1, (3, 64, 64)) * np.array([10, 100, 1000]).reshape(3, 1, 1)
    hues = Scan.from_array(data, channels=("red", "green", "blue"))
    weights = Scan.from_array(data, channels=("T1w", "T2w", "FLAIR"))
    assert len(set(file_range([hues]))) == 1
    found = np.array(file_range([weights, weights, Scan.from_array(data[0])]))
    np.testing.assert_allclose(found[:, 1], [10, 100, 1000], rtol=0.01)


def test_scans_without_contrast_have_no_range():
    with pytest.raises(ScanError, match="no range"):
        file_range([Scan.from_array(np.zeros((9, 9)))])


def test_a_detector_learns_the_range_and_keeps_it(toy, tmp_path):
    cohort = Cohort.read(toy(2, 1))
    detector = Detector("mean_image", preprocess={"scaling": "file"}, gate=False)
    detector.fit(cohort)
    ((low, high),) = detector.preprocess.range
    healthy = [row.load() for row in cohort.part("train")]
    tops = [np.percentile(scan.data, 99.9) for scan in healthy]
    assert low == 0 and high == pytest.approx(np.median(tops), rel=1e-6)
    detector.save(tmp_path / "saved")
    assert load(tmp_path / "saved").preprocess == detector.preprocess
    # Fitted again it learns again; a range that was given stays.
    detector.fit(cohort.select([row.label == 0 for row in cohort]))
    assert detector.preprocess.range == ((low, high),)
    given = Detector("mean_image", preprocess={"scaling": "file", "range": [[0, 2]]}, gate=False)
    assert given.fit(cohort).preprocess.range == ((0, 2),)
