"""Result objects read back by pydicom alone, by highdicom, dcmqi and dciodvfy."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from normscan.detector.finding import Finding
from normscan.scan import Scan

MADE_BY = {"method": "dae", "normscan": "0.0.1", "detector_sha256": "a" * 64}
TO_RAS = np.array([-1.0, -1.0, 1.0])


def places(scan: Scan) -> np.ndarray:
    """(*shape, 3) LPS mm of each voxel by the affine."""
    index = np.stack(np.meshgrid(*map(np.arange, scan.shape), indexing="ij"), axis=-1)
    return (index @ scan.affine[:3, : scan.dims].T + scan.affine[:3, 3]) * TO_RAS


def finding_on(scan: Scan, map: np.ndarray | None, threshold: float | None, **more: Any) -> Finding:
    """A finding with the usual numbers."""
    usual: dict[str, Any] = {
        "p_value": 0.02, "anomalous": True, "threshold": 2.5, "provenance": dict(MADE_BY),
        "false_alarms": {"wanted": 0.05, "expected": 0.0476, "low": 0.0, "high": 0.1},
    }  # fmt: skip
    return Finding(scan, map, 3.25, pixel_threshold=threshold, **{**usual, **more})


def blocks(scan: Scan) -> np.ndarray:
    """A map with two blocks above 1, of 27 and 12 voxels, with peaks of 5 and 3."""
    map = np.linspace(0, 0.9, int(np.prod(scan.shape)), dtype=np.float32).reshape(scan.shape)
    if scan.dims == 3:
        map[2:5, 3:6, 1:4], map[8:10, 8:11, 4:6] = 4, 2
        map[3, 4, 2], map[8, 9, 4] = 5, 3
    else:
        map[2:5, 3:12], map[8:11, 8:12] = 4, 2
        map[3, 4], map[9, 9] = 5, 3
        map[4, 6:9] = 0  # a bay
    return map


def frames(data: pydicom.Dataset) -> Iterator[tuple[np.ndarray, pydicom.Dataset]]:
    """(rows, columns, 3) LPS mm of the pixels of each frame by C.7.6.2.1.1, and its own groups."""
    shared = data.SharedFunctionalGroupsSequence[0]
    for own in data.PerFrameFunctionalGroupsSequence:

        def group(name: str, own: Any = own) -> Any:
            return getattr(own if name in own else shared, name)[0]

        first = np.array(group("PlanePositionSequence").ImagePositionPatient, float)
        both = np.array(group("PlaneOrientationSequence").ImageOrientationPatient, float)
        down, across = map(float, group("PixelMeasuresSequence").PixelSpacing)
        row, column = np.indices((data.Rows, data.Columns))
        mm = first + row[..., None] * down * both[3:] + column[..., None] * across * both[:3]
        yield mm, own


def map_values(data: pydicom.Dataset) -> np.ndarray:
    """(frames, rows, columns) real-world values of a parametric map."""
    mapping = data.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    stored = data.pixel_array.reshape(-1, data.Rows, data.Columns).astype(np.float64)
    return stored * float(mapping.RealWorldValueSlope) + float(mapping.RealWorldValueIntercept)


def segments(data: pydicom.Dataset) -> dict[int, np.ndarray]:
    """(n, 3) LPS mm of the pixels of each segment."""
    found: dict[int, list[np.ndarray]] = {}
    stack = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    for plane, (mm, own) in zip(stack, frames(data), strict=True):
        shared = data.SharedFunctionalGroupsSequence[0]
        where = own if "SegmentIdentificationSequence" in own else shared
        number = where.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found.setdefault(int(number), []).append(mm[plane > 0])
    return {number: np.concatenate(parts) for number, parts in found.items()}


def same_places(one: np.ndarray, other: np.ndarray) -> float:
    """Largest distance in mm from each point (n, 3) to the nearest of as many others."""
    from scipy.spatial import cKDTree

    assert one.shape == other.shape
    return float(max(cKDTree(one).query(other)[0].max(), cKDTree(other).query(one)[0].max()))


def errors(path: Path) -> list[str]:
    """What dciodvfy calls an error."""
    made = subprocess.run(
        ["dciodvfy", "-new", str(path)], capture_output=True, text=True, timeout=60
    )
    return [line for line in made.stderr.splitlines() if line.startswith("Error")]


def dcmqi(tool: str) -> str | None:
    """Path of a program of dcmqi; pip puts it into the package, or behind a script."""
    from importlib.util import find_spec

    found = find_spec("dcmqi")
    if found and found.submodule_search_locations:
        inside = Path(found.submodule_search_locations[0]) / "bin" / tool
        if inside.exists():
            return str(inside)
    return shutil.which(tool)


def by_dcmqi(tool: str, path: Path, out: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Arrays (i, j, k) and LPS mm (i, j, k, 3) of the volumes that a program of dcmqi makes."""
    import SimpleITK as sitk

    out.mkdir()
    program = dcmqi(tool)
    assert program
    command = [program, "--inputDICOM", str(path), "--outputDirectory", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    found = {}
    for file in sorted(out.glob("*.nrrd")):
        image = sitk.ReadImage(str(file))
        array = sitk.GetArrayFromImage(image).T
        index = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), axis=-1)
        turned = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        found[file.stem] = array, index @ turned.T + image.GetOrigin()
    return found
