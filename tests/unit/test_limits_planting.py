"""Planting by closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.transform import Rotation
from tests.support.planted import head, site

from normscan.errors import ScanError
from normscan.planting.sites import EDGE, ends, spread
from normscan.scan import Scan

# ---------------------------------------------------------------------- planting


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [8.0, 20.0])
def test_area_is_that_of_a_disc(seed, size):
    scan, mask = head(shape=(192, 160), spacing=0.5)
    place = site(scan, mask, 20.0, seed)
    filled = place.fraction(size)
    disc = math.pi / 4 * size**2
    assert (filled >= 0.5).sum() * 0.25 == pytest.approx(disc, rel=0.03)
    # A soft border of standard deviation w / sqrt(20) adds pi times its variance to a disc.
    wide = disc + math.pi * (EDGE * size) ** 2 / 20
    assert filled.sum() * 0.25 == pytest.approx(wide, rel=0.03)
    assert filled.max() == pytest.approx(1) and filled.min() == 0


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.2, 4.0)])
def test_volume_is_that_of_a_ball_on_any_grid(spacing):
    shape = tuple(round(70 / s) for s in spacing)
    turn = Rotation.from_euler("xyz", [10, -20, 30], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing) @ np.diag([-1, 1, 1])
    scan, mask = head(shape=shape, affine=affine)
    place = site(scan, mask, 16.0)
    ball = math.pi / 6 * 16**3
    filled = place.fraction(16.0)
    # 4/3 pi (r^3 + 3 r var) for the soft border
    wide = ball + 4 * math.pi * 8 * (EDGE * 16) ** 2 / 20
    assert filled.sum() * np.prod(spacing) == pytest.approx(wide, rel=0.04)
    weight = filled[..., None] * np.moveaxis(np.indices(shape), 0, -1)
    index = weight.sum((0, 1, 2)) / filled.sum()
    found = affine[:3, :3] @ index + affine[:3, 3]
    assert np.linalg.norm(found - place.centre) < 2  # of 16 mm, and irregular


def test_small_lesions_are_summed_over_the_voxel():
    """A lesion much smaller than a voxel fills it by the part that it takes of it."""
    scan, mask = head(shape=(40, 40, 20), spacing=(4.0, 4.0, 8.0))
    filled = site(scan, mask, 4.0).fraction(4.0)
    ball = math.pi / 6 * 64 + 4 * math.pi * 2 * (EDGE * 4) ** 2 / 20
    assert filled.sum() * 128 == pytest.approx(ball, rel=0.1) and filled.max() < 0.5
    lesion = site(scan, mask, 4.0).grow(4.0)(2.0)
    assert lesion.mask.sum() == 1 and filled[lesion.mask] == filled.max()


def test_contrast_is_added_inside_and_nothing_changes_outside():
    scan, mask = head()
    place = site(scan, mask)
    sigma = stats.iqr(scan.data[0][mask]) / 1.349
    filled = place.fraction(12.0)
    for contrast in (1.5, -1.5):
        lesion = place.grow(12.0)(contrast)
        change = lesion.scan.data[0] - scan.data[0]
        np.testing.assert_allclose(change, contrast * sigma * filled, atol=1e-6)
        assert not change[filled == 0].any() and not filled[~mask].any()
        np.testing.assert_array_equal(lesion.mask, filled >= 0.5)
        assert lesion.reached == pytest.approx(contrast * filled[lesion.mask].mean(), rel=1e-4)
        assert lesion.extent == lesion.mask.sum()
    assert place.grow(12.0)(1.0).scan.affine is not None and (scan.data == head()[0].data).all()


def test_any_linear_scale_of_intensities_gives_the_same_lesion():
    plain, mask = head()
    hounsfield, _ = head(offset=-1000, scale=250)
    first = site(plain, mask).grow(10.0)(-2.0).scan.data
    second = site(hounsfield, mask).grow(10.0)(-2.0).scan.data
    np.testing.assert_allclose(second, -1000 + 250 * first, atol=0.01)


def test_the_robust_deviation_ignores_a_few_bright_voxels(rng):
    scan, mask = head()
    data = scan.data.copy()
    data[0][mask & (rng.random(mask.shape) < 0.03)] = 1000
    assert spread(scan.with_data(data), mask)[0] == pytest.approx(0.4, rel=0.1)
    with pytest.raises(ScanError, match="constant"):
        spread(scan.with_data(np.where(mask, 3, 0)[None].astype(np.float32)), mask)


def test_values_stay_what_the_file_can_hold():
    scan, mask = head(scale=48)
    picture = Scan(np.round(scan.data).clip(0, 255), scan.affine, scan.channels, dtype="uint8")
    assert ends(picture) == (0, 255) and ends(scan) == (0, math.inf)
    negative = head(offset=-3)[0]
    assert ends(negative) == (-math.inf, math.inf)
    for contrast in (40, -40):
        planted = site(picture, mask).grow(10.0)(contrast)
        assert planted.scan.data.min() >= 0 and planted.scan.data.max() <= 255
        assert 0 < abs(planted.reached) < 20


def test_all_cells_share_place_and_shape():
    scan, mask = head(shape=(192, 160), spacing=0.5)
    place = site(scan, mask)
    grown = [place.grow(size)(c) for size in (6.0, 12.0, 18.0) for c in (1.0, -3.0)]
    assert len({tuple(p.centre) for p in grown}) == 1
    small, large = grown[0].mask, grown[4].mask
    assert (large | ~small).all() and large.sum() == pytest.approx(9 * small.sum(), rel=0.05)
    again = site(scan, mask).grow(12.0)(1.0)
    np.testing.assert_array_equal(again.scan.data, grown[2].scan.data)
    # The centre has room for the largest lesion: its whole disc lies in the head.
    depth = np.linalg.norm(np.argwhere(~mask) * 0.5 - place.index * 0.5, axis=1).min()
    assert depth >= 9.5


def test_thin_anatomy_takes_its_inmost_part():
    scan, mask = head(shape=(60, 60))
    thin = np.zeros_like(mask)
    thin[28:32, 10:50] = True
    place = site(scan, thin, 30.0)
    assert 28 <= round(place.index[0]) <= 31
    assert not place.fraction(30.0)[~thin].any()
