"""The memory bank against scipy, loops and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.spatial.distance import cdist
from torch import nn
from torch.nn import functional as F

from normscan.detector import Detector
from normscan.detector.storage import _plain
from normscan.errors import ArgumentError
from normscan.io.read import check_array
from normscan.methods.base import Batch
from normscan.methods.features.memory import (
    Kept,
    Patch,
    PatchCore,
    Scoring,
    patch_features,
)
from normscan.registry import card
from normscan.rng import Rng


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


class TinyBackbone(nn.Module):
    """Two random stages, of stride 2 and 4."""

    strides = (2, 4)
    channels = (6, 8)

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


def patchcore(
    coreset=1.0, memory=1.0, largest=10_000, neighbours=1, reweighted=0, pooling="windows",
    squared=True,
):  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PatchCore(
            TinyBackbone(), 16, Patch(3, 12, pooling), Kept(coreset, memory, largest),
            Scoring(neighbours, reweighted, squared),
        )  # fmt: skip


def test_a_training_image_is_not_anomalous(images):
    method = patchcore()
    method.fit([batch(images[:3]), batch(images[3:])])
    assert method.bank.vectors.shape == (5 * 64, 12)
    seen = method.maps(batch(images))
    assert seen.map.abs().max() < 1e-5 and seen.score.abs().max() < 1e-5
    new = method.maps(batch(1 - images))
    assert new.score.min() > 100 * seen.score.max().clamp_min(1e-7)


@pytest.mark.parametrize("neighbours", [1, 3])
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
def test_scores_are_distances_to_the_bank(images, neighbours, metric):
    method = patchcore(coreset=0.3, neighbours=neighbours, squared=metric == "sqeuclidean")
    method.fit([batch(images[:3])])
    assert len(method.bank.vectors) == round(0.3 * 3 * 64)
    maps = method.maps(batch(images[3:]))
    vectors = method.patches(images[3:])[0].detach().double().numpy()
    assert vectors.shape == (2, 64, 12)
    for i, image in enumerate(vectors):
        distances = np.sort(cdist(image, method.bank.vectors.double().numpy(), metric), axis=1)
        scores = distances[:, :neighbours].mean(1)
        assert maps.score[i].item() == pytest.approx(scores.max(), rel=1e-3)
        grid = torch.tensor(scores.reshape(1, 1, 8, 8))
        expected = F.interpolate(grid, (16, 16), mode="bilinear", align_corners=False)[0, 0]
        np.testing.assert_allclose(maps.map[i, 0], expected, atol=1e-5)


def test_the_bank_holds_training_vectors(images):
    method = patchcore(coreset=0.1)
    method.fit([batch(images)])
    vectors = method.patches(images)[0].detach().flatten(0, 1).numpy()
    assert cdist(method.bank.vectors.numpy(), vectors).min(1).max() < 1e-6
    assert len(np.unique(method.bank.vectors.numpy(), axis=0)) == round(0.1 * 5 * 64)


def test_the_image_score_is_weighted_by_the_neighbours_of_the_nearest(images):
    method, plain = patchcore(coreset=0.3, reweighted=4), patchcore(coreset=0.3)
    for m in (method, plain):
        m.fit([batch(images[:3])])
    bank = method.bank.vectors.double().numpy()
    around = cdist(bank, bank).argsort(1)[:, :4]
    got, unweighted = (m.maps(batch(images[3:])).score for m in (method, plain))
    for i, patches in enumerate(method.patches(images[3:])[0].detach().double().numpy()):
        distances = cdist(patches, bank)
        worst = distances.min(1).argmax()
        nearest = distances[worst].argmin()
        powers = np.exp(distances[worst])
        weight = 1 - powers[nearest] / powers[around[nearest]].sum()
        assert 0 < weight < 1
        assert (got[i] / unweighted[i]).item() == pytest.approx(weight, abs=1e-4)


def test_average_pooling_keeps_the_channels(images):
    method = patchcore(pooling="average")
    method.fit([batch(images)])
    assert method.bank.vectors.shape == (5 * 64, 6 + 8)
    fine = method.backbone(images)["first"][2]
    place = window(fine.detach().numpy(), 3, 5, 3).reshape(6, 9).mean(1)
    got = method.patches(images)[0][2, 3 * 8 + 5, :6].detach()
    np.testing.assert_allclose(got, place, atol=1e-6)


def test_the_memory_is_told_before_and_kept(images):
    method = patchcore(coreset=0.25, memory=100 * 4 * (12 + 2 * 12) / 2**30, largest=80)
    text = method.need(5)
    # 64 patches of an image on a grid of stride 2; 100 fit, so that 50 are the largest coreset.
    assert "320 training patches of 12 numbers" in text and "100 of them" in text
    assert "a stream keeps 100" in text and "the bank keeps 50 " in text
    method.fit([batch(part) for part in images.split(1)])
    assert len(method.bank.vectors) <= 50
    vectors = method.patches(images)[0].detach().flatten(0, 1).numpy()
    assert cdist(method.bank.vectors.numpy(), vectors).min(1).max() < 1e-6
    assert "more than" not in patchcore().need(5)


def test_all_patches_on_disk_give_what_they_give_in_memory(images):
    pytest.importorskip("faiss", reason="FAISS isn't installed")
    inside, outside = patchcore(reweighted=3), patchcore(reweighted=3, memory=8000 / 2**30)
    assert "on disk" in outside.need(5) and "on disk" not in inside.need(5)
    for method in (inside, outside):
        method.fit([batch(images[:2]), batch(images[2:4])])
    assert outside.bank.index.lists is not None and inside.bank.index.lists is None
    torch.testing.assert_close(outside.bank.vectors, inside.bank.vectors, rtol=0, atol=0)
    near, far = outside.maps(batch(images[4:])), inside.maps(batch(images[4:]))
    torch.testing.assert_close(near.map, far.map, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(near.score, far.score, rtol=1e-3, atol=1e-5)


def test_a_stored_bank_stays_in_its_file(images, tmp_path):
    """A bank on disk isn't read when it is stored or loaded: the tensors are those of the file."""
    first, second = (patchcore(memory=8000 / 2**30) for _ in range(2))
    first.fit([batch(images)])
    state = first.state_dict()
    plain = _plain(state)
    assert plain["bank.vectors"].data_ptr() == state["bank.vectors"].data_ptr()
    save_file(plain, tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    second.load_weights(stored)
    assert second.bank.vectors.data_ptr() == stored["bank.vectors"].data_ptr()
    # What fits into memory is copied: products depend on how numbers lie there.
    small = patchcore()
    small.load_weights(stored)
    assert small.bank.vectors.data_ptr() != stored["bank.vectors"].data_ptr()
    torch.testing.assert_close(second.maps(batch(images)).map, first.maps(batch(images)).map)


def test_tensors_that_share_are_stored_apart(tmp_path):
    x = torch.arange(6.0)
    plain = _plain({"all": x, "same": x, "part": x[2:], "none": x[:0], "nothing": torch.zeros(0)})
    save_file(plain, tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    assert {k: v.tolist() for k, v in stored.items()} == {k: v.tolist() for k, v in plain.items()}
    assert stored["part"].tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("bad", [{"memory": 0}, {"largest": 0}])
@pytest.mark.parametrize("name", ["patchcore", "anomaly_dino"])
def test_a_bank_without_room_is_refused(name, bad):
    with pytest.raises(ArgumentError, match="memory=.*largest="):
        card(name).build(backbone="resnet18.tv_in1k", weights="random", **bad)


def test_a_loaded_bank_is_searched(images):
    first, second = patchcore(coreset=0.3), patchcore(coreset=0.3)
    first.fit([batch(images)])
    second.fit([batch(1 - images)])
    second.maps(batch(images))
    second.load_weights(first.state_dict())
    torch.testing.assert_close(second.maps(batch(images)).map, first.maps(batch(images)).map)


def test_fit_is_deterministic(images):
    banks = []
    for _ in range(2):
        method = patchcore(coreset=0.2)
        method.fit([batch(images[:3], 4), batch(images[3:], 5)])
        banks.append(method.bank.vectors)
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
