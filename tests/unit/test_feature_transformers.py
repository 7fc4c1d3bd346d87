"""Dinomaly's and UniAD's blocks, and StableAdamW, against loops and hand-made values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.methods.features.transformers import Dinomaly, Restoring, UniAD, dinomaly, easiest
from normscan.networks.attention_layers import (
    LinearAttention,
    MaskedTransformer,
    TokenDecoder,
    Tokens,
    _Attend,
    neighbour_mask,
)
from normscan.objectives.optimizers import dropped, stable_adamw, warm_cosine
from normscan.rng import Rng


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def batch(images):
    n = len(images)
    return Batch(images, torch.ones_like(images, dtype=torch.bool), Rng(0), torch.zeros(n))


def test_linear_attention_is_attention_with_another_kernel():
    layer = LinearAttention(6, 2)
    x = torch.randn(1, 5, 6)
    q, k, v = (t.reshape(5, 2, 3) for t in layer.qkv(x)[0].detach().split(6, dim=1))
    out = torch.zeros(5, 2, 3)
    for head in range(2):
        for i in range(5):
            weights = torch.stack(
                [(F.elu(q[i, head]) + 1) @ (F.elu(k[j, head]) + 1) for j in range(5)]
            )
            out[i, head] = (weights / weights.sum()) @ v[:, head]
    torch.testing.assert_close(layer(x)[0], layer.proj(out.flatten(1)), atol=1e-5, rtol=1e-4)


def test_only_the_bottleneck_is_noisy():
    decoder = TokenDecoder(64, 3, 0.5)
    dropouts = [n for n, m in decoder.named_modules() if isinstance(m, nn.Dropout)]
    assert len(dropouts) == 3 and all(n.startswith("bottleneck") for n in dropouts)
    decoder.eval()
    x = torch.randn(2, 4, 64)
    outputs = decoder(x)
    expected = decoder.bottleneck(x)
    for block in decoder.blocks:
        expected = block(expected)
    assert len(outputs) == 3 and torch.equal(outputs[0], expected)


@pytest.mark.parametrize(("height", "width", "side"), [(5, 6, 3), (9, 8, 7), (3, 4, 0)])
def test_neighbour_mask_by_a_loop(height, width, side):
    mask = neighbour_mask(height, width, side).reshape(height, width, height, width)
    for i in range(height):
        for j in range(width):
            expected = np.zeros((height, width), bool)
            if side:
                half = side // 2
                top, left = max(0, i - half), max(0, j - half)
                expected[top : i + half + 1, left : j + half + 1] = True
            np.testing.assert_array_equal(mask[i, j], expected)


def test_a_window_over_the_whole_grid_is_refused():
    with pytest.raises(ArgumentError, match=r"7 x 7.*7 x 7"):
        neighbour_mask(7, 7, 7)
    assert not neighbour_mask(8, 8, 7).all(1).any()


def test_attention_does_not_see_what_is_masked():
    mask = neighbour_mask(4, 5, 3)
    layer = _Attend(Tokens(8, 16, 2, 0.0))
    query, place = torch.randn(1, 20, 8), torch.randn(20, 8)
    source = torch.randn(1, 20, 8, requires_grad=True)
    # A sum over a normalised token never changes.
    (layer(query, source, place, mask)[0, 7] * torch.randn(8)).sum().backward()
    seen = source.grad[0].abs().sum(1) > 0
    assert torch.equal(seen, ~mask[7])


def test_restorer_keeps_the_shape_and_has_queries_for_each_layer():
    network = MaskedTransformer(10, (4, 5), 3, Tokens(16, 32, 4, 0.0), 3)
    x = torch.randn(2, 10, 4, 5)
    assert network(x).shape == x.shape
    assert network.queries.shape == (3, 20, 16)
    one = network(x[1:])
    torch.testing.assert_close(network(x)[1:], one, atol=1e-5, rtol=1e-4)
    # Places matter: a shifted image is not restored as a shifted restoration.
    moved = network(x.roll(1, 3)).roll(-1, 3)
    assert (moved - network(x)).abs().max() > 1e-3


def test_easiest_points_by_sorting():
    distance = torch.rand(3, 1, 4, 5)
    for share in (0.0, 0.3, 0.9, 1.0):
        easy = easiest(distance, share)
        values = np.sort(distance.flatten().numpy())
        hard = max(1, int(60 * (1 - share)))
        np.testing.assert_array_equal(easy, distance.numpy() < values[60 - hard])
    assert easiest(distance, 0.0).sum() == 0
    assert easiest(distance, 0.9).sum() == 60 - 5  # 60 * (1 - 0.9) is a hair under 6


class FakeTokens(nn.Module):
    """Four layers of patches with two tokens before them."""

    def __init__(self, prefix):
        super().__init__()
        self.layers = torch.randn(4, 2, 64, 3, 3)
        self.before = prefix

    def tokens(self, x):
        return {str(i): (layer, self.before) for i, layer in enumerate(self.layers)}


def fake_dinomaly(prefix):
    training = {"lr": 1e-3, "weight_decay": 0.0, "beta1": 0.9, "batch_size": 2, "epochs": 1}
    training |= {"steps": 4, "patience": None}
    return Dinomaly(FakeTokens(prefix), TokenDecoder(64, 4, 0.0), Restoring(2, 10, 12), training)


def test_dinomaly_compares_halves_and_keeps_the_first_tokens_inside():
    prefix = torch.randn(2, 2, 64)
    method = fake_dinomaly(prefix).eval()
    targets, restored = method.pairs(torch.zeros(2, 1, 12, 12))
    layers = method.backbone.layers
    torch.testing.assert_close(targets[0], layers[:2].mean(0))
    torch.testing.assert_close(targets[1], layers[2:].mean(0))
    rows = torch.cat([prefix, layers.mean(0).flatten(2).mT], dim=1)
    outputs = method.decoder(rows)  # the last block's first
    expected = (outputs[0] + outputs[1])[:, 2:].mT.reshape(2, 64, 3, 3) / 2
    torch.testing.assert_close(restored[0], expected)
    method.backbone.before = prefix + 1
    other = method.pairs(torch.zeros(2, 1, 12, 12))[1]
    assert (other[0] - restored[0]).abs().max() > 1e-5


def test_dinomaly_map_and_loss_by_hand():
    method = fake_dinomaly(None).train()
    images = batch(torch.zeros(2, 1, 12, 12))
    targets, restored = method.pairs(images.image)
    cosines = [
        1 - F.cosine_similarity(a.flatten(1), b.flatten(1)).mean()
        for a, b in zip(targets, restored, strict=True)
    ]
    got = method.loss(images, "", "")["cosine"]
    torch.testing.assert_close(got, (cosines[0] + cosines[1]) / 2)
    assert method.seen == 1
    method.eval()
    method.loss(images, "", "")
    assert method.seen == 1, "validation counts as an update"
    points = [
        1 - F.cosine_similarity(a, b)[:, None] for a, b in zip(targets, restored, strict=True)
    ]
    large = [F.interpolate(p, (12, 12), mode="bilinear", align_corners=True) for p in points]
    mean = ((large[0] + large[1]) / 2)[1, 0].detach().numpy()
    weights = np.exp(-(np.arange(-2, 3) ** 2) / 32)
    weights /= weights.sum()
    window = mean[3:8, 4:9]
    np.testing.assert_allclose(
        method.maps(images).map[1, 0, 5, 6], weights @ window @ weights, rtol=1e-4
    )


def test_mining_damps_the_gradient_when_it_has_risen():
    images = batch(torch.zeros(2, 1, 12, 12))

    def gradient(seen):
        method = fake_dinomaly(None)
        torch.manual_seed(3)
        for p in method.parameters():
            nn.init.normal_(p, std=0.05)
        method.backbone.layers = torch.randn(4, 2, 64, 3, 3)
        method.seen.fill_(seen)
        method.loss(images, "", "")["cosine"].backward()
        return torch.cat([p.grad.flatten() for p in method.decoder.parameters()]).norm()

    assert gradient(10) < 0.6 * gradient(0)


def test_dinomaly_refuses_taps_of_different_shapes():
    arguments = {"backbone": "resnet18.tv_in1k", "weights": "random"}
    with pytest.raises(ArgumentError, match="one shape"):
        dinomaly(taps=("layer1", "layer2"), **arguments)
    with pytest.raises(ArgumentError, match="multiple"):
        dinomaly(taps=("layer1",), **arguments)
    dinomaly(taps=("layer1",), groups=1, size=64, **arguments)


class FakeStages(nn.Module):
    def forward(self, x):
        return {"a": F.avg_pool2d(x, 2).repeat(1, 3, 1, 1), "b": F.avg_pool2d(x, 4)}


def test_uniad_jitters_in_training_and_maps_lengths():
    network = MaskedTransformer(4, (8, 8), 1, Tokens(8, 16, 2, 0.0), 3)
    training = {"lr": 1e-3, "weight_decay": 0.0, "beta1": 0.9, "batch_size": 2, "epochs": 10}
    method = UniAD(FakeStages(), network, 20.0, training | {"steps": None, "patience": None})
    images = batch(torch.rand(2, 1, 32, 32))
    features = method.features(images.image)
    assert features.shape == (2, 4, 8, 8)
    method.train()
    noise = Rng(0).normal(features.shape)
    noisy = features + 20 * noise * features.square().sum(1, keepdim=True).sqrt() / 4
    expected = (network(noisy) - features).square().mean()
    torch.testing.assert_close(method.loss(images, "", "")["mse"], expected)
    method.eval()
    clean = (network(features) - features).square()
    torch.testing.assert_close(method.loss(images, "", "")["mse"], clean.mean())
    maps = method.maps(images)
    length = clean.sum(1, keepdim=True).sqrt().detach()
    large = F.interpolate(length, (32, 32), mode="bilinear", align_corners=True)
    torch.testing.assert_close(maps.map, large)
    windows = np.lib.stride_tricks.sliding_window_view(large[1, 0].numpy(), (16, 16))
    assert maps.score[1].item() == pytest.approx(windows.mean((2, 3)).max(), rel=1e-5)
    [phase] = method.phases()
    assert [phase.players[0].schedule(s, 10) for s in (7, 8)] == [1.0, 0.1]


def test_stable_adamw_by_hand(rng):
    start, gradients = rng.normal(size=6), rng.normal(size=(4, 6)) * [[1], [30], [0.1], [5]]
    lr, decay, eps = 0.01, 0.1, 1e-10
    p = nn.Parameter(torch.tensor(start))
    optimizer = stable_adamw([p], lr, weight_decay=decay, eps=eps)
    x, m, v, largest, clipped = start.copy(), 0, 0, np.zeros(6), 0
    for t, g in enumerate(gradients, start=1):
        p.grad = torch.tensor(g)
        optimizer.step()
        x *= 1 - lr * decay
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        largest = np.maximum(largest, v)
        denominator = np.sqrt(largest) / math.sqrt(1 - 0.999**t) + eps
        ratio = np.sqrt(np.mean((g / denominator) ** 2))
        clipped += ratio > 1
        x -= lr / max(1, ratio) * m / (1 - 0.9**t) / denominator
        np.testing.assert_allclose(p.detach(), x, rtol=1e-9)
    assert 0 < clipped < 4


def test_schedules():
    factor = warm_cosine(100, 0.1)
    assert factor(0, 5000) == pytest.approx(0.01) and factor(99, 5000) == pytest.approx(1)
    assert factor(100 + 2450, 5000) == pytest.approx(0.55)
    assert factor(4999, 5000) == pytest.approx(0.1, abs=1e-4)
    assert factor(0, 4) == 1 and factor(9, 100) == 1
    assert [dropped(0.8)(s, 10) for s in (0, 7, 8, 9)] == [1, 1, 0.1, 0.1]
