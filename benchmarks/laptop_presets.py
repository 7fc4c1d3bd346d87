"""What two laptop presets learn, on held-out healthy scans: python benchmarks/laptop_presets.py.

Writes benchmarks/results/laptop_presets.json and .md. SimpleNet must tell held-out patches from
themselves with its noise, UniAD must restore held-out features: where it can't, nothing was learnt
that a score could rest on. The settings of the presets were chosen by these two figures, which need
no lesion; the image AUROC of the test scans stands beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from sklearn.metrics import roc_auc_score

from normscan import Cohort, Detector
from normscan.detector.finding import Finding
from normscan.rng import Rng

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared"
WEIGHTS = SHARED / "weights" / "resnet18_imagenet1k_v1_bnfolded_conv1_to_layer3.pth"
RESULTS = HERE / "results" / "laptop_presets.json"
SETS = ("brain_mri_kaggle", "magnetic_tile_defects")
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "simplenet": [{"noise": n} for n in (0.015, 0.03, 0.05)],
    "uniad": [{"steps": 250, "lr": 4e-4}, {"steps": 800, "lr": 1e-3}],
}


@torch.no_grad()
def told_apart(method: Any, images: torch.Tensor) -> float:
    """AUROC with which the discriminator tells patches from the same with noise; 0.5 is chance."""
    real = method.patches(images)[0].flatten(0, 1)
    noisy = real + method.noise * Rng(0).normal(real.shape)
    told = torch.cat([method.discriminator(x)[:, 0] for x in (real, noisy)])
    return float(roc_auc_score([1] * len(real) + [0] * len(noisy), told))


@torch.no_grad()
def unrestored(method: Any, images: torch.Tensor) -> float:
    """Length of the residual as a share of the feature's, mean over all places."""
    features = method.features(images)
    rest = (method.network(features) - features).norm(dim=1)
    return float((rest / features.norm(dim=1)).mean())


MEASURES = {
    "simplenet": ("noise told apart (AUROC)", told_apart),
    "uniad": ("left unrestored", unrestored),
}


def measured(name: str, settings: dict[str, Any], cohort: Cohort) -> tuple[float, float]:
    """The figure of the held-out healthy scans, and the image AUROC of the test scans."""
    detector = Detector(
        name, preset="laptop", weights=str(WEIGHTS), calibration="split", **settings
    )
    with tempfile.TemporaryDirectory() as folder:
        detector.fit(cohort, Path(folder) / "run")
    prepared = [detector.preprocess(row.load(), 2).image for row in cohort.part("val")]
    images = torch.stack([torch.as_tensor(image)[:1].float() for image in prepared])
    healthy = MEASURES[name][1](detector.method, images)
    found = [
        (row.label == 1, result.score)
        for row, result in detector.predict_cohort(cohort.part("test"), force=True)
        if isinstance(result, Finding)
    ]
    return healthy, float(roc_auc_score(*zip(*found, strict=True)))


def page(results: dict[str, Any]) -> str:
    lines = [
        "# What two laptop presets learn",
        "",
        "`python benchmarks/laptop_presets.py`. Held-out healthy scans; behind the slash the image "
        "AUROC of the test scans. The settings were chosen by the first figure.",
    ]
    for name, rows in results.items():
        lines += [
            "",
            f"## {name}: {MEASURES[name][0]} / image AUROC",
            "",
            "| | " + " | ".join(SETS) + " |",
            "|---|" + "---|" * len(SETS),
        ]
        for row in rows:
            cells = " | ".join("{:.3f} / {:.3f}".format(*row["sets"][s]) for s in SETS)
            lines.append(f"| {row['settings']} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    options = parser.parse_args()
    cohorts = {name: Cohort.read(options.data / name) for name in SETS}
    results: dict[str, Any] = {}
    for name, variants in SETTINGS.items():
        results[name] = []
        for settings in variants:
            text = ", ".join(f"{k} {v:g}" for k, v in settings.items())
            sets = {s: measured(name, settings, cohort) for s, cohort in cohorts.items()}
            results[name].append({"settings": text, "sets": sets})
            print(name, text, sets, flush=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    RESULTS.with_suffix(".md").write_text(page(results))


if __name__ == "__main__":
    main()
