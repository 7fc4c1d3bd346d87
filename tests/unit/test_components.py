"""The pixel threshold by false components, beside scipy.ndimage.label and by simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage

import normscan as ns
from normscan.decide import ComponentThreshold
from normscan.decide.components import MOST, component_levels
from normscan.detector.finding import Finding
from normscan.errors import ArgumentError
from normscan.scan import Scan
from normscan.scores.components import box_of, connected


def count(anomaly, threshold, smallest=0):
    labels, _ = ndimage.label(anomaly > threshold, np.ones((3,) * anomaly.ndim))
    return int((np.bincount(labels.ravel())[1:] > smallest).sum())


def smooth(rng, shape, sigma=1.5):
    return ndimage.gaussian_filter(rng.normal(size=shape), sigma).astype(np.float32)


@pytest.mark.parametrize("shape", [(26, 22), (9, 8, 7)])
@pytest.mark.parametrize("smallest", [0, 3])
@pytest.mark.parametrize("sigma", [0, 1])
def test_levels_are_where_label_finds_one_more(rng, shape, smallest, sigma):
    anomaly = np.round(smooth(rng, shape, sigma), 2 - (sigma == 0))
    found = component_levels(anomaly, smallest)
    values = np.unique(anomaly)
    counts = np.array([count(anomaly, t, smallest) for t in values])
    most = np.maximum.accumulate(counts[::-1])[::-1]  # at the value or any above
    assert most.max() > 2
    for value, expected in zip(values, most, strict=True):
        assert (found > value).sum() == min(expected, MOST)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "view", [lambda a: a, np.asfortranarray, lambda a: np.pad(a, 2)[(slice(2, -2),) * a.ndim]]
)
@pytest.mark.parametrize("faces", [False, True])
def test_labels_are_those_of_scipy(rng, dims, view, faces):
    for _ in range(150):
        shape = rng.integers(1, 30 if dims == 2 else 14, dims)
        field = smooth(rng, shape, rng.uniform(0, 2))
        mask = view(field > np.quantile(field, rng.uniform(0.2, 0.95)))
        expected, _ = ndimage.label(mask, None if faces else np.ones((3,) * dims))
        found = connected(mask, faces)
        pairs = np.unique(np.stack([found.ravel(), expected.ravel()]), axis=1)
        at = np.argwhere(mask)
        assert not len(at) or box_of(mask) == tuple(map(slice, at.min(0), at.max(0) + 1))
        assert (pairs[0] == 0).sum() <= 1 and ((pairs == 0).any(0) == (pairs == 0).all(0)).all()
        assert len(set(pairs[0])) == len(set(pairs[1])) == pairs.shape[1]


@pytest.mark.parametrize("shape", [(40, 33), (14, 12, 10)])
def test_components_of_a_finding_are_those_of_scipy(rng, shape):
    anomaly = smooth(rng, shape)
    limit = float(np.quantile(anomaly, 0.85))
    affine = np.diag([2.0, 0.5, 1.5, 1.0])
    scan = Scan(anomaly[None], affine, ("image",))
    found = Finding(scan, anomaly, 1.0, pixel_threshold=limit).components()
    labels, n = ndimage.label(anomaly > limit, np.ones((3,) * anomaly.ndim))
    numbers = np.arange(1, n + 1)
    peaks = ndimage.maximum(anomaly, labels, numbers)
    order = np.argsort(-peaks)
    assert n > 3 and [each["peak"] for each in found] == [float(peaks[i]) for i in order]
    assert [each["voxels"] for each in found] == list(np.bincount(labels.ravel())[1:][order])
    places = ndimage.maximum_position(anomaly, labels, numbers)
    for each, i in zip(found, order, strict=True):
        index = [*places[i], *[0] * (3 - len(shape)), 1]
        np.testing.assert_allclose(each["peak_mm"], (affine @ index)[:3], atol=1e-3)


def test_of_equal_peaks_the_first_place_counts():
    anomaly = np.zeros((6, 6), np.float32)
    anomaly[1, 1:4] = anomaly[4, 2] = 2
    finding = Finding(Scan.from_array(anomaly), anomaly, 1.0, pixel_threshold=1.0)
    key = "peak_mm" if finding.scan.measured else "peak_index"
    assert [each["voxels"] for each in finding.components()] == [3, 1]
    assert len(finding.components()[0][key]) == (3 if key == "peak_mm" else 2)


def test_the_threshold_is_the_lowest_that_keeps_the_mean(rng):
    maps = [smooth(rng, (30, 30)) for _ in range(6)]
    subjects = ["a", "a", "a", "b", "c", "c"]
    rule = ComponentThreshold(1.5)
    for one in maps:
        rule.add(one, 2)

    def mean(threshold):
        numbers = [count(one, threshold, 2) for one in maps]
        by = {s: [n for n, o in zip(numbers, subjects, strict=True) if o == s] for s in "abc"}
        return np.mean([np.mean(v) for v in by.values()])

    values = np.unique(np.concatenate([m.ravel() for m in maps]))
    found = rule.threshold(subjects)
    assert max(mean(t) for t in values[values >= found]) <= 1.5 + 1e-9
    # One step lower, the sum of each map's most components at or above is over what is wanted.
    below = values[values < found][-1]
    most = [max(count(m, t, 2) for t in values[values >= below]) for m in maps]
    weights = np.array([1 / 9] * 3 + [1 / 3] + [1 / 6] * 2)
    assert weights @ most > 1.5
    assert rule.expected(found, subjects) <= 1.5 + 1e-9
    assert rule.threshold() != found


@pytest.mark.parametrize("wanted", [0.5, 1, 3])
def test_new_healthy_scans_have_about_as_many_false_components(wanted):
    rng = np.random.default_rng(1)
    rule = ComponentThreshold(wanted)
    for _ in range(200):
        rule.add(smooth(rng, (40, 40), 1.0), 1)
    threshold = rule.threshold()
    fresh = [count(smooth(rng, (40, 40), 1.0), threshold, 1) for _ in range(400)]
    error = np.std(fresh) / np.sqrt(200) * 3
    assert np.mean(fresh) == pytest.approx(wanted, abs=error + 0.1 * wanted)


def test_maps_with_few_components():
    rule = ComponentThreshold(1.0)
    rule.add(np.add.outer(np.arange(6.0), np.arange(6.0)))  # one component at any threshold
    rule.add(np.full((4, 4), 2.0))
    assert rule.threshold() == -np.inf and rule.expected(0.0) == 0.5
    for wanted in (0, -1, MOST):
        with pytest.raises(ArgumentError, match="false components"):
            ComponentThreshold(wanted)
    with pytest.raises(ArgumentError, match="at least one healthy map"):
        ComponentThreshold().threshold()


@pytest.mark.parametrize("calibration", ["split", "cross"])
def test_a_detector_keeps_and_says_it(toy, tmp_path, calibration):
    cohort = ns.Cohort.read(toy(2, 1))
    options = {"preset": "laptop", "size": 32, "gate": False, "folds": 2}
    made = {}
    for false_components in (None, 0.5):
        made[false_components] = ns.create(
            "mean_image", false_components=false_components, calibration=calibration,
            pixel_fpr=0.3, **options,
        ).fit(cohort, tmp_path / str(false_components))  # fmt: skip
    by_share, by_components = made.values()
    assert by_components.pixel_threshold > by_share.pixel_threshold
    loaded = ns.load(tmp_path / "0.5")
    assert loaded.pixel_threshold == by_components.pixel_threshold
    about = loaded.training["pixel_threshold"]
    assert about["false_components"] == 0.5 and 0 < about["components_above"] <= 0.5
    scan = next(iter(cohort.part("test"))).load()
    found = loaded.predict(scan)
    text = json.dumps(found.to_dict())
    assert "in at most 0.5 connected components" in text
    assert "connected" not in by_share.predict(scan).pixel_rule
    if calibration == "split":
        numbers = [
            len(f.components()) for _, f in loaded.predict_cohort(cohort.part("val"))
        ]  # fmt: skip
        assert np.mean(numbers) <= 0.5
