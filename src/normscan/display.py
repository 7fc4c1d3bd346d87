"""Planes of an image as eight bits for the eye: turned upright, windowed, coloured, as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# A raster image is stored row by row from the top: rows run towards -y and columns towards +x, so
# that the same code that draws an axial NIfTI slice upright draws a PNG as it is.
RASTER_AFFINE = np.array([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
LEVELS = 64


class Display(NamedTuple):
    """What turns a plane (i, j) upright, and where it then points.

    Attributes:
        transpose: axis j becomes the rows.
        flip_rows: reverse the rows, after the transposition.
        flip_columns: reverse the columns, after the transposition.
        row_axis: world axis (0 x, 1 y, 2 z) along which the rows run, towards its negative end.
        column_axis: world axis along which the columns run, towards its positive end.
    """

    transpose: bool
    flip_rows: bool
    flip_columns: bool
    row_axis: int
    column_axis: int


def display_of(affine: np.ndarray) -> Display:
    """Return how the plane of the first two axes of an affine (4, 4) is turned upright.

    Each array axis is given to the world axis it follows best, both together, so that a plane
    turned by almost 45 degrees still gets two different axes.
    """
    directions = np.asarray(affine, dtype=np.float64)[:3, :2]
    directions = directions / np.linalg.norm(directions, axis=0)
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    first, second = max(pairs, key=lambda p: abs(directions[p[0], 0]) + abs(directions[p[1], 1]))
    # The plane's higher world axis stands upright: z before y before x.
    transpose = second > first
    row, column = (second, first) if transpose else (first, second)
    row_step, column_step = directions[row, int(transpose)], directions[column, int(not transpose)]
    return Display(transpose, bool(row_step > 0), bool(column_step < 0), row, column)


def upright(plane: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Turn planes upright for display.

    Rows run from the top along -A, or along -S where the plane contains the z axis; columns run
    along +R, or along +A in a sagittal plane. The patient's right is therefore at the right (the
    neurological convention). A raster image (`RASTER_AFFINE`) comes out unchanged.

    Args:
        plane: array (..., i, j) whose last two axes are the first two of the affine.
        affine: (4, 4) array index to RAS+ millimetres.

    Returns:
        A view (..., rows, columns).
    """
    display = display_of(affine)
    if display.transpose:
        plane = np.swapaxes(plane, -1, -2)
    if display.flip_rows:
        plane = plane[..., ::-1, :]
    if display.flip_columns:
        plane = plane[..., ::-1]
    return plane


def upright_spacing(affine: np.ndarray) -> tuple[float, float]:
    """Return millimetres per row and per column of the upright plane."""
    steps = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :2], axis=0)
    i, j = float(steps[0]), float(steps[1])
    return (j, i) if display_of(affine).transpose else (i, j)


def is_raster(affine: np.ndarray) -> bool:
    """Tell whether the affine is only the stand-in of a picture file, which knows no patient."""
    affine = np.asarray(affine, dtype=np.float64)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.allclose(directions, RASTER_AFFINE[:3, :3]) and not affine[:3, 3].any())


def edge_letters(affine: np.ndarray) -> tuple[str, str] | None:
    """Return the letters at the top and the left edge of the upright plane; None for a raster."""
    if is_raster(affine):
        return None
    display = display_of(affine)
    return " AS"[display.row_axis], "LP"[display.column_axis]


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


