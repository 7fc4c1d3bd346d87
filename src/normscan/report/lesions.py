"""The section on lesions: what `pixels.segmentation` holds, as a table and three charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from normscan.report.charts import ACCENT, ANOMALOUS, FAINT, HEALTHY, INK, canvas, style, svg
from normscan.report.summary import known, number

_DASHED = (0, (4, 3))


def lesion_section(pixels: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what the template shows of lesions, or None where no lesion was segmented against.

    Args:
        pixels: `pixels` of an evaluation's results.
    """
    parts = (pixels or {}).get("segmentation")
    if not parts or not parts["lesions"]["lesions"]:
        return None
    lesions, volumes = parts["lesions"], parts["volumes"]
    strata = parts.get("strata") or {}
    dims = 2 if parts.get("volume_unit") in ("cm2", "pixels") else 3
    unit = parts.get("volume_unit", "ml").replace("cm2", "cm²")
    drawn = {
        "froc": froc_chart(lesions),
        "strata": strata_chart(strata) if strata else None,
        "volumes": volume_chart(parts["volume_pairs"], volumes, unit)
        if parts.get("volume_pairs")
        else None,
    }
    return {
        "rule": lesions["rule"],
        "rows": _rows(parts, unit),
        "strata": [
            {"name": name, "lesions": each["lesions"], "m": each["sensitivity"]}
            for name, each in strata.items()
        ],
        "froc": lesions["froc"],
        "froc_mean": lesions["froc_mean"],
        "undefined": parts["surfaces_undefined"],
        "shape": "disc" if dims == 2 else "sphere",
        # Only numbers and our own words are in the drawings, so they may pass unescaped.
        "charts": {name: Markup(text) if text else None for name, text in drawn.items()},
    }


def _rows(parts: Mapping[str, Any], unit: str) -> list[dict[str, Any]]:
    """Return the lines of the table: title, explanation, estimate, and what was counted."""
    lesions, volumes = parts["lesions"], parts["volumes"]
    surfaces = parts["surfaces"]
    length = parts.get("unit", "mm")
    scans = f"{surfaces} of {surfaces + parts['surfaces_undefined']} scans"
    limits = f"limits of agreement {number(volumes['low'])} to {number(volumes['high'])} {unit}"
    subjects = f"{volumes['n']} subjects"
    all_scans = f"{lesions['scans']} scans"
    return [
        _row("Sensitivity", "lesions that are found", lesions["sensitivity"],
             f"{lesions['lesions']} lesions"),
        _row("Precision", "segmented components that find a lesion", lesions["precision"],
             f"{lesions['components']} components" if "components" in lesions else all_scans),
        _row("F1", "harmonic mean of the two", lesions["f1"], f"{lesions['lesions']} lesions"),
        _row("False positives per scan", "components that find no lesion",
             lesions["false_positives_per_scan"], all_scans),
        _row(f"Hausdorff-95 ({length})", "mean over the scans with a lesion that have a segmentation",
             parts["hd95"], scans),
        _row(f"Surface distance ({length})", "average symmetric distance, over the same scans",
             parts["surface_distance"], scans),
        _row(f"Volume bias ({unit})", f"segmented minus true; {limits}",
             parts.get("volume_bias", {"value": volumes["bias"]}), subjects),
        _row("Volume ICC(2,1)", f"absolute agreement; Pearson's r {number(volumes['pearson'])}",
             parts.get("volume_icc", {"value": volumes["icc"]}), subjects),
    ]  # fmt: skip


def _row(title: str, why: str, estimate: Mapping[str, Any], n: str) -> dict[str, Any]:
    return {"title": title, "why": why, "m": {"low": None, "high": None, **estimate}, "n": n}


