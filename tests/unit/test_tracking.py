"""What loggers are sent, read back by each logger's own reader; a killed run is one run there."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from normscan import tracking
from normscan.cli.main import main
from normscan.errors import ArgumentError

STEPS = 12
# Checkpoints at step 4 alone, dead after the log of step 8: five steps are logged and run again.
DIES_LATE = """
import os, signal, sys
from normscan.cli.main import main
from normscan.training.loop import Trainer
begin, save, log = Trainer.__init__, Trainer._save, Trainer._log
def patient(self, *a, **k):
    begin(self, *a, **k)
    self.checkpoint_seconds = -1
def once(self, phase, step, optimizers):
    if step == 4:
        save(self, phase, step, optimizers)
def logged(self, index, phase, step, *rest):
    text = log(self, index, phase, step, *rest)
    if step + 1 == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return text
Trainer.__init__, Trainer._save, Trainer._log = patient, once, logged
sys.exit(main(sys.argv[1:]))
"""
LOGGERS = ("tensorboard", "mlflow", "wandb")
Series = dict[str, list[tuple[int, float]]]


@pytest.fixture(scope="module")
def table(toy, tmp_path_factory):
    """A cohort whose scans and files are named after people."""
    folder = tmp_path_factory.mktemp("ZZFOLDER")
    rows = pd.read_csv(toy(2), dtype=str, keep_default_na=False)
    rows = rows[rows["split"] != "extra"]
    for i, place in enumerate(rows.index):
        name = f"ZZFILE{i}.npy"
        np.save(folder / name, np.load(toy(2).parent / rows.loc[place, "path"]))
        rows.loc[place, "path"] = name
        if rows.loc[place, "mask"]:
            rows.loc[place, "mask"] = str(toy(2).parent / rows.loc[place, "mask"])
    rows["scan"] = [f"ZZSCAN{i}" for i in range(len(rows))]
    rows["subject"] = [f"ZZSUBJECT{i}" for i in range(len(rows))]
    rows.to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def read_tensorboard(run: Path) -> Series:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = EventAccumulator(str(run / "tensorboard"), purge_orphaned_data=False).Reload()
    return {k: [(e.step, e.value) for e in files.Scalars(k)] for k in files.Tags()["scalars"]}


def read_mlflow(run: Path) -> Series:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("normscan").experiment_id
    (there,) = client.search_runs([experiment])
    assert there.info.status == "FINISHED" and there.data.params["arguments.steps"] == str(STEPS)
    names = [n for n in there.data.metrics if not n.startswith("system")]
    histories = {n: client.get_metric_history(there.info.run_id, n) for n in names}
    return {n: [(m.step, m.value) for m in h] for n, h in histories.items()}


def logged(content: bytes) -> Iterator[bytes]:
    """Records of a file in the log format of LevelDB, behind wandb's own seven bytes.

    Blocks of 32 KiB hold pieces: checksum, length, kind (1 whole, 2 first, 3 middle, 4 last).
    """
    at, parts = 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", content, at + 4)
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield parts
            parts = b""


def read_wandb(run: Path) -> Series:
    """The records of the files that ``wandb sync`` would send, by wandb's own messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    series: Series = {}
    ids = set()
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        ids.add(path.name)
        for data in logged(path.read_bytes()):
            record = Record.FromString(data)
            told = {"/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            for key in told.keys() - {"_step", "_runtime", "_timestamp"}:
                step = told[f"{key.split('/')[0]}/step"]
                series.setdefault(key, []).append((step, told[key]))
            for item in record.summary.update:
                key = item.key or "/".join(item.nested_key)
                if key.startswith(("fit/", "evaluation/")):
                    series[key] = [(0, json.loads(item.value_json))]
    assert len(ids) == 1, "one run, in as many files as there were processes"
    return series


READERS = {"tensorboard": read_tensorboard, "mlflow": read_mlflow, "wandb": read_wandb}


def ready(kind, folder, monkeypatch):
    """Settings of a logger that sends nothing anywhere; skips where its package is missing."""
    pytest.importorskip(kind, reason=f"{kind} is an extra")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(folder))


