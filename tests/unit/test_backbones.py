"""Frozen backbones: the real weights, and clear errors without them."""

from __future__ import annotations

import socket
import time

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from normscan.errors import ArgumentError, WeightsError
from normscan.networks.backbones import Backbone, import_timm, read_weights, weights_from_state

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
    with pytest.raises(ArgumentError, match="1 or 3 channels, not 2"):
        random_net(torch.rand(1, 2, 32, 32))


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


def test_the_hub_offline(monkeypatch):
    timm = import_timm()
    create = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host")
        return create(name, **options)

    def no_connection(*args, **options):
        raise AssertionError("the network was used")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(socket.socket, "connect", no_connection)
    started = time.monotonic()
    with pytest.raises(
        WeightsError, match=r"huggingface.co/timm/resnet18.tv_in1k .* --weights PATH"
    ):
        Backbone(NAME, TAPS, "hub")
    assert time.monotonic() - started < 20


def test_the_hub_is_asked_for_the_tag(monkeypatch, random_net):
    timm = import_timm()
    create, asked = timm.create_model, []

    def hub(name, pretrained=False, **options):
        if pretrained:
            asked.append(name)
            return random_net.network
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", hub)
    loaded = Backbone(NAME, TAPS, "hub")
    assert asked == [NAME]
    assert torch.equal(loaded.network.conv1.weight, random_net.network.conv1.weight)


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
