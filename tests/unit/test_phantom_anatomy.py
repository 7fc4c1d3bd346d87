"""The simulated brain: warps, tissue, contrast and noise against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from normscan.phantom.anatomy import Anatomy
from normscan.phantom.atlas import CSF, GM, WM, load_atlas
from normscan.phantom.config import PhantomConfig
from normscan.phantom.contrast import TISSUE, rician, store
from normscan.phantom.deform import MassEffect, exponential, jacobian, random_warp
from normscan.phantom.fields import SmoothField
from normscan.phantom.subject import Subject, make_subject

STILL = {
    "deformation": 0.0, "scale_variation": 0.0, "rotation": 0.0, "shift": 0.0, "sulci": 0.0,
    "tissue_variation": 0.0, "gain_variation": 0.0, "texture": 0.0, "bias": 0.0, "noise": 0.0,
}  # fmt: skip


def coarse(**settings) -> PhantomConfig:
    return PhantomConfig(**{"spacing": 4.0, **settings})


def box(step: float) -> np.ndarray:
    axes = (np.arange(-72, 73, step), np.arange(-106, 75, step), np.arange(-60, 80, step))
    return np.stack(np.meshgrid(*axes, indexing="ij"))


@pytest.mark.parametrize("amplitude", [3.5, 7.0, 20.0])
def test_warp_is_invertible_between_its_nodes_too(amplitude: float) -> None:
    for seed in range(3):
        warp = random_warp(np.random.default_rng(seed), amplitude, 0.05, 5.0, 5.0)
        grid = box(3.0)
        moved = warp(grid.reshape(3, -1).T).T.reshape(grid.shape)
        assert jacobian(moved - grid, 3.0).min() > 0
        assert warp.amplitude <= amplitude
        assert np.abs(moved - grid).max() > 2


def test_a_warp_that_would_fold_is_weakened() -> None:
    warp = random_warp(np.random.default_rng(0), 80.0, 0.0, 0.0, 0.0)
    assert warp.amplitude < 80.0 and warp.jacobian_min > 0.1


def test_exponential_of_a_constant_velocity_is_a_shift() -> None:
    velocity = np.broadcast_to(np.array([3.0, -2.0, 1.0])[:, None, None, None], (3, 6, 6, 6))
    np.testing.assert_allclose(exponential(velocity), velocity, atol=1e-12)


def test_exponential_of_the_negative_velocity_is_the_inverse() -> None:
    from scipy.ndimage import gaussian_filter

    white = np.random.default_rng(0).standard_normal((3, 20, 20, 20))
    velocity = np.stack([gaussian_filter(w, 3.0) for w in white])
    velocity *= 4.0 / velocity.std()
    there, back = exponential(velocity), exponential(-velocity)
    from scipy.ndimage import map_coordinates

    at = np.stack(np.meshgrid(*[np.arange(20)] * 3, indexing="ij")) + there / 8.0
    round_trip = there + np.stack([map_coordinates(b, at, order=1, mode="nearest") for b in back])
    assert np.abs(round_trip[:, 4:-4, 4:-4, 4:-4]).max() < 0.25 * np.abs(there).max()


@pytest.mark.parametrize("strength", [0.3, 0.9])
def test_mass_effect_keeps_its_ball_and_never_folds(strength: float) -> None:
    mass = MassEffect(np.array([20.0, 0.0, 10.0]), 25.0, strength)
    grid = box(2.0)
    moved = mass(grid.reshape(3, -1).T).T.reshape(grid.shape)
    assert jacobian(moved - grid, 2.0).min() > 0
    moves = np.linalg.norm(moved - grid, axis=0)
    away = np.linalg.norm(grid - mass.centre[:, None, None, None], axis=0)
    assert moves[away >= 25.0].max() == 0
    assert moves.max() == pytest.approx(0.286 * strength * 25.0, rel=0.05)


def test_fractions_add_up_to_one_in_the_brain() -> None:
    anatomy = Anatomy(coarse(sulci=0.8), 3)
    points = box(6.0).reshape(3, -1).T
    tissue, inside = anatomy.tissue(points), anatomy.inside(points)
    np.testing.assert_allclose(tissue[inside].sum(axis=1), 1.0, atol=1e-9)
    assert tissue[~inside].max() == 0 and tissue.min() >= 0


def test_tissue_sits_at_its_mni_coordinates() -> None:
    atlas = load_atlas(1.0)
    points = np.array([[-28.0, -20, 28], [28, -20, 28], [-14, -30, 18], [-14, 10, 8], [0, 0, 95]])
    fractions, brain = atlas.fractions(points)
    assert fractions[0, WM] > 0.9 and fractions[1, WM] > 0.9
    assert fractions[2, CSF] > 0.6  # body of the lateral ventricle
    assert fractions[3, GM] > 0.6  # head of the caudate
    assert brain[4] == 0
    assert atlas.ventricle_distance(points[2:3])[0] < 4 < atlas.ventricle_distance(points[:1])[0]


def test_affine_of_a_slice_and_of_a_volume_point_at_the_same_tissue() -> None:
    flat = Subject(coarse(**STILL, heights=(18.0, 18.0)), 0).render()
    solid = Subject(coarse(**STILL, dims=3), 0).render()
    for phantom in (flat, solid):
        affine = phantom.grid.affine
        for point, tissue in (((-28, -20, 18), WM), ((-14, -30, 18), CSF)):
            index = np.rint(np.linalg.inv(affine) @ [*point, 1])[:3].astype(int)
            at = (affine @ [*index, 1])[:3]
            assert np.abs(at - point).max() <= 2.0
            value = phantom.image["FLAIR"][tuple(index[: phantom.image["FLAIR"].ndim])]
            nearest = np.argmin(np.abs(np.array(TISSUE["FLAIR"]) - value))
            assert (nearest == CSF) == (tissue == CSF)
    assert flat.grid.affine[2, 3] == 18.0
    np.testing.assert_allclose(flat.grid.affine[:3, 2], [0, 0, 4.0])


def test_contrasts_have_the_order_of_clinical_images() -> None:
    config = coarse(modalities=("T1w", "T2w", "FLAIR"), noise=0.0, dims=3)
    subject = Subject(config, 0)
    phantom = subject.render()
    tissue = subject.anatomy.tissue(phantom.grid.points)
    means = {
        m: [np.median(image.reshape(-1)[tissue[:, k] > 0.7]) for k in (CSF, GM, WM)]
        for m, image in phantom.image.items()
    }
    assert means["T1w"][CSF] < means["T1w"][GM] < means["T1w"][WM]
    assert means["T2w"][WM] < means["T2w"][GM] < means["T2w"][CSF]
    assert means["FLAIR"][CSF] < means["FLAIR"][WM] < means["FLAIR"][GM]


def test_noise_is_rician() -> None:
    rng = np.random.default_rng(0)
    background = rician(np.zeros(200_000), 0.05, rng)
    assert background.mean() == pytest.approx(0.05 * np.sqrt(np.pi / 2), rel=0.01)
    assert (background**2).mean() == pytest.approx(2 * 0.05**2, rel=0.01)
    signal = rician(np.full(200_000, 0.1), 0.05, rng)
    assert (signal**2).mean() == pytest.approx(0.1**2 + 2 * 0.05**2, rel=0.01)


def test_background_without_skull_stripping_is_rayleigh() -> None:
    phantom = make_subject(coarse(skull_strip=False, noise=0.03, spacing=2.0), 0)
    background = phantom.image["FLAIR"][~phantom.brain]
    assert background.mean() == pytest.approx(0.03 * np.sqrt(np.pi / 2), rel=0.03)
    stripped = make_subject(coarse(noise=0.03), 0)
    assert stripped.image["FLAIR"][~stripped.brain].max() == 0


def test_smooth_field_is_of_unit_variance_and_smooth() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-100, 100, (50_000, 3))
    field = SmoothField(rng, 5.0)
    values = field(points)
    assert values.std() == pytest.approx(1.0, rel=0.05) and abs(values.mean()) < 0.05
    assert np.abs(field(points + np.array([0.01, 0, 0])) - values).max() < 0.02


def test_storage_is_sixteen_bit_and_uses_more_than_eight() -> None:
    stored = store(Subject(coarse(), 0).render().image["FLAIR"])
    assert stored.dtype == np.uint16 and 255 < stored.max() <= 4095
    assert store(np.array([-1.0, 0.5, 9.0])).tolist() == [0, 1000, 4095]


def test_healthy_subjects_differ_and_fit_the_grid() -> None:
    images = []
    for index in range(6):
        phantom = Subject(coarse(heights=(20.0, 20.0)), index).render()
        edge = phantom.brain.copy()
        edge[1:-1, 1:-1] = False
        assert not edge.any()
        images.append(phantom.image["FLAIR"])
    mean = np.mean(images, axis=0)
    # A mean image explains less than the differences that it leaves, measured against noise.
    left = np.mean([np.abs(i - mean)[mean > 0.3].mean() for i in images])
    assert left > 3 * 0.02
