"""Who a patient is stays with the user: keyed pseudonyms, and no planted name in what travels."""

from __future__ import annotations

import hashlib
import hmac
import json
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.support import dicom_files as D
from tests.support import dicom_planes as G

import normscan as ns
from normscan import identity
from normscan.benchmark.cell import run_job
from normscan.cli.main import main
from normscan.cohort.dicom import dicom_rows
from normscan.identity import pseudonym, secret_path, without_folders

PLANTED = ("ZZFILE", "ZZFOLDER", "ZZSUBJECT", "ZZSCAN")


@pytest.fixture
def secret(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMSCAN_SECRET", str(tmp_path / "conf" / "secret"))
    return tmp_path / "conf" / "secret"


# ---------------------------------------------------------------- the secret


def test_a_pseudonym_is_keyed_with_the_users_secret(secret, monkeypatch):
    first = pseudonym("4711")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600 and len(secret.read_bytes()) == 32
    assert first == hmac.new(secret.read_bytes(), b"4711", hashlib.sha256).hexdigest()[:8]
    assert first == pseudonym("4711") != pseudonym("4712")
    assert first != hashlib.sha256(b"4711").hexdigest()[:8]
    monkeypatch.setenv("NORMSCAN_SECRET", str(secret.parent / "other"))
    assert pseudonym("4711") != first
    assert sorted(p.name for p in secret.parent.iterdir()) == ["other", "secret"]


def test_where_the_secret_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("NORMSCAN_SECRET")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert secret_path() == tmp_path / "normscan" / "secret"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert secret_path() == tmp_path / "home" / ".config" / "normscan" / "secret"


def test_without_a_place_for_it_a_run_has_its_own(monkeypatch):
    """And the processes that it starts have the same."""
    monkeypatch.setenv("NORMSCAN_SECRET", "/dev/null/secret")
    monkeypatch.delenv(identity._HERE, raising=False)
    with pytest.warns(UserWarning, match="can't be kept there"):
        first = pseudonym("4711")
    code = "from normscan.identity import pseudonym; print(pseudonym('4711'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == first
    monkeypatch.delenv(identity._HERE)


def test_patients_of_dicom_are_keyed(secret, tmp_path):
    values = np.random.default_rng(0).integers(0, 900, (3, 8, 8)).astype(float)
    D.write_series(tmp_path / "a", G.make_planes(count=3, shape=(8, 8)), values, "CT")
    ((row,), _) = dicom_rows(tmp_path / "a")
    patient = D.PATIENT["PatientID"]
    assert row["subject"] == f"patient-{pseudonym(patient)}"
    assert hashlib.sha256(patient.encode()).hexdigest()[:8] not in row["subject"]


# ---------------------------------------------------------------- what travels


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/data/ZZFOLDER/cohort.csv", "cohort.csv"),
        ("--cohort=/data/ZZ/cohort.csv", "--cohort=cohort.csv"),
        ("../ZZ/run/", "run"),
        ("acdc=/data/ZZ/acdc,ixi=/data/ZZ/ixi", "acdc=acdc,ixi=ixi"),
        (
            '{"weights": "/data/ZZ/net.pth", "sizes": [1, 2]}',
            '{"weights": "net.pth", "sizes": [1, 2]}',
        ),
        ("--arguments={/ZZ/no-json", "--arguments=no-json"),
        ("dae", "dae"),
        ("--fpr=0.05", "--fpr=0.05"),
        ("https://host/a/b", "https://host/a/b"),
    ],
)
def test_a_command_is_told_without_folders(given, kept):
    assert without_folders(given) == kept
    with identity.keeping_names():
        assert without_folders(given) == given


@pytest.fixture(scope="module")
def planted(toy, tmp_path_factory):
    """A cohort whose files, folder and subjects are named after people; one of each part is torn."""
    folder = tmp_path_factory.mktemp("planted") / "ZZFOLDER_Doe^Jane"
    folder.mkdir()
    source = toy(2, 1)
    table = pd.read_csv(source, dtype=str, keep_default_na=False)
    table = table[table["split"] != "extra"].groupby(["split", "label"]).tail(6).copy()
    for i, place in enumerate(table.index):
        row = table.loc[place]
        name = f"ZZFILE{i}_Doe.npy"
        np.save(folder / name, np.load(source.parent / row["path"]))
        table.loc[place, ["path", "subject", "scan"]] = [name, f"ZZSUBJECT{i}", f"ZZSCAN{i}"]
        if row["mask"]:
            table.loc[place, "mask"] = str(source.parent / row["mask"])
    for split in ("train", "val", "test"):
        first = table[(table["split"] == split) & (table["label"] == "0")]["path"].iloc[0]
        (folder / first).write_bytes(f"torn {split}".encode())
    table.to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def test_no_planted_name_is_in_a_detector(planted, tmp_path, monkeypatch, capsys):
    """Weights, ``detector.json`` and card are what travels; beside them the names come back."""
    run = tmp_path / "run"
    command = ["fit", "mean_image", "--cohort", str(planted), "--out", str(run)]
    command += ["--size", "32", "--calibration", "split", "--fpr", "0.2"]
    monkeypatch.setattr(sys, "argv", ["normscan", *command])
    excluded = pd.read_csv(planted)["scan"].iloc[2]
    assert main([*command, "--exclude", f"{excluded}=moved"]) == 0
    for name in ("detector.json", "card.md", "model.safetensors"):
        content = (run / name).read_bytes()
        assert not [p for p in (*PLANTED, str(planted.parent)) if p.encode() in content], name
    about = json.loads((run / "detector.json").read_text())
    assert about["training"]["excluded"][0]["scan"].startswith("scan-")
    assert about["training"]["excluded"][0]["reason"] == "moved"
    detector = ns.load(run, "cpu")
    assert detector.training["excluded"][0]["scan"] == excluded
    assert detector.training["left_out"][0].startswith("ZZSCAN")
    assert detector.training["healthy"]["sets_threshold"].startswith("ZZSCAN")
    assert detector.gate.nearest.names[0].startswith("ZZSCAN")
    (run / "division.csv").unlink()
    assert ns.load(run, "cpu").training["excluded"][0]["scan"].startswith("scan-")


