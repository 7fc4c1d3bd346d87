"""Steps for CT and 2D modalities against closed forms, scikit-image and known synthetic pictures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage
from skimage.exposure import equalize_adapthist
from tests.support.modality_pictures import (
    STAINS,
    bscan,
    ct,
    disc,
    fundus,
    head,
    overlap,
    picture,
    sector,
    stained,
    unit,
)

from normscan.errors import ArgumentError, ScanError
from normscan.io import read_scan
from normscan.preprocess.chain import parse_steps, run_steps
from normscan.preprocess.colour import REFERENCE_CONCENTRATIONS, REFERENCE_STAINS
from normscan.preprocess.ct import WINDOWS
from normscan.preprocess.presets import PRESETS, preset
from normscan.preprocess.steps import Working
from normscan.scan import Scan

PICTURE_STEPS = [
    "body_mask", "invert_if_needed", "fundus_fov", "dermoscopy_fov", "ultrasound_sector",
    "oct_borders", "oct_crop", "full_range", "median", "clahe", "local_average",
    "shades_of_gray", "hair_removal", "tissue_mask", "macenko",
]  # fmt: skip
CT_STEPS = ["remove_table", "brain_ct_mask", "window"]


# --- CT


def test_window_is_the_closed_form(rng):
    hu = rng.uniform(-1500, 3000, (20, 30))
    scan = ct(hu)
    for name, (centre, width) in WINDOWS.items():
        low = centre - width / 2
        expected = np.clip((np.maximum(scan.scan.data, -1024) - low) / width, 0, 1)
        out = run_steps([f"window={name}"], scan).scan
        np.testing.assert_allclose(out.data, expected, atol=1e-5)
        assert out.channels == (name,)
    own = run_steps([{"window": {"center": 35, "width": 10}}], scan).scan.data
    np.testing.assert_allclose(own, np.clip((scan.scan.data - 30) / 10, 0, 1), atol=1e-5)


def test_several_windows_are_several_channels(rng):
    scan = ct(rng.uniform(-1000, 2000, (8, 9, 5)))
    out = run_steps(["window=[brain, subdural, bone]"], scan).scan
    assert out.channels == ("brain", "subdural", "bone") and out.shape == (8, 9, 5)
    for channel, name in zip(out.data, out.channels, strict=True):
        np.testing.assert_array_equal(channel, run_steps([f"window={name}"], scan).scan.data[0])


def test_padding_looks_like_air():
    hu = np.full((10, 10), -1024.0)
    hu[:, 5:] = -3024
    hu[0] = 40
    out = run_steps(["window=lung"], ct(hu))
    assert np.ptp(out.scan.data[0, 1:]) == 0 and any("padding of -3024" in n for n in out.notes)


@pytest.mark.parametrize("name", CT_STEPS)
@pytest.mark.parametrize(("low", "high"), [(0, 3794), (0, 80), (24, 3000), (-3, 3)])
def test_what_is_not_hounsfield_is_refused(name, low, high, rng):
    scan = Scan.from_array(rng.uniform(low, high, (12, 12)), source=None)
    with pytest.raises(ScanError, match="array: .*Hounsfield"):
        run_steps([name], Working.of(scan))
    run_steps([{name: {"trust": True}}], Working.of(scan))


def test_an_8_bit_picture_is_taken_as_windowed(rng):
    scan = picture(rng.integers(0, 255, (3, 20, 20)))
    out = run_steps(CT_STEPS, scan)
    np.testing.assert_allclose(out.scan.data[0], scan.scan.data.mean(0) / 255, atol=1e-6)
    assert len(out.notes) == 1 and "8-bit" in out.notes[0]
    with pytest.raises(ScanError, match="one window"):
        run_steps(["window=[brain, bone]"], scan)


def test_table_and_holder_go_and_the_head_stays(rng):
    hu, whole, _, spacing = head(rng)
    out = run_steps(["remove_table"], ct(hu, spacing))
    assert overlap(out.foreground, whole) > 0.97
    assert (out.scan.data[0][~out.foreground] == -1024).all()
    np.testing.assert_array_equal(
        out.scan.data[0][out.foreground], np.round(hu.astype(np.int16))[out.foreground]
    )
    table = np.zeros(hu.shape, bool)
    table[112:115] = True
    assert not out.foreground[table].any()


def test_brain_is_found_inside_the_skull(rng):
    hu, _, brain, spacing = head(rng)
    out = run_steps(["remove_table", {"brain_ct_mask": {"strip": True}}], ct(hu, spacing))
    assert overlap(out.foreground, brain) > 0.96
    assert out.foreground[50:53, 70:73, 10:13].all(), "a calcification belongs to the brain"
    assert out.foreground[40:48, 70:78, 14:20].all(), "a bleeding belongs to the brain"
    assert abs(out.facts["brain_ml"] - brain.sum() * 2 / 1000) < 0.05 * brain.sum() * 2 / 1000
    assert (out.scan.data[0][~out.foreground] == -1024).all()


@pytest.mark.parametrize("step", ["remove_table", "brain_ct_mask"])
def test_ct_masks_do_not_depend_on_the_order_of_axes(step, rng):
    hu, *_ = head(rng)
    affine = np.diag([1.0, 1, 2, 1])
    plain = run_steps([step], Working.of(Scan.from_array(hu, affine=affine)))
    turned = Scan.from_array(np.moveaxis(hu, 2, 0), affine=affine[:, [2, 0, 1, 3]])
    moved = run_steps([step], Working.of(turned))
    np.testing.assert_array_equal(np.moveaxis(moved.foreground, 0, 2), plain.foreground)


def test_ct_steps_work_on_a_slice_and_on_fine_pixels(rng):
    hu, whole, brain, _ = head(rng)
    fine = np.kron(hu[:, :, 16], np.ones((2, 2)))
    out = run_steps(["remove_table"], ct(fine, 0.5))
    assert overlap(out.foreground, np.kron(whole[:, :, 16], np.ones((2, 2))) > 0) > 0.97
    out = run_steps(["brain_ct_mask"], out)
    assert overlap(out.foreground, np.kron(brain[:, :, 16], np.ones((2, 2))) > 0) > 0.95
    assert "brain_mm2" in out.facts


def test_real_head_ct_loses_its_holder(shared):
    sitk = pytest.importorskip("SimpleITK")
    sitk.ProcessObject.GlobalWarningDisplayOff()
    files = sorted((shared / "data/dicom_series/head_ct_ge").glob("*.dcm"))
    image = sitk.ReadImage([str(f) for f in files])
    hu = sitk.GetArrayFromImage(image).transpose(2, 1, 0)[::2, ::2]
    sx, sy, sz = image.GetSpacing()
    affine = np.diag([-2 * sx, -2 * sy, sz, 1])
    before = Working.of(Scan.from_array(hu, affine=affine))
    out = run_steps(["remove_table", "brain_ct_mask"], before)
    assert 1000 < out.facts["brain_ml"] < 1500
    assert 20 < np.median(hu[out.foreground]) < 45
    # The arms of the holder lie left and right of the head, outside the middle 160 mm.
    arms = np.zeros(hu.shape, bool)
    arms[:30], arms[-30:] = True, True
    assert (hu[arms] > -200).any() and (out.scan.data[0][arms] == -1024).mean() > 0.99


def test_cormack_units_are_refused(shared):
    scan = read_scan(shared / "data/healthy_brain_3d/scct.nii.gz")
    with pytest.raises(ScanError, match=r"scct\.nii\.gz.*Cormack"):
        run_steps(["window"], Working.of(scan))


# --- fields of view


def test_body_mask_peels_frames_and_black_corners():
    image = np.zeros((100, 120))
    body = disc(image.shape, (60, 60), 38)
    image[body] = 150
    image[disc(image.shape, (60, 50), 12)] = 10
    image[:6], image[:, -8:] = 255, 255
    out = run_steps(["body_mask"], picture(image))
    assert overlap(out.foreground, body) > 0.97
    assert out.foreground[60, 50], "the lung is part of the body"
    np.testing.assert_array_equal(out.scan.data, picture(image).scan.data)


def test_only_an_inverted_chest_is_inverted(shared):
    files = sorted((shared / "data/chest_xray_kermany_224").rglob("*.jp*g"))[::150]
    turned = 0
    for file in files:
        scan = read_scan(file)
        assert not run_steps(["invert_if_needed"], Working.of(scan)).notes
        negative = scan.with_data(scan.data.min() + scan.data.max() - scan.data)
        out = run_steps(["invert_if_needed"], Working.of(negative))
        turned += bool(out.notes)
        if out.notes:
            np.testing.assert_allclose(out.scan.data, scan.data, atol=1e-4)
    assert len(files) > 10 and turned >= 0.85 * len(files)


@pytest.mark.parametrize("channels", [slice(None), 1])
def test_fundus_circle_is_found(channels, rng):
    rgb, inside = fundus(rng)
    out = run_steps(["fundus_fov"], picture(rgb[channels]))
    assert abs(out.facts["fov_radius"] - 110) < 1.5
    assert abs(out.facts["fov_row"] - 102) < 1 and abs(out.facts["fov_column"] - 128) < 1
    assert overlap(out.foreground, inside) > 0.985
    assert np.ptp(out.scan.data[:, ~out.foreground], axis=1).max() == 0, "label and noise are gone"


def test_fundus_without_surround_is_used_whole(rng):
    out = run_steps(["fundus_fov"], picture(rng.integers(80, 200, (3, 60, 60))))
    assert out.foreground is None or out.foreground.all()


def test_dermoscopy_corners_go_and_a_dark_lesion_at_the_edge_stays():
    image = np.full((120, 160), 180.0)
    corners = ~disc(image.shape, (60, 80), 88)
    image[corners] = 4
    lesion = disc(image.shape, (60, 150), 20) & ~corners
    image[lesion] = 40
    out = run_steps(["dermoscopy_fov"], picture(image))
    assert out.foreground[lesion].mean() > 0.95
    assert overlap(~out.foreground, corners) > 0.9


def test_ultrasound_keeps_the_sector_without_the_text(rng):
    image, inside, text = sector(rng)
    out = run_steps(["ultrasound_sector"], picture(image))
    assert overlap(out.foreground, inside) > 0.95
    assert (out.scan.data[0][text] == 0).all()
    np.testing.assert_array_equal(
        out.scan.data[0][out.foreground], picture(image).scan.data[0][out.foreground]
    )


def test_oct_wedges_become_background_and_the_retina_is_found(rng):
    image, band, wedge = bscan(rng)
    out = run_steps(["oct_borders"], picture(image))
    assert not out.foreground[wedge].any() and out.foreground[band & ~wedge].mean() > 0.95
    assert np.abs(out.scan.data[0][wedge] - 20).max() < 10
    cropped = run_steps(["oct_crop"], out).foreground
    rows = np.flatnonzero(cropped.any(axis=1))
    assert cropped[band].all() and rows[-1] - rows[0] < 0.75 * len(image)


def test_oct_without_wedges_is_untouched(rng):
    image, band, _ = bscan(rng)
    image = np.where(band, 150.0, 20.0)
    image[50:54, 70:74] = 255
    before = picture(image)
    assert run_steps(["oct_borders"], before) is before


# --- colour


@pytest.mark.parametrize(("dtype", "limit"), [(np.uint8, 255), (np.uint16, 65535)])
def test_full_range_divides_by_what_the_file_can_hold(dtype, limit, rng):
    before = picture(rng.integers(0, limit // 2, (3, 10, 10)), dtype)
    out = run_steps(["full_range"], before)
    np.testing.assert_allclose(out.scan.data, before.scan.data / limit, rtol=1e-6)
    again = run_steps(["full_range"], out)
    np.testing.assert_array_equal(again.scan.data, out.scan.data)


def test_clahe_is_scikit_images_with_opencvs_limit(rng):
    image = ndimage.gaussian_filter(rng.uniform(0, 1, (64, 80)), 2)
    image = 20 + 180 * (image - image.min()) / np.ptp(image)
    before = picture(image)
    out = run_steps([{"clahe": {"clip_limit": 2.56, "tiles": 8}}], before).scan.data[0]
    low, high = before.scan.data.min(), before.scan.data.max()
    unit_range = (before.scan.data[0] - low) / (high - low)
    expected = low + (high - low) * equalize_adapthist(unit_range, (8, 10), clip_limit=0.01)
    np.testing.assert_allclose(out, expected, atol=1e-3)
    assert out.min() == pytest.approx(low) and out.max() == pytest.approx(high)


def test_unlimited_clahe_of_one_tile_is_histogram_equalisation(rng):
    image = 12 * (rng.uniform(0, 1, (64, 64)) ** 3 * 21).round()
    out = run_steps([{"clahe": {"clip_limit": 256, "tiles": 1}}], picture(image)).scan.data[0]
    values, counts = np.unique(image, return_counts=True)
    cdf = dict(zip(values, np.cumsum(counts) / image.size, strict=True))
    expected = np.vectorize(cdf.get)(image)
    got = (out - out.min()) / np.ptp(out)
    assert np.abs(got - (expected - expected.min()) / np.ptp(expected)).max() < 0.02


def test_clahe_of_colour_keeps_the_hue(rng):
    from skimage.color import rgb2lab

    rgb, inside = fundus(rng)
    before = picture(rgb)
    out = run_steps(["clahe"], before).scan.data
    a, b = (rgb2lab(d / 255, channel_axis=0) for d in (before.scan.data, out))
    # Colours that leave the gamut are cut, so a few pixels differ.
    assert np.percentile(np.abs(a[1:] - b[1:])[:, inside], 90) < 1.5
    fine = [np.abs(d[0] - ndimage.gaussian_filter(d[0], 8))[inside].mean() for d in (a, b)]
    assert fine[1] > 1.2 * fine[0], "there is more local contrast"
    green = run_steps([{"clahe": {"on": "green"}}], before).scan
    assert green.channels == ("green",) and green.data.shape == (1, *rgb.shape[1:])
    each = run_steps([{"clahe": {"on": "each"}}], before).scan.data
    np.testing.assert_array_equal(each[1], green.data[0])


def test_local_average_is_grahams_formula(rng):
    before = picture(rng.integers(90, 140, (3, 60, 60)))
    out = run_steps([{"local_average": {"sigma": 2}}], before).scan.data
    blur = np.stack([ndimage.gaussian_filter(c, 2) for c in before.scan.data])
    expected = np.clip(4 * (before.scan.data - blur) + 127.5, 0, 255)
    np.testing.assert_allclose(out[:, 9:-9, 9:-9], expected[:, 9:-9, 9:-9], atol=1e-3)


def test_local_average_has_no_rim(rng):
    _, inside = fundus(rng)
    rgb = np.where(inside, np.array([160, 80, 40])[:, None, None], 0)
    out = run_steps(["fundus_fov", "local_average"], picture(rgb))
    np.testing.assert_allclose(out.scan.data, 127.5, atol=1e-3)
    assert 0.95 < out.foreground.sum() / inside.sum() < 0.98


def test_shades_of_gray_takes_the_cast_away(rng):
    grey = rng.uniform(20, 120, (80, 80))
    cast = np.array([1.6, 1.0, 0.7])
    out = run_steps(["shades_of_gray"], picture(grey * cast[:, None, None]))
    ratio = out.scan.data / out.scan.data.mean(0)
    assert np.abs(ratio - 1).max() < 0.05
    gains = np.array([out.facts[f"gain_{c}"] for c in ("red", "green", "blue")])
    np.testing.assert_allclose(gains * cast, (gains * cast).mean(), rtol=0.01)
    np.testing.assert_allclose(gains[1], np.linalg.norm(cast) / np.sqrt(3), rtol=0.01)


def test_hair_goes_and_the_lesion_stays():
    skin = np.full((3, 120, 120), 190.0)
    skin[:, disc((120, 120), (60, 60), 25)] = 90
    hairy = skin.copy()
    for k in range(10, 110, 20):
        hairy[:, k : k + 2, 5:110] = 30
        hairy[:, np.arange(5, 100), np.arange(5, 100) + k // 10] = 30
    out = run_steps(["hair_removal"], picture(hairy)).scan.data
    before, after = (np.abs(d - skin).mean() for d in (hairy, out))
    assert after < 0.25 * before
    assert np.abs(out[:, 55:58, 60] - 90).max() < 15


def angle(a, b):
    return np.rad2deg(np.arccos(np.clip(a @ b, -1, 1)))


@pytest.mark.parametrize("seed", range(3))
def test_macenko_recovers_known_stains(seed):
    rgb, _ = stained(np.random.default_rng(seed), STAINS)
    out = run_steps(["macenko"], picture(rgb))
    for j, name in enumerate(("haematoxylin", "eosin")):
        found = [out.facts[f"{name}_{c}"] for c in ("red", "green", "blue")]
        assert angle(np.array(found), STAINS[:, j]) < 2.0


def test_macenko_is_the_articles_recipe(rng):
    """Against a plain computation with an SVD, on the same rounded picture."""
    rgb, _ = stained(rng, STAINS)
    before = picture(rgb)
    out = run_steps(["macenko"], before).scan.data
    pixels = before.scan.data.reshape(3, -1).T.astype(float)
    density = -np.log((pixels + 1) / 240)
    kept = density[~(density <= 0.15).any(axis=1)]
    _, _, v = np.linalg.svd(kept - kept.mean(0), full_matrices=False)
    first, second = v[0] * np.sign((kept @ v[0]).mean()), v[1]
    phi = np.arctan2(kept @ second, kept @ first)
    pair = [np.cos(p) * first + np.sin(p) * second for p in np.percentile(phi, [1, 99])]
    pair = np.array(sorted(pair, key=lambda s: -s[0])).T
    amounts = np.linalg.pinv(pair) @ density.T
    amounts *= (np.array(REFERENCE_CONCENTRATIONS) / np.percentile(amounts, 99, axis=1))[:, None]
    expected = np.clip(240 * np.exp(-np.array(REFERENCE_STAINS) @ amounts), 0, 255)
    np.testing.assert_allclose(out.reshape(3, -1), expected, atol=0.5)


def test_macenko_brings_two_scanners_together(rng):
    other = unit([[0.55, 0.26], [0.78, 0.92], [0.32, 0.28]])
    _, strength = stained(rng, STAINS)
    tiles = [
        (240 * np.exp(-s @ (k * strength)) - 1).reshape(3, 96, 96)
        for s, k in ((STAINS, 1.0), (other, 0.7))
    ]
    one, two = (run_steps(["macenko"], picture(t)).scan.data for t in tiles)
    assert np.abs(one - two).mean() < 0.2 * np.abs(tiles[0] - tiles[1]).mean()


@pytest.mark.parametrize("case", ["white", "one stain"])
def test_macenko_leaves_a_tile_without_two_stains(case, rng):
    if case == "white":
        rgb = np.full((3, 50, 50), 238.0) + rng.normal(0, 2, (3, 50, 50))
    else:
        rgb = 240 * np.exp(-STAINS[:, :1] @ rng.uniform(0.3, 1.5, (1, 2500))).reshape(3, 50, 50)
    before = picture(rgb)
    out = run_steps(["macenko"], before)
    np.testing.assert_array_equal(out.scan.data, before.scan.data)
    assert any("left as it was" in note for note in out.notes)


def test_macenko_does_not_care_for_16_bits(rng):
    rgb, _ = stained(rng, STAINS)
    rgb = np.clip(rgb.round(), 0, 255)
    low = run_steps(["macenko"], picture(rgb)).scan.data
    high = run_steps(["macenko"], picture(rgb * 257, np.uint16)).scan.data
    np.testing.assert_allclose(high / 257, low, atol=0.01)


@pytest.mark.parametrize("glass", [0.0, 0.5, 1.0])
def test_tissue_is_told_from_glass(glass, rng):
    tissue = np.zeros((96, 96), bool)
    tissue[:, : round(96 * (1 - glass))] = True
    rgb = np.full((3, 96, 96), 240.0)
    rgb[:, tissue] = stained(rng, STAINS, glass=0)[0][:, tissue]
    out = run_steps(["tissue_mask"], picture(rgb + rng.normal(0, 1, rgb.shape)))
    if glass == 1:
        assert out.foreground is None and out.notes
    else:
        assert overlap(out.foreground, tissue) > 0.97


# --- all of them


@pytest.mark.parametrize(
    ("name", "value", "channels"), itertools.product(PICTURE_STEPS, (0, 128, 255), (1, 3))
)
def test_a_constant_picture_passes(name, value, channels):
    if channels == 1 and name in ("shades_of_gray", "tissue_mask", "macenko"):
        channels = 3
    before = picture(
        np.full((channels, 24, 31), value) if channels == 3 else np.full((24, 31), value)
    )
    out = run_steps([name], before)
    assert np.isfinite(out.scan.data).all() and out.scan.shape == (24, 31)


@pytest.mark.parametrize("name", CT_STEPS)
@pytest.mark.parametrize("value", [-1000, 40])
def test_a_constant_ct_passes(name, value):
    out = run_steps([{name: {"trust": True}}], ct(np.full((12, 13, 5), value)))
    assert np.isfinite(out.scan.data).all()


@pytest.mark.parametrize("name", PICTURE_STEPS)
def test_steps_repeat_and_keep_the_grid(name, rng):
    before = picture(fundus(rng)[0])
    copy = before.scan.data.copy()
    one, two = (run_steps([name], before) for _ in range(2))
    np.testing.assert_array_equal(one.scan.data, two.scan.data)
    np.testing.assert_array_equal(before.scan.data, copy)
    np.testing.assert_array_equal(one.scan.affine, before.scan.affine)
    field = rng.normal(size=(1, *before.scan.shape)).astype(np.float32)
    np.testing.assert_array_equal(one.back(field), field)
    assert one.scan.data.dtype == np.float32 and one.scan.data.min() >= 0
    assert one.scan.data.max() <= 255


ANY_DIMS = ("full_range", "median", "local_average")


@pytest.mark.parametrize("name", [n for n in PICTURE_STEPS if n not in ANY_DIMS])
def test_pictures_steps_refuse_volumes(name, rng):
    volume = Scan.from_array(rng.integers(0, 255, (3, 8, 8, 8)), channels=("r", "g", "b"))
    with pytest.raises(ScanError, match="array: "):
        run_steps([name], Working.of(volume))


@pytest.mark.parametrize(
    "spec",
    [
        "window=brian", {"window": {"center": 40}}, {"window": {"center": 40, "width": 0}},
        {"window": {"name": []}}, {"clahe": {"clip_limit": 0}}, {"clahe": {"on": "red"}},
        "median=4", {"local_average": {"sigma": -1}}, "shades_of_gray=0.5", "hair_removal=1",
        {"macenko": {"stains": [[1, 2]]}}, {"macenko": {"alpha": 50}},
    ],
)  # fmt: skip
def test_senseless_arguments_are_refused(spec, rng):
    with pytest.raises(ArgumentError):
        run_steps([spec], ct(rng.uniform(-1000, 100, (10, 10))))


# --- presets


@pytest.mark.parametrize("name", PRESETS)
def test_steps_of_every_preset_are_known(name):
    steps = preset(name)["steps"]
    assert len(parse_steps(steps)) == len(steps)


def test_presets_are_plain_copies():
    import json

    assert json.loads(json.dumps(PRESETS)) == PRESETS
    preset("fundus")["steps"].clear()
    assert preset("fundus")["steps"]
    with pytest.raises(ArgumentError, match="Did you mean 'chest-xray'"):
        preset("chest-xry")


def test_presets_leave_pictures_in_0_to_1(rng):
    made = {
        "fundus": fundus(rng)[0], "histology": stained(rng, STAINS)[0], "ultrasound": sector(rng)[0],
        "oct": bscan(rng)[0], "dermoscopy": fundus(rng)[0], "industrial": fundus(rng)[0],
    }  # fmt: skip
    for name, array in made.items():
        out = run_steps(preset(name)["steps"], picture(array)).scan.data
        assert out.min() >= 0 and 0.2 < out.max() <= 1, name
