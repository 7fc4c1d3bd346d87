"""Archives of many images (MedMNIST): one image by its address, and the whole as a cohort."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from normscan.cohort import Cohort
from normscan.errors import CohortError, ScanError
from normscan.io import content_hash, probe, read_scan


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMSCAN_CACHE", str(tmp_path / "cache"))


def archive(path, rng, item=(28, 28), packed=True, labels=1):
    made = {}
    for split, count in (("train", 8), ("val", 3), ("test", 5)):
        made[f"{split}_images"] = rng.integers(0, 255, (count, *item)).astype(np.uint8)
        made[f"{split}_labels"] = rng.integers(0, 2, (count, labels)).astype(np.uint8)
    (np.savez_compressed if packed else np.savez)(path, **made)
    return made


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("item", [(28, 28), (28, 28, 3), (12, 13, 14)])
def test_one_image_of_many(tmp_path, rng, item, packed):
    path = tmp_path / "pneumoniamnist.npz"
    made = archive(path, rng, item, packed)
    for split, index in (("train", 0), ("train", 7), ("val", 2), ("test", 4)):
        address = f"{path}#{split}_images={index}"
        scan, header = read_scan(address), probe(address)
        expected = made[f"{split}_images"][index]
        expected = np.moveaxis(expected, -1, 0) if item[-1] == 3 else expected[None]
        np.testing.assert_array_equal(scan.data, expected)
        assert (header.shape, header.channels, header.dtype) == (
            scan.shape, len(scan.channels), "uint8",
        )  # fmt: skip
    if len(item) == 3 and item[-1] != 3:
        cut = read_scan(f"{path}#test_images=1&slice=3&axis=0")
        np.testing.assert_array_equal(cut.data[0], made["test_images"][1, 3])
    assert content_hash(f"{path}#val_images=0") != content_hash(f"{path}#val_images=1")
    for bad, says in (
        ("#train_images=8", "has no image 8; it has 0 to 7"),
        ("#train_images=0&val_images=0", "name two images"),
        ("", "Choose one of its images, for example by #train_images=0"),
    ):
        for attempt in (read_scan, probe):
            with pytest.raises(ScanError, match=says):
                attempt(f"{path}{bad}")


def test_a_replaced_archive_is_read_anew(tmp_path, rng):
    path = tmp_path / "a.npz"
    for _ in range(2):
        made = archive(path, rng)
        scan = read_scan(f"{path}#train_images=3")
        np.testing.assert_array_equal(scan.data[0], made["train_images"][3])


def test_a_cohort(tmp_path, rng):
    made = archive(tmp_path / "pneumoniamnist_28.npz", rng)
    cohort = Cohort.read(tmp_path / "pneumoniamnist_28.npz")
    assert len(cohort) == 16
    labels = np.concatenate([made[f"{s}_labels"].ravel() for s in ("train", "val", "test")])
    assert [row.label for row in cohort] == labels.tolist()
    splits = [row.split for row in cohort]
    expected = ["extra" if v else "train" for v in made["train_labels"].ravel()]
    assert splits[:8] == expected and splits[11:] == ["test"] * 5
    np.testing.assert_array_equal(cohort[9].load().data[0], made["val_images"][1])
    assert len({row.scan for row in cohort}) == 16
    assert any("Class 0 of pneumoniamnist" in note for note in cohort.notes)
    table = cohort.write(tmp_path / "table.csv")
    np.testing.assert_array_equal(Cohort.read(table)[9].load().data, cohort[9].load().data)


def test_classes_that_nobody_calls_healthy(tmp_path, rng):
    archive(tmp_path / "other.npz", rng, labels=3)
    cohort = Cohort.read(tmp_path / "other.npz")
    assert {row.label for row in cohort} == {None}
    assert all(len(row.columns["class"].split()) == 3 for row in cohort)
    assert any("Which class is healthy isn't known" in note for note in cohort.notes)
    archive(tmp_path / "chestmnist.npz", rng, labels=14)
    for row in Cohort.read(tmp_path / "chestmnist.npz"):
        assert row.label == int("1" in row.columns["class"])


def test_archives_that_are_none(tmp_path, rng):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(CohortError, match="holds no train_images"):
        Cohort.read(tmp_path / "a.npz")
    made = archive(tmp_path / "b.npz", rng)
    np.savez(tmp_path / "b.npz", **{**made, "val_labels": np.zeros((2, 1))})
    with pytest.raises(CohortError, match="2 labels for 3 images in val"):
        Cohort.read(tmp_path / "b.npz")
    # Objects are never loaded, and a size that the file can't hold is refused.
    np.savez(tmp_path / "c.npz", train_images=np.array([{}, {}], dtype=object))
    with pytest.raises(ScanError, match="pickle"):
        read_scan(f"{tmp_path / 'c.npz'}#train_images=0")
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 100, 100)}
    )
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as file:
        file.writestr("train_images.npy", head.getvalue())
    with pytest.raises(ScanError, match="declares 10000000000 bytes"):
        read_scan(f"{tmp_path / 'd.npz'}#train_images=0")
