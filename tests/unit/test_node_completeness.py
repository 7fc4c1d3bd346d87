"""A sender that pauses: what waits, and what a result says that replaces an earlier one."""

from __future__ import annotations

import shutil
import time

import pydicom
import pytest

pytest.importorskip("pynetdicom", reason="needs normscan[serve]")
pytest.importorskip("highdicom", reason="needs normscan[serve]")

from tests.support import node as N
from tests.support.dicom_results import errors

from normscan.io.dicom import find_series
from normscan.node.config import Config
from normscan.node.process import Stop
from normscan.node.receive import admit, listen, recover, take
from normscan.node.score import Scorer
from normscan.node.store import Store, key_of
from normscan.node.whole import missing


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return N.make_detector(tmp_path_factory.mktemp("node"))


@pytest.fixture
def make(run, tmp_path):
    def made(**more):
        return Store(Config.read(N.write_config(tmp_path / "node", run, **more)))

    return made


def put(store, files):
    for path in files:
        part = store.incoming / path.name
        part.write_bytes(path.read_bytes())
        key = admit(store, part, "CALLER")
    store.queue.db.execute("update jobs set due = 0 where stage = 'score'")
    return key


def score(store, scorer):
    scorer.take(store.queue.claim("score", "score-1-a"))
    (job,) = store.queue.jobs()
    return job


def reports(store, job):
    read = [pydicom.dcmread(path) for path in sorted(store.results(job.key).glob("*.dcm"))]
    return read, [data for data in read if data.Modality == "SR"]


def test_the_result_of_the_whole_names_that_of_the_half(make, tmp_path):
    store, files = make(top="patience = 0"), N.series(tmp_path, "s")
    scorer = Scorer(store)
    put(store, files[:4])
    half = score(store, scorer)
    _, (first,) = reports(store, half)
    assert "PredecessorDocumentsSequence" not in first
    put(store, files)
    whole = score(store, scorer)
    objects, (second,) = reports(store, whole)
    (study,) = second.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    assert study.StudyInstanceUID == first.StudyInstanceUID == second.StudyInstanceUID
    assert series.SeriesInstanceUID == first.SeriesInstanceUID != second.SeriesInstanceUID
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert all(data.SeriesDescription.endswith("result 2") for data in objects)
    said = "Result 2 of this series, of all 6 objects that came. It replaces the one before, which was of 4."
    assert said in second.to_json() and [m["objects"] for m in whole.result["made"]] == [4, 6]
    # Scored once more, nothing changes: the archive has it.
    store.queue.again(whole.outcome)
    again = score(store, scorer)
    assert again.result["made"] == whole.result["made"]
    assert reports(store, again)[1][0].SOPInstanceUID == second.SOPInstanceUID
    if shutil.which("dciodvfy"):
        assert [errors(path) for path in store.results(whole.key).glob("*.dcm")] == [[]] * 3


@pytest.mark.parametrize(
    ("keep", "header", "lacking"),
    [
        ([0, 1, 2, 3, 4, 5], {}, 0),
        ([0, 1, 2], {}, 0),  # nothing tells
        ([0, 2, 5], {}, 3),  # Instance Numbers
        ([0, 1, 2], {"ImagesInAcquisition": 6}, 3),
        ([0, 1, 2, 3, 4, 5], {"ImagesInAcquisition": 2}, 0),
    ],
)
def test_headers_tell_what_is_missing(tmp_path, keep, header, lacking):
    files = N.series(tmp_path, "s", **header)
    chosen = []
    for k, path in enumerate(files):
        data = pydicom.dcmread(path)
        data.InstanceNumber = k + 1
        data.save_as(path)
        chosen += [path] * (k in keep)
    assert missing(find_series(chosen)) == lacking


def test_a_series_with_gaps_waits_and_not_for_ever(make, tmp_path):
    store, files = make(), N.series(tmp_path, "s", ImagesInAcquisition=6)
    put(store, files[:5])
    scorer = Scorer(store)
    for _ in range(5):
        job = score(store, scorer)
        assert (job.state, job.tries) == ("waiting", 0) and job.due > time.time() + 200
        store.queue.db.execute("update jobs set due = 0")
    store.queue.db.execute("update jobs set arrived = arrived - 400")
    assert score(store, scorer).state in ("done", "refused")


def test_a_series_waits_while_its_sender_is_there(make, tmp_path, monkeypatch):
    import tempfile

    from pynetdicom import AE, _config

    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)
    monkeypatch.setattr(_config, "STORE_RECV_CHUNKED_DATASET", False)
    store, files = make(top="quiet = 0.3"), N.series(tmp_path, "s")
    stop = Stop()
    thread = N.in_thread(listen, store, stop)
    config = store.config.dicom
    data = [pydicom.dcmread(path) for path in files]
    ae = AE("CALLER")
    ae.add_requested_context(data[0].SOPClassUID, data[0].file_meta.TransferSyntaxUID)
    N.wait_for(lambda: (link := ae.associate("127.0.0.1", config.port, ae_title="NORMSCAN")).is_established
               and not link.release())  # fmt: skip
    link = ae.associate("127.0.0.1", config.port, ae_title="NORMSCAN")
    for one in data[:3]:
        assert link.send_c_store(one).Status == 0
    time.sleep(1)
    assert store.queue.claim("score", "w") is None
    assert link.send_c_store(data[3]).Status == 0
    link.release()
    N.wait_for(lambda: store.queue.claim("score", "w") is not None, 10)
    stop.event.set()
    thread.join(20)


def test_what_lies_on_the_disk_without_a_row_comes_into_the_queue(make, tmp_path):
    store, files = make(), N.series(tmp_path, "s")
    data = [pydicom.dcmread(path) for path in files]
    for path, one in zip(files, data, strict=True):
        part = store.incoming / path.name
        part.write_bytes(path.read_bytes())
        take(store, part, "CALLER", one.SeriesInstanceUID, one.SOPInstanceUID)
    key = key_of(data[0].SeriesInstanceUID)
    size = store.queue.find(key).bytes
    store.queue.db.execute("update jobs set instances = 4")  # as a power cut may leave it
    recover(store)
    assert store.queue.find(key).instances == 6
    store.queue.db.execute("delete from jobs")
    recover(store)
    assert (store.queue.find(key).instances, store.queue.find(key).bytes) == (6, size)
    recover(store)
    assert store.queue.find(key).instances == 6
    # What was purged is gone as a whole.
    store.queue.db.execute("update jobs set stage = 'end', ended = 1")
    assert store.purge(0) == 1
    recover(store)
    assert store.queue.jobs() == [] and not list(store.incoming.iterdir())
