"""The comparison of detectors as files: CSV with full digits, LaTeX, and one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normscan.version import __version__

# Of an evaluation's metrics those that need maps and masks.
PIXELS = (
    "pixel_auroc", "pixel_ap", "aupro", "dice", "subject_dice", "lesion_sensitivity",
    "lesion_precision", "lesion_f1", "hd95", "best_dice",
)  # fmt: skip


@dataclass
class Block:
    """A table of the comparison.

    Attributes:
        title: heading.
        text: what stands in it.
        head: names of the columns; the first one names the row.
        rows: cells.
    """

    title: str
    text: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def pixel_block(names: Sequence[str], metrics: Sequence[dict[str, Any]]) -> Block | None:
    """Return the figures of maps as the evaluations give them; None where none does.

    Args:
        names: of the runs.
        metrics: of each, as in ``results.json``.
    """
    there = [key for key in PIXELS if any(key in found for found in metrics)]
    if not there:
        return None
    titles = {key: next(m[key] for m in metrics if key in m) for key in there}
    head = ["run", *(m["title"] + (" (oracle)" if m["oracle"] else "") for m in titles.values())]
    rows = [
        [name, *(shown(m.get(key)) for key in there)]
        for name, m in zip(names, metrics, strict=True)
    ]
    text = "Of every scan with a mask in each run's own evaluation; 95 % intervals by subject."
    return Block("Maps", text, head, rows)


def shown(metric: dict[str, Any] | None) -> str:
    """Return a figure with its interval, or a dash."""
    if metric is None or metric["value"] is None:
        return "-"
    if metric.get("low") is None or metric.get("high") is None:
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def long_rows(
    names: Sequence[str], each: Sequence[dict[str, Any]], metrics: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return one line for each run and metric, with full digits.

    Args:
        names: of the runs.
        each: estimates of the decision and of the ranking, on the scans in common.
        metrics: of each run, as in ``results.json``.
    """
    lines: list[dict[str, Any]] = []
    for name, row, found in zip(names, each, metrics, strict=True):
        for key, value in row.items():
            if hasattr(value, "low"):
                figures = {"value": value.value, "low": value.low, "high": value.high}
                oracle = key == "sensitivity_at_rate"
                lines.append(
                    {"run": name, "metric": key, "scans": "in common", "oracle": oracle, **figures}
                )
        for key in PIXELS:
            if key in found:
                figures = {k: found[key].get(k) for k in ("value", "low", "high")}
                oracle = found[key]["oracle"]
                lines.append(
                    {"run": name, "metric": key, "scans": "its own", "oracle": oracle, **figures}
                )
    return lines


def pair_rows(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one line for each pair of runs, with full digits."""
    return [
        {
            "a": p["a"], "b": p["b"], "auroc_difference": p["delong"].difference,
            "low": p["delong"].low, "high": p["delong"].high, "delong_p": p["delong"].p_value,
            "delong_holm": p["delong_holm"], "permutation_p": p["permutation"].p_value,
            "permutation_holm": p["permutation_holm"],
        }
        for p in pairs
    ]  # fmt: skip


def write_comparison(
    folder: Path,
    lead: Sequence[str],
    blocks: Sequence[Block],
    figures: Sequence[dict[str, Any]],
    pairs: Sequence[dict[str, Any]],
    command: str,
) -> None:
    """Write ``compare.csv``, ``pairs.csv``, ``compare.tex`` and ``compare.html``.

    Args:
        folder: made where it is missing; files of an earlier comparison are replaced.
        lead: lines on what was compared.
        blocks: tables of the page.
        figures: see ``long_rows``.
        pairs: see ``pair_rows``.
        command: that was called.

    Raises:
        OutputError: the folder can't be written.
    """
    import pandas as pd
    from jinja2 import Environment, PackageLoader

    from normscan.benchmark.write import tabular
    from normscan.io import atomic_path

    environment = Environment(
        loader=PackageLoader("normscan.report", ""), autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("tables.html.j2").render(
        title="Comparison of detectors", lead=lead, blocks=blocks, command=command,
        version=__version__,
    )  # fmt: skip
    tex = [f"% {line}".replace("\n", " ") for line in (*lead, command)]
    for block in blocks:
        tex += ["", *tabular(block.title, block.head, block.rows)]
    texts = {
        "compare.csv": pd.DataFrame(figures).to_csv(index=False),
        "pairs.csv": pd.DataFrame(pairs).to_csv(index=False),
        "compare.tex": "\n".join(tex) + "\n",
        "compare.html": page,
    }
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
