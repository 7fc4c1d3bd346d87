"""The viewer's server: what it reads of a run, whom it lets in, and what it keeps of readers."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.support.viewer_runs import AFFINE, finding, write_run

from normscan.cli.main import main
from normscan.cli.view import _columns
from normscan.errors import ArgumentError
from normscan.io import read_scan
from normscan.io.shown import as_nifti
from normscan.scan import Scan
from normscan.viewer import volumes
from normscan.viewer.folder import Results, locate, newer

fastapi = pytest.importorskip("fastapi", reason="needs normscan[view]")
from fastapi.testclient import TestClient  # noqa: E402

from normscan.viewer import app as server  # noqa: E402

BASE = "http://127.0.0.1:8123"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("view") / "run")


@pytest.fixture
def run(made, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture(autouse=True)
def page(tmp_path_factory, monkeypatch):
    """A page of its own: the real one is built by node, which may be missing."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "index.html").write_text("<title>page</title>")
    monkeypatch.setattr(server, "PAGE", folder)


def client(path, **more):
    return TestClient(server.create_app(Results(locate(path), **more), "sesame", 8123), BASE)


def opened(path, **more):
    one = client(path, **more)
    assert one.get("/?token=sesame").status_code == 200
    return one


# ------------------------------------------------------------------------ the folder


def test_results_are_found_in_a_run_a_folder_and_at_a_finding(run):
    found = run / "predictions"
    assert locate(run).findings == found
    assert locate(found).findings == found
    one = locate(found / "scan001_finding.json")
    assert (one.findings, one.chosen) == (found, "scan001")
    assert locate(run).home == locate(found).home  # verdicts are the same ones


@pytest.mark.parametrize("left", ["nothing", "detector", "empty folder"])
def test_a_folder_without_findings_says_what_writes_them(left, tmp_path):
    if left == "detector":
        (tmp_path / "detector.json").write_text("{}")
    if left == "empty folder":
        (tmp_path / "predictions").mkdir()
    with pytest.raises(ArgumentError, match="normscan predict"):
        locate(tmp_path)
    with pytest.raises(ArgumentError, match="neither a folder"):
        locate(tmp_path / "missing")


def test_the_worklist_joins_scores_evaluation_and_cohort(run):
    (run / "evaluation").mkdir()
    table = {"scan": ["scan000", "only"], "label": [1, 0], "score": [9.0, 1.0], "site": ["A", ""]}
    pd.DataFrame(table).to_csv(run / "evaluation" / "scans.csv", index=False)
    results = Results(locate(run), {"scan001": {"subject": "s1", "age": 40}, "unknown": {"age": 1}})
    rows = results.rows()
    assert set(rows) == {"scan000", "scan001", "scan002", "only"}
    scores = pd.read_csv(run / "predictions" / "scores.csv").set_index("scan")["score"]
    assert rows["scan000"]["score"] == scores["scan000"]  # of the finding that is shown
    assert rows["scan000"]["label"] is True
    assert rows["scan000"]["site"] == "A"
    assert rows["scan001"]["age"] == 40
    assert rows["only"]["score"] == 1.0


def test_what_a_running_prediction_wrote_is_there_already(run):
    (run / "predictions" / "scores.csv").unlink()
    results = Results(locate(run))
    assert results.rows()["scan000"]["anomalous"] is True
    assert "may still be running" in results.notes()[0]
    finding(seed=9).save(run / "predictions", "later")
    assert "later" in results.rows()


def test_damaged_files_are_told_and_stop_nothing(run):
    found = run / "predictions"
    (found / "torn_finding.json").write_text('{"score": 1')
    (found / "scan001_finding.json").write_text("[]")
    (found / "scan002_map.nii.gz").write_bytes(b"no map")
    page = opened(run)
    names = [line[0] for line in page.get("/api/worklist").json()["rows"]]
    assert "torn" in names
    answer = page.get("/api/scan", params={"name": "scan001"})
    assert answer.status_code == 507
    assert "is no finding" in answer.json()["detail"]
    told = page.get("/api/scan", params={"name": "scan002"}).json()
    assert "map" not in told["volumes"]
    assert "scan002_map" in told["problems"][0]


