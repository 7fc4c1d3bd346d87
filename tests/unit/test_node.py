"""The node: receiving, scoring, refusing and sending, each by itself and on loopback."""

from __future__ import annotations

import json
import time

import pydicom
import pytest
from pydicom import uid as U

pytest.importorskip("pynetdicom", reason="needs normscan[serve]")
pytest.importorskip("highdicom", reason="needs normscan[serve]")

from tests.support import dicom_files as D
from tests.support import node as N

from normscan.errors import NormscanError
from normscan.node import send as sending
from normscan.node.config import Config, Destination
from normscan.node.receive import Listener, take
from normscan.node.score import DIED, Scorer
from normscan.node.store import Store, key_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return N.make_detector(tmp_path_factory.mktemp("node"))


@pytest.fixture
def make(run, tmp_path):
    """Return a function to the store of a node."""

    def made(archive=None, **more):
        return Store(Config.read(N.write_config(tmp_path / "node", run, archive, **more)))

    return made


@pytest.fixture(scope="module")
def scorers():
    return {}


def put(store, files):
    """Let files arrive as the listener does."""
    for path in files:
        data = pydicom.dcmread(path)
        part = store.incoming / path.name
        part.write_bytes(path.read_bytes())
        take(store, part, "CALLER", data.SeriesInstanceUID, data.SOPInstanceUID)
    store.queue.db.execute("update jobs set due = 0 where stage = 'score' and until = 0")
    return store.queue.find(key_of(data.SeriesInstanceUID)).key


def score(store, scorer=None):
    job = store.queue.claim("score", "score-1-a")
    (scorer or Scorer(store)).take(job)
    return store.queue.find(job.key)


def told(data):
    """The text of a report's refusal, and the codes of its evaluations."""
    texts, codes = [], []

    def look(item):
        if item.get("ValueType") == "TEXT":
            texts.append(item.TextValue)
        if item.get("ValueType") == "CODE":
            codes.append(item.ConceptCodeSequence[0].CodeValue)
        for child in item.get("ContentSequence", ()):
            look(child)

    look(data)
    return " ".join(texts), codes


def test_from_the_scanner_to_the_archive(make, tmp_path):
    with N.Archive() as archive:
        store = make(archive.port)
        key = put(store, N.series(tmp_path, "patient"))
        job = score(store)
        assert (job.stage, job.outcome, job.tries) == ("send", "done", 0)
        part = job.result["parts"][0]
        assert (
            part["rule"] == "heads"
            and part["anomalous"]
            and part["p_value"] == pytest.approx(1 / 6)
        )
        sending.take(store, store.queue.claim("send", "s"))
        assert store.queue.find(key).state == "done"
        assert sorted(d.Modality for d in archive.objects.values()) == ["OT", "SEG", "SR"]
        (report,) = archive.of("SR")
        source = pydicom.dcmread(next((tmp_path / "patient").iterdir()))
        assert report.StudyInstanceUID == source.StudyInstanceUID
        assert report.PatientID == N.PATIENT["PatientID"]
    assert b"geheim" not in N.written(store.folder).lower()
    events = [json.loads(x) for p in (store.folder / "audit").iterdir() for x in p.open()]
    assert [e["event"] for e in events] == ["scored", "sent"] and events[0]["job"] == key


def test_the_same_series_twice_is_one_job_with_the_same_results(make, tmp_path):
    store = make()
    files = N.series(tmp_path, "patient")
    put(store, files)
    scorer = Scorer(store)
    first = score(store, scorer)
    uids = {pydicom.dcmread(p).SOPInstanceUID for p in store.results(first.key).glob("*.dcm")}
    put(store, files)
    assert store.queue.find(first.key).state == "done"  # known: nothing to do
    assert store.queue.again("done") == 1
    score(store, scorer)
    again = {pydicom.dcmread(p).SOPInstanceUID for p in store.results(first.key).glob("*.dcm")}
    assert again == uids and len(uids) == 3


KNEE = {"BodyPartExamined": "KNEE"}
LOCALISER = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}


@pytest.mark.parametrize(
    ("header", "said"),
    [(KNEE, "No rule fits"), (LOCALISER, "a localiser"), ({"Modality": "CT"}, "No rule fits")],
)
def test_wrong_series_are_refused_and_a_report_says_why(make, tmp_path, header, said):
    store = make()
    put(store, N.series(tmp_path, "wrong", **header))
    job = score(store)
    assert job.outcome == "refused" and said in job.reason and not job.result["parts"]
    (path,) = store.results(job.key).glob("*.dcm")
    text, codes = told(pydicom.dcmread(path))
    assert said in text and "not-scored" in codes and "refuse" in codes
    assert pydicom.dcmread(path).PatientID == N.PATIENT["PatientID"]


def test_the_report_of_a_refusal_keeps_the_standard(make, tmp_path):
    import shutil

    from tests.support.dicom_results import errors

    store = make()
    put(store, N.series(tmp_path, "wrong", **KNEE))
    (path,) = store.results(score(store).key).glob("*.dcm")
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy isn't installed")
    assert errors(path) == []


