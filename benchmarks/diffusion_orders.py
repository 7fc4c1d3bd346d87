"""Orders that articles on diffusion report, on simulated FLAIR slices.

    python benchmarks/diffusion_orders.py --work runs/orders [ORDER ...]

Each order is two fits of one method that differ in one thing; what the article finds better stands
first. Results are kept in benchmarks/results/diffusion_orders.json with the sizes that they were run
at; the table goes to diffusion_orders.md beside it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.io.values import read_json, write_json
from normscan.phantom import simulate
from variational_orders import figures

RESULTS = Path(__file__).parent / "results"

# Each order: a method, and names with arguments.
ORDERS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "simplex over Gaussian noise": (
        "anoddpm",
        {"OpenSimplex": {"noise": "opensimplex"}, "Gaussian": {"noise": "gaussian"}},
    ),
    "coarse over simplex noise": (
        "coarse_noise_ddpm",
        {"coarse": {"noise": "coarse"}, "OpenSimplex": {"noise": "opensimplex", "frequency": 16.0}},
    ),
    "patches over the whole": (
        "pddpm",
        {"four patches": {"patch_size": 32}, "the whole": {"patch_size": 64}},
    ),
    "harmonised over plain": (
        "thor",
        {
            "harmonised at three steps": {"perceptual": "random"},
            "nowhere": {"perceptual": "random", "harmonise": ()},
        },
    ),
}


def cohort_of(asked: argparse.Namespace) -> Cohort:
    """Simulated slices, made once."""
    folder = asked.work / f"phantom_{asked.healthy}_{asked.lesioned}"
    if not folder.exists():
        simulate(folder, healthy=asked.healthy, lesioned=asked.lesioned)
    return Cohort.read(folder)


def run(order: str, cohort: Cohort, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Fit and score both forms."""
    rows = []
    method, forms = ORDERS[order]
    for name, arguments in forms.items():
        begun = time.process_time()
        detector = Detector(
            method, preset="laptop", gate=False, calibration="split", steps=asked.steps, **arguments
        ).fit(cohort, device="cpu")
        row = {
            "order": order, "method": method, "what": name, "healthy": asked.healthy,
            "lesioned": asked.lesioned, "steps": asked.steps,
            "cpu_seconds": round(time.process_time() - begun, 1),
        }  # fmt: skip
        rows.append(row | figures(detector, cohort.part("test")))
        print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The page."""
    lines = [
        "# Orders of the diffusion family",
        "",
        "By `python benchmarks/diffusion_orders.py --work runs/orders`: simulated FLAIR slices, laptop "
        "presets at 64 pixels, one seed, so an order that holds here says little, and one that doesn't "
        "as little. What the articles find better stands first. LPIPS of `thor` has random weights.",
        "",
        "| order | method | what | healthy, lesioned | updates | image AUROC | pixel AP | fit CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['order']} | {row['method']} | {row['what']} | {row['healthy']}, "
            f"{row['lesioned']} | {row['steps']} | {row['image_auroc']:.3f} | {row['pixel_ap']:.3f} | "
            f"{row['cpu_seconds']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("orders", nargs="*", default=list(ORDERS), help=", ".join(ORDERS))
    parser.add_argument("--work", type=Path, required=True, help="where the phantom is simulated")
    parser.add_argument("--healthy", type=int, default=60)
    parser.add_argument("--lesioned", type=int, default=30)
    parser.add_argument("--steps", type=int, default=300)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    stored = RESULTS / "diffusion_orders.json"
    cohort = cohort_of(asked)
    for order in asked.orders:
        found = run(order, cohort, asked)
        kept = read_json(stored) if stored.exists() else []
        rows = [row for row in kept if row["order"] != order] + found
        rows.sort(key=lambda row: list(ORDERS).index(row["order"]))
        write_json(stored, rows)
        stored.with_suffix(".md").write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
