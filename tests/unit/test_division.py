"""A detector knows its scans when they come back, by content, name and subject."""

from __future__ import annotations

import hashlib
import shutil

import numpy as np
import pandas as pd
import pytest

import normscan as ns
from normscan.cohort import Cohort, Division
from normscan.errors import ArgumentError, CohortError, OutputError
from normscan.training.folder import DIVISION


@pytest.fixture
def folder(tmp_path):
    """Twelve healthy pictures without a split."""
    rng = np.random.default_rng(1)
    rows = []
    for i in range(12):
        np.save(tmp_path / f"h{i:02d}.npy", rng.random((24, 20)).astype(np.float32))
        rows.append({"path": f"h{i:02d}.npy", "label": 0})
    pd.DataFrame(rows).to_csv(tmp_path / "all.csv", index=False)
    pd.DataFrame(rows[:9]).to_csv(tmp_path / "some.csv", index=False)
    return tmp_path


def fit(table, out=None, resume=False, fractions=(0.4, 0.3, 0.3)):
    detector = ns.create("mean_image", preset="tiny", calibration="split", gate=False)
    return detector.fit(Cohort.read(table, fractions=fractions), out, device="cpu", resume=resume)


def splits(cohort):
    return dict(zip(cohort.table["scan"], cohort.table["split"], strict=True))


def test_every_scan_is_written_with_its_hash(folder, tmp_path):
    detector = fit(folder / "all.csv", tmp_path / "run")
    table = pd.read_csv(tmp_path / "run" / DIVISION).set_index("scan")
    assert splits(Cohort.read(folder / "all.csv", fractions=(0.4, 0.3, 0.3))) == dict(
        table["split"]
    )
    for scan, digest in table["sha256"].items():
        assert digest == hashlib.sha256((folder / f"{scan}.npy").read_bytes()).hexdigest()
    again = ns.load(tmp_path / "run")
    assert again.division == detector.division
    again.save(tmp_path / "copy")
    assert ns.load(tmp_path / "copy").division == detector.division


def test_fractions_of_a_fit_are_never_guessed_again(folder, tmp_path):
    cohort = Cohort.read(folder / "all.csv", fractions=(0.4, 0.3, 0.3))
    detector = fit(folder / "all.csv")
    assert splits(detector.read_cohort(folder / "all.csv")) == splits(cohort)
    # By the seed alone, other scans would test.
    assert splits(Cohort.read(folder / "all.csv")) != splits(cohort)


def test_scans_are_known_by_content_under_another_name_and_new_ones_test(folder):
    detector = fit(folder / "some.csv")
    before = splits(detector.read_cohort(folder / "some.csv"))
    for path in folder.glob("h*.npy"):
        path.rename(folder / f"x{path.name}")
    table = pd.read_csv(folder / "all.csv")
    table["path"] = "x" + table["path"]
    table.to_csv(folder / "renamed.csv", index=False)
    after = splits(detector.read_cohort(folder / "renamed.csv"))
    assert {name.removeprefix("x"): s for name, s in after.items()} == {
        **before, "h09": "test", "h10": "test", "h11": "test",
    }  # fmt: skip


def test_a_subject_goes_where_its_known_scans_are(folder):
    detector = fit(folder / "some.csv")
    train = next(m for m in detector.division.members if m.split == "train")
    table = pd.read_csv(folder / "all.csv").assign(subject=[f"s{i}" for i in range(12)])
    owner = table.loc[table["path"] == f"{train.scan}.npy", "subject"].item()
    table.loc[table["path"] == "h11.npy", "subject"] = owner
    table.to_csv(folder / "sessions.csv", index=False)
    assert splits(detector.read_cohort(folder / "sessions.csv"))["h11"] == "train"


def test_scans_prepared_anew_are_known_by_name_and_that_is_said(folder):
    detector = fit(folder / "all.csv")
    before = splits(detector.read_cohort(folder / "all.csv"))
    for path in folder.glob("h*.npy"):
        np.save(path, np.load(path) * 2)
    cohort = detector.read_cohort(folder / "all.csv")
    assert splits(cohort) == before
    assert "12 scans were known by their name" in " ".join(cohort.notes)


