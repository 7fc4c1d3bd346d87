"""Which part of the preparation decides how patchcore does on a set: one factor changed at a time.

    python benchmarks/patchcore_ablation.py --data ../shared/data --weights FILE.pth --work WORK
    python benchmarks/patchcore_ablation.py --work WORK --table

Two ends: ``pictures`` is what picture benchmarks do (224 pixels, whole picture stretched to the
grid, values over the file's range), ``filled`` what normscan does with a scan by default (128
pixels, foreground fills the grid, each scan scaled by its own median). Both keep about 2000 patches
in the bank. The variants of an end change one thing in it. A finished cell (set, variant, seed) is
not run again. The last step writes ``benchmarks/results/patchcore_lgg.md``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.io import atomic_path
from normscan.io.values import read_json, write_json
from normscan.methods.features.memory import PatchCore
from normscan.metrics.images import image_metrics
from normscan.preprocess.foreground import foreground_mask

RESULTS = Path(__file__).parent / "results" / "patchcore_lgg.md"
SETS = ("lgg_flair_slices", "brain_mri_kaggle", "magnetic_tile_defects", "head_ct_kaggle")
BANK = 2000
REMARKS = "\n## What it means\n"
COMMAND = (
    "python benchmarks/patchcore_ablation.py --data ../shared/data --weights "
    "../shared/weights/resnet18_imagenet1k_v1_bnfolded_conv1_to_layer3.pth --work WORK"
)

FILE_RANGE = {"steps": ["full_range"], "scaling": "none"}
WHOLE = {"crop": "none", "fit": "stretch"}
OWN = {"steps": [], "scaling": "auto"}
FILLED = {"crop": "foreground", "fit": "pad"}
ENDS: dict[str, dict[str, Any]] = {
    "pictures": {"size": 224, "preprocess": {**FILE_RANGE, **WHOLE}},
    "filled": {"size": 128, "preprocess": {**OWN, **FILLED}},
}
# variant: (end, what it says, preprocessing, arguments)
VARIANTS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "pictures": ("pictures", "as it is", {}, {}),
    "pictures-median": ("pictures", "median of each slice to 0.5", OWN, {}),
    "pictures-percentile": (
        "pictures", "99th percentile of each slice to 1", {"steps": [], "scaling": "percentile"}, {},
    ),
    "pictures-minmax": (
        "pictures", "range of each slice to 0..1", {"steps": [], "scaling": "minmax"}, {},
    ),
    "pictures-filled": ("pictures", "foreground fills the grid", FILLED, {}),
    "pictures-128": ("pictures", "128 pixels", {}, {"size": 128}),
    "pictures-bank": ("pictures", "a tenth of the patches in the bank", {}, {"bank": None}),
    "pictures-k9": ("pictures", "mean over 9 neighbours", {}, {"neighbours": 9}),
    "pictures-random": ("pictures", "random weights", {}, {"weights": "random"}),
    "filled": ("filled", "as it is", {}, {}),
    "filled-range": ("filled", "file's range", FILE_RANGE, {}),
    "filled-percentile": (
        "filled", "99th percentile of each slice to 1", {"scaling": "percentile"}, {},
    ),
    "filled-minmax": ("filled", "range of each slice to 0..1", {"scaling": "minmax"}, {}),
    "filled-whole": ("filled", "whole slice on the grid", WHOLE, {}),
    "filled-224": ("filled", "224 pixels", {}, {"size": 224}),
    "filled-224-range": ("filled", "224 pixels, file's range", FILE_RANGE, {"size": 224}),
    "filled-128-whole-range": ("filled", "whole slice, file's range", {**WHOLE, **FILE_RANGE}, {}),
    "filled-bank": ("filled", "a tenth of the patches in the bank", {}, {"bank": None}),
}  # fmt: skip


def cohort_of(name: str, data: Path) -> Cohort:
    """The set with its published split."""
    return Cohort.read(data / "splits" / f"{name}.csv", root=data)


def pixel_ap(maps: list[np.ndarray], masks: list[np.ndarray]) -> float:
    """Step-wise average precision over all pixels."""
    from sklearn.metrics import average_precision_score

    truth = np.concatenate([m.ravel() for m in masks])
    return float(average_precision_score(truth, np.concatenate([m.ravel() for m in maps])))


def within_subjects(score: np.ndarray, label: np.ndarray, subject: np.ndarray) -> float | None:
    """AUROC over the pairs of a healthy and an anomalous scan of the same subject."""
    pairs = wins = 0.0
    for s in set(subject):
        a = score[(subject == s) & (label == 1)][:, None]
        h = score[(subject == s) & (label == 0)][None]
        pairs += a.size * h.size
        wins += float((a > h).sum() + 0.5 * (a == h).sum())
    return wins / pairs if pairs else None


def figures(score: list[float], label: list[int], subject: list[str]) -> dict[str, Any]:
    s, y, who = np.asarray(score), np.asarray(label), np.asarray(subject)
    found = image_metrics(s, y, who, seed=0).auroc
    return {
        "auroc": found.value, "low": found.low, "high": found.high,
        "within": within_subjects(s, y, who),
    }  # fmt: skip


def detector_of(variant: str, seed: int, train: int, weights: str) -> Detector:
    """The unfitted detector of a variant, for so many training scans."""
    end, _, changes, more = VARIANTS[variant]
    arguments = {"size": ENDS[end]["size"], "weights": weights, "bank": BANK, **more}
    bank = arguments.pop("bank")
    if bank is not None:
        patches = train * (arguments["size"] // 8) ** 2
        arguments["coreset"] = min(1.0, bank / patches)
    settings = {**ENDS[end]["preprocess"], **changes}
    return Detector(
        "patchcore", preset="laptop", preprocess=settings, seed=seed, gate=False,
        calibration="split", **arguments,
    )  # fmt: skip


def run_cell(name: str, variant: str, seed: int, data: Path, weights: str) -> dict[str, Any]:
    """Fit and score one variant."""
    cohort = cohort_of(name, data)
    test = list(cohort.part("test"))
    begun = time.monotonic()
    detector = detector_of(variant, seed, len(cohort.part("train")), weights).fit(cohort)
    columns: dict[str, list[Any]] = {k: [] for k in ("score", "smoothed", "label", "subject")}
    maps, masks = [], []
    for row in test:
        scan = row.load()
        finding = detector.predict(scan, details=False)
        assert finding.map is not None and row.label is not None
        columns["score"].append(finding.score)
        columns["smoothed"].append(float(finding.map.max()))
        columns["label"].append(row.label)
        columns["subject"].append(row.subject)
        if cohort.has_masks and (mask := row.load_mask(scan)) is not None:
            maps.append(finding.map)
            masks.append(mask > 0)
    label, subject = columns["label"], columns["subject"]
    assert isinstance(detector.method, PatchCore)
    return {
        **figures(columns["score"], label, subject),
        "smoothed": figures(columns["smoothed"], label, subject)["auroc"],
        "pixel_ap": pixel_ap(maps, masks) if masks else None,
        "bank": len(detector.method.bank.vectors),
        "seconds": round(time.monotonic() - begun, 1),
    }


def trivial(name: str, data: Path) -> dict[str, dict[str, Any]]:
    """AUROC of one number read off a test scan, without any training."""
    columns: dict[str, list[float]] = {}
    label, subject = [], []
    for row in cohort_of(name, data).part("test"):
        image = row.load().data.mean(axis=0)
        mask = foreground_mask(image[None])
        numbers = {
            "median of the foreground": np.median(image[mask]),
            "99th percentile of the foreground": np.percentile(image[mask], 99),
            "99th percentile over median": np.percentile(image[mask], 99)
            / max(np.median(image[mask]), 1e-6),
            "pixels of the foreground": mask.sum(),
        }
        for k, v in numbers.items():
            columns.setdefault(k, []).append(float(v))
        label.append(row.label)
        subject.append(row.subject)
    return {k: figures(v, label, subject) for k, v in columns.items()}


INTRODUCTION = """\
# patchcore on lgg_flair_slices: what decides it

