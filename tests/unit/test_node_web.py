"""The REST server of the node."""

from __future__ import annotations

import io
import time
import zipfile

import nibabel
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs normscan[serve]")
pytest.importorskip("prometheus_client", reason="needs normscan[serve]")
pytest.importorskip("pynetdicom", reason="needs normscan[serve]")
pytest.importorskip("httpx", reason="the client of the tests")

from starlette.testclient import TestClient
from tests.support import node as N

from normscan.errors import ArgumentError
from normscan.node.config import Config
from normscan.node.parts import check
from normscan.node.score import Scorer
from normscan.node.store import Store
from normscan.node.web import application

AUTH = {"Authorization": f"Bearer {N.TOKEN}"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return N.make_detector(tmp_path_factory.mktemp("web"))


@pytest.fixture
def make(run, tmp_path):
    def made(web="", **more):
        store = Store(Config.read(N.write_config(tmp_path / "node", run, web=web, **more)))
        return store, TestClient(application(store), headers=AUTH, raise_server_exceptions=False)

    return made


def packed(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in files:
            archive.write(path, f"{N.SECRET}/{path.name}")
    return buffer.getvalue()


def volume(seed=99, lesion=400.0):
    """A head as NIfTI, on the grid of the series."""
    from normscan.io.dicom import read_dicom

    def of(folder):
        scan = read_dicom(N.series(folder, f"v{seed}", seed=seed, lesion=lesion)[0].parent)
        return nibabel.Nifti1Image(scan.data[0], scan.affine).to_bytes()

    return of


def score(store):
    scorer = Scorer(store)
    while (job := store.queue.claim("score", "score-1-a")) is not None:
        scorer.take(job)


def test_a_series_as_zip_gets_maps_and_a_report(make, tmp_path):
    store, web = make()
    body = packed(N.series(tmp_path, "patient"))
    answer = web.post("/scans", content=body)
    assert answer.status_code == 202
    key = answer.json()["id"]
    assert web.get(f"/scans/{key}").json()["state"] == "waiting"
    assert web.get(f"/scans/{key}/map").status_code == 404
    score(store)
    told = web.get(f"/scans/{key}").json()
    assert told["state"] == "done" and told["parts"][0]["anomalous"]
    found = nibabel.Nifti1Image.from_bytes(
        __import__("gzip").decompress(web.get(f"/scans/{key}/map").content)
    )
    assert found.shape == (14, 12, 6) and np.isfinite(found.get_fdata()).all()
    assert web.get(f"/scans/{key}/report").json()["score"] == told["parts"][0]["score"]
    assert web.get(f"/scans/{key}/overlay").content[:4] == b"\x89PNG"
    report = next(name for name in told["files"] if name.endswith("_sr.dcm"))
    assert web.get(f"/scans/{key}/files/{report}").content[128:132] == b"DICM"
    assert b"geheim" not in N.written(store.folder).replace(body, b"").lower()


def test_a_resend_is_the_same_job(make, tmp_path):
    store, web = make()
    body = volume()(tmp_path)
    keys = {web.post("/scans", content=body).json()["id"] for _ in range(3)}
    assert len(keys) == 1 and len(store.queue.jobs()) == 1
    score(store)
    assert web.post("/scans", content=body).json()["id"] in keys
    assert store.queue.counts() == {"done": 1}
    assert store.queue.tallies()["uploads", "known"] == 3


def test_what_no_gate_takes_is_refused_with_its_reason(make):
    store, web = make()
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32))
    key = web.post("/scans", content=buffer.getvalue()).json()["id"]
    score(store)
    told = web.get(f"/scans/{key}").json()
    assert told["state"] == "refused" and "heads:" in told["reason"] and "2D" in told["reason"]
    assert str(store.folder) not in told["reason"]


