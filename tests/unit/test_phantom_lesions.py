"""The simulated lesions: exact masks, size, contrast, and the healthy twin."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from normscan.errors import ArgumentError
from normscan.phantom.config import KINDS, PhantomConfig
from normscan.phantom.subject import Phantom, Subject, make_subject


def coarse(**settings) -> PhantomConfig:
    return PhantomConfig(**{"spacing": 2.5, **settings})


def difference(phantom: Phantom, modality: str = "FLAIR") -> np.ndarray:
    return phantom.image[modality] - phantom.healthy_twin[modality]


@pytest.mark.parametrize("kind", KINDS)
def test_image_and_twin_differ_in_the_lesion_only(kind: str) -> None:
    phantom = make_subject(coarse(), 1, kind, noise=False)
    change = difference(phantom)
    allowed = phantom.fraction > 0
    for row in phantom.properties["lesions"]:
        if row.get("mass_radius_mm"):
            centre = [row["x_mm"], row["y_mm"], row["z_mm"]]
            away = np.linalg.norm(phantom.grid.points - centre, axis=1).reshape(allowed.shape)
            allowed = allowed | (away < row["mass_radius_mm"] + 0.1)
    assert np.abs(change[~allowed]).max() == 0
    assert np.abs(change[phantom.mask]).mean() > 0.1
    assert phantom.mask.any() and not (phantom.mask & ~phantom.brain).any()
    np.testing.assert_array_equal(phantom.mask, phantom.fraction >= 0.5)


@pytest.mark.parametrize("kind", ["wmh", "infarct"])
def test_mask_is_where_the_lesion_shows(kind: str) -> None:
    settings = dict.fromkeys(("texture", "bias", "gain_variation", "tissue_variation"), 0.0)
    phantom = make_subject(coarse(**settings), 2, kind, noise=False)
    change = difference(phantom)
    assert change[phantom.mask].min() > 0.05
    inside, outside = change[phantom.mask].mean(), change[~phantom.mask & phantom.brain].mean()
    assert inside > 20 * outside


@pytest.mark.parametrize("kind", KINDS)
def test_contrast_zero_is_the_healthy_twin(kind: str) -> None:
    phantom = make_subject(coarse(contrast=0.0), 0, kind)
    np.testing.assert_array_equal(phantom.image["FLAIR"], phantom.healthy_twin["FLAIR"])
    assert phantom.mask.any()


@pytest.mark.parametrize("kind", KINDS)
def test_twin_is_the_healthy_subject(kind: str) -> None:
    config = coarse()
    healthy = Subject(config, 4).render().image["FLAIR"]
    np.testing.assert_array_equal(make_subject(config, 4, kind).healthy_twin["FLAIR"], healthy)


@pytest.mark.parametrize("kind", KINDS)
def test_change_is_proportional_to_contrast_and_the_mask_stays(kind: str) -> None:
    config = coarse(mass_effect=0.0)
    full = make_subject(config, 5, kind, noise=False)
    for contrast in (0.25, 0.5):
        weak = make_subject(dataclasses.replace(config, contrast=contrast), 5, kind, noise=False)
        np.testing.assert_array_equal(weak.mask, full.mask)
        np.testing.assert_allclose(difference(weak), contrast * difference(full), atol=1e-9)


def test_mask_stays_whatever_the_contrast_with_mass_effect() -> None:
    masks = [make_subject(coarse(contrast=c), 5, "tumour").mask for c in (0.0, 0.5, 1.0, 2.0)]
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])


@pytest.mark.parametrize(
    ("kind", "diameter"), [("tumour", 30.0), ("tumour", 44.0), ("infarct", 32.0), ("bleed", 18.0)]
)
def test_size_is_met(kind: str, diameter: float) -> None:
    wanted = np.pi / 6 * diameter**3
    config = coarse(dims=3, diameter=(diameter, diameter), spacing=2.0)
    phantom = make_subject(config, 0, kind)
    assert phantom.properties["lesion_size"] == pytest.approx(wanted, rel=0.15)
    row = phantom.properties["lesions"][0]
    assert row["volume_mm3"] == pytest.approx(wanted, rel=0.05)
    assert row["diameter_mm"] == diameter


def test_size_of_the_small_ones_is_met_too() -> None:
    phantom = make_subject(
        coarse(dims=3, diameter=(9.0, 9.0), wmh_count=(4, 4), spacing=2.0), 0, "wmh"
    )
    assert phantom.properties["lesion_size"] == pytest.approx(4 * np.pi / 6 * 9.0**3, rel=0.15)


def test_signs_of_the_changes() -> None:
    config = coarse(modalities=("T1w", "T2w", "FLAIR"))
    signs = {"wmh": (-1, 1, 1), "infarct": (-1, 1, 1), "tumour": (-1, 1, 1), "bleed": (1, -1, -1)}
    for kind, wanted in signs.items():
        phantom = make_subject(config, 3, kind, noise=False)
        inside = phantom.fraction > 0.9
        for modality, sign in zip(config.modalities, wanted, strict=True):
            assert sign * difference(phantom, modality)[inside].mean() > 0, (kind, modality)


def test_tumour_has_a_core_and_moves_tissue_not_the_brain() -> None:
    config = coarse()
    with_mass = make_subject(config, 7, "tumour", noise=False)
    row = with_mass.properties["lesions"][0]
    assert 0 < row["core_volume_mm3"] < row["volume_mm3"]
    assert row["mass_effect_mm"] > 1
    outside = difference(with_mass)[with_mass.fraction == 0]
    assert np.abs(outside).max() > 0.02
    np.testing.assert_array_equal(with_mass.brain, Subject(config, 7).render().brain)


def test_mass_effect_under_the_skull_never_folds() -> None:
    from normscan.phantom.deform import jacobian

    subject = Subject(coarse(mass_effect=0.9), 9, "tumour")
    assert subject.lesion is not None and subject.lesion.mass is not None
    mass = subject.lesion.mass
    axis = np.arange(-60.0, 61.0, 2.5)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    points = grid.reshape(3, -1).T + mass.centre
    moves = (mass(points) - points).T.reshape(grid.shape)
    assert jacobian(moves, 2.5).min() > 0
    outside = ~subject.anatomy.inside(points)
    assert np.abs(moves.reshape(3, -1)[:, outside]).max() < 0.5


def test_hyperintensities_lie_in_white_matter_near_the_ventricles() -> None:
    near = []
    for index in range(4):
        subject = Subject(coarse(heights=(5.0, 25.0)), index, "wmh")
        assert subject.lesion is not None
        middle = np.array([part.shape.middle for part in subject.lesion.parts])
        near += list(subject.anatomy.ventricle_distance(middle))
    assert np.median(near) < 12


@pytest.mark.parametrize("kind", KINDS)
def test_every_slice_shows_the_lesion(kind: str) -> None:
    subject = Subject(coarse(slices=3, slice_gap=2.0, diameter=(16.0, 20.0)), 0, kind)
    heights = [grid.affine[2, 3] for grid in subject.grids]
    np.testing.assert_allclose(np.diff(heights), 2.0)
    for part in range(3):
        assert subject.render(part).properties["lesion_size"] >= 10.0


def test_height_is_no_giveaway() -> None:
    config = coarse()
    for index in range(3):
        healthy, lesioned = Subject(config, index), Subject(config, index, "bleed")
        assert healthy.grids[0].affine[2, 3] == lesioned.grids[0].affine[2, 3]


def test_an_impossible_lesion_is_refused() -> None:
    with pytest.raises(ArgumentError, match="No place for a bleed"):
        Subject(coarse(spacing=4.0, diameter=(3.0, 3.0), min_area=500.0), 0, "bleed")
    with pytest.raises(ArgumentError, match="Did you mean 'tumour'"):
        make_subject(coarse(), 0, "tumor")
