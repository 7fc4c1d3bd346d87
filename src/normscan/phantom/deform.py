"""Random anatomy: smooth invertible maps from the points of an image to those of the template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from normscan.phantom.fields import clipped_normal

CENTRE = np.array([0.0, -18.0, 8.0])  # middle of the template brain, MNI mm

_STEP = 8.0  # mm between the nodes of the velocity field
_LOW = np.array([-96.0, -124.0, -88.0])  # the image's margins beyond keep the nearest value
_NODES = (25, 28, 25)
_SQUARINGS = 5
_SKULL = 14.0  # mm below the surface within which a mass effect fades
_SMALLEST_JACOBIAN = 0.1  # of the nodes; the margin covers what happens between them


@dataclass(frozen=True, eq=False)
class Warp:
    """The pull-back of a subject: where in the template the tissue at a point comes from.

    Attributes:
        spline: cubic B-spline coefficients (3, *nodes) of the displacement in mm.
        matrix: (3, 3) affine part, applied about `CENTRE` after the displacement.
        shift: (3,) mm.
        amplitude: the amplitude in mm that was used, after halving.
        jacobian_min: smallest Jacobian determinant of the displacement at the nodes.
    """

    spline: np.ndarray
    matrix: np.ndarray
    shift: np.ndarray
    amplitude: float
    jacobian_min: float

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return template points (N, 3) for image points (N, 3), both in mm."""
        from scipy.ndimage import map_coordinates

        moved = points
        if self.amplitude > 0:
            index = (points - _LOW).T / _STEP
            moved = points + np.stack(
                [
                    map_coordinates(c, index, order=3, mode="nearest", prefilter=False)
                    for c in self.spline
                ],
                axis=1,
            )
        return np.asarray((moved - CENTRE) @ self.matrix.T + CENTRE + self.shift)


def random_warp(
    rng: np.random.Generator, amplitude: float, scale: float, rotation: float, shift: float
) -> Warp:
    """Draw the anatomy of a subject.

    The displacement is the exponential of a random stationary velocity field (scaling and squaring;
    Arsigny et al., MICCAI 2006), so it is invertible but for discretisation; that is checked on the
    grid, and the amplitude is halved until every Jacobian determinant is well above 0.

    Args:
        rng: source of randomness.
        amplitude: standard deviation in mm of each component of the velocity field.
        scale: standard deviation of the logarithm of the overall size; half of it again per axis.
        rotation: standard deviation in degrees about each axis.
        shift: standard deviation in mm along each axis.
    """
    from scipy.ndimage import spline_filter

    velocity = _unit_velocity(rng)
    matrix = _affine(rng, scale, rotation)
    moved = shift * clipped_normal(rng, 3)
    while True:
        displacement = exponential(amplitude * velocity)
        smallest = float(jacobian(displacement).min())
        if smallest > _SMALLEST_JACOBIAN:
            break
        amplitude = amplitude / 2
    spline = np.stack([spline_filter(d, order=3, mode="nearest") for d in displacement])
    return Warp(spline, matrix, moved, amplitude, smallest)


def _unit_velocity(rng: np.random.Generator) -> np.ndarray:
    """Velocity (3, *nodes) of standard deviation 1: lobes of 24 mm with gyri of 10 mm on them."""
    from scipy.ndimage import gaussian_filter

    total = np.zeros((3, *_NODES))
    for width, weight in ((24.0, 0.8), (11.0, 0.35)):
        white = rng.standard_normal((3, *_NODES))
        smooth = np.stack([gaussian_filter(w, width / _STEP, mode="reflect") for w in white])
        total += weight * smooth / smooth.std()
    return np.asarray(total / total.std())


def _affine(rng: np.random.Generator, scale: float, rotation: float) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    size = scale * clipped_normal(rng, 1) + 0.5 * scale * clipped_normal(rng, 3)
    turn = Rotation.from_euler("xyz", rotation * clipped_normal(rng, 3), degrees=True)
    return np.asarray(turn.as_matrix() @ np.diag(np.exp(size)))


def exponential(velocity: np.ndarray) -> np.ndarray:
    """Return the displacement (3, X, Y, Z) in mm of the flow of a velocity field at time 1.

    Args:
        velocity: (3, X, Y, Z) mm per unit time on the grid of 8 mm.
    """
    from scipy.ndimage import map_coordinates

    grid = np.stack(np.meshgrid(*map(np.arange, velocity.shape[1:]), indexing="ij"))
    displacement: np.ndarray = velocity / 2**_SQUARINGS
    for _ in range(_SQUARINGS):
        at = grid + displacement / _STEP
        displacement = displacement + np.stack(
            [map_coordinates(d, at, order=1, mode="nearest") for d in displacement]
        )
    return displacement


def jacobian(displacement: np.ndarray, step: float = _STEP) -> np.ndarray:
    """Return the Jacobian determinant (X, Y, Z) of identity plus a displacement (3, X, Y, Z) in mm.

    Args:
        displacement: mm on a regular grid.
        step: spacing of the grid in mm.
    """
    gradient = np.stack([np.stack(np.gradient(d, step)) for d in displacement])
    matrices = np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(3)
    return np.asarray(np.linalg.det(matrices))


@dataclass(frozen=True, eq=False)
class MassEffect:
    """Tissue pushed away from a point, within a ball: a pull-back in image space.

    The radius r looks up ``r (1 - a (1 - (r/R)^2)^2)``, whose derivative is at least 1 - a, so that
    the Jacobian determinant is positive for a < 1, and nothing moves outside the ball. Where the
    ball meets the skull the displacement fades; `grow_mass` checks that the map still doesn't fold.

    Attributes:
        centre: (3,) mm.
        radius: R in mm.
        strength: a, 0 to below 1; the largest displacement is about 0.29 a R.
        depth: points (N, 3) to their depth below the surface of the brain in mm; None for no skull.
    """

    centre: np.ndarray
    radius: float
    strength: float
    depth: Callable[[np.ndarray], np.ndarray] | None = None

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return the points (N, 3) whose tissue was pushed to the given points (N, 3), in mm."""
        offset = points - self.centre
        inside = np.clip(1.0 - (offset**2).sum(axis=1) / self.radius**2, 0.0, None)
        at = np.flatnonzero(inside > 0)
        pull = self.strength * inside[at] ** 2
        if self.depth is not None:
            fade = np.clip(self.depth(points[at]) / _SKULL, 0.0, 1.0)
            pull = pull * fade * fade * (3.0 - 2.0 * fade)
        moved = points.copy()
        moved[at] -= pull[:, None] * offset[at]
        return moved


def grow_mass(
    centre: np.ndarray,
    radius: float,
    strength: float,
    depth: Callable[[np.ndarray], np.ndarray],
) -> tuple[MassEffect, float]:
    """Return a mass effect that folds nowhere, and its largest displacement in mm.

    The Jacobian determinant is computed in the ball every 3 mm, and the strength halved until it is
    well above 0 everywhere.

    Args:
        centre: (3,) mm.
        radius: mm.
        strength: 0 to below 1.
        depth: points (N, 3) to depth below the surface of the brain in mm.
    """
    step = 3.0
    axis = np.arange(-radius - step, radius + 1.5 * step, step)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    points = grid.reshape(3, -1).T + centre
    while True:
        mass = MassEffect(centre, radius, strength, depth)
        moves = (mass(points) - points).T.reshape(grid.shape)
        if jacobian(moves, step).min() > _SMALLEST_JACOBIAN:
            return mass, float(np.linalg.norm(moves, axis=0).max())
        strength = strength / 2