def test_the_quality_gate_refuses_and_says_why(make, tmp_path):
    store = make()
    from tests.support import dicom_planes as G

    planes = G.make_planes(G.oblique(), 9.0, count=6, shape=(12, 14), spacing=(8, 8))
    header = {**N.PATIENT, "BodyPartExamined": "HEAD"}
    put(store, D.write_series(tmp_path / "big", planes, N.head(5), "MR", "big", header=header))
    job = score(store)
    assert job.outcome == "refused" and "heads:" in job.reason and "spacing" in job.reason
    assert str(store.folder) not in job.reason and "--force" not in job.reason


def test_secondary_captures_are_refused(make, tmp_path):
    store = make()
    files = N.series(tmp_path, "shot")
    for path in files:
        data = pydicom.dcmread(path)
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"):
            delattr(data, name)
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = U.SecondaryCaptureImageStorage
        data.save_as(path)
    put(store, files)
    job = score(store)
    assert job.outcome == "refused" and "secondary capture" in job.reason


def test_a_job_whose_process_always_dies_fails_after_three_tries(make, tmp_path):
    store = make()
    put(store, N.series(tmp_path, "bomb"))
    for number in range(3):
        assert store.queue.claim("score", f"score-{number}-x").tries == number + 1
        store.queue.release(number)
    job = score(store)
    assert (job.state, job.reason) == ("failed", DIED)


def test_an_error_is_tried_three_times_without_its_words(make, tmp_path, caplog):
    store = make()
    put(store, N.series(tmp_path, "patient"))
    scorer = Scorer(store)
    scorer.outcome = lambda job, folder: 1 / 0 if job else N.SECRET
    for _ in range(3):
        store.queue.db.execute("update jobs set due = 0")
        job = score(store, scorer)
    assert (job.state, job.reason) == ("failed", "ZeroDivisionError")


def test_half_made_results_of_a_process_that_died_go(make):
    """Nobody else would ever delete them, and they show a patient."""
    store = make()
    for name in (".0a-score-17-ab", ".0b-score-171-ab", "0c"):
        (store.folder / "results" / name).mkdir()
    store.clear_making(17)
    assert sorted(p.name for p in (store.folder / "results").iterdir()) == [
        ".0b-score-171-ab",
        "0c",
    ]
    store.clear_making()
    assert [p.name for p in (store.folder / "results").iterdir()] == ["0c"]


def test_an_archive_that_is_away_is_tried_again(make, tmp_path):
    port = N.free_port()
    store = make(port)
    put(store, N.series(tmp_path, "patient"))
    job = score(store)
    sending.take(store, store.queue.claim("send", "s"))
    assert store.queue.find(job.key).state == "sending" and store.queue.claim("send", "s") is None
    store.queue.db.execute("update jobs set due = 0")
    with N.Archive(port, status=0xA700) as archive:
        sending.take(store, store.queue.claim("send", "s"))
        assert store.queue.find(job.key).state == "sending"
        archive.status = 0
        store.queue.db.execute("update jobs set due = 0")
        sending.take(store, store.queue.claim("send", "s"))
    assert store.queue.find(job.key).state == "done" and len(archive.objects) == 3
    waits = [sending.backoff(n) for n in range(1, 20)]
    assert waits[:4] == [1, 2, 4, 8] and waits[-1] == 600


def test_results_are_given_up_in_the_end(make, tmp_path):
    store = make(N.free_port(), top='give_up = "1s"')
    put(store, N.series(tmp_path, "patient"))
    key = score(store).key
    store.queue.db.execute("update jobs set scored = scored - 5")
    sending.take(store, store.queue.claim("send", "s"))
    job = store.queue.find(key)
    assert job.state == "failed" and "no archive took the results" in job.reason
    with pytest.raises(NormscanError, match="does not answer"):
        files = list(store.results(key).glob("*.dcm"))
        sending.send(files, Destination(host="127.0.0.1", port=N.free_port(), ae_title="PACS"))


def test_purge_deletes_ended_jobs_and_nothing_else(make, tmp_path):
    store = make()
    done = put(store, N.series(tmp_path, "old"))
    score(store)
    waiting = put(store, N.series(tmp_path, "new"))
    assert store.purge(3600) == 0 and store.scan(done).exists()
    assert store.purge(0) == 1
    assert not store.scan(done).exists() and not store.results(done).exists()
    assert store.queue.find(done) is None and store.scan(waiting).exists()
    assert store.queue.size() > 0


# ------------------------------------------------------------------------ the listener


@pytest.fixture
def listening(make, monkeypatch):
    import tempfile

    from pynetdicom import _config

    started = []

    def made(**more):
        store = make(**more)
        monkeypatch.setattr(_config, "STORE_RECV_CHUNKED_DATASET", True)
        monkeypatch.setattr(tempfile, "tempdir", str(store.incoming))
        started.append(Listener(store).start())
        return store

    yield made
    [server.shutdown() for server in started]


