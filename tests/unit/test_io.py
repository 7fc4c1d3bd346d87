"""Files written by independent means come back with every bit and their geometry."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from normscan.errors import OutputError, ScanError
from normscan.io import atomic_path, content_hash, probe, read_mask, read_scan, write_map
from normscan.scan import Scan

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real data are not at {SHARED}")
IN_TMP = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def noise(*shape: int, top: int = 65536, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, shape)


def raw_png(path: Path, pixels: np.ndarray, colour: int) -> Path:
    """Write a 16-bit PNG by hand, each row with another filter, as Pillow can't write them."""
    height, width = pixels.shape[:2]
    step = 2 * (pixels.size // (height * width))
    rows = pixels.astype(">u2").reshape(height, -1)
    out, before = b"", np.zeros(width * step, dtype=np.uint8)
    for y in range(height):
        line = np.frombuffer(rows[y].tobytes(), dtype=np.uint8)
        left = np.concatenate([np.zeros(step, dtype=np.uint8), line[:-step]])
        kind = y % 3  # none, sub, up
        out += bytes([kind]) + (line - [np.zeros_like(line), left, before][kind]).tobytes()
        before = line
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(out)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@IN_TMP
@given(arrays(np.uint16, (5, 7), elements=st.integers(0, 65535)))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.npy"])
def test_16_bits_survive(tmp_path: Path, name: str, pixels: np.ndarray) -> None:
    pixels[0, 0] = 65535 if pixels[0, 1] != 65535 else 0  # never constant
    path = tmp_path / name
    if name.endswith("png"):
        Image.fromarray(pixels).save(path)
    elif name.endswith("tif"):
        tifffile.imwrite(path, pixels)
    else:
        np.save(path, pixels)
    scan = read_scan(path)
    assert scan.dtype == "uint16"
    np.testing.assert_array_equal(scan.data[0], pixels)


@pytest.mark.parametrize(
    ("colour", "bands", "names"),
    [(0, 1, ("grey",)), (2, 3, ("red", "green", "blue")), (4, 2, ("grey",)),
     (6, 4, ("red", "green", "blue"))],
)  # fmt: skip
def test_16_bit_png_of_every_colour_type(
    tmp_path: Path, colour: int, bands: int, names: tuple[str, ...]
) -> None:
    pixels = noise(9, 6, bands)
    path = raw_png(tmp_path / "deep.png", pixels, colour)
    scan = read_scan(path)
    assert (scan.channels, scan.dtype) == (names, "uint16")
    np.testing.assert_array_equal(np.moveaxis(scan.data, 0, -1), pixels[..., : len(names)])
    header = probe(path)
    assert (header.shape, header.channels, header.dtype) == ((9, 6), len(names), "uint16")


def test_8_bit_modes(tmp_path: Path) -> None:
    grey = noise(6, 8, top=256).astype(np.uint8)
    colour = noise(6, 8, 3, top=256).astype(np.uint8)
    images = {
        "grey": Image.fromarray(grey),
        "la": Image.merge("LA", [Image.fromarray(grey), Image.fromarray(grey.T.reshape(6, 8))]),
        "same": Image.fromarray(np.stack([grey] * 3, axis=-1)),
        "rgb": Image.fromarray(colour),
        "rgba": Image.fromarray(np.concatenate([colour, grey[..., None]], axis=-1)),
        "palette": Image.fromarray(grey).quantize(256),
        "bit": Image.fromarray(grey > 128),
    }
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    read = {name: read_scan(tmp_path / f"{name}.png") for name in images}
    for name in ("grey", "la", "same", "palette"):
        assert read[name].channels == ("grey",), name
        np.testing.assert_array_equal(read[name].data[0], grey, err_msg=name)
    for name in ("rgb", "rgba"):
        assert read[name].channels == ("red", "green", "blue")
        np.testing.assert_array_equal(read[name].data, np.moveaxis(colour, -1, 0))
    np.testing.assert_array_equal(read["bit"].data[0], grey > 128)
    assert probe(tmp_path / "same.png").channels == 3


def test_bmp_and_jpeg(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(32), np.arange(40)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.bmp")
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_array_equal(read_scan(tmp_path / "a.bmp").data[0], smooth)
    assert np.abs(read_scan(tmp_path / "a.jpg").data[0] - smooth).max() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_orientation_as_pillow_shows_it(tmp_path: Path, name: str, orientation: int) -> None:
    from PIL import ImageOps

    pixels = noise(4, 6, top=256).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / name
    if name.endswith("tif"):
        tifffile.imwrite(path, pixels, extratags=[(274, 3, 1, orientation, True)])
    else:
        Image.fromarray(pixels).save(path, exif=exif)
    # Pillow turns PNGs itself; it garbles uncompressed TIFFs with orientations 5 to 8.
    Image.fromarray(pixels).save(tmp_path / "reference.png", exif=exif)
    with Image.open(tmp_path / "reference.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_scan(path).data[0], expected)
    assert probe(path).shape == expected.shape


def test_tiff_kinds(tmp_path: Path) -> None:
    stack = noise(4, 5, 6).astype(np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    volume = read_scan(tmp_path / "stack.tif")
    np.testing.assert_array_equal(volume.data[0], stack)
    # Pages run towards +z, rows towards -y, columns towards +x.
    np.testing.assert_array_equal(volume.affine @ [1, 2, 3, 1], [3, -2, 1, 1])
    assert probe(tmp_path / "stack.tif").shape == (4, 5, 6)

    deep = noise(5, 6, 3).astype(np.uint16)
    tifffile.imwrite(tmp_path / "rgb.tif", deep, photometric="rgb")
    np.testing.assert_array_equal(
        read_scan(tmp_path / "rgb.tif").data, np.moveaxis(deep, -1, 0).astype(np.float32)
    )
    tifffile.imwrite(tmp_path / "white.tif", stack[0], photometric="miniswhite")
    np.testing.assert_array_equal(read_scan(tmp_path / "white.tif").data[0], 65535.0 - stack[0])

    Image.fromarray(stack[0]).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_scan(tmp_path / "lzw.tif").data[0], stack[0])

    size = {"resolution": (20, 40), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "mm.tif", stack[0], **size)
    assert read_scan(tmp_path / "mm.tif").spacing == (0.25, 0.5)
    assert probe(tmp_path / "mm.tif").spacing == (0.25, 0.5)
    tifffile.imwrite(tmp_path / "dpi.tif", stack[0], resolution=(72, 72), resolutionunit="INCH")
    assert probe(tmp_path / "dpi.tif").spacing is None


OBLIQUE = np.array(
    [[0.9, -0.3, 0.1, -50.5], [0.28, 1.1, -0.4, 12.25], [0.02, 0.35, 2.9, 7], [0, 0, 0, 1]]
)


@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (1, 4), (0, 0)])
@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6), (5, 6, 1), (5, 6, 7, 1)])
def test_nifti_geometry_survives(
    tmp_path: Path, shape: tuple[int, ...], codes: tuple[int, int]
) -> None:
    rotation = np.eye(4)
    turn = 0.3
    rotation[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    image = nib.Nifti1Image(noise(*shape).astype(np.int16), rotation @ np.diag([0.5, 0.7, 2, 1]))
    image.set_qform(rotation @ np.diag([0.5, 0.7, 2, 1]), code=codes[0])
    image.set_sform(OBLIQUE, code=codes[1])
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"DOE^JOHN"
    path = tmp_path / "sub-01_ses-2_FLAIR.nii.gz"
    nib.save(image, path)

    scan = read_scan(path)
    stored = nib.load(path)
    assert scan.channels == ("FLAIR",)
    np.testing.assert_array_equal(scan.affine, stored.affine)
    np.testing.assert_array_equal(
        scan.data[0], np.asarray(image.dataobj).reshape(scan.shape).astype(np.float32)
    )
    assert probe(path).shape == scan.shape
    np.testing.assert_allclose(probe(path).spacing, scan.spacing)

    values = np.linspace(0, 1, scan.data[0].size, dtype=np.float32).reshape(scan.shape)
    written = nib.load(write_map(tmp_path / "map.nii.gz", values, scan))
    assert written.shape == stored.shape
    assert written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(written.affine, stored.affine)
    np.testing.assert_array_equal(written.get_qform(), stored.get_qform())
    for name in ("qform_code", "sform_code", "xyzt_units"):
        assert written.header[name] == stored.header[name]
    assert b"DOE" not in bytes(written.header["descrip"])
    np.testing.assert_array_equal(np.asarray(written.dataobj).reshape(scan.shape), values)


def test_nifti_of_a_resampled_scan_has_the_new_affine(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(noise(4, 5, 6).astype(np.int16), OBLIQUE), tmp_path / "a.nii")
    scan = read_scan(tmp_path / "a.nii")
    moved = Scan(scan.data, np.diag([2.0, 2, 2, 1]), scan.channels, extra=scan.extra)
    written = nib.load(write_map(tmp_path / "m.nii", np.zeros((4, 5, 6)), moved))
    np.testing.assert_array_equal(written.affine, np.diag([2.0, 2, 2, 1]))


def test_nifti_scaling_byte_order_and_rgb(tmp_path: Path) -> None:
    values = noise(4, 5, 6, top=1000).astype(np.int16)
    header = nib.Nifti1Header(endianness=">")
    image = nib.Nifti1Image(values, np.eye(4), header)
    image.header.set_data_dtype(">i2")
    image.header.set_slope_inter(0.5, -100)
    nib.save(image, tmp_path / "scaled.nii")
    # nibabel's own reader is the reference here.
    expected = nib.load(tmp_path / "scaled.nii").get_fdata()
    np.testing.assert_allclose(read_scan(tmp_path / "scaled.nii").data[0], expected)

    struct_type = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    colour = noise(4, 5, 6, 3, top=256).astype(np.uint8)
    packed = np.ascontiguousarray(colour).view(struct_type).reshape(4, 5, 6)
    nib.save(nib.Nifti1Image(packed, np.eye(4)), tmp_path / "rgb.nii.gz")
    scan = read_scan(tmp_path / "rgb.nii.gz")
    np.testing.assert_array_equal(scan.data, np.moveaxis(colour, -1, 0))
    assert probe(tmp_path / "rgb.nii.gz").channels == 3

    nib.save(nib.Nifti2Image(values, OBLIQUE), tmp_path / "two.nii.gz")
    two = read_scan(tmp_path / "two.nii.gz")
    written = nib.load(write_map(tmp_path / "two-map.nii.gz", np.zeros((4, 5, 6)), two))
    assert isinstance(written, nib.Nifti2Image)
    np.testing.assert_array_equal(written.affine, OBLIQUE)


def test_npz_geometry_and_channels(tmp_path: Path) -> None:
    image = noise(3, 4, 5)
    np.savez(tmp_path / "a.npz", image=image, spacing=(3.0, 0.5, 0.25))
    assert read_scan(tmp_path / "a.npz").spacing == (3.0, 0.5, 0.25)
    assert probe(tmp_path / "a.npz").spacing == (3.0, 0.5, 0.25)
    np.savez(tmp_path / "b.npz", image=image, affine=OBLIQUE)
    np.testing.assert_array_equal(read_scan(tmp_path / "b.npz").affine, OBLIQUE)
    np.savez_compressed(tmp_path / "c.npz", image=image, channels=["t1", "t2", "pd"])
    scan = read_scan(tmp_path / "c.npz")
    assert (scan.channels, scan.shape) == (("t1", "t2", "pd"), (4, 5))
    assert probe(tmp_path / "c.npz").channels == 3


def test_channels_from_several_files(tmp_path: Path) -> None:
    for n, name in enumerate(("sub-1_T1w", "sub-1_FLAIR")):
        image = nib.Nifti1Image(noise(4, 5, 6, top=999, seed=n).astype(np.int16), OBLIQUE)
        nib.save(image, tmp_path / f"{name}.nii.gz")
    paths = [tmp_path / "sub-1_T1w.nii.gz", tmp_path / "sub-1_FLAIR.nii.gz"]
    scan = read_scan(paths)
    assert scan.channels == ("T1w", "FLAIR")
    np.testing.assert_array_equal(scan.data[1], noise(4, 5, 6, top=999, seed=1))
    assert read_scan(paths, channels=("a", "b")).channels == ("a", "b")

    moved = OBLIQUE.copy()
    moved[0, 3] += 1
    nib.save(nib.Nifti1Image(noise(4, 5, 6).astype(np.int16), moved), tmp_path / "moved.nii.gz")
    with pytest.raises(ScanError, match=r"T1w\.nii\.gz and .*moved\.nii\.gz lie up to"):
        read_scan([*paths, tmp_path / "moved.nii.gz"])
    nib.save(nib.Nifti1Image(noise(4, 5, 5).astype(np.int16), OBLIQUE), tmp_path / "small.nii.gz")
    with pytest.raises(ScanError, match=r"\(4, 5, 6\).*small\.nii\.gz has \(4, 5, 5\)"):
        read_scan([*paths, tmp_path / "small.nii.gz"])


def test_masks(tmp_path: Path) -> None:
    truth = np.zeros((40, 48), dtype=bool)
    truth[8:24, 16:40] = True
    Image.fromarray(noise(40, 48, top=256).astype(np.uint8)).save(tmp_path / "scan.png")
    scan = read_scan(tmp_path / "scan.png")
    Image.fromarray((truth * 255).astype(np.uint8)).save(tmp_path / "jpeg.jpg", quality=60)
    Image.fromarray((truth * 255).astype(np.uint8)).save(tmp_path / "full.png")
    Image.fromarray(truth.astype(np.uint8)).save(tmp_path / "ones.png")
    labels = truth.astype(np.uint8)
    labels[8:12, 16:40] = 4
    Image.fromarray(labels).save(tmp_path / "labels.png")
    soft = np.where(truth, 255, 30).astype(np.uint8)
    Image.fromarray(soft).save(tmp_path / "soft.png")
    np.save(tmp_path / "probability.npy", np.where(truth, 0.9, 0.2))
    for name in ("jpeg.jpg", "full.png", "ones.png", "labels.png", "soft.png", "probability.npy"):
        mask = read_mask(tmp_path / name, scan)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, truth, err_msg=name)
    Image.fromarray(np.zeros((40, 48), dtype=np.uint8)).save(tmp_path / "none.png")
    assert not read_mask(tmp_path / "none.png", scan).any()
    Image.fromarray(np.zeros((48, 40), dtype=np.uint8)).save(tmp_path / "turned.png")
    with pytest.raises(ScanError, match=r"turned\.png.*\(48, 40\).*scan\.png has \(40, 48\)"):
        read_mask(tmp_path / "turned.png", scan)


