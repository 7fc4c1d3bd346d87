"""Pictures of a plane: grey or colour image, anomaly map over it, outlines of lesion and finding."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from functools import cache

import numpy as np
from PIL import Image

from normscan.report.orientation import upright

__all__ = [
    "display_image",
    "map_scale",
    "outlines",
    "overlay_levels",
    "overlay_table",
    "png_data_uri",
    "upright",
]

# Cyan is absent from inferno and from grey, so it can't be taken for a hot pixel; the finding is
# dashed as well as white, so that the two are told apart without colour.
MASK_COLOUR = "#22d3ee"
REGION_COLOUR = "#ffffff"
LEVELS = 64


def display_image(
    image: np.ndarray, limits: tuple[float, float] | None = None, rgb: bool = False
) -> np.ndarray:
    """Map intensities to eight bits for the screen.

    Args:
        image: (C, H, W); a grey picture shows the first channel.
        limits: values of black and white; `window` of the image by default.
        rgb: the three channels are colours.

    Returns:
        uint8 array (H, W), or (H, W, 3) for colours.
    """
    low, high = limits or window(image, rgb)
    shown = np.moveaxis(image, 0, -1) if rgb else image[0]
    scaled = (np.nan_to_num(shown.astype(np.float64), nan=low) - low) / max(high - low, 1e-12)
    return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def window(image: np.ndarray, rgb: bool = False) -> tuple[float, float]:
    """Return the values of black and white: percentiles 1 and 99.5, or the full range of colours."""
    values = image if rgb else image[0]
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    if rgb:
        # One window for all channels, at the usual ends: one per channel would shift the colours.
        top = float(values.max())
        return min(0.0, float(values.min())), 1.0 if top <= 1 else 255.0 if top <= 255 else top
    low, high = np.percentile(values, [1, 99.5])
    if high <= low:
        low, high = values.min(), values.max()
    return float(low), float(high)


def map_scale(maps: Iterable[np.ndarray], threshold: float | None) -> tuple[float, float]:
    """Return the map values where the overlay starts and where it is brightest.

    One scale serves all pictures of a page: a lesion that the map hardly sees must look like that.
    With a threshold the overlay starts half way from the typical value to the threshold.
    """
    values = [m[np.isfinite(m)].ravel() for m in maps]
    pooled = np.concatenate(values) if values else np.empty(0)
    if pooled.size == 0:
        pooled = np.zeros(1)
    middle, start, top = np.percentile(pooled, [50, 90, 99.8])
    if threshold is not None:
        start = (min(middle, threshold) + threshold) / 2
        top = max(top, threshold + (threshold - start))
    if top <= start:
        top = start + max(abs(start), 1.0) * 1e-3
    return float(start), float(top)


@cache
def overlay_table() -> np.ndarray:
    """Return the colours (64, 4) uint8 of the overlay: inferno, more opaque as the value rises."""
    import matplotlib

    level = np.linspace(0, 1, LEVELS)
    # The black end of inferno would darken the image under it instead of standing out.
    colours = matplotlib.colormaps["inferno"](0.3 + 0.7 * level)
    colours[:, 3] = 0.9 * np.sqrt(level)
    return np.round(255 * colours).astype(np.uint8)


def overlay_levels(map: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Return the row of `overlay_table` (H, W) uint8 for each map value; NaN is transparent."""
    floor, top = scale
    scaled = np.clip((np.nan_to_num(map, nan=floor) - floor) / (top - floor), 0, 1)
    return np.round(scaled * (LEVELS - 1)).astype(np.uint8)


def outlines(
    field: np.ndarray, level: float, most: int = 400, tolerance: float = 0.15
) -> list[np.ndarray]:
    """Return the closed outlines of ``field > level``.

    Args:
        field: (H, W) map or mask.
        level: value on the line.
        most: keep so many, the longest: a noisy map has thousands of specks.
        tolerance: pixels by which a line may be off where points are left out; 0 keeps all.

    Returns:
        Polygons (n, 2) of (x, y) in pixels, where the first pixel spans 0 to 1.
    """
    from skimage.measure import approximate_polygon, find_contours

    field = field.astype(np.float64)
    finite = field[np.isfinite(field)]
    if not (finite > level).any():
        return []
    # The frame lies as far below the level as the peak above: the line runs along the border.
    high = float(finite.max())
    below = min(float(finite.min()), 2 * level - high)
    filled = np.nan_to_num(field, nan=below, neginf=below, posinf=high)
    lines = find_contours(np.pad(filled, 1, constant_values=below), level)
    lines = sorted(lines, key=len, reverse=True)[:most]
    if tolerance:
        lines = [approximate_polygon(line, tolerance) for line in lines]
    return [line[:, ::-1] - 0.5 for line in lines]


def shrink(raster: np.ndarray, side: int, smooth: bool = True) -> Image.Image:
    """Make an image of a uint8 or float array, at most ``side`` pixels long."""
    picture = Image.fromarray(np.ascontiguousarray(raster))
    factor = side / max(picture.size)
    if factor >= 1:
        return picture
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.BOX)


def png_data_uri(picture: Image.Image, colours: np.ndarray | None = None) -> str:
    """Return a PNG as ``data:`` address; ``colours`` (n, 4) uint8 is the palette of level images."""
    buffer = io.BytesIO()
    if colours is None:
        picture.save(buffer, "PNG", optimize=True)
    else:
        indexed = Image.frombytes("P", picture.size, picture.tobytes())
        indexed.putpalette(colours[:, :3].tobytes())
        alpha = colours[:, 3].tobytes()
        indexed.save(buffer, "PNG", optimize=True, transparency=alpha)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
