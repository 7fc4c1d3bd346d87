"""Shapes, widths and layers of the networks against the cards and against by-hand sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.networks.autoencoder import (
    BaurAutoencoder,
    ChannelAffine,
    Code,
    CompactAutoencoder,
    Levels,
)
from normscan.networks.blocks import WeightStandardizedConv, doublings, pad_to_multiple
from normscan.networks.unet import UNet, middle_divisor
from normscan.networks.wgan import Critic, Generator


def convolutions(module, kind):
    return [(m.in_channels, m.out_channels) for m in module.modules() if isinstance(m, kind)]


# --- blocks


@pytest.mark.parametrize(("shape", "padded"), [((5, 8), (8, 8)), ((9, 3, 4), (12, 4, 4))])
def test_padding_repeats_the_border_and_can_be_undone(shape, padded):
    x = torch.rand(2, 3, *shape)
    y, cut = pad_to_multiple(x, 4)
    assert y.shape[2:] == padded
    assert torch.equal(y[cut], x)
    index = [np.minimum(np.arange(n), m - 1) for n, m in zip(padded, shape, strict=True)]
    expected = x.numpy()[(slice(None), slice(None), *np.ix_(*index))]
    np.testing.assert_array_equal(y, expected)


def test_padding_to_a_smallest_size():
    y, cut = pad_to_multiple(torch.rand(1, 1, 8, 20), 8, 16)
    assert y.shape[2:] == (16, 24) and y[cut].shape[2:] == (8, 20)


def test_doublings():
    assert [doublings(s, 8) for s in (16, 64, 128)] == [1, 3, 4]
    for size, near in ((100, 128), (8, 16), (90, 64)):
        with pytest.raises(ArgumentError, match=f"Use size={near}"):
            doublings(size, 8)


@pytest.mark.parametrize("n", range(1, 130))
def test_middle_divisor(n):
    middle = middle_divisor(n)
    # In a sorted list of divisors as many lie above it as below, or one fewer.
    below = sum(n % d == 0 for d in range(1, middle))
    above = sum(n % d == 0 for d in range(middle + 1, n + 1))
    assert n % middle == 0 and below - above in (0, 1)


def test_middle_divisor_of_the_articles_widths():
    assert [middle_divisor(c) for c in (64, 128, 256, 512)] == [8, 16, 16, 32]


@pytest.mark.parametrize("dims", [2, 3])
def test_weight_standardisation_by_hand(dims):
    layer = WeightStandardizedConv(dims, 3, 4)
    x = torch.rand(2, 3, *[6] * dims)
    weight = layer.conv.weight.detach()
    standard = torch.empty_like(weight)
    for i, kernel in enumerate(weight):
        values = kernel.flatten().tolist()
        mean = sum(values) / len(values)
        var = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
        standard[i] = (kernel - mean) / (math.sqrt(var) + 1e-5)
    padded = F.pad(x, [1] * 2 * dims, mode="reflect")
    expected = (F.conv2d, F.conv3d)[dims - 2](padded, standard, layer.conv.bias)
    torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)


def test_weight_standardisation_ignores_shift_and_scale_of_the_filters():
    layer = WeightStandardizedConv(2, 8, 4)
    x = torch.rand(1, 8, 6, 6)
    before = layer(x)
    with torch.no_grad():
        layer.conv.weight.mul_(30).add_(0.7)
    # The constant in the root matters less for larger weights.
    torch.testing.assert_close(layer(x), before, atol=0.05, rtol=0.05)


# --- U-Net


@pytest.mark.parametrize("shape", [(33, 47), (8, 8), (3, 20), (9, 11, 13), (8, 8, 8)])
def test_unet_keeps_any_size(shape):
    net = UNet(len(shape), 2, width=4, depth=4)
    assert net(torch.rand(1, 2, *shape)).shape == (1, 2, *shape)


def unet_parameters(channels, width, depth, dims=2):
    """Count from the layer list of the card."""
    widths = [width * 2**i for i in range(depth)]
    conv = lambda a, b, k: a * b * k**dims + b  # noqa: E731
    block = lambda a, b: conv(a, b, 3) + conv(b, b, 3) + 4 * b  # noqa: E731
    total = conv(width, channels, 1)
    total += sum(block(a, b) for a, b in zip([channels, *widths], widths, strict=False))
    for a, b in zip(widths[1:], widths[:-1], strict=True):
        total += conv(a, b, 2) + block(2 * b, b)
    return total


def test_unet_of_the_article_has_the_parameters_of_the_card():
    net = UNet(2, 4, 64, 4)
    assert sum(p.numel() for p in net.parameters()) == unet_parameters(4, 64, 4) == 7_703_748


@pytest.mark.parametrize(("dims", "depth"), [(2, 2), (3, 3)])
def test_small_unets_too(dims, depth):
    net = UNet(dims, 1, 4, depth)
    assert sum(p.numel() for p in net.parameters()) == unet_parameters(1, 4, depth, dims)


def test_unet_has_skips_and_a_linear_output():
    torch.manual_seed(0)
    net = UNet(2, 1, 4, 3)
    with torch.no_grad():
        for up in net.up:
            up.weight.zero_()
            up.bias.zero_()
    x = torch.rand(1, 1, 16, 16)
    # With the way up cut, what the input changes comes through the top skip.
    assert not torch.allclose(net(x), net(x.flip(-1)))
    assert isinstance(net.out, nn.Conv2d) and net.out.kernel_size == (1, 1)
    with torch.no_grad():
        net.out.bias.fill_(-50)
    assert net(x).max() < -10


# --- autoencoders


def test_baur_autoencoder_has_the_widths_of_the_card():
    net = BaurAutoencoder(2, 1, 128, Code(128, heads=2))
    assert convolutions(net.encoder, nn.Conv2d) == [
        (1, 32),
        (32, 64),
        (64, 128),
        (128, 128),
        (128, 16),
    ]
    ups = [(128, 128), (128, 64), (64, 32), (32, 32)]
    assert convolutions(net.decoder, nn.ConvTranspose2d) == ups
    assert convolutions(net.decoder, nn.Conv2d) == [(16, 128), (32, 1)]
    kernels = {m.kernel_size for m in net.modules() if isinstance(m, nn.ConvTranspose2d)}
    assert kernels == {(5, 5)}
    assert {m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)} == {0.3}
    assert [head[0].in_features for head in net.heads] == [16 * 64, 16 * 64]
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.2, 0.2, 0.2]
    assert isinstance(net.decoder[-1], nn.Conv2d)


@pytest.mark.parametrize(
    ("dims", "size", "channels", "narrow"), [(2, 16, 3, 1), (2, 64, 1, 4), (3, 16, 2, 1)]
)
@pytest.mark.parametrize("norm", ["batch", "affine"])
def test_baur_autoencoder_shapes(dims, size, channels, narrow, norm):
    net = BaurAutoencoder(dims, channels, size, Code(7, heads=2), Levels(8, norm=norm))
    x = torch.rand(2, channels, *[size] * dims)
    assert [z.shape for z in net.encode(x)] == [(2, 7), (2, 7)]
    assert net.encoder(x).shape == (2, narrow * 8**dims)
    assert net(x).shape == x.shape


def test_affine_norm_is_batch_norm_that_never_normalises():
    affine, norm = ChannelAffine(2, 3), nn.BatchNorm2d(3, eps=0).eval()
    with torch.no_grad():
        for mine, theirs in ((affine.scale, norm.weight), (affine.shift, norm.bias)):
            theirs.uniform_(-1, 1)
            mine.copy_(theirs.reshape(1, 3, 1, 1))
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(affine(x), norm(x))
    net = BaurAutoencoder(2, 1, 16, Code(4), Levels(8, norm="affine"))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def test_compact_autoencoder_has_the_widths_of_the_card():
    net = CompactAutoencoder(2, 1, 64, Code(16, heads=2))
    assert convolutions(net.encoder, nn.Conv2d) == [(1, 16), (16, 32), (32, 64), (64, 64)]
    ups = [(64, 64), (64, 32), (32, 16), (16, 1)]
    assert convolutions(net.decoder, nn.ConvTranspose2d) == ups
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert {m.kernel_size for m in convs} == {(4, 4)} and {m.bias for m in convs} == {None}
    linear = [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)]
    assert linear == [(1024, 1024), (1024, 16), (1024, 16), (16, 1024), (1024, 1024)]
    assert isinstance(net.decoder[-1], nn.ConvTranspose2d)


@pytest.mark.parametrize(("dims", "size"), [(2, 8), (2, 32), (2, 128), (3, 16)])
def test_compact_autoencoder_shapes(dims, size):
    net = CompactAutoencoder(dims, 2, size, Code(5), width=4, hidden=32)
    x = torch.rand(2, 2, *[size] * dims)
    assert net.encode(x)[0].shape == (2, 5) and net(x).shape == x.shape


# --- Wasserstein GAN


def test_wgan_widths_for_64_pixels():
    generator = Generator(2, 1, 64, 128, 64)
    critic = Critic(2, 1, 64, 1, 64)
    ups = [(b.shortcut.in_channels, b.shortcut.out_channels) for b in generator.blocks]
    downs = [(b.shortcut.in_channels, b.shortcut.out_channels) for b in list(critic.blocks)[:-1]]
    assert ups == [(512, 512), (512, 256), (256, 128), (128, 64)]
    assert downs == [(64, 128), (128, 256), (256, 512), (512, 512)]
    assert generator.start[0].out_features == 4 * 4 * 512
    assert (critic.out.in_features, critic.out.out_features) == (4 * 4 * 512, 1)
    norms = [m for m in critic.modules() if isinstance(m, nn.GroupNorm)]
    assert [m.num_channels for m in norms] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert all(m.num_groups == 1 for m in norms)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in critic.modules())
    encoder = Critic(2, 1, 64, 128, 64, norm="batch")
    assert not any(isinstance(m, nn.GroupNorm) for m in encoder.modules())
    # Counted by hand in the released TensorFlow code.
    numbers = [sum(p.numel() for p in net.parameters()) for net in (generator, critic, encoder)]
    assert numbers == [8_539_329, 7_490_689, 8_531_200]
    norms = [m.num_features for m in generator.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == [512, 512, 512, 256, 256, 128, 128, 64, 64]


@pytest.mark.parametrize(("dims", "size"), [(2, 8), (2, 32), (2, 128), (3, 16)])
def test_wgan_shapes(dims, size):
    generator, critic = Generator(dims, 2, size, 6, 4), Critic(dims, 2, size, 3, 4)
    image = generator(torch.randn(2, 6))
    assert image.shape == (2, 2, *[size] * dims) and image.abs().max() <= 1
    assert critic(image).shape == (2, 3)
    assert critic.features(image).shape == (2, critic.out.in_features)


def test_the_critic_judges_each_image_alone():
    critic = Critic(2, 1, 16, 1, 4)
    x = torch.rand(3, 1, 16, 16)
    alone = torch.cat([critic(part) for part in x.split(1)])
    torch.testing.assert_close(critic(x), alone, atol=1e-5, rtol=1e-5)
