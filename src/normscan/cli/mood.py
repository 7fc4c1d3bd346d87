"""The command ``normscan mood``: a folder in, one map or one number out for each scan.

That is what the containers of the Medical Out-of-Distribution challenge do (Zimmerer et al.,
IEEE TMI 2022): ``run_pixel_brain.sh INPUT OUTPUT`` writes a NIfTI file of the same name and shape for
each input, ``run_sample_brain.sh INPUT OUTPUT`` a text file with one number; all in 0 to 1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from normscan.errors import ArgumentError, NormscanError, of_scan
from normscan.identity import about_files

if TYPE_CHECKING:
    from normscan.detector import Finding

NIFTI = (".nii", ".nii.gz")


def mood(
    task: Literal["pixel", "sample"], input: str, output: str, run: str, device: str = "auto"
) -> int:
    """Score a folder of NIfTI files as the MOOD challenge asks: normscan mood pixel IN OUT --run RUN.

    Args:
        task: pixel, a NIfTI file of the same name and shape for each scan; sample, a file
            NAME.txt with one number. Values are in 0 to 1, 0.5 is the threshold of the detector.
        input: folder of the scans.
        output: folder for the results; what is there under the same names is replaced.
        run: run folder of the detector.
        device: auto, cpu or cuda.

    Returns:
        0, or 1 where some of the scans could not be scored: they have no file.
    """
    from normscan.cohort import CohortRow
    from normscan.detector import load
    from normscan.io.atomic import check_folder
    from normscan.progress import Progress

    if task not in ("pixel", "sample"):
        raise ArgumentError(f"task '{task}': pixel or sample.")
    folder, out = Path(input), Path(output)
    if not folder.is_dir():
        raise ArgumentError(f"{folder}: no such folder. Name the folder of the scans.")
    files = sorted(path for path in folder.iterdir() if path.name.lower().endswith(NIFTI))
    if not files:
        raise ArgumentError(f"{folder}: holds no NIfTI files (.nii, .nii.gz).")
    check_folder(out)
    detector = load(run, device)
    rows = [CohortRow(scan=path.name, subject=path.name, paths=(path,)) for path in files]
    failures = 0
    tracked = Progress().track(rows, "predict", len(rows))
    # A scan that the gate refuses is unlike the healthy ones: here that is what is asked.
    for row, result in detector.predict_cohort(tracked, force=True):
        try:
            if isinstance(result, NormscanError):
                raise result
            with of_scan(row.scan):
                _write(result, task, out)
        except NormscanError as error:
            failures += 1
            reason = about_files(str(error), row.called())
            print(f"{row.scan}: left out: {reason}", file=sys.stderr)
    if failures == len(rows):
        raise NormscanError(f"none of the {len(rows)} scans could be scored.")
    print(f"{len(rows) - failures} of {len(rows)} scans scored\nresults: {out}")
    return 1 if failures else 0


def _write(finding: Finding, task: str, out: Path) -> None:
    from normscan.io import atomic_path
    from normscan.io.write import write_map

    name = Path(finding.scan.source or "").name
    if task == "sample":
        number = float(unit(np.float64(finding.score), finding.threshold))
        with atomic_path(out / f"{name}.txt") as temporary:
            temporary.write_text(f"{number!r}\n", encoding="ascii")
        return
    if finding.map is None:
        raise ArgumentError("the method of this detector only scores, so it has no task pixel.")
    values = unit(finding.map, finding.pixel_threshold).astype(np.float32)
    write_map(out / name, values, finding.scan)


def unit(values: np.ndarray | np.float64, threshold: float | None) -> np.ndarray:
    """Bring values without an upper end to 0..1 so that their order stays; the threshold to 0.5.

    ``1/2 + d / 2(|d| + w)`` with d the distance from the threshold and w its size: no test scan takes
    part, so a scan's values don't depend on its mates.

    Args:
        values: of any shape.
        threshold: t; None for 0.
    """
    t = threshold or 0.0
    distance = np.asarray(values, np.float64) - t
    width = abs(t) or 1.0
    return 0.5 + 0.5 * distance / (np.abs(distance) + width)
