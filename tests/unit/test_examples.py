"""The files under examples/: the node's for Docker and systemd, the thin ends to other platforms."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from configparser import ConfigParser
from enum import StrEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nibabel as nib
import numpy as np
import pydicom
import pytest
import yaml

pytest.importorskip("highdicom", reason="needs normscan[serve]")

from tests.support import node as N

from normscan.io.dicom import read_dicom
from normscan.node.config import Config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NODE = EXAMPLES / "node"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return N.make_detector(tmp_path_factory.mktemp("examples"))


def module(monkeypatch, file, **stubs):
    """Import an example with its platform stubbed."""
    for name, values in stubs.items():
        parts = name.replace("__", ".").split(".")
        for k in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:k]), ModuleType(".".join(parts[:k])))
        stub = ModuleType(".".join(parts))
        vars(stub).update(values)
        monkeypatch.setitem(sys.modules, ".".join(parts), stub)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_operator_scores_what_was_selected(run, tmp_path, monkeypatch):
    class Operator:
        def __init__(self, fragment, *args, **kwargs):
            self.fragment = fragment
            spec = SimpleNamespace(
                input=lambda name: asked.append(name),
                output=lambda name: SimpleNamespace(condition=lambda c: asked.append((name, c))),
            )
            self.setup(spec)

    asked, given = [], {}
    core = {"Operator": Operator, "Fragment": object, "OperatorSpec": object,
            "ConditionType": SimpleNamespace(NONE="none")}  # fmt: skip
    made = module(monkeypatch, EXAMPLES / "monai_deploy" / "normscan_operator.py",
                  monai__deploy__core=core)  # fmt: skip
    operator = made.NormscanOperator("app", run=run, output=tmp_path / "out")
    assert asked == ["study_selected_series_list", ("findings", "none")]

    def selected(name, **header):
        data = [pydicom.dcmread(path) for path in N.series(tmp_path, name, **header)]
        found = [SimpleNamespace(get_native_sop_instance=lambda d=d: d) for d in data]
        return SimpleNamespace(series=SimpleNamespace(get_sop_instances=lambda: found))

    shot = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    studies = [SimpleNamespace(selected_series=[selected("good"), selected("bad", **shot)])]
    operator.compute(
        SimpleNamespace(receive={"study_selected_series_list": studies}.get),
        SimpleNamespace(emit=lambda value, name: given.update({name: value})), None,
    )  # fmt: skip
    good, bad = given["findings"]
    assert good["anomalous"] is True and "localiser" in bad["refused"]
    written = sorted(p.name for p in (tmp_path / "out").glob("*.dcm"))
    assert written == [f"series-1_{kind}.dcm" for kind in ("map", "seg", "sr")]
    assert "geheim" not in json.dumps(given["findings"]).lower()


def test_the_infer_task_answers_with_labels_on_the_grid(run, tmp_path, monkeypatch):
    class InferTask:
        def __init__(self, **info):
            self.info = info

    class InferType(StrEnum):
        SEGMENTATION = "segmentation"

    stub = {"InferTask": InferTask, "InferType": InferType}
    made = module(monkeypatch, EXAMPLES / "monai_label" / "normscan_infer.py",
                  monailabel__interfaces__tasks__infer_v2=stub)  # fmt: skip
    task = made.NormscanInfer(run)
    assert task.is_valid() and task.info["labels"] == ["anomaly"]
    scan = read_dicom(N.series(tmp_path, "s")[0].parent)
    path = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(scan.data[0], scan.affine), path)
    name, told = task({"image": str(path)})
    labels = nib.load(name)
    found = np.asarray(labels.dataobj)
    Path(name).unlink()
    np.testing.assert_allclose(labels.affine, scan.affine, atol=1e-5)
    assert set(np.unique(found)) == {0, *told["label_names"].values()} and found.max() > 0
    assert found.shape == scan.shape and told["normscan"]["anomalous"] is True


def test_the_compose_file_names_what_is_there():
    text = yaml.safe_load((NODE / "compose.yaml").read_text())
    services = text["services"]
    assert set(services) == {"orthanc", "node"} and set(text["volumes"]) == {"archive", "work"}
    made_by_user = {"orthanc.login", "detectors"}
    for service in services.values():
        for mount in service["volumes"]:
            place, target, *_ = mount.split(":")
            if place.startswith("./"):
                assert place[2:] in made_by_user or (NODE / place[2:]).exists(), place
            assert target.startswith("/")
    build = services["node"]["build"]
    dockerfile = (NODE / build["context"]).resolve() / "Dockerfile"
    assert all(f"ARG {name}=" in dockerfile.read_text() for name in build["args"])
    # Nothing but DICOM is open to the network.
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert [p for p in ports if not p.startswith("127.0.0.1:")] == ["4242:4242"]


def test_its_configuration_is_one(tmp_path):
    shutil.copy(NODE / "node.toml", tmp_path)
    config = Config.read(tmp_path / "node.toml")
    mounted = yaml.safe_load((NODE / "compose.yaml").read_text())["services"]["node"]["volumes"]
    assert f"work:{config.folder}" in mounted
    assert config.rules[0].detector == tmp_path / "detectors" / "head"
    archive = json.loads((NODE / "orthanc.json").read_text())
    assert archive["AuthenticationEnabled"] and not archive["DicomAlwaysAllowStore"]
    assert "node" in archive["RegisteredUsers"]


def test_the_unit_is_one():
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(NODE / "normscan-node.service")
    service = unit["Service"]
    assert service["ExecStart"].split()[1:3] == ["node", "--config"]
    assert service["DynamicUser"] == service["NoNewPrivileges"] == "yes"
    if shutil.which("systemd-analyze"):
        done = subprocess.run(["systemd-analyze", "verify", NODE / "normscan-node.service"],
                              capture_output=True, text=True)  # fmt: skip
        said = [line for line in done.stderr.splitlines() if "is not executable" not in line]
        assert said == []
