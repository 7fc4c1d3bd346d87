"""Affine registration of a head or brain to a template by mutual information, coarse to fine.

The optimiser is Powell's, from several starts, on the smoothed joint histogram (Wells et al.,
Medical Image Analysis 1996; Collignon et al. 1995; smoothing and optimiser as in SPM's
coregistration, Ashburner and Friston 1997). Lengths and shears are held by a weak Gaussian prior,
as in SPM's affine registration, so that a template without skull isn't stretched to the scalp of a
head. Regular-step gradient descent on SimpleITK's Mattes metric, with which this was compared, ran
away from the brain on two of five scans.

Every voxel of the mask is used and nothing is drawn at random: the same input gives the same bits,
on any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from normscan.preprocess.foreground import foreground_mask
from normscan.preprocess.steps import sample
from normscan.preprocess.template import Template, grid_affine

DOF = (6, 7, 9, 12)
BINS = 32
RADIUS = 70.0
"""mm; a change of angle, log length or shear by 1 / RADIUS moves the cortex by about 1 mm."""
PRIOR_LENGTH, PRIOR_LENGTH_SD, PRIOR_SHEAR_SD, PRIOR_WEIGHT = -0.1, 0.06, 0.05, 0.01
"""Logarithm of a brain's length by that of MNI152, its spread, that of a shear; weight in nats."""
HEAD_HEIGHT = 160.0
"""mm from the crown that are taken to find the middle of a head, so that a neck has no weight."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """How a scan lies in a template.

    Attributes:
        matrix: (4, 4) mm of the scan to mm of the template.
        mutual_information: of scan and template in and around the brain, in nats, 0 or more.
        overlap: fraction of the template's brain that lies in the scan's field of view.
    """

    matrix: np.ndarray
    mutual_information: float
    overlap: float

    @cached_property
    def lengths(self) -> tuple[float, float]:
        """Smallest and largest factor by which the way to the template changes a length."""
        factors = np.linalg.svd(self.matrix[:3, :3], compute_uv=False)
        return float(factors[-1]), float(factors[0])

    @property
    def volume(self) -> float:
        """Volume in the template by volume in the scan."""
        return float(np.linalg.det(self.matrix[:3, :3]))

    @property
    def rotation(self) -> float:
        """Angle in degrees, 0 to 180."""
        u, _, v = np.linalg.svd(self.matrix[:3, :3])
        return float(np.degrees(np.arccos(np.clip((np.trace(u @ v) - 1) / 2, -1, 1))))


def antialias(image: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Smooth (X, Y, Z) for a grid that is ``ratio`` times as coarse along each axis."""
    from scipy.ndimage import gaussian_filter

    # A Gaussian of 0.42 voxels (1/2.355) is as wide at half height as a voxel.
    sigma = 0.42 * np.sqrt(np.maximum(ratio, 1.0) ** 2 - 1)
    return np.asarray(gaussian_filter(image, sigma, truncate=3.0)) if sigma.any() else image


def world_grid(
    image: np.ndarray, affine: np.ndarray, spacing: float
) -> tuple[np.ndarray, np.ndarray]:
    """Sample (X, Y, Z) on an axis-parallel grid in mm that holds all of it.

    Oblique, sheared and anisotropic scans need no case of their own afterwards.

    Returns:
        the values, 0 outside, and the affine of the grid.
    """
    corners = np.array(list(product(*((0, n - 1) for n in image.shape))), float)
    points = corners @ affine[:3, :3].T + affine[:3, 3]
    low, high = points.min(axis=0), points.max(axis=0)
    shape = tuple(int(n) for n in np.ceil((high - low) / spacing) + 1)
    x, y, z = (low + high) / 2 - spacing * (np.array(shape) - 1) / 2
    grid = grid_affine((x, y, z), (spacing,) * 3)
    smooth = antialias(image, spacing / np.linalg.norm(affine[:3, :3], axis=0))
    return sample(smooth[None], np.linalg.inv(affine) @ grid, shape)[0], grid


