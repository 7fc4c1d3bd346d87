"""What the input of the feature systems changes: python benchmarks/feature_range.py --methods a,b.

Laptop presets with three inputs. ``percentile`` is what they had: the 99th percentile of each scan
becomes 1. ``file`` is what they have, the range of the cohort's files; in both the foreground fills
the grid. ``picture`` is the file's range and the whole picture, as the releases have it, and
``equalised`` what ``fae`` has. Appends a line of image AUROC for each method, set and input to
``--out``; a line that is there isn't made again.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from normscan import Cohort, Detector
from normscan.detector.finding import Finding
from normscan.metrics.images import image_metrics

SHARED = Path(__file__).parent.parent.parent / "shared"
WEIGHTS = SHARED / "weights" / "resnet18_imagenet1k_v1_bnfolded_conv1_to_layer3.pth"
INPUTS: dict[str, dict[str, Any]] = {
    "percentile": {"scaling": "percentile", "crop": "foreground", "fit": "pad"},
    "file": {"scaling": "file", "crop": "foreground", "fit": "pad"},
    "picture": {"scaling": "file", "crop": "none", "fit": "stretch"},
    "equalised": {"scaling": "equalise", "crop": "foreground", "fit": "pad"},
}
# The ResNet-18 at hand, also for those made for transformers; its batch norms are folded.
LAYER3 = {"backbone": "resnet18.tv_in1k", "taps": ("layer3",)}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "anomaly_dino": LAYER3,
    "anomalydino_dpmm": LAYER3,
    "dinomaly": {**LAYER3, "groups": 1, "size": 128, "map_size": 128},
    "urd": {"batch_norm": "frozen"},
}


def measured(method: str, preprocess: dict[str, Any], cohort: Cohort, weights: str) -> list[float]:
    """Image AUROC of the test scans with its interval by subject."""
    arguments = {"weights": weights, **ARGUMENTS.get(method, {})}
    detector = Detector(
        method, preset="laptop", preprocess=preprocess, gate=False, calibration="split", **arguments
    )
    with tempfile.TemporaryDirectory() as folder:
        detector.fit(cohort, Path(folder) / "run", device="cpu")
    rows = [
        (found.score, row.label, row.subject)
        for row, found in detector.predict_cohort(cohort.part("test"))
        if isinstance(found, Finding)
    ]
    score, label, subject = map(np.asarray, zip(*rows, strict=True))
    auroc = image_metrics(score, label, subject, seed=0).auroc
    return [auroc.value, auroc.low, auroc.high]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="patchcore,padim,anomaly_dino")
    parser.add_argument("--sets", default="head_ct_kaggle,brain_mri_kaggle")
    parser.add_argument("--inputs", default="percentile,file,picture")
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--weights", default=str(WEIGHTS))
    parser.add_argument("--out", type=Path, default=Path("runs/feature_range.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = [json.loads(line)[:3] for line in lines]
    for key in options.inputs.split(","):
        for name in options.sets.split(","):
            cohort = Cohort.read(options.data / name)
            for method in options.methods.split(","):
                if [method, name, key] in done:
                    continue
                found = measured(method, INPUTS[key], cohort, options.weights)
                line = json.dumps([method, name, key, *(round(x, 4) for x in found)])
                print(line, flush=True)
                with options.out.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
