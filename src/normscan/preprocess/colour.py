"""Steps that change intensities and colours of 2D pictures: CLAHE, stains, illumination.

``top`` of a picture is the largest value that its file could hold: 1 (scaled before), 255 or 65535.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from normscan.errors import ArgumentError, ScanError
from normscan.preprocess.steps import Working, step
from normscan.scan import Scan

# Stain vectors (columns haematoxylin, eosin) and their 99th percentiles, as in the widely used
# implementation of Macenko 2009 (mitkovetta/staining-normalization, HERef and maxCRef).
REFERENCE_STAINS = ((0.5626, 0.2159), (0.7201, 0.8012), (0.4062, 0.5581))
REFERENCE_CONCENTRATIONS = (1.9705, 1.0308)


def top(scan: Scan) -> float:
    """Return the largest value that the file of a picture could hold: 1, 255 or 65535."""
    high = float(scan.data.max())
    if high <= 1:
        return 1.0
    return 65535.0 if scan.dtype == "uint16" or high > 255 else 255.0


def _colour(working: Working, name: str) -> np.ndarray:
    """Return (3, H, W) in 0..1."""
    scan = working.scan
    if scan.dims != 2 or len(scan.data) != 3:
        raise ScanError(
            f"{scan.name}: {name} needs a colour picture (red, green, blue), not "
            f"{len(scan.data)} channels of {scan.dims} axes. Leave the step out."
        )
    return np.clip(scan.data / top(scan), 0, 1)


@step("full_range")
def full_range(working: Working) -> Working:
    """Divide by the largest value the file could hold (255 or 65535): 0..1, all channels alike.

    What ImageNet normalisation expects. Values that lie in 0..1 already stay.

    Raises:
        ScanError: negative values.
    """
    if working.scan.data.min() < 0:
        raise ScanError(
            f"{working.scan.name}: full_range is for pictures; the values go down to "
            f"{working.scan.data.min():g}. Use 'window' for CT, or a scaling."
        )
    return working.with_image(working.scan.data / top(working.scan))


@step("median")
def median(working: Working, size: int = 3) -> Working:
    """Median filter of each channel, against speckle.

    Args:
        working: 2D or 3D.
        size: pixels along each axis, odd.
    """
    from scipy.ndimage import median_filter

    if not (1 <= size <= 99 and size % 2):
        raise ArgumentError(f"median: the size {size} must be odd, 1 to 99 pixels.")
    return working.with_image(np.stack([median_filter(c, size) for c in working.scan.data]))


@step("clahe")
def clahe(
    working: Working,
    clip_limit: float = 2.0,
    tiles: int = 8,
    on: Literal["luminance", "green", "each"] = "luminance",
) -> Working:
    """Contrast limited adaptive histogram equalisation (Zuiderveld 1994), by scikit-image.

    ``clip_limit`` counts as in OpenCV: times the mean height of a bin. scikit-image counts in
    fractions of a tile's pixels and has 256 bins, so its limit is ``clip_limit / 256``: 2.0 here is
    0.0078 there, and its 0.01 is 2.56 here. A channel (or the luminance) keeps its own minimum and
    maximum; a blank one stays as it is.

    Args:
        working: 2D, grey or colour.
        clip_limit: above 0; 256 and more doesn't limit.
        tiles: along each axis.
        on: of a colour picture: ``luminance`` is L of CIELAB, hue kept; ``green`` hands on the green
            channel alone, as is usual for fundus photographs; ``each`` takes every channel.
    """
    if not (clip_limit > 0 and 1 <= tiles <= 64) or on not in ("luminance", "green", "each"):
        raise ArgumentError(
            f"clahe: clip_limit={clip_limit} must be positive, tiles={tiles} in 1..64, and "
            f"on='{on}' luminance, green or each."
        )
    scan = working.scan
    if scan.dims != 2:
        raise ScanError(f"{scan.name}: clahe works on 2D pictures, not on a volume.")
    if len(scan.data) != 3 or on == "each":
        return working.with_image(np.stack([_equalise(c, clip_limit, tiles) for c in scan.data]))
    if on == "green":
        green = _equalise(scan.data[1], clip_limit, tiles)[None]
        return replace(working, scan=scan.with_data(green, ("green",)))
    from skimage.color import lab2rgb, rgb2lab

    lab = rgb2lab(_colour(working, "clahe"), channel_axis=0)
    lab[0] = _equalise(lab[0], clip_limit, tiles)
    rgb = np.clip(lab2rgb(lab, channel_axis=0), 0, 1) * top(scan)
    return working.with_image(rgb.astype(np.float32))


def _equalise(values: np.ndarray, clip_limit: float, tiles: int) -> np.ndarray:
    from skimage.exposure import equalize_adapthist

    low, high = float(values.min()), float(values.max())
    if not high - low > 1e-6 * max(abs(low), abs(high)):
        return values
    kernel = [-(-n // tiles) for n in values.shape]
    scaled = equalize_adapthist((values - low) / (high - low), kernel, min(clip_limit / 256, 1.0))
    return np.asarray(low + scaled * (high - low), np.float32)


@step("local_average")
def local_average(
    working: Working, sigma: float | None = None, gain: float = 4.0, rim: float = 0.02
) -> Working:
    """Subtract the local average colour, as Graham did for fundus photographs (Kaggle 2015).

    ``0.5 + gain * (I - blur(I))`` of the range, cut to it. He blurred with sigma = radius / 30 and
    then cut the outer tenth away, where the black surround enters the average. Here the average
    goes over the foreground only, so a thin ``rim`` is enough; outside it is mid grey.

    Args:
        working: 2D, after ``fundus_fov``.
        sigma: pixels; None takes the radius of the field of view (or of a disc of the area of the
            foreground) divided by 30.
        gain: contrast.
        rim: cut off the edge of the foreground, as a fraction of the radius; 0.1 is Graham's.

    Returns:
        0 to 1, 255 or 65535, with the average at half of it.
    """
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    scan, limit = working.scan, top(working.scan)
    mask = np.ones(scan.shape, bool) if working.foreground is None else working.foreground
    radius = working.facts.get("fov_radius", float(np.sqrt(mask.sum() / np.pi)))
    sigma = radius / 30 if sigma is None else sigma
    if not (sigma > 0 and 0 <= rim < 0.5):
        raise ArgumentError(
            f"local_average: sigma={sigma} must be positive (pixels) and rim={rim} in 0..0.5."
        )
    if not mask.all():
        mask = distance_transform_edt(mask) > rim * radius
    weight = np.maximum(gaussian_filter(mask.astype(np.float32), sigma), 1e-6)
    mean = np.stack([gaussian_filter(c * mask, sigma) / weight for c in scan.data])
    data = np.where(mask, np.clip(limit / 2 + gain * (scan.data - mean), 0, limit), limit / 2)
    return replace(working.with_image(data.astype(np.float32)), foreground=mask)


@step("shades_of_gray")
def shades_of_gray(working: Working, power: float = 6.0) -> Working:
    """Colour constancy: make the Minkowski mean of the colours grey (Finlayson and Trezzi 2004).

    The illuminant is ``mean(I ** power) ** (1 / power)`` of each channel over the foreground,
    brought to length 1; each channel is divided by it and by the square root of 3. Power 1 is grey
    world, a high one nearly white patch; 6 is the article's choice, and of Barata et al. 2015 for
    dermoscopy (without their gamma correction).

    Args:
        working: 2D colour.
        power: at least 1.

    Returns:
        The values' own range, cut at its top.
    """
    if not power >= 1:
        raise ArgumentError(f"shades_of_gray: power={power} must be at least 1.")
    rgb = _colour(working, "shades_of_gray")
    inside = rgb.reshape(3, -1) if working.foreground is None else rgb[:, working.foreground]
    light = (inside.astype(np.float64) ** power).mean(axis=1) ** (1 / power)
    if not light.min() > 1e-4:
        return working.noted("shades_of_gray: a channel is black, left as it was")
    gain = np.linalg.norm(light) / (light * np.sqrt(3))
    data = np.clip(rgb * gain[:, None, None], 0, 1) * top(working.scan)
    names = ("gain_red", "gain_green", "gain_blue")
    facts = dict(zip(names, map(float, gain), strict=True))
    return working.with_image(data.astype(np.float32)).noted(**facts)


@step("hair_removal")
def hair_removal(working: Working, length: int = 13, threshold: float = 0.1) -> Working:
    """Take dark hairs out of a dermoscopic picture, after DullRazor (Lee et al. 1997).

    Hair is where closings along four directions are all brighter than the picture or differ from it:
    the largest difference exceeds ``threshold``. It is filled by the blurred surroundings. Dark
    pigment lines as thin as hair go with it, so it is in no preset.

    Args:
        working: 2D colour or grey.
        length: pixels, longer than hairs are wide.
        threshold: fraction of the range.
    """
    from scipy.ndimage import binary_dilation, gaussian_filter, grey_closing

    scan = working.scan
    if scan.dims != 2:
        raise ScanError(f"{scan.name}: hair_removal works on 2D pictures, not on a volume.")
    if not 3 <= length <= 99:
        raise ArgumentError(f"hair_removal: length={length} must lie in 3..99 pixels.")
    diagonal = np.eye(length, dtype=bool)
    lines = (np.ones((1, length)), np.ones((length, 1)), diagonal, diagonal[::-1])
    hat = [grey_closing(c, footprint=line) - c for c in scan.data for line in lines]
    hair = binary_dilation(np.max(hat, axis=0) > threshold * top(scan), iterations=2)
    weight = gaussian_filter((~hair).astype(np.float32), length / 3)
    if not hair.any() or weight.min() < 1e-6:
        return working
    fill = np.stack([gaussian_filter(c * ~hair, length / 3) / weight for c in scan.data])
    data = np.where(hair, fill, scan.data)
    return working.with_image(data).noted(hair_fraction=float(hair.mean()))


@step("tissue_mask")
def tissue_mask(working: Working, lowest: float = 0.03, highest: float = 0.12) -> Working:
    """Make the stained tissue of a slide the foreground: Otsu's threshold on saturation.

    The threshold is kept between ``lowest`` and ``highest``: on a tile without glass Otsu would
    part stain from stain, on one without tissue dust from glass.

    Args:
        working: 2D colour.
        lowest: saturation, 0 to 1.
        highest: saturation, 0 to 1.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.color import rgb2hsv
    from skimage.filters import threshold_otsu

    saturation = gaussian_filter(rgb2hsv(_colour(working, "tissue_mask"), channel_axis=0)[1], 1.5)
    limit = float(np.clip(threshold_otsu(saturation), lowest, highest))
    mask = saturation > limit
    working = working.noted(tissue_fraction=float(mask.mean()))
    if mask.mean() < 0.01:
        return working.noted("tissue_mask: under 1 % tissue, the whole tile is used")
    return replace(working, foreground=mask)


