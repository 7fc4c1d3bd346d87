"""Orders that articles on variational autoencoders report, on simulated FLAIR slices.

    python benchmarks/variational_orders.py --work runs/orders [ORDER ...]

Each order names a network and maps or scores of it. What is compared comes from one fit where the
articles change the map only, and from two fits where they change the training. Results are kept in
benchmarks/results/variational_orders.json; the table goes to variational_orders.md beside it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.io.values import read_json, write_json
from normscan.methods.base import Maps
from normscan.methods.reconstruction import absolute
from normscan.phantom import simulate

RESULTS = Path(__file__).parent / "results"
HEALTHY, LESIONED, UNLABELLED = 100, 60, 30
STEPS = 400
Change = Callable[[Any], None]


def looking(predictor: str) -> Change:
    def change(method: Any) -> None:
        method.look = replace(method.look, predictor=predictor)

    return change


def mapping(maps: Callable[[Any, Tensor], Maps]) -> Change:
    """Another map or score of the same networks."""

    def change(method: Any) -> None:
        method.maps = torch.no_grad()(lambda batch: maps(method, batch.image))

    return change


def in_one_go(method: Any, x: Tensor) -> Maps:
    return Maps(absolute(x, method.network(x)))


def healthy_residual(method: Any, x: Tensor) -> Maps:
    network = method.member("healthy").network
    return Maps(score=(x - network(x)).abs().flatten(1).mean(1))


def dice_like(method: Any, x: Tensor) -> Maps:
    """1 - 2 sum x x^ / (sum x^2 + sum x^^2)."""
    restored = method.member("healthy").network(x)
    shared = (x * restored).flatten(1).sum(1)
    return Maps(score=1 - 2 * shared / (x.square() + restored.square()).flatten(1).sum(1))


def plainly(method: Any) -> None:
    """As it is."""


# Each order: fits (method, arguments), and under each what is read off it. First what should win.
ORDERS: dict[str, list[tuple[str, dict[str, Any], dict[str, Change]]]] = {
    "gradient of the divergence over residual": [
        (
            "vae_kl_grad",
            {},
            {
                "product of gradient and density": plainly,
                "gradient of the divergence": looking("divergence"),
                "residual": looking("residual"),
            },
        )
    ],
    "restoration over one go": [
        (name, {}, {f"{name}: moved": plainly, f"{name}: in one go": mapping(in_one_go)})
        for name in ("vae_restoration", "gmvae_restoration")
    ],
    "context encoding over none": [
        ("ce_vae", {"context_share": share}, {f"share {share} of hidden squares": plainly})
        for share in (0.5, 0.0)
    ],
    "latent dissimilarity over residuals": [
        (
            "latent_dissimilarity_vae",
            {},
            {
                "distance of codes": plainly,
                "absolute residual": mapping(healthy_residual),
                "Dice-like residual": mapping(dice_like),
            },
        )
    ],
}


def cohort_of(work: Path) -> Cohort:
    """Healthy slices and lesioned ones, of which some are for training without labels."""
    folder = work / "phantom"
    if not folder.exists():
        simulate(folder, healthy=HEALTHY, lesioned=LESIONED)
    cohort = Cohort.read(folder)
    table = cohort.table.copy()
    table.loc[table.index[table["label"] == 1][:UNLABELLED], "split"] = "extra"
    return Cohort(table, cohort.root)


def figures(detector: Detector, test: Cohort) -> dict[str, float]:
    labels, scores, values, truth = [], [], [], []
    for row, finding in detector.predict_cohort(test, details=True):
        labels.append(row.label)
        scores.append(finding.score)
        if finding.map is not None:
            mask = row.load_mask(finding.scan) if row.label else np.zeros(finding.map.shape, bool)
            values.append(finding.map[finding.foreground])
            truth.append(mask[finding.foreground])
    found = {"image_auroc": float(roc_auc_score(labels, scores))}
    if values:
        found["pixel_ap"] = float(average_precision_score(np.hstack(truth), np.hstack(values)))
    return found


def run(order: str, cohort: Cohort) -> list[dict[str, Any]]:
    rows = []
    for method, arguments, readings in ORDERS[order]:
        begun = time.process_time()
        detector = Detector(
            method, preset="laptop", gate=False, calibration="split", steps=STEPS, **arguments
        ).fit(cohort, device="cpu")
        spent = time.process_time() - begun
        chosen = getattr(detector.method, "tv_weight", None)
        for name, change in readings.items():
            change(detector.method)
            row = {"order": order, "what": name, "cpu_seconds": round(spent, 1)}
            if chosen is not None:
                row["tv_weight"] = float(chosen)
            rows.append(row | figures(detector, cohort.part("test")))
            print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Orders of the variational family",
        "",
        f"By `python benchmarks/variational_orders.py --work runs/orders`: {HEALTHY} healthy and "
        f"{LESIONED} lesioned simulated FLAIR slices ({UNLABELLED} of these unlabelled in training), "
        f"laptop presets with {STEPS} updates, one seed. What the articles find better stands first. "
        "Image scores that don't hang on the map are the same in all its forms.",
        "",
    ]
    for order in dict.fromkeys(row["order"] for row in rows):
        lines += [f"## {order[0].upper()}{order[1:]}", ""]
        lines += ["| what | image AUROC | pixel AP | fit CPU s |", "|---|---|---|---|"]
        for row in rows:
            if row["order"] == order:
                pixels = f"{row['pixel_ap']:.3f}" if "pixel_ap" in row else ""
                lines.append(
                    f"| {row['what']} | {row['image_auroc']:.3f} | {pixels} | {row['cpu_seconds']} |"
                )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("orders", nargs="*", default=list(ORDERS), help=", ".join(ORDERS))
    parser.add_argument("--work", type=Path, required=True, help="where the phantom is simulated")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    stored = RESULTS / "variational_orders.json"
    cohort = cohort_of(asked.work)
    for order in asked.orders:
        found = run(order, cohort)
        kept = read_json(stored) if stored.exists() else []
        rows = [row for row in kept if row["order"] != order] + found
        rows.sort(key=lambda row: list(ORDERS).index(row["order"]))
        write_json(stored, rows)
        stored.with_suffix(".md").write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
