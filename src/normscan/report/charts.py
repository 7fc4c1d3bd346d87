"""Charts of scores, lesions and p-values as inline SVG that follows the page's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Matplotlib writes fixed colours. These stand-ins become variables of the style sheet, so that one
# drawing serves the light page, the dark one and the printer.
INK, FAINT = "#010203", "#010204"
HEALTHY, ANOMALOUS, VALIDATION, ACCENT = "#010205", "#010206", "#010207", "#010208"
VARIABLES = {
    INK: "--ink",
    FAINT: "--line-strong",
    HEALTHY: "--healthy",
    ANOMALOUS: "--anomalous",
    VALIDATION: "--muted",
    ACCENT: "--accent",
}
# The colours of the light page, for drawings that stand outside of it; told apart by the
# colour-blind and on grey paper.
PRINTED = {
    "--ink": "#1b1f23",
    "--line-strong": "#8a949e",
    "--healthy": "#0072b2",
    "--anomalous": "#d55e00",
    "--muted": "#6b7580",
    "--accent": "#0072b2",
}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "normscan",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.parse_math": False,
}


def score_histogram(
    healthy: np.ndarray,
    anomalous: np.ndarray,
    validation: np.ndarray | None = None,
    threshold: float | None = None,
) -> str | None:
    """Draw the scores of the test scans, each scan also as a tick below; None without any score.

    Args:
        healthy: scores (n,) of the healthy test scans.
        anomalous: scores (n,) of the anomalous test scans.
        validation: scores (n,) of the healthy scans that set the threshold.
        threshold: score above which a scan is flagged.
    """
    groups = [
        ("healthy", _finite(healthy), HEALTHY),
        ("anomalous", _finite(anomalous), ANOMALOUS),
        ("healthy validation", _finite(validation), VALIDATION),
    ]
    groups = [group for group in groups if group[1].size]
    if not groups:
        return None
    from matplotlib.ticker import MaxNLocator

    with style():
        figure, axes = canvas(11.6, 3.5, bottom=0.5 + 0.1 * len(groups), top=0.35)
        edges = _edges(np.concatenate([scores for _, scores, _ in groups]), threshold)
        named = [(f"{name} ({scores.size})", scores, colour) for name, scores, colour in groups]
        # Side by side: where colours overlap a third one arises that no legend names.
        beside = [group for group in named if group[2] != VALIDATION]
        if beside:
            labels, values, colours = (list(part) for part in zip(*beside, strict=True))
            axes.hist(values, edges, color=colours, label=labels)
        for label, scores, colour in named:
            if colour == VALIDATION:
                axes.hist(scores, edges, histtype="step", color=colour, label=label, linewidth=1.2)
        _rug(axes, groups)
        if threshold is not None and np.isfinite(threshold):
            axes.axvline(threshold, color=INK, linestyle=(0, (4, 3)), linewidth=1.2)
            _name_threshold(axes, threshold)
        axes.set(xlabel="anomaly score of the scan", ylabel="scans")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="upper right", ncols=3, fontsize=9, borderaxespad=0.2)
        return svg(figure, "histogram", "Histogram of the anomaly scores")


def score_strip(
    calibrating: np.ndarray | None,
    healthy: np.ndarray,
    anomalous: np.ndarray,
    threshold: float | None = None,
) -> str | None:
    """Draw a mark for each score: healthy ones that set the threshold, those of the test, lesioned.

    Groups differ by row, mark and colour; None without any score.

    Args:
        calibrating: scores (n,) of the healthy subjects that set the threshold.
        healthy: scores (n,) of the healthy test scans.
        anomalous: scores (n,) of the anomalous test scans.
        threshold: score above which a scan is flagged.
    """
    groups = [
        ("healthy behind\nthe threshold", _finite(calibrating), VALIDATION, "o", "none"),
        ("healthy test", _finite(healthy), HEALTHY, "o", HEALTHY),
        ("lesioned test", _finite(anomalous), ANOMALOUS, "^", ANOMALOUS),
    ]
    groups = [group for group in groups if group[1].size]
    if not groups:
        return None
    line = threshold is not None and np.isfinite(threshold)
    with style():
        figure, axes = canvas(11.6, 0.6 + 0.85 * len(groups), left=1.6)
        edges = np.array(_edges(np.concatenate([g[1] for g in groups]), threshold, 150))
        for row, (_, scores, colour, marker, face) in enumerate(groups):
            place = -row - _spread(scores, edges)
            axes.plot(scores, place, marker, color=colour, label=groups[row][0].replace("\n", " "),
                      markerfacecolor=face, markersize=5,
                      markeredgewidth=0.9, alpha=0.75, linestyle="none")  # fmt: skip
        names = [f"{name} ({scores.size})" for name, scores, *_ in groups]
        axes.set(yticks=-np.arange(len(groups)), yticklabels=names, ylim=(0.5 - len(groups), 0.7),
                 xlabel="anomaly score of the scan")  # fmt: skip
        axes.tick_params(axis="y", length=0)
        label = "Each score as a mark: " + "; ".join(
            f"{name.replace(chr(10), ' ')} from {scores.min():.4g} to {scores.max():.4g}"
            + (f", {int((scores > threshold).sum())} above the threshold" if line else "")
            for name, scores, *_ in groups
        )
        if threshold is not None and line:
            axes.axvline(threshold, color=INK, linestyle=(0, (4, 3)), linewidth=1.2)
            _name_threshold(axes, threshold)
            label += f". Threshold {threshold:.4g}"
        return svg(figure, "strip", label + ".")


def _spread(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return how far each mark stands off its row, so that those of one place don't hide others."""
    bins = np.digitize(scores, edges)
    off = np.zeros(scores.size)
    for place in np.unique(bins):
        held = np.flatnonzero(bins == place)
        step = min(0.14, 0.8 / held.size)
        # Outwards from the middle in turn: 0, 1, -1, 2, -2.
        turn = np.arange(held.size)
        off[held] = step * np.where(turn % 2, (turn + 1) // 2, -(turn // 2))
    return off


def roc_chart(labels: np.ndarray, scores: np.ndarray, flagged: np.ndarray | None) -> str | None:
    """Draw the ROC curve; None unless both classes are there.

    Args:
        labels: (n,) 1 anomalous, 0 healthy.
        scores: (n,) finite anomaly scores.
        flagged: (n,) bool decisions, marked as the operating point.
    """
    if not _two_classes(labels):
        return None
    from sklearn.metrics import roc_auc_score, roc_curve

    false_positives, true_positives, _ = roc_curve(labels, scores)
    with style():
        figure, axes = canvas(5.0, 4.4)
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.1, linestyle=(0, (2, 2)), label="chance")
        label = f"AUROC {roc_auc_score(labels, scores):.3f}"
        axes.plot(
            false_positives, true_positives, color=ACCENT, label=label, clip_on=False, zorder=3
        )
        if flagged is not None:
            point = flagged[labels == 0].mean(), flagged[labels == 1].mean()
            _operating_point(axes, *point)
        _unit_square(axes, "false-positive rate", "sensitivity")
        axes.legend(loc="lower right", fontsize=9)
        return svg(figure, "roc", "ROC curve")


