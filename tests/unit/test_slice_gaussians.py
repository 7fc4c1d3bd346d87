"""Distances to shrunken Gaussians of slices, against scikit-learn and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import savgol_filter
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from normscan.errors import ArgumentError
from normscan.methods.features.slices import smoothing
from normscan.scores.slices import SliceGaussians


@pytest.mark.parametrize("n", [6, 40])
def test_distances_are_those_with_the_whole_inverse(n: int):
    """With fewer vectors than numbers in one, and with more."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3, 10)) @ rng.normal(size=(3, 10, 10))[None].sum(1)
    ours = SliceGaussians(3, 10)
    ours.fit([torch.from_numpy(x[:4]), torch.from_numpy(x[4:])])
    new = rng.normal(size=(2, 3, 10)) * 3
    found = ours(torch.from_numpy(new)).numpy()
    for place in range(3):
        theirs = LedoitWolf().fit(x[:, place])
        for i in range(2):
            known = mahalanobis(new[i, place], theirs.location_, theirs.precision_)
            assert found[i, place] == pytest.approx(known, rel=1e-4)


def test_equal_slices_are_at_no_distance():
    ours = SliceGaussians(1, 4)
    ours.fit([torch.ones(5, 1, 4)])
    assert float(ours(torch.zeros(1, 1, 4))) == 0


def test_one_volume_has_no_covariance():
    with pytest.raises(ArgumentError, match="at least two"):
        SliceGaussians(1, 4).fit([torch.ones(1, 1, 4)])


def test_smoothing_is_that_of_scipy():
    values = np.random.default_rng(1).normal(size=40)
    assert smoothing(40).numpy() @ values == pytest.approx(savgol_filter(values, 21, 3))
