"""Deep SVDD: what its network must lack, its centre, its radius, its normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.methods.features.one_class import ContrastNormalisation
from normscan.registry import card
from normscan.rng import Rng


def build(**changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return card("deep_svdd").create(
            **card("deep_svdd").arguments("tiny", **{"gcn": True, **changes})
        )


def batch(n: int = 4, seed: int = 1, size: int = 32):
    image = torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed))
    ones = torch.ones(n, 1, size, size, dtype=torch.bool)
    return Batch(image, ones, Rng(0), torch.full((n,), 0.5))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_network_of_cifar_and_that_nothing_in_it_can_shift(dims: int):
    method = build(dims=dims, width=32, latent=128, channels=3)
    convs = [m for m in method.encoder.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    assert [c.out_channels for c in convs] == [32, 64, 128]
    assert {c.kernel_size[0] for c in convs} == {5}
    for m in method.modules():
        assert getattr(m, "bias", None) is None
        assert not (isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine)
    # So black stays at the code 0, and only the weights can move it.
    x = torch.zeros(2, 3, *[32] * dims)
    assert not method.eval().encoder(x).any()
    restored = method.decoder(method.encoder(x + 1))
    assert restored.shape == x.shape and restored.min() > 0 and restored.max() < 1
    up = [m.out_channels for m in method.decoder if isinstance(m, nn.Conv2d | nn.Conv3d)]
    up += [m.out_channels for m in method.decoder if "ConvTranspose" in type(m).__name__]
    assert up == [128, 64, 32, 3]


def test_a_code_that_does_not_fill_the_grid_is_told():
    with pytest.raises(ArgumentError, match="Use latent=112"):
        build(latent=105)
    with pytest.raises(ArgumentError, match="Use size=64"):
        build(size=60)


def test_contrast_normalisation_by_hand():
    x = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    a = x.numpy().astype(np.float64)
    a = a - a.mean((1, 2, 3), keepdims=True)
    a = a / np.abs(a).mean((1, 2, 3), keepdims=True)
    normalise = ContrastNormalisation()
    normalise(x[:2], collect=True)
    normalise(x[2:], collect=True)
    normalise(5 * x**4)  # without collecting
    expected = (a - a.min()) / np.ptp(a)
    np.testing.assert_allclose(normalise(x), expected, atol=1e-5)
    # Brightness and contrast of an image don't count.
    torch.testing.assert_close(normalise(3 * x + 1), normalise(x), atol=1e-5, rtol=1e-5)
    assert torch.isfinite(normalise(torch.zeros(1, 2, 8, 8))).all()


def test_extremes_start_where_every_image_has_some():
    """Of numbers with mean 0 and mean size 1 half of the size is negative: one is -0.5 or less."""
    for share in (0.01, 0.3, 0.99):
        x = (torch.rand(1, 1, 50, 50, generator=torch.Generator().manual_seed(1)) < share).float()
        normalise = ContrastNormalisation()
        y = normalise(x, collect=True)
        assert float(y.min()) == pytest.approx(0, abs=1e-5)
        assert float(y.max()) == pytest.approx(1, abs=1e-5)


def test_the_centre_is_the_mean_code_away_from_zero():
    method = build().train()
    batches = [batch(4, 1), batch(2, 2)]
    before = {k: v.clone() for k, v in method.encoder.named_buffers()}
    for b in batches:
        method.loss(b, "centre", "encoder")
    assert all(v.equal(before[k]) for k, v in method.encoder.named_buffers())
    method.eval()
    codes = torch.cat([method.encoder(method.normalise(b.image)) for b in batches])
    mean = codes.mean(0)
    expected = mean.clone()
    expected[(mean < 0) & (mean.abs() < 0.1)] = -0.1
    expected[(mean > 0) & (mean.abs() < 0.1)] = 0.1
    torch.testing.assert_close(method.centre, expected)
    assert (method.centre.abs() >= 0.1).all()
    assert (mean.abs() < 0.1).any()
    method.centre_sum *= 50  # now some are beyond 0.1
    assert (method.centre.abs() > 0.11).any()
    score = ((codes - method.centre) ** 2).sum(1)
    found = method.maps(batches[0])
    torch.testing.assert_close(found.score, score[:4])
    assert found.map is None
    terms = method.loss(batches[0], "one-class", "encoder")
    torch.testing.assert_close(terms["distance"], score[:4].mean())


def test_the_soft_boundary_by_hand():
    method = build(objective="soft-boundary", nu=0.25, warm_up=1)
    method.loss(batch(), "centre", "encoder")
    method.eval()
    distance = method.distance(batch().image)
    for expected in (0.0, 0.0, float(np.quantile(distance.detach().sqrt(), 0.75))):
        assert float(method.radius) == pytest.approx(expected)
        terms = method.loss(batch(), "one-class", "encoder")
        outside = np.maximum(distance.detach() - expected**2, 0).mean() / 0.25
        assert float(terms["outside"].detach()) == pytest.approx(float(outside), rel=1e-5)
        assert float(terms["radius"]) == pytest.approx(expected**2)
    radius = method.radius.clone()
    with torch.no_grad():  # validation
        method.loss(batch(seed=7), "one-class", "encoder")
    assert torch.equal(radius, method.radius)
    torch.testing.assert_close(method.maps(batch()).score, distance.detach() - radius.square())


def test_the_phases():
    method = build()
    names = [p.name for p in method.phases()]
    assert names == ["pretrain", "centre", "one-class"]
    first, centre, last = (p.players[0] for p in method.phases())
    assert set(first.parameters()) == set(method.parameters())
    assert set(last.parameters()) == set(method.encoder.parameters())
    before = [p.clone() for p in method.parameters()]
    optimizer = centre.optimizer(centre.parameters())
    method.loss(batch(), "centre", "encoder")["size"].backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))
    # The milestones: 250 of 350 and 50 of 150 epochs.
    assert [first.schedule(s, 350) for s in (249, 250)] == [1.0, 0.1]
    assert [last.schedule(s, 150) for s in (49, 50)] == [1.0, 0.1]
