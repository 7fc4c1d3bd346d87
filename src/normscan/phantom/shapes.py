"""Outlines of lesions: an irregular ellipsoid and an irregular wedge, with a volume to meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from normscan.phantom.atlas import CSF, WM
from normscan.phantom.fields import SmoothField

_GRID = 24  # points along each side of the box in which a volume is measured


class Shape(Protocol):
    """An outline: the level (N,) in mm is small inside and grows outwards by about 1 per mm."""

    @property
    def middle(self) -> np.ndarray: ...

    def level(self, points: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Blob:
    """An ellipsoid whose radius varies smoothly with the direction and with place.

    Attributes:
        middle: (3,) mm.
        matrix: (3, 3) that maps the ellipsoid to a ball of the same volume.
        ripple: field of variance 1.
        irregularity: relative standard deviation of the radius.
    """

    middle: np.ndarray
    matrix: np.ndarray
    ripple: SmoothField
    irregularity: float

    def level(self, points: np.ndarray) -> np.ndarray:
        """Return the level (N,) in mm at points (N, 3)."""
        radius = np.linalg.norm((points - self.middle) @ self.matrix.T, axis=1)
        # A floor keeps the factor positive whatever the ripple; 0.3 is never met at usual settings.
        return np.asarray(radius * np.maximum(1.0 + self.irregularity * self.ripple(points), 0.3))


@dataclass(frozen=True, eq=False)
class Wedge:
    """A rounded cone that widens towards the brain surface: the territory of an occluded branch.

    Attributes:
        apex: (3,) mm.
        axis: (3,) unit vector from the apex outwards.
        length: mm.
        half_angle: radians.
        ripple: field of variance 1.
        amplitude: standard deviation in mm of the outline.
    """

    apex: np.ndarray
    axis: np.ndarray
    length: float
    half_angle: float
    ripple: SmoothField
    amplitude: float

    @property
    def middle(self) -> np.ndarray:
        """Centre of the wedge (3,) in mm."""
        return np.asarray(self.apex + 0.6 * self.length * self.axis)

    def level(self, points: np.ndarray) -> np.ndarray:
        """Return the level (N,) in mm at points (N, 3)."""
        offset = points - self.apex
        along = offset @ self.axis
        distance = np.linalg.norm(offset, axis=1)
        aside = np.sqrt(np.maximum(distance**2 - along**2, 0.0))
        cone = aside * np.cos(self.half_angle) - along * np.sin(self.half_angle)
        cap = distance - self.length
        # A smooth maximum: no sharp edge where the cone meets the cap, and a round apex.
        joined = 0.5 * (cone + cap + np.sqrt((cone - cap) ** 2 + 16.0))
        return np.asarray(joined + self.amplitude * self.ripple(points))


@dataclass(frozen=True, eq=False)
class Part:
    """A layer of a lesion.

    Attributes:
        name: row of the intensity table `normscan.phantom.contrast.LESION`.
        shape: its outline.
        threshold: the level in mm at which it ends.
        affinity: how many mm less far it reaches into tissue that is not white matter.
        spares_fluid: whether ventricles and sulci inside it stay as they are.
        softness: factor on the width of the transition.
        mottle: field of variance 1 that varies the intensity inside.
    """

    name: str
    shape: Shape
    threshold: float
    mottle: SmoothField
    affinity: float = 0.0
    spares_fluid: bool = True
    softness: float = 1.0

    def fraction(self, points: np.ndarray, tissue: np.ndarray, edge: float) -> np.ndarray:
        """Return how much of each voxel the part fills, (N,) in 0 to 1.

        Args:
            points: (N, 3) mm.
            tissue: fractions (N, 3) of CSF, GM, WM; all 0 outside the brain, where no lesion grows.
            edge: width in mm of the transition.
        """
        return self._fill(self._level(points, tissue) - self.threshold, tissue, edge)

    def _level(self, points: np.ndarray, tissue: np.ndarray) -> np.ndarray:
        return self.shape.level(points) + self.affinity * (1.0 - tissue[:, WM])

    def _fill(self, beyond: np.ndarray, tissue: np.ndarray, edge: float) -> np.ndarray:
        ramp = np.clip(0.5 - beyond / (edge * self.softness), 0.0, 1.0)
        ramp = ramp * ramp * (3.0 - 2.0 * ramp)
        room = tissue.sum(axis=1)
        return np.asarray(ramp * (room - tissue[:, CSF] if self.spares_fluid else room))

    def sized(
        self, tissue_at: Callable[[np.ndarray], np.ndarray], diameter: float, edge: float
    ) -> tuple[Part, float]:
        """Return the part with the threshold that gives it a wanted size, and its volume in mm3.

        The volume is that of the points filled at least half, in the tissue where it lies, so
        that the size is met whatever the irregularity and the anatomy; where the brain offers too
        little room it is met as nearly as can be.

        Args:
            tissue_at: points (N, 3) in mm to fractions (N, 3).
            diameter: of the ball of the wanted volume, mm.
            edge: width in mm of the transition.
        """
        axis = (np.arange(_GRID) + 0.5) / _GRID * 2.4 - 1.2
        box = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        points = self.shape.middle + diameter * box
        tissue = tissue_at(points)
        level = self._level(points, tissue)
        cell = (2.4 * diameter / _GRID) ** 3
        wanted = np.pi / 6.0 * diameter**3
        low, high = -1.5 * diameter, 1.5 * diameter
        for _ in range(16):
            middle = 0.5 * (low + high)
            volume = cell * np.count_nonzero(self._fill(level - middle, tissue, edge) >= 0.5)
            low, high = (middle, high) if volume < wanted else (low, middle)
        volume = cell * np.count_nonzero(self._fill(level - high, tissue, edge) >= 0.5)
        return replace(self, threshold=high), volume


def random_blob(
    rng: np.random.Generator,
    middle: np.ndarray,
    diameter: float,
    irregularity: float,
    oblong: float,
) -> Blob:
    """Draw an irregular ellipsoid.

    Args:
        rng: source of randomness.
        middle: (3,) mm.
        diameter: mm, sets the scale of the irregularity.
        irregularity: relative standard deviation of the radius.
        oblong: standard deviation of the logarithm of the axes.
    """
    log_axes = oblong * np.clip(rng.standard_normal(3), -1.5, 1.5)
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    matrix = np.diag(np.exp(log_axes - log_axes.mean())) @ turn.T
    return Blob(middle, matrix, ripple(rng, middle, diameter), irregularity)


def ripple(rng: np.random.Generator, middle: np.ndarray, diameter: float) -> SmoothField:
    """Return a field on the scale of a fraction of a lesion, wide enough not to repeat in it."""
    return SmoothField(rng, 0.28 * diameter, 3.0 * diameter, middle)
