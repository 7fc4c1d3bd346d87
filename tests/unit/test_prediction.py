"""Sliding windows and stitching."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.detector.finding import Finding
from normscan.detector.prediction import Predictor
from normscan.errors import ScanError
from normscan.methods.base import Maps, Method
from normscan.preprocess import Prepared
from normscan.preprocess.grid import Grid
from normscan.scan import Scan


def prepared(image, foreground=None):
    shape = image.shape[1:]
    n = len(shape)
    grid = Grid(tuple(range(n)), (0.0,) * n, (1.0,) * n, shape, shape)
    inside = np.ones(shape, bool) if foreground is None else foreground
    return Prepared(image.astype(np.float32), inside, grid)


class Identity(Method):
    """Returns its input as the map and the reconstruction, and counts what it sees."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def maps(self, batch):
        self.sizes.append(len(batch))
        mean = batch.image.mean(dim=1, keepdim=True)
        return Maps(mean, mean.flatten(1).amax(1), batch.image, 2 * mean)


class Noise(Method):
    """A random map."""

    def maps(self, batch):
        shape = (len(batch), 1, *batch.image.shape[2:])
        return Maps(map=batch.rng.normal(shape), score=batch.rng.uniform((len(batch),)))


class Coarse(Method):
    """A map at half the resolution."""

    def maps(self, batch):
        pool = torch.nn.functional.avg_pool2d
        return Maps(map=pool(batch.image.mean(1, keepdim=True), 2))


CASES = {
    "whole 2d": ((13, 18), False, None),
    "whole 3d": ((7, 8, 9), False, None),
    "slices": ((10, 12, 6), True, None),
    "patches 2d": ((23, 31), False, 8),
    "patches 3d": ((9, 13, 16), False, 5),
    "one patch": ((8, 8), False, 8),
    "patch beyond the image": ((6, 20), False, 8),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_identity_stitches_back(rng, case, batch_size):
    shape, slices, patch = CASES[case]
    image = rng.normal(size=(2, *shape)).astype(np.float32)
    method = Identity()
    result = Predictor(method, slices, patch, batch_size, seed=0)(prepared(image))[0]
    np.testing.assert_allclose(result.reconstruction, image, atol=1e-5)
    np.testing.assert_allclose(result.map, image.mean(0), atol=1e-5)
    np.testing.assert_allclose(result.uncertainty, 2 * image.mean(0), atol=1e-5)
    assert len(result.scores) == sum(method.sizes) and max(method.sizes) <= batch_size
    if slices:
        np.testing.assert_allclose(result.scores, image.mean(0).max((0, 1)), atol=1e-6)
    elif patch is None:
        assert result.scores == pytest.approx([image.mean(0).max()])


@pytest.mark.parametrize("patch", [2, 3, 8, 9])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 16, 17, 50])
def test_windows_cover_and_overlap_by_half(n, patch):
    corners = sorted(c for (c,) in Predictor._corners((n,), patch))
    if n <= patch:
        assert corners == [0]
        return
    assert corners[0] == 0 and corners[-1] == n - patch
    # Rounding to whole voxels may cost one.
    assert all(0 < b - a <= patch / 2 + 1 for a, b in itertools.pairwise(corners))
    covered = {v for c in corners for v in range(c, c + patch)}
    assert covered == set(range(n))


def test_windows_in_space_are_all_combinations():
    corners = list(Predictor._corners((9, 4, 6), 4))
    axes = [sorted({c[i] for c in corners}) for i in range(3)]
    assert len(corners) == len(set(corners)) == np.prod([len(a) for a in axes])
    assert axes[1] == [0]


def test_the_middle_of_a_patch_weighs_most():
    window = Predictor._window((8, 12))
    assert window.argmax() in (3 * 12 + 5, 3 * 12 + 6, 4 * 12 + 5, 4 * 12 + 6)
    np.testing.assert_allclose(window, window[::-1, ::-1])
    # A quarter of the size is one deviation.
    x = (np.arange(12) - 5.5) / 3
    np.testing.assert_allclose(window[3] / window[3, 5], np.exp(-(x**2 - x[5] ** 2) / 2), rtol=1e-5)


def test_slices_without_anatomy_are_zero_and_have_no_score(rng):
    image = rng.uniform(1, 2, (1, 8, 8, 5))
    foreground = np.ones((8, 8, 5), bool)
    foreground[..., [0, 3]] = False
    result = Predictor(Identity(), True, None, 4, 0)(prepared(image, foreground))[0]
    assert len(result.scores) == 3
    assert (result.map[..., [0, 3]] == 0).all()
    np.testing.assert_allclose(result.map[..., [1, 2, 4]], image[0][..., [1, 2, 4]], atol=1e-6)


