"""What the page on reproducibility promises, and where it says that last bits may differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import normscan as ns
from normscan.detector import prediction

OPTIONS = {"preset": "tiny", "size": 32, "calibration": "split", "fpr": 0.2, "gate": False}
METHODS = {"dae": {"steps": 3}, "mean_image": {}}


@pytest.fixture(scope="module")
def cohort(toy):
    found = ns.Cohort.read(toy(2, 1))
    healthy = [row.scan for part in ("train", "val") for row in found.part(part)]
    return found.select([row.scan in healthy[-10:] for row in found])


@pytest.fixture(scope="module", params=METHODS)
def fitted(request, cohort):
    return request.param, ns.create(request.param, **OPTIONS, **METHODS[request.param]).fit(cohort)


def maps(detector, cohort):
    found = [f for _, f in prediction.predict_rows(detector, list(cohort))]
    return np.stack([f.map for f in found]), np.array([f.score for f in found])


def test_one_seed_one_result(fitted, cohort):
    method, first = fitted
    again = ns.create(method, **OPTIONS, **METHODS[method]).fit(cohort)
    states = first.method.state_dict(), again.method.state_dict()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    for one, other in zip(maps(first, cohort), maps(again, cohort), strict=True):
        assert np.array_equal(one, other)


@pytest.fixture
def with_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_batches_and_threads_change_last_bits_at_most(fitted, cohort, monkeypatch, with_threads):
    """A thousandth of the map's range is far more than rounding, and far less than any decision."""
    _, detector = fitted
    straight = maps(detector, cohort)
    for size, threads in ((1, 1), (3, 1), (3, 2)):
        monkeypatch.setattr(prediction, "batch_size", lambda state, size=size: size)
        with_threads(threads)
        one, other = maps(detector, cohort), straight
        assert np.abs(one[0] - other[0]).max() <= 1e-3 * np.ptp(other[0])
        np.testing.assert_allclose(one[1], other[1], rtol=1e-3)
        assert all(np.array_equal(a, b) for a, b in zip(one, maps(detector, cohort), strict=True))
