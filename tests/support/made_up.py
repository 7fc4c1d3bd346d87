"""A recipe and pictures made up for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from normscan.datasets import recipe as recipes

MINIMAL = {
    "name": "x", "section": "x", "modality": "x", "task": "x", "access": "open", "how": "x",
    "licence": "x", "layout": "x", "labels": "x",
}  # fmt: skip


def add(monkeypatch: pytest.MonkeyPatch, **table: object) -> None:
    """Make a recipe called ``toyset`` known."""
    made = recipes.parse("toyset", {"toyset": {**MINIMAL, **table}})
    monkeypatch.setattr(recipes, "_all", lambda: {"toyset": made})


def picture(path: Path, seed: int) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def volume(path: Path, data: np.ndarray) -> None:
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, np.diag([1.0, 2, 3, 1])), path)
