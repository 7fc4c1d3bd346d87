"""Planes upright on the screen, windows, overlays, outlines and the choice of a slice."""

from __future__ import annotations

import base64
import io
import itertools

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from normscan.display import edge_letters, upright_spacing
from normscan.errors import ArgumentError
from normscan.report import Picture, best_slice, overlay_image, upright
from normscan.report.figures import (
    display_image,
    map_scale,
    outlines,
    overlay_levels,
    overlay_table,
    window,
)
from normscan.report.rows import make_row
from normscan.scan import RASTER_AFFINE

AXES = [("R", "L"), ("A", "P"), ("S", "I")]
ORDERS = [codes for axes in itertools.permutations(AXES) for codes in itertools.product(*axes)]


def expected_plane(image: nib.Nifti1Image) -> np.ndarray:
    """Draw the plane from nibabel's canonical image: x, then y or z, from the top downwards."""
    axis = int(nib.io_orientation(image.affine)[2, 0])
    canonical = nib.as_closest_canonical(image)
    plane = np.asarray(canonical.dataobj).take(0, axis=axis)
    return plane.T[::-1]


@pytest.mark.parametrize("codes", ORDERS, ids="".join)
@pytest.mark.parametrize("tilt", [0.0, 0.3])
def test_upright_as_nibabel(codes: tuple[str, str, str], tilt: float) -> None:
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, code in enumerate(codes):
        axis = next(i for i, pair in enumerate(AXES) if code in pair)
        affine[axis, column] = 1 if code == AXES[axis][0] else -1
    affine = turn @ affine
    assert nib.aff2axcodes(affine) == codes
    data = np.arange(30, dtype=np.float32).reshape(5, 6, 1)
    shown = upright(data[..., 0], affine)
    np.testing.assert_array_equal(shown, expected_plane(nib.Nifti1Image(data, affine)))


def test_raster_is_unchanged() -> None:
    plane = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(upright(plane, RASTER_AFFINE), plane)
    np.testing.assert_array_equal(upright(plane, RASTER_AFFINE @ np.diag([2.0, 0.5, 1, 1])), plane)
    assert edge_letters(RASTER_AFFINE) is None


def test_spacing_and_letters_follow_the_plane() -> None:
    assert upright_spacing(np.diag([1.0, 2, 3, 1])) == (2, 1)
    assert upright_spacing(RASTER_AFFINE @ np.diag([4.0, 5, 1, 1])) == (4, 5)
    assert edge_letters(np.eye(4)) == ("A", "L")
    sagittal = np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    assert edge_letters(sagittal) == ("S", "P")


def test_window_ignores_outliers_and_flat_images() -> None:
    values = np.linspace(0, 1, 2000).reshape(1, 40, 50)
    values[0, 0, 0] = 1e6
    assert window(values)[1] < 1.01
    assert window(np.full((1, 4, 4), 7.0)) == (7, 7)
    assert window(np.full((1, 4, 4), np.nan)) == (0, 1)
    assert display_image(np.full((1, 4, 4), np.nan)).max() == 0


def test_first_channel_or_colours() -> None:
    image = np.stack([np.zeros((4, 5)), np.ones((4, 5)), np.full((4, 5), 0.5)])
    assert display_image(image).shape == (4, 5)
    np.testing.assert_array_equal(display_image(image, rgb=True)[0, 0], [0, 255, 128])
    np.testing.assert_array_equal(display_image(image * 255, rgb=True)[0, 0], [0, 255, 128])


def test_overlay_is_transparent_below_its_floor_and_rises() -> None:
    levels = overlay_levels(np.array([[-1.0, 0.2, 0.6, 5.0, np.nan]]), (0.2, 1.0))
    alpha = overlay_table()[levels][0, :, 3]
    assert alpha[0] == alpha[1] == alpha[4] == 0
    assert 0 < alpha[2] < alpha[3]
    assert (np.diff(overlay_table()[:, 3].astype(int)) >= 0).all()


@pytest.mark.parametrize("threshold", [None, 0.5, -3.0, 50.0])
def test_scale_is_increasing_and_leaves_room_for_the_threshold(threshold: float | None) -> None:
    floor, top = map_scale([np.random.default_rng(0).random((9, 9))], threshold)
    assert floor < top
    assert threshold is None or floor <= threshold < top
    assert np.less(*map_scale([np.zeros((3, 3)), np.full((3, 3), np.nan)], None))
    assert np.less(*map_scale([], threshold))


def test_outlines_enclose_the_mask_also_at_the_border() -> None:
    mask = np.zeros((10, 12), bool)
    mask[:3, :4] = True
    mask[6:8, 7:10] = True
    lines = outlines(mask, 0.5)
    assert len(lines) == 2
    boxes = sorted((tuple(line.min(0)), tuple(line.max(0))) for line in lines)
    assert boxes == [((0, 0), (4, 3)), ((7, 6), (10, 8))]
    assert outlines(np.full((4, 4), np.nan), 0.5) == []
    assert len(outlines(np.ones((4, 4)), 0.5)) == 1


def picture(**more: object) -> Picture:
    fields: dict = {
        "title": "scan $1",
        "caption": "",
        "image": np.random.default_rng(0).random((1, 30, 20)),
        "reconstruction": None,
        "map": np.zeros((30, 20)),
        "mask": None,
        "score": 1.0,
        "p_value": 0.1,
        "label": 1,
        "anomalous": True,
        "affine": np.diag([1.0, 2, 3, 1]),
    }
    return Picture(**{**fields, **more})


