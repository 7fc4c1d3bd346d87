"""Label maps of the anatomy: read as whole numbers, brought onto the working grid as such."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.support.regimes import registered
from tests.toy import toy_scan

from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.errors import CohortError, ScanError
from normscan.io import write_map
from normscan.io.read import read_labels
from normscan.preprocess.cohort import prepare_cohort
from normscan.preprocess.grid import Grid
from normscan.preprocess.pipeline import Preprocess
from normscan.rng import Rng
from normscan.scan import Scan
from normscan.training.data import PreparedSet

OPTIONS = {"preprocess": {"scaling": "none", "crop": "none", "size": 44}, "gate": False}


@pytest.fixture(scope="module", autouse=True)
def toys():
    with registered():
        yield


def structures_of(image: np.ndarray) -> np.ndarray:
    """0 background, 1 dark, 2 bright tissue, by their greys."""
    return ((image > 0.15).astype(int) + (image > 0.55)).astype(np.int16)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("anatomy")
    rng, rows = np.random.default_rng(5), []
    for split, count in {"train": 8, "val": 3, "test": 2}.items():
        for i in range(count):
            image = toy_scan(rng, 2, 1, False)[0][0]
            np.save(folder / f"{split}{i}.npy", image)
            np.save(folder / f"{split}{i}_labels.npy", structures_of(image))
            row = {"path": f"{split}{i}.npy", "label": 0, "split": split}
            rows.append(row | {"structures": f"{split}{i}_labels.npy"})
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


# ---------------------------------------------------------------- reading


def scan_of(shape: tuple[int, ...]) -> Scan:
    return Scan.from_array(np.random.default_rng(0).uniform(size=shape).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_labels_are_whole_numbers(dtype, tmp_path):
    labels = np.zeros((6, 5), dtype)
    labels[1:3], labels[4] = 2, 200
    np.save(tmp_path / "a.npy", labels)
    read = read_labels(tmp_path / "a.npy", scan_of((6, 5)))
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, labels)


def test_labels_of_freesurfer_as_nifti(tmp_path):
    scan = scan_of((6, 5, 4))
    labels = np.zeros(scan.shape, np.float32)
    labels[2, 2], labels[3] = 17, 2035
    write_map(tmp_path / "aparc.nii.gz", labels, scan)
    np.testing.assert_array_equal(read_labels(tmp_path / "aparc.nii.gz", scan), labels)


def test_a_palette_counts_by_its_index(tmp_path):
    image = Image.fromarray(np.repeat([[0, 1, 2]], 4, 0).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "p.png")
    found = read_labels(tmp_path / "p.png", scan_of((4, 3)))
    np.testing.assert_array_equal(found, np.repeat([[0, 1, 2]], 4, 0))


def test_what_is_no_label_map(tmp_path, rng):
    scan = scan_of((6, 5))
    np.save(tmp_path / "soft.npy", rng.uniform(0, 3, (6, 5)))
    np.save(tmp_path / "below.npy", np.full((6, 5), -1))
    colours = rng.integers(0, 255, (6, 5, 3)).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "colours.png")
    Image.fromarray(colours[..., 0]).save(tmp_path / "lossy.jpg")
    for name in ("soft.npy", "below.npy", "colours.png", "lossy.jpg"):
        with pytest.raises(ScanError, match="is no label map"):
            read_labels(tmp_path / name, scan)
    with pytest.raises(ScanError, match="Give the mask on the grid of the scan"):
        read_labels(tmp_path / "soft.npy", scan_of((7, 5)))


# ---------------------------------------------------------------- geometry


@pytest.mark.parametrize("dims", [2, 3])
def test_labels_go_where_their_scan_goes(dims, rng):
    """Blocks of voxels whose grey is their label come out as the image rounded, off the borders."""
    affine = np.array([[0, -2.0, 0, 10], [1.0, 0, 0, -5], [0, 0, 3.0, 2], [0, 0, 0, 1]])
    labels = np.kron(rng.integers(1, 3, (4, 4, 3)), np.ones((6, 6, 4), int))
    scan = Scan(labels[None].astype(np.float32), affine, ("image",))
    detector = Detector("toy_anatomy", dims=dims, preprocess={"scaling": "none", "size": 48})
    preparation = replace(detector.preparation(), channels=("image",))
    prepared = preparation.of(scan, np.ones(scan.shape, bool), {"structures": labels[None]})
    found = prepared.companions["structures"]
    assert found.dtype == np.int32 and set(np.unique(found)) <= {0, 1, 2}
    flat = (np.abs(prepared.image - np.round(prepared.image)) < 1e-3) & prepared.foreground
    assert flat.mean() > 0.05
    np.testing.assert_array_equal(found[flat], np.round(prepared.image[flat]))


def test_nearest_by_hand():
    grid = Grid((1, 0), (0.2, 4.0), (1.5, -2.0), (4, 3), (5, 6))
    labels = np.arange(30).reshape(1, 5, 6)
    # Places 0.2, 1.7, 3.2, 4.7 of the second axis, 4, 2, 0 of the first.
    np.testing.assert_array_equal(grid.nearest(labels)[0], labels[0][[4, 2, 0]][:, [0, 2, 3, 5]].T)
    beyond = Grid((0, 1), (-1.0, 0.0), (1.0, 1.0), (7, 6), (5, 6)).nearest(labels + 1)[0]
    assert not beyond[[0, 6]].any() and (beyond[1:6] == labels[0] + 1).all()


# ---------------------------------------------------------------- end to end


def test_fit_save_load_predict(table, tmp_path):
    cohort = Cohort.read(table)
    detector = Detector("toy_anatomy", **OPTIONS).fit(cohort, tmp_path / "run")
    images = np.concatenate([row.load().data.ravel() for row in cohort.part("train")])
    labels = structures_of(images)
    means = detector.method.means.numpy()
    by_hand = [images[labels == k].mean() for k in range(3)]
    np.testing.assert_allclose(means[1:], by_hand[1:], atol=0.02)
    loaded = load(tmp_path / "run", "cpu")
    (_, told), *_ = loaded.predict_cohort(cohort.part("test"))
    row = cohort.part("test")[0]
    given = loaded.predict(row.load(), companions={"structures": row.structures})
    np.testing.assert_array_equal(told.map, given.map)
    guessed = loaded.predict(row.load())
    assert (guessed.map <= given.map + 1e-6).all() and (guessed.map < given.map).any()
    assert "structures" not in row.columns


def test_in_a_batch(table, tmp_path):
    """Whole numbers on the grid of the image, cut into the same patches, flipped along."""
    cohort = Cohort.read(table)
    detector = Detector("toy_anatomy", wrappers=["flips=12"], **OPTIONS).fit(cohort)
    prepare = replace(detector.preparation(), companions=("structures",))
    data = PreparedSet.create(tmp_path / "set", list(cohort.part("train")), prepare,
                              prepare.slices, patch=16)  # fmt: skip
    batch = data.batch([0, 3, 5], Rng(0))
    assert batch.structures.shape == (3, 1, 16, 16)
    values = batch.image.numpy()
    off = np.abs(values - 0.15) + np.abs(values - 0.55) > 0.6  # far from both borders
    np.testing.assert_array_equal(
        batch.structures.numpy()[off], structures_of(values)[off].astype(np.int32)
    )
    row = cohort.part("test")[0]
    flipped = detector.predict(row.load(), companions={"structures": row.structures})
    plain = Detector("toy_anatomy", **OPTIONS).fit(cohort)
    np.testing.assert_allclose(
        flipped.map, plain.predict(row.load(), companions={"structures": row.structures}).map,
        atol=1e-6,
    )  # fmt: skip


def test_structures_of_an_auxiliary_cohort(table, toy):
    """The main cohort has none: only the part that is named must have them."""
    main = Cohort.read(toy(2))
    detector = Detector("toy_segmenter", **OPTIONS).fit(main, auxiliary=table)
    image = main.part("test")[0].load().data
    named = detector.method.network(torch.from_numpy(image)[None]).argmax(1)[0].numpy()
    assert (named == structures_of(image[0])).mean() > 0.95
    with pytest.raises(CohortError, match=r"learns from the structures of auxiliary scans"):
        Detector("toy_segmenter", **OPTIONS).fit(main, auxiliary=main.part("train"))
    with pytest.raises(CohortError, match=r"learns from the structures of healthy scans"):
        Detector("toy_anatomy", **OPTIONS).fit(main)


def test_slices_and_preparation_take_them_along(tmp_path):
    rng, folder = np.random.default_rng(2), tmp_path
    image = toy_scan(rng, 3, 1, False)[0][0]
    scan = Scan.from_array(image)
    write_map(folder / "a.nii.gz", image, scan)
    write_map(folder / "a_labels.nii.gz", structures_of(image).astype(np.uint8), scan)
    table = pd.DataFrame({"path": ["a.nii.gz"], "label": [0], "split": ["train"],
                          "structures": ["a_labels.nii.gz"]})  # fmt: skip
    cohort = Cohort.from_table(table, folder, fractions=(1, 0, 0))
    one = cohort.slices(10, 11)[0]
    np.testing.assert_array_equal(
        one.load_companion("structures", one.load())[0], structures_of(image)[..., 10]
    )
    done = prepare_cohort(
        cohort, Preprocess(steps=({"resample": {"spacing": 2.0}},)), folder / "out", cache=False
    )
    (row,) = Cohort.read(done.table, fractions=(1, 0, 0))
    found = row.load_companion("structures", row.load())[0]
    grey = row.load().data[0]
    clear = (np.abs(grey - 0.15) > 0.1) & (np.abs(grey - 0.55) > 0.1)
    assert (found == structures_of(grey))[clear].mean() > 0.97