```
{command}
```

ResNet-18 (ImageNet, layers 2 and 3), `laptop` preset, published split, bank of about 2000 patches
(a tenth of the patches where it says so), no quality gate. One factor is changed at a time, from
either end. AUROC is over test scans with its 95 % interval over subjects; *within* is the AUROC over
pairs of one patient, and *smoothed* takes the maximum of the smoothed map for the score.
"""


def write(work: Path, command: str) -> None:
    """Write the page from the finished cells."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    lines = [INTRODUCTION.format(command=command)]
    for name in SETS:
        cells = {v: work / name / f"{v}-0.json" for v in VARIANTS}
        found = {v: read_json(p) for v, p in cells.items() if p.exists()}
        if not found:
            continue
        lines += [f"\n## {name}\n", "| end | changed | AUROC | within | smoothed | pixel AP |"]
        lines += ["|---|---|---|---|---|---|"]
        for variant, cell in found.items():
            end, said, _, _ = VARIANTS[variant]
            low, high = number(cell["low"]), number(cell["high"])
            more = " | ".join(number(cell[k]) for k in ("within", "smoothed", "pixel_ap"))
            lines += [f"| {end} | {said} | {number(cell['auroc'])} [{low}, {high}] | {more} |"]
        path = work / name / "trivial.json"
        if path.exists():
            lines += ["\nOne number of the scan, without any training:\n"]
            lines += ["| number | AUROC | within |", "|---|---|---|"]
            lines += [
                f"| {k} | {number(v['auroc'])} | {number(v['within'])} |"
                for k, v in read_json(path).items()
            ]
    # What people wrote about the figures stays.
    _, mark, said = RESULTS.read_text().partition(REMARKS) if RESULTS.exists() else ("", "", "")
    text = "\n".join(lines) + "\n" + mark + said
    with atomic_path(RESULTS) as temporary:
        temporary.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=[SETS[0]])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="only write the page")
    args = parser.parse_args()
    if args.table:
        write(args.work, COMMAND)
        return
    for name in args.sets:
        numbers = args.work / name / "trivial.json"
        if not numbers.exists():
            numbers.parent.mkdir(parents=True, exist_ok=True)
            write_json(numbers, trivial(name, args.data))
        for variant in args.variants:
            path = args.work / name / f"{variant}-{args.seed}.json"
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            cell = run_cell(name, variant, args.seed, args.data, args.weights)
            write_json(path, cell)
            print(name, variant, args.seed, json.dumps(cell), flush=True)


if __name__ == "__main__":
    main()
