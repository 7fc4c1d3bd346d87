"""A cohort on its way through a detector: order, threads, shared batches, bad scans, memory."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import normscan as ns
from normscan import parallel
from normscan.cohort import Opened
from normscan.detector import fitting
from normscan.detector.finding import Finding
from normscan.detector.prediction import BATCH, each_row, predict_rows
from normscan.detector.survey import Survey
from normscan.errors import ArgumentError, NormscanError, ScanError
from normscan.evaluation.baselines import fit_baseline
from normscan.evaluation.scoring import score_cohort, score_together
from normscan.io import MaskReport
from normscan.preprocess import Preprocess
from normscan.preprocess.samples import Preparation, Sampling
from normscan.quality import Gate


@pytest.fixture(scope="module")
def cohort(toy):
    return ns.Cohort.read(toy(2))


@pytest.fixture(scope="module")
def detector(cohort):
    return ns.create("dae", size=32, width=4, steps=2, calibration="split").fit(cohort)


@pytest.fixture
def sizes(detector, monkeypatch):
    """Samples of each batch that the method sees."""
    seen, each = [], detector.method.each

    def counted(batch):
        seen.append(len(batch))
        return each(batch)

    monkeypatch.setattr(detector.method, "each", counted)
    return seen


# ---------------------------------------------------------------- threads ahead


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_order_whoever_is_faster(threads):
    def slow(n):
        time.sleep(0.002 * (n % 3))
        return n * n

    assert list(parallel.ahead(slow, range(40), threads)) == [n * n for n in range(40)]
    assert list(parallel.ahead(slow, [], threads)) == []


def test_items_are_taken_by_the_caller_and_worked_on_by_threads():
    here, workers = threading.get_ident(), set()

    def items():
        for n in range(6):
            assert threading.get_ident() == here
            yield n

    list(parallel.ahead(lambda n: workers.add(threading.get_ident()), items(), 2))
    assert here not in workers and len(workers) <= 2


@pytest.mark.parametrize(("size", "most"), [(0, 32), (2**25, 4), (2**30, 2)])
def test_few_results_wait_and_fewer_large_ones(size, most):
    taken = itertools.count()
    results = parallel.ahead(lambda n: n, iter(lambda: next(taken), None), 2, lambda _: size)
    for n in range(50):
        assert next(results) == n
    assert next(taken) <= 50 + most + 1
    results.close()


def test_an_error_of_the_function_reaches_the_caller_and_a_closed_one_ends():
    def work(n):
        if n == 3:
            raise KeyError(n)
        return n

    results = parallel.ahead(work, range(9), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(results)
    with pytest.raises(ArgumentError, match="workers is -1"):
        next(parallel.ahead(work, [1], -1))


def test_cores_follow_affinity_and_quota(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    new, old = tmp_path / "new", tmp_path / "old"
    for folder, name, text in [
        (new, "cpu.max", "250000 100000"), (old, "cpu/cpu.cfs_quota_us", "50000"),
        (old, "cpu/cpu.cfs_period_us", "100000"),
    ]:  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    assert parallel.quota(str(new)) == 2.5 and parallel.quota(str(old)) == 0.5
    for quota, expected in ((2.5, 2), (0.5, 1), (None, 8), (99.0, 8)):
        monkeypatch.setattr(parallel, "quota", lambda quota=quota: quota)
        assert parallel.cores() == expected
    (new / "cpu.max").write_text("max 100000\n")
    monkeypatch.undo()
    assert parallel.quota(str(new)) is None and parallel.quota(str(tmp_path)) is None


# ---------------------------------------------------------------- shared batches


def test_pictures_share_batches_and_findings_keep_their_order(cohort, detector, sizes):
    rows = list(cohort.part("test"))[:20]
    found = list(detector.predict_cohort(rows, details=True, force=True))
    assert sizes == [BATCH, 4]
    assert [row.scan for row, _ in found] == [row.scan for row in rows]
    for row, finding in found[::7]:
        alone = detector.predict(row.load(), force=True)
        assert finding.score == pytest.approx(alone.score, rel=1e-5)
        np.testing.assert_allclose(finding.map, alone.map, atol=1e-5)
        np.testing.assert_allclose(finding.reconstruction, alone.reconstruction, atol=1e-5)
        assert (finding.foreground == alone.foreground).all()
    assert {"read", "gate", "prepare", "network", "decide"} == set(finding.stages)
    assert finding.seconds == pytest.approx(sum(finding.stages.values()) - finding.stages["read"])
    assert finding.to_dict()["stages"].keys() == finding.stages.keys()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_change_no_bit(cohort, detector, workers):
    rows = cohort.part("test")
    for (_, one), (_, other) in zip(
        detector.predict_cohort(rows, force=True, workers=0),
        detector.predict_cohort(rows, force=True, workers=workers), strict=True,
    ):  # fmt: skip
        assert one.score == other.score and one.notes == other.notes
        np.testing.assert_array_equal(one.map, other.map)


def test_a_bad_scan_is_reported_where_it_stands(cohort, detector, sizes, tmp_path):
    rows = list(cohort.part("test"))[:9]
    missing = replace(rows[4], paths=(tmp_path / "gone.npy",))
    results = [
        found for _, found in detector.predict_cohort([*rows[:4], missing, *rows[5:]], force=True)
    ]
    assert [isinstance(found, Finding) for found in results] == [True] * 4 + [False] + [True] * 4
    assert "gone.npy" in str(results[4]) and sizes == [8]
    assert all(isinstance(f, NormscanError) for _, f in detector.predict_cohort([missing] * 3))


def test_one_scan_that_the_method_fails_on_takes_no_other_along(cohort, detector, monkeypatch):
    rows, each = list(cohort.part("test"))[:5], detector.method.each

    def failing(batch):
        sums = [batch.columns[i]["number"] for i in range(len(batch))]
        if 2 in sums:
            raise ScanError("no")
        return each(batch)

    monkeypatch.setattr(detector.method, "each", failing)
    for number, row in enumerate(rows):
        row.columns["number"] = number
    results = [found for _, found in detector.predict_cohort(rows, force=True)]
    assert [isinstance(found, Finding) for found in results] == [True, True, False, True, True]


def test_slices_of_volumes_keep_to_themselves_where_a_batch_is_too_small(toy):
    volumes = ns.Cohort.read(toy(3))
    options = {"size": 32, "width": 4, "steps": 2, "calibration": "split", "gate": False}
    flat = ns.create("dae", dims=2, **options).fit(volumes)
    counts, each = [], flat.method.each
    flat.method.each = lambda batch: (counts.append(len(batch)), each(batch))[1]
    rows = list(volumes.part("test"))[:3]
    found = list(flat.predict_cohort(rows))
    assert len(counts) == 3 and BATCH / 2 < min(counts) <= max(counts) <= BATCH
    for row, together in found:
        np.testing.assert_array_equal(together.map, flat.predict(row.load()).map)


def test_an_odd_one_among_pictures_changes_nothing_for_them(toy, sizes, detector, tmp_path):
    picture = ns.Cohort.read(toy(2)).part("test")[0]
    colours = np.stack([picture.load().data[0]] * 2)
    np.save(tmp_path / "two.npy", colours)
    two = replace(picture, paths=(tmp_path / "two.npy",))
    results = [r for _, r in detector.predict_cohort([picture, two, picture], force=True)]
    assert isinstance(results[0], Finding) and isinstance(results[2], Finding)
    assert results[0].score == results[2].score


def test_each_row_reads_ahead_and_reports(cohort, detector, tmp_path):
    rows = list(cohort.part("test"))[:4]
    lost = replace(rows[1], paths=(tmp_path / "gone.npy",))

    def work(row, scan, foreground, companions):
        if row.scan == rows[2].scan:
            raise ScanError("no")
        return scan.name

    found = [r for _, r in each_row(detector, [rows[0], lost, *rows[2:]], work)]
    assert [isinstance(f, str) for f in found] == [True, False, False, True]


# ---------------------------------------------------------------- read once


def test_an_opened_row_reads_each_file_once(cohort, monkeypatch):
    row = next(r for r in cohort.part("test") if r.label == 1)
    opened, report = Opened.of(row), [MaskReport(), MaskReport()]
    scan = opened.load()
    assert opened.load() is scan and (opened.scan, opened.label) == (row.scan, 1)
    first = opened.load_mask(scan, report=report[0])
    monkeypatch.setattr("normscan.cohort.row.read_mask", None)
    assert opened.load_mask(scan, report=report[1]) is first
    assert report[0].kinds == report[1].kinds and sum(report[0].kinds.values()) == 1
    assert opened.load_foreground(scan) is None is opened.load_companion("target", scan)


def test_detectors_score_together_what_they_score_apart(cohort, detector, monkeypatch):
    other = ns.create("mean_image", size=32, gate=False, calibration="split").fit(cohort)
    rows, loads = cohort.part("test"), []
    load = type(rows[0]).load
    monkeypatch.setattr(type(rows[0]), "load", lambda row: (loads.append(row.scan), load(row))[1])
    together = score_together([detector, other], rows)
    assert sorted(loads) == sorted(row.scan for row in rows)
    apart = [score_cohort(one, rows) for one in (detector, other)]
    monkeypatch.setattr("normscan.evaluation.scoring.MOST_PIXELS", 1)
    in_turn = score_together([detector, other], rows)
    for some in (together, in_turn):
        for one, expected in zip(some, apart, strict=True):
            assert [r["score"] for r in one.rows] == [r["score"] for r in expected.rows]
            assert one.masks.kinds == expected.masks.kinds and one.masked == expected.masked


def test_an_unfitted_detector_says_so_of_each_scan(cohort):
    unfitted = ns.create("mean_image", size=32)
    results = [found for _, found in predict_rows(unfitted, list(cohort.part("test"))[:2])]
    assert all("not fitted" in str(found) for found in results) and len(results) == 2


def test_a_fit_reads_a_scan_once_for_the_gate_and_the_training(toy, monkeypatch):
    cohort, loads = ns.Cohort.read(toy(2)), []
    load = type(cohort[0]).load
    monkeypatch.setattr(type(cohort[0]), "load", lambda row: (loads.append(row.scan), load(row))[1])
    monkeypatch.setattr(fitting, "survey", lambda *a: Survey(2, "keep", ("image",)))
    made = ns.create("mean_image", size=32, calibration="split").fit(cohort)
    counts = Counter(loads)
    assert {counts[row.scan] for row in cohort.part("train")} == {1}
    assert {counts[row.scan] for row in cohort.part("val")} == {2}  # and for the threshold
    expected = Gate.of_cohort(list(cohort.part("train")), list(cohort.part("val")))
    assert made.gate.to_dict() == expected.to_dict()


# ---------------------------------------------------------------- baselines are kept


def test_a_baseline_is_fitted_once_for_a_cohort(toy, detector, tmp_path, monkeypatch):
    monkeypatch.setenv("NORMSCAN_CACHE", str(tmp_path / "kept"))
    cohort, fits = ns.Cohort.read(toy(2)), []
    fit = ns.Detector.fit
    monkeypatch.setattr(ns.Detector, "fit", lambda d, *a: (fits.append(d.card.id), fit(d, *a))[1])
    first, again = (fit_baseline("mean_image", detector, cohort) for _ in range(2))
    assert fits == ["mean_image"]
    scan = cohort.part("test")[0].load()
    one, other = first.predict(scan), again.predict(scan)
    assert one.score == other.score and one.p_value == other.p_value
    assert first.pixel_threshold == again.pixel_threshold
    np.testing.assert_array_equal(one.map, other.map)
    # Other scans, other settings: another baseline. A damaged one is fitted anew.
    fit_baseline("mean_image", detector, cohort.select(cohort.table["scan"] != "train000"))
    fit_baseline("mean_image", detector.changed(fpr=0.2), cohort)
    fit_baseline("image_statistics", detector, cohort)
    assert fits == ["mean_image"] * 3 + ["image_statistics"]
    for weights in (tmp_path / "kept" / "baselines").glob("*/model.safetensors"):
        weights.write_bytes(b"cut")
    fit_baseline("mean_image", detector, cohort)
    monkeypatch.setenv("NORMSCAN_CACHE", "off")
    fit_baseline("mean_image", detector, cohort)
    assert len(fits) == 6


def test_prepared_scans_are_kept_by_content_and_settings(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("NORMSCAN_CACHE", str(tmp_path / "kept"))
    cohort, loads = ns.Cohort.read(toy(2)), []
    load = type(cohort[0]).load
    monkeypatch.setattr(type(cohort[0]), "load", lambda row: (loads.append(row.scan), load(row))[1])
    options, scan = {"calibration": "split", "gate": False}, cohort[0].load()
    loads.clear()

    def prepared(size=32, **more):
        made = ns.create("mean_image", size=size, **options, **more).fit(cohort)
        count = len([scan for scan in loads if scan.startswith("train")])
        loads.clear()
        return count, made.predict(scan).map

    few = prepared()[0] - 48  # the survey reads some, whatever is kept
    assert few >= 0
    again, map = prepared()
    other, small = prepared(size=24)
    off, same = prepared(cache=False)
    assert (again, other, off) == (few, 48 + few, 48 + few)
    np.testing.assert_array_equal(map, same)
    assert not np.array_equal(map, small)
    entries = list((tmp_path / "kept" / "prepared").glob("*.npz"))
    assert len(entries) == 2 * 54 and not any(cohort[0].scan in e.name for e in entries)
    for entry in entries:  # damaged: made anew
        entry.write_bytes(entry.read_bytes()[:-200])
    count, map = prepared()
    assert count == 48 + few
    np.testing.assert_array_equal(map, same)


def test_volumes_and_what_stands_beside_are_kept_too(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("NORMSCAN_CACHE", str(tmp_path / "kept"))
    row = next(iter(ns.Cohort.read(toy(3)).part("train")))
    row = replace(row, targets=row.paths)
    prepare = Preparation(Preprocess(size=16), 2, ("image",), companions=("target",))
    prepare = replace(prepare, channels=prepare.preprocess(row.load(), 2).image.shape[0] * ("c",))
    sampling = Sampling(prepare, prepare.slices)
    first, again = sampling(row), sampling(row)
    assert len(first) > 3 and len(list((tmp_path / "kept" / "prepared").iterdir())) == 1
    for one, other in zip(first, again, strict=True):
        assert one.position == other.position
        for a, b in ((one.image, other.image), (one.beside["target"], other.beside["target"])):
            np.testing.assert_array_equal(a, b)
    # Other content beside it, another entry.
    np.save(tmp_path / "other.npy", row.load().data[0] * 2)
    sampling(replace(row, targets=(tmp_path / "other.npy",)))
    assert len(list((tmp_path / "kept" / "prepared").iterdir())) == 2
