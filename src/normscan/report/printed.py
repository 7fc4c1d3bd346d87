"""The charts of a page once more as files: SVG and PDF in the colours of print, their data as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.io.atomic import atomic_path
from normscan.report.charts import PRINTED, VARIABLES, Kept, lone

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")
# Opens in a viewer that knows no namespaces by default, with a size of its own.
HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'


def write_figures(folder: Path, kept: list[Kept]) -> list[Path]:
    """Write each chart as ``NAME.svg``, ``NAME.pdf`` and ``NAME.csv``.

    Args:
        folder: made where it is missing; figures of the same names are replaced.
        kept: of ``charts.keeping``.

    Returns:
        The files written.

    Raises:
        OutputError: the folder can't be written.
    """
    written = []
    for one in kept:
        texts = {"svg": HEAD + lone(one.svg) + "\n", "csv": data_of(one.figure)}
        for kind, text in texts.items():
            with atomic_path(folder / f"{one.name}.{kind}") as temporary:
                temporary.write_text(text, encoding="utf-8")
            written.append(folder / f"{one.name}.{kind}")
        recolour(one.figure)
        with atomic_path(folder / f"{one.name}.pdf") as temporary:
            about = {"Title": one.label or one.name, "CreationDate": None, "Creator": "normscan"}
            one.figure.savefig(temporary, format="pdf", metadata=about)
        written.append(folder / f"{one.name}.pdf")
    return written


def recolour(figure: Figure) -> None:
    """Give a chart the colours of print, in place of those that stand for variables of a page."""
    from matplotlib.colors import to_hex, to_rgb, to_rgba_array

    fixed = {stand_in: PRINTED[variable] for stand_in, variable in VARIABLES.items()}
    for artist in figure.findobj():
        for kind in COLOURS:
            get, put = (getattr(artist, f"{verb}_{kind}", None) for verb in ("get", "set"))
            if get is None or put is None:
                continue
            try:
                colours = to_rgba_array(get())
            except (ValueError, TypeError):  # "auto", "none"
                continue
            new = colours.copy()
            for row in new:
                row[:3] = to_rgb(fixed.get(to_hex(row), tuple(row[:3])))
            if len(new) and (new != colours).any():
                put(new if len(new) > 1 else tuple(new[0]))


def data_of(figure: Figure) -> str:
    """Return what a chart shows as CSV: series, x, y and, of bars, their width, as they are drawn."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["series", "x", "y", "width"])
    for axes in figure.axes:
        for name, x, y, width in _series(axes):
            writer.writerow([name, repr(float(x)), repr(float(y)), width])
    return buffer.getvalue()


def _series(axes: Axes) -> Iterator[tuple[str, Any, Any, Any]]:
    from matplotlib.patches import Polygon

    for line in axes.get_lines():
        name = str(line.get_label())
        for x, y in np.asarray(line.get_xydata(), dtype=float):
            yield ("" if name.startswith("_") else name), x, y, ""
    for box in axes.containers:
        bars = list(getattr(box, "patches", ()))
        names = [str(each.get_label()) for each in (box, *bars[:1])]
        name = next((n for n in names if not n.startswith("_")), "")
        for bar in bars:
            middle = bar.get_x() + bar.get_width() / 2
            yield name, middle, bar.get_y() + bar.get_height(), bar.get_width()
    for outline in axes.patches:  # of a histogram without bars
        if isinstance(outline, Polygon):
            for x, y in outline.get_xy():
                yield str(outline.get_label()), x, y, ""
