"""NRRD, MetaImage, MGH, Analyze, NIfTI pairs and MINC against SimpleITK and nibabel."""

from __future__ import annotations

import bz2
import gzip
import os
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from normscan.errors import ScanError
from normscan.io import content_hash, probe, read_mask, read_scan

NIBABEL_DATA = Path(nib.__file__).parent / "tests" / "data"
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
TURN[:, 0] *= np.sign(np.linalg.det(TURN))


def lps_corners(image: sitk.Image) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Some indices of an image and where SimpleITK puts them, in RAS mm."""
    dims = image.GetDimension()
    found = []
    for index in np.ndindex(*(2,) * dims):
        place = tuple(int(i) * 3 for i in index)
        point = np.zeros(3)
        point[:dims] = image.TransformContinuousIndexToPhysicalPoint([float(i) for i in place])
        found.append((place, point * (-1, -1, 1)))
    return found


def agrees(path: Path, image: sitk.Image | None = None) -> None:
    """Compare a scan with SimpleITK's reading, and the probe with the scan."""
    image = sitk.ReadImage(str(path)) if image is None else image
    scan, header = read_scan(path), probe(path)
    values = sitk.GetArrayFromImage(image)
    colours = image.GetNumberOfComponentsPerPixel() > 1
    values = values if colours else values[..., None]
    expected = values.T.astype(np.float32)  # x first, channels in front
    np.testing.assert_array_equal(scan.data, expected[:3])
    for index, point in lps_corners(image):
        mine = scan.affine @ [*index, *[0] * (3 - len(index)), 1]
        np.testing.assert_allclose(mine[:3], point, atol=1e-4)
    assert header.shape == scan.shape and header.dtype == scan.dtype
    assert header.channels == len(scan.channels)
    np.testing.assert_allclose(header.spacing, scan.spacing, rtol=1e-6)


def image_of(rng, dtype=np.int16, dims=3, components=1) -> sitk.Image:
    shape = (6, 5, 7)[:dims]
    values = rng.integers(0, 200, (*shape, components)).astype(dtype)
    image = sitk.GetImageFromArray(values if components > 1 else values[..., 0], components > 1)
    image.SetSpacing((0.8, 0.7, 1.2)[:dims])
    image.SetOrigin((10.0, -20.0, 3.5)[:dims])
    turn = TURN if dims == 3 else np.array([[0.8, -0.6], [0.6, 0.8]])
    image.SetDirection(turn.ravel())
    return image


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_itk_formats(tmp_path, rng, name, packed, dims):
    for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64):
        sitk.WriteImage(image_of(rng, dtype, dims), str(tmp_path / name), useCompression=packed)
        agrees(tmp_path / name)
    assert read_scan(tmp_path / name).dtype == "float64"


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize("components", [3, 4])
def test_colours(tmp_path, rng, name, components):
    sitk.WriteImage(image_of(rng, np.uint8, 2, components), str(tmp_path / name))
    if name == "a.nrrd":  # SimpleITK calls them a vector
        data = (
            (tmp_path / name)
            .read_bytes()
            .replace(
                b"kinds: vector", b"kinds: RGB-color" if components == 3 else b"kinds: RGBA-color"
            )
        )
        (tmp_path / name).write_bytes(data)
    agrees(tmp_path / name)
    assert read_scan(tmp_path / name).channels == ("red", "green", "blue")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_vectors_need_a_choice(tmp_path, rng, name):
    image = image_of(rng, np.float32, 3, 3)
    sitk.WriteImage(image, str(tmp_path / name))
    for attempt in (read_scan, probe):
        with pytest.raises(ScanError, match=r"series of 3 volumes of shape \(7, 5, 6\).*#volume=0"):
            attempt(tmp_path / name)
    chosen = read_scan(f"{tmp_path / name}#volume=1")
    np.testing.assert_array_equal(chosen.data[0], sitk.GetArrayFromImage(image)[..., 1].T)
    assert probe(f"{tmp_path / name}#volume=1").shape == (7, 5, 6)
    with pytest.raises(ScanError, match="no volume 3; it has 3"):
        read_scan(f"{tmp_path / name}#volume=3")


