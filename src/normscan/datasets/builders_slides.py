"""Patches from whole-slide images, which are too large to be read as scans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from normscan.datasets.builders_images import MAX_ARRAY, MAX_XML, _save
from normscan.datasets.layout import Tree
from normscan.datasets.row import Row
from normscan.errors import ScanError

PATCH = 256
"""Side of a patch, pixels of the finest level (about 0.25 micrometres each in Camelyon16)."""
PER_SLIDE, TRIES = 20, 400
"""Patches of a slide, and places that are looked at for them."""
TISSUE = 0.5, 20
"""A patch is tissue if this share of its pixels has colour channels that differ by more than that."""

Polygon = tuple[list[tuple[float, float]], bool]
"""Corner points (x, y), and whether it is drawn around tumour or, inside one, around what isn't."""


def camelyon16(tree: Tree, rows: list[Row], work: Callable[[], Path]) -> list[Row]:
    """Cut patches from the tissue of slides; ready patches stay as they are.

    Of a slide with metastases only patches with annotated pixels are cut, with the mask; of a
    normal slide any tissue. The places are drawn with the slide's name as seed. This isn't the
    draw of BMAD, which isn't recorded.

    Args:
        tree: of the download, with the annotations ``tumor_001.xml`` in any folder.
        rows: patches and slides (column ``part``).
        work: gives the folder for the patches.
    """
    drawings = {names["slide"].lower(): path for path, names in tree.match("**/{slide}.xml")}
    made = []
    for row in rows:
        if row["part"] != "slide":
            made.append(row)
            continue
        try:
            drawing = drawings.get(row["subject"].lower())
            if row["label"] == 1 and not drawing:
                raise ScanError(
                    f"{tree.root / row['path']}: has no annotation {row['subject']}.xml."
                )
            polygons = list(_polygons(tree.root / drawing)) if drawing else []
            for x, y, pixels in _patches(tree.root / row["path"], row["label"] == 1, polygons):
                target = work() / "patches" / row["subject"] / f"{x}_{y}.png"
                mask = _mask(polygons, x, y)
                lesion = target.with_name(f"{x}_{y}_mask.png")
                if not target.exists():
                    _save(target, pixels)
                if mask.any() and not lesion.exists():
                    _save(lesion, mask)
                made.append({**row, "path": str(target), "mask": [str(lesion)] * bool(mask.any())})
        except ScanError as error:
            tree.notes.append(str(error))
    return made


def _patches(
    path: Path, anomalous: bool, polygons: list[Polygon]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Return left, top and pixels (256, 256, 3) of patches of tissue."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as slide:
            page: Any = slide.pages[0]
            tile = int(page.tilewidth), int(page.tilelength)
            if not page.is_tiled or tile[0] % PATCH or tile[1] % PATCH or np.prod(tile) > MAX_ARRAY:
                raise ScanError(f"{path}: has no tiles of {PATCH} pixels or a multiple.")
            size = int(page.imagewidth) // PATCH, int(page.imagelength) // PATCH
            places = _places(size, polygons) if anomalous else np.arange(size[0] * size[1])
            np.random.default_rng(crc32(path.stem.encode())).shuffle(places)
            found = 0
            for place in places[:TRIES].tolist():
                x, y = place % size[0] * PATCH, place // size[0] * PATCH
                pixels = _tile(slide, page, x // tile[0], y // tile[1])
                if pixels is None:
                    continue
                pixels = pixels[y % tile[1] :, x % tile[0] :][:PATCH, :PATCH]
                colour = pixels.max(-1).astype(int) - pixels.min(-1)
                if np.mean(colour > TISSUE[1]) < TISSUE[0]:
                    continue
                if anomalous and not _mask(polygons, x, y).any():
                    continue
                yield x, y, pixels
                found += 1
                if found == PER_SLIDE:
                    return
    except ScanError:
        raise
    except Exception as error:  # tifffile and its codecs raise anything on a damaged file
        raise ScanError(
            f"{path}: is no readable slide ({str(error)[:150]}). Slides with JPEG tiles need "
            "imagecodecs: pip install imagecodecs."
        ) from error


def _tile(slide: Any, page: Any, column: int, line: int) -> np.ndarray | None:
    """Decode one tile, or return None for one without data."""
    index = line * -(-page.imagewidth // page.tilewidth) + column
    if not page.databytecounts[index]:
        return None
    slide.filehandle.seek(page.dataoffsets[index])
    data = slide.filehandle.read(page.databytecounts[index])
    pixels = page.decode(data, index, jpegtables=page.jpegtables)[0]
    return None if pixels is None else np.asarray(pixels[0, ..., :3], dtype=np.uint8)


def _places(size: tuple[int, int], polygons: list[Polygon]) -> np.ndarray:
    """Return the numbers of the cells of the patch grid that a polygon touches."""
    from PIL import Image, ImageDraw

    grid = Image.new("L", size)
    draw = ImageDraw.Draw(grid)
    for points in (points for points, tumour in polygons if tumour):
        cells = [(x / PATCH, y / PATCH) for x, y in points]
        draw.polygon(cells, fill=1, outline=1)
        draw.point([(int(x), int(y)) for x, y in cells], fill=1)
    return np.flatnonzero(np.asarray(grid))


def _mask(polygons: list[Polygon], left: int, top: int) -> np.ndarray:
    """Return the mask (256, 256) of a patch, 0 or 255."""
    from PIL import Image, ImageDraw

    picture = Image.new("L", (PATCH, PATCH))
    draw = ImageDraw.Draw(picture)
    for points, tumour in sorted(polygons, key=lambda polygon: not polygon[1]):
        xs, ys = [x for x, _ in points], [y for _, y in points]
        if min(xs) < left + PATCH and max(xs) >= left and min(ys) < top + PATCH and max(ys) >= top:
            draw.polygon([(x - left, y - top) for x, y in points], fill=255 * tumour)
    return np.asarray(picture)


def _polygons(path: Path) -> Iterator[Polygon]:
    """Return the polygons of an annotation of ASAP, points (x, y) in pixels of the finest level."""
    from xml.etree import ElementTree

    try:
        if path.stat().st_size > MAX_XML:
            raise ScanError(f"{path}: is larger than {MAX_XML} bytes, no annotation is.")
        for annotation in ElementTree.parse(path).iter("Annotation"):
            points = [
                (float(c.attrib["X"]), float(c.attrib["Y"])) for c in annotation.iter("Coordinate")
            ]
            if len(points) > 2:  # group _2 of Camelyon16 is normal tissue inside a metastasis
                yield points, annotation.get("PartOfGroup") != "_2"
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        raise ScanError(f"{path}: is no readable annotation ({str(error)[:100]}).") from error
