"""Runs made up for the viewer: findings of heads with a spot, written as a detector writes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from normscan.detector.finding import Finding
from normscan.scan import Scan
from tests.toy import toy_scan

# Oblique, anisotropic, and the first axis runs to the patient's left.
AFFINE = np.array([[-2.0, 0.1, 0, 40], [0.2, 2.5, 0.3, -30], [0, -0.2, 3, -20], [0, 0, 0, 1]])


def finding(dims: int = 3, seed: int = 0, lesion: bool = True, colour: bool = False) -> Finding:
    """A finding whose map is the true spot, somewhat blurred by noise."""
    rng = np.random.default_rng(seed)
    image, mask = toy_scan(rng, dims, 3 if colour else 1, lesion)
    if dims == 3:
        scan = Scan.from_array(image, affine=AFFINE, channels=("image",))
    elif colour:
        scan = Scan.from_array(np.moveaxis(np.uint8(200 * image.clip(0, 1)), 0, -1))
    else:
        scan = Scan.from_array(image[0])
    map = (2.0 * mask + rng.normal(0.5, 0.1, scan.shape)).astype(np.float32)
    healthy = np.median(image[:, ~mask]) if mask.any() else 0
    score = float(map.max())
    return Finding(
        scan, map, score, p_value=0.02 if lesion else 0.5, anomalous=lesion, threshold=1.0,
        pixel_threshold=1.2, smallest_component=2,
        reconstruction=np.where(mask, healthy, scan.data), prepared=scan.data,
        pixel_shares=((0.5, 0.5), (0.63, 0.1), (0.73, 0.01), (0.81, 1e-3), (1.0, 0.0)),
        provenance={"method": "dae", "normscan": "0.1.0"},
    )  # fmt: skip


def write_run(
    folder: Path, scans: int = 3, dims: int = 3, formats: tuple[str, ...] = ("nifti", "view")
) -> Path:
    """Write a run folder with a prediction of so many scans, every other one lesioned."""
    found = folder / "predictions"
    lines = []
    for number in range(scans):
        one, name = finding(dims, number, number % 2 == 0), f"scan{number:03d}"
        one.save(found, name, formats=formats)
        line = {"scan": name, "score": one.score, "p_value": one.p_value}
        lines.append(line | {"anomalous": one.anomalous, "quality": "ok", "notes": ""})
    pd.DataFrame(lines).to_csv(found / "scores.csv", index=False)
    about = {"configuration": {"method": "dae"}, "versions": {"normscan": "0.1.0"}, "format": 1}
    (folder / "detector.json").write_text(json.dumps(about))
    return folder


def write_table(folder: Path, scans: int) -> Path:
    """Write a run folder with a table of so many scans, the first of which has a finding."""
    write_run(folder, 1)
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "scan": [f"scan{i:03d}" for i in range(scans)],
            "score": rng.gamma(2, 1, scans).round(4),
            "p_value": rng.uniform(0, 1, scans).round(4),
            "anomalous": rng.uniform(0, 1, scans) < 0.1,
            "quality": "ok",
            "notes": "",
        }
    )
    table.to_csv(folder / "predictions" / "scores.csv", index=False)
    return folder
