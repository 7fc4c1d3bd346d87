"""Take the scans of a whole cohort through the steps and write them as a cohort of their own."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from normscan.cohort import Cohort, CohortRow
from normscan.cohort.table import FURTHER, holds_files
from normscan.errors import NormscanError, OutputError
from normscan.io import atomic_path, write_map
from normscan.io.lock import one_writer
from normscan.io.values import finite
from normscan.parallel import each
from normscan.preprocess.cache import describe, digest
from normscan.preprocess.pipeline import Preprocess
from normscan.preprocess.steps import Working
from normscan.scan import RASTER_AFFINE, Scan

SETTINGS = "preprocess.json"
TABLE = "cohort.csv"
FORMAT = 1


@dataclass(frozen=True)
class Writer:
    """Prepares a scan and writes it below a folder, in any process.

    Attributes:
        preprocess: its steps are taken; the working grid and scaling are left to the detector.
        out: the folder.
        cache: keep the results of steps on disk.
    """

    preprocess: Preprocess
    out: Path
    cache: bool = True

    def __call__(self, row: CohortRow) -> tuple[dict[str, Any], bool] | NormscanError | OSError:
        """Return what was written and whether it was there before; or why there is nothing."""
        try:
            scan = row.load()
            foreground = row.load_foreground(scan)
            mask = None if row.mask is None else row.load_mask(scan)
            beside = {n: row.load_companion(n, scan) for n in row.companions}
            about = self.out / "transforms" / f"{row.scan}.json"
            key = self._key(scan, foreground, mask, *beside.values())
            found = self._done(about, key)
            if found is not None:
                return found, True
            working = self.preprocess.stepped(scan, foreground, self.cache)
            found = {"key": key, **self._write(row, working, mask, beside)}
            with atomic_path(about) as temporary:  # the last file: where it is, the rest is whole
                temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            return found, False
        except (NormscanError, OSError) as error:
            return error

    def _key(
        self,
        scan: Scan,
        foreground: np.ndarray | None,
        mask: np.ndarray | None,
        *beside: np.ndarray | None,
    ) -> str:
        """Hash what goes into the files: the scan, its masks, what stands beside it, the steps."""
        lesion = b"" if mask is None else np.packbits(mask).tobytes()
        lesion += b"".join(array.tobytes() for array in beside if array is not None)
        content = digest(Working.of(scan, foreground))
        return hashlib.sha256(
            json.dumps([FORMAT, content, describe(self.preprocess.steps)]).encode() + lesion
        ).hexdigest()

    def _done(self, about: Path, key: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
            sizes = found["bytes"].items()
            whole = all((self.out / file).stat().st_size == size for file, size in sizes)
            return found if found["key"] == key and whole else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _write(
        self,
        row: CohortRow,
        working: Working,
        mask: np.ndarray | None,
        beside: Mapping[str, np.ndarray | None],
    ) -> dict[str, Any]:
        """Write image, masks, companions and their description; return the description."""
        name, scan = row.scan, working.scan
        nifti = scan.dims == 3 or "nifti" in scan.extra or not _is_picture(scan.affine)
        image, flat = (".nii.gz",) * 2 if nifti else (".tif", ".png")
        # Without a spacing of its own a TIFF is read with one of 1.
        known = scan.extra.get("spacing_known") or not np.allclose(scan.spacing, 1)
        like = replace(scan, extra={**scan.extra, "spacing_known": bool(known)})
        cells: dict[str, str] = {}
        single = len(scan.channels) == 1
        for channel, values in zip(scan.channels, scan.data, strict=True):
            part = "" if single else f"_{_safe(channel)}"
            cell = "path" if single else f"path_{_safe(channel)}"
            cells[cell] = f"scans/{name}{part}{image}"
            write_map(self.out / cells[cell], values, like)
        notes = list(working.notes)
        if working.foreground is not None:
            cells["foreground"] = f"foreground/{name}{flat}"
            write_map(self.out / cells["foreground"], working.foreground, like)
        if mask is not None:
            onto = working.onward(mask[None].astype(np.float32))[0] > 0.5
            if mask.any() and not onto.any():
                notes.append("nothing of the lesion mask is left in the prepared scan")
            cells["mask"] = f"lesions/{name}{flat}"
            write_map(self.out / cells["mask"], onto, like)
        for column, values in _columns(row, working, beside):
            cells[column] = f"beside/{name}_{_safe(column)}{image}"
            write_map(self.out / cells[column], values, like)
        return {
            "files": cells,
            "bytes": {file: (self.out / file).stat().st_size for file in cells.values()},
            "shape": list(scan.shape),
            "affine": scan.affine.tolist(),
            "origin_shape": list(working.origin_shape),
            "origin_affine": working.origin_affine.tolist(),
            "to_world": np.asarray(working.to_world).tolist(),
            "index_map": working.index_map.tolist(),
            "notes": notes,
            "facts": finite({k: float(v) for k, v in working.facts.items()}),
        }


def _columns(
    row: CohortRow, working: Working, beside: Mapping[str, np.ndarray | None]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the columns of what stands beside a scan, each with its values on the new grid."""
    for name, array in beside.items():
        if name == "structures" and array is not None:
            yield name, working.onward(array.astype(np.float32), order=0)[0]
        elif array is not None:
            low = array.min(axis=tuple(range(1, array.ndim)), keepdims=True)
            moved = working.onward(array - low, order=1) + low
            names = row.target_channels or (
                ("",) if len(moved) == 1 else map(str, range(len(moved)))
            )
            for channel, values in zip(names, moved, strict=True):
                yield f"{name}_{channel}" if channel else name, values


