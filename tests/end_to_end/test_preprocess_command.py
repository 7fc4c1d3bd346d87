"""Preparing a cohort on disk, and a detector whose preparation has steps, as a user does both."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation
from tests.toy import toy_scan

import normscan as ns
from normscan.cli.main import main
from normscan.errors import ScanError
from normscan.preprocess.steps import STEPS, Working, sample, step

ERROR = "normscan: error: "
STEPS_OPTION = '["reorient", {"resample": {"spacing": 2.5}}]'
SLOW_STEPS = '["reorient", {"resample": {"spacing": 0.5}}]'
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMSCAN_CACHE", str(tmp_path / "step cache"))
    yield
    for name in ("home", "level"):
        STEPS.pop(name, None)


def run(*arguments):
    return main([str(a) for a in arguments])


AFFINE = np.eye(4)
AFFINE[:3, :3] = Rotation.from_euler("xyz", [8, -5, 12], degrees=True).as_matrix() @ np.diag(
    [1.0, -1.3, 4.0]
)
AFFINE[:3, 3] = (-12.0, 30.0, 5.0)


def save(path, data, affine=AFFINE):
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), path)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Oblique volumes with lesion and foreground masks and columns; one file is torn."""
    folder = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(5)
    rows = []
    for i in range(9):
        lesion = i >= 7
        image, mask = toy_scan(rng, 3, 1, lesion)
        image, mask = image[0][:, :, ::2], mask[:, :, ::2]
        name = f"v{i:02d}"
        save(folder / f"{name}.nii.gz", image * 1000)
        save(folder / f"{name}_fg.nii.gz", image > 0)
        row = {"path": f"{name}.nii.gz", "subject": f"p{i}", "label": int(lesion), "age": 40 + i}
        row |= {"split": "train" if i < 4 else "val" if i < 6 else "test", "site": "north"}
        row["foreground"] = f"{name}_fg.nii.gz" if i % 2 else ""
        if lesion:
            save(folder / f"{name}_mask.nii.gz", mask)
            row["mask"] = f"{name}_mask.nii.gz"
        rows.append(row)
    whole = (folder / "v00.nii.gz").read_bytes()
    (folder / "torn.nii.gz").write_bytes(whole[: len(whole) // 2])
    rows.insert(3, {"path": "torn.nii.gz", "subject": "t", "label": 0, "split": "train", "age": 5})
    pd.DataFrame(rows).fillna("").to_csv(folder / "cohort.csv", index=False)
    return folder


def prepare(cohort, out, *more, steps=STEPS_OPTION):
    return run("preprocess", cohort, "--steps", steps, "--out", out, *more)


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def prepared(volumes, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMSCAN_CACHE", "off")
        assert prepare(volumes, out) == 0
    return out


# ---------------------------------------------------------------- a cohort on disk


def test_the_cohort_is_written_as_a_cohort(volumes, prepared):
    before, after = ns.Cohort.read(volumes), ns.Cohort.read(prepared)
    good = [row for row in before if row.scan != "torn"]
    assert len(after) == len(good) == 9
    for old, new in zip(good, after, strict=True):
        for name in ("scan", "subject", "label", "split", "site"):
            assert getattr(old, name) == getattr(new, name)
        assert new.columns["age"] == old.columns["age"]
        assert (old.mask is None) == (new.mask is None)
        assert (old.foreground is None) == (new.foreground is None)
        scan = new.load()
        np.testing.assert_allclose(scan.spacing, 2.5, rtol=1e-5)
        assert nib.aff2axcodes(scan.affine) == ("R", "A", "S")
        assert new.load_foreground(scan) is None or new.load_foreground(scan).any()


def test_images_and_masks_lie_at_their_millimetres(volumes, prepared):
    cohort = {row.scan: row for row in ns.Cohort.read(prepared)}
    for old in ns.Cohort.read(volumes):
        if not old.mask:
            continue
        new = cohort[old.scan]
        about = json.loads((prepared / "transforms" / f"{old.scan}.json").read_text())
        source, found = old.load(), new.load()
        index_map = np.linalg.inv(found.affine) @ source.affine
        np.testing.assert_allclose(about["index_map"], index_map, atol=1e-4)
        np.testing.assert_array_equal(about["to_world"], np.eye(4))
        assert (tuple(about["shape"]), tuple(about["origin_shape"])) == (found.shape, source.shape)
        lesion = source.data[0] * 0 + old.load_mask(source)
        expected = sample(lesion[None], np.linalg.inv(index_map), found.shape, order=0)[0] > 0.5
        mask = new.load_mask(found)
        assert mask.any() and (mask == expected).mean() > 0.999
        # The lesion is a few voxels of 4 mm, sampled at the nearest of 2.5 mm; the head is large.
        assert apart(source, old.load_mask(source), found, mask) < 2.0
        if old.foreground:
            masks = old.load_foreground(source), new.load_foreground(found)
            assert apart(source, masks[0], found, masks[1]) < 0.4


def apart(first, first_mask, second, second_mask):
    """Millimetres between the centres of two masks."""
    pairs = ((first, first_mask), (second, second_mask))
    centres = [nib.affines.apply_affine(s.affine, np.argwhere(m)).mean(axis=0) for s, m in pairs]
    return np.linalg.norm(centres[0] - centres[1])


def test_bad_scans_are_told_and_left_out(volumes, tmp_path, capsys):
    assert prepare(volumes, tmp_path / "out") == 0
    out, err = capsys.readouterr()
    assert err.count("torn: left out: ") == 1 and "torn.nii.gz: this NIfTI is" in err
    assert "9 of 10 scans prepared, 1 left out" in out
    assert f"--cohort {tmp_path / 'out' / 'cohort.csv'}" in out


def test_any_number_of_processes_writes_the_same_bytes(volumes, prepared, tmp_path):
    assert prepare(volumes, tmp_path / "out", "--workers", 2) == 0
    assert content(tmp_path / "out") == content(prepared)


def test_finished_scans_are_kept_and_changed_ones_made_again(volumes, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(volumes, folder)
    assert prepare(folder, out) == 0
    before = content(out)
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.nii.gz")}
    capsys.readouterr()
    assert prepare(folder, out) == 0
    assert "0 of 10 scans prepared, 9 were there already" in capsys.readouterr().out
    assert times == {p: p.stat().st_mtime_ns for p in out.rglob("*.nii.gz")}
    image = nib.load(folder / "v05.nii.gz")
    save(folder / "v05.nii.gz", image.get_fdata() + 1, image.affine)
    (out / "scans/v02.nii.gz").write_bytes(b"torn")
    (out / "transforms/v03.json").write_text("{")
    assert prepare(folder, out) == 0
    assert "3 of 10 scans prepared, 6 were there already" in capsys.readouterr().out
    after = content(out)
    changed = {str(p) for p in before if before[p] != after[p]}
    assert changed == {"scans/v05.nii.gz", "transforms/v05.json"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--steps", '["reorient"]'), "other steps"),
        (("--preset", "brain-mir"), "Did you mean 'brain-mri'"),
        (("--steps", '["reorent"]'), "Did you mean 'reorient'"),
        ((), "--preset or --steps"),
        (("--steps", STEPS_OPTION, "--workers", "0"), "workers is 0"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line(volumes, prepared, capsys, options, reason):
    before = content(prepared)
    assert run("preprocess", volumes, "--out", prepared, *options) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and err[0].startswith(ERROR) and reason in err[0]
    assert content(prepared) == before


def test_a_folder_of_something_else_is_left_alone(volumes, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert prepare(volumes, tmp_path) == 2
    assert "holds no prepared cohort" in capsys.readouterr().err
    assert prepare(volumes, tmp_path / "mine.txt") == 2
    (tmp_path / "bad").mkdir()
    table = tmp_path / "bad" / "cohort.csv"
    table.write_text(f"path,label\n{volumes / 'torn.nii.gz'},0\n")
    capsys.readouterr()
    assert prepare(table, tmp_path / "none") == 2
    err = capsys.readouterr().err
    assert "no scan of the cohort could be prepared: " in err and "torn.nii.gz" in err


def leftovers(session):
    found = subprocess.run(
        ["ps", "-o", "pid=,stat=", "-s", str(session)], capture_output=True, text=True
    )
    return [line for line in found.stdout.splitlines() if " Z" not in line]


def stop(volumes, out, sign, workers):
    """Start to prepare, stop it after the first scan; return its exit code and its errors."""
    command = [
        sys.executable,
        "-m",
        "normscan.cli.main",
        "preprocess",
        str(volumes),
        "--out",
        str(out),
    ]
    command += ["--steps", SLOW_STEPS, "--workers", workers]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        # Where the tests run in the background of a shell, SIGINT is ignored and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    end = time.monotonic() + 60
    # Not a draft, which a signal may keep from its place.
    while not list(out.glob("transforms/[!.]*.json")) and time.monotonic() < end:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    if sign == signal.SIGINT:
        os.killpg(process.pid, sign)  # as a terminal does on Ctrl-C
    else:
        process.send_signal(sign)
    _, err = process.communicate(timeout=30)
    end = time.monotonic() + 10
    while leftovers(process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    left = leftovers(process.pid)
    if left:
        os.killpg(process.pid, signal.SIGKILL)
    assert not left
    return process.returncode, err


@pytest.fixture(scope="module")
def straight(volumes, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMSCAN_CACHE", "off")
        assert prepare(volumes, out, steps=SLOW_STEPS) == 0
    return content(out)


@pytest.mark.parametrize(
    ("sign", "workers"),
    [(signal.SIGKILL, "2"), (signal.SIGINT, "1"), (signal.SIGINT, "2")],
    ids=["killed", "ctrl-c", "ctrl-c of two"],
)
def test_a_stopped_run_goes_on(volumes, straight, tmp_path, sign, workers, capsys):
    out = tmp_path / "out"
    code, err = stop(volumes, out, sign, workers)
    assert code == (-signal.SIGKILL if sign == signal.SIGKILL else 130)
    if sign == signal.SIGINT:
        assert "Traceback" not in err and "the same command goes on" in err
    done = len(list(out.glob("transforms/*.json")))
    assert 1 <= done < 9 and not (out / "cohort.csv").exists()
    assert prepare(volumes, out, steps=SLOW_STEPS) == 0
    assert f"{9 - done} of 10 scans prepared, {done} were there already" in capsys.readouterr().out
    assert content(out) == straight


def test_pictures_and_their_channels_are_written(tmp_path):
    rng = np.random.default_rng(2)
    folder = tmp_path / "in"
    folder.mkdir()
    rows = []
    for i in range(3):
        colour = rng.integers(0, 255, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(colour).save(folder / f"c{i}.png")
        lesion = np.zeros((24, 30), np.uint8)
        lesion[5:9, 10:20] = 255
        Image.fromarray(lesion).save(folder / f"m{i}.png")
        rows.append({"path": f"c{i}.png", "label": 1, "mask": f"m{i}.png", "split": "test"})
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    out = tmp_path / "out"
    assert prepare(folder, out, steps='["full_range", "dermoscopy_fov"]') == 0
    for old, new in zip(ns.Cohort.read(folder), ns.Cohort.read(out), strict=True):
        source, scan = old.load(), new.load()
        assert new.channels == ("red", "green", "blue") and new.paths[0].suffix == ".tif"
        assert scan.shape == source.shape and scan.spacing == (1.0, 1.0)
        np.testing.assert_array_equal(scan.data, (source.data / np.float32(255)).astype("f4"))
        np.testing.assert_array_equal(new.load_mask(scan), old.load_mask(source))
        assert new.load_foreground(scan).any()


def test_the_written_cohort_trains_a_detector(prepared, tmp_path):
    options = ("--preset", "tiny", "--device", "cpu", "--steps", 2, "--size", 16)
    assert run("fit", "ae_dense", "--cohort", prepared, "--out", tmp_path / "run", *options) == 0
    assert ns.load(tmp_path / "run").training["samples"]["train"] > 4


def test_the_steps_are_listed(capsys):
    assert run("steps") == 0
    text = capsys.readouterr().out
    assert "reorient" in text and "brain-mri" in text and "arguments: spacing" in text
    assert run("steps", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {"resample", "window"} <= {row["step"] for row in found["steps"]}
    assert found["presets"]["brain-ct"]["steps"][0] == "reorient"
    assert all(row["summary"] for row in found["steps"])


# ---------------------------------------------------------------- a detector with steps


def planted(rng, place=None, shape=(26, 22, 14)):
    """A dim ball on an oblique grid; a bright spot at an index."""
    r = np.sqrt(
        sum(
            ((g - (n - 1) / 2) / (0.4 * n)) ** 2
            for g, n in zip(np.indices(shape), shape, strict=True)
        )
    )
    data = np.where(r < 1, 0.5, 0.0) + np.where(r < 1, rng.normal(0, 0.005, shape), 0)
    if place is not None:
        away = np.abs(np.indices(shape) - np.reshape(place, (3, 1, 1, 1)))
        data[(away[0] <= 2) & (away[1] <= 2) & (away[2] <= 1)] = 1.0
    return data * rng.uniform(0.98, 1.02)


def register_home(log):
    """A registration that brings the middle of each scan to 0 mm, and a step that learns."""

    @step("home")
    def home(working: Working) -> Working:
        """Centre and turn the patient."""
        scan = working.scan
        world = np.eye(4)
        world[:3, :3] = Rotation.from_euler("xyz", [-8, 5, -12], degrees=True).as_matrix()
        middle = scan.affine @ [*((np.array(scan.shape) - 1) / 2), 1]
        world[:3, 3] = -(world[:3, :3] @ middle[:3])
        return working.moved(scan.data, world @ scan.affine, working.foreground, world)

    def learn(workings, top=None):
        peaks = [float(w.scan.data.max()) for w in workings]
        log.append(len(peaks))
        return {"top": round(float(np.median(peaks)), 6)}

    @step("level", learn=learn)
    def level(working: Working, top: float | None = None) -> Working:
        """Bring the healthy peak to 1."""
        if top is None:
            raise ScanError(f"{working.scan.name}: level was not learnt")
        return working.with_image(working.scan.data / top).noted("levelled", top=top)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_detector_with_steps_finds_the_lesion_where_it_is(tmp_path, capsys, dims):
    log = []
    register_home(log)
    rng = np.random.default_rng(1)
    place = (17, 9, 8)
    rows = []
    for i in range(12):
        save(tmp_path / f"h{i}.nii.gz", planted(rng))
        rows.append({"path": f"h{i}.nii.gz", "label": 0, "split": "train" if i < 7 else "val"})
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
    save(tmp_path / "sick.nii.gz", planted(rng, place))
    steps = ["home", "reorient", {"resample": {"spacing": 1.3}}, "level"]
    settings = json.dumps({"steps": steps, "scaling": "none", "crop": "none", "foreground": "all"})
    command = ("fit", "mean_image", "--cohort", tmp_path / "cohort.csv", "--dims", dims)
    command += ("--size", 32, "--device", "cpu", "--preprocess", settings)
    out = tmp_path / "run"
    assert run(*command, "--out", out) == 0
    assert log == [7]
    saved = json.loads((out / "detector.json").read_text())["configuration"]["preprocess"]
    assert saved["steps"][:3] == steps[:3] and 0.4 < saved["steps"][3]["level"]["top"] < 0.7
    assert "home, reorient, resample, level" in (out / "card.md").read_text()

    assert run("predict", out, tmp_path / "sick.nii.gz", "--out", tmp_path / "found") == 0
    text = capsys.readouterr().out
    assert "anomalous" in text and "  note: levelled" in text
    about = json.loads((tmp_path / "found/sick_finding.json").read_text())
    assert about["preprocessing"]["facts"] == saved["steps"][3]["level"]
    assert about["preprocessing"]["notes"] == ["levelled"]
    found = nib.load(tmp_path / "found/sick_map.nii.gz")
    stored = nib.load(tmp_path / "sick.nii.gz")
    assert found.shape == stored.shape
    np.testing.assert_allclose(found.affine, stored.affine, atol=1e-5)
    values = found.get_fdata()
    peak = np.unravel_index(values.argmax(), values.shape)
    assert (np.abs(np.subtract(peak, place)) <= (2, 2, 1)).all()
    hot = nib.affines.apply_affine(AFFINE, np.argwhere(values > 0.6 * values.max())).mean(axis=0)
    # In 2D one mean stands for all slices, so the ends of the spot, 12 mm apart, weigh unevenly.
    away = np.linalg.norm(hot - nib.affines.apply_affine(AFFINE, place))
    assert away < (1.0 if dims == 3 else 2.5)

    # Restoration, prepared scan and foreground come back the same way.
    detector = ns.load(out)
    finding = detector.predict(tmp_path / "sick.nii.gz")
    np.testing.assert_array_equal(finding.map, values.astype(np.float32))
    assert finding.foreground.shape == stored.shape and finding.foreground.mean() > 0.9
    if finding.prepared is not None:
        level = finding.prepared[0][place] / finding.prepared[0][13, 11, 7]
        assert level == pytest.approx(2, rel=0.15)
    # Without the cache, and again with it, the same bits.
    detector.cache = False
    np.testing.assert_array_equal(detector.predict(tmp_path / "sick.nii.gz").map, finding.map)

    # Fitting again learns again, from what was asked for.
    detector = ns.create("mean_image", dims=dims, size=32, preprocess=json.loads(settings))
    first = detector.fit(tmp_path / "cohort.csv", device="cpu").preprocess
    brighter = tmp_path / "bright"
    brighter.mkdir()
    for i in range(12):
        save(brighter / f"h{i}.nii.gz", 3 * planted(rng))
    shutil.copy(tmp_path / "cohort.csv", brighter)
    second = detector.fit(brighter, device="cpu").preprocess
    tops = [p.steps[3]["level"]["top"] for p in (first, second)]
    assert tops[1] == pytest.approx(3 * tops[0], rel=0.05)
    assert detector._asked[0].steps[3] == "level"


def test_fit_with_processes_makes_the_same_detector(volumes, tmp_path):
    options = ("--preset", "tiny", "--device", "cpu", "--steps", 2)
    options += ("--preprocess", f'{{"steps": {STEPS_OPTION}}}')
    weights = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        command = ("fit", "ae_dense", "--cohort", volumes, "--out", out, *options)
        assert run(*command, "--workers", workers) == 0
        weights.append((out / "model.safetensors").read_bytes())
        assert ns.load(out).training["left_out"] == ["torn"]
    assert weights[0] == weights[1]


def test_a_detector_of_before_there_were_steps_loads(toy, tmp_path):
    options = ("--preset", "tiny", "--device", "cpu", "--steps", 2)
    assert run("fit", "ae_dense", "--cohort", toy(), "--out", tmp_path / "run", *options) == 0
    scan = ns.Cohort.read(toy())[0].load()
    score = ns.load(tmp_path / "run").predict(scan).score
    path = tmp_path / "run/detector.json"
    state = json.loads(path.read_text())
    for name in ("steps", "preset"):
        del state["configuration"]["preprocess"][name]
    path.write_text(json.dumps(state))
    assert ns.load(tmp_path / "run").predict(scan).score == score


def test_unknown_presets_and_steps_are_refused_before_training(toy, tmp_path, capsys):
    for settings, reason in (
        ('{"preset": "brain-mir"}', "Did you mean 'brain-mri'"),
        ('{"steps": ["resampel"]}', "Did you mean 'resample'"),
        ('{"steps": "reorient"}', "preprocess.steps"),
        ('{"steps": ["resample=-1"]}', "must be positive"),
    ):
        command = ("fit", "mean_image", "--cohort", toy(), "--out", tmp_path / "run")
        capsys.readouterr()
        assert run(*command, "--preprocess", settings, "--device", "cpu") == 2
        lines = [t for t in capsys.readouterr().err.splitlines() if t.startswith(ERROR)]
        assert len(lines) == 1 and reason in lines[0]
        assert not (tmp_path / "run").exists()
