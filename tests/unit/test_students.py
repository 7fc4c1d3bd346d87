"""Students of frozen teachers: losses and maps by hand, VGG's levels, and the cloner's shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.networks.backbones import Backbone
from normscan.networks.cloner import Cloner
from normscan.registry import card
from normscan.rng import Rng


def build(method: str, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return card(method).create(**card(method).arguments("tiny", **changes))


def batch(n: int = 2, channels: int = 1):
    image = torch.rand(n, channels, 64, 64, generator=torch.Generator().manual_seed(1))
    rng = Rng(list(range(n)))
    return Batch(image, torch.ones(n, 1, 64, 64, dtype=torch.bool), rng, torch.full((n,), 0.5))


@pytest.mark.parametrize("channels", [1, 2])
def test_stfpm_by_hand(channels: int):
    method = build("stfpm", channels=channels).eval()
    x = batch(channels=channels)
    halves = []
    for t, s in zip(
        method.teacher(x.image).values(), method.student(x.image).values(), strict=True
    ):
        t, s = (f / f.square().sum(1, keepdim=True).sqrt() for f in (t, s))
        halves.append(0.5 * (t - s).square().sum(1, keepdim=True))
    terms = method.loss(x, "distil", "student")
    assert list(terms) == ["layer1", "layer2"]
    for value, half in zip(terms.values(), halves, strict=True):
        torch.testing.assert_close(value, half.mean())
    coarse = F.interpolate(halves[1], halves[0].shape[2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(method.maps(x).map, halves[0] * coarse, atol=1e-6, rtol=1e-3)


def test_the_students_weights_and_batch_norms_are_its_own():
    method = build("stfpm")
    method.requires_grad_(False).eval()
    (player,) = method.phases()[0].players
    for module in player.modules:
        module.train()
        module.requires_grad_(True)
    before = {k: v.clone() for k, v in method.named_buffers()}
    sum(method.loss(batch(), "distil", "student").values()).backward()
    for key, p in method.named_parameters():
        assert (p.grad is None) == key.startswith("teacher"), key
    changed = {k.partition(".")[0] for k, v in method.named_buffers() if not v.equal(before[k])}
    assert changed == {"student"}
    first = [next(net.parameters()) for net in (method.teacher, method.student)]
    assert not torch.equal(*first)


def test_the_codes_preset_of_stfpm_descends_on_twice_the_loss():
    """lr and decay of the preset on half the loss walk as the released code does on the whole."""
    options = card("stfpm").preset("code")
    ends = []
    for factor, kwargs in ((1, options), (2, {"lr": 0.4, "weight_decay": 1e-4})):
        p = nn.Parameter(torch.tensor([0.3, -2.0], dtype=torch.float64))
        optimizer = build("stfpm", **kwargs).phases()[0].players[0].optimizer([p])
        for _ in range(4):
            optimizer.zero_grad()
            (factor * 0.1 * p.pow(4).sum()).backward()
            optimizer.step()
        ends.append(p.detach())
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("scored", [1, 2])
def test_mkd_by_hand(scored: int):
    method = build("mkd", scored=scored, mse=0.3).eval()
    x = batch()
    parts = []
    for a, b in zip(method.source(x.image).values(), method.cloner(x.image), strict=True):
        u, v = a.flatten(1), b.flatten(1)
        cosine = 1 - (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1))
        parts.append((cosine, 0.3 * (a - b).square().mean((1, 2, 3))))
    terms = method.loss(x, "distil", "network")
    torch.testing.assert_close(terms["cosine"], sum(c.mean() for c, _ in parts))
    torch.testing.assert_close(terms["error"], sum(e.mean() for _, e in parts))
    found = method.maps(x)
    torch.testing.assert_close(found.score, sum(c + e for c, e in parts[-scored:]).detach())


def test_the_map_of_mkd_is_the_slope_of_its_score():
    method = build("mkd", channels=2).eval().double()
    x = batch(1, 2)
    x.image = x.image.double()
    expected = method.maps(x).map[0, 0, 20, 30]
    slopes = []
    for c in range(2):
        ends = []
        for step in (1e-6, -1e-6):
            moved = x.image.clone()
            moved[0, c, 20, 30] += step
            ends.append(sum(method.terms(moved, 2)).item())
        slopes.append(abs(ends[0] - ends[1]) / 2e-6)
    assert float(expected) == pytest.approx(sum(slopes), rel=1e-3)


def test_smoothgrad_averages_slopes_of_noisy_copies():
    method = build("mkd", samples=2, noise=0.1).eval()
    x = batch()
    found, again = method.maps(x), Rng([0, 1])
    spread = 0.1 * (x.image.amax((1, 2, 3)) - x.image.amin((1, 2, 3))).reshape(-1, 1, 1, 1)
    slopes = [method.gradient(x.image + spread * again.normal(x.image.shape))[1] for _ in "ab"]
    torch.testing.assert_close(found.map, (sum(slopes) / 2).abs().sum(1, keepdim=True))
    assert not found.map.requires_grad
    plain = build("mkd").eval().maps(batch())
    torch.testing.assert_close(found.score, plain.score)
    assert not torch.allclose(found.map, plain.map)


def vgg_state(width: tuple[int, ...]):
    """A VGG's weights under torchvision's names, made with its own recipe."""
    generator = torch.Generator().manual_seed(3)
    state, inputs, number = {}, 3, 0
    for out in width:
        if out:
            shape = (out, inputs, 3, 3)
            scale = (2 / (9 * inputs)) ** 0.5
            state[f"features.{number}.weight"] = scale * torch.randn(shape, generator=generator)
            state[f"features.{number}.bias"] = 0.1 * torch.randn(out, generator=generator)
            inputs, number = out, number + 2
        else:
            number += 1
    return {**state, "classifier.0.weight": torch.zeros(1, 1)}


def test_vgg_loads_torchvisions_names_and_is_tapped_behind_its_pools(tmp_path):
    """VGG-11 up to its third pool, against convolutions written out."""
    state = vgg_state((64, 0, 128, 0, 256, 256, 0))
    torch.save(state, tmp_path / "vgg11.pth")
    taps = ("features.4", "features.9")
    method = build("mkd", backbone="vgg11.tv_in1k", taps=taps, weights=str(tmp_path / "vgg11.pth"))
    x = torch.rand(1, 1, 32, 32)
    h, expected = x.expand(-1, 3, -1, -1), []  # as it is, without ImageNet's statistics
    for number, pool in ((0, True), (3, True), (6, False), (8, True)):
        h = F.conv2d(h, state[f"features.{number}.weight"], state[f"features.{number}.bias"], 1, 1)
        h = F.max_pool2d(h.relu(), 2) if pool else h.relu()
        expected.append(h)
    targets = method.targets(x)
    torch.testing.assert_close(targets[0], expected[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(targets[1], expected[3], atol=1e-5, rtol=1e-4)
    assert [c.shape for c in method.cloner(x)] == [t.shape for t in targets]


def test_the_cloner_of_vgg16_is_the_articles():
    with torch.device("meta"):
        cloner = Cloner(3, [128, 256, 512, 512], [4, 8, 16, 32])
    widths = [
        m.out_channels if isinstance(m, nn.Conv2d) else "M"
        for m in cloner.modules()
        if isinstance(m, nn.Conv2d | nn.MaxPool2d)
    ]
    # Cut after the pools: [16,16,M,16,128,M,16,16,256,M,16,16,512,M,16,16,512,M].
    expected = [16, 16, "M", 16, 128, "M", 16, 16, 256, "M", 16, 16, 512, "M", 16, 16, 512, "M"]
    assert widths == expected
    assert len([m for m in cloner.modules() if isinstance(m, nn.BatchNorm2d)]) == 13 - 5
    assert all(m.bias is None for m in cloner.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("strides", [[1, 2], [4, 4], [4, 16]])
def test_a_cloner_needs_taps_that_halve(strides):
    with pytest.raises(ArgumentError, match="halves the grid"):
        Cloner(3, [8, 8], strides)


def test_backbones_of_sequences_take_their_own_weights(tmp_path):
    """What timm renames when it cuts a network for its features is found again."""
    from normscan.networks.backbones import import_timm

    whole = import_timm().create_model("densenet121").eval()
    torch.save(whole.state_dict(), tmp_path / "dense.pth")
    backbone = Backbone(
        "densenet121", ("features.norm0",), str(tmp_path / "dense.pth"), scaling="none"
    )
    x = torch.rand(1, 3, 32, 32)
    expected = whole.features.norm0(whole.features.conv0(x))
    torch.testing.assert_close(backbone(x)["features.norm0"], expected)
