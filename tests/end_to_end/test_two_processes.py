"""Two processes hold the same state: pools, queues, statistics; and a network that lies in parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from normscan.training.checkpoint import load_state

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo"
)
PROGRAM = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the two processes found, and their folder."""
    out = tmp_path_factory.mktemp("two")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *command, str(PROGRAM), str(out)], capture_output=True, text=True,
        timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "found.json").read_text()), out


def test_pools_and_queues_are_those_of_one_process_that_sees_all_rows(found):
    assert found[0]["pool"] and found[0]["queue"]


@pytest.mark.parametrize("id", ["cyclegan_ad", "squid", "salad", "fcdd", "dra"])
def test_what_a_method_holds_besides_weights_is_resumed_to_the_same_bits(found, id):
    assert found[0][id]


def test_a_parted_network_is_saved_whole_and_equals_one_process(found):
    results, out = found
    assert results["fsdp resumes"]
    states = load_state(out / "states.safetensors")
    first, parted, alone = states["first"], states["parted"], states["alone"]
    for name, value in alone.items():
        assert parted[name].shape == value.shape
        torch.testing.assert_close(parted[name], value, rtol=0, atol=2e-5)
        moved = float((value - first[name]).abs().max())
        assert (moved > 1e-3) != name.startswith("frozen"), name  # it learnt far more than that


@pytest.mark.parametrize("id", ["padim", "image_statistics", "mean_image"])
def test_sums_of_two_processes_are_those_of_one(found, id):
    states = load_state(found[1] / "states.safetensors")
    together = {k.split("/")[2]: v for k, v in states.items() if k.startswith(f"{id}/together/")}
    assert together
    for name, value in together.items():
        one = states[f"{id}/one/{name}"].double()
        apart = (value.double() - one).abs().max() / one.abs().max()
        assert float(apart) < 1e-6, name
        assert not torch.equal(states[f"{id}/share 0/{name}"], states[f"{id}/one/{name}"])


@pytest.mark.parametrize("id", ["patchcore", "anomaly_dino"])
def test_a_bank_of_two_processes_holds_what_both_chose(found, id):
    states = load_state(found[1] / "states.safetensors")
    bank, one, first, second = (
        states[f"{id}/{who}/bank.vectors"] for who in ("together", "one", "share 0", "share 1")
    )
    assert len(bank) == len(one)
    torch.testing.assert_close(bank, torch.cat([first, second]), rtol=0, atol=0)
