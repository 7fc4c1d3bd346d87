"""The index of predictions: every scan of a folder of findings with its files and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from normscan.io.atomic import atomic_path
from normscan.report.page import environment

# What stands beside a finding, by the end of its name.
FILES = {"finding": "_finding.json", "map": "_map.", "mask": "_mask.", "picture": "_overlay.png"}


def write_index(
    path: Path, *, provenance: Mapping[str, Any], said: str, scans: Sequence[Mapping[str, Any]]
) -> Path:
    """Write the page beside the files of the scans, to which it links.

    Args:
        path: HTML file to write; an older one is replaced at the end, in one step.
        provenance: of the detector.
        said: what rate of false alarms it promises; may be empty.
        scans: each with ``scan``, ``score``, ``p_value``, ``anomalous``, ``quality``, ``notes`` and
            ``left_out``, as in ``scores.csv``.

    Returns:
        The path.
    """
    beside = _files(path.parent)
    ranked = sorted(scans, key=lambda s: (s["left_out"] is not None, -(s["score"] or 0.0)))
    shown: list[dict[str, Any]] = []
    for number, scan in enumerate(ranked, start=1):
        files = beside.get(scan["scan"], {})
        shown.append({**scan, "number": number, "files": files, "picture": files.get("picture")})
    scored = [scan for scan in shown if scan["left_out"] is None]
    left = len(shown) - len(scored)
    sentences = [said, f"{left} scan{'s were' if left > 1 else ' was'} left out." if left else ""]
    about = {
        "provenance": provenance, "scored": len(scored), "said": [s for s in sentences if s],
        "flagged": sum(bool(scan["anomalous"]) for scan in scored),
    }  # fmt: skip
    text = environment().get_template("predictions.html.j2").render(about=about, scans=shown)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _files(folder: Path) -> dict[str, dict[str, str]]:
    """Return the addresses of what lies beside the findings, by scan and kind."""
    found: dict[str, dict[str, str]] = {}
    for kind, end in FILES.items():
        for path in folder.glob(f"*{end}*"):
            scan = path.name[: path.name.rindex(end)]
            found.setdefault(scan, {})[kind] = quote(path.name)
    return found
