"""What recipes of pictures can't say as data: tiles, drawn regions, lists in JSON, arrays in zips."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from normscan.datasets.layout import Tree
from normscan.datasets.row import Row
from normscan.errors import ScanError
from normscan.io import atomic_path

Window = tuple[slice, slice]
MAX_JSON, MAX_XML, MAX_ARRAY = 2**28, 2**25, 2**27
"""Largest list, drawing and unpacked array that is read, bytes."""


def aitex(tree: Tree, rows: list[Row], work: Callable[[], Path]) -> list[Row]:
    """Cut the fabric strips into squares as wide as they are high, 256 pixels (DRA's rule).

    All squares of strips without a defect are healthy. Of a strip with a defect only the squares
    whose mask has a pixel are kept, as anomalous.

    Args:
        tree: of the download.
        rows: one a strip.
        work: gives the folder for the squares.
    """

    def squares(height: int, width: int) -> list[Window]:
        return [(slice(None), slice(x, x + height)) for x in range(0, width, height)]

    return [
        tile
        for row in rows
        for tile in _cut(row, tree, work, squares)
        if row["label"] == 0 or tile["label"]
    ]


def kolektor(tree: Tree, rows: list[Row], work: Callable[[], Path]) -> list[Row]:
    """Cut each image of KolektorSDD into three along its height (DRA's rule); label by the mask.

    Args:
        tree: of the download.
        rows: one an image.
        work: gives the folder for the thirds.
    """

    def thirds(height: int, width: int) -> list[Window]:
        edges = [0, height // 3, height * 2 // 3, height]
        return [(slice(a, b), slice(None)) for a, b in zip(edges, edges[1:], strict=False)]

    return [tile for row in rows for tile in _cut(row, tree, work, thirds)]


def dra_order(tree: Tree, rows: list[Row], work: Callable[[], Path]) -> list[Row]:
    """Put the images of DAGM in the order in which DRA's split takes them.

    Args:
        tree: of the download.
        rows: one an image, with ``category`` (Class1) and ``split`` (Train or Test).
        work: not used.
    """
    return sorted(rows, key=lambda row: (int(row["category"][5:]), row["split"].lower() == "test"))


def real_iad(tree: Tree, rows: list[Row], work: Callable[[], Path]) -> list[Row]:
    """Take split, defect and mask of each image from the JSON of its category.

    Args:
        tree: of the download.
        rows: one an image, with ``category`` and ``_inner``, its path below the category's folder.
        work: not used.

    Returns:
        The images that a list names, with split, kind, mask and label. A view of a broken piece
        that doesn't show the defect is healthy, as the lists have it.
    """
    listed: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    # The full lists; those of other settings lie in folders of their own.
    for path, names in tree.match("{_at:(?:realiad_jsons/){0,2}}{category}.json"):
        try:
            for part, entry in _listed(tree.root / path):
                listed[names["category"], str(entry["image_path"])] = (part, entry)
        except ScanError as error:
            tree.notes.append(str(error))
    there = set(tree.paths)
    made = []
    for row in rows:
        part, entry = listed.get((row["category"], row["_inner"]), ("", {}))
        if not part:
            continue
        kind = str(entry["anomaly_class"])
        piece = Path(row["category"], row["_inner"]).parent.as_posix().replace("/", "-")
        mask = row["path"].removesuffix(row["_inner"]) + str(entry.get("mask_path") or "")
        has = kind != "OK" and mask in there
        made.append(
            {**row, "split": part, "kind": kind, "label": int(kind != "OK")}
            | {"subject": piece, "view": "".join(re.findall(r"_(C\d)_", row["_inner"])[-1:])}
            | {"mask": [mask] if has else [], "_wants_mask": True}
        )
    return made


def digit_anatomy(tree: Tree, rows: list[Row], work: Callable[[], Path]) -> list[Row]:
    """Compose DigitAnatomy from MNIST: the digits 1 to 9 on a grid of 3 x 3, in order.

    Anomalies (one cell each, two where cells are swapped, the mask holds the cells): a digit is
    missing, two are swapped, one is mirrored (digits whose mirror image differs), one is a 0.
    Training pictures use MNIST's training digits, test pictures its test digits. Always the same
    pictures: seed 0. The numbers are normscan's choice, SQUID composes without end; never more of
    a kind than the rarest digit has pictures.

    Args:
        tree: of MNIST as PNG.
        rows: one a digit, with ``part`` (training or testing) and ``digit``.
        work: gives the folder for the pictures.

    Raises:
        ScanError: a digit has no picture, or one that can't be read.
    """
    rng = np.random.default_rng(0)
    pools: dict[tuple[str, int], list[Path]] = {}
    for row in rows:
        key = (row["part"].lower()[:5], int(row["digit"]))
        pools.setdefault(key, []).append(tree.root / row["path"])
    plan = [("train", "normal", 400), ("testi", "normal", 100)]
    plan += [("testi", kind, 25) for kind in ("missing", "swapped", "mirrored", "novel")]
    rarest = min(map(len, pools.values()), default=0)
    made: list[Row] = []
    for part, kind, count in plan:
        for i in range(min(count, rarest)):
            split = part.removesuffix("i")
            target = work() / "grids" / f"{split}_{kind}_{i:03d}.png"
            grid, mask = _grid(pools, part, kind, rng)
            _save(target, grid)
            row = {"path": str(target), "kind": kind, "split": split, "label": 0, "mask": []}
            if kind != "normal":
                lesion = target.with_name(f"{target.stem}_mask.png")
                _save(lesion, mask)
                row |= {"label": 1, "mask": [str(lesion)]}
            made.append(row)
    return made


def inbreast(tree: Tree, rows: list[Row], work: Callable[[], Path]) -> list[Row]:
    """Draw the regions of INbreast's XML files as masks of the anomalous images.

    Args:
        tree: of the download.
        rows: one an image, with ``_file``, the number that begins its name.
        work: gives the folder for the masks.
    """
    from PIL import Image, ImageDraw

    drawings = {n["_file"]: p for p, n in tree.match("**/AllXML/{_file:\\d+}.xml")}
    for row in rows:
        if row["label"] != 1 or row["_file"] not in drawings:
            continue
        try:
            regions = list(_regions(tree.root / drawings[row["_file"]]))
            if regions:
                target = work() / "masks" / f"{row['_file']}.png"
                picture = Image.new("L", _size(tree.root / row["path"]))
                draw = ImageDraw.Draw(picture)
                for points in regions:
                    # A polygon needs three points; fewer are single calcifications.
                    draw.polygon(points, 255, 255) if len(points) > 2 else draw.point(points, 255)
                _save(target, np.asarray(picture))
                row["mask"] = [str(target)]
        except ScanError as error:
            tree.notes.append(str(error))
    return rows


def fairvlmed(tree: Tree, rows: list[Row], work: Callable[[], Path]) -> list[Row]:
    """Write the fundus picture of each NPZ of Harvard-FairVLMed; the label is its glaucoma.

    Args:
        tree: of the download.
        rows: one an NPZ.
        work: gives the folder for the pictures.
    """
    made = []
    for row in rows:
        source = tree.root / row["path"]
        try:
            picture, label = _member(source, "slo_fundus"), _member(source, "glaucoma")
            target = work() / "fundus" / f"{source.stem}.png"
            if not target.exists():
                _save(target, picture.astype(np.uint8))
            made.append({**row, "path": str(target), "label": int(label.item() > 0)})
        except ScanError as error:
            tree.notes.append(str(error))
            made.append(row)
    return made


def _cut(
    row: Row, tree: Tree, work: Callable[[], Path], windows: Callable[[int, int], list[Window]]
) -> Iterator[Row]:
    """Write the windows of an image and of the union of its masks; tiles there are kept."""
    try:
        pixels = _pixels(tree.root / row["path"])
        masks = [_pixels(tree.root / m) for m in row["mask"]]
        masks = [m.max(axis=-1) if m.ndim == 3 else m for m in masks]
        if any(m.shape != pixels.shape[:2] for m in masks):
            raise ScanError(f"{tree.root / row['path']}: its mask has another size.")
    except ScanError as error:
        tree.notes.append(str(error))
        return
    mask = np.maximum.reduce(masks) > 0 if masks else np.zeros(pixels.shape[:2], bool)
    base = work() / "tiles" / Path(row["path"]).with_suffix("")
    for i, window in enumerate(windows(*pixels.shape[:2])):
        target = base.with_name(f"{base.name}_{i}.png")
        lesion = target.with_name(f"{target.stem}_mask.png")
        anomalous = bool(mask[window].any())
        if not target.exists():
            _save(target, pixels[window])
        if anomalous and not lesion.exists():
            _save(lesion, mask[window].astype(np.uint8) * 255)
        yield {
            **row,
            "path": str(target),
            "mask": [str(lesion)] if anomalous else [],
            "label": int(anomalous),
            "tile": str(i),
            "_wants_mask": False,
        }


def _grid(
    pools: dict[tuple[str, int], list[Path]], part: str, kind: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture (96, 96) of nine digits and the mask of its wrong cells."""
    digits = list(range(1, 10))
    wrong = [int(rng.integers(9))]
    if kind == "swapped":
        wrong = [int(i) for i in rng.choice(9, 2, replace=False)]
        a, b = wrong
        digits[a], digits[b] = digits[b], digits[a]
    elif kind == "mirrored":
        wrong = [int(rng.choice([d - 1 for d in (2, 4, 5, 6, 7, 9)]))]
    elif kind == "novel":
        digits[wrong[0]] = 0
    grid, mask = np.zeros((96, 96), np.uint8), np.zeros((96, 96), np.uint8)
    for cell, digit in enumerate(digits):
        window = tuple(slice(32 * i, 32 * i + 32) for i in divmod(cell, 3))
        if not (kind == "missing" and cell in wrong):
            found = _digit(pools, part, digit, rng)
            grid[window] = found[:, ::-1] if kind == "mirrored" and cell in wrong else found
        if kind != "normal" and cell in wrong:
            mask[window] = 255
    return grid, mask


def _digit(
    pools: dict[tuple[str, int], list[Path]], part: str, digit: int, rng: np.random.Generator
) -> np.ndarray:
    from PIL import Image

    pool = pools.get((part, digit), [])
    if not pool:
        raise ScanError(f"MNIST: no pictures of the digit {digit} for {part}.")
    pixels = _pixels(pool[int(rng.integers(len(pool)))])
    flat = pixels.max(axis=-1) if pixels.ndim == 3 else pixels
    size = int(rng.integers(24, 33))  # the digits vary in size, as in SQUID
    small = np.asarray(Image.fromarray(flat).resize((size, size), Image.Resampling.BILINEAR))
    cell = np.zeros((32, 32), np.uint8)
    start = (32 - size) // 2
    cell[start : start + size, start : start + size] = small
    return cell


def _pixels(path: Path) -> np.ndarray:
    """Read a picture as 8 bits, gray or RGB."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(
                image.convert("L" if image.mode in ("1", "L", "I;16", "I") else "RGB")
            )
    except Exception as error:  # the decoders raise anything on a damaged file
        raise ScanError(f"{path}: is no readable picture ({str(error)[:150]}).") from error


def _save(target: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    with atomic_path(target) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")


def _listed(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the entries of train and test of a list of Real-IAD."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise ScanError(f"{path}: is larger than {MAX_JSON} bytes, no list is.")
        data = json.loads(path.read_text("utf-8"))
        for part in ("train", "test"):
            for entry in data[part]:
                entry["image_path"], entry["anomaly_class"]  # both there, else KeyError
                yield part, entry
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ScanError(f"{path}: is no list of Real-IAD ({str(error)[:100]}).") from error


def _regions(path: Path) -> Iterator[list[tuple[float, float]]]:
    """Return the corner points (x, y) of each region of an OsiriX drawing, in pixels."""
    import plistlib

    try:
        if path.stat().st_size > MAX_XML:
            raise ScanError(f"{path}: is larger than {MAX_XML} bytes, no drawing is.")
        drawing = plistlib.loads(path.read_bytes().strip(), fmt=plistlib.FMT_XML)
        for image in drawing["Images"]:
            for region in image["ROIs"]:
                texts = [re.findall(r"-?\d+(?:\.\d+)?", text) for text in region["Point_px"]]
                points = [(float(x), float(y)) for x, y in texts]
                if points and "pectoral" not in region.get("Name", "").lower():
                    yield points
    except ScanError:
        raise
    except Exception as error:  # plistlib and expat raise anything on a damaged file
        raise ScanError(f"{path}: is no readable drawing ({str(error)[:100]}).") from error


def _size(path: Path) -> tuple[int, int]:
    """Return the columns and rows of a DICOM image."""
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        size = int(header.Columns), int(header.Rows)
    except Exception as error:  # pydicom raises anything on a damaged file
        raise ScanError(f"{path}: is no readable DICOM image ({type(error).__name__}).") from error
    if not 0 < size[0] * size[1] <= MAX_ARRAY:
        raise ScanError(f"{path}: has {size[0]} x {size[1]} pixels, no mammogram has.")
    return size


def _member(path: Path, name: str) -> np.ndarray:
    """Read one array of an NPZ."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(f"{name}.npy").file_size > MAX_ARRAY:
                raise ScanError(f"{path}: '{name}' is larger than {MAX_ARRAY} bytes.")
        with np.load(path, allow_pickle=False) as arrays:
            return np.asarray(arrays[name])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ScanError(f"{path}: has no readable '{name}' ({str(error)[:100]}).") from error
