"""Archives as sources: pulled by news and by sweep, each series once, whole, and no result of ours."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pydicom
import pytest

pytest.importorskip("dicomweb_client", reason="needs normscan[serve]")
pytest.importorskip("pynetdicom", reason="needs normscan[serve]")

from tests.support import node as N

from normscan.errors import ArgumentError, NormscanError
from normscan.node.config import Config, Source, Stow
from normscan.node.dicomweb import DicomWeb, Orthanc, stow
from normscan.node.process import Stop
from normscan.node.pull import Puller
from normscan.node.store import Store, key_of


class FakeOrthanc:
    """The part of Orthanc's interface that is asked, over files."""

    def __init__(self):
        self.series: dict[str, list[Path]] = {}
        self.stable: list[str] = []
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                self.answer(outer.get(self.path))

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append(self.path)
                self.answer(json.dumps([outer.told(s) for s in outer.series]).encode())

            def answer(self, body):
                right = self.headers["Authorization"] == "Basic bm9kZTpnZWhlaW0="  # node:geheim
                self.send_response((200 if body is not None else 404) if right else 401)
                self.end_headers()
                self.wfile.write((body or b"") if right else b"")

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, name, files, stable=True):
        self.series[name] = files
        if stable:
            self.stable.append(name)

    def told(self, name):
        data = pydicom.dcmread(self.series[name][0])
        words = ("SeriesInstanceUID", "Modality", "SeriesDescription", "BodyPartExamined")
        tags = {word: str(data.get(word, "")) for word in words}
        instances = [f"{name}-{k:x}" for k in range(len(self.series[name]))]
        return {"ID": name, "MainDicomTags": tags, "Instances": instances}

    def get(self, path):
        place, _, query = path.partition("?")
        words = place.strip("/").split("/")
        if words[0] == "changes":
            since = int(query.split("since=")[1].split("&")[0])
            new = [{"ChangeType": "StableSeries", "ID": i} for i in self.stable[since:]]
            return json.dumps({"Changes": new, "Last": len(self.stable), "Done": True}).encode()
        if words[0] == "series" and words[1] in self.series:
            return json.dumps(self.told(words[1])).encode()
        if words[0] == "instances":
            name, _, number = words[1].rpartition("-")
            return self.series[name][int(number, 16)].read_bytes()
        return None


@pytest.fixture
def orthanc():
    fake = FakeOrthanc()
    yield fake
    fake.server.shutdown()


@pytest.fixture
def store(tmp_path):
    return Store(Config.read(N.write_config(tmp_path / "node", tmp_path / "run")))


def source(tmp_path, url, **more):
    (tmp_path / "login").write_text("node:geheim\n")
    return Source(name="pacs", kind="orthanc", url=url, login_file=tmp_path / "login", **more)


def puller(store, asked):
    return Puller(store, asked, Orthanc(asked))


def test_news_are_pulled_whole_and_once(store, tmp_path, orthanc):
    files = N.series(tmp_path, "s")
    orthanc.add("a1", files)
    orthanc.add("b2", N.series(tmp_path, "knee", BodyPartExamined="KNEE"))
    asking = puller(store, source(tmp_path, orthanc.url))
    asking.news(Stop())
    (job,) = store.queue.jobs()
    assert job.instances == 6 and job.source == "pacs"
    assert not any("/instances/b2" in path for path in orthanc.asked)  # no rule can fit
    before = len(orthanc.asked)
    puller(store, source(tmp_path, orthanc.url)).news(Stop())  # after a restart
    assert [p.split("?")[0] for p in orthanc.asked[before:]] == ["/changes"]
    assert not (store.folder / "pulling").exists() or not list((store.folder / "pulling").iterdir())


def test_a_sweep_finds_what_no_news_told_when_it_stands_still(store, tmp_path, orthanc):
    files = N.series(tmp_path, "s")
    orthanc.add("a1", files[:4], stable=False)
    asking = puller(store, source(tmp_path, orthanc.url))
    asking.sweep(Stop())
    orthanc.series["a1"] = files  # more came meanwhile
    asking.sweep(Stop())
    assert store.queue.jobs() == []
    asking.sweep(Stop())
    assert store.queue.jobs()[0].instances == 6
    before = len(orthanc.asked)
    asking.sweep(Stop())
    assert orthanc.asked[before:] == ["/tools/find"]


