"""What the pages of methods show as measured: published figures, ours from the records, an example."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normscan.benchmark.targets import targets
from normscan.registry import Card

DOCS = Path(__file__).resolve().parent
EXAMPLES = DOCS / "img" / "methods"
GENERATED = DOCS / "img" / "generators"
RESULTS = DOCS.parent / "benchmarks" / "results"
HEADING = re.compile(r"#+ ([\w-]+), image level")
# Columns of the records that are passed on, and where `normscan benchmark` writes them.
COLUMNS = ("Image AUROC", "fit s", "s/scan", "memory MiB")
Row = tuple[str, ...]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


@functools.cache
def achieved() -> dict[str, list[Row]]:
    """Return by method the rows of all records that `normscan benchmark` wrote, of whole scans."""
    found: dict[str, list[Row]] = {}
    for page in sorted(RESULTS.glob("*.md")):
        for set_id, row in _rows(page):
            known = (set_id, *(row.get(name, "") for name in COLUMNS), row["record"])
            mine = found.setdefault(row["method"].strip("*"), [])
            if known not in mine:
                mine.append(known)
    return found


def _rows(page: Path) -> Iterator[tuple[str, dict[str, str]]]:
    part, set_id, header = "", "", list[str]()
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = HEADING.match(line)
            set_id, header = heading.group(1) if heading else "", []
            if line.startswith("## "):
                part = "" if heading else f", {line[3:]}"
        elif set_id and line.startswith("|"):
            row = cells(line)
            if not header:
                header = row
            elif not set(line) <= set("|- ") and {"method", "Image AUROC"} <= set(header):
                found = dict(zip(header, row, strict=False))
                yield set_id, {**found, "record": f"`{page.name}`{part}"}


def published(card: Card) -> list[Row]:
    """Return what is printed of a method: a row for each protocol, set and source."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for each in targets():
        if each.method == card.id:
            spread = "" if each.sd is None else f" ± {each.sd:.3g}"
            place = found.setdefault((each.protocol, each.set, each.source), [])
            place.append(f"{each.metric} {each.value:.3g}{spread}")
    return [
        (f"`{protocol}`", set_id, ", ".join(values), source)
        for (protocol, set_id, source), values in found.items()
    ]


def example(card: Card) -> dict[str, Any] | None:
    """Return what ``docs/examples.py`` wrote down of a method."""
    path = EXAMPLES / f"{card.id}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def example_text(card: Card) -> str:
    """Return the picture of a method on the phantom, with what was run and what it took."""
    found = example(card)
    if found is None:
        return ""
    run = f"preset `{found['preset']}`"
    if found["arguments"]:
        given = ", ".join(f"`{k}` = `{v!r}`" for k, v in found["arguments"].items())
        run += f" with {given}"
    if "not_run" in found:
        return f"*On the phantom:* {run} was not run: {found['not_run'].rstrip('.')}."
    values = ", ".join(f"{name} {value:.3g}" for name, value in found["metrics"].items())
    healthy, lesioned = found["phantom"]["healthy"], found["phantom"]["lesioned"]
    text = (
        f"{run}, at most {found['most_steps']} updates a phase, on a "
        f"[phantom](../phantom.md) of {healthy} healthy and {lesioned} lesioned slices: {values}; "
        f"{found['seconds']:.0f} CPU-seconds and {found['memory_mib']} MiB in all. So few updates "
        "show what kind of map it makes, not what it can do."
    )
    picture = f"{card.id}.jpg"
    if not (EXAMPLES / picture).exists():
        return f"*On the phantom:* {text} It makes no map."
    alt = f"{card.id} on a lesioned slice of the phantom"
    legend = "From the left: the scan, its restoration where there is one, the anomaly map"
    return (
        f"![{alt}](../img/methods/{picture})\n\n{legend} with the outlines of the true lesion (blue) "
        f"and of what was found (dashed). *On the phantom:* {text}"
    )


def generator_text(card: Card) -> str:
    """Return the picture that ``docs/generators.py`` drew of a generator, with what was trained."""
    path = GENERATED / f"{card.id}.json"
    if not path.exists():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    run = " ".join(["preset `laptop`", *(f"`{word}`" for word in found["arguments"])])
    values = ", ".join(f"{name} {v['value']:.3g}" for name, v in found["metrics"].items())
    return (
        f"![What {card.id} makes after its laptop preset](../img/generators/{card.id}.webp)\n\n"
        f"*What its generator makes:* {run} on simulated scans (`{found['cohort']}`), "
        f"{found['fit']['cpu_seconds']:.0f} CPU-seconds: {values}. "
        "[All generators](../explanation/generators.md)."
    )
