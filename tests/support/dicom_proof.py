"""Ramps read back: every kind of series, and how far in millimetres a reader puts its voxels off."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.uid as U

from tests.support import dicom_files as D
from tests.support import dicom_planes as G

TO_RAS = np.array([-1.0, -1.0, 1.0])
JITTER = [2.5, 2.502, 2.497, 2.5, 2.501, 2.499, 2.5, 2.5]
UNEVEN = [4.0, 4.0, 1.1, 7.0, 7.0, 4.0, 2.5, 4.0]
MISSING = [2.5, 2.5, 5.0, 2.5, 2.5, 2.5, 2.5, 2.5]
UNKNOWN_TO_DCM2NIIX = (U.DeflatedExplicitVRLittleEndian, U.JPEGLSLossless)
FLIPPED = np.array([[-1.0, 0, 0], [0, 1, 0]])


@dataclass(frozen=True)
class Kind:
    """A form of series: its planes, how it is written, and who else can read it.

    Attributes:
        planes: true geometry, sorted along the normal.
        write: function of (folder or file, planes, values) that writes it.
        bits: bits stored of the ramp.
        signed: signed integers.
        peers: programs that are known to read this kind right.
        slack: further millimetres, of lossy compression or of frames with a coarser slope.
    """

    planes: G.Planes
    write: Callable[..., list[Path]] = D.write_series
    bits: int = 16
    signed: bool = False
    peers: tuple[str, ...] = ("SimpleITK", "dcm2niix")
    slack: float = 0.0
    regular: bool = True

    def encoding(self, axis: int) -> G.Encoding:
        return G.Encoding.of(self.planes.points[..., axis], self.bits, self.signed)

    @property
    def quantum(self) -> float:
        """Largest error in mm of the stored integers."""
        return max(self.encoding(axis).slope for axis in range(3)) / 2 + self.slack

    def make(self, folder: Path, axis: int) -> list[Path]:
        """Write the ramp of one axis (0, 1, 2: patient x, y, z) into a folder of its own."""
        values, encoding = self.planes.points[..., axis], self.encoding(axis)
        series = f"ramp {'xyz'[axis]}"
        return self.write(
            folder / "xyz"[axis], self.planes, values, series=series, encoding=encoding
        )


def enhanced(folder: Path, planes: G.Planes, values: np.ndarray, **how: Any) -> list[Path]:
    return D.write_enhanced(folder / "enhanced.dcm", planes, values, **how)


def reversed_files(folder: Path, planes: G.Planes, values: np.ndarray, **how: Any) -> list[Path]:
    """Files and Instance Numbers run against the normal."""
    return D.write_series(folder, planes.take(slice(None, None, -1)), values[::-1], **how)


def _kinds() -> dict[str, Kind]:
    box, turned = G.make_planes(), G.make_planes(G.oblique())
    series, many = partial(partial, D.write_series), partial(partial, enhanced)
    empty = {"SliceThickness": "", "SeriesNumber": "", "InstanceNumber": "", "StudyID": ""}
    unborn = {"PatientBirthDate": None, "PatientSex": None, "SliceThickness": None}
    kinds = {
        "CT axial": Kind(box),
        "CT oblique": Kind(turned),
        "CT sagittal": Kind(G.make_planes(G.SAGITTAL)),
        "CT coronal": Kind(G.make_planes(G.CORONAL)),
        "CT feet first": Kind(G.make_planes(FLIPPED)),
        "MR oblique": Kind(turned, series(modality="MR")),
        "reversed": Kind(turned, reversed_files),
        "shuffled": Kind(turned, series(shuffle=5)),
        "steps within 3 um": Kind(G.make_planes(G.oblique(), JITTER)),
        "signed 16 bit": Kind(turned, signed=True),
        "12 bit": Kind(turned, bits=12),
        "signed 12 bit": Kind(turned, bits=12, signed=True, peers=("SimpleITK",)),
        "8 bit": Kind(turned, bits=8),
        "decimal strings over 16 characters": Kind(turned, series(long=True)),
        "no birth date, sex, thickness": Kind(turned, series(header=unborn)),
        "empty attributes": Kind(turned, series(header=empty)),
        "no preamble": Kind(turned, series(preamble=False, shuffle=2), peers=()),
        "JPEG baseline": Kind(turned, series(syntax=U.JPEGBaseline8Bit), bits=8, slack=1.0),
        "enhanced CT": Kind(box, many(modality="CT")),
        "enhanced MR oblique": Kind(turned, many()),
        "enhanced shuffled": Kind(turned, many(shuffle=4), peers=("dcm2niix",)),
        "enhanced rescale by frame": Kind(turned, many(own_rescale=True, shuffle=4), peers=(), slack=0.0005),
        "enhanced geometry by frame": Kind(turned, many(per_frame=True), peers=("SimpleITK",)),
    }  # fmt: skip
    # JPEG 2000 with five levels of wavelets asks for 32 pixels.
    large = G.make_planes(G.oblique(), shape=(33, 35), spacing=(0.5, 0.4))
    for syntax in (*D.NATIVE, *D.LOSSLESS):
        peers = () if syntax in UNKNOWN_TO_DCM2NIIX else ("dcm2niix",)
        kinds[U.UID(syntax).name.split(",")[0]] = Kind(
            large, series(syntax=syntax), peers=("SimpleITK", *peers)
        )
    tilted = {"tilt": 18.5}
    for name, planes in {
        "tilted": G.make_planes(steps=2.5, **tilted),
        "tilted oblique": G.make_planes(G.oblique(), 2.5, **tilted),
        "uneven": G.make_planes(G.oblique(), UNEVEN),
        "tilted uneven": G.make_planes(G.oblique(), UNEVEN, **tilted),
        "missing slice": G.make_planes(G.oblique(), MISSING),
    }.items():
        # Signed, since dcm2niix mends gaps and tilt of signed integers only.
        how = {"signed": True, "peers": (), "regular": False}
        kinds[name] = Kind(planes, series(shuffle=6), **how)
        kinds[f"enhanced {name}"] = Kind(planes, many(shuffle=6), **how)
    return kinds


KINDS = _kinds()


def affine_points(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(*shape, 3) where the affine puts each index."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def affine_ramp(affine: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """(*shape) patient x, y or z (LPS mm) of each index."""
    i, j, k = np.ogrid[tuple(slice(n) for n in shape)]
    row = affine[axis] * TO_RAS[axis]
    return row[0] * i + row[1] * j + row[2] * k + row[3]


def measure(kind: Kind, folder: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    """Write the three ramps, read them and return the largest errors in mm.

    ``voxels``: value of each voxel in the field of view against its place by the affine;
    ``planes``: the true coordinates on the grid, brought back onto the stored pixels;
    ``ramp``: the same with what was read, for pixels a voxel or more within the field of view;
    ``points``: ``series.points`` at every stored pixel; beside them the ``scan`` of the x ramp.
    """
    for axis in range(3):
        kind.make(folder, axis)
    scans = [read(folder / name) for name in "xyz"]
    scan, true = scans[0], kind.planes.points
    read_lps = np.stack([s.data[0] for s in scans], axis=-1).astype(np.float64)
    grid_lps = affine_points(scan.affine, scan.shape) * TO_RAS
    inside = kind.planes.inside(grid_lps, margin=1e-3)
    assert inside.sum() > 0.5 * true[..., 0].size, "the grid misses the field of view"
    assert np.isfinite(read_lps).all()
    back = [to_pixels(scan, grid_lps[..., axis]) for axis in range(3)]
    again = [to_pixels(scan, read_lps[..., axis]) for axis in range(3)]
    # A pixel counts where all voxels around it were in the field of view.
    whole = to_pixels(scan, (~inside).astype(float)) == 0
    assert whole.mean() > 0.2, "too few pixels to compare"
    rows, columns = np.meshgrid(*map(np.arange, kind.planes.shape), indexing="ij")
    points = [scan.series.points(k, rows, columns) for k in range(len(true))]
    return {
        "voxels": float(np.abs(read_lps - grid_lps)[inside].max()),
        "planes": float(np.abs(np.stack(back, axis=-1) - true).max()),
        "ramp": float(np.abs(np.stack(again, axis=-1) - true)[whole].max()),
        "points": float(np.abs(np.stack(points) * TO_RAS - true).max()),
        "scan": scan,
        "inside": float(inside.mean()),
        "whole": float(whole.mean()),
    }


def to_pixels(scan: Any, grid: np.ndarray) -> np.ndarray:
    """(n, rows, columns) of a map (X, Y, Z) on the grid of a scan."""
    return np.asarray(scan.series.to_planes(grid), dtype=np.float64)


def peer_error(scan: Any, array: np.ndarray, affine: np.ndarray) -> tuple[float, float]:
    """Largest distance in mm, and largest difference in value, to another reader's volume.

    Each voxel centre of the scan is looked for in the other's grid, which may be flipped.
    """
    mine = affine_points(scan.affine, scan.shape)
    index = (mine - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    whole = np.rint(index).astype(int)
    assert (whole >= 0).all() and (whole < array.shape).all(), "other field of view"
    away = np.linalg.norm((index - whole) @ affine[:3, :3].T, axis=-1)
    return float(away.max()), float(
        np.abs(array[tuple(np.moveaxis(whole, -1, 0))] - scan.data[0]).max()
    )


def read_sitk(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Array (i, j, k) and affine to RAS mm as SimpleITK reads a folder or a multi-frame file."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    if len(paths) > 1:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(paths[0].parent)))
        image = reader.Execute()
    else:
        image = sitk.ReadImage(str(paths[0]))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    affine[:2] *= -1
    return sitk.GetArrayFromImage(image).T, affine


def read_dcm2niix(folder: Path, work: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Array and affine to RAS mm as dcm2niix converts a folder."""
    import nibabel as nib

    program = shutil.which("dcm2niix")
    assert program, "dcm2niix is not installed"
    out = (work or folder.parent) / f"{folder.name}_nifti"
    out.mkdir()
    command = [program, "-b", "n", "-z", "n", "-f", "out", "-o", str(out), str(folder)]
    subprocess.run(command, check=False, capture_output=True, timeout=60)
    # Where it mended gaps or tilt it writes a second file, with a longer name.
    path = max(out.glob("*.nii"), key=lambda p: len(p.name), default=None)
    if path is None:
        raise OSError("dcm2niix made no volume")
    image = nib.load(path)
    return image.get_fdata(), image.affine


