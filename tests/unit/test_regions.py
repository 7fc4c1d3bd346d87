"""Regions of a label map: names, scores and p-values by hand, Holm, storage, the commands."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from normscan.cli.main import main
from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.detector.regions import Regions, read_names
from normscan.errors import ArgumentError, CohortError, OutputError, ScanError
from normscan.metrics.comparisons import holm

PLAIN = {"scaling": "none", "crop": "none", "fit": "stretch"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Pictures with two regions, left (1) and right (2); the last ones have a spot in the right one."""
    folder, rng, rows = tmp_path_factory.mktemp("regions"), np.random.default_rng(0), []
    for i in range(34):
        image = rng.normal(100, 3, (32, 32))
        labels = np.zeros((32, 32), np.uint8)
        labels[4:28, 4:16], labels[4:28, 16:28] = 1, 2
        if i >= 32:
            image[10:16, 20:26] += 50
        np.save(folder / f"{i}.npy", image)
        np.save(folder / f"l{i}.npy", labels)
        split = "train" if i < 12 else "val" if i < 30 else "test"
        rows.append({"path": f"{i}.npy", "label": int(i >= 32), "split": split, "scan": f"s{i}",
                     "structures": f"l{i}.npy"})  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "all.csv", index=False)
    (folder / "names.csv").write_text("label,name\n1,left lobe\n2,right lobe\n")
    detector = Detector("mean_image", size=32, calibration="split", pixel_fpr=0.001, gate=False,
                        preprocess=PLAIN)  # fmt: skip
    detector.fit(Cohort.read(folder / "all.csv"), folder / "run")
    return folder


def inside(finding, label, labels):
    """Mean of the largest twentieth of the map inside a region."""
    values = np.sort(finding.map[labels == label])
    return values[-max(1, round(0.05 * values.size)) :].mean()


def test_by_hand(site):
    detector, cohort = load(site / "run", "cpu"), Cohort.read(site / "all.csv")
    found = Regions.fit(detector, cohort, read_names(site / "names.csv"))
    assert {t.n for t in found.thresholds.values()} == {18}  # those of val
    known: dict[int, list[float]] = {1: [], 2: []}
    for row, finding in detector.predict_cohort(cohort.part("val")):
        labels = row.load_companion("structures", finding.scan)[0]
        for label, scores in known.items():
            scores.append(inside(finding, label, labels))
    for row, finding in detector.predict_cohort(cohort.part("test")):
        labels = row.load_companion("structures", finding.scan)[0]
        judged = found.judge(finding, labels)
        assert {each["region"] for each in judged} == {"left lobe", "right lobe"}
        p = {each["label"]: each["p_value"] for each in judged}
        for label, scores in known.items():
            mine = inside(finding, label, labels)
            assert p[label] == pytest.approx((1 + (np.array(scores) >= mine).sum()) / 19)
        corrected = [each["p_corrected"] for each in judged]
        assert corrected == pytest.approx(holm([each["p_value"] for each in judged]).tolist())
        if row.label:
            assert judged[0]["region"] == "right lobe" and judged[0]["p_value"] == pytest.approx(
                1 / 19
            )
    # A region that no healthy scan has, has no p-value; smaller labels don't move it.
    odd = np.where(labels == 1, 9, labels)
    by_label = {each["label"]: each for each in found.judge(finding, odd)}
    assert by_label[9]["p_value"] is None and by_label[9]["region"] == "region 9"
    assert by_label[2]["p_corrected"] == by_label[2]["p_value"]


def test_the_commands(site, tmp_path, capsys):
    run, table = str(site / "run"), str(site / "all.csv")
    out = str(tmp_path / "regions.json")
    assert (
        main(["regions", run, "--cohort", table, "--names", str(site / "names.csv"), "--out", out])
        == 0
    )
    assert "2 regions, each of 18 healthy subjects" in capsys.readouterr().out
    folder = tmp_path / "found"
    command = ["predict", run, "--cohort", table, "--out", str(folder)]
    assert main([*command, "--regions", out]) == 0
    ill = json.loads((folder / "s33_finding.json").read_text())
    assert ill["components"][0]["region"] == "right lobe" and ill["components"][0]["share"] > 0.9
    assert ill["regions"][0]["region"] == "right lobe" and ill["regions"][0]["healthy"] == 18
    # Without them components still lie in a region, by its number.
    assert main([*command, "--overwrite"]) == 0
    plain = json.loads((folder / "s33_finding.json").read_text())
    assert plain["components"][0]["region"] == "region 2" and plain["regions"] == []


def test_what_is_refused(site, tmp_path):
    detector, cohort = load(site / "run", "cpu"), Cohort.read(site / "all.csv")
    with pytest.raises(ArgumentError, match="means nothing inside a region"):
        Regions.fit(detector, cohort, reduction="max+inner")
    bare = Cohort.from_table(cohort.table.assign(structures=""), cohort.root)
    with pytest.raises(CohortError, match="no healthy scan with a label map"):
        Regions.fit(detector, bare)
    found = Regions.fit(detector, cohort)
    found.save(tmp_path / "r.json")
    again = Regions.load(tmp_path / "r.json", detector)
    assert again.thresholds[1].to_dict() == found.thresholds[1].to_dict()
    with pytest.raises(OutputError, match="another detector"):
        Regions.load(tmp_path / "r.json", detector.changed(fingerprint="0"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(OutputError, match="no healthy regions"):
        Regions.load(tmp_path / "bad.json", detector)
    (tmp_path / "n.csv").write_text("label,title\n1,a\n")
    with pytest.raises(CohortError, match="no column 'name'"):
        read_names(tmp_path / "n.csv")
    finding = detector.predict(cohort[0].load())
    with pytest.raises((ArgumentError, ScanError), match="labels of shape"):
        found.judge(finding, np.ones((3, 3), int))
