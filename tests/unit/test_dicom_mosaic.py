"""Siemens mosaics: where the tiles lie, against the planes they were made of and nibabel's reader.

Real ones are compared with dcm2niix by benchmarks/readers.py.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid as U
from tests.support import dicom_files as D
from tests.support import dicom_planes as G

from normscan.errors import ScanError
from normscan.io import probe, read_scan
from normscan.io.dicom import find_series, read_dicom


def csa(**tags: list[str]) -> bytes:
    """A CSA header of the second kind."""
    made = b"SV10\4\3\2\1" + struct.pack("<2I", len(tags), 77)
    for name, values in tags.items():
        kind = b"US" if name.startswith("Number") else b"FD"
        made += struct.pack("<64si4s3i", name.encode(), len(values), kind, 4, len(values), 77)
        for value in values:
            text = value.encode() + b"\0"
            made += struct.pack("<4i", len(text), len(text), 77, len(text)) + text
            made += b"\0" * (-len(text) % 4)
    return made


def write_mosaic(
    path: Path, planes: G.Planes, values: np.ndarray, count: int, order: int = 1, **changes
) -> Path:
    """Lay planes out as tiles; with ``order`` -1 they run against row x column direction."""
    [source] = D.write_series(
        path.parent / "one", planes, np.abs(values), "MR", encoding=G.Encoding(1.0, 0.0)
    )[:1]
    data = pydicom.dcmread(source)
    grid = int(np.ceil(np.sqrt(count)))
    rows, columns = planes.shape
    chosen = np.arange(count)[::order]
    stored = np.zeros((grid * rows, grid * columns), np.int16)
    for tile, plane in enumerate(chosen):
        r, c = divmod(tile, grid)
        stored[r * rows : (r + 1) * rows, c * columns : (c + 1) * columns] = values[plane]
    row, column = planes.rows_along, planes.columns_along
    # As if one plane of the size of the mosaic had the same centre as the first tile.
    shift = (
        (grid - 1) * columns * planes.spacing[1] / 2,
        (grid - 1) * rows * planes.spacing[0] / 2,
    )
    corner = planes.positions[chosen[0]] - row * shift[0] - column * shift[1]
    step = np.linalg.norm(planes.positions[1] - planes.positions[0])
    data.Rows, data.Columns = stored.shape
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    data.PixelData = stored.tobytes()
    data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    data.ImagePositionPatient = [D.decimal(v) for v in corner]
    data.SpacingBetweenSlices = D.decimal(step)
    normal = np.cross(row, column) * order
    block = data.private_block(0x29, "SIEMENS CSA HEADER", create=True)
    tags = {
        "NumberOfImagesInMosaic": [str(count)],
        "SliceNormalVector": [f"{v:.8f}" for v in normal],
    }
    block.add_new(0x10, "OB", csa(**tags))
    for keyword, value in changes.items():
        setattr(data, keyword, value)
    data.save_as(path)
    return path


@pytest.mark.parametrize("directions", [G.AXIAL, G.CORONAL, G.oblique()])
@pytest.mark.parametrize("count", [9, 7, 2])
@pytest.mark.parametrize("order", [1, -1])
def test_a_mosaic_is_its_planes(tmp_path, rng, directions, count, order):
    planes = G.make_planes(directions)
    values = rng.integers(-50, 900, planes.points.shape[:3]).astype(np.int16)
    path = write_mosaic(tmp_path / "mosaic.dcm", planes, values, count, order)
    scan, header = read_scan(path), probe(path)
    assert scan.shape == header.shape == (*planes.shape[::-1], count)
    np.testing.assert_allclose(header.spacing, scan.spacing)
    for n in range(count):
        np.testing.assert_array_equal(scan.data[0, :, :, n], values[n].T)
    corner = scan.affine @ [0, 0, count - 1, 1]
    np.testing.assert_allclose(corner[:3], planes.positions[count - 1] * (-1, -1, 1), atol=1e-4)
    assert scan.series.frames == (0,) * count  # they are no frames of the file
    # nibabel's reader, which keeps the order of the tiles; DICOM axes point left and back.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nibabel.nicom.dicomwrappers import MosaicWrapper
    other = MosaicWrapper(pydicom.dcmread(path))
    assert other.n_mosaic == count
    np.testing.assert_array_equal(other.get_data().transpose(1, 0, 2)[:, :, ::order], scan.data[0])
    for place in ((0, 0, 0), (5, 3, count - 1)):
        i, j, k = place
        theirs = other.affine @ [j, i, k if order == 1 else count - 1 - k, 1]
        np.testing.assert_allclose(
            (scan.affine @ [*place, 1])[:3], theirs[:3] * (-1, -1, 1), atol=1e-3
        )


@pytest.mark.parametrize("syntax", [U.RLELossless, U.JPEG2000Lossless])
def test_compressed(tmp_path, rng, syntax):
    planes = G.make_planes()
    values = rng.integers(0, 900, planes.points.shape[:3]).astype(np.int16)
    path = write_mosaic(tmp_path / "mosaic.dcm", planes, values, 9)
    plain = read_scan(path)
    D.transcode(path, syntax)
    np.testing.assert_array_equal(read_scan(path).data, plain.data)


def test_a_series_of_mosaics(tmp_path, rng):
    planes = G.make_planes()
    made = []
    for n in range(3):
        values = rng.integers(0, 900, planes.points.shape[:3]).astype(np.int16)
        (tmp_path / "in").mkdir(exist_ok=True)
        changes = {
            "SOPInstanceUID": f"1.2.3.{n}", "InstanceNumber": n + 1, "AcquisitionNumber": n + 1,
        }  # fmt: skip
        write_mosaic(tmp_path / "in" / f"{n}.dcm", planes, values, 9, **changes)
        for left in (tmp_path / "in" / "one").iterdir():
            left.unlink()
        made.append(values)
    assert [s.images for s in find_series(tmp_path / "in")] == [9, 9, 9]
    for n in range(3):
        scan = read_scan(f"{tmp_path / 'in'}#repetition={n + 1}")
        np.testing.assert_array_equal(scan.data[0].transpose(2, 1, 0), made[n])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"SpacingBetweenSlices": None}, "without Spacing Between Slices"),
        ({"SpacingBetweenSlices": "-2"}, "without Spacing Between Slices"),
        ({"NumberOfFrames": 2}, "truncated, or contradicts itself|several frames"),
        ({"csa": b"SV10" + b"\xff" * 60}, "without the private CSA header"),
        ({"csa": b""}, "without the private CSA header"),
        ({"csa": csa(NumberOfImagesInMosaic=["9"])}, "without the private CSA header"),
        ({"csa": csa(NumberOfImagesInMosaic=["999999"], SliceNormalVector=["0", "0", "1"])}, "CSA"),
        ({"csa": csa(NumberOfImagesInMosaic=["19"], SliceNormalVector=["0", "0", "1"])}, "don't fill"),
        ({"csa": csa(NumberOfImagesInMosaic=["9"], SliceNormalVector=["1", "0", "0"])}, "slice normal"),
    ],
)  # fmt: skip
def test_mosaics_that_cannot_be_placed(tmp_path, rng, changes, says):
    planes = G.make_planes()
    values = rng.integers(0, 900, planes.points.shape[:3]).astype(np.int16)
    path = write_mosaic(tmp_path / "mosaic.dcm", planes, values, 9)
    data = pydicom.dcmread(path)
    for keyword, value in changes.items():
        if keyword == "csa":
            data.private_block(0x29, "SIEMENS CSA HEADER")[0x10].value = value
        elif value is None:
            del data[keyword]
        else:
            setattr(data, keyword, value)
    data.save_as(path)
    with pytest.raises(ScanError, match=says) as error:
        read_dicom(path)
    assert "damaged" not in str(error.value)
