"""Tables, splits and summaries, against trees and counts made here by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from normscan.cohort import Cohort
from normscan.errors import ArgumentError, CohortError, ScanError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real data are not at {SHARED}")


def picture(path: Path, seed: int = 0, shape: tuple[int, int] = (6, 7)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def table_of(folder: Path, rows: str, name: str = "table.csv") -> Path:
    """Write a table, and a different picture for every path ending in .png."""
    lines = [line.strip() for line in rows.strip().splitlines()]
    (folder / name).write_text("\n".join(lines) + "\n")
    for seed, line in enumerate(lines[1:]):
        for cell in line.replace("\t", ",").split(","):
            if cell.endswith(".png"):
                picture(folder / cell, seed)
    return folder / name


def splits(cohort: Cohort) -> dict[str, str]:
    return {row.scan: row.split for row in cohort}


def test_a_full_table(tmp_path: Path) -> None:
    path = table_of(
        tmp_path,
        """scan,subject,path,label,mask,split,site,age,code
        one,007,img/a.png,0,,train,A,61,007
        two,008,img/b.png,0,,val,A,,008
        three,009,img/c.png,1,m/c.png,test,B,59.5,009
        four,NA,img/d.png,,,extra,B,70,010""",
    )
    cohort = Cohort.read(path)
    rows = list(cohort)
    assert [r.subject for r in rows] == ["007", "008", "009", "NA"]
    assert [r.label for r in rows] == [0, 0, 1, None]
    assert rows[2].mask == tmp_path / "m" / "c.png"
    assert rows[0].mask is None
    assert rows[0].columns == {"age": 61.0, "code": "007"}
    assert np.isnan(rows[1].columns["age"])
    assert [len(cohort.part(p)) for p in ("train", "val", "test", "extra")] == [1, 1, 1, 1]
    assert cohort.has_masks
    assert not cohort.part("train").has_masks
    scan = cohort[2].load()
    assert scan.shape == (6, 7)
    assert cohort[2].load_mask(scan).dtype == bool
    assert not cohort[0].load_mask(scan).any()
    assert cohort[3].load_mask(scan) is None
    assert cohort[0].load_foreground(scan) is None


@pytest.mark.parametrize("name", ["table.tsv", "table.parquet", "table.csv"])
def test_written_tables_come_back(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    path = table_of(
        tmp_path / "data",
        """path,label,subject,age
        a.png,0,s1,60
        b.png,0,s2,
        c.png,0,s3,61
        d.png,1,s4,62
        e.png,,s5,63""",
    )
    cohort = Cohort.read(path)
    written = cohort.write(tmp_path / "runs" / name)
    again = Cohort.read(written)
    assert [(r.scan, r.subject, r.label, r.split) for r in again] == [
        (r.scan, r.subject, r.label, r.split) for r in cohort
    ]
    assert [r.columns["age"] for r in again][2] == 61
    assert all(r.paths[0].samefile(s.paths[0]) for r, s in zip(again, cohort, strict=True))
    # A tree that moves keeps working.
    shutil.move(tmp_path / "data", tmp_path / "moved" / "data")
    shutil.move(tmp_path / "runs", tmp_path / "moved" / "runs")
    assert Cohort.read(tmp_path / "moved" / "runs" / name)[0].load().shape == (6, 7)


def test_parquet_with_numbers_and_gaps(tmp_path: Path) -> None:
    for n, name in enumerate("abc"):
        picture(tmp_path / f"{name}.png", n)
    frame = pd.DataFrame(
        {"path": ["a.png", "b.png", "c.png"], "label": [0, 1, None], "mask": [None, "b.png", None]}
    )
    frame.to_parquet(tmp_path / "t.parquet")
    cohort = Cohort.read(tmp_path / "t.parquet")
    assert [r.label for r in cohort] == [0, 1, None]
    assert cohort[0].mask is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,label\na.png,0", r"no column path.*file, label"),
        ("paht,label\na.png,0", r"For path, did you mean 'paht'"),
        ("Image,label\na.png,0", r"Is it 'Image'\? Call it path"),
        ("path,Path,label\na.png,a.png,0", r"the column path stands twice"),
        ("path,labels\na.png,0", r"no column label.*did you mean 'labels'"),
        ("path,label,Subjects\na.png,0,x", r"'Subjects' would be ignored.*'subject'"),
        ("path,label,masks\na.png,0,x", r"'masks' would be ignored.*'mask'"),
        ("path,label\na.png,perhaps", r"label 'perhaps' in row 1.*for healthy"),
        ("path,label,split\na.png,0,valid", r"split 'valid' in row 1.*'val'"),
        ("path,label\na.png,0\na.png,1", r"rows 1 and 2 name the same file a\.png"),
        ("scan,path,label\nx,a.png,0\nx,b.png,0", r"'x' stands twice"),
        ("scan,path,label\n../x,a.png,0", r"'\.\./x' in row 1 can't be a file name"),
        ("path,label\n,0", r"row 1 names no file"),
        ("path,label\n", r"has no rows"),
        ("path;label\na.png,0", r"line 2 is separated by commas, the header by semicolons"),
        ("path,label\na.png;0", r"line 2 is separated by semicolons, the header by commas"),
        ("path,label\na.png,0,x", r"line 2 has 3 cells, the header 2"),
        ("path,label,age,age\na.png,0,1,2", r"line 1: the column age stands twice"),
        ("path,label,,age\na.png,0,1,2", r"line 1: column 3 has no name"),
        ("path;label;age\na.png;0;1,5\nb.png;0;1.5", r"age has decimal commas \(1,5\) and points"),
        ('path,label\n"a.png,0', r"line 2 can't be parted"),
        ("", r"no readable \.csv table"),
        ("path,label\ngone.png,0", r"gone\.png of its first row isn't under"),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str, says: str) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", 1)
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(CohortError, match=says) as caught:
        Cohort.read(tmp_path / "t.csv")
    assert "t.csv" in str(caught.value)


@pytest.mark.parametrize("mark", [";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff", "sep="])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_of_excel(tmp_path: Path, mark: str, start: str, end: str) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", 1)
    first = f"sep={mark}{end}" if start == "sep=" else start
    rows = [
        ["path", "label", "age", "note"],
        ["a.png", "0", "3,5", "x, y"],
        ["b.png", "1", "4", ""],
    ]
    text = first + end.join(mark.join(row) + mark for row in rows) + end
    (tmp_path / "t.csv").write_bytes(text.encode())
    cohort = Cohort.read(tmp_path / "t.csv")
    assert [row.label for row in cohort] == [0, 1]
    assert list(cohort.table["age"]) == [3.5, 4.0]
    assert list(cohort.table["note"]) == ["x, y", ""]


def test_other_wrong_inputs(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("path,label\n\xe9.png,0".encode("latin-1"))
    with pytest.raises(CohortError, match="UTF-8"):
        Cohort.read(tmp_path / "latin.csv")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(CohortError, match="no readable"):
        Cohort.read(tmp_path / "t.parquet")
    with pytest.raises(CohortError, match=r"no such table or folder\. Did you mean 'latin\.csv'"):
        Cohort.read(tmp_path / "latim.csv")
    picture(tmp_path / "a.png")
    (tmp_path / "ok.csv").write_text("path,label\na.png,0\n")
    for fractions in ((0.5, 0.1), (0.9, 0.2, 0.2), (1.2, -0.2, 0), (0, 0.5, 0.5)):
        with pytest.raises(ArgumentError, match="fractions"):
            Cohort.read(tmp_path / "ok.csv", fractions=fractions)
    with pytest.raises(CohortError, match=r"'tests' is no part.*'test'"):
        Cohort.read(tmp_path / "ok.csv").part("tests")


def test_paths_relative_to_the_parent_or_a_given_root(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "splits").mkdir()
    table = tmp_path / "splits" / "t.csv"
    table.write_text("path,label\nimages/a.png,0\n")
    assert Cohort.read(table)[0].paths == (tmp_path / "images" / "a.png",)
    table.write_text("path,label\na.png,0\n")
    assert Cohort.read(table, root=tmp_path / "images")[0].load().shape == (6, 7)


def many(tmp_path: Path, healthy: int, sick: int = 3, scans: int = 2) -> Path:
    rows = ["path,label,subject"]
    rows += [f"h{s}_{n}.png,0,h{s}" for s in range(healthy) for n in range(scans)]
    rows += [f"x{s}.png,1,x{s}" for s in range(sick)]
    return table_of(tmp_path, "\n".join(rows))


def test_split_by_subject(tmp_path: Path) -> None:
    cohort = Cohort.read(many(tmp_path, 20), fractions=(0.6, 0.15, 0.25))
    places: dict[str, set[str]] = {}
    for row in cohort:
        places.setdefault(row.subject, set()).add(row.split)
    assert all(len(p) == 1 for p in places.values())
    found = [sum(s[0] == "h" and p == {part} for s, p in places.items())
             for part in ("train", "val", "test")]  # fmt: skip
    assert found == [12, 3, 5]
    assert {r.split for r in cohort if r.label == 1} == {"test"}
    assert splits(cohort) == splits(
        Cohort.read(tmp_path / "table.csv", fractions=(0.6, 0.15, 0.25))
    )
    other = Cohort.read(tmp_path / "table.csv", fractions=(0.6, 0.15, 0.25), seed=1)
    assert splits(other) != splits(cohort)


def test_the_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    path = many(tmp_path, 9)
    first = splits(Cohort.read(path))
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *reversed(rows)]) + "\n")
    assert splits(Cohort.read(path)) == first


@pytest.mark.parametrize(
    ("subjects", "expected"),
    [(1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1]), (4, [2, 1, 1]), (10, [7, 1, 2])],
)
def test_small_cohorts(tmp_path: Path, subjects: int, expected: list[int]) -> None:
    cohort = Cohort.read(many(tmp_path, subjects, sick=0, scans=1))
    assert [len(cohort.part(p)) for p in ("train", "val", "test")] == expected


def test_exact_copies_stay_together(tmp_path: Path) -> None:
    path = many(tmp_path, 12, scans=1)
    for n in range(1, 6):
        shutil.copy(tmp_path / "h0_0.png", tmp_path / f"h{n}_0.png")
    for seed in range(5):
        cohort = Cohort.read(path, seed=seed)
        assert len({splits(cohort)[f"h{n}_0"] for n in range(6)}) == 1
    summary = cohort.summary()
    assert summary.duplicates["groups"] == 1
    assert summary.duplicates["scans"] == 6
    assert summary.duplicates["crossing_splits"] == []


def test_a_copy_of_a_healthy_scan_among_the_anomalous_is_reported(tmp_path: Path) -> None:
    path = many(tmp_path, 6, scans=1)
    shutil.copy(tmp_path / "h2_0.png", tmp_path / "x1.png")
    cohort = Cohort.read(path)
    assert splits(cohort)["h2_0"] == "test"
    assert cohort.summary().duplicates["crossing_labels"] == [["h2_0", "x1"]]
    assert "cross labels: h2_0 = x1" in str(cohort.summary())


def test_subjects_with_healthy_and_anomalous_scans(tmp_path: Path) -> None:
    rows = "\n".join(["path,label,subject", *(f"p{s}_{n}.png,{n},p{s}" for s in range(5)
                                               for n in range(2))])  # fmt: skip
    cohort = Cohort.read(table_of(tmp_path, rows))
    # Nobody is wholly healthy, so all are divided; their lesions must not train.
    assert len(cohort.part("train")) >= 1
    for row in cohort:
        partner = splits(cohort)[row.subject + "_0"]
        expected = partner if row.label == 0 or partner == "test" else "extra"
        assert row.split == expected
    rows += "\n" + "\n".join(f"q{s}.png,0,q{s}" for s in range(3))
    cohort = Cohort.read(table_of(tmp_path, rows))
    assert {r.split for r in cohort if r.subject.startswith("p")} == {"test"}


def test_given_splits(tmp_path: Path) -> None:
    path = table_of(
        tmp_path,
        """path,label,subject,split
        a.png,0,a,train
        b.png,1,b,train
        c.png,,c,val
        d.png,0,d,val
        e.png,1,e,test
        f.png,0,f,""",
    )
    cohort = Cohort.read(path)
    assert splits(cohort) == dict(
        zip("abcdef", ("train", "extra", "extra", "val", "test", ""), strict=True)
    )
    text = str(cohort.summary())
    assert "1 anomalous scans of train and val were put into extra" in text
    assert "1 unlabelled scans of train and val were put into extra" in text
    assert "1 scans have no split" in text


def test_val_is_drawn_from_training_subjects(tmp_path: Path) -> None:
    rows = ["path,label,subject,split"]
    rows += [f"h{s}_{n}.png,0,h{s},train" for s in range(16) for n in range(2)]
    rows += ["x.png,1,x,test"]
    cohort = Cohort.read(table_of(tmp_path, "\n".join(rows)))
    val, train = ({r.subject for r in cohort.part(p)} for p in ("val", "train"))
    assert (len(val), len(train)) == (2, 14)  # 0.1 of 0.8 of 16
    assert not val & train
    assert "2 of 16 training subjects were drawn" in " ".join(cohort.notes)


@pytest.mark.parametrize("pair", [("train", "test"), ("val", "test"), ("extra", "test"),
                                  ("train", "val")])  # fmt: skip
def test_leaking_subjects_are_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    rows = ["path,label,subject,split"]
    for n in range(7):
        rows += [f"a{n}.png,0,p{n},{pair[0]}", f"b{n}.png,0,p{n},{pair[1]}"]
    path = table_of(tmp_path, "\n".join(rows))
    with pytest.raises(CohortError, match=r"7 subjects stand in more than one split") as caught:
        Cohort.read(path)
    assert sum(f"p{n} in" in str(caught.value) for n in range(7)) == 5
    with pytest.raises(CohortError, match="more than one split"):
        Cohort(pd.read_csv(path), tmp_path)


def test_require_healthy(tmp_path: Path) -> None:
    Cohort.read(many(tmp_path, 3)).require_healthy()
    path = table_of(tmp_path, "path,label\ny.png,1\nz.png,1", "sick.csv")
    with pytest.raises(CohortError, match="has no healthy scan"):
        Cohort.read(path).require_healthy()


def test_channels_in_columns(tmp_path: Path) -> None:
    path = table_of(
        tmp_path,
        """subject,path_t1,path_flair,label
        p1,p1/t1.png,p1/flair.png,0
        p2,p2/t1.png,p2/flair.png,0
        p3,p3/t1.png,,1""",
    )
    picture(tmp_path / "p1" / "flair.png", 77)
    picture(tmp_path / "p2" / "flair.png", 78)
    cohort = Cohort.read(path)
    assert cohort.channels == ("t1", "flair")
    scan = cohort[0].load()
    assert scan.channels == ("t1", "flair")
    assert not np.array_equal(scan.data[0], scan.data[1])
    with pytest.raises(ScanError, match=r"'.*' has no file for the channel flair"):
        cohort[2].load()
    assert len({r.scan for r in cohort}) == 3


def test_summary(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1, 3, 1])
    rows = ["path,label,mask,foreground,split"]
    for n in range(4):
        volume = np.random.default_rng(n).integers(0, 99, (5, 6 + n, 7)).astype(np.int16)
        nib.save(nib.Nifti1Image(volume, affine), tmp_path / f"v{n}.nii.gz")
    mask = nib.Nifti1Image(np.zeros((5, 6, 7), dtype=np.uint8), affine)
    nib.save(mask, tmp_path / "m.nii.gz")
    picture(tmp_path / "p.png")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    rows += ["v0.nii.gz,0,,,train", "v1.nii.gz,0,,m.nii.gz,train", "v2.nii.gz,0,,,val",
             "v3.nii.gz,1,gone.nii.gz,,test", "p.png,1,,,test", "bad.png,1,,,test"]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(rows))
    seen: list[str] = []

    def progress(rows: list[object], description: str) -> list[object]:
        seen.append(description)
        return rows

    summary = Cohort.read(tmp_path / "t.csv").summary(progress)
    assert len(seen) == 1
    assert summary.splits["train"] == {
        "healthy": 2, "anomalous": 0, "unlabelled": 0, "subjects": 2, "masks": 0
    }  # fmt: skip
    assert summary.splits["test"]["masks"] == 1
    assert summary.dims == {2: 1, 3: 4}
    assert summary.dtypes == {"int16": 4, "uint8": 1}
    assert summary.spacing == [(1.0, 1.0), (1.0, 1.0), (3.0, 3.0)]
    assert "5 x 9 x 7" in summary.sizes
    reasons = dict(summary.unreadable)
    assert set(reasons) == {"v1", "v3", "bad"}
    assert "(5, 6, 7), its scan has (5, 7, 7)" in reasons["v1"]
    assert "no such file" in reasons["v3"]
    assert "text file" in reasons["bad"]
    assert json.loads(json.dumps(summary.to_dict()))["scans"] == 6
    assert "6 scans of 6 subjects" in str(summary)


def test_empty_foreground_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    Image.fromarray(np.zeros((6, 7), dtype=np.uint8)).save(tmp_path / "f.png")
    (tmp_path / "t.csv").write_text("path,label,foreground\na.png,0,f.png\n")
    row = Cohort.read(tmp_path / "t.csv")[0]
    with pytest.raises(ScanError, match="foreground mask is empty"):
        row.load_foreground(row.load())


# Counts from the table of shared/data/INDEX.md and the README of each set.
@needs_data
@pytest.mark.parametrize(
    ("name", "healthy", "anomalous", "masks"),
    [("brain_mri_kaggle", 98, 155, False), ("head_ct_kaggle", 100, 100, False),
     ("chest_xray_kermany_224", 1341 + 234, 390, False),
     ("magnetic_tile_defects", 220, 160, True)],
)  # fmt: skip
def test_real_sets_with_fixed_splits(name: str, healthy: int, anomalous: int, masks: bool) -> None:
    cohort = Cohort.read(SHARED / name)
    cohort.require_healthy()
    labels = [row.label for row in cohort]
    assert (labels.count(0), labels.count(1)) == (healthy, anomalous)
    assert cohort.has_masks == masks
    assert not {r.label for p in ("train", "val") for r in cohort.part(p)} - {0}
    assert "fixed split" in cohort.notes[0]


@needs_data
def test_real_slices_by_patient() -> None:
    cohort = Cohort.read(SHARED / "splits" / "lgg_flair_slices.csv")
    assert cohort.table["subject"].nunique() == 19
    rows = [r for r in cohort.part("test") if r.label == 1][:3]
    for row in rows:
        assert row.load_mask(row.load()).any()
