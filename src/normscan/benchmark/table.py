"""From finished cells to a ranking with intervals, tests and published figures beside it.

* An image-level interval is over subjects and seeds together (`metrics.statistics.over_seeds`); a
  pixel-level one is the mean of the seeds' subject-bootstrap ends: a little wide for these trained
  models and new subjects, with nothing of the spread between seeds in it.
* Each method is tested against the best one, paired by subject: image level by the crossed
  bootstrap of the difference over subjects and seeds, pixel level by Wilcoxon's signed-rank test on
  the figure of each lesioned scan (mean over seeds, then over the subject's scans). p-values are
  Holm's, per table. The best was chosen by looking, so its lead is a little flattered.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.benchmark.cell import CELL, ERROR, PIXELS
from normscan.benchmark.plan import BASELINES, Plan
from normscan.benchmark.protocol import Set
from normscan.benchmark.restorations import INDICES, RESTORATIONS, quality
from normscan.benchmark.targets import published
from normscan.detector import storage
from normscan.io.sheets import revived_table
from normscan.io.values import read_json
from normscan.metrics.comparisons import holm, rank_methods, wilcoxon
from normscan.metrics.normative import FORMULAS
from normscan.metrics.statistics import Statistic, over_seeds, scan_statistic
from normscan.metrics.variants import MAD_METRICS, mad

if TYPE_CHECKING:
    import pandas as pd

REPLICATES = 1000
ALPHA = 0.05
FEWEST = 3  # methods and sets of a critical-difference diagram
# What a user gets: first in every table of the image level, whatever ranks it.
DECISION = ("sensitivity", "false_alarms", "sensitivity_at_rate")
_SCAN_METRICS = {"image_auroc": "auroc", "image_ap": "ap", "image_f1_max": "f1_max"}
# ADer's mAD of its own forms, where they were computed.
_MAD_FORMS = {"pixel_f1_max": ("ader_pixel_f1", "best_dice"), "aupro": ("ader_aupro", "aupro")}
VARIANTS = {
    "ader_aupro": ("AUPRO (ADer)", False),
    "ader_pixel_f1": ("Pixel F1-max (ADer)", True),
    "upd_best_dice": ("Best Dice (UPD)", True),
    "medianomaly_best_dice": ("Best Dice (MedIAnomaly)", True),
    "trapezoid_aupr": ("Pixel AUPR, trapezoids", False),
    "mad": ("mAD", True),
}


@dataclass(frozen=True)
class Done:
    """A finished cell."""

    seed: int
    folder: Path
    cell: dict[str, Any]
    results: dict[str, Any]

    def value(self, metric: str) -> float:
        """Return a metric or variant, NaN where it is undefined or absent."""
        entry = self.results["metrics"].get(metric, {}).get("value")
        entry = self.cell["variants"].get(metric) if entry is None else entry
        return math.nan if entry is None else float(entry)

    def table(self, name: str) -> pd.DataFrame | None:
        """Return a table of one row a scan by its name, or None."""
        import pandas as pd

        path = self.folder / "evaluation" / name
        if not path.exists():
            return None
        return revived_table(pd.read_csv(path, dtype={"scan": str, "subject": str}))


Cells = dict[str, list[Done]]


def rank(plan: Plan, command: str = "") -> dict[str, Any]:
    """Return the ranking of a plan's finished cells, as plain JSON values."""
    protocol = plan.protocol
    sets: dict[str, Any] = {}
    values: dict[str, dict[str, dict[str, float]]] = {}
    for each in plan.sets:
        cells, failed = _collect(plan, each)
        if "rqi" in protocol.shown:
            _add_quality(cells)
        values[each.id] = {
            method: {
                m: _mean(done, m)
                for m in (*DECISION, *protocol.shown, *_SCAN_METRICS, "pixel_auroc")
            }
            for method, done in cells.items()
        }
        sets[each.id] = _set_entry(plan, each, cells, failed)
    from normscan.evaluation import METRICS

    titles = {name: {"title": t[0], "oracle": t[2]} for name, t in METRICS.items()}
    titles |= {name: {"title": t, "oracle": oracle} for name, (t, oracle) in VARIANTS.items()}
    titles |= {name: {"title": t, "oracle": False} for name, t in INDICES.items()}
    formulas = [
        f"{t} is {FORMULAS[name]}." for name, t in INDICES.items() if name in protocol.shown
    ]
    return {
        "protocol": protocol.id,
        "title": protocol.title,
        "source": protocol.source,
        "budget": plan.budget,
        "given": plan.given,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": storage.versions(),
        "notes": [*protocol.notes, *formulas, *_budget_note(plan)],
        "pitfalls": protocol.pitfalls,
        "baselines": [m for m in BASELINES if m in plan.methods],
        "metrics": {name: titles.get(name, {"title": name, "oracle": False}) for name in titles},
        "shown": protocol.shown,
        "decision": list(DECISION),
        "sets": sets,
        "missing": plan.missing,
        "means": _means(plan, values) if protocol.mean else {},
        "overall": {
            level: _overall(plan, metric, values) for level, metric in protocol.headline.items()
        },
    }


