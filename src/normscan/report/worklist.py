"""The page of a worklist: scans in the order in which to look at them, those chosen as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from normscan.io.atomic import atomic_path
from normscan.report.page import environment


def write_worklist_page(
    path: Path, *, about: Mapping[str, Any], scans: Sequence[Mapping[str, Any]]
) -> Path:
    """Write the page beside the overlays of the scans, which it shows.

    Args:
        path: HTML file to write; an older one is replaced at the end, in one step.
        about: ``fdr``, ``said`` (sentences), ``left_out`` (scans) and ``provenance``.
        scans: each with ``scan``, ``subject``, ``score``, ``p_value``, ``q_value``, ``chosen``,
            ``anomalous``, ``quality`` and ``notes``, the first to look at first.

    Returns:
        The path.
    """
    pictures = {
        scan["scan"]: quote(name)
        for scan in scans
        if scan["chosen"] and (path.parent / (name := f"{scan['scan']}_overlay.png")).exists()
    }
    text = environment().get_template("worklist.html.j2").render(
        about=about, scans=scans, pictures=pictures
    )  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
