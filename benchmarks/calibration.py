"""What the decision finds at the rate that it keeps: a split beside cross-calibration.

    python benchmarks/calibration.py --data ../shared/data --weights FILE.pth [--sets ...] [--methods ...]

Each cell is (set, method, kind, seed). Seed 0 has the fixed split; the others deal the healthy scans
of train and val out anew, by subject, with the same sizes. Test is never touched. ``oracle`` is the
sensitivity at the threshold of the test's own healthy scans that gives as many false alarms;
``oracle at 5 %`` the one that allows 5 % of them. Both need the labels of the test. Cells that
``benchmarks/results/calibration.csv`` holds are not run again (remove its lines where the code that
they measured has changed); each new one is added to it, and the table in ``calibration.md`` is
written again from it.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from _options import write_below
from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.errors import NormscanError
from normscan.metrics.images import image_metrics

RESULTS = Path(__file__).parent / "results" / "calibration.md"
CELLS = RESULTS.with_suffix(".csv")
KEY = ["set", "method", "kind", "seed"]
KINDS = ("split", "cross", "refit")
FPR = 0.05
# Those made for DINOv2, whose weights aren't at hand, run on the third stage of a ResNet-18.
STAGE = {"backbone": "resnet18.tv_in1k", "taps": ["layer3"]}
FEATURES: dict[str, dict[str, Any]] = {
    "patchcore": {},
    "padim": {},
    "rd4ad": {},
    "anomaly_dino": STAGE,
    "dinomaly": {**STAGE, "groups": 1, "size": 128, "map_size": 128},
}
OTHERS: dict[str, dict[str, Any]] = {"dae": {"steps": 400}}


def dealt(cohort: Cohort, seed: int) -> Cohort:
    """Return the cohort with other subjects in val, as many of them; as it is for seed 0."""
    if not seed:
        return cohort
    table = cohort.table.copy()
    healthy = table["split"].isin(["train", "val"])
    subjects = np.array(sorted(table.loc[healthy, "subject"].unique()))
    count = table.loc[table["split"] == "val", "subject"].nunique()
    chosen = set(np.random.default_rng(seed).permutation(subjects)[:count])
    split = ["val" if s in chosen else "train" for s in table.loc[healthy, "subject"]]
    table.loc[healthy, "split"] = split
    return Cohort(table, cohort.root)


def cell(
    name: str, method: str, kind: str, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Fit and predict; return the cell's figures."""
    data, weights = options.data, options.weights
    cohort = dealt(Cohort.read(data / "splits" / f"{name}.csv", root=data), seed)
    arguments = {**FEATURES[method], "weights": weights} if method in FEATURES else {}
    arguments |= OTHERS.get(method, {})
    detector = Detector(
        method, preset="laptop", seed=seed, fpr=FPR, gate=False, refit=kind == "refit",
        calibration="split" if kind == "split" else "cross", **arguments,
    )  # fmt: skip
    begun = time.process_time()
    detector.fit(cohort)
    seconds = time.process_time() - begun
    labels, scores, flagged = [], [], []
    begun = time.process_time()
    for row, found in detector.predict_cohort(cohort.part("test"), force=True):
        if not isinstance(found, NormscanError):
            labels.append(row.label)
            scores.append(found.score)
            flagged.append(bool(found.anomalous))
    threshold = detector.scan_threshold
    assert threshold is not None
    return {
        **dict(zip(KEY, (name, method, kind, seed), strict=True)),
        "n": threshold.n, "rank": threshold.rank, "promised": threshold.expected_fpr,
        **figures(np.array(labels), np.array(scores), np.array(flagged)),
        "fit": seconds, "predict": time.process_time() - begun,
    }  # fmt: skip


def sensitivity(healthy: np.ndarray, lesioned: np.ndarray, alarms: int) -> float:
    """Share of lesioned scans above the threshold that gives so many false alarms."""
    ranked = np.sort(healthy)[::-1]
    return float(np.mean(lesioned > ranked[min(alarms, len(ranked) - 1)]))


def figures(labels: np.ndarray, scores: np.ndarray, flagged: np.ndarray) -> dict[str, float]:
    """What was flagged, and what the oracles would find."""
    healthy, lesioned = scores[labels == 0], scores[labels == 1]
    alarms = int(flagged[labels == 0].sum())
    low, high = binomtest(alarms, len(healthy)).proportion_ci(method="exact")
    return {
        "auroc": image_metrics(scores, labels).auroc.value,
        "alarms": alarms / len(healthy), "low": low, "high": high,
        "sensitivity": float(flagged[labels == 1].mean()),
        "oracle": sensitivity(healthy, lesioned, alarms),
        "oracle5": sensitivity(healthy, lesioned, int(FPR * len(healthy))),
    }  # fmt: skip


def table(cells: pd.DataFrame) -> str:
    """Return the table of all cells."""
    rows = [
        "| set | method | kind | deals | healthy (rank) | promised | false alarms (range; interval of "
        "the first) | sensitivity (range) | oracle, same alarms | oracle at 5 % | AUROC | fit, CPU s | "
        "test, CPU s |",
        "|" + "---|" * 13,
    ]
    for key, deals in cells.sort_values(KEY).groupby(KEY[:3]):
        mean, least, most = (deals.agg(how, numeric_only=True) for how in ("mean", "min", "max"))
        first = deals.iloc[0]
        ends = {c: f"{least[c]:.2f} to {most[c]:.2f}" for c in ("alarms", "sensitivity")}
        rows.append(
            f"| {' | '.join(map(str, key))} | {len(deals)} | {first['n']:.0f} ({first['rank']:.0f}) | "
            f"{first['promised']:.3f} | {mean['alarms']:.3f} ({ends['alarms']}; "
            f"[{first['low']:.2f}, {first['high']:.2f}]) | {mean['sensitivity']:.3f} "
            f"({ends['sensitivity']}) | {mean['oracle']:.3f} | {mean['oracle5']:.3f} | "
            f"{mean['auroc']:.3f} | {mean['fit']:.0f} | {mean['predict']:.0f} |"
        )
    return "\n".join(rows) + "\n"


def main() -> None:
    """Run cells, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--sets", nargs="+", default=["brain_mri_kaggle", "head_ct_kaggle"])
    parser.add_argument("--methods", nargs="+", default=["patchcore", "padim"])
    parser.add_argument("--kinds", nargs="+", default=["split", "cross"], choices=KINDS)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    asked = itertools.product(options.sets, options.methods, options.kinds, range(options.seeds))
    for key in sorted(asked, key=lambda key: key[-1]):
        cells = pd.read_csv(CELLS) if CELLS.exists() else pd.DataFrame(columns=KEY)
        if key in set(cells[KEY].itertuples(index=False, name=None)):
            continue
        row = pd.DataFrame([cell(*key, options)])
        cells = pd.concat([cells, row]) if len(cells) else row
        cells.sort_values(KEY).to_csv(CELLS, index=False, float_format="%.4f")
        print(row.to_string(header=len(cells) == 1, index=False), flush=True)
    write_below(RESULTS, table(pd.read_csv(CELLS)))


if __name__ == "__main__":
    main()
