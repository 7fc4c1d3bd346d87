"""Steps that scale intensities, per channel, by what lies in the foreground.

``Preprocess.scaling`` scales last; a pipeline with one of these steps leaves it at ``none``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np

from normscan.errors import ArgumentError, ScanError
from normscan.preprocess.bias import foreground_of
from normscan.preprocess.steps import Working, step

PERCENTILES = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)


def _scaled(
    working: Working,
    scale: Callable[[np.ndarray, np.ndarray], np.ndarray],
    outside: float | None = None,
) -> Working:
    """Scale every channel by ``scale(channel, its values in the foreground)``.

    Args:
        working: the scan.
        scale: returns the scaled channel.
        outside: value outside the foreground; None scales it like the rest.
    """
    scan, mask = working.scan, foreground_of(working)
    channels = []
    for name, channel in zip(scan.channels, scan.data, strict=True):
        values = channel[mask]
        if values.size == 0 or values.min() == values.max():
            raise ScanError(f"{scan.name}: '{name}' has no contrast in the foreground to scale by.")
        channels.append(scale(channel, values.astype(np.float64)))
    data = np.stack(channels).astype(np.float32)
    return working.with_image(data if outside is None else np.where(mask, data, outside))


def _range(low: float, high: float, name: str) -> None:
    if not 0 <= low < high <= 100:
        raise ArgumentError(f"{name}: low {low} and high {high} must be percents, low first.")


@step("percentile")
def percentile(
    working: Working,
    low: float = 1.0,
    high: float = 99.0,
    clip: bool = True,
    outside: float | None = None,
) -> Working:
    """Map two percentiles of the foreground to 0 and 1.

    Args:
        working: any scan.
        low: percent that becomes 0.
        high: percent that becomes 1.
        clip: cut what lies beyond.
        outside: value outside the foreground; None scales it like the rest.
    """
    _range(low, high, "percentile")

    def scale(channel: np.ndarray, values: np.ndarray) -> np.ndarray:
        bottom, top = np.percentile(values, [low, high])
        scaled = (channel - bottom) / _positive(top - bottom, working, "percentile")
        return np.clip(scaled, 0, 1) if clip else scaled

    return _scaled(working, scale, outside)


@step("minmax")
def minmax(working: Working, outside: float | None = None) -> Working:
    """Map the smallest and largest value of the foreground to 0 and 1, and cut beyond.

    Args:
        working: any scan.
        outside: value outside the foreground; None scales it like the rest.
    """
    return percentile(working, 0.0, 100.0, True, outside)


@step("zscore")
def zscore(working: Working, outside: float | None = None) -> Working:
    """Bring the foreground to mean 0 and standard deviation 1.

    Args:
        working: any scan.
        outside: value outside the foreground; None scales it like the rest.
    """
    return _scaled(working, lambda channel, v: (channel - v.mean()) / v.std(), outside)


@step("tissues")
def tissues(working: Working, classes: int = 3, smooth: float = 0.5) -> Working:
    """Replace intensities by classes of the foreground's, 1 the darkest, and 0 outside it.

    A plain stand-in for a segmentation into fluid, grey and white matter: the thresholds between
    the classes are those of Otsu's criterion, on an image that a Gaussian has smoothed.

    Args:
        working: any scan; its channels are divided apart.
        classes: 2 to 5.
        smooth: deviation of the Gaussian, in voxels; 0 for none.

    Raises:
        ArgumentError: another number of classes, or a negative deviation.
        ScanError: a channel has fewer values than classes in the foreground.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.filters import threshold_multiotsu

    if not 2 <= classes <= 5 or smooth < 0:
        raise ArgumentError(f"tissues: classes={classes} of 2 to 5, smooth={smooth} from 0 on.")

    mask = foreground_of(working)

    def scale(channel: np.ndarray, _: np.ndarray) -> np.ndarray:
        even = gaussian_filter(channel.astype(float), smooth)
        if len(np.unique(even[mask])) < classes:
            raise ScanError(
                f"{working.scan.name}: tissues finds fewer values than {classes} classes."
            )
        # 128 bins: the search over all pairs of thresholds grows with the square of them.
        return 1.0 + np.digitize(even, threshold_multiotsu(even[mask], classes, nbins=128))

    return _scaled(working, scale, outside=0.0)


@step("white_stripe")
def white_stripe(
    working: Working,
    contrast: Literal["t1", "t2", "flair"] = "t1",
    width: float = 0.05,
    outside: float | None = None,
) -> Working:
    """Bring normal-appearing white matter to mean 0 and deviation 1 (Shinohara et al. 2014).

    The stripe is what lies within ``width`` of the white-matter mode, in quantiles. The mode is the
    last one of the smoothed histogram on T1, the largest one on T2 and FLAIR.

    Args:
        working: a brain whose foreground is the brain.
        contrast: ``t1``, ``t2`` or ``flair``, of all channels.
        width: of each side of the stripe, as a fraction of the brain's voxels.
        outside: value outside the foreground; None scales it like the rest.
    """
    if contrast not in ("t1", "t2", "flair"):
        raise ArgumentError(f"white_stripe: contrast is '{contrast}'; t1, t2 or flair.")
    if not 0 < width <= 0.5:
        raise ArgumentError(f"white_stripe: width is {width}; it must lie in 0..0.5.")

    def scale(channel: np.ndarray, values: np.ndarray) -> np.ndarray:
        mean, deviation = stripe(values, last=contrast == "t1", width=width)
        return (channel - mean) / _positive(deviation, working, "white_stripe")

    return _scaled(working, scale, outside)