def test_names_stay_where_that_is_asked_for(planted, tmp_path):
    run = tmp_path / "run"
    command = ["fit", "mean_image", "--cohort", str(planted), "--out", str(run)]
    assert main([*command, "--size", "32", "--calibration", "split", "--keep-names"]) == 0
    about = json.loads((run / "detector.json").read_text())
    assert about["training"]["left_out"][0].startswith("ZZSCAN")


def test_results_name_no_file_and_no_folder(planted, tmp_path, monkeypatch):
    """Scans and subjects are the user's own names for them; files and folders are left out."""
    run = tmp_path / "ZZFOLDER" / "run"
    options = ["--size", "32", "--calibration", "split", "--fpr", "0.2", "--gate", "false"]
    assert main(["fit", "mean_image", "--cohort", str(planted), "--out", str(run), *options]) == 0
    commands = {
        "evaluate": [str(run), "--cohort", str(planted)],
        "limits": [str(run), "--cohort", str(planted), "--count", "1", "--replicates", "0"],
        "pitfalls": ["--cohort", str(planted)],
        "predict": [str(run), "--cohort", str(planted)],
    }
    for name, arguments in commands.items():
        out = tmp_path / name
        command = [name, *arguments, "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["normscan", *command])
        assert main(command) in (0, 1), name
        for file in (f for f in out.rglob("*") if f.is_file()):
            content = file.read_bytes()
            found = [p for p in ("ZZFILE", "ZZFOLDER", str(tmp_path)) if p.encode() in content]
            assert not found, (name, file.name, found)


def found_in(folder, names):
    """Which names stand in which files of a folder, in their content or in what they are called."""
    files = [f for f in folder.rglob("*") if f.is_file()]
    return [
        (str(file.relative_to(folder)), name)
        for file in files
        for name in names
        if name.encode() in file.read_bytes() or name in str(file.relative_to(folder))
    ]


def test_what_is_made_of_results_names_no_file_and_no_folder(
    planted, tmp_path, monkeypatch, capsys
):
    """Comparisons, groups, exports; scans keep the names that the user's table gives them."""
    home = tmp_path / "ZZFOLDER"
    options = ["--size", "32", "--calibration", "split", "--fpr", "0.2", "--gate", "false"]
    for name in ("mean_image", "image_statistics"):
        run = home / name
        assert main(["fit", name, "--cohort", str(planted), "--out", str(run), *options]) == 0
        command = ["evaluate", str(run), "--cohort", str(planted), "--baselines", "false"]
        assert main([*command, "--out", str(home / f"e-{name}")]) in (0, 1)
    evaluated = [str(home / f"e-{name}") for name in ("mean_image", "image_statistics")]
    made = tmp_path / "made"
    commands = [
        ["compare", *evaluated, "--out", str(made / "compare")],
        ["subgroups", evaluated[0], "--column", "label"],
        ["export", str(home / "mean_image"), "--to", "monai", "--out", str(made / "monai")],
        ["export", str(home / "mean_image"), "--to", "onnx", "--out", str(made / "a.onnx")],
    ]
    capsys.readouterr()
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["normscan", *command])
        assert main(command) == 0, command
    assert "ZZF" not in capsys.readouterr().out
    for place in (made, Path(evaluated[0])):
        assert found_in(place, ("ZZFILE", "ZZFOLDER", str(tmp_path))) == []
    for name in ("monai", "a.onnx"):  # which travel to others
        place = made / name if (made / name).is_dir() else made
        found = [f for f, _ in found_in(place, PLANTED) if name in f or place.name == name]
        assert not found


def test_tables_of_a_benchmark_name_no_file_and_no_folder(planted, tmp_path, monkeypatch):
    """``sets``, ``cells`` and ``logs`` are its workshop, which knows its images by their paths."""
    out = tmp_path / "ZZFOLDER" / "benchmark"
    command = ["benchmark", "local", "--data", f"toy={planted}", "--methods", "image_statistics"]
    command += ["--seeds", "1", "--preset", "tiny", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["normscan", *command])
    monkeypatch.setattr("normscan.benchmark.runner._in_processes", in_here)
    assert main(command) == 0
    found = found_in(out, (*PLANTED, str(tmp_path)))
    assert {Path(name).parts[0] for name, _ in found} <= {"sets", "cells", "models", "logs"}
    assert (out / "ranking.json").is_file()


def in_here(jobs, logs, workers, threads, bar):
    for job in jobs:
        run_job(job)
