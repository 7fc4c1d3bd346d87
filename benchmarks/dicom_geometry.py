"""How far from its place a DICOM reader puts a voxel, in millimetres: normscan, SimpleITK, dcm2niix.

    python benchmarks/dicom_geometry.py --data ../shared/data/dicom_series

Ramps whose value is a patient coordinate are written in every kind of series that the tests know,
and read back. The figure is the largest distance, over all voxels in the field of view, between the
coordinate in the value and the place by the affine. Real series are compared with the positions in
their headers. Writes ``benchmarks/results/dicom_geometry.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.dicom_proof import (
    KINDS,
    TO_RAS,
    Kind,
    affine_points,
    measure,
    read_dcm2niix,
    read_sitk,
    real_series,
)

from normscan.io.dicom import read_dicom

RESULTS = Path(__file__).parent / "results" / "dicom_geometry"
PEERS: dict[str, Callable[[list[Path]], tuple[np.ndarray, np.ndarray]]] = {
    "SimpleITK": read_sitk,
    "dcm2niix": lambda paths: read_dcm2niix(paths[0].parent),
}


def peer_ramp(kind: Kind, folder: Path, read: Callable) -> float | None:
    """Largest error in mm of another reader on the same ramps; None where it reads no volume."""
    try:
        volumes = [read(kind.make(folder, axis)) for axis in range(3)]
    except (RuntimeError, OSError, subprocess.SubprocessError):
        return None
    values = np.stack([array for array, _ in volumes], axis=-1)
    places = affine_points(volumes[0][1], values.shape[:3]) * TO_RAS
    # A margin, so that the voxels that a rounded affine puts just outside count as well.
    inside = kind.planes.inside(places, margin=0.01)
    return float(np.abs(values - places)[inside].max())


def measure_kind(kind: Kind) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        found = measure(kind, Path(folder), read_dicom)
    row = {name: found[name] for name in ("voxels", "planes", "ramp", "points")}
    row["quantum"] = kind.quantum
    row["regular"] = found["scan"].series.regular
    for name, read in PEERS.items():
        if name == "dcm2niix" and not shutil.which(name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            row[name] = peer_ramp(kind, Path(folder), read)
    return row


def cell(value: float | None) -> str:
    return "not read" if value is None else f"{value:.4f}"


def page(figures: dict[str, Any]) -> str:
    lines = [
        "# DICOM geometry",
        "",
        f"`{figures['command']}` ({', '.join(f'{k} {v}' for k, v in figures['versions'].items())})",
        "",
        "Largest error in mm over all voxels in the field of view of three ramps whose value is the",
        "patient coordinate. Quantum: what the stored integers alone cost. Planes: a map of the grid",
        "brought back onto the stored pixels. Points: `series.points` against the standard's formula.",
        '"not read": the program made no volume of it.',
        "",
        "| series | quantum | voxels | planes | points | SimpleITK | dcm2niix |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in figures["ramps"].items():
        cells = [row["quantum"], row["voxels"], row["planes"], row["points"]]
        cells += [row.get("SimpleITK"), row.get("dcm2niix")]
        lines.append(f"| {name} | " + " | ".join(map(cell, cells)) + " |")
    lines += ["", "## Real series", "", "| figure | " + " | ".join(figures["real"]) + " |"]
    lines.append("|---" * (len(figures["real"]) + 1) + "|")
    names = {name: None for row in figures["real"].values() for name in row if name != "notes"}
    for name in names:
        cells = [row.get(name, "") for row in figures["real"].values()]
        shown = [f"{c:.6g}" if isinstance(c, float) else str(c) for c in cells]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    lines += [
        "",
        "`points_mm`, `planes_mm`: as above, against the positions in the headers. `value`: largest",
        "difference to the stored values, or to their linear interpolation where the series was",
        "resampled. `round_trip_value`: mean difference after going to the grid and back to the",
        "planes. `SimpleITK_corner_mm`: how far SimpleITK puts a corner pixel from its header.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of real series, one folder each")
    data = parser.parse_args().data
    figures: dict[str, Any] = {
        "command": "python benchmarks/dicom_geometry.py --data ../shared/data/dicom_series",
        "versions": {name: version(name) for name in ("pydicom", "SimpleITK", "numpy")},
        "ramps": {},
        "real": {},
    }
    for name, kind in KINDS.items():
        figures["ramps"][name] = measure_kind(kind)
        print(name, figures["ramps"][name], flush=True)
    for folder in sorted(p for p in data.iterdir() if p.is_dir()) if data else []:
        with tempfile.TemporaryDirectory() as work:
            figures["real"][folder.name] = real_series(folder, Path(work), read_dicom)
        print(folder.name, figures["real"][folder.name], flush=True)
    RESULTS.with_suffix(".json").write_text(json.dumps(figures, indent=1, default=str) + "\n")
    RESULTS.with_suffix(".md").write_text(page(figures))


if __name__ == "__main__":
    main()