def _budget_note(plan: Plan) -> list[str]:
    if plan.budget == plan.protocol.budget:
        return []
    return [
        f"Run with the budget '{plan.budget}', not the published one: the published figures beside "
        "are no fair comparison."
    ]


def _collect(plan: Plan, each: Set) -> tuple[Cells, list[dict[str, Any]]]:
    """Return the finished cells of a set by method, and why others have none."""
    cells: Cells = {}
    failed = []
    for job in plan.jobs:
        if each.id not in job.cells:
            continue
        folder, state = Path(job.cells[each.id]), job.state(each.id)
        if state == "done":
            results = read_json(folder / "evaluation" / "results.json")
            done = Done(job.seed, folder, read_json(folder / CELL), results)
            cells.setdefault(job.method, []).append(done)
            continue
        reason = "not finished"
        if state == "failed":
            reason = read_json(folder / ERROR)["reason"]
        failed.append({"method": job.method, "seed": job.seed, "reason": reason})
    return cells, failed


def _add_quality(cells: Cells) -> None:
    """Give every cell its method's RQI, which is relative to the methods of this set."""
    tables = {m: [d.table(RESTORATIONS) for d in done] for m, done in cells.items()}
    whole = {m: [t for t in ts if t is not None] for m, ts in tables.items()}
    for method, value in quality({m: ts for m, ts in whole.items() if ts}).items():
        for done in cells[method]:
            done.cell["variants"]["rqi"] = _number(value)


def _mean(cells: Sequence[Done], metric: str) -> float:
    return float(np.mean([cell.value(metric) for cell in cells]))


def _set_entry(plan: Plan, each: Set, cells: Cells, failed: list[dict[str, Any]]) -> dict[str, Any]:
    there = {}
    for level, metric in plan.protocol.headline.items():
        there[level] = {
            m: c for m, c in cells.items() if any(not math.isnan(d.value(metric)) for d in c)
        }
    there = {level: some for level, some in there.items() if some}
    # The indices of restorations have no level of their own.
    home = dict.fromkeys(INDICES, "pixel" if "pixel" in there else "image")
    levels = {}
    for level, some in there.items():
        metric = plan.protocol.headline[level]
        shown = [m for m in plan.protocol.shown if home.get(m, level_of(m)) == level]
        levels[level] = {
            "headline": metric,
            "rows": _ranked(plan, each, level, metric, some, shown),
        }
    notes = {n for done in cells.values() for d in done for n in d.cell["notes"]}
    first = next((done[0] for done in cells.values()), None)
    counts = first.results["cohort"]["counts"].get("test", {}) if first else {}
    return {
        "title": each.title or each.id,
        "group": each.group,
        "test": counts,
        "levels": levels,
        "failed": failed,
        "notes": sorted(notes),
    }


def _ranked(
    plan: Plan, each: Set, level: str, metric: str, cells: Cells, shown: Sequence[str]
) -> list[dict[str, Any]]:
    from scipy.stats import rankdata

    methods = sorted(cells, key=lambda m: -_mean(cells[m], metric))
    methods.sort(key=lambda m: math.isnan(_mean(cells[m], metric)))
    compare = _compare_images if metric in _SCAN_METRICS else _compare_pixels
    intervals, p_values, test = compare(methods, metric, cells)
    adjusted = [math.nan, *holm(p_values[1:])] if len(methods) > 1 else [math.nan]
    means = np.array([_mean(cells[m], metric) for m in methods])
    ranks = rankdata(-means, nan_policy="omit")
    rows = []
    for i, method in enumerate(methods):
        done = cells[method]
        values = [d.value(metric) for d in done]
        seconds = [d.cell["seconds"] for d in done]
        rows.append(
            {
                "rank": _number(ranks[i]),
                "method": method,
                "seeds": len(done),
                "value": _number(means[i]),
                "low": _number(intervals[i][0]),
                "high": _number(intervals[i][1]),
                "sd": _number(np.std(values, ddof=1)) if len(values) > 1 else None,
                "values": [_number(v) for v in values],
                "p": _number(adjusted[i]),
                "mark": "best" if i == 0 else _mark(adjusted[i]),
                "test": test,
                "decision": {m: _decided(done, m) for m in DECISION} if level == "image" else {},
                "metrics": {m: _spread(done, m) for m in shown if m != metric},
                "fit_s": float(np.mean([s["fit"] for s in seconds])),
                "predict_s": float(np.mean([s["predict_per_scan"] for s in seconds])),
                "memory_mib": {
                    k: max(d.cell["memory_mib"][k] for d in done if k in d.cell["memory_mib"])
                    for k in {k for d in done for k in d.cell["memory_mib"]}
                },
                "dropped": done[0].cell["dropped"],
                "left_out": max(len(d.results["failures"]) for d in done),
                "published": [
                    p
                    for p in _published(plan, each.id, method, done)
                    if level_of(p["metric"]) == level
                ],
            }
        )
    return rows


