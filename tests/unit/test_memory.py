"""The memory bank against scipy, loops and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import nn
from torch.nn import functional as F

from normscan.detector import Detector
from normscan.methods.base import Batch
from normscan.methods.features.memory import (
    PatchCore,
    k_center_greedy,
    patch_features,
    squared_distances,
)
from normscan.rng import Rng
from normscan.storage import check_array


def test_squared_distances_against_scipy(rng):
    a, b = rng.normal(size=(30, 7)), rng.normal(size=(20, 7))
    expected = cdist(a, b, "sqeuclidean")
    a, b = torch.tensor(a), torch.tensor(b)
    np.testing.assert_allclose(squared_distances(a, b), expected, atol=1e-10)
    np.testing.assert_allclose(squared_distances(a, b, (b**2).sum(1)), expected, atol=1e-10)
    same = squared_distances(100 + a.float(), 100 + a.float())
    assert same.min() >= 0


def adaptive_average(vector, n):
    """Torch's adaptive pooling in one dimension: window i runs from floor(iL/n) to ceil((i+1)L/n)."""
    length = len(vector)
    return [float(np.mean(vector[i * length // n : -(-(i + 1) * length // n)])) for i in range(n)]


def window(feature, y, x, side):
    """Values of all channels around a cell, channel by channel, zero outside."""
    half = side // 2
    wide = np.pad(feature, ((0, 0), (half, half), (half, half)))
    return wide[:, y : y + side, x : x + side].ravel()


@pytest.mark.parametrize("side", [1, 3])
def test_patch_features_by_hand(rng, side):
    fine, deep = rng.normal(size=(2, 4, 6, 8)), rng.normal(size=(2, 5, 3, 4))
    got = patch_features([torch.tensor(fine), torch.tensor(deep)], side, 9, 6)
    assert got.shape == (2, 48, 6)
    b, y, x = 1, 2, 5
    first = adaptive_average(window(fine[b], y, x, side), 9)
    # Half the grid, pixel centres aligned: cell y lies at (y + 0.5) / 2 - 0.5.
    place = [(y + 0.5) / 2 - 0.5, (x + 0.5) / 2 - 0.5]
    (y0, x0), (fy, fx) = np.floor(place).astype(int), np.array(place) - np.floor(place)
    mixed = sum(
        wy * wx * window(deep[b], y0 + dy, x0 + dx, side)
        for dy, wy in ((0, 1 - fy), (1, fy))
        for dx, wx in ((0, 1 - fx), (1, fx))
    )
    second = adaptive_average(mixed, 9)
    expected = adaptive_average(np.array(first + second), 6)
    np.testing.assert_allclose(got[b, y * 8 + x], expected, atol=1e-9)


def brute_force_greedy(vectors, first, n):
    """Farthest point first, from the full matrix of distances."""
    distances = cdist(vectors, vectors)
    nearest = distances[:, first].mean(1)
    chosen = []
    for _ in range(n):
        row = int(nearest.argmax())
        chosen.append(row)
        nearest = np.minimum(nearest, distances[row])
        nearest[chosen] = -1
    return chosen


@pytest.mark.parametrize("d", [5, 40])
def test_greedy_equals_brute_force(rng, d):
    vectors = rng.normal(size=(120, d))
    got = k_center_greedy(torch.tensor(vectors), 25, Rng(3), projection=16, starts=7)
    draws = Rng(3)
    if d > 16:
        # An untrained linear layer without bias is uniform within one over the root of its inputs.
        matrix = (2 * draws.uniform((d, 16)).numpy() - 1) / np.sqrt(d)
        assert np.abs(matrix).max() <= 1 / np.sqrt(d)
        vectors = vectors @ matrix.astype(np.float64)
    first = draws.uniform((120,)).argsort()[:7].numpy()
    assert got.tolist() == brute_force_greedy(vectors, first, 25)


def test_greedy_covers_better_than_chance(rng):
    # A dense cloud and a few far ones, which a random choice misses.
    vectors = np.concatenate([rng.normal(size=(300, 3)), rng.normal(size=(6, 3)) * 20])
    chosen = k_center_greedy(torch.tensor(vectors), 20, Rng(0)).numpy()
    radius = cdist(vectors, vectors[chosen]).min(1).max()
    at_random = [
        cdist(vectors, vectors[rng.choice(306, 20, replace=False)]).min(1).max() for _ in range(20)
    ]
    assert radius < min(at_random)


def test_greedy_chooses_each_row_once():
    same = torch.ones(10, 4)
    assert sorted(k_center_greedy(same, 6, Rng(0)).tolist()) == sorted(
        set(k_center_greedy(same, 6, Rng(0)).tolist())
    )
    assert len(k_center_greedy(same, 6, Rng(0))) == 6
    assert k_center_greedy(same, 10, Rng(0)).tolist() == list(range(10))


class TinyBackbone(nn.Module):
    """Two random stages, of stride 2 and 4."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)

    def forward(self, x):
        a = F.relu(self.first(x))
        return {"first": a, "second": F.relu(self.second(a))}


def batch(images, seed=0):
    n = len(images)
    return Batch(images, torch.ones_like(images, dtype=torch.bool), Rng(seed), torch.zeros(n))


@pytest.fixture
def images():
    return torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def patchcore(coreset=1.0, candidates=10_000, neighbours=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PatchCore(TinyBackbone(), 3, 12, coreset, candidates, neighbours, chunk=50)


def test_a_training_image_is_not_anomalous(images):
    method = patchcore()
    method.fit([batch(images[:3]), batch(images[3:])])
    assert method.bank.shape == (5 * 64, 12)
    seen = method.maps(batch(images))
    assert seen.map.abs().max() < 1e-5 and seen.score.abs().max() < 1e-5
    new = method.maps(batch(1 - images))
    assert new.score.min() > 100 * seen.score.max().clamp_min(1e-7)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_scores_are_squared_distances_to_the_bank(images, neighbours):
    method = patchcore(coreset=0.3, neighbours=neighbours)
    method.fit([batch(images[:3])])
    assert len(method.bank) == round(0.3 * 3 * 64)
    maps = method.maps(batch(images[3:]))
    vectors = method.patches(images[3:])[0].detach().double().numpy()
    assert vectors.shape == (2, 64, 12)
    for i, image in enumerate(vectors):
        distances = np.sort(cdist(image, method.bank.double().numpy(), "sqeuclidean"), axis=1)
        scores = distances[:, :neighbours].mean(1)
        assert maps.score[i].item() == pytest.approx(scores.max(), rel=1e-3)
        grid = torch.tensor(scores.reshape(1, 1, 8, 8))
        expected = F.interpolate(grid, (16, 16), mode="bilinear", align_corners=False)[0, 0]
        np.testing.assert_allclose(maps.map[i, 0], expected, atol=1e-5)


def test_the_bank_holds_training_vectors(images):
    method = patchcore(coreset=0.1)
    method.fit([batch(images)])
    vectors = method.patches(images)[0].detach().flatten(0, 1).numpy()
    assert cdist(method.bank.numpy(), vectors).min(1).max() < 1e-6
    assert len(np.unique(method.bank.numpy(), axis=0)) == round(0.1 * 5 * 64)


def test_every_training_image_has_the_same_chance_among_the_candidates():
    """However late an image comes: its number can be read off its features here."""
    method = patchcore(coreset=1.0, candidates=600)
    method.patches = lambda x: (x.flatten(1)[:, :1, None].expand(-1, 64, 12), (8, 8))
    n = 100
    numbers = torch.arange(n, dtype=torch.float32).reshape(-1, 1, 1, 1)
    method.fit([batch(part, seed) for seed, part in enumerate(numbers.split(4))])
    assert len(method.bank) == 600
    kept = method.bank[:, 0]
    # Uniform over 100 numbers: the mean of 600 has a deviation of 1.2.
    assert kept.mean().item() == pytest.approx((n - 1) / 2, abs=5)
    assert (kept < n / 4).sum() > 100


def test_fit_is_deterministic(images):
    banks = []
    for _ in range(2):
        method = patchcore(coreset=0.2, candidates=100)
        method.fit([batch(images[:3], 4), batch(images[3:], 5)])
        banks.append(method.bank)
    assert torch.equal(*banks) and len(banks[0]) == 64


def test_scans_keep_to_the_range_of_the_backbone(rng):
    # Mostly dark tissue: with its median at 0.5 the bright tenth would be cut at the limit, 3.
    values = np.zeros((64, 64))
    values[10:54, 10:54] = rng.uniform(0.1, 0.15, (44, 44))
    values[20:25, 10:54] = rng.uniform(0.9, 1.0, (5, 44))
    for preset in ("paper", "laptop"):
        detector = Detector("patchcore", preset=preset)
        prepared = detector.preprocess(check_array(values), 2)
        inside = prepared.image[0][prepared.foreground]
        np.testing.assert_allclose(np.percentile(inside, 99), 1, atol=1e-5)
        assert prepared.image.max() < 1.2
