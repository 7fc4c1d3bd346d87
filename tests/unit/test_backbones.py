"""Frozen backbones: the real weights, and clear errors without them."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from normscan.errors import ArgumentError, WeightsError
from normscan.networks.backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    read_weights,
    weights_from_state,
)

NAME, TAPS = "resnet18.tv_in1k", ("layer2", "layer3")
FILE = "resnet18_imagenet1k_v1_bnfolded_conv1_to_layer3.pth"


@pytest.fixture(scope="module")
def real(shared):
    path = shared / "weights" / FILE
    if not path.is_file():
        pytest.skip(f"{FILE} is not on this machine")
    return path


@pytest.fixture(scope="module")
def random_net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Backbone(NAME, TAPS, "random")


def resnet18(x, state):
    """ResNet-18 up to its third stage, written with functions from the article."""

    def conv_norm(x, conv, norm, stride, padding):
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=padding)
        parts = [state[f"{norm}.{p}"] for p in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts)

    x = F.max_pool2d(F.relu(conv_norm(x, "conv1", "bn1", 2, 3)), 3, 2, 1)
    out = {}
    for stage in (1, 2, 3):
        for block in (0, 1):
            stride, at = (2 if stage > 1 and block == 0 else 1), f"layer{stage}.{block}"
            h = F.relu(conv_norm(x, f"{at}.conv1", f"{at}.bn1", stride, 1))
            h = conv_norm(h, f"{at}.conv2", f"{at}.bn2", 1, 1)
            if stride == 2:
                x = conv_norm(x, f"{at}.downsample.0", f"{at}.downsample.1", 2, 0)
            x = F.relu(x + h)
        out[f"layer{stage}"] = x
    return out


def test_the_real_weights_give_the_networks_features(real):
    backbone = Backbone(NAME, TAPS, str(real))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    state = torch.load(real, weights_only=True)
    mean, std = (
        torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad():
        expected = resnet18((x - mean) / std, state)
        got = backbone(x)
    assert list(got) == list(TAPS)
    for tap in TAPS:
        torch.testing.assert_close(got[tap], expected[tap], atol=1e-4, rtol=1e-4)
        assert got[tap].std() > 0.1


def test_shapes_channels_and_strides(random_net):
    assert random_net.channels == [128, 256] and random_net.strides == [8, 16]
    features = random_net(torch.rand(1, 3, 64, 96))
    assert [f.shape for f in features.values()] == [(1, 128, 8, 12), (1, 256, 4, 6)]


def test_grey_is_repeated_and_two_channels_are_refused(random_net):
    grey = torch.rand(1, 1, 32, 32)
    a, b = random_net(grey), random_net(grey.repeat(1, 3, 1, 1))
    assert all(torch.equal(a[t], b[t]) for t in TAPS)
    with pytest.raises(ArgumentError, match="1 or 3 channels, not 2.*channels=2"):
        random_net(torch.rand(1, 2, 32, 32))


@pytest.mark.parametrize("channels", [2, 4])
def test_other_numbers_of_channels_repeat_the_filters(real, channels):
    """The same grey image in every channel gives what it gives in three, but for the scaling."""
    grey = torch.rand(1, 1, 32, 32)
    options = {"scaling": "none"}
    wide = Backbone(NAME, TAPS, str(real), channels=channels, **options)
    three = Backbone(NAME, TAPS, str(real), **options)
    weight, given = wide.network.conv1.weight, three.network.conv1.weight
    assert weight.shape[1] == channels
    cycle = [k % 3 for k in range(channels)]
    torch.testing.assert_close(weight, given[:, cycle] * 3 / channels)
    assert wide(grey.repeat(1, channels, 1, 1))["layer3"].shape == (1, 256, 2, 2)


def test_a_trainable_one_learns_and_can_keep_its_batch_norm():
    for mode in ("frozen", "train"):
        net = Backbone(NAME, ("layer1",), "random", trainable=True, batch_norm=mode).train()
        assert all(p.requires_grad for p in net.parameters()) and net.network.layer1.training
        norm = net.network.bn1
        assert norm.training == (mode == "train")
        before = norm.running_mean.clone()
        net(torch.rand(2, 3, 32, 32))["layer1"].sum().backward()
        assert torch.equal(norm.running_mean, before) == (mode == "frozen")
        assert net.network.conv1.weight.grad.abs().sum() > 0
        assert not net.eval().network.layer1.training


def test_scalings():
    x = torch.rand(1, 3, 32, 32)
    nets = {}
    for scaling in ("imagenet", "centred", "none"):
        torch.manual_seed(0)
        nets[scaling] = Backbone(NAME, ("act1",), "random", scaling=scaling)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    plain = nets["none"]
    for scaling, scaled in (("imagenet", (x - mean) / std), ("centred", 2 * x - 1)):
        torch.testing.assert_close(nets[scaling](x)["act1"], plain(scaled)["act1"])


def test_tokens_of_a_vision_transformer():
    """Against the blocks called one by one; sides are cut to whole patches."""
    backbone = Backbone("vit_tiny_patch16_224", ("blocks.1", "blocks.2"), "random", scaling="none")
    assert backbone.channels == [192, 192] and backbone.strides == [16, 16]
    x = torch.rand(2, 1, 50, 64)
    vit = backbone.network
    assert len(vit.blocks) == 3 and backbone.prefix == 1
    with torch.no_grad():
        cut = x[..., :48, :].expand(-1, 3, -1, -1)
        t = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(cut))))
        for i, block in enumerate(vit.blocks):
            t = block(t)
            if i:
                features, prefix = backbone.tokens(x)[f"blocks.{i}"]
                torch.testing.assert_close(prefix, t[:, :1])
                expected = t[:, 1:].reshape(2, 3, 4, 192).permute(0, 3, 1, 2)
                torch.testing.assert_close(features, expected)


def test_normalised_tokens_with_registers():
    backbone = Backbone("vit_small_patch14_reg4_dinov2.lvd142m", ("norm",), "random")
    features, prefix = backbone.tokens(torch.rand(1, 1, 28, 42))["norm"]
    assert features.shape == (1, 384, 2, 3) and prefix.shape == (1, 5, 384)
    torch.testing.assert_close(features.mean(1), torch.zeros(1, 2, 3), atol=1e-4, rtol=0)
    with pytest.raises(ArgumentError, match=r"no stage 'block.3'; it has blocks\.0"):
        Backbone("vit_tiny_patch16_224", ("block.3",), "random")


def test_transformers_of_the_other_library():
    name = "hf:facebook/dinov2-with-registers-small"
    backbone = Backbone(name, ("blocks.0",), "random")
    assert backbone.strides == [14] and backbone.prefix == 5
    assert len(backbone.network.encoder.layer) == 1
    x = torch.rand(1, 3, 28, 42)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        states = backbone.network((x - mean) / std, output_hidden_states=True).hidden_states
    expected = states[1][:, 5:].reshape(1, 2, 3, 384).permute(0, 3, 1, 2)
    torch.testing.assert_close(backbone(x)["blocks.0"], expected)
    with pytest.raises(ArgumentError, match="Did you mean"):
        Backbone("hf:facebook/dinov2-smal", ("norm",), "random")


@pytest.mark.parametrize("older", [False, True])
def test_a_file_that_the_other_library_saved(tmp_path, older):
    """By the names that its ``save_pretrained`` writes, and by those of older releases."""
    given = Backbone("hf:facebook/dinov2-small", ("blocks.0",), "random").network
    torch.nn.init.normal_(given.encoder.layer[0].layer_scale1.lambda1)  # it is 1 in each new one
    given.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    if older:
        state = load_file(file)
        names = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
        for old, new in names.items():
            state = {
                k.replace(f"attention.{new}.", f"attention.attention.{old}."): v
                for k, v in state.items()
            }
        state = {k.replace("attention.o_proj.", "attention.output.dense."): v
                 for k, v in state.items()}  # fmt: skip
        assert any("attention.attention.query" in k for k in state)
        save_file(state, file)
    loaded = Backbone("hf:facebook/dinov2-small", ("blocks.0",), str(file)).network
    for (name, one), other in zip(
        given.state_dict().items(), loaded.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_a_copy_has_its_own_weights():
    first = Backbone(NAME, ("act1",), "random", trainable=True)
    second = copy.deepcopy(first)
    torch.nn.init.zeros_(second.network.conv1.weight)
    x = torch.rand(1, 3, 32, 32)
    assert first(x)["act1"].std() > 0 and second(x)["act1"].std() == 0


def test_it_is_frozen_and_stays_in_evaluation_mode(random_net):
    assert not any(p.requires_grad for p in random_net.parameters())
    owner = nn.Sequential(random_net).train()
    assert owner.training and not any(m.training for m in random_net.modules())
    before = {k: v.clone() for k, v in random_net.state_dict().items()}
    random_net(torch.rand(2, 3, 32, 32))
    assert all(torch.equal(v, before[k]) for k, v in random_net.state_dict().items())


def test_nothing_behind_the_last_tap_is_kept(random_net):
    assert not any("layer4" in k or "fc" in k for k in random_net.state_dict())


def test_missing_file():
    with pytest.raises(WeightsError, match="no weights file nowhere.pth"):
        Backbone(NAME, TAPS, "nowhere.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_garbage_file(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"these are no weights" * 50)
    with pytest.raises(WeightsError, match="can't be read as a state dict"):
        Backbone(NAME, TAPS, str(path))


def test_a_file_that_runs_code_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"x": time.sleep}, path)
    with pytest.raises(WeightsError, match="can't be read as a state dict"):
        read_weights(path, NAME)


@pytest.mark.parametrize("fault", ["missing", "shape", "not a state dict"])
def test_mismatched_file(tmp_path, random_net, fault):
    state = {k: v.clone() for k, v in random_net.network.state_dict().items()}
    if fault == "missing":
        state = {k: v for k, v in state.items() if not k.startswith("layer3.1")}
    elif fault == "shape":
        state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    else:
        state = {"step": torch.tensor(3)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"don't fit resnet18.tv_in1k up to layer3: \d+ tensors"):
        Backbone(NAME, TAPS, str(tmp_path / "w.pth"))


@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_from_a_file(tmp_path, random_net, wrapped):
    state = random_net.network.state_dict()
    if wrapped:
        torch.save({"state_dict": state}, tmp_path / "w.pth")
        loaded = Backbone(NAME, TAPS, str(tmp_path / "w.pth"))
    else:
        save_file(state, tmp_path / "w.safetensors")
        loaded = Backbone(NAME, TAPS, str(tmp_path / "w.safetensors"))
    got = loaded.network.state_dict()
    assert all(torch.equal(got[k], v) for k, v in state.items())


def test_a_saved_detector_brings_its_own_weights():
    with weights_from_state():
        Backbone(NAME, TAPS, "nowhere.pth")
    with pytest.raises(WeightsError):
        Backbone(NAME, TAPS, "nowhere.pth")


def test_unknown_names():
    with pytest.raises(ArgumentError, match="Did you mean 'resnet18'"):
        Backbone("resnet188.tv_in1k", TAPS, "random")
    with pytest.raises(ArgumentError, match="no stage 'layer9'; it has act1, layer1"):
        Backbone(NAME, ("layer9",), "random")
