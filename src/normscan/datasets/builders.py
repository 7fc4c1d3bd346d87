"""What a recipe can't say as data: files that have to be read to know the rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from normscan.datasets.layout import Tree
from normscan.datasets.row import Row, first_path
from normscan.datasets.tables import find, read, require
from normscan.errors import CohortError, ScanError
from normscan.io import atomic_path
from normscan.io.files import check_size

NORMAL = "Normal for age"


def fastmri(tree: Tree, rows: list[Row], work: Callable[[], Path]) -> list[Row]:
    """Write the labelled slices of fastMRI exams as arrays.

    Args:
        tree: of the download, with ``brain.csv`` of fastMRI+.
        rows: one an exam (``.h5``).
        work: folder for the slices.

    Returns:
        The middle slice of each exam that is normal for its age (label 0) and every slice with a
        box (label 1), with the columns slice, kind and boxes.

    Raises:
        CohortError: no table, or no reader of HDF5.
    """
    if not rows:
        return []
    (path, _), *_ = find("**/brain.csv", False, tree)
    table = read(path)
    require(table, path, ["file", "slice", "study_level", "x", "y", "width", "height", "label"])
    normal: set[str] = set()
    boxes: dict[tuple[str, int], list[tuple[list[float], str]]] = {}
    for line in table.to_dict("records"):
        if line["x"] and line["slice"]:
            box = [float(line[c]) for c in ("x", "y", "width", "height")]
            boxes.setdefault((line["file"], int(line["slice"])), []).append((box, line["label"]))
        elif line["label"] == NORMAL:
            normal.add(line["file"])
    made: list[Row] = []
    for row in rows:
        exam = row["subject"]
        found = {i: b for (name, i), b in boxes.items() if name == exam}
        wanted: list[int] = [-1] if exam in normal and not found else sorted(found)
        try:
            slices = _write_slices(tree.root / first_path(row), wanted, work() / "slices")
        except ScanError as error:
            tree.notes.append(str(error))
            continue
        for i, target in slices:
            here = found.get(i, [])
            made.append(
                {
                    "path": str(target),
                    "subject": exam,
                    "label": int(bool(here)),
                    "slice": str(i),
                    "kind": "|".join(dict.fromkeys(kind for _, kind in here)),
                    "boxes": json.dumps([box for box, _ in here]) if here else "",
                }
            )
    return made


def _write_slices(path: Path, wanted: list[int], folder: Path) -> list[tuple[int, Path]]:
    """Write slices (-1: the middle one) of a file, upright; those that are there are kept."""
    if not wanted:
        return []
    try:
        h5py: Any = import_module("h5py")  # optional: only this data set needs it
    except ImportError as error:
        raise CohortError(f"{path}: reading HDF5 needs h5py: pip install h5py.") from error
    written = []
    try:
        with h5py.File(path, "r") as file:
            volume = file["reconstruction_rss"]
            check_size(path, volume.shape[1:])
            for i in wanted:
                i = len(volume) // 2 if i < 0 else i
                target = folder / f"{path.stem}_{i}.npy"
                if not target.exists():
                    with atomic_path(target) as temporary, temporary.open("wb") as out:
                        np.save(out, np.flipud(np.asarray(volume[i], dtype=np.float32)))
                written.append((i, target))
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise ScanError(f"{path}: is no readable fastMRI file ({str(error)[:150]}).") from error
    return written
