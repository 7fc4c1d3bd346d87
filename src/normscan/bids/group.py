"""The group level: one table of all findings, its data dictionary and a page to read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from normscan.bids.names import ANOMALY, parse_name
from normscan.bids.tables import read_json
from normscan.errors import OutputError
from normscan.io import atomic_path

COLUMNS: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Subject, as in participants.tsv."},
    "session_id": {"Description": "Session of the subject."},
    "finding": {"Description": "File with everything about the scan, relative to this table."},
    "score": {"Description": "Anomaly score of the scan. Higher is more anomalous."},
    "p_value": {
        "Description": "Conformal p-value: share of healthy scans that score as high. It is not "
        "corrected for the number of scans in this table."
    },
    "anomalous": {
        "Description": "Whether the score is above the threshold.",
        "Levels": {"true": "above the threshold", "false": "within the healthy range"},
    },
    "threshold": {"Description": "Threshold of the score, set on healthy scans."},
    "components": {"Description": "Connected components of the segmentation."},
    "volume": {"Description": "Size of the segmentation.", "Units": "mm^3"},
    "peak": {"Description": "Highest value of the map within the segmentation."},
    "method": {"Description": "Method of the detector."},
    "detector_sha256": {"Description": "SHA-256 of the detector's weights."},
}
_TOP = 20


def write_group(
    folder: str | os.PathLike[str], participants: Collection[str] = ()
) -> tuple[Path, list[str]]:
    """Collect the findings below a derivatives data set.

    Writes ``group_anomaly.tsv`` (a row a scan, sorted by file), ``group_anomaly.json`` (what its
    columns mean) and ``group_anomaly.md`` (counts and the highest scores).

    Args:
        folder: root of the derivatives.
        participants: only these subjects, ``sub-01`` or ``01``; all by default.

    Returns:
        The path of the table, and a line for each finding that couldn't be read.

    Raises:
        OutputError: no findings, findings of more than one detector, or a folder that can't be
            written.
    """
    folder = Path(folder)
    wanted = {name.removeprefix("sub-") for name in participants}
    rows, bad = [], []
    for path in sorted(folder.glob(f"sub-*/**/*_desc-{ANOMALY}_finding.json")):
        parsed = parse_name(path.name)
        if parsed is None or (wanted and parsed[0]["sub"] not in wanted):
            continue
        try:
            rows.append(_row(path, folder, parsed[0]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            bad.append(f"{path}: is damaged and was left out. Run the participant level again.")
    if not rows:
        raise OutputError(f"{folder}: holds no findings. Run the participant level first.")
    detectors = sorted({str(row["detector_sha256"]) for row in rows})
    if len(detectors) > 1:
        raise OutputError(
            f"{folder}: holds findings of {len(detectors)} detectors, whose scores can't be "
            "compared. Run the participant level again with one, with --overwrite."
        )
    table = folder / "group_anomaly.tsv"
    lines = ["\t".join(COLUMNS), *("\t".join(_cell(row[c]) for c in COLUMNS) for row in rows)]
    texts = {
        table: "\n".join(lines) + "\n",
        table.with_suffix(".json"): json.dumps(COLUMNS, indent=2) + "\n",
        table.with_suffix(".md"): _page(rows, folder, bad),
    }
    for path, text in texts.items():
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return table, bad


def _row(path: Path, folder: Path, entities: dict[str, str]) -> dict[str, Any]:
    said = read_json(path)
    parts, made = said["components"], said["provenance"]
    return {
        "participant_id": f"sub-{entities['sub']}",
        "session_id": f"ses-{entities['ses']}" if "ses" in entities else None,
        "finding": path.relative_to(folder).as_posix(),
        "score": float(said["score"]),
        "p_value": said["p_value"],
        "anomalous": said["anomalous"],
        "threshold": said["threshold"],
        "components": len(parts),
        # Of a single slice only the area is known, of a scan without spacing not even that.
        "volume": sum(p["volume_mm3"] for p in parts) if all("volume_mm3" in p for p in parts) else None,
        "peak": max((p["peak"] for p in parts), default=None),
        "method": made["method"],
        "detector_sha256": made["detector_sha256"],
    }  # fmt: skip


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "n/a"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _page(rows: list[dict[str, Any]], folder: Path, bad: list[str]) -> str:
    flagged = sum(bool(row["anomalous"]) for row in rows)
    people = len({row["participant_id"] for row in rows})
    lines = [
        "# Anomaly scores",
        "",
        f"{len(rows)} scans of {people} subjects by the method {rows[0]['method']}; {flagged} of "
        "them are above the threshold. Research use. Not for diagnosis.",
        "",
        f"The {min(_TOP, len(rows))} highest scores; all are in `group_anomaly.tsv`.",
        "",
        "| scan | score | p | above the threshold | components |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: -row["score"])[:_TOP]:
        name = Path(row["finding"]).name.removesuffix(f"_desc-{ANOMALY}_finding.json")
        pictures = sorted((folder / row["participant_id"] / "figures").glob(f"{name}_desc-*.png"))
        if pictures:
            name = f"[{name}]({pictures[0].relative_to(folder).as_posix()})"
        cells = (_cell(row["score"]), _cell(row["p_value"]), _cell(row["anomalous"]))
        lines.append(f"| {name} | {' | '.join(cells)} | {row['components']} |")
    if bad:
        lines += ["", f"{len(bad)} damaged findings were left out."]
    return "\n".join(lines) + "\n"