def shrink(raster: np.ndarray, side: int, smooth: bool = True) -> Image.Image:
    """Make an image of a uint8 or float array, at most ``side`` pixels long."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(raster))
    factor = side / max(picture.size)
    if factor >= 1:
        return picture
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.BOX)


def png_data_uri(picture: Image.Image, colours: np.ndarray | None = None) -> str:
    """Return a PNG as ``data:`` address; ``colours`` (n, 4) uint8 is the palette of level images."""
    from PIL import Image

    buffer = io.BytesIO()
    if colours is None:
        picture.save(buffer, "PNG", optimize=True)
    else:
        indexed = Image.frombytes("P", picture.size, picture.tobytes())
        indexed.putpalette(colours[:, :3].tobytes())
        alpha = colours[:, 3].tobytes()
        indexed.save(buffer, "PNG", optimize=True, transparency=alpha)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True, eq=False)
class Plane:
    """One plane of an image, upright.

    Attributes:
        image: (rows, columns) or (rows, columns, 3) uint8.
        map: (rows, columns) float, or None.
        spacing: millimetres per row and per column.
        name: axial, coronal, sagittal; empty for a picture.
        letters: directions at the top and the left edge, or None.
    """

    image: np.ndarray
    map: np.ndarray | None
    spacing: tuple[float, float]
    name: str
    letters: tuple[str, str] | None


NAMES = ("sagittal", "coronal", "axial")
OPPOSITE = {"L": "R", "R": "L"}


def cut(
    data: np.ndarray,
    affine: np.ndarray,
    axis: int = 2,
    index: int = 0,
    map: np.ndarray | None = None,
    radiological: bool = False,
    rgb: bool = False,
) -> Plane:
    """Return a plane of an image.

    Args:
        data: (C, X, Y, Z), or (C, H, W), which has one plane.
        affine: (4, 4) index to RAS+ millimetres.
        axis: of the array, across which the plane lies; the last one of a picture.
        index: of the plane; the nearest there is.
        map: on the same grid.
        radiological: the patient's right at the left, where the image lies in a patient.
        rgb: three channels are colours; else the first is shown.
    """
    raster = is_raster(affine)
    limits = window(data, rgb)
    if data.ndim == 4:
        axis = int(np.clip(axis, 0, 2))
        index = int(np.clip(index, 0, data.shape[axis + 1] - 1))
        affine = affine[:, [*(k for k in range(3) if k != axis), axis, 3]]
        data = data.take(index, axis + 1)
        map = None if map is None else map.take(index, axis)
    display = display_of(affine)
    image = np.asarray(display_image(upright(data, affine), limits, rgb))
    over = None if map is None else np.asarray(upright(map, affine))
    letters = None if raster else edge_letters(affine)
    if radiological and not raster and display.column_axis == 0:
        image, over = image[:, ::-1], None if over is None else over[:, ::-1]
        letters = None if letters is None else (letters[0], OPPOSITE[letters[1]])
    across = 3 - display.row_axis - display.column_axis
    return Plane(
        np.ascontiguousarray(image), over, upright_spacing(affine), "" if raster else NAMES[across],
        letters,
    )  # fmt: skip


def planes(
    data: np.ndarray,
    affine: np.ndarray,
    map: np.ndarray | None = None,
    at: tuple[int, ...] | None = None,
    radiological: bool = True,
    rgb: bool = False,
) -> list[Plane]:
    """Return the axial, coronal and sagittal plane through a voxel; of a picture itself alone.

    Args:
        data: (C, *spatial).
        affine: (4, 4) index to RAS+ millimetres.
        map: (*spatial) or None.
        at: index of the voxel; the peak of the map by default, the middle without one.
        radiological: the patient's right at the left.
        rgb: three channels are colours.
    """
    if data.ndim == 3:
        return [cut(data, affine, map=map, radiological=radiological, rgb=rgb)]
    shape = data.shape[1:]
    if at is None:
        at = tuple(n // 2 for n in shape)
        if map is not None and np.isfinite(map).any():
            at = tuple(int(i) for i in np.unravel_index(np.nanargmax(map), shape))
    found = [cut(data, affine, k, at[k], map, radiological, rgb) for k in range(3)]
    return sorted(found, key=lambda plane: -NAMES.index(plane.name) if plane.name else 0)


def leaves(
    data: np.ndarray,
    affine: np.ndarray,
    map: np.ndarray,
    count: int = 11,
    radiological: bool = True,
) -> list[Plane]:
    """Return axial planes of a volume from its top down, one of them through the peak of the map.

    Args:
        data: (C, X, Y, Z).
        affine: (4, 4) index to RAS+ millimetres.
        map: (X, Y, Z).
        count: at most so many, evenly spread over what isn't black.
        radiological: the patient's right at the left.
    """
    low, high = window(data)
    across = int(
        np.argmax(np.abs(np.asarray(affine)[2, :3]) / np.linalg.norm(affine[:3, :3], axis=0))
    )
    others = tuple(k for k in range(3) if k != across)
    shown = (data[0] > low + 0.05 * (high - low)).any(axis=others)
    peak = (
        int(np.unravel_index(np.nanargmax(map), map.shape)[across]) if np.isfinite(map).any() else 0
    )
    places = np.flatnonzero(shown) if shown.any() else np.arange(data.shape[across + 1])
    # The first and the last plane show little more than black.
    spread = np.linspace(places[0], places[-1], count + 2)[1:-1].round().astype(int)
    spread[np.abs(spread - peak).argmin()] = peak
    down = -1 if affine[2, across] > 0 else 1
    chosen = np.unique(spread)[::down]
    return [cut(data, affine, across, int(k), map, radiological) for k in chosen]


def painted(plane: Plane, side: int, scale: tuple[float, float] | None = None) -> Image.Image:
    """Draw a plane with its map over it, where there is a scale.

    Args:
        plane: to draw.
        side: pixels of the longer side.
        scale: map values where the overlay begins and where it is brightest.
    """
    from PIL import Image

    drawn = Image.fromarray(plane.image).convert("RGBA")
    if plane.map is not None and scale is not None:
        over = overlay_table()[overlay_levels(plane.map, scale)]
        drawn.alpha_composite(Image.fromarray(over, "RGBA"))
    rows, columns = plane.image.shape[:2]
    extent = np.array([columns * plane.spacing[1], rows * plane.spacing[0]])
    width, height = np.maximum(1, np.round(side * extent / extent.max())).astype(int)
    return drawn.convert("RGB").resize((int(width), int(height)), Image.Resampling.BILINEAR)
