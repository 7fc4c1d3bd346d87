"""The experiments on the residual, against scikit-learn and a slow loop."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.exposure import equalize_hist
from sklearn.metrics import average_precision_score

from normscan.cli.diagnostics import pitfalls
from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.diagnostics import average_precision, equalized, residual_landscape
from normscan.diagnostics.images import healthy_images
from normscan.diagnostics.landscape import _changed
from normscan.errors import ArgumentError, CohortError, OutputError


def brains(rng, n=2, size=40):
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    inside = np.repeat(((x**2 + y**2) < 0.8)[None], n, axis=0)
    noise = gaussian_filter(rng.normal(size=(n, size, size)), (0, 1.5, 1.5))
    return np.clip(0.5 + 0.5 * noise, 0.05, 1) * inside, inside


def test_average_precision_against_scikit_learn(rng):
    inside = rng.normal(0.5, 1, (4, 60)).round(1)  # rounded: many ties
    inside[3] = 0.0
    outside = np.sort(rng.normal(0, 1, 300).round(1))
    labels = np.r_[np.ones(60), np.zeros(300)]
    expected = [average_precision_score(labels, np.r_[row, outside]) for row in inside]
    np.testing.assert_allclose(average_precision(inside, outside), expected, rtol=1e-12)


def test_landscape_against_a_loop_over_cells(rng):
    images, inside = brains(rng)
    levels, blurs = [0.0, 0.5, 0.9], [0.0, 1.0, 2.5]
    found = residual_landscape(images, inside, intensities=levels, blurs=blurs, radius=6)
    changes = [_changed(x, m, 6, 0, i) for i, (x, m) in enumerate(zip(images, inside, strict=True))]

    def slow(changed_image, mask, soft):
        return average_precision_score(mask.ravel(), np.abs(soft - changed_image).ravel())

    for k, blur in enumerate(blurs):
        softs = [gaussian_filter(x, blur) for x in images]
        for j, level in enumerate(levels):
            cells = [
                slow(np.where(c.mask, level, x), c.mask, soft)
                for x, c, soft in zip(images, changes, softs, strict=True)
            ]
            assert found.disks[j, k] == pytest.approx(np.mean(cells), abs=1e-12)
        for name in found.textures:
            cells = [slow(c.textures[name], c.mask, s) for c, s in zip(changes, softs, strict=True)]
            assert found.textures[name][k] == pytest.approx(np.mean(cells), abs=1e-12)
        errors = [np.abs(s - x).mean() for s, x in zip(softs, images, strict=True)]
        assert found.errors[k] == pytest.approx(np.mean(errors))
    assert found.prevalence == pytest.approx(np.mean([c.mask.mean() for c in changes]))
    assert found.disks[1, 2] < found.disks[2, 2]  # an intensity of healthy tissue hides


def test_places_do_not_depend_on_the_grid_or_on_other_images(rng):
    images, inside = brains(rng)
    wide = residual_landscape(images, inside, intensities=[0.2, 0.8], blurs=[1.0, 2.0], radius=5)
    narrow = residual_landscape(images, inside, intensities=[0.8], blurs=[2.0], radius=5)
    assert wide.disks[1, 1] == narrow.disks[0, 0]
    other = residual_landscape(images, inside, intensities=[0.8], blurs=[2.0], radius=5, seed=1)
    assert other.disks[0, 0] != narrow.disks[0, 0]


def test_a_restoration_that_blurs_is_the_blur(rng):
    """Experiment 3 with a blur as the detector gives the cells of experiment 1 and 2."""
    images, inside = brains(rng)
    found = residual_landscape(
        images, inside, intensities=[0.1, 0.6], blurs=[1.5], radius=6,
        restore=lambda x, _: np.stack([gaussian_filter(v, 1.5) for v in x]),
    )  # fmt: skip
    np.testing.assert_allclose(found.restored["disks_normal"], found.disks[:, 0])
    assert found.restored["error"] == pytest.approx(found.errors[0])
    for name, values in found.textures.items():
        assert found.restored[name][0] == pytest.approx(values[0])
    perfect = residual_landscape(
        images, inside, intensities=[0.1], blurs=[1.0], radius=6, restore=lambda x, _: x
    )
    # What restores the anomaly too leaves nothing: all pixels tie, the AP is the prevalence.
    assert perfect.restored["disks_anomalous"][0] == pytest.approx(perfect.prevalence)
    assert perfect.restored["shuffle"][1] == pytest.approx(perfect.prevalence)


def test_volumes(rng):
    volume = rng.uniform(0.2, 0.8, (1, 12, 10, 14))
    found = residual_landscape(volume, intensities=[0.5, 2.0], blurs=[0.5], radius=3)
    assert found.disks[1, 0] > 0.95 > found.disks[0, 0]


def test_equalisation_against_scikit_image(rng):
    images, inside = brains(rng)
    got = equalized(images, inside)
    for x, m, y in zip(images, inside, got, strict=True):
        np.testing.assert_allclose(y[m], equalize_hist(x[m], nbins=256), atol=1e-6)
        assert (y[~m] == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.ones((4, 4))}, "shape"),
        ({"foregrounds": np.ones((1, 4, 5), bool)}, "shape"),
        ({"foregrounds": np.zeros((1, 8, 8), bool)}, "foreground"),
        ({"images": np.full((1, 8, 8), np.nan)}, "finite"),
        ({"intensities": []}, "intensities"),
        ({"intensities": [np.nan]}, "intensities"),
        ({"blurs": [-1.0]}, "blurs"),
        ({"radius": 0}, "radius"),
        ({"radius": float("nan")}, "radius"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ArgumentError, match=message):
        residual_landscape(**{"images": np.ones((1, 8, 8)), **change})


# --- the command


def test_command_writes_tables_picture_and_values(toy, tmp_path, capsys):
    pitfalls(str(toy()), str(tmp_path / "a"), size=48, images=3, intensities=5, blurs=3, radius=40)
    values = json.loads((tmp_path / "a" / "pitfalls.json").read_text())
    text = (tmp_path / "a" / "pitfalls.md").read_text()
    assert set(values["landscapes"]) == {"scaled", "equalised"}
    scaled = values["landscapes"]["scaled"]
    assert np.shape(scaled["disks"]) == (5, 3) and scaled["images"] == 3
    assert scaled["blurs"][-1] == pytest.approx(5 * 48 / 256)
    worst = np.min(np.array(scaled["disks"])[:, -1])
    assert f"{worst:.3f}" in text
    assert (tmp_path / "a" / "pitfalls.png").read_bytes()[:4] == b"\x89PNG"
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        "pitfalls.json", "pitfalls.md", "pitfalls.png",
    }  # fmt: skip
    assert "AP" in capsys.readouterr().out


@pytest.fixture
def run(toy, tmp_path):
    Detector("mean_image", preset="tiny", size=32, gate=False).fit(toy(), tmp_path / "run")
    return tmp_path / "run"


def test_command_with_a_detector(toy, run, tmp_path):
    pitfalls(
        str(toy()), str(tmp_path / "b"), run=str(run), images=2, intensities=3, blurs=2, radius=40,
        device="cpu",
    )  # fmt: skip
    values = json.loads((tmp_path / "b" / "pitfalls.json").read_text())["landscapes"]["scaled"]
    # The mean image doesn't look at the image: with and without the disk it is the same.
    restored = values["restored"]
    assert restored["disks_normal"] == restored["disks_anomalous"]
    assert restored["error"] > 0
    assert "mean_image" in (tmp_path / "b" / "pitfalls.md").read_text()


def test_command_refuses(toy, tmp_path):
    with pytest.raises(ArgumentError, match="images is 0"):
        pitfalls(str(toy()), str(tmp_path / "c"), images=0)
    with pytest.raises(ArgumentError, match="largest_blur"):
        pitfalls(str(toy()), str(tmp_path / "c"), largest_blur=float("nan"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        pitfalls(str(toy()), str(tmp_path / "file"))
    cohort = Cohort.read(toy())
    with pytest.raises(CohortError, match="healthy"):
        healthy_images(cohort.select([r.label == 1 for r in cohort]), 3, 32)


def test_images_are_of_different_subjects_first(toy):
    cohort = Cohort.read(toy(3))
    images, inside, failures = healthy_images(cohort.part("train"), 5, 32)
    assert images.shape == inside.shape == (5, 32, 32) and not failures
    assert images.min() >= 0 and images.max() <= 1
    assert len({image.tobytes() for image in images}) == 5
