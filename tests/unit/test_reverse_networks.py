"""Skeleton of reverse distillation: decoders that mirror their backbone, attention, parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normscan.errors import ArgumentError
from normscan.networks.attention import SelfAttention
from normscan.networks.backbones import Backbone
from normscan.networks.reverse import (
    OneClassEmbedding,
    ResidualBlock,
    ReverseDecoder,
    Stage,
    reverse_pair,
    stages_of,
    trainable_copy,
    with_momentum,
)


@pytest.fixture(scope="module")
def resnet18():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Backbone("resnet18.tv_in1k", ("layer1", "layer2", "layer3"), "random")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_stages_say_what_the_backbone_is_made_of(resnet18):
    assert stages_of(resnet18, 64) == [
        Stage(64, 64, 2, False), Stage(128, 128, 2, False), Stage(256, 256, 2, False)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "width"), [("resnet50.tv_in1k", 64), ("wide_resnet50_2.tv_in1k", 128)]
)
def test_bottlenecks_keep_the_width_of_their_backbone(name: str, width: int):
    """The meta device builds no weights: only names and shapes count here."""
    blocks = {"layer1": 3, "layer2": 4, "layer3": 6}
    backbone = nn.Module()
    with torch.device("meta"):
        from normscan.networks.taps import tapped

        backbone.network, _ = tapped(name, tuple(blocks), 3)
    backbone.taps, backbone.strides = tuple(blocks), [4, 8, 16]
    backbone.channels = [256, 512, 1024]
    stages = stages_of(backbone, 256)
    assert stages == [
        Stage(256 * 2**i, width * 2**i, n, True) for i, n in enumerate(blocks.values())
    ]
    with torch.device("meta"):
        embedding, decoder = reverse_pair(stages)
        x = [torch.empty(2, c, s, s) for c, s in zip(backbone.channels, (8, 4, 2), strict=True)]
        summary = embedding(x)
        assert summary.shape == (2, 2048, 1, 1)
        assert [d.shape for d in decoder(summary)] == [f.shape for f in x]
    # RD4AD decodes with 3, 4, 6 blocks from the deepest to the finest.
    assert [len(g) for g in decoder.groups] == [6, 4, 3]
    assert len(embedding.group) == 3
    first = decoder.groups[2][0].main
    assert isinstance(first[3], nn.ConvTranspose2d) and first[3].in_channels == 4 * width
    assert [p.in_channels for p in embedding.group[0].main if isinstance(p, nn.Conv2d)] == [
        3072, 8 * width, 8 * width
    ]  # fmt: skip


@pytest.mark.parametrize("up", ["transposed", "bilinear"])
@pytest.mark.parametrize("bottleneck", [True, False])
def test_decoders_mirror_their_stages(up: str, bottleneck: bool):
    stages = [Stage(8, 4, 2, bottleneck), Stage(12, 6, 1, bottleneck)]
    decoder = ReverseDecoder(20, stages, up)
    maps = decoder(random(2, 20, 3, 2))
    assert [m.shape for m in maps] == [(2, 8, 12, 8), (2, 12, 6, 4)]
    seen = []

    def between(level, x):
        seen.append((level, x.shape[1]))
        return 0 * x

    changed = decoder(random(2, 20, 3, 2), between)
    assert seen == [(1, 12)]
    assert torch.equal(changed[1], maps[1]) and not torch.equal(changed[0], maps[0])


def test_the_embedding_is_half_the_grid_and_twice_the_channels(resnet18):
    stages = stages_of(resnet18, 64)
    embedding = OneClassEmbedding(stages)
    x = list(resnet18(random(2, 3, 64, 64)).values())
    assert embedding(x).shape == (2, 512, 2, 2) and embedding.channels == 512
    convolutions = [
        (m[0].in_channels, m[0].out_channels, m[0].stride) for p in embedding.paths for m in p
    ]
    assert convolutions == [(64, 128, (2, 2)), (128, 256, (2, 2)), (128, 256, (2, 2))]
    assert embedding.group[0].main[0].in_channels == 3 * 256


def test_a_block_without_change_is_the_identity_where_its_branch_is_zero():
    block = ResidualBlock(6, Stage(6, 3, 1, True)).eval()
    nn.init.zeros_(block.main[-1].weight)
    x = random(1, 6, 5, 4)
    assert torch.equal(block(x), x.relu())
    assert not len(block.shortcut)


def test_the_bilinear_shortcut_by_hand():
    """Without the branch a block is the 1 x 1 convolution, enlarged."""
    block = ResidualBlock(3, Stage(2, 2, 1, False), "bilinear").eval()
    nn.init.zeros_(block.main[-1].weight)
    block.shortcut[2].eps = 0.0
    x = random(1, 3, 4, 4)
    mixed = torch.einsum("oi,bihw->bohw", block.shortcut[0].weight[:, :, 0, 0], x)
    large = nn.functional.interpolate(mixed, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(block(x), large.relu())


def test_wrong_taps_and_sizes_are_told(resnet18):
    with pytest.raises(ArgumentError, match="Use size=96"):
        stages_of(resnet18, 100)
    assert stages_of(resnet18, 48, deepest=0)
    one = Backbone("resnet18.tv_in1k", ("layer2",), "random")
    with pytest.raises(ArgumentError, match="two or more"):
        stages_of(one, 64)
    gap = Backbone("resnet18.tv_in1k", ("layer1", "layer3"), "random")
    with pytest.raises(ArgumentError, match="each twice the one before"):
        stages_of(gap, 64)


def test_other_networks_are_refused():
    net = Backbone("mobilenetv2_100.ra_in1k", ("blocks.1", "blocks.2"), "random")
    with pytest.raises(ArgumentError, match="no stage of a ResNet"):
        stages_of(net, 64)


def test_a_trainable_copy_has_the_weights_and_its_own_life(resnet18):
    copied = trainable_copy(resnet18, "train")
    x = random(2, 3, 64, 64)
    torch.testing.assert_close(copied(x)["layer3"], resnet18(x)["layer3"])
    assert all(p.requires_grad for p in copied.parameters())
    assert not any(p.requires_grad for p in resnet18.parameters())
    norm = nn.modules.batchnorm._BatchNorm
    assert all(m.training for m in copied.train().modules() if isinstance(m, norm))
    frozen = trainable_copy(resnet18, "frozen").train()
    assert not any(m.training for m in frozen.modules() if isinstance(m, norm))
    with_momentum(copied, 0.01)
    assert {m.momentum for m in copied.modules() if isinstance(m, norm)} == {0.01}
    assert {m.momentum for m in resnet18.modules() if isinstance(m, norm)} == {0.1}


def test_attention_is_the_identity_at_first_and_the_formula_later():
    attention = SelfAttention(16)
    x = random(2, 16, 3, 4)
    assert torch.equal(attention(x), x)
    nn.init.constant_(attention.gamma, 0.7)
    q, k, v = (f(x).flatten(2) for f in (attention.query, attention.key, attention.value))
    assert q.shape[1] == 2
    weights = torch.einsum("bcn,bcm->bnm", q, k).softmax(-1)
    expected = x + 0.7 * torch.einsum("bnm,bcm->bcn", weights, v).reshape(x.shape)
    torch.testing.assert_close(attention(x), expected)
