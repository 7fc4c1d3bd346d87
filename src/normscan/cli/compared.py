"""The comparison of detectors as files: CSV with full digits, LaTeX, and one page."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.errors import ArgumentError
from normscan.version import __version__

if TYPE_CHECKING:
    import pandas as pd

DECISION = ("sensitivity", "false_alarms", "specificity", "ppv", "npv")
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


def decision_rows(
    names: Sequence[str],
    tables: Sequence[pd.DataFrame],
    rates: Sequence[float | None],
    prevalence: float | None,
) -> list[dict[str, Any]]:
    """Return for each run the estimates of its decision and of its ranking, by name.

    Args:
        names: of the runs.
        tables: scores of each on the same scans in the same order.
        rates: false-positive rate that each asked for; None where nobody wrote it.
        prevalence: share of anomalous scans for predictive values; that of the scans by default.

    Raises:
        ArgumentError: a decision is open.
    """
    from normscan.metrics import oracle_sensitivity
    from normscan.metrics.predictive import decision_metrics
    from normscan.metrics.statistics import delong

    rows = []
    for name, table, rate in zip(names, tables, rates, strict=True):
        if table["anomalous"].isna().all():
            raise ArgumentError(
                f"{name}: its decision is open, since it was not calibrated on healthy scans. "
                "Calibrate it to compare decisions."
            )
        labels, subjects = table["label"].to_numpy(), table["subject"].tolist()
        score = table["score"].to_numpy(float)
        decided = decision_metrics(
            table["anomalous"].to_numpy(), labels, subjects, prevalence=prevalence, method="exact"
        )
        kept = {k: getattr(decided, k) for k in DECISION}
        oracle = None if rate is None else oracle_sensitivity(score, labels, subjects, fpr=rate)
        auroc = delong([score], labels, subjects).interval()
        rows.append({"run": name, **kept, "sensitivity_at_rate": oracle, "auroc": auroc})
    return rows


def tested_pairs(
    names: Sequence[str], tables: Sequence[pd.DataFrame], seed: int
) -> list[dict[str, Any]]:
    """Return DeLong's and a permutation test of each pair of runs, with Holm's correction.

    Args:
        names: of the runs.
        tables: scores of each on the same scans in the same order.
        seed: of the permutations.
    """
    from normscan.metrics.comparisons import compare_scores, delong_test, holm

    labels, subjects = tables[0]["label"].to_numpy(), tables[0]["subject"].tolist()
    scores = {n: t["score"].to_numpy(float) for n, t in zip(names, tables, strict=True)}
    pairs: list[dict[str, Any]] = []
    for a, b in itertools.combinations(names, 2):
        by_rank = delong_test(scores[a], scores[b], labels, subjects)
        swapped = compare_scores(scores[a], scores[b], labels, subjects, seed=seed)
        pairs.append({"a": a, "b": b, "delong": by_rank, "permutation": swapped})
    for test in ("delong", "permutation"):
        adjusted = holm([p[test].p_value for p in pairs])
        for pair, value in zip(pairs, adjusted, strict=True):
            pair[f"{test}_holm"] = float(value)
    return pairs


def decision_block(each: Sequence[dict[str, Any]], prevalence: float | None, share: float) -> Block:
    """Return the table of decisions and ranking.

    Args:
        each: see ``decision_rows``.
        prevalence: that the predictive values are for, or None.
        share: of anomalous scans, which they are for then.
    """
    head = {
        "run": "run", "sensitivity": "sensitivity", "false_alarms": "false alarms",
        "sensitivity_at_rate": "at the wanted rate (oracle)", "auroc": "AUROC",
        "ppv": f"PPV at {share if prevalence is None else prevalence:.3g}", "npv": "NPV",
    }  # fmt: skip
    cells = [[str(row[k] or "-") for k in head] for row in each]
    text = "Sensitivity and false alarms as each decides, exact intervals; AUROC by DeLong."
    return Block("Decisions and ranking", text, list(head.values()), cells)


def pair_block(pairs: Sequence[dict[str, Any]]) -> Block:
    """Return the table of differences; see ``tested_pairs``."""
    rows = []
    for p in pairs:
        d, q = p["delong"], p["permutation"]
        tests = (d.p_value, p["delong_holm"], q.p_value, p["permutation_holm"])
        gap = f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
        rows.append([f"{p['a']} - {p['b']}", gap, *(f"{value:.3g}" for value in tests)])
    head = ("pair", "AUROC difference", "DeLong p", "Holm", "permutation p", "Holm")
    text = "Image AUROC of the first minus the second, paired by subject; Holm over all pairs."
    return Block("Differences", text, head, rows)


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
