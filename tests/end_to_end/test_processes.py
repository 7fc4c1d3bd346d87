"""Real processes: killed and resumed, two at once, mixed precision, what an import costs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

import normscan as ns
from normscan.cli.main import main

SLOW_CHECKPOINT = """
import sys
from normscan.cli import main as cli
from normscan.training import loop

init = loop.Trainer.__init__
def often(self, *args, **kwargs):
    init(self, *args, **{**kwargs, "checkpoint_seconds": 0.0})
loop.Trainer.__init__ = often
save = loop.Trainer._save
def slow(self, *args):
    save(self, *args)
    import time
    time.sleep(0.05)
loop.Trainer._save = slow
sys.exit(cli.main(sys.argv[1:]))
"""

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def normscan(*arguments, **options):
    command = [sys.executable, "-m", "normscan.cli.main", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, **options
    )


def fit(table, out, *more, steps=30):
    options = ("--preset", "tiny", "--steps", steps, "--device", "cpu", "--calibration", "split")
    return ("fit", "ae_dense", "--cohort", table, "--out", out, *options, *more)


def test_a_killed_run_resumes_to_the_same_bits(toy, tmp_path, capsys):
    table, killed, straight = toy(), tmp_path / "killed", tmp_path / "straight"
    command = [sys.executable, "-c", SLOW_CHECKPOINT, *map(str, fit(table, killed))]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 60
    while not (killed / "checkpoint.safetensors").exists() and time.monotonic() < end:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "detector.json").exists()

    assert main([str(a) for a in fit(table, killed)]) == 2
    assert "an unfinished run" in capsys.readouterr().err
    assert main([str(a) for a in fit(table, killed, "--resume")]) == 0
    assert main([str(a) for a in fit(table, straight)]) == 0
    weights = "model.safetensors"
    assert (killed / weights).read_bytes() == (straight / weights).read_bytes()
    first, second = (json.loads((f / "detector.json").read_text()) for f in (killed, straight))
    for name in ("scan_threshold", "pixel_threshold", "sha256", "configuration"):
        assert first[name] == second[name], name
    # Each step stands once in the log, as if nothing had happened.
    steps = [json.loads(line)["step"] for line in (killed / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 31))
    assert not [p.name for p in killed.iterdir() if p.name.startswith(".tmp") or p.name == "cache"]


def leftovers(session):
    """Processes of a session that still run."""
    found = subprocess.run(
        ["ps", "-o", "pid=,stat=", "-s", str(session)], capture_output=True, text=True
    )
    return [line for line in found.stdout.splitlines() if " Z" not in line]


def in_session(*arguments):
    """Run a command in a session of its own; return exit code, output, errors, what is left."""
    command = [sys.executable, "-m", "normscan.cli.main", *map(str, arguments)]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=90)
    finally:
        left = leftovers(process.pid)
        if left:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err, left


def gloo():
    import torch.distributed as dist

    return dist.is_available() and dist.is_gloo_available()


@pytest.mark.skipif(not gloo(), reason="torch was built without the gloo backend")
def test_two_processes_make_one_detector(toy, tmp_path):
    code, out, err, left = in_session(*fit(toy(), tmp_path / "run", "--devices", 2, steps=6))
    assert code == 0, err
    assert not left
    assert out.count("is trained") == 1 and "Traceback" not in err
    detector = ns.load(tmp_path / "run")
    assert detector.training["samples"]["train"] == 48
    steps = [json.loads(t)["step"] for t in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 7))


# Two passes of six steps: the validation loss, before which processes agree, is rare.
EPOCHS = ("--steps", "null", "--epochs", 2)


def torchrun(*arguments, nodes=1, node=0, port=0, script=None):
    """Start an agent of torchrun with its part of two processes, in a session of its own."""
    where = (
        ["--standalone"] if nodes == 1
        else ["--nnodes", nodes, "--node-rank", node, "--master-addr", "127.0.0.1", "--master-port", port]
    )  # fmt: skip
    program = [script] if script else ["-m", "normscan.cli.main"]
    command = ["-m", "torch.distributed.run", *where, "--nproc-per-node", 2 // nodes, *program]
    return subprocess.Popen(
        [sys.executable, *map(str, [*command, *arguments])], env=ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.skipif(not gloo(), reason="torch was built without the gloo backend")
def test_two_killed_processes_resume_to_the_bits_of_two_machines(toy, tmp_path):
    """Started by torchrun: on one machine, killed and resumed; and straight, on two of one each.

    The norms of the network count for themselves in each process, and a checkpoint is the first's.
    """
    table, killed, straight = toy(), tmp_path / "killed", tmp_path / "straight"
    script = tmp_path / "slow.py"
    script.write_text(SLOW_CHECKPOINT)
    run = torchrun(*fit(table, killed, "--devices", 2, *EPOCHS), script=script)
    end = time.monotonic() + 120
    while not (killed / "checkpoint.safetensors").exists() and time.monotonic() < end:
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.005)
    # The workers first: each is in a session of its own, and their agent would notice.
    for process in [*psutil.Process(run.pid).children(recursive=True), run]:
        process.kill()
    run.communicate()
    assert not (killed / "detector.json").exists()

    run = torchrun(*fit(table, killed, "--devices", 2, "--resume", *EPOCHS))
    told = run.communicate(timeout=200)[0]
    assert run.returncode == 0 and told.count("resuming at step") >= 1, told

    port = free_port()
    agents = [
        torchrun(*fit(table, straight, "--nodes", 2, *EPOCHS), nodes=2, node=k, port=port)
        for k in (0, 1)
    ]
    told = [agent.communicate(timeout=200)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], told
    assert told[0].count("is trained") == 1 and told[1].count("is trained") == 0
    weights = "model.safetensors"
    assert (killed / weights).read_bytes() == (straight / weights).read_bytes()
    log = [json.loads(line)["step"] for line in (killed / "log.jsonl").read_text().splitlines()]
    assert log == list(range(1, 13))


@pytest.mark.skipif(not gloo(), reason="torch was built without the gloo backend")
def test_a_process_that_dies_ends_the_other_with_one_message(toy, tmp_path):
    command = fit(toy(), tmp_path / "run", "--devices", 2, steps=1_000_000)
    run = subprocess.Popen(
        [sys.executable, "-m", "normscan.cli.main", *map(str, command)], env=ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 120
    while not (tmp_path / "run/log.jsonl").exists() and time.monotonic() < end:
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.05)
    (second,) = psutil.Process(run.pid).children()
    second.kill()
    try:
        _, err = run.communicate(timeout=60)
    finally:
        left = leftovers(run.pid)
        if left:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 2 and not left
    assert err.count("normscan: error:") == 1 and "Traceback" not in err
    assert "another process of this training ended" in err and "--resume" in err


@pytest.mark.skipif(not gloo(), reason="torch was built without the gloo backend")
def test_two_processes_refuse_together(toy, tmp_path):
    wrong = ("--devices", 2, "--latent", -1)
    code, _, err, left = in_session(*fit(toy(), tmp_path / "run", *wrong, steps=6))
    assert code == 2, err
    assert not left
    assert "latent is -1" in err
    assert not (tmp_path / "run").exists()


def test_mixed_precision_runs_on_the_cpu(toy, tmp_path):
    command = fit(toy(), tmp_path / "run", "--precision", "bf16-mixed", steps=4)
    assert main([str(a) for a in command]) == 0
    state = ns.load(tmp_path / "run").method.state_dict()
    assert {str(v.dtype) for v in state.values() if v.is_floating_point()} == {"torch.float32"}


def test_the_import_is_light():
    code = """
import sys
import normscan
from normscan.cli import main as cli
cli.main(["--help"])
heavy = {"torch", "pandas", "monai", "numpy", "scipy", "timm", "matplotlib", "sklearn", "nibabel"}
print(sorted(heavy & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_console_command(tmp_path):
    help_text = normscan("--help", cwd=tmp_path)
    assert help_text.returncode == 0 and "usage: normscan COMMAND" in help_text.stdout
    wrong = normscan("predict", tmp_path / "none", "scan.nii", "--out", tmp_path / "out")
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr.startswith("normscan: error: ") and wrong.stderr.count("\n") == 1
