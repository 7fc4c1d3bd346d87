"""False alarms at another site before and after `normscan calibrate`, by healthy scans of that site.

    python benchmarks/elsewhere.py --work WORK --weights FILE.pth

Both sites are simulated. The second has twice the noise and a stronger bias field. A detector of the
first scores the second's scans once; then so many of its healthy subjects, drawn at random again and
again, set the threshold, and the others and the lesioned ones are judged. Writes
``benchmarks/results/elsewhere.md``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from normscan.cohort import Cohort
from normscan.decide import ScanThreshold
from normscan.detector import Detector, Finding
from normscan.phantom import simulate

RESULTS = Path(__file__).parent / "results" / "elsewhere.md"
HERE: dict[str, Any] = {"healthy": 150, "lesioned": 40, "seed": 0}
THERE: dict[str, Any] = {"healthy": 200, "lesioned": 40, "seed": 1, "noise": 0.04, "bias": 0.16}
METHODS = ("image_statistics", "mean_image", "patchcore")
COUNTS = (10, 20, 30, 50)
DRAWS, FPR = 1000, 0.05


def cohort_of(folder: Path, options: dict[str, Any]) -> Cohort:
    """A simulated cohort, made once."""
    table = folder / "cohort.csv"
    return Cohort.read(table if table.exists() else simulate(folder, **options))


def scored(detector: Detector, cohort: Cohort, label: int) -> np.ndarray:
    """Scores of the healthy or the lesioned scans."""
    rows = cohort.select([row.label == label for row in cohort])
    found = [f for _, f in detector.predict_cohort(rows, force=True)]
    assert all(isinstance(f, Finding) for f in found)
    return np.array([f.score for f in found if isinstance(f, Finding)])


def shares(threshold: float, healthy: np.ndarray, lesioned: np.ndarray) -> tuple[float, float]:
    """False alarms and sensitivity."""
    return float(np.mean(healthy > threshold)), float(np.mean(lesioned > threshold))


def lines_of(method: str, detector: Detector, there: Cohort) -> list[str]:
    """Rows of the table: the detector's own threshold, then those of the site."""
    healthy, lesioned = (scored(detector, there, label) for label in (0, 1))
    assert detector.scan_threshold is not None
    own = detector.scan_threshold
    alarms, found = shares(own.threshold, healthy, lesioned)
    lines = [f"| {method} | its own | {own.expected_fpr:.3f} | {alarms:.3f} | | {found:.3f} |"]
    rng = np.random.default_rng(0)
    for n in COUNTS:
        drawn = []
        for _ in range(DRAWS):
            order = rng.permutation(len(healthy))
            threshold = ScanThreshold(healthy[order[:n]], FPR)
            drawn.append(shares(threshold.threshold, healthy[order[n:]], lesioned))
        alarms, found = np.mean(drawn, axis=0)
        low, high = np.quantile([a for a, _ in drawn], [0.1, 0.9])
        lines.append(
            f"| {method} | {n} of the site | {threshold.expected_fpr:.3f} | {alarms:.3f} | "
            f"{low:.2f} to {high:.2f} | {found:.3f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", required=True, help="of a ResNet-18, for patchcore")
    args = parser.parse_args()
    here, there = (cohort_of(args.work / k, o) for k, o in (("here", HERE), ("there", THERE)))
    rows: list[str] = []
    for method in METHODS:
        more = {"weights": args.weights} if method == "patchcore" else {}
        detector = Detector(method, preset="laptop" if more else "paper", seed=0,
                            calibration="split", **more).fit(here)  # fmt: skip
        rows += lines_of(method, detector, there)
        print(*rows[-len(COUNTS) - 1 :], sep="\n", flush=True)
    text = f"""# Calibration at another site

Command: `python benchmarks/elsewhere.py --work WORK --weights \
../shared/weights/resnet18_imagenet1k_v1_bnfolded_conv1_to_layer3.pth`

Trained on a simulated cohort ({HERE}), tried on another one ({THERE}). Wanted rate {FPR}. In each of
{DRAWS} draws so many healthy subjects of the second set the threshold, as `normscan calibrate` does,
and its other healthy subjects and its lesioned ones are judged: means, and the 10th to 90th percentile
of the false alarms over draws.

| method | threshold from | promised | false alarms | of single draws | sensitivity |
|---|---|---|---|---|---|
"""
    RESULTS.write_text(text + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