def test_a_map_that_is_cut_off_leaves_the_scan(run):
    path = run / "predictions" / "scan000_map.nii.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    told = opened(run).get("/api/scan", params={"name": "scan000"}).json()
    assert set(told["volumes"]) == {"scan", "restoration"}
    assert "scan000_map" in told["problems"][0]
    assert told["range"] is None


def test_a_map_of_another_shape_is_left_out(run):
    shutil.copy(run / "predictions" / "scan001_map.nii.gz", run / "kept.nii.gz")
    other = nib.Nifti1Image(np.zeros((5, 6, 7), np.float32), np.eye(4))
    nib.save(other, run / "predictions" / "scan000_map.nii.gz")
    told = opened(run).get("/api/scan", params={"name": "scan000"}).json()
    assert set(told["volumes"]) == {"scan", "restoration"}
    assert "has the shape [5, 6, 7]" in told["problems"][0]


def test_a_later_version_is_told(run):
    about = json.loads((run / "detector.json").read_text())
    about["versions"]["normscan"] = "99.0.0"
    (run / "detector.json").write_text(json.dumps(about))
    assert "normscan 99.0.0" in opened(run).get("/api/run").json()["notes"][0]
    assert newer("0.0.1") is None
    assert newer("what") is None


def test_an_evaluation_alone_is_a_worklist_without_maps(tmp_path):
    pd.DataFrame({"scan": ["a"], "score": [1.0], "label": [0]}).to_csv(tmp_path / "scans.csv")
    page = opened(tmp_path)
    assert "no maps" in page.get("/api/run").json()["notes"][0]
    assert page.get("/api/scan", params={"name": "a"}).json()["volumes"] == {}


# --------------------------------------------------------------------------- who may


def test_only_the_token_opens_and_only_once(made):
    one = client(made)
    for path in ("/", "/api/run", "/api/verdicts", "/?token=wrong"):
        assert one.get(path).status_code == 403
    assert one.get("/?token=sesame").text == "<title>page</title>"
    assert one.get("/api/run").status_code == 200
    other = TestClient(one.app, BASE)
    assert other.get("/?token=sesame").status_code == 403
    assert other.get("/api/run").status_code == 403
    assert one.get("/?token=sesame").status_code == 200  # a bookmark of the first browser


def test_the_cookie_is_no_scripts_and_no_other_sites_and_of_this_port(made):
    answer = client(made).get("/?token=sesame", follow_redirects=False)
    cookie = answer.headers["set-cookie"].lower()
    assert cookie.startswith("normscan-8123=")
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_other_hosts_and_origins_are_refused(made):
    one = opened(made)
    assert one.get("/api/run", headers={"host": "evil.example:8123"}).status_code == 421
    said = {"reader": "r", "scan": "scan000", "verdict": "agree"}
    for origin in ("https://evil.example", "null"):
        answer = one.post("/api/verdicts", json=said, headers={"origin": origin})
        assert answer.status_code == 403
    assert one.get("/api/verdicts").json()["entries"] == []
    assert "default-src 'none'" in one.get("/api/run").headers["content-security-policy"]


@pytest.mark.parametrize(
    "name", ["../detector", "..", "/etc/passwd", "scan000/../../secret", "", "%2e%2e/x", "a\0b"]
)
def test_no_name_leads_out_of_the_folder(name, run):
    (run / "secret_finding.json").write_text("{}")
    page = opened(run)
    for path in ("scan", "volume.nii", "picture.png", "plane.png"):
        answer = page.get(f"/api/{path}", params={"name": name, "kind": "map"})
        assert answer.status_code == 404
    said = {"reader": "r", "scan": name, "verdict": "agree"}
    assert page.post("/api/verdicts", json=said).status_code == 404


def test_a_name_in_a_table_leads_nowhere_else_either(run, tmp_path):
    finding().save(tmp_path / "elsewhere", "secret")
    table = run / "predictions" / "scores.csv"
    table.write_text(table.read_text() + "../../elsewhere/secret,1,0.5,False,ok,\n")
    (run / "predictions" / "link_map.nii.gz").symlink_to(tmp_path / "elsewhere/secret_map.nii.gz")
    (run / "predictions" / "link_finding.json").write_text("{}")
    page = opened(run)
    for name in ("../../elsewhere/secret", "link"):
        told = page.get("/api/scan", params={"name": name}).json()
        assert told["volumes"] == {}
        assert told["finding"] == {}
        answer = page.get("/api/volume.nii", params={"name": name, "kind": "map"})
        assert answer.status_code == 404


