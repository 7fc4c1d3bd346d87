"""Orientation, resampling and the pipeline against nibabel, scikit-image and numpy."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.transform import downscale_local_mean

from normscan.errors import ArgumentError, ScanError
from normscan.preprocess import Preprocess
from normscan.preprocess.foreground import bounding_box
from normscan.preprocess.grid import axis_weights, fit_grid
from normscan.scan import Scan

ORIENTATIONS = ["RAS", "LPS", "PIR", "SAL", "ILP", "ASR"]


def volume(rng, code="RAS", shape=(7, 6, 5), spacing=(1.0, 2.0, 3.0)):
    """A random volume whose axes run along the given directions."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-11, 7, 23]
    image = nib.Nifti1Image(rng.normal(size=shape).astype(np.float32), affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(code)
    )
    image = image.as_reoriented(turn)
    return Scan.from_array(np.asarray(image.dataobj), affine=image.affine)


def whole(scan):
    return tuple((0, n) for n in scan.shape)


def own_grid(scan, upright=False):
    """The working grid that has the scan's own voxels."""
    return fit_grid(scan, whole(scan), (None,) * scan.dims, None, "pad", upright)


def rotated_affine(spacing=(1.0, 1.5, 2.0)):
    """An oblique affine: 20 degrees about z, then 15 about x."""
    a, b = np.deg2rad([20, 15])
    turn_z = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    turn_x = [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    affine = np.eye(4)
    affine[:3, :3] = np.array(turn_x) @ np.array(turn_z) @ np.diag(spacing)
    affine[:3, 3] = [-30, 12, 5]
    return affine


def positions(affine, shape):
    """Patient coordinates (3, *shape) of all voxels."""
    index = np.indices((*shape, 1)[:3], dtype=float).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape)


def ramp(scan_affine, shape, direction=(0.3, -0.7, 0.5)):
    """An image whose value is linear in the patient's millimetres."""
    return np.tensordot(direction, positions(scan_affine, shape), 1)


# --- grids


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_a_volume_is_turned_to_ras_as_nibabel_does(rng, code):
    scan = volume(rng, code)
    grid = own_grid(scan)
    expected = nib.as_closest_canonical(nib.Nifti1Image(scan.data[0], scan.affine))
    np.testing.assert_allclose(grid.forward(scan.data)[0], expected.get_fdata(), atol=1e-6)
    np.testing.assert_allclose(grid.affine(scan.affine), expected.affine, atol=1e-12)


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_slices_are_laid_out_upright(rng, code):
    scan = volume(rng, code)
    grid = own_grid(scan, upright=True)
    ras = nib.as_closest_canonical(nib.Nifti1Image(scan.data[0], scan.affine)).get_fdata()
    # Rows run down from anterior to posterior, columns from the patient's left to right.
    upright = ras[:, ::-1].transpose(1, 0, 2)
    np.testing.assert_allclose(grid.forward(scan.data)[0], upright, atol=1e-6)
    assert nib.aff2axcodes(grid.affine(scan.affine)) == ("P", "R", "S")


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("code", ORIENTATIONS)
def test_backward_undoes_forward(rng, code, upright):
    scan = volume(rng, code)
    grid = own_grid(scan, upright)
    np.testing.assert_allclose(grid.backward(grid.forward(scan.data)), scan.data, atol=1e-6)


def test_a_raster_image_is_taken_as_it_is(rng):
    scan = Scan.from_array(rng.normal(size=(6, 9)))
    np.testing.assert_array_equal(own_grid(scan).forward(scan.data), scan.data)


