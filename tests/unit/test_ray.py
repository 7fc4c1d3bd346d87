"""Workers of Ray: every item once, also where workers die, and the bits of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from normscan.benchmark import load, run
from normscan.benchmark.data import Data
from normscan.cli.main import main
from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.errors import ArgumentError
from normscan.ray import LostError, cluster, over

if find_spec("ray") is None:  # not imported here: it reads its settings then
    pytest.skip("the extra ray isn't installed", allow_module_level=True)
psutil = pytest.importorskip("psutil", reason="it tells which processes are workers")

pytestmark = pytest.mark.xdist_group("ray")  # one cluster for all


@pytest.fixture(scope="module")
def here():
    """A local cluster of two workers."""
    with cluster(None, 2) as library:
        yield library.get_runtime_context().gcs_address


def deadly(folder: str):
    """Dies once over 3, always over 5, and notes what it worked on."""

    def work(item: int) -> int:
        with (Path(folder) / f"{item}-{os.getpid()}-{time.time_ns()}").open("w"):
            pass
        tried = len(list(Path(folder).glob(f"{item}-*")))
        if item == 5 or (item == 3 and tried == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return item**2

    return work


def test_every_item_is_answered_in_order_though_workers_die(here, tmp_path):
    results = list(over(partial(deadly, str(tmp_path)), list(range(9)), 2))
    assert isinstance(results[5], LostError) and "workers died over it" in str(results[5])
    assert results[:5] + results[6:] == [0, 1, 4, 9, 16, 36, 49, 64]
    tried = [len(list(tmp_path.glob(f"{item}-*"))) for item in range(9)]
    assert tried[3] == 2 and tried[5] == 3
    assert [n for i, n in enumerate(tried) if i not in (3, 5)] == [1] * 7


def test_what_goes_wrong_is_said(here):
    with pytest.raises(ArgumentError, match="takes 1 or more"):
        next(over(lambda: str, [1], 0))

    def build():
        def work(item):
            raise ArgumentError(f"no {item}")

        return work

    with pytest.raises(ArgumentError, match="no 1"):
        list(over(build, [1], 1))


def test_no_telemetry_and_nothing_but_the_loopback(here):
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["RAY_AUTH_MODE"] == "token" and len(os.environ["RAY_AUTH_TOKEN"]) >= 64
    assert here.startswith("127.0.0.1:")
    listening = {
        connection.laddr
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening
    assert {place.ip for place in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
    assert 8265 not in {place.port for place in listening}  # the dashboard's


@pytest.fixture(scope="module")
def fitted(toy, tmp_path_factory):
    """A run folder, its cohort, and what one process finds."""
    table, folder = toy(2), tmp_path_factory.mktemp("ray")
    det = Detector("mean_image", preset="tiny", calibration="split", gate=False)
    det.fit(Cohort.read(table), folder / "run")
    local = folder / "local"
    assert main(["predict", str(folder / "run"), "--cohort", str(table), "--out", str(local)]) == 0
    return folder / "run", table, local


def same(local: Path, other: Path) -> None:
    a, b = (pd.read_csv(folder / "scores.csv") for folder in (local, other))
    pd.testing.assert_frame_equal(a, b)
    names = sorted(p.name for p in local.iterdir() if p.suffix in (".tif", ".png", ".gz"))
    assert names and names == sorted(
        p.name for p in other.iterdir() if p.suffix in (".tif", ".png", ".gz")
    )
    for name in names:
        assert (local / name).read_bytes() == (other / name).read_bytes(), name


def test_a_prediction_survives_a_dead_worker_and_has_the_same_bits(here, fitted, tmp_path):
    folder, table, local = fitted
    out, killed = tmp_path / "out", []

    def kill() -> None:
        while not killed:
            workers = [
                p for p in psutil.Process().children(recursive=True)
                if p.name().startswith("ray::Worker")
            ]  # fmt: skip
            if workers:
                workers[0].kill()
                killed.append(workers[0].pid)
            time.sleep(0.02)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    options = ["--engine", "ray", "--workers", "2", "--out", str(out)]
    assert main(["predict", str(folder), "--cohort", str(table), *options]) == 0
    killed.append(0)
    thread.join()
    assert killed[0] > 0, "no worker was killed"
    same(local, out)


def test_a_command_joins_a_running_cluster(here, fitted, tmp_path):
    folder, table, local = fitted
    told = subprocess.run(
        [sys.executable, "-m", "normscan.cli.main", "predict", str(folder), "--cohort", str(table),
         "--engine", "ray", "--address", here, "--workers", "1", "--out", str(tmp_path / "out")],
        env=os.environ, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    same(local, tmp_path / "out")


def test_a_benchmark_runs_on_it(here, toy, tmp_path):
    tables = {}
    for engine, workers in (("local", 0), ("ray", 2)):
        out = tmp_path / engine
        run(
            load("local"), ["mean_image"], out, data=Data.parse(str(toy(2))), seeds=1,
            preset="tiny", workers=workers, engine=engine,
        )  # fmt: skip
        tables[engine] = [pd.read_csv(p) for p in sorted(out.rglob("evaluation/scans.csv"))]
    assert len(tables["local"]) == len(tables["ray"]) == 2  # with image_statistics
    for a, b in zip(*tables.values(), strict=True):
        pd.testing.assert_frame_equal(
            *(t.drop(columns=[c for c in t if "second" in c]) for t in (a, b))
        )