@step("macenko")
def macenko(
    working: Working,
    stains: Sequence[Sequence[float]] = REFERENCE_STAINS,
    concentrations: Sequence[float] = REFERENCE_CONCENTRATIONS,
    light: float = 240.0,
    beta: float = 0.15,
    alpha: float = 1.0,
) -> Working:
    """Normalise haematoxylin and eosin (Macenko et al., ISBI 2009).

    Optical density of the pixels above ``beta`` in all channels; plane of its two largest principal
    components; the ``alpha`` and ``100 - alpha`` percentiles of the angle in it are the stains. Each
    stain's 99th percentile of concentration is brought to the reference, and the picture is made
    anew with the reference stains. A tile with too little tissue or only one stain stays as it is,
    with a note.

    Args:
        working: 2D colour, bright background.
        stains: (3, 2) reference optical densities of red, green, blue for haematoxylin and eosin.
        concentrations: (2,) reference 99th percentiles.
        light: value of the empty slide, in 8 bits.
        beta: optical density (natural logarithm) below which a pixel is empty; 0.15 in the article.
        alpha: percent, 1 in the article.

    Returns:
        The values' own range; facts ``haematoxylin_*`` and ``eosin_*`` are the stains found.
    """
    reference = np.asarray(stains, float)
    target = np.asarray(concentrations, float)
    if reference.shape != (3, 2) or target.shape != (2,) or not (target > 0).all():
        raise ArgumentError("macenko: stains are 3 rows of 2 numbers, concentrations 2 above 0.")
    if not (light > 0 and beta > 0 and 0 <= alpha < 50):
        raise ArgumentError(
            f"macenko: light={light} and beta={beta} must be positive, alpha={alpha} in 0..50."
        )
    rgb = _colour(working, "macenko").reshape(3, -1).astype(np.float64) * 255
    density = -np.log((rgb + 1) / light)
    tissue = density[:, (density > beta).all(axis=0)]
    if tissue.shape[1] < max(100, 0.01 * density.shape[1]):
        return working.noted("macenko: too little tissue, left as it was")
    found = _stains(tissue, alpha)
    if found is None:
        return working.noted("macenko: one stain only, left as it was")
    amount = np.linalg.lstsq(found, density, rcond=None)[0]
    strong = np.percentile(amount, 99, axis=1)
    if not strong.min() > 1e-3:
        return working.noted("macenko: a stain is missing, left as it was")
    made = light * np.exp(-reference @ (amount * (target / strong)[:, None]))
    data = np.clip(made, 0, 255).reshape(working.scan.data.shape) * (top(working.scan) / 255)
    facts = {
        f"{stain}_{channel}": float(found[i, j])
        for j, stain in enumerate(("haematoxylin", "eosin"))
        for i, channel in enumerate(("red", "green", "blue"))
    }
    return working.with_image(data.astype(np.float32)).noted(**facts)


def _stains(tissue: np.ndarray, alpha: float) -> np.ndarray | None:
    """Return (3, 2) unit vectors of haematoxylin and eosin from (3, N) optical densities."""
    _, vectors = np.linalg.eigh(np.cov(tissue))
    plane = vectors[:, [2, 1]]
    # Turned so that the tissue lies around angle 0: the sign of an eigenvector is arbitrary.
    plane = plane * np.where((plane.T @ tissue).mean(axis=1) < 0, -1, 1)
    x, y = plane.T @ tissue
    ends = np.percentile(np.arctan2(y, x), [alpha, 100 - alpha])
    if ends[1] - ends[0] < np.deg2rad(2):
        return None
    pair = plane @ np.stack([np.cos(ends), np.sin(ends)])
    # Haematoxylin absorbs more red than eosin does.
    return pair if pair[0, 0] > pair[0, 1] else pair[:, ::-1]
