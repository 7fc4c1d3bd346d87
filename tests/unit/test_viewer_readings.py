"""What readers say of findings: kept whatever happens, agreement with intervals."""

from __future__ import annotations

import csv
import io
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from normscan.errors import ArgumentError, OutputError
from normscan.metrics import cohen_kappa
from normscan.viewer.readings import Journal, agreement, as_csv, standing

ADD_MANY = """
import sys
from pathlib import Path
from normscan.viewer.readings import Journal
for number in range(25):
    Journal(Path(sys.argv[1])).add(sys.argv[2], f"scan{number}", "agree", "x" * 3000)
"""


def test_no_verdict_of_several_writers_is_lost(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", ADD_MANY, str(path), f"r{i}"]) for i in range(3)
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    entries, unreadable = Journal(path).entries()
    assert unreadable == 0
    assert {(e["reader"], e["scan"]) for e in entries} == {
        (f"r{i}", f"scan{k}") for i in range(3) for k in range(25)
    }


def test_a_torn_line_costs_no_other(tmp_path):
    journal = Journal(tmp_path / "verdicts.jsonl")
    journal.add("a", "one", "agree")
    with journal.path.open("ab") as file:
        file.write(b'{"id": "half')
    journal.add("a", "one", "disagree")
    entries, unreadable = journal.entries()
    assert [e["verdict"] for e in entries] == ["agree", "disagree"]
    assert unreadable == 1
    assert [e["verdict"] for e in standing(entries)] == ["disagree"]


@pytest.mark.parametrize("bad", [{"verdict": "maybe"}, {"reader": "  "}, {"note": "x" * 5000}])
def test_a_verdict_that_is_none_is_refused(bad, tmp_path):
    journal = Journal(tmp_path / "verdicts.jsonl")
    with pytest.raises(ArgumentError):
        journal.add(**{"reader": "a", "scan": "one", "verdict": "agree", "note": ""} | bad)
    assert not journal.path.exists()


def test_a_folder_that_cant_be_written_says_so(tmp_path):
    with pytest.raises(OutputError, match="can't be saved"):
        Journal(tmp_path / "missing" / "verdicts.jsonl").add("a", "one", "agree")


def test_verdicts_as_a_table_keep_all_and_hold_no_formula(tmp_path):
    journal = Journal(tmp_path / "verdicts.jsonl")
    journal.add("ann", "one", "agree", '=HYPERLINK("x")', flagged=True)
    journal.add("ann", "one", "disagree", "a,b\n\"c\"", flagged=True)  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(as_csv(journal.entries()[0]))))
    assert [r["verdict"] for r in rows] == ["agree", "disagree"]
    assert [r["stands"] for r in rows] == ["False", "True"]
    assert [r["anomalous"] for r in rows] == ["True", "False"]
    assert rows[0]["note"].startswith("'=")
    assert rows[1]["note"] == 'a,b\n"c"'


def test_kappa_is_that_of_scikit_learn_and_its_interval_the_asymptotic_one():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2, 300)
    second = np.where(rng.uniform(size=300) < 0.2, 1 - first, first)
    found = cohen_kappa(first, second)
    assert found.value == pytest.approx(cohen_kappa_score(first, second))
    # Fleiss, Cohen and Everitt, Psychological Bulletin 72, 1969, for two categories.
    p = np.histogram2d(first, second, 2)[0] / 300
    row, column, k = p.sum(1), p.sum(0), found.value
    chance = row @ column
    diagonal = sum(p[i, i] * (1 - (row[i] + column[i]) * (1 - k)) ** 2 for i in (0, 1))
    off = (1 - k) ** 2 * sum(
        p[i, j] * (column[i] + row[j]) ** 2 for i in (0, 1) for j in (0, 1) if i != j
    )
    spread = np.sqrt((diagonal + off - (k - chance * (1 - k)) ** 2) / 300) / (1 - chance)
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_kappa_counts_subjects_not_scans():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2, (2, 40))
    alone = cohen_kappa(first, second)
    thrice = cohen_kappa(np.tile(first, 3), np.tile(second, 3), np.tile(np.arange(40), 3).tolist())
    assert thrice.value == pytest.approx(alone.value)
    assert thrice.high - thrice.low == pytest.approx(alone.high - alone.low, rel=0.05)
    assert np.isnan(cohen_kappa([1, 1], [1, 1]).value)
    with pytest.raises(ArgumentError):
        cohen_kappa([1, 2], [0, 1])


def test_agreement_is_of_the_last_verdicts_with_detector_label_and_each_other():
    rows = {f"s{i}": {"anomalous": i < 5, "label": i < 4} for i in range(10)}
    entries = []
    for reader, wrong in (("ann", {4}), ("bob", {4, 9})):
        for i in range(10):
            said = ["agree", "disagree"] if i in wrong else ["disagree", "agree"]
            entries += [
                {"id": f"{reader}{i}{k}", "reader": reader, "scan": f"s{i}", "verdict": v,
                 "note": "", "time": "", "flagged": i < 5}
                for k, v in enumerate(said)
            ]  # fmt: skip
    found = {(p["first"], p["second"]): p for p in agreement(entries, rows)}
    ann = [i < 4 for i in range(10)]
    bob = [i < 4 or i == 9 for i in range(10)]
    detector = [i < 5 for i in range(10)]
    wanted = {
        ("ann", "bob"): (ann, bob), ("ann", "detector"): (ann, detector), ("ann", "label"): (ann, ann),
        ("bob", "detector"): (bob, detector), ("bob", "label"): (bob, ann),
    }  # fmt: skip
    assert set(found) == set(wanted)
    for pair, (one, other) in wanted.items():
        assert found[pair]["kappa"] == pytest.approx(cohen_kappa_score(one, other))
        assert found[pair]["scans"] == 10
