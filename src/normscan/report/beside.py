"""The page of several detectors on the same scans: a row for each scan, a map from each detector."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from normscan.io.atomic import atomic_path
from normscan.report.figures import MASK_COLOUR, REGION_COLOUR, map_scale
from normscan.report.page import environment
from normscan.report.picture import Picture
from normscan.report.rows import make_row
from normscan.version import __version__


def write_beside(
    path: str | os.PathLike[str],
    *,
    thresholds: Mapping[str, float | None],
    scans: Sequence[Mapping[str, Picture]],
    command: str = "",
) -> Path:
    """Write the page.

    Args:
        path: HTML file to write; an older one is replaced at the end, in one step.
        thresholds: of the map, by detector; None where it has none. Each detector's maps share one
            scale of colours: their values mean nothing beside those of another.
        scans: for each scan its picture by detector; all detectors have one.
        command: that was called.

    Returns:
        The path.
    """
    scales = {
        name: map_scale([each[name].map for each in scans], threshold)
        for name, threshold in thresholds.items()
    }
    rows = [
        {
            name: make_row(each[name], f"scan-{number}-{place}", scales[name], thresholds[name])
            for place, name in enumerate(thresholds)
        }
        for number, each in enumerate(scans)
    ]
    text = environment().get_template("beside.html.j2").render(
        rows=rows, names=list(thresholds), scales=scales, command=command, version=__version__,
        mask_colour=MASK_COLOUR, region_colour=REGION_COLOUR,
    )  # fmt: skip
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
