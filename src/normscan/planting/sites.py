"""Planting a lesion of a stated size and contrast into any healthy scan.

The lesion is an irregular ellipsoid, the phantom's outline, drawn once for a place with a diameter
of 1 and then scaled: all sizes and contrasts of a place share one centre and one shape, so that the
cells of the grid differ in nothing but what they are about.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from normscan.errors import ScanError
from normscan.phantom.shapes import random_blob
from normscan.scan import Scan

EDGE = 0.25  # width of the soft border, as a part of the diameter
IRREGULARITY = 0.15  # relative standard deviation of the radius, the phantom's default
OBLONG = 0.15  # standard deviation of the logarithm of the axes
_REACH = 1.2  # nothing of a lesion of diameter 1 lies farther from its centre than this
_FINE = {2: 240, 3: 60}  # points along each side of the box in which an outline is measured
_STEPS = 8  # points along a diameter at which partial volume is summed
_MOST_STEPS = 8  # points along a side of a voxel, at most


@dataclass(frozen=True, eq=False)
class Planted:
    """A scan with a lesion in it.

    Attributes:
        scan: the healthy twin with the lesion.
        mask: (*scan.shape) bool: voxels that it fills at least half; where none is, the fullest.
        centre: (3,) RAS+ mm.
        reached: mean change over the mask and the channels, in robust standard deviations of the
            foreground: the contrast that is there after the soft border, the partial volume and
            the ends of the scale.
    """

    scan: Scan
    mask: np.ndarray
    centre: np.ndarray
    reached: float

    @property
    def extent(self) -> float:
        """Volume of the mask in mm3; its area in mm2 for a 2D scan."""
        return float(self.mask.sum()) * self.scan.voxel_volume


class Site(Protocol):
    """A place in a healthy scan at which lesions of any size and contrast can be planted.

    Attributes:
        subject: who it is of.
        name: of the scan.
        twin: the scan without a lesion.
        foreground: (*twin.shape) bool, or None to have it found.
    """

    subject: str
    name: str
    twin: Scan
    foreground: np.ndarray | None

    def grow(self, size: float) -> Callable[[float], Planted]:
        """Return what gives the lesion of a diameter in mm at any contrast.

        Raises:
            ScanError: no part of it can be seen in the scan.
        """
        ...


def planted(
    twin: Scan, scan: Scan, filled: np.ndarray, foreground: np.ndarray, centre: np.ndarray
) -> Planted:
    """Put together what is known of a planted lesion.

    Args:
        twin: the scan without it.
        scan: the scan with it.
        filled: (*shape) how much of each voxel the lesion fills, 0 to 1.
        foreground: (*shape) bool.
        centre: (3,) RAS+ mm.

    Raises:
        ScanError: it fills no voxel at all.
    """
    if not filled.max() > 0:
        raise ScanError(f"{twin.name}: no voxel shows the lesion. Leave out the smallest sizes.")
    mask = filled >= 0.5
    if not mask.any():
        mask = filled == filled.max()
    change = (scan.data[:, mask] - twin.data[:, mask]).mean(axis=1, dtype=np.float64)
    reached = float((change / spread(twin, foreground)).mean())
    return Planted(scan, mask, centre, reached)


def spread(scan: Scan, foreground: np.ndarray) -> np.ndarray:
    """Return the robust standard deviation of the foreground of each channel (C,).

    The interquartile range divided by 1.349, which for a normal distribution is the standard
    deviation; the plain one where half of the values are equal. It follows any linear scale of the
    intensities, Hounsfield units and z-scores as well as arbitrary ones.

    Raises:
        ScanError: the foreground is constant in a channel.
    """
    values = scan.data[:, foreground].astype(np.float64)
    low, high = np.percentile(values, [25, 75], axis=1)
    found = (high - low) / 1.349
    found = np.where(found > 0, found, values.std(axis=1))
    if not (found > 0).all():
        raise ScanError(f"{scan.name}: its foreground is constant, so a contrast has no unit.")
    return np.asarray(found)


def ends(scan: Scan) -> tuple[float, float]:
    """Return the lowest and the highest value that a scan like this can hold.

    Those of the integer type of its file, where its values lie within; and 0 where no value is
    negative, since neither a magnitude nor a photograph has negative ones.
    """
    smallest, largest = float(scan.data.min()), float(scan.data.max())
    low, high = (0.0 if smallest >= 0 else -np.inf), np.inf
    try:
        kind = np.dtype(scan.dtype)
    except TypeError:
        return low, high
    if kind.kind in "ui":
        info = np.iinfo(kind)
        if info.min <= smallest and largest <= info.max:
            return max(low, float(info.min)), float(info.max)
    return low, high


class Outline:
    """The outline of a lesion of diameter 1 mm round the origin; a disc-like one for a 2D scan.

    Args:
        rng: source of the shape.
        dims: 2 or 3.
    """

    def __init__(self, rng: np.random.Generator, dims: int) -> None:
        self.dims = dims
        self.blob = random_blob(rng, np.zeros(3), 1.0, IRREGULARITY, OBLONG)
        count = _FINE[dims]
        axis = ((np.arange(count) + 0.5) / count * 2 - 1) * _REACH
        points = np.stack(np.meshgrid(*[axis] * dims, indexing="ij"), axis=-1).reshape(-1, dims)
        # As many points as a ball (a disc) of diameter 1 holds are inside.
        wanted = round((np.pi / 4 if dims == 2 else np.pi / 6) * (count / (2 * _REACH)) ** dims)
        level = self._level(points)
        self.threshold = float(np.partition(level, wanted)[wanted])

    def _level(self, points: np.ndarray) -> np.ndarray:
        flat = np.zeros((len(points), 3))
        flat[:, : self.dims] = points
        return self.blob.level(flat)

    def filled(self, points: np.ndarray) -> np.ndarray:
        """Return how much of the lesion's contrast there is (N,), 0 to 1, at points (N, dims)."""
        ramp = np.clip(0.5 - (self._level(points) - self.threshold) / EDGE, 0.0, 1.0)
        return np.asarray(ramp * ramp * (3.0 - 2.0 * ramp))


