"""The page of the limits: one self-contained HTML file, no scripts, nothing loaded from outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import ChoiceLoader, PackageLoader
from markupsafe import Markup

from normscan.io import atomic_path
from normscan.limits.curves import PROBABILITIES
from normscan.limits.pictures import inline
from normscan.limits.result import FAINTEST, LARGEST, NAMES
from normscan.report import figures, page
from normscan.report.rows import make_row

if TYPE_CHECKING:
    from normscan.limits.result import Limits

_NOTES = {
    FAINTEST: "The faintest, of those sizes and contrasts of which at least half are found.",
    LARGEST: "Lesions of the largest diameter that were not found, the strongest contrast first.",
}


def write_page(path: Path, limits: Limits) -> Path:
    """Write the page; an older one is replaced at the end, in one step.

    Raises:
        OutputError: the file can't be written.
    """
    environment = page.environment()
    environment.loader = ChoiceLoader(
        [PackageLoader("normscan.limits", ""), PackageLoader("normscan.report", "")]
    )
    html = environment.get_template("limits.html.j2").render(_context(limits))
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def _context(limits: Limits) -> dict[str, Any]:
    threshold = limits.about["pixel_threshold"]
    pictures = limits.examples
    scale = figures.map_scale([p.map for shown in pictures.values() for p in shown], threshold)
    sections: list[dict[str, Any]] = [
        {
            "title": title.capitalize(),
            "note": _NOTES.get(title, ""),
            "rows": [
                make_row(picture, f"scan-{number}-{index}", scale, threshold)
                for index, picture in enumerate(shown)
            ],
        }
        for number, (title, shown) in enumerate(pictures.items())
    ]
    return {
        "about": limits.about,
        "unit": limits.unit,
        "lead": sentences(limits),
        "healthy": limits.healthy(),
        "chart": Markup(inline(limits)),  # numbers and our own words only
        "tables": [_table(limits, level) for level in limits.levels],
        "probabilities": PROBABILITIES,
        "sections": sections,
        "restorations": any(r.restoration for s in sections for r in s["rows"]),
        "gate": limits.gate(),
        "failures": limits.failures,
        "notes": limits.notes,
        "mask_colour": figures.MASK_COLOUR,
        "region_colour": figures.REGION_COLOUR,
        "details": json.dumps(limits.about, indent=2, default=str, ensure_ascii=False),
    }


def _table(limits: Limits, level: str) -> dict[str, Any]:
    rows = [
        {
            "contrast": surface.sign * contrast,
            "limits": [surface.smallest(contrast, p) for p in PROBABILITIES],
        }
        for surface in limits.surfaces
        if surface.level == level
        for contrast in reversed(surface.contrasts)
    ]
    cells = limits.table[limits.table["level"] == level].to_dict("records")
    return {"level": level, "name": NAMES[level], "rows": rows, "cells": cells}


def sentences(limits: Limits) -> list[str]:
    """Say in plain words the smallest and the faintest that is found 9 times in 10."""
    said = []
    aim = PROBABILITIES[-1]
    for surface in limits.surfaces:
        if surface.level != limits.levels[-1]:
            continue
        name = "Brighter" if surface.sign > 0 else "Darker"
        strongest = surface.smallest(surface.contrasts[-1], aim)
        if not strongest.reached:
            said.append(
                f"{name} lesions are not found {aim:.0%} of the time at any tested size, up to "
                f"{surface.sizes[-1]:g} {limits.length}."
            )
            continue
        faintest, unit = surface.faintest(surface.sizes[-1], aim), limits.length
        said.append(
            f"{name} lesions are found {aim:.0%} of the time from {strongest} {unit} where they "
            f"differ by {surface.contrasts[-1]:g}; at {surface.sizes[-1]:g} {unit}, from a difference "
            f"of {faintest}."
        )
    return said
