"""What one row of pictures in a report shows: a plane with its restoration, map and mask."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from normscan.display import Plane, is_raster
from normscan.errors import ArgumentError
from normscan.scan import RASTER_AFFINE
from normscan.scores.components import box_of


@dataclass(frozen=True, eq=False)
class Picture:
    """One plane of a scan with what the detector made of it.

    Attributes:
        title: name of the scan; it goes into the page, so no patient identity.
        caption: a line of text below the title, may be empty.
        image: (C, H, W) intensities.
        reconstruction: (C, H, W) what the method thinks the healthy scan looks like, or None.
        map: (H, W) anomaly map; NaN outside the evaluated region.
        mask: (H, W) bool true lesion, or None.
        score: anomaly score of the scan.
        p_value: conformal p-value against healthy scans.
        label: 1 anomalous, 0 healthy, None unknown.
        anomalous: the detector's decision.
        affine: (4, 4), the array axes H and W to RAS+ millimetres in its first two columns.
        rgb: the three channels are red, green and blue; None takes that for granted where a raster
            image has three channels.
        radiological: show the patient's right at the left.
        around: of a volume, the planes through the peak of its map.
        leaves: of a volume, axial planes from its top down.
    """

    title: str
    caption: str
    image: np.ndarray
    reconstruction: np.ndarray | None
    map: np.ndarray
    mask: np.ndarray | None
    score: float
    p_value: float
    label: int | None
    anomalous: bool
    affine: np.ndarray = field(default_factory=lambda: RASTER_AFFINE)
    rgb: bool | None = None
    radiological: bool = False
    around: tuple[Plane, ...] = ()
    leaves: tuple[Plane, ...] = ()

    def __post_init__(self) -> None:
        plane = self.map.shape
        if self.map.ndim != 2 or self.image.ndim != 3 or self.image.shape[1:] != plane:
            raise ArgumentError(
                f"{self.title}: a picture has an image (C, H, W) and a map (H, W), not the shapes "
                f"{self.image.shape} and {plane}."
            )
        others = {"reconstruction": self.reconstruction, "mask": self.mask}
        for name, array in others.items():
            if array is not None and array.shape[-2:] != plane:
                raise ArgumentError(
                    f"{self.title}: the {name} has the shape {array.shape}, the map {plane}."
                )

    @property
    def is_rgb(self) -> bool:
        """Whether the channels are colours."""
        if self.rgb is not None:
            return self.rgb and len(self.image) == 3
        return len(self.image) == 3 and is_raster(self.affine)


def best_slice(
    image: np.ndarray,
    map: np.ndarray,
    affine: np.ndarray,
    *,
    reconstruction: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    index: int | None = None,
    **about: Any,
) -> Picture:
    """Make a picture of the slice along the last axis that says most about a volume.

    That is the slice with the largest part of the true lesion, so that a miss is seen as a miss;
    without a lesion the slice where the hottest percent of the map is strongest. A plane goes
    through as it is.

    Args:
        image: (C, X, Y, Z), or (C, H, W).
        map: (X, Y, Z), or (H, W).
        affine: (4, 4) of the volume.
        reconstruction: (C, X, Y, Z) or None.
        mask: (X, Y, Z) bool or None.
        index: of the slice, instead of the one that says most.
        **about: the other fields of `Picture`: title, score, p_value, label, anomalous and, if
            wanted, caption (the slice number by default) and rgb.
    """
    about.setdefault("caption", "")
    if map.ndim == 2:
        return Picture(
            image=image, reconstruction=reconstruction, map=map, mask=mask, affine=affine, **about
        )
    if map.ndim != 3 or image.shape[1:] != map.shape:
        raise ArgumentError(
            f"{about.get('title', 'picture')}: an image of shape {image.shape} and a map of shape "
            f"{map.shape} are not (C, X, Y, Z) and (X, Y, Z)."
        )
    k = best_index(map, mask) if index is None else index
    picture = Picture(
        image=image[..., k],
        reconstruction=None if reconstruction is None else reconstruction[..., k],
        map=map[..., k],
        mask=None if mask is None else mask[..., k].astype(bool),
        affine=affine,
        **{"rgb": False, **about},
    )
    return picture if picture.caption else replace(picture, caption=_slice_name(k, map.shape[-1]))


def _slice_name(k: int, count: int) -> str:
    return f"slice {k + 1} of {count}"


def best_index(map: np.ndarray, mask: np.ndarray | None) -> int:
    """Return the slice of a volume (X, Y, Z) that says most, see `best_slice`."""
    if mask is not None and mask.any():
        return int(mask.astype(bool).sum(axis=(0, 1)).argmax())
    finite = np.isfinite(map)
    if not finite.any():
        return map.shape[-1] // 2
    # The plain sum would choose the slice with most tissue; only the hottest voxels count, and where
    # there are enough above 0, only the box around those is looked at.
    hot = finite & (map > 0)
    hottest = np.count_nonzero(finite) / 100
    enough = np.count_nonzero(hot) > hottest
    box = box_of(hot) if enough else (slice(0, None),) * 3
    values = map[box][(hot if enough else finite)[box]]
    floor = np.quantile(values, 1 - hottest / values.size)
    content = np.where(finite[box], np.maximum(map[box] - floor, 0), 0).sum(axis=(0, 1))
    return box[-1].start + int(content.argmax()) if content.any() else map.shape[-1] // 2
