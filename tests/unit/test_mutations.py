"""A sample of ``benchmarks/mutations.py``: changed files are read, or refused in one line."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
from tests.support import mutations as M

from normscan.cohort import Cohort
from normscan.errors import LONGEST, CohortError, OutputError, ScanError
from normscan.io import content_hash, read_mask, read_scan
from normscan.io.values import inherited

FOUND = [("detector.json", 39), ("detector.json", 143), ("detector.json", 527), ("onnx", 66),
         ("volumes", 519), ("volumes", 854), ("protocols", 63), ("tables", 34)]  # fmt: skip
"""Seeds that once ended in something else."""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    return M.kinds(tmp_path_factory.mktemp("good"))


def test_the_good_files_are_read(kinds, tmp_path):
    """Else a change shows nothing."""
    for name, kind in kinds.items():
        for n, (file, content) in enumerate(kind.seeds):
            place = tmp_path / f"{name}{n}"
            place.mkdir()
            (place / file).write_bytes(content)
            kind.read(place / file)


def test_changed_files_are_read_or_refused_in_one_line(kinds, tmp_path):
    counts: dict[str, int] = {}
    seeds = [(name, seed) for name, kind in kinds.items() for seed in range(int(kind.share * 160))]
    for name, seed in [*seeds, *FOUND]:
        place = tmp_path / f"{name}{seed}"
        place.mkdir(exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            what, more = M.outcome(kinds[name], place, seed)
        assert what in ("read", "one line"), (name, seed, more)
        counts[what] = counts.get(what, 0) + 1
    assert counts["read"] > 20 and counts["one line"] > 60


def test_a_change_is_the_same_each_time(kinds):
    for kind in kinds.values():
        assert M.mutated(kind, 3) == M.mutated(kind, 3)
        assert len({M.mutated(kind, seed) for seed in range(8)}) > 4


# ---------------------------------------------------------------- what was found, by its kind


def test_a_device_is_no_file(tmp_path):
    """It would be read for ever, by its hash already."""
    os.mkfifo(tmp_path / "pipe.png")
    for path in ("/dev/zero", tmp_path / "pipe.png"):
        with pytest.raises(ScanError, match="no file but a device, pipe"):
            content_hash(path)
    for i in range(6):
        (tmp_path / f"{i}.png").touch()
    rows = [f"{i}.png,0" for i in range(6)]
    (tmp_path / "c.csv").write_text("\n".join(["path,label", *rows, "/dev/zero,0"]))
    Cohort.read(tmp_path / "c.csv")  # its row is refused where it is read


def test_a_message_is_one_line_for_a_terminal():
    said = str(
        ScanError(f"a.png: values of type '\x1b[31m\x0c\udcff' and {'x' * 9000}. Save numbers.")
    )
    assert said.isprintable() and len(said) < LONGEST + 10 and r"'\x1b[31m\x0c" in said
    assert said.endswith("Save numbers.") and str(OutputError("plain é")) == "plain é"


def test_immense_labels_ask_for_no_memory(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[0, 1e17], [2, 3]]))
    with pytest.raises(ScanError, match="values up to 1e"):
        read_mask(tmp_path / "a.npy", read_scan(tmp_path / "a.npy"))


def test_tables_that_inherit_from_each_other():
    assert inherited("a", {"a": {"inherits": "b", "x": 1}, "b": {"x": 2, "y": 3}}, "p") == {
        "x": 1,
        "y": 3,
    }
    with pytest.raises(CohortError, match="inherits from itself"):
        inherited("a", {"a": {"inherits": "b"}, "b": {"inherits": "a"}}, "protocol")
    with pytest.raises(CohortError, match="inherits 'c', which is none"):
        inherited("a", {"a": {"inherits": "c"}}, "protocol")
