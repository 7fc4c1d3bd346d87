"""Further scans of the same subject: read, brought onto the working grid, learnt from, asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter
from tests.support.pairs import COUNTS, partner, write_pairs
from tests.support.regimes import registered

from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.diagnostics.images import restoring
from normscan.errors import ArgumentError, CohortError, NormscanError, ScanError
from normscan.io import write_map
from normscan.limits import detection_limits
from normscan.preprocess.cohort import prepare_cohort
from normscan.preprocess.pipeline import Preprocess
from normscan.scan import Scan
from normscan.training.data import PreparedSet

OPTIONS = {"preprocess": {"scaling": "none", "crop": "none", "size": 44}, "gate": False}


@pytest.fixture(scope="module", autouse=True)
def toys():
    with registered():
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def run(table, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    Detector("toy_translation", steps=200, **OPTIONS).fit(Cohort.read(table), out)
    return out


def changed(table: Path, **cells: str) -> Cohort:
    """The cohort with other cells in the column of the targets, by scan."""
    frame = pd.read_csv(table, keep_default_na=False)
    for scan, cell in cells.items():
        frame.loc[frame["scan"] == scan, "target"] = cell
    return Cohort.from_table(frame, table.parent)


# ---------------------------------------------------------------- end to end


def test_fit_save_load_predict(table, run):
    """The least squares of the relation between the modalities are found, and the lesion is where
    it doesn't hold."""
    detector = load(run, "cpu")
    weight = detector.method.mixture.weight.item()
    assert weight == pytest.approx(0.5, abs=0.02)
    assert detector.method.mixture.bias.item() == pytest.approx(0.1, abs=0.02)
    test = Cohort.read(table).part("test")
    for row, finding in detector.predict_cohort(test):
        mask = row.load_mask(finding.scan)
        if row.label:
            assert finding.map[mask].mean() > 5 * finding.map[~mask].mean()
        beside = {"target": str(row.targets[0])}
        alone = detector.predict(row.paths[0], companions=beside)
        # Batches of another size differ in last bits.
        np.testing.assert_allclose(alone.map, finding.map, rtol=1e-4, atol=1e-6)
        assert alone.score == pytest.approx(finding.score, rel=1e-4, abs=1e-6)


def test_several_targets_and_volumes(tmp_path):
    """Two further scans; slices of volumes; the network has as many outputs."""
    table = write_pairs(tmp_path / "volumes", "target_t2", 3)
    frame = pd.read_csv(table, keep_default_na=False)
    frame["target_again"] = frame["target_t2"].str.replace("_t2", "_again")
    for name in frame["scan"]:
        other = np.load(table.parent / f"{name}_t2.npy")
        np.save(table.parent / f"{name}_again.npy", 0.8 * other)
    cohort = Cohort.from_table(frame, table.parent)
    assert cohort[0].target_channels == ("t2", "again")
    assert "target_again" not in cohort[0].columns
    detector = Detector("toy_translation", dims=2, steps=200, **OPTIONS).fit(cohort)
    assert detector.arguments["targets"] == 2
    weights = detector.method.mixture.weight.flatten().tolist()
    assert weights == pytest.approx([0.5, 0.4], abs=0.03)
    finding = detector.predict_cohort(cohort.part("test"))
    assert all(f.map.shape == f.scan.shape for _, f in finding)


# ---------------------------------------------------------------- geometry and scale


@pytest.mark.parametrize("steps", [[], [{"resample": {"spacing": 1.5}}]])
def test_a_target_goes_where_its_scan_goes(steps, tmp_path, rng):
    """The scan itself as its target comes out as the scan does, whatever its orientation."""
    affine = np.array([[0, -2.0, 0, 10], [1.0, 0, 0, -5], [0, 0, 3.0, 2], [0, 0, 0, 1]])
    volume = np.zeros((20, 24, 10), np.float32)
    volume[4:16, 5:20, 2:9] = rng.uniform(1, 2, (12, 15, 7))
    volume = gaussian_filter(volume, 2)  # steps may smooth as they resample
    scan = Scan(volume[None], affine, ("image",))
    detector = Detector("toy_translation", preprocess={"steps": steps, "size": 32}, dims=2)
    preparation = replace(detector.preparation(), channels=("image",))
    prepared = preparation.of(scan, None, {"target": scan.data})
    np.testing.assert_allclose(prepared.companions["target"], prepared.image, atol=0.02)
    doubled = preparation.of(scan, None, {"target": 2 * scan.data + 5})
    assert doubled.companions["target"].max() <= 3.0