def test_a_coronal_picture_runs_down_and_to_the_right(rng):
    # Index axes towards superior and towards left.
    affine = np.array([[0, -1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    scan = Scan.from_array(rng.normal(size=(6, 9)), affine=affine)
    np.testing.assert_array_equal(own_grid(scan).forward(scan.data), scan.data[:, ::-1, ::-1])


@pytest.mark.parametrize("spacing", [0.7, 1.0, 1.3, 1.875, 3.0, 4.2])
@pytest.mark.parametrize("code", ["RAS", "PIR"])
def test_a_ramp_in_millimetres_survives_resampling(rng, code, spacing):
    scan = volume(rng, code, (40, 30, 24), (1.0, 2.0, 3.0))
    scan = scan.with_data(ramp(scan.affine, scan.shape)[None])
    n = int(40 / spacing)
    grid = fit_grid(scan, whole(scan), (n, n, n), spacing, "pad", False)
    values = grid.forward(scan.data)[0]
    expected = ramp(grid.affine(scan.affine), grid.shape)
    margin = 1 + int(np.ceil(3 / spacing)) * 2
    inner = np.zeros(grid.shape, bool)
    # The scan fills 40, 60, 72 mm; the grid is a cube of 40 mm in its middle.
    inner[(slice(margin, -margin) if n > 2 * margin else slice(n // 2, n // 2 + 1),) * 3] = True
    np.testing.assert_allclose(values[inner], expected[inner], atol=2e-4)


def test_the_way_back_keeps_millimetres():
    scan = Scan.from_array(np.zeros((40, 31, 22)), affine=rotated_affine())
    grid = fit_grid(scan, whole(scan), (26, 26, 26), None, "pad", False)
    back = grid.backward(ramp(grid.affine(scan.affine), grid.shape)[None].astype(np.float32))[0]
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(back[inner], ramp(scan.affine, scan.shape)[inner], atol=2e-4)


def test_an_oblique_scan_keeps_its_angles_in_the_affine():
    scan = Scan.from_array(np.zeros((20, 20, 20)), affine=rotated_affine())
    grid = fit_grid(scan, whole(scan), (16, 16, 16), 2.5, "pad", False)
    affine = grid.affine(scan.affine)
    cosines = affine[:3, :3] / 2.5
    np.testing.assert_allclose(cosines, scan.affine[:3, :3] / scan.spacing, atol=1e-12)
    middle = lambda a, shape: a @ [*((np.array(shape) - 1) / 2), 1]  # noqa: E731
    np.testing.assert_allclose(
        middle(affine, grid.shape), middle(scan.affine, scan.shape), atol=1e-9
    )


def test_halving_equals_a_triangle_filter():
    """Between two voxels the widened triangle weighs 1, 3, 3, 1."""
    data = np.random.default_rng(0).normal(size=16)
    filtered = np.convolve(data, np.array([1, 3, 3, 1]) / 8, "valid")[1::2]
    result = axis_weights(16, np.arange(8) * 2 + 0.5, 2.0) @ data
    np.testing.assert_allclose(result[1:-1], filtered, atol=1e-6)


@pytest.mark.parametrize("size", [9, 16, 21])
def test_downsampling_does_not_alias(size):
    board = (np.indices((64, 64)).sum(axis=0) % 2).astype(np.float32)
    scan = Scan.from_array(board)
    grid = fit_grid(scan, whole(scan), (size, size), None, "pad", True)
    small = grid.forward(scan.data)[0][1:-1, 1:-1]
    np.testing.assert_allclose(small, 0.5, atol=0.02)


def test_downsampling_is_close_to_block_means(rng):
    smooth = ndimage.gaussian_filter(rng.normal(size=(64, 64)), 4)
    scan = Scan.from_array(smooth)
    small = fit_grid(scan, whole(scan), (16, 16), None, "pad", True).forward(scan.data)[0]
    expected = downscale_local_mean(smooth, (4, 4))
    assert np.abs(small - expected)[1:-1, 1:-1].mean() < 0.08 * smooth.std()


@pytest.mark.parametrize(("dims", "upright"), [(2, True), (3, False)])
def test_the_identity_grid_is_the_identity(rng, dims, upright):
    scan = Scan.from_array(rng.normal(size=(12,) * dims))
    grid = fit_grid(scan, whole(scan), (12,) * dims, None, "pad", upright)
    np.testing.assert_array_equal(grid.forward(scan.data), scan.data)
    np.testing.assert_array_equal(grid.backward(scan.data), scan.data)
    np.testing.assert_array_equal(grid.affine(scan.affine), scan.affine)


def test_padding_keeps_proportions_in_millimetres():
    scan = Scan.from_array(np.ones((20, 10)), spacing=(1.0, 3.0))
    grid = fit_grid(scan, whole(scan), (30, 30), None, "pad", True)
    # The image is 20 mm by 30 mm: the second axis fills the grid, the first two thirds of it.
    assert np.linalg.norm(grid.affine(scan.affine)[:3, :2], axis=0) == pytest.approx([1, 1])
    filled = grid.forward(scan.data)[0] > 0
    assert bounding_box(filled) == ((5, 25), (0, 30))


def test_stretching_fills_the_grid():
    scan = Scan.from_array(np.ones((20, 10)), spacing=(1.0, 3.0))
    grid = fit_grid(scan, whole(scan), (30, 30), None, "stretch", True)
    assert (grid.forward(scan.data) > 0).all()
    np.testing.assert_allclose(np.abs(grid.step), [20 / 30, 10 / 30])


@pytest.mark.parametrize("shape", [(512, 640), (600, 300)])
def test_the_shorter_edge_resized_and_the_middle_cropped_as_pillow_does(rng, shape):
    """256 pixels of which the middle 224 are kept, as picture benchmarks have it."""
    picture = ndimage.gaussian_filter(rng.uniform(0, 255, shape), 3).astype(np.float32)
    settings = Preprocess(size=224, crop=224 / 256, fit="cover", scaling="none", foreground="all")
    scan = Scan.from_array(picture)
    prepared = settings(scan, 2)
    ratio = 256 / min(shape)
    h, w = (round(n * ratio) for n in shape)
    resized = Image.fromarray(picture).resize((w, h), Image.Resampling.BILINEAR)
    top, left = (h - 224) // 2, (w - 224) // 2
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    assert np.abs(prepared.image[0] - expected).max() < 0.02 * np.ptp(picture)
    # The map comes back to where it was; what was cut off gets none.
    back = prepared.back(np.ones((1, 224, 224), np.float32))[0] > 0.5
    margin = [round((n - 224 / ratio) / 2) for n in shape]
    assert bounding_box(back) == tuple((m, n - m) for m, n in zip(margin, shape, strict=True))


def test_a_share_of_a_stretched_picture(rng):
    scan = Scan.from_array(rng.uniform(size=(40, 80)))
    prepared = Preprocess(size=20, crop=0.5, fit="stretch", scaling="none")(scan, 2)
    np.testing.assert_allclose(np.abs(prepared.grid.step), [1, 2])
    np.testing.assert_allclose(prepared.grid.start, [10, 20.5])


def test_a_share_leaves_the_slices_of_a_volume(rng):
    scan = Scan.from_array(rng.uniform(size=(16, 16, 7)))
    prepared = Preprocess(size=8, crop=0.5, fit="cover", scaling="none")(scan, 2)
    assert prepared.grid.shape == (8, 8, 7)
    upright = scan.data[0, 4:12, 4:12][:, ::-1].transpose(1, 0, 2)
    np.testing.assert_allclose(prepared.image[0], upright, atol=1e-6)


def test_a_box_is_cropped():
    scan = Scan.from_array(np.arange(200.0).reshape(20, 10))
    grid = fit_grid(scan, ((4, 12), (1, 9)), (8, 8), None, "pad", True)
    np.testing.assert_array_equal(grid.forward(scan.data)[0], scan.data[0, 4:12, 1:9])
    back = grid.backward(scan.data[:, 4:12, 1:9])[0]
    outside = np.ones((20, 10), bool)
    outside[4:12, 1:9] = False
    np.testing.assert_array_equal(back[4:12, 1:9], scan.data[0, 4:12, 1:9])
    assert (back[outside] == 0).all()


def test_spacing_in_millimetres_sets_the_step(rng):
    scan = volume(rng, "SAL", (20, 20, 20), (1.0, 2.0, 3.0))
    grid = fit_grid(scan, whole(scan), (8, 8, 8), 1.5, "pad", False)
    steps = np.linalg.norm(grid.affine(scan.affine)[:3, :3], axis=0)
    np.testing.assert_allclose(steps, 1.5)


# --- the pipeline


@pytest.mark.parametrize("code", ["RAS", "PIR"])
def test_slices_are_the_scans_own(rng, code):
    scan = volume(rng, code, (12, 12, 9), (1.0, 1.0, 4.0))
    settings = Preprocess(size=12, crop="none", scaling="none", foreground="all")
    prepared = settings(scan, 2)
    ras = nib.as_closest_canonical(nib.Nifti1Image(scan.data[0], scan.affine)).get_fdata()
    assert prepared.grid.shape == (12, 12, 9)
    np.testing.assert_allclose(prepared.image[0], ras[:, ::-1].transpose(1, 0, 2), atol=1e-6)


def test_slices_follow_the_foreground_in_all_axes(rng):
    data = np.zeros((30, 30, 12), np.float32)
    data[5:21, 8:24, 3:9] = rng.uniform(1, 2, (16, 16, 6))
    settings = Preprocess(size=16, scaling="none")
    prepared = settings(Scan.from_array(data), 2)
    upright = data[5:21, 8:24, 3:9][:, ::-1].transpose(1, 0, 2)
    np.testing.assert_allclose(prepared.image[0], upright, atol=1e-6)
    assert prepared.foreground.all()


def test_padding_looks_like_the_background(rng):
    data = rng.uniform(-900, 100, (10, 20)).astype(np.float32)
    data[0, 0] = -1000
    prepared = Preprocess(size=20, crop="none", scaling="none", foreground="all")(
        Scan.from_array(data), 2
    )
    assert (prepared.image[0, :5] == -1000).all() and (prepared.image[0, 15:] == -1000).all()
    np.testing.assert_allclose(prepared.image[0, 5:15], data, atol=1e-3)
    expected = np.zeros((20, 20), bool)
    expected[5:15] = True
    np.testing.assert_array_equal(prepared.foreground, expected)


def test_a_given_foreground_is_used(rng):
    mask = np.zeros((20, 20), bool)
    mask[4:12, 6:14] = True
    scan = Scan.from_array(rng.uniform(1, 2, (20, 20)))
    prepared = Preprocess(size=8, scaling="none")(scan, 2, mask)
    np.testing.assert_allclose(prepared.image, scan.data[:, 4:12, 6:14], atol=1e-6)


def test_grey_is_the_mean_of_the_channels(rng):
    data = rng.uniform(size=(3, 16, 16))
    scan = Scan.from_array(data, channels=("red", "green", "blue"))
    settings = Preprocess(
        size=16, crop="none", scaling="none", foreground="all", colour="grey", fit="stretch"
    )
    np.testing.assert_allclose(settings(scan, 2).image, data.mean(0)[None], atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 20), (9, 9, 9)])
def test_a_constant_scan_is_refused(shape):
    with pytest.raises(ScanError, match="every pixel is 5"):
        Preprocess(size=16)(Scan.from_array(np.full(shape, 5.0)), len(shape))


def test_a_slice_is_no_volume():
    with pytest.raises(ScanError, match="dims=2"):
        Preprocess(size=16)(Scan.from_array(np.eye(20)), 3)


@pytest.mark.parametrize(
    "change",
    [{"size": 4}, {"spacing": 0.0}, {"percentile": 10.0}, {"crop": 0.0}, {"range": ((1.0, 1.0),)}],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ArgumentError, match=f"preprocess.{next(iter(change))}"):
        Preprocess(**change)