def stripe(values: np.ndarray, last: bool, width: float = 0.05) -> tuple[float, float]:
    """Return mean and standard deviation of the white stripe of (N,) intensities.

    Args:
        values: of the brain.
        last: take the last mode of at least a fifth of the largest, rather than the largest.
        width: of each side, in quantiles.
    """
    mode = histogram_mode(values, last)
    at = float((values < mode).mean())
    low, high = np.quantile(values, [max(at - width, 0), min(at + width, 1)])
    within = values[(values >= low) & (values <= high)]
    return float(within.mean()), float(within.std())


def histogram_mode(values: np.ndarray, last: bool) -> float:
    """Return the last or the largest mode of the smoothed histogram of (N,) intensities."""
    from scipy.ndimage import gaussian_filter1d

    # Few voxels above the 99.9th percentile would stretch the bins; they hold no mode.
    low, high = np.percentile(values, [0.1, 99.9])
    counts, edges = np.histogram(values, bins=500, range=(low, max(high, low + 1e-12)))
    # Two percent of the range: wider than the noise of the counts, narrower than a tissue's peak.
    smooth = gaussian_filter1d(counts.astype(float), 10.0, mode="constant")
    peaks = np.flatnonzero((smooth[1:-1] > smooth[:-2]) & (smooth[1:-1] >= smooth[2:])) + 1
    high_enough = peaks[smooth[peaks] >= 0.2 * smooth.max()] if peaks.size else peaks
    best = high_enough[-1] if last and high_enough.size else int(smooth.argmax())
    return float((edges[best] + edges[best + 1]) / 2)


def learn_landmarks(
    workings: Iterable[Working], percentiles: Iterable[float] = PERCENTILES, **_: Any
) -> dict[str, Any]:
    """Average the histograms of healthy scans to standard landmarks (Nyul et al., IEEE TMI 2000).

    Each scan's percentiles are mapped linearly, first to 0 and last to 100, and averaged.

    Returns:
        ``percentiles`` and ``landmarks``, one list per channel.

    Raises:
        ScanError: no scan, or different numbers of channels.
    """
    points = [float(p) for p in percentiles]
    _check_percentiles(points)
    sums: np.ndarray | None = None
    count = 0
    for working in workings:
        found = _landmarks_of(working, points)
        span = found[:, -1:] - found[:, :1]
        if (span <= 0).any():
            raise ScanError(f"{working.scan.name}: no contrast in the foreground to learn from.")
        scaled = 100 * (found - found[:, :1]) / span
        if sums is not None and sums.shape != scaled.shape:
            raise ScanError(
                f"{working.scan.name}: {len(scaled)} channels where others have {len(sums)}."
            )
        sums = scaled if sums is None else sums + scaled
        count += 1
    if sums is None:
        raise ScanError("histogram_match: there is no scan to learn landmarks from.")
    return {"percentiles": points, "landmarks": (sums / count).tolist()}


@step("histogram_match", learn=learn_landmarks)
def histogram_match(
    working: Working,
    landmarks: list[list[float]] | None = None,
    percentiles: list[float] | None = None,
    outside: float | None = None,
) -> Working:
    """Map percentiles of the foreground to standard landmarks, linearly in between (Nyul 2000).

    Beyond the first and last landmark their segments go on. The scale is 0 to 100.

    Args:
        working: any scan.
        landmarks: per channel, one value per percentile; learnt on the healthy training scans.
        percentiles: in percent, rising; 1, 10, 20 to 90 and 99 if not given.
        outside: value outside the foreground; None maps it like the rest.

    Raises:
        ArgumentError: no landmarks, or landmarks that don't fit.
    """
    points = list(percentiles or PERCENTILES)
    _check_percentiles(points)
    if landmarks is None:
        raise ArgumentError(
            "histogram_match has no landmarks. They are learnt when a detector is fitted; to use "
            "the step alone, give landmarks from normscan.preprocess.intensity.learn_landmarks."
        )
    standard = np.asarray(landmarks, float)
    if standard.shape != (len(working.scan.data), len(points)):
        raise ArgumentError(
            f"histogram_match: landmarks of shape {standard.shape} for "
            f"{len(working.scan.data)} channels and {len(points)} percentiles."
        )
    pairs = iter(zip(_landmarks_of(working, points), standard, strict=True))

    def scale(channel: np.ndarray, values: np.ndarray) -> np.ndarray:
        return piecewise(channel, *next(pairs))

    return _scaled(working, scale, outside)


def piecewise(values: np.ndarray, points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Map (K,) points to (K,) targets, linearly in between and beyond; equal points are one."""
    points, first = np.unique(points, return_index=True)
    targets = targets[first]
    if len(points) < 2:
        return np.full_like(values, targets[0])
    slopes = np.diff(targets) / np.diff(points)
    segment = np.clip(np.searchsorted(points, values) - 1, 0, len(slopes) - 1)
    return np.asarray(targets[segment] + (values - points[segment]) * slopes[segment])


def _landmarks_of(working: Working, percentiles: list[float]) -> np.ndarray:
    mask = foreground_of(working)
    return np.stack([np.percentile(c[mask].astype(float), percentiles) for c in working.scan.data])


def _check_percentiles(points: list[float]) -> None:
    rising = len(points) >= 2 and bool((np.diff(points) > 0).all())
    if not (rising and points[0] >= 0 and points[-1] <= 100):
        raise ArgumentError("histogram_match: percentiles must be at least two, rising, 0 to 100.")


def _positive(width: float, working: Working, name: str) -> float:
    if not width > 0:
        raise ScanError(
            f"{working.scan.name}: {name} finds no contrast in the foreground to scale by."
        )
    return width
