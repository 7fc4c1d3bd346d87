"""Steps of preparation before the working grid: each takes a scan and hands on a scan.

A step is a registered function of a ``Working`` scan. Steps that change intensities keep the grid;
steps that change the grid say where it lies now. All changes of the grid are affine in
millimetres, so the way back for a map is one matrix, applied in one interpolation however many
steps there were.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from normscan.scan import Scan

# Along each axis, where a map goes onto coarser voxels.
MOST_SAMPLES = 8


@dataclass(frozen=True, eq=False)
class Working:
    """A scan on its way through the steps.

    Attributes:
        scan: as the last step left it.
        origin_shape: spatial shape of the scan as it came in.
        origin_affine: (4, 4) its index to RAS+ mm of the patient.
        to_world: (4, 4) patient mm of the scan as it came in to the mm of ``scan``; the identity
            until a registration moves it, for example to MNI152.
        foreground: (*scan.shape) bool, the brain, body or field of view, or None while unknown.
        notes: what the steps found worth saying (bias, clipping, a doubtful registration).
        facts: numbers that the steps measured, by name.
    """

    scan: Scan
    origin_shape: tuple[int, ...]
    origin_affine: np.ndarray
    to_world: np.ndarray = field(default_factory=lambda: np.eye(4))
    foreground: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, scan: Scan, foreground: np.ndarray | None = None) -> Working:
        """Begin with a scan as it was read."""
        return cls(scan, scan.shape, scan.affine, foreground=foreground)

    def with_image(self, data: np.ndarray) -> Working:
        """Hand on other values (C, *shape) on the same grid."""
        return replace(self, scan=self.scan.with_data(data))

    def moved(
        self,
        data: np.ndarray,
        affine: np.ndarray,
        foreground: np.ndarray | None,
        world: np.ndarray | None = None,
    ) -> Working:
        """Hand on another grid.

        Args:
            data: (C, *new shape).
            affine: (4, 4) index of the new grid to mm.
            foreground: on the new grid, or None.
            world: (4, 4) mm before the step to mm after it; None where the patient didn't move.
        """
        scan = replace(self.scan, data=data, affine=affine)
        to_world = self.to_world if world is None else world @ self.to_world
        return replace(self, scan=scan, to_world=to_world, foreground=foreground)

    def noted(self, *notes: str, **facts: float) -> Working:
        """Add remarks and measured numbers."""
        return replace(self, notes=(*self.notes, *notes), facts={**self.facts, **facts})

    @property
    def index_map(self) -> np.ndarray:
        """(4, 4) index in the scan as it came in to index in the present grid."""
        return np.linalg.inv(self.scan.affine) @ self.to_world @ self.origin_affine

    def back(self, array: np.ndarray, order: int = 1) -> np.ndarray:
        """Bring (C, *scan.shape) onto the grid of the scan as it came in; outside it is zero."""
        same = self.scan.shape == self.origin_shape
        if same and np.allclose(self.index_map, np.eye(4), atol=1e-6):
            return np.asarray(array, np.float32)
        return sample(array, self.index_map, self.origin_shape, order, mean=order > 0)

    def onward(self, array: np.ndarray, order: int = 0) -> np.ndarray:
        """Bring (C, *origin_shape), such as a lesion mask, onto the present grid."""
        index_map = np.linalg.inv(self.index_map)
        if order:
            # A voxel reaches beyond its centre: at the border its value holds on.
            array = np.pad(array, [(0, 0), *[(1, 1)] * (array.ndim - 1)], mode="edge")
            index_map[: array.ndim - 1, 3] += 1
        return sample(array, index_map, self.scan.shape, order)


def sample(
    array: np.ndarray,
    index_map: np.ndarray,
    shape: tuple[int, ...],
    order: int = 1,
    mean: bool = False,
) -> np.ndarray:
    """Sample (C, *old) at ``index_map @ index`` for every index of a new grid.

    Args:
        array: two or three spatial axes.
        index_map: (4, 4) index of the new grid to index of the old one.
        shape: of the new grid.
        order: 0 nearest, 1 linear, 3 cubic spline.
        mean: a new voxel that spans several old ones is the mean over it, so that nothing small
            between two places is lost; otherwise the value at its centre.

    Returns:
        (C, *shape) float32, zero outside the old grid.
    """
    from scipy.ndimage import affine_transform

    dims = len(shape)
    # Rounding must not push a place on the border out of the grid.
    index_map = np.round(index_map, 10)
    matrix, offset = index_map[:dims, :dims], index_map[:dims, 3]
    spans = np.linalg.norm(matrix, axis=0) if mean else np.ones(dims)
    counts = [int(n) for n in np.clip(np.ceil(spans - 0.5), 1, MOST_SAMPLES)]
    places = itertools.product(*([(k + 0.5) / n - 0.5 for k in range(n)] for n in counts))
    shifts = [matrix @ np.array(place) for place in places]
    out = np.zeros((len(array), *shape), np.float32)
    for channel, total in zip(array, out, strict=True):
        values = channel.astype(np.float32, copy=False)
        for shift in shifts:
            total += affine_transform(
                values, matrix, offset + shift, output_shape=shape, order=order, mode="constant"
            )
    return out if len(shifts) == 1 else out / len(shifts)


StepFunction = Callable[..., Working]


@dataclass(frozen=True)
class Step:
    """A registered step.

    Attributes:
        name: as it stands in settings.
        function: ``function(working, **arguments) -> Working``.
        learn: ``learn(workings, **arguments) -> arguments`` finds on healthy training scans what the
            step needs (landmarks, a reference), or None. What it returns is plain values and is
            saved with the detector.
        version: raised when results change, so that cached ones are made anew.
    """

    name: str
    function: StepFunction
    learn: Callable[..., dict[str, Any]] | None = None
    version: int = 1


STEPS: dict[str, Step] = {}


def step(
    name: str, learn: Callable[..., dict[str, Any]] | None = None, version: int = 1
) -> Callable[[StepFunction], StepFunction]:
    """Register a function as a step.

    Example:
        >>> @step("negative")
        ... def negative(working: Working, top: float = 1.0) -> Working:
        ...     '''Turn bright into dark.'''
        ...     return working.with_image(top - working.scan.data)
        >>> del STEPS["negative"]
    """

    def register(function: StepFunction) -> StepFunction:
        STEPS[name] = Step(name, function, learn, version)
        return function

    return register
