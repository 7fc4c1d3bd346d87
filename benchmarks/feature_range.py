"""What the input of the feature systems changes: python benchmarks/feature_range.py --methods a,b.

Laptop presets under the protocol ``local`` with three inputs. ``percentile`` is what they had: the
99th percentile of each scan becomes 1. ``file`` is what they have, the range of the cohort's files;
in both the foreground fills the grid. ``picture`` is the file's range and the whole picture, as the
releases have it. Prints a table of image AUROC; a finished cell is not run again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from normscan.benchmark import load, run
from normscan.benchmark.data import Data

SHARED = Path(__file__).parent.parent.parent / "shared"
WEIGHTS = SHARED / "weights" / "resnet18_imagenet1k_v1_bnfolded_conv1_to_layer3.pth"
INPUTS: dict[str, dict[str, Any]] = {
    "percentile": {"scaling": "percentile", "crop": "foreground", "fit": "pad"},
    "file": {"scaling": "file", "crop": "foreground", "fit": "pad"},
    "picture": {"scaling": "file", "crop": "none", "fit": "stretch"},
}


def arguments(weights: str) -> dict[str, Any]:
    """The ResNet-18 at hand for all of them, also for those made for transformers."""
    layer3 = {"backbone": "resnet18.tv_in1k", "taps": ["layer3"]}
    return {
        "weights": weights,
        "batch_norm": "frozen",
        "anomaly_dino": layer3,
        "anomalydino_dpmm": layer3,
        "dinomaly": {**layer3, "groups": 1, "size": 128, "map_size": 128},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="patchcore,padim,anomaly_dino")
    parser.add_argument("--sets", default="brain_mri_kaggle,head_ct_kaggle")
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--weights", default=str(WEIGHTS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/feature_range"))
    options = parser.parse_args()
    names = options.methods.split(",")
    data = Data({name: options.data / name for name in options.sets.split(",")})
    found: dict[tuple[str, str], dict[str, str]] = {}
    for key, preprocess in INPUTS.items():
        protocol = load("local").model_copy(update={"preprocess": preprocess})
        ranking = run(
            protocol, names, options.out / key, data=data, seeds=options.seeds,
            arguments=arguments(options.weights), device="cpu", progress=True,
        )  # fmt: skip
        for set_name, entry in ranking["sets"].items():
            for row in entry["levels"]["image"]["rows"]:
                if row["method"] not in names:  # the baselines have inputs of their own
                    continue
                text = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
                found.setdefault((set_name, row["method"]), {})[key] = text
    print(f"| set | method | {' | '.join(INPUTS)} |\n|---|---|{'---|' * len(INPUTS)}")
    for (set_name, method), cells in found.items():
        print(f"| {set_name} | {method} | {' | '.join(cells.get(k, '') for k in INPUTS)} |")


if __name__ == "__main__":
    main()
