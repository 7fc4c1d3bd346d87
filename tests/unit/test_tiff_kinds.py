"""A TIFF means one thing whatever its depth, packing, order of bytes and layout."""

from __future__ import annotations

import struct
from itertools import product

import numpy as np
import pytest
import tifffile

from normscan.errors import ScanError
from normscan.io import probe, read_scan

imagecodecs = pytest.importorskip("imagecodecs")

PACKINGS = ("none", "lzw", "zlib", "zstd", "packbits")
CODES = {"none": 1, "lzw": 5, "zlib": 8, "zstd": 50000, "packbits": 32773}


def agreed(path):
    """Read a file and check that probing it says the same."""
    scan, header = read_scan(path), probe(path)
    assert (header.shape, header.dtype) == (scan.shape, scan.dtype)
    assert header.channels == len(scan.channels)
    if header.spacing is not None:
        assert header.spacing == pytest.approx(scan.spacing)
    return scan


def by_hand(path, values, bits, packing, photometric=1, order="<"):
    """Write samples of any number of bits, most significant bit first as TIFF 6.0 asks."""
    width = values.shape[1]
    rows = b""
    for row in values:
        text = "".join(format(int(v), f"0{bits}b") for v in row)
        text += "0" * (-len(text) % 8)
        rows += int(text, 2).to_bytes(len(text) // 8, "big")
    encode = {
        "none": bytes, "lzw": imagecodecs.lzw_encode, "zlib": imagecodecs.zlib_encode,
        "zstd": imagecodecs.zstd_encode, "packbits": imagecodecs.packbits_encode,
    }[packing]  # fmt: skip
    strip = bytes(encode(rows))
    at = 8 + 2 + 12 * 9 + 4
    tags = (
        (256, 4, width), (257, 4, len(values)), (258, 3, bits), (259, 3, CODES[packing]),
        (262, 3, photometric), (273, 4, at), (277, 3, 1), (278, 4, len(values)),
        (279, 4, len(strip)),
    )  # fmt: skip
    body = struct.pack(order + "H", len(tags))
    for tag, kind, value in tags:
        form = order + ("HH" if kind == 3 else "I")
        cell = struct.pack(form, *((value, 0) if kind == 3 else (value,)))
        body += struct.pack(order + "HHI", tag, kind, 1) + cell
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    path.write_bytes(head + body + b"\0" * 4 + strip)
    return path


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 10, 12, 14])
def test_every_depth_below_16_bits(tmp_path, rng, bits, packing):
    values = rng.integers(0, 2**bits, (9, 13))
    spread = 255 // (2**bits - 1) if bits in (2, 4) else 1
    for photometric, order in product((0, 1), "<>"):
        path = by_hand(tmp_path / "a.tif", values, bits, packing, photometric, order)
        shown = 2**bits - 1 - values if photometric == 0 else values
        np.testing.assert_array_equal(agreed(path).data[0], shown * spread)


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
def test_packings_change_nothing(tmp_path, rng, kind, alpha, photometric):
    grey = photometric != "rgb"
    samples = (1 if grey else 3) + alpha
    shape = (17, 21) if samples == 1 else (17, 21, samples)
    span = (0, 1) if kind[0] == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
    values = (span[0] + rng.random(shape) * (span[1] - span[0])).astype(kind)
    stored = values if samples == 1 else values[..., : samples - alpha]
    shown = stored.astype(np.float64)
    if photometric == "miniswhite":
        shown = (span[1] if kind[0] == "u" else -1) - stored.astype(np.float64)
    shown = shown[..., None] if shown.ndim == 2 else shown
    options = {"photometric": photometric, "extrasamples": ["unassalpha"] if alpha else None}
    for packing, predictor, tile, planar in product(
        (None, "lzw", "zlib", "zstd"), (False, True), (None, (16, 16)), ("contig", "separate")
    ):
        if (predictor and packing is None) or (planar == "separate" and samples == 1):
            continue
        written = values if planar == "contig" else np.moveaxis(values, -1, 0)
        tifffile.imwrite(
            tmp_path / "a.tif", written, compression=packing, predictor=predictor, tile=tile,
            planarconfig=planar if samples > 1 else None, metadata=None, **options,
        )  # fmt: skip
        if photometric == "miniswhite" and kind[0] == "f":
            with pytest.raises(ScanError, match="white-is-zero"):
                read_scan(tmp_path / "a.tif")
            continue
        scan = agreed(tmp_path / "a.tif")
        expected = np.moveaxis(shown, -1, 0).astype(np.float32)
        np.testing.assert_array_equal(scan.data, expected, err_msg=f"{packing} {tile} {planar}")


@pytest.mark.parametrize("kind", ["u1", "u2", "i2"])
@pytest.mark.parametrize("many", [False, True])
def test_jpeg_2000(tmp_path, rng, kind, many):
    values = rng.integers(0, 120, (3, 17, 21) if many else (17, 21)).astype(kind)
    tifffile.imwrite(
        tmp_path / "a.tif", values, compression="jpeg2000", compressionargs={"level": 0},
        photometric="minisblack",
    )  # fmt: skip
    np.testing.assert_array_equal(agreed(tmp_path / "a.tif").data[0], values)


