"""The picture of the limits: detection by size and contrast as a heat map, and as curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.limits.curves import PROBABILITIES, Surface
from normscan.limits.result import NAMES
from normscan.report import charts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from normscan.limits.result import Limits

INK, FAINT, CONTOUR = "#16202a", "#a8b1ba", "#cf2f4a"
COLOURS = "YlGnBu"
CURVES = {1: "Oranges", -1: "Purples"}
SIGNS = {1: "brighter", -1: "darker"}
LINES = dict(zip(PROBABILITIES, ("dashed", "solid"), strict=True))


def draw(limits: Limits, path: Path) -> None:
    """Write the picture as PNG, SVG or PDF, on white, by the name's ending."""
    import matplotlib

    with matplotlib.rc_context({**charts.STYLE, **_inks(INK, FAINT)}):
        figure = _figure(limits, INK, FAINT)
        figure.patch.set_visible(True)
        figure.patch.set_facecolor("white")
        undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        metadata = undated.get(path.suffix)
        figure.savefig(path, dpi=150, metadata=metadata)


def inline(limits: Limits) -> str:
    """Return the picture as an SVG element whose ink follows the colours of a page."""
    import matplotlib

    with matplotlib.rc_context(charts.STYLE):
        return charts.svg(_figure(limits, charts.INK, charts.FAINT), "limits")


def _inks(ink: str, faint: str) -> dict[str, Any]:
    inks = dict.fromkeys(
        ["text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"], ink
    )
    return {**inks, **dict.fromkeys(["axes.edgecolor", "xtick.color", "ytick.color"], faint)}


def _figure(limits: Limits, ink: str, faint: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    signs = sorted({s.sign for s in limits.surfaces}, reverse=True)
    contrasts = sorted(set(limits.table["contrast"]))
    columns, rows = 1 + len(signs), len(limits.levels)
    height = max(3.6, 0.42 * len(contrasts) + 1.6) * rows
    figure = Figure(figsize=(5.2 + 4.8 * len(signs), height), layout="constrained")
    figure.patch.set_visible(False)
    grid = figure.subplots(
        rows, columns, squeeze=False, gridspec_kw={"width_ratios": [1.25] + [1] * len(signs)}
    )
    for line, level in zip(grid, limits.levels, strict=True):
        surfaces = {s.sign: s for s in limits.surfaces if s.level == level}
        _heat_map(line[0], limits, level, surfaces, contrasts)
        for axes, sign in zip(line[1:], signs, strict=True):
            _curves(axes, limits, surfaces[sign], ink, faint)
        for axes in line:
            axes.patch.set_visible(False)
    figure.suptitle(_title(limits), fontsize=11.5, x=0.01, ha="left")
    lines = [
        Line2D([], [], color=CONTOUR, linewidth=1.9, linestyle=style, label=f"fit reaches {p:.0%}")
        for p, style in LINES.items()
    ]
    figure.legend(handles=lines, loc="outside lower left", ncols=2, fontsize=9)
    return figure


def _title(limits: Limits) -> str:
    about, healthy = limits.about, limits.healthy()
    planted = int((limits.rows["size"] > 0).sum())
    return (
        f"{about['method']}: {planted} lesions ({about['kind']}) planted into {healthy['n']} healthy "
        f"scans{', simulated' if about.get('simulated') else ''}; threshold at "
        f"{about['fpr_wanted']:.3g} false positives, {healthy['flagged']} of {healthy['n']} healthy "
        "twins flagged"
    )


def _heat_map(
    axes: Axes,
    limits: Limits,
    level: str,
    surfaces: dict[int, Surface],
    contrasts: list[float],
) -> None:
    import matplotlib
    from matplotlib.patheffects import withStroke

    table = limits.table[limits.table["level"] == level]
    sizes = sorted(set(table["size"]))
    shown = table.pivot(index="contrast", columns="size", values="probability")
    values = shown.reindex(index=contrasts, columns=sizes).to_numpy(float)
    colours = matplotlib.colormaps[COLOURS]
    axes.pcolormesh(
        np.arange(len(sizes) + 1) - 0.5, np.arange(len(contrasts) + 1) - 0.5, values,
        cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=0.8,
    )  # fmt: skip
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            ink = "white" if value > 0.55 else INK
            axes.text(
                x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=9, color=ink, zorder=5,
                path_effects=[withStroke(linewidth=2.2, foreground=colours(value))],
            )  # fmt: skip
    for surface in surfaces.values():
        _contours(axes, surface, sizes, contrasts)
    axes.set_xticks(range(len(sizes)), [f"{s:g}" for s in sizes])
    axes.set_yticks(range(len(contrasts)), [f"{c:+g}" for c in contrasts])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel=f"diameter of the lesion, {limits.length}", ylabel=f"contrast, {limits.unit}")
    axes.set_title(f"% found: {NAMES[level]}", fontsize=11, loc="left")


