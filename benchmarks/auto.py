"""What ``normscan fit auto`` finds, beside each of its candidates alone and the best in hindsight.

    python benchmarks/auto.py run --data ../shared/data --work WORK [--sets phantom,...] [--seeds 0]

A cell is (set, seed). ``auto`` is fitted by its usual way; then each candidate of its plan alone, with the
same preset, the same calibration and its own preprocessing. The test labels are looked at when all is
fitted, and choose nothing but the column that says so. A finished cell is not run again.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score

from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.errors import NormscanError
from normscan.io.values import read_json, write_json
from normscan.metrics.images import image_metrics
from normscan.phantom import simulate as simulated_cohort

SETS = (
    "phantom", "brain_mri_kaggle", "head_ct_kaggle", "lgg_flair_slices", "magnetic_tile_defects",
    "chest_xray_kermany_224",
)  # fmt: skip
FPR = 0.05
PIXELS = 500_000  # of all test maps, for the pixel AP


def cohort_of(name: str, seed: int, options: Any) -> Cohort:
    if name != "phantom":
        return Cohort.read(options.data / "splits" / f"{name}.csv", root=options.data)
    folder = options.work / f"phantom-{seed}"
    if not (folder / "cohort.csv").exists():
        shutil.rmtree(folder, ignore_errors=True)
        simulated_cohort(folder, healthy=160, lesioned=40, seed=1000 + seed)
    return Cohort.read(folder / "cohort.csv")


def tested(detector: Detector, cohort: Cohort) -> dict[str, Any]:
    """Figures on the test part."""
    labels, scores, flagged, maps, masks = [], [], [], [], []
    for row, found in detector.predict_cohort(cohort.part("test"), force=True):
        if isinstance(found, NormscanError):
            continue
        labels.append(row.label)
        scores.append(found.score)
        flagged.append(bool(found.anomalous))
        mask = row.load_mask(found.scan)
        if found.map is not None and (mask is not None or row.label == 0):
            empty = np.zeros(found.map.shape, bool)
            maps.append(found.map.ravel())
            masks.append((empty if mask is None else mask).ravel())
    truth, called = np.array(labels), np.array(flagged)
    threshold = detector.scan_threshold
    assert threshold is not None
    healthy = int((truth == 0).sum())
    low, high = binomtest(int(called[truth == 0].sum()), healthy).proportion_ci(method="exact")
    pixel = None
    if any(m.any() for m in masks):
        values, lesion = np.concatenate(maps), np.concatenate(masks)
        if len(values) > PIXELS:
            taken = np.random.default_rng(0).choice(len(values), PIXELS, replace=False)
            values, lesion = values[taken], lesion[taken]
        pixel = float(average_precision_score(lesion, values))
    return {
        "auroc": image_metrics(np.array(scores), truth).auroc.value, "pixel_ap": pixel,
        "sensitivity": float(called[truth == 1].mean()), "alarms": float(called[truth == 0].mean()),
        "promised": threshold.expected_fpr, "low": low, "high": high, "tested": len(truth),
    }  # fmt: skip


def cell(name: str, seed: int, options: Any) -> dict[str, Any]:
    cohort = cohort_of(name, seed, options)
    begun = time.monotonic()
    auto = Detector("auto", seed=seed, fpr=FPR, gate=False, minutes=options.minutes)
    folder = options.work / f"auto-{name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    auto.fit(cohort, folder)
    entry: dict[str, Any] = {
        "set": name, "seed": seed, "seconds": time.monotonic() - begun,
        "auto": tested(auto, cohort), "plan": auto.training["plan"],
        "evidence": auto.training["evidence"], "alone": {},
    }  # fmt: skip
    for candidate in entry["plan"]["arguments"]["candidates"]:
        method, _, preset = candidate.partition(":")
        begun = time.monotonic()
        alone = Detector(method, preset=preset, seed=seed, fpr=FPR, gate=False)
        alone.fit(cohort)
        entry["alone"][candidate] = {
            **tested(alone, cohort), "seconds": time.monotonic() - begun
        }  # fmt: skip
    return entry


def run(options: Any) -> None:
    for name in options.sets.split(","):
        for seed in map(int, options.seeds.split(",")):
            path = options.work / f"{name}-{seed}.json"
            if not path.exists():
                write_json(path, cell(name, seed, options))
            summary(read_json(path))


def summary(entry: dict[str, Any]) -> None:
    rows = {"auto": {**entry["auto"], "seconds": entry["seconds"]}, **entry["alone"]}
    print(entry["set"], entry["seed"])
    for name, row in rows.items():
        pixel = "" if row["pixel_ap"] is None else f"{row['pixel_ap']:.3f}"
        print(
            f"  {name:<26}{row['auroc']:.3f}  {pixel:<6} sens {row['sensitivity']:.2f} "
            f"alarms {row['alarms']:.3f} [{row['low']:.3f}, {row['high']:.3f}] "
            f"{row['seconds']:.0f} s  weight {weights(entry).get(name, ('', ''))}",
            flush=True,
        )


def folds(entry: dict[str, Any]) -> list[dict[str, Any]]:
    evidence = entry["evidence"]
    return list(evidence.get("folds", [evidence]))


def weights(entry: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Mean weight and mean AUROC on planted anomalies of each candidate, over the folds."""
    found: dict[str, list[tuple[float, float]]] = {}
    for fold in folds(entry):
        for member in fold["members"]:
            area = np.nan if member["auroc"] is None else member["auroc"]
            found.setdefault(member["name"], []).append((member["weight"], area))
    return {
        name: (
            round(float(np.mean([w for w, _ in v])), 3),
            round(float(np.mean([a for _, a in v])), 3),
        )
        for name, v in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["run"])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    {"run": run}[options.command](options)


if __name__ == "__main__":
    main()
