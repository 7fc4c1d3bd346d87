"""What is written stays whole and says why it can't be: one writer, full disks, odd names."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import normscan as ns
from normscan.cli.main import main
from normscan.cohort.layouts import pictures_in
from normscan.diagnostics.page import markdown
from normscan.errors import CohortError, OutputError, ScanError, of_scan
from normscan.evaluation import evaluate
from normscan.io import atomic_path
from normscan.io.lock import one_writer
from normscan.io.sheets import inert, inert_table, revived, revived_table
from normscan.limits.sources import scan_source

HOLDS = """
import sys, time
from pathlib import Path
from normscan.io.lock import one_writer
with one_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def fitted(toy, tmp_path_factory):
    cohort = ns.Cohort.read(toy(2, 1))
    healthy = [row.scan for part in ("train", "val") for row in cohort.part(part)]
    cohort = cohort.select([row.scan in healthy[-10:] or row.split == "test" for row in cohort])
    options = {"preset": "tiny", "size": 32, "calibration": "split", "fpr": 0.2, "gate": False}
    out = tmp_path_factory.mktemp("fitted") / "run"
    return ns.create("mean_image", **options).fit(cohort, out), cohort, out


# ---------------------------------------------------------------- one writer


def test_a_dead_process_holds_nothing(tmp_path):
    """Whatever ends it: the lock is the system's, and there is no file to be left behind."""
    out = tmp_path / "a" / "b"
    command = [sys.executable, "-c", HOLDS, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another process writes there"), one_writer(out):
            raise AssertionError
        assert not list(out.iterdir())
        os.kill(other.pid, signal.SIGKILL)
    with one_writer(out):
        pass
    assert out.is_dir()  # the other made it


def test_nothing_is_left_where_nothing_was_written(tmp_path):
    with pytest.raises(ZeroDivisionError), one_writer(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with one_writer(tmp_path / "a"):
        (tmp_path / "a" / "x").touch()
    assert (tmp_path / "a" / "x").exists()
    with one_writer(None):
        pass
    with pytest.raises(OutputError, match="is a file"), one_writer(tmp_path / "a" / "x"):
        pass


def test_every_command_that_writes_a_folder_holds_it(fitted, tmp_path, capsys):
    _, cohort, run = fitted
    table = cohort.write(tmp_path / "cohort.csv")
    scan, out = str(next(iter(cohort)).paths[0]), tmp_path / "out"
    commands = {
        "fit": ["mean_image", "--cohort", table, "--size", 32, "--calibration", "split"],
        "predict": [run, scan],
        "evaluate": [run, "--cohort", table],
        "limits": [run, "--cohort", table, "--count", 1],
        "preprocess": [table, "--steps", "[percentile]"],
    }
    with one_writer(out):
        for name, arguments in commands.items():
            assert main([name, *map(str, arguments), "--out", str(out)]) == 2, name
            assert "another process writes there" in capsys.readouterr().err, name
        assert not list(out.iterdir())


# ---------------------------------------------------------------- full disks


@contextlib.contextmanager
def full(size):
    """Let no file grow beyond a size, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[0][1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])


@pytest.mark.parametrize("size", [400, 5_000, 30_000, 90_000])
def test_a_full_disk_is_said_with_the_file(fitted, tmp_path, capsys, size):
    """In training and in prediction, whichever file it is that doesn't fit."""
    _, cohort, run = fitted
    table, out = cohort.write(tmp_path / "cohort.csv"), tmp_path / "out"
    options = ["--preset", "tiny", "--size", "32", "--steps", "2", "--calibration", "split"]
    fit = ["ae_dense", "--cohort", str(table), "--out", str(out), *options]
    with full(size):
        code = main(["fit", *fit, "--gate", "false"])
    said = capsys.readouterr().err
    assert code == 2 and "Traceback" not in said
    assert f"{out}/" in said.splitlines()[-1] and "Check the free space" in said.splitlines()[-1]
    with full(size):
        main(["predict", str(run), str(next(iter(cohort)).paths[0]), "--out", str(tmp_path / "p")])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if size < 5_000:
        assert "can't be written" in said and "requested" not in said.partition("can't")[0]


def test_numpys_words_are_named(tmp_path):
    """NumPy says how many values were written and nothing else."""
    said = r"a\.npy: can't be written \(9 requested"
    with pytest.raises(OutputError, match=said), atomic_path(tmp_path / "a.npy"):
        raise OSError("9 requested and 4 written")
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        (tmp_path / "none").open()


def test_too_little_memory_is_no_traceback():
    for error in (
        MemoryError(),
        RuntimeError("could not create a primitive"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ):
        with pytest.raises(ScanError, match="^s1: there is too little memory"), of_scan("s1"):
            raise error
    with pytest.raises(RuntimeError, match="shapes"), of_scan("s1"):
        raise RuntimeError("shapes differ")


# ---------------------------------------------------------------- odd names


@pytest.mark.parametrize("text", ["=1+1", "+a", "-a", "@x", "\tx", "'=x", "''-x"])
def test_no_spreadsheet_runs_a_cell(text):
    assert inert(text) == "'" + text and revived(inert(text)) == text
    table = pd.DataFrame({text: [text, "b"], "n": [-1.5, 2]})
    written = inert_table(table)
    assert written.columns[0] == inert(text) and written.iloc[0, 0] == inert(text)
    pd.testing.assert_frame_equal(revived_table(written), table)


@pytest.mark.parametrize("value", ["-2.5", "+1e3", "-inf", "a=b", "'a", "", -1, None])
def test_numbers_and_plain_text_stay(value):
    assert inert(value) == value and revived(value) == value


def test_names_that_are_formulas_come_back(fitted, tmp_path, capsys):
    detector, cohort, _ = fitted
    table = cohort.table
    table["=x"] = "@y"
    table.loc[table["split"] == "test", "scan"] = [
        f"=HYPER{i}" for i in range((table["split"] == "test").sum())
    ]
    odd = ns.Cohort(table, cohort.root)
    for out in ("a", "b"):
        evaluate(detector, odd, tmp_path / out, baselines=())
    cells = pd.read_csv(tmp_path / "a" / "scans.csv", dtype=str)
    assert cells["scan"].str.startswith("'=HYPER").all() and "'=x" in cells.columns
    assert main(["subgroups", str(tmp_path / "a"), "--column", "=x"]) == 0
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0


def test_names_that_cant_be_shown_are_refused(toy, tmp_path):
    table = pd.read_csv(toy(2, 1), dtype=str, keep_default_na=False).head(3)
    table["path"] = [str(toy(2, 1).parent / p) for p in table["path"]]
    table.loc[1, "scan"] = "red\x1b[31m"
    table.drop(columns=["mask"]).to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(CohortError, match=r"'red\\x1b\[31m' in row 2 can't be a file name"):
        ns.Cohort.read(tmp_path / "c.csv")


def test_a_file_that_no_address_can_name_is_said(tmp_path):
    for name in ("a.npy", "b#slice=3.npy"):
        np.save(tmp_path / name, np.zeros((4, 4)))
    with pytest.warns(UserWarning, match=r"left out b#slice=3\.npy"):
        assert pictures_in(tmp_path) == ["a.npy"]


def test_a_page_of_markdown_runs_nothing():
    text = markdown({}, {"command": "a `<script>`", "text": "scans of <script>x</script>"})
    assert "<script" not in text and "&lt;script&gt;x" in text


# ---------------------------------------------------------------- other content


def test_an_evaluation_killed_between_its_files(fitted, tmp_path, monkeypatch):
    """The old results don't stand beside the new scans."""
    detector, cohort, _ = fitted
    evaluate(detector, cohort, tmp_path, baselines=())
    replace = os.replace

    def killed(source, target):
        if Path(target).name == "results.json":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(detector, cohort, tmp_path, split="val", baselines=(), overwrite=True)
    assert (tmp_path / "scans.csv").exists() and not (tmp_path / "results.json").exists()


def test_limits_go_on_with_the_same_images_only(fitted, tmp_path):
    """Not with others of the same names."""
    _, cohort, _ = fitted
    before = scan_source(cohort, "test", 0).about
    assert scan_source(cohort, "test", 0).about == before
    table = cohort.table
    chosen = (table["split"] == "test") & (table["label"] == 0)
    file = tmp_path / "other.npy"
    np.save(file, np.load(cohort.root / table.loc[chosen, "path"].iloc[0]) + 0.5)
    table.loc[table.index[chosen][0], "path"] = str(file)
    assert scan_source(ns.Cohort(table, cohort.root), "test", 0).about != before


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch, capsys):
    """MKL ends the process over it, with words of its own."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["methods"]) == 2
    assert "the working directory was removed" in capsys.readouterr().err
