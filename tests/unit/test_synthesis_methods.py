"""Blocks of the systems that learn from artificial anomalies, beside formulas and other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf

from normscan.methods.base import Batch
from normscan.methods.synthesis.common import jolted, standardised
from normscan.methods.synthesis.cutpaste import lung_masks
from normscan.methods.synthesis.draem import two_steps
from normscan.networks.discriminative import BatchNormUNet, RestoringNetwork, SegmentingNetwork
from normscan.networks.resnet import ResNetEncoder, ResNetSegmenter
from normscan.networks.taps import import_timm
from normscan.networks.wide import WideBlock, WideResidual
from normscan.registry import card
from normscan.rng import Rng
from normscan.scores.shrunken import ShrunkenGaussian
from normscan.synthesis.augment import TEN, three_of_ten


@pytest.mark.parametrize(
    "network",
    [
        lambda: WideResidual(2, 1, 1, 2),
        lambda: WideResidual(2, 1, 5, 2, levels=5),
        lambda: ResNetSegmenter(1, 1, 4),
        lambda: RestoringNetwork(1, 2),
        lambda: SegmentingNetwork(1, 2, 2),
        lambda: BatchNormUNet(1, 1, 2),
    ],
)
def test_networks_take_any_size(network):
    assert network().eval()(torch.rand(1, 1, 37, 50)).shape[2:] == (37, 50)


def test_a_strided_block_pads_at_the_end_as_tensorflow_does():
    block = WideBlock(2, 1, 2, "half")
    x = torch.rand(1, 1, 6, 6)
    weight = block.conv.conv.weight
    padded = torch.zeros(7, 7)
    padded[:6, :6] = x[0, 0]
    wanted = sum(padded[2:5, 4:7].mul(weight[1, 0]).flatten())
    assert block.conv(x)[0, 1, 1, 2].item() == pytest.approx(wanted.item(), abs=1e-6)


def test_the_encoder_is_resnet18():
    timm = import_timm()
    theirs = timm.create_model("resnet18", num_classes=0)
    ours = ResNetEncoder(3)
    assert [tuple(p.shape) for p in ours.parameters()] == [
        tuple(p.shape) for p in theirs.parameters()
    ]
    with torch.no_grad():
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.copy_(b)
        x = torch.rand(1, 3, 64, 64)
        torch.testing.assert_close(
            ours.eval()(x), theirs.eval().forward_features(x), rtol=1e-4, atol=1e-5
        )


def test_the_gaussian_is_scipys_with_sklearns_covariance():
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 6)
    gaussian = ShrunkenGaussian(5)
    gaussian.fit(iter(x.split(16)))
    found = LedoitWolf().fit(x.numpy())
    density = multivariate_normal(found.location_, found.covariance_)
    wanted = density.logpdf(found.location_) - density.logpdf(x.numpy())
    np.testing.assert_allclose(gaussian(x).numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_augmentations_keep_the_range_and_differ():
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    results = [augment(x, Rng([1, 2, 3])) for augment in TEN]
    assert all(r.shape == x.shape and torch.isfinite(r).all() for r in results)
    assert sum(bool((r - x).abs().max() > 1e-3) for r in results) >= 9
    mixed = three_of_ten(x, Rng([1, 2, 3]))
    assert 0 <= float(mixed.min()) <= float(mixed.max()) <= 1
    alone = three_of_ten(x[1:2], Rng([2]))
    torch.testing.assert_close(mixed[1:2], alone, rtol=0, atol=1e-5)


def test_lungs_are_bright_parts_inside():
    image = torch.zeros(1, 1, 64, 64)
    image[..., 20:40, 10:25] = 1
    image[..., 20:40, 38:54] = 1
    image[..., 5:7, 5:7] = 1  # too small
    image[..., 60:, :] = 1  # touches the border
    batch = Batch(image, torch.ones_like(image, dtype=torch.bool), Rng(0), torch.zeros(1))
    found = lung_masks(batch)[0, 0]
    assert found[30, 15] and found[30, 45] and not found[6, 6] and not found[62, 30]
    flat = Batch(torch.zeros_like(image), batch.foreground, Rng(0), torch.zeros(1))
    assert lung_masks(flat).all()


def test_batches_are_jolted_with_their_foreground():
    image = torch.zeros(4, 1, 32, 32)
    image[..., 8:24, 8:24] = 1
    batch = Batch(image, image > 0, Rng(0), torch.zeros(4))
    moved = jolted(batch, turn=10, shift=0.1)
    assert not torch.equal(moved.image, image)
    assert ((moved.image > 0.5) == moved.foreground).all()


def test_small_formulas():
    x = torch.rand(2, 1, 8, 8)
    assert standardised(x).mean((1, 2, 3)).abs().max() < 1e-5
    assert [round(two_steps(s, 100), 3) for s in (0, 79, 80, 90)] == [1, 1, 0.2, 0.04]


def test_classes_are_decoded_to_their_expected_share():
    method = card("fpi").create(**{**card("fpi").arguments("tiny"), "classes": 5})
    method.network = torch.nn.Conv2d(1, 5, 1)
    with torch.no_grad():
        method.network.weight.zero_()
        method.network.bias.copy_(torch.tensor([0.0, 0, 0, 0, 50]))
    x = torch.rand(1, 1, 8, 8)
    maps = method.maps(Batch(x, x > -1, Rng([0]), torch.zeros(1)))
    torch.testing.assert_close(maps.map, torch.ones_like(x))
