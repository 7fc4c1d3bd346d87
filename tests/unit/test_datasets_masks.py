"""Masks of data sets as they are downloaded: values, unions, boxes, damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.support.made_up import add, picture, volume

from normscan import Cohort, datasets


def test_values_of_a_mask_that_do_not_count(tmp_path: Path) -> None:
    """White-matter challenge: 2 is another pathology."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    root = tmp_path / "wmh"
    volume(root / "training/Utrecht/0/pre/FLAIR.nii.gz", rng.random((4, 5, 6)).astype(np.float32))
    volume(root / "training/Utrecht/0/wmh.nii.gz", labels)
    out = tmp_path / "t" / "wmh.csv"
    cohort = datasets.prepare("wmh", root, out=out, channels=["flair"])
    row = cohort[0]
    assert np.array_equal(row.load_mask(row.load()), labels == 1)
    made = Path(str(row.mask))
    stamp = made.stat().st_mtime_ns
    datasets.prepare("wmh", root, out=out, channels=["flair"])
    assert made.stat().st_mtime_ns == stamp, "a finished mask was made again"
    again = Cohort.read(out)[0]
    assert np.array_equal(again.load_mask(again.load()), labels == 1)


def test_a_damaged_mask_is_noted_and_the_rest_goes_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for n in (0, 1):
        base = tmp_path / f"training/Utrecht/{n}"
        volume(base / "pre/FLAIR.nii.gz", rng.random((4, 4, 4)).astype(np.float32))
        volume(base / "wmh.nii.gz", np.eye(4, dtype=np.uint8)[..., None].repeat(4, -1))
    (tmp_path / "training/Utrecht/0/wmh.nii.gz").write_bytes(b"\x1f\x8b broken")
    cohort = datasets.prepare("wmh", tmp_path, out=tmp_path / "o.csv", channels=["flair"])
    assert [bool(row.mask) for row in cohort] == [False, True]
    assert any("Utrecht/0/wmh.nii.gz" in note for note in cohort.notes)


def test_boxes_votes_and_masks_with_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    for n in (1, 2):
        picture(tmp_path / f"{n}.png", n)
        Image.fromarray(np.full((8, 8), 255 * (n == 2), np.uint8)).save(tmp_path / f"{n}_GT.png")
    (tmp_path / "boxes.csv").write_text(
        "id,x0,y0,x1,y1,what\n1,1,2,4,8,mass\n1,0,0,2,2,nodule\n2,,,,,none\n3,a,b,c,d,e\n"
    )
    (tmp_path / "reads.csv").write_text("id,r1,r2,r3\n1,1,1,0\n2,0,1,0\n")
    add(
        monkeypatch,
        files=[
            {
                "path": "{id:\\d+}.png",
                "mask": "{id:\\d+}_GT.png",
                "label": "pixels",
                "boxes": {
                    "file": "boxes.csv", "key": "id", "on": "{id}", "corners": True,
                    "box": ["x0", "y0", "x1", "y1"], "kind": "what",
                },
                "tables": [
                    {"file": "reads.csv", "key": "id", "on": "{id}", "votes": {"read": ["r1", "r2", "r3"]}}
                ],
            }
        ],
    )  # fmt: skip
    table = datasets.prepare("toyset", tmp_path).table
    assert list(table["label"]) == [0, 1]
    assert list(table["mask"]) == ["", "2_GT.png"]
    assert list(table["boxes"]) == ["[[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 2.0, 2.0]]", ""]
    assert list(table["box_kinds"]) == ["mass|nodule", ""]
    assert list(table["read"]) == [1, 0]


def test_a_copy_in_another_folder_is_no_second_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("x/1_a", "y/1_a", "x/1_b")):
        picture(tmp_path / f"{name}.png", seed)
    channels = {"a": "**/{subject}_a.png", "b": "**/{subject}_b.png"}
    add(monkeypatch, files=[{"channels": channels, "label": 0}])
    table = datasets.prepare("toyset", tmp_path).table
    assert table[["scan", "path_a", "path_b"]].to_numpy().tolist() == [
        ["1", "x/1_a.png", "x/1_b.png"]
    ]


def test_a_damaged_mask_leaves_its_label_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    for n in (1, 2):
        picture(tmp_path / f"{n}.png", n)
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "1_GT.png")
    (tmp_path / "2_GT.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    rule = {"path": "{id:\\d+}.png", "mask": "{id:\\d+}_GT.png", "label": "pixels"}
    add(monkeypatch, files=[rule])
    cohort = datasets.prepare("toyset", tmp_path)
    assert [row.label for row in cohort] == [1, None]
    assert any("2_GT.png: is no readable mask" in note for note in cohort.notes)


@pytest.mark.parametrize(
    "header",
    [
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 99999 99999 99999\nencoding: raw\n"
        b"endian: little\ndata file: x.raw\n\n",
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndata file: no.raw\n\n",
        b"no nrrd",
    ],
)
def test_hostile_nrrd_is_noted(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "CHB_train_Case01_FLAIR.nhdr").write_bytes(header)
    (tmp_path / "x.raw").write_bytes(b"0" * 64)
    cohort = datasets.prepare("msseg2008", tmp_path, out=tmp_path / "o.csv", channels=["flair"])
    assert any("CHB_train_Case01_FLAIR.nhdr" in n and "image" in n for n in cohort.notes[1:])
