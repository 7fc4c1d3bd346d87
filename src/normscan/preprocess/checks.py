"""Is this brain fit to be scored? Bias, contrast, noise and the size of what is in view."""

from __future__ import annotations

import numpy as np

from normscan.errors import ScanError
from normscan.preprocess.bias import foreground_of, log_field
from normscan.preprocess.registration import volume_only
from normscan.preprocess.steps import Working, step


@step("check_brain")
def check_brain(
    working: Working,
    channel: int = 0,
    max_bias: float = 0.2,
    min_contrast: float = 1.0,
    min_signal: float = 8.0,
    brain_ml: tuple[float, float] = (900.0, 2000.0),
) -> Working:
    """Measure a brain scan and note what is doubtful; the scan is left as it is.

    The thresholds are ours, set on a handful of real scans, not taken from an article.

    Args:
        working: a volume whose foreground is the brain.
        channel: the channel to look at.
        max_bias: largest standard deviation of the smooth field, as a fraction of its mean.
        min_contrast: smallest difference between the two main tissues by their noise and spread.
        min_signal: smallest mean signal by noise.
        brain_ml: plausible volumes of an adult brain in ml; only where all of it is in view.

    Raises:
        ScanError: a 2D scan, or a foreground without contrast.
    """
    scan = working.scan
    volume_only("check_brain", scan, channel)
    mask = foreground_of(working)
    image = scan.data[channel]
    facts = measure(image, mask, scan.spacing)
    facts["brain_ml"] = float(mask.sum()) * scan.voxel_volume / 1000
    facts["brain_share"] = float(mask.mean())
    faces = [np.take(mask, i, axis).mean() for axis in range(3) for i in (0, -1)]
    cut = max(faces) > 0.02
    low, high = brain_ml
    notes = []
    if facts["bias"] > max_bias:
        notes.append(f"the bias field varies by {facts['bias']:.0%} (over {max_bias:.0%}); use n4")
    if facts["contrast"] < min_contrast:
        notes.append(f"tissue contrast is {facts['contrast']:.1f}, below {min_contrast:g}")
    if facts["signal_to_noise"] < min_signal:
        notes.append(f"signal to noise is {facts['signal_to_noise']:.1f}, below {min_signal:g}")
    if cut:
        notes.append("the foreground touches the border of the field of view")
    elif not low <= facts["brain_ml"] <= high:
        notes.append(f"the foreground has {facts['brain_ml']:.0f} ml, not {low:g} to {high:g}")
    return working.noted(*(f"check_brain: {n}." for n in notes), **facts)


def measure(image: np.ndarray, mask: np.ndarray, spacing: tuple[float, ...]) -> dict[str, float]:
    """Return bias, contrast and signal to noise of a brain.

    ``bias`` is the standard deviation by the mean of the field that a quick N4 (every 6 mm, 20
    iterations) finds; 0 where intensities are negative. Three tissue classes are split by Otsu's
    thresholds. Noise is the median absolute Laplacian in the mask, scaled as
    for Gaussian noise (Immerkaer 1996 in its robust form); thin structures raise it. ``contrast``
    is the difference of the means of the two largest classes by their pooled deviation.

    Args:
        image: (X, Y, Z).
        mask: bool, the brain.
        spacing: mm.
    """
    from scipy import ndimage
    from skimage.filters import threshold_multiotsu

    values = image[mask].astype(np.float64)
    values = np.clip(values, *np.percentile(values, [0.5, 99.5])) if values.size else values
    if values.size < 100 or np.ptp(values) == 0:
        raise ScanError("check_brain: the foreground is empty or has no contrast.")
    classes = np.digitize(values, threshold_multiotsu(values, classes=3, nbins=128))
    counts = np.bincount(classes, minlength=3)
    means = np.bincount(classes, values, 3) / np.maximum(counts, 1)
    spread = np.bincount(classes, (values - means[classes]) ** 2, 3) / np.maximum(counts, 1)
    one, two = np.argsort(counts)[-2:]
    pooled = np.sqrt(
        (spread[one] * counts[one] + spread[two] * counts[two]) / counts[[one, two]].sum()
    )
    shrink = max(1, round(6.0 / min(spacing)))
    # N4 needs positive intensities; where they were scaled before, the field can't be known.
    known = (values > 0).mean() > 0.99
    field = np.exp(log_field(image, mask, spacing, shrink, 20)[mask]) if known else np.ones(1)
    # In the plane with the smallest voxels: along thick slices anatomy looks like noise.
    plane = np.argsort(spacing)[:2]
    kernel = np.array([1.0, -2.0, 1.0])
    rough = image.astype(np.float64)
    for axis in plane:
        rough = ndimage.convolve1d(rough, kernel, axis=int(axis))
    inner = ndimage.binary_erosion(mask, iterations=2)
    # The kernel's squares add up to 36.
    noise = float(np.median(np.abs(rough[inner if inner.any() else mask]))) / 0.6745 / 6
    return {
        "bias": float(field.std() / field.mean()),
        "contrast": float(abs(means[one] - means[two]) / max(pooled, 1e-12)),
        "signal_to_noise": float(values.mean() / max(noise, 1e-12)),
    }
