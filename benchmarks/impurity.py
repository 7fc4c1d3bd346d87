"""Impure training data: what unhealthy scans among the healthy ones cost, and whether they are found.

    python benchmarks/impurity.py --work WORK [--seeds 3]

On a simulated cohort, a share of the healthy training scans is replaced by lesioned ones that are
called healthy, as in Behrendt et al., ISBI 2022. ``impure_training`` with its remedy is compared
with the same network without it. Validation and test scans stay the same and pure. Writes
``benchmarks/results/impurity.json`` and ``.md`` after each training; the same command goes on.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.io.values import read_json, write_json
from normscan.phantom import simulate

SHARES = (0.0, 0.05, 0.1, 0.2)
ARMS = {"plain": None, "remedy": 1.5}
HEALTHY, LESIONED, POOL = 200, 80, 30
# Half the width and two thirds of the steps of the preset: 24 trainings in minutes.
SETTINGS = {"preset": "laptop", "width": 8, "steps": 400}
RESULTS = Path(__file__).parent / "results"


def contaminated(cohort: Cohort, share: float, seed: int) -> tuple[Cohort, set[str]]:
    """Replace a share of the training scans by lesioned ones; return their ids too.

    The first lesioned scans are for this, the others are for the test.
    """
    table = cohort.table.copy()
    lesioned = table.index[table["label"] == 1]
    pool = lesioned[:POOL]
    train = table.index[table["split"] == "train"]
    rng = np.random.default_rng(seed)
    n = round(share * len(train))
    chosen, out = rng.permutation(pool)[:n], rng.permutation(train)[:n]
    table.loc[chosen, ["label", "split", "mask"]] = [0, "train", None]
    left = table.drop([*out, *(set(pool) - set(chosen))])
    return Cohort(left, cohort.root), set(table.loc[chosen, "scan"])


def run(cohort: Cohort, share: float, seed: int, arm: str) -> dict[str, Any]:
    """Train and test once."""
    impure, planted = contaminated(cohort, share, seed)
    begun = time.process_time()
    detector = Detector(
        "impure_training", cut=ARMS[arm], seed=seed, gate=False, calibration="split", **SETTINGS
    )
    detector.fit(impure, device="cpu")
    seconds = time.process_time() - begun
    labels, scores, values, truth = [], [], [], []
    for row, finding in detector.predict_cohort(impure.part("test"), details=True):
        labels.append(row.label)
        scores.append(finding.score)
        mask = row.load_mask(finding.scan) if row.label else np.zeros(finding.map.shape, bool)
        values.append(finding.map[finding.foreground])
        truth.append(mask[finding.foreground])
    dropped = set(detector.training.get("dropped", []))
    return {
        "share": share,
        "seed": seed,
        "arm": arm,
        "image_auroc": float(roc_auc_score(labels, scores)),
        "pixel_ap": float(average_precision_score(np.hstack(truth), np.hstack(values))),
        "planted": len(planted),
        "found": len(planted & dropped),
        "healthy": detector.training["cohort_size"]["train"] - len(planted),
        "healthy_dropped": len(dropped - planted),
        "cpu_seconds": round(seconds, 1),
    }


def page(runs: list[dict[str, Any]], command: str) -> str:
    """The runs as a table: means over seeds, smallest and largest value behind."""

    def span(chosen: list[dict[str, Any]], key: str) -> str:
        x = [r[key] for r in chosen]
        return f"{np.mean(x):.3f} ({min(x):.3f} to {max(x):.3f})" if x else "-"

    seeds = sorted({r["seed"] for r in runs})
    lines = [
        "# Impure training data",
        "",
        f"Command: `{command}`, one thread of a CPU, at most "
        f"{max(r['cpu_seconds'] for r in runs):.0f} s of it for a training.",
        "",
        f"SIMULATED brains ({HEALTHY} healthy, {LESIONED} lesioned, seed 0; 2D FLAIR). A share of the "
        f"healthy training scans is replaced by lesioned ones. `impure_training`, {SETTINGS}, "
        f"{len(seeds)} seed(s), which also choose the scans: mean (least to largest). Found: lesioned "
        "training scans that were left out at the end; the last column, healthy ones that were too.",
        "",
        "| share | training | image AUROC | pixel AP | found | healthy left out |",
        "|---|---|---|---|---|---|",
    ]
    for share in SHARES:
        for arm in ARMS:
            mine = [r for r in runs if r["share"] == share and r["arm"] == arm]
            if not mine:
                continue
            counts = {
                k: sum(r[k] for r in mine)
                for k in ("found", "planted", "healthy_dropped", "healthy")
            }
            found = "{found} of {planted}".format(**counts)
            wrong = "{healthy_dropped} of {healthy}".format(**counts)
            cells = [f"{share:.0%}", arm, span(mine, "image_auroc"), span(mine, "pixel_ap")]
            cells += ["-", "-"] if arm == "plain" else [found, wrong]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the cohort")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.work / "impurity_phantom"
    if not folder.exists():
        simulate(folder, healthy=HEALTHY, lesioned=LESIONED, seed=0)
    cohort = Cohort.read(folder)
    command = f"python benchmarks/impurity.py --work WORK --seeds {options.seeds}"
    stored = RESULTS / "impurity.json"
    before = read_json(stored) if stored.exists() else {}
    runs: list[dict[str, Any]] = before["runs"] if before.get("settings") == SETTINGS else []
    done = {(r["seed"], r["share"], r["arm"]) for r in runs}
    for seed, share, arm in itertools.product(range(options.seeds), SHARES, ARMS):
        if (seed, share, arm) in done:
            continue
        runs.append(run(cohort, share, seed, arm))
        print(runs[-1], file=sys.stderr, flush=True)
        write_json(stored, {"command": command, "settings": SETTINGS, "runs": runs})
        (RESULTS / "impurity.md").write_text(page(runs, command), encoding="utf-8")


if __name__ == "__main__":
    main()
