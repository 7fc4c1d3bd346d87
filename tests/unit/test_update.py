"""Healthy scans that join a fitted detector: as if fitted to all, the rest refused or said."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tests.toy import toy_scan

from normscan.cli.main import main
from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.errors import ArgumentError, CohortError
from normscan.methods.baselines.statistics import ImageStatistics
from normscan.methods.features.memory import Bank
from normscan.scores.gaussian import PositionGaussians

PLAIN = {"preprocess": {"scaling": "none", "crop": "none"}, "gate": False, "fpr": 0.2}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Healthy scans: a table of the first ones, one of the later ones, one of all."""
    folder, rng, rows = tmp_path_factory.mktemp("update"), np.random.default_rng(7), []
    for i in range(20):
        np.save(folder / f"{i}.npy", toy_scan(rng, 2, 1, False)[0][0])
        # Validation scans are the same in the first table and in that of all.
        rows.append({"path": f"{i}.npy", "label": 0, "split": "val" if i < 8 else "train"})
    table = pd.DataFrame(rows)
    parts = {"first": table[:14], "later": table[14:].drop(columns="split"), "all": table}
    for name, part in parts.items():
        part.to_csv(folder / f"{name}.csv", index=False)
    return folder


METHODS = {
    "mean_image": {"preset": "tiny"},
    "image_statistics": {"preset": "tiny"},
    "padim": {"preset": "tiny"},
    "patchcore": {"preset": "tiny", "coreset": 1},
    "anomaly_dino": {"preset": "tiny"},
}


@pytest.mark.parametrize("method", METHODS)
def test_scans_that_join_count_as_those_that_trained(method, scans):
    options = {**PLAIN, **METHODS[method], "calibration": "split"}
    once = Detector(method, **options).fit(Cohort.read(scans / "all.csv"))
    twice = Detector(method, **options).fit(Cohort.read(scans / "first.csv"))
    before = twice.predict(str(scans / "0.npy")).score
    twice.update(scans / "later.csv")
    for name in ("0.npy", "3.npy"):
        a, b = (d.predict(str(scans / name)) for d in (once, twice))
        assert b.score == pytest.approx(a.score, rel=1e-4)
        if a.map is not None:
            np.testing.assert_allclose(b.map, a.map, rtol=1e-3, atol=1e-4 * np.abs(a.map).max())
    assert before != pytest.approx(twice.predict(str(scans / "0.npy")).score, rel=1e-6)
    assert twice.training["samples"]["train"] == once.training["samples"]["train"] == 12
    assert twice.training["stale"] == 6