def level_of(metric: str) -> str:
    """Return the level that a metric belongs to."""
    return "image" if metric.startswith("image_") else "pixel"


def _mark(p: float) -> str:
    if math.isnan(p):
        return "untested"
    return "worse" if p < ALPHA else "not different"


def _spread(cells: Sequence[Done], metric: str) -> dict[str, float | None]:
    values = [c.value(metric) for c in cells]
    # RQI is one figure for all seeds of a method.
    sd = _number(np.std(values, ddof=1)) if len(values) > 1 and metric != "rqi" else None
    return {"value": _number(np.mean(values)), "sd": sd}


def _decided(cells: Sequence[Done], metric: str) -> dict[str, float | None]:
    """Return a figure of the decision with the means of its seeds' ends; None where it is open."""
    low, high = (_number(_mean_end(cells, metric, side)) for side in ("low", "high"))
    return {**_spread(cells, metric), "low": low, "high": high}


def _mean_end(cells: Sequence[Done], metric: str, side: str) -> float:
    """Mean over the seeds of an end of the interval; NaN unless all of them have it."""
    each = [d.results["metrics"].get(metric, {}).get(side) for d in cells]
    known = [end for end in each if end is not None]
    return float(np.mean(known)) if len(known) == len(each) else math.nan


def _published(plan: Plan, set_id: str, method: str, cells: Sequence[Done]) -> list[dict[str, Any]]:
    achieved = {m: _mean(cells, m) for m in published(plan.protocol.id, set_id, method)}
    return _gaps(plan.protocol.id, set_id, method, achieved)