def test_without_the_token_nothing_is_told(make):
    store, _ = make()
    for token in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": N.TOKEN[:-1]}):
        with TestClient(application(store), headers=token) as stranger:
            for method, path in (("POST", "/scans"), ("GET", "/scans/a"), ("GET", "/metrics"),
                                 ("GET", "/scans/a/map"), ("GET", "/scans/a/files/b")):  # fmt: skip
                assert stranger.request(method, path).status_code == 401
            assert stranger.get("/healthz").status_code == 200


def test_limits(make, tmp_path):
    store, web = make(web="largest_mb = 0.01\nmost_waiting = 1\nunpacked_mb = 1")
    assert web.post("/scans", content=bytes(20_000)).status_code == 413
    assert web.post("/scans", content=(bytes(5000) for _ in range(4))).status_code == 413  # chunked
    assert web.post("/scans", content=b"#!/bin/sh").status_code == 415
    assert web.post("/scans", content=b"").status_code == 415
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(3_000_000))
    key = web.post("/scans", content=buffer.getvalue()).json()["id"]
    full = web.post("/scans", content=packed([]) + b"x")
    assert full.status_code == 503 and int(full.headers["Retry-After"]) > 0
    score(store)
    told = web.get(f"/scans/{key}").json()
    assert told["state"] == "refused" and "unpacks to" in told["reason"]
    assert not list(store.incoming.iterdir())


@pytest.mark.parametrize(
    "name", ["../../token", "..%2f..%2ftoken", "%00", ".hidden", "queue.sqlite"]
)
def test_paths_lead_nowhere(make, tmp_path, name):
    _, web = make()
    key = web.post("/scans", content=volume()(tmp_path)).json()["id"]
    assert web.get(f"/scans/{key}/files/{name}").status_code == 404
    assert web.get(f"/scans/{name}").status_code == 404


def test_health_and_readiness(make):
    store, web = make()
    assert web.get("/healthz").json() == {"ok": True}
    assert web.get("/readyz").status_code == 503  # nobody scores
    store.queue.beat("score")
    assert web.get("/readyz").json() == {"scoring": True, "room": True}
    assert "/scans/{key}" in web.get("/openapi.json").json()["paths"]


def test_metrics_are_those_of_the_queue(make, tmp_path):
    from prometheus_client.parser import text_string_to_metric_families

    store, web = make()
    web.post("/scans", content=volume()(tmp_path))
    score(store)
    found = {
        (s.name, *s.labels.values()): s.value
        for family in text_string_to_metric_families(web.get("/metrics").text)
        for s in family.samples
    }
    assert found["normscan_jobs", "done"] == found["normscan_ended_total", "done"] == 1
    assert found["normscan_scored_total", "heads"] == found["normscan_uploads_total", "kept"] == 1
    assert found["normscan_seconds_count",] == found["normscan_seconds_bucket", "86400"] == 1
    assert found["normscan_bytes",] > 0


def test_a_failure_is_told_without_its_words(make, monkeypatch):
    store, web = make()

    def broken(key):
        raise RuntimeError(N.SECRET)

    monkeypatch.setattr(store.queue, "find", broken)
    answer = web.get("/scans/a")
    assert answer.status_code == 500 and "Geheim" not in answer.text


def test_a_token_must_be_there_and_long(make, run, tmp_path):
    path = N.write_config(tmp_path / "short", run, web="")
    (path.parent / "token").write_text("short\n")
    with pytest.raises(ArgumentError, match="fewer than 16"):
        check(Config.read(path))
    (path.parent / "token").unlink()
    with pytest.raises(ArgumentError, match="can't be read"):
        check(Config.read(path))


def test_the_server_answers_and_ends(make):
    import httpx

    from normscan.node.process import Stop
    from normscan.node.web import serve

    store, _ = make()
    stop = Stop()
    thread = N.in_thread(serve, store, stop)
    url = f"http://127.0.0.1:{store.config.web.port}"

    def up():
        try:
            return httpx.get(f"{url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    N.wait_for(up)
    assert httpx.post(f"{url}/scans", content=b"x").status_code == 401
    stop.event.set()
    began = time.monotonic()
    thread.join(30)
    assert not thread.is_alive() and time.monotonic() - began < 30