def to_matrix(parameters: np.ndarray, centre: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return template mm to scan mm, (4, 4).

    Args:
        parameters: (6,), (7,), (9,) or (12,): shift, rotation vector, logarithms of lengths (one or
            three), shears; all in mm at ``RADIUS``.
        centre: in the template; stays under rotation and change of length.
        target: where it lies in the scan before the shift.
    """
    from scipy.spatial.transform import Rotation

    p = np.zeros(12)
    p[: len(parameters)] = parameters
    if len(parameters) == 7:
        p[6:9] = parameters[6]
    rotation = Rotation.from_rotvec(p[3:6] / RADIUS).as_matrix()
    shear = np.eye(3)
    shear[[0, 0, 1], [1, 2, 2]] = p[9:] / RADIUS
    matrix = np.eye(4)
    matrix[:3, :3] = rotation @ np.diag(np.exp(p[6:9] / RADIUS)) @ shear
    matrix[:3, 3] = target + p[:3] - matrix[:3, :3] @ centre
    return matrix


class Likeness:
    """Mutual information of a scan with the template in a mask, and the prior on the way there."""

    def __init__(
        self,
        template: Template,
        image: np.ndarray,
        affine: np.ndarray,
        spacing: float,
        margin: float,
        pivot: tuple[np.ndarray, np.ndarray],
    ) -> None:
        from scipy.ndimage import binary_dilation

        reference, grid = world_grid(template.image, template.affine, spacing)
        brain, _ = world_grid(template.brain.astype(np.float32), template.affine, spacing)
        mask, wider = brain > 0.5, round(margin / spacing)
        mask = binary_dilation(mask, iterations=wider) if wider else mask
        values = reference[mask] * (BINS - 1) / np.percentile(reference[brain > 0.5], 99.5)
        self.rows = np.clip(np.rint(values), 0, BINS - 1).astype(np.int64) * BINS
        self.points = grid[:3, :3] @ np.argwhere(mask).T + grid[:3, 3:]
        self.inside = brain[mask] > 0.5
        self.reference = reference[mask]
        self.image, to_scan = world_grid(image * np.float32(BINS - 1), affine, spacing)
        self.to_index = np.linalg.inv(to_scan)
        self.pivot = pivot

    def look_up(self, matrix: np.ndarray) -> np.ndarray:
        """Return the scan's values (N,) at the points of the mask; -1 outside the scan."""
        from scipy.ndimage import map_coordinates

        way = self.to_index @ matrix
        index = way[:3, :3] @ self.points + way[:3, 3:]
        return np.asarray(
            map_coordinates(
                self.image, index, order=1, mode="constant", cval=-1.0, output=np.float32
            )
        )

    def information(self, values: np.ndarray) -> float:
        """Return the mutual information in nats of (N,) values with the template.

        It is weighed by the fraction inside the scan, so that leaving it never pays.
        """
        from scipy.ndimage import gaussian_filter

        within = values >= 0
        fraction = float(within.mean())
        if fraction < 0.3:
            return 0.0
        values, rows = values[within], self.rows[within]
        lower = np.minimum(values.astype(np.int64), BINS - 2)
        share = values - lower
        joint = np.bincount(rows + lower, 1 - share, BINS**2)
        joint += np.bincount(rows + lower + 1, share, BINS**2)
        joint = gaussian_filter(joint.reshape(BINS, BINS), 1.0, mode="nearest", truncate=3.0)
        joint /= joint.sum()
        both = _entropy(joint)
        return fraction * (_entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1)) - both)

    def __call__(self, parameters: np.ndarray) -> float:
        cost = -self.information(self.look_up(to_matrix(parameters, *self.pivot)))
        if len(parameters) > 6:
            lengths = (parameters[6:9] / RADIUS - PRIOR_LENGTH) / PRIOR_LENGTH_SD
            shears = parameters[9:] / RADIUS / PRIOR_SHEAR_SD
            cost += PRIOR_WEIGHT * float((lengths**2).mean() + (shears**2).sum())
        return cost

    def correlation(self, matrix: np.ndarray) -> float:
        """Return Pearson's correlation of scan and template in the template's brain."""
        values = self.look_up(matrix)
        both = self.inside & (values >= 0)
        if both.sum() < 2 or np.ptp(values[both]) == 0:
            return 0.0
        return float(np.corrcoef(values[both], self.reference[both])[0, 1])


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def flatten(image: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Bring (X, Y, Z) to 0..1 for a histogram, and find what to centre on.

    Args:
        image: intensities of any unit.
        mask: the brain, or None for a head; outside it all is 0.

    Returns:
        the scaled image, and the mask or the foreground.
    """
    if mask is None:
        shown = foreground_mask(image[None])
        low = float(np.percentile(image, 0.5))
    else:
        shown, low = mask, float(image[mask].min())
    high = float(np.percentile(image[shown], 99))
    scaled = np.clip((image - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)
    return (scaled if mask is None else np.where(mask, scaled, np.float32(0))), shown


def align(
    image: np.ndarray,
    affine: np.ndarray,
    template: Template,
    mask: np.ndarray | None = None,
    dof: int = 12,
    finest: float = 3.0,
) -> tuple[Alignment, float]:
    """Find the affine way from a scan to a template.

    The directions of the scan's axes are believed to within about 40 degrees.

    Args:
        image: (X, Y, Z), any contrast.
        affine: (4, 4) index to mm.
        template: the reference brain.
        mask: (X, Y, Z) bool, the brain where it is known; None for a head with its skull.
        dof: 6 rigid, 7 with one length, 9 with three lengths, 12 affine.
        finest: mm between the points at which the images are compared in the end.

    Returns:
        the alignment, and the correlation of both in the template's brain.
    """
    from scipy.optimize import minimize

    scaled, shown = flatten(image, mask)
    points = np.argwhere(shown) @ affine[:3, :3].T + affine[:3, 3]
    if mask is None:
        points = points[points[:, 2] > np.percentile(points[:, 2], 99.9) - HEAD_HEIGHT]
    brain = np.argwhere(template.brain)
    centre = brain.mean(axis=0) @ template.affine[:3, :3].T + template.affine[:3, 3]
    pivot = (centre, points.mean(axis=0))
    # A brain's edge against the dark around it is worth seeing; a skull's isn't.
    margin = 3.0 if mask is None else 8.0

    def likeness(spacing: float) -> Likeness:
        return Likeness(template, scaled, affine, spacing, margin, pivot)

    def search(
        cost: Likeness, start: np.ndarray, xtol: float, ftol: float, rounds: int
    ) -> tuple[float, np.ndarray]:
        options = {"xtol": xtol, "ftol": ftol, "maxiter": rounds}
        found = minimize(cost, start, method="Powell", options=options)
        return float(found.fun), np.asarray(found.x)

    nods = (-20.0, 0.0, 20.0)  # mm at RADIUS: 16 degrees
    lifts = (-15.0, 5.0, 25.0) if mask is None else (0.0,)
    starts = [np.array([0, 0, lift, nod, 0, 0, 0]) for nod, lift in product(nods, lifts)]
    # Coarser, a head with bright fluid on T2 looks best where it is wrong.
    coarse = likeness(8.0 if mask is not None else 6.0)
    ranked = sorted((search(coarse, s, 0.5, 1e-3, 3) for s in starts), key=lambda r: r[0])
    middle = likeness(max(4.0, finest))
    best = min((search(middle, p, 0.1, 1e-4, 4) for _, p in ranked[:2]), key=lambda r: r[0])[1]
    lengths = np.repeat(best[6], 3)
    start = {
        6: best[:6],
        7: best,
        9: np.concatenate([best[:6], lengths]),
        12: np.concatenate([best[:6], lengths, np.zeros(3)]),
    }[dof]
    _, found = search(middle, start, 0.1, 1e-4, 5)
    last = middle if finest >= 4 else likeness(finest)
    if last is not middle:
        _, found = search(last, found, 0.02, 1e-5, 3)
    matrix = to_matrix(found, *pivot)
    values = last.look_up(matrix)
    alignment = Alignment(
        np.linalg.inv(matrix), last.information(values), float((values[last.inside] >= 0).mean())
    )
    return alignment, last.correlation(matrix)