def test_row_layers_are_upright_and_cropped_to_the_content() -> None:
    image = np.zeros((1, 100, 80))
    image[0, 40:60, 30:40] = np.linspace(0.5, 1, 20)[:, None]
    row = make_row(picture(image=image, map=np.zeros((100, 80))), "a", (0.5, 1), None)
    assert (row.columns, row.rows) == (20 + 10, 10 + 8)  # with margins of 5 %
    assert (row.column_mm, row.row_mm) == (1, 2)
    data = base64.b64decode(row.scan.split(",")[1])
    layer = np.asarray(Image.open(io.BytesIO(data)))
    assert layer.shape == (18, 30)
    assert (np.diff(layer[9, 5:25].astype(int)) >= 0).all()


def test_row_keeps_an_overlay_outside_the_image() -> None:
    map = np.zeros((30, 20))
    map[0, 0] = map[29, 19] = 1
    row = make_row(picture(image=np.zeros((1, 30, 20)), map=map), "a", (0.5, 2), 0.7)
    assert (row.columns, row.rows) == (30, 20)
    assert row.region.count("M") == 2


def colours(drawn: Image.Image) -> set[tuple[int, int, int]]:
    return set(map(tuple, np.asarray(drawn).reshape(-1, 3).tolist()))


def test_overlay_image_shows_lesion_and_finding_with_a_legend() -> None:
    mask, found = np.zeros((2, 30, 20), bool)
    mask[4:9, 4:9] = found[20:26, 10:16] = True
    flat = {"affine": RASTER_AFFINE, "image": np.full((1, 30, 20), 0.5)}
    drawn = overlay_image(picture(mask=mask, map=found * 1.0, **flat), pixel_threshold=0.5)
    plain = overlay_image(picture(**flat))
    assert drawn.mode == "RGB" and drawn.height > plain.height
    cyan = (0x22, 0xD3, 0xEE)
    assert cyan in colours(drawn) and cyan not in colours(plain)
    # Where the lesion's outline lies, and whether what was found is dashed.
    pixels = np.asarray(drawn).astype(int)[28:-28]
    rows, columns = np.nonzero((abs(pixels - cyan) < 3).all(-1))
    left = (400 - pixels.shape[0] * 20 / 30) / 2
    scale = pixels.shape[0] / 30
    assert rows.min() == pytest.approx(4 * scale, abs=2)
    assert rows.max() == pytest.approx(9 * scale, abs=2)
    assert columns.min() == pytest.approx(left + 4 * scale, abs=2)
    white = (pixels == 255).all(-1)
    top = white[round(20 * scale) - 1 : round(20 * scale) + 2].any(0)
    edge = top[round(left + 10 * scale) + 2 : round(left + 16 * scale) - 2]
    assert edge.any() and not edge.all()


def test_overlay_image_keeps_millimetres_and_shortens_a_long_title() -> None:
    affines = RASTER_AFFINE, RASTER_AFFINE @ np.diag([1.0, 3, 1, 1])
    square, wide = (overlay_image(picture(affine=a, title="x" * 300)) for a in affines)
    assert square.size == (400, 400 + 28)  # 30 rows, 20 columns
    assert wide.size == (400, 200 + 28)  # 30 mm by 60 mm


def test_picture_refuses_arrays_that_do_not_fit() -> None:
    with pytest.raises(ArgumentError, match="scan \\$1"):
        picture(map=np.zeros((5, 5)))
    with pytest.raises(ArgumentError, match="the mask has the shape"):
        picture(mask=np.zeros((5, 5), bool))


def test_three_channels_are_colours_only_on_a_raster() -> None:
    three = np.zeros((3, 30, 20))
    assert picture(image=three, affine=RASTER_AFFINE).is_rgb
    assert not picture(image=three).is_rgb
    assert not picture(image=three, affine=RASTER_AFFINE, rgb=False).is_rgb


ABOUT = {"title": "v", "score": 1.0, "p_value": 0.1, "label": 1, "anomalous": True}


def test_best_slice_follows_the_lesion_then_the_hottest_voxels() -> None:
    map = np.full((6, 7, 9), 0.1)
    map[2, 2, 5] = 3
    map[:, :, 7] = 0.12  # much tissue, no peak
    image = np.arange(2 * map.size, dtype=float).reshape(2, *map.shape)
    chosen = best_slice(image, map, np.eye(4), **ABOUT)
    assert chosen.caption == "slice 6 of 9"
    np.testing.assert_array_equal(chosen.image, image[..., 5])
    mask = np.zeros(map.shape, np.uint8)
    mask[:2, :2, 1] = 1
    mask[0, 0, 5] = 1
    chosen = best_slice(image, map, np.eye(4), mask=mask, reconstruction=image, **ABOUT)
    assert chosen.caption == "slice 2 of 9" and chosen.mask is not None
    assert chosen.mask.dtype == bool and chosen.mask.sum() == 4
    assert best_slice(image, map * np.nan, np.eye(4), **ABOUT).caption == "slice 5 of 9"


def test_best_slice_passes_a_plane_through_and_refuses_misfits() -> None:
    plane = best_slice(np.zeros((1, 4, 5)), np.zeros((4, 5)), RASTER_AFFINE, **ABOUT)
    assert plane.caption == "" and plane.map.shape == (4, 5)
    with pytest.raises(ArgumentError, match=r"v: an image of shape"):
        best_slice(np.zeros((1, 4, 5, 6)), np.zeros((4, 5, 7)), np.eye(4), **ABOUT)
