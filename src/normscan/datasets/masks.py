"""Masks and images that a cohort can't use as they were downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.datasets.row import Row, first_path
from normscan.errors import ScanError
from normscan.io import read_mask, read_scan, write_map
from normscan.io.files import EXTENSIONS, check_size, extension, stem

if TYPE_CHECKING:
    import numpy as np

CONVERTED = (".nhdr", ".nrrd", ".mha", ".mhd")
"""Formats that SimpleITK reads and ``read_scan`` doesn't."""


def any_pixel(paths: list[Path], values: list[int]) -> bool:
    """Tell whether one of the masks has a pixel above 0, or one of ``values`` where given.

    Raises:
        ScanError: an unreadable file.
    """
    return any(bool(_inside(path, values).any()) for path in paths)


def _inside(path: Path, values: list[int]) -> np.ndarray:
    import numpy as np

    try:
        if extension(path) in (".nii", ".nii.gz"):
            import nibabel

            image = nibabel.load(path)
            check_size(path, image.shape)
            data = np.asanyarray(image.dataobj)
        else:
            from PIL import Image

            with Image.open(path) as picture:
                data = np.asarray(picture.convert("L"))
                if picture.format == "JPEG":
                    data = data * (data > 127)
    except ScanError:
        raise
    except Exception as error:  # the decoders raise anything on a damaged file
        raise ScanError(f"{path}: is no readable mask ({str(error)[:150]}).") from error
    return np.isin(data, values) if values else data > 0


def materialise(
    rows: list[Row],
    root: Path,
    work: Callable[[], Path],
    track: Callable[[Any, str], Any] = lambda items, name: items,
) -> list[str]:
    """Write what has to be made: images in readable formats, one mask of several or of some labels.

    Files that are there already and newer than their sources are kept. A file that can't be read is
    noted and its row stays without a mask.

    Args:
        rows: changed in place: ``mask`` becomes one path.
        root: folder of the relative paths.
        work: gives the folder to write to.
        track: wraps the loop with a progress bar.

    Returns:
        Notes.
    """
    notes = []
    for row in track([row for row in rows if _needs_work(row)], "masks"):
        try:
            for column in _file_columns(row):
                row[column] = _readable(row[column], root, work)
            row["mask"] = [_readable(m, root, work) for m in row["mask"]]
            if len(row["mask"]) > 1 or (row["mask"] and row["_mask_values"]):
                row["mask"] = [str(_merged(row, row["mask"], root, work()))]
        except ScanError as error:
            row["mask"] = []
            notes.append(str(error))
    for row in rows:
        row["mask"] = row["mask"][0] if row["mask"] else ""
    return notes


def _file_columns(row: Row) -> list[str]:
    return [c for c in row if c == "foreground" or c.startswith("path")]


def _needs_work(row: Row) -> bool:
    files = [*row["mask"], *(row[c] for c in _file_columns(row))]
    merged = len(row["mask"]) > 1 or (row["mask"] and row["_mask_values"])
    return bool(merged) or any(Path(f).suffix.lower() in CONVERTED for f in files)


def _readable(path: str, root: Path, work: Callable[[], Path]) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in CONVERTED:
        return path
    target = work() / "nifti" / (_flat(path) + ".nii.gz")
    source = root / path
    if not _fresh(target, [source]):
        import SimpleITK

        from normscan.io import atomic_path

        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(str(source))
        try:
            reader.ReadImageInformation()
            check_size(source, reader.GetSize())
            image = reader.Execute()
        except RuntimeError as error:
            raise ScanError(f"{source}: is no readable {suffix} image.") from error
        with atomic_path(target) as temporary:
            SimpleITK.WriteImage(image, str(temporary))
    return str(target)


def _merged(row: Row, masks: list[str], root: Path, work: Path) -> Path:
    """Write the union of masks on the grid of the scan."""
    import numpy as np

    image = root / first_path(row)
    suffix = ".nii.gz" if extension(image) in (".nii", ".nii.gz") else ".png"
    name = first_path(row).removeprefix(str(work / "nifti"))  # a converted image lies there
    target = work / "masks" / (_flat(name.lstrip("/\\")) + suffix)
    sources = [root / m for m in masks]
    if _fresh(target, sources):
        return target
    like = read_scan(image)
    values = row["_mask_values"]
    if values:
        for source in sources:
            read_mask(source, like)  # the checks of shape and place
        parts = [_inside(source, values).reshape(like.shape) for source in sources]
    else:
        parts = [read_mask(source, like) for source in sources]
    return write_map(target, np.logical_or.reduce(parts), like)


def _flat(path: str) -> str:
    folder, _, name = path.rpartition("/")
    name = stem(name) if extension(name) in EXTENSIONS else Path(name).stem
    return f"{folder}/{name}".strip("/")


def _fresh(target: Path, sources: list[Path]) -> bool:
    try:
        made = target.stat().st_mtime
        return all(source.stat().st_mtime <= made for source in sources)
    except OSError:
        return False
