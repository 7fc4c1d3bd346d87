"""One self-contained HTML page about a detector on a cohort: no scripts, nothing loaded from outside."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from normscan.errors import ArgumentError
from normscan.io.atomic import atomic_path
from normscan.report import charts, figures, summary
from normscan.report.calibration import calibration_section
from normscan.report.lesions import lesion_section
from normscan.report.picture import Picture
from normscan.report.planned import planned_section
from normscan.report.rows import Row, make_row

VALIDATION_SPLITS = ("validation", "val", "calibration")
SECTION_NOTES = {
    "most anomalous scans": "The highest scores of the test set, whatever their label.",
    "worst misses": "Anomalous scans with the lowest scores: what the detector does not see.",
    "worst false alarms": "Healthy scans with the highest scores: what misleads the detector.",
    "typical anomalous scans": "Of the anomalous subjects those in the middle, by their highest score.",
    "typical healthy scans": "The same of the healthy subjects: what usually goes unseen, as it should.",
}


def write_report(
    path: str | os.PathLike[str],
    *,
    results: dict[str, Any],
    scans: pd.DataFrame,
    pictures: dict[str, list[Picture]],
    pixel_threshold: float | None,
) -> Path:
    """Write the report of an evaluation.

    The page names scans and subjects as the table does: pseudonyms must be given as such.

    Args:
        path: HTML file to write; an older one is replaced at the end, in one step.
        results: method, metrics and decision; and, as far as known, command, date, cohort, pixels,
            baselines, groups, failures, config, versions and seconds. Metrics are dictionaries of
            value, low, high, n, oracle, title and description.
        scans: one row per scan with the columns scan, subject, label (0, 1 or NaN), score,
            p_value, anomalous and split. Without a split all are test scans.
        pictures: rows of pictures by section, for example "worst misses", in the order shown. An
            empty section says that there was no such scan.
        pixel_threshold: map value above which a pixel belongs to the finding, or None.

    Returns:
        The path.

    Raises:
        ArgumentError: results lack a required part.
        OutputError: the file can't be written.
    """
    missing = [key for key in ("method", "metrics", "decision") if key not in results]
    if missing:
        raise ArgumentError(f"The report's results lack {', '.join(missing)}.")
    context = _context(results, _tidy(scans), pictures, pixel_threshold)
    html = environment().get_template("page.html.j2").render(context)
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def environment() -> Environment:
    """Return what renders the pages of this package."""
    environment = Environment(
        loader=PackageLoader("normscan.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=summary.number,
        percent=summary.percent,
        p_value=summary.p_value,
        known=summary.known,
        day=summary.day,
    )
    return environment


def _tidy(scans: pd.DataFrame) -> pd.DataFrame:
    """Return the table with every column that the page asks for, numbers as numbers."""
    table = scans.copy()
    for column in ("label", "score", "p_value"):
        given = table.get(column, pd.Series(np.nan, index=table.index))
        table[column] = pd.to_numeric(given, errors="coerce")
    if "anomalous" not in table:
        table["anomalous"] = False
    table["anomalous"] = table["anomalous"].fillna(False).astype(bool)
    if "split" not in table:
        table["split"] = "test"
    return table


def _context(
    results: dict[str, Any],
    scans: pd.DataFrame,
    pictures: dict[str, list[Picture]],
    pixel_threshold: float | None,
) -> dict[str, Any]:
    test = scans[scans["split"] == "test"]
    decision = results["decision"]
    accepted = results.get("accepted") or {}
    outcome = summary.outcome_of(test, results)
    metrics = {name: _metric(name, entry) for name, entry in results["metrics"].items()}
    scale = figures.map_scale(
        [picture.map for rows in pictures.values() for picture in rows], pixel_threshold
    )
    sections = _sections(pictures, scale, pixel_threshold)
    rows = [row for section in sections for row in section["rows"]]
    return {
        "method": results["method"],
        "cohort": results.get("cohort") or {},
        "date": results.get("date"),
        "command": results.get("command"),
        "outcome": outcome,
        "sentences": summary.sentences(outcome, decision),
        "verdict": summary.verdict_sentences(results.get("verdict") or ()),
        "tested": results.get("tested") or {},
        "decision": decision,
        "deployable": {name: m for name, m in metrics.items() if not m["oracle"]},
        "oracle": {name: m for name, m in metrics.items() if m["oracle"]},
        "pixels": results.get("pixels"),
        "accepted": _named(accepted.get("metrics") or {}),
        "refused": accepted.get("refused"),
        "gate": results.get("quality_gate"),
        "baselines": _compared(results, metrics),
        "groups": [
            _group(column, entries, metrics)
            for column, entries in (results.get("groups") or {}).items()
        ],
        "charts": _charts(scans, test, decision),
        "lesions": lesion_section(results.get("pixels")),
        "calibration": calibration_section(test, decision),
        "planned": planned_section(results.get("config")),
        "sections": sections,
        "scale": scale,
        "gradient": _gradient(),
        "pixel_threshold": pixel_threshold,
        "mask_colour": figures.MASK_COLOUR,
        "region_colour": figures.REGION_COLOUR,
        "has_letters": any(row.letters for row in rows),
        "failures": results.get("failures"),
        "card": results.get("card"),
        "config": _json(results.get("config")),
        "versions": results.get("versions") or {},
        "seconds": results.get("seconds") or {},
    }


def _metric(name: str, entry: Mapping[str, Any] | None) -> dict[str, Any]:
    """Fill the gaps of a metric, so that the template needn't ask."""
    empty = {"value": None, "low": None, "high": None, "n": None, "oracle": False}
    filled = {**empty, "title": name.replace("_", " "), "description": "", **(entry or {})}
    numbers = [filled[key] for key in ("value", "low", "high")]
    filled["bar"] = all(summary.known(x) and 0 <= float(x) <= 1 for x in numbers)
    return filled


