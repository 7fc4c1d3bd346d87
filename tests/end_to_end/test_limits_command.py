"""Detection limits as a user gets them: one command, files, and the same command again."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import normscan as ns
from normscan.cli.main import main
from normscan.limits import detection_limits
from normscan.limits.sources import scan_source
from normscan.planting.sites import BlobSite

FILES = {
    "limits.html",
    "limits.json",
    "limits.csv",
    "limits.png",
    "limits.svg",
    "limits.pdf",
    "plan.json",
}


def run(*arguments):
    return main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    """Return a function (method, dims) to a run folder."""
    made = {}

    def make(method="mean_image", dims=2):
        if (method, dims) not in made:
            out = tmp_path_factory.mktemp("limits") / "run"
            options = ("--preset", "tiny", "--device", "cpu", "--dims", dims)
            assert run("fit", method, "--cohort", toy(dims), "--out", out, *options) == 0
            made[method, dims] = out
        return made[method, dims]

    return make


GRID = ("--sizes", "[4, 8, 14]", "--contrasts", "[-2, 2, 6]", "--count", 4, "--replicates", 20)


def strict(path):
    def refuse(text):
        raise AssertionError(f"{path} holds {text}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_limits_of_a_cohort(trained, toy, tmp_path, capsys):
    model, out = trained(), tmp_path / "out"
    command = ("limits", model, "--cohort", toy(), "--out", out, *GRID)
    assert run(*command) == 0
    text = capsys.readouterr().out
    assert "36 lesions planted" in text and "smallest diameter in px" in text
    assert {p.name for p in out.iterdir()} == FILES
    rows = pd.read_csv(out / "limits.csv")
    assert len(rows) == 4 * (1 + 9) and rows["scan"].str.startswith("test0").all()
    stored = strict(out / "limits.json")
    assert stored["about"]["command"].startswith("normscan") and stored["about"]["fpr_wanted"]
    assert sum(stored["gate"]["planted"].values()) == 36
    # The same places, planted by hand and predicted as any other scan.
    detector = ns.load(model)
    source = scan_source(ns.Cohort.read(toy()), "test", 0)
    for number in (0, 3):
        place = source.site(number, 14.0)
        assert isinstance(place, BlobSite)
        part = rows[rows["site"] == number].set_index(["size", "contrast"])
        twin = detector.predict(place.twin, force=True)
        assert part.loc[(0, 0), "score"].item() == twin.score
        lesion = place.grow(8.0)(6.0)
        finding = detector.predict(lesion.scan, force=True)
        row = part.loc[(8.0, 6.0)]
        assert (row["score"], row["flagged"]) == (finding.score, finding.anomalous)
        new = finding.segmentation & ~twin.segmentation
        assert row["overlap"] == pytest.approx(new[lesion.mask].mean(), abs=1e-4)
    # The bigger and brighter, the more is found.
    cells = pd.DataFrame(stored["cells"]).query("level == 'lesion'")
    found = cells.set_index(["contrast", "size"])["found"]
    assert found[6, 14] >= found[2, 4] and found[6, 14] > 0
    before = (out / "limits.csv").read_bytes()
    assert run(*command) == 0  # all is there: nothing is predicted but the examples
    assert (out / "limits.csv").read_bytes() == before
    other = [*command[:-6], "--contrasts", "[3]", *command[-4:]]
    assert run(*other) == 2 and "another detector, cohort or grid" in capsys.readouterr().err


def test_limits_of_volumes(trained, toy, tmp_path):
    out = tmp_path / "out"
    options = ("--sizes", "[5, 9]", "--contrasts", "[5]", "--count", 2, "--replicates", 0)
    command = ("limits", trained("mean_image", 3), "--cohort", toy(3), "--out", out, *options)
    assert run(*command) == 0
    rows = pd.read_csv(out / "limits.csv").query("size > 0")
    ball = np.pi / 6 * rows["size"] ** 3
    assert (rows["extent"] / ball).between(0.85, 1.1).all()
    assert "slice" in (out / "limits.html").read_text()


def test_methods_that_only_score(trained, toy):
    detector = ns.load(trained("image_statistics"))
    limits = detection_limits(detector, toy(), sizes=[4, 12], contrasts=[8], count=3, replicates=10)
    assert limits.levels == ["scan"] and set(limits.table["level"]) == {"scan"}
    assert "segmented" not in str(limits)


def test_limits_on_new_subjects_of_a_phantom(tmp_path, capsys):
    cohort, model = tmp_path / "cohort", tmp_path / "run"
    assert run("phantom", "--out", cohort, "--healthy", 8, "--lesioned", 1, "--spacing", 5) == 0
    options = ("--preset", "tiny", "--device", "cpu")
    assert run("fit", "mean_image", "--cohort", cohort, "--out", model, *options) == 0
    grid = ("--sizes", "[15, 30]", "--count", 2, "--replicates", 5, "--contrasts")
    for kind, contrasts in (("blob", "[3]"), ("infarct", "[0.5, 2]")):
        out = tmp_path / kind
        more = ("--kind", kind, "--out", out, *grid, contrasts)
        assert run("limits", model, "--phantom", cohort, *more) == 0
        stored = strict(out / "limits.json")
        assert stored["about"]["simulated"] and "SIMULATED" in stored["notes"][0]
        rows = pd.read_csv(out / "limits.csv")
        assert set(rows["scan"]) == {"sub-010", "sub-011"}  # the cohort ends at 9
        assert set(rows["kind"]) == {"healthy", kind}
    capsys.readouterr()
    assert run("limits", model, "--phantom", cohort, "--cohort", cohort) == 2
    assert "not both" in capsys.readouterr().err
    assert run("limits", model, "--phantom", tmp_path) == 2
    assert "phantom.json" in capsys.readouterr().err


def test_bad_scans_are_told_and_left_out(trained, toy, tmp_path, capsys):
    table = pd.read_csv(toy(), dtype=str, keep_default_na=False)
    healthy = table[(table["split"] == "test") & (table["label"] == "0")].head(3).copy()
    healthy["path"] = [str(toy().parent / p) for p in healthy["path"]]
    torn = tmp_path / "torn.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((9, 9, 9), np.float32), np.eye(4)), torn)
    torn.write_bytes(torn.read_bytes()[:60])
    rest = table[table["split"] != "test"].copy()
    rest["path"] = [str(toy().parent / p) for p in rest["path"]]
    healthy.iloc[1, list(healthy).index("path")] = str(torn)
    pd.concat([rest, healthy]).to_csv(tmp_path / "cohort.csv", index=False)
    out = tmp_path / "out"
    options = ("--sizes", "[4, 8]", "--contrasts", "[2]", "--count", 3, "--replicates", 5)
    command = ("limits", trained(), "--cohort", tmp_path / "cohort.csv", "--out", out, *options)
    assert run(*command) == 0
    err = capsys.readouterr().err
    assert "left out: " in err and "torn" in err
    stored = strict(out / "limits.json")
    assert [c["planted"] for c in stored["cells"]] == [2] * 4
    assert len(stored["failures"]) == 1 and str(tmp_path) not in json.dumps(stored["failures"])
