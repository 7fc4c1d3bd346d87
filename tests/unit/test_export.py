"""A detector as one ONNX file: the same findings, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

import normscan as ns
from normscan.cli.main import main
from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.detector.graph import METADATA, Graph, Signature, session
from normscan.detector.runner import run
from normscan.errors import ArgumentError, OutputError, ScanError
from normscan.export import write_bundle, write_onnx
from normscan.export.bundle import infer
from normscan.export.onnx import example, exported
from normscan.export.tracing import Equivalent
from normscan.io.onnx import with_metadata
from normscan.methods.base import Maps, Method
from normscan.seeds import Stream


@pytest.fixture(scope="module")
def cohort(toy):
    return Cohort.read(toy(2))


def small(method="ae_dense", **options):
    steps = {} if method in ("mean_image", "image_statistics") else {"steps": 4}
    return ns.create(method, preset="tiny", **{"calibration": "split", **steps, **options})


@pytest.fixture(scope="module")
def written(cohort, tmp_path_factory):
    """A fitted detector and its file."""
    detector = small(reduction="max+place").fit(cohort)
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    write_onnx(detector, path)
    return detector, path


def findings(detector, cohort):
    return [found for _, found in detector.predict_cohort(cohort.part("test"), True, True)]


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.score == pytest.approx(b.score, rel=1e-4, abs=1e-6)
        assert (a.p_value, a.anomalous, a.threshold) == (b.p_value, b.anomalous, b.threshold)
        assert a.pixel_threshold == b.pixel_threshold
        np.testing.assert_allclose(a.map, b.map, atol=1e-4 * max(1e-6, np.abs(a.map).max()))
        if a.reconstruction is not None:
            np.testing.assert_allclose(a.reconstruction, b.reconstruction, atol=1e-4)
        assert a.quality.status == b.quality.status


def test_the_file_gives_the_same_findings(written, cohort):
    detector, path = written
    read = ns.load(path)
    same(findings(detector, cohort), findings(read, cohort))
    assert read.places is not None and "2D, threshold" in repr(read)
    assert len(read.fingerprint) == 64


def test_the_file_is_a_legal_graph_that_names_its_parts(written):
    model = onnx.load(written[1])
    onnx.checker.check_model(model)
    (entry,) = [m for m in model.metadata_props if m.key == METADATA]
    about = json.loads(entry.value)
    assert about["detector"]["configuration"]["method"] == "ae_dense"
    assert [o.name for o in model.graph.output] == ["map_0", "reconstruction_0"]


@pytest.mark.parametrize("length", [0, 1, 127, 128, 20_000])
def test_what_a_model_says_of_itself_is_read_by_the_library(written, length):
    model = with_metadata(written[1].read_bytes(), {"note": "ü" * length, "b": "2"})
    found = {m.key: m.value for m in onnx.load_from_string(model).metadata_props}
    assert found["note"] == "ü" * length and found["b"] == "2" and METADATA in found


WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "monai", "timm", "lightning_fabric", "transformers"):
            raise ImportError(f"{name} isn't installed")
sys.meta_path.insert(0, Missing())
from normscan.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_command_predicts_without_torch(written, cohort, tmp_path):
    detector, path = written
    row = cohort.part("test")[0]
    scan = str(row.paths[0])
    told = subprocess.run(
        [sys.executable, "-c", WITHOUT, "predict", str(path), scan, "--out", str(tmp_path / "out")],
        env=os.environ, check=True, capture_output=True, text=True,
    )  # fmt: skip
    finding = detector.predict(scan)
    about = json.loads(next((tmp_path / "out").glob("*_finding.json")).read_text())
    assert about["score"] == pytest.approx(finding.score, rel=1e-4)
    assert about["decision"] == finding.decision and finding.decision in told.stdout


def test_export_is_a_command(cohort, toy, tmp_path, capsys):
    folder = tmp_path / "run"
    small("mean_image").fit(cohort, folder)
    assert main(["export", str(folder), "--to", "onnx"]) == 0
    assert "any number at once" in capsys.readouterr().out
    same(findings(ns.load(folder), cohort), findings(ns.load(folder / "model.onnx"), cohort))
    assert main(["export", str(folder)]) == 2
    assert "exists" in capsys.readouterr().err


def test_members_of_a_cross_calibration_travel_together(cohort, tmp_path):
    detector = small(calibration="cross", folds=2).fit(cohort)
    signature = write_onnx(detector, tmp_path / "model.onnx")
    assert len(signature.members) == 2
    same(findings(detector, cohort), findings(ns.load(tmp_path / "model.onnx"), cohort))


def test_random_numbers_are_those_of_torch(cohort, tmp_path):
    detector = small("vae").fit(cohort)
    signature = write_onnx(detector, tmp_path / "model.onnx")
    assert [draw.kind for draw in signature.draws] == ["normal"]
    same(findings(detector, cohort), findings(ns.load(tmp_path / "model.onnx"), cohort))


@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1, 2**62 + 12345])
def test_a_stream_draws_what_torch_draws(seed):
    stream, generator = Stream(seed), torch.Generator().manual_seed(seed)
    for shape in ((3,), (16,), (1, 4, 5), (37,), (2,), (2, 40, 41), (1,)):
        expected = torch.randn(shape, generator=generator).numpy()
        np.testing.assert_allclose(stream.normal(shape), expected, atol=2e-6)
        expected = torch.rand(shape, generator=generator).numpy()
        np.testing.assert_array_equal(stream.uniform(shape), expected)
        expected = torch.randint(3, 1000, shape, generator=generator).numpy()
        np.testing.assert_array_equal(stream.integers(3, 1000, shape), expected)


def test_a_convolution_takes_any_size(cohort):
    detector = small("dae").fit(cohort)
    model, signature = exported(detector)
    assert signature.size == () and signature.batch == 0
    pieces = example(detector, detector.method, 3, (48, 80), seed=4)
    (ours,), (theirs,) = (
        run(detector.method, pieces, 0),
        Graph(session(model, 1), signature).run(pieces),
    )
    np.testing.assert_allclose(ours.arrays["map"], theirs.arrays["map"], atol=1e-4)


def test_patches_of_a_graph_are_those_of_torch():
    x = torch.rand(2, 3, 9, 8)
    for options in ({}, {"dilation": 2}, {"padding": (1, 2)}, {"stride": (2, 1)}):
        expected = F.unfold(x, (3, 2), **options)
        with Equivalent():
            torch.testing.assert_close(F.unfold(x, (3, 2), **options), expected)


class Baked(Method):
    """Its map hangs on a number that a trace would keep."""

    def maps(self, batch):
        return Maps(batch.image.mean(1, keepdim=True) * float(batch.image.sum()))


class Aged(Method):
    def maps(self, batch):
        ages = torch.tensor([float(one.get("age", 0)) for one in batch.columns])
        return Maps(score=ages + batch.image.flatten(1).mean(1))


class Pulled(Baked):
    needs_grad = True


@pytest.mark.parametrize(
    ("method", "why"),
    [(Baked, "its map differs"), (Aged, "columns of the cohort"), (Pulled, "gradients")],
)
def test_what_has_no_graph_is_refused(cohort, method, why):
    detector = small("mean_image").fit(cohort)
    detector.method = method().eval()
    with pytest.raises(ArgumentError, match=why):
        exported(detector)


def test_an_export_leaves_the_method_as_it_was(cohort):
    detector = small().fit(cohort)
    modes = [m.training for m in detector.method.modules()]
    exported(detector)
    assert modes == [m.training for m in detector.method.modules()]


def test_a_graph_cannot_be_trained_nor_saved(written, cohort, tmp_path):
    read = ns.load(written[1])
    with pytest.raises(ArgumentError, match="can't be trained"):
        read.fit(cohort)
    with pytest.raises(OutputError, match="copy its file"):
        read.save(tmp_path / "saved")
    with pytest.raises(ArgumentError, match="runs on the cpu"):
        ns.load(written[1], device="cuda")
    with pytest.raises(OutputError, match="nothing to export"):
        write_onnx(Detector("mean_image"), tmp_path / "model.onnx")


def test_another_file_is_refused(written, tmp_path):
    model = written[1].read_bytes()
    cases = {
        "none": (None, "no such file"),
        "text": (b"hello", "onnxruntime can't read"),
        "plain": (exported(written[0])[0], "without preprocessing and threshold"),
        "damaged": (with_metadata(model, {METADATA: '{"format": 1}'}), "is damaged"),
        "later": (with_metadata(model, {METADATA: '{"format": 99}'}), "update normscan"),
    }
    for name, (content, why) in cases.items():
        path = tmp_path / f"{name}.onnx"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises((OutputError, ArgumentError), match=why):
            ns.load(path)


def test_a_graph_says_what_does_not_fit(written):
    graph = ns.load(written[1]).graph
    pieces = example(written[0], written[0].method, 1, (16, 16))
    with pytest.raises(ScanError, match="takes images of 32 x 32 pixels, not 16 x 16"):
        graph.run(pieces)
    with pytest.raises(ValueError, match="damaged"):
        Signature.from_dict({"draws": []})


def test_a_bundle_is_run_by_monai(cohort, tmp_path, capsys):
    detector = small("mean_image", gate=False).fit(cohort, tmp_path / "run")
    bundle, scans = tmp_path / "bundle", tmp_path / "scans"
    assert main(["export", str(tmp_path / "run"), "--to", "monai", "--out", str(bundle)]) == 0
    assert "monai.bundle run" in capsys.readouterr().out
    scans.mkdir()
    for row in list(cohort.part("test"))[:2]:
        (scans / row.paths[0].name).write_bytes(row.paths[0].read_bytes())
    (scans / "broken.npy").write_bytes(b"not an array")
    command = ["run", "--config_file", bundle / "configs" / "inference.json"]
    command += ["--meta_file", bundle / "configs" / "metadata.json", "--bundle_root", bundle]
    command += ["--dataset_dir", scans, "--output_dir", tmp_path / "found"]
    subprocess.run(
        [sys.executable, "-m", "monai.bundle", *map(str, command)], env=os.environ, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    told = json.loads((tmp_path / "found" / "scores.json").read_text())
    assert len(told) == 3 and "broken.npy" in str(told.pop("broken.npy"))
    for name, score in told.items():
        assert score == pytest.approx(detector.predict(scans / name).score)
    assert len(list((tmp_path / "found").glob("*_finding.json"))) == 2


def test_a_bundle_says_what_goes_in(cohort, tmp_path):
    from monai.bundle import ConfigParser

    detector = small("mean_image", gate=False).fit(cohort)
    write_bundle(detector, tmp_path / "bundle")
    about = json.loads((tmp_path / "bundle/configs/metadata.json").read_text())
    image = about["network_data_format"]["inputs"]["image"]
    assert image["spatial_shape"] == [32, 32] and image["num_channels"] == 1
    parser = ConfigParser()
    parser.read_config(str(tmp_path / "bundle/configs/inference.json"))
    parser["bundle_root"], parser["device"] = str(tmp_path / "bundle"), "cpu"
    network = parser.get_parsed_content("network_def")
    for name, value in detector.method.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name
    with pytest.raises(OutputError, match="exists"):
        write_bundle(detector, tmp_path / "bundle")
    with pytest.raises(OutputError, match="nothing to export"):
        write_bundle(Detector("mean_image"), tmp_path / "other")
    with pytest.raises(ArgumentError, match="no scans there"):
        infer(detector, tmp_path / "none", tmp_path / "out")
