"""The MNI152 tissue maps as functions of position in MNI millimetres.

Source: ICBM 152 nonlinear symmetric 2009a (Fonov et al., NeuroImage 2011), as shipped inside the
nilearn package; nothing is downloaded. The maps are averages over 152 people: probabilities, which
we read as partial-volume fractions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

CSF, GM, WM = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume on an axis-aligned grid.

    Attributes:
        data: values (X, Y, Z) float32.
        origin: position in mm of the first voxel.
        step: voxel size in mm.
        mode: what lies outside, as in `scipy.ndimage.map_coordinates`: zeros or the nearest value.
    """

    data: np.ndarray
    origin: np.ndarray
    step: float
    mode: str = "constant"

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return linearly interpolated values (N,) at points (N, 3) in mm."""
        from scipy.ndimage import map_coordinates

        index = (points - self.origin).T / self.step
        return np.asarray(
            map_coordinates(self.data, index, order=1, mode=self.mode, output=np.float64)
        )


@dataclass(frozen=True, eq=False)
class Atlas:
    """Tissue maps and distances in the template.

    Attributes:
        grey: grey-matter fraction.
        white: white-matter fraction.
        brain: brain mask, 0 to 1.
        depth: distance in mm to the outside of the brain, 0 outside.
        ventricle_distance: distance in mm to the lateral ventricles.
    """

    grey: Volume
    white: Volume
    brain: Volume
    depth: Volume
    ventricle_distance: Volume

    def fractions(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return tissue fractions (N, 3) in the order CSF, GM, WM and the brain weight (N,).

        The fractions add up to 1 wherever the brain weight is at least a half, and are 0 elsewhere.
        """
        brain = self.brain(points)
        grey, white = self.grey(points), self.white(points)
        csf = np.clip(brain - grey - white, 0.0, None)
        parts = np.stack([csf, grey, white], axis=1)
        total = parts.sum(axis=1, keepdims=True)
        inside = (brain >= 0.5)[:, None]
        return np.where(inside, parts / np.maximum(total, 1e-9), 0.0), brain


@lru_cache(maxsize=2)
def load_atlas(spacing: float) -> Atlas:
    """Return the atlas, smoothed for sampling every ``spacing`` mm.

    Args:
        spacing: voxel size in mm of the images to come. Coarser than the 1 mm of the template, the
            maps are smoothed to the resolution of the voxels, or fine sulci would alias.
    """
    from nilearn import datasets

    images = [
        datasets.load_mni152_gm_template(resolution=1),
        datasets.load_mni152_wm_template(resolution=1),
        datasets.load_mni152_brain_mask(resolution=1),
    ]
    arrays = [np.asarray(image.get_fdata(dtype=np.float32)) for image in images]
    origin = np.asarray(images[2].affine[:3, 3], dtype=np.float64)
    arrays, origin = _crop(arrays, origin, margin=6)
    depth, ventricles = _distances(arrays, origin)
    grey, white, brain = (Volume(_smooth(a, spacing), origin, 1.0) for a in arrays)
    return Atlas(
        grey,
        white,
        brain,
        depth=Volume(depth, origin, 2.0),
        ventricle_distance=Volume(ventricles, origin, 2.0, mode="nearest"),
    )


def _crop(
    arrays: list[np.ndarray], origin: np.ndarray, margin: int
) -> tuple[list[np.ndarray], np.ndarray]:
    where = np.argwhere(arrays[2] > 0)
    low = np.maximum(where.min(axis=0) - margin, 0)
    high = where.max(axis=0) + 1 + margin
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return [np.ascontiguousarray(a[box]) for a in arrays], origin + low


def _smooth(array: np.ndarray, spacing: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    if spacing <= 1.0:
        return array
    # A Gaussian of standard deviation 0.42 (1/2.355) voxels is as wide at half height as a voxel.
    sigma = 0.42 * float(np.sqrt(spacing**2 - 1.0))
    return np.asarray(gaussian_filter(array, sigma, truncate=3.0))


def _distances(arrays: list[np.ndarray], origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth below the brain surface and distance to the lateral ventricles, every 2 mm."""
    from scipy import ndimage

    grey, white, brain = (a[::2, ::2, ::2] for a in arrays)
    depth = 2.0 * ndimage.distance_transform_edt(brain > 0.5)
    csf = (brain - grey - white > 0.6) & (depth > 14.0)
    labels, count = ndimage.label(csf)
    index = np.arange(1, count + 1)
    sizes = ndimage.sum_labels(csf, labels, index)
    side = np.array([c[0] for c in ndimage.center_of_mass(csf, labels, index)]) * 2.0 + origin[0]
    # The lateral ventricles are the two largest inner pools of CSF that lie off the midline; the
    # third ventricle and the cisterns around the midbrain lie on it.
    lateral = index[np.argsort(np.where(np.abs(side) > 6.0, -sizes, 0.0))[:2]]
    distance = 2.0 * ndimage.distance_transform_edt(~np.isin(labels, lateral))
    return depth.astype(np.float32), distance.astype(np.float32)
