"""Noise fields against a slow scalar simplex noise and against scipy's interpolation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from normscan.rng import Rng
from normscan.synthesis.noise import (
    _open_simplex_tables,
    coarse_noise,
    open_simplex,
    open_simplex_plane,
    simplex_3d,
    simplex_noise,
)

# The gradients point to the twelve edges of a cube.
SIGNS = list(itertools.product((-1, 1), repeat=2))
GRADIENTS = (
    [(a, b, 0) for a, b in SIGNS] + [(a, 0, b) for a, b in SIGNS] + [(0, a, b) for a, b in SIGNS]
)


def slow_simplex(point, permutation):
    """Simplex noise in space, one point at a time (Gustavson 2005)."""
    x, y, z = point
    s = (x + y + z) / 3
    i, j, k = math.floor(x + s), math.floor(y + s), math.floor(z + s)
    t = (i + j + k) / 6
    x0, y0, z0 = x - (i - t), y - (j - t), z - (k - t)
    if x0 >= y0:
        if y0 >= z0:
            first, second = (1, 0, 0), (1, 1, 0)
        elif x0 >= z0:
            first, second = (1, 0, 0), (1, 0, 1)
        else:
            first, second = (0, 0, 1), (1, 0, 1)
    elif y0 < z0:
        first, second = (0, 0, 1), (0, 1, 1)
    elif x0 < z0:
        first, second = (0, 1, 0), (0, 1, 1)
    else:
        first, second = (0, 1, 0), (1, 1, 0)
    p = [*permutation, *permutation]
    total = 0.0
    for n, (a, b, c) in enumerate([(0, 0, 0), first, second, (1, 1, 1)]):
        d = (x0 - a + n / 6, y0 - b + n / 6, z0 - c + n / 6)
        gradient = GRADIENTS[p[(i & 255) + a + p[(j & 255) + b + p[(k & 255) + c]]] % 12]
        reach = 0.6 - sum(v * v for v in d)
        if reach > 0:
            total += reach**4 * sum(g * v for g, v in zip(gradient, d, strict=True))
    return 32 * total


def test_simplex_against_the_scalar_algorithm(rng):
    permutation = [rng.permutation(256) for _ in range(2)]
    points = np.concatenate(
        [rng.uniform(-5, 5, (2, 300, 3)), rng.uniform(-500, 500, (2, 100, 3))], axis=1
    )
    got = simplex_3d(torch.tensor(points), torch.tensor(np.array(permutation)))
    expected = [
        [slow_simplex(p, q) for p in field] for field, q in zip(points, permutation, strict=True)
    ]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-10)


def test_simplex_is_zero_on_its_lattice_and_bounded(rng):
    permutation = torch.tensor(rng.permutation(256))[None]
    cells = rng.integers(-50, 50, (200, 3))
    corners = cells - cells.sum(1, keepdims=True) / 6
    on = simplex_3d(torch.tensor(corners)[None], permutation)
    # A corner's own ramp is zero there, and its neighbours (at distance 0.87) don't reach it.
    np.testing.assert_allclose(on.numpy(), 0, atol=1e-9)
    values = simplex_3d(torch.tensor(rng.uniform(-50, 50, (1, 20_000, 3))), permutation)
    assert 0.6 < values.abs().max() < 1.05
    assert abs(values.mean()) < 0.02


def test_simplex_is_continuous(rng):
    permutation = torch.tensor(rng.permutation(256))[None]
    start, end = rng.uniform(-20, 20, (2, 3))
    n = 40_001
    line = torch.tensor(np.linspace(start, end, n))[None]
    values = simplex_3d(line, permutation)[0]
    step = float(np.linalg.norm(end - start)) / (n - 1)
    # The slope stays below 8; the kernel of radius 0.6**0.5 reaches a little past its simplex and
    # leaves the known jumps of the algorithm there, under a thousandth or so.
    assert values.std() > 0.2
    assert values.diff().abs().max() < 8 * step + 5e-3


def test_octaves_are_summed_with_their_periods(rng):
    t = torch.tensor([12.0, 700.0])
    noise = simplex_noise((2, 3, 5, 7), Rng(3), t, octaves=3, persistence=0.7, frequency=16)
    permutation = Rng(3).uniform((2, 768)).reshape(2, 3, 256).argsort(dim=2).numpy()
    for b, y, x in [(0, 0, 0), (0, 4, 6), (1, 2, 5), (1, 4, 1)]:
        for c in range(3):
            expected = sum(
                0.7**o
                * slow_simplex(np.array([x, y, float(t[b])]) / (16 / 2**o), permutation[b, c])
                for o in range(3)
            )
            np.testing.assert_allclose(noise[b, c, y, x], expected, atol=1e-4)


def statistics(seed):
    field = simplex_noise((1, 1, 96, 96), Rng(seed), torch.tensor([60.0 * seed]))[0, 0].numpy()
    lag = np.corrcoef(field[:, 1:].ravel(), field[:, :-1].ravel())[0, 1]
    return field.std(), field.mean(), lag


def test_simplex_fields_are_neither_white_nor_of_unit_variance():
    """Measured on this generator.

    The released code of AnoDDPM uses OpenSimplex, whose wider kernel on a coarser lattice gives
    deviations of 0.42 to 0.63 and a lag-1 correlation of 0.95 to 0.98.
    """
    values = np.array([statistics(seed) for seed in range(6)])
    assert (values[:, 0] > 0.5).all() and (values[:, 0] < 0.75).all()
    assert np.abs(values[:, 1]).max() < 0.4
    assert (values[:, 2] > 0.86).all() and (values[:, 2] < 0.98).all()


def test_simplex_changes_slowly_with_the_step():
    def field(t):
        return simplex_noise((1, 1, 32, 32), Rng(0), torch.tensor([t])).flatten().numpy()

    near, far = (np.corrcoef(field(100.0), field(t))[0, 1] for t in (100.5, 400.0))
    assert near > 0.9 and abs(far) < 0.6


def test_a_simplex_field_belongs_to_its_sample():
    t = torch.tensor([5.0, 90.0, 300.0])
    together = simplex_noise((3, 1, 16, 16), Rng([1, 2, 3]), t)
    alone = simplex_noise((1, 1, 16, 16), Rng([2]), t[1:2])
    assert torch.equal(together[1:2], alone)
    shared = simplex_noise((2, 1, 16, 16), Rng(1), torch.tensor([5.0, 5.0]))
    assert not torch.allclose(shared[0], shared[1])


# --- coarse noise


@pytest.mark.parametrize(("spatial", "resolution"), [((24, 17), 6), ((12, 10, 9), 4), ((5, 20), 8)])
def test_coarse_noise_against_scipy(spatial, resolution):
    shape = (2, 3, *spatial)
    got = coarse_noise(shape, Rng(7), 0.3, resolution)
    draws = Rng(7)
    grid = [min(resolution, n) for n in spatial]
    coarse = 0.3 * draws.normal((2, 3, *grid)).numpy()
    shifts = [int(draws.integers(0, n, (2,))[0]) for n in spatial]
    points = np.stack(
        np.meshgrid(
            *[np.linspace(0, g - 1, n) for g, n in zip(grid, spatial, strict=True)], indexing="ij"
        ),
        axis=-1,
    )
    for b in range(2):
        for c in range(3):
            fine = RegularGridInterpolator([np.arange(g) for g in grid], coarse[b, c])(points)
            expected = np.roll(fine, shifts, axis=tuple(range(len(spatial))))
            np.testing.assert_allclose(got[b, c], expected, atol=1e-5)


def test_coarse_noise_has_its_deviation_at_the_nodes():
    # On a grid as fine as the image nothing is interpolated.
    fine = coarse_noise((8, 4, 32, 32), Rng(0), 0.2, 32)
    assert fine.std() == pytest.approx(0.2, rel=0.02) and abs(fine.mean()) < 0.005
    # Between the nodes linear interpolation averages: 2/3 of the variance along each axis.
    coarse = coarse_noise((16, 8, 128, 128), Rng(0), 0.2, 16)
    assert coarse.std() == pytest.approx(0.2 * 2 / 3, rel=0.05)


def test_coarse_noise_is_smooth():
    field = coarse_noise((1, 1, 128, 128), Rng(2), 0.2, 16)[0, 0].numpy()

    def lag(n):
        return np.corrcoef(field[:, n:].ravel(), field[:, :-n].ravel())[0, 1]

    # A cell is 8 pixels wide.
    assert lag(1) > 0.9 and abs(lag(24)) < 0.3


def shifts_of(seed):
    draws = Rng(seed)
    draws.normal((1, 1, 4, 4))
    return tuple(int(draws.integers(0, 16, (1,))[0]) for _ in range(2))


def test_coarse_noise_rolls():
    """The first node lies in the corner before the roll, and anywhere after it."""
    for seed in range(12):
        first = Rng(seed).normal((1, 1, 4, 4))[0, 0, 0, 0]
        field = coarse_noise((1, 1, 16, 16), Rng(seed), 1.0, 4)[0, 0]
        torch.testing.assert_close(field[shifts_of(seed)], first)
    assert len({shifts_of(seed) for seed in range(12)}) > 6


def test_the_seed_decides():
    a, b, c = (coarse_noise((2, 1, 16, 16), Rng(s)) for s in (4, 4, 5))
    assert torch.equal(a, b) and not torch.allclose(a, c)
    t = torch.zeros(2)
    a, b, c = (simplex_noise((2, 1, 16, 16), Rng(s), t) for s in (4, 4, 5))
    assert torch.equal(a, b) and not torch.allclose(a, c)


def test_open_simplex_is_the_sum_over_its_lattice(rng):
    """Against a loop over a wide neighbourhood of lattice points, whatever can reach or not."""
    permutation = rng.permutation(256)
    gradients = _open_simplex_tables(3)[1].numpy().astype(float)
    assert sorted(np.abs(gradients[0])) == [4, 4, 11] and len(np.unique(gradients, axis=0)) == 24
    points = rng.uniform(-9, 9, (40, 3))
    expected = []
    for p in points:
        base = np.floor(p - p.sum() / 6).astype(int)
        value = 0.0
        for offset in np.ndindex(7, 7, 7):
            lattice = base + np.array(offset) - 3
            d = p - (lattice + lattice.sum() / 3)
            i, j, k = lattice & 255
            index = permutation[(permutation[(permutation[i] + j) & 255] + k) & 255]
            value += max(0.0, 2 - d @ d) ** 4 * (gradients[index % 24] @ d)
        expected.append(value / 103)
    got = open_simplex(torch.tensor(points)[None], torch.tensor(permutation)[None])[0]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)


def test_open_simplex_fields_have_the_grain_of_the_released_code():
    """Measured on its generator: deviation 0.42 to 0.63, lag-1 correlation 0.95 to 0.98."""
    deviations, correlations = [], []
    for seed in range(3):
        shape = (1, 1, 96, 96)
        field = simplex_noise(shape, Rng(seed), torch.tensor([60.0 * seed]), kind="opensimplex")
        plane = field[0, 0].numpy()
        deviations.append(plane.std())
        correlations.append(np.corrcoef(plane[:, 1:].ravel(), plane[:, :-1].ravel())[0, 1])
    assert 0.40 < np.mean(deviations) < 0.65
    assert 0.94 < np.mean(correlations) < 0.985


@pytest.mark.parametrize(
    ("size", "period", "rest"),
    [
        ((40, 33), 8.0, []), ((32, 48), 500.0, [0.37]), ((64, 64), 2.0, [100.0]),
        ((17, 30), 0.5, [-3.2]), ((32, 32), 4.0, [1.0, 7.3]), ((1, 9), 3.0, [2.0]),
    ],
)  # fmt: skip
def test_a_plane_is_its_points(size, period, rest):
    """Lattice point by lattice point or pixel by pixel: the same field, whatever the plane."""
    g = torch.Generator().manual_seed(0)
    permutation = torch.randperm(256, generator=g)
    y, x = torch.meshgrid(*[torch.arange(n).double() for n in size], indexing="ij")
    others = [torch.full_like(x, place) for place in rest]
    points = torch.stack([x / period, y / period, *others], -1).reshape(1, -1, 2 + len(rest))
    expected = open_simplex(points, permutation[None])[0].reshape(size)
    found = open_simplex_plane(size, period, torch.tensor(rest), permutation)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