def _gaps(
    protocol: str, set_id: str, method: str, achieved: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Put published figures beside the achieved ones."""
    return [
        {
            "metric": metric, "value": target.value, "sd": target.sd,
            "gap": _number(achieved[metric] - target.value), "source": target.source,
            "note": target.note,
        }
        for metric, target in published(protocol, set_id, method).items()
        if metric in achieved
    ]  # fmt: skip


Interval = tuple[float, float]


def _compare_images(
    methods: Sequence[str], metric: str, cells: Cells
) -> tuple[list[Interval], list[float], str]:
    """Return intervals, p-values against the first method, and the test, on common scans."""
    scores: dict[str, list[pd.DataFrame]] = {}
    for method in methods:
        frames = [cell.table("scans.csv") for cell in cells[method]]
        scores[method] = [f[f["label"].notna()].set_index("scan") for f in frames if f is not None]
    common = sorted(set.intersection(*(set(f.index) for fs in scores.values() for f in fs)))
    runs: dict[str, list[Statistic]] = {}
    subjects = 0
    for method, tables in scores.items():
        found = []
        for whole in tables:
            frame = whole.loc[common]
            statistic, subjects = scan_statistic(
                frame["score"].to_numpy(), frame["label"].to_numpy().astype(int),
                frame["subject"].tolist(), _SCAN_METRICS[metric],
            )  # fmt: skip
            found.append(statistic)
        runs[method] = found
    intervals, p_values = [], [math.nan]
    options: Any = {"cells": len(common), "replicates": REPLICATES}
    for method in methods:
        over = over_seeds(runs[method], subjects, **options).estimate
        intervals.append((over.low, over.high))
    for method in methods[1:]:
        difference = over_seeds(runs[methods[0]], subjects, runs[method], **options)
        p_values.append(difference.p_value)
    return intervals, p_values, f"paired bootstrap over {subjects} subjects and the seeds"


def _compare_pixels(
    methods: Sequence[str], metric: str, cells: Cells
) -> tuple[list[Interval], list[float], str]:
    intervals = [
        (_mean_end(cells[m], metric, "low"), _mean_end(cells[m], metric, "high")) for m in methods
    ]
    per_scan = {method: _per_scan(cells[method], metric) for method in methods}
    best = per_scan[methods[0]]
    p_values, n = [math.nan], 0
    for method in methods[1:]:
        mine = per_scan[method]
        if best is None or mine is None:
            p_values.append(math.nan)
            continue
        both = best.join(mine, how="inner", lsuffix="_a", rsuffix="_b")
        found = wilcoxon(both["value_a"], both["value_b"], both["subject_a"].tolist())
        p_values.append(found.p_value)
        n = found.n
    return intervals, p_values, f"Wilcoxon's test on {n} subjects with lesions"


def _per_scan(cells: Sequence[Done], metric: str) -> pd.DataFrame | None:
    """Return the figure of each lesioned scan, mean over the seeds."""
    import pandas as pd

    frames = [cell.table(PIXELS) for cell in cells]
    there = [f for f in frames if f is not None and metric in f]
    if not there or len(there) < len(frames):
        return None
    whole = pd.concat(there)
    grouped = whole.groupby("scan")
    return pd.DataFrame(
        {"subject": grouped["subject"].first(), "value": grouped[metric].mean()}
    ).sort_index()


def _means(plan: Plan, values: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return every method's metrics averaged over the sets of a group, and mAD."""
    found: dict[str, Any] = {}
    for group in dict.fromkeys(s.group for s in plan.sets if s.group):
        ids = [s.id for s in plan.protocol.expanded() if s.group == group]
        if any(id not in values for id in ids):
            continue
        rows = {}
        for method in plan.methods:
            if any(method not in values[id] for id in ids):
                continue
            classes = [values[id][method] for id in ids]
            mean = {m: float(np.mean([c[m] for c in classes])) for m in classes[0]}
            forms = [{n: _form(c, n) for n in MAD_METRICS} for c in classes]
            mean["mad"] = mad(forms)[0]
            rows[method] = {
                "metrics": {m: _number(v) for m, v in mean.items()},
                "published": _gaps(plan.protocol.id, group, method, mean),
            }
        found[group] = {"sets": ids, "rows": rows}
    return found


def _form(values: Mapping[str, float], name: str) -> float:
    forms = (values.get(n, math.nan) for n in _MAD_FORMS.get(name, (name,)))
    return next((v for v in forms if not math.isnan(v)), math.nan)


def _overall(
    plan: Plan, metric: str, values: dict[str, dict[str, dict[str, float]]]
) -> dict[str, Any]:
    """Return mean ranks over the sets, with Friedman's test where there is enough to test."""
    from scipy.stats import rankdata

    sets = [id for id, by in values.items() if any(not math.isnan(v[metric]) for v in by.values())]
    methods = [
        m
        for m in plan.methods
        if all(not math.isnan(values[id].get(m, {}).get(metric, math.nan)) for id in sets)
    ]
    left_out = [m for m in plan.methods if m not in methods]
    entry: dict[str, Any] = {"metric": metric, "sets": sets, "left_out": left_out, "test": None}
    if not sets or not methods:
        return {**entry, "mean_ranks": {}, "reason": "no method has this metric on every set"}
    table = np.array([[values[id][m][metric] for m in methods] for id in sets])
    mean = rankdata(-table, axis=1).mean(axis=0)
    order = np.argsort(mean, kind="stable")
    entry["mean_ranks"] = {methods[i]: float(mean[i]) for i in order}
    if len(sets) < FEWEST or len(methods) < FEWEST:
        entry["reason"] = (
            f"a critical-difference diagram needs {FEWEST} sets and {FEWEST} methods that have "
            f"figures on all of them, not {len(sets)} and {len(methods)}"
        )
        return entry
    ranking = rank_methods(table, methods, alpha=ALPHA)
    entry["test"] = {
        "methods": list(ranking.methods),
        "mean_ranks": ranking.mean_ranks.tolist(),
        "friedman_chi_square": ranking.chi_square,
        "friedman_p": ranking.chi_square_p,
        "critical_difference": ranking.critical_difference,
        "groups": [list(g) for g in ranking.groups],
        "alpha": ranking.alpha,
        "sets": len(sets),
    }
    return entry


def _number(value: Any) -> float | None:
    """A number for JSON, None for what isn't finite."""
    value = float(value)
    return value if math.isfinite(value) else None
