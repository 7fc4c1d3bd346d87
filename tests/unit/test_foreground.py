"""What counts as the body: against shapes that are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from normscan.preprocess.foreground import _eroded, bounding_box, foreground_mask


def disc(n=64, radius=0.6):
    y, x = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j]
    return x**2 + y**2 < radius**2


def test_all_that_differs_from_a_skull_stripped_border_is_foreground(rng):
    data = np.where(disc(), rng.uniform(0.001, 1, (64, 64)), 0)
    np.testing.assert_array_equal(foreground_mask(data[None]), disc())


def test_a_skull_stripped_background_need_not_be_zero(rng):
    data = np.where(disc(), rng.normal(0, 1, (64, 64)), -5.0)
    np.testing.assert_array_equal(foreground_mask(data[None]), disc())


@pytest.mark.parametrize("masked", [False, True])
def test_the_order_in_memory_is_no_matter(rng, masked):
    r = np.sqrt(sum(g**2 for g in np.meshgrid(*[np.linspace(-1, 1, n) for n in (30, 25, 20)])))
    data = np.where(r < 0.6, 100.0, 0) + (not masked) * np.abs(rng.normal(0, 2, r.shape))
    as_files = np.asfortranarray(data)
    np.testing.assert_array_equal(foreground_mask(as_files[None]), foreground_mask(data[None]))


@pytest.mark.parametrize("dims", [2, 3])
def test_noise_around_the_body_is_background(rng, dims):
    n = 32
    r = np.sqrt(sum(g**2 for g in np.meshgrid(*[np.linspace(-1, 1, n)] * dims)))
    body = r < 0.6
    data = np.where(body, 100.0, 0) + np.abs(rng.normal(0, 2, body.shape))
    mask = foreground_mask(data[None])
    near = ndimage.binary_dilation(body, np.ones((3,) * dims))
    assert mask[body].all() and not mask[~near].any()


def test_a_dark_ventricle_stays_inside(rng):
    ventricle = disc(radius=0.2)
    data = np.where(disc(), 100.0, 0) + np.abs(rng.normal(0, 1, (64, 64)))
    data[ventricle] = 0
    mask = foreground_mask(data[None])
    assert mask[ventricle].all() and not mask[0, 0]


def test_an_image_that_fills_its_frame_is_all_foreground(rng):
    assert foreground_mask(rng.uniform(50, 150, (1, 40, 40))).all()


def test_specks_beside_the_body_are_dropped(rng):
    data = np.where(disc(radius=0.5), 100.0, 0) + np.abs(rng.normal(0, 1, (64, 64)))
    data[2:5, 2:5] = 100
    assert not foreground_mask(data[None])[:6, :6].any()


def test_with_nearly_no_foreground_the_whole_image_counts():
    data = np.zeros((1, 40, 40))
    data[0, 20, 20] = 1
    assert foreground_mask(data).all()
    assert foreground_mask(np.full((1, 40, 40), 3.0)).all()


def test_bounding_box_against_the_coordinates_of_the_true_part(rng):
    mask = rng.uniform(size=(12, 14, 9)) > 0.995
    hits = np.argwhere(mask)
    assert len(hits) > 1
    expected = tuple(zip(hits.min(0).tolist(), (hits.max(0) + 1).tolist(), strict=True))
    assert bounding_box(mask) == expected
    assert bounding_box(np.zeros((3, 4), bool)) == ((0, 3), (0, 4))


def chest(rng, black):
    """A body with two lungs and, beside it, the letter L of a marker."""
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    body = (x / 0.7) ** 2 + (y / 0.85) ** 2 < 1
    lungs = ((np.abs(x) - 0.3) / 0.2) ** 2 + (y / 0.55) ** 2 < 1
    data = np.where(body, np.where(lungs, 60.0, 150.0), 0) + rng.normal(0, 3, body.shape)
    letter = np.zeros(body.shape, bool)
    letter[6:22, 112:115] = letter[19:22, 112:122] = True
    data[letter] = 255
    data = np.clip(data, 1, 255)
    return (
        np.where(body | letter, data, 0 if black else np.abs(rng.normal(0, 2, body.shape))),
        body,
        letter,
    )


@pytest.mark.parametrize("black", [True, False])
def test_a_letter_beside_the_body_does_not_count(rng, black):
    data, body, letter = chest(rng, black)
    mask = foreground_mask(data[None])
    assert mask[body].mean() > 0.99 and not mask[letter].any()
    # The grid lies over the body alone.
    assert bounding_box(mask)[0][0] > 6 and bounding_box(mask)[1][1] < 112


def test_small_parts_of_a_masked_brain_stay(rng):
    brain = disc(radius=0.5)
    brain[4:9, 30:36] = True
    data = np.where(brain, rng.normal(100, 10, brain.shape), 0)
    np.testing.assert_array_equal(foreground_mask(data[None]), brain)


@pytest.mark.parametrize("reshape", [False, True])
@pytest.mark.parametrize("angle", [5, 12, 30, 45])
def test_an_obliquely_cut_field_of_view_does_not_glow(rng, angle, reshape):
    tissue = 100 + 300 * ndimage.gaussian_filter(rng.normal(size=(128, 128)), 6)
    options = {"angle": angle, "reshape": reshape, "cval": 0}
    data = ndimage.rotate(tissue, order=1, **options)
    shown = ndimage.rotate(np.ones_like(tissue), order=0, **options) > 0.5
    mask = foreground_mask(data[None])
    rim = shown & (ndimage.distance_transform_edt(shown) <= 1.5)
    assert rim.any() and not mask[rim & ndimage.binary_dilation(~shown, iterations=2)].any()
    assert mask[ndimage.distance_transform_edt(shown) > 6].all()
    # What a blurring restoration leaves: nothing at the cut stands out of the tissue.
    residual = np.abs(data - ndimage.gaussian_filter(data, 0.7))
    inner = ndimage.distance_transform_edt(shown) > 10
    assert residual[mask].max() < 3 * residual[inner].max() < residual[shown].max()


@pytest.mark.parametrize("dims", [2, 3])
def test_a_round_field_of_view_keeps_its_rim(dims):
    axes = np.meshgrid(*[np.linspace(-1, 1, 48)] * dims, indexing="ij")
    round_field = sum(a**2 for a in axes) < 0.97
    np.testing.assert_array_equal(foreground_mask(np.where(round_field, 5.0, 0)[None]), round_field)


@pytest.mark.parametrize("shape", [(9, 14), (1, 7), (6, 5, 8)])
def test_erosion_is_that_of_scipy(shape):
    rng = np.random.default_rng(0)
    for share in (0.5, 0.8, 0.97):
        mask = rng.random(shape) < share
        expected = ndimage.binary_erosion(mask, border_value=1)
        np.testing.assert_array_equal(_eroded(mask), expected)
