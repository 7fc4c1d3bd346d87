"""The picture beside a finding: the map over the scan, with outlines, drawn by Pillow."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from normscan.display import upright, upright_spacing
from normscan.report.figures import (
    MASK_COLOUR,
    REGION_COLOUR,
    display_image,
    map_scale,
    outlines,
    overlay_levels,
    overlay_table,
)

if TYPE_CHECKING:
    from normscan.report.picture import Picture

# Pixels: longest side of the image, height of the lines of text, letters, width of outlines.
SIDE, STRIP, LETTERS, WIDTH = 400, 28, 13, 2
# Points of a dash, and with the gap behind it; points lie a pixel apart.
DASH, PERIOD = 7, 11


def overlay_image(
    picture: Picture,
    pixel_threshold: float | None = None,
    scale: tuple[float, float] | None = None,
) -> Image.Image:
    """Draw the map over the image, with the outlines of lesion and finding and a legend.

    Args:
        picture: what to draw.
        pixel_threshold: map value above which a pixel belongs to the finding; None draws none.
        scale: map values where the overlay starts and where it is brightest; `map_scale` of this
            picture by default.
    """
    affine = picture.affine
    scale = scale or map_scale([picture.map], pixel_threshold)
    shown = np.asarray(upright(picture.map, affine), dtype=np.float64)
    row_mm, column_mm = upright_spacing(affine)
    extent = np.array([shown.shape[1] * column_mm, shown.shape[0] * row_mm])
    size = np.maximum(1, np.round(SIDE * extent / extent.max()).astype(int))
    width, height = (int(n) for n in size)
    base = Image.fromarray(display_image(upright(picture.image, affine), rgb=picture.is_rgb))
    over = Image.fromarray(overlay_table()[overlay_levels(shown, scale)], "RGBA")
    drawn, over = (
        part.convert("RGBA").resize((width, height), Image.Resampling.BILINEAR)
        for part in (base, over)
    )
    drawn.alpha_composite(over)
    pen = ImageDraw.Draw(drawn)
    factor = size / (shown.shape[1], shown.shape[0])
    legend = []
    mask = None if picture.mask is None else upright(picture.mask, affine)
    if mask is not None and (lines := outlines(mask, 0.5, tolerance=0)):
        legend.append(("true lesion", MASK_COLOUR, False))
        _outline(pen, [line * factor for line in lines], MASK_COLOUR, dashed=False)
    found = [] if pixel_threshold is None else outlines(shown, pixel_threshold, tolerance=0)
    if found:
        legend.append(("found", REGION_COLOUR, True))
        _outline(pen, [line * factor for line in found], REGION_COLOUR, dashed=True)
    return _framed(drawn, picture.title, legend)


def _outline(pen: ImageDraw.ImageDraw, lines: list[np.ndarray], colour: str, dashed: bool) -> None:
    """Draw polygons (n, 2) of x and y."""
    for line in lines:
        points = _even(line) if dashed else line
        step = PERIOD if dashed else len(points)
        for start in range(0, len(points), step):
            part = points[start : start + DASH] if dashed else points
            pen.line([(float(x), float(y)) for x, y in part], colour, WIDTH)


def _even(line: np.ndarray) -> np.ndarray:
    """Return points a pixel apart along a line (n, 2)."""
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    places = np.arange(0.0, along[-1] + 0.5)
    return np.stack([np.interp(places, along, line[:, k]) for k in range(2)], axis=1)


def _framed(drawn: Image.Image, title: str, legend: list[tuple[str, str, bool]]) -> Image.Image:
    """Put a title above the image and a legend below it, where there is one."""
    page = (SIDE, drawn.height + STRIP * (2 if legend else 1))
    framed = Image.new("RGB", page, "black")
    framed.paste(drawn.convert("RGB"), ((SIDE - drawn.width) // 2, STRIP))
    pen, font = ImageDraw.Draw(framed), _font()
    pen.text((SIDE / 2, STRIP / 2), _fitting(title, font), "white", font, anchor="mm")
    y = page[1] - STRIP / 2
    for number, (name, colour, dashed) in enumerate(legend):
        x = SIDE * (number + 0.5) / len(legend) - (40 + font.getlength(name)) / 2
        _outline(pen, [np.array([[x, y], [x + 32, y]])], colour, dashed)
        pen.text((x + 40, y), name, "white", font, anchor="lm")
    return framed


def _fitting(title: str, font: ImageFont.FreeTypeFont) -> str:
    """Return as much of a title as there is room for, on one line."""
    title = " ".join(title.split())
    if font.getlength(title) <= SIDE - 8:
        return title
    while title and font.getlength(f"{title}...") > SIDE - 8:
        title = title[:-1]
    return f"{title}..."


@cache
def _font() -> ImageFont.FreeTypeFont:
    """The letters that matplotlib brings along: they know more alphabets than Pillow's own."""
    import matplotlib

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), LETTERS
    )
