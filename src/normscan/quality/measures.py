"""What a scan says of itself: geometry, modality, and whether it is whole.

Every number here is taken of the scan as it was read, before any preparation. Volumes are looked at
in RAS+ and pictures upright, so that the way a file stores its axes makes no difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from normscan.preprocess.foreground import foreground_mask
from normscan.preprocess.grid import orient
from normscan.scan import Scan

RGB = ("red", "green", "blue")
# Averaged down to at most so many pixels along each axis before the slower measures.
LONGEST = {2: 192, 3: 80}
# A slice whose values span less than this share of the scan's range shows nothing.
EMPTY_RANGE = 0.02
# Shorter axes have too few slices to speak of runs.
FEWEST_SLICES = 8
# Air in Hounsfield units, and what scanners write outside their round field of view.
AIR = (-1060.0, -940.0)
CT_PADDING = (-1024.0, -2000.0, -2048.0, -3024.0)
# BIDS suffixes that name a contrast; others (``image``, ``grey``) say nothing of it.
MR_CONTRASTS = (
    "t1", "t2", "pd", "flair", "t2star", "t1map", "t2map", "dwi", "adc", "swi", "bold", "asl",
    "angio", "inplanet1", "inplanet2",
)  # fmt: skip
# DICOM modalities that name no kind of image, and one that names the same kind as another.
VAGUE, SAME = ("OT", "SC"), {"CR": "DX"}
CONTRASTS = {"ct": "CT", "pet": "PT", **dict.fromkeys(MR_CONTRASTS, "MR")}

# The rim of what a picture shows: depths in radii of a disc of its area, and the share of the range
# of the values from which on a pixel of it is bright.
RIM_DEPTHS, RIM_BRIGHT = (0.03, 0.15), 0.93


def canonical(scan: Scan) -> np.ndarray:
    """Return (C, *spatial) with the axes right, anterior, superior, or an upright picture."""
    axes, signs = orient(scan, upright=False)
    data = scan.data.transpose(0, *(a + 1 for a in axes))
    return data[(slice(None), *(slice(None, None, s) for s in signs))]


def shrink(image: np.ndarray) -> np.ndarray:
    """Average (C, *spatial) over blocks until no axis is longer than ``LONGEST``."""
    dims = image.ndim - 1
    for axis in range(1, dims + 1):
        n = image.shape[axis]
        factor = -(-n // LONGEST[dims])
        if factor > 1:
            before, end = (slice(None),) * axis, n // factor * factor
            # One voxel of each block after the other, wherever they lie in memory.
            parts = (image[(*before, slice(k, end, factor))] for k in range(factor))
            image = np.asarray(sum(parts) / np.float32(factor), np.float32)
    return image


def stated(scan: Scan) -> tuple[str, str]:
    """Return modality (as DICOM codes it: MR, CT, PT, DX, ...) and contrast that the file states.

    Either is an empty string where the file doesn't say.
    """
    names = [c.lower() for c in scan.channels]
    names = [n[:-1] if n.endswith("w") else n for n in names]
    known = all(n in CONTRASTS for n in names)
    kinds = sorted({CONTRASTS[n] for n in names}) if known else []
    said = str(getattr(getattr(scan, "series", None), "modality", "") or "").upper()
    said = "" if said in VAGUE else SAME.get(said, said)
    return said or "+".join(kinds), "+".join(sorted(names)) if known else ""


def is_hounsfield(data: np.ndarray) -> bool:
    """Tell whether the values look like Hounsfield units: air near -1000, or a scanner's padding.

    Args:
        data: of any shape.
    """
    low = float(data.min())
    if low > -900:
        return False
    values = data.ravel()[:: max(1, data.size // 200_000)]
    air = np.mean((values > AIR[0]) & (values < AIR[1]))
    return bool(low in CT_PADDING or (air > 0.02 and low > -3100))


def header(scan: Scan) -> dict[str, Any]:
    """Return what is known without looking at the pixels.

    ``spacing`` and ``extent`` (mm) follow the axes right, anterior, superior; they are empty for a
    picture, whose pixels have no size. ``oblique`` is the angle in degrees between the scan's axes
    and the patient's.
    """
    from nibabel.affines import obliquity
    from nibabel.orientations import aff2axcodes

    metric = scan.dims == 3 or any(abs(s - 1) > 1e-6 for s in scan.spacing)
    axes, _ = orient(scan, upright=False)
    spacing = [round(scan.spacing[a], 4) for a in axes]
    shape = [scan.shape[a] for a in axes]
    said, contrast = stated(scan)
    linear = scan.affine if scan.dims == 3 else np.eye(4)
    return {
        "dims": scan.dims,
        "channels": len(scan.channels),
        "modality": said,
        "contrast": contrast,
        "shape": shape,
        "spacing": spacing if metric else [],
        "extent": [round(n * s, 2) for n, s in zip(shape, spacing, strict=True)] if metric else [],
        "aspect": [round(shape[1] / shape[0], 4)],
        "orientation": "".join(aff2axcodes(scan.affine)[: scan.dims]),
        "oblique": [round(float(np.degrees(obliquity(linear).max())), 1)],
    }


def _runs(marks: np.ndarray) -> list[tuple[int, int]]:
    """Return first and last+1 index of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marks.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def slice_runs(channel: np.ndarray, axis: int, span: float) -> dict[str, float]:
    """Return the longest runs of empty and of repeated slices along one axis, as shares of it.

    Args:
        channel: (*spatial).
        axis: of the slices.
        span: range of the values of the whole scan.
    """
    slices = np.moveaxis(channel, axis, 0)
    n = len(slices)
    others = tuple(range(1, channel.ndim))
    high, low = slices.max(axis=others), slices.min(axis=others)
    empty = (high - low) <= EMPTY_RANGE * span
    ends = [b - a for a, b in _runs(empty) if a == 0 or b == n]
    inside = [b - a for a, b in _runs(empty) if a > 0 and b < n]
    # Only slices whose extremes agree can be equal; few are compared voxel by voxel.
    same = (high[1:] == high[:-1]) & (low[1:] == low[:-1]) & ~empty[1:]
    for i in np.flatnonzero(same):
        same[i] = np.array_equal(slices[i], slices[i + 1])
    repeated = [b - a for a, b in _runs(same)]
    named = {"empty_end": ends, "empty_inside": inside, "repeated": repeated}
    return {name: max(runs, default=0) / n for name, runs in named.items()}


