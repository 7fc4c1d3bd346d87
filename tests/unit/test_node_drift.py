"""The drift watch of the node: per detector and scanner, once a scan, with alarms that stay."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.support import node as N

from normscan.cli.main import main
from normscan.node.config import Config, Drift
from normscan.node.daily import today, write_due, write_page
from normscan.node.drift import DriftWatch, reset, streams
from normscan.node.queue import Queue
from normscan.node.store import Store

PART = {"rule": "heads", "detector": "0123456789abcdef", "scanner": "MR 1", "name": "s"}


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "queue.sqlite")


@pytest.fixture
def job(queue):
    queue.arrive("a", "CT1", 1, quiet=0)
    return queue.claim("score", "w")


def feed(queue, job, scores, settings=Drift(), scanner="MR 1", healthy=()):  # noqa: B008
    watch, said = DriftWatch(queue, settings), []
    for k, score in enumerate(scores):
        part = {**PART, "scanner": scanner, "score": float(score)}
        said += watch.take(replace(job, key=f"{scanner}{k}"), part, healthy)
    return said


def test_an_alarm_names_detector_and_scanner_once_and_stays(queue, job):
    rng = np.random.default_rng(0)
    healthy = rng.normal(size=60).tolist()
    assert feed(queue, job, rng.normal(size=40), healthy=healthy) == []
    said = feed(queue, job, 3 + rng.normal(size=60), scanner="MR 2", healthy=healthy)
    assert said[0] == (
        "drift: heads 01234567 on scanner MR 2: scans are unlike the healthy ones that set its "
        "threshold"
    )
    assert len([s for s in said if "healthy" in s]) == 1
    good, bad = streams(queue)
    assert (good.scanner, good.scans, good.since) == ("MR 1", 40, {})
    assert bad.evidence["healthy"] > 2.3 and "healthy" in bad.since
    assert reset(queue) == 2 and streams(queue) == []


def test_a_window_begins_anew_and_the_alarm_outlives_it(queue, job):
    settings = Drift(window=30)
    feed(queue, job, [*np.zeros(15), *np.arange(1, 46)], settings)
    (stream,) = streams(queue)
    assert stream.scans == 30 and "time" in stream.since


def test_without_calibration_only_the_stream_is_watched(queue, job):
    feed(queue, job, [1.0, 2.0])
    assert list(streams(queue)[0].evidence) == ["time"]


def test_a_scan_that_is_scored_twice_counts_once(tmp_path, capsys):
    pytest.importorskip("highdicom", reason="needs normscan[serve]")
    pytest.importorskip("prometheus_client", reason="needs normscan[serve]")
    from tests.unit.test_node import put, score

    from normscan.node.metrics import exposition
    from normscan.node.score import Scorer

    path = N.write_config(tmp_path / "node", N.make_detector(tmp_path))
    store = Store(Config.read(path))
    put(store, N.series(tmp_path, "patient"))
    scorer = Scorer(store)
    score(store, scorer)
    assert store.queue.again("done") == 1
    assert score(store, scorer).state == "done"
    (stream,) = streams(store.queue)
    assert stream.scans == 1 and set(stream.evidence) == {"healthy", "time"}
    assert f'scanner="{stream.scanner}"' in exposition(store)[0]
    assert main(["node", "drift", "--config", str(path), "--reset"]) == 0
    assert "1 scans" in capsys.readouterr().out and streams(store.queue) == []
    audit = [json.loads(x) for p in (store.folder / "audit").iterdir() for x in p.open()]
    assert [e["event"] for e in audit] == ["scored", "scored"]


def test_the_page_of_a_day_says_what_stands_and_names_nobody(tmp_path):
    store = Store(Config.read(N.write_config(tmp_path / "node", tmp_path / "run")))
    queue, rng = store.queue, np.random.default_rng(0)
    queue.arrive("good", "CT1", 1, quiet=0)
    job = queue.claim("score", "w")
    parts = [{**PART, "score": 1.0, "p_value": float(p)} for p in rng.random(40)]
    queue.advance(job, "end", outcome="done", result={"parts": parts})
    queue.arrive("bad", "CT1", 1, quiet=0)
    queue.advance(queue.claim("score", "w"), "end", outcome="refused", reason="Left <b>out</b>.")
    feed(queue, job, [*rng.normal(size=30), *(4 + rng.normal(size=60))])
    text = write_page(store, today()).read_text()
    assert "1 alarm of the drift watch stands" in text and "unlike before" in text
    assert "Left &lt;b&gt;out&lt;/b&gt;." in text and "scored by heads</dt><dd>40" in text
    assert "Of 40 scans in each tenth" in text and text.count("<svg") == 2
    assert "http" not in text.replace("http://www.w3.org", "")
    # The page of the day that ended is written once; nothing happened on it.
    path = write_due(store)
    assert path.parent.name == "pages" and "1 alarm" in path.read_text()
    assert "done</dt><dd>0" in path.read_text() and write_due(store) is None
