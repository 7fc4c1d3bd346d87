"""WebP and JPEG 2000 against Pillow, imagecodecs and tifffile's values."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from normscan.errors import ScanError
from normscan.io import MaskReport, probe, read_mask, read_scan


def smooth(rng, *shape: int) -> np.ndarray:
    base = rng.integers(0, 255, (6, 8, *shape[2:])).astype(np.uint8)
    return np.asarray(np.kron(base, np.ones((8, 8, *[1] * len(shape[2:])), np.uint8)))


def agrees(path, expected: np.ndarray, within: float = 0) -> None:
    scan, header = read_scan(path), probe(path)
    colour = expected.ndim == 3
    expected = np.moveaxis(expected[..., :3], -1, 0) if colour else expected[None]
    assert np.abs(scan.data - expected).max() <= within
    assert (header.shape, header.dtype) == (scan.shape, scan.dtype)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [True, False])
def test_webp(tmp_path, rng, mode, lossless):
    bands = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    image = Image.fromarray(smooth(rng, 48, 64, *bands))
    image.save(tmp_path / "a.webp", lossless=lossless, exact=True)
    agrees(
        tmp_path / "a.webp",
        np.asarray(image if lossless else Image.open(tmp_path / "a.webp").convert("RGB")),
    )
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "b.webp", lossless=lossless, exact=True, exif=exif)
    assert read_scan(tmp_path / "b.webp").shape == probe(tmp_path / "b.webp").shape == (64, 48)


def test_a_moving_webp_is_refused(tmp_path, rng):
    image = Image.fromarray(smooth(rng, 48, 64))
    image.save(tmp_path / "a.webp", save_all=True, append_images=[image.rotate(180)])
    for attempt in (read_scan, probe):
        with pytest.raises(ScanError, match="moving picture of 2 frames"):
            attempt(tmp_path / "a.webp")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
@pytest.mark.parametrize("bands", [(), (3,), (4,), (2,)])
@pytest.mark.parametrize("name", ["a.jp2", "a.j2k"])
def test_jpeg_2000(tmp_path, rng, dtype, bands, name):
    values = rng.integers(-99 if dtype is np.int16 else 0, 255, (40, 50, *bands)).astype(dtype)
    if dtype is np.uint16:
        values *= 257
    data = imagecodecs.jpeg2k_encode(values, level=0, codecformat=name[2:], reversible=True)
    (tmp_path / name).write_bytes(data)
    agrees(tmp_path / name, values[..., 0] if bands == (2,) else values)
    assert read_scan(tmp_path / name).dtype == np.dtype(dtype).name
    by_pillow = Image.open(tmp_path / name)
    if dtype is np.uint8 and bands in ((), (3,)):
        agrees(tmp_path / name, np.asarray(by_pillow))
    assert by_pillow.size == (50, 40)


def test_jpeg_2000_of_other_kinds(tmp_path, rng):
    image = Image.fromarray(smooth(rng, 48, 64, 3))
    image.save(tmp_path / "a.jp2", irreversible=True, quality_layers=[20])
    agrees(tmp_path / "a.jp2", np.asarray(Image.open(tmp_path / "a.jp2")), within=1)
    image.convert("YCbCr").save(tmp_path / "b.jp2")  # sYCC
    agrees(tmp_path / "b.jp2", np.asarray(Image.open(tmp_path / "b.jp2").convert("RGB")), within=2)
    image.save(tmp_path / "c.jp2", tile_size=(16, 16), offset=(0, 0))
    agrees(tmp_path / "c.jp2", np.asarray(image))
    data = (tmp_path / "a.jp2").read_bytes()
    for bad, says in ((b"colr\1\0\0\0\0\0\x0c", "CMYK"), (b"pclr\1\0\0\0\0\0\x10", "palette")):
        (tmp_path / "d.jp2").write_bytes(data.replace(b"colr\1\0\0\0\0\0\x10", bad))
        with pytest.raises(ScanError, match=f"{says} isn't supported"):
            read_scan(tmp_path / "d.jp2")


def test_damage(tmp_path, rng):
    image = Image.fromarray(smooth(rng, 48, 64, 3))
    image.save(tmp_path / "a.jp2")
    image.save(tmp_path / "a.webp")
    for name in ("a.jp2", "a.webp"):
        data = (tmp_path / name).read_bytes()
        for part in (0.02, 0.1, 0.5, 0.9):
            (tmp_path / name).write_bytes(data[: int(part * len(data))])
            with pytest.raises(ScanError, match=name):
                read_scan(tmp_path / name)
        for _ in range(40):
            bad = bytearray(data)
            for place in rng.integers(0, min(len(bad), 200), 3):
                bad[place] = rng.integers(256)
            (tmp_path / name).write_bytes(bytes(bad))
            try:
                read_scan(tmp_path / name)
            except ScanError as error:
                assert name in str(error)
    # A size that nothing can hold.
    data = (tmp_path / "a.jp2").read_bytes()
    image.save(tmp_path / "b.jp2")
    data = (tmp_path / "b.jp2").read_bytes()
    start = data.index(b"\xff\x4f\xff\x51")
    (tmp_path / "b.jp2").write_bytes(
        data[: start + 8] + b"\x7f\xff\xff\xff" * 2 + data[start + 16 :]
    )
    with pytest.raises(ScanError, match="declares"):
        read_scan(tmp_path / "b.jp2")


@pytest.mark.parametrize("name", ["m.webp", "m.jp2"])
@pytest.mark.parametrize("lossy", [True, False])
def test_masks(tmp_path, rng, name, lossy):
    inside = np.zeros((48, 64), bool)
    inside[10:30, 20:40] = True
    image = Image.fromarray(inside.astype(np.uint8) * 255)
    options = {"lossless": not lossy} if name == "m.webp" else {"irreversible": lossy}
    image.save(tmp_path / name, **options)
    Image.fromarray(smooth(rng, 48, 64)).save(tmp_path / "a.png")
    report = MaskReport()
    found = read_mask(tmp_path / name, read_scan(tmp_path / "a.png"), report=report)
    assert np.mean(found != inside) < (0.01 if lossy else 1e-9)
    assert dict(report.kinds) == {"drawing" if lossy else "label map": 1}