def stored_planes(folder: Path) -> tuple[G.Planes, np.ndarray]:
    """Planes of a real single-frame series, and (n, rows, columns) values with NaN for padding."""
    files = [pydicom.dcmread(p) for p in sorted(folder.glob("*.dcm"))]
    both = np.array(files[0].ImageOrientationPatient, float)
    positions = np.array([f.ImagePositionPatient for f in files], float)
    order = np.argsort(positions @ np.cross(both[:3], both[3:]))
    row, column = map(float, files[0].PixelSpacing)
    shape = (int(files[0].Rows), int(files[0].Columns))
    values = []
    for file in (files[k] for k in order):
        stored = file.pixel_array.astype(np.float64)
        padding = stored == file.get("PixelPaddingValue")
        stored = stored * float(file.get("RescaleSlope", 1)) + float(
            file.get("RescaleIntercept", 0)
        )
        values.append(np.where(padding, np.nan, stored))
    return G.Planes(positions[order], both[:3], both[3:], (row, column), shape), np.stack(values)


def interpolate(planes: G.Planes, values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values at LPS points (m, 3): linear between the two planes around, linear in each of them."""
    from scipy.ndimage import map_coordinates

    along = planes.positions @ planes.normal
    t = points @ planes.normal
    below = np.clip(np.searchsorted(along, t, side="right") - 1, 0, len(along) - 2)
    part = (t - along[below]) / (along[below + 1] - along[below])
    origin = np.stack([np.interp(t, along, p) for p in planes.positions.T], axis=-1)
    i = (points - origin) @ planes.rows_along / planes.spacing[1]
    j = (points - origin) @ planes.columns_along / planes.spacing[0]
    return map_coordinates(values.astype(np.float64), [below + part, j, i], order=1, mode="nearest")


def real_series(folder: Path, work: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    """What a reader makes of a real series, against pydicom, SimpleITK and dcm2niix."""
    planes, values = stored_planes(folder)
    true, scan = planes.points, read(folder)
    rows, columns = np.meshgrid(*map(np.arange, planes.shape), indexing="ij")
    points = np.stack([scan.series.points(k, rows, columns) for k in range(len(true))]) * TO_RAS
    away = [
        np.abs(to_pixels(scan, affine_ramp(scan.affine, scan.shape, axis)) - true[..., axis]).max()
        for axis in range(3)
    ]
    voxels = np.random.default_rng(0).integers(0, scan.shape, (300_000, 3))
    where = (voxels @ scan.affine[:3, :3].T + scan.affine[:3, 3]) * TO_RAS
    inside = planes.inside(where, margin=0.0)
    expected = interpolate(planes, values, where[inside])
    array, affine = read_sitk(sorted(folder.glob("*.dcm")))
    theirs = affine_points(affine, array.shape).transpose(2, 1, 0, 3) * TO_RAS
    corners = np.linalg.norm(theirs - true, axis=-1)[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    found = {
        "shape": scan.shape,
        "regular": scan.series.regular,
        "tilted": scan.series.tilted,
        "notes": list(scan.series.notes),
        "points_mm": float(np.abs(points - true).max()),
        "planes_mm": float(max(away)),
        "value": float(np.nanmax(np.abs(expected - scan.data[0][tuple(voxels[inside].T)]))),
        "round_trip_value": float(np.nanmean(np.abs(to_pixels(scan, scan.data[0]) - values))),
        "SimpleITK_corner_mm": float(corners.max()),
    }
    if scan.series.regular:
        found["SimpleITK_affine"] = float(np.abs(scan.affine - affine).max())
        found["SimpleITK_value"] = float(np.abs(scan.data[0] - array).max())
        if shutil.which("dcm2niix"):
            both = peer_error(scan, *read_dcm2niix(folder, work))
            found["dcm2niix_mm"], found["dcm2niix_value"] = both
    return found
