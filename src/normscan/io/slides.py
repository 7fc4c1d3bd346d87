"""Whole-slide images (SVS, NDPI, MRXS, tiled TIFF and others) through OpenSlide, region by region."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from normscan.errors import ScanError
from normscan.io.files import decoding

EXTENSIONS = (
    ".svs", ".ndpi", ".tif", ".tiff", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu",
)  # fmt: skip
BLOCK = 2048  # pixels along each side that are held at once
OVERVIEW = 2048  # pixels of the longer side of an overview, at most
FAINTEST = 0.06  # saturation, 0 to 1, below which nothing is stained


class Slide:
    """An open slide; ``open_slide`` makes one.

    Attributes:
        path: its file.
        size: width and height in pixels of the finest level.
        mpp: micrometres of such a pixel, or None where the file doesn't say.
    """

    def __init__(self, path: Path, handle: Any) -> None:
        self.path, self.handle = path, handle
        self.size = tuple(int(n) for n in handle.dimensions)
        self.mpp = self._mpp()

    def _mpp(self) -> float | None:
        steps = []
        for axis in "xy":
            try:
                steps.append(float(self.handle.properties[f"openslide.mpp-{axis}"]))
            except (KeyError, ValueError):
                return None
        if not all(1e-3 < s < 1e3 for s in steps):
            return None
        if abs(steps[0] - steps[1]) > 0.02 * steps[0]:
            raise ScanError(
                f"{self.path}: its pixels are {steps[0]:g} x {steps[1]:g} micrometres large. Only "
                "square ones are supported."
            )
        return (steps[0] + steps[1]) / 2

    def square(self, x: int, y: int, side: int, pixels: int) -> np.ndarray:
        """Return a square as (pixels, pixels, 3) uint8; what holds no data is white.

        Args:
            x: its left side, pixels of the finest level.
            y: its upper side, likewise.
            side: of the square, likewise.
            pixels: along each side of the result, which is averaged from the nearest finer level.
        """
        from PIL import Image

        with decoding(self.path, "slide"):
            level = self.handle.get_best_level_for_downsample(side / pixels)
            count = max(1, round(side / float(self.handle.level_downsamples[level])))
            region = self.handle.read_region((x, y), level, (count, count))
            white = Image.new("RGBA", region.size, (255, 255, 255, 255))
            shown = Image.alpha_composite(white, region).convert("RGB")
            if count != pixels:
                shown = shown.resize((pixels, pixels), Image.Resampling.BOX)
            return np.asarray(shown)

    def overview(self) -> tuple[np.ndarray, int]:
        """Return the whole slide (H, W, 3) uint8, and how many of its pixels make one of these."""
        width, height = self.size
        step = max(1, math.ceil(max(width, height) / OVERVIEW))
        rows, columns = math.ceil(height / step), math.ceil(width / step)
        whole = np.full((rows, columns, 3), 255, np.uint8)
        level = self.handle.get_best_level_for_downsample(step)
        cells = max(1, int(BLOCK * float(self.handle.level_downsamples[level]) / step))
        for row in range(0, rows, cells):
            for column in range(0, columns, cells):
                part = self.square(column * step, row * step, cells * step, cells)
                place = whole[row : row + cells, column : column + cells]
                place[...] = part[: place.shape[0], : place.shape[1]]
        return whole, step


@contextmanager
def open_slide(path: Path) -> Iterator[Slide]:
    """Open a slide.

    Raises:
        ScanError: OpenSlide isn't there, no slide that it knows, damaged.
    """
    try:
        import openslide
    except ImportError as error:
        raise ScanError(
            f"{path}: reading slides needs OpenSlide: pip install 'normscan[slides]'."
        ) from error
    if not path.is_file():
        raise ScanError(f"{path}: no such slide.")
    with decoding(path, "slide"):
        if openslide.OpenSlide.detect_format(str(path)) is None:
            raise ScanError(
                f"{path}: is no slide that OpenSlide knows ({', '.join(EXTENSIONS)}; of TIFF only "
                "tiled ones). Save it as a tiled, pyramidal TIFF."
            )
        handle = openslide.OpenSlide(str(path))
    try:
        yield Slide(path, handle)
    finally:
        handle.close()


def tissue(picture: np.ndarray) -> np.ndarray:
    """Return where there is tissue: what is more saturated than Otsu's threshold.

    Args:
        picture: (H, W, 3) uint8 of a stained slide on white.

    Returns:
        (H, W) booleans; all False where nothing is stained.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.filters import threshold_otsu

    values = picture.astype(np.float32)
    high = values.max(axis=-1)
    saturation = (high - values.min(axis=-1)) / np.maximum(high, 1)
    saturation[high < 16] = 0  # black borders and pen
    saturation = gaussian_filter(saturation, 1)
    return np.asarray(saturation > max(float(threshold_otsu(saturation)), FAINTEST))
