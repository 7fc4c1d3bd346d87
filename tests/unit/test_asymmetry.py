"""Regions with mirror images, their histograms and machines, against NumPy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.svm import OneClassSVM

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.registry import card
from normscan.rng import Rng
from normscan.scores.regions import mirrored_supervoxels, outside, region_histograms


@pytest.mark.parametrize("shape", [(20, 16), (21, 16), (12, 10, 8)])
def test_each_region_has_its_mirror_image(shape: tuple[int, ...]):
    image = gaussian_filter(np.random.default_rng(0).random(shape), 2)
    inside = np.zeros(shape, bool)
    inside[2:-3, 3:-2] = True
    labels = mirrored_supervoxels(image, inside, 6, 1.0)
    assert (labels == labels[::-1]).all()
    assert ((labels > 0) == (inside | inside[::-1])).all()
    assert 3 <= labels.max() <= 20


def test_histograms_are_those_of_numpy():
    rng = np.random.default_rng(1)
    values, labels = rng.random((3, 8, 9)), rng.integers(0, 4, (8, 9))
    found = region_histograms(values, labels, 5, 0.8)
    for region, label in enumerate((1, 2, 3)):
        for i in range(3):
            own = np.minimum(values[i][labels == label], 0.8 - 1e-9)
            known = np.histogram(own, 5, (0, 0.8))[0] / len(own)
            assert found[region, i] == pytest.approx(known)


def test_a_region_is_judged_by_the_healthy_in_it():
    rng = np.random.default_rng(2)
    healthy, own = rng.random((12, 5)), rng.random(5)
    known = OneClassSVM(kernel="linear", nu=0.1).fit(healthy).decision_function(own[None])[0]
    assert outside(healthy, own, 0.1) == pytest.approx(-known)


def test_what_both_halves_show_is_no_asymmetry():
    method = card("brain_asymmetry").create(**card("brain_asymmetry").arguments("tiny", dims=2))
    half = torch.rand(3, 1, 16, 32, generator=torch.Generator().manual_seed(0))
    image = torch.cat([half, half.flip(2)], 2)
    batch = Batch(image, torch.ones_like(image, dtype=torch.bool), Rng(0), torch.zeros(3))
    assert not method.differences(image).any()
    method.fit([batch])
    assert not method.maps(batch).map.any()


def test_an_axis_that_is_not_there_is_told():
    with pytest.raises(ArgumentError, match="Use 0 to 1"):
        card("brain_asymmetry").create(**card("brain_asymmetry").arguments("tiny", dims=2, axis=2))
