"""Whatever is wrong with what a user gives: one clear line, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.toy import toy_scan

import normscan as ns
from normscan.cli.main import main
from normscan.errors import ArgumentError, ScanError
from normscan.io import content_hash

ERROR = "normscan: error: "


@pytest.fixture
def refused(capsys):
    """Return a function that runs a command, which must be refused, and returns the reason."""

    def check(*arguments):
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:  # the parser of the options ends the process itself
            code = stop.code
        err = capsys.readouterr().err
        lines = [line for line in err.splitlines() if line.startswith(ERROR)]
        assert code == 2, err
        assert len(lines) == 1 and err.splitlines()[-1] == lines[0], err
        assert "Traceback" not in err
        assert len(lines[0]) > len(ERROR) + 15
        return lines[0].removeprefix(ERROR)

    return check


def run(*arguments):
    return main([str(a) for a in arguments])


def state_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def detector(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("detector") / "run"
    options = ("--cohort", toy(), "--out", out, "--preset", "tiny", "--steps", 4)
    assert run("fit", "ae_dense", *options, "--device", "cpu") == 0
    return out


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Bad files of all kinds, and one good."""
    folder = tmp_path_factory.mktemp("files")
    image = toy_scan(np.random.default_rng(0), 2, 1, False)[0][0] * 1000

    def save(name, data):
        nib.save(nib.Nifti1Image(np.asarray(data, np.float32), np.eye(4)), folder / name)

    save("good.nii.gz", image)
    whole = (folder / "good.nii.gz").read_bytes()
    (folder / "empty.nii.gz").touch()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "misnamed.png").write_bytes(whole)
    (folder / "letter.docx").write_bytes(b"PK letter")
    hole = image.copy()
    hole[5, 5] = np.nan
    save("nan.nii.gz", hole)
    save("constant.nii.gz", np.full(image.shape, 7))
    save("series.nii.gz", np.random.default_rng(0).random((8, 8, 4, 3)))
    Image.fromarray(np.stack([image / 5, image / 6, image / 7], -1).astype(np.uint8)).save(
        folder / "colour.png"
    )
    Image.fromarray(image.astype(np.uint16)).save(folder / "good.png")
    return folder


# ---------------------------------------------------------------- predict

FILES = {
    "missing.nii.gz": "no such file",
    "empty.nii.gz": "empty (0 bytes)",
    "truncated.nii.gz": "truncated",
    "misnamed.png": "its content is a gzipped NIfTI",
    "letter.docx": "none of the formats known",
    "nan.nii.gz": "1 of 1628 values are NaN",
    "constant.nii.gz": "every pixel is 7",
    "series.nii.gz": "series of 3 volumes of shape (8, 8, 4)",
    "colour.png": "3 channels",
    ".": "is a folder",
}


@pytest.mark.parametrize("name", FILES)
def test_predict_refuses(refused, capsys, detector, files, tmp_path, name):
    with pytest.raises(ScanError) as caught:
        ns.load(detector).predict(files / name)
    assert FILES[name] in str(caught.value)
    if name == ".":  # the command takes a folder scan by scan
        return
    assert name in str(caught.value)
    assert "none of the 1 scans" in refused(
        "predict", detector, files / name, "--out", tmp_path / "o"
    )
    assert not (tmp_path / "o").exists()


def test_the_good_among_the_bad_are_predicted(capsys, detector, files, tmp_path):
    scans = [files / n for n in ("nan.nii.gz", "good.nii.gz", "missing.nii.gz", "good.png")]
    assert run("predict", detector, *scans, "--out", tmp_path / "out") == 1
    err = capsys.readouterr().err
    assert "nan.nii.gz: left out: " in err and "missing.nii.gz: left out: " in err
    found = {p.name for p in (tmp_path / "out").glob("*_finding.json")}
    assert found == {"good.nii.gz_finding.json", "good.png_finding.json"}


def test_findings_are_replaced_only_when_asked(refused, detector, files, tmp_path):
    command = ("predict", detector, files / "good.png", "--out", tmp_path / "out")
    assert run(*command) == 0
    (tmp_path / "out/good_finding.json").write_text("{}")
    before = state_of(tmp_path / "out")
    assert "--overwrite" in refused(*command)
    assert state_of(tmp_path / "out") == before
    assert run(*command, "--overwrite") == 0
    assert "score" in json.loads((tmp_path / "out/good_finding.json").read_text())


