"""Checkpoints: a round trip of everything in them, no pickle, clear errors."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from torch import nn

from normscan.errors import OutputError, ScanError
from normscan.training.checkpoint import cpu_state, load_state, pack, save_state, unpack


def equal(a, b):
    """Compare nested values; a tuple comes back as a list."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def trained(steps, state=None):
    """A small network after some updates of Adam, and its optimiser."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, amsgrad=True, betas=(0.5, 0.999))
    if state:
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(8, 4, generator=generator) for _ in range(10)]
    for x in batches[state["step"] if state else 0 : steps]:
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return net, optimizer


STATE = {
    "step": 3,
    "name": "a/b",
    "loss": 0.1 + 0.2,
    "none": None,
    "flag": True,
    "nested": {0: {"x": torch.arange(5), "y": [1, torch.tensor(2.5), ("z", None)]}, 1: {}},
    "empty": [],
    "half": torch.rand(2, 3).half(),
    "bits": torch.tensor([True, False]),
    "double": torch.rand(3, dtype=torch.float64),
    "nothing": torch.zeros(0, 12),
    "inf": float("inf"),
}


def test_pack_gives_json_and_tensors():
    tensors = {}
    packed = pack(STATE, tensors)
    assert equal(STATE, unpack(json.loads(json.dumps(packed)), tensors))
    assert len(tensors) == 6


def test_file_round_trip(tmp_path):
    save_state(tmp_path / "state.safetensors", STATE)
    assert equal(STATE, load_state(tmp_path / "state.safetensors"))
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_state_without_tensors(tmp_path):
    save_state(tmp_path / "state.safetensors", {"step": 1})
    assert load_state(tmp_path / "state.safetensors") == {"step": 1}


def test_keys_that_look_like_the_packing():
    value = {"tensor": "x", "items": [1, 2], "deep": {"tensor": torch.ones(2)}}
    tensors = {}
    assert equal(value, unpack(pack(value, tensors), tensors))


def test_memory_that_is_shared_or_not_contiguous(tmp_path):
    x = torch.arange(6.0).reshape(2, 3)
    state = {"a": x, "b": x, "part": x[:, 1], "turned": x.T}
    save_state(tmp_path / "state.safetensors", state)
    assert equal(state, load_state(tmp_path / "state.safetensors"))


def test_training_goes_on_as_if_never_interrupted(tmp_path):
    net, optimizer = trained(4)
    state = {"step": 4, "net": cpu_state(net), "optimizer": optimizer.state_dict()}
    save_state(tmp_path / "state.safetensors", state)
    resumed, _ = trained(10, load_state(tmp_path / "state.safetensors"))
    straight, _ = trained(10)
    assert equal(straight.state_dict(), resumed.state_dict())
    assert not equal(net.state_dict(), resumed.state_dict())


def test_cpu_state_is_a_copy():
    net = nn.Linear(2, 2)
    state = cpu_state(net)
    before = state["weight"].clone()
    with torch.no_grad():
        net.weight.add_(1)
    assert torch.equal(state["weight"], before)


def test_there_is_no_pickle_in_the_file(tmp_path):
    path = tmp_path / "state.safetensors"
    save_state(path, STATE)
    raw = path.read_bytes()
    (n,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + n])
    stored = {k: v for k, v in header.items() if k != "__metadata__"}
    assert len(stored) == 6 and set(header["__metadata__"]) == {"state"}
    # All behind the header is the tensors, bit by bit.
    end = max(v["data_offsets"][1] for v in stored.values())
    assert len(raw) == 8 + n + end
    assert stored["/double"]["dtype"] == "F64"


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "foreign", "bad text"])
def test_a_damaged_file_is_named(tmp_path, damage):
    from safetensors.torch import save_file

    path = tmp_path / "state.safetensors"
    save_state(path, STATE)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "garbage":
        path.write_bytes(b"\xff" * 100)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        save_file({"x": torch.ones(2)}, path)
    else:
        save_file(
            {"x": torch.ones(2)}, path, metadata={"state": '{"items": [["a", {"tensor": "y"}]]}'}
        )
    with pytest.raises(ScanError, match=r"state\.safetensors is no checkpoint .* damaged"):
        load_state(path)


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "state.safetensors"
    save_state(path, {"step": 1})
    with pytest.raises(TypeError):
        save_state(path, {"step": object()})
    assert load_state(path) == {"step": 1}


def test_a_checkpoint_has_the_rights_of_any_file(tmp_path):
    (tmp_path / "any").touch()
    save_state(tmp_path / "state", STATE)
    assert (tmp_path / "state").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match="free space"):
            save_state(tmp_path / "checkpoint.safetensors", {"weights": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any(tmp_path.iterdir())
