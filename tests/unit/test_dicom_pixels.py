"""What the pixels of DICOM images are as values: scales, padding, colours, frames."""

from __future__ import annotations

import io
import struct

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid as U
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space
from tests.support import dicom_files as D
from tests.support import dicom_planes as G

from normscan import Scan
from normscan.errors import ScanError
from normscan.io import content_hash, probe, read_scan
from normscan.io.dicom import find_series, read_dicom

PLANES = G.make_planes()
RAMP = PLANES.points[..., 2] * 3 + PLANES.points[..., 0]
PLAIN = G.Encoding(1.0, 0.0)


def test_rescale_of_each_file_is_its_own(tmp_path):
    for k, path in enumerate(
        D.write_series(tmp_path, PLANES, np.full_like(RAMP, 100), encoding=PLAIN)
    ):
        D.edit(path, RescaleSlope=str(k + 1), RescaleIntercept=str(-10 * k))
    data = read_dicom(tmp_path).data
    np.testing.assert_array_equal(data[0, 3, 4], 100 * np.arange(1, 10) - 10 * np.arange(9))


def test_padding_becomes_the_lowest_real_value(tmp_path):
    values = np.round(RAMP - RAMP.min()).astype(int) + 40
    values[:, :2] = 3000
    encoding = G.Encoding(1.0, 0.0, 16, True)
    paths = D.write_series(tmp_path / "mr", PLANES, values, "MR", encoding=encoding)
    for path in paths:
        data = pydicom.dcmread(path)
        data.add_new("PixelPaddingValue", "SS", 3000)
        data.save_as(path)
    data = read_dicom(tmp_path / "mr").data
    assert (data[0, :, :2] == 40).all() and data.max() == values[:, 2:].max()
    for path in paths:
        D.edit(path, Modality="CT", RescaleIntercept="-1024")
    data = read_dicom(tmp_path / "mr").data
    assert (data[0, :, :2] == -1000).all()
    for path in paths:
        data = pydicom.dcmread(path)
        data.add_new("PixelPaddingRangeLimit", "SS", 0)
        data.save_as(path)
    with pytest.raises(ScanError, match="every pixel has the padding value"):
        read_dicom(tmp_path / "mr")


@pytest.mark.parametrize("slope", ["0", "777777"])
def test_slopes_that_scale_nothing(tmp_path, slope):
    for path in D.write_series(tmp_path, PLANES, RAMP, header={"RescaleSlope": slope}):
        path.write_bytes(path.read_bytes().replace(b"777777", b"broken"))
    with pytest.raises(ScanError, match="RescaleSlope is no number that can scale"):
        read_dicom(tmp_path)


@pytest.mark.parametrize("signed", [False, True])
def test_monochrome1_is_turned_over(tmp_path, rng, signed):
    stored = rng.integers(-2000, 2000, (13, 21)).astype("i2")
    stored = stored if signed else (stored + 2000).astype("u2")
    path = D.write_image(tmp_path / "a.dcm", stored, "CR", "MONOCHROME1", bits=12)
    scan = read_dicom(path)
    np.testing.assert_array_equal(scan.data[0], (-1 if signed else 4095) - stored.astype(int))
    assert scan.series.inverted and scan.extra["dicom"]["inverted"]
    assert any("MONOCHROME1" in note for note in scan.series.notes)


def test_overlay_bits_and_high_bit(tmp_path, rng):
    stored = rng.integers(0, 4096, (13, 21)).astype("u2")
    path = D.write_image(tmp_path / "a.dcm", stored << 2 | 0x8001, "DX", bits=16)
    D.edit(path, BitsStored=12, HighBit=13)
    np.testing.assert_array_equal(read_dicom(path).data[0], stored)
    D.edit(path, HighBit=3)
    with pytest.raises(ScanError, match="high bit 3 contradicts"):
        read_dicom(path)


