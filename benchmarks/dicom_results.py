"""Result objects of every kind of DICOM series, read by others: errors of a validator, millimetres.

    python benchmarks/dicom_results.py --data ../shared/data/dicom_series --dciodvfy VERSION

Maps whose value is a patient coordinate are written as Parametric Map of every kind of series that
the tests know, and of real ones, and read back by pydicom (frame by frame, by the formula of PS3.3
C.7.6.2.1.1), highdicom and dcmqi, with which 3D Slicer reads. The figure is the largest distance in
mm, over all voxels, between the coordinate in the value and the place that the reader gives it.
Components are compared with the voxels they were made of. dciodvfy (Debian's dicom3tools) counts
errors in every object. Writes ``benchmarks/results/dicom_results.md``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support import dicom_files as D
from tests.support import dicom_results as R
from tests.support.dicom_proof import KINDS

from normscan.io.dicom import read_dicom
from normscan.scan import Scan

OUT = Path(__file__).parent / "results" / "dicom_results.md"
COLUMNS = (
    "series", "objects", "dciodvfy errors", "map, pydicom", "map, highdicom", "map, dcmqi",
    "segments, pydicom", "segments, dcmqi", "kB", "s",
)  # fmt: skip
HEAD = """# Result objects of DICOM series

`python benchmarks/dicom_results.py --data ../shared/data/dicom_series --dciodvfy {dciodvfy}`
({versions})