@pytest.mark.parametrize("kind", LOGGERS)
def test_a_killed_run_is_one_run_and_no_step_is_there_twice(table, tmp_path, monkeypatch, kind):
    ready(kind, tmp_path, monkeypatch)
    run = tmp_path / "run"
    fit = ["fit", "ae_dense", "--preset", "tiny", "--steps", str(STEPS), "--cohort", str(table)]
    fit += ["--out", str(run), "--calibration", "split", "--logger", kind]
    command = [sys.executable, "-c", DIES_LATE, *fit]
    died = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert died.returncode == -signal.SIGKILL, died.stderr
    lines = [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert main([*fit, "--resume"]) == 0
    assert main(["evaluate", str(run), "--cohort", str(table), "--baselines", "no",
                 "--logger", kind]) == 0  # fmt: skip

    lines = [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]
    found = READERS[kind](run)
    steps, values = zip(*found["reconstruct/network/l1"], strict=True)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    # W&B writes in a process of its own, which dies with the run: what it held back is missing.
    sent = sum(step <= 8 for step in steps) if kind == "wandb" else 8
    assert list(steps) == [*range(1, sent + 1), *range(9, STEPS + 1)]
    kept = [lines[step - 1] for step in steps]
    np.testing.assert_allclose(values, [line["terms"]["network/l1"] for line in kept], rtol=1e-6)
    _, looks = zip(*found["reconstruct/validation"], strict=True)
    np.testing.assert_allclose(looks, [line["validation"] for line in kept], rtol=1e-6)
    results = json.loads((run / "evaluation" / "results.json").read_text())["metrics"]
    (auroc,) = found["evaluation/test/image_auroc"]
    assert auroc[1] == pytest.approx(results["image_auroc"]["value"], rel=1e-6)
    assert found["evaluation/test/oracle/best_dice"]
    assert found["fit/subjects/train"] == [(0, 48)]

    places = [run / "tensorboard", run / "wandb", tmp_path / "mlflow.db", run / "tracking.json"]
    for path in [p for place in places for p in (place, *place.rglob("*")) if p.is_file()]:
        assert b"ZZ" not in path.read_bytes(), path


def test_folds_have_series_of_their_own(toy, tmp_path, monkeypatch):
    ready("tensorboard", tmp_path, monkeypatch)
    fit = ["fit", "ae_dense", "--preset", "tiny", "--steps", "2", "--cohort", str(toy(2))]
    fit += ["--calibration", "cross", "--folds", "2", "--logger", "tensorboard"]
    assert main([*fit, "--out", str(tmp_path / "run")]) == 0
    found = read_tensorboard(tmp_path / "run")
    series = [k for k in found if k.endswith("reconstruct/network/l1")]
    assert len(series) == 2 and all([s for s, _ in found[k]] == [1, 2] for k in series)


def test_a_method_without_steps_logs_what_it_counted(toy, tmp_path, monkeypatch):
    ready("tensorboard", tmp_path, monkeypatch)
    fit = ["fit", "mean_image", "--cohort", str(toy(2)), "--calibration", "split"]
    assert main([*fit, "--out", str(tmp_path / "run"), "--logger", "tensorboard"]) == 0
    assert read_tensorboard(tmp_path / "run")["fit/cohort_size/val"] == [(0, 6)]


def test_a_missing_package_is_said_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    (tmp_path / "cohort.csv").write_text("path,label\nnone.npy,0\n")
    fit = ["fit", "mean_image", "--cohort", str(tmp_path / "cohort.csv"), "--logger", "mlflow"]
    assert main([*fit, "--out", str(tmp_path / "run")]) == 2
    assert "pip install 'normscan[mlflow]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(ArgumentError, match="there are tensorboard, mlflow, wandb"):
        tracking.Tracker("neptune", tmp_path)


class Failing:
    """A logger whose server goes away at the third record."""

    id = "1"

    def __init__(self, folder, id, name):
        self.told = []

    def settings(self, values):
        pass

    def numbers(self, values, phase, step):
        if len(self.told) == 2:
            raise ConnectionError("gone")
        self.told.append(step)

    def close(self, failed):
        pass


def test_a_logger_that_fails_ends_no_training(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(tracking.STORES, "mlflow", Failing)
    monkeypatch.setattr(tracking, "find_spec", lambda name: True)
    fit = ["fit", "ae_dense", "--preset", "tiny", "--steps", "6", "--cohort", str(toy(2))]
    fit += ["--calibration", "split", "--logger", "mlflow", "--out", str(tmp_path / "run")]
    assert main(fit) == 0
    said = capsys.readouterr().err
    assert said.count("logger 'mlflow' fails (gone)") == 1
    assert (tmp_path / "run" / "detector.json").exists()


def test_a_logger_that_cannot_begin_is_an_error(toy, tmp_path, monkeypatch, capsys):
    def refuse(folder, id, name):
        raise ConnectionError("no such server")

    monkeypatch.setitem(tracking.STORES, "mlflow", refuse)
    monkeypatch.setattr(tracking, "find_spec", lambda name: True)
    fit = ["fit", "ae_dense", "--preset", "tiny", "--steps", "2", "--cohort", str(toy(2))]
    fit += ["--calibration", "split", "--logger", "mlflow", "--out", str(tmp_path / "run")]
    assert main(fit) == 2
    assert "can't begin: no such server" in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), "the folder can be used again"


def test_settings_name_no_folder(tmp_path):
    about = {"method": "x", "arguments": {"weights": "/home/ZZDOE/w.pt", "sizes": [1, 2]}}
    (tmp_path / "config.json").write_text(json.dumps({**about, "exclude": {"ZZSCAN": "moved"}}))
    told = tracking.settings(tmp_path)
    assert told == {"method": "x", "arguments.weights": "w.pt", "arguments.sizes": "1, 2"}
