"""What is inside a mask is one thing for files, slices and arrays, whatever draws it."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFilter

from normscan import Cohort
from normscan.errors import ScanError
from normscan.io import MaskReport, read_mask, read_scan
from normscan.io.read import load_mask_array


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMSCAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def flat(tmp_path, rng):
    Image.fromarray(rng.integers(0, 256, (64, 64)).astype(np.uint8)).save(tmp_path / "scan.png")
    return read_scan(tmp_path / "scan.png")


@pytest.fixture
def deep(tmp_path, rng):
    values = rng.integers(0, 900, (20, 24, 16)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "scan.nii.gz")
    return read_scan(tmp_path / "scan.nii.gz")


def classes():
    """Three lesions of three classes, one inside another's box, and one of a single pixel."""
    labels = np.zeros((64, 64), np.uint8)
    labels[2:10, 2:10], labels[20:34, 20:34], labels[24:30, 24:30], labels[50, 50] = 1, 2, 3, 1
    return labels


def volume():
    labels = np.zeros((20, 24, 16), np.int16)
    labels[3:6, 3:6, 3:6], labels[8:12, 8:12, 8:12], labels[14:18, 14:18, 10:14] = 1, 2, 4
    return labels


def save(path, values):
    """Write a picture, or an array, by its extension."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, values, compression="lzw")
    elif path.name.endswith(".nii.gz"):
        nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    else:
        Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("name", ["m.png", "m.tif", "m.npy", "m.bmp", "m.nii.gz"])
@pytest.mark.parametrize("step", [1, 10, 60, 85])
def test_labels_in_steps_of_any_size(tmp_path, flat, name, step):
    labels = classes()
    mask = read_mask(save(tmp_path / name, labels * np.uint8(step)), flat)
    np.testing.assert_array_equal(mask, labels > 0)


@pytest.mark.parametrize("name", ["m.png", "m.tif", "m.npy", "m.nii.gz"])
@pytest.mark.parametrize("top", [255, 65535])
def test_binary_masks_of_any_depth(tmp_path, flat, name, top):
    truth = classes() > 0
    values = np.where(truth, top, 0).astype(np.uint16 if top > 255 else np.uint8)
    np.testing.assert_array_equal(read_mask(save(tmp_path / name, values), flat), truth)


@pytest.mark.parametrize("name", ["m.png", "m.tif", "m.npy", "m.nii.gz"])
@pytest.mark.parametrize("dense", [False, True])
def test_many_instances(tmp_path, flat, name, dense):
    labels = np.zeros((64, 64), np.uint16)
    side = 8 if dense else 4  # dense cells touch each other; sparse lesions are up to 4 pixels wide
    for n, (y, x) in enumerate(np.ndindex(8, 8)):
        size = side if dense else 1 + n % 4
        labels[8 * y : 8 * y + size, 8 * x : 8 * x + size] = 5 * n + 1
    labels[40:48] = 0
    mask = read_mask(save(tmp_path / name, labels), flat)
    np.testing.assert_array_equal(mask, labels > 0)


@pytest.mark.parametrize("factor", [0.9999, 1.00002, 1.0])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["m.nii.gz", "m.npy"])
def test_labels_that_are_nearly_whole(tmp_path, deep, factor, kind, name):
    labels = volume()
    path = save(tmp_path / name, (labels * factor).astype(kind))
    np.testing.assert_array_equal(read_mask(path, deep), labels > 0)


@pytest.mark.parametrize("top", [4, 100, 2000])
def test_labels_scaled_into_an_int16_header(tmp_path, deep, top):
    labels = volume()
    labels[labels == 4] = top
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    image = nib.Nifti1Image(labels.astype(np.float64), np.eye(4), header)
    nib.save(image, tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.nii.gz", deep), labels > 0)


@pytest.mark.parametrize("name", ["m.nii.gz", "m.npy"])
def test_probability_maps_are_cut_at_the_threshold(tmp_path, deep, rng, name):
    noise = np.abs(rng.normal(0, 1e-4, deep.shape)).astype(np.float32)
    assert not read_mask(save(tmp_path / name, noise), deep).any()
    weak = (volume() == 1) * np.float32(0.4) + noise
    assert not read_mask(save(tmp_path / name, weak), deep).any()
    lesion = read_mask(tmp_path / name, deep, threshold=0.3)
    np.testing.assert_array_equal(lesion, volume() == 1)
    sure = np.clip(volume() * np.float32(0.3), 0, 1)
    np.testing.assert_array_equal(read_mask(save(tmp_path / name, sure), deep), volume() >= 2)


def smooth(size=64, peak=1.0, centre=(30, 34), width=9.0):
    y, x = np.ogrid[:size, :size]
    near = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
    return peak * np.exp(-near / (2 * width**2))


@pytest.mark.parametrize("name", ["m.png", "m.tif", "m.npy"])
@pytest.mark.parametrize(("kind", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_probability_maps_in_whole_numbers(tmp_path, flat, name, kind, top):
    values = np.round(smooth() * top).astype(kind)
    mask = read_mask(save(tmp_path / name, values), flat)
    np.testing.assert_array_equal(mask, values > top / 2)
    faint = np.round(smooth(peak=0.4) * top).astype(kind)
    assert not read_mask(save(tmp_path / name, faint), flat).any()


@pytest.mark.parametrize("name", ["m.png", "m.tif", "m.jpg"])
@pytest.mark.parametrize("pen", [255, 180, 100])
def test_smooth_borders_of_a_drawing_are_cut_at_half_of_its_pen(tmp_path, flat, name, pen):
    truth = np.zeros((64, 64), np.uint8)
    truth[10:30, 12:40] = pen
    drawn = Image.fromarray(truth).filter(ImageFilter.GaussianBlur(1))
    drawn.save(tmp_path / name)
    mask = read_mask(tmp_path / name, flat)
    assert np.mean(mask != (truth > 0)) < 0.005


@pytest.mark.parametrize("quality", [60, 95])
def test_greys_of_a_jpeg(tmp_path, flat, quality):
    labels = classes()
    labels[50, 50] = 0
    Image.fromarray(labels * 85).save(tmp_path / "m.jpg", quality=quality)
    mask = read_mask(tmp_path / "m.jpg", flat)
    assert np.mean(mask != (labels > 0)) < 0.01


PALETTES = {
    "VOC": [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0],
    "white paper": [255, 255, 255, 200, 0, 0, 0, 0, 200, 0, 0, 0],
    "all black": [0] * 12,
    "coloured background": [0, 0, 90, 200, 0, 0, 0, 200, 0, 255, 255, 255],
}


@pytest.mark.parametrize("colours", PALETTES.values(), ids=PALETTES)
@pytest.mark.parametrize("name", ["m.png", "m.bmp", "m.tif"])
def test_palettes_count_by_index(tmp_path, flat, colours, name):
    labels = classes()
    picture = Image.new("P", (64, 64))
    picture.putdata(labels.ravel().tolist())
    picture.putpalette(colours)
    picture.save(tmp_path / name)
    np.testing.assert_array_equal(read_mask(tmp_path / name, flat), labels > 0)


@pytest.mark.parametrize("around", ["black", "white"])
def test_palettes_in_another_order(tmp_path, flat, around):
    """Index 0 is a lesion: what lies around everything is the background."""
    labels = classes()
    picture = Image.new("P", (64, 64))
    picture.putdata(np.where(labels > 0, 0, 1).ravel().tolist())
    ground = [0, 0, 0] if around == "black" else [255, 255, 255]
    picture.putpalette([200, 0, 0, *ground])
    picture.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", flat), labels > 0)


@pytest.mark.parametrize("paper", [0, 255])
def test_colours_on_black_and_on_white(tmp_path, flat, paper):
    labels = classes()
    picture = np.full((64, 64, 3), paper, np.uint8)
    for n, colour in enumerate(((200, 0, 0), (0, 180, 0), (0, 0, 255)), 1):
        picture[labels == n] = colour
    Image.fromarray(picture).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", flat), labels > 0)


@pytest.mark.parametrize("bits", [1, 8, 16])
@pytest.mark.parametrize("packing", [None, "lzw"])
@pytest.mark.parametrize("as_shown", [False, True])
def test_white_is_zero_masks(tmp_path, flat, bits, packing, as_shown):
    truth = classes() > 0
    top = 2**bits - 1
    kind = {1: bool, 8: np.uint8, 16: np.uint16}[bits]
    stored = (np.where(truth, 0, top) if as_shown else np.where(truth, top, 0)).astype(kind)
    tifffile.imwrite(tmp_path / "m.tif", stored, photometric="miniswhite", compression=packing)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif", flat), truth)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", ["m.nii.gz", "m.npy", "m.tif"])
@pytest.mark.parametrize("what", ["labels", "greys", "nearly", "probabilities", "white is zero"])
def test_a_slice_is_cut_as_its_file(tmp_path, rng, name, what, axis):
    labels = volume()
    values = {
        "labels": labels.astype(np.int16),
        "greys": (labels * 60).astype(np.uint8),
        "nearly": (labels * np.float32(0.9999)).astype(np.float32),
        "probabilities": (rng.random(labels.shape) * (labels > 0)).astype(np.float32),
        "white is zero": (labels > 0).astype(np.uint8),
    }[what]
    if what == "white is zero":
        if not name.endswith("tif"):
            pytest.skip("only a TIFF")
        tifffile.imwrite(tmp_path / name, 255 * (1 - values), photometric="miniswhite")
    else:
        save(tmp_path / name, values)
    whole = load_mask_array(tmp_path / name)
    assert whole.sum() == (values > 0.5).sum()
    for k in range(labels.shape[axis]):
        address = f"{tmp_path / name}#slice={k}&axis={axis}"
        np.testing.assert_array_equal(load_mask_array(address), np.take(whole, k, axis))


def test_slices_of_files_and_masks_agree(tmp_path, deep):
    path = save(tmp_path / "m.nii.gz", volume().astype(np.float32) * np.float32(0.9999))
    for k in range(16):
        scan = read_scan(f"{tmp_path / 'scan.nii.gz'}#slice={k}")
        one = read_mask(f"{path}#slice={k}", scan)
        np.testing.assert_array_equal(one, load_mask_array(f"{path}#slice={k}"))
        np.testing.assert_array_equal(one, volume()[..., k] > 0)


def test_what_is_no_mask_is_refused(tmp_path, flat, rng):
    save(tmp_path / "m.npy", rng.random((64, 64)) * 57)
    with pytest.raises(ScanError, match=r"m\.npy: is no mask: .*neither whole numbers"):
        read_mask(tmp_path / "m.npy", flat)
    save(tmp_path / "m.npy", np.where(classes() > 0, -1.0, 2.0))
    with pytest.raises(ScanError, match="negative values"):
        read_mask(tmp_path / "m.npy", flat)


def test_the_report_counts_kinds_and_implausible_shares(tmp_path, flat):
    report = MaskReport()
    read_mask(save(tmp_path / "a.png", classes()), flat, report=report)
    read_mask(save(tmp_path / "b.npy", classes() * 0.31), flat, report=report)
    read_mask(save(tmp_path / "c.png", np.uint8(255) * (classes() == 0)), flat, report=report)
    kinds, wide = report.notes()
    assert "2 label maps" in kinds and "1 probability map cut at 0.5" in kinds
    assert wide.startswith("1 lesion masks cover more than 50%") and "c.png, 9" in wide


def test_the_cohort_says_it_once(tmp_path, rng):
    rows = ["path,label,mask"]
    for n in range(6):
        values = rng.integers(0, 256, (64, 64)).astype(np.uint8)
        Image.fromarray(values).save(tmp_path / f"{n}.png")
        rows.append(f"{n}.png,{int(n > 2)},{f'm{n}.png' if n > 2 else ''}")
        save(tmp_path / f"m{n}.png", classes() * np.uint8(85))
    (tmp_path / "cohort.csv").write_text("\n".join(rows) + "\n")
    notes = Cohort.read(tmp_path / "cohort.csv").summary().notes
    assert sum("3 label maps" in note for note in notes) == 1
