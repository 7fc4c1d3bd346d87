"""Worklists: the step-up rule by hand, its rate in simulations, what is promised, the command."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control
from tests.toy import toy_scan

from normscan.cli.main import main
from normscan.cohort import Cohort
from normscan.decide import CrossThreshold, GroupedThreshold, ScanThreshold, Worklist
from normscan.detector import Detector
from normscan.errors import ArgumentError

OPTIONS = {"preprocess": {"scaling": "none", "crop": "none", "size": 24}, "gate": False}


def step_up(p_values: np.ndarray, rate: float) -> np.ndarray:
    """Benjamini and Hochberg 1995, section 3.1: the k lowest, k the largest with p_(k) <= k q / m."""
    order = np.argsort(p_values)
    below = p_values[order] <= rate * np.arange(1, len(order) + 1) / len(order) + 1e-12
    k = np.flatnonzero(below).max() + 1 if below.any() else 0
    return np.isin(np.arange(len(order)), order[:k])


def test_it_is_the_step_up_rule_and_scipys():
    rng = np.random.default_rng(0)
    for n, m, rate in ((19, 7, 0.1), (99, 60, 0.2), (500, 200, 0.05)):
        p = rng.integers(1, n + 2, m) ** rng.integers(1, 3, m) / (n + 1) ** 2
        found = Worklist.of(p, rate)
        assert [found.chosen(i) for i in range(m)] == step_up(p, rate).tolist()
        np.testing.assert_allclose(list(found.q_values.values()), false_discovery_control(p))
    # The example of Benjamini and Hochberg's article, section 3.2: four of 15 at 5 %.
    p = [.0001, .0004, .0019, .0095, .0201, .0278, .0298, .0344, .0459, .3240, .4262, .5719, .6528,
         .7590, 1.]  # fmt: skip
    assert Worklist.of(p, 0.05).count == 4


def test_a_subject_stands_with_its_lowest():
    found = Worklist.of([0.5, 0.01, 0.9], 0.05, ["a", "a", "b"])
    assert found.p_values == {"a": 0.01, "b": 0.9} and found.q_values["a"] == 0.02
    assert found.chosen("a") and not found.chosen("b") and found.count == 1
    assert Worklist.of([], 0.1).count == 0


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_the_rate_of_shared_healthy_scans(share):
    """Mean share of healthy scans on the list, over draws of both, is at most the rate times theirs."""
    rng, rate, m, draws = np.random.default_rng(1), 0.2, 50, 600
    ill = round(share * m)
    false, found = [], 0
    for _ in range(draws):
        threshold = ScanThreshold(rng.normal(size=99))
        scores = rng.normal(size=m) + np.where(np.arange(m) < ill, 3.5, 0)
        listed = Worklist.of(threshold.p_values(scores), rate)
        chosen = np.array([listed.chosen(i) for i in range(m)])
        false.append(chosen[ill:].sum() / max(1, chosen.sum()))
        found += chosen[:ill].sum()
    error = np.std(false) / np.sqrt(draws)
    assert np.mean(false) <= rate * (1 - share) + 3 * error
    assert found > 0.3 * draws * ill


def test_looks_that_depend_on_each_other_keep_the_rate():
    """The same scans by five detectors whose scores are alike, each with its own healthy scans."""
    rng, rate, m, ill, draws = np.random.default_rng(3), 0.3, 30, 10, 250
    false, found = [], 0
    for _ in range(draws):
        shift, shared = np.where(np.arange(m) < ill, 5.0, 0), rng.normal(size=m)
        looks = []
        for _ in range(5):
            threshold = ScanThreshold(rng.normal(size=199))
            scores = 0.8 * shared + 0.6 * rng.normal(size=m) + shift
            looks.append(threshold.p_values(scores))
        listed = Worklist.of_looks(looks, rate)
        chosen = np.array([listed.chosen(i) for i in range(m)])
        false.append(chosen[ill:].sum() / max(1, chosen.sum()))
        found += chosen[:ill].sum()
    assert np.mean(false) <= rate + 3 * np.std(false) / np.sqrt(draws)
    assert found > 0.5 * draws * ill


def test_e_values_by_hand():
    """Of p 0.01, 0.02, 0.9 at 5 % two are chosen, up to p 0.02: each has the e-value 50."""
    look = Worklist.of([0.01, 0.02, 0.9], 0.05)
    assert [look.e_value(i) for i in range(3)] == [50, 50, 0]
    nothing = [0.9, 0.8, 0.7]
    both = Worklist.of_looks([[0.01, 0.02, 0.9], nothing], 0.1, ["a", "b", "c"])
    assert both.p_values == {"a": 1 / 25, "b": 1 / 25, "c": 1} and both.chosen("a")
    assert both.q_values["a"] == pytest.approx(3 / (2 * 25))
    alone = Worklist.of_looks([[0.01, 0.02, 0.9]], 0.1)
    assert alone.count == 2 and Worklist.of_looks([nothing], 0.1).count == 0
    for looks in ([], [[0.1], [0.1, 0.2]]):
        with pytest.raises(ArgumentError, match="one or more, all of the same"):
            Worklist.of_looks(looks, 0.1)


def test_what_is_said_of_it():
    few, enough = ScanThreshold(np.arange(19.0)), ScanThreshold(np.arange(199.0))
    listed = Worklist.of([0.05] * 20, 0.1)
    assert "at least 10 must score above" in listed.short(few)
    assert "With 199 healthy subjects" in listed.short(few) and not listed.short(enough)
    assert "proven" not in listed.promise(few)
    assert "isn't proven" in listed.promise(CrossThreshold([[1.0, 2], [3, 4]]))
    assert "left out of the rank" in listed.promise(ScanThreshold(np.arange(9.0), trim=1))
    by = GroupedThreshold({"a": np.arange(19.0), "b": np.arange(199.0)}, "site")
    assert "With 19 healthy" in listed.short(by)


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan")])
def test_rates_that_are_none(rate):
    with pytest.raises(ArgumentError, match="false discovery rate"):
        Worklist.of([0.5], rate)
    with pytest.raises(ArgumentError, match="outside"):
        Worklist.of([0.0], 0.1)
    with pytest.raises(ArgumentError, match="1 subjects came with"):
        Worklist.of([0.5, 0.5], 0.1, ["a"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Healthy and lesioned scans, two of each subject, and a detector that 39 subjects calibrate."""
    folder, rng, rows = tmp_path_factory.mktemp("list"), np.random.default_rng(2), []
    for i in range(75):
        image, _ = toy_scan(rng, 2, 1, False)
        np.save(folder / f"{i}.npy", image[0] + (0.8 if i >= 70 else 0))
        split = "train" if i < 20 else "val" if i < 59 else "test"
        rows.append({"path": f"{i}.npy", "label": int(i >= 70), "split": split, "scan": f"s{i}"})
    pd.DataFrame(rows).to_csv(folder / "all.csv", index=False)
    cohort = Cohort.read(folder / "all.csv")
    detector = Detector("mean_image", calibration="split", **OPTIONS).fit(cohort)
    detector.save(folder / "run")
    return folder


