"""One .npz of many images with their labels, as MedMNIST comes, as a cohort."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.errors import CohortError, ScanError
from normscan.io.arrays import count_images, read_numbers
from normscan.io.files import decoding

if TYPE_CHECKING:
    import pandas as pd

HEALTHY = {
    "pneumoniamnist": 0, "octmnist": 3, "retinamnist": 0, "chestmnist": 0, "adrenalmnist3d": 0,
    "vesselmnist3d": 0,
}  # fmt: skip
"""Number of the healthy class, as MedMNIST's own table has it (chestmnist: no finding at all). The
other sets have no healthy class, or one that holds findings too."""


def archive_table(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return a table with a row for each image of a .npz, and notes.

    The images are those of ``train_images``, ``val_images`` and ``test_images`` (n, H, W), (n, H, W,
    3) or (n, D, H, W); their labels (n, m) stand in the column ``class``, several joined by spaces.

    Raises:
        CohortError: no such archive, labels for another number of images.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    name = re.sub(r"_\d+$", "", path.stem.lower())
    healthy = HEALTHY.get(name)
    try:
        with decoding(path, "NumPy archive"), zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
        for split in ("train", "val", "test"):
            if f"{split}_images.npy" not in members:
                continue
            count = count_images(path, f"{split}_images")
            classes: list[tuple[Any, ...]] = [()] * count
            if f"{split}_labels.npy" in members:
                classes = [tuple(np.ravel(v)) for v in read_numbers(path, f"{split}_labels")]
            if len(classes) != count:
                raise CohortError(f"{path}: {len(classes)} labels for {count} images in {split}.")
            rows += [_row(path.name, split, k, label, healthy) for k, label in enumerate(classes)]
    except ScanError as error:
        raise CohortError(str(error)) from error
    if not rows:
        raise CohortError(
            f"{path}: holds no train_images, val_images or test_images. Give a table of its images."
        )
    notes = ["The archive doesn't name subjects, so every image counts as a subject of its own."]
    if healthy is None:
        notes.append(
            "Which class is healthy isn't known, so every label is unknown. Write the table with "
            "--out, fill the column label from the column class, and read the table."
        )
    else:
        notes.append(f"Class {healthy} of {name} was taken as healthy.")
    return pd.DataFrame(rows, dtype=object), notes


def _row(
    file: str, split: str, index: int, classes: tuple[Any, ...], healthy: int | None
) -> dict[str, str]:
    numbers = [int(v) for v in classes]
    known = healthy is not None and bool(numbers)
    return {
        "path": f"{file}#{split}_images={index}",
        "label": str(int(any(n != healthy for n in numbers))) if known else "",
        "split": split,
        "class": " ".join(map(str, numbers)),
    }