def test_own_results_are_not_pulled_again(store, tmp_path, orthanc):
    orthanc.add("a1", N.series(tmp_path, "own", Manufacturer="normscan"))
    asking = puller(store, source(tmp_path, orthanc.url))
    asking.news(Stop())
    (job,) = store.queue.jobs()
    assert (job.state, job.reason) == ("refused", "a result of normscan")
    before = len(orthanc.asked)
    asking.sweep(Stop())
    asking.sweep(Stop())
    assert orthanc.asked[before:] == ["/tools/find"] * 2


def test_half_a_series_is_none(store, tmp_path, orthanc, monkeypatch):
    orthanc.add("a1", N.series(tmp_path, "s"))
    whole = orthanc.get
    orthanc.get = lambda path: None if path.endswith("-5/file") else whole(path)
    asking = puller(store, source(tmp_path, orthanc.url))
    asking.turn(Stop())
    assert store.queue.jobs() == [] and asking.pause == 4
    orthanc.get = whole
    asking.next = 0
    asking.turn(Stop())
    assert store.queue.jobs()[0].instances == 6 and asking.pause == 2


def test_an_archive_that_is_away_or_refuses_is_named_without_the_login(store, tmp_path, orthanc):
    away = Orthanc(source(tmp_path, f"http://127.0.0.1:{N.free_port()}"))
    with pytest.raises(NormscanError, match="does not answer") as caught:
        away.news(0)
    (tmp_path / "login").write_text("node:falsch")
    refusing = Orthanc(
        Source(name="p", kind="orthanc", url=orthanc.url, login_file=tmp_path / "login")
    )
    with pytest.raises(NormscanError, match="401"):
        list(refusing.sweep())
    assert "geheim" not in str(caught.value)
    with pytest.raises(NormscanError, match="does not answer"):
        stow([], Stow(url=f"http://127.0.0.1:{N.free_port()}"))


class FakeClient:
    """What dicomweb-client gives."""

    def __init__(self, files):
        self.data = [pydicom.dcmread(path) for path in files]

    def search_for_series(self, fields, search_filters, limit, offset):
        assert search_filters["StudyDate"].endswith("-")
        first = self.data[0]
        entry = pydicom.Dataset()
        for word in ("SeriesInstanceUID", "StudyInstanceUID", "Modality", "SeriesDescription"):
            setattr(entry, word, first[word].value)
        entry.NumberOfSeriesRelatedInstances = len(self.data)
        return [entry.to_json_dict()] if offset == 0 else []

    def iter_series(self, study, series, media_types):
        assert (study, series) == (self.data[0].StudyInstanceUID, self.data[0].SeriesInstanceUID)
        return iter(self.data)


def test_dicomweb_is_swept(store, tmp_path):
    files = N.series(tmp_path, "s")
    asked = Source(name="pacs", kind="dicomweb", url="http://pacs/dicom-web")
    asking = Puller(store, asked, DicomWeb(asked, FakeClient(files)))
    asking.news(Stop())
    asking.sweep(Stop())
    asking.sweep(Stop())
    (job,) = store.queue.jobs()
    kept = [pydicom.dcmread(path) for path in store.scan(job.key).iterdir()]
    assert job.key == key_of(asking.archive.client.data[0].SeriesInstanceUID)
    assert {d.SOPInstanceUID for d in kept} == {
        d.SOPInstanceUID for d in asking.archive.client.data
    }


def test_what_a_sweep_would_fetch_again_is_not_forgotten(tmp_path):
    lines = '[[sources]]\nname = "p"\nkind = "orthanc"\nurl = "http://h"\ndays = 5'
    path = N.write_config(tmp_path, tmp_path / "run", top='retention = "5d"', end=lines)
    with pytest.raises(ArgumentError, match="at least 6d"):
        Config.read(path)