def _compared(results: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Put the detector and its baselines into one table, with the metrics that baselines have."""
    baselines = results.get("baselines")
    if not baselines:
        return None
    given = {name for entries in baselines.values() for name in entries}
    names = [name for name in metrics if name in given] + sorted(given - set(metrics))
    rows = [(results["method"]["id"], True, results["metrics"])]
    rows += [(identity, False, entries) for identity, entries in baselines.items()]
    described = {n: m for _, _, entries in reversed(rows) for n, m in _named(entries).items()}
    return {
        "names": names,
        "metrics": described,
        "rows": [(identity, own, _named(entries)) for identity, own, entries in rows],
    }


def _named(entries: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: _metric(name, entry) for name, entry in entries.items()}


def _group(
    column: str, entries: list[dict[str, Any]], metrics: Mapping[str, Any]
) -> dict[str, Any]:
    given = list(dict.fromkeys(k for e in entries for k, v in e.items() if isinstance(v, dict)))
    titles = {name: metrics.get(name, _metric(name, None))["title"] for name in given}
    rows = [
        {
            "value": entry.get("value"),
            "n": entry.get("n"),
            "metrics": {name: _metric(name, entry.get(name)) for name in given},
        }
        for entry in entries
    ]
    return {"column": column, "names": given, "titles": titles, "rows": rows}


def _charts(scans: pd.DataFrame, test: pd.DataFrame, decision: Mapping[str, Any]) -> dict[str, Any]:
    validation = scans[scans["split"].isin(VALIDATION_SPLITS) & (scans["label"].fillna(0) == 0)]
    threshold = decision.get("threshold")
    rated = test[test["label"].isin((0, 1)) & np.isfinite(test["score"])]
    labels, scores = rated["label"].to_numpy(dtype=int), rated["score"].to_numpy(dtype=float)
    flagged = rated["anomalous"].to_numpy(dtype=bool)
    behind = decision.get("healthy_scores") or validation["score"]
    drawn = {
        "strip": charts.score_strip(
            np.array(behind, dtype=float),
            scores[labels == 0],
            scores[labels == 1],
            threshold if summary.known(threshold) else None,
        ),
        "histogram": charts.score_histogram(
            scores[labels == 0],
            scores[labels == 1],
            validation["score"].to_numpy(dtype=float),
            threshold if summary.known(threshold) else None,
        ),
        "roc": charts.roc_chart(labels, scores, None if decision.get("open") else flagged),
        "pr": charts.pr_chart(labels, scores, None if decision.get("open") else flagged),
    }
    # Only numbers and our own words are in the drawings, so they may pass unescaped.
    return {name: Markup(svg) if svg else None for name, svg in drawn.items()}


def _sections(
    pictures: dict[str, list[Picture]], scale: tuple[float, float], pixel_threshold: float | None
) -> list[dict[str, Any]]:
    sections = []
    for number, (title, given) in enumerate(pictures.items()):
        rows: list[Row] = [
            make_row(picture, f"scan-{number}-{index}", scale, pixel_threshold)
            for index, picture in enumerate(given)
        ]
        sections.append(
            {
                "title": title[:1].upper() + title[1:],
                "note": SECTION_NOTES.get(title.lower().replace("_", " "), ""),
                "rows": rows,
                "restorations": any(row.restoration for row in rows),
            }
        )
    return sections


def _gradient() -> str:
    """Return the colour bar of the overlay as CSS colour stops."""
    stops = figures.overlay_table()[:: figures.LEVELS // 9, :3]
    return ", ".join(f"rgb({r} {g} {b})" for r, g, b in stops.tolist())


def _json(config: Mapping[str, Any] | None) -> str | None:
    return json.dumps(config, indent=2, default=str, ensure_ascii=False) if config else None
