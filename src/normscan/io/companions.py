"""What stands beside a scan: on its grid targets and structures, elsewhere further images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from normscan.errors import ScanError
from normscan.io.read import check_array, grid_distance, read_labels, read_scan
from normscan.scan import Scan

MEANINGS = {
    "target": "paths of further scans of the same subjects on the same grid, or a column "
    "target_<name> for each of several",
    "structures": "paths of label maps of the anatomy, a whole number in each voxel",
    "further": "it is one column further_<name> for each, of paths of further images of the same "
    "cases, of any shape",
}
COMPANIONS = tuple(MEANINGS)

Given = np.ndarray | Scan | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def read_companion(
    name: str, given: Given, like: Scan, channels: tuple[str, ...] | None = None
) -> np.ndarray:
    """Return what stands beside a scan as an array (C, *like.shape).

    Args:
        name: ``target``: one or several further scans, float32; ``structures``: a label map, int32.
        given: an array (C, *like.shape) or (*like.shape), a scan, a path, or one path a channel.
        like: the scan that it stands beside.
        channels: names of the files.

    Raises:
        ScanError: it can't be read, or lies on another grid.
    """
    if isinstance(given, np.ndarray):
        array = given if given.ndim == like.data.ndim else given[None]
        if array.shape[1:] != like.shape:
            raise ScanError(_elsewhere(name, "an array", f"has the shape {given.shape}", like))
        return np.asarray(array, np.int32 if name == "structures" else np.float32)
    if name == "structures" and isinstance(given, str | os.PathLike):
        return read_labels(given, like)[None]
    scan = given if isinstance(given, Scan) else read_scan(given, channels)
    who = str(scan.source or scan.name)
    if scan.shape != like.shape:
        raise ScanError(_elsewhere(name, who, f"has the shape {scan.shape}", like))
    off = grid_distance(like.affine, scan.affine, like.shape)
    if off > 0.1:
        raise ScanError(_elsewhere(name, who, f"lies up to {off:.2g} voxels away", like))
    return scan.data.astype(np.int32) if name == "structures" else scan.data


def read_further(given: Mapping[str, Given]) -> dict[str, Scan]:
    """Return further images of a case by name, each on its own grid.

    Args:
        given: an array, a scan, a path, or one path a channel, by name.

    Raises:
        ScanError: one of them can't be read.
    """
    found = {}
    for name, one in given.items():
        if isinstance(one, np.ndarray):
            found[name] = check_array(one)
        else:
            found[name] = one if isinstance(one, Scan) else read_scan(one)
    return found


def _elsewhere(name: str, who: str, what: str, like: Scan) -> str:
    where = f"its scan {Path(like.source) if like.source else like.name}"
    return (
        f"{who}: the {name} {what}, {where} has {like.shape}. A {name} lies on the grid of its "
        "scan: register and resample it first."
    )
