"""Folders of DICOM as cohorts: one row per series, named without anything of the patient."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from pathlib import Path
from typing import Any

from normscan.errors import ScanError
from normscan.io.files import sniff, walk_files

MAX_FRAMES = 5000  # of a clip, each of which becomes a row
_LOOKED_AT = 50


def may_hold_dicom(folder: Path) -> bool:
    """Tell whether one of the first files below a folder is DICOM."""
    files = (folder / name for name in walk_files(folder))
    looked = itertools.islice((f for f in files if f.is_file()), _LOOKED_AT)
    return any(sniff(file) == "DICOM file" for file in looked)


def dicom_rows(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """List the usable DICOM series below a folder.

    Args:
        folder: searched to any depth.

    Returns:
        One row per series, picture or frame of a clip: ``path`` (relative to the folder, a file, a
        folder or an address with ``#series=``), ``scan`` (``series-<8 hexadecimal digits>``),
        ``subject`` (the like of the Patient ID, or empty) and ``modality``; and notes of what was
        left out and why.
    """
    from normscan.io.dicom import find_series

    try:
        found = find_series(folder)
    except ScanError as error:
        return [], [str(error)]
    homes = Counter(_home(folder, s.files) for s in found)
    rows: list[dict[str, Any]] = []
    left: Counter[str] = Counter()
    notes: list[str] = []
    for series in found:
        if not series.usable:
            left[series.reason] += 1
            continue
        notes += [f"{series.name}: {note}" for note in series.notes]
        path = _home(folder, series.files)
        if homes[path] > 1 or _shares(folder / path, series.files):
            path += f"#series={series.address}"
        row = {
            "path": path,
            "scan": series.name,
            "subject": f"patient-{series.subject}" if series.subject else "",
            "modality": series.modality,
        }
        if series.kind != "clip":
            rows.append(row)
            continue
        if series.images > MAX_FRAMES:
            left[f"more than {MAX_FRAMES} frames"] += 1
            continue
        mark = "&" if "#" in path else "#"
        rows += [
            {**row, "path": f"{path}{mark}frame={n}", "scan": f"{series.name}_frame{n:04d}"}
            for n in range(series.images)
        ]
    notes += [f"Left out: {count} series: {reason}." for reason, count in left.most_common(20)]
    rows.sort(key=lambda row: str(row["path"]))
    return rows, list(dict.fromkeys(notes))


def _home(folder: Path, files: tuple[Path, ...]) -> str:
    """Return the file of a series, or the folder that holds all its files, relative."""
    shared = files[0] if len(files) == 1 else Path(os.path.commonpath([f.parent for f in files]))
    return shared.relative_to(folder).as_posix()


def _shares(home: Path, files: tuple[Path, ...]) -> bool:
    """Tell whether a folder holds DICOM files of no such series, so that it needs an address."""
    from normscan.io.dicom.source import find_sources

    if not home.is_dir():
        return False
    return len(find_sources(home)) > len(files)
