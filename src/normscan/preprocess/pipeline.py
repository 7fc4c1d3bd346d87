"""The preprocessing that is saved with a detector and replayed at prediction."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from normscan.errors import ArgumentError, ScanError
from normscan.preprocess.foreground import bounding_box, foreground_mask
from normscan.preprocess.grid import Grid, fit_grid
from normscan.scan import Scan


@dataclass(frozen=True)
class Prepared:
    """A scan on its working grid.

    Attributes:
        image: (C, *grid.shape) float32, scaled.
        foreground: (*grid.shape) bool.
        grid: the way back to the scan's own grid.
    """

    image: np.ndarray
    foreground: np.ndarray
    grid: Grid


@dataclass(frozen=True)
class Preprocess:
    """Orientation, cropping, resampling and scaling, in this order.

    Attributes:
        size: pixels along each axis of the working grid. A volume that is cut into slices has this
            size in the plane and keeps its own slices.
        spacing: millimetres per working voxel; None scales the foreground to fill the grid.
        crop: ``foreground`` centres the grid on the box around the foreground; ``none`` on the
            whole image.
        fit: ``pad`` keeps the proportions, ``stretch`` fills the grid on each axis.
        scaling: ``percentile`` maps 0 (or the minimum, if negative values occur) to 0 and the upper
            percentile of the foreground to 1; ``median`` its median to 0.5; ``auto`` takes the
            percentile of a volume, as the articles do, and the median of a 2D scan, since a lesion
            may fill more than the last percent of a slice and would darken all the rest of it;
            ``minmax`` the whole range to 0..1; ``zscore`` the foreground to mean 0 and deviation 1;
            ``none`` keeps the values.
        percentile: upper percentile of ``percentile`` scaling.
        per: scale a whole ``volume``, or each ``slice`` of it on its own.
        limit: largest scaled value; one hot pixel must not swamp a network.
        colour: ``auto`` keeps the channels if all training scans agree on them and else turns red,
            green, blue into grey; ``grey`` always does; ``keep`` never.
        foreground: ``auto`` computes a mask where the cohort gives none; ``all`` uses the image.
    """

    size: int = 128
    spacing: float | None = None
    crop: Literal["foreground", "none"] = "foreground"
    fit: Literal["pad", "stretch"] = "pad"
    scaling: Literal["auto", "percentile", "median", "minmax", "zscore", "none"] = "auto"
    percentile: float = 99.0
    per: Literal["volume", "slice"] = "volume"
    limit: float = 3.0
    colour: Literal["auto", "grey", "keep"] = "auto"
    foreground: Literal["auto", "all"] = "auto"

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 4096:
            raise ArgumentError(f"preprocess.size is {self.size}; it must lie in 8..4096 pixels.")
        if self.spacing is not None and not self.spacing > 0:
            raise ArgumentError(f"preprocess.spacing is {self.spacing}; it must be positive (mm).")
        if not 50 <= self.percentile <= 100:
            raise ArgumentError(
                f"preprocess.percentile is {self.percentile}; it must lie in 50..100."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)

    def __call__(self, scan: Scan, dims: int, foreground: np.ndarray | None = None) -> Prepared:
        """Bring a scan onto the working grid.

        Args:
            scan: 2D or 3D.
            dims: number of spatial axes that the method works on; 2 cuts a volume into slices.
            foreground: (*scan.shape) bool, if the cohort gives one.

        Raises:
            ScanError: a 2D scan for a 3D method, or an image without any contrast.
        """
        if dims > scan.dims:
            raise ScanError(
                f"{scan.name}: a 2D scan can't be given to a 3D detector. Train with dims=2."
            )
        data = scan.data
        if data.min() == data.max():
            raise ScanError(
                f"{scan.name}: every pixel is {data.flat[0]:g}, so there is nothing to see. "
                "Leave this scan out."
            )
        if self.colour == "grey" and len(data) > 1:
            data = data.mean(axis=0, keepdims=True)
        if foreground is None:
            all_of_it = self.foreground == "all"
            foreground = np.ones(scan.shape, bool) if all_of_it else foreground_mask(data)
        whole = tuple((0, n) for n in scan.shape)
        box = bounding_box(foreground) if self.crop == "foreground" else whole
        slices = dims == 2 and scan.dims == 3
        size = (self.size,) * dims + ((None,) if slices else ())
        grid = fit_grid(scan, box, size, self.spacing, self.fit == "stretch", upright=dims == 2)
        # Padding must look like background, whatever value the background has.
        low = data.min(axis=tuple(range(1, data.ndim)), keepdims=True)
        image = grid.forward(data - low) + low
        inside = grid.forward(foreground[None].astype(np.float32))[0] > 0.5
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
        median = self.scaling == "median" or (self.scaling == "auto" and inside.ndim == 2)
        scaled = np.empty_like(image)
        for channel, values in enumerate(image):
            part = values[inside] if inside.any() else values.ravel()
            if self.scaling == "zscore":
                shift, scale = float(part.mean()), float(part.std())
            elif self.scaling == "minmax":
                shift, scale = float(values.min()), float(np.ptp(values))
            else:
                shift = min(0.0, float(values.min()))
                scale = float(np.percentile(part, 50 if median else self.percentile)) - shift
                scale *= 2 if median else 1
            # A slice without contrast is background; a volume without contrast was refused before.
            scaled[channel] = (values - shift) / scale if scale > 1e-12 else 0.0
        low = -self.limit if self.scaling == "zscore" else 0.0
        return np.clip(scaled, low, self.limit)
