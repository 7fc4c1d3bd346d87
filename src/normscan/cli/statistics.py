"""The commands that read evaluations again: methods against each other, groups of scans."""

from __future__ import annotations

import itertools
import json as _json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.cli.compared import Block, long_rows, pair_rows, pixel_block, write_comparison
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
    from normscan.metrics import oracle_sensitivity
    from normscan.metrics.comparisons import compare_scores, delong_test, holm
    from normscan.metrics.predictive import decision_metrics
    from normscan.metrics.statistics import delong

    if len(runs) < 2:
        raise ArgumentError("name two runs or more to compare.")
    names = _names(runs)
    tables, dropped = _common([_table(run) for run in runs], runs)
    labels, subjects = tables[0]["label"].to_numpy(), tables[0]["subject"].tolist()
    scores = [t["score"].to_numpy(float) for t in tables]
    for name, table in zip(names, tables, strict=True):
        if table["anomalous"].isna().all():
            raise ArgumentError(
                f"{name}: its decision is open, since it was not calibrated on healthy scans. "
                "Calibrate it to compare decisions."
            )
    each = []
    for name, run, table, score in zip(names, runs, tables, scores, strict=True):
        decided = decision_metrics(
            table["anomalous"].to_numpy(), labels, subjects, prevalence=prevalence, method="exact"
        )
        fpr = _decision(run).get("fpr_wanted")
        oracle = None if fpr is None else oracle_sensitivity(score, labels, subjects, fpr=fpr)
        auroc = delong([score], labels, subjects).interval()
        row = {"run": name, **_fields(decided), "sensitivity_at_rate": oracle, "auroc": auroc}
        each.append(row)
    pairs: list[dict[str, Any]] = []
    for a, b in itertools.combinations(range(len(runs)), 2):
        by_rank = delong_test(scores[a], scores[b], labels, subjects)
        swapped = compare_scores(scores[a], scores[b], labels, subjects, seed=seed)
        pairs.append({"a": names[a], "b": names[b], "delong": by_rank, "permutation": swapped})
    for test in ("delong", "permutation"):
        adjusted = holm([p[test].p_value for p in pairs])
        for pair, value in zip(pairs, adjusted, strict=True):
            pair[f"{test}_holm"] = float(value)
    metrics = [_results(run).get("metrics", {}) for run in runs]
    share = decided.prevalence
    lead = []
    for name, table in zip(names, tables, strict=True):
        seen = int(table["seen"].notna().sum()) if "seen" in table else 0
        if seen:
            lead.append(
                f"{name}: {seen} of these scans trained it or set its threshold, see scans.csv"
            )
    people = len(set(subjects))
    lead.append(f"{len(labels)} scans of {people} subjects, {int(labels.sum())} anomalous")
    if dropped:
        lead.append(f"left out: {dropped} scans that not all runs scored")
    head = {
        "run": "run", "sensitivity": "sensitivity", "false_alarms": "false alarms",
        "sensitivity_at_rate": "at the wanted rate (oracle)", "auroc": "AUROC",
        "ppv": f"PPV at {share:.3g}", "npv": "NPV",
    }  # fmt: skip
    cells = [[str(r[k] or "-") for k in head] for r in each]
    text = (
        "Sensitivity and false alarms as each detector decides, exact intervals; AUROC by DeLong."
    )
    blocks = [Block("Decisions and ranking", text, list(head.values()), cells)]
    lines: list[Sequence[str]] = []
    for p in pairs:
        d, q = p["delong"], p["permutation"]
        lines.append(
            (
                f"{p['a']} - {p['b']}",
                f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]",
                f"{d.p_value:.3g}",
                f"{p['delong_holm']:.3g}",
                f"{q.p_value:.3g}",
                f"{p['permutation_holm']:.3g}",
            )
        )
    names_of = ("pair", "AUROC difference", "DeLong p", "Holm", "permutation p", "Holm")
    text = "Image AUROC of the first minus the second, paired by subject; Holm over all pairs."
    blocks.append(Block("Differences", text, names_of, lines))
    if (maps := pixel_block(names, metrics)) is not None:
        blocks.append(maps)
    if out is not None:
        figures = long_rows(names, each, metrics)
        write_comparison(Path(out), lead, blocks, figures, pair_rows(pairs), command_line())
    if json:
        from normscan.metrics.estimates import to_json

        rows = [{k: to_json(v) if hasattr(v, "low") else v for k, v in r.items()} for r in each]
        plain = [{k: to_json(v) if hasattr(v, "low") else v for k, v in p.items()} for p in pairs]
        print(_json.dumps({"runs": rows, "pairs": plain, "left_out": dropped}, indent=2))
        return
    print("\n".join(lead))
    for number, block in enumerate(blocks):
        if number:
            print()
        _print([tuple(block.head), *map(tuple, block.rows)])
    if out is not None:
        print(f"\ntables: {Path(out) / 'compare.csv'} (pairs.csv, compare.tex)")
        print(f"page:   {Path(out) / 'compare.html'}")


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


def _fields(found: Any) -> dict[str, Any]:
    names = ("sensitivity", "false_alarms", "specificity", "ppv", "npv")
    return {k: getattr(found, k) for k in names}


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

    for folder in (Path(run), Path(run) / "evaluation"):
        path = folder / SCANS
        if path.is_file():
            table = pd.read_csv(path, dtype={"scan": str, "subject": str})
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
