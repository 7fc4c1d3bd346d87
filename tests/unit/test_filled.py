"""Channels that may be missing: healthy scans are filled in likewise, so p-values by hand are right."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from normscan.cli.main import main
from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.errors import ArgumentError, ScanError
from normscan.scan import Scan

PLAIN = {"scaling": "none", "crop": "none", "fit": "stretch"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Scans of two channels; a run, and healthy scans of which half lack the second channel."""
    folder, rng, rows = tmp_path_factory.mktemp("filled"), np.random.default_rng(0), []
    for i in range(44):
        for name, mean in (("t1", 100), ("flair", 300)):
            np.save(folder / f"{i}_{name}.npy", rng.normal(mean, 5, (24, 24)))
        split = "train" if i < 12 else "val" if i < 20 else "test"
        rows.append({"path_t1": f"{i}_t1.npy", "path_flair": f"{i}_flair.npy", "label": 0,
                     "scan": f"s{i}", "split": split})  # fmt: skip
    pd.DataFrame(rows[:20]).to_csv(folder / "own.csv", index=False)
    for row in rows[20::2]:
        row["path_flair"] = ""
    pd.DataFrame([{**r, "split": "train"} for r in rows[20:]]).to_csv(
        folder / "new.csv", index=False
    )
    detector = Detector("mean_image", size=24, calibration="split", preprocess=PLAIN)
    detector.fit(Cohort.read(folder / "own.csv"), folder / "run")
    return folder


def test_p_values_are_those_of_scans_filled_in_likewise(site, tmp_path, capsys):
    out = tmp_path / "new"
    command = ["calibrate", str(site / "run"), "--cohort", str(site / "new.csv")]
    assert main([*command, "--without", "[flair]", "--out", str(out)]) == 0
    assert "24 healthy validation subjects" in capsys.readouterr().out
    detector = load(out, "cpu")
    assert detector.filled == ("flair",) and detector.scan_threshold.n == 24
    # By hand: the mean distance to the mean image with 0 in the second channel.
    own = [np.load(site / f"{i}_t1.npy") for i in range(12)]
    flair = np.mean([np.load(site / f"{i}_flair.npy") for i in range(12)], axis=0)
    known = detector.scan_threshold.scores
    image = np.load(site / "0_t1.npy")
    one = Scan.from_array(image[None], channels=("t1",))
    both = Scan.from_array(np.stack([image, np.full_like(image, 7)]), channels=("t1", "flair"))
    assert flair.mean() > 250 and np.mean(own) < 110
    alone, filled = detector.predict(one, force=True), detector.predict(both, force=True)
    assert alone.score == filled.score
    assert alone.p_value == pytest.approx((1 + (known >= alone.score).sum()) / 25)
    assert "The channel flair was filled in with 0" in " ".join(alone.notes)
    stored = json.loads((out / "detector.json").read_text())
    assert stored["filled"] == ["flair"]
    assert stored["training"]["earlier"][0]["scan_threshold"]["scores"]
    rows = list(Cohort.read(site / "new.csv"))
    found = [f for _, f in detector.predict_cohort(rows)]
    assert not any(isinstance(f, Exception) for f in found)
    # New scans of the same kind exceed the threshold as seldom as promised: none of those behind it do.
    assert [f.anomalous for f in found].count(True) <= 1


def test_those_that_trained_are_known_by_one_channel(site):
    detector = load(site / "run", "cpu").calibrate(str(site / "new.csv"), without=["flair"])
    finding = detector.predict([str(site / "0_t1.npy")], force=True)
    assert any("trained this detector" in note for note in finding.notes)
    assert load(site / "run", "cpu").seen([site / "0_t1.npy"]) == ""


def test_what_is_refused(site):
    with pytest.raises(ArgumentError, match="no channel 'flare' of its own. Did you mean 'flair'"):
        load(site / "run", "cpu").calibrate(str(site / "new.csv"), without=["flare"])
    with pytest.raises(ArgumentError, match="no channel is left"):
        load(site / "run", "cpu").calibrate(str(site / "new.csv"), without=["t1", "flair"])
    detector = load(site / "run", "cpu").calibrate(str(site / "new.csv"), without=["flair"])
    wrong = Scan.from_array(np.ones((2, 24, 24)) * np.arange(24), channels=("flair", "t2"))
    with pytest.raises(ScanError, match="Missing: t1; only flair may be"):
        detector.predict(wrong, force=True)
    # A detector that was not calibrated so still refuses them.
    ((_, error),) = load(site / "run", "cpu").predict_cohort(
        list(Cohort.read(site / "new.csv"))[:1]
    )
    assert isinstance(error, ScanError) and "no file for the channel flair" in str(error)
