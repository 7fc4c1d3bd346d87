"""Each recipe against a tiny tree of its layout, listed in tests/datasets/*.toml.

A table there has the id of the data set and: ``tree`` (names of files, which are made by their
extension), ``tables`` (name to text), ``split`` (optional), ``rows`` (what must come out: ``path`` or
``path_<channel>``, ``label`` (absent: unknown), ``mask`` (one name, or a list whose union is
written), ``subject``, ``split`` and any free column; a column that isn't named isn't compared), and
``notes`` (texts that must stand in the notes). Only the rows listed may come out.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from normscan import datasets
from normscan.errors import ArgumentError
from normscan.io import read_mask, read_scan

TREES = {
    (file.stem, id): case
    for file in sorted((Path(__file__).parents[1] / "datasets").glob("*.toml"))
    for id, case in tomllib.loads(file.read_text("utf-8")).items()
}


def make(path: Path, rng: np.random.Generator) -> None:
    """Write a tiny file that its extension promises, each with content of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        import nibabel

        data = rng.integers(0, 5, (4, 4, 4)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), path)
    elif name.endswith((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")):
        from PIL import Image

        data = rng.integers(0, 2, (8, 8)).astype(np.uint8) * 255
        kind = "PNG" if name.endswith((".jpg", ".jpeg")) else None  # lossless, and read by content
        Image.fromarray(data).save(path, format=kind)
    elif name.endswith((".nhdr", ".mha", ".mhd")):
        import SimpleITK

        image = SimpleITK.GetImageFromArray(rng.integers(0, 5, (4, 4, 4)).astype(np.int16))
        SimpleITK.WriteImage(image, str(path))
    elif name.endswith(".h5"):
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["reconstruction_rss"] = rng.random((5, 8, 8)).astype(np.float32)
    elif name.endswith(".npy"):
        np.save(path, rng.random((8, 8)).astype(np.float32))
    else:
        path.write_bytes(rng.bytes(64))


@pytest.mark.parametrize(("section", "id"), TREES, ids=[id for _, id in TREES])
def test_recipe_reads_its_layout(section: str, id: str, tmp_path: Path) -> None:
    case = TREES[section, id]
    assert datasets.load(id).section == section
    root = tmp_path / "download"
    rng = np.random.default_rng(7)
    for name in case.get("tree", []):
        make(root / name, rng)
    for name, text in case.get("tables", {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    if case.get("refused"):
        with pytest.raises(ArgumentError, match=case["refused"]):
            datasets.prepare(id, root)
        return
    root.mkdir(exist_ok=True)
    before = sorted(p for p in root.rglob("*"))
    cohort = datasets.prepare(id, root, case.get("split"), tmp_path / "out.csv")
    assert sorted(p for p in root.rglob("*")) == before, "the download was changed"
    found = {}
    for row, cells in zip(cohort, cohort.table.to_dict("records"), strict=True):
        paths = {c: str(cells[c]) for c in cells if c.startswith("path") and cells[c]}
        key = next(iter(p for c, p in paths.items()))
        found[key] = (row, cells, paths)
    made = str(tmp_path / "out_files")
    for want in case["rows"]:
        keys = [c for c in want if c.startswith("path")]
        # A file that was made is named by its place below the folder of made files.
        first = str(want[keys[0]]).replace("<made>", made)
        assert first in found, f"{first} not in {list(found)}"
        row, cells, paths = found.pop(first)
        assert {c: p.replace(made, "<made>") for c, p in paths.items()} == {
            c: want[c] for c in keys
        }
        assert row.label == want.get("label")
        mask = want.get("mask", "")
        if isinstance(mask, list):
            scan = row.load()
            parts = [read_mask(root / m, scan) for m in mask]
            assert np.array_equal(row.load_mask(scan), np.logical_or.reduce(parts))
        else:
            assert str(cells["mask"]).replace(made, "<made>") == mask
        for column in set(want) - {"mask", "label", *keys}:
            assert str(cells.get(column)) == str(want[column]), column
    assert not found, f"rows too many: {list(found)}"
    for text in case.get("notes", []):
        assert any(text in note for note in cohort.notes), cohort.notes


def test_every_recipe_of_a_tested_section_has_a_tree() -> None:
    sections = {section for section, _ in TREES}
    missing = [
        r.id
        for r in datasets.list_datasets()
        if r.section in sections and r.id not in {id: 1 for _, id in TREES}
    ]
    assert not missing


def test_every_row_of_the_card_has_a_recipe(shared: Path) -> None:
    """Each row of the list of data sets, in the sections that are there."""
    known = {r.id for r in datasets.list_datasets()}
    sections = {r.section for r in datasets.list_datasets()}
    letters = {
        "A": "brain_healthy", "B": "brain_lesions", "C": "body", "D": "retina", "E": "industrial",
    }  # fmt: skip
    card = (shared / "methods" / "datasets.md").read_text("utf-8")
    letter, missing, seen = "", [], 0
    for line in card.splitlines():
        if line.startswith("## "):
            letter = line[3]
        cells = [c.strip() for c in line.split("|")]
        if len(cells) > 8 and cells[1] not in ("id", "---") and letters.get(letter) in sections:
            seen += 1
            missing += [cells[1]] * (cells[1] not in known)
    assert seen > 30
    assert not missing


def test_a_scan_with_two_masks_reads_their_union(tmp_path: Path) -> None:
    """Independent of the helper above: known pixels, known union."""
    from PIL import Image

    base = tmp_path / "A. Segmentation"
    image = base / "1. Original Images" / "a. Training Set" / "IDRiD_01.jpg"
    masks = base / "2. All Segmentation Groundtruths" / "a. Training Set"
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for path, data in (
        (image, pixels),
        (masks / "1. Microaneurysms" / "IDRiD_01_MA.tif", pixels // 32 * 255),
        (masks / "2. Haemorrhages" / "IDRiD_01_HE.tif", (pixels < 8) * np.uint8(255)),
        (masks / "5. Optic Disc" / "IDRiD_01_OD.tif", np.full((8, 8), 255, np.uint8)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data).save(path, format="PNG" if path.suffix == ".jpg" else None)
    with pytest.raises(ArgumentError, match="out=TABLE"):
        datasets.prepare("idrid", tmp_path)
    cohort = datasets.prepare("idrid", tmp_path, out=tmp_path / "table" / "idrid.csv")
    mask = cohort[0].load_mask(read_scan(image))
    assert mask is not None
    assert np.array_equal(mask, (pixels >= 32) | (pixels < 8))
