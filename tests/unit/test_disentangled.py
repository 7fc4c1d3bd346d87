"""Disentangled autoencoder: rectangles, contrast and latent losses against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normscan.methods.autoencoders.disentangled import (
    DisentangledAutoencoder,
    decay,
    latent_orthogonality,
    shape_consistency,
)
from normscan.methods.base import Batch
from normscan.networks.autoencoder import BaurAutoencoder, Levels
from normscan.registry import card
from normscan.rng import Rng
from normscan.synthesis.rectangles import bright_values, gamma_shifted, painted, rectangles


def test_rectangles_lie_where_the_release_puts_them():
    masks = rectangles(3000, (128, 128), Rng(0)).numpy()
    assert masks.shape == (3000, 3, 128, 128)
    drawn = masks.any((2, 3))
    # Three throws of a coin: 0 to 3 rectangles.
    share = np.bincount(drawn.sum(1)) / len(masks)
    np.testing.assert_allclose(share, [1 / 8, 3 / 8, 3 / 8, 1 / 8], atol=0.03)
    sides = []
    for axis, (low, high) in enumerate(((20, 90), (30, 90))):
        line = masks.any(3 - axis)[drawn]  # (rectangles, 128)
        first, count = line.argmax(1), line.sum(1)
        assert (first.min(), first.max()) == (low, high - 1)
        assert (line.sum(1) == 128 - line[:, ::-1].argmax(1) - first).all()  # one piece
        sides.append(count)
    assert (sides[0].min(), sides[0].max()) == (3, 19)
    low, high = (sides[0] - sides[0] / 3).astype(int), (sides[0] + sides[0] / 3).astype(int)
    assert (sides[1] >= low).all() and (sides[1] < high).all()
    assert (sides[1] == low).any() and (sides[1] == high - 1).any()
    area = masks[drawn].sum((1, 2))
    assert (area == sides[0] * sides[1]).all()  # filled


@pytest.mark.parametrize("spatial", [(16, 16), (32, 24, 20)])
def test_rectangles_scale_with_the_size(spatial):
    masks = rectangles(50, spatial, Rng(1))
    assert masks.shape == (50, 3, *spatial)
    assert 25 < masks.flatten(1).any(1).sum() < 50
    for axis, size in enumerate(spatial):
        others = tuple(2 + i for i in range(len(spatial)) if i != axis)
        sides = masks.numpy().any(others).sum(-1)
        assert sides.max() <= max(1, round(25 * size / 128))
    assert masks.float().mean() < 0.05


def test_painting_against_a_loop(rng):
    image = torch.from_numpy(rng.random((3, 2, 7, 6)).astype(np.float32))
    masks = torch.from_numpy(rng.random((3, 4, 7, 6)) > 0.7)
    values = torch.from_numpy(rng.random((3, 2, 4)).astype(np.float32))
    expected = image.clone()
    for b, c, k in np.ndindex(3, 2, 4):
        expected[b, c][masks[b, k]] = values[b, c, k]
    assert torch.equal(painted(image, masks, values), expected)


def test_rectangles_are_among_the_bright(rng):
    image = torch.from_numpy(rng.random((40, 2, 8, 8)).astype(np.float32))
    values = bright_values(image, Rng(0)).numpy()
    share = np.empty_like(values)
    for b, c in np.ndindex(40, 2):
        x = image[b, c].numpy()
        low = np.percentile(x[x > 0.15], 75)
        share[b, c] = (values[b, c] - low) / (1 - low)
    assert 0 <= share.min() < 0.05 and 0.95 < share.max() < 1
    np.testing.assert_allclose(share[:, 0], share[:, 1], atol=1e-4)
    assert (bright_values(torch.zeros(2, 1, 4, 4), Rng(0)) == 1).all()


def test_gamma(rng):
    image = torch.from_numpy((3 * rng.random((2, 1, 5, 5))).astype(np.float32))
    image[0, 0, 0, 0] = -1
    gamma = torch.tensor([0.5, 2.0])
    got = gamma_shifted(image, gamma).numpy()
    x = image.numpy().clip(0)
    for b, g in enumerate((0.5, 2.0)):
        np.testing.assert_allclose(got[b], x[b].max() * (x[b] / x[b].max()) ** g, rtol=1e-5)
    assert not gamma_shifted(torch.zeros(1, 1, 4, 4), torch.ones(1)).any()


def test_latent_losses_are_the_cosines(rng):
    a = torch.from_numpy(rng.normal(size=(4, 6, 3, 3))).requires_grad_()
    b = torch.from_numpy(rng.normal(size=(4, 6, 3, 3))).requires_grad_()
    small = torch.from_numpy(rng.normal(size=(4, 2, 3, 3))).requires_grad_()

    def cosine(u, v):
        return [
            float(p @ q / np.linalg.norm(p) / np.linalg.norm(q)) for p, q in zip(u, v, strict=True)
        ]

    flat = a.detach().numpy().reshape(4, -1), b.detach().numpy().reshape(4, -1)
    loss = shape_consistency(a, b)
    assert loss.item() == pytest.approx(np.mean([1 - c for c in cosine(*flat)]), rel=1e-6)
    loss.backward()
    assert a.grad.abs().sum() > 0 and b.grad is None

    # A 1x1 convolution of ones from 6 to 2 channels.
    ones = np.einsum("dc,bcij->bdij", np.ones((2, 6)), a.detach().numpy()).reshape(4, -1)
    expected = np.mean([max(0, c) for c in cosine(small.detach().numpy().reshape(4, -1), ones)])
    a.grad = None
    loss = latent_orthogonality(small, a)
    assert loss.item() == pytest.approx(expected, rel=1e-6) and expected > 0
    loss.backward()
    assert small.grad.abs().sum() > 0 and a.grad is None


def test_network_has_the_articles_sizes():
    network = DisentangledAutoencoder(2, 1, 128, 64, 0.2).eval()
    x = torch.rand(1, 1, 128, 128)
    shape, appearance = network.encode(x)
    assert shape.shape == (1, 128, 16, 16) and appearance.shape == (1, 32, 16, 16)
    assert network.shape.decode(shape).shape == (1, 64, 128, 128)
    assert network.appearance.decode(appearance).shape == (1, 16, 128, 128)
    widths = [m.out_channels for m in network.shape.encoder if isinstance(m, torch.nn.Conv2d)]
    assert widths == [64, 128, 128]
    restored = network(x)
    assert restored.shape == x.shape and restored.min() > 0 and restored.max() < 1
    assert network.mix.in_channels == 80


def test_learning_rate_falls_twice_in_each_of_fifty_rounds():
    """To 4.8 % in the end, as after the two falls of a round in the released code."""
    factors = [decay(s, 500, 0) for s in range(500)] + [decay(s, 500, 25) for s in range(500)]
    expected = np.repeat(0.97 ** np.arange(100), 10)
    np.testing.assert_allclose(factors, expected)


def tiny(**arguments):
    return card("feddis").create(**{**card("feddis").arguments("tiny"), "dims": 2, **arguments})


def test_terms_of_the_phases_and_running_statistics():
    """The latent terms come in the second half; the shifted image moves no running statistics."""
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    foreground = torch.ones(4, 1, 32, 32, dtype=torch.bool)

    def batch():
        return Batch(images, foreground, Rng(1), torch.zeros(4))

    method = tiny().train()
    other = tiny().train()
    other.load_state_dict(method.state_dict())
    first = method.loss(batch(), "reconstruct", "network")
    second = other.loss(batch(), "disentangle", "network")
    assert set(first) == {"l1"} and set(second) == {"l1", "consistency", "orthogonality"}
    torch.testing.assert_close(first["l1"], second["l1"])
    for (name, a), b in zip(method.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert all(m.training for m in other.modules())
    plain = tiny(latent_weight=0.0).train()
    assert set(plain.loss(batch(), "disentangle", "network")) == {"l1"}
    assert [p.name for p in method.phases()] == ["reconstruct", "disentangle"]
    assert all(p.players[0].clip == 0.5 for p in method.phases())


def test_widest_leaves_the_default_alone():
    plain, told = (BaurAutoencoder(size=64, levels=Levels(8, n)) for n in (None, 32))
    assert [p.shape for p in plain.parameters()] == [p.shape for p in told.parameters()]
