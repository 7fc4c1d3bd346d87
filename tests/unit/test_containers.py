"""The containers' recipes, as far as they can be tried without an engine, and the command inside."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

import normscan as ns
from normscan.cli.main import COMMANDS, main
from normscan.cli.mood import unit

ROOT = Path(__file__).parents[2]
MOOD = ROOT / "examples" / "mood"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Volumes with an oblique affine, a detector of them, and what the challenge hands in."""
    home = tmp_path_factory.mktemp("mood")
    rng = np.random.default_rng(0)
    turn = np.array([[1.2, 0.1, 0, 5], [-0.1, 1.1, 0, -3], [0, 0, 2.0, 7], [0, 0, 0, 1]])
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in (16, 18, 12)), indexing="ij")
    organ = 100 * (i**2 + j**2 + k**2 < 0.9) * (1 + 0.5 * i)

    def image():
        return (organ + rng.normal(0, 2, organ.shape)).astype(np.float32)

    lines = ["path,label,split"]
    for split, count in (("train", 6), ("val", 3)):
        for i in range(count):
            nib.save(nib.Nifti1Image(image(), turn), home / f"{split}{i}.nii.gz")
            lines.append(f"{split}{i}.nii.gz,0,{split}")
    (home / "cohort.csv").write_text("\n".join(lines) + "\n")
    (home / "data").mkdir()
    (home / "labels").mkdir()
    for i in range(4):
        array, label = image(), np.zeros(organ.shape, np.uint8)
        if i % 2:
            label[4:9, 6:10, 4:8] = 1
            array += 60 * label
        nib.save(nib.Nifti1Image(array, turn), home / "data" / f"toy_{i}.nii.gz")
        nib.save(nib.Nifti1Image(label, turn), home / "labels" / f"toy_{i}.nii.gz")
    fit = ["fit", "mean_image", "--cohort", str(home / "cohort.csv"), "--dims", "3", "--size", "16"]
    for organ in ("brain", "abdom"):
        assert main([*fit, "--calibration", "split", "--out", str(home / "detectors" / organ)]) == 0
    return home


def script(name, folder, out):
    """Run a script as the challenge does, with the command of this interpreter."""
    bin = out.parent / "bin"
    bin.mkdir(exist_ok=True)
    command = bin / "normscan"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m normscan.cli.main "$@"\n')
    command.chmod(0o755)
    settings = {
        "PATH": f"{bin}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path),
        "DETECTORS": str(folder / "detectors"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.run(
        ["sh", str(MOOD / name), str(folder / "data"), str(out)],
        capture_output=True, text=True, env=settings, timeout=300, check=False,
    )  # fmt: skip


def test_maps_are_what_the_challenge_takes(folder, tmp_path):
    """The same names and shapes, values that survive its half precision, and AP by scikit-learn."""
    done = script("run_pixel_brain.sh", folder, tmp_path / "pred")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "pred").iterdir()} == {f"toy_{i}.nii.gz" for i in range(4)}
    truth, told, raw = [], [], []
    detector = ns.load(folder / "detectors" / "brain", "cpu")
    for path in sorted((tmp_path / "pred").iterdir()):
        map, scan = nib.load(path), nib.load(folder / "data" / path.name)
        assert map.shape == scan.shape
        np.testing.assert_allclose(map.affine, scan.affine, atol=1e-5)
        values = map.get_fdata(dtype=np.float16)
        assert values.min() >= 0 and values.max() <= 1 and len(np.unique(values)) > 100
        truth.append(np.rint(nib.load(folder / "labels" / path.name).get_fdata()).ravel() == 1)
        told.append(values.ravel())
        raw.append(detector.predict(folder / "data" / path.name, force=True).map.ravel())
    truth, told, raw = map_all(truth), map_all(told), map_all(raw)
    assert average_precision_score(truth, told) == pytest.approx(
        average_precision_score(truth, raw), abs=0.01
    )
    assert average_precision_score(truth, told) > 3 * truth.mean()


def map_all(parts):
    return np.concatenate(parts)


def test_numbers_are_what_the_challenge_takes(folder, tmp_path):
    done = script("run_sample_abdom.sh", folder, tmp_path / "pred")
    assert done.returncode == 0, done.stderr
    names = [f"toy_{i}.nii.gz.txt" for i in range(4)]
    assert sorted(p.name for p in (tmp_path / "pred").iterdir()) == names
    found = [float((tmp_path / "pred" / n).open().readline()) for n in names]
    assert all(0 <= value <= 1 for value in found)
    detector = ns.load(folder / "detectors" / "abdom", "cpu")
    raw = [detector.predict(folder / "data" / n[:-4], force=True).score for n in names]
    assert list(rankdata(found)) == list(rankdata(raw))


