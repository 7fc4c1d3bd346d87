"""Detectors that are pickled, as joblib and multiprocessing do, and runs that say where they go on."""

from __future__ import annotations

import copy
import pickle
import pickletools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

import normscan as ns
from normscan.training.loop import Trainer

OPTIONS = {"preset": "tiny", "gate": False, "calibration": "split"}


@pytest.fixture(scope="module")
def scans(toy) -> list[str]:
    return [str(row.paths[0]) for row in ns.Cohort.read(toy(2)).part("test")][:3]


@pytest.mark.parametrize("method", ["mean_image", "padim", "ae_dense"])
def test_a_fitted_detector_comes_back_the_same(method, toy, scans):
    options = OPTIONS | ({"steps": 3} if method == "ae_dense" else {})
    detector = ns.create(method, **options).fit(ns.Cohort.read(toy(2)))
    kept = pickle.dumps(detector)
    for other in (pickle.loads(kept), copy.deepcopy(detector)):
        for scan in scans:
            a, b = detector.predict(scan), other.predict(scan)
            assert (a.score, a.p_value, a.anomalous) == (b.score, b.p_value, b.anomalous)
            np.testing.assert_array_equal(a.map, b.map)
        assert repr(other) == repr(detector)


def test_the_pickle_holds_files_and_no_modules(toy):
    """Weights come back through safetensors: the only class that is looked up is the detector's."""
    detector = ns.create("mean_image", **OPTIONS).fit(ns.Cohort.read(toy(2)))
    named = {
        arg for op, arg, _ in pickletools.genops(pickle.dumps(detector, protocol=2))
        if op.name == "GLOBAL"
    }  # fmt: skip
    assert not any(name.startswith(("torch", "normscan.methods")) for name in named)


def test_one_that_is_fitted_again_begins_as_it_was_asked(toy):
    detector = ns.create("mean_image", **OPTIONS).fit(ns.Cohort.read(toy(2)))
    other = pickle.loads(pickle.dumps(detector))
    assert other.asked().configuration() == detector.asked().configuration()
    other.fit(ns.Cohort.read(toy(2)))
    assert other.scan_threshold.threshold == detector.scan_threshold.threshold


def test_an_unfitted_one(toy):
    other = pickle.loads(pickle.dumps(ns.create("dae", preset="tiny", noise_std=0.3)))
    assert other.arguments["noise_std"] == 0.3 and other.method is None


def score(detector, scan: str) -> float:
    return detector.predict(scan).score


def test_another_process_takes_it(toy, scans):
    detector = ns.create("mean_image", **OPTIONS).fit(ns.Cohort.read(toy(2)))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(ns.Detector.predict, detector, scans[0]).result().score == score(
            detector, scans[0]
        )


class Killed(Exception):
    pass


def test_a_resumed_run_says_where_it_goes_on(toy, tmp_path, monkeypatch, capsys):
    inner, original = Trainer._step, Trainer.__init__

    def step(self, index, phase, at, *rest):
        if at == 3:
            raise Killed
        return inner(self, index, phase, at, *rest)

    monkeypatch.setattr(Trainer, "_step", step)
    monkeypatch.setattr(
        Trainer, "__init__", lambda self, *a: original(self, *a, checkpoint_seconds=0.0)
    )
    detector, cohort = ns.create("ae_dense", steps=6, **OPTIONS), ns.Cohort.read(toy(2))
    with pytest.raises(Killed):
        detector.fit(cohort, tmp_path / "run", progress=True)
    assert "resuming" not in capsys.readouterr().err
    monkeypatch.setattr(Trainer, "_step", inner)
    detector.fit(cohort, tmp_path / "run", progress=True, resume=True)
    assert "resuming at step 3 of 6 of phase" in capsys.readouterr().err
    # Trained, but ended before the detector was written.
    (tmp_path / "run" / "detector.json").unlink()
    detector.fit(cohort, tmp_path / "run", progress=True, resume=True)
    assert "resuming: the method is trained" in capsys.readouterr().err