@pytest.mark.parametrize("case", ["slices", "patches 2d"])
def test_batch_size_does_not_matter(rng, case):
    shape, slices, patch = CASES[case]
    scan = prepared(rng.normal(size=(1, *shape)))
    one, many = (Predictor(Noise(), slices, patch, n, seed=3)(scan)[0] for n in (1, 64))
    np.testing.assert_array_equal(one.map, many.map)
    assert one.scores == many.scores and len(set(one.scores)) == len(one.scores)
    other = Predictor(Noise(), slices, patch, 64, seed=4)(scan)[0]
    assert not np.allclose(one.map, other.map)


def test_a_coarse_map_is_enlarged(rng):
    ramp = np.broadcast_to(np.arange(16.0), (1, 12, 16))
    result = Predictor(Coarse(), False, None, 1, 0)(prepared(ramp))[0]
    # Half the resolution and back keeps a ramp, except at its ends.
    np.testing.assert_allclose(result.map[:, 1:-1], ramp[0, :, 1:-1], atol=1e-5)


def test_gradients_only_where_they_are_asked_for(rng):
    class Probe(Method):
        def maps(self, batch):
            self.enabled = torch.is_grad_enabled()
            return Maps(score=torch.zeros(len(batch)))

    scan = prepared(rng.normal(size=(1, 6, 6)))
    for wanted in (True, False):
        probe = Probe()
        probe.needs_grad = wanted
        result = Predictor(probe, False, None, 1, 0)(scan)[0]
        assert probe.enabled is wanted and result.map is None and result.scores == [0.0]


def test_samples_know_where_they_lie(rng):
    class Where(Method):
        def maps(self, batch):
            return Maps(score=batch.position)

    scan = prepared(rng.normal(size=(1, 8, 8, 5)))
    assert Predictor(Where(), True, None, 2, 0)(scan)[0].scores == [0, 0.25, 0.5, 0.75, 1]
    assert Predictor(Where(), False, None, 2, 0)(scan)[0].scores == [0.5]


def test_small_components_leave_the_segmentation():
    anomaly = np.zeros((20, 20), np.float32)
    anomaly[2:4, 2:4] = 1
    anomaly[10:15, 10:15] = 1
    anomaly[12, 13] = 2
    scan = Scan.from_array(np.random.default_rng(0).random((20, 20)))
    finding = Finding(scan, anomaly, 1.0, pixel_threshold=0.5)
    assert finding.segmentation.sum() == 29 and len(finding.components()) == 2
    finding.smallest_component = 4
    assert finding.segmentation.sum() == 25
    (component,) = finding.components()
    assert component == {"voxels": 25, "peak": 2, "peak_index": [12, 13], "box": [10, 10, 15, 15]}
    finding.scan = Scan.from_array(scan.data[0], spacing=(2.0, 3.0))
    (component,) = finding.components()
    assert component["voxels"] == 25 and component["area_mm2"] == 150


def test_channels_that_are_missing_or_in_another_order(tmp_path):
    """Refused and named, with the gate or without."""

    rng, rows = np.random.default_rng(0), []
    for i in range(8):
        for name in ("t1", "flair"):
            np.save(tmp_path / f"{i}_{name}.npy", rng.normal(100, 10, (24, 24)))
        rows.append({"path_t1": f"{i}_t1.npy", "path_flair": f"{i}_flair.npy", "label": 0})
    rows[0]["path_flair"] = ""
    cohort = Cohort.from_table(pd.DataFrame(rows), tmp_path)
    whole = cohort.select([bool(row.paths) and not row.missing for row in cohort])
    whole.table["split"] = ["train"] * 4 + ["val"] * 3
    detector = Detector("mean_image", size=24, calibration="split").fit(whole)
    (_, error), *_ = detector.predict_cohort(list(cohort)[:1], force=True)
    assert isinstance(error, ScanError) and "no file for the channel flair" in str(error)
    both = np.stack([rng.normal(100, 10, (24, 24))] * 2)
    assert detector.predict(Scan.from_array(both, channels=("t1", "flair")), force=True).score > 0
    with pytest.raises(ScanError, match="in the order flair, t1"):
        detector.predict(Scan.from_array(both, channels=("flair", "t1")), force=True)
    with pytest.raises(ScanError, match="Missing: flair; none is filled in"):
        detector.predict(Scan.from_array(both[:1], channels=("t1",)), force=True)
