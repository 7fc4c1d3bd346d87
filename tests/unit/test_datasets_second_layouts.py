"""Picture recipes: other copies of a set, and labels that come from pixels."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from normscan import datasets


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    for n, (name, content) in enumerate(files.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Files without content get their own, for copies are found by content.
        path.write_bytes(content.encode() if isinstance(content, str) else content or b"%d" % n)
    return root


def labels(id: str, root: Path, **options: object) -> dict[str, object]:
    table = datasets.prepare(id, root, **options).table  # type: ignore[arg-type]
    return dict(zip(table["path"], table["label"], strict=True))


def test_vindr_of_kaggle(tmp_path: Path) -> None:
    head = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
    lines = "a,No finding,14,R1,,,,\na,No finding,14,R2,,,,\nb,Cardiomegaly,3,R8,10,20,30,50\n"
    files: dict[str, bytes | str] = dict.fromkeys(
        ("train/a.dicom", "train/b.dicom", "test/c.dicom"), b""
    )
    root = write(tmp_path, files | {"train.csv": head + lines})
    cohort = datasets.prepare("vindr", root)
    table = cohort.table.set_index("path")
    assert table.loc["train/a.dicom", "label"] == 0
    assert table.loc["train/b.dicom", "label"] == 1
    assert table.loc["train/b.dicom", "boxes"] == "[[10.0, 20.0, 20.0, 30.0]]"
    unlabelled = [str(row.paths[0]) for row in cohort if row.label is None]
    assert [Path(name).name for name in unlabelled] == ["c.dicom"]


def test_rsna_of_bmad(tmp_path: Path) -> None:
    names = ["train/good/1.png", "valid/Ungood/2.png", "test/good/3.png", "test/Ungood/4.png"]
    cohort = datasets.prepare("rsna", write(tmp_path, dict.fromkeys(names, b"")), "bmad")
    rows = zip(cohort.table["path"], cohort.table["label"], cohort.table["split"], strict=True)
    assert set(rows) == {
        ("train/good/1.png", 0, "train"),
        ("valid/Ungood/2.png", 1, "extra"),
        ("test/good/3.png", 0, "test"),
        ("test/Ungood/4.png", 1, "test"),
    }


def test_mimic_with_packed_tables(tmp_path: Path) -> None:
    findings = "Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema"
    more = (
        "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture"
    )
    text = f"subject_id,study_id,No Finding,{findings},{more}\n1,5,1.0{',' * 12}\n"
    table = gzip.compress(text.encode())
    root = write(tmp_path, {"files/p10/p1/s5/x.jpg": b"", "mimic-cxr-2.0.0-chexpert.csv.gz": table})
    assert labels("mimic_cxr", root) == {"files/p10/p1/s5/x.jpg": 0}


def test_first_covid_release(tmp_path: Path) -> None:
    root = write(tmp_path, {"NORMAL/NORMAL (1).png": b"", "COVID-19/COVID-19 (1).png": b""})
    assert labels("covid19_radiography", root) == {
        "COVID-19/COVID-19 (1).png": 1,
        "NORMAL/NORMAL (1).png": 0,
    }


def test_the_liver_is_no_lesion(tmp_path: Path) -> None:
    import nibabel

    rng = np.random.default_rng(0)
    organs = rng.integers(0, 2, (4, 5, 6)).astype(np.uint8)
    tumour = organs.copy()
    tumour[1, 1, 1] = 2
    for n, labelled in enumerate((organs, tumour)):
        scan = rng.random((4, 5, 6)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(scan, np.eye(4)), tmp_path / f"volume-{n}.nii")
        nibabel.save(nibabel.Nifti1Image(labelled, np.eye(4)), tmp_path / f"segmentation-{n}.nii")
    cohort = datasets.prepare("lits", tmp_path, out=tmp_path / "out" / "l.csv")
    rows = {row.subject: row for row in cohort}
    assert (rows["0"].label, rows["1"].label) == (0, 1)
    assert rows["0"].mask is None
    scan = rows["1"].load()
    assert np.array_equal(rows["1"].load_mask(scan), tumour == 2)
    assert np.array_equal(rows["1"].load_foreground(scan), tumour > 0)


def test_an_empty_mask_is_a_healthy_surface(tmp_path: Path) -> None:
    from PIL import Image

    for n in (0, 1):
        Image.fromarray(np.full((6, 6), 40 + n, np.uint8)).save(tmp_path / f"{n}.png")
        Image.fromarray(np.eye(6, dtype=np.uint8) * 255 * n).save(tmp_path / f"{n}_GT.png")
    for file in list(tmp_path.glob("*.png")):
        (tmp_path / "set" / "test").mkdir(parents=True, exist_ok=True)
        file.rename(tmp_path / "set" / "test" / file.name)
    table = datasets.prepare("ksdd2", tmp_path / "set").table
    assert list(table["label"]) == [0, 1]
    assert list(table["mask"]) == ["", "test/1_GT.png"]


def test_solar_cells_are_split_as_dra_does(tmp_path: Path) -> None:
    """Its code: the normals in the order of labels.csv, a quarter of them test, seed 42."""
    from sklearn.model_selection import train_test_split

    names = [f"images/cell{n:04d}.png" for n in range(1, 41)]
    chance = [("0.0", "1.0", "0.6666666666666666")[n % 3 if n % 5 else 0] for n in range(40)]
    text = "".join(f"{name}  {p}   mono\n" for name, p in zip(names, chance, strict=True))
    root = write(tmp_path, dict.fromkeys(names, b"") | {"labels.csv": text})
    table = datasets.prepare("elpv", root, "dra").table
    normals = [name for name, p in zip(names, chance, strict=True) if p == "0.0"]
    _, wanted = train_test_split(normals, test_size=0.25, random_state=42)
    test = table[(table["split"] == "test") & (table["label"] == 0)]
    assert sorted(test["path"]) == sorted(wanted)


@pytest.mark.parametrize(("sex", "counts"), [("male", (1973, 438)), ("female", (1641, 367))])
def test_lists_of_nsa_keep_patients_apart(sex: str, counts: tuple[int, int]) -> None:
    from normscan.datasets import recipe

    file = Path(recipe.__file__).parent / "splits" / "chestxray14" / f"nsa-{sex}-v1.csv"
    lines = [line.split(",") for line in file.read_text().splitlines()[1:]]
    parts = {part: {name[:8] for name, p in lines if p == part} for part in ("train", "test")}
    assert not parts["train"] & parts["test"]
    assert tuple(sum(p == part for _, p in lines) for part in ("train", "test")) == counts
