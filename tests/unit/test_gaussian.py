"""Gaussians at each position against numpy and scipy, and PaDiM's features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.registry import card
from normscan.rng import Rng
from normscan.scores import gaussian
from normscan.scores.gaussian import PositionGaussians


@pytest.mark.parametrize("block", [1, 2 * 16, 10**6], ids=["one", "two", "all"])
def test_distances_against_scipy(rng, monkeypatch, block):
    """Also far from the origin, where sums of squares would lose the variances."""
    monkeypatch.setattr(gaussian, "BLOCK", block)
    mixed = np.einsum("npd,pde->npe", rng.normal(size=(23, 5, 4)), rng.normal(size=(5, 4, 4)))
    x = (mixed + 300).astype(np.float32)
    new = (x[:3] + rng.normal(size=(3, 5, 4))).astype(np.float32)
    density = PositionGaussians(4, ridge=0.01)
    density.fit(torch.from_numpy(part) for part in np.split(x, [7, 8, 20]))
    got = density(torch.from_numpy(new))
    assert got.shape == (3, 5)
    for p in range(5):
        points = x[:, p].astype(float)
        inverse = np.linalg.inv(np.cov(points, rowvar=False) + 0.01 * np.eye(4))
        expected = [mahalanobis(v, points.mean(0), inverse) for v in new[:, p].astype(float)]
        np.testing.assert_allclose(got[:, p], expected, rtol=2e-3)


def test_one_image_leaves_the_ridge(rng):
    x = torch.from_numpy(rng.normal(size=(1, 3, 2)).astype(np.float32))
    density = PositionGaussians(2, ridge=0.25)
    density.fit([x])
    torch.testing.assert_close(density(x + torch.tensor([0.3, 0.4])), torch.ones(1, 3))


def test_a_second_fit_forgets_the_first(rng):
    a, b = (torch.from_numpy(rng.normal(size=(6, 3, 2)).astype(np.float32)) for _ in range(2))
    twice, once = PositionGaussians(2), PositionGaussians(2)
    twice.fit([a])
    twice.fit([b])
    once.fit([b])
    assert torch.equal(twice.factor, once.factor) and torch.equal(twice.mean, once.mean)


def test_leaving_out_a_fold_is_fitting_to_the_others(rng):
    """Also far from the origin, and with folds of other sizes."""
    x = torch.from_numpy((rng.normal(size=(17, 5, 4)) + 100).astype(np.float32))
    folds, new = list(x.split([3, 8, 1, 5])), x[:3] + 0.5
    density = PositionGaussians(4)
    density.fit_folds([fold.split(2) for fold in folds])
    found = density.each(new)
    assert len(found) == len(folds)
    for number, got in enumerate(found):
        refitted = PositionGaussians(4)
        refitted.fit([fold for other, fold in enumerate(folds) if other != number])
        torch.testing.assert_close(got, refitted(new), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["padim", "mean_image"])
def test_a_method_that_leaves_out_folds_is_as_if_refitted(method):
    def batch(n, seed):
        images = torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(seed))
        return Batch(images, torch.ones_like(images, dtype=torch.bool), Rng(seed), torch.zeros(n))

    def build():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return card(method).create(**card(method).arguments("tiny", size=64)).eval()

    folds, new = [batch(4, 1), batch(3, 2), batch(5, 3)], batch(2, 9)
    left_out = build()
    assert left_out.leaves_out
    left_out.fit_folds([[fold] for fold in folds])
    for number, maps in enumerate(left_out.each(new)):
        refitted = build()
        refitted.fit(fold for other, fold in enumerate(folds) if other != number)
        torch.testing.assert_close(maps.map, refitted.maps(new).map, rtol=1e-3, atol=1e-3)
    again = build()
    again.load_weights(left_out.state_dict())
    torch.testing.assert_close(again.maps(new).map, left_out.maps(new).map)


def test_nothing_to_fit():
    with pytest.raises(ArgumentError, match="at least one training image"):
        PositionGaussians(2).fit([])


def padim(seed: int = 0, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return card("padim").create(**card("padim").arguments("tiny", **changes))


def test_padim_keeps_its_channels_on_the_finest_grid():
    method = padim()
    chosen = method.chosen
    assert len(set(chosen.tolist())) == 30 and chosen.min() >= 0 and chosen.max() < 192
    assert not torch.equal(chosen, padim(1).chosen)
    assert torch.equal(chosen, padim().state_dict()["chosen"])
    x = torch.rand(2, 1, 64, 64)
    fine, deep = method.backbone(x).values()
    nearest = deep.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = torch.cat([fine, nearest], 1)[:, chosen]
    torch.testing.assert_close(method.features(x), expected)


def test_padim_map_is_the_distance_at_each_place():
    method = padim()
    x = torch.rand(6, 1, 64, 64)
    batch = Batch(x, x > -1, Rng(0), torch.full((6,), 0.5))
    method.fit([batch])
    features = method.features(x).double().numpy()
    got = method.maps(batch).map
    y, z = 3, 11
    points = features[:, :, y, z]
    inverse = np.linalg.inv(np.cov(points, rowvar=False) + 0.01 * np.eye(30))
    expected = [mahalanobis(v, points.mean(0), inverse) for v in points]
    np.testing.assert_allclose(got[:, 0, y, z], expected, rtol=1e-3)


def test_padim_refuses_more_channels_than_there_are():
    with pytest.raises(ArgumentError, match="192 channels"):
        padim(dim=193)
