"""What a user gets: the decision's figures, the oracle beside them, and what the gate refuses."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import normscan as ns
from normscan.errors import ArgumentError
from normscan.evaluation import scoring, text_summary
from normscan.evaluation.evaluation import evaluate
from normscan.metrics import PixelScores, oracle_sensitivity
from normscan.metrics.segmentation import SegmentationScores
from normscan.quality import Verdict
from normscan.report.charts import score_strip

SCANS = st.lists(
    st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 8)), min_size=1, max_size=25
)


def by_definition(rows, fpr):
    """The most sensitive rule ``score > t`` that flags at most that share of healthy subjects."""
    highest = {}
    for score, anomalous, subject in rows:
        if not anomalous:
            highest[subject] = max(score, highest.get(subject, score))
    sick = [score for score, anomalous, _ in rows if anomalous]
    if not (highest and sick):
        return np.nan
    found = 0.0
    for t in (-1, *range(7)):
        if sum(h > t for h in highest.values()) <= fpr * len(highest) + 1e-9:
            found = max(found, sum(s > t for s in sick) / len(sick))
    return found


@given(SCANS, st.sampled_from([0.05, 0.1, 0.25, 1 / 3, 0.5]))
@settings(max_examples=200, deadline=None)
def test_the_oracle_is_the_best_rule_at_the_rate(rows, fpr):
    scores, labels, subjects = (list(column) for column in zip(*rows, strict=True))
    found = oracle_sensitivity(scores, labels, subjects, fpr=fpr, replicates=0)
    assert found.value == pytest.approx(by_definition(rows, fpr), nan_ok=True)


def test_the_oracle_has_an_interval_by_subject():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=80), np.arange(80) % 2
    scores[labels == 1] += 1
    found = oracle_sensitivity(scores, labels, fpr=0.1)
    assert found.low < found.value < found.high and found.n == 80
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        oracle_sensitivity(scores, labels, fpr=0)


def test_two_halves_joined_are_the_whole(rng):
    pixels, parts = [PixelScores() for _ in range(3)], [SegmentationScores() for _ in range(3)]
    for i in range(8):
        found, mask = rng.random((12, 12)), np.zeros((12, 12), bool)
        mask[3:6, 3 + i % 4 : 8] = i % 3 != 0
        for k in (0, 1 + i % 2):
            pixels[k].add(found, mask, f"s{i // 2}")
            parts[k].add(found > 0.8, found, mask, f"s{i // 2}", (1.0, 1.0))
    whole, joined = pixels[0].evaluate(0.8), pixels[1].join(pixels[2]).evaluate(0.8)
    for name in ("auroc", "ap", "aupro", "dice", "subject_dice"):
        assert getattr(joined, name).value == pytest.approx(getattr(whole, name).value)
    assert (joined.scans, joined.subjects, joined.regions) == (8, 4, whole.regions)
    whole, joined = parts[0].evaluate(), parts[1].join(parts[2]).evaluate()
    assert joined.lesions.f1.value == pytest.approx(whole.lesions.f1.value)
    assert joined.hd95.value == pytest.approx(whole.hd95.value)
    np.testing.assert_allclose(sorted(joined.volume_pairs), sorted(whole.volume_pairs))


def test_figures_stand_with_and_without_what_the_gate_refuses(toy, tmp_path, monkeypatch):
    cohort = ns.Cohort.read(toy(2, 1))
    detector = ns.create("mean_image", size=32, calibration="split", fpr=0.2).fit(cohort)
    refused = {"test000", "test100", "test101"}

    def strict(gate, scan):
        no = any(name in str(scan.source) for name in refused)
        return Verdict("refuse" if no else "ok")

    monkeypatch.setattr(type(detector.gate), "check", strict)
    results = evaluate(detector, cohort, tmp_path / "all", baselines=())
    accepted = results["accepted"]
    assert accepted["refused"] == {"healthy": 1, "anomalous": 2, "unlabelled": 0}
    table = cohort.table[~cohort.table["scan"].isin(refused)]
    alone = evaluate(detector, ns.Cohort(table, cohort.root), tmp_path / "kept", baselines=())
    assert alone["accepted"] is None
    for name, figure in alone["metrics"].items():
        assert accepted["metrics"][name]["value"] == pytest.approx(figure["value"]), name
    assert accepted["metrics"]["sensitivity"]["n"] == results["metrics"]["sensitivity"]["n"] - 2
    scans = (tmp_path / "all" / "scans.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in scans] == [r.scan for r in cohort.part("test")]
    said = text_summary(results)
    assert "refuses (1 healthy, 2 anomalous), neither hits nor false alarms" in said
    page = (tmp_path / "all" / "report.html").read_text()
    assert "Without the scans that the quality gate refuses" in page
    assert "refuses none of these scans" in (tmp_path / "kept" / "report.html").read_text()
    assert scoring.Scores().accepted is None


def test_the_strip_shows_every_score_and_says_so_to_those_who_can_not_see():
    healthy, sick = np.arange(10.0), np.array([4.0, 12.0, 13.0, np.inf])
    drawing = score_strip(np.array([1.0, 2.0]), healthy, sick, 8.5)
    assert drawing is not None
    label = re.search(r'aria-label="([^"]*)"', drawing)[1]
    assert "lesioned test from 4 to 13, 2 above the threshold" in label and "Threshold 8.5" in label
    assert "healthy test (10)" in drawing and drawing.count("<use") >= 15
    assert score_strip(None, np.empty(0), np.empty(0)) is None
