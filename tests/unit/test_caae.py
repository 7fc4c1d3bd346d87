"""The constrained adversarial autoencoder: its blocks, its losses by hand, its rhythm."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.networks.residual import ResidualAutoencoder, ResizingBlock
from normscan.registry import card
from normscan.rng import Rng


def make(name="caae", **changes):
    entry = card(name)
    torch.manual_seed(0)
    return entry.create(**entry.arguments("tiny", **{"width": 4, **changes}))


def batch(n=4):
    image = torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    return Batch(image, torch.ones_like(image, dtype=torch.bool), Rng(5), torch.zeros(n))


def test_widths_of_the_release():
    network = ResidualAutoencoder(2, 1, 256, 128)
    down = [m for m in network.encoder if isinstance(m, ResizingBlock)]
    assert [(b.body[0].out_channels, b.outputs) for b in down] == [
        (16, 32), (32, 64), (64, 128), (128, 256),
    ]  # fmt: skip
    up = [m for m in network.decoder if isinstance(m, ResizingBlock)]
    assert [(b.body[0].out_channels, b.outputs) for b in up] == [
        (128, 64), (64, 32), (32, 16), (16, 8),
    ]  # fmt: skip
    assert network.heads[0].in_features == 16 * 16 * 256
    for name, widths in (("caae", [200, 400, 1]), ("caae_baur", [100, 50, 1])):
        method = card(name).create(**card(name).arguments(size=32))
        assert [m.out_features for m in method.critic if hasattr(m, "out_features")] == widths


@pytest.mark.parametrize("dims", [2, 3])
def test_shapes_and_sizes_that_cannot_be_halved(dims):
    network = ResidualAutoencoder(dims, 2, 16, 5, width=2, levels=3).eval()
    x = torch.rand(2, 2, *[16] * dims)
    assert network.encode(x)[0].shape == (2, 5) and network(x).shape == x.shape
    with pytest.raises(ArgumentError, match="size=20 .*Use size=16"):
        ResidualAutoencoder(dims, 2, 20, 5, levels=3)


def test_a_block_by_hand():
    torch.manual_seed(0)
    block = ResizingBlock(2, 2, up=False).eval()
    x = torch.randn(1, 2, 6, 6)
    first, _, _, second, _, _ = block.body
    shrink = (1 + 1e-5) ** 0.5
    h = F.leaky_relu(F.conv2d(x, first.weight, first.bias, 2, 1) / shrink, 0.2)
    h = F.leaky_relu(F.conv2d(h, second.weight, second.bias, padding=1) / shrink, 0.2)
    short = block.shortcut[0]
    h = h + F.leaky_relu(F.conv2d(x, short.weight, short.bias, 2, 1) / shrink, 0.2)
    torch.testing.assert_close(block(x), h)
    assert ResizingBlock(2, 2, up=True)(x).shape == (1, 1, 12, 12)


def test_an_odd_width_is_refused():
    with pytest.raises(ArgumentError, match="width=3 .*Use width=4"):
        ResidualAutoencoder(2, 1, 16, 5, width=3)


@pytest.mark.parametrize("name", ["caae", "caae_baur"])
def test_losses_by_hand(name):
    method, data = make(name, consistency=0.7).eval(), batch()
    with torch.no_grad():
        z = method.encode(data.image)
        restored = method.network.decode(z)
        again = method.encode(restored)
        terms = method.loss(data, "constrain", "autoencoder")
        adversarial = method.loss(data, "constrain", "encoder")["adversarial"]
    error, drift = (restored - data.image).flatten(1), z - again
    if name == "caae":
        expected = error.norm(dim=1).mean(), 0.7 * drift.square().sum(1).mean()
    else:
        expected = error.square().mean(), 0.7 * drift.square().mean()
    torch.testing.assert_close(terms["restoration"], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["consistency"], expected[1])
    torch.testing.assert_close(adversarial, -method.critic(z).mean().detach())


def test_the_critic_tells_codes_from_the_prior():
    method, data = make(), batch()
    terms = method.loss(data, "constrain", "critic")
    with torch.no_grad():
        prior = Rng(5).normal((4, 16))
        expected = method.critic(method.encode(data.image)).mean() - method.critic(prior).mean()
    torch.testing.assert_close(terms["wasserstein"].detach(), expected, rtol=1e-3, atol=1e-4)
    sum(terms.values()).backward()
    assert all(p.grad is None for p in method.network.parameters())


def test_the_restoration_is_encoded_with_running_statistics():
    method = make().train()
    norm = method.network.encoder[2]
    before = norm.num_batches_tracked.clone()
    method.loss(batch(), "constrain", "autoencoder")
    assert norm.num_batches_tracked == before + 1 and method.network.encoder.training


def test_the_rhythm_of_the_released_code():
    phases = card("caae").create(**card("caae").arguments(size=32)).phases()
    turns = [{p.name: p.turns for p in phase.players} for phase in phases]
    assert turns[0] == {"autoencoder": 1, "critic": 200, "encoder": 1}
    assert turns[1] == {"autoencoder": 1, "critic": 20, "encoder": 1}
    assert [p.total_steps(640) for p in phases] == [20 * 10, 280 * 10]


def test_the_port_of_the_comparative_study():
    method = card("caae_baur").create(**card("caae_baur").arguments("code"))
    convolutions = [m for m in method.network.encoder if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [32, 64, 128, 16]
    assert method.network.heads[0][0].in_features == 16 * 16 * 16
    turns = [{p.name: p.turns for p in phase.players} for phase in method.phases()]
    assert turns[0] == {"autoencoder": 20, "critic": 20, "encoder": 1}
    assert turns[1] == {"autoencoder": 1, "critic": 20, "encoder": 1}
    x = torch.zeros(1, 1, 2, 2)
    assert not method.residual(x, x + 1).any() and method.residual(x, x - 1).all()