def test_scans_that_trained_are_told_apart_in_a_table_with_other_splits(folder):
    detector = fit(folder / "all.csv")
    roles = {m.scan: detector.role_of(m.split) for m in detector.division.members}
    assert sorted(roles.values()) == [""] * 4 + ["calibrated"] * 4 + ["trained"] * 4
    table = pd.read_csv(folder / "all.csv").assign(split="test")
    table.to_csv(folder / "wrong.csv", index=False)
    rows = list(detector.read_cohort(folder / "wrong.csv").part("test"))
    assert {row.scan: detector.seen(row.paths) for row in rows} == roles
    told = " ".join(detector.doubts(rows, "test"))
    assert "4 of these 12 scans" in told and "trained the detector" in told
    assert "set its threshold" in told
    assert not detector.doubts([row for row in rows if not roles[row.scan]], "test")
    for row in rows:
        notes = detector.predict(row.paths[0]).notes
        assert any("trained" in n or "threshold" in n for n in notes) == bool(roles[row.scan])


@pytest.mark.parametrize("finished", [True, False])
def test_other_images_are_not_resumed(folder, tmp_path, finished):
    out = tmp_path / "run"
    fit(folder / "all.csv", out)
    if not finished:
        (out / "detector.json").unlink()
    fit(folder / "all.csv", out, resume=True)
    known = Cohort.read(folder / "all.csv", fractions=(0.4, 0.3, 0.3)).part("train")
    path = known[0].paths[0]
    state = path.stat()
    np.save(path, 1 - np.load(path))  # of the same size
    import os

    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    if not finished:
        (out / "detector.json").unlink()
    with pytest.raises(OutputError, match=f"1 scans have changed.*{known[0].scan}"):
        fit(folder / "all.csv", out, resume=True)


def test_what_a_killed_process_left_half_written_blocks_no_run(folder, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".tmp-12345678-config.json").write_text("{")
    fit(folder / "all.csv", out)
    (out / "notes.txt").touch()
    shutil.copytree(out, tmp_path / "mine")
    (tmp_path / "mine" / "config.json").unlink()
    with pytest.raises(OutputError, match="no run folder"):
        fit(folder / "all.csv", tmp_path / "mine")


def test_a_copy_of_a_scan_that_trained_is_known_whatever_the_split_says(folder):
    table = pd.read_csv(folder / "all.csv")
    shutil.copy(folder / "h05.npy", folder / "a_copy.npy")
    table.loc[0, "path"] = "a_copy.npy"
    table["split"] = ["test"] * 2 + ["val"] * 3 + ["train"] * 7
    table.to_csv(folder / "copies.csv", index=False)
    detector = fit(folder / "copies.csv")
    rows = list(detector.read_cohort(folder / "copies.csv").part("test"))
    assert [detector.seen(row.paths) for row in rows] == ["trained", ""]


def test_a_damaged_table_is_said_to_be_so(tmp_path):
    (tmp_path / DIVISION).write_text("scan,split\na,train\n")
    with pytest.raises(CohortError, match="damaged"):
        Division.read(tmp_path / DIVISION)


def test_wrong_values_are_refused_before_files_are_opened(tmp_path):
    with pytest.raises(ArgumentError, match="learning rate"):
        ns.create("ae_dense", preset="tiny", lr=-1)
    with pytest.raises(ArgumentError, match="dims=4"):
        ns.create("ae_dense", preset="tiny", dims=4)


def test_arrays_scans_files_and_tables_fit_alike(folder):
    files = sorted(folder.glob("h*.npy"))
    arrays = [np.load(path) for path in files]

    def score(data):
        detector = ns.create("mean_image", preset="tiny", calibration="split", gate=False)
        return detector.fit(data, device="cpu").predict(arrays[0]).score

    wanted = score(files)
    assert score(arrays) == wanted
    assert score([ns.Scan.from_array(array) for array in arrays]) == wanted
    table = pd.DataFrame({"path": [str(path) for path in files], "label": 0})
    assert splits(Cohort.read(table, root=folder)) == splits(Cohort.from_table(table, folder))
    for wrong in (np.stack(arrays), 3, [], [3]):
        with pytest.raises(ArgumentError):
            score(wrong)
