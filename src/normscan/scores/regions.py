"""Regions of an image, each with a one-class machine on what healthy scans show there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def mirrored_supervoxels(image: Array, inside: Array, count: int, compactness: float) -> Array:
    """Label map of supervoxels whose mirror images across the middle have the same labels.

    One half is parted by SLIC on the image beside its mirror image, so that borders of both sides
    count; the other half is the mirror image.

    Args:
        image: (*spatial), mirrored along its first axis.
        inside: of the same shape, bool.
        count: supervoxels in a half, about.
        compactness: of them; larger for rounder ones.

    Returns:
        (*spatial) int, 0 outside.
    """
    from skimage.segmentation import slic

    middle = (len(image) + 1) // 2
    both = (inside | inside[::-1])[:middle]
    labels = np.zeros(image.shape, np.int64)
    if both.any():
        bands = np.stack([image, image[::-1]], -1)[:middle]
        labels[:middle] = slic(
            bands, count, compactness, mask=both, channel_axis=-1, start_label=1,
            enforce_connectivity=True,
        )  # fmt: skip
        labels[len(image) - middle :] = labels[:middle][::-1]
    return labels


def region_histograms(values: Array, labels: Array, bins: int, top: float) -> Array:
    """Normalised histograms of values in each region.

    Args:
        values: (n, *spatial), 0 or more; what is above ``top`` falls into the last bin.
        labels: (*spatial), 0 for no region.
        bins: of equal width from 0 to ``top``.
        top: above 0.

    Returns:
        (regions, n, bins), by rising labels.
    """
    known, which = np.unique(labels[labels > 0], return_inverse=True)
    at = np.minimum((values[:, labels > 0] / top * bins).astype(np.int64), bins - 1)
    n = len(values)
    flat = (which[None] * n + np.arange(n)[:, None]) * bins + at
    counts = np.bincount(flat.ravel(), minlength=len(known) * n * bins).astype(np.float64)
    counts = counts.reshape(len(known), n, bins)
    return counts / np.maximum(counts.sum(2, keepdims=True), 1)


def outside(healthy: Array, own: Array, nu: float) -> float:
    """How far a vector lies outside of what a linear one-class machine learns of others.

    Args:
        healthy: (n, dim).
        own: (dim,).
        nu: share of the healthy that may lie outside.

    Returns:
        The negative decision value, above 0 where it is outside.
    """
    from sklearn.svm import OneClassSVM

    machine = OneClassSVM(kernel="linear", nu=nu)
    machine.random_state = (
        0  # else libsvm draws a seed that it has no use for from NumPy's global state
    )
    machine.fit(healthy)
    return -float(machine.decision_function(own[None])[0])