def test_modality_table_and_window(tmp_path, rng):
    stored = rng.integers(0, 16, (13, 21)).astype("u1")
    table = [int(v) for v in rng.permutation(16) * 100]
    lut = D.item(LUTDescriptor=[16, 0, 16], ModalityLUTType="US")
    lut[0].add_new("LUTData", "OW", struct.pack("<16H", *table))
    shown = {"WindowCenter": ["40", "400"], "WindowWidth": ["80", "1800"]}
    path = D.write_image(tmp_path / "a.dcm", stored, "DX", ModalityLUTSequence=lut, **shown)
    scan = read_dicom(path)
    np.testing.assert_array_equal(scan.data[0], np.array(table)[stored])
    assert scan.series.window == {"window": [(40, 80), (400, 1800)]}


def test_colours(tmp_path, rng):
    colour = rng.integers(0, 256, (12, 20, 3)).astype("u1")
    scan = read_dicom(D.write_image(tmp_path / "rgb.dcm", colour, "US", "RGB"))
    assert scan.channels == ("red", "green", "blue")
    np.testing.assert_array_equal(np.moveaxis(scan.data, 0, -1), colour)
    grey = np.repeat(colour[..., :1], 3, axis=2)
    scan = read_dicom(D.write_image(tmp_path / "grey.dcm", grey, "US", "RGB"))
    assert scan.channels == ("us",)
    np.testing.assert_array_equal(scan.data[0], grey[..., 0])
    scan = read_dicom(D.write_image(tmp_path / "ybr.dcm", colour, "US", "YBR_FULL"))
    y, cb, cr = np.moveaxis(colour.astype(float), -1, 0)
    expected = [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128),
                y + 1.772 * (cb - 128)]  # fmt: skip
    np.testing.assert_allclose(scan.data, np.clip(np.round(expected), 0, 255), atol=1)
    index = colour[..., 0]
    scan = read_dicom(D.write_image(tmp_path / "palette.dcm", index, "US", "PALETTE COLOR"))
    np.testing.assert_array_equal(
        np.moveaxis(scan.data, 0, -1), D.palette()[index].astype(int) * 257
    )


def test_spacing_of_pictures(tmp_path, rng):
    stored = rng.integers(0, 200, (13, 21)).astype("u1")
    at_detector = read_dicom(D.write_image(tmp_path / "a.dcm", stored, "DX"))
    assert at_detector.spacing == (0.2, 0.1) and "detector" in at_detector.series.notes[0]
    in_patient = D.write_image(tmp_path / "b.dcm", stored, "DX", PixelSpacing=["0.3", "0.15"])
    assert read_dicom(in_patient).spacing == (0.3, 0.15) and not read_dicom(in_patient).series.notes
    unknown = D.write_image(tmp_path / "c.dcm", stored, "DX", spacing=None)
    assert read_dicom(unknown).spacing == (1, 1) and probe(unknown).spacing is None
    assert not read_dicom(unknown).series.placed
    np.testing.assert_array_equal(read_dicom(unknown).affine, Scan.from_array(stored).affine)


def test_frames_of_a_clip(tmp_path, rng):
    clip = rng.integers(0, 255, (5, 14, 22)).astype("u1")
    path = D.write_image(tmp_path / "clip.dcm", clip, "US")
    with pytest.raises(ScanError, match=r"5 frames.*#frame=0 to #frame=4"):
        read_scan(path)
    for n in (0, 4):
        scan = read_scan(f"{path}#frame={n}")
        np.testing.assert_array_equal(scan.data[0], clip[n])
        assert scan.series.frames == (n + 1,)
    with pytest.raises(ScanError, match="no frame 5; it has 5"):
        read_scan(f"{path}#frame=5")
    assert content_hash(f"{path}#frame=0") != content_hash(f"{path}#frame=1")
    compressed = D.write_image(tmp_path / "rle.dcm", clip, "US", syntax=U.RLELossless)
    np.testing.assert_array_equal(read_dicom(compressed, frame=3).data[0], clip[3])