def test_a_page_that_is_not_built_says_how(made, monkeypatch, tmp_path):
    monkeypatch.setattr(server, "PAGE", tmp_path)
    with pytest.raises(ArgumentError, match="make viewer"):
        client(made)


# --------------------------------------------------------------------------- volumes


def handed(data: bytes):
    return nib.Nifti1Image.from_bytes(data)


def test_a_volume_keeps_its_place_and_its_values_to_a_step():
    rng = np.random.default_rng(0)
    data = rng.normal(5, 3, (1, 9, 8, 7)).astype(np.float32)
    image = handed(as_nifti(Scan(data, AFFINE, ("image",))))
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    assert image.get_data_dtype() == np.uint16
    assert np.abs(image.get_fdata() - data[0]).max() <= 0.51 * np.ptp(data) / 65535


def test_a_constant_volume_and_one_with_holes():
    flat = Scan(np.full((1, 4, 4, 4), 3.0), AFFINE, ("image",))
    np.testing.assert_allclose(handed(as_nifti(flat)).get_fdata(), 3.0, rtol=1e-4)
    data = np.arange(8.0).reshape(1, 2, 2, 2)
    data[0, 1, 1] = np.nan, np.inf
    shown = handed(as_nifti(Scan(data, AFFINE, ("image",)))).get_fdata()
    np.testing.assert_allclose(shown[1, 1], 0, atol=1e-3)
    assert shown.max() == pytest.approx(5, abs=1e-3)


def test_a_colour_picture_is_colours_in_the_order_of_the_picture():
    picture = np.random.default_rng(0).integers(0, 255, (5, 6, 3)).astype(np.uint8)
    picture[0, 0] = 255
    scan = Scan.from_array(picture)
    image = handed(as_nifti(scan))
    stored = np.asarray(image.dataobj)[:, :, 0]
    for k, name in enumerate("RGB"):
        np.testing.assert_array_equal(stored[name], picture[..., k])
    # The first row of the picture is at the top: the highest y.
    assert (image.affine @ [0, 0, 0, 1])[1] > (image.affine @ [4, 0, 0, 1])[1]


@pytest.mark.parametrize("dims", [2, 3])
def test_scan_map_and_restoration_come_back_where_they_lay(dims, tmp_path):
    one = finding(dims)
    run = write_run(tmp_path / "run", 1, dims)
    page = opened(run)
    told = page.get("/api/scan", params={"name": "scan000"}).json()
    assert told["volumes"] == {k: list(one.scan.shape) for k in ("scan", "map", "restoration")}
    wanted = {"scan": one.scan.data[0], "map": one.map, "restoration": one.reconstruction[0]}
    for kind, values in wanted.items():
        answer = page.get("/api/volume.nii", params={"name": "scan000", "kind": kind})
        image = handed(answer.content)
        got = image.get_fdata().reshape(values.shape)
        np.testing.assert_allclose(got, values, atol=2e-4)
        np.testing.assert_allclose(image.affine, one.scan.affine, atol=1e-4)
        for part in told["components"]:
            index = np.linalg.solve(image.affine, [*part["at"], 1.0])[:dims]
            assert np.abs(index - part["peak_index"]).max() < 0.01
    assert told["range"]["start"] == pytest.approx(1.2)
    assert told["range"]["high"] == pytest.approx(float(one.map.max()))


def test_several_channels_are_written_as_the_first(tmp_path):
    one = finding()
    data = np.concatenate([one.scan.data, 0 * one.scan.data])
    one = replace(one, scan=replace(one.scan, data=data, channels=("t1", "t2")))
    one.save(tmp_path, "x", formats=["view"])
    assert {p.name for p in tmp_path.iterdir()} == {
        "x_scan.nii.gz", "x_restoration.nii.gz", "x_finding.json",
    }  # fmt: skip
    np.testing.assert_allclose(read_scan(tmp_path / "x_scan.nii.gz").data[0], data[0], atol=2e-5)


