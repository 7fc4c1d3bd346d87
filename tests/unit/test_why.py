"""Why a scan was flagged, or what was missing: counts by hand, the scans that look most alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.evaluation import evaluate

OPTIONS = {"preprocess": {"scaling": "none", "crop": "none", "size": 24}, "fpr": 0.2}


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("why") / "run"
    Detector("mean_image", calibration="split", **OPTIONS).fit(Cohort.read(toy(2)), folder)
    return folder


def test_counts_by_hand(run, toy):
    """6 healthy subjects at 20 %: floor(0.2 * 7) = 1, so none of them may score as high."""
    detector = load(run, "cpu")
    known = detector.scan_threshold.scores
    flagged = 0
    for _, finding in detector.predict_cohort(Cohort.read(toy(2)).part("test"), force=True):
        as_high = int((known >= finding.score).sum())
        assert finding.ranked == {"healthy": 6, "as_high": as_high, "may_be_as_high": 0}
        first = f"{as_high} of 6 healthy subjects score as high; for a flag at most 0 may."
        assert finding.why()[0] == first
        needed = [text for text in finding.why() if "would have been needed" in text]
        assert len(needed) == (not finding.anomalous)
        if needed:
            assert f"above {known[-1]:.4g}" in needed[0]
            assert f"{known[-1] / finding.score:.3g} times its own" in needed[0]
            assert needed[0].endswith(f"a rate of false alarms of {(1 + as_high) / 7:.3g}.")
            # At that rate it is flagged.
            rate = finding.p_value + 1e-9
            assert finding.score > np.sort(known)[-max(1, int(rate * 7)) :][0] or rate >= 1 - 1e-6
        flagged += bool(finding.anomalous)
    assert flagged


def test_the_most_alike_of_a_training_scan_is_itself(run, toy):
    detector, train = load(run, "cpu"), Cohort.read(toy(2)).part("train")
    for row in list(train)[:5]:
        scan = row.load()
        noise = np.random.default_rng(0).normal(0, 1e-4, scan.data.shape)
        alike = detector.predict(scan.with_data(scan.data + noise), force=True).neighbours()
        assert alike[0]["scan"] == row.scan and len(alike) == 3
        times = [each["times"] for each in alike]
        assert times == sorted(times) and times[0] < times[1]
        views = np.array(list(alike[0]["by_view"].values()))
        assert times[0] == pytest.approx(np.exp(np.log(views).mean()), rel=1e-3)


def test_in_json_and_on_the_page(run, toy, tmp_path):
    cohort, detector = Cohort.read(toy(2)), load(run, "cpu")
    finding = detector.predict(cohort.part("test")[0].load(), force=True)
    finding.save(tmp_path, "one")
    stored = json.loads((tmp_path / "one_finding.json").read_text())
    assert stored["why"] == finding.why() and stored["ranked"] == finding.ranked
    assert stored["quality"]["neighbours"] == finding.neighbours()
    evaluate(detector, cohort, tmp_path / "out", baselines=())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "healthy training scans most like it" in page and "would have been needed" in page


def test_without_a_gate_or_a_threshold(toy):
    detector = Detector("mean_image", calibration="split", gate=False, **OPTIONS)
    detector.fit(Cohort.read(toy(2)))
    detector.scan_threshold = None
    finding = detector.predict(Cohort.read(toy(2)).part("test")[0].load())
    assert finding.neighbours() == [] and finding.why() == [] and finding.ranked is None
