"""A finding on one page of paper: picture, numbers, the largest components."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normscan.report.charts import style

ROWS = 12  # components that fit the page
A4 = (8.27, 11.69)  # inches


def one_page(
    title: str,
    facts: Mapping[str, str],
    components: Sequence[Mapping[str, Any]],
    picture: np.ndarray | None,
    notice: str,
) -> bytes:
    """Return the page as PDF; the same values give the same bytes.

    Args:
        title: on top; no patient identity.
        facts: name and value of each line.
        components: of the finding, the highest peak first.
        picture: (rows, columns, 3) uint8, or None.
        notice: at the bottom.
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=A4)
        figure.text(0.1, 0.94, title, fontsize=16, weight="bold")
        if picture is not None:
            axes = figure.add_axes((0.1, 0.5, 0.8, 0.41))
            axes.imshow(picture, interpolation="nearest")
            axes.axis("off")
        for line, (name, value) in enumerate(facts.items()):
            figure.text(0.1, 0.46 - 0.018 * line, name, fontsize=9, color="0.35")
            figure.text(0.38, 0.46 - 0.018 * line, value[:90], fontsize=9)
        top = 0.44 - 0.018 * len(facts)
        for line, words in enumerate(_lines(components)):
            weight = "bold" if line == 0 else "normal"
            for place, word in zip((0.1, 0.2, 0.4, 0.6), words, strict=False):
                figure.text(place, top - 0.016 * line, word, fontsize=8, weight=weight)
        figure.text(0.1, 0.04, notice, fontsize=8, color="0.35")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="pdf", metadata={"CreationDate": None, "Title": title})
    return buffer.getvalue()


def _lines(components: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the table of the components, its head first; nothing where there are none."""
    if not components:
        return []
    unit = next((u for u in ("volume_mm3", "area_mm2") if u in components[0]), "voxels")
    name = {"volume_mm3": "volume, mm³", "area_mm2": "area, mm²"}.get(unit, unit)
    lines: list[tuple[str, ...]] = [("finding", "peak", name, "peak at, mm (RAS)")]
    for number, each in enumerate(components[:ROWS], 1):
        place = ", ".join(f"{v:.0f}" for v in each.get("peak_mm", ()))
        lines.append((str(number), f"{each['peak']:.4g}", f"{each[unit]:.4g}", place))
    if len(components) > ROWS:
        lines.append((f"and {len(components) - ROWS} more",))
    return lines