def pr_chart(labels: np.ndarray, scores: np.ndarray, flagged: np.ndarray | None) -> str | None:
    """Draw the precision-recall curve; None unless both classes are there. See `roc_chart`."""
    if not _two_classes(labels):
        return None
    from sklearn.metrics import average_precision_score, precision_recall_curve

    precision, recall, _ = precision_recall_curve(labels, scores)
    share = float(labels.mean())
    with style():
        figure, axes = canvas(5.0, 4.4)
        axes.axhline(
            share, color=FAINT, linewidth=1.1, linestyle=(0, (2, 2)), label=f"chance {share:.2f}"
        )
        label = f"AP {average_precision_score(labels, scores):.3f}"
        # Precision between two thresholds is not linear: a straight line would promise too much.
        axes.step(
            recall, precision, color=ACCENT, label=label, where="post", clip_on=False, zorder=3
        )
        if flagged is not None and flagged.any():
            _operating_point(axes, flagged[labels == 1].mean(), labels[flagged].mean())
        _unit_square(axes, "sensitivity (recall)", "precision")
        axes.legend(loc="lower left", fontsize=9)
        return svg(figure, "pr", "Precision-recall curve")


def _name_threshold(axes: Axes, threshold: float) -> None:
    axes.annotate(
        f"threshold {threshold:.4g}",
        (threshold, 1),
        (4, -2),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="top",
        fontsize=9,
    )


