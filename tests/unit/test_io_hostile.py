"""Bad files are refused with a ScanError that names the file and the reason; nothing else."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from normscan.errors import ScanError
from normscan.io import probe, read_mask, read_scan


def noise(*shape: int, top: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, top, shape)


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Path]:
    """One good file of each format."""
    pixels = noise(32, 40).astype(np.uint8)
    for name in ("a.png", "a.jpg", "a.bmp"):
        Image.fromarray(pixels).save(tmp_path / name)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    tifffile.imwrite(tmp_path / "z.tif", pixels, compression="zlib")
    np.save(tmp_path / "a.npy", pixels)
    np.savez_compressed(tmp_path / "a.npz", image=pixels)
    for name in ("a.nii", "a.nii.gz"):
        nib.save(nib.Nifti1Image(noise(8, 9, 10).astype(np.int16), np.eye(4)), tmp_path / name)
    return {path.name: path for path in tmp_path.iterdir()}


FORMATS = ["a.png", "a.jpg", "a.bmp", "a.tif", "z.tif", "a.npy", "a.npz", "a.nii", "a.nii.gz"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("part", [0, 5, 40, 0.3, 0.6, 0.9])
def test_truncated(good: dict[str, Path], name: str, part: float) -> None:
    path = good[name]
    data = path.read_bytes()
    path.write_bytes(data[: part if isinstance(part, int) else int(part * len(data))])
    with pytest.raises(ScanError) as caught:
        read_scan(path)
    assert name in str(caught.value)
    assert ("empty" in str(caught.value)) == (part == 0)


@pytest.mark.parametrize("name", FORMATS)
def test_random_damage_never_raises_anything_else(good: dict[str, Path], name: str) -> None:
    path = good[name]
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(40):
        broken = bytearray(data)
        for place in rng.integers(0, min(len(data), 400), rng.integers(1, 6)):
            broken[place] = rng.integers(0, 256)
        path.write_bytes(bytes(broken))
        for read in (read_scan, probe):
            try:
                read(path)
            except ScanError as error:
                assert name in str(error)


def test_flipped_bit_in_the_middle_of_a_gzip(good: dict[str, Path]) -> None:
    path = good["a.nii.gz"]
    raw = bytearray(gzip.decompress(path.read_bytes()))
    packed = bytearray(gzip.compress(bytes(raw)))
    packed[-8] ^= 1  # the checksum
    path.write_bytes(bytes(packed))
    with pytest.raises(ScanError, match="CRC"):
        read_scan(path)


def test_missing_file_suggests_the_nearest(good: dict[str, Path]) -> None:
    folder = good["a.png"].parent
    (folder / "scan_017.png").write_bytes(good["a.png"].read_bytes())
    with pytest.raises(ScanError, match=r"no such file\. Did you mean 'scan_017\.png'"):
        read_scan(folder / "scan_17.png")
    with pytest.raises(ScanError, match="There is no folder"):
        read_scan(folder / "nowhere" / "a.png")
    with pytest.raises(ScanError, match="is a folder"):
        read_scan(folder)
    with pytest.raises(ScanError, match="at least one file"):
        read_scan([])


def test_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ScanError, match="not a regular file"):
        read_scan(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    ("source", "name", "says"),
    [
        ("a.png", "b.nii.gz", "content is a PNG"),
        ("a.nii", "b.nii.gz", "content is a NIfTI"),
        ("a.nii.gz", "b.nii", "content is a gzipped NIfTI"),
        ("a.nii.gz", "b.png", "content is a gzipped NIfTI"),
        ("a.npy", "b.tif", "content is a NumPy array"),
        ("a.png", "b.xyz", r"'\.xyz' is none of the formats.*\.nii\.gz"),
        ("a.png", "b", "no extension is none"),
    ],
)
def test_content_of_another_kind(good: dict[str, Path], source: str, name: str, says: str) -> None:
    path = good[source].with_name(name)
    path.write_bytes(good[source].read_bytes())
    with pytest.raises(ScanError, match=says):
        read_scan(path)
    with pytest.raises(ScanError, match=says):
        probe(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello, this is no image at all\n", "text file"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"\0" * 128 + b"DICM" + b"\0" * 64, "DICOM"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WebP"),
        (bytes(range(128, 228)), "unknown kind"),
        (b"%!PS-Adobe-3.0 EPSF\n", "text file"),
    ],
)
def test_what_a_png_may_really_be(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ScanError, match=says):
        read_scan(tmp_path / "a.png")


def test_raster_formats_may_stand_in_for_one_another(good: dict[str, Path]) -> None:
    path = good["a.png"].with_name("really_png.jpg")
    path.write_bytes(good["a.png"].read_bytes())
    assert read_scan(path).shape == (32, 40)


def test_values_that_are_no_image(tmp_path: Path) -> None:
    holes = noise(4, 5).astype(np.float32)
    holes[0, :3] = [np.nan, np.inf, -np.inf]
    np.save(tmp_path / "holes.npy", holes)
    with pytest.raises(ScanError, match="3 of 20 values are NaN or infinite"):
        read_scan(tmp_path / "holes.npy")
    nib.save(nib.Nifti1Image(holes, np.eye(4)), tmp_path / "holes.nii.gz")
    with pytest.raises(ScanError, match=r"holes\.nii\.gz: 3 of 20 values"):
        read_scan(tmp_path / "holes.nii.gz")
    np.save(tmp_path / "big.npy", np.array([[0, 1e300], [2, 3]]))
    with pytest.raises(ScanError, match="range of float32"):
        read_scan(tmp_path / "big.npy")
    for value in (0, 7):
        Image.fromarray(np.full((5, 5), value, dtype=np.uint8)).save(tmp_path / "flat.png")
        with pytest.raises(ScanError, match=f"every pixel is {value}"):
            read_scan(tmp_path / "flat.png")
    np.save(tmp_path / "c.npy", noise(4, 5) * 1j)
    with pytest.raises(ScanError, match="magnitude"):
        read_scan(tmp_path / "c.npy")
    nib.save(nib.Nifti1Image((noise(4, 5, 6) * 1j).astype("c8"), np.eye(4)), tmp_path / "c.nii")
    with pytest.raises(ScanError, match="magnitude"):
        read_scan(tmp_path / "c.nii")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[{}, 1]], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", image=np.array([[{}, 1]], dtype=object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ScanError, match="pickle"):
            read_scan(tmp_path / name)


def test_wrong_number_of_axes(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(noise(4, 5, 6, 3).astype(np.int16), np.eye(4)), tmp_path / "s.nii.gz")
    with pytest.raises(ScanError, match=r"series of 3 volumes of shape \(4, 5, 6\).*#volume=0"):
        read_scan(tmp_path / "s.nii.gz")
    for shape in ((5,), (2, 3, 4, 5)):
        np.save(tmp_path / "a.npy", noise(*shape))
        with pytest.raises(ScanError, match="is no image"):
            read_scan(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", images=noise(4, 5))
    with pytest.raises(ScanError, match="no array `image`, only images"):
        read_scan(tmp_path / "a.npz")
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(noise(8, 9).astype(np.uint8), metadata=None)
        tif.write(noise(7, 9).astype(np.uint8), metadata=None)
    with pytest.raises(ScanError, match="2 images of different size"):
        read_scan(tmp_path / "a.tif")


def png_that_declares(path: Path, width: int, height: int) -> None:
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 100)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_bombs_are_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    png_that_declares(tmp_path / "bomb.png", 100_000, 100_000)
    with pytest.raises(ScanError, match="more pixels than the limit"):
        read_scan(tmp_path / "bomb.png")

    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 3))
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    header.set_data_dtype(np.uint8)
    (tmp_path / "bomb.nii").write_bytes(header.binaryblock + b"\0" * 100)
    with pytest.raises(ScanError, match="declares 2700000000 values"):
        read_scan(tmp_path / "bomb.nii")
    header.set_data_shape((1000, 1000, 100))
    (tmp_path / "less.nii").write_bytes(header.binaryblock + b"\0" * 100)
    with pytest.raises(ScanError, match="more than the file can hold"):
        read_scan(tmp_path / "less.nii")
    with pytest.raises(ScanError, match="more than the file can hold"):
        probe(tmp_path / "less.nii")

    np.save(tmp_path / "a.npy", noise(4, 5).astype(np.uint8))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data.replace(b"(4, 5), }  ", b"(9000000, 9000000), }")[:300])
    with pytest.raises(ScanError):
        read_scan(tmp_path / "a.npy")


def test_singular_affine(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(4, 5, 6).astype(np.int16), np.eye(4))
    image.header["srow_x"] = 0
    image.header["sform_code"] = 1
    image.header["magic"] = b"n+1"
    image.header["vox_offset"] = 352
    raw = image.header.binaryblock + b"\0" * 4 + noise(4, 5, 6).astype("<i2").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    for read in (read_scan, probe):
        with pytest.raises(ScanError, match="affine in the header is singular"):
            read(tmp_path / "a.nii")


def test_mask_refusals(good: dict[str, Path]) -> None:
    scan = read_scan(good["a.png"])
    negative = np.zeros((32, 40))
    negative[0, 0] = -1
    np.save(good["a.npy"], negative)
    with pytest.raises(ScanError, match="negative"):
        read_mask(good["a.npy"], scan)
    with pytest.raises(ScanError, match="no such file"):
        read_mask(good["a.npy"].with_name("gone.png"), scan)
