"""Signatures of detectors: minisign's own, both ways, and whatever was changed is refused."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess

import pytest

import normscan as ns
from normscan.cli.main import main
from normscan.errors import ArgumentError, OutputError
from normscan.io.minisign import PublicKey, make_key, sign, verify
from normscan.node.config import Config

MINISIGN = shutil.which("minisign")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name in ("a", "b"):
        make_key(folder / f"{name}.key")
    return folder


@pytest.fixture(scope="module")
def signed(toy, keys, tmp_path_factory):
    cohort = ns.Cohort.read(toy(2, 1))
    healthy = [row.scan for part in ("train", "val") for row in cohort.part(part)]
    cohort = cohort.select([row.scan in healthy[-10:] for row in cohort])
    out = tmp_path_factory.mktemp("signed") / "run"
    options = {"preset": "tiny", "size": 32, "calibration": "split", "fpr": 0.2}
    ns.create("mean_image", **options).fit(cohort, out)
    assert main(["sign", str(out), "--key", str(keys / "a.key"), "--comment", "release 3"]) == 0
    return out


@pytest.fixture
def run(signed, tmp_path):
    return shutil.copytree(signed, tmp_path / "run")


# ---------------------------------------------------------------- the format


@pytest.mark.skipif(MINISIGN is None, reason="minisign isn't installed")
def test_minisign_verifies_what_is_signed_here(run, keys):
    command = [MINISIGN, "-V", "-H", "-p", keys / "a.key.pub", "-m", run / "SHA256SUMS"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "release 3" in told
    with (run / "SHA256SUMS").open("a") as file:
        file.write("\n")
    assert subprocess.run(command, capture_output=True).returncode != 0


@pytest.mark.skipif(MINISIGN is None, reason="minisign isn't installed")
def test_what_minisign_signs_is_verified_here(tmp_path):
    public, secret, file = tmp_path / "k.pub", tmp_path / "k.key", tmp_path / "file"
    file.write_bytes(os.urandom(5000))
    made = [MINISIGN, "-G", "-W", "-p", public, "-s", secret]
    subprocess.run(made, check=True, capture_output=True)
    told = [MINISIGN, "-S", "-s", secret, "-t", "by minisign", "-m", file]
    subprocess.run(told, check=True, capture_output=True)
    assert verify(file, [PublicKey.read(public)]) == "by minisign"
    sign(file, secret, "with its key")
    assert verify(file, [PublicKey.read(public)]) == "with its key"
    subprocess.run([MINISIGN, "-V", "-p", public, "-m", file], check=True, capture_output=True)


def test_sha256sum_reads_the_list(run):
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=run, check=True)


def test_a_key_is_made_once_and_for_oneself(keys):
    assert stat.S_IMODE((keys / "a.key").stat().st_mode) == 0o600
    with pytest.raises(OutputError, match="is there already"):
        make_key(keys / "a.key")


# ---------------------------------------------------------------- what is refused


def test_a_signed_detector_is_loaded_and_others_arent(run, keys, monkeypatch, capsys, tmp_path):
    assert main(["verify", str(run), "--key", str(keys / "a.key.pub")]) == 0
    assert "release 3" in capsys.readouterr().out
    monkeypatch.setenv("NORMSCAN_TRUSTED", str(keys))
    ns.load(run, "cpu")
    monkeypatch.setenv("NORMSCAN_TRUSTED", str(keys / "b.key.pub"))
    for load in (lambda: ns.load(run, "cpu"), lambda: ns.load(run, "cpu", trusted=None)):
        with pytest.raises(OutputError, match="signed by another key"):
            load()
    assert main(["check", str(run), "x.npy"]) == 2
    assert "signed by another key" in capsys.readouterr().err
    ns.load(run, "cpu", trusted=[keys / "a.key.pub"])
    (run / "SHA256SUMS").unlink()
    with pytest.raises(OutputError, match=r"isn't signed \(SHA256SUMS is missing\)"):
        ns.load(run, "cpu", trusted=[keys])
    monkeypatch.setenv("NORMSCAN_TRUSTED", str(tmp_path))
    with pytest.raises(ArgumentError, match=r"holds no \.pub file"):
        ns.load(run, "cpu")
    monkeypatch.delenv("NORMSCAN_TRUSTED")
    ns.load(run, "cpu")


def change(path, new=b"\n"):
    path.write_bytes(path.read_bytes() + new)


CHANGES = {
    "detector.json": lambda run: change(run / "detector.json"),
    "weights": lambda run: change(run / "model.safetensors"),
    "card": lambda run: change(run / "card.md"),
    "list": lambda run: change(run / "SHA256SUMS"),
    "a file more": lambda run: shutil.copy(run / "model.safetensors", run / "places.safetensors"),
    "a file less": lambda run: (run / "card.md").unlink(),
    "comment": lambda run: (run / "SHA256SUMS.minisig").write_text(
        (run / "SHA256SUMS.minisig").read_text().replace("release 3", "release 4")
    ),
    "no signature": lambda run: (run / "SHA256SUMS.minisig").unlink(),
    "no signature at all": lambda run: (run / "SHA256SUMS.minisig").write_text("x"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_was_changed_is_refused(run, keys, name):
    CHANGES[name](run)
    with pytest.raises((OutputError, ArgumentError)):
        ns.load(run, "cpu", trusted=[keys / "a.key.pub"])


def test_the_names_of_scans_may_stay_at_home(run, keys):
    """``division.csv`` alone may be missing; another one isn't taken for it."""
    assert "division.csv" in (run / "SHA256SUMS").read_text()
    (run / "division.csv").unlink()
    ns.load(run, "cpu", trusted=[keys])
    (run / "division.csv").write_text("x\n")
    with pytest.raises(OutputError, match=r"division\.csv: isn't what was signed"):
        ns.load(run, "cpu", trusted=[keys])


def test_a_file_is_signed_itself(tmp_path, keys):
    (tmp_path / "a.onnx").write_bytes(b"graph")
    assert main(["sign", str(tmp_path / "a.onnx"), "--key", str(keys / "b.key")]) == 0
    assert main(["verify", str(tmp_path / "a.onnx"), "--key", str(keys / "b.key.pub")]) == 0
    change(tmp_path / "a.onnx")
    with pytest.raises(OutputError, match="isn't what was signed"):
        ns.load(tmp_path / "a.onnx", trusted=[keys / "b.key.pub"])


def test_keys_that_are_none(tmp_path, run):
    (tmp_path / "a.pub").write_text("untrusted comment: x\nAAAA\n")
    (tmp_path / "b.pub").write_text("hello")
    for name in ("a.pub", "b.pub", "c.pub"):
        assert main(["verify", str(run), "--key", str(tmp_path / name)]) == 2
        assert main(["sign", str(run), "--key", str(tmp_path / name)]) == 2
    assert main(["verify", str(tmp_path / "none"), "--key", str(tmp_path / "a.pub")]) == 2


def test_a_node_says_whom_it_trusts(tmp_path, keys):
    text = 'folder = "state"\ntrusted = ["keys/a.pub"]\n[[rules]]\nname = "r"\ndetector = "run"\n'
    (tmp_path / "node.toml").write_text(text)
    assert Config.read(tmp_path / "node.toml").trusted == [tmp_path / "keys" / "a.pub"]
