"""Which noise should a denoising autoencoder learn to remove? Coarse, pixel and simplex noise.

    python benchmarks/dae_noise.py --phantom PHANTOM --real ../shared/data/splits/lgg_flair_slices.csv
        --root ../shared/data

Each cell fits ``dae`` with its ``laptop`` preset on the healthy training scans and scores the test
scans through the library's own prediction path. The table is written anew after each cell, and a cell
that stands in ``benchmarks/results/dae_noise.json`` with the same settings is not run again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import torch

from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.evaluation import score_cohort, summarise
from normscan.io import atomic_path
from normscan.io.values import read_json, write_json

RESULTS = Path(__file__).parent / "results" / "dae_noise.json"
SHOWN = {"image_auroc": "image AUROC", "pixel_ap": "pixel AP", "best_dice": "best Dice (oracle)"}


def run_cell(cohort: Cohort, options: dict, seed: int) -> dict:
    """Fit and score one noise on one set."""
    begun = time.process_time()
    method = "mean_image" if options["noise"] == "mean image" else "dae"
    arguments = {} if method == "mean_image" else options
    torch.set_num_threads(1)
    detector = Detector(
        method, preset="laptop", seed=seed, gate=False, calibration="split", **arguments
    ).fit(cohort)
    fitted = time.process_time() - begun
    test = cohort.part("test")
    scores = score_cohort(detector, test)
    metrics, _ = summarise(scores, detector.pixel_threshold, test.has_masks, detector.fpr)
    figures = {k: {n: metrics[k].get(n) for n in ("value", "low", "high")} for k in SHOWN}
    return {"metrics": figures, "cpu_seconds": round(fitted, 1), "scans": len(scores.rows)}


def table(cells: list[dict], command: str) -> str:
    """Return the Markdown of the cells, best pixel AP first."""
    lines = ["# The noise of the denoising autoencoder", "", f"Command: `{command}`", ""]
    lines += [
        "`dae` with its `laptop` preset and the number of updates of the column, one row per noise, "
        "its standard deviation and seed; the noise of 0 updates is none at all. In brackets the 95 % "
        "bootstrap interval by subject.", "",
    ]  # fmt: skip
    for name in dict.fromkeys(c["set"] for c in cells):
        here = [c for c in cells if c["set"] == name]
        lines += [f"## {name}, {here[0]['scans']} test scans", ""]
        lines += ["| noise | SD | updates | seed | " + " | ".join(SHOWN.values()) + " | CPU s |"]
        lines += ["|---" * (5 + len(SHOWN)) + "|"]
        for cell in sorted(here, key=lambda c: -c["metrics"]["pixel_ap"]["value"]):
            figures = (
                f"{m['value']:.3f}"
                + (f" [{m['low']:.3f}, {m['high']:.3f}]" if m["low"] is not None else "")
                for m in cell["metrics"].values()
            )
            o = cell["options"]
            row = [
                o["noise"],
                o.get("noise_std", ""),
                o.get("steps", ""),
                cell["seed"],
                *figures,
                cell["cpu_seconds"],
            ]
            lines.append("| " + " | ".join(map(str, row)) + " |")
        lines.append("")
    return "\n".join(lines)


def write(cells: list[dict], command: str) -> None:
    """Write the cells and their table."""
    write_json(RESULTS, json.loads(json.dumps({"command": command, "cells": cells}, default=str)))
    with atomic_path(RESULTS.with_suffix(".md")) as temporary:
        temporary.write_text(table(cells, command), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phantom", type=Path, help="folder of a simulated cohort, 2D")
    parser.add_argument("--real", type=Path, nargs="*", default=[], help="tables of real cohorts")
    parser.add_argument("--root", type=Path, help="folder of the tables' relative paths")
    parser.add_argument("--noises", nargs="+", default=["coarse", "pixel", "simplex"])
    parser.add_argument("--std", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    command = " ".join(["python", *map(shlex.quote, sys.argv)])
    cells = read_json(RESULTS)["cells"] if RESULTS.exists() else []
    sets = {"phantom": Cohort.read(args.phantom)} if args.phantom else {}
    sets |= {path.stem: Cohort.read(path, root=args.root) for path in args.real}
    wanted = [{"noise": n, "noise_std": args.std, "steps": args.steps} for n in args.noises]
    wanted = [{"noise": "mean image"}, {**wanted[0], "steps": 0}, *wanted]
    for seed in range(args.seeds):
        for name, cohort in sets.items():
            for options in wanted:
                key = {"set": name, "options": options, "seed": seed}
                if any(all(c[k] == v for k, v in key.items()) for c in cells):
                    continue
                cells.append({**key, **run_cell(cohort, options, seed)})
                write(cells, command)
                print(name, options, seed, cells[-1]["metrics"], flush=True)
    write(cells, command)


if __name__ == "__main__":
    main()