def _structure(image: np.ndarray) -> float:
    """Correlation of neighbouring voxels in the middle of the least noisy channel, -1 to 1."""
    reach = LONGEST[image.ndim - 1] // 2
    middle = tuple(slice(max(0, n // 2 - reach), n // 2 + reach) for n in image.shape[1:])
    best = 0.0
    for channel in image:
        part = channel[middle].astype(np.float64)
        axis = int(np.argmax(part.shape))
        part = np.moveaxis(part - part.mean(), axis, 0)
        energy = float(np.square(part).mean())
        if energy > 0:
            best = max(best, float((part[1:] * part[:-1]).mean()) / energy)
    return best


def bright_rim(small: np.ndarray, foreground: np.ndarray) -> float:
    """Return the share of the rim of what a picture shows that is about as bright as its brightest.

    Bone around a head is white in most windows of a CT; in MR it is dark under a thin scalp.

    Args:
        small: (C, H, W), averaged down.
        foreground: (H, W) bool.
    """
    from scipy import ndimage

    grey = small.mean(axis=0)
    low, high = float(grey.min()), float(np.percentile(grey, 99.9))
    inside = ndimage.binary_fill_holes(foreground)
    depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    depth /= max(1.0, float(np.sqrt(inside.sum() / np.pi)))
    rim = (depth > RIM_DEPTHS[0]) & (depth <= RIM_DEPTHS[1])
    return float((grey[rim] > low + RIM_BRIGHT * (high - low)).mean()) if rim.any() else 0.0


def wholeness(image: np.ndarray, small: np.ndarray, foreground: np.ndarray) -> dict[str, float]:
    """Return measures of a damaged image, the worst over channels and axes.

    Args:
        image: (C, *spatial), canonical, at full resolution.
        small: the same, averaged down.
        foreground: (*small.shape[1:]) bool.

    Returns:
        ``empty_end``, ``empty_inside``, ``repeated``: longest run of slices without content at an
        end or between others, and of copies of one slice, as shares of the axis. ``half``: share
        of the foreground in the emptier half. ``saturated``: share of voxels at the highest value.
        ``structure``: correlation of neighbouring voxels; that of noise is 0.
        ``low``, ``high``: 0.5th and 99.5th percentile. Of a picture ``rim`` too, see `bright_rim`.
    """
    worst = {"empty_end": 0.0, "empty_inside": 0.0, "repeated": 0.0, "saturated": 0.0}
    step = tuple(slice(None, None, max(1, n // 64)) for n in image.shape[1:])
    for channel in image:
        low, high = np.percentile(channel[step], [0, 99.5])
        for axis in range(channel.ndim):
            if channel.shape[axis] >= FEWEST_SLICES:
                found = slice_runs(channel, axis, float(high - low))
                worst |= {name: max(worst[name], value) for name, value in found.items()}
        highest = (channel == channel.max()).ravel(order="K")
        worst["saturated"] = max(worst["saturated"], np.count_nonzero(highest) / highest.size)
    worst["structure"] = _structure(image)
    half = 0.5
    for axis, n in enumerate(foreground.shape):
        moved = np.moveaxis(foreground, axis, 0)
        parts = moved[: n // 2].sum(), moved[n - n // 2 :].sum()
        half = min(half, float(min(parts) / max(1, sum(parts))))
    quantiles = np.percentile(small, [0.5, 99.5])
    named = {"half": half, "low": float(quantiles[0]), "high": float(quantiles[1])}
    if foreground.ndim == 2:
        named["rim"] = bright_rim(small, foreground)
    return {name: float(f"{value:.4g}") for name, value in {**worst, **named}.items()}


def reduced(image: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return a canonical image averaged down and its foreground, for the measures that allow it."""
    small = shrink(image)
    grey = small.mean(axis=0, keepdims=True) if names == RGB else small
    return small, foreground_mask(grey)
