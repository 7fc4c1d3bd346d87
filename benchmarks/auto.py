"""What ``normscan fit auto`` finds, beside each of its candidates alone and the best in hindsight.

    python benchmarks/auto.py run --data ../shared/data --work WORK [--sets phantom,...] [--seeds 0]
    python benchmarks/auto.py simulate --work WORK [--repetitions 200]
    python benchmarks/auto.py ranks --work WORK

``run``: a cell is (set, seed). ``auto`` is fitted by its usual way; then each candidate of its plan
alone, with the same preset, the same calibration and its own preprocessing. The test labels are looked
at when all is fitted, and choose nothing but the column that says so. A finished cell is not run again.

``simulate``: does choosing raise the rate of false alarms? Images of noise, candidates of which each sees
it in its own useless way, the detector as it is: in every repetition it chooses and weighs, calibrates
with folds, and decides on fresh healthy images.

``ranks``: of the finished cells, does the evidence put candidates into the order of their true AUROCs?
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest, spearmanr
from sklearn.metrics import average_precision_score

from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.errors import NormscanError
from normscan.io.values import read_json, write_json
from normscan.methods.base import Batch, Maps, Method
from normscan.metrics.images import image_metrics
from normscan.phantom import simulate as simulated_cohort
from normscan.registry import register

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
    how = options.calibration
    auto = Detector(
        "auto", seed=seed, fpr=FPR, gate=False, minutes=options.minutes, calibration=how,
        skip=tuple(filter(None, options.skip.split(","))),
    )  # fmt: skip
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
        alone = Detector(method, preset=preset, seed=seed, fpr=FPR, gate=False, calibration=how)
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


# ------------------------------------------------------------------------- simulation

SUBJECTS, FRESH, SMALL, RATE = 40, 40, 16, 0.1


class Useless(Method):
    """A random filter, and of its answer the square: a map that follows noise."""

    kernel: torch.Tensor

    def __init__(self, number: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(number)
        self.register_buffer("kernel", torch.randn(1, 1, 3, 3, generator=rng))

    def maps(self, batch: Batch) -> Maps:
        found = torch.nn.functional.conv2d(batch.image[:, :1], self.kernel, padding=1)
        return Maps(found.square())


def useless(count: int) -> tuple[str, ...]:
    """Register so many useless candidates, as presets of one method, and return their names."""

    @register("useless", paper="none", presets={f"n{i}": {"number": i} for i in range(count)})
    def build(dims: int = 2, channels: int = 1, size: int = SMALL, number: int = 0) -> Method:
        """Nothing.

        Args:
            dims: spatial axes.
            channels: of the scans.
            size: pixels along each axis.
            number: of the filter.
        """
        return Useless(number)

    return tuple(f"useless:n{i}" for i in range(count))


def repetition(seed: int, candidates: tuple[str, ...]) -> tuple[int, float, float]:
    """Return how many of the fresh images are flagged, the rate that was promised, a top weight."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(SUBJECTS + FRESH, SMALL, SMALL)).astype(np.float32)
    images += rng.normal(scale=0.2, size=(len(images), 1, 1)).astype(np.float32)
    detector = Detector(
        "auto", seed=seed, fpr=RATE, gate=False, cache=False, calibration="cross", size=SMALL,
        candidates=candidates, planted=20,
        preprocess={"scaling": "none", "foreground": "all", "crop": "none"},
    ).fit(list(images[:SUBJECTS] + 1))  # fmt: skip
    flagged = sum(bool(detector.predict(image + 1).anomalous) for image in images[SUBJECTS:])
    threshold = detector.scan_threshold
    assert threshold is not None
    told = detector.training["evidence"]
    folds_ = told.get("folds", [told])
    heaviest = float(np.mean([max(m["weight"] for m in f["members"]) for f in folds_]))
    return flagged, threshold.expected_fpr, heaviest


def simulate(options: Any) -> None:
    candidates = useless(options.useless)
    done = options.work / f"simulated-{options.useless}.json"
    rows = read_json(done) if done.exists() else []
    for seed in range(len(rows), options.repetitions):
        rows.append(repetition(seed, candidates))
        if seed % 10 == 9:
            write_json(done, rows)
    flagged, promised, heaviest = np.array(rows, float).T
    n = len(rows) * FRESH
    low, high = binomtest(int(flagged.sum()), n).proportion_ci(method="exact")
    rates = flagged / FRESH
    error = rates.std(ddof=1) / np.sqrt(len(rows))
    print(
        f"{len(rows)} repetitions, useless candidates: {len(candidates)}, healthy subjects: "
        f"{SUBJECTS}, fresh ones each: {FRESH}\n"
        f"promised {promised.mean():.4f}, realised {rates.mean():.4f}; binomial interval "
        f"[{low:.4f}, {high:.4f}], by repetition +- {1.96 * error:.4f}; "
        f"heaviest weight {heaviest.mean():.2f} on average"
    )


# ------------------------------------------------------------------------------ ranks


def ranks(options: Any) -> None:
    for path in sorted(options.work.glob("*-[0-9].json")):
        entry = read_json(path)
        if entry["alone"]:
            known = {k: a for k, (_, a) in weights(entry).items() if k in entry["alone"]}
            true = [entry["alone"][name]["auroc"] for name in known]
            rank = spearmanr(list(known.values()), true).statistic
            print(f"{entry['set']:<26}{entry['seed']}  {len(true)} candidates  {rank:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["run", "simulate", "ranks"])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--calibration", choices=["auto", "split", "cross"], default="auto")
    parser.add_argument("--skip", default="", help="methods that are not tried")
    parser.add_argument("--useless", type=int, default=20, help="candidates of the simulation")
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    {"run": run, "simulate": simulate, "ranks": ranks}[options.command](options)


if __name__ == "__main__":
    main()