Maps, segmentations, reports and secondary captures of series of every kind. Errors: of dciodvfy
(Debian's dicom3tools), summed over the objects. Maps: largest distance in
mm between the coordinate that a voxel of the float32 map holds and where the reader puts it, over
three maps (x, y, z). Segments: largest distance between the voxels of a component and where they
were in the map. The place of a voxel is that by the affine of the scan, which `dicom_geometry.md`
measures. kB and s: all objects of one finding with two components, written to disk. "-":
there is no such object, or the reader isn't installed.

"""


def volume(scan: Scan, folder: Path) -> dict[str, Any]:
    """Figures of one series in space."""
    where = R.places(scan)
    worst = dict.fromkeys(("map, pydicom", "map, highdicom", "map, dcmqi"), 0.0)
    has_dcmqi = R.dcmqi("paramap2itkimage") is not None and scan.dims == 3
    for axis in range(3):
        ramp = R.finding_on(scan, where[..., axis].astype(np.float32), None)
        path = written(ramp, folder / f"ramp{axis}")["map"]
        data = pydicom.dcmread(path)
        for plane, (mm, _) in zip(R.map_values(data), R.frames(data), strict=True):
            keep(worst, "map, pydicom", np.abs(mm[..., axis] - plane).max())
        if scan.dims == 3:
            read = hd.imread(path).get_volume(apply_real_world_transform=True)
            index = np.indices(read.spatial_shape).reshape(3, -1).T
            mm = read.map_indices_to_reference(index)[:, axis]
            keep(worst, "map, highdicom", np.abs(mm - read.array.reshape(-1)).max())
        if has_dcmqi:
            made = R.by_dcmqi("paramap2itkimage", path, folder / f"map{axis}")
            for values, mm in made.values():
                keep(worst, "map, dcmqi", np.abs(values - mm[..., axis]).max())
    finding = R.finding_on(scan, R.blocks(scan), 1.0)
    labels = finding.component_labels()
    assert labels is not None
    begun = time.perf_counter()
    files = written(finding, folder / "out")
    figures: dict[str, Any] = {**worst, "s": time.perf_counter() - begun}
    apart = [
        R.same_places(mm, where[labels == number])
        for number, mm in R.segments(pydicom.dcmread(files["seg"])).items()
    ]
    figures["segments, pydicom"] = max(apart)
    if has_dcmqi:
        made = R.by_dcmqi("segimage2itkimage", files["seg"], folder / "seg")
        figures["segments, dcmqi"] = max(
            R.same_places(mm[array == number], where[labels == number])
            for array, mm in made.values()
            for number in np.unique(array[array > 0])
        )
    else:
        del figures["map, dcmqi"]
    return {**figures, **weighed(files)}


def picture(scan: Scan, folder: Path) -> dict[str, Any]:
    """Figures of a picture without a place."""
    begun = time.perf_counter()
    files = written(R.finding_on(scan, R.blocks(scan), 1.0), folder / "out")
    return {"s": time.perf_counter() - begun, **weighed(files)}


def written(finding: Any, folder: Path) -> dict[str, Path]:
    """Write the objects; return them by their ending."""
    files = finding.save(folder, "one", formats=["dicom"])
    return {p.stem.removeprefix("one_"): p for p in files if p.suffix == ".dcm"}


def keep(worst: dict[str, float], name: str, value: float) -> None:
    """Keep the larger value."""
    worst[name] = max(worst[name], float(value))


def weighed(files: dict[str, Path]) -> dict[str, Any]:
    """Return the objects, their errors and their size."""
    return {
        "objects": ", ".join(files),
        "dciodvfy errors": sum(len(R.errors(path)) for path in files.values()),
        "kB": round(sum(path.stat().st_size for path in files.values()) / 1000),
    }


def pictures(folder: Path) -> dict[str, Scan]:
    """Write and read a picture of each kind."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 4096, (48, 60)).astype(np.uint16)
    colour = rng.integers(0, 256, (3, 48, 60, 3)).astype(np.uint8)
    made = {m: read_dicom(D.write_image(folder / m, grey, m, bits=12)) for m in ("CR", "DX", "MG")}
    made["MG MONOCHROME1"] = read_dicom(
        D.write_image(folder / "MG1", grey, "MG", "MONOCHROME1", bits=12)
    )
    made["CR without a spacing"] = read_dicom(
        D.write_image(folder / "CR0", grey, "CR", spacing=None, bits=12)
    )
    made["US in colour"] = read_dicom(D.write_image(folder / "US", colour[0], "US", "RGB"))
    clip = D.write_image(folder / "clip", colour, "US", "RGB")
    made["frame of an US clip"] = read_dicom(clip, frame=1)
    return made


def cell(value: Any) -> str:
    """Return a figure as text."""
    if isinstance(value, float):
        return f"{value:.2g}"
    return "-" if value is None else str(value)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of real series")
    parser.add_argument("--dciodvfy", default="?", help="version of dicom3tools, for the record")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as text:
        work = Path(text)
        for name, kind in KINDS.items():
            folder = work / f"{len(rows)}"
            kind.make(folder, 0)
            rows.append({"series": name, **volume(read_dicom(folder / "x"), folder)})
        for name, scan in pictures(work).items():
            rows.append({"series": name, **picture(scan, work / f"{len(rows)}")})
        for source in sorted(arguments.data.iterdir()) if arguments.data else ():
            if source.is_dir():
                scan = read_dicom(source)
                name = f"real: {source.name} {'x'.join(map(str, scan.shape))}"
                rows.append({"series": name, **volume(scan, work / f"{len(rows)}")})
    names = ("highdicom", "pydicom", "numpy", "dcmqi")
    text = HEAD.format(
        versions=", ".join(f"{name} {version(name)}" for name in names),
        dciodvfy=arguments.dciodvfy,
    )
    table = [COLUMNS, ("---",) * len(COLUMNS)]
    table += [tuple(cell(row.get(column)) for column in COLUMNS) for row in rows]
    total = sum(row["dciodvfy errors"] for row in rows)
    count = sum(len(row["objects"].split(", ")) for row in rows)
    lines = "\n".join(f"| {' | '.join(line)} |" for line in table)
    OUT.write_text(f"{text}{lines}\n\n{len(rows)} series, {count} objects, {total} errors.\n")


if __name__ == "__main__":
    main()
