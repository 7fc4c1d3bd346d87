"""A toy cohort of two modalities whose lesions show in the second one alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tests.toy import toy_scan

COUNTS = {"train": 12, "val": 4, "test": 4}


def partner(image: np.ndarray) -> np.ndarray:
    """The second modality of healthy tissue."""
    return 0.1 + 0.5 * image


def write_pairs(folder: Path, column: str = "target", dims: int = 2) -> Path:
    """A cohort whose lesions show in the second modality alone."""
    folder.mkdir(exist_ok=True)
    rng, rows = np.random.default_rng(3), []
    for split, count in COUNTS.items():
        for label in (0, 1) if split == "test" else (0,):
            for i in range(count):
                name = f"{split}{label}{i}"
                lesioned, mask = toy_scan(rng, dims, 1, bool(label))
                image = np.where(mask, 0.4, lesioned[0]).astype(np.float32)
                other = partner(image) + 0.4 * mask
                np.save(folder / f"{name}.npy", image)
                np.save(folder / f"{name}_t2.npy", other.astype(np.float32))
                np.save(folder / f"{name}_mask.npy", mask.astype(np.uint8))
                row = {"scan": name, "path": f"{name}.npy", column: f"{name}_t2.npy"}
                row |= {"label": label, "split": split, "mask": f"{name}_mask.npy" * label}
                rows.append(row)
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"
