"""The post-processing chain: steps written as ``name=value`` that act on a stitched map.

The chain runs on the working grid, where the articles state their sizes in pixels, before the map
goes back to the scan's own grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from normscan.errors import ArgumentError, nearest
from normscan.scores.components import box_of, connected

Step = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]

# Values of a map whose medians are taken at once: so many stay in the cache.
IN_CACHE = 2**15
_STEPS: dict[str, tuple[Step, float, tuple[float, float]]] = {}
# Of a side in pixels: what is larger than a working grid takes memory and hours, and means nothing.
WIDEST, WIDEST_MEDIAN = 4096, 63


def _step(
    name: str, default: float, least: float = 0, most: float = WIDEST
) -> Callable[[Step], Step]:
    def decorate(function: Step) -> Step:
        _STEPS[name] = (function, default, (least, most))
        return function

    return decorate


def parse(chain: Sequence[str]) -> list[tuple[str, float]]:
    """Return names and values of a chain such as ``("erode=12", "median=5")``.

    Raises:
        ArgumentError: unknown step, a value that is no number or out of its range.
    """
    steps = []
    for text in chain:
        name, _, value = text.partition("=")
        if name not in _STEPS:
            raise ArgumentError(
                f"there is no post-processing step '{name}'.{nearest(name, _STEPS)} "
                f"Known: {', '.join(_STEPS)}."
            )
        _, default, (least, most) = _STEPS[name]
        try:
            number = float(value) if value else default
        except ValueError:
            raise ArgumentError(f"post-processing step '{text}': '{value}' is no number.") from None
        if not least <= number <= most:
            raise ArgumentError(
                f"post-processing step '{text}': the value must lie in {least:g}..{most:g}."
            )
        steps.append((name, number))
    return steps


def apply_chain(
    chain: Sequence[str], anomaly: np.ndarray, foreground: np.ndarray, image: np.ndarray
) -> np.ndarray:
    """Apply a chain.

    Args:
        chain: steps in order.
        anomaly: (*spatial) stitched map.
        foreground: (*spatial) bool.
        image: (C, *spatial) prepared scan.
    """
    for name, value in parse(chain):
        anomaly = _STEPS[name][0](anomaly, foreground, image, value)
    return anomaly.astype(np.float32, copy=False)


@_step("foreground", 1)
def keep_foreground(
    anomaly: np.ndarray, foreground: np.ndarray, image: np.ndarray, value: float
) -> np.ndarray:
    """Zero outside the foreground."""
    return anomaly * foreground


@_step("erode", 12)
def erode_foreground(
    anomaly: np.ndarray, foreground: np.ndarray, image: np.ndarray, value: float
) -> np.ndarray:
    """Zero outside the foreground eroded by a cross so many times, slice by slice (Baur 2021).

    The border of the image doesn't erode: a scan that fills its frame keeps its edge.
    """
    from scipy.ndimage import binary_erosion

    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)
    if foreground.ndim == 3:
        cross = cross[..., None]
    if value < 1:
        return anomaly
    return anomaly * binary_erosion(foreground, cross, iterations=int(value), border_value=1)


@_step("inner", 5, 1)
def inner_foreground(
    anomaly: np.ndarray, foreground: np.ndarray, image: np.ndarray, value: float
) -> np.ndarray:
    """Zero where the in-plane mean of the foreground is 0.95 or less (Kascenas 2022)."""
    from scipy.ndimage import uniform_filter

    size = (int(value), int(value)) + (1,) * (foreground.ndim - 2)
    return anomaly * (uniform_filter(foreground.astype(np.float32), size, mode="nearest") > 0.95)


@_step("median", 5, 1, WIDEST_MEDIAN)
def median(
    anomaly: np.ndarray, foreground: np.ndarray, image: np.ndarray, value: float
) -> np.ndarray:
    """Median over a square or cube of so many voxels, reflected at the border."""
    from scipy.ndimage import median_filter

    if anomaly.ndim == 2:
        return median_inplane(anomaly, foreground, image, value)
    return np.asarray(median_filter(anomaly, int(value), mode="reflect"))


@_step("median_inplane", 5, 1, WIDEST_MEDIAN)
def median_inplane(
    anomaly: np.ndarray, foreground: np.ndarray, image: np.ndarray, value: float
) -> np.ndarray:
    """Median over a square in the plane of each slice, reflected at the border."""
    from scipy.ndimage import median_filter

    size = int(value)
    if not size % 2:
        whole = (size, size) + (1,) * (anomaly.ndim - 2)
        return np.asarray(median_filter(anomaly, whole, mode="reflect"))
    (rows, columns), half = anomaly.shape[:2], size // 2
    wide = [(half, half)] * 2 + [(0, 0)] * (anomaly.ndim - 2)
    padded, found = np.pad(anomaly, wide, mode="symmetric"), np.empty_like(anomaly)
    some = max(1, IN_CACHE * rows // anomaly.size)
    for row in range(0, rows, some):
        end = min(row + some, rows)
        places = itertools.product(range(size), repeat=2)
        found[row:end] = middle([padded[row + a : end + a, b : b + columns] for a, b in places])
    return found


def middle(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the median of each place of an odd number of arrays, by minima and maxima alone.

    Neither the lowest nor the highest of more than half of them can be it: both are left out and
    another array comes in, until one is left. Five times as fast as sorting each place.
    """
    waiting = list(arrays)
    held = [waiting.pop().copy() for _ in range(min(len(arrays), len(arrays) // 2 + 2))]
    while len(held) > 1:
        half = len(held) // 2
        for i in range(half):
            _order(held, i, -1 - i)
        for i in range(1, len(held) - half):
            _order(held, 0, i)
        for i in range(half, len(held) - 1):
            _order(held, i, -1)
        held = held[1:-1] + [waiting.pop().copy() for _ in waiting[:1]]
    return held[0]


def _order(arrays: list[np.ndarray], low: int, high: int) -> None:
    """Put the smaller value of each place into one array and the larger one into the other."""
    smaller = np.minimum(arrays[low], arrays[high])
    np.maximum(arrays[low], arrays[high], out=arrays[high])
    arrays[low] = smaller


@_step("smooth", 4)
def smooth(
    anomaly: np.ndarray, foreground: np.ndarray, image: np.ndarray, value: float
) -> np.ndarray:
    """Gaussian of this standard deviation in pixels, in the plane, cut at four deviations."""
    from scipy.ndimage import gaussian_filter

    sigma = (value, value) + (0,) * (anomaly.ndim - 2)
    return np.asarray(gaussian_filter(anomaly, sigma))


@_step("hyperintense", 0.9, 0, 1)
def hyperintense(
    anomaly: np.ndarray, foreground: np.ndarray, image: np.ndarray, value: float
) -> np.ndarray:
    """Zero where the image is below this quantile of the whole image, background counted.

    Baur et al. 2021 take it of the volume as it was stored, so how much of the brain is left depends
    on how much of the frame it fills: a third of the brain lies below the 0.9 quantile of a wide
    frame. Here the frame is that of the working grid.
    """
    grey = image.mean(axis=0)
    return anomaly * (grey >= np.quantile(grey, value))


@_step("otsu", 1)
def otsu(
    anomaly: np.ndarray, foreground: np.ndarray, image: np.ndarray, value: float
) -> np.ndarray:
    """Zero at and below so many times Otsu's threshold of the whole map (256 bins)."""
    from skimage.filters import threshold_otsu

    return np.asarray(anomaly * (anomaly > value * threshold_otsu(anomaly.ravel())))


@_step("opening", 256, 0, 2**31)
def area_opening(
    anomaly: np.ndarray, foreground: np.ndarray, image: np.ndarray, value: float
) -> np.ndarray:
    """Zero in areas above 0 of fewer than so many pixels of a slice, which touch at their edges."""
    from skimage.morphology import area_opening as opened

    planes = anomaly[..., None] if anomaly.ndim == 2 else anomaly
    kept = [opened((p > 0).astype(np.uint8), int(value)) for p in np.moveaxis(planes, -1, 0)]
    return np.asarray(anomaly * np.moveaxis(np.stack(kept), 0, -1).reshape(anomaly.shape))


@_step("nonzero", 1)
def keep_nonzero(
    anomaly: np.ndarray, foreground: np.ndarray, image: np.ndarray, value: float
) -> np.ndarray:
    """Zero where all channels of the image are 0."""
    return np.asarray(anomaly * (image != 0).any(0))


def drop_small(segmentation: np.ndarray, smallest: int) -> np.ndarray:
    """Drop the connected components of so many voxels or fewer, holes counted in.

    Neighbours touch at a face, an edge or a corner (8 in the plane, 26 in space), and so do those
    of a hole, as in the ``area_filled`` of scikit-image that the released codes use.
    """
    from scipy import ndimage

    touching = np.ones((3,) * segmentation.ndim)
    kept = segmentation.copy(order="K")
    whole = box_of(segmentation)
    inside, labels = kept[whole], connected(segmentation[whole])
    for i, box in enumerate(ndimage.find_objects(labels) if labels.size else [], start=1):
        # A component that is large without its holes needs no filling, nor one that can't get large.
        room, part = math.prod(axis.stop - axis.start for axis in box), labels[box] == i
        if np.count_nonzero(part) > smallest:
            continue
        if room <= smallest or ndimage.binary_fill_holes(part, touching).sum() <= smallest:
            inside[box] &= ~part
    return kept