def test_what_lies_on_another_grid_is_refused(table, tmp_path):
    scan = Scan.from_array(np.random.default_rng(0).uniform(size=(44, 37)))
    write_map(tmp_path / "here.nii.gz", scan.data[0], scan)
    row = Cohort.read(table)[0]
    with pytest.raises(ScanError, match="lies up to .* voxels away"):
        moved = replace(row, targets=(tmp_path / "here.nii.gz",))
        shifted = replace(row.load(), affine=np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3) * 4)
        moved.load_companion("target", shifted)
    np.save(table.parent / "small.npy", np.random.default_rng(0).uniform(size=(9, 9)))
    cohort = changed(table, train00="small.npy")
    detector = Detector("toy_translation", steps=2, **OPTIONS)
    detector.fit(cohort)
    assert detector.training["left_out"] == ["train00"]
    with pytest.raises(ScanError, match=r"has the shape \(9, 9\).*register and resample it first"):
        detector.predict(row.load(), companions={"target": np.zeros((9, 9), np.float32)})


# ---------------------------------------------------------------- what lacks


def test_a_cohort_without_targets_is_refused_at_once(toy, monkeypatch):
    monkeypatch.setattr(PreparedSet, "create", lambda *_, **__: pytest.fail("prepared"))
    with pytest.raises(CohortError, match=r"learns from the target of healthy scans.*'target'"):
        Detector("toy_translation", **OPTIONS).fit(Cohort.read(toy(2)))


def test_scans_without_a_target_are_left_out(table):
    detector = Detector("toy_translation", steps=2, **OPTIONS)
    detector.fit(changed(table, train00="", train01=""))
    assert detector.training["left_out"] == ["train00", "train01"]
    assert detector.training["samples"]["train"] == COUNTS["train"] - 2


def test_a_missing_partner_at_prediction(table, run):
    """Refused, or predicted without it, as the method says."""
    cohort = changed(table, test00="")
    row = next(r for r in cohort if r.scan == "test00")
    (_, needed), *rest = load(run, "cpu").predict_cohort(cohort.part("test"))
    assert isinstance(needed, ScanError) and "none was given" in str(needed)
    assert not any(isinstance(found, NormscanError) for _, found in rest)
    welcome = Detector("toy_translation", prediction="welcome", steps=2, **OPTIONS).fit(cohort)
    assert welcome.predict(row.load()).map.max() == 0
    with pytest.raises(ArgumentError, match="'mask' can't stand beside a scan"):
        welcome.predict(row.load(), companions={"mask": row.load().data})


def test_another_number_of_channels(table, run):
    row = Cohort.read(table)[0]
    two = np.concatenate([row.load().data] * 2)
    with pytest.raises(ScanError, match="a target with 2 channels; the detector learns from 1"):
        load(run, "cpu").predict(row.load(), companions={"target": two})


def test_a_column_that_is_nearly_one_is_refused(table):
    frame = pd.read_csv(table, keep_default_na=False).rename(columns={"target": "Targets"})
    with pytest.raises(CohortError, match="Did you mean 'target'"):
        Cohort.from_table(frame, table.parent)


# ---------------------------------------------------------------- the table elsewhere


def test_a_written_table_and_slices_keep_their_targets(tmp_path):
    cohort = Cohort.read(write_pairs(tmp_path / "volumes", dims=3))
    again = Cohort.read(cohort.write(tmp_path / "other" / "cohort.csv"))
    row, other = cohort[3], again[3]
    np.testing.assert_array_equal(
        other.load_companion("target", other.load()), row.load_companion("target", row.load())
    )
    one = cohort.slices(11, 12)[3]
    np.testing.assert_array_equal(
        one.load_companion("target", one.load()),
        row.load_companion("target", row.load())[..., 11],
    )


def test_preprocessed_cohorts_take_their_targets_along(tmp_path):
    cohort = Cohort.read(write_pairs(tmp_path / "volumes", dims=3))
    cohort = cohort.select([r.scan in ("train00", "test10") for r in cohort])
    preprocess = Preprocess(steps=({"resample": {"spacing": 2.0}},))
    done = prepare_cohort(cohort, preprocess, tmp_path / "out", cache=False)
    for row in Cohort.read(done.table):
        scan = row.load()
        assert scan.shape == (15, 13, 11)
        inside = scan.data[0] > 0.2
        found = row.load_companion("target", scan)[0]
        apart = np.abs(found - partner(scan.data[0]))[inside]
        assert np.median(apart) < 0.05


def test_what_shows_or_plants_in_single_images_refuses(table, run, tmp_path):
    detector = load(run, "cpu")
    with pytest.raises(ArgumentError, match="needs more to see"):
        restoring(detector)
    with pytest.raises(
        ArgumentError, match=r"no lesion could be planted.*compares a scan with its"
    ):
        detection_limits(detector, Cohort.read(table), count=1, sizes=[4, 8], contrasts=[1.0])
