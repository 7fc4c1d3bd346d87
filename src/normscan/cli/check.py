"""The command that asks a detector's quality gate alone; nothing is scored."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from normscan.errors import ArgumentError, NormscanError, OutputError


def check(
    run: str,
    scans: list[str] | None = None,
    cohort: str | None = None,
    root: str | None = None,
    json: bool = False,
) -> int:
    """Say whether scans are of the kind that a detector was trained on, and whole; score nothing.

    Args:
        run: run folder of the detector.
        scans: files, folders of them, patterns such as 'scans/*.nii.gz'.
        cohort: instead of files, a table or folder, all of whose scans are checked.
        root: folder of the table's relative paths.
        json: print JSON for machines, an object for each scan.

    Returns:
        0, or 1 where some scans are refused or can't be read.
    """
    import json as _json

    from normscan.cli.predict import rows_of
    from normscan.cohort import Cohort
    from normscan.detector.storage import read_gate
    from normscan.progress import Progress

    if bool(scans) == (cohort is not None):
        raise ArgumentError("name scans to check, or a --cohort of them: one of the two.")
    gate = read_gate(Path(run))
    if gate is None:
        raise OutputError(
            f"{run}: this detector has no quality gate, as it was fitted without one."
        )
    rows = list(rows_of(scans or []) if cohort is None else Cohort.read(cohort, root=root))
    counts: Counter[str] = Counter()
    for row in Progress().track(rows, "check", len(rows)):
        try:
            verdict = gate.check(row.load())
        except NormscanError as error:
            counts["unreadable"] += 1
            found: dict[str, Any] = {"status": "unreadable", "reasons": [str(error)]}
            print(f"{row.scan}: unreadable: {error}", file=sys.stderr)
        else:
            counts[verdict.status] += 1
            found = verdict.to_dict()
            if not json:
                print(f"{row.scan}: {STATUS[verdict.status]}")
                for sentence in verdict.sentences:
                    print(f"  {sentence}")
        if json:
            print(_json.dumps({"scan": row.scan, **found}))
    if not json:
        names = {**STATUS, "unreadable": "unreadable"}
        told = ", ".join(
            f"{counts[status]} {name}" for status, name in names.items() if counts[status]
        )
        print(f"{len(rows)} scans: {told or 'none'}")
    return 1 if counts["refuse"] or counts["unreadable"] else 0


STATUS = {"ok": "accepted", "flag": "flagged", "refuse": "refused"}
