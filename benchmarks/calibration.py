"""What the decision finds at the rate that it keeps: a split beside cross-calibration.

    python benchmarks/calibration.py run --data ../shared/data --weights FILE.pth --work WORK
    python benchmarks/calibration.py table --work WORK

Each cell is (set, method, kind, seed). Seed 0 has the fixed split; the others deal the healthy scans
of train and val out anew, by subject, with the same sizes. Test is never touched. A finished cell is
not run again. ``oracle`` is the sensitivity at the threshold of the test's own healthy scans that
gives as many false alarms; ``oracle at 5 %`` the one that allows 5 % of them. Both need the labels
of the test. ``table`` writes ``benchmarks/results/calibration.md``.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from _options import cell_options, parsed, write_below
from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.errors import NormscanError
from normscan.io.values import read_json, write_json
from normscan.metrics.images import image_metrics

RESULTS = Path(__file__).parent / "results" / "calibration.md"
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


def cell(name: str, method: str, kind: str, seed: int, data: Path, weights: str) -> dict[str, Any]:
    """Fit and predict; return what was flagged."""
    cohort = dealt(Cohort.read(data / "splits" / f"{name}.csv", root=data), seed)
    options = {**FEATURES[method], "weights": weights} if method in FEATURES else {}
    options |= OTHERS.get(method, {})
    detector = Detector(
        method, preset="laptop", seed=seed, fpr=FPR, gate=False, refit=kind == "refit",
        calibration="split" if kind == "split" else "cross", **options,
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
        "set": name, "method": method, "kind": kind, "seed": seed, "fit_cpu_seconds": seconds,
        "predict_cpu_seconds": time.process_time() - begun, "n": threshold.n,
        "rank": threshold.rank, "promised": threshold.expected_fpr, "labels": labels,
        "scores": scores, "flagged": flagged,
    }  # fmt: skip


def sensitivity(healthy: np.ndarray, lesioned: np.ndarray, alarms: int) -> float:
    """Share of lesioned scans above the threshold that gives so many false alarms."""
    ranked = np.sort(healthy)[::-1]
    return float(np.mean(lesioned > ranked[min(alarms, len(ranked) - 1)]))


def line(found: dict[str, Any]) -> dict[str, float]:
    """Figures of a cell."""
    labels, scores = np.array(found["labels"]), np.array(found["scores"])
    flagged = np.array(found["flagged"])
    healthy, lesioned = scores[labels == 0], scores[labels == 1]
    alarms = int(flagged[labels == 0].sum())
    low, high = binomtest(alarms, len(healthy)).proportion_ci(method="exact")
    return {
        "auroc": image_metrics(scores, labels).auroc.value, "promised": found["promised"],
        "alarms": alarms / len(healthy), "low": low, "high": high,
        "sensitivity": float(flagged[labels == 1].mean()),
        "oracle": sensitivity(healthy, lesioned, alarms),
        "oracle5": sensitivity(healthy, lesioned, int(FPR * len(healthy))),
        "fit": found["fit_cpu_seconds"], "predict": found["predict_cpu_seconds"],
        "n": found["n"], "rank": found["rank"],
    }  # fmt: skip


def table(work: Path) -> str:
    """Return the tables of all finished cells."""
    groups: dict[tuple[str, str, str], list[dict[str, float]]] = defaultdict(list)
    for path in sorted(work.glob("*.json")):
        found = read_json(path)
        groups[found["set"], found["method"], found["kind"]].append(line(found))
    rows = [
        "| set | method | kind | deals | healthy (rank) | promised | false alarms (range; interval of "
        "the first) | sensitivity (range) | oracle, same alarms | oracle at 5 % | AUROC | fit, CPU s | "
        "test, CPU s |",
        "|" + "---|" * 13,
    ]
    for (name, method, kind), lines in sorted(groups.items()):
        mean = {key: float(np.mean([entry[key] for entry in lines])) for key in lines[0]}
        ends = {
            key: f"{min(e[key] for e in lines):.2f} to {max(e[key] for e in lines):.2f}"
            for key in ("alarms", "sensitivity")
        }
        first = lines[0]
        rows.append(
            f"| {name} | {method} | {kind} | {len(lines)} | {first['n']:.0f} ({first['rank']:.0f}) | "
            f"{first['promised']:.3f} | {mean['alarms']:.3f} ({ends['alarms']}; "
            f"[{first['low']:.2f}, {first['high']:.2f}]) | {mean['sensitivity']:.3f} "
            f"({ends['sensitivity']}) | {mean['oracle']:.3f} | {mean['oracle5']:.3f} | "
            f"{mean['auroc']:.3f} | {mean['fit']:.0f} | {mean['predict']:.0f} |"
        )
    return "\n".join(rows) + "\n"


def main() -> None:
    """Run cells, or write the table."""
    parser = cell_options(__doc__, ("brain_mri_kaggle", "head_ct_kaggle"))
    parser.add_argument("--kinds", nargs="+", default=["split", "cross"], choices=KINDS)
    parser.add_argument("--seeds", type=int, default=3)
    options = parsed(parser)
    if options.step == "table":
        write_below(RESULTS, table(options.work))
        return
    for seed in range(options.seeds):
        for name in options.sets:
            for method in options.methods:
                for kind in options.kinds:
                    path = options.work / f"{name}-{method}-{kind}-{seed}.json"
                    if path.exists():
                        continue
                    found = cell(name, method, kind, seed, options.data, options.weights)
                    write_json(path, found)
                    print(path.stem, {k: round(v, 3) for k, v in line(found).items()}, flush=True)


if __name__ == "__main__":
    main()
