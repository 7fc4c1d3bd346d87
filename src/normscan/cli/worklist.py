"""The worklist of a prediction: which of many scans to look at, at a false discovery rate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.errors import ArgumentError

if TYPE_CHECKING:
    from normscan.detector import Detector

TABLE, PAGE = "worklist.json", "worklist.html"
SHOWN = (
    "scan",
    "subject",
    "score",
    "p_value",
    "q_value",
    "chosen",
    "anomalous",
    "quality",
    "notes",
)


def check(detector: Detector, fdr: float | None) -> None:
    """Refuse a rate outside (0, 1), and a detector without p-values.

    Raises:
        ArgumentError: one of them.
    """
    from normscan.decide.worklist import check_rate

    if fdr is None:
        return
    check_rate(fdr)
    if detector.scan_threshold is None:
        raise ArgumentError(
            "--fdr needs p-values, and this detector was not calibrated on healthy scans. "
            "`normscan calibrate` does that."
        )


def write_worklist(
    folder: Path,
    lines: list[dict[str, Any]],
    subjects: Mapping[str, str],
    fdr: float,
    detector: Detector,
) -> list[str]:
    """Add ``q_value`` and ``chosen`` to the lines of scans, and write the list and its page.

    Args:
        folder: with the overlays of the scans.
        lines: of ``scores.csv``.
        subjects: of the scans that take part; others are left out.
        fdr: false discovery rate.
        detector: calibrated.

    Returns:
        Sentences about the list.
    """
    from normscan.decide import Worklist
    from normscan.io.values import write_json
    from normscan.report.worklist import write_worklist_page

    threshold = detector.scan_threshold
    assert threshold is not None
    taking = [line for line in lines if line["scan"] in subjects]
    owners = [subjects[line["scan"]] for line in taking]
    chosen = Worklist.of([line["p_value"] for line in taking], fdr, owners)
    for line in lines:
        line |= {"q_value": None, "chosen": None}
    for line, owner in zip(taking, owners, strict=True):
        line |= {"q_value": float(f"{chosen.q_values[owner]:.6g}"), "chosen": chosen.chosen(owner)}
    ranked = sorted(taking, key=lambda line: (line["q_value"], line["p_value"], -line["score"]))
    named = [{**line, "subject": subjects[line["scan"]]} for line in ranked]
    entries = [{key: line[key] for key in SHOWN} for line in named]
    aside = [line["scan"] for line in lines if line["scan"] not in subjects]
    said = [f"{chosen.count} of {len(chosen.q_values)} subjects are on the list."]
    said.append(chosen.promise(threshold) if chosen.count else chosen.short(threshold))
    about: dict[str, Any] = {
        "fdr": fdr,
        "rule": "Benjamini-Hochberg on conformal p-values, the lowest of each subject",
        "healthy_subjects": threshold.n,
        "subjects": len(chosen.q_values),
        "chosen": chosen.count,
        "said": [sentence for sentence in said if sentence],
        "left_out": aside,
        "provenance": detector.provenance(),
    }
    write_json(folder / TABLE, {**about, "scans": entries})
    write_worklist_page(folder / PAGE, about=about, scans=entries)
    if aside:
        about["said"].append(
            f"{len(aside)} scans are not on it: they trained or calibrated the detector, or could not "
            "be scored."
        )
    return list(about["said"])
