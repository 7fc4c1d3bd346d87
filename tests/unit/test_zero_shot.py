"""No training scans at all: maps and scores, and a decision only where healthy scans set it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.support.regimes import registered

from normscan.cohort import Cohort
from normscan.decide import ScanThreshold
from normscan.detector import Detector, load
from normscan.detector.finding import UNDECIDED
from normscan.errors import ArgumentError, CohortError
from normscan.evaluation import evaluate, text_summary
from normscan.limits import detection_limits
from normscan.training.data import PreparedSet

OPTIONS = {"preprocess": {"scaling": "none", "crop": "none"}, "gate": False}


@pytest.fixture(scope="module", autouse=True)
def toys():
    with registered():
        yield


@pytest.fixture
def nothing_is_prepared(monkeypatch):
    monkeypatch.setattr(PreparedSet, "create", lambda *_, **__: pytest.fail("prepared to train"))


def only(toy, *splits: str, dims: int = 2) -> Cohort:
    cohort = Cohort.read(toy(dims))
    return cohort.select([row.split in splits for row in cohort])


# ---------------------------------------------------------------- without any scan


def test_without_a_cohort(toy, tmp_path, nothing_is_prepared):
    detector = Detector("toy_guess", state="bright", **OPTIONS).fit(None, tmp_path / "run")
    assert detector.training["calibration"] == UNDECIDED
    loaded = load(tmp_path / "run", "cpu")
    assert loaded.scan_threshold is None and loaded.pixel_threshold is None
    scan = only(toy, "test")[0].load()
    finding = loaded.predict(scan)
    image = loaded.preparation().of(scan)
    by_hand = np.abs(image.image[0] - 0.75)[image.foreground].mean()
    assert finding.score == pytest.approx(by_hand, rel=1e-5)
    assert (finding.p_value, finding.anomalous, finding.threshold) == (None, None, None)
    assert finding.segmentation is None and finding.components() == []
    (*_, path) = finding.save(tmp_path / "found", "a")
    said = json.loads(path.read_text())
    assert said["decision"] == "decision open, not calibrated on healthy scans"
    assert said["anomalous"] is None and said["score"] == finding.score
    names = {p.name for p in (tmp_path / "found").iterdir()}
    assert not any("mask" in name for name in names) and "a_overlay.png" in names
    card = (tmp_path / "run" / "card.md").read_text()
    assert "Trained on: 0 healthy scans" in card and UNDECIDED in card


def test_colour_pictures_and_volumes_without_a_cohort(toy, rng):
    detector = Detector("toy_guess", **OPTIONS).fit(None)
    assert detector.channels == ("grey",)
    colours = only(toy, "test")[0].load()
    from dataclasses import replace

    colours = replace(colours, data=np.concatenate([colours.data] * 3),
                      channels=("red", "green", "blue"))  # fmt: skip
    assert detector.predict(colours).map.shape == colours.shape
    volume = only(toy, "test", dims=3)[0].load()
    assert detector.predict(volume).map.shape == volume.shape
    assert Detector("toy_guess", dims=3, **OPTIONS).fit(None).predict(volume).score > 0


def test_other_regimes_need_a_cohort():
    with pytest.raises(ArgumentError, match="'dae' learns from scans: give it a cohort"):
        Detector("dae", preset="tiny").fit(None)


def test_steps_that_learn_need_scans():
    steps = {"preprocess": {"steps": ["histogram_match"]}}
    with pytest.raises(CohortError, match="no healthy training scans"):
        Detector("toy_guess", gate=False, **steps).fit(None)


# ---------------------------------------------------------------- with scans


def test_all_healthy_scans_that_are_not_tested_set_the_threshold(
    toy, tmp_path, nothing_is_prepared
):
    cohort = Cohort.read(toy(2))
    detector = Detector("toy_guess", **OPTIONS).fit(cohort, tmp_path / "run")
    scores = [detector.predict(r.load()).score for r in cohort if r.split in ("train", "val")]
    assert detector.training["cohort_size"] == {"train": 0, "val": 54}
    by_hand = ScanThreshold.fit(scores, 0.05)
    assert detector.scan_threshold.threshold == by_hand.threshold
    finding = load(tmp_path / "run", "cpu").predict(cohort.part("test")[0].load())
    assert finding.anomalous in (True, False) and finding.segmentation is not None


def test_unlabelled_and_test_scans_settle_only_axes_and_channels(toy):
    """A cohort without healthy scans outside its test says what kind of scans they are."""
    detector = Detector("toy_guess", **OPTIONS).fit(only(toy, "test", dims=3))
    assert detector.scan_threshold is None and detector.channels == ("image",)
    alone = Detector("toy_guess", **OPTIONS).fit(None)
    scan = only(toy, "test", dims=3)[0].load()
    assert detector.predict(scan).score == alone.predict(scan).score


def test_it_can_be_calibrated_later(toy):
    detector = Detector("toy_guess", **OPTIONS).fit(None)
    detector.calibrate(only(toy, "val"))
    assert (
        detector.scan_threshold.n == 6 and "Not calibrated" not in detector.training["calibration"]
    )
    with pytest.raises(CohortError, match="can be read"):
        broken = only(toy, "val")
        broken.table["path"] = "nowhere.npy"
        Detector("toy_guess", **OPTIONS).fit(broken)


def test_an_evaluation_says_that_the_decision_is_open(toy, tmp_path):
    cohort = only(toy, "test")
    detector = Detector("toy_guess", **OPTIONS).fit(None)
    results = evaluate(detector, cohort, tmp_path, baselines=())
    assert results["decision"]["open"] and results["decision"]["flagged_healthy"] is None
    assert "dice" not in results["metrics"] and results["metrics"]["pixel_ap"]["value"] > 0
    assert "the decision is open" in text_summary(results)
    page = (tmp_path / "report.html").read_text()
    assert "the decision is left open: no scan is flagged" in page and UNDECIDED in page
    assert "not flagged</span>" not in page and "Worst misses" not in page
    assert "Threshold</span>" not in page and "The dot is what" not in page


def test_a_few_shot_detector_may_stay_open_too(toy):
    cohort = Cohort.read(toy(2))
    scans = [r.scan for r in cohort.part("train")][:2]
    few = cohort.select([r.scan in scans for r in cohort])
    detector = Detector("toy_nearest", shots=2, **OPTIONS).fit(few)
    assert detector.scan_threshold is None and len(detector.method.bank) == 2
    with pytest.raises(CohortError, match="no healthy scans in 'val'"):
        Detector("mean_image", calibration="split", **OPTIONS).fit(few)


def test_limits_need_a_decision(toy):
    detector = Detector("toy_guess", **OPTIONS).fit(None)
    with pytest.raises(ArgumentError, match="calibrate it on healthy scans"):
        detection_limits(detector, only(toy, "test"), count=1)


def test_wrappers(toy):
    scan = only(toy, "test")[0].load()
    plain = Detector("toy_guess", **OPTIONS).fit(None).predict(scan)
    for wrappers in (["ensemble=2"], ["flips=12"], ["impure"]):
        found = Detector("toy_guess", wrappers=wrappers, **OPTIONS).fit(None).predict(scan)
        np.testing.assert_allclose(found.map, plain.map, atol=1e-6)
