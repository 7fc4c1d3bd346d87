"""Builders of the picture recipes, against pictures made by hand."""

from __future__ import annotations

import json
import plistlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normscan import datasets
from normscan.cohort import Cohort
from normscan.datasets import builders_images
from normscan.datasets.builders_images import dra_order
from normscan.datasets.layout import Tree
from normscan.errors import NormscanError


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path, format="PNG")


def opened(path: object) -> np.ndarray:
    with Image.open(str(path)) as image:
        return np.asarray(image)


def by_name(cohort: Cohort) -> dict[str, dict[str, object]]:
    return {Path(str(r["path"])).stem: r for r in cohort.table.to_dict("records")}


def test_fabric_is_cut_to_squares(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good, bad = rng.integers(1, 255, (2, 16, 72))
    first, second = np.zeros((2, 16, 72))
    first[3, 17] = 255  # second square
    second[0, 71] = 255  # the narrow rest at the end
    root = tmp_path / "aitex"
    save(root / "NODefect_images/2306881-210020u/0001_000_05.png", good)
    save(root / "Defect_images/0044_019_04.png", bad)
    save(root / "Mask_images/0044_019_04_mask1.png", first)
    save(root / "Mask_images/0044_019_04_mask2.png", second)
    cohort = datasets.prepare("aitex", root, out=tmp_path / "a.csv")
    rows = by_name(cohort)
    normal = [f"0001_000_05_{i}" for i in range(5)]
    assert set(rows) == {*normal, "0044_019_04_1", "0044_019_04_4"}
    joined = np.concatenate([opened(rows[n]["path"]) for n in normal], axis=1)
    assert np.array_equal(joined, good)
    assert np.array_equal(opened(rows["0044_019_04_1"]["path"]), bad[:, 16:32])
    assert np.array_equal(opened(rows["0044_019_04_1"]["mask"]), first[:, 16:32])
    assert np.array_equal(opened(rows["0044_019_04_4"]["mask"]), second[:, 64:])
    assert {rows[n]["label"] for n in normal} == {0} and not any(rows[n]["mask"] for n in normal)
    made = Path(str(rows["0044_019_04_1"]["path"]))
    stamp = made.stat().st_mtime_ns
    datasets.prepare("aitex", root, out=tmp_path / "a.csv")
    assert made.stat().st_mtime_ns == stamp, "a finished tile was made again"
    row = next(r for r in cohort if r.mask and "0044_019_04_1" in str(r.mask))
    scan = row.load()
    assert row.load_mask(scan).sum() == 1  # type: ignore[union-attr]


def test_commutators_are_cut_in_three(tmp_path: Path) -> None:
    image = np.arange(60).reshape(10, 6)
    mask = np.zeros((10, 6))
    mask[6, 2] = 255
    root = tmp_path / "sdd"
    for n in range(8):
        save(root / f"kos01/Part{n}.jpg", image)
        save(root / f"kos01/Part{n}_label.bmp", mask * (n == 3))
    save(root / "kos02/Part0.jpg", image)
    save(root / "kos02/Part0_label.bmp", np.zeros((9, 6)))
    cohort = datasets.prepare("sdd", root, "dra", tmp_path / "s.csv")
    rows = by_name(cohort)
    assert len(rows) == 24
    heights = [opened(rows[f"Part3_{i}"]["path"]).shape[0] for i in range(3)]
    assert heights == [3, 3, 4]
    assert np.array_equal(opened(rows["Part3_2"]["path"]), image[6:])
    assert np.array_equal(opened(rows["Part3_2"]["mask"]), mask[6:])
    assert [name for name, row in rows.items() if row["label"] == 1] == ["Part3_2"]
    assert any("its mask has another size" in note for note in cohort.notes)
    assert set(cohort.table["patient"]) == {"kos01"}, "the published split leaks, and says so"


def digits(root: Path) -> None:
    """Digit d as a picture whose left half is bright; tests are brighter than training."""
    for part, extra in (("training", 0), ("testing", 100)):
        for digit in range(10):
            for n in range(3):
                pixels = np.zeros((28, 28))
                pixels[:, :14] = 50 + 10 * digit + extra
                save(root / part / str(digit) / f"{n}.png", pixels)


def cells(grid: np.ndarray) -> np.ndarray:
    return grid.reshape(3, 32, 3, 32).swapaxes(1, 2).reshape(9, 32, 32)


def test_digits_on_a_grid(tmp_path: Path) -> None:
    digits(tmp_path / "mnist")
    cohort = datasets.prepare("digitanatomy", tmp_path / "mnist", "given", tmp_path / "d.csv")
    again = datasets.prepare("digitanatomy", tmp_path / "mnist", "given", tmp_path / "e.csv")
    kinds = Counter(zip(cohort.table["kind"], cohort.table["label"], strict=True))
    assert kinds == {("normal", 0): 6} | {
        (k, 1): 3 for k in ("missing", "swapped", "mirrored", "novel")
    }
    order = np.arange(1, 10) * 10
    for row, other in zip(
        cohort.table.to_dict("records"), again.table.to_dict("records"), strict=True
    ):
        grid = opened(row["path"])
        assert np.array_equal(grid, opened(other["path"])), "another picture with the same seed"
        base = 150 if row["split"] == "test" else 50
        value = cells(grid).max(axis=(1, 2)).astype(int) - base
        if row["kind"] == "normal":
            assert np.array_equal(value, order) and not row["mask"]
            continue
        assert row["split"] == "test"
        inside = cells(opened(row["mask"]))
        wrong = inside.any(axis=(1, 2))
        assert set(np.unique(inside[wrong])) == {255}
        assert np.array_equal(value[~wrong], order[~wrong])
        left = cells(grid)[wrong, :, :16].max(axis=(1, 2))
        if row["kind"] == "missing":
            assert wrong.sum() == 1 and not cells(grid)[wrong].any()
        elif row["kind"] == "swapped":
            assert wrong.sum() == 2
            assert np.array_equal(value[wrong], order[wrong][::-1])
        elif row["kind"] == "mirrored":
            assert left.item() < value[wrong] + base, "the bright half is on the right"
            assert (np.flatnonzero(wrong) + 1).item() in (2, 4, 5, 6, 7, 9)
        else:
            assert value[wrong].item() == 0


def test_a_digit_without_pictures_is_named(tmp_path: Path) -> None:
    save(tmp_path / "mnist/training/1/0.png", np.zeros((28, 28)))
    with pytest.raises(NormscanError, match="digit 2 for train"):
        datasets.prepare("digitanatomy", tmp_path / "mnist", out=tmp_path / "d.csv")


def mammogram(path: Path, shape: tuple[int, int]) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.SeriesInstanceUID, data.StudyInstanceUID = generate_uid(), generate_uid()
    data.Modality, data.PatientID = "MG", "x"
    data.Rows, data.Columns = shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 14, 13, 0
    data.PixelData = np.arange(shape[0] * shape[1], dtype=np.uint16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


REGIONS = [
    {"Name": "Mass", "Point_px": ["(2.0, 1.0)", "(5.0, 1.0)", "(5.0, 3.0)", "(2.0, 3.0)"]},
    {"Name": "Calcification", "Point_px": ["(7.2, 8.4)"]},
    {"Name": "Pectoral Muscle", "Point_px": ["(0, 0)", "(0, 9)", "(1, 9)"]},
]


@pytest.fixture
def inbreast(tmp_path: Path) -> Path:
    root = tmp_path / "inbreast"
    mammogram(root / "AllDICOMs/20586908_6c613a14b80a8591_MG_R_CC_ANON.dcm", (10, 8))
    mammogram(root / "AllDICOMs/20586934_6c613a14b80a8591_MG_L_CC_ANON.dcm", (10, 8))
    (root / "INbreast.csv").write_text("File Name;ACR;Bi-Rads\n20586908;4;5\n20586934;4;2\n")
    (root / "AllXML").mkdir()
    for name in ("20586908", "20586934"):
        drawing = {"Images": [{"ImageIndex": 0, "ROIs": REGIONS}]}
        (root / f"AllXML/{name}.xml").write_bytes(plistlib.dumps(drawing))
    return root


def test_drawn_regions_become_masks(inbreast: Path, tmp_path: Path) -> None:
    cohort = datasets.prepare("inbreast", inbreast, out=tmp_path / "i.csv")
    wanted = np.zeros((10, 8), bool)
    wanted[1:4, 2:6] = True
    wanted[8, 7] = True
    mask = opened(cohort[0].mask)
    assert np.array_equal(mask > 0, wanted)
    scan = cohort[0].load()
    loaded = cohort[0].load_mask(scan)
    assert loaded is not None
    # The pixels count up, so the values under the mask say whether it lies on the image.
    assert set(scan.data[0][loaded].astype(int)) == set(np.flatnonzero(wanted))
    assert cohort[1].label == 0 and cohort[1].mask is None


ENTITY = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><plist><string>&a;</string></plist>'


@pytest.mark.parametrize("content", [b"", b"\xff\xfe<", ENTITY, plistlib.dumps({"Images": 3})])
def test_hostile_drawings_are_noted(inbreast: Path, tmp_path: Path, content: bytes) -> None:
    (inbreast / "AllXML/20586908.xml").write_bytes(content)
    cohort = datasets.prepare("inbreast", inbreast, out=tmp_path / "i.csv")
    assert any("20586908.xml: is no readable drawing" in note for note in cohort.notes)
    assert cohort[0].mask is None and cohort[0].label == 1


def test_fundus_arrays_become_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "fair" / "Testing"
    root.mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 255, (6, 7)).astype(np.uint8)
    for n, sick in ((1, 0), (2, 1)):
        arrays = {"slo_fundus": picture + n, "glaucoma": np.asarray(sick), "note": np.asarray("x")}
        np.savez(root / f"data_0000{n}.npz", **arrays)
    pickled = np.asarray([{"a": 1}], dtype=object)
    np.savez(root / "data_00003.npz", slo_fundus=pickled, glaucoma=np.asarray(0))
    cohort = datasets.prepare("fairvlmed", tmp_path / "fair", "given", tmp_path / "f.csv")
    rows = {r["subject"]: r for r in cohort.table.to_dict("records")}
    assert [rows[f"data_0000{n}"]["label"] for n in (1, 2)] == [0, 1]
    assert np.array_equal(opened(rows["data_00002"]["path"]), picture + 2)
    assert any("data_00003.npz: has no readable 'slo_fundus'" in note for note in cohort.notes)
    monkeypatch.setattr(builders_images, "MAX_ARRAY", 100)
    with pytest.raises(NormscanError, match=r"data_00001\.npz: 'slo_fundus' is larger than 100"):
        builders_images._member(root / "data_00001.npz", "slo_fundus")


@pytest.mark.parametrize(
    "text",
    ["", "[1]", '{"train": []}', '{"train": [3], "test": []}', '{"train": [{}], "test": []}'],
)
def test_a_damaged_list_of_real_iad_is_noted(tmp_path: Path, text: str) -> None:
    entry = {"image_path": "OK/S0001/a_OK_C1_x.jpg", "anomaly_class": "OK", "mask_path": None}
    outside = {"image_path": "../../x.jpg", "anomaly_class": "BX", "mask_path": "../../x.png"}
    good = json.dumps({"train": [entry, outside], "test": []})
    for category, content in (("zipper", good), ("usb", text)):
        save(tmp_path / f"realiad_1024/{category}/OK/S0001/a_OK_C1_x.jpg", np.zeros((4, 4)))
        (tmp_path / "realiad_jsons").mkdir(exist_ok=True)
        (tmp_path / "realiad_jsons" / f"{category}.json").write_text(content)
    cohort = datasets.prepare("realiad", tmp_path)
    assert list(cohort.table["category"]) == ["zipper"]
    assert any("usb.json: is no list of Real-IAD" in note for note in cohort.notes)


def test_the_order_of_dra() -> None:
    names = ["Class10 Test 1", "Class2 Train 1", "Class2 Test 1", "Class2 Train 2"]
    rows = [dict(zip(("category", "split", "n"), name.split(), strict=True)) for name in names]
    ordered = [" ".join(row.values()) for row in dra_order(Tree(Path(), []), rows, Path)]
    assert ordered == ["Class2 Train 1", "Class2 Train 2", "Class2 Test 1", "Class10 Test 1"]


def test_real_chest_images_of_children(shared: Path) -> None:
    """The copy without its abnormal training images: counts say what is missing."""
    root = shared / "data" / "chest_xray_kermany_224"
    cohort = datasets.prepare("zhanglab", root, "given")
    found = Counter(zip(cohort.table["split"], cohort.table["label"], strict=True))
    assert found["test", 0] == 234 and found["test", 1] == 390
    assert found["train", 0] + found["val", 0] == 1341
    assert "train/PNEUMONIA/*.jpeg: expected 3883 or 3875 files, found nothing." in cohort.notes
    kinds = Counter(cohort.table["kind"])
    assert kinds == {"normal": 1575, "bacteria": 242, "virus": 148}


def slide(path: Path, pixels: np.ndarray, **options: object) -> None:
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(pixels, tile=(512, 512), photometric="rgb", **options)


def asap(group: str, left: int, top: int, right: int, bottom: int) -> str:
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    points = "".join(f'<Coordinate Order="0" X="{x}" Y="{y}"/>' for x, y in corners)
    return f'<Annotation PartOfGroup="{group}"><Coordinates>{points}</Coordinates></Annotation>'


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """White slides of 1100 x 1600; tissue (pink noise) in the left 1024 columns."""
    root = tmp_path / "camelyon"
    rng = np.random.default_rng(0)
    pixels = np.full((1100, 1600, 3), 240, np.uint8)
    pixels[:, :1024, 0] = rng.integers(200, 255, (1100, 1024))
    pixels[:, :1024, 1] = rng.integers(0, 100, (1100, 1024))
    slide(root / "training/normal/normal_001.tif", pixels, compression="zlib")
    slide(root / "training/tumor/tumor_001.tif", pixels)
    notes = root / "training/lesion_annotations/tumor_001.xml"
    notes.parent.mkdir()
    drawn = asap("_2", 310, 610, 319, 619) + asap("_0", 300, 600, 399, 649)
    notes.write_text(f"<ASAP_Annotations><Annotations>{drawn}</Annotations></ASAP_Annotations>")
    return root


def test_slides_are_cut_to_patches_of_tissue(slides: Path, tmp_path: Path) -> None:
    import tifffile

    cohort = datasets.prepare("camelyon16", slides, out=tmp_path / "c.csv")
    whole = tifffile.imread(slides / "training/normal/normal_001.tif")
    normal = cohort.table[cohort.table["label"] == 0]
    assert len(normal) == 16, "4 x 4 patches of tissue, none of the white part or the rest below"
    for path in normal["path"]:
        x, y = map(int, Path(path).stem.split("_"))
        assert x < 1024 and x % 256 == y % 256 == 0
        assert np.array_equal(opened(path), whole[y : y + 256, x : x + 256])
    (tumour,) = cohort.table[cohort.table["label"] == 1].to_dict("records")
    assert Path(tumour["path"]).stem == "256_512" and tumour["subject"] == "tumor_001"
    wanted = np.zeros((256, 256), np.uint8)
    wanted[600 - 512 : 650 - 512, 300 - 256 : 400 - 256] = 255
    wanted[610 - 512 : 620 - 512, 310 - 256 : 320 - 256] = 0
    assert np.array_equal(opened(tumour["mask"]), wanted)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("training/lesion_annotations/tumor_001.xml", b"<a>", "is no readable annotation"),
        (
            "training/lesion_annotations/tumor_001.xml",
            b"<Annotation><Coordinate/></Annotation>",
            "annotation",
        ),
        ("training/tumor/tumor_001.tif", b"II*\0", "is no readable slide"),
        ("training/tumor/tumor_001.tif", b"", "is no readable slide"),
    ],
)
def test_a_damaged_slide_is_noted(
    slides: Path, tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (slides / name).write_bytes(content)
    cohort = datasets.prepare("camelyon16", slides, out=tmp_path / "c.csv")
    assert set(cohort.table["label"]) == {0}
    assert any(Path(name).name in note and says in note for note in cohort.notes)
