"""Neighbouring slices: the same ones in training and in prediction, those of the ends repeated."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.support.regimes import registered

from normscan import registry
from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.rng import Rng
from normscan.scan import Scan
from normscan.training.data import PreparedSet
from normscan.wrappers.stochastic import Flips

OPTIONS = {"preprocess": {"scaling": "none", "crop": "none"}, "gate": False, "steps": 60}


@pytest.fixture(scope="module", autouse=True)
def toys():
    with registered():
        yield


@pytest.fixture(scope="module")
def cohort(toy) -> Cohort:
    return Cohort.read(toy(3))


def seen_by(detector: Detector, monkeypatch) -> list[Batch]:
    """The batches that its method gets at prediction."""
    batches: list[Batch] = []
    inner = detector.method.maps
    monkeypatch.setattr(detector.method, "maps", lambda b: (batches.append(b), inner(b))[1])
    return batches


def stacks(volume: np.ndarray, kept: list[int], n: int) -> np.ndarray:
    """(slices, C, 2 n + 1, H, W) by hand."""
    places = [[kept[min(max(i + d, 0), len(kept) - 1)] for d in range(-n, n + 1)]
              for i in range(len(kept))]  # fmt: skip
    return np.stack([np.moveaxis(volume[..., p], -1, 1) for p in places])


def test_neighbours_at_prediction(cohort, monkeypatch):
    monkeypatch.setattr("normscan.detector.prediction.BATCH", 4)
    detector = Detector("toy_between", dims=2, context=2, **OPTIONS).fit(cohort)
    batches = seen_by(detector, monkeypatch)
    row = cohort.part("test")[0]
    detector.predict(row.load())
    prepared = detector.preparation()(row)
    kept = np.flatnonzero(prepared.foreground.mean(axis=(0, 1)) >= 0.01).tolist()
    assert len(batches) > 1  # neighbours reach from one batch into the next
    together = torch.cat([b.context for b in batches]).numpy()
    np.testing.assert_array_equal(together, stacks(prepared.image, kept, 2))
    np.testing.assert_array_equal(together[:, :, 2], torch.cat([b.image for b in batches]))


def test_neighbours_in_training_are_those_of_prediction(cohort, tmp_path):
    detector = Detector("toy_between", dims=2, context=2, **OPTIONS).fit(cohort)
    rows = list(cohort.part("train"))[:3]
    preparation = detector.preparation()
    data = PreparedSet.create(
        tmp_path / "set", rows, preparation, preparation.slices, context=2, part="healthy"
    )
    by_hand = []
    for row in rows:
        prepared = preparation(row)
        kept = np.flatnonzero(prepared.foreground.mean(axis=(0, 1)) >= 0.01).tolist()
        by_hand.append(stacks(prepared.image, kept, 2))
    every = data.batch(range(len(data)), Rng(0))
    np.testing.assert_array_equal(every.context, np.concatenate(by_hand))
    joined = PreparedSet.join([data, data])
    again = joined.batch([len(data), len(data) - 1], Rng(0)).context
    np.testing.assert_array_equal(again, every.context[[0, -1]])


def test_fit_save_load_predict(cohort, tmp_path):
    """A slice is the mean of its two neighbours where intensity runs linearly: the least squares
    of the toy's own volumes say how nearly."""
    detector = Detector("toy_between", dims=2, context=1, **OPTIONS).fit(cohort, tmp_path / "run")
    losses = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert losses[-1]["terms"]["toy/l2"] < 0.1 * losses[0]["terms"]["toy/l2"]
    assert detector.method.weights.sum().item() == pytest.approx(1, abs=0.1)
    scan = cohort.part("test")[0].load()
    one, other = detector.predict(scan), load(tmp_path / "run", "cpu").predict(scan)
    assert one.score == other.score
    np.testing.assert_array_equal(one.map, other.map)


def test_a_scan_that_is_no_volume_repeats_itself(toy, monkeypatch):
    cohort = Cohort.read(toy(2))
    detector = Detector("toy_between", context=2, **OPTIONS).fit(cohort)
    batches = seen_by(detector, monkeypatch)
    detector.predict(cohort.part("test")[0].load())
    (batch,) = batches
    for k in range(5):
        torch.testing.assert_close(batch.context[:, :, k], batch.image, rtol=0, atol=0)


def test_wrappers_pass_it_on_and_flip_it(cohort):
    wrapped = Detector("toy_between", dims=2, context=1, wrappers=["ensemble=2", "flips=12"],
                       **OPTIONS).fit(cohort)  # fmt: skip
    assert isinstance(wrapped.method, Flips) and wrapped.method.context == 1
    plain = Detector("toy_between", dims=2, context=1, wrappers=["ensemble=2"], **OPTIONS)
    scan = cohort.part("test")[0].load()
    # The toy knows no direction in the plane, so mirror images change nothing.
    a, b = wrapped.predict(scan), plain.fit(cohort).predict(scan)
    np.testing.assert_allclose(a.map, b.map, atol=1e-6)
    assert a.map.max() > 0.01


def test_what_has_no_slices_is_refused(cohort, toy):
    with pytest.raises(ArgumentError, match="looks at 2 slices on each side: it needs whole"):
        Detector("toy_between", dims=3, **OPTIONS).fit(cohort)
    with pytest.raises(ArgumentError, match="dims=2 without patch"):
        Detector("toy_between", patch=8, **OPTIONS).fit(Cohort.read(toy(2)))


@pytest.mark.parametrize("context", [1.5, -1])
def test_a_part_of_a_slice_is_refused_before_training(cohort, monkeypatch, context):
    built = registry.card("toy_between").build

    @functools.wraps(built)
    def wrong(**arguments):
        method = built(**arguments)
        method.context = context
        return method

    card = replace(registry.card("toy_between"), build=wrong)
    monkeypatch.setitem(registry._CARDS, "toy_between", card)
    with pytest.raises(ArgumentError, match=rf"asks for {context} neighbouring slices"):
        Detector("toy_between", dims=2, **OPTIONS).fit(cohort)


def test_a_gap_is_passed_over(tmp_path):
    """Slices without anatomy are no neighbours, in training as in prediction."""
    image = np.zeros((24, 24, 8), np.float32)
    for k in (1, 2, 5, 6):
        image[4:20, 4:20, k] = 1 + k
    scan = Scan.from_array(image)
    foreground = image > 0
    detector = Detector("toy_between", dims=2, context=1, **OPTIONS)
    state = replace(detector.preparation(), dims=2, channels=("grey",))
    prepared = state.of(scan, foreground)

    class Row:
        scan = subject = "a"
        columns: dict = {}  # noqa: RUF012
        label = mask = None

    data = PreparedSet.create(tmp_path / "set", [Row()], lambda r: prepared, state.slices,
                              context=1)  # fmt: skip
    levels = data.batch([0, 1, 2, 3], Rng(0)).context[:, 0, :, 12, 12]
    assert levels.tolist() == [[2, 2, 3], [2, 3, 6], [3, 6, 7], [6, 7, 7]]