def test_a_bad_scan_has_no_file_and_the_rest_has(folder, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    shutil.copy(folder / "data" / "toy_0.nii.gz", tmp_path / "data" / "toy_0.nii.gz")
    (tmp_path / "data" / "torn.nii.gz").write_bytes(b"torn")
    command = ["mood", "sample", str(tmp_path / "data"), str(tmp_path / "pred")]
    assert main([*command, "--run", str(folder / "detectors" / "brain")]) == 1
    assert [p.name for p in (tmp_path / "pred").iterdir()] == ["toy_0.nii.gz.txt"]
    assert "torn.nii.gz: left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "reason"),
    [(["voxel", "data", "pred"], "Literal|pixel or sample"), (["pixel", "none", "pred"], "no such folder"),
     (["pixel", "labels/..", "pred"], "no detector")],
)  # fmt: skip
def test_wrong_requests_are_explained(folder, tmp_path, capsys, given, reason):
    task, data, out = given
    try:
        code = main(["mood", task, str(folder / data), str(tmp_path / out), "--run", str(tmp_path)])
    except SystemExit as ended:
        code = ended.code
    assert code == 2 and re.search(reason, capsys.readouterr().err)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30),
    st.one_of(st.none(), st.floats(-1e3, 1e3)),
)
def test_the_order_stays(values, threshold):
    """In 0..1, the threshold in the middle, and never two values turned around (scipy's ranks)."""
    found = unit(np.array(values), threshold)
    assert ((found >= 0) & (found <= 1)).all()
    assert float(unit(np.float64(threshold or 0.0), threshold)) == 0.5
    order = np.argsort(values, kind="stable")
    assert (np.diff(found[order]) >= 0).all()


# ---------------------------------------------------------------------------- recipes


def sections(text):
    """Stages of a definition file, each with its header and its sections by name."""
    stages = []
    for line in text.splitlines():
        if line.startswith("Bootstrap:"):
            stages.append({"": ""})
            current = ""
        if line.startswith("%"):
            current = line[1:].strip()
            assert current not in stages[-1], f"{current} stands there twice"
            stages[-1][current] = ""
        elif stages:
            stages[-1][current] += f"{line}\n"
    return stages


KNOWN = {"", "files", "post", "environment", "runscript", "test", "labels", "help", "arguments",
         "files from page", "apprun normscan"}  # fmt: skip


@pytest.fixture(scope="module")
def stages():
    return sections((ROOT / "apptainer.def").read_text(encoding="utf-8"))


def test_the_recipe_for_apptainer_has_its_sections(stages):
    assert len(stages) == 2 and all(set(stage) <= KNOWN for stage in stages)
    for stage in stages:
        head = dict(line.split(": ", 1) for line in stage[""].splitlines() if line)
        assert set(head) == {"Bootstrap", "From", "Stage"} and head["Bootstrap"] == "docker"
    assert stages[-1]["runscript"].strip() == 'exec normscan-bids "$@"'
    docker = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    bases = [dict(h.split(": ", 1) for h in s[""].splitlines() if h)["From"] for s in stages]
    assert bases == re.findall(r"^FROM (\S+)", docker, re.MULTILINE), "as in the Dockerfile"


def test_what_the_recipe_copies_is_there(stages):
    for stage in stages:
        for line in stage["files"].splitlines():
            if line.strip():
                source, target = line.split()
                assert (ROOT / source).exists() and target.startswith("/src/"), line
    (copied,) = [line.split() for line in stages[1]["files from page"].splitlines() if line.strip()]
    web = (ROOT / "web" / "vite.config.ts").read_text(encoding="utf-8")
    assert copied[0].removeprefix("/src/src/") in web.replace("../src/", "")


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_scripts_of_the_recipe_are_shell(stages, shell, tmp_path):
    """Parsed by the shells, and each argument of the recipe is one that it declares."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    for stage in stages:
        declared = re.findall(r"^\s+(\w+)=", stage.get("arguments", ""), re.MULTILINE)
        for name in ("post", "environment", "runscript", "test", "apprun normscan"):
            text = stage.get(name, "")
            assert set(re.findall(r"{{ (\w+) }}", text)) <= set(declared)
            (tmp_path / "script").write_text(re.sub(r"{{ \w+ }}", "x", text))
            subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


def test_the_recipes_pin_the_same(stages):
    docker = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    torch = re.search(r'ARG TORCH="([^"]+)"', docker)[1]
    assert f"torch={torch}\n" in stages[1]["arguments"]
    assert torch in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_commands_in_the_recipes_exist(stages):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) >= {"normscan", "normscan-bids"}
    named = re.findall(r"^\s*normscan ([a-z]+)", stages[1]["test"], re.MULTILINE)
    assert named and set(named) <= set(COMMANDS)


def test_the_container_of_the_challenge_copies_what_is_there():
    text = (MOOD / "Dockerfile").read_text(encoding="utf-8")
    copied = [
        part for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for part in line.split()
    ]
    scripts = {part for part in copied if part.endswith(".sh")}
    assert scripts == {p.name for p in MOOD.glob("*.sh")}
    tasks = {f"run_{t}_{o}.sh" for t in ("pixel", "sample") for o in ("brain", "abdom")}
    assert scripts == tasks and "ENTRYPOINT []" in text
