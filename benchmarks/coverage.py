"""False alarms of cross-calibration by simulation, beside the rate that is promised.

    python benchmarks/coverage.py

Healthy subjects are points of a normal distribution; a member's score is the distance from the mean
of its training subjects, so that members differ as they do in practice. ``ties`` rounds scores to
halves; ``scans`` gives every subject three scans around it, and a new subject counts as flagged where
any of its three is. In each repetition a new cohort is drawn and 20 new healthy subjects are judged.
The interval of the mean over repetitions is that of a normal mean of their shares. Writes
``benchmarks/results/coverage.md``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from normscan.decide import CrossThreshold, ScanThreshold

RESULTS = Path(__file__).parent / "results" / "coverage.md"
REPETITIONS, NEW, DIMS, FPR = 500, 20, 4, 0.1
Points = npt.NDArray[np.float64]


def subjects(rng: np.random.Generator, n: int, scans: int) -> Points:
    """Draw subjects (n, scans, DIMS)."""
    centres = rng.normal(size=(n, 1, DIMS))
    return centres + (0.5 * rng.normal(size=(n, scans, DIMS)) if scans > 1 else 0)


def score(points: Points, mean: Points, ties: bool) -> Points:
    """Highest distance of each subject's scans from the mean."""
    found = np.linalg.norm(points - mean, axis=2).max(axis=1)
    return np.round(found * 2) / 2 if ties else found


def shares(n: int, folds: int, ties: bool, scans: int, kept: str) -> tuple[Points, float, float]:
    """Flagged share of new subjects in each repetition, the promised and the guaranteed rate."""
    rng = np.random.default_rng([n, folds, ties, scans])
    fold = np.arange(n) % folds
    found = np.empty(REPETITIONS)
    for i in range(REPETITIONS):
        healthy, new = subjects(rng, n, scans), subjects(rng, NEW, scans)
        sums = np.stack([healthy[fold == k].sum((0, 1)) for k in range(folds)])
        others = (n - np.bincount(fold, minlength=folds))[:, None] * scans
        means = (sums.sum(0) - sums) / others
        parts = [score(healthy[fold == k], means[k], ties) for k in range(folds)]
        threshold = CrossThreshold(parts, FPR)
        if kept == "folds":
            scores = np.stack([score(new, mean, ties) for mean in means], axis=1)
        else:
            scores = score(new, healthy.mean((0, 1)), ties)[:, None]
        p_values = threshold.p_values_of(scores)
        found[i] = np.mean(np.round(p_values * (n + 1)) <= threshold.rank)
    return found, threshold.expected_fpr, threshold.guaranteed


def split_shares(n: int, ties: bool, scans: int) -> tuple[Points, float]:
    """The same of a split that keeps a fifth of the subjects for the threshold."""
    rng = np.random.default_rng([n, ties, scans])
    val, found = max(1, n // 5), np.empty(REPETITIONS)
    for i in range(REPETITIONS):
        healthy, new = subjects(rng, n, scans), subjects(rng, NEW, scans)
        mean = healthy[val:].mean((0, 1))
        threshold = ScanThreshold(score(healthy[:val], mean, ties), FPR)
        found[i] = np.mean(score(new, mean, ties) > threshold.threshold)
    return found, threshold.expected_fpr


def row(name: str, found: Points, promised: float, bound: str) -> str:
    """Return a line of the table."""
    mean, half = found.mean(), 1.96 * found.std(ddof=1) / np.sqrt(len(found))
    inside = "yes" if promised >= mean - half else "**no**"
    return (
        f"| {name} | {promised:.3f} | {mean:.3f} [{mean - half:.3f}, {mean + half:.3f}] | "
        f"{np.quantile(found, 0.1):.2f} to {np.quantile(found, 0.9):.2f} | {bound} | {inside} |"
    )


def main() -> None:
    """Simulate and write the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    lines = [
        "# Coverage of cross-calibration, by simulation",
        "",
        "Command: `python benchmarks/coverage.py`. "
        f"{REPETITIONS} cohorts each, {NEW} new healthy subjects a cohort, wanted rate {FPR}.",
        "*Kept* says whether the promised rate is not below the interval of the realised one.",
        "",
        "| n, folds, kind | promised | realised, mean over cohorts | 10th to 90th percentile of a "
        "cohort | guaranteed | kept |",
        "|---|---|---|---|---|---|",
    ]
    for ties, scans in ((False, 1), (True, 1), (False, 3)):
        kind = ", ties" if ties else ", 3 scans a subject" if scans > 1 else ""
        for n in (8, 20, 50, 200):
            found, promised = split_shares(n, ties, scans)
            lines.append(row(f"{n}, split{kind}", found, promised, f"{promised:.3f}"))
            for folds in sorted({3, 5, n}):
                for kept in ("folds", "refit"):
                    found, promised, bound = shares(n, folds, ties, scans, kept)
                    proven = f"{bound:.3f}" if kept == "folds" else "none"
                    lines.append(row(f"{n}, K={folds}, {kept}{kind}", found, promised, proven))
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
