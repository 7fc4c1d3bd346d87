"""Kinds of planted lesions: what they change, and that they don't resemble each other."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import stats
from tests.support.planted import head

from normscan.planting.kinds import BANDS, CELLS, KINDS, Cell, dealt, plant, planted_at
from normscan.planting.sites import BlobSite


def one(kind, strength=2.0, seed=1, shape=(96, 80)):
    scan, mask = head(shape=shape)
    rng = np.random.default_rng(seed)
    site = BlobSite("p", "s", scan, mask, rng, 20.0)
    return scan, mask, site.fraction(20.0), planted_at(site, kind, 20.0, strength, rng)


@pytest.mark.parametrize("shape", [(96, 80), (48, 40, 36)])
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_lesion_changes(kind, shape):
    scan, mask, filled, lesion = one(kind, shape=shape)
    change = lesion.scan.data[0] - scan.data[0]
    assert not change[filled == 0].any() and (change[lesion.mask] != 0).mean() > 0.8
    assert not (lesion.mask & ~mask).any() and np.isfinite(change).all()


def test_contrasts_and_textures():
    sigma = stats.iqr(head()[0].data[0][head()[1]]) / 1.349
    for kind, sign in (("bright", 1), ("dark", -1)):
        scan, _, filled, lesion = one(kind)
        change = lesion.scan.data[0] - scan.data[0]
        np.testing.assert_allclose(change, sign * 2 * sigma * filled, atol=1e-4)
    scan, _, filled, lesion = one("mottled")
    change = lesion.scan.data[0] - scan.data[0]
    assert abs(np.average(change, weights=filled)) < 0.5 * sigma
    assert change[filled > 0.9].std() > 1.5 * sigma


def test_displaced_tissue_keeps_the_range_and_the_border():
    scan, _, filled, lesion = one("displaced")
    inside = filled > 0
    low, high = scan.data[0][inside].min(), scan.data[0][inside].max()
    assert low - 1e-4 <= lesion.scan.data[0][inside].min()
    assert lesion.scan.data[0][inside].max() <= high + 1e-4


def test_foreign_tissue_is_of_the_same_scan():
    scan, _, filled, lesion = one("foreign")
    taken = lesion.scan.data[0][filled == 1]
    assert np.isin(taken, scan.data[0]).mean() > 0.99


def test_every_cell_is_dealt_about_as_often():
    for count in (1, 7, 10, 40, 300):
        cells = dealt([str(i) for i in range(count)])
        numbers = Counter(cell for part in cells.values() for cell in part)
        assert max(numbers.values()) - min(numbers.values()) <= 1 and set(numbers) == set(CELLS)
        assert len(cells) == min(count, 60)
    assert dealt([]) == {} and len(KINDS) >= 4 and len(BANDS) == 2


def test_seeds():
    scan, mask = head()
    cells = [Cell("bright", "small"), Cell("mottled", "large")]
    first, again, other = (
        list(plant(scan, mask, cells, *s)) for s in ((1, "a"), (1, "a"), (2, "a"))
    )
    for (cell, a), (_, b), (_, c) in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a.scan.data, b.scan.data)
        assert (a.scan.data != c.scan.data).any() and cell in cells
    assert first[0][1].mask.sum() < first[1][1].mask.sum()