def test_the_command(site, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["predict", str(site / "run"), "--cohort", str(site / "all.csv"), "--out", str(out)]
    assert main([*command, "--fdr", "2"]) == 2
    assert "false discovery rate is 2" in capsys.readouterr().err and not out.exists()
    assert main([*command, "--fdr", "0.1"]) == 0
    told = capsys.readouterr().out
    table = pd.read_csv(out / "scores.csv").set_index("scan")
    taking = table[table["q_value"].notna()]
    assert list(taking.index) == [f"s{i}" for i in range(59, 75)]
    q = false_discovery_control(taking["p_value"])
    np.testing.assert_allclose(taking["q_value"], q, rtol=1e-5)
    assert list(taking["chosen"]) == list(q <= 0.1)
    assert set(taking.index[q <= 0.1]) >= {f"s{i}" for i in range(70, 75)}
    stored = json.loads((out / "worklist.json").read_text())
    assert stored["chosen"] == (q <= 0.1).sum() and len(stored["left_out"]) == 59
    assert f"{stored['chosen']} of 16 subjects are on the list" in told
    assert [s["q_value"] for s in stored["scans"]] == sorted(s["q_value"] for s in stored["scans"])
    page = (out / "worklist.html").read_text()
    assert "s74_overlay.png" in page and "s60_overlay.png" not in page and "<script" not in page

    # A second list replaces the first one's q-values, and none is chosen of too many.
    assert main([*command[:2], str(site / "60.npy"), *command[4:], "--fdr", "0.01"]) == 0
    assert "at least 3 must score above" in capsys.readouterr().out
    again = pd.read_csv(out / "scores.csv").set_index("scan")
    assert again["q_value"].notna().sum() == 1


def test_a_detector_without_p_values(tmp_path, toy):
    detector = Detector("mean_image", calibration="split", **OPTIONS).fit(Cohort.read(toy(2)))
    detector.scan_threshold = None
    from normscan.cli import worklist

    with pytest.raises(ArgumentError, match="needs p-values"):
        worklist.check(detector, 0.1)
    worklist.check(detector, None)