def test_four_axes_of_a_metaimage(tmp_path, rng):
    values = rng.integers(0, 99, (3, 6, 5, 7)).astype(np.int16)
    image = sitk.GetImageFromArray(values, isVector=False)
    image.SetSpacing((0.8, 0.7, 1.2, 2.0))
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    scan = read_scan(f"{tmp_path / 'a.mha'}#volume=2")
    np.testing.assert_array_equal(scan.data[0], values[2].T)
    np.testing.assert_allclose(scan.spacing, (0.8, 0.7, 1.2))


NRRD = (
    b"NRRD0004\n# by hand\ntype: %s\ndimension: 3\nsizes: 4 3 2\nendian: big\nencoding: %s\n"
    b"space: %s\nspace directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (1,2,3)\n"
)


@pytest.mark.parametrize("packing", ["raw", "gzip", "ascii", "hex"])
@pytest.mark.parametrize("space", ["left-posterior-superior", "RAS", "left-anterior-superior"])
def test_packings_and_spaces_of_nrrd(tmp_path, rng, packing, space):
    values = rng.integers(-900, 900, (2, 3, 4)).astype(">i2")
    block = values.tobytes()
    data = {
        "raw": block,
        "gzip": gzip.compress(block),
        "ascii": b" ".join(b"%d" % v for v in values.ravel()),
        "hex": block.hex().encode(),
    }[packing]
    path = tmp_path / "a.nrrd"
    path.write_bytes(NRRD % (b"short", packing.encode(), space.encode()) + b"\n" + data)
    agrees(path)