def test_nifti_mask_must_lie_on_its_scan(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(noise(4, 5, 6).astype(np.int16), OBLIQUE), tmp_path / "scan.nii.gz")
    scan = read_scan(tmp_path / "scan.nii.gz")
    labels = noise(4, 5, 6, top=3).astype(np.uint8) * 100
    nib.save(nib.Nifti1Image(labels, OBLIQUE + 1e-5), tmp_path / "on.nii.gz")
    np.testing.assert_array_equal(read_mask(tmp_path / "on.nii.gz", scan), labels > 0)
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "off.nii.gz")
    with pytest.raises(ScanError, match=r"off\.nii\.gz.*voxels away"):
        read_mask(tmp_path / "off.nii.gz", scan)


@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz", "m.tif", "m.npy", "m.png"])
def test_written_maps_come_back(tmp_path: Path, name: str) -> None:
    scan = Scan.from_array(noise(6, 9), spacing=(0.5, 0.25))
    values = np.linspace(0, 3, 54, dtype=np.float32).reshape(6, 9)
    back = read_scan(write_map(tmp_path / name, values, scan, vmax=3.0))
    scale = 3 / 65535 if name.endswith("png") else 1
    np.testing.assert_allclose(back.data[0] * scale, values, atol=3 / 65535 if scale < 1 else 0)
    if "nii" in name:
        np.testing.assert_allclose(back.spacing, (0.5, 0.25))
    mask = values > 1
    write_map(tmp_path / name, mask, scan)  # replaces the map
    np.testing.assert_array_equal(read_mask(tmp_path / name, scan), mask)
    assert probe(tmp_path / name).dtype == "uint8"
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_tiff_map_keeps_known_spacing(tmp_path: Path) -> None:
    affine = np.diag([1.5, 0.25, 0.5, 1])
    nib.save(nib.Nifti1Image(noise(4, 5, 6).astype(np.int16), affine), tmp_path / "a.nii")
    volume = read_scan(tmp_path / "a.nii")
    path = write_map(tmp_path / "map.tif", volume.data[0] / 7, volume)
    np.testing.assert_allclose(probe(path).spacing, (1.5, 0.25, 0.5))
    np.testing.assert_array_equal(read_scan(path).data[0], volume.data[0] / 7)