@pytest.mark.parametrize("packing", [None, "lzw", "zlib", "zstd"])
def test_stacks_of_every_packing(tmp_path, rng, packing):
    values = rng.integers(0, 60000, (4, 9, 11)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, compression=packing, photometric="miniswhite")
    np.testing.assert_array_equal(agreed(tmp_path / "a.tif").data[0], 65535.0 - values)


def test_white_is_zero_that_float32_cannot_hold(tmp_path):
    values = np.arange(300, dtype=np.uint32).reshape(15, 20)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    with pytest.raises(ScanError, match="float32 can't tell apart"):
        read_scan(tmp_path / "a.tif")


@pytest.mark.parametrize("packing", [None, "lzw", "zlib"])
@pytest.mark.parametrize(
    ("unit", "mm"), [("CENTIMETER", 10.0), ("MILLIMETER", 1.0), ("MICROMETER", 1e-3)]
)
def test_resolution_units(tmp_path, rng, packing, unit, mm):
    values = rng.integers(0, 60000, (9, 11)).astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif", values, compression=packing, resolution=(4 * mm, 2 * mm),
        resolutionunit=unit,
    )  # fmt: skip
    assert agreed(tmp_path / "a.tif").spacing == pytest.approx((0.5, 0.25))


@pytest.mark.parametrize(
    ("unit", "mm"),
    [("mm", 1.0), ("micron", 1e-3), ("µm", 1e-3), ("\\u00B5m", 1e-3), ("cm", 10.0), ("m", 1e3)],
)
def test_imagej_units(tmp_path, rng, unit, mm):
    values = rng.integers(0, 60000, (4, 9, 11)).astype(np.uint16)
    about = {"unit": unit, "spacing": 2 / mm, "axes": "ZYX"}
    if not unit.isascii():
        about["unit"] = "um"  # tifffile writes ASCII alone
    tifffile.imwrite(
        tmp_path / "a.tif", values, imagej=True, resolution=(mm / 0.5, mm / 0.25), metadata=about
    )
    assert agreed(tmp_path / "a.tif").spacing == pytest.approx((2, 0.25, 0.5), rel=1e-4)


@pytest.mark.parametrize(("unit", "mm"), [(None, 1e-3), ("µm", 1e-3), ("mm", 1.0), ("cm", 10.0)])
def test_ome_physical_sizes(tmp_path, rng, unit, mm):
    values = rng.integers(0, 60000, (4, 9, 11)).astype(np.uint16)
    about = {"axes": "ZYX"}
    for axis, size in (("X", 0.5), ("Y", 0.25), ("Z", 2.0)):
        about[f"PhysicalSize{axis}"] = size / mm
        if unit:
            about[f"PhysicalSize{axis}Unit"] = unit
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata=about, compression="lzw")
    assert agreed(tmp_path / "a.ome.tif").spacing == pytest.approx((2, 0.25, 0.5))


def test_channels_of_a_microscope_are_no_planes(tmp_path, rng):
    values = rng.integers(0, 60000, (5, 9, 11)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata={"axes": "CYX"})
    scan = agreed(tmp_path / "a.ome.tif")
    assert scan.dims == 2 and scan.channels[0] == "channel0" and len(scan.channels) == 5
    np.testing.assert_array_equal(scan.data, values)


@pytest.mark.parametrize("packing", ["none", "lzw", "zlib"])
def test_palettes_of_every_packing(tmp_path, rng, packing):
    from PIL import Image

    colours = Image.fromarray(rng.integers(0, 256, (9, 11, 3)).astype(np.uint8)).quantize(16)
    name = {"none": "raw", "lzw": "tiff_lzw", "zlib": "tiff_adobe_deflate"}[packing]
    colours.save(tmp_path / "a.tif", compression=name)
    expected = np.moveaxis(np.asarray(colours.convert("RGB")), -1, 0)
    np.testing.assert_array_equal(agreed(tmp_path / "a.tif").data, expected)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
@pytest.mark.parametrize("packing", ["raw", "tiff_lzw", "jpeg"])
def test_colour_spaces_as_pillow_shows_them(tmp_path, rng, mode, packing):
    from PIL import Image

    picture = Image.fromarray(rng.integers(0, 256, (16, 24, 3)).astype(np.uint8)).convert(mode)
    picture.save(tmp_path / "a.tif", compression=packing)
    with Image.open(tmp_path / "a.tif") as again:
        expected = np.moveaxis(np.asarray(again.convert("RGB")), -1, 0).astype(int)
    assert np.abs(agreed(tmp_path / "a.tif").data - expected).max() <= 1


def test_what_is_not_supported_is_not_called_damaged(tmp_path, rng):
    from PIL import Image

    picture = Image.fromarray(rng.integers(0, 256, (9, 11, 3)).astype(np.uint8)).convert("LAB")
    picture.save(tmp_path / "a.tif")
    for attempt in (read_scan, probe):
        with pytest.raises(ScanError, match=r"cielab.*isn't supported here\. Save it") as caught:
            attempt(tmp_path / "a.tif")
        assert "damaged" not in str(caught.value)