def _contours(axes: Axes, surface: Surface, sizes: list[float], contrasts: list[float]) -> None:
    """Draw where the fit reaches 50 % (dashed) and 90 % (solid), in steps of the grid."""
    tested = surface.contrasts
    places = [contrasts.index(surface.sign * c) for c in tested]
    if len(tested) > 1:
        fine = np.geomspace(tested[0], tested[-1], 60)
        y = np.interp(np.log(fine), np.log(tested), places)
    else:
        fine, y = np.array(tested * 2), np.array([places[0] - 0.5, places[0] + 0.5])
    for probability, style in LINES.items():
        at = np.array([surface.curve.size_at(c, probability) for c in fine])
        inside = (at >= sizes[0]) & (at <= sizes[-1])
        x = np.interp(np.log(np.maximum(at, 1e-9)), np.log(sizes), range(len(sizes)))
        for colour, width in (("white", 3.6), (CONTOUR, 1.9)):
            axes.plot(x[inside], y[inside], color=colour, linewidth=width, linestyle=style)


def _curves(axes: Axes, limits: Limits, surface: Surface, ink: str, faint: str) -> None:
    import matplotlib

    table = limits.table[limits.table["level"] == surface.level]
    fine = np.geomspace(surface.sizes[0], surface.sizes[-1], 120)
    shades = matplotlib.colormaps[CURVES[surface.sign]](
        np.linspace(0.35, 0.95, len(surface.contrasts))
    )
    shift = np.linspace(-1, 1, len(surface.contrasts)) * 0.04 if len(surface.contrasts) > 1 else [0]
    for contrast, shade, moved in zip(surface.contrasts, shades, shift, strict=True):
        signed = surface.sign * contrast
        part = table[table["contrast"] == signed].sort_values("size")
        at = part["size"].to_numpy(float) * np.exp(moved)
        p, low, high = (part[c].to_numpy(float) for c in ("probability", "low", "high"))
        bars = np.clip([p - low, high - p], 0, None)
        axes.errorbar(at, p, bars, fmt="o", color=shade, markersize=4, linewidth=0.9, alpha=0.85)
        axes.plot(
            fine, surface.curve.probability(fine, contrast), color=shade, label=f"{signed:+g}"
        )
    for probability, style in LINES.items():
        axes.axhline(probability, color=faint, linewidth=0.9, linestyle=style, zorder=0)
    floor = limits.healthy()["value"]
    if surface.level == "scan":
        name = f"healthy\ntwins {floor:.0%}"
        axes.axhline(floor, color=ink, linewidth=1, linestyle=(0, (1, 2)), zorder=0, label=name)
    axes.set_xscale("log")
    axes.set_xticks(surface.sizes, [f"{s:g}" for s in surface.sizes])
    axes.minorticks_off()
    axes.set(
        ylim=(-0.03, 1.03),
        xlabel=f"diameter of the lesion, {limits.length}",
        ylabel="probability of detection",
    )
    name = (
        f"{SIGNS[surface.sign]} lesions" if len(limits.surfaces) > len(limits.levels) else "curves"
    )
    axes.set_title(f"{name}: points and fit", fontsize=11, loc="left")
    axes.legend(
        title="contrast", fontsize=8.5, title_fontsize=8.5, loc="center left",
        bbox_to_anchor=(1.0, 0.5), reverse=True,
    )  # fmt: skip