def _is_picture(affine: np.ndarray) -> bool:
    """Whether rows run down and columns to the right, as every reader of a TIFF will take them."""
    columns = affine[:3, :2]
    return np.allclose(columns / np.linalg.norm(columns, axis=0), RASTER_AFFINE[:3, :2], atol=1e-6)


def _safe(channel: str) -> str:
    return "".join(c if c.isalnum() or c in "-+." else "-" for c in channel)


@dataclass
class PreparedCohort:
    """What became of a cohort.

    Attributes:
        table: path of the new table.
        written: scans written now.
        kept: scans that were there already.
        failures: (scan, reason) of those that could not be prepared.
        notes: (scan, note) of what the steps found worth saying.
    """

    table: Path
    written: int = 0
    kept: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)


def prepare_cohort(
    cohort: Cohort,
    preprocess: Preprocess,
    out: Path,
    workers: int = 1,
    cache: bool = True,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> PreparedCohort:
    """Write a cohort after the steps, with masks carried along, as a cohort of its own.

    Volumes become ``.nii.gz``, pictures 32-bit ``.tif``; several channels become one file each.
    A scan that is there already, from the same content and settings, isn't made again. A bad scan
    is noted and left out. Steps that learn do so on the healthy training scans.

    Args:
        cohort: any.
        preprocess: its steps are taken.
        out: folder; new, or of an earlier run with the same settings.
        workers: processes; the files are the same for any number.
        cache: keep the results of steps on disk.
        track: passes scans on as they are done and shows their number.

    Raises:
        OutputError: ``out`` holds something else, or was begun with other settings.
        NormscanError: no scan could be prepared.
    """
    with one_writer(out):
        preprocess = _claim(out, preprocess, cohort, workers, cache)
        result = PreparedCohort(out / TABLE)
        cells: list[dict[str, str] | None] = []
        done = each(Writer(preprocess, out, cache), list(cohort), workers)
        for row, found in zip(cohort, track(done), strict=True):
            if isinstance(found, Exception):
                result.failures.append((row.scan, str(found)))
                cells.append(None)
                continue
            about, before = found
            result.kept += before
            result.written += not before
            result.notes += [(row.scan, note) for note in about["notes"]]
            cells.append(about["files"])
        if not any(cells):
            reason = result.failures[0][1] if result.failures else "it has no scans"
            raise NormscanError(f"no scan of the cohort could be prepared: {reason}")
        _write_table(cohort, cells, out)
        return result


def _claim(
    out: Path, preprocess: Preprocess, cohort: Cohort, workers: int, cache: bool
) -> Preprocess:
    """Make the folder, or check that it is the one to go on with; return the learnt settings."""
    path = out / SETTINGS
    asked = {"format": FORMAT, "asked": describe(preprocess.steps)}
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not path.is_file()):
        raise OutputError(f"{out} exists and holds no prepared cohort. Choose another folder.")
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            same = {k: before[k] for k in asked} == asked
            learnt = replace(preprocess, steps=before["steps"])
        except (ValueError, KeyError, TypeError, NormscanError) as error:
            raise OutputError(f"{path} is damaged. Remove the folder and start again.") from error
        if not same:
            raise OutputError(
                f"{out} was begun with other steps, or by another version of them. Choose another "
                "folder."
            )
        for left in out.rglob(".tmp-*"):  # half a file of a run that was killed
            left.unlink(missing_ok=True)
        return learnt
    healthy = [row for row in cohort.part("train") if row.label == 0]
    learnt = preprocess.learn(healthy, workers, cache)
    with atomic_path(path) as temporary:
        text = json.dumps({**asked, "preset": preprocess.preset, "steps": learnt.steps}, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")
    return learnt


def _write_table(cohort: Cohort, cells: list[dict[str, str] | None], out: Path) -> None:
    """Write the table of the scans that there are, with everything else that was known of them."""
    good = [files for files in cells if files]
    table = cohort.select([files is not None for files in cells]).table
    table = table[[c for c in table.columns if not holds_files(c)]].copy()
    written = dict.fromkeys(name for files in good for name in files)
    for name in dict.fromkeys((*written, "mask", "foreground")):
        table[name] = [files.get(name, "") for files in good]
    for name in cohort.further:  # each of a shape of its own, and not stepped
        kept = [row.further.get(name) for row, files in zip(cohort, cells, strict=True) if files]
        table[FURTHER + name] = ["" if path is None else os.path.abspath(path) for path in kept]
    Cohort(table, out).write(out / TABLE)
