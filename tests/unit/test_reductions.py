"""Reductions against numpy and scipy, and places against plain means and deviations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.linalg import norm

from normscan.errors import ArgumentError, ScanError
from normscan.scores.places import PRIOR, Sums
from normscan.scores.reductions import LEVELLED, REDUCTIONS, Reduction, check_reduction, inner


@pytest.fixture(params=[(40, 37), (14, 13, 12)], ids=["2d", "3d"])
def case(request, rng):
    """Map and foreground, which fills half of the grid."""
    shape = request.param
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return rng.gamma(2.0, size=shape), sum(a**2 for a in axes) < 0.7


@pytest.mark.parametrize("power", [2, 4, 8])
def test_norms(case, power):
    anomaly, inside = case
    values = anomaly[inside]
    expected = norm(values, power) / values.size ** (1 / power)
    assert Reduction.parse(f"p_norm_{power}")(anomaly, inside) == pytest.approx(expected)
    tiny = Reduction.parse(f"p_norm_{power}")(1e-60 * anomaly, inside)
    assert tiny == pytest.approx(1e-60 * expected)
    assert Reduction.parse(f"p_norm_{power}")(0 * anomaly, inside) == 0


@pytest.mark.parametrize(("name", "share"), [("top_0.1_percent", 0.001), ("top_1_percent", 0.01)])
def test_top(case, name, share):
    anomaly, inside = case
    ordered = np.sort(anomaly[inside])[::-1]
    n = max(1, round(share * ordered.size))
    assert Reduction.parse(name)(anomaly, inside) == pytest.approx(ordered[:n].mean())


def test_masses(case):
    anomaly, inside = case
    level = 3.0
    excess = np.where(inside, np.maximum(anomaly - level, 0), 0)
    labels, n = ndimage.label(excess > 0, np.ones((3,) * anomaly.ndim))
    masses = [excess[labels == i].sum() for i in range(1, n + 1)]
    assert n > 2
    assert Reduction.parse(f"excess_mass={level}")(anomaly, inside) == pytest.approx(excess.sum())
    found = Reduction.parse(f"component_mass={level}")(anomaly, inside)
    assert found == pytest.approx(max(masses))
    # Without a component healthy scans keep an order, below those with one.
    low = Reduction.parse("component_mass=1000")(anomaly, inside)
    assert low == pytest.approx(anomaly[inside].max() - 1000)


def test_two_touching_blobs_weigh_more_than_a_higher_peak():
    anomaly = np.zeros((12, 12))
    anomaly[2:4, 2:4] = anomaly[4:6, 4:6] = 1.0  # touch at a corner
    anomaly[9, 9] = 5.0
    inside = np.ones_like(anomaly, bool)
    assert Reduction.parse("component_mass=0.5")(anomaly, inside) == pytest.approx(4.5)
    assert Reduction.parse("component_mass=0.2")(anomaly, inside) == pytest.approx(6.4)


def test_the_rim_is_left_out(case):
    anomaly, inside = case
    kept = inner(inside)
    assert kept.any() and not (kept & ~inside).any()
    eroded = ndimage.binary_erosion(inside)
    assert not (kept & ~eroded).any() and kept.sum() < inside.sum()
    anomaly = np.where(kept, anomaly, 100.0)
    for name in REDUCTIONS:
        expected = REDUCTIONS[name](anomaly[kept], np.ones(int(kept.sum()), bool))
        assert Reduction.parse(f"{name}+inner")(anomaly, inside) == pytest.approx(expected), name
    assert Reduction.parse("component_mass=2+inner")(anomaly, inside) < 100 * kept.sum()
    full = np.ones_like(inside)
    assert inner(full).all() and inner(~full).sum() == 0
    half = full.copy()
    half[: len(half) // 2] = False
    assert inner(half)[-1].all()  # the border of the image is no edge


def test_places_are_healthy_mean_and_deviation(case, rng):
    anomaly, inside = case
    maps = rng.normal(3, 2, (9, *anomaly.shape))
    sums = Sums(anomaly.shape)
    for one in maps:
        sums.add(one)
    places = sums.places()
    variance = maps.var(axis=0, ddof=1)
    shrunk = (8 * variance + PRIOR * variance.mean()) / (8 + PRIOR)
    expected = (anomaly - maps.mean(0)) / np.sqrt(shrunk)
    np.testing.assert_allclose(places.normalised(anomaly), expected, rtol=1e-4, atol=1e-4)
    found = Reduction.parse("max+place")(anomaly, inside, places)
    assert found == pytest.approx(expected[inside].max(), rel=1e-4)
    left = Sums(anomaly.shape)
    left.add(maps[0])
    np.testing.assert_allclose(
        sums.less(left).places().mean, maps[1:].mean(0), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ScanError, match="place by place"):
        places.normalised(anomaly[1:])
    with pytest.raises(ScanError, match="1 healthy maps"):
        left.places()
    with pytest.raises(ArgumentError, match="places"):
        Reduction.parse("max+place")(anomaly, inside)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_places_where_no_healthy_map_differs_count_in_the_maps_unit(case, value):
    anomaly, _ = case
    sums = Sums(anomaly.shape)
    for _ in range(3):
        sums.add(np.full(anomaly.shape, value))
    np.testing.assert_allclose(
        sums.places().normalised(anomaly),
        (anomaly - value) / np.sqrt(PRIOR / (2 + PRIOR)),
        rtol=1e-5,
    )


def test_writing():
    for text in [*REDUCTIONS, "max+inner", "component_mass=0.25+inner+place", *LEVELLED]:
        assert str(Reduction.parse(text)) == text
    assert check_reduction("max+place+inner") == "max+inner+place"
    assert Reduction.parse("component_mass").learns and not Reduction.parse("max").learns
    assert Reduction.parse("max+place").learns
    for text, words in {
        "top_1": "no reduction 'top_1'", "max+outer": "no option 'outer'",
        "max=3": "takes no value", "excess_mass=a": "no number",
    }.items():  # fmt: skip
        with pytest.raises(ArgumentError, match=words):
            check_reduction(text)
    with pytest.raises(ArgumentError, match="needs a level"):
        Reduction.parse("excess_mass")(np.ones((4, 4)), np.ones((4, 4), bool))
