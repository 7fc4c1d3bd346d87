"""The critical-difference diagram of Demšar (2006)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any


def critical_difference(test: dict[str, Any], path: Path | None = None) -> str:
    """Draw mean ranks on a line, best on the left, with bars over methods that don't differ.

    Args:
        test: ``methods``, ``mean_ranks`` (sorted), ``groups``, ``critical_difference``,
            ``friedman_p``, ``alpha`` and ``sets``, as in ``ranking.json``.
        path: PNG to write as well, with a PDF of the same name beside it.

    Returns:
        The drawing as SVG, without an XML header, with its colours as text (``currentColor``).
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from normscan.io import atomic_path

    names, ranks = test["methods"], test["mean_ranks"]
    count, left = len(names), (len(names) + 1) // 2
    groups, width = test["groups"], test["critical_difference"]
    bars = 0.32 * len(groups) + 0.3
    height = 1.5 + bars + 0.45 * left
    ink = "#010203"
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "normscan", "font.size": 11}):
        figure = Figure(figsize=(9, 0.62 * height))
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        axes.set_axis_off()
        margin = 0.45 * (count - 1)
        axes.set_xlim(1 - margin, count + margin)
        axes.set_ylim(-height + 1.5, 1.5)
        line: Any = {"color": ink, "linewidth": 1.2, "solid_capstyle": "butt"}
        axes.plot([1, count], [0, 0], **line)
        for tick in range(1, count + 1):
            axes.plot([tick, tick], [0, 0.12], **line)
            axes.text(tick, 0.2, str(tick), ha="center", va="bottom", color=ink)
        # The width of the critical difference, above the scale.
        axes.plot([1, 1 + width], [0.95, 0.95], **line)
        for end in (1, 1 + width):
            axes.plot([end, end], [0.87, 1.03], **line)
        said = f"CD {width:.2f}  (Nemenyi, level {test['alpha']:g}; Friedman p {test['friedman_p']:.2g}; "
        axes.text(1, 1.1, said + f"{test['sets']} sets)", ha="left", va="bottom", color=ink)
        for number, (first, last) in enumerate(groups):
            y = -0.3 - 0.32 * number
            ends = [ranks[first] - 0.03, ranks[last] + 0.03]
            axes.plot(ends, [y, y], color=ink, linewidth=4.5, solid_capstyle="butt")
        for i, (name, rank) in enumerate(zip(names, ranks, strict=True)):
            row = i if i < left else count - 1 - i
            y, on_left = -bars - 0.45 * (row + 1), i < left
            end = 1 - 0.08 * margin if on_left else count + 0.08 * margin
            axes.plot([rank, rank, end], [0, y, y], **{**line, "linewidth": 0.9})
            text = f"{name}  {rank:.2f}" if on_left else f"{rank:.2f}  {name}"
            beside = end - 0.03 * margin if on_left else end + 0.03 * margin
            axes.text(beside, y, text, ha="right" if on_left else "left", va="center", color=ink)
        cut: Any = {"bbox_inches": "tight", "pad_inches": 0.1}  # names may be of any length
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None}, **cut)
        if path is not None:
            about: dict[str, Any] = {"png": None, "pdf": {"CreationDate": None}}
            for kind, metadata in about.items():
                with atomic_path(path.with_suffix(f".{kind}")) as temporary:
                    figure.savefig(
                        temporary, format=kind, dpi=150, facecolor="white", metadata=metadata, **cut
                    )
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(ink, "currentColor")


def ranks_as_csv(test: dict[str, Any]) -> str:
    """Return what the diagram shows: method, mean rank, and the bars under which it stands, from 1."""
    lines = ["method,mean_rank,not_different_in"]
    for place, (name, rank) in enumerate(zip(test["methods"], test["mean_ranks"], strict=True)):
        bars = [str(n) for n, (a, b) in enumerate(test["groups"], 1) if a <= place <= b]
        lines.append(f"{name},{rank!r},{' '.join(bars)}")
    return "\n".join(lines) + "\n"
