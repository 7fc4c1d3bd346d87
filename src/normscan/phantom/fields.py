"""Smooth random fields over space, and the random streams that they are drawn from."""

from __future__ import annotations

from typing import Any

import numpy as np

# The mean over all positions of the sum of squared weights of the uniform cubic B-spline is
# 151/315 per axis; in three dimensions white lattice values keep this standard deviation.
_SPLINE_STD = (151.0 / 315.0) ** 1.5


class SmoothField:
    """A stationary Gaussian field: normals on a periodic lattice, seen through a cubic B-spline.

    Twice continuously differentiable, of mean 0 and variance 1; values decorrelate beyond about two
    lattice steps. It can be asked for at any points, so a slice never needs the whole volume.

    Args:
        rng: source of the lattice values.
        step: lattice spacing in mm.
        extent: length in mm after which the field repeats.
        centre: point in mm at the middle of the lattice.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        step: float,
        extent: float = 240.0,
        centre: Any = (0.0, 0.0, 0.0),
    ) -> None:
        nodes = max(4, int(np.ceil(extent / step)))
        self.step = step
        self.lattice = rng.standard_normal((nodes, nodes, nodes), dtype=np.float32)
        self.origin = np.asarray(centre, dtype=np.float64) - 0.5 * nodes * step

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return the field (N,) at points (N, 3) in mm."""
        from scipy.ndimage import map_coordinates

        index = (points - self.origin).T / self.step
        values = map_coordinates(
            self.lattice, index, order=3, mode="grid-wrap", prefilter=False, output=np.float64
        )
        return np.asarray(values / _SPLINE_STD)


def stream(seed: int, subject: int, *key: int) -> np.random.Generator:
    """Return the random generator of one purpose of one subject.

    Each (subject, key) has its own spawned sequence, so that a subject stays the same whatever the
    number of subjects, slices or modalities, and its healthy twin shares all but the lesion.

    Args:
        seed: seed of the cohort.
        subject: index of the subject from 0.
        key: integers that name the purpose.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(subject, *key)))


def clipped_normal(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return normals (size,) cut at two standard deviations, so that no subject is a freak."""
    return np.clip(rng.standard_normal(size), -2.0, 2.0)
