"""Rows of pictures for the page: PNG layers and outline paths that the template puts together.

A row is drawn as layers of SVG, not as finished pictures: the scan is stored once and shown three
times, and the outlines stay sharp however far the reader zooms in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from normscan.display import (
    OPPOSITE,
    display_of,
    edge_letters,
    is_raster,
    painted,
    upright,
    upright_spacing,
)
from normscan.report.figures import (
    display_image,
    outlines,
    overlay_levels,
    overlay_table,
    png_data_uri,
    shrink,
    window,
)
from normscan.report.picture import Picture

# Pixels along the longer side: about what a quarter of the page shows, and small in the file.
SIDE = 208
LEAF = 144  # of a plane that one leafs through


@dataclass(frozen=True)
class Row:
    """The layers of a picture, all on one grid.

    Attributes:
        picture: where it comes from.
        identity: unique on the page.
        columns: grid width in pixels.
        rows: grid height in pixels.
        column_mm: pixel width.
        row_mm: pixel height.
        scan: PNG address of the image.
        restoration: PNG address of the reconstruction in the same window, or None.
        overlay: PNG address of the transparent colour layer.
        lesion: SVG path of the true mask; empty without one.
        region: SVG path of the map above the pixel threshold; empty without a threshold.
        letters: directions at the top and the left edge, or None.
        around: of a volume, planes through the peak with the map, each its name and PNG address.
        leaves: of a volume, PNG address of axial planes one below the other, and how many they are.
    """

    picture: Picture
    identity: str
    columns: int
    rows: int
    column_mm: float
    row_mm: float
    scan: str
    restoration: str | None
    overlay: str
    lesion: str
    region: str
    letters: tuple[str, str] | None
    around: tuple[tuple[str, str], ...] = ()
    leaves: tuple[str, int] | None = None


def make_row(
    picture: Picture, identity: str, scale: tuple[float, float], pixel_threshold: float | None
) -> Row:
    """Turn a picture upright, cut the empty border off and render its layers."""
    affine, rgb = picture.affine, picture.is_rgb
    limits = window(picture.image, rgb)
    mirrored = (
        picture.radiological and not is_raster(affine) and display_of(affine).column_axis == 0
    )

    def turned(array: np.ndarray) -> np.ndarray:
        shown = upright(array, affine)
        return shown[..., ::-1] if mirrored else shown

    crop = _content(picture, limits, scale[0], turned)
    letters = edge_letters(affine)
    if letters and mirrored:
        letters = (letters[0], OPPOSITE[letters[1]])

    def layer(image: np.ndarray) -> str:
        colours = rgb and len(image) == 3
        shown = display_image(turned(image)[..., *crop], limits, colours)
        return png_data_uri(shrink(shown, SIDE))

    shown = np.asarray(turned(picture.map)[crop], dtype=np.float32)
    mask = None if picture.mask is None else turned(picture.mask)[crop]
    # Averaging the map, not its colours, keeps a small hot spot as hot as its mean.
    averaged = np.asarray(shrink(np.nan_to_num(shown, nan=scale[0]), SIDE, smooth=False))
    overlay = Image.fromarray(overlay_levels(averaged, scale))
    rows, columns = shown.shape
    row_mm, column_mm = upright_spacing(affine)
    return Row(
        picture=picture,
        identity=identity,
        columns=columns,
        rows=rows,
        column_mm=column_mm,
        row_mm=row_mm,
        scan=layer(picture.image),
        restoration=None if picture.reconstruction is None else layer(picture.reconstruction),
        overlay=png_data_uri(overlay, overlay_table()),
        lesion="" if mask is None else svg_path(outlines(mask, 0.5)),
        region="" if pixel_threshold is None else svg_path(outlines(shown, pixel_threshold)),
        letters=letters,
        around=tuple(
            (plane.name, png_data_uri(_few(painted(plane, SIDE, scale))))
            for plane in picture.around
        ),
        leaves=_leaves(picture, scale),
    )


def _leaves(picture: Picture, scale: tuple[float, float]) -> tuple[str, int] | None:
    """Put the planes of a volume one below the other, each in a square."""
    if not picture.leaves:
        return None
    sheet = Image.new("RGB", (LEAF, LEAF * len(picture.leaves)))
    for number, plane in enumerate(picture.leaves):
        drawn = painted(plane, LEAF, scale).convert("RGB")
        left, top = (LEAF - drawn.width) // 2, (LEAF - drawn.height) // 2
        sheet.paste(drawn, (left, top + LEAF * number))
    return png_data_uri(_few(sheet)), len(picture.leaves)


def _few(picture: Image.Image) -> Image.Image:
    """Keep 128 colours, by an octree: it takes a tenth of the time of Pillow's cut at medians."""
    return picture.convert("RGB").quantize(128, method=Image.Quantize.FASTOCTREE)


def _content(
    picture: Picture,
    limits: tuple[float, float],
    floor: float,
    turned: Callable[[np.ndarray], np.ndarray],
) -> tuple[slice, slice]:
    """Return rows and columns of the upright plane that show anything at all, with a margin.

    Only a black border goes, and no pixel of the lesion or of the overlay.
    """
    grey = display_image(picture.image, limits, picture.is_rgb)
    shown = grey.max(axis=-1) > 8 if grey.ndim == 3 else grey > 8
    shown |= np.nan_to_num(picture.map, nan=floor) > floor
    if picture.mask is not None:
        shown |= picture.mask.astype(bool)
    shown = np.asarray(turned(shown))
    if not shown.any():
        return slice(None), slice(None)
    return _span(np.any(shown, axis=1)), _span(np.any(shown, axis=0))


def _span(used: np.ndarray) -> slice:
    places = np.flatnonzero(used)
    margin = round(0.05 * used.size)
    return slice(max(0, int(places[0]) - margin), int(places[-1]) + 1 + margin)


def svg_path(lines: Iterable[np.ndarray]) -> str:
    """Return closed polygons (n, 2) of (x, y) as the data of an SVG path."""
    return "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line[:-1]) + "Z" for line in lines)