def froc_chart(lesions: Mapping[str, Any]) -> str:
    """Draw the readings of the FROC curve and the operating point.

    Args:
        lesions: `LesionMetrics` as plain values. Between two readings the curve is at least as high
            as at the left one, which the steps show.
    """
    rates = np.array([float(rate) for rate in lesions["froc"]])
    values = np.array([np.nan if v is None else float(v) for v in lesions["froc"].values()])
    label = f"FROC, mean {number(lesions['froc_mean'])}"
    with style():
        figure, axes = canvas(5.0, 4.0, top=0.35)
        axes.step(rates, values, where="post", color=ACCENT, label=label)
        axes.plot(rates, values, "o", color=ACCENT, markersize=5)
        axes.set_xscale("log", base=2)
        axes.set_xticks(rates, [_fraction(rate) for rate in rates])
        axes.minorticks_off()
        ends = [rates.min(), rates.max()]
        rate, value = (
            lesions[name]["value"] for name in ("false_positives_per_scan", "sensitivity")
        )
        if known(rate) and known(value) and float(rate) > 0:
            ends.append(float(rate))
            axes.plot([rate], [value], "D", color=ANOMALOUS, markersize=7, label="operating point",
                      clip_on=False, zorder=5)  # fmt: skip
        axes.set(
            xlim=(min(ends) / 1.2, max(ends) * 1.2), ylim=(0, 1.03),
            xlabel="false positives per scan", ylabel="lesion sensitivity",
        )  # fmt: skip
        _legend(figure)
        return svg(figure, "froc", "FROC curve: lesion sensitivity by false positives per scan")


def _fraction(rate: float) -> str:
    return f"{rate:g}" if rate >= 1 else f"1/{1 / rate:g}"


def strata_chart(strata: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw the sensitivity of each range of diameters with its interval.

    Args:
        strata: by name, `lesions` and `sensitivity` (value, low, high).
    """
    with style():
        figure, axes = canvas(5.0, 3.2, left=1.35)
        for place, each in enumerate(strata.values()):
            value, low, high = (each["sensitivity"][k] for k in ("value", "low", "high"))
            if not known(value):
                axes.annotate("no lesion", (0.01, place), va="center", fontsize=9)
                continue
            axes.barh(place, value, height=0.55, color=ACCENT, alpha=0.45)
            if known(low) and known(high):
                axes.plot([low, high], [place, place], color=INK, linewidth=1.6)
            axes.plot([value], [place], "o", color=INK, markersize=5, clip_on=False)
        names = [f"{name}\n{each['lesions']} lesions" for name, each in strata.items()]
        axes.set_yticks(range(len(names)), names)
        axes.set(xlim=(0, 1.02), ylim=(len(names) - 0.5, -0.5), xlabel="lesion sensitivity")
        return svg(figure, "strata", "Lesion sensitivity by diameter")


def volume_chart(pairs: Sequence[Sequence[float]], volumes: Mapping[str, Any], unit: str) -> str:
    """Draw the difference of segmented and true volume over their mean (Bland and Altman).

    Args:
        pairs: segmented and true volume of each subject.
        volumes: `VolumeAgreement` as plain values.
        unit: of the volumes.
    """
    segmented, true = np.asarray(pairs, np.float64).reshape(-1, 2).T
    middle, gap = (segmented + true) / 2, segmented - true
    with style():
        figure, axes = canvas(5.0, 4.0, left=0.95, top=0.55)
        groups = [
            ("with a lesion", true > 0, ANOMALOUS, "o"), ("without", true <= 0, HEALTHY, "^")
        ]  # fmt: skip
        for name, some, colour, marker in groups:
            if some.any():
                axes.plot(middle[some], gap[some], marker, color=colour, markersize=5, alpha=0.7,
                          label=f"{name} ({some.sum()})", linestyle="none")  # fmt: skip
        axes.axhline(0, color=FAINT, linewidth=1)
        for key, line in (("bias", "-"), ("low", _DASHED), ("high", _DASHED)):
            if known(volumes[key]):
                text = "bias" if key == "bias" else "±1.96 SD" if key == "high" else None
                axes.axhline(volumes[key], color=INK, linewidth=1.2, linestyle=line, label=text)
        axes.set(xlabel=f"mean of segmented and true ({unit})",
                 ylabel=f"segmented minus true ({unit})")  # fmt: skip
        _legend(figure)
        return svg(figure, "volumes", "Segmented minus true lesion volume of each subject")


def _legend(figure: Any) -> None:
    figure.legend(loc="upper center", ncols=2, fontsize=9, borderaxespad=0.2)
