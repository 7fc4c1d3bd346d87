"""The command ``normscan predict``."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from normscan.cli.scored import Setup, by_ray, here
from normscan.cohort import Cohort, CohortRow
from normscan.errors import ArgumentError, NormscanError, OutputError, ScanError
from normscan.identity import names_are_kept
from normscan.parallel import cores, use_threads
from normscan.progress import Progress

SCORES, INDEX = "scores.csv", "index.html"


def predict(
    run: str,
    scans: list[str] | None = None,
    out: str | None = None,
    cohort: str | None = None,
    root: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    force: bool = False,
    target: list[str] | None = None,
    structures: list[str] | None = None,
    further: list[str] | None = None,
    overlay: bool = True,
    workers: int | None = None,
    threads: int | None = None,
    fdr: float | None = None,
    regions: str | None = None,
    format: list[str] | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
) -> int:
    """Score scans with a trained detector; write map, mask, overlay and a JSON finding of each.

    Args:
        run: run folder of the detector, or a file of `normscan export`.
        scans: files, folders of them, patterns such as 'scans/*.nii.gz'; a scan with one file per
            channel is written as its files joined by commas.
        out: folder for the results, scores.csv and index.html; RUN/predictions by default.
        cohort: instead of files, a table or folder, all of whose scans are scored.
        root: folder of the table's relative paths.
        device: auto, cpu or cuda.
        overwrite: replace the findings of an earlier prediction.
        force: score scans that the quality gate refuses, too.
        target: for methods that compare a scan with further ones of the same subject: these, one
            for each scan in the same order, such as '[t2.nii.gz]'; several channels joined by commas.
        structures: label maps of the anatomy likewise, for methods that use them; components are
            named by their regions.
        further: further images of each scan's case, of any shape, by name, likewise in the order of
            the scans: 'fundus=photo.png', several joined by commas; '' for a case that has none.
        overlay: draw a picture of each map over its scan; `--overlay no` saves the time.
        workers: threads that read and prepare scans ahead, and one more that writes; 0 for none.
            With the engine ray, processes. The results are the same for any number.
        threads: of the arithmetic; by default the cores that this process may use.
        fdr: also write a worklist (worklist.json, worklist.html): the subjects to look at, of whom
            at most this share is expected to be healthy, such as 0.1.
        regions: file of `normscan regions`, for the names, scores and p-values of the regions.
        format: what is written of each scan, joined by commas: nifti (map, mask, overlay; pictures
            as TIFF and PNG), view (the scan and its restoration, for `normscan view`), dicom
            (parametric map, segmentation and structured report beside the source series),
            dicom-uint16 (the map in 16 bits), dicom-labelmap (the segments as one label map),
            dicom-pdf (a page about it, too), pdf (that page as a file); nifti by default.
        engine: local, or ray: so many workers as processes, on one machine or on those of a cluster
            whose folders are the same; a worker that dies is replaced, and its scan scored anew.
        address: of a running cluster of Ray, auto for this machine's; by default one is started here
            for as long as it takes.

    Returns:
        0, or 1 where some of the scans could not be predicted.
    """
    from normscan.cli.worklist import check, write_worklist
    from normscan.detector import load
    from normscan.detector.formats import checked_formats
    from normscan.detector.regions import Regions
    from normscan.io.atomic import check_folder
    from normscan.io.lock import one_writer
    from normscan.report.predictions import write_index

    if bool(scans) == (cohort is not None):
        raise ArgumentError("name scans to score, or a --cohort of them: one of the two.")
    formats = checked_formats(["nifti"] if format is None else format)
    if Path(run).suffix != ".onnx":
        use_threads(threads)
    detector = load(run, device, threads)
    check(detector, fdr)
    healthy = None if regions is None else Regions.load(Path(regions), detector)
    for note in detector.out_of_date():
        print(f"note: {note}", file=sys.stderr)
    home = Path(run) if Path(run).is_dir() else Path(run).parent
    folder = Path(out) if out else home / "predictions"
    check_folder(folder)
    if cohort is not None:
        rows = _named(detector.read_cohort(cohort, root))
    else:
        rows = _beside(list(rows_of(scans or [])), target=target, structures=structures)
        rows = _with_further(rows, further)
    with one_writer(folder):
        taken = [row.scan for row in rows if (folder / f"{row.scan}_finding.json").exists()]
        if taken and not overwrite:
            raise OutputError(
                f"{folder} holds a finding of {taken[0]} already. Choose another folder or --overwrite."
            )
        lines, failures = [], 0
        listed: dict[str, str] = {}
        setup = Setup(
            os.path.abspath(run), device, os.path.abspath(folder), overlay, tuple(formats),
            None if regions is None else os.path.abspath(regions), force, names_are_kept(),
        )  # fmt: skip
        tracked = Progress().track(rows, "predict", len(rows))
        if engine == "ray":
            answers = by_ray(setup, rows, workers or cores(), threads or 1, address)
        else:
            answers = here(setup, detector, healthy, tracked, workers)
        for answer in answers:
            lines.append(answer.line)
            failures += answer.failed
            if answer.new:
                listed[answer.line["scan"]] = answer.subject
            for sentence in answer.said:
                print(sentence, file=sys.stderr if answer.failed else sys.stdout)
        if failures == len(rows):
            raise NormscanError(f"none of the {len(rows)} scans could be predicted.")
        if failures:
            print(f"{failures} of {len(rows)} scans could not be predicted.", file=sys.stderr)
        said = [] if fdr is None else write_worklist(folder, lines, listed, fdr, detector)
        write_scores(folder / SCORES, lines)
        promised = str(detector.training.get("calibration", ""))
        write_index(
            folder / INDEX, provenance=detector.provenance(), said=promised,
            scans=read_scores(folder / SCORES),
        )  # fmt: skip
        for sentence in said:
            print(sentence)
        print(f"results: {folder}\nscores:  {folder / SCORES}\nindex:   {folder / INDEX}")
        if setup.details:
            print(f"look:    normscan view {folder}")
        return 1 if failures else 0


def rows_of(scans: Iterable[str]) -> Iterator[CohortRow]:
    """Yield a row for each scan that is named: by itself, in a folder, or by a pattern.

    A folder of pictures or volumes is taken scan by scan, masks left out; one of DICOM alone series
    by series. Names are those of the files, as far as they must be told apart.

    Raises:
        ScanError: an empty name, a pattern that nothing fits.
    """
    from normscan.cohort.table import unique_names

    named = [scan for text in scans for scan in _files(text)]
    names = unique_names([parts[0] for parts, _ in named])
    for name, (parts, subject) in zip(names, named, strict=True):
        yield CohortRow(scan=name, subject=subject or name, paths=tuple(map(Path, parts)))


def _files(text: str) -> list[tuple[list[str], str]]:
    """Return the files of each scan that an argument names, and its subject where that is known."""
    from normscan.cohort.layouts import pictures_in

    if not text:
        raise ScanError("an empty name stands among the scans. Name a file.")
    if os.path.isdir(text):
        inside = pictures_in(Path(text))
        return [([str(Path(text) / name)], "") for name in inside] or _series(text)
    if os.path.exists(text):
        return [([text], "")]
    if glob.has_magic(text):
        fitting = sorted(glob.glob(text, recursive=True))  # noqa: PTH207
        if not fitting:
            raise ScanError(f"{text}: no file fits this pattern.")
        return [scan for each in fitting for scan in _files(each)]
    return [(text.split(","), "")]


def _series(folder: str) -> list[tuple[list[str], str]]:
    """Return each series of a folder of DICOM; the folder where there is one, or what isn't DICOM."""
    from normscan.cohort.dicom import dicom_rows, may_hold_dicom

    rows, notes = dicom_rows(Path(folder)) if may_hold_dicom(Path(folder)) else ([], [])
    if len(rows) < 2:
        return [([folder], "")]
    for note in notes:
        print(f"note: {folder}: {note}", file=sys.stderr)
    return [([str(Path(folder) / row["path"])], row["subject"]) for row in rows]


