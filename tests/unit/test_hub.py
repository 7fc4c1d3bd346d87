"""A detector to a hub and back, against a server on this machine that the hub's own library talks to."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard, constants
from safetensors.numpy import load_file
from tests.support.hub import hub

import normscan as ns
from normscan.cli.main import main
from normscan.cohort import Cohort
from normscan.detector.storage import bounds
from normscan.errors import ArgumentError, OutputError
from normscan.export import pull
from normscan.io.hub import Place

REPO = "clinic/brains"


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    """A run with an evaluation; its scans are named after people."""
    folder = tmp_path_factory.mktemp("hub")
    table = pd.read_csv(toy(2), dtype=str, keep_default_na=False)
    table = table[table["split"] != "extra"]
    table["scan"] = [f"ZZSCAN{i}" for i in range(len(table))]
    table["subject"] = [f"ZZSUBJECT{i}" for i in range(len(table))]
    for column in ("path_c0", "path", "mask"):
        if column in table:
            table[column] = [str(toy(2).parent / p) if p else "" for p in table[column]]
    table.to_csv(folder / "cohort.csv", index=False)
    cohort, run = str(folder / "cohort.csv"), str(folder / "run")
    assert main(["fit", "mean_image", "--cohort", cohort, "--out", run, "--calibration", "split",
                 "--reduction", "max+place"]) == 0  # fmt: skip
    assert main(["evaluate", run, "--cohort", cohort, "--baselines", "no"]) == 0
    return Path(run)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The hub, as the library finds it by its own settings; nothing is taken from the user's cache."""
    with hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_TOKEN", served.token)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        yield served


def test_there_and_back(server, run, tmp_path, capsys):
    assert main(["push", str(run), REPO]) == 0
    files = server.repos[REPO].files("main")[1]
    sent = {"README.md", "card.md", "detector.json", "model.safetensors", "places.safetensors"}
    assert set(files) == sent | {".gitattributes"}
    assert server.repos[REPO].private
    assert main(["pull", REPO, "--out", str(tmp_path / "there" / "run")]) == 0
    assert "next: normscan predict" in capsys.readouterr().out
    ours, theirs = load_file(run / "model.safetensors"), tmp_path / "there" / "run"
    assert all(
        np.array_equal(v, ours[k]) for k, v in load_file(theirs / "model.safetensors").items()
    )
    assert {p.name for p in theirs.iterdir()} == sent - {"README.md"}
    image = np.random.default_rng(0).random((44, 37), np.float32)
    found = [ns.load(f, "cpu").predict(image, force=True) for f in (run, theirs, f"hf:{REPO}")]
    assert len({(f.score, f.p_value, f.threshold) for f in found}) == 1


def test_the_page_is_read_by_the_library(server, run):
    """What stands in front is what the hub's own reader and YAML make of it."""
    main(["push", str(run), REPO, "--licence", "cc-by-4.0", "--dataset", "phantom"])
    text = server.repos[REPO].files("main")[1]["README.md"].decode()
    data = ModelCard(text).data
    assert (data.license, data.library_name) == ("cc-by-4.0", "normscan")
    assert data.pipeline_tag == "image-segmentation" and "mean_image" in data.tags
    front = yaml.safe_load(text.split("---")[1])
    results = json.loads((run / "evaluation" / "results.json").read_text())["metrics"]
    told = {e.metric_name: e.metric_value for e in data.eval_results}
    assert told["Image AUROC"] == pytest.approx(results["image_auroc"]["value"], abs=1e-4)
    assert "Best Dice" not in told and "roc_auc" in front["metrics"]
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == "phantom"
    assert "Not for diagnosis" in text and f"normscan pull {REPO}" in text


def test_figures_of_another_detector_stay_behind(server, run, toy, tmp_path):
    other = tmp_path / "other"
    command = ["fit", "image_statistics", "--cohort", str(toy(2)), "--out", str(other)]
    assert main([*command, "--calibration", "split"]) == 0
    (other / "evaluation").mkdir()
    said = (run / "evaluation" / "results.json").read_bytes()
    (other / "evaluation" / "results.json").write_bytes(said)
    assert main(["push", str(other), REPO]) == 0
    text = server.repos[REPO].files("main")[1]["README.md"].decode()
    assert "metrics" not in yaml.safe_load(text.split("---")[1])
    assert yaml.safe_load(text.split("---")[1])["license"] == "other"