def _finite(scores: np.ndarray | None) -> np.ndarray:
    values = np.asarray([] if scores is None else scores, dtype=np.float64)
    return values[np.isfinite(values)]


def _two_classes(labels: np.ndarray) -> bool:
    return bool((labels == 0).any() and (labels == 1).any())


def _edges(scores: np.ndarray, threshold: float | None, bins: int | None = None) -> list[float]:
    ends = [scores.min(), scores.max()]
    if threshold is not None and np.isfinite(threshold):
        ends.append(threshold)
    low, high = min(ends), max(ends)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    bins = bins or int(np.clip(2 * np.sqrt(scores.size), 10, 40))
    return [float(edge) for edge in np.linspace(low, high, bins + 1)]


def _rug(axes: Axes, groups: list[tuple[str, np.ndarray, str]]) -> None:
    transform = axes.get_xaxis_transform()
    for row, (_, scores, colour) in enumerate(groups):
        height = -0.035 - 0.035 * row
        bounds = height, height + 0.028
        axes.vlines(scores, *bounds, color=colour, linewidth=1, transform=transform, clip_on=False)
    axes.tick_params(axis="x", pad=5 + 7 * len(groups), length=0)


def _operating_point(axes: Axes, x: float, y: float) -> None:
    axes.plot(
        [x],
        [y],
        "o",
        color=ANOMALOUS,
        markersize=7,
        label="operating point",
        clip_on=False,
        zorder=5,
    )


def _unit_square(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel=x, ylabel=y, aspect="equal")
    ticks = np.linspace(0, 1, 6)
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)


def lone(svg: str) -> str:
    """Return an SVG of this module that stands by itself: in fixed colours, with its namespace."""
    for variable, colour in PRINTED.items():
        svg = svg.replace(f"var({variable})", colour)
    return svg.replace("<svg", '<svg font-family="sans-serif"', 1)


def style() -> Any:
    """Return the context in which a chart is drawn."""
    import matplotlib

    return matplotlib.rc_context(STYLE)


def canvas(
    width: float, height: float, left: float = 0.65, bottom: float = 0.55, top: float = 0.1
) -> tuple[Figure, Axes]:
    """Return a transparent figure of that size in inches, with axes inside such margins.

    Margins that are known take half the time of those that matplotlib finds out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.patch.set_visible(False)
    inner = (width - left - 0.12, height - bottom - top)
    axes = figure.add_axes((left / width, bottom / height, inner[0] / width, inner[1] / height))
    axes.patch.set_visible(False)
    return figure, axes


def svg(figure: Figure, name: str, label: str = "") -> str:
    """Return the figure as an SVG element that can stand beside others in one page.

    Args:
        figure: drawn with the colours of this module.
        name: unique on the page.
        label: what it shows, for those who can't see it.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(["Date", "Creator", "Format", "Type"])
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # The page gives the size and the font; identifiers must differ between the charts of a page.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1) if label else text
    text = re.sub(r"font: (?:[a-z0-9]+ )??([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r'id="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    if (kept := _KEPT.get()) is not None:
        kept.append(Kept(name, figure, label, text.strip()))
    return text.strip()


class Kept(NamedTuple):
    """A chart of a page: its name, the figure, what it shows, the drawing in the page's colours."""

    name: str
    figure: Figure
    label: str
    svg: str


_KEPT: ContextVar[list[Kept] | None] = ContextVar("kept charts", default=None)


@contextmanager
def keeping() -> Iterator[list[Kept]]:
    """Keep the charts that are drawn in the block, to write them as files, too."""
    kept: list[Kept] = []
    token = _KEPT.set(kept)
    try:
        yield kept
    finally:
        _KEPT.reset(token)