def _named(rows: Cohort) -> list[CohortRow]:
    """Return the rows of a cohort under names that files can have."""
    from normscan.cohort.table import unique_names

    names = unique_names([row.scan for row in rows])
    return [replace(row, scan=name) for row, name in zip(rows, names, strict=True)]


def _beside(rows: list[CohortRow], **given: list[str] | None) -> list[CohortRow]:
    """Return the rows with what stands beside each scan."""
    for name, paths in given.items():
        if paths is None:
            continue
        if len(paths) != len(rows):
            raise ArgumentError(f"--{name} names {len(paths)} files for {len(rows)} scans.")
        for number, text in enumerate(paths):
            parts = [text] if os.path.exists(text) else text.split(",")
            value: Any = tuple(map(Path, parts)) if name == "target" else Path(parts[0])
            column = "targets" if name == "target" else name
            rows[number] = replace(rows[number], **{column: value})
    return rows


def _with_further(rows: list[CohortRow], given: list[str] | None) -> list[CohortRow]:
    """Return the rows with the further images of their cases."""
    if given is None:
        return rows
    if len(given) != len(rows):
        raise ArgumentError(
            f"--further names the images of {len(given)} cases for {len(rows)} scans."
        )
    found = []
    for row, text in zip(rows, given, strict=True):
        pairs = [part.partition("=") for part in text.split(",") if part]
        if not all(name and path for name, _, path in pairs):
            raise ArgumentError(f"--further {text}: write NAME=FILE, such as fundus=photo.png.")
        found.append(replace(row, further={name: Path(path) for name, _, path in pairs}))
    return found


def write_scores(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write a table of the scans; those of earlier predictions in the folder stay."""
    import pandas as pd

    from normscan.io import atomic_path
    from normscan.io.sheets import inert_table, revived_table

    table = pd.DataFrame(lines, dtype=object)
    if path.exists():
        before = revived_table(pd.read_csv(path, dtype=object))
        if "scan" in before:
            if "q_value" in table:  # those of another list say nothing of this one
                before = before.drop(columns=["q_value", "chosen"], errors="ignore")
            table = pd.concat([before[~before["scan"].isin(table["scan"])], table])
    with atomic_path(path) as temporary:
        inert_table(table).to_csv(temporary, index=False)


def read_scores(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a table of scans, with None where a cell is empty."""
    import pandas as pd

    from normscan.io.sheets import revived_table

    words = dict.fromkeys(("scan", "notes", "left_out", "quality"), str)
    # A scan may be named NA.
    table = revived_table(pd.read_csv(path, dtype=words, keep_default_na=False, na_values=[""]))
    lines = table.astype(object).where(table.notna(), None).to_dict("records")
    empty = dict.fromkeys(("score", "p_value", "anomalous", "quality", "notes", "left_out"))
    return [{**empty, **{str(name): value for name, value in line.items()}} for line in lines]
