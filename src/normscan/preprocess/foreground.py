"""Which pixels show the patient: a mask that needs no training and works on most modalities."""

from __future__ import annotations

import numpy as np

from normscan.scores.components import box_of, connected

MINIMUM_FRACTION = 0.05
# Smaller parts beside the body are specks and markers.
LEAST_PART = 0.1
# Part of a marker's pixels that are as bright as the brightest hundredth of the body.
BRIGHT_SHARE = 0.1
# A cut field of view: least and largest share of the image that a filled piece has, how convex it
# is, how long a thin tip of it, and how much of the shortest axis is left out along it.
LEAST_PIECE, LARGEST_PIECE, CONVEX, TIP, RIM = 0.002, 0.25, 0.75, 12, 0.02


def foreground_mask(data: np.ndarray) -> np.ndarray:
    """Return the foreground of an image or volume.

    A scan whose border is one constant value in over a fifth of the image was masked before (a
    skull-stripped brain): everything that differs from that value is foreground. Otherwise the
    background is what is darker than a tenth of the 99th percentile (or than Otsu's threshold, if
    that is lower) and touches the border: dark inner parts such as ventricles stay in. Where less
    than 5 % would be left, the whole image counts.

    Letters and markers beside the body are left out: small parts, where the scan was masked before
    only bright ones, since a masked brain may have small parts. So is a rim along the straight edge
    of an obliquely cut field of view, where the image ends and not the body.

    Args:
        data: (C, *spatial); the channels are averaged.

    Returns:
        (*spatial) bool.
    """
    image = data[0] if len(data) == 1 else data.mean(axis=0)
    if image.flags.f_contiguous and not image.flags.c_contiguous:
        return _mask(image.T).T
    return _mask(image)


def _mask(image: np.ndarray) -> np.ndarray:
    """Return the foreground of (*spatial), quick where the axes lie in order in memory."""
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    low = float(image.min())
    border = _border(image)
    values, counts = np.unique(border, return_counts=True)
    common = values[counts.argmax()]
    same = image == common
    if counts.max() > 0.9 * border.size and _share(same) > 0.2:
        mask = _without_markers(~same, image)
    else:
        smooth = ndimage.uniform_filter(image, 3)
        limit = min(
            float(threshold_otsu(smooth.ravel())),
            low + 0.1 * (float(np.percentile(image, 99)) - low),
        )
        mask = ndimage.binary_fill_holes(smooth > limit)
        labels = connected(mask, faces=True)
        if labels.max() > 1:
            sizes = np.bincount(labels.ravel())
            sizes[0] = 0
            mask = sizes[labels] >= LEAST_PART * sizes.max()
    mask &= ~_cut_rim(same)
    if _share(mask) < MINIMUM_FRACTION:
        return np.ones(image.shape, bool)
    return np.asarray(mask)


def _share(mask: np.ndarray) -> float:
    """Return how much of it is true; the mean of booleans is slow."""
    return np.count_nonzero(mask) / mask.size


def _border(array: np.ndarray) -> np.ndarray:
    """Return the values of the first and the last plane along each axis."""
    planes = [np.moveaxis(array, axis, 0)[i] for axis in range(array.ndim) for i in (0, -1)]
    return np.concatenate([plane.ravel() for plane in planes])


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Erode booleans by a cross; beyond the border all is true.

    The same as ``scipy.ndimage.binary_erosion(mask, border_value=1)``, several times as fast.
    """
    eroded = mask.copy()
    for axis in range(mask.ndim):
        inner, whole = np.moveaxis(eroded, axis, 0), np.moveaxis(mask, axis, 0)
        inner[1:] &= whole[:-1]
        inner[:-1] &= whole[1:]
    return eroded


def _without_markers(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Drop small bright parts, such as burnt-in text beside the body."""
    from scipy import ndimage

    labels = connected(mask, faces=True)
    n = int(labels.max())
    if n < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    bright = np.percentile(image[labels == sizes.argmax()], 99)
    share = ndimage.mean(image >= bright, labels, np.arange(n + 1))
    marker = (sizes < LEAST_PART * sizes.max()) & (share >= BRIGHT_SHARE)
    return mask & ~marker[labels]


def _cut_rim(filled: np.ndarray) -> np.ndarray:
    """Return the pieces that fill up an obliquely cut field of view, with a rim around them.

    Such a piece touches the border and is convex, a triangle or a wedge; the background around a
    body or outside a round field of view is not.

    Args:
        filled: (*spatial) bool, the image has the most common value of its border.
    """
    from scipy import ndimage
    from skimage.measure import regionprops

    pieces = np.zeros(filled.shape, bool)
    if not LEAST_PIECE <= _share(filled) < 1:
        return pieces
    # Triangles at two corners may touch by their tips.
    labels = connected(_eroded(filled), faces=True)
    touching = np.setdiff1d(np.unique(_border(labels)), [0])
    if touching.size > 4:
        sizes = np.bincount(labels.ravel())[touching]
    else:  # mostly one, the background, which is counted sooner by itself
        sizes = np.array([np.count_nonzero(labels == label) for label in touching])
    shares = sizes / filled.size
    touching = touching[(shares >= LEAST_PIECE) & (shares <= LARGEST_PIECE)]
    step = 1 if filled.ndim == 2 else max(1, min(filled.shape) // 64)
    coarse = labels[(slice(None, None, step),) * filled.ndim]
    found = [
        region.label
        for region in regionprops(np.where(np.isin(coarse, touching), coarse, 0))
        if min(region.image.shape) > 1 and region.solidity >= CONVEX
    ]
    if found:
        # Back into the thin tips.
        pieces = ndimage.binary_dilation(np.isin(labels, found), iterations=TIP, mask=filled)
        rim = max(2, round(RIM * min(filled.shape)))
        pieces = np.asarray(ndimage.distance_transform_edt(~pieces) <= rim)
    return pieces


def bounding_box(mask: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return first and last+1 index of the true part, per axis; the whole axis if nothing is true."""
    found = [(side.start, side.stop) for side in box_of(mask)]
    return tuple(side if any(side) else (0, n) for side, n in zip(found, mask.shape, strict=True))