def test_success_means_kept(listening, tmp_path):
    store = listening()
    files = N.series(tmp_path, "patient")
    assert N.call(store.config, files) == [0] * 6
    (job,) = store.queue.jobs()
    kept = sorted(store.scan(job.key).iterdir())
    assert job.instances == len(kept) == 6 and job.bytes == sum(p.stat().st_size for p in kept)
    sent = {pydicom.dcmread(p).SOPInstanceUID: pydicom.dcmread(p).PixelData for p in files}
    assert {pydicom.dcmread(p).SOPInstanceUID: pydicom.dcmread(p).PixelData for p in kept} == sent
    assert not list(store.incoming.iterdir())
    assert N.call(store.config, files) == [0] * 6  # a resend
    assert store.queue.find(job.key).round == 1 and store.queue.find(job.key).instances == 6


def test_wrong_titles_are_rejected(listening, tmp_path):
    store = listening()
    files = N.series(tmp_path, "patient")
    assert N.call(store.config, files, calling="STRANGER") == "rejected"
    assert N.call(store.config, files, called="OTHER") == "rejected"
    assert store.queue.jobs() == []
    N.wait_for(lambda: store.queue.tallies().get(("received", "association_rejected")) == 2)


def test_own_results_and_what_is_no_image_never_come_round(listening, tmp_path):
    store = listening()
    put(store, N.series(tmp_path, "patient"))
    results = list(store.results(score(store).key).glob("*.dcm"))
    shot = tmp_path / "shot.dcm"
    data = pydicom.dcmread(N.series(tmp_path, "own", Manufacturer="normscan")[0])
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = U.SecondaryCaptureImageStorage
    data.save_as(shot)
    assert N.call(store.config, [*results, shot]) == [0] * 4
    others = store.queue.jobs("outcome = 'refused'")
    assert len(others) == 4 and {j.reason for j in others} == {"a result of normscan"}
    assert (
        store.queue.claim("score", "w") is None
        and len(list((store.folder / "scans").iterdir())) == 1
    )


def test_an_object_that_is_too_large_is_cut_off(listening, tmp_path):
    store = listening(dicom="largest_mb = 0.1\ntimeout = 5")
    path = N.series(tmp_path, "big")[0]
    data = pydicom.dcmread(path)
    data.Rows = data.Columns = 1500
    data.PixelData = bytes(2 * 1500 * 1500)
    data.save_as(path)
    assert N.call(store.config, [path]) in ([None], [None, None])
    assert N.call(store.config, N.series(tmp_path, "small")) == [0] * 6
    assert store.queue.tallies()["received", "too_large"] == 1
    store.clear_incoming(0)
    assert not list(store.incoming.iterdir())


def test_what_is_broken_is_refused_and_the_listener_lives(listening, tmp_path):
    store = listening()
    path = N.series(tmp_path, "odd")[0]
    data = pydicom.dcmread(path)
    del data.SeriesInstanceUID
    data.save_as(path)
    assert N.call(store.config, [path]) == [0xC000]
    assert N.call(store.config, N.series(tmp_path, "good")) == [0] * 6
    assert b"geheim" not in N.written(store.folder).lower()


def test_a_full_disk_is_said(listening, tmp_path):
    store = listening(top="quota_gb = 0.000001")
    put(store, N.series(tmp_path, "a"))
    store._room = (time.monotonic() - 9, True)
    assert N.call(store.config, N.series(tmp_path, "b")) == [0xA700] * 6


def test_only_known_certificates_may_speak(listening, tmp_path):
    pytest.importorskip("cryptography")
    from tests.support.certificates import make_certificates

    ours, theirs = make_certificates(tmp_path / "ca"), make_certificates(tmp_path / "other")
    lines = [f'{name} = "{path}"' for name, path in ours.server.items()]
    store = listening(end="[dicom.tls]\n" + "\n".join(lines))
    files = N.series(tmp_path, "patient")
    assert N.call(store.config, files, tls=(ours.client(), "localhost")) == [0] * 6
    for tls in (None, (theirs.client(trust=ours), "localhost"), (ours.anonymous(), "localhost")):
        assert N.call(store.config, files[:1], tls=tls) in ("aborted", "rejected")
    assert N.call(store.config, files, tls=(ours.client(), "localhost")) == [0] * 6


# -------------------------------------------------------------------- whole processes


def test_killed_in_mid_work_nothing_is_lost(run, tmp_path):
    with N.Archive() as archive:
        node = N.Running(N.write_config(tmp_path / "node", run, archive.port, top="lease = 5"))
        node.listening()
        series = [N.series(tmp_path, f"s{k}", seed=50 + k) for k in range(3)]
        assert N.call(node.config, series[0] + series[1]) == [0] * 12
        node.process.kill()
        node.process.wait()
        node.start()
        # The listener of the dead node may still answer for a moment, and hang up.
        N.wait_for(lambda: N.call(node.config, series[2]) == [0] * 6)
        N.wait_for(lambda: node.store.queue.counts() == {"done": 3})
        assert node.stop() == 0
    assert len(archive.objects) == 9 and len(archive.of("SR")) == 3
    log = (tmp_path / "node" / "node.log").read_bytes()
    assert b"geheim" not in (log + N.written(node.store.folder)).lower()