def test_write_map_refusals(tmp_path: Path) -> None:
    scan = Scan.from_array(noise(6, 9))
    flat = np.zeros((6, 9), dtype=np.float32)
    with pytest.raises(OutputError, match="vmax"):
        write_map(tmp_path / "m.png", flat, scan)
    with pytest.raises(OutputError, match=r"\(9, 6\) on a scan of \(6, 9\)"):
        write_map(tmp_path / "m.nii", flat.T, scan)
    with pytest.raises(OutputError, match=r"'\.jpg' is no format"):
        write_map(tmp_path / "m.jpg", flat, scan)
    with pytest.raises(OutputError, match="volume"):
        write_map(tmp_path / "m.png", np.zeros((2, 3, 4)), Scan.from_array(noise(2, 3, 4)))
    assert list(tmp_path.iterdir()) == []


def test_atomic_path_keeps_what_stood_there(tmp_path: Path) -> None:
    target = tmp_path / "new" / "map.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.name.endswith(".nii.gz")
        assert temporary.parent == target.parent
        temporary.write_text("first")
        assert not target.exists()
    with pytest.raises(ValueError, match="stop"), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise ValueError("stop")
    assert target.read_text() == "first"
    assert list(target.parent.iterdir()) == [target]
    with pytest.raises(OutputError, match="nothing was written"), atomic_path(target):
        pass
    with pytest.raises(OutputError, match="is a folder"), atomic_path(tmp_path):
        pass
    with pytest.raises(OutputError, match="can't make its folder"), atomic_path(target / "x"):
        pass


