"""Detectors side by side: others evaluated on the scans of one, tests between them, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.cli.spelling import command_line
from normscan.errors import ArgumentError, NormscanError

if TYPE_CHECKING:
    from normscan.cohort import Cohort
    from normscan.detector import Detector

FOLDER, PAGE = "compare", "side_by_side.html"
SHOWN = 8


def others(runs: Sequence[str], folder: Path, device: str) -> dict[str, Detector]:
    """Load the detectors that are to stand beside the one whose evaluation goes into a folder.

    Raises:
        ArgumentError: two runs of one name.
        OutputError: a run holds no detector.
    """
    from normscan.detector import load

    names = [Path(run).resolve().name for run in runs]
    if len({*names, _own(folder)}) != len(names) + 1:
        raise ArgumentError(
            f"--compare: runs are told apart by the names of their folders, and two of "
            f"{', '.join([_own(folder), *names])} are the same. Rename one."
        )
    return {name: load(run, device) for name, run in zip(names, runs, strict=True)}


def set_beside(
    detector: Detector,
    beside: dict[str, Detector],
    folder: Path,
    cohort: str,
    root: str | None,
    **options: Any,
) -> Path:
    """Evaluate other detectors on the same scans and write how they compare with the first.

    Args:
        detector: evaluated in ``folder``.
        beside: the others by name.
        folder: of its evaluation; the comparison goes into ``compare`` in it.
        cohort: table or folder.
        root: folder of the table's relative paths.
        **options: of ``evaluate``, the same for all.

    Returns:
        The page with the pictures.
    """
    from normscan import evaluation
    from normscan.cli.statistics import compare

    for name, other in beside.items():
        evaluation.evaluate(
            other, other.read_cohort(cohort, root), folder / FOLDER / name, baselines=(),
            command=command_line(), progress=True, overwrite=True, **options,
        )  # fmt: skip
    compare([str(folder), *(str(folder / FOLDER / name) for name in beside)], str(folder / FOLDER))
    rows = detector.read_cohort(cohort, root).part(options.get("split", "test"))
    shown = {_own(folder): detector, **beside}
    return _pictures(shown, rows, folder, options.get("radiological"))


def _own(folder: Path) -> str:
    """Return the name of the run whose evaluation lies in a folder."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "evaluation" else folder.name


def _pictures(
    detectors: dict[str, Detector], cohort: Cohort, folder: Path, radiological: bool | None
) -> Path:
    """Draw the scans of the first detector's report that all detectors can predict."""
    import pandas as pd

    from normscan.evaluation.writing import choose
    from normscan.io.sheets import revived_table
    from normscan.report.beside import write_beside
    from normscan.report.picture import best_index

    scores = revived_table(pd.read_csv(folder / "scans.csv", dtype={"scan": str, "subject": str}))
    sections = choose(scores)
    # In turn from each section, so that finds, misses and false alarms are all seen.
    turns = [names[i] for i in range(SHOWN) for names in sections.values() if i < len(names)]
    by_name = {row.scan: row for row in cohort}
    rows = []
    for scan in list(dict.fromkeys(turns))[:SHOWN]:
        row, drawn = by_name[scan], {}
        plane: int | None = None
        for name, detector in detectors.items():
            ((_, finding),) = detector.predict_cohort([row], force=True)
            if isinstance(finding, NormscanError) or finding.map is None:
                break
            mask = row.load_mask(finding.scan) if row.mask else None
            if plane is None and finding.scan.dims == 3:  # the same plane for all
                plane = best_index(finding.map, mask)
            drawn[name] = finding.picture(mask, row.label, scan, radiological, plane)
        if len(drawn) == len(detectors):
            rows.append(drawn)
    return write_beside(
        folder / FOLDER / PAGE,
        thresholds={name: each.pixel_threshold for name, each in detectors.items()},
        scans=rows, command=command_line(),
    )  # fmt: skip