def test_bzip2_units_and_bytes_to_skip(tmp_path, rng):
    values = rng.integers(0, 900, (2, 3, 4)).astype(">u2")
    head = NRRD % (b"uint16", b"bzip2", b"ras") + b'space units: "um" "um" "um"\nbyte skip: 5\n'
    (tmp_path / "a.nrrd").write_bytes(head + b"\n" + bz2.compress(b"front" + values.tobytes()))
    scan = read_scan(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(scan.data[0], values.T)
    np.testing.assert_allclose(scan.spacing, (0.002, 0.003, 0.004))
    np.testing.assert_allclose(scan.affine[:3, 3], (0.001, 0.002, 0.003))
    sitk.WriteImage(image_of(rng), str(tmp_path / "b.mha"))
    data = (tmp_path / "b.mha").read_bytes()
    (tmp_path / "b.mha").write_bytes(data.replace(b"DimSize", b"DistanceUnits = cm\nDimSize"))
    np.testing.assert_allclose(read_scan(tmp_path / "b.mha").spacing, (8, 7, 12))
    # A header in front of the values, and values at the end of their file.
    image = image_of(rng)
    sitk.WriteImage(image, str(tmp_path / "c.mhd"))
    raw, text = (tmp_path / "c.raw").read_bytes(), (tmp_path / "c.mhd").read_text()
    (tmp_path / "c.raw").write_bytes(b"x" * 10 + raw)
    for size in (10, -1):
        (tmp_path / "c.mhd").write_text(text.replace("DimSize", f"HeaderSize = {size}\nDimSize"))
        agrees(tmp_path / "c.mhd", image)


def test_without_space_or_spacing(tmp_path, rng):
    values = rng.integers(0, 900, (2, 3, 4)).astype(">i2")
    head = b"NRRD0001\ntype: short\ndimension: 3\nsizes: 4 3 2\nendian: big\nencoding: raw\n"
    (tmp_path / "a.nrrd").write_bytes(head + b"\n" + values.tobytes())
    assert probe(tmp_path / "a.nrrd").spacing is None
    assert read_scan(tmp_path / "a.nrrd").spacing == (1, 1, 1)
    (tmp_path / "b.nrrd").write_bytes(head + b"spacings: 2 3 4\n\n" + values.tobytes())
    agrees(tmp_path / "b.nrrd")
    assert "no anatomical space" in read_scan(tmp_path / "b.nrrd").extra["notes"][0]


@pytest.mark.parametrize("name", ["a.mgh", "a.mgz"])
def test_mgh(tmp_path, rng, name):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = TURN * (1.5, 0.7, 2.0), (-30, 20, 10)
    values = rng.integers(0, 900, (5, 6, 7)).astype(np.int16)
    nib.save(nib.MGHImage(values, affine), tmp_path / name)
    scan = read_scan(tmp_path / name)
    np.testing.assert_array_equal(scan.data[0], values)
    np.testing.assert_allclose(scan.affine, affine, atol=1e-4)
    # The numbers of the header: direction cosines, spacing and centre, as FreeSurfer documents it.
    head = (gzip.decompress if name.endswith("z") else bytes)((tmp_path / name).read_bytes())
    spacing = np.frombuffer(head[30:42], ">f4")
    cosines = np.frombuffer(head[42:78], ">f4").reshape(3, 3).T
    centre = np.frombuffer(head[78:90], ">f4")
    middle = scan.affine @ [2.5, 3, 3.5, 1]
    np.testing.assert_allclose(scan.affine[:3, :3], cosines * spacing, atol=1e-5)
    np.testing.assert_allclose(middle[:3], centre, atol=1e-4)
    four = np.stack([values, values + 1], axis=-1)
    nib.save(nib.MGHImage(four, affine), tmp_path / name)
    with pytest.raises(ScanError, match="series of 2 volumes"):
        probe(tmp_path / name)
    np.testing.assert_array_equal(read_scan(f"{tmp_path / name}#volume=1").data[0], values + 1)


@pytest.mark.parametrize("kind", [nib.AnalyzeImage, nib.Spm99AnalyzeImage, nib.Spm2AnalyzeImage])
def test_analyze(tmp_path, rng, kind):
    affine = np.diag([-2.0, 2.5, 3.0, 1.0])
    affine[:3, 3] = (40, -50, -20)
    values = rng.integers(0, 900, (5, 6, 7)).astype(np.int16)
    nib.save(kind(values, affine), tmp_path / "a.img")
    by_nibabel = nib.Spm2AnalyzeImage.from_filename(tmp_path / "a.hdr")
    for name in ("a.hdr", "a.img"):
        scan = read_scan(tmp_path / name)
        np.testing.assert_array_equal(scan.data[0], values)
        np.testing.assert_allclose(scan.affine, by_nibabel.affine, atol=1e-4)
        assert scan.spacing == pytest.approx((2, 2.5, 3)) == probe(tmp_path / name).spacing
    told = (tmp_path / "a.mat").exists()  # SPM's matrix says which side is left
    assert bool(scan.extra["notes"]) == (not told)
    if told:
        np.testing.assert_allclose(scan.affine, affine, atol=1e-4)
    (tmp_path / "a.hdr").rename(tmp_path / "b.hdr")
    with pytest.raises(ScanError, match=r"no header a\.hdr"):
        read_scan(tmp_path / "a.img")
    with pytest.raises(ScanError, match=r"no data b\.img"):
        read_scan(tmp_path / "b.hdr")


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
def test_pairs_of_nifti(tmp_path, rng, kind):
    affine = np.diag([2.0, 2.5, 3.0, 1.0])
    values = rng.integers(0, 900, (5, 6, 7)).astype(np.int16)
    nib.save(kind(values, affine), tmp_path / "a.img")
    for name in ("a.hdr", "a.img"):
        scan = read_scan(tmp_path / name)
        np.testing.assert_array_equal(scan.data[0], values)
        np.testing.assert_allclose(scan.affine, affine)
    if kind is nib.Nifti1Pair:  # ITK doesn't read the other
        agrees(tmp_path / "a.hdr")
    np.testing.assert_array_equal(
        read_scan(f"{tmp_path / 'a.img'}#slice=2").data[0], values[..., 2]
    )


MINC = (
    "tiny.mnc",
    "small.mnc",
    "minc1_1_scale.mnc",
    "minc2_1_scale.mnc",
    "minc1_4d.mnc",
    "minc2_4d.mnc",
)


@pytest.mark.skipif(not NIBABEL_DATA.is_dir(), reason="nibabel came without its test data")
@pytest.mark.parametrize("name", MINC)
def test_minc(name):
    if not name.startswith(("tiny", "minc1")):
        pytest.importorskip("h5py")
    path = NIBABEL_DATA / name
    image = nib.load(path)
    volume = "#volume=1" if len(image.shape) == 4 else ""
    scan, header = read_scan(f"{path}{volume}"), probe(f"{path}{volume}")
    values = image.get_fdata()[1] if volume else image.get_fdata()
    np.testing.assert_allclose(scan.data[0], values, rtol=1e-6)
    np.testing.assert_allclose(scan.affine, image.affine)
    assert header.shape == scan.shape
    np.testing.assert_allclose(header.spacing, scan.spacing)
    if name in ("small.mnc", "minc2_1_scale.mnc"):  # ITK reads MINC 2 by itself
        by_itk = sitk.ReadImage(str(path))
        for index, point in lps_corners(by_itk):
            # The order is that of the file (z, y, x). ITK hands MINC's own coordinates, which run to
            # the right, front and top, on as they are (its RAStoLPS is off).
            mine = (scan.affine @ [*index[::-1], 1])[:3]
            np.testing.assert_allclose(mine, point * (-1, -1, 1), atol=1e-3)
        itk_values = sitk.GetArrayFromImage(by_itk)
        np.testing.assert_allclose(scan.data[0], itk_values, rtol=1e-3, atol=1e-3)


def test_a_mask_of_another_format_lies_on_its_scan(tmp_path, rng):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = TURN * (0.8, 0.7, 1.2), (-10, 20, 3.5)
    values = rng.integers(1, 900, (7, 5, 6)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "scan.nii.gz")
    nib.save(nib.MGHImage((values > 450).astype(np.uint8), affine), tmp_path / "mask.mgz")
    scan = read_scan(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.mgz", scan), values > 450)
    affine[:3, 3] += 5
    nib.save(nib.MGHImage((values > 450).astype(np.uint8), affine), tmp_path / "off.mgz")
    with pytest.raises(ScanError, match="voxels away"):
        read_mask(tmp_path / "off.mgz", scan)


@pytest.mark.parametrize("name", ["a.nhdr", "a.mhd"])
def test_data_outside_of_the_folder_are_refused(tmp_path, rng, name):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    sitk.WriteImage(image_of(rng), str(folder / name))
    text, raw = (folder / name).read_text(), (folder / "a.raw").read_bytes()
    (tmp_path / "out.raw").write_bytes(raw)
    (folder / "deep" / "b.raw").write_bytes(raw)
    os.symlink(tmp_path / "out.raw", folder / "link.raw")
    for bad in (
        "../out.raw",
        str(tmp_path / "out.raw"),
        "deep/../../out.raw",
        "..\\out.raw",
        "link.raw",
    ):
        (folder / name).write_text(text.replace("a.raw", bad))
        for attempt in (read_scan, probe):
            with pytest.raises(ScanError, match="outside of its folder"):
                attempt(folder / name)
    for bad in ("LIST", "a%03d.raw 1 6 1"):
        (folder / name).write_text(text.replace("a.raw", bad))
        with pytest.raises(ScanError, match="several files isn't supported"):
            read_scan(folder / name)
    (folder / name).write_text(text.replace("a.raw", "none.raw"))
    with pytest.raises(ScanError, match=r"none\.raw isn't there"):
        read_scan(folder / name)
    (folder / name).write_text(text.replace("a.raw", "deep/b.raw"))
    assert read_scan(folder / name).shape == (7, 5, 6)


def test_what_counts_is_the_content_of_both_files(tmp_path, rng):
    sitk.WriteImage(image_of(rng), str(tmp_path / "a.mhd"))
    first = content_hash(tmp_path / "a.mhd")
    data = bytearray((tmp_path / "a.raw").read_bytes())
    data[5] ^= 1
    (tmp_path / "a.raw").write_bytes(data)
    assert content_hash(tmp_path / "a.mhd") != first
    # One file that holds its own values is hashed as any other.
    sitk.WriteImage(image_of(rng), str(tmp_path / "b.mha"))
    (tmp_path / "b.bin").write_bytes((tmp_path / "b.mha").read_bytes())
    assert content_hash(tmp_path / "b.mha") == content_hash(tmp_path / "b.bin")


def test_sizes_are_refused_before_memory_is_asked_for(tmp_path, rng):
    for name, old in (("a.nrrd", b"sizes: 7 5 6"), ("a.mha", b"DimSize = 7 5 6")):
        sitk.WriteImage(image_of(rng), str(tmp_path / name), useCompression=True)
        data = (tmp_path / name).read_bytes()
        for sizes in (b"7 5 60000", b"99999 99999 99999", b"7 5 -6", b"0 5 6"):
            (tmp_path / name).write_bytes(data.replace(old, old[: old.index(b"7")] + sizes))
            with pytest.raises(ScanError, match=r"declares|truncated|damaged"):
                read_scan(tmp_path / name)


def test_a_wrong_checksum_is_damage(tmp_path, rng):
    """SimpleITK gives wrong values for it."""
    values = rng.integers(0, 999, (6, 5, 7)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "a.mha"), useCompression=True)
    data = (tmp_path / "a.mha").read_bytes()
    head, _, packed = data.partition(b"LOCAL\n")
    assert zlib.decompress(packed) == values.tobytes()
    (tmp_path / "a.mha").write_bytes(head + b"LOCAL\n" + packed[:-1] + bytes([packed[-1] ^ 1]))
    with pytest.raises(ScanError, match="damaged"):
        read_scan(tmp_path / "a.mha")


@pytest.fixture
def good(tmp_path, rng) -> dict[str, Path]:
    for name in ("a.nrrd", "b.mha", "c.mgh"):
        if name != "c.mgh":
            sitk.WriteImage(image_of(rng), str(tmp_path / name), useCompression=True)
    nib.save(
        nib.MGHImage(rng.integers(0, 9, (5, 6, 7)).astype(np.int16), np.eye(4)), tmp_path / "c.mgh"
    )
    nib.save(
        nib.MGHImage(rng.integers(0, 9, (5, 6, 7)).astype(np.int16), np.eye(4)), tmp_path / "d.mgz"
    )
    nib.save(
        nib.Nifti1Pair(rng.integers(0, 9, (5, 6, 7)).astype(np.int16), np.eye(4)),
        tmp_path / "e.hdr",
    )
    for name in ("tiny.mnc", "small.mnc"):
        if (NIBABEL_DATA / name).is_file():
            (tmp_path / name).write_bytes((NIBABEL_DATA / name).read_bytes())
    return {path.name: path for path in tmp_path.iterdir()}


def test_damage_raises_nothing_but_scan_errors(good):
    rng = np.random.default_rng(1)
    for name, path in good.items():
        data = path.read_bytes()
        address = path.with_suffix(".hdr") if name == "e.img" else path
        for part in (0.0, 0.05, 0.3, 0.6, 0.9):
            path.write_bytes(data[: int(part * len(data))])
            with pytest.raises(ScanError):
                read_scan(address)
        for _ in range(30):
            bad = bytearray(data)
            for place in rng.integers(0, min(len(bad), 900), 4):
                bad[place] = rng.integers(256)
            path.write_bytes(bytes(bad))
            try:
                assert np.isfinite(read_scan(address).data).all()
            except ScanError as error:
                assert path.stem in str(error)
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ((b"type: short", b"type: block"), "type 'block'"),
        ((b"encoding: raw", b"encoding: zstd"), "encoding 'zstd'"),
        ((b"kinds: domain domain domain", b"kinds: complex domain domain"), "complex"),
        ((b"kinds: domain", b"type: short\nkinds: domain"), "twice"),
        ((b"left-posterior-superior", b"left-posterior-superior-time"), "aren't supported"),
    ],
)
def test_what_isnt_supported_is_said_to_be_so(tmp_path, rng, change, says):
    sitk.WriteImage(image_of(rng), str(tmp_path / "a.nrrd"))
    data = (tmp_path / "a.nrrd").read_bytes()
    assert change[0] in data
    (tmp_path / "a.nrrd").write_bytes(data.replace(*change, 1))
    with pytest.raises(ScanError, match=says) as caught:
        read_scan(tmp_path / "a.nrrd")
    assert "damaged" not in str(caught.value)


def test_nothing_is_told_on_standard_error(tmp_path, rng, capfd):
    nib.save(
        nib.AnalyzeImage(rng.integers(0, 9, (5, 6, 7)).astype(np.int16), None), tmp_path / "a.hdr"
    )
    data = bytearray((tmp_path / "a.hdr").read_bytes())
    data[70:72] = b"\0\0"  # no data type
    (tmp_path / "a.hdr").write_bytes(data)
    with pytest.raises(ScanError):
        read_scan(tmp_path / "a.hdr")
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not NIBABEL_DATA.is_dir(), reason="nibabel came without its test data")
def test_a_length_in_a_minc_asks_for_no_memory(tmp_path):
    data = (NIBABEL_DATA / "tiny.mnc").read_bytes()
    for place in range(4, 120, 4):
        bad = data[:place] + b"\x7f\xff\xff\xf0" + data[place + 4 :]
        (tmp_path / "a.mnc").write_bytes(bad)
        try:
            read_scan(tmp_path / "a.mnc")
        except ScanError as error:
            assert "memory" not in str(error)
