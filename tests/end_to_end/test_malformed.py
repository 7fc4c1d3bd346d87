"""Hundreds of malformed files: each refused by one clear message, and a cohort of them is done."""

from __future__ import annotations

import faulthandler
import hashlib
import json
import logging
import os
import re
import resource
import shutil
import signal
import time
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.support import malformed
from tests.support.malformed import SECRET, Case, Odd
from tests.toy import toy_scan

import normscan as ns
from normscan.cli.main import main
from normscan.errors import NormscanError, ScanError, printable
from normscan.io import probe, read_scan

CASES, ODD = malformed.cases(), malformed.odd()
SECONDS = 10.0
MEBIBYTES = 600
# What a message must hold besides the reason: what to do, or what would be right.
MEND = re.compile(
    r"(?i)\b(copy|export|save|give|choose|rename|convert|repair|replace|rescale|cut the|pack|unpack|"
    r"split|check|count|leave|mean|must be|needs|has 0 to|none of 0|no such file|is no DICOM|singular|"
    r"no geometry|channel names)\b"
)


@contextmanager
def bounded():
    """No file may take more than so many seconds, or so much memory beyond what there is."""

    def late(*_):
        raise AssertionError(f"not done after {SECONDS:g} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    faulthandler.dump_traceback_later(6 * SECONDS, exit=True)  # where no signal gets through
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    limit = pages * resource.getpagesize() + MEBIBYTES * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def listing(folder):
    return sorted(str(p) for p in folder.rglob("*"))


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """Load every reader once, so that the limit on memory counts files alone."""
    folder = tmp_path_factory.mktemp("warm")
    for n, one in enumerate(ODD):
        (folder / str(n)).mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read_scan(one.make(folder / str(n)))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_malformed(warm, tmp_path, caplog, case: Case):
    caplog.set_level(logging.DEBUG)
    place = case.make(tmp_path)
    before = listing(tmp_path)
    with warnings.catch_warnings(record=True) as said, bounded():
        warnings.simplefilter("always")
        with pytest.raises(ScanError) as caught:
            read_scan(place)
        message = str(caught.value)
        told = [message]
        try:  # what lies behind the header is not its business
            probe(place)
        except ScanError as error:
            told.append(str(error))
    assert re.search(case.says, message), message
    name = place.name.partition("#")[0]
    assert all(printable(name) in text for text in told), told
    assert MEND.search(message), message
    assert "memory" not in message and "\n" not in message and len(message) < 1500, message
    told += [str(w.message) for w in said] + [r.getMessage() for r in caplog.records]
    assert not [text for text in told if SECRET in text.upper()]
    assert listing(tmp_path) == before


@pytest.mark.parametrize("one", ODD, ids=lambda o: o.name)
def test_odd_but_readable(tmp_path, caplog, one: Odd):
    caplog.set_level(logging.DEBUG)
    place = one.make(tmp_path)
    with warnings.catch_warnings(record=True) as said, bounded():
        warnings.simplefilter("always")
        scan = read_scan(place)
        header = probe(place)
    assert scan.shape == header.shape == one.shape
    assert float(scan.data.mean()) == pytest.approx(one.mean, rel=1e-5)
    told = [str(w.message) for w in said] + [r.getMessage() for r in caplog.records]
    if scan.series is not None:
        told += scan.series.notes
        images = 1 if len(one.shape) == 2 else one.shape[-1]
        left_out = any("left out" in note for note in scan.series.notes)
        assert left_out == (len(one.shape) == 3 and images < 4)
    assert not [text for text in told if SECRET in text.upper()]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["scan.dcm", "scan.nii.gz", "scan.tif", "study"])
def test_no_right_to_read(tmp_path, name):
    place = tmp_path / name
    place.mkdir() if name == "study" else place.write_bytes(b"II*\0")
    place.chmod(0)
    for path in (place, place / "a.png")[: 1 + (name == "study")]:
        for read in (read_scan, probe):
            with pytest.raises(ScanError, match=f"{name}.*Check"):
                read(path)
    place.chmod(0o700)


