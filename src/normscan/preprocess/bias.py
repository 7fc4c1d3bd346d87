"""Correction of the bias field of MR coils by N4."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from normscan.errors import ArgumentError, ScanError
from normscan.preprocess.steps import Working, step

LEVELS = 4


def foreground_of(working: Working) -> np.ndarray:
    """Return the foreground of the scan, computed where no step found it."""
    from normscan.preprocess.foreground import foreground_mask

    if working.foreground is not None and working.foreground.any():
        return working.foreground
    return foreground_mask(working.scan.data)


def log_field(
    image: np.ndarray,
    mask: np.ndarray,
    spacing: tuple[float, ...],
    shrink: int = 4,
    iterations: int = 50,
    convergence: float = 0.001,
) -> np.ndarray:
    """Return the logarithm of the bias field by SimpleITK's N4, on one thread.

    Args:
        image: two or three spatial axes; only positive values count.
        mask: bool, where to look.
        spacing: mm per axis.
        shrink: the image is thinned by this along its finest axes, less along coarser ones.
        iterations: at most, on each of four levels of the spline.
        convergence: stop a level when the field changes by less.
    """
    import SimpleITK as sitk  # noqa: N813

    def to_itk(array: np.ndarray) -> Any:
        made = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
        made.SetSpacing(list(map(float, spacing)))
        return made

    factors = [max(1, round(shrink * min(spacing) / s)) for s in spacing]
    factors = [min(f, max(1, n // 8)) for f, n in zip(factors, image.shape, strict=True)]
    whole = to_itk(np.maximum(image, 0).astype(np.float32))
    seen = to_itk((mask & (image > 0)).astype(np.uint8))
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetNumberOfThreads(1)  # the sums of more threads depend on their number
    corrector.SetMaximumNumberOfIterations([iterations] * LEVELS)
    corrector.SetConvergenceThreshold(convergence)
    corrector.Execute(sitk.Shrink(whole, factors), sitk.Shrink(seen, factors))
    return np.asarray(sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(whole)).T)


@step("n4")
def n4(
    working: Working,
    shrink: int = 4,
    iterations: int = 50,
    convergence: float = 0.001,
    mask: Literal["foreground", "otsu", "all"] = "foreground",
) -> Working:
    """Divide each channel by its bias field (N4: Tustison et al., IEEE TMI 2010).

    The mean in the mask stays as it was. The strength of the field, its standard deviation by its
    mean in the mask, is kept as ``n4_field_cv`` (the largest of the channels).

    Args:
        working: an MR image or volume with intensities as the scanner gave them.
        shrink: voxels of the finest axis per voxel of the estimate; 1 uses all.
        iterations: at most, on each of four levels.
        convergence: stop a level when the field changes by less.
        mask: ``foreground`` as earlier steps or the threshold found it, ``otsu`` what is brighter
            than Otsu's threshold, ``all`` everything above 0.

    Raises:
        ScanError: negative intensities; N4 takes logarithms, so it goes before any scaling.
        ArgumentError: an argument out of range.
    """
    if shrink < 1 or iterations < 1 or not convergence > 0:
        raise ArgumentError("n4: shrink, iterations and convergence must be positive.")
    if mask not in ("foreground", "otsu", "all"):
        raise ArgumentError(f"n4: mask is '{mask}'; it must be foreground, otsu or all.")
    scan = working.scan
    whole = np.ones(scan.shape, bool) if mask == "all" else foreground_of(working)
    corrected, strengths = np.empty_like(scan.data), []
    for k, image in enumerate(scan.data):
        seen = _otsu(image) if mask == "otsu" else whole
        # Resampling by splines leaves a few values below 0; scaling leaves about half.
        if (image[seen] < 0).mean() > 0.2:
            raise ScanError(
                f"{scan.name}: n4 needs intensities of 0 and more, but channel "
                f"'{scan.channels[k]}' has negative ones. Put n4 before steps that scale."
            )
        seen = seen & (image > 0)
        if seen.sum() < 100:
            raise ScanError(f"{scan.name}: n4 finds no foreground in '{scan.channels[k]}'.")
        field = log_field(image, seen, scan.spacing, shrink, iterations, convergence)
        # Outside the mask a spline may run away; what it says there isn't believed.
        field = np.exp(np.clip(field, field[seen].min(), field[seen].max()))
        flat = image / field
        corrected[k] = flat * (image[seen].mean() / flat[seen].mean())
        strengths.append(float(field[seen].std() / field[seen].mean()))
    return working.with_image(corrected).noted(n4_field_cv=max(strengths))


def _otsu(image: np.ndarray) -> np.ndarray:
    from skimage.filters import threshold_otsu

    return np.asarray(image > threshold_otsu(image))
