"""All methods on the phantom and on small real sets, several seeds: image and pixel figures.

    python benchmarks/first_methods.py run --data ../shared/data --weights ../shared/weights/...pth
    python benchmarks/first_methods.py table

``run`` fits each method with its ``laptop`` preset on the healthy training scans, sets the threshold
on healthy validation scans, and scores the test scans through the library's own prediction path.
A finished cell (set, method, seed) is not run again; several processes may share the work. ``table``
writes ``benchmarks/results/first_methods.json`` and ``.md`` from the cells.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

from normscan.cohort import Cohort
from normscan.detector import Detector, storage
from normscan.evaluation import score_cohort, summarise
from normscan.evaluation.scoring import group_column
from normscan.evaluation.summary import group_metrics
from normscan.io.values import write_json
from normscan.phantom import simulate

METHODS = (
    "image_statistics", "mean_image", "hist_threshold_baseline", "patchcore", "ae_dense", "vae",
    "dae", "f_anogan", "anoddpm", "dae@percentile",
)  # fmt: skip
PHANTOMS = {
    "phantom_2d": {"healthy": 200, "lesioned": 48, "seed": 0},
    "phantom_3d": {"healthy": 40, "lesioned": 16, "dims": 3, "spacing": 3.0, "seed": 0},
}
REAL = ("brain_mri_kaggle", "head_ct_kaggle", "lgg_flair_slices")
SETS = ("phantom_2d", "brain_mri_kaggle", "head_ct_kaggle", "phantom_3d", "lgg_flair_slices")
VOLUME = {"dims": 3, "size": 48, "width": 8, "batch_size": 2, "steps": 300}
VOLUMETRIC = ("dae", "dae@percentile", "hist_threshold_baseline", "mean_image")
RESULTS = Path(__file__).parent / "results" / "first_methods"
SHOWN = ("image_auroc", "image_ap", "pixel_ap", "best_dice", "dice")


def cohort_of(name: str, work: Path, data: Path) -> Cohort:
    """The cohort of a set; a phantom is simulated once."""
    if name in PHANTOMS:
        folder = work / name / "cohort"
        if not folder.exists():
            simulate(folder, **PHANTOMS[name])
        return Cohort.read(folder)
    return Cohort.read(data / name)


def options_of(method: str, name: str, weights: Path) -> dict:
    """Arguments besides the preset."""
    if method == "patchcore":
        return {"weights": str(weights)}
    return VOLUME if name == "phantom_3d" and method == "dae" else {}


def run_cell(name: str, method: str, seed: int, work: Path, data: Path, weights: Path) -> dict:
    """Fit and score one method on one set with one seed."""
    cohort = cohort_of(name, work, data)
    # "dae@percentile" is dae with another scaling of the intensities.
    base, _, scaling = method.partition("@")
    options = options_of(base, name, weights)
    preprocess = {"scaling": scaling} if scaling else None
    begun = time.monotonic()
    detector = Detector(
        base, preset="laptop", seed=seed, preprocess=preprocess, calibration="split", **options
    )
    detector.fit(cohort)
    fitted = time.monotonic() - begun
    test = cohort.part("test")
    group = group_column(test)
    scores = score_cohort(detector, test, group=group)
    metrics, pixels = summarise(scores, detector.pixel_threshold, test.has_masks, detector.fpr)
    decision = {
        "flagged_anomalous": sum(bool(r["anomalous"]) for r in scores.rows if r["label"] == 1),
        "flagged_healthy": sum(bool(r["anomalous"]) for r in scores.rows if r["label"] == 0),
        "expected_fpr": detector.scan_threshold.expected_fpr,
    }
    return {
        "set": name,
        "method": method,
        "seed": seed,
        "options": {k: v for k, v in options.items() if k != "weights"},
        "metrics": metrics,
        "pixels": pixels,
        "groups": group_metrics(scores, group, detector) if group else [],
        "decision": decision,
        "failures": len(scores.failures),
        "n": {str(k): sum(r["label"] == k for r in scores.rows) for k in (0, 1)},
        "seconds": {"fit": round(fitted, 1), "predict": sum(r["seconds"] for r in scores.rows)},
        "versions": storage.versions(),
    }


def run(args: argparse.Namespace) -> None:
    for seed in range(args.seeds):
        for name in args.sets:
            for method in args.methods:
                if name == "phantom_3d" and method not in VOLUMETRIC:
                    continue
                if "@" in method and name not in PHANTOMS:
                    continue
                if seed and method in ("image_statistics", "mean_image", "hist_threshold_baseline"):
                    continue  # nothing random in them
                path = args.work / name / f"{method}-{seed}.json"
                claim = path.with_suffix(".claimed")
                if path.exists() or claim.exists():
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                claim.touch()
                try:
                    cell = run_cell(name, method, seed, args.work, args.data, args.weights)
                    write_json(path, json.loads(json.dumps(cell, default=str)))
                finally:
                    claim.unlink()
                figures = {
                    k: round(cell["metrics"][k]["value"], 3) for k in SHOWN if k in cell["metrics"]
                }
                print(name, method, seed, figures, cell["seconds"], flush=True)


def summary(values: list[float]) -> str:
    values = [v for v in values if v is not None and math.isfinite(v)]
    if not values:
        return ""
    text = f"{statistics.mean(values):.3f}"
    return text + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def table(args: argparse.Namespace) -> None:
    cells = [json.loads(p.read_text()) for p in sorted(args.work.glob("*/*.json")) if "-" in p.name]
    write_json(RESULTS.with_suffix(".json"), {"command": args.command_line, "cells": cells})
    lines = ["# First methods", "", f"Command: `{args.command_line}`, then `table`.", ""]
    lines += [
        "Preset `laptop`, fixed splits, healthy training scans only. Mean ± standard "
        "deviation over seeds; in brackets the 95 % bootstrap interval by subject of seed 0. Image "
        "AUROC and AP over scans; pixel AP and best Dice (oracle) and Dice at the healthy threshold "
        "over all pixels of all test scans pooled. The seeds that were run are counted in the table. "
        "They were run in parts, by two workers of one thread each (--threads 1) beside other work, "
        "and stopped before all three seeds were done; the times suffer from that.", "",
    ]  # fmt: skip
    for name in SETS:
        here = [c for c in cells if c["set"] == name]
        if not here:
            continue
        n = here[0]["n"]
        lines += [f"## {name}", "", f"Test: {n['0']} healthy, {n['1']} anomalous scans.", ""]
        lines.append(
            "| method | seeds | image AUROC | image AP | pixel AP | best Dice | Dice | fit s | s/scan |"
        )
        lines.append("|---|---|---|---|---|---|---|---|---|")
        for method in METHODS:
            mine = sorted((c for c in here if c["method"] == method), key=lambda c: c["seed"])
            if not mine:
                continue
            row = [method, str(len(mine))]
            for metric in SHOWN:
                values = [c["metrics"][metric]["value"] for c in mine if metric in c["metrics"]]
                text = summary(values)
                first = mine[0]["metrics"].get(metric)
                if first and first["low"] is not None:
                    text += f" [{first['low']:.3f}, {first['high']:.3f}]"
                row.append(text)
            row.append(f"{statistics.mean(c['seconds']['fit'] for c in mine):.0f}")
            scans = sum(mine[0]["n"].values())
            row.append(f"{statistics.mean(c['seconds']['predict'] for c in mine) / scans:.3f}")
            lines.append("| " + " | ".join(row) + " |")
        lines.append("")
        kinds = sorted({g["value"] for c in here for g in c["groups"]})
        if kinds:
            lines += ["By kind of lesion: image AUROC against all healthy scans / pixel AP among the "
                      "scans of that kind.", ""]  # fmt: skip
            lines.append("| method | " + " | ".join(kinds) + " |")
            lines.append("|---|" + "---|" * len(kinds))
            for method in METHODS:
                mine = [c for c in here if c["method"] == method]
                if not mine:
                    continue
                row = [method]
                for kind in kinds:
                    groups = [g for c in mine for g in c["groups"] if g["value"] == kind]
                    text = summary([g["image_auroc"]["value"] for g in groups])
                    ap = summary([g["pixel_ap"]["value"] for g in groups if "pixel_ap" in g])
                    row.append(f"{text} / {ap}" if ap else text)
                lines.append("| " + " | ".join(row) + " |")
            lines.append("")
    RESULTS.with_suffix(".md").write_text("\n".join(lines))
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("--work", type=Path, default=Path("runs/first_methods"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--weights", type=Path, default=Path(
        "../shared/weights/resnet18_imagenet1k_v1_bnfolded_conv1_to_layer3.pth"))  # fmt: skip
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.command_line = (
        f"python benchmarks/first_methods.py run --seeds {args.seeds} --data ../shared/data"
    )
    import torch

    torch.set_num_threads(args.threads)
    {"run": run, "table": table}[args.action](args)


if __name__ == "__main__":
    main()
