"""The landscape as a picture, as Markdown and as JSON."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.diagnostics.landscape import NORMAL, TEXTURES, Landscape
from normscan.io import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, BOUND = "#16202a", "#a8b1ba", "#cf2f4a"
SHOWN_BLURS = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0)


def write(folder: Path, landscapes: Mapping[str, Landscape], about: Mapping[str, Any]) -> None:
    """Write ``pitfalls.json``, ``.md`` and ``.png``, each whole or not at all.

    Args:
        folder: made if missing.
        landscapes: by name, such as ``scaled`` and ``equalised`` images.
        about: the command and the plan.

    Raises:
        OutputError: the folder can't be written.
    """
    from normscan.io.values import write_json

    values = {"about": dict(about), "landscapes": {k: v.to_dict() for k, v in landscapes.items()}}
    with atomic_path(folder / "pitfalls.png") as temporary:
        figure(landscapes).savefig(temporary, dpi=90)
    with atomic_path(folder / "pitfalls.md") as temporary:
        temporary.write_text(markdown(landscapes, about), encoding="utf-8")
    write_json(folder / "pitfalls.json", values)


def markdown(landscapes: Mapping[str, Landscape], about: Mapping[str, Any]) -> str:
    """Return the tables: blurred restorations by intensity, textures, and the detector's."""
    lines = ["# What the residual can find", ""]
    if about.get("command"):
        command = html.escape(str(about["command"]).replace("`", "'"), quote=False)
        lines += [f"Command: `{command}`", ""]
    # It names the cohort, and a page made of this would run what is written there.
    text = html.escape(str(about.get("text", "")), quote=False)
    lines += [text, "", "![](pitfalls.png)", ""] if text else []
    for name, found in landscapes.items():
        low, high = found.normal
        lines += [
            f"## {name.capitalize()} images", "",
            f"{found.images} images; a random map has an AP of {found.prevalence:.3f}. Healthy "
            f"tissue lies between {low:.2f} and {high:.2f} (percentiles {NORMAL[0]:g} and "
            f"{NORMAL[1]:g} of the foreground).", "",
            *_blur_table(found), "",
        ]  # fmt: skip
        if found.restored:
            lines += [*_detector_table(found, str(about.get("method", "detector"))), ""]
    return "\n".join(lines)


def _mean(values: np.ndarray, where: np.ndarray) -> str:
    return f"{values[where].mean():.3f}" if where.any() else ""


def _blur_table(found: Landscape) -> list[str]:
    lines = [
        "| blur (SD, pixels) | mean abs. error | disks, healthy intensity | worst intensity: AP | "
        "disks, darker | disks, brighter | source | sink | shuffle |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    inside, levels = found.inside(), found.intensities
    for k in dict.fromkeys(int(np.abs(found.blurs - b).argmin()) for b in SHOWN_BLURS):
        column = found.disks[:, k]
        worst = int(column.argmin())
        cells = [
            f"{found.blurs[k]:.2g}", f"{found.errors[k]:.4f}", _mean(column, inside),
            f"{levels[worst]:.2f}: {column[worst]:.3f}",
            _mean(column, levels < found.normal[0]), _mean(column, levels > found.normal[1]),
            *(f"{found.textures[t][k]:.3f}" for t in TEXTURES),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def equivalent_blur(found: Landscape) -> float:
    """The blur that leaves as large a mean absolute error of healthy images as the detector."""
    at = np.interp(found.restored["error"], found.errors, found.blurs, right=np.inf)
    return float(at)


def _detector_table(found: Landscape, method: str) -> list[str]:
    inside, levels, restored = found.inside(), found.intensities, found.restored
    blur = equivalent_blur(found)
    like = (
        f"as much as a blur of {blur:.2g} pixels"
        if np.isfinite(blur)
        else "more than the largest blur"
    )
    lines = [
        f"`{method}` leaves a mean absolute error of {restored['error']:.4f} of healthy images, "
        f"{like}.", "",
        "| restoration of | disks, healthy intensity | worst intensity: AP | disks, darker | "
        "disks, brighter | source | sink | shuffle |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for k, (name, text) in enumerate(
        (("disks_normal", "the healthy image"), ("disks_anomalous", "the image with the anomaly"))
    ):
        column = restored[name]
        worst = int(column.argmin())
        cells = [
            text, _mean(column, inside), f"{levels[worst]:.2f}: {column[worst]:.3f}",
            _mean(column, levels < found.normal[0]), _mean(column, levels > found.normal[1]),
            *(f"{restored[t][k]:.3f}" for t in TEXTURES),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def figure(landscapes: Mapping[str, Landscape]) -> Figure:
    """Return the figure: a heat map of each landscape, and curves of the detector's."""
    import matplotlib
    from matplotlib.figure import Figure

    from normscan.report import charts

    inks = dict.fromkeys(
        ["text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"], INK
    )
    faint = dict.fromkeys(["axes.edgecolor", "xtick.color", "ytick.color"], FAINT)
    curves = [name for name, found in landscapes.items() if found.restored]
    with matplotlib.rc_context({**charts.STYLE, **inks, **faint}):
        columns = len(landscapes) + bool(curves)
        made = Figure(figsize=(4.4 * columns, 3.8), layout="constrained", facecolor="white")
        axes = made.subplots(1, columns, squeeze=False)[0]
        for place, (name, found) in zip(axes, landscapes.items(), strict=False):
            image = _heat_map(place, found)
            place.set_title(f"disks, {name} images", fontsize=11, loc="left")
        made.colorbar(image, ax=list(axes[: len(landscapes)]), label="mean AP of |residual|")
        if curves:
            _curves(axes[-1], landscapes[curves[0]])
    return made


def _heat_map(axes: Axes, found: Landscape) -> Any:
    blurs, levels = found.blurs, found.intensities
    steps = [np.ptp(v) / max(1, len(v) - 1) / 2 or 0.5 for v in (blurs, levels)]
    extent = (
        blurs[0] - steps[0], blurs[-1] + steps[0], levels[0] - steps[1], levels[-1] + steps[1]
    )  # fmt: skip
    image = axes.imshow(
        found.disks, origin="lower", aspect="auto", extent=extent, vmin=0, vmax=1, cmap="viridis",
        interpolation="nearest",
    )  # fmt: skip
    for bound in found.normal:
        axes.axhline(bound, color=BOUND, linewidth=1.4, linestyle="dashed")
    axes.set(xlabel="blur of the restoration, SD in pixels", ylabel="intensity of the disk")
    axes.set_ylim(extent[2:])
    return image


def _curves(axes: Axes, found: Landscape) -> None:
    names = {
        "disks_normal": "of the healthy image",
        "disks_anomalous": "of the image with the disk",
    }
    for key, name in names.items():
        axes.plot(found.intensities, found.restored[key], label=name)
    axes.axvspan(*found.normal, color=BOUND, alpha=0.12, linewidth=0)
    axes.axhline(found.prevalence, color=FAINT, linewidth=1, linestyle="dotted")
    axes.set(xlabel="intensity of the disk", ylabel="mean AP", ylim=(0, 1.02))
    axes.set_title("the detector's restoration", fontsize=11, loc="left")
    axes.legend(fontsize=9)
