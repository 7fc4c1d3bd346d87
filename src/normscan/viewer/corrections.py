"""Masks that a reader drew: each in a file of its own beside the findings, none ever overwritten."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from normscan.errors import ArgumentError, OutputError
from normscan.io import read_scan, write_map
from normscan.scan import Scan
from normscan.viewer.readings import append_line, checked_reader

JOURNAL = "corrections.jsonl"
HEADER = 4096  # bytes, more than that of a NIfTI file without extensions


def save(folder: Path, name: str, reader: str, body: bytes, map: Scan) -> dict[str, Any]:
    """Keep a mask as ``NAME_corrected001.nii.gz`` and a line about it; on return both are on disk.

    Args:
        folder: of the findings.
        name: of the scan.
        reader: who drew it.
        body: NIfTI file, a byte a voxel, on the grid of the map; not 0 is inside.
        map: of the scan.

    Returns:
        The line: ``time``, ``reader``, ``scan``, ``file``, ``voxels`` inside.

    Raises:
        ArgumentError: no reader, a picture, another grid, or no such file.
        OutputError: the folder can't be written.
    """
    reader = checked_reader(reader)
    mask = _read(folder, body, map)
    part = folder / f".tmp-{secrets.token_hex(8)}.nii.gz"
    try:
        write_map(part, mask.astype(np.uint8), map)
        for number in itertools.count(1):
            path = folder / f"{name}_corrected{number:03d}.nii.gz"
            try:
                os.link(part, path)  # unlike a renaming it never replaces what is there
            except FileExistsError:
                continue
            break
        entry = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "reader": reader, "scan": name, "file": path.name, "voxels": int(mask.sum()),
        }  # fmt: skip
        append_line(folder / JOURNAL, json.dumps(entry, ensure_ascii=False).encode())
    except OSError as error:
        raise OutputError(
            f"the mask can't be saved ({error.strerror or error}). Check the free space and the "
            "rights of the folder."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return entry


def most(map: Scan) -> int:
    """Return how many bytes a mask on the grid of a map may take."""
    return int(np.prod(map.shape)) + HEADER


def _read(folder: Path, body: bytes, map: Scan) -> np.ndarray:
    if map.dims != 3 or len(body) > most(map):
        raise ArgumentError("a mask is drawn on a volume, with a byte a voxel.")
    part = folder / f".tmp-{secrets.token_hex(8)}.nii"
    try:
        part.write_bytes(body)
        drawn = read_scan(part)
    except OSError as error:
        raise OutputError(f"the mask can't be saved ({error.strerror or error}).") from error
    finally:
        part.unlink(missing_ok=True)
    if drawn.shape != map.shape or not np.allclose(drawn.affine, map.affine, atol=1e-3):
        raise ArgumentError("the mask lies on another grid than the map.")
    return drawn.data[0] > 0.5
