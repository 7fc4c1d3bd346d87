"""Folder layouts, as their data sets are published, built here as trees of small pictures."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normscan.cohort import Cohort
from normscan.errors import CohortError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real data are not at {SHARED}")


def tree(folder: Path, *names: str) -> Path:
    """Make a different picture for each name; ``{3}`` at its end makes three."""
    seed = 0
    for name in names:
        base, _, count = name.partition("*")
        for n in range(int(count or 1)):
            path = folder / (base.format(n) if count else base)
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(seed).integers(0, 256, (5, 6)).astype(np.uint8)
            Image.fromarray(pixels).save(path)
            seed += 1
    return folder


def facts(cohort: Cohort) -> dict[str, tuple[int | None, str, str]]:
    """Map each relative path to its label, split and relative mask."""
    return {
        row.paths[0].relative_to(cohort.root).as_posix(): (
            row.label,
            row.split,
            row.mask.relative_to(cohort.root).as_posix() if row.mask else "",
        )
        for row in cohort
    }


@pytest.mark.parametrize(
    ("healthy", "sick"),
    [("no", "yes"), ("Normal", "ABNORMAL"), ("healthy", "anomaly"), ("good", "bad"),
     ("NORMAL", "PNEUMONIA")],
)  # fmt: skip
def test_two_folders(tmp_path: Path, healthy: str, sick: str) -> None:
    tree(tmp_path, f"{healthy}/{{}}.png*10", f"{sick}/{{}}.jpg*4")
    (tmp_path / healthy / ".hidden.png").write_bytes(b"")
    (tmp_path / healthy / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "README.md").write_text("about")
    cohort = Cohort.read(tmp_path)
    assert len(cohort) == 14
    assert [len(cohort.part(p)) for p in ("train", "val", "test")] == [7, 1, 6]
    assert sum(row.label == 1 for row in cohort) == 4
    assert ("Taken as anomalous" in " ".join(cohort.notes)) == (sick == "PNEUMONIA")
    assert len({row.scan for row in cohort}) == 14


def test_split_folders_above_classes(tmp_path: Path) -> None:
    tree(tmp_path, "train/NORMAL/a{}.png*3", "Valid/NORMAL/b.png", "test/NORMAL/c.png",
         "test/PNEUMONIA/d.png", "test/COVID/e.png", "train/PNEUMONIA/f.png")  # fmt: skip
    cohort = Cohort.read(tmp_path)
    found = facts(cohort)
    assert found["train/NORMAL/a0.png"] == (0, "train", "")
    assert found["Valid/NORMAL/b.png"] == (0, "val", "")
    assert found["test/NORMAL/c.png"] == (0, "test", "")
    assert found["test/COVID/e.png"] == (1, "test", "")
    assert found["train/PNEUMONIA/f.png"] == (1, "extra", "")
    assert {r.columns["defect"] for r in cohort} == {"", "PNEUMONIA", "COVID"}


def test_mvtec(tmp_path: Path) -> None:
    tree(tmp_path, "train/good/00{}.png*8", "test/good/000.png", "test/crack/000.png",
         "test/cut/000.png", "ground_truth/crack/000_mask.png",
         "ground_truth/cut/000_mask.png")  # fmt: skip
    cohort = Cohort.read(tmp_path)
    found = facts(cohort)
    assert len(found) == 11
    assert found["test/crack/000.png"] == (1, "test", "ground_truth/crack/000_mask.png")
    assert found["test/cut/000.png"] == (1, "test", "ground_truth/cut/000_mask.png")
    assert found["test/good/000.png"] == (0, "test", "")
    assert sum(split == "val" for _, split, _ in found.values()) == 1
    defects = {r.paths[0].parent.name: r.columns["defect"] for r in cohort}
    assert defects == {"good": "", "crack": "crack", "cut": "cut"}
    assert cohort.has_masks


def test_bmad(tmp_path: Path) -> None:
    tree(tmp_path, "train/good/{}.png*3", "valid/good/img/v.png", "valid/good/label/v.png",
         "valid/Ungood/img/w.png", "valid/Ungood/label/w.png", "test/good/img/a.png",
         "test/good/label/a.png", "test/Ungood/img/a.png", "test/Ungood/label/a.png")  # fmt: skip
    found = facts(Cohort.read(tmp_path))
    assert len(found) == 7
    assert found["test/Ungood/img/a.png"] == (1, "test", "test/Ungood/label/a.png")
    assert found["test/good/img/a.png"] == (0, "test", "test/good/label/a.png")
    assert found["valid/Ungood/img/w.png"][:2] == (1, "extra")
    assert found["valid/good/img/v.png"][:2] == (0, "val")


@pytest.mark.parametrize("mask", ["yes/t1_mask.png", "masks/t1.png", "yes/masks/t1.png",
                                  "masks/yes/t1_mask.png", "mask/T1_MASK.png"])  # fmt: skip
def test_masks_are_found_and_never_images(tmp_path: Path, mask: str) -> None:
    tree(tmp_path, "no/{}.png*4", "yes/t1.png", "yes/t2.png", mask)
    found = facts(Cohort.read(tmp_path))
    assert len(found) == 6
    assert found["yes/t1.png"] == (1, "test", mask)
    assert found["yes/t2.png"] == (1, "test", "")


def test_masks_without_an_image_are_counted(tmp_path: Path) -> None:
    tree(tmp_path, "no/{}.png*4", "yes/a.png", "masks/a.png", "masks/other.png")
    assert any(
        note.startswith("1 masks belong to no image") for note in Cohort.read(tmp_path).notes
    )


def test_bids_subjects_stay_together(tmp_path: Path) -> None:
    names = [f"healthy/sub-{s:02}_ses-{n}_T1w.png" for s in range(8) for n in range(3)]
    cohort = Cohort.read(tree(tmp_path, *names, "anomaly/sub-99_ses-1_T1w.png"))
    places: dict[str, set[str]] = {}
    for row in cohort:
        places.setdefault(row.subject, set()).add(row.split)
    assert len(places) == 9
    assert all(len(p) == 1 for p in places.values())


def test_a_table_in_the_folder_or_beside_it_comes_first(tmp_path: Path) -> None:
    folder = tree(tmp_path / "set", "no/{}.png*3", "yes/a.png")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "set.csv").write_text("path,label,split\nset/no/1.png,0,train\n")
    published = Cohort.read(folder)
    assert len(published) == 1
    assert "fixed split of splits/set.csv" in str(published.summary())
    (folder / "cohort.csv").write_text("path,label\nno/0.png,0\nyes/a.png,1\n")
    assert len(Cohort.read(folder)) == 2


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a/x.png", "b/y.png"], r"layout isn't known\. Found: a, b\. Known: no/ yes/"),
        (["x.png", "y.png"], "images at the top"),
        (["no/x.png", "stray.png"], "images at the top"),
        (["train/x.png", "test/good/y.png"], "Found: test/good, train"),
        (["normal/x.png", "abnormal/y.png", "other/z.png"], "Found: abnormal, normal, other"),
        (["yes/x.png"], "Found: yes"),
    ],
)
def test_unknown_layouts(tmp_path: Path, names: list[str], says: str) -> None:
    with pytest.raises(CohortError, match=says) as caught:
        Cohort.read(tree(tmp_path, *names))
    assert "columns path, label" in str(caught.value)


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CohortError, match=r"holds no images.*notes\.txt"):
        Cohort.read(tmp_path)


def test_link_loops_end(tmp_path: Path) -> None:
    tree(tmp_path, "no/{}.png*3", "yes/a.png")
    os.symlink(tmp_path, tmp_path / "no" / "loop")
    assert len(Cohort.read(tmp_path)) == 4


@needs_data
def test_real_layout_without_the_table_beside_it(tmp_path: Path) -> None:
    for name in ("brain_mri_kaggle", "chest_xray_kermany_224"):
        os.symlink(SHARED / name, tmp_path / name)
    brain = Cohort.read(tmp_path / "brain_mri_kaggle")
    assert [sum(r.label == v for r in brain) for v in (0, 1)] == [98, 155]
    # The README of the set counts 22 groups of exact copies, none across the classes.
    copies = brain.summary().duplicates
    assert (copies["groups"], copies["crossing_labels"], copies["crossing_splits"]) == (22, [], [])
    chest = Cohort.read(tmp_path / "chest_xray_kermany_224")
    assert len(chest.part("train")) + len(chest.part("val")) == 1341
    assert sum(r.label == 1 for r in chest.part("test")) == 390
