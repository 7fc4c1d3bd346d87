"""Add real lesioned brain volumes to the test part of a simulated cohort of FLAIR volumes.

    python benchmarks/real_volumes.py PHANTOM DATA OUT

There is no set of healthy volumes of one sequence that is large enough to train on, so training and
validation stay simulated (`normscan phantom --dims 3`), and lesions are found in real, skull-
stripped FLAIR volumes: two with multiple sclerosis, one with a glioma. The simulated lesioned test
scans are left out. Only figures by voxel say something: an image score could tell real from
simulated. OUT is a table whose paths are relative to its own folder.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pandas as pd

_MS = "{0}_N4_noneck_reduced_winsor_regtoFLAIR{1}_regtoMNI.nii.gz"
REAL = {
    f"ms_lesions_ljubljana_3d/{patient}": (
        _MS.format("FLAIR", "_brain_N4"),
        _MS.format("GOLD_STANDARD", ""),
    )
    for patient in ("patient07", "patient19")
} | {"brain_tumor_3d/TCGA-DU-7294": ("TCGA-DU-7294_fla_bet.nii.gz", "mav.nii.gz")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("phantom", "data", "out"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    table = pd.read_csv(options.phantom / "cohort.csv")
    table = table[table["label"] == 0][["scan", "subject", "path", "label", "split"]]
    table["path"] = [options.phantom.resolve() / path for path in table["path"]]
    rows = [
        {
            "scan": Path(folder).name, "subject": Path(folder).name, "label": 1, "split": "test",
            "path": options.data.resolve() / folder / scan,
            "mask": options.data.resolve() / folder / mask,
        }
        for folder, (scan, mask) in REAL.items()
    ]  # fmt: skip
    table = pd.concat([table, pd.DataFrame(rows)])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    start = options.out.resolve().parent
    for column in ("path", "mask"):
        table[column] = [
            os.path.relpath(p, start) if isinstance(p, Path) else "" for p in table[column]
        ]
    table.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