def test_planes_are_radiological_where_a_patient_lies_and_as_they_are_elsewhere():
    def drawn(scan, axis, **more):
        picture = Image.open(io.BytesIO(volumes.as_plane(scan, axis, 1, **more))).convert("L")
        bright = np.argwhere(np.asarray(picture) > 200).mean(0) / [picture.height, picture.width]
        return bright > 0.5  # lower half, right half

    data = np.zeros((1, 8, 8, 4), np.float32)
    data[0, 1:3, 5:7, 1] = 1  # the first axis runs to the right, the second to the front
    axial = Scan.from_array(data, affine=np.diag([1.0, 1, 1, 1]), channels=("image",))
    assert drawn(axial, 2).tolist() == [False, True]
    assert drawn(axial, 2, radiological=False).tolist() == [False, False]
    picture = Scan.from_array(data[0, ..., 1])
    assert drawn(picture, 2).tolist() == [False, True]  # rows and columns as stored


def test_volumes_in_memory_are_few(made):
    kept = volumes.Volumes(most=2)
    for name in ("scan000", "scan001", "scan002"):
        first = kept.read(made / "predictions" / f"{name}_map.nii.gz")
    assert len(kept._kept) == 2
    assert kept.read(made / "predictions" / "scan002_map.nii.gz") is first


# -------------------------------------------------------------------------- verdicts


def test_two_viewers_of_one_run_see_each_others_verdicts(run):
    first, second = opened(run), opened(run / "predictions")
    said = {"reader": "ann", "scan": "scan000", "verdict": "agree"}
    assert first.post("/api/verdicts", json=said).status_code == 200
    assert second.post("/api/verdicts", json=said | {"reader": "bob"}).status_code == 200
    for page in (first, second):
        entries = page.get("/api/verdicts").json()["entries"]
        assert [(e["reader"], e["flagged"]) for e in entries] == [("ann", True), ("bob", True)]
    assert second.get("/api/verdicts.csv").text.count("\n") == 3
    bad = first.post("/api/verdicts", json=said | {"verdict": "maybe"})
    assert bad.status_code == 422
    assert "is no verdict" in bad.json()["detail"]


# -------------------------------------------------------------------------- commands


def test_predict_keeps_what_the_viewer_shows(toy, tmp_path):
    tiny = ["--preset", "tiny", "--steps", "2", "--device", "cpu", "--calibration", "split"]
    table = toy(2)
    run, chosen = tmp_path / "run", table.parent / "test100_c0.npy"
    assert main(["fit", "ae_dense", "--cohort", str(table), "--out", str(run), *tiny]) == 0
    assert main(["predict", str(run), str(chosen), "--format", "nifti,view", "--force"]) == 0
    place = locate(run)
    results = Results(place, _columns(str(table), None))
    (name,) = results.rows()
    shapes, problems = results.volumes(name)
    assert set(shapes) == {"scan", "map", "restoration"}
    assert problems == []
    kept = read_scan(results.volume(name, "scan")).data[0]
    np.testing.assert_allclose(kept, np.load(chosen), atol=2e-5)


def test_the_command_serves_on_this_machine_until_it_is_ended(made):
    code = (
        "import sys; from normscan.viewer import app; from pathlib import Path;"
        "app.PAGE = Path(sys.argv[1]); from normscan.cli.main import main;"
        "sys.exit(main(['view', sys.argv[2], '--browser', 'no']))"
    )
    command = [sys.executable, "-c", code, str(server.PAGE), str(made)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            first = process.stdout.readline()
            assert first.startswith("3 scans")
            address = first.split()[-1]
            assert address.startswith("http://127.0.0.1:")
            jar = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            assert jar.open(address, timeout=30).read() == b"<title>page</title>"
            told = json.load(jar.open(address.partition("?")[0] + "api/worklist", timeout=30))
            assert len(told["rows"]) == 3
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def test_a_port_that_is_taken_is_an_error_of_one_line(made, capsys):
    assert main(["view", str(made), "--port", "70000", "--browser", "no"]) == 2
    assert "--port 70000" in capsys.readouterr().err
    assert main(["view", str(made / "nowhere")]) == 2
    assert "neither a folder" in capsys.readouterr().err