class BlobSite:
    """A place in any healthy scan.

    Args:
        subject: who it is of.
        name: of the scan.
        twin: the healthy scan.
        foreground: (*twin.shape) bool, or None to have it found by intensity.
        rng: source of place and shape.
        largest: diameter in mm of the largest lesion to come: where the foreground allows it, the
            centre lies half of that below its surface, for lesions of all sizes.
    """

    def __init__(
        self,
        subject: str,
        name: str,
        twin: Scan,
        foreground: np.ndarray | None,
        rng: np.random.Generator,
        largest: float,
    ) -> None:
        self.subject, self.name, self.twin, self.foreground = subject, name, twin, foreground
        self.inside = found_foreground(twin) if foreground is None else foreground
        self.index = self._place(rng, 0.5 * largest)
        self.outline = Outline(rng, twin.dims)

    def _place(self, rng: np.random.Generator, margin: float) -> np.ndarray:
        """Return the centre (dims,) as an index between the voxels."""
        from scipy.ndimage import distance_transform_edt

        depth = distance_transform_edt(np.pad(self.inside, 1), sampling=self.twin.spacing)
        depth = depth[(slice(1, -1),) * self.twin.dims]
        # Where the anatomy is too thin for the largest lesion, its inmost part must do.
        places = np.argwhere(depth >= min(margin, 0.8 * depth.max()))
        return places[rng.integers(len(places))] + rng.uniform(-0.5, 0.5, self.twin.dims)

    @cached_property
    def _spread(self) -> np.ndarray:
        return spread(self.twin, self.inside)

    @property
    def centre(self) -> np.ndarray:
        """Centre (3,) in RAS+ mm."""
        index = np.array([*self.index, *[0.0] * (3 - self.twin.dims), 1.0])
        return np.asarray((self.twin.affine @ index)[:3])

    def fraction(self, size: float) -> np.ndarray:
        """Return how much of each voxel (*shape) a lesion of a diameter in mm fills, 0 to 1.

        Averaged over points inside each voxel; nothing grows outside the foreground.
        """
        spacing = np.asarray(self.twin.spacing)
        reach = _REACH * size / spacing
        low = np.maximum(np.ceil(self.index - reach - 0.5).astype(int), 0)
        high = np.minimum(np.floor(self.index + reach + 0.5).astype(int) + 1, self.twin.shape)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        axes = [np.arange(a, b) for a, b in zip(low, high, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        counts = np.clip(np.ceil(_STEPS * spacing / size), 1, _MOST_STEPS).astype(int)
        steps = [(np.arange(n) + 0.5) / n - 0.5 for n in counts]
        total = np.zeros(grid.shape[:-1])
        for offset in itertools.product(*steps):
            points = (grid + np.asarray(offset) - self.index) * spacing / size
            total += self.outline.filled(points.reshape(-1, self.twin.dims)).reshape(total.shape)
        filled = np.zeros(self.twin.shape)
        filled[box] = total / np.prod(counts) * self.inside[box]
        return filled

    def grow(self, size: float) -> Callable[[float], Planted]:
        """Return what gives the lesion of a diameter in mm at any contrast.

        The contrast, times the robust standard deviation of the foreground in each channel, is
        added to the healthy tissue: its texture shows through. Negative ones make it darker.
        """
        filled = self.fraction(size)
        where = filled > 0
        low, high = ends(self.twin)

        def at(contrast: float) -> Planted:
            data = self.twin.data.copy()
            added = contrast * self._spread[:, None] * filled[where]
            data[:, where] = np.clip(data[:, where] + added, low, high)
            scan = self.twin.with_data(data)
            return planted(self.twin, scan, filled, self.inside, self.centre)

        return at


def found_foreground(scan: Scan) -> np.ndarray:
    """Return the foreground (*shape) of a scan, by intensity."""
    from normscan.preprocess.foreground import foreground_mask

    return foreground_mask(scan.data)
