"""The templates that brains are brought to, and the grids they are laid on.

The MNI152 template is that of the nilearn package (ICBM 152 nonlinear symmetric 2009a, 1 mm, Fonov
et al., NeuroImage 2011); nothing is downloaded. It shows the brain without skull.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from normscan.errors import ArgumentError, nearest


@dataclass(frozen=True, eq=False)
class Template:
    """A reference brain without skull, on an axis-aligned grid.

    Attributes:
        image: (X, Y, Z) float32, 0 outside the brain.
        brain: (X, Y, Z) bool.
        affine: (4, 4) index to template mm.
    """

    image: np.ndarray
    brain: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True, eq=False)
class Space:
    """Where a registration ends: a template and the grid to sample.

    Attributes:
        template: what is registered to.
        shape: of the grid.
        affine: (4, 4) index of the grid to mm of the space.
        world: (4, 4) template mm to mm of the space.
    """

    template: Template
    shape: tuple[int, ...]
    affine: np.ndarray
    world: np.ndarray


def grid_affine(
    origin: tuple[float, float, float], steps: tuple[float, float, float]
) -> np.ndarray:
    """Return the affine of a grid without rotation."""
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = origin
    return affine


@lru_cache(maxsize=1)
def mni152() -> Template:
    """Return the MNI152 T1 with its brain mask, 1 mm, 0 to 1."""
    from nilearn import datasets

    image = datasets.load_mni152_template(resolution=1)
    mask = datasets.load_mni152_brain_mask(resolution=1)
    brain = np.asarray(mask.dataobj) > 0
    data = np.asarray(image.get_fdata(dtype=np.float32))
    return Template(np.where(brain, data, np.float32(0)), brain, np.asarray(image.affine, float))


# Grids by name: shape, origin and steps in mm. mni152 is the grid of ICBM 2009c; sri24 is that of
# the BraTS files, whose axes run to the left, to the back and upwards.
GRIDS = {
    "mni152": ((193, 229, 193), (-96.0, -132.0, -78.0), (1.0, 1.0, 1.0)),
    "mni152-2mm": ((97, 115, 97), (-96.0, -132.0, -78.0), (2.0, 2.0, 2.0)),
    "sri24": ((240, 240, 155), (0.0, 239.0, 0.0), (-1.0, -1.0, 1.0)),
}
# The SRI24 template isn't at hand. Brains in BraTS files were measured instead: the middle of the
# MNI152 brain lies there, and they nod by so much against MNI152 (mean of three public cases, which
# spread by 5 mm and 5 degrees).
MIDDLE_MNI, MIDDLE_BRATS, NOD_BRATS = (0.0, -22.0, 9.5), (-119.0, 106.1, 77.8), 9.5


def sri24_world() -> np.ndarray:
    """Return MNI152 mm to the mm of BraTS files, a rigid matrix (4, 4)."""
    angle = np.deg2rad(NOD_BRATS)
    matrix = np.eye(4)
    matrix[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = MIDDLE_BRATS - matrix[:3, :3] @ MIDDLE_MNI
    return matrix


def find_space(to: str) -> Space:
    """Return the space of a name, or that of a template in a file.

    Args:
        to: ``mni152`` (193 x 229 x 193, 1 mm), ``mni152-2mm`` (97 x 115 x 97), ``sri24``
            (240 x 240 x 155, 1 mm, the grid of the BraTS files, aligned by MNI152), or the path of
            a brain volume without skull.

    Raises:
        ArgumentError: unknown name, or a file that is no volume.
        ScanError: a file that can't be read.
    """
    if to in GRIDS:
        shape, origin, steps = GRIDS[to]
        world = sri24_world() if to == "sri24" else np.eye(4)
        return Space(mni152(), shape, grid_affine(origin, steps), world)
    if not Path(to).is_file():
        raise ArgumentError(
            f"register: there is no template '{to}'.{nearest(to, GRIDS)} Give one of "
            f"{', '.join(GRIDS)}, or the path of a brain volume without skull."
        )
    from normscan.io import read_scan
    from normscan.preprocess.foreground import foreground_mask

    scan = read_scan(to)
    if scan.dims != 3:
        raise ArgumentError(f"register: the template {scan.name} is no volume.")
    brain = foreground_mask(scan.data)
    image = np.where(brain, scan.data[0] - scan.data[0].min(), np.float32(0))
    return Space(Template(image, brain, scan.affine), scan.shape, scan.affine, np.eye(4))
