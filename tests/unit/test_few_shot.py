"""A few healthy references: drawn by the seed, stored with the detector, nothing else learnt from."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest
from tests.support.regimes import registered

from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.errors import ArgumentError, CohortError
from normscan.registry import register

OPTIONS = {"preprocess": {"scaling": "none", "crop": "none"}, "gate": False}


@pytest.fixture(scope="module", autouse=True)
def toys():
    with registered():
        yield


def visits(per_subject: int = 3, subjects: int = 8) -> Cohort:
    """Several visits of each subject in train, a val and a test subject."""
    rows = [
        {"path": f"s{s}_{v}.png", "subject": f"s{s}", "label": 0, "split": "train"}
        for s in range(subjects) for v in range(per_subject)
    ]  # fmt: skip
    rows += [{"path": f"{p}.png", "subject": p, "label": 0, "split": p} for p in ("val", "test")]
    return Cohort(pd.DataFrame(rows))


# ---------------------------------------------------------------- the draw


@pytest.mark.parametrize("count", [1, 4, 8])
def test_one_scan_of_each_of_so_many_subjects(count):
    cohort = visits()
    few = cohort.references(count, 0)
    train, val = few.part("train"), few.part("val")
    assert len(train) == len({r.subject for r in train}) == count
    # Nobody calibrates who is a reference, at another visit either; the others do.
    assert not {r.subject for r in train} & {r.subject for r in val}
    assert len(val) == 1 + 3 * (8 - count) and len(few.part("test")) == 1
    assert len(cohort.part("train")) == 24, "the cohort itself doesn't change"


def test_the_seed_decides_and_every_subject_may_be_drawn():
    drawn = [
        tuple(r.scan for r in visits().references(2, seed).part("train")) for seed in range(60)
    ]
    assert drawn == [tuple(r.scan for r in visits().references(2, seed).part("train"))
                     for seed in range(60)]  # fmt: skip
    assert {scan for pair in drawn for scan in pair} == {r.scan for r in visits().part("train")}
    shuffled = visits()
    shuffled.table = shuffled.table.iloc[::-1].reset_index(drop=True)
    other = [
        sorted(r.scan for r in shuffled.references(2, seed).part("train")) for seed in range(9)
    ]
    assert other == [sorted(pair) for pair in drawn[:9]], "the order of the rows decides nothing"


def test_exact_copies_are_one_subject(tmp_path):
    rows = []
    for name, content in {"a": 1, "b": 1, "c": 2, "d": 3}.items():
        np.save(tmp_path / f"{name}.npy", np.full((3, 3), content))
        rows.append({"path": f"{name}.npy", "label": 0, "split": "train"})
    cohort = Cohort(pd.DataFrame(rows), tmp_path)
    assert len(cohort.references(3, 0).part("train")) == 3
    for seed in range(8):
        few = cohort.references(1, seed)
        (row,) = few.part("train")
        if row.scan in "ab":
            assert {r.scan for r in few.part("val")} == {"c", "d"}
    with pytest.raises(CohortError, match="4 healthy references .* train has scans of 3 subjects"):
        cohort.references(4, 0)


# ---------------------------------------------------------------- end to end


def test_fit_save_load_predict(toy, tmp_path):
    cohort = Cohort.read(toy(2))
    detector = Detector("toy_nearest", shots=3, **OPTIONS).fit(cohort, tmp_path / "run")
    loaded = load(tmp_path / "run", "cpu")
    references = loaded.training["references"]
    rows = {row.scan: row for row in cohort.part("train")}
    assert len(references) == 3 and loaded.training["cohort_size"] == {"train": 3, "val": 51}
    prepared = []
    for reference in references:
        row = rows[reference["scan"]]
        bits = row.paths[0].read_bytes()
        assert reference["sha256"] == [hashlib.sha256(bits).hexdigest()]
        prepared.append(loaded.preparation()(row).image)
    np.testing.assert_array_equal(loaded.method.bank.numpy(), np.stack(prepared))
    # The map by hand.
    scan = cohort.part("test")[-1].load()
    image = loaded.preparation().of(scan).image
    by_hand = np.abs(np.stack(prepared) - image).mean(1).min(0)
    finding = loaded.predict(scan)
    assert finding.score == pytest.approx(by_hand[loaded.preparation().of(scan).foreground].mean(),
                                          rel=1e-5)  # fmt: skip
    assert finding.score == detector.predict(scan).score
    assert "References: 3" in (tmp_path / "run" / "card.md").read_text()


def test_a_reference_itself_is_no_anomaly_and_seeds_differ(toy):
    cohort = Cohort.read(toy(2))
    detectors = [Detector("toy_nearest", shots=2, seed=s, **OPTIONS).fit(cohort) for s in (0, 0, 1)]
    names = [[r["scan"] for r in d.training["references"]] for d in detectors]
    assert names[0] == names[1] != names[2]
    row = next(r for r in cohort if r.scan == names[0][0])
    assert detectors[0].predict(row.load()).score == 0 < detectors[2].predict(row.load()).score


def test_only_the_references_are_learnt_from(toy):
    """Without all other training scans the same bank comes out, and another threshold."""
    cohort = Cohort.read(toy(2))
    first = Detector("toy_nearest", shots=2, **OPTIONS).fit(cohort)
    names = [r["scan"] for r in first.training["references"]]
    kept = cohort.select([r.scan in names or r.split != "train" for r in cohort])
    second = Detector("toy_nearest", shots=2, **OPTIONS).fit(kept)
    assert sorted(names) == sorted(r["scan"] for r in second.training["references"])
    assert second.scan_threshold.threshold != first.scan_threshold.threshold
    order = np.argsort([r["scan"] for r in second.training["references"]])
    same = np.argsort(names)
    np.testing.assert_array_equal(first.method.bank[same], second.method.bank[order])


def test_too_many_or_none(toy):
    with pytest.raises(CohortError, match="49 healthy references were asked for"):
        Detector("toy_nearest", shots=49, **OPTIONS).fit(Cohort.read(toy(2)))
    with pytest.raises(ArgumentError, match="shots is 0; it must be 1 or more"):
        Detector("toy_nearest", shots=0)
    with pytest.raises(ValueError, match="give it 'shots'"):

        @register("toy_without_shots", paper="toy", regime="few-shot")
        def build(dims: int = 2, channels: int = 1, size: int = 8):
            """Nothing."""


def test_wrappers_and_volumes(toy):
    cohort = Cohort.read(toy(3))
    detector = Detector(
        "toy_nearest", dims=3, shots=2, wrappers=["ensemble=2", "flips=1"], **OPTIONS
    )
    detector.fit(cohort)
    assert [len(m.bank) for m in detector.method.inner] == [2, 2]
    assert detector.training["samples"]["train"] == 2