def test_a_frame_of_an_enhanced_file_is_a_plane(tmp_path):
    [path] = D.write_enhanced(tmp_path / "a.dcm", PLANES, RAMP, shuffle=3)
    scan = read_dicom(path, frame=2)
    k = D.frame_order(9, 3)[2]
    np.testing.assert_allclose(scan.data[0], RAMP[k], atol=2e-3)
    np.testing.assert_allclose(scan.series.positions[0], PLANES.positions[k], atol=1e-6)


def test_echoes_of_an_enhanced_file(tmp_path):
    [path] = D.write_enhanced(tmp_path / "a.dcm", PLANES, RAMP, shuffle=3)
    data = pydicom.dcmread(path)
    pixels, groups = data.pixel_array, []
    for item in data.PerFrameFunctionalGroupsSequence:
        for echo in (30.0, 5.0):
            again = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence[len(groups) // 2]
            assert again == item
            again.MREchoSequence = D.item(EffectiveEchoTime=echo)
            groups.append(again)
    data.PerFrameFunctionalGroupsSequence = groups
    data.NumberOfFrames = 18
    data.PixelData = np.repeat(pixels, 2, axis=0).tobytes()
    data.save_as(path)
    assert [(s.label, s.split) for s in find_series(path)] == [
        ("4.1", "echo time 5.0"), ("4.2", "echo time 30.0"),
    ]  # fmt: skip
    scan = read_scan(f"{path}#series=4.2")
    np.testing.assert_allclose(scan.data[0], RAMP.transpose(2, 1, 0), atol=2e-3)
    assert sorted(scan.series.frames) == list(range(1, 18, 2))
    data.NumberOfFrames = 17
    data.save_as(path)
    with pytest.raises(ScanError, match="17 frames, but functional groups for 18"):
        read_scan(path)


def doppler(kind, rng):
    """(40, 56, 3) uint8 YBR: speckle, with a box of colour, with colour all over."""
    stored = np.full((40, 56, 3), 128, np.uint8)
    stored[..., 0] = rng.integers(0, 256, (40, 56))
    if kind == "box":
        stored[7:19, 20:41, 1:] = rng.integers(0, 256, (12, 21, 2))
    elif kind == "all":
        stored[..., 1:] = rng.integers(0, 256, (40, 56, 2))
    return stored


@pytest.mark.parametrize("kind", ["grey", "box", "all"])
def test_ultrasound_comes_out_as_pydicom_has_it(tmp_path, rng, kind):
    loop = np.stack([doppler(kind, rng) for _ in range(2)])
    path = D.write_image(tmp_path / "ybr.dcm", loop, "US", "YBR_FULL")
    expected = convert_color_space(loop[1], "YBR_FULL", "RGB")
    scan = read_scan(f"{path}#frame=1")
    if kind == "grey":
        assert scan.channels == ("us",)
        expected = expected[..., :1]
    np.testing.assert_array_equal(np.moveaxis(scan.data, 0, -1), expected)


@pytest.mark.parametrize("kind", ["grey", "box", "all"])
def test_compressed_ultrasound_comes_out_as_pydicom_has_it(tmp_path, rng, kind):
    rgb = convert_color_space(doppler(kind, rng), "YBR_FULL", "RGB")
    data = pydicom.dcmread(D.write_image(tmp_path / "us.dcm", rgb, "US", "RGB"))
    packed = io.BytesIO()
    Image.fromarray(rgb).save(packed, "JPEG", quality=90, subsampling="4:2:2")
    data.PixelData, data["PixelData"].VR = encapsulate([packed.getvalue()]), "OB"
    data.PhotometricInterpretation = "YBR_FULL_422"
    data.file_meta.TransferSyntaxUID = U.JPEGBaseline8Bit
    data.save_as(tmp_path / "us.dcm")
    expected = pydicom.dcmread(tmp_path / "us.dcm").pixel_array
    scan = read_dicom(tmp_path / "us.dcm")
    np.testing.assert_array_equal(
        np.moveaxis(np.broadcast_to(scan.data, (3, 40, 56)), 0, -1), expected
    )
