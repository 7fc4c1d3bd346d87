"""Memory and mixture of unit patches against scipy, numpy and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist
from torch import nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.methods.features.dino import (
    AnomalyDINO,
    PatchMixture,
    References,
    pca_foreground,
    rotated,
    tail_mean,
    unit_patches,
)
from normscan.methods.features.memory import Bank
from normscan.rng import Rng
from normscan.scores.dpmm import DirichletMixture


class TinyBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 6, 4, stride=4)
        self.channels, self.strides = [6], [4]

    def forward(self, x):
        return {"only": self.layer(x)}


@pytest.fixture
def backbone():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TinyBackbone().requires_grad_(False)


def batch(images, seed=0):
    n = len(images)
    return Batch(images, torch.ones_like(images, dtype=torch.bool), Rng(seed), torch.zeros(n))


@pytest.fixture
def images():
    return torch.rand(6, 1, 16, 20, generator=torch.Generator().manual_seed(0))


def memory(backbone, shots=None, rotations=1, masked=False, largest=10_000):
    references = References(shots, rotations, largest)
    return AnomalyDINO(backbone, 20, references, Bank(sum(backbone.channels)), masked)


def test_scores_are_cosine_distances_to_the_memory(backbone, images):
    method = memory(backbone)
    method.fit([batch(images[:2]), batch(images[2:4])])
    assert method.bank.vectors.shape == (4 * 20, 6)
    maps = method.maps(batch(images[4:]))
    for i, image in enumerate(images[4:]):
        raw = backbone(image[None])["only"][0].flatten(1).T
        bank = backbone(images[:4])["only"].permute(0, 2, 3, 1).reshape(-1, 6)
        expected = cdist(raw.double(), bank.double(), "cosine").min(1)
        np.testing.assert_allclose(maps.map[i].flatten(), expected, atol=1e-6)
        assert maps.score[i].item() == pytest.approx(expected.max(), abs=1e-6)
    assert maps.map.shape == (2, 1, 4, 5)
    assert method.maps(batch(images[:4])).map.abs().max() < 1e-5


def test_shots_are_some_of_the_images_and_the_memory_is_bounded(backbone, images):
    method = memory(backbone, shots=2)
    method.fit([batch(images[:3], 1), batch(images[3:], 2)])
    assert len(method.bank.vectors) == 2 * 20
    own = unit_patches(backbone, images)[0]
    inside = [bool(cdist(patches, method.bank.vectors).min(1).max() < 1e-6) for patches in own]
    assert sum(inside) == 2
    bounded = memory(backbone, largest=33)
    bounded.fit([batch(images[:3], 1), batch(images[3:], 2)])
    assert bounded.bank.vectors.shape == (33, 6)
    assert cdist(bounded.bank.vectors, own.flatten(0, 1)).min(1).max() < 1e-6
    with pytest.raises(ArgumentError, match="at least one"):
        memory(backbone).fit([])


def test_rotations_are_in_the_memory(backbone):
    square = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    method = memory(backbone, rotations=4)
    method.fit([batch(square)])
    assert len(method.bank.vectors) == 4 * 16
    assert method.maps(batch(square.rot90(1, (2, 3)))).score.item() < 1e-4
    plain = memory(backbone)
    plain.fit([batch(square)])
    assert plain.maps(batch(square.rot90(1, (2, 3)))).score.item() > 1e-2


def test_rotated_against_numpy_and_scipy(rng):
    x = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    for quarter in range(4):
        torch.testing.assert_close(
            rotated(x, 90.0 * quarter), x.rot90(quarter, (2, 3)), atol=1e-5, rtol=0
        )
    smooth = ndimage.gaussian_filter(rng.normal(size=(31, 41)), 3)
    got = rotated(torch.tensor(smooth)[None, None], 45.0)[0, 0]
    expected = ndimage.rotate(smooth, 45.0, reshape=False, order=1, mode="reflect")
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.ptp(smooth))


def test_tail_mean():
    values = torch.rand(2, 350)
    expected = np.sort(values.numpy(), axis=1)[:, -3:].mean(1)
    np.testing.assert_allclose(tail_mean(values), expected, rtol=1e-6)
    np.testing.assert_array_equal(tail_mean(values[:, :50]), values[:, :50].amax(1))


@pytest.mark.parametrize("sign", [1, -1])
def test_foreground_by_the_first_component(rng, sign):
    mask = np.zeros((12, 14), bool)
    mask[2:10, 3:12] = True
    axis = sign * rng.normal(size=8)
    tokens = np.where(mask.ravel(), 30.0, -30.0)[:, None] * axis + rng.normal(size=(168, 8))
    got = pca_foreground(torch.tensor(tokens), (12, 14)).reshape(12, 14)
    square = np.ones((3, 3))
    wide = ndimage.binary_dilation(mask, square)
    expected = ndimage.binary_erosion(ndimage.binary_dilation(wide, square), square, border_value=1)
    np.testing.assert_array_equal(got, expected)


def test_patches_outside_the_object_are_zero(backbone, images, monkeypatch):
    half = torch.arange(20) < 10
    monkeypatch.setattr("normscan.methods.features.dino.pca_foreground", lambda tokens, grid: half)
    method = memory(backbone, masked=True)
    method.fit([batch(images[:2])])
    scores = method.maps(batch(images[4:])).map.flatten(1)
    assert (scores[:, 10:] == 0).all() and (scores[:, :10] > 0).any()


def patch_mixture(backbone, distance="cosine"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mixture = DirichletMixture(6, 5)
    return PatchMixture(backbone, mixture, distance, 0.2, 3, 2)


def test_the_phase_averages_the_statistics_of_the_batches(backbone, images):
    """Rates correct for the start: weights of the batches are those of an average from zero."""
    method = patch_mixture(backbone).train()
    [phase] = method.phases()
    [player] = phase.players
    optimizer = player.optimizer(player.parameters())
    seen = []
    inner = method.mixture.statistics

    def spied(x):
        seen.append(inner(x))
        return seen[-1]

    method.mixture.statistics = spied
    for step in range(3):
        optimizer.zero_grad()
        method.loss(batch(images[2 * step : 2 * step + 2], step), "", "")["statistics"].backward()
        optimizer.param_groups[0]["lr"] = 0.2 * player.schedule(step, 3)
        optimizer.step()
    weights = 0.2 * 0.8 ** np.array([2, 1, 0])
    weights /= weights.sum()
    for i, p in enumerate(method.mixture.parameters()):
        expected = sum(w * s[i].numpy() for w, s in zip(weights, seen, strict=True))
        np.testing.assert_allclose(p.detach(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("distance", ["cosine", "nll"])
def test_the_mixture_scores_its_patches(backbone, images, distance):
    method = patch_mixture(backbone, distance).train()
    terms = method.loss(batch(images[:4]), "", "")
    assert set(terms) == {"statistics"} and method.mixture.updates == 1
    method.eval()
    points = F.normalize(backbone(images[4:])["only"], dim=1).permute(0, 2, 3, 1).reshape(-1, 6)
    nll = method.mixture.distance(points, "nll")
    torch.testing.assert_close(method.loss(batch(images[4:]), "", "")["nll"], nll.mean())
    assert method.mixture.updates == 1, "validation counts as an update"
    maps = method.maps(batch(images[4:]))
    expected = method.mixture.distance(points, distance).reshape(2, 1, 4, 5)
    torch.testing.assert_close(maps.map, expected)
    torch.testing.assert_close(maps.score, expected.flatten(1).amax(1))
