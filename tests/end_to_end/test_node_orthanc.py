"""The node beside a real Orthanc: pulled from, swept, killed in mid-work, given the results."""

from __future__ import annotations

from collections import Counter
from datetime import date

import pydicom
import pytest

pytest.importorskip("pynetdicom", reason="needs normscan[serve]")
pytest.importorskip("highdicom", reason="needs normscan[serve]")

from tests.support import node as N
from tests.support.orthanc import Orthanc

TODAY = {"StudyDate": date.today().strftime("%Y%m%d")}
SCORED = Counter(MR=1, OT=1, SEG=1, SR=1)
REFUSED = Counter(MR=1)  # no rule fits, so that it isn't even fetched


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return N.make_detector(tmp_path_factory.mktemp("node"))


@pytest.fixture
def orthanc(tmp_path):
    with Orthanc(tmp_path / "orthanc") as archive:
        yield archive


def study(files):
    return str(pydicom.dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)


def source(orthanc, kind, end=""):
    url = orthanc.url + ("/dicom-web" if kind == "dicomweb" else "")
    lines = [
        "[[sources]]", 'name = "pacs"', f'kind = "{kind}"', f'url = "{url}"',
        f'login_file = "{orthanc.folder / "login"}"', 'every = "2s"', "[[destinations]]",
    ]  # fmt: skip
    by_store = ['host = "127.0.0.1"', f"port = {orthanc.dicom}", 'ae_title = "PACS"']
    by_web = [f'url = "{orthanc.url}/dicom-web"', f'login_file = "{orthanc.folder / "login"}"']
    return "\n".join([*lines, *(by_store if end == "store" else by_web)])


@pytest.mark.parametrize(("kind", "end"), [("orthanc", "store"), ("dicomweb", "stow")])
def test_pulled_scored_and_put_back_into_the_study(run, tmp_path, orthanc, kind, end):
    files = [N.series(tmp_path, f"s{k}", seed=60 + k, **TODAY) for k in range(2)]
    knee = N.series(tmp_path, "knee", BodyPartExamined="KNEE", **TODAY)
    orthanc.put([*files[0], *files[1], *knee])
    node = N.Running(
        N.write_config(tmp_path / "node", run, top="lease = 5", end=source(orthanc, kind, end))
    )
    try:
        wanted = {study(files[0]): SCORED, study(files[1]): SCORED, study(knee): REFUSED}
        N.wait_for(lambda: orthanc.modalities() == wanted, 120)
        # Own results are in the archive now: they are left alone.
        N.wait_for(lambda: node.store.queue.counts().get("done") == 2)
        before = node.store.queue.tallies()
        late = N.series(tmp_path, "late", seed=77, **TODAY)
        orthanc.put(late)
        N.wait_for(lambda: node.store.queue.counts().get("done") == 3)
        assert orthanc.modalities() == wanted | {study(late): SCORED}
        assert before["scored", "heads"] == 2 and node.store.queue.tallies()["scored", "heads"] == 3
    finally:
        assert node.stop() == 0
    log = (tmp_path / "node" / "node.log").read_bytes()
    assert b"geheim" not in (log + N.written(node.store.folder)).lower()
    assert b"orthanc-17" not in log + N.written(node.store.folder)


def test_killed_in_mid_work_everything_is_scored_and_nothing_twice(run, tmp_path, orthanc):
    files = [N.series(tmp_path, f"s{k}", seed=60 + k, **TODAY) for k in range(4)]
    node = N.Running(
        N.write_config(tmp_path / "node", run, top="lease = 5", end=source(orthanc, "orthanc"))
    )
    queue = node.store.queue
    try:
        orthanc.put([path for series in files[:2] for path in series])
        N.wait_for(lambda: sum(queue.counts().values()) >= 1, 60)
        orthanc.kill()  # while results come, or the next series is fetched
        orthanc.start()
        orthanc.put(files[2])
        orthanc.kill()  # before it is called stable: no news will ever tell of it
        orthanc.start()
        orthanc.put(files[3])
        wanted = {study(series): SCORED for series in files}
        N.wait_for(lambda: orthanc.modalities() == wanted, 180)
        N.wait_for(lambda: queue.counts() == {"done": 4})
        assert {job.round for job in queue.jobs()} == {1}
        for series in orthanc.get("/series?expand"):
            count = len(series["Instances"])
            assert count == (6 if series["MainDicomTags"]["Modality"] == "MR" else 1)
    finally:
        assert node.stop() == 0
