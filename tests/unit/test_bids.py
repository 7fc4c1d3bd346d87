"""BIDS trees of tiny volumes, written here: what is read from them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.support.bids_trees import GROUPS, describe, raw_tree, tsv, volume

from normscan.bids import bids_table, build_name, parse_name
from normscan.cli.main import main
from normscan.cohort import Cohort, CohortRow, read_bids
from normscan.errors import ArgumentError, CohortError
from normscan.io import read_scan


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return raw_tree(tmp_path / "raw")


def by_name(cohort: Cohort) -> dict[str, CohortRow]:
    return {row.scan: row for row in cohort}


# ------------------------------------------------------------------------ names


def test_names_are_parsed_and_built_in_the_order_of_bids():
    entities, suffix = parse_name(
        "sub-01_ses-2_task-rest_acq-hi_run-02_echo-1_space-MNI_T1w.nii.gz"
    )
    assert suffix == "T1w"
    shuffled = dict(sorted(entities.items(), reverse=True))
    assert (
        build_name(shuffled, suffix) == "sub-01_ses-2_task-rest_acq-hi_run-02_echo-1_space-MNI_T1w"
    )
    for bad in ("T1w.nii.gz", "sub-01.nii.gz", "sub-_T1w.nii", "ses-1_T1w.nii", "sub-01_x_T1w.nii"):
        assert parse_name(bad) is None, bad


# ------------------------------------------------------------------------ raw data sets


def test_a_raw_data_set_is_a_cohort(raw: Path):
    cohort = Cohort.read(raw)
    assert [row.scan for row in cohort] == [
        "sub-01_ses-1_T1w", "sub-01_ses-2_T1w", "sub-02_ses-1_T1w", "sub-03_ses-1_T1w",
        "sub-04_ses-1_T1w", "sub-05_ses-1_T1w",
    ]  # fmt: skip
    assert [row.label for row in cohort] == [0, 0, 0, 0, 1, 1]
    first = cohort[0]
    assert (first.subject, first.site) == ("sub-01", "A")
    assert first.columns["age"] == 21 and first.columns["session"] == "ses-1"
    assert first.load().shape == (8, 9, 10)
    # The sessions of a subject stay together.
    assert len({row.split for row in cohort if row.subject == "sub-01"}) == 1
    said = " ".join(cohort.notes)
    assert "healthy: control; anomalous: patient" in said
    assert "sub-99" in said and "1 subjects in participants.tsv" in said


def test_two_suffixes_are_channels_and_a_missing_one_is_said(raw: Path):
    cohort = read_bids(raw, ("T1w", "FLAIR"))
    assert cohort.channels == ("t1w", "flair") and len(cohort) == 6
    rows = {row.subject: row for row in cohort if row.columns["session"] == "ses-1"}
    names = [path.name for path in rows["sub-02"].paths]
    assert names == ["sub-02_ses-1_T1w.nii.gz", "sub-02_ses-1_FLAIR.nii.gz"]
    both = rows["sub-02"].load()
    assert both.channels == ("t1w", "flair")
    np.testing.assert_array_equal(both.data[1], read_scan(rows["sub-02"].paths[1]).data[0])
    assert rows["sub-04"].missing == ("flair",)
    assert "1 of 6 scans have no FLAIR." in cohort.notes


def test_runs_pair_by_number_and_filters_choose(tmp_path: Path):
    root = describe(tmp_path / "raw")
    for name in ("run-1_T1w", "run-2_T1w", "run-01_FLAIR", "run-02_FLAIR", "acq-lo_run-1_T1w"):
        volume(root / f"sub-1/anat/sub-1_{name}.nii.gz", len(name))
    cohort = read_bids(root, ("T1w", "FLAIR"))
    pairs = [[p.name.removeprefix("sub-1_") for p in row.paths] for row in cohort]
    assert pairs == [["run-1_T1w.nii.gz", "run-01_FLAIR.nii.gz"],
                     ["run-2_T1w.nii.gz", "run-02_FLAIR.nii.gz"]]  # fmt: skip
    assert any("1 more files" in note for note in cohort.notes)
    assert len(read_bids(root, "T1w")) == 3
    assert any("told apart by acq, run" in note for note in read_bids(root, "T1w").notes)
    for filters, count in (
        ({"acq": "lo"}, 1),
        ({"acq": None}, 2),
        ({"run": 1}, 2),
        ({"run": ["01", 2], "acq": None}, 2),
        ({"sub": "sub-1", "datatype": "anat"}, 3),
    ):
        assert len(read_bids(root, "T1w", filters)) == count, filters
    with pytest.raises(CohortError, match="holds no T1w that fits"):
        read_bids(root, "T1w", {"acq": "none"})
    with pytest.raises(ArgumentError, match="'aqc' is no entity of BIDS.*'acq'"):
        read_bids(root, "T1w", {"aqc": "lo"})
    with pytest.raises(CohortError, match="holds no T1W that fits.*'T1w'"):
        read_bids(root, "T1W")


def test_session_and_scan_tables_go_before_the_participants(raw: Path):
    tsv(
        raw / "sub-01/sub-01_sessions.tsv",
        "session_id age diagnosis",
        "ses-1 50 n/a",
        "ses-2 51 MS",
    )
    tsv(raw / "sub-02/sub-02_sessions.tsv", "session_id age", "ses-1 n/a")
    tsv(raw / "sub-01/ses-2/sub-01_ses-2_scans.tsv", "filename age scanner",
        "anat/sub-01_ses-2_T1w.nii.gz n/a S7", "anat/sub-01_ses-2_FLAIR.nii.gz 99 S8")  # fmt: skip
    table, _ = bids_table(raw, "T1w")
    rows = {(r["subject"], r["session"]): r for r in table.to_dict("records")}
    assert [rows["sub-01", s]["age"] for s in ("ses-1", "ses-2")] == ["50", "51"]
    assert [rows["sub-01", s]["scanner"] for s in ("ses-1", "ses-2")] == ["", "S7"]
    assert rows["sub-02", "ses-1"]["age"] == "22"  # its session doesn't know better
    flair, _ = bids_table(raw, "FLAIR")
    assert flair["age"].tolist()[:2] == ["50", "99"]


def test_ignored_hidden_misplaced_and_absent_files_are_left_out(raw: Path):
    volume(raw / "sub-06/anat/sub-06_T1w.nii.gz", 77)
    volume(raw / "sub-05/ses-1/anat/sub-04_ses-1_acq-x_T1w.nii.gz", 78)
    (raw / "sub-05/ses-1/anat/sub-05_ses-1_acq-x_T1w.nii.gz").symlink_to("../../.git/annex/x")
    (raw / "sub-05/ses-1/loop").symlink_to(raw / "sub-05", target_is_directory=True)
    (raw / "sub-03/ses-1/again").symlink_to(raw / "sub-03/ses-1/anat", target_is_directory=True)
    (raw / ".bidsignore").write_text("# comment\nsub-06/\n*_ses-2_*\n")
    cohort = read_bids(raw, "T1w")
    assert [row.scan for row in cohort] == [f"sub-0{n}_ses-1_T1w" for n in range(1, 6)]
    said = " ".join(cohort.notes)
    assert "3 images were left out by .bidsignore" in said  # sub-06 and T1w, FLAIR of ses-2
    assert "1 images are links to nothing" in said
    assert "sub-05/ses-1/anat/sub-04_ses-1_acq-x_T1w.nii.gz" in said


def test_columns_that_would_hide_the_cohorts_own_are_renamed(raw: Path):
    tsv(raw / "participants.tsv", "participant_id path Subject masks label session",
        *[f"sub-{sub} p{sub} s x {int(sub) % 2} y" for sub in GROUPS])  # fmt: skip
    cohort = read_bids(raw, "T1w")
    first = cohort[0]
    assert first.columns["bids_path"] == "p01" and first.columns["bids_Subject"] == "s"
    assert first.columns["masks"] == "x" and first.columns["session"] == "ses-1"
    assert [row.label for row in cohort] == [1, 1, 0, 1, 0, 1]


def test_files_without_a_row_and_no_table_at_all(raw: Path):
    tsv(raw / "participants.tsv", "participant_id group", "01 control", "sub-04 patient")
    cohort = read_bids(raw, "T1w")
    assert {row.subject: row.label for row in cohort} == {
        "sub-01": 0, "sub-02": None, "sub-03": None, "sub-04": 1, "sub-05": None,
    }  # fmt: skip
    assert any("3 subjects with images aren't in participants.tsv" in n for n in cohort.notes)
    (raw / "participants.tsv").unlink()
    cohort = read_bids(raw, "T1w")
    assert {row.label for row in cohort} == {None}
    assert any("so all labels are unknown" in n for n in cohort.notes)


# ------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("rule", "labels"),
    [
        ("group:control=0,patient=1", [0, 0, 1, 1]),
        ("group:control=0", [0, 0, None, None]),
        ("group:patient=0,*=1", [1, 1, 0, 0]),
        ({"group": {"control": 1, "patient": 0}}, [1, 1, 0, 0]),
        ("group", [0, 0, 1, 1]),
        ("iq:low=0,high=1", [0, 1, None, 1]),
        (None, [0, 0, 1, 1]),
    ],
)
def test_label_rules(tmp_path: Path, rule, labels):
    root = describe(tmp_path)
    for number in range(4):
        volume(root / f"sub-{number}/anat/sub-{number}_T1w.nii.gz", number)
    tsv(root / "participants.tsv", "participant_id group iq",
        "sub-0 control low", "sub-1 control high", "sub-2 patient n/a", "sub-3 patient high")  # fmt: skip
    table, notes = bids_table(root, label=rule)
    assert [int(v) if v else None for v in table["label"]] == labels
    assert any(note.startswith("Labels by the column") for note in notes)


@pytest.mark.parametrize(
    ("column", "values", "labels"),
    [
        ("dx", ["CN", "AD", "MCI"], [0, 1, 1]),
        ("Diagnosis", ["Healthy", "MS", "n/a"], [0, 1, None]),
        ("label", ["0", "1", "n/a"], [0, 1, None]),
        ("group", ["1", "2", "1"], [None, None, None]),
        ("colour", ["control", "red", "red"], [None, None, None]),
    ],
)
def test_labels_are_taken_from_known_columns_and_words_only(tmp_path, column, values, labels):
    root = describe(tmp_path)
    for number in range(3):
        volume(root / f"sub-{number}/anat/sub-{number}_T1w.nii.gz", number)
    rows = [f"sub-{n} {value}" for n, value in enumerate(values)]
    tsv(root / "participants.tsv", f"participant_id {column}", *rows)
    table, _ = bids_table(root)
    assert [int(v) if v else None for v in table["label"]] == labels


@pytest.mark.parametrize(
    "rule", ["group:control", "group:control=2", ":a=0", "group:=0", {"a": {}, "b": {}}]
)
def test_a_wrong_rule_is_explained(raw: Path, rule):
    with pytest.raises(ArgumentError, match="group:control=0,patient=1"):
        read_bids(raw, "T1w", label=rule)


def test_a_rule_about_another_column_or_without_a_healthy_word(raw: Path):
    with pytest.raises(CohortError, match="no column 'gruop'.*'group'"):
        read_bids(raw, "T1w", label="gruop:control=0")
    with pytest.raises(CohortError, match="no value of 'age' is known to mean healthy"):
        read_bids(raw, "T1w", label="age")


# ------------------------------------------------------------------------ derivatives


@pytest.fixture
def derived(raw: Path) -> Path:
    """fmriprep-like images with brain masks, and lesion masks in a folder of their own."""
    prep = describe(raw / "derivatives/prep", "derivative")
    lesions = describe(raw / "derivatives/lesions", "derivative")
    inside = np.zeros((8, 9, 10), np.uint8)
    inside[2:6, 2:6, 2:6] = 1
    for number, sub in enumerate(GROUPS):
        base = f"sub-{sub}/ses-1/anat/sub-{sub}_ses-1"
        for space in ("", "space-MNI152NLin2009cAsym_"):
            for desc in ("preproc", "smooth"):
                volume(prep / f"{base}_{space}desc-{desc}_T1w.nii.gz", number + 50 * bool(space))
            volume(prep / f"{base}_{space}desc-brain_mask.nii.gz", values=inside)
            volume(prep / f"{base}_{space}label-GM_probseg.nii.gz", number)
        volume(prep / f"{base}_desc-aseg_dseg.nii.gz", values=inside)
        if sub in ("04", "05"):
            volume(lesions / f"{base}_label-lesion_mask.nii.gz", values=inside)
            volume(lesions / f"{base}_space-MNI152NLin2009cAsym_label-L_desc-T1lesion_mask.nii.gz",
                   values=inside)  # fmt: skip
    return raw


def test_derivatives_with_their_masks(derived: Path):
    native = read_bids(derived, "T1w", derivatives="prep")
    assert [row.paths[0].name for row in native][:2] == [
        "sub-01_ses-1_desc-preproc_T1w.nii.gz", "sub-02_ses-1_desc-preproc_T1w.nii.gz",
    ]  # fmt: skip
    assert all(row.foreground.name.endswith("_ses-1_desc-brain_mask.nii.gz") for row in native)
    assert [row.mask.name if row.mask else "" for row in native] == [
        "", "", "", "sub-04_ses-1_label-lesion_mask.nii.gz", "sub-05_ses-1_label-lesion_mask.nii.gz",
    ]  # fmt: skip
    assert [row.label for row in native] == [0, 0, 0, 1, 1]
    row = native[4]
    assert row.load_mask(row.load()).sum() == 64 == row.load_foreground(row.load()).sum()
    assert any("took desc preproc, left out smooth (5)" in n for n in native.notes)

    template = read_bids(derived, "T1w", derivatives="prep", space="MNI152NLin2009cAsym")
    assert all("space-MNI152NLin2009cAsym" in row.foreground.name for row in template)
    assert template[4].mask.name.endswith("label-L_desc-T1lesion_mask.nii.gz")
    # The same, pointed at directly: the table of the raw data set is found.
    alone = Cohort.read(derived / "derivatives/prep")
    assert [row.label for row in alone] == [0, 0, 0, 1, 1]
    # A raw image takes the lesion mask of its space, no foreground of another pipeline.
    rows = by_name(read_bids(derived, "T1w"))
    assert rows["sub-04_ses-1_T1w"].mask.name == "sub-04_ses-1_label-lesion_mask.nii.gz"
    assert rows["sub-04_ses-1_T1w"].foreground is None
    assert rows["sub-01_ses-2_T1w"].mask is None


def test_an_unclear_variant_is_refused_and_no_derivatives_named(derived: Path):
    with pytest.raises(CohortError, match="lesionz: no such folder.*'lesions'"):
        read_bids(derived, derivatives="lesionz")
    for path in (derived / "derivatives/prep").glob("sub-*/ses-1/anat/*desc-preproc_T1w*"):
        path.rename(path.with_name(path.name.replace("preproc", "sharp")))
    with pytest.raises(CohortError, match="several values of desc: sharp, smooth"):
        read_bids(derived, derivatives="prep")
    assert len(read_bids(derived, "T1w", {"desc": "sharp"}, derivatives="prep")) == 5
    only = [
        p for p in (derived / "derivatives/prep").rglob("*_T1w.nii.gz") if "space" not in p.name
    ]
    for path in only:
        path.unlink()
    cohort = read_bids(derived, "T1w", {"desc": "sharp"}, derivatives="prep")
    assert all("space-MNI" in row.scan for row in cohort)


def test_several_raters_are_told_and_chosen(raw: Path):
    one = np.ones((8, 9, 10), np.uint8)
    for rater in ("a", "b"):
        folder = raw / "derivatives/man/sub-04/ses-1/anat"
        volume(folder / f"sub-04_ses-1_label-lesion_desc-{rater}_mask.nii.gz", values=one)
    cohort = read_bids(raw, "T1w")
    assert by_name(cohort)["sub-04_ses-1_T1w"].mask.name.endswith("desc-a_mask.nii.gz")
    assert any("several mask files, told apart by desc" in note for note in cohort.notes)
    chosen = read_bids(raw, "T1w", masks={"desc": "b"})
    assert by_name(chosen)["sub-04_ses-1_T1w"].mask.name.endswith("desc-b_mask.nii.gz")
    assert not any("several mask files" in note for note in chosen.notes)


# ------------------------------------------------------------------------ broken input


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"participant_id\tage\nsub-01\t3\t4\n", "line 2 has 3 cells, the header 2"),
        (b"participant_id\tage\nsub-01\t3\n\nsub-02\n", "line 4 has 1 cells"),
        (b"participant_id\tage\nsub-01\t3\nsub-01\t4\n", "line 3: .*'sub-01' stands twice"),
        (b"participant_id\tage\n\t3\n", "line 2: .*is empty"),
        (b"participant_id,age\nsub-01,3\n", "line 1 has no column participant_id"),
        (b"subject\tage\nsub-01\t3\n", "line 1 has no column participant_id"),
        (b"participant_id\tage\tage\nsub-01\t3\t4\n", "line 1 has the column age twice"),
        (b"participant_id\tage\nsub-01\t\xff\xfe\n", "isn't UTF-8"),
        (b"", "line 1 has no column"),
    ],
)
def test_a_broken_table_is_named_with_its_line(raw: Path, content: bytes, reason: str):
    (raw / "participants.tsv").write_bytes(content)
    with pytest.raises(CohortError, match=reason) as caught:
        read_bids(raw, "T1w")
    assert str(raw / "participants.tsv") in str(caught.value)


def test_tables_of_other_systems_are_read(raw: Path):
    text = "\ufeffparticipant_id\tgroup\r\nsub-01\tcontrol\r\nsub-04\tpatient\r\n"
    (raw / "participants.tsv").write_bytes(text.encode())
    assert {r.subject: r.label for r in read_bids(raw, "T1w")}["sub-04"] == 1


def test_no_data_set_and_an_empty_one(tmp_path: Path):
    with pytest.raises(CohortError, match="no such folder"):
        read_bids(tmp_path / "none")
    root = describe(tmp_path / "raw")
    with pytest.raises(CohortError, match=f"{root}: holds no image named as in BIDS"):
        Cohort.read(root)
    (root / "sub-01").write_text("a file")
    with pytest.raises(CohortError, match="holds no image named as in BIDS"):
        Cohort.read(root)


# ------------------------------------------------------------------------ the command


def test_the_command_writes_a_cohort_table(raw: Path, tmp_path: Path, capsys):
    out = tmp_path / "tables/cohort.csv"
    options = ["--suffix", "T1w,FLAIR", "--label", "group:control=0,patient=1",
               "--filters", '{"ses": "1"}', "--fractions", "[0.4,0.3,0.3]"]  # fmt: skip
    assert main(["bids", str(raw), "--out", str(out), *options]) == 0
    assert "Labels by the column group" in capsys.readouterr().out
    cohort = Cohort.read(out)
    assert [row.label for row in cohort] == [0, 0, 0, 1, 1]
    assert sorted(row.split for row in cohort)[-3:] == ["test", "train", "val"]
    assert cohort[0].paths[0].samefile(raw / "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz")
    assert main(["bids", str(raw / "none"), "--out", str(out)]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_masks_of_other_sessions_runs_and_tissues_are_not_taken(raw: Path):
    one = np.ones((8, 9, 10), np.uint8)
    folder = raw / "derivatives/man/sub-01"
    volume(folder / "ses-2/anat/sub-01_ses-2_desc-tumour_dseg.nii.gz", values=one)
    volume(folder / "ses-1/anat/sub-01_ses-1_run-3_label-lesion_mask.nii.gz", values=one)
    volume(folder / "anat/sub-01_label-lesion_mask.nii.gz", values=one)
    volume(folder / "ses-1/anat/sub-01_ses-1_desc-tissue_dseg.nii.gz", values=one)
    volume(folder / "ses-1/anat/sub-01_ses-1_desc-anomaly_mask.nii.gz", values=one)
    volume(folder / "ses-1/anat/sub-01_ses-1_label-lesion_defacemask.nii.gz", values=one)
    volume(raw / "sub-02/ses-1/anat/sub-02_ses-1_space-T1w_label-x_roi.nii.gz", values=one)
    rows = by_name(read_bids(raw, "T1w"))
    found = {name: row.mask.name for name, row in rows.items() if row.mask}
    assert found == {
        "sub-01_ses-2_T1w": "sub-01_ses-2_desc-tumour_dseg.nii.gz",
        "sub-02_ses-1_T1w": "sub-02_ses-1_space-T1w_label-x_roi.nii.gz",
    }
    # What is drawn in the space of the T1w lies on no FLAIR.
    assert by_name(read_bids(raw, "FLAIR"))["sub-02_ses-1_FLAIR"].mask is None


def test_the_same_image_in_two_formats_is_one_scan(raw: Path):
    volume(raw / "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii", 3)
    cohort = read_bids(raw, "T1w")
    assert len(cohort) == 6
    assert any("stands there in two formats" in note for note in cohort.notes)


def test_the_suffix_of_most_subjects_is_the_default(raw: Path):
    assert all(row.paths[0].name.endswith("_T1w.nii.gz") for row in Cohort.read(raw))
    volume(raw / "sub-04/ses-1/anat/sub-04_ses-1_FLAIR.nii.gz")  # as many as T1w
    assert all(row.paths[0].name.endswith("_T1w.nii.gz") for row in Cohort.read(raw))
    for path in list(raw.glob("sub-0[123]/ses-1/anat/*_T1w.nii.gz")):
        path.unlink()
    for sub in "123":
        volume(raw / f"sub-0{sub}/ses-1/dwi/sub-0{sub}_ses-1_dwi.nii.gz")
    # FLAIR of all, T1w of 01, 04 and 05: what isn't anatomical doesn't count.
    assert {row.paths[0].name.rpartition("_")[2] for row in Cohort.read(raw)} == {"FLAIR.nii.gz"}


def test_an_absurd_table_is_refused_before_it_is_read(raw: Path):
    with (raw / "participants.tsv").open("r+b") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(CohortError, match="participants.tsv: is larger than 64 MiB"):
        read_bids(raw, "T1w")
