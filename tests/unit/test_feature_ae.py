"""The feature autoencoder's shapes, features and similarity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve
from torch import nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.methods.features.feature_ae import feature_autoencoder, feature_similarity
from normscan.registry import card
from normscan.rng import Rng


def build(**changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return card("fae").create(**card("fae").arguments("tiny", **changes))


def test_autoencoder_as_the_article_has_it():
    net = feature_autoencoder(256, (100, 150, 200, 300), 0.1).eval()
    convolutions = [m for m in net if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert [m.out_channels for m in convolutions] == [
        100, 150, 200, 300, 300, 200, 150, 100, 256, 256,
    ]  # fmt: skip
    assert all(m.bias is None for m in convolutions)
    x = torch.rand(1, 256, 32, 32)
    assert net[:17](x).shape == (1, 300, 2, 2)
    assert net(x).shape == x.shape


def test_similarity_against_scipy(rng):
    """One channel at a time, with zeros around and a Gaussian of 5 x 5 cells."""
    a, b = rng.normal(1, 2, (2, 2, 3, 8, 7))
    offset = np.arange(5) - 2
    line = np.exp(-(offset**2) / (2 * 1.5**2))
    kernel = np.outer(line, line) / line.sum() ** 2

    def mean(x):
        return convolve(x, kernel, mode="constant")

    expected = np.zeros((2, 8, 7))
    for n in range(2):
        for c in range(3):
            x, y = a[n, c], b[n, c]
            mx, my = mean(x), mean(y)
            vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
            top = (2 * mx * my + 0.01**2) * (2 * cov + 0.03**2)
            expected[n] += top / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2)) / 3
    got = feature_similarity(torch.tensor(a), torch.tensor(b))
    np.testing.assert_allclose(got[:, 0], expected, rtol=1e-3, atol=1e-4)


def test_features_are_pooled_once_on_one_grid():
    method = build(taps=("act1", "layer1", "layer2"))
    x = torch.rand(1, 1, 64, 64)
    net = method.backbone.network
    stem = net.act1(net.bn1(net.conv1(2 * x.expand(-1, 3, -1, -1) - 1)))
    pooled = F.max_pool2d(stem, 3, 2, 1)
    first = net.layer1(pooled)
    second = F.interpolate(net.layer2(first), (16, 16), mode="bilinear", align_corners=True)
    torch.testing.assert_close(method.features(x), torch.cat([pooled, first, second], 1))


def test_map_is_one_minus_the_similarity_and_the_loss_its_mean():
    method = build().eval()
    x = torch.rand(2, 1, 64, 64)
    batch = Batch(x, x > -1, Rng(0), torch.full((2,), 0.5))
    map = method.maps(batch).map
    assert map.shape == (2, 1, 64, 64) and map.min() >= 0
    # Enlarged from 16 cells with aligned corners, every 21st of 64 pixels is a cell's own.
    cells = map[..., ::21, ::21]
    features = method.features(x)
    own = 1 - feature_similarity(method.autoencoder(features), features)
    torch.testing.assert_close(cells, own[..., ::5, ::5])
    loss = method.loss(batch, "reconstruct", "network")["ssim"]
    assert loss.item() == pytest.approx(own.mean().item() - 1, abs=1e-5)


def test_grid_must_halve():
    with pytest.raises(ArgumentError, match="Use 16"):
        build(grid=18)