def test_no_name_of_a_scan_travels_unless_asked_for(server, run):
    main(["push", str(run), REPO])
    for name, content in server.repos[REPO].files("main")[1].items():
        assert b"ZZS" not in content, name
    about = json.loads(server.repos[REPO].files("main")[1]["detector.json"])
    assert about["gate"]["nearest"]["names"][0].startswith("scan-")
    main(["push", str(run), REPO, "--keep-names"])
    assert b"ZZSCAN" in server.repos[REPO].files("main")[1]["division.csv"]
    main(["push", str(run), REPO, "--gate", "no"])
    files = server.repos[REPO].files("main")[1]
    assert "division.csv" not in files, "what an earlier push sent is taken back"
    assert json.loads(files["detector.json"])["gate"] is None


def test_a_signature_travels_with_what_it_signed(server, run, tmp_path, monkeypatch, capsys):
    """The list of scans may stay at home; without the gate it is another detector."""
    key, names = tmp_path / "k", {"SHA256SUMS", "SHA256SUMS.minisig"}
    signed = shutil.copytree(run, tmp_path / "signed")
    assert main(["sign", str(signed), "--key", str(key), "--make-key", "yes"]) == 0
    monkeypatch.setenv("NORMSCAN_TRUSTED", f"{key}.pub")
    assert main(["push", str(signed), REPO]) == 0
    assert names <= set(server.repos[REPO].files("main")[1])
    assert main(["pull", REPO, "--out", str(tmp_path / "pulled")]) == 0
    assert ns.load(f"hf:{REPO}", "cpu").card.id == "mean_image"
    assert main(["push", str(signed), REPO, "--gate", "no"]) == 0
    assert not names & set(server.repos[REPO].files("main")[1])
    assert main(["pull", REPO, "--out", str(tmp_path / "refused")]) == 2
    assert "isn't signed" in capsys.readouterr().err and not (tmp_path / "refused").exists()


def test_names_that_a_run_kept_are_left_behind(server, run, tmp_path, capsys):
    """Where the list that tells them was removed, nothing is sent."""
    kept = tmp_path / "kept"
    command = ["fit", "mean_image", "--cohort", str(run.parent / "cohort.csv"), "--out", str(kept)]
    assert main([*command, "--calibration", "split", "--keep-names"]) == 0
    assert b"ZZSCAN" in (kept / "detector.json").read_bytes()
    assert main(["push", str(kept), REPO]) == 0
    for name, content in server.repos[REPO].files("main")[1].items():
        assert b"ZZS" not in content, name
    (kept / "division.csv").unlink()
    server.repos.clear()
    assert main(["push", str(kept), REPO]) == 2
    assert "was fitted with --keep-names" in capsys.readouterr().err and not server.repos
    pulled = tmp_path / "pulled"
    assert main(["push", str(run), REPO]) == 0 and pull(REPO, pulled, 10**9)
    assert main(["push", str(pulled), f"{REPO}-again"]) == 0, "pseudonyms are no names"


def test_a_branch_and_a_commit(server, run, toy, tmp_path):
    main(["push", str(run), REPO])
    first = server.repos[REPO].branches["main"]
    (other := ns.create("image_statistics", calibration="split")).fit(Cohort.read(toy(2)))
    other.save(tmp_path / "other")
    assert main(["push", str(tmp_path / "other"), f"{REPO}@second"]) == 0
    assert ns.load(f"hf:{REPO}", "cpu").card.id == "mean_image"
    assert ns.load(f"hf:{REPO}@second", "cpu").card.id == "image_statistics"
    assert main(["push", str(tmp_path / "other"), REPO]) == 0
    assert ns.load(f"hf:{REPO}", "cpu").card.id == "image_statistics"
    assert pull(f"{REPO}@{first}", tmp_path / "old", 10**9).name == "old"
    assert ns.load(tmp_path / "old", "cpu").card.id == "mean_image"
    with pytest.raises(OutputError, match="no such revision"):
        pull(f"{REPO}@nowhere", tmp_path / "none", 10**9)


def test_a_transfer_that_is_cut_goes_on(server, run, tmp_path):
    main(["push", str(run), REPO])
    server.cuts = 2
    pull(REPO, tmp_path / "run", 10**9)
    assert server.fetched.count("model.safetensors") == 3
    assert load_file(tmp_path / "run" / "model.safetensors")


