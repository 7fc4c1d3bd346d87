"""A cohort of volumes as a cohort of their slices, without cutting a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.cohort.table import FURTHER, holds_files
from normscan.errors import CohortError, ScanError
from normscan.io.address import split_address
from normscan.io.files import check_file, is_address
from normscan.io.masks import MaskReport

if TYPE_CHECKING:
    import pandas as pd

    from normscan.cohort.row import CohortRow

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


def slice_table(
    scans: Sequence[CohortRow],
    cells: Sequence[dict[Any, Any]],
    first: int = 0,
    last: int | None = None,
    step: int = 1,
    axis: int = 2,
    progress: Progress | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Return a table with one row per slice; see ``Cohort.slices``.

    Args:
        scans: the volumes.
        cells: their cells in the table by column, which the slices inherit.
        first: number of the first slice.
        last: number after the last one.
        step: take every so many.
        axis: of the file.
        progress: as in ``Cohort.slices``.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    flat, report = 0, MaskReport()
    records = list(zip(scans, cells, strict=True))
    for row, own in progress(records, "slices") if progress else records:
        try:
            found = _slices(row, own, first, last, step, axis, report)
        except ScanError as error:
            notes.append(f"Left out: {error}")
            continue
        flat += not found
        rows += found
    if flat:
        notes.append(f"{flat} scans have no slice in that range, or are no volumes: left out.")
    if not rows:
        raise CohortError(
            f"no slice {first} to {'the last' if last is None else last - 1} along axis {axis} in "
            f"any of the {len(scans)} scans. {notes[0] if notes else ''}"
        )
    return pd.DataFrame(rows), [*notes, *report.notes()]


def _slices(
    row: CohortRow,
    cells: dict[Any, Any],
    first: int,
    last: int | None,
    step: int,
    axis: int,
    report: MaskReport,
) -> list[dict[str, Any]]:
    from normscan.io import probe

    shape = probe(row.paths[0]).shape
    if len(shape) != 3:
        return []
    numbers = range(first, shape[axis] if last is None else min(last, shape[axis]), step)
    lesioned = None if row.mask is None else _lesioned(row.mask, axis, report)
    made = []
    for k in numbers:
        one = {**cells, "scan": f"{row.scan}_slice{k:03d}", "slice": k}
        for name, value in cells.items():
            if value and holds_files(str(name)) and not str(name).startswith(FURTHER):
                part = f"slice={k}" + (f"&axis={axis}" if axis != 2 else "")
                one[name] = f"{value}{'&' if is_address(value) else '#'}{part}"
        if lesioned is not None:
            one["label"] = int(lesioned[k])
            one["mask"] = one["mask"] if lesioned[k] else ""
        elif row.label == 1:
            one["label"] = None  # somewhere in the volume, nobody knows where
        made.append(one)
    return made


def _lesioned(mask: Path, axis: int, report: MaskReport) -> np.ndarray:
    """Tell for each slice whether its mask shows a lesion."""
    from normscan.io.read import load_mask_array

    check_file(split_address(mask)[0])
    values = load_mask_array(mask, report=report)
    if values.ndim != 3:
        raise ScanError(f"{mask}: the mask has {values.ndim} axes, its scan is a volume.")
    others = tuple(a for a in range(3) if a != axis)
    return np.asarray(values.any(axis=others))
