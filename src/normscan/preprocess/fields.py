"""Steps that find what a 2D picture shows of the patient: the field of view.

Each sets the foreground, which cropping and scaling go by. Positions of pixels never change.
Thresholds are fractions of the picture's own range, so 8 and 16 bits are alike.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from normscan.errors import ScanError
from normscan.preprocess.colour import top
from normscan.preprocess.steps import Working, step


def _grey(working: Working, name: str) -> np.ndarray:
    """Return (H, W), the mean of the channels scaled by minimum and 99.5th percentile to 0..1."""
    if working.scan.dims != 2:
        raise ScanError(f"{working.scan.name}: {name} works on 2D pictures, not on a volume.")
    grey = working.scan.data.mean(axis=0)
    low, high = float(grey.min()), float(np.percentile(grey, 99.5))
    return np.clip((grey - low) / max(high - low, 1e-6), 0, 1)


def _surround(dark: np.ndarray) -> np.ndarray:
    """Return the parts of a mask that touch the border of the picture."""
    from scipy.ndimage import label

    labels, _ = label(dark)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.isin(labels, np.unique(edge[edge > 0]))


def _near(mask: np.ndarray, pixels: float) -> np.ndarray:
    """Dilate by a disc; what lies outside the picture adds nothing."""
    from scipy.ndimage import distance_transform_edt

    return np.asarray(distance_transform_edt(~mask) <= pixels) if mask.any() else mask


def _largest(mask: np.ndarray) -> np.ndarray:
    """Return the largest component with its holes filled."""
    from scipy.ndimage import binary_fill_holes, label

    labels, n = label(mask)
    if n > 1:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        mask = labels == sizes.argmax()
    return np.asarray(binary_fill_holes(mask))


def _found(working: Working, mask: np.ndarray, name: str, blank: bool) -> Working:
    """Hand on a field of view; one of under 5 % of the picture is not believed."""
    if mask.mean() < 0.05:
        return working.noted(f"{name}: no field of view was found, the whole picture is used")
    if blank and not mask.all():
        low = working.scan.data.min(axis=(1, 2), keepdims=True)
        working = working.with_image(np.where(mask, working.scan.data, low))
    return replace(working, foreground=mask).noted(field_fraction=float(mask.mean()))


@step("body_mask")
def body_mask(working: Working, threshold: float = 0.05) -> Working:
    """Find the body in a radiograph: without frames, collimation borders and black corners.

    Rows and columns of one value are peeled off the edges, whatever that value is. Of the rest, what
    is darker than ``threshold`` and touches the edge is background. Lungs stay in. The pixels are
    left as they are.

    Args:
        working: 2D, bright bones (see ``invert_if_needed``).
        threshold: fraction of the range from the minimum to the 99.5th percentile.
    """
    from scipy.ndimage import median_filter

    grey = _grey(working, "body_mask")
    if grey.min() == grey.max():
        return working.noted("body_mask: a blank picture, left as it was")
    rows = columns = slice(0, None)
    for _ in range(2):  # a frame on one side hides those on the others
        rows = _peeled(rows, grey[rows, columns].std(axis=1))
        columns = _peeled(columns, grey[rows, columns].std(axis=0))
    mask = np.zeros(grey.shape, bool)
    inner = median_filter(grey[rows, columns], 3, mode="nearest")
    mask[rows, columns] = _largest(~_surround(inner < threshold))
    return _found(working, mask, "body_mask", blank=False)


def _peeled(lines: slice, deviation: np.ndarray) -> slice:
    """Return the lines without the flat ones at both ends; JPEG ripples count as flat."""
    lively = np.flatnonzero(deviation > 0.01)
    if not lively.size:
        return lines
    return slice(lines.start + int(lively[0]), lines.start + int(lively[-1]) + 1)


@step("invert_if_needed")
def invert_if_needed(working: Working, always: bool = False) -> Working:
    """Turn a chest X-ray with dark bones (MONOCHROME1 saved as it was) into bright bones.

    It is turned if both hold: the upper corners, which show air beside the neck, are brighter than
    the middle of the picture, and the spine's strip is darker than the lungs beside it. Inverted
    values are ``minimum + maximum - value``, so the range stays. A heuristic: look at what it notes.

    Args:
        working: 2D frontal chest X-ray, grey.
        always: don't ask.
    """
    grey = _grey(working, "invert_if_needed")
    h, w = grey.shape
    corners = np.median(np.r_[grey[: h // 8, : w // 8].ravel(), grey[: h // 8, -w // 8 :].ravel()])
    band = grey[h // 4 : 2 * h // 3]
    spine = np.median(band[:, int(0.45 * w) : int(0.55 * w) + 1])
    flanks = [band[:, int(a * w) : int(b * w) + 1] for a, b in ((0.2, 0.35), (0.65, 0.8))]
    lungs = np.median(np.concatenate(flanks, axis=1))
    if not always and (corners <= np.median(grey) or spine >= lungs):
        return working
    data = working.scan.data
    data = data.min() + data.max() - data
    return working.with_image(data).noted("invert_if_needed: the X-ray was inverted")


@step("fundus_fov")
def fundus_fov(working: Working, threshold: float = 0.1) -> Working:
    """Find the round field of view of a fundus photograph and blacken what lies outside.

    The largest part brighter than ``threshold`` (or than Otsu's, if that is lower) in the brightest
    channel, holes filled, gives the edge; a circle is fitted to the edge that doesn't lie on the
    border of the picture, thrice, without what deviates by over 3 % of the radius. If too little
    edge shows, the part itself is taken.

    Args:
        working: 2D, colour or grey.
        threshold: fraction of the range.

    Returns:
        The picture, at each channel's minimum outside; facts ``fov_radius``, ``fov_row`` and
        ``fov_column`` in pixels where a circle was fitted.
    """
    from scipy.ndimage import median_filter
    from skimage.filters import threshold_otsu

    _grey(working, "fundus_fov")
    bright = replace(working, scan=working.scan.with_data(working.scan.data.max(0)[None]))
    grey = median_filter(_grey(bright, "fundus_fov"), 5)
    if grey.min() == grey.max():
        return working.noted("fundus_fov: a blank picture, left as it was")
    part = _largest(grey > min(threshold, float(threshold_otsu(grey))))
    circle = _circle(part)
    if circle is None:
        return _found(working, part, "fundus_fov", blank=True)
    row, column, radius = circle
    y, x = np.indices(grey.shape)
    mask = (y - row) ** 2 + (x - column) ** 2 <= radius**2
    working = working.noted(fov_row=row, fov_column=column, fov_radius=radius)
    return _found(working, mask, "fundus_fov", blank=True)


def _circle(part: np.ndarray) -> tuple[float, float, float] | None:
    """Fit row, column and radius by least squares (Kasa), or None where an edge is missing."""
    from scipy.ndimage import binary_erosion

    inner = np.zeros_like(part)
    inner[2:-2, 2:-2] = True
    points = np.argwhere(part & ~binary_erosion(part) & inner).astype(float)
    row = column = radius = 0.0
    for _ in range(3):
        if len(points) < 30:
            return None
        system = np.c_[2 * points, np.ones(len(points))]
        row, column, rest = np.linalg.lstsq(system, (points**2).sum(1), rcond=None)[0]
        radius = float(np.sqrt(max(rest + row**2 + column**2, 0)))
        off = np.abs(np.hypot(points[:, 0] - row, points[:, 1] - column) - radius)
        points = points[off <= max(0.03 * radius, 1.5)]
    h, w = part.shape
    sane = 0.2 * min(h, w) < radius < 1.5 * max(h, w) and 0 < row < h and 0 < column < w
    # The edge pixels lie within the part, half a pixel inside the true edge.
    return (float(row), float(column), radius + 0.5) if sane and len(points) >= 30 else None


@step("dermoscopy_fov")
def dermoscopy_fov(working: Working, threshold: float = 0.12) -> Working:
    """Leave out the black corners of a dermoscope's round view.

    What is darker than ``threshold`` after smoothing and hangs together with a corner. Pigment that
    reaches the border between the corners stays in. Pixels are left as they are.

    Args:
        working: 2D.
        threshold: fraction of the range.
    """
    from scipy.ndimage import label, median_filter

    grey = median_filter(_grey(working, "dermoscopy_fov"), 5, mode="nearest")
    labels, _ = label(grey < threshold)
    corners = labels[[0, 0, -1, -1], [0, -1, 0, -1]]
    mask = ~np.isin(labels, corners[corners > 0])
    return _found(working, mask, "dermoscopy_fov", blank=False)


@step("ultrasound_sector")
def ultrasound_sector(working: Working, threshold: float = 0.04) -> Working:
    """Keep the sector of an ultrasound picture and blacken text, rulers and logos beside it.

    What is above ``threshold`` after smoothing, closed over 2 % of the picture and opened over 4 %,
    which lets go of lines and letters; the largest part of it, and its convex hull. Markers inside
    the sector stay.

    Args:
        working: 2D.
        threshold: fraction of the range.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.morphology import convex_hull_image

    grey = _grey(working, "ultrasound_sector")
    size = max(2, round(0.02 * min(grey.shape)))
    bright = _near(gaussian_filter(grey, size / 4) > threshold, size)
    core = _largest(~_near(~bright, 3 * size))
    part = _near(core, 2 * size)
    mask = convex_hull_image(part) if part.any() else part
    return _found(working, mask, "ultrasound_sector", blank=True)


@step("oct_borders")
def oct_borders(working: Working, white: float = 0.95, grow: int = 3) -> Working:
    """Replace the white wedges at the border of rotated OCT scans by their dark background.

    JPEGs of the Kermany 2018 set were rotated and shifted with white filling. White parts of at
    least 0.1 % of the picture that touch the border, widened by ``grow`` pixels against JPEG ripples,
    get the 25th percentile of the rest and leave the foreground.

    Args:
        working: 2D B-scan.
        white: fraction of what the file can hold (255 or 65535) from which a pixel is white.
        grow: pixels.
    """
    from scipy.ndimage import binary_dilation, label

    _grey(working, "oct_borders")
    grey = working.scan.data.mean(axis=0) / top(working.scan)
    labels, n = label(_surround(grey >= white))
    sizes = np.bincount(labels.ravel(), minlength=n + 1)
    sizes[0] = 0
    wedge = sizes[labels] >= max(9, 0.001 * grey.size)
    if not wedge.any() or wedge.all():
        return working
    wedge = binary_dilation(wedge, iterations=max(1, grow))
    data = working.scan.data.copy()
    for channel in data:
        channel[wedge] = np.percentile(channel[~wedge], 25)
    working = working.with_image(data).noted(white_fraction=float(wedge.mean()))
    return _found(working, ~wedge, "oct_borders", blank=False)


@step("oct_crop")
def oct_crop(working: Working, margin: float = 0.1) -> Working:
    """Make the rows that show the retina the foreground.

    Rows whose mean, smoothed over 5 % of the height, rises above a quarter of the way from the
    darkest to the brightest row; the largest run of them, with a margin. Nothing is flattened: that
    would bend the grid, and the map could not be brought back by one matrix.

    Args:
        working: 2D B-scan, depth along the rows.
        margin: rows added on either side, as a fraction of the height.
    """
    from scipy.ndimage import gaussian_filter1d, label

    grey = _grey(working, "oct_crop")
    profile = gaussian_filter1d(grey.mean(axis=1), 0.05 * len(grey))
    low, high = float(profile.min()), float(profile.max())
    if high - low < 1e-3:
        return working.noted("oct_crop: no retina stands out, the whole picture is used")
    labels, _ = label(profile > low + 0.25 * (high - low))
    run = np.flatnonzero(labels == labels[profile.argmax()])
    pad = round(margin * len(grey))
    mask = np.zeros(grey.shape, bool)
    mask[max(0, run[0] - pad) : run[-1] + 1 + pad] = True
    return _found(working, mask, "oct_crop", blank=False)
