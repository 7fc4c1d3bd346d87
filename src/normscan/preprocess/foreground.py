"""Which pixels show the patient: a mask that needs no training and works on most modalities."""

from __future__ import annotations

import numpy as np

MINIMUM_FRACTION = 0.05


def foreground_mask(data: np.ndarray) -> np.ndarray:
    """Return the foreground of an image or volume.

    A scan whose border is one constant value in over a fifth of the image was masked before (a
    skull-stripped brain): everything that differs from that value is foreground. Otherwise the
    background is what is darker than a tenth of the 99th percentile (or than Otsu's threshold, if
    that is lower) and touches the border: dark inner parts such as ventricles stay in. Where less
    than 5 % would be left, the whole image counts.

    Args:
        data: (C, *spatial); the channels are averaged.

    Returns:
        (*spatial) bool.
    """
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    image = data.mean(axis=0)
    low = float(image.min())
    border = np.concatenate(
        [np.take(image, i, axis).ravel() for axis in range(image.ndim) for i in (0, -1)]
    )
    values, counts = np.unique(border, return_counts=True)
    common = values[counts.argmax()]
    if counts.max() > 0.9 * border.size and (image == common).mean() > 0.2:
        mask = image != common
    else:
        smooth = ndimage.uniform_filter(image, 3)
        limit = min(
            float(threshold_otsu(smooth)), low + 0.1 * (float(np.percentile(image, 99)) - low)
        )
        mask = ndimage.binary_fill_holes(smooth > limit)
        labels, n = ndimage.label(mask)
        if n > 1:
            sizes = np.bincount(labels.ravel())
            sizes[0] = 0
            mask = sizes[labels] >= 0.1 * sizes.max()
    if mask.mean() < MINIMUM_FRACTION:
        return np.ones(image.shape, bool)
    return np.asarray(mask)


def bounding_box(mask: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return first and last+1 index of the true part, per axis; the whole axis if nothing is true."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        box.append((int(hits[0]), int(hits[-1]) + 1) if hits.size else (0, mask.shape[axis]))
    return tuple(box)
