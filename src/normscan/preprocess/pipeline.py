"""The preprocessing that is saved with a detector and replayed at prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from normscan.errors import ArgumentError, CohortError, NormscanError, ScanError
from normscan.parallel import each
from normscan.preprocess.cache import run_cached
from normscan.preprocess.chain import parse_steps, plain_steps
from normscan.preprocess.file_range import equalised, file_range
from normscan.preprocess.foreground import bounding_box, foreground_mask
from normscan.preprocess.grid import Fit, Grid, fit_grid
from normscan.preprocess.steps import Working
from normscan.scan import Scan

if TYPE_CHECKING:
    from normscan.cohort import CohortRow


# Scans that a step learns from.
LEARNING_SCANS = 50
MOST_STEPS = 64

Scaling = Literal[
    "auto", "percentile", "median", "minmax", "zscore", "file", "equalise", "none", "evidence"
]


@dataclass(frozen=True)
class Prepared:
    """A scan on its working grid.

    Attributes:
        image: (C, *grid.shape) float32, scaled.
        foreground: (*grid.shape) bool.
        grid: the way back to the grid that the steps left.
        working: the scan after the steps, with the way back to the scan as it came in; None where
            there were no steps.
        companions: what stands beside the scan, (C, *grid.shape) by name, see
            ``normscan.io.COMPANIONS``; scans scaled as the image.
        further: further images of the case by name, each on a grid of its own.
        scan: as it came in; of a further image.
    """

    image: np.ndarray
    foreground: np.ndarray
    grid: Grid
    working: Working | None = None
    companions: Mapping[str, np.ndarray] = field(default_factory=dict)
    further: Mapping[str, Prepared] = field(default_factory=dict)
    scan: Scan | None = None

    def back(self, array: np.ndarray) -> np.ndarray:
        """Bring (C, *grid.shape) onto the grid of the scan as it came in; outside it is zero."""
        array = self.grid.backward(array)
        return array if self.working is None else self.working.back(array)

    def onward(self, mask: np.ndarray) -> np.ndarray:
        """Bring booleans on the grid of the scan as it came in, such as a lesion, onto this one."""
        return np.asarray(self.onto(mask[None], order=0)[0] > 0.5)

    def onto(self, array: np.ndarray, order: int = 1) -> np.ndarray:
        """Bring (C, *shape of the scan as it came in) onto this grid; outside it is zero."""
        array = array.astype(np.float32)
        array = array if self.working is None else self.working.onward(array, order)
        return self.grid.forward(array)

    def labels_onto(self, array: np.ndarray) -> np.ndarray:
        """Bring labels (C, *shape of the scan as it came in) onto this grid; outside they are 0."""
        if self.working is not None:
            array = self.working.onward(array.astype(np.float32), order=0)
        return self.grid.nearest(array).astype(np.int32)

    @property
    def voxel(self) -> float:
        """Voxels of the scan as it came in that one voxel of the working grid covers."""
        voxel = abs(float(np.prod(self.grid.step)))
        if self.working is not None:
            dims = len(self.grid.shape)
            voxel /= abs(float(np.linalg.det(self.working.index_map[:dims, :dims])))
        return voxel


@dataclass(frozen=True)
class Preprocess:
    """Steps, then orientation, cropping, resampling and scaling, in this order.

    Attributes:
        steps: of preparation before the working grid, such as ``("n4", {"resample": {"spacing":
            1.0}})``; see ``normscan.preprocess.steps``. They are checked and kept as plain values.
        preset: name of the preset that settings came from, for the record.
        size: pixels along each axis of the working grid. A volume that is cut into slices has this
            size in the plane and keeps its own slices.
        spacing: millimetres per working voxel; None scales the foreground to fill the grid.
        crop: ``foreground`` lays the grid over the box around the foreground, ``none`` over the whole
            image; a number such as 0.875 (256 pixels of which the middle 224 are kept) over that
            share of each axis, about its middle. What lies outside gets a map of zero.
        fit: ``pad`` keeps the proportions; so does ``cover``, which fills the grid with the shorter
            axis and cuts the ends of the longer one; ``stretch`` fills the grid on each axis.
        scaling: ``percentile`` maps 0 (or the minimum, if negative values occur) to 0 and the upper
            percentile of the foreground to 1; ``median`` its median to 0.5; ``auto`` takes the
            percentile of a volume, as the articles do, and the median of a 2D scan, since a lesion
            may fill more than the last percent of a slice and would darken all the rest of it;
            ``minmax`` the whole range to 0..1; ``zscore`` the foreground to mean 0 and deviation 1;
            ``file`` the ``range`` to 0..1, the same for all scans; ``equalise`` a value to the share
            of the foreground that is no higher, and what lies outside to 0; ``none`` keeps the values;
            ``evidence`` lets planted lesions choose when a detector is fitted, see
            ``normscan.detector.scaling``.
        range: what ``file`` brings to 0 and 1, for each channel; None finds it in healthy training
            scans, see ``normscan.preprocess.file_range``.
        percentile: upper percentile of ``percentile`` scaling.
        over: take percentile, median, mean and deviation over the ``foreground``, or over the whole
            ``image``, its background counted.
        per: scale a whole ``volume``, or each ``slice`` of it on its own.
        limit: largest scaled value; one hot pixel must not swamp a network.
        colour: ``auto`` keeps the channels if all training scans agree on them and else turns red,
            green, blue into grey; ``grey`` always does; ``keep`` never.
        foreground: ``auto`` computes a mask where the cohort gives none; ``all`` uses the image.
    """

    steps: tuple[Any, ...] = ()
    preset: str | None = None
    size: int = 128
    spacing: float | None = None
    crop: Literal["foreground", "none"] | float = "foreground"
    fit: Fit = "pad"
    scaling: Scaling = "auto"
    range: tuple[tuple[float, float], ...] | None = None
    percentile: float = 99.0
    over: Literal["foreground", "image"] = "foreground"
    per: Literal["volume", "slice"] = "volume"
    limit: float = 3.0
    colour: Literal["auto", "grey", "keep"] = "auto"
    foreground: Literal["auto", "all"] = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", plain_steps(self.steps))
        if not 8 <= self.size <= 4096:
            raise ArgumentError(f"preprocess.size is {self.size}; it must lie in 8..4096 pixels.")
        if self.spacing is not None and not 1e-4 <= self.spacing <= 1000:
            raise ArgumentError(
                f"preprocess.spacing is {self.spacing}; it must lie in 0.0001..1000 mm."
            )
        if not 0 < self.limit < float("inf"):
            raise ArgumentError(f"preprocess.limit is {self.limit}; it must be positive.")
        if len(self.steps) > MOST_STEPS:
            raise ArgumentError(
                f"preprocess.steps are {len(self.steps)}; {MOST_STEPS} are the most."
            )
        if not 50 <= self.percentile <= 100:
            raise ArgumentError(
                f"preprocess.percentile is {self.percentile}; it must lie in 50..100."
            )
        if not isinstance(self.crop, str) and not 0 < self.crop <= 1:
            raise ArgumentError(f"preprocess.crop is {self.crop}; a share must lie in 0..1.")
        if self.range is not None and not all(low < high for low, high in self.range):
            raise ArgumentError(f"preprocess.range is {self.range}; low must lie below high.")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)

    def __reduce__(self) -> tuple[Callable[..., Preprocess], tuple[Any, ...]]:
        # The functions travel along: to unpickle them imports, and so registers, a user's own steps.
        return _rebuilt, (self.to_dict(), [s.function for s, _ in parse_steps(self.steps)])

    def __call__(
        self, scan: Scan, dims: int, foreground: np.ndarray | None = None, cache: bool = True
    ) -> Prepared:
        """Take a scan through the steps and bring it onto the working grid.

        Args:
            scan: 2D or 3D.
            dims: number of spatial axes that the method works on; 2 cuts a volume into slices.
            foreground: (*scan.shape) bool, if the cohort gives one.
            cache: keep the result of the steps on disk, see ``normscan.preprocess.cache``.

        Raises:
            ScanError: a 2D scan for a 3D method, an image without any contrast, or one that a step
                can't work on.
        """
        if dims > scan.dims:
            raise ScanError(
                f"{scan.name}: a 2D scan can't be given to a 3D detector. Train with dims=2."
            )
        working = self.stepped(scan, foreground, cache)
        prepared = self._gridded(working.scan, dims, working.foreground)
        return replace(prepared, working=working) if self.steps else prepared

    def stepped(
        self, scan: Scan, foreground: np.ndarray | None = None, cache: bool = True
    ) -> Working:
        """Take a scan through the steps alone.

        Raises:
            ScanError: an image without any contrast, before or after the steps, or one that a step
                can't work on.
        """
        if scan.data.min() == scan.data.max():
            raise ScanError(
                f"{scan.name}: every pixel is {scan.data.flat[0]:g}, so there is nothing to see. "
                "Leave this scan out."
            )
        working = Working.of(scan, foreground)
        if not self.steps:
            return working
        working = run_cached(self.steps, working, cache)
        low, high = float(working.scan.data.min()), float(working.scan.data.max())
        lost = working.foreground is not None and not working.foreground.any()
        if low == high or lost or not np.isfinite([low, high]).all():
            raise ScanError(
                f"{scan.name}: the preprocessing steps left nothing to see of it. Is it the kind of "
                "scan that they are made for?"
            )
        return working

    def learn(self, rows: Sequence[CohortRow], workers: int = 1, cache: bool = True) -> Preprocess:
        """Let the steps that learn do so, each on what the steps before it make of healthy scans.

        The range of the files is learnt likewise, where ``scaling`` asks for it.

        Args:
            rows: healthy training scans; at most 50 of them, evenly taken, are looked at, one after
                the other.
            workers: processes that prepare them.
            cache: see ``__call__``.

        Returns:
            The settings with the arguments that were learnt.

        Raises:
            CohortError: none of the scans can be prepared.
        """
        steps = list(self.steps)
        places = np.linspace(0, len(rows) - 1, min(len(rows), LEARNING_SCANS)).round().astype(int)
        some = [rows[i] for i in places]
        for i, (found, arguments) in enumerate(parse_steps(self.steps)):
            if found.learn is not None:
                before = replace(self, steps=tuple(steps[:i]))
                learnt = found.learn(stepped_scans(before, some, workers, cache), **arguments)
                steps[i] = {found.name: dict(learnt)}
        whole = replace(self, steps=tuple(steps))
        if self.scaling != "file" or self.range is not None:
            return whole
        scans = (working.scan for working in stepped_scans(whole, some, workers, cache))
        return replace(whole, range=file_range(scans, self.colour == "grey"))

    @property
    def fixed_steps(self) -> tuple[Any, ...]:
        """The steps that don't learn; those that do keep the grid and the channels."""
        parsed = zip(self.steps, parse_steps(self.steps), strict=True)
        return tuple(spec for spec, (found, _) in parsed if found.learn is None)

    def _gridded(self, scan: Scan, dims: int, foreground: np.ndarray | None) -> Prepared:
        data = scan.data
        if self.colour == "grey" and len(data) > 1:
            data = data.mean(axis=0, keepdims=True)
        if foreground is None:
            all_of_it = self.foreground == "all"
            foreground = np.ones(scan.shape, bool) if all_of_it else foreground_mask(data)
        whole = tuple((0, n) for n in scan.shape)
        box = bounding_box(foreground) if self.crop == "foreground" else whole
        slices = dims == 2 and scan.dims == 3
        size = (self.size,) * dims + ((None,) if slices else ())
        share = 1.0 if isinstance(self.crop, str) else self.crop
        grid = fit_grid(scan, box, size, self.spacing, self.fit, dims == 2, share)
        # Padding must look like background, whatever value the background has.
        low = data.min(axis=tuple(range(1, data.ndim)), keepdims=True)
        image = grid.forward(data - low if low.any() else data) + low
        inside = grid.forward(foreground[None])[0] > 0.5
        if not inside.any():
            inside = np.ones(grid.shape, bool)
        return Prepared(self.scale(image, inside, slices), inside, grid)

    def scale(self, image: np.ndarray, inside: np.ndarray, slices: bool) -> np.ndarray:
        """Scale the intensities of (C, *shape), per channel and per volume or slice."""
        if slices and self.per == "slice":
            parts = [
                self._scale_part(image[..., k], inside[..., k]) for k in range(image.shape[-1])
            ]
            return np.stack(parts, axis=-1)
        return self._scale_part(image, inside)

    def _scale_part(self, image: np.ndarray, inside: np.ndarray) -> np.ndarray:
        if self.scaling == "none":
            return image
        if self.scaling == "evidence":
            raise ArgumentError(
                "preprocess.scaling 'evidence' is settled when a detector is fitted; take another one here."
            )
        if self.scaling == "equalise":
            return np.stack([equalised(values, inside) for values in image])
        if self.scaling == "file" and self.range is None:
            raise ArgumentError(
                "preprocess.scaling 'file' has no range. It is learnt when a detector is fitted; to "
                "use it alone give one, such as range=[[0, 4095]]."
            )
        median = self.scaling == "median" or (self.scaling == "auto" and inside.ndim == 2)
        scaled = np.empty_like(image)
        for channel, values in enumerate(image):
            foreground = self.over == "foreground" and inside.any()
            part = values[inside] if foreground else values.ravel()
            if self.scaling == "zscore":
                shift, scale = float(part.mean()), float(part.std())
            elif self.scaling == "minmax":
                shift, scale = float(values.min()), float(np.ptp(values))
            elif self.range is not None and self.scaling == "file":
                # A scan with more channels than the training scans is refused later.
                shift, high = self.range[min(channel, len(self.range) - 1)]
                scale = high - shift
            else:
                shift = min(0.0, float(values.min()))
                scale = float(np.percentile(part, 50 if median else self.percentile)) - shift
                scale *= 2 if median else 1
            # A slice without contrast is background; a volume without contrast was refused before.
            scaled[channel] = (values - shift) / scale if scale > 1e-12 else 0.0
        low = -self.limit if self.scaling == "zscore" else 0.0
        return np.clip(scaled, low, self.limit)


def _rebuilt(settings: dict[str, Any], functions: list[Callable[..., Any]]) -> Preprocess:
    return Preprocess(**settings)


@dataclass(frozen=True)
class Stepping:
    """Reads a scan and takes it through the steps; what is wrong with it is handed back."""

    preprocess: Preprocess
    cache: bool = True

    def __call__(self, row: CohortRow) -> Working | NormscanError | OSError:
        try:
            scan = row.load()
            return self.preprocess.stepped(scan, row.load_foreground(scan), self.cache)
        except (NormscanError, OSError) as error:
            return error


def stepped_scans(
    preprocess: Preprocess, rows: Sequence[CohortRow], workers: int = 1, cache: bool = True
) -> Iterator[Working]:
    """Yield scans after the steps, one at a time; bad ones are passed over.

    Raises:
        CohortError: at the end, if there was none.
    """
    reason, good = "there are no healthy training scans", 0
    for found in each(Stepping(preprocess, cache), rows, workers):
        if isinstance(found, Working):
            good += 1
            yield found
        elif not good:
            reason = str(found)
    if not good:
        raise CohortError(f"a preprocessing step has no scan to learn from: {reason}")