def test_there_are_hundreds_and_no_two_are_the_same(tmp_path):
    assert len(CASES) >= 400 and len(ODD) >= 40
    assert max(Counter(c.name for c in [*CASES, *ODD]).values()) == 1
    same = {}
    for n, case in enumerate(c for c in CASES if not re.search("bomb|entries|5000", c.name)):
        folder = tmp_path / str(n)
        folder.mkdir()
        place = case.make(folder)
        kinds = sorted(
            (p.name, p.lstat().st_mode, p.is_symlink() and p.readlink()) for p in folder.rglob("*")
        )
        files = [
            p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink()
        ]
        digest = hashlib.sha256(b"".join([repr((place.name, kinds)).encode(), *files]))
        same.setdefault(digest.digest(), []).append(case.name)
        shutil.rmtree(folder)
    assert not [names for names in same.values() if len(names) > 1]


# ---------------------------------------------------------------- a cohort of them


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """30 rows, of which 25 can't be read; and what their files are called."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(3)
    rows = []
    for n in range(5):
        image, mask = toy_scan(rng, 2, 1, n > 2)
        np.save(folder / f"good{n}.npy", image[0])
        np.save(folder / f"good{n}_mask.npy", mask.astype(np.uint8))
        rows.append({"path": f"good{n}.npy", "label": int(n > 2),
                     "mask": f"good{n}_mask.npy" if n > 2 else ""})  # fmt: skip
    fit = [c for c in CASES if not re.search("no file|address|bomb|entries|5000", c.name)]
    for n, case in enumerate(fit[:: len(fit) // 25][:25]):
        made = case.make(folder)
        place = made.rename(folder / f"bad{n:02d}_{made.name}")
        rows.append({"path": place.name, "label": n % 2, "mask": ""})
    table = pd.DataFrame(rows)
    table["scan"] = table["subject"] = [
        p.partition(".")[0].partition("_")[0] for p in table["path"]
    ]
    table["split"] = "test"
    table.to_csv(folder / "cohort.csv", index=False)
    return folder, [p for p in table["path"] if p.startswith("bad")]


@pytest.fixture(scope="module")
def detector(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("detector") / "run"
    options = ("--cohort", str(toy()), "--out", str(out), "--preset", "tiny", "--device", "cpu")
    assert main(["fit", "mean_image", *options]) == 0
    return out


def named_once(bad, texts):
    """Each bad file stands in one of the texts, and in no other."""
    counts = Counter(name for text in texts for name in bad if name in text)
    assert counts == Counter(bad), counts
    assert not [text for text in texts if SECRET in text.upper()]


def test_the_cohort_is_described(cohort, capsys):
    folder, bad = cohort
    assert main(["cohort", str(folder), "--json"]) == 0
    out = capsys.readouterr().out
    summary = json.loads(out)
    assert summary["scans"] == len(bad) + 5
    reasons = [reason for _, reason in summary["unreadable"]]
    # Damage behind a header is found when the scan is read, not before.
    assert 15 < len(reasons) <= len(bad)
    named_once([b for b in bad if any(b in r for r in reasons)], reasons)
    assert SECRET not in out.upper()


def test_the_rest_is_predicted(cohort, detector, capsys, tmp_path):
    folder, bad = cohort
    good = [f"good{n}" for n in range(3)]  # the quality gate is no matter of this test
    scans = [str(folder / name) for name in [*(f"{g}.npy" for g in good), *bad]]
    start = time.monotonic()
    assert (
        main(["predict", str(detector), *scans, "--out", str(tmp_path / "out")]) == 1
    )  # some failed
    assert time.monotonic() - start < 60
    lines = capsys.readouterr().err.splitlines()
    named_once(bad, [line for line in lines if "left out: " in line])
    found = {p.name for p in (tmp_path / "out").glob("*_finding.json")}
    assert found == {f"{g}_finding.json" for g in good}
    assert not [p for p in (tmp_path / "out").rglob("*") if SECRET in p.name.upper()]


def test_the_rest_is_evaluated(cohort, detector, capsys, tmp_path):
    folder, bad = cohort
    out = tmp_path / "out"
    assert main(["evaluate", str(detector), "--cohort", str(folder), "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    # Results travel: they name scans as the table does, and no file.
    assert [f["scan"] for f in results["failures"]] == [b.partition("_")[0] for b in bad]
    assert not [b for b in bad for f in results["failures"] if b in f["reason"]]
    assert len(pd.read_csv(out / "scans.csv")) == 5
    written = "".join(p.read_text() for p in out.iterdir() if p.is_file())
    assert SECRET not in written.upper() + capsys.readouterr().err.upper()


def test_reading_through_the_cohort_names_each(cohort):
    folder, bad = cohort
    reasons = []
    for row in ns.Cohort.read(folder):
        try:
            row.load()
        except NormscanError as error:
            reasons.append(str(error))
    named_once(bad, reasons)
