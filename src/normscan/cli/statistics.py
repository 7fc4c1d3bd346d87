"""The commands that read evaluations again: methods against each other, groups of scans."""

from __future__ import annotations

import json as _json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.cli.compared import (
    decision_block,
    decision_rows,
    long_rows,
    pair_block,
    pair_rows,
    pixel_block,
    tested_pairs,
    write_comparison,
)
from normscan.cli.spelling import command_line
from normscan.errors import ArgumentError, OutputError, nearest

if TYPE_CHECKING:
    import pandas as pd

SCANS = "scans.csv"


def compare(
    runs: list[str],
    out: str | None = None,
    prevalence: float | None = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Test evaluated detectors against each other on the scans that all of them scored.

    First what a user gets: sensitivity and false alarms of each decision as it was kept, with exact
    intervals, and beside them the sensitivity at just the wanted rate on these healthy scans (an
    oracle). Then the image AUROC, tested paired and by subject: DeLong's test and a permutation
    test, both with Holm's correction over all pairs; predictive values of each decision. Last the
    figures of the maps, as each evaluation gives them.

    Args:
        runs: run or evaluation folders of the same cohort, two or more.
        out: folder for compare.csv, pairs.csv, compare.tex and compare.html, which also have the
            figures of the maps.
        prevalence: share of anomalous scans where the detectors are to be used; that of the scans
            by default.
        seed: of the permutations.
        json: print JSON for machines.
    """
    if len(runs) < 2:
        raise ArgumentError("name two runs or more to compare.")
    names = _names(runs)
    tables, dropped = _common([_table(run) for run in runs], runs)
    results = [_results(run) for run in runs]
    rates = [found.get("decision", {}).get("fpr_wanted") for found in results]
    metrics = [found.get("metrics", {}) for found in results]
    each = decision_rows(names, tables, rates, prevalence)
    pairs = tested_pairs(names, tables, seed)
    lead = _lead(names, tables, dropped)
    blocks = [decision_block(each, prevalence, tables[0]["label"].mean()), pair_block(pairs)]
    if (maps := pixel_block(names, metrics)) is not None:
        blocks.append(maps)
    if out is not None:
        figures = long_rows(names, each, metrics)
        write_comparison(Path(out), lead, blocks, figures, pair_rows(pairs), command_line())
    if json:
        told = {"runs": _plain(each), "pairs": _plain(pairs), "left_out": dropped}
        print(_json.dumps(told, indent=2))
        return
    print("\n".join(lead))
    for number, block in enumerate(blocks):
        if number:
            print()
        _print([tuple(block.head), *map(tuple, block.rows)])
    if out is not None:
        print(f"\ntables: {Path(out) / 'compare.csv'} (pairs.csv, compare.tex)")
        print(f"page:   {Path(out) / 'compare.html'}")


def _lead(names: Sequence[str], tables: Sequence[pd.DataFrame], dropped: int) -> list[str]:
    """Say which scans are compared."""
    lines = []
    for name, table in zip(names, tables, strict=True):
        seen = int(table["seen"].notna().sum()) if "seen" in table else 0
        if seen:
            lines.append(
                f"{name}: {seen} of these scans trained it or set its threshold, see scans.csv"
            )
    one = tables[0]
    people = one["subject"].nunique()
    lines.append(f"{len(one)} scans of {people} subjects, {int(one['label'].sum())} anomalous")
    if dropped:
        lines.append(f"left out: {dropped} scans that not all runs scored")
    return lines


def _plain(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    from normscan.metrics.estimates import to_json

    return [{k: to_json(v) if hasattr(v, "low") else v for k, v in row.items()} for row in rows]


def subgroups(
    run: str,
    column: str,
    cuts: list[float] | None = None,
    quantiles: int | None = None,
    lesions: bool = False,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Metrics of an evaluated detector by site, sex, age band, scanner, lesion size.

    Args:
        run: run or evaluation folder.
        column: of the cohort.
        cuts: borders of bands for a column of numbers, such as '[40, 60]'.
        quantiles: number of bands of equal size, instead of cuts.
        lesions: only lesions have the column (their size, their kind): set each group against all
            healthy scans.
        seed: of the bootstrap.
        json: print JSON for machines.
    """
    from normscan.evaluation.columns import column_name
    from normscan.metrics.subgroups import subgroups as groups_of

    table = _table(run)
    table = table[table["label"].notna()]
    column = column_name(column) if column_name(column) in table else column
    if column not in table:
        known = [c for c in table.columns if c not in ("scan", "score", "p_value", "seconds")]
        raise ArgumentError(
            f"{run}: the evaluation has no column '{column}'.{nearest(column, known)} "
            f"It has: {', '.join(known)}."
        )
    threshold = _decision(run).get("threshold")
    values = [None if v != v else v for v in table[column].tolist()]
    found = groups_of(
        table["score"].to_numpy(float), table["label"].to_numpy(int), values,
        table["subject"].tolist(), cuts=cuts, quantiles=quantiles, share_healthy=lesions,
        threshold=threshold, seed=seed,
    )  # fmt: skip
    if json:
        print(_json.dumps([g.to_dict() for g in found], indent=2))
        return
    keys = list(found[0].metrics) if found else []
    lines = [(column, "subjects", "scans", "anomalous", *keys, "AUROC gap", "Holm p")]
    for g in found:
        metrics = (str(g.metrics[k]) for k in keys)
        gap, p = g.gaps["auroc"].difference, g.holm["auroc"]
        beside = ("", "") if gap != gap else (f"{gap:+.3f}", f"{p:.3g}")
        lines.append((g.group, str(g.subjects), str(g.scans), str(g.anomalous), *metrics, *beside))
    _print(lines)


def _decision(run: str) -> dict[str, Any]:
    """Return what an evaluation says of the decision; nothing where only its scores are left."""
    found: dict[str, Any] = _results(run).get("decision", {})
    return found


def _results(run: str) -> dict[str, Any]:
    """Return the results of an evaluation; nothing where only its scores are left."""
    for folder in (Path(run), Path(run) / "evaluation"):
        path = folder / "results.json"
        if path.is_file():
            results: dict[str, Any] = _json.loads(path.read_text("utf-8"))
            return results
    return {}


def _table(run: str) -> pd.DataFrame:
    """Read the scores of an evaluation from its folder, or from the run folder around it."""
    import pandas as pd

    from normscan.io.sheets import revived_table

    for folder in (Path(run), Path(run) / "evaluation"):
        path = folder / SCANS
        if path.is_file():
            table = revived_table(pd.read_csv(path, dtype={"scan": str, "subject": str}))
            missing = {"scan", "subject", "label", "score", "anomalous"} - set(table.columns)
            if missing:
                raise OutputError(f"{path}: has no column {sorted(missing)[0]}. Evaluate again.")
            return table
    raise OutputError(
        f"{run}: holds no {SCANS}. Run normscan evaluate first, or name its --out folder."
    )


def _common(tables: list[pd.DataFrame], runs: list[str]) -> tuple[list[pd.DataFrame], int]:
    """Keep the labelled scans that all tables have, in the same order."""
    shared = set.intersection(*(set(t["scan"]) for t in tables))
    kept = [t[t["scan"].isin(shared)].sort_values("scan").reset_index(drop=True) for t in tables]
    known = kept[0]["label"].notna().to_numpy()
    kept = [t[known].reset_index(drop=True) for t in kept]
    for table, run in zip(kept, runs, strict=True):
        for name in ("label", "subject"):
            if not table[name].equals(kept[0][name]):
                raise ArgumentError(
                    f"{run} and {runs[0]} disagree on the {name} of a scan: they belong to different "
                    "cohorts."
                )
        table["label"] = table["label"].astype(int)
    if not len(kept[0]):
        raise ArgumentError("the runs have no labelled scan in common.")
    return kept, max(len(t) for t in tables) - len(kept[0])


def _names(runs: list[str]) -> list[str]:
    from normscan.cohort.table import unique_names

    return unique_names([str(Path(r).parent if Path(r).name == "evaluation" else r) for r in runs])


def _print(lines: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
