"""Patches of healthy scans that look like a finding's: one that was copied is found at its place."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.errors import ArgumentError

PLAIN = {"scaling": "none", "crop": "none", "fit": "stretch"}
SIDE = 8  # pixels of the working grid along a cell


def patches(x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The pixels of each cell, sorted: a patch wherever it lies."""
    cells = x.unfold(2, SIDE, SIDE).unfold(3, SIDE, SIDE)
    grid = (cells.shape[2], cells.shape[3])
    return cells.reshape(len(x), grid[0] * grid[1], -1).sort(dim=2).values, grid


@pytest.fixture(params=["picture", "volume"])
def site(request, tmp_path):
    """Pictures of 64 x 48; or volumes of five such slices."""
    rng, rows = np.random.default_rng(0), []
    for i in range(12):
        image = rng.normal(100, 5, (5, 64, 48))
        if i == 3:
            image[2, 16:32, 12:24] = np.linspace(150, 190, 192).reshape(16, 12)
        if i == 11:  # the same patch elsewhere, far above what the others have
            image[3, 48:64, 24:36] = np.linspace(150, 190, 192).reshape(16, 12)
        # A volume lies right, anterior, superior; its slices are drawn with the front up.
        flat = request.param == "picture"
        image = image[2 if i < 11 else 3] if flat else image[:, ::-1].transpose(2, 1, 0)
        np.save(tmp_path / f"{i}.npy", image)
        split = "train" if i < 8 else "val" if i < 11 else "test"
        rows.append({"path": f"{i}.npy", "label": int(i == 11), "split": split, "scan": f"s{i}"})
    return request.param, Cohort.from_table(pd.DataFrame(rows), tmp_path)


def test_a_copied_patch_is_found_at_its_place(site, tmp_path):
    kind, cohort = site
    options = {"dims": 2, "size": 32, "calibration": "split", "gate": False, "preprocess": PLAIN}
    detector = Detector("mean_image", **options).fit(cohort)
    (row,) = cohort.part("test")
    ((_, finding),) = detector.predict_cohort([row])
    with pytest.raises(ArgumentError, match="compares no patches"):
        detector.patches_like(finding, cohort.part("train"))
    detector.method.patches = patches
    found = detector.patches_like(finding, cohort.part("train"), count=2)
    assert len(found) == 2 and found[0]["scan"] == "s3"
    assert found[0]["distance"] < 0.2 * found[1]["distance"]
    index = np.array(found[0]["index"])
    if kind == "picture":  # rows 16 to 32, columns 12 to 24
        assert np.abs(index - [23.5, 17.5]).max() <= 2
    else:
        assert len(index) == 3
        values = next(r for r in cohort if r.scan == "s3").load().data[0]
        assert 150 <= values[tuple(index)] <= 190
    itself = detector.patches_like(finding, [row], count=5)
    assert itself == [{"scan": "s11", "distance": 0.0, "index": itself[0]["index"]}]
    assert finding.scan.data[0][tuple(itself[0]["index"])] >= 150


def test_a_scan_that_cannot_be_read_is_passed_over(site, tmp_path):
    _, cohort = site
    detector = Detector("mean_image", dims=2, size=32, calibration="split", gate=False,
                        preprocess=PLAIN).fit(cohort)  # fmt: skip
    detector.method.patches = patches
    ((_, finding),) = detector.predict_cohort(list(cohort.part("test")))
    broken = Cohort(cohort.table.assign(path=[f"no{i}.npy" for i in range(12)]), cohort.root)
    assert detector.patches_like(finding, list(broken)[:2]) == []
    assert torch.is_grad_enabled()
