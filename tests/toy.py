"""A toy cohort that a tiny network learns in seconds.

Healthy: an ellipse with a brighter ellipse inside, both moving. Lesioned: the same with a bright soft
spot. The mean image finds it badly, since nothing stays in place.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

SIZE = {2: (44, 37), 3: (30, 26, 22)}


def toy_scan(rng: np.random.Generator, dims: int, channels: int, lesion: bool):
    """Return image (C, *shape), mask (*shape)."""
    shape = SIZE[dims]
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    centre = rng.uniform(-0.25, 0.25, dims)
    radius = rng.uniform(0.45, 0.72, dims)

    def ball(middle, size):
        r = np.sqrt(sum(((a - m) / s) ** 2 for a, m, s in zip(axes, middle, size, strict=True)))
        return 1 / (1 + np.exp((r - 1) * 12))

    head = ball(centre, radius)
    inner = ball(centre + rng.uniform(-0.15, 0.15, dims), radius * rng.uniform(0.25, 0.45, dims))
    image = 0.45 * head + 0.25 * inner
    mask = np.zeros(shape, bool)
    if lesion:
        place = centre + rng.uniform(-0.4, 0.4, dims) * radius
        blob = ball(place, np.full(dims, 0.2))
        image = image + 0.4 * blob
        mask = blob > 0.5
    image = image * rng.uniform(0.9, 1.1, channels).reshape(-1, *[1] * dims)
    noise = rng.normal(0, 0.01, image.shape)
    return np.where(head > 0.3, image + noise, 0).astype(np.float32), mask & (head > 0.3)


def write_toy_cohort(folder: Path, dims: int, channels: int) -> Path:
    """Write .npz scans and a table; return the table's path."""
    rng = np.random.default_rng(7)
    counts = {"train": 48, "val": 6, "test": 10, "extra": 16}
    if dims == 3:
        counts = {"train": 8, "val": 4, "test": 4, "extra": 4}
    rows = []
    names = [f"path_c{c}" for c in range(channels)]
    for split, n in counts.items():
        for label in (0, 1) if split in ("test", "extra") else (0,):
            for i in range(n):
                scan = f"{split}{label}{i:02d}"
                image, mask = toy_scan(rng, dims, channels, bool(label))
                row = {"scan": scan, "subject": scan, "label": label, "split": split}
                for c, name in enumerate(names):
                    np.save(folder / f"{scan}_c{c}.npy", image[c])
                    row["path" if channels == 1 else name] = f"{scan}_c{c}.npy"
                row["mask"] = ""
                if label:
                    np.save(folder / f"{scan}_mask.npy", mask.astype(np.uint8))
                    row["mask"] = f"{scan}_mask.npy"
                rows.append({**row, "kind": "blob" if label else ""})
    table = folder / "cohort.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    return table
