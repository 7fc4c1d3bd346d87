"""Simulated B-scans: layers in order, boundaries that say where they are, lesions that change them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normscan.cohort import Cohort
from normscan.errors import ArgumentError
from normscan.phantom import PhantomConfig, simulate
from normscan.phantom.config import RETINA_KINDS
from normscan.phantom.retina import BRIGHTNESS, CHOROID, DEPTH, LAYERS, make_retina

CONFIG = PhantomConfig(anatomy="retina")


@pytest.mark.parametrize("index", range(6))
def test_boundaries_are_ordered_and_labels_change_there(index: int) -> None:
    retina = make_retina(CONFIG, index)
    assert retina.boundaries.shape == (len(LAYERS) + 1, 128)
    assert (np.diff(retina.boundaries, axis=0) > 0).all()
    assert retina.boundaries.min() > 0 and retina.boundaries.max() < DEPTH
    middle = (np.arange(128) + 0.5) / 128 * DEPTH
    for column in (0, 50, 127):
        expected = np.searchsorted(retina.boundaries[:, column], middle, side="right")
        np.testing.assert_array_equal(retina.layers[:, column], expected)
    assert not retina.mask.any() and np.array_equal(retina.image, retina.healthy_twin)


def test_layers_have_their_brightness() -> None:
    retinas = [make_retina(CONFIG, index) for index in range(20)]
    for label in range(1, CHOROID):
        seen = np.mean([r.image[r.layers == label].mean() for r in retinas])
        assert seen == pytest.approx(BRIGHTNESS[label], rel=0.1)


@pytest.mark.parametrize("kind", RETINA_KINDS)
def test_a_lesion_changes_the_image_in_its_mask(kind: str) -> None:
    for index in range(6):
        retina = make_retina(CONFIG, index, kind)
        change = np.abs(retina.image - retina.healthy_twin)
        assert 10 < retina.mask.sum() < 0.2 * retina.mask.size
        assert change[retina.mask].mean() > 5 * change[~retina.mask].mean()
        assert (np.diff(retina.boundaries, axis=0) > 0).all()
    none = make_retina(PhantomConfig(anatomy="retina", contrast=0.0), 0, kind)
    np.testing.assert_array_equal(none.image, none.healthy_twin)
    assert not none.mask.any()


def test_the_folder_is_a_cohort_with_structures(tmp_path: Path) -> None:
    table = simulate(tmp_path / "retina", healthy=4, lesioned=3, anatomy="retina")
    cohort = Cohort.read(table)
    assert [row.columns["kind"] for row in cohort][4:] == ["fluid", "atrophy", "drusen"]
    assert all("structures" in row.companions for row in cohort)
    labels = np.array(Image.open(table.parent / "structures" / "sub-001.png"))
    np.testing.assert_array_equal(labels, make_retina(CONFIG, 0).layers)
    with (table.parent / "sub-001_boundaries.csv").open() as file:
        first = [float(row["column0"]) for row in csv.DictReader(file)]
    assert all(labels[int(np.ceil(row)), 0] == i + 1 for i, row in enumerate(first))
    again = simulate(tmp_path / "again", healthy=4, lesioned=3, anatomy="retina")
    for path in table.parent.rglob("*.png"):
        other = again.parent / path.relative_to(table.parent)
        assert path.read_bytes() == other.read_bytes()


def test_settings_of_brains_are_refused() -> None:
    for options, message in (
        ({"slices": 3}, "slices"),
        ({"kinds": ("tumour",)}, "tumour"),
        ({"size": (20, 20)}, "size"),
        ({"noise": 0.0}, "noise"),
    ):
        with pytest.raises(ArgumentError, match=message):
            PhantomConfig(anatomy="retina", **options)
    with pytest.raises(ArgumentError, match="anatomy"):
        PhantomConfig(anatomy="heart")
