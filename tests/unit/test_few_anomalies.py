"""Which anomalies may be learnt from, and that nothing of their subjects is tested."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.errors import ArgumentError, CohortError
from normscan.evaluation import evaluate
from normscan.io.values import read_json

CLASSES = ("hole", "spot")


@pytest.fixture
def table(tmp_path):
    """Ten healthy scans and, for each of two classes, six subjects with two scans each."""
    generator, rows = np.random.default_rng(0), []
    for number in range(34):
        image = generator.random((16, 16)).astype(np.float32) / 4 + 0.5
        ill = number >= 10
        kind = CLASSES[number % 2] if ill else ""
        if ill:
            image[4:8, 4:8] = 0.0 if kind == "hole" else 1.0
        np.save(tmp_path / f"{number:02d}.npy", image)
        subject = f"ill{(number - 10) % 12}" if ill else f"well{number}"
        split = "test" if ill or number > 7 else "train" if number < 5 else "val"
        rows.append((f"{number:02d}.npy", subject, int(ill), split, kind))
    found = pd.DataFrame(rows, columns=["path", "subject", "label", "split", "kind"])
    found.to_csv(tmp_path / "cohort.csv", index=False)
    return tmp_path / "cohort.csv"


def test_drawn_subjects_leave_the_test(table):
    whole = Cohort.read(table)
    drawn = whole.with_anomalies(4, seed=1)
    learnt, test = drawn.part("extra").table, drawn.part("test").table
    assert len(learnt) == 4 == learnt["subject"].nunique() and (learnt["label"] == 1).all()
    assert not set(learnt["subject"]) & set(test["subject"])
    # Two scans of each of twelve subjects, and two healthy ones.
    assert len(test) == 2 * 8 + 2
    assert len(whole.part("extra")) == 0, "the cohort itself is as it was"


def test_a_seed_decides(table):
    whole = Cohort.read(table)
    names = [tuple(whole.with_anomalies(4, s).part("extra").table["scan"]) for s in (0, 0, 1, 2)]
    assert names[0] == names[1] and len(set(names)) == 3
    upside_down = Cohort(whole.table[::-1].reset_index(drop=True), whole.root)
    kept = set(upside_down.with_anomalies(4, 0).part("extra").table["subject"])
    assert kept == set(whole.with_anomalies(4, 0).part("extra").table["subject"])


def test_the_hard_setting_tests_other_classes(table):
    drawn = Cohort.read(table).with_anomalies(3, seen="kind=hole")
    assert set(drawn.part("extra").table["kind"]) == {"hole"}
    test = drawn.part("test").table
    assert set(test[test["label"] == 1]["kind"]) == {"spot"} and (test["label"] == 0).sum() == 2


def test_extra_is_drawn_from_first(table):
    rows = pd.read_csv(table).fillna("")
    moved = rows["subject"].isin([f"ill{k}" for k in range(5)])
    rows.loc[moved, "split"] = "extra"
    whole = Cohort.from_table(rows, table.parent)
    drawn = whole.with_anomalies(3)
    assert len(drawn.part("extra")) == 3
    assert list(drawn.part("test").table["scan"]) == list(whole.part("test").table["scan"])


def test_an_exact_copy_is_the_same_subject(table):
    whole = Cohort.read(table)
    name = whole.with_anomalies(1).part("extra")[0]
    other = next(r for r in whole.part("test") if r.label == 1 and r.subject != name.subject)
    other.paths[0].write_bytes(name.paths[0].read_bytes())
    test = Cohort.read(table).with_anomalies(1).part("test").table
    learnt = Cohort.read(table).with_anomalies(1).part("extra")[0]
    if learnt.subject in (name.subject, other.subject):
        assert not {name.subject, other.subject} & set(test["subject"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"count": 13}, "13 anomalies were asked for, and test has anomalous scans of 12 subjects"),
        ({"count": 12}, "no anomalous scan would be left to test"),
        ({"count": 2, "seen": "kind=hale"}, "Did you mean 'hole'"),
        ({"count": 2, "seen": "sort=hole"}, "no column 'sort'"),
        ({"count": 7, "seen": "kind=hole"}, "with kind=hole of 6 subjects"),
    ],
)
def test_what_cannot_be_drawn_is_refused(table, arguments, said):
    with pytest.raises(CohortError, match=said):
        Cohort.read(table).with_anomalies(**arguments)


@pytest.mark.parametrize("arguments", [{"count": 0}, {"count": 2, "seen": "hole"}])
def test_what_means_nothing_is_refused(table, arguments):
    with pytest.raises(ArgumentError):
        Cohort.read(table).with_anomalies(**arguments)


def test_the_draw_is_recorded_and_its_scans_are_not_tested_later(table, tmp_path):
    drawn = Cohort.read(table).with_anomalies(2, seed=3, seen="kind=spot")
    run = tmp_path / "run"
    Detector("image_statistics", preset="tiny", gate=False, calibration="split").fit(drawn, run)
    assert "2 labelled anomalies of the class kind=spot" in (run / "card.md").read_text()
    again = load(run)
    results = evaluate(again, table, tmp_path / "out", baselines=())
    assert results["cohort"]["anomalies"] == {"count": 2, "seed": 3, "seen": "kind=spot"}
    scored = set(pd.read_csv(tmp_path / "out" / "scans.csv", dtype=str)["scan"])
    assert scored == set(drawn.part("test").table["scan"])
    assert read_json(tmp_path / "out" / "results.json")["cohort"]["anomalies"]["seed"] == 3
