"""The commands that list and plant artificial anomalies; see ``normscan.cli.commands``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Literal

from normscan.cli.data import dump
from normscan.cohort import Cohort
from normscan.errors import ArgumentError
from normscan.progress import Progress


def tasks(pictures: str | None = None, dims: int = 2, seed: int = 0, json: bool = False) -> None:
    """List the kinds of artificial anomalies.

    Args:
        pictures: folder for a picture of each on a simulated healthy brain.
        dims: of the pictures: a slice (2), or the fullest slice of a volume (3).
        seed: of the pictures.
        json: print JSON for machines.
    """
    from normscan.synthesis.tasks import TASKS

    if dims not in (2, 3):
        raise ArgumentError(f"dims is {dims}; it is 2 or 3.")
    if json:
        rows = [
            {
                "task": t.name,
                "group": t.group,
                "donor": t.donor,
                "dims": [2, 3],
                "summary": t.summary,
            }
            for t in TASKS.values()
        ]
        print(dump(rows))
    else:
        for t in TASKS.values():
            print(f"{t.name:<17}{t.group:<13}{t.summary}")
    if pictures is not None:
        from normscan.diagnostics.gallery import draw_task, phantom_hosts
        from normscan.io.atomic import check_folder

        folder = Path(pictures)
        check_folder(folder)
        hosts = phantom_hosts(dims, seed)
        with Progress() as bar:
            for t in bar.track(TASKS.values(), name="draw", total=len(TASKS)):
                draw_task(folder / f"{t.name}.png", t, hosts, seed)
        print(f"pictures: {folder}", file=sys.stderr)


def synthesise(
    cohort: str,
    out: str,
    task: str = "bright",
    root: str | None = None,
    split: Literal["train", "val", "test"] = "train",
    count: int | None = None,
    pictures: bool = True,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> None:
    """Plant artificial anomalies into healthy scans and write them as a cohort.

    Args:
        cohort: table (CSV, TSV, Parquet) or folder with healthy scans.
        out: folder for images, masks, labels, pictures and cohort.csv.
        task: what is planted; `normscan tasks` lists them.
        root: folder of the table's relative paths.
        split: part of the cohort whose healthy scans are changed.
        count: number of images; all scans once by default.
        pictures: write healthy, changed and label side by side as PNG, too.
        fractions: healthy subjects for train, val and test, where the cohort gives no split.
        seed: of the anomalies, and of the split where none is given.
    """
    from normscan.diagnostics.synthesised import synthesise as plant
    from normscan.io.atomic import check_folder
    from normscan.synthesis.tasks import task as found

    if count is not None and count < 1:
        raise ArgumentError(f"count is {count}; it must be 1 or more.")
    kind, folder = found(task), Path(out)
    check_folder(folder)
    table = Cohort.read(cohort, root=root, seed=seed, fractions=fractions)
    with Progress() as bar:
        track = partial(bar.track, name="plant")
        done = plant(table, kind, folder, split, count, seed, pictures, track)
    for scan, reason in done.failures:
        print(f"{scan}: left out: {reason}", file=sys.stderr)
    empty = sum(not row["label"] for row in done.rows)
    rest = f"; in {empty} no place was found or nothing changed" if empty else ""
    print(f"{len(done.rows)} scans written with the task {kind.name}{rest}")
    print(f"cohort: {done.table}\nnext: normscan cohort {done.table}")