def test_results_dont_go_into_a_file(refused, detector, files, toy, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        assert "is a file" in refused("predict", detector, files / "good.png", "--out", out)
        assert "is a file" in refused("evaluate", detector, "--cohort", toy(), "--out", out)
        refused("fit", "mean_image", "--cohort", toy(), "--preset", "tiny", "--out", out)
    assert (tmp_path / "file").read_text() == "mine"
    assert "empty name" in refused("predict", detector, "", "--out", tmp_path / "out")


def edit(change):
    def apply(folder):
        path = folder / "detector.json"
        state = json.loads(path.read_text())
        change(state)
        path.write_text(json.dumps(state))

    return apply


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_and_signed(folder):
    cut(folder)
    edit(lambda s: s.update(sha256=content_hash(folder / "model.safetensors")))(folder)


def flipped(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


TAMPERED = {
    "unfinished": (lambda f: (f / "detector.json").unlink(), "not finished"),
    "no json": (lambda f: (f / "detector.json").write_text("{"), "damaged"),
    "bytes": (lambda f: (f / "detector.json").write_bytes(b"\xff\xfe\0"), "damaged"),
    "list": (lambda f: (f / "detector.json").write_text("[]"), "damaged"),
    "later format": (edit(lambda s: s.update(format=99)), "Update normscan"),
    "configuration": (edit(lambda s: s.update(configuration=[])), "damaged"),
    "no method": (edit(lambda s: s["configuration"].update(method="x")), "no method 'x'"),
    "arguments": (edit(lambda s: s["configuration"].update(arguments=[])), "damaged"),
    "argument": (edit(lambda s: s["configuration"]["arguments"].update(x=1)), "damaged"),
    "width": (edit(lambda s: s["configuration"]["arguments"].update(latent=8)), "doesn't fit"),
    "negative": (edit(lambda s: s["configuration"]["arguments"].update(latent=-8)), "damaged"),
    "preprocess": (edit(lambda s: s["configuration"]["preprocess"].update(crop=3)), "damaged"),
    "threshold": (edit(lambda s: s["scan_threshold"].update(threshold=0.123)), "changed"),
    "no threshold": (edit(lambda s: s.update(scan_threshold=None)), "damaged"),
    "pixel threshold": (edit(lambda s: s.update(pixel_threshold="high")), "damaged"),
    "channels": (edit(lambda s: s.update(channels=3)), "damaged"),
    "cut weights": (cut, "not the file"),
    "cut and signed": (cut_and_signed, "doesn't fit"),
    "one bit": (flipped, "not the file"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "missing"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_detector_is_refused(refused, detector, files, tmp_path, case):
    change, reason = TAMPERED[case]
    shutil.copytree(detector, tmp_path / "run")
    change(tmp_path / "run")
    out = tmp_path / "out"
    message = refused("predict", tmp_path / "run", files / "good.png", "--out", out)
    assert reason in message and str(tmp_path / "run") in message
    assert not out.exists()


def test_no_detector_and_no_device(refused, detector, files, tmp_path):
    for folder in (files, tmp_path / "nowhere"):
        message = refused("predict", folder, files / "good.png", "--out", tmp_path / "o")
        assert "holds no detector" in message
    for command in (
        ("predict", detector, files / "good.png", "--out", tmp_path / "o"),
        ("evaluate", detector, "--cohort", files, "--out", tmp_path / "o"),
    ):
        assert "device 'quantum'" in refused(*command, "--device", "quantum")
    assert not (tmp_path / "o").exists()


# ---------------------------------------------------------------- evaluate


@pytest.mark.parametrize(
    "options, reason",
    [
        (("--split", "tset"), "Did you mean 'test'"),
        (("--group", "knid"), "Did you mean 'kind'"),
        (("--region", "somewhere"), "somewhere"),
        (("--grup", "kind"), "Did you mean '--group'"),
    ],
)
def test_evaluate_refuses(refused, detector, toy, tmp_path, options, reason):
    out = tmp_path / "out"
    assert reason in refused("evaluate", detector, "--cohort", toy(), "--out", out, *options)
    assert not out.exists()


def test_evaluate_refuses_an_empty_split(refused, detector, toy, tmp_path):
    table = pd.read_csv(toy(), dtype=str, keep_default_na=False)
    table[table["split"] != "extra"].to_csv(tmp_path / "table.csv", index=False)
    options = ("--root", toy().parent, "--split", "extra", "--out", tmp_path / "out")
    message = refused("evaluate", detector, "--cohort", tmp_path / "table.csv", *options)
    assert "no scans in the split 'extra'" in message and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- fit: arguments

ARGUMENTS = {
    "method": (("ae_dens",), "Did you mean 'ae_dense'"),
    "no method": ((), "name a method"),
    "option": (("mean_image", "--sise", 32), "Did you mean '--size'"),
    "preset": (("mean_image", "--preset", "tinny"), "Did you mean 'tiny'"),
    "reduction": (("mean_image", "--reduction", "maxx"), "Did you mean 'max'"),
    "step": (("mean_image", "--postprocess", '["erod=3"]'), "Did you mean 'erode'"),
    "step value": (("mean_image", "--postprocess", '["erode=x"]'), "'x' is no number"),
    "setting": (("mean_image", "--preprocess", '{"spacin": 1}'), "Did you mean 'spacing'"),
    "setting type": (("mean_image", "--preprocess", '{"spacing": "a"}'), "preprocess.spacing"),
    "setting float": (("mean_image", "--preprocess", '{"size": 16.5}'), "preprocess.size"),
    "setting null": (("mean_image", "--preprocess", '{"percentile": null}'), "percentile"),
    "setting choice": (("mean_image", "--preprocess", '{"crop": "brain"}'), "'foreground'"),
    "setting range": (("mean_image", "--preprocess", '{"size": 4}'), "8..4096"),
    "settings list": (("mean_image", "--preprocess", "[1]"), "--preprocess"),
    "int": (("mean_image", "--size", "abc"), "--size: Expected a int. Got value: abc"),
    "choice": (("ae_dense", "--norm", "x"), "--norm: Expected a Literal['batch', 'affine']"),
    "seed": (("mean_image", "--seed", "a"), "--seed"),
    "fpr": (("mean_image", "--fpr", 2), "between 0 and 1"),
    "fractions": (("mean_image", "--fractions", "[0.5, 0.5, 0.5]"), "sum to 1"),
    "size": (("ae_dense", "--size", 33), "Use size=32"),
    "negative size": (("mean_image", "--size", -3), "8..4096"),
    "negative width": (("ae_dense", "--latent", -1), "latent is -1"),
    "batch": (("ae_dense", "--batch_size", 0), "batch_size is 0"),
    "steps": (("ae_dense", "--steps", -1), "steps is -1"),
    "dims": (("mean_image", "--dims", 3), "scans are 2D"),
    "4 dims": (("mean_image", "--dims", 4), "2 or 3 spatial axes"),
    "patch": (("mean_image", "--patch", -4), "patch is -4"),
    "large patch": (("mean_image", "--patch", 64), "patch is 64"),
    "device": (("mean_image", "--device", "quantum"), "device 'quantum'"),
    "devices": (("mean_image", "--devices", 0), "x 0"),
    "precision": (("mean_image", "--precision", "12"), "precision '12'"),
    "config": (("mean_image", "--config", "none.yaml"), "none.yaml"),
    "weights": (("patchcore", "--weights", "/none/w.safetensors"), "/none/w.safetensors"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_fit_refuses_arguments(refused, toy, tmp_path, case):
    given, reason = ARGUMENTS[case]
    given = [str(g) for g in given]
    preset = [] if "--preset" in given else ["--preset", "tiny"]
    options = ("--cohort", toy(), "--out", tmp_path / "run", *preset)
    assert reason in refused("fit", *given[:1], *options, *given[1:])
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_is_none(refused):
    assert "Did you mean 'evaluate'" in refused("evalute")
    assert "required: run, scans" in refused("predict")


def test_patches_of_slices_are_refused(refused, toy, tmp_path):
    options = ("--cohort", toy(3), "--out", tmp_path / "run", "--preset", "tiny")
    message = refused("fit", "mean_image", *options, "--dims", 2, "--patch", 16)
    assert "use dims=3" in message and not (tmp_path / "run").exists()


def test_several_processes_need_a_folder(toy):
    with pytest.raises(ArgumentError, match="give out"):
        ns.create("mean_image", preset="tiny").fit(toy(), devices=2)


# ---------------------------------------------------------------- fit: cohorts


def test_cohorts_that_cant_be_trained_on(refused, toy, tmp_path):
    table = pd.read_csv(toy(), dtype=str, keep_default_na=False)
    root = toy().parent

    def fit(changed, *more):
        path = tmp_path / "table.csv"
        changed.to_csv(path, index=False)
        options = ("--root", root, "--out", tmp_path / "run", "--preset", "tiny")
        message = refused("fit", "mean_image", "--cohort", path, *options, *more)
        assert not (tmp_path / "run").exists()
        return message

    assert "no healthy scan" in fit(table.assign(label="1"))
    assert "no column label" in fit(table.drop(columns="label"))
    assert "no column path" in fit(table.drop(columns="path"))
    leaking = table[table["split"] != "extra"].copy()
    leaking.loc[leaking["split"] != "val", "subject"] = "one"
    assert "one in test and train" in fit(leaking)
    assert "the split 'tran'" in fit(table.replace({"split": {"train": "tran"}}))
    assert "isn't under" in fit(table.assign(path=[f"x{i}.npy" for i in range(len(table))]))
    assert "no such table" in refused(
        "fit", "mean_image", "--cohort", tmp_path / "none", "--out", tmp_path / "run"
    )
    assert "no such table" in refused("cohort", tmp_path / "none")


def test_training_scans_that_all_are_bad(refused, toy, tmp_path):
    table = pd.read_csv(toy(), dtype=str, keep_default_na=False)
    for i, row in enumerate(table.itertuples()):
        source = toy().parent / row.path
        target = tmp_path / row.path
        target.write_bytes(b"" if row.split == "train" else source.read_bytes())
        table.loc[i, "mask"] = ""
    table.to_csv(tmp_path / "cohort.csv", index=False)
    options = ("--cohort", tmp_path, "--out", tmp_path / "run", "--preset", "tiny")
    assert "no training scan can be read" in refused("fit", "mean_image", *options)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- fit: run folders


def test_a_finished_run_is_kept(refused, capsys, detector, toy):
    command = ("fit", "ae_dense", "--cohort", toy(), "--out", detector, "--preset", "tiny")
    before = state_of(detector)
    assert "a finished run" in refused(*command, "--steps", 4)
    message = refused(*command, "--steps", 5, "--resume")
    assert "other settings (arguments)" in message
    assert "(seed" in refused(*command, "--steps", 4, "--seed", 1, "--resume")
    assert run(*command, "--steps", 4, "--resume") == 0
    assert "was trained before" in capsys.readouterr().out
    assert state_of(detector) == before


def test_an_unfinished_run_goes_on_with_the_same_settings_only(refused, detector, toy, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(detector, folder)
    for name in ("detector.json", "model.safetensors", "card.md"):
        (folder / name).unlink()
    before = state_of(folder)
    options = ("--out", folder, "--preset", "tiny", "--steps", 4)
    command = ("fit", "ae_dense", "--cohort", toy(), *options)
    assert "an unfinished run" in refused(*command)
    assert "(fpr)" in refused(*command, "--fpr", 0.1, "--resume")
    assert "(method" in refused("fit", "mean_image", "--cohort", toy(), *options[:-2], "--resume")
    # The same settings on another cohort are another run.
    table = pd.read_csv(toy(), dtype=str, keep_default_na=False).drop(index=0)
    table.to_csv(tmp_path / "fewer.csv", index=False)
    other = ("--cohort", tmp_path / "fewer.csv", "--root", toy().parent, *options)
    assert "(cohort)" in refused("fit", "ae_dense", *other, "--resume")
    assert state_of(folder) == before
    assert run(*command, "--resume") == 0
    weights = "model.safetensors"
    assert (folder / weights).read_bytes() == (detector / weights).read_bytes()


def test_folders_that_are_no_runs(refused, toy, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    command = ("fit", "mean_image", "--cohort", toy(), "--out", folder, "--preset", "tiny")
    for more in ((), ("--resume",)):
        assert "is no run folder" in refused(*command, *more)
    (folder / "config.json").write_text("{")
    assert "damaged" in refused(*command, "--resume")
    assert (folder / "notes.txt").read_text() == "mine"


# ---------------------------------------------------------------- phantom


def test_phantom_refuses(refused, tmp_path):
    (tmp_path / "there").mkdir()
    assert "exists" in refused("phantom", "--out", tmp_path / "there")
    new = ("phantom", "--out", tmp_path / "new", "--spacing", 4)
    assert "Did you mean 'tumour'" in refused(*new, "--kinds", '["tumor"]')
    assert "--healty" in refused(*new, "--healty", 3)
    assert "T1" in refused(*new, "--modalities", '["T1"]')
    refused(*new, "--healthy", -1)
    refused(*new, "--dims", 4)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
