"""A detector calibrated at another site: the decision by hand, what is kept, what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.support.regimes import registered
from tests.toy import toy_scan

from normscan.cli.main import main
from normscan.cohort import Cohort
from normscan.detector import Detector, elsewhere, load
from normscan.errors import ArgumentError, CohortError, OutputError

OPTIONS = {"preprocess": {"scaling": "none", "crop": "none", "size": 24}}
LOCAL, FPR = 24, 0.1


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Healthy scans of a scanner that is brighter by a fifth, a lesioned one, no split."""
    folder, rng, rows = tmp_path_factory.mktemp("site"), np.random.default_rng(5), []
    for i in range(LOCAL + 1):
        image, _ = toy_scan(rng, 2, 1, i == LOCAL)
        np.save(folder / f"{i}.npy", 1.2 * image[0])
        rows.append({"path": f"{i}.npy", "label": int(i == LOCAL), "subject": f"s{i // 2}"})
    pd.DataFrame(rows).to_csv(folder / "site.csv", index=False)
    return folder / "site.csv"


def healthy(site: Path) -> Cohort:
    cohort = Cohort.read(site)
    return cohort.select([row.label == 0 for row in cohort])


@pytest.fixture(scope="module", params=["split", "cross"])
def run(request, toy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / request.param
    detector = Detector("mean_image", fpr=FPR, calibration=request.param, folds=3, **OPTIONS)
    detector.fit(Cohort.read(toy(2)), folder)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_decision_by_hand(run, site, toy, tmp_path, capsys):
    """Of a split and of a cross-calibrated detector, whose members' scores are averaged."""
    before, old = hashes(run), load(run, "cpu")
    assert main(["calibrate", str(run), "--cohort", str(site), "--out", str(tmp_path / "new")]) == 0
    told = capsys.readouterr()
    assert "12 healthy validation subjects" in told.out and "set by the highest of 12" in told.err
    assert hashes(run) == before
    assert {p.name for p in (tmp_path / "new").iterdir()} == {
        "card.md", "detector.json", "division.csv", "healthy.csv", "model.safetensors",
    }  # fmt: skip
    new = load(tmp_path / "new", "cpu")
    assert new.fingerprint == old.fingerprint
    assert "of another cohort" in (tmp_path / "new" / "card.md").read_text()

    scores: dict[str, float] = {}
    maps = []
    for row, finding in old.predict_cohort(healthy(site), force=True):
        scores[row.subject] = max(finding.score, scores.get(row.subject, -np.inf))
        maps.append(finding.map)
    known = np.sort(list(scores.values()))
    assert new.scan_threshold.threshold == known[-1]  # floor(0.1 * 13) = 1
    above = np.mean([(m > new.pixel_threshold).mean() for m in maps])
    assert above <= new.pixel_fpr < np.mean(
        [(m > np.nextafter(np.float32(new.pixel_threshold), np.float32(0)) * 0.98).mean() for m in maps]
    )  # fmt: skip
    for _, finding in new.predict_cohort(Cohort.read(toy(2)).part("test"), force=True):
        assert finding.p_value == pytest.approx((1 + (known >= finding.score).sum()) / 13)
        assert finding.anomalous == (finding.score > known[-1])

    (earlier,) = new.training["earlier"]
    assert earlier["scan_threshold"] == old.scan_threshold.to_dict()
    assert earlier["pixel_threshold"] == old.pixel_threshold
    assert earlier["calibration"] == old.training["calibration"] != new.training["calibration"]
    assert new.training["elsewhere"]["scans"] == LOCAL
    assert new.decided_by == "elsewhere" and new.calibration == old.calibration


def test_it_restores_the_rate_of_false_alarms(run, site):
    """Brighter scans score higher; half of the site's healthy subjects set the threshold."""
    own = healthy(site)
    first = own.select([row.subject < "s2" for row in own])
    rest = own.select([row.subject >= "s2" for row in own])
    old, new = load(run, "cpu"), load(run, "cpu").calibrate(first)

    def flagged(detector):
        return np.mean([f.anomalous for _, f in detector.predict_cohort(rest, force=True)])

    assert flagged(new) < flagged(old)


def test_again_and_with_another_rate(run, site):
    detector = load(run, "cpu").calibrate(site, fpr=0.2, pixel_fpr=0.01).calibrate(site)
    assert detector.fpr == 0.2 and detector.pixel_fpr == 0.01
    assert detector.scan_threshold.rank == 2  # floor(0.2 * 13)
    assert len(detector.training["earlier"]) == 2
    assert detector.training["earlier"][1]["elsewhere"]["subjects"] == 12


def test_only_the_last_calibration_counts_as_such(run, site):
    own = healthy(site)
    first, rest = (
        own.select([(row.subject < "s2") == early for row in own]) for early in (True, False)
    )
    detector = load(run, "cpu").calibrate(first).calibrate(rest)
    of = [m.scan for m in detector.division.members if m.split == "calibration"]
    assert of == [row.scan for row in elsewhere.chosen(rest)]
    assert [
        detector.seen(row.paths) for row in (elsewhere.chosen(first)[0], elsewhere.chosen(rest)[0])
    ] == ["", "calibrated"]


def test_scans_that_a_fit_left_out_take_no_part(site, tmp_path, capsys):
    """By content, whatever their names; what is stored knows them, too."""
    own = healthy(site)
    own.table["split"] = ["train"] * (LOCAL - 6) + ["val"] * 6
    rows = list(own)
    odd = {rows[0].scan: "motion", rows[-1].scan: "a lesion"}
    fitted = Detector("mean_image", fpr=FPR, calibration="split", **OPTIONS)
    fitted.fit(own, tmp_path / "run", exclude=odd)
    loaded = load(tmp_path / "run", "cpu")
    own.table["scan"] = [f"other{i}" for i in range(LOCAL)]
    loaded.calibrate(own, progress=True)
    assert loaded.training["elsewhere"]["scans"] == 5
    assert {"other0", f"other{LOCAL - 1}"} <= set(loaded.training["elsewhere"]["left_out"])
    assert "its fit left them out by hand: 2 scans" in capsys.readouterr().err
    left = own.select([row.scan in ("other0", f"other{LOCAL - 1}") for row in own])
    with pytest.raises(CohortError, match="left out by hand"):
        fitted.calibrate(left)


def test_an_open_decision_is_taken(site):
    with registered():
        detector = Detector("toy_guess", **OPTIONS).fit(None)
        scan = healthy(site)[0].load()
        assert detector.predict(scan).p_value is None
        assert detector.calibrate(site).predict(scan).p_value > 0
        assert detector.training["earlier"][0]["scan_threshold"] is None


def test_references_take_no_part(site, capsys):
    own = healthy(site)
    with registered():
        detector = Detector("toy_nearest", shots=3, gate=False, **OPTIONS)
        detector.fit(own.select([row.split in ("train", "val") for row in own]))
        held = {r["scan"] for r in detector.training["references"]}
        detector.calibrate(site, progress=True)
        assert set(detector.training["elsewhere"]["left_out"]) == held
        assert "learnt from them: 3 scans" in capsys.readouterr().err
        with pytest.raises(CohortError, match="did not train"):
            detector.calibrate(own.select([row.scan in held for row in own]))


def test_what_is_refused(run, site, tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="exists. Choose another folder"):
        calibrate(run, site, run)
    own = Cohort.read(site)
    with pytest.raises(CohortError, match="no healthy scans to set a threshold"):
        load(run, "cpu").calibrate(own.select([row.label == 1 for row in own]))
    with pytest.raises(ArgumentError, match="fpr is 2"):
        load(run, "cpu").calibrate(site, fpr=2)
    with pytest.raises(ArgumentError, match="not fitted"):
        Detector("mean_image").calibrate(site)
    broken = healthy(site)
    broken.table["path"] = "nowhere.npy"
    with pytest.raises(CohortError, match="could be predicted"):
        load(run, "cpu").calibrate(broken)

    def full(*_):
        raise OutputError("the disk is full.")

    monkeypatch.setattr(elsewhere, "write_state", full)
    with pytest.raises(OutputError, match="full"):
        calibrate(run, site, tmp_path / "a" / "new")
    assert not list((tmp_path / "a").iterdir())


def calibrate(run: Path, site: Path, out: Path) -> None:
    from normscan.progress import Progress

    table = Cohort.read(site, fractions=(1.0, 0.0, 0.0))
    elsewhere.calibrate_run(run, table, out, (None, None), None, "cpu", Progress(False))


def test_by_a_column(site, tmp_path, toy):
    """Groups that are large enough are decided apart, in what is stored, too."""
    frame = pd.read_csv(site).assign(subject=lambda t: t.index.astype(str))
    frame["scanner"] = ["one" if i % 2 else "two" for i in range(len(frame))]
    frame["site"] = "here"
    cohort = Cohort.from_table(frame, site.parent, fractions=(1.0, 0.0, 0.0))
    detector = Detector("mean_image", fpr=0.1, calibration="split", gate=False, **OPTIONS)
    detector.fit(Cohort.read(toy(2))).calibrate(cohort, by="scanner").save(tmp_path / "new")
    loaded = load(tmp_path / "new", "cpu")
    scores = {row.scan: f.score for row, f in detector.predict_cohort(cohort.part("train"))}
    rows = [row for row in cohort if row.label == 0]
    for scanner in ("one", "two"):
        known = np.array([scores[r.scan] for r in rows if r.columns["scanner"] == scanner])
        finding = loaded.predict(rows[0].load(), columns={"scanner": scanner})
        assert finding.p_value == pytest.approx((1 + (known >= finding.score).sum()) / 13)
        assert finding.threshold == known.max()
        assert f"12 healthy subjects of scanner {scanner}" in finding.notes[-1]
    assert "all 24 healthy subjects" in loaded.predict(rows[0].load()).notes[-1]
    by_site = detector.calibrate(cohort, by="site")
    ((_, finding),) = by_site.predict_cohort(rows[:1])
    assert "24 healthy subjects of site here" in finding.notes[-1]
    with pytest.raises(CohortError, match="'scaner' tells no healthy scan's group"):
        detector.calibrate(cohort, by="scaner")


def test_scans_that_trained_take_no_part(run, toy, capsys):
    """By content, whatever their names; with folds every healthy scan trained."""
    own = Cohort.read(toy(2))
    own.table["scan"] = own.table["subject"] = [f"other{i}" for i in range(len(own))]
    detector = load(run, "cpu")
    if detector.calibration.kind == "cross":
        with pytest.raises(CohortError, match="learnt from all of these"):
            detector.calibrate(own)
    else:
        detector.calibrate(own, progress=True)
        assert detector.training["elsewhere"]["scans"] == 6
        assert "learnt from them: 48 scans" in capsys.readouterr().err