def test_content_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # The test vector of FIPS 180-2.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert content_hash(tmp_path / "a") == expected


def test_import_stays_light() -> None:
    code = (
        "import sys, normscan.io, normscan.cohort;"
        "print([m for m in ('pandas', 'nibabel', 'PIL', 'tifffile') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@needs_data
@pytest.mark.parametrize(
    ("name", "shape", "spacing"),
    [
        ("ms_lesions_ljubljana_3d/patient07/"
         "FLAIR_N4_noneck_reduced_winsor_regtoFLAIR_brain_N4_regtoMNI.nii.gz",
         (182, 218, 182), (1, 1, 1)),
        ("brain_tumor_3d/BraTS-GLI-00001-000/BraTS-GLI-00001-000-t2f.nii.gz",
         (240, 240, 155), (1, 1, 1)),
        ("brats_2d_nifti_slices/training/000001/brats_train_001_flair_080_w.nii.gz",
         (240, 240), (1, 1)),
        ("chest_xray_kermany_224/test/NORMAL/IM-0001-0001.jpeg", (224, 224), (1, 1)),
    ],
)  # fmt: skip
def test_real_files(name: str, shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    scan = read_scan(SHARED / name)
    assert scan.shape == shape
    assert len(scan.channels) == 1
    np.testing.assert_allclose(scan.spacing, spacing)
    assert probe(SHARED / name).shape == shape


@needs_data
def test_real_lesion_mask_lies_on_its_scan() -> None:
    folder = SHARED / "ms_lesions_ljubljana_3d" / "patient07"
    end = "_N4_noneck_reduced_winsor_regtoFLAIR"
    scan = read_scan(folder / f"FLAIR{end}_brain_N4_regtoMNI.nii.gz")
    path = folder / f"GOLD_STANDARD{end}_regtoMNI.nii.gz"
    expected = int((np.asarray(nib.load(path).dataobj) > 0).sum())
    assert read_mask(path, scan).sum() == expected > 0