def test_a_transfer_that_fails_leaves_nothing(server, run, tmp_path, capsys):
    server.cuts = 100
    assert main(["push", str(run), REPO]) == 2
    assert "transfer failed" in capsys.readouterr().err
    assert set(server.repos[REPO].files("main")[1]) == {".gitattributes"}
    server.cuts = 0
    assert main(["push", str(run), REPO]) == 0
    server.cuts = 100
    assert main(["pull", REPO, "--out", str(tmp_path / "out" / "run")]) == 2
    assert "transfer failed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    server.cuts = 0
    assert main(["pull", REPO, "--out", str(tmp_path / "out" / "run")]) == 0


@pytest.mark.parametrize(
    "name", ["model.pkl", "pytorch_model.bin", "sub/run.py", "weights.PT", "x"]
)
def test_what_could_run_is_refused_unread(server, run, tmp_path, name):
    main(["push", str(run), REPO])
    server.repos[REPO].files("main")[1][name] = b"\x80\x04."
    server.fetched.clear()
    with pytest.raises(OutputError, match="no file of a detector"):
        pull(REPO, tmp_path / "run", 10**9)
    assert not server.fetched and not (tmp_path / "run").exists()


def test_pictures_and_licences_are_passed_over(server, run, tmp_path):
    main(["push", str(run), REPO])
    more = {"LICENSE": b"mine", "docs/map.png": b"\x89PNG"}
    server.repos[REPO].files("main")[1].update(more)
    pull(REPO, tmp_path / "run", 10**9)
    assert "LICENSE" not in {p.name for p in (tmp_path / "run").iterdir()}


def test_sizes_are_bounded_before_anything_is_fetched(server, run, tmp_path):
    main(["push", str(run), REPO])
    server.fetched.clear()
    with pytest.raises(OutputError, match=r"model.safetensors has 0 MB; at most 0 MB"):
        pull(REPO, tmp_path / "run", 100)
    assert not server.fetched and bounds()["detector.json"] < 10**9


def test_a_detector_that_is_damaged_is_refused(server, run, tmp_path):
    main(["push", str(run), REPO])
    files = dict(server.repos[REPO].files("main")[1])
    weights = files["model.safetensors"]
    server.repos[REPO].commit("main", {**files, "model.safetensors": weights[:-1] + b"x"})
    with pytest.raises(OutputError, match="not the file that"):
        pull(REPO, tmp_path / "run", 10**9)
    del files["detector.json"]
    server.repos[REPO].commit("main", files)
    with pytest.raises(OutputError, match=r"detector.json is missing"):
        pull(REPO, tmp_path / "run", 10**9)
    assert not list(tmp_path.glob("*run*"))


def test_a_folder_that_is_there_stays(server, run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        pull(REPO, tmp_path / "run", 10**9)
    assert not server.asked


def test_who_may_not_is_told(server, run, tmp_path, monkeypatch, capsys):
    main(["push", str(run), REPO])
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(["push", str(run), REPO]) == 2
    assert "Log in with `hf auth login`" in capsys.readouterr().err
    with pytest.raises(OutputError, match="or it is private"):
        pull(REPO, tmp_path / "run", 10**9)
    with pytest.raises(OutputError, match="no such repository"):
        pull("clinic/nothing", tmp_path / "run", 10**9)


def test_a_command_wants_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", f"hf:{REPO}", "scan.npy"]) == 2
    assert f"normscan pull {REPO} --out" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["brains", "a/b/c", "../b", "a b/c", "https://x/y", "/"])
def test_a_name_of_no_repository(text):
    assert Place.of("hf:a/b@v1") == Place("a/b", "v1")
    with pytest.raises(ArgumentError, match="owner/name"):
        Place.of(text)


def test_what_was_fetched_once_needs_no_network(server, run, tmp_path, monkeypatch):
    main(["push", str(run), REPO])
    ns.load(f"hf:{REPO}", "cpu")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert ns.load(f"hf:{REPO}", "cpu").card.id == "mean_image"
    with pytest.raises(OutputError, match="can't be reached"):
        pull("clinic/other", tmp_path / "run", 10**9)


def test_offline_is_said_at_once(tmp_path):
    """In a process of its own, since the library reads its settings when it is imported."""
    command = [sys.executable, "-m", "normscan.cli.main", "pull", REPO, "--out", "run"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=120,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 2 and "can't be reached" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()