def test_a_gaussian_at_each_position_against_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 2, 3)) * [1, 3, 0.2] + [5, 0, -2]
    density = PositionGaussians(3, ridge=0.01)
    density.fit(torch.tensor(x[:11]).split(4))
    density.update(torch.tensor(x[11:]).split(7))
    covariance = density.factor @ density.factor.transpose(1, 2)
    for place in range(2):
        expected = np.cov(x[:, place].T) + 0.01 * np.eye(3)
        np.testing.assert_allclose(covariance[place], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(density.mean[place], x[:, place].mean(0), rtol=1e-5)


def test_each_member_without_a_fold_takes_the_vectors_in():
    rng = np.random.default_rng(3)
    folds, new = rng.normal(size=(3, 8, 1, 2)), rng.normal(size=(5, 1, 2)) + 4
    density = PositionGaussians(2, ridge=0.1)
    density.fit_folds([[torch.tensor(fold)] for fold in folds])
    density.update([torch.tensor(new)])
    for k in range(3):
        known = np.concatenate([*np.delete(folds, k, 0), new])[:, 0]
        covariance = density.factor[k, 0] @ density.factor[k, 0].T
        np.testing.assert_allclose(covariance, np.cov(known.T) + 0.1 * np.eye(2), rtol=1e-4)
        np.testing.assert_allclose(density.mean[k, 0], known.mean(0), rtol=1e-5)


def test_shrinking_is_undone():
    values = np.random.default_rng(1).normal(size=(9, 8))
    method = ImageStatistics(0.3)
    centred = torch.tensor(values - values.mean(0))
    method._shrink(torch.tensor(values.mean(0)), centred.T @ centred, 9)
    undone = method._scatter(method.precision, 9) / 8
    np.testing.assert_allclose(undone, np.cov(values.T), rtol=1e-9, atol=1e-12)


def test_a_coreset_of_the_new_scans_stands_beside_the_old_one(scans):
    options = {**PLAIN, "preset": "tiny", "calibration": "split"}
    detector = Detector("patchcore", **options).fit(Cohort.read(scans / "first.csv"))
    old = detector.method.bank.vectors.clone()
    detector.update(scans / "later.csv")
    bank = detector.method.bank.vectors
    assert torch.equal(bank[: len(old)], old)
    cells = len(old) / 0.25 / 6  # of six scans a quarter of the patches was kept
    assert len(bank) - len(old) == round(0.25 * 6 * cells)


def test_new_patches_belong_to_no_fold():
    """Whatever fold is left out, what joined later is compared with."""
    bank = Bank(2)
    bank.keep_folds([torch.tensor([[0.0, 0]]), torch.tensor([[10.0, 0], [12, 0]])])
    bank.extend(torch.tensor([[20.0, 0]]), 10)
    assert bank.turns == [0, 1] and list(bank.folds) == [0, 1, 3]
    assert len(bank.vectors) == 4 and bank.sizes.tolist() == [1, 2]


def test_a_full_bank_is_refused(scans):
    options = {**PLAIN, "preset": "tiny", "calibration": "split", "coreset": 1, "largest": 400}
    detector = Detector("patchcore", **options).fit(Cohort.read(scans / "first.csv"))
    with pytest.raises(ArgumentError, match=r"has no room for .* may keep 400 \(largest\)"):
        detector.update(scans / "later.csv")


@pytest.mark.parametrize("method", ["mean_image", "padim", "patchcore"])
def test_a_cross_calibrated_detector(method, scans, tmp_path, capsys):
    """Every member takes the new scans in; stored and loaded it is the same."""
    run = tmp_path / "run"
    detector = Detector(method, preset="tiny", calibration="cross", folds=2, **PLAIN)
    detector.fit(Cohort.read(scans / "first.csv"), run)
    before = load(run, "cpu").predict(str(scans / "15.npy")).score
    assert main(["update", str(run), "--cohort", str(scans / "later.csv")]) == 0
    told = capsys.readouterr().out
    assert "6 healthy scans of 6 subjects joined" in told and "Stale: 6 healthy scans" in told
    assert f"next: normscan calibrate {run}_updated" in told
    new = load(f"{run}_updated", "cpu")
    assert new.predict(str(scans / "15.npy")).score < before
    assert new.seen([scans / "15.npy"]) == "trained" and not detector.seen([scans / "15.npy"])
    assert "Joined later: 6 healthy scans" in (tmp_path / "run_updated" / "card.md").read_text()

    other = ["update", f"{run}_updated", "--cohort", str(scans / "later.csv"), "--out"]
    assert main([*other, str(tmp_path / "again")]) == 2
    assert "learnt from all of these scans" in capsys.readouterr().err
    assert (
        main(["predict", f"{run}_updated", str(scans / "0.npy"), "--out", str(tmp_path / "p")]) == 0
    )
    assert "note: Stale: 6 healthy scans" in capsys.readouterr().err


def test_scans_kept_apart_set_the_thresholds_anew(scans, tmp_path, capsys):
    run = tmp_path / "run"
    options = {**PLAIN, "preset": "tiny", "calibration": "split"}
    old = Detector("mean_image", **options).fit(Cohort.read(scans / "first.csv"), run)
    line = ["update", str(run), "--cohort", str(scans / "later.csv"), "--fractions", "0.5,0.5,0"]
    assert main([*line, "--out", str(tmp_path / "new")]) == 0
    assert "Stale" not in capsys.readouterr().out
    new = load(tmp_path / "new", "cpu")
    assert "stale" not in new.training and new.scan_threshold.n == 3
    assert new.training["cohort_size"]["train"] == 6 + 3
    assert new.scan_threshold.threshold != old.scan_threshold.threshold
    roles = [new.seen([scans / f"{i}.npy"]) for i in range(14, 20)]
    assert sorted(roles) == ["calibrated"] * 3 + ["trained"] * 3


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("ae_dense", {"preset": "tiny", "steps": 2}, "it learns by gradient steps"),
        ("padim", {"preset": "tiny", "wrappers": ["ensemble=2"]}, "it is wrapped by ensemble=2"),
        ("image_statistics", {"preset": "tiny", "shrinkage": 1.0}, "can't be taken apart"),
    ],
)
def test_others_are_refused_with_the_reason(method, options, reason, scans):
    detector = Detector(method, **PLAIN, **options, calibration="split")
    detector.fit(Cohort.read(scans / "first.csv"))
    with pytest.raises(ArgumentError, match=reason):
        detector.update(scans / "later.csv")


def test_a_detector_of_an_earlier_version_and_no_scans(scans):
    detector = Detector("mean_image", preset="tiny", calibration="split", **PLAIN)
    with pytest.raises(ArgumentError, match="was not fitted"):
        detector.update(scans / "later.csv")
    detector.fit(Cohort.read(scans / "first.csv"))
    state = detector.method.state_dict()
    del state["count"]
    detector.method.load_weights(state)
    with pytest.raises(ArgumentError, match="doesn't say how many images"):
        detector.update(scans / "later.csv")
    table = pd.read_csv(scans / "later.csv").assign(split="test")
    with pytest.raises(CohortError, match="no healthy scans in 'train'"):
        detector.update(Cohort.from_table(table, scans))
