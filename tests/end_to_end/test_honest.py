"""Results are never replaced or lost, and figures say what they rest on."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

import normscan as ns
import normscan.errors
from normscan.cli.main import main
from normscan.evaluation.columns import OWN, column_name

TINY = ("--preset", "tiny", "--device", "cpu", "--calibration", "split")


def run(*arguments):
    try:
        return main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures without a spacing; the anomalous have a bright square, and a mask of it."""
    path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(2)
    rows = []
    for i in range(20):
        label = int(i >= 16)
        image = rng.integers(60, 120, (40, 36)).astype(np.uint8)
        mask = np.zeros_like(image)
        if label:
            mask[8:20, 10:20] = 255
            image[mask > 0] = 255
            Image.fromarray(mask).save(path / f"p{i:02d}_mask.png")
        Image.fromarray(image).save(path / f"p{i:02d}.png")
        split = "test" if i >= 12 else "val" if i >= 9 else "train"
        rows.append(
            {
                "path": f"p{i:02d}.png", "label": label, "split": split,
                "mask": f"p{i:02d}_mask.png" if label else "",
                "site": "AB"[i % 2],
            }
        )  # fmt: skip
    pd.DataFrame(rows).to_csv(path / "cohort.csv", index=False)
    return path


@pytest.fixture(scope="module")
def detector(folder):
    out = folder / "run"
    assert run("fit", "mean_image", "--cohort", folder / "cohort.csv", "--out", out, *TINY) == 0
    return out


def test_columns_of_the_cohort_replace_nothing(folder, detector, tmp_path, capsys):
    table = pd.read_csv(folder / "cohort.csv", keep_default_na=False)
    plain, bad = tmp_path / "plain", tmp_path / "bad"
    options = ("--baselines", "false", "--out")
    assert run("evaluate", detector, "--cohort", folder / "cohort.csv", *options, plain) == 0
    n = len(table)
    table = table.assign(
        score=range(n, 0, -1), p_value=0.5, anomalous="no", quality="good", seconds=9, seen="often"
    )
    table.to_csv(folder / "bad.csv", index=False)
    assert run("evaluate", detector, "--cohort", folder / "bad.csv", *options, bad) == 0
    one, two = (json.loads((p / "results.json").read_text()) for p in (plain, bad))
    assert one["metrics"] == two["metrics"]
    scans = pd.read_csv(bad / "scans.csv")
    assert two["metrics"]["image_auroc"]["value"] == pytest.approx(
        roc_auc_score(scans["label"], scans["score"])
    )
    assert (scans["cohort_anomalous"] == "no").all() and scans[
        "cohort_score"
    ].is_monotonic_decreasing
    capsys.readouterr()
    assert run("subgroups", bad, "--column", "quality", "--json") == 0
    assert [g["group"] for g in json.loads(capsys.readouterr().out)] == ["good"]
    assert run("subgroups", bad, "--column", "site", "--json") == 0
    assert [g["group"] for g in json.loads(capsys.readouterr().out)] == ["A", "B"]


def test_names_of_columns_stay_apart():
    free = ["score", "cohort_score", "cohort_cohort_score", "age", "cohort_age", *OWN]
    named = {column_name(name) for name in free}
    assert len(named) == len(set(free)) and not named & set(OWN)
    assert column_name("age") == "age"


def test_a_reader_that_goes_away_stops_no_work(folder, detector, tmp_path, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    files = sorted(folder.glob("p?[0-9].png"))[:5]
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run("predict", detector, *files, "--out", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").glob("*_finding.json"))) == 5


def test_a_full_disk_behind_the_output_stops_no_work(
    folder, detector, tmp_path, monkeypatch, capsys
):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run("predict", detector, folder / "p00.png", "--out", tmp_path / "out") == 2
        monkeypatch.undo()
    assert "standard output: can't be written" in capsys.readouterr().err
    assert (tmp_path / "out" / "p00_finding.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux")
def test_no_name_ends_a_batch(folder, detector, tmp_path, monkeypatch):
    names = [os.fsdecode(b"caf\xe9.png"), "a" * 240 + ".png", "ü中.png", "b\tc.png", "good.png"]
    for name in names:
        shutil.copy(folder / "p00.png", tmp_path / name)
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    out = tmp_path / "out"
    assert run("predict", detector, *(tmp_path / name for name in names), "--out", out) == 0
    ascii_only.seek(0)
    assert ascii_only.read().count(": score") == 5
    found = list(out.glob("*_finding.json"))
    assert len(found) == 5 and all(p.name.isprintable() and len(p.name) < 255 for p in found)
    assert {p.name for p in found} >= {"good_finding.json", "ü中_finding.json"}


def test_some_failed_is_1_and_all_failed_2(folder, detector, tmp_path):
    good, bad = folder / "p00.png", folder / "nope.png"
    assert run("predict", detector, good, "--out", tmp_path / "a") == 0
    assert run("predict", detector, good, bad, "--out", tmp_path / "b") == 1
    assert run("predict", detector, bad, "--out", tmp_path / "c") == 2


def test_an_evaluation_of_other_scans_is_kept(folder, detector, tmp_path, capsys):
    options = ("--cohort", folder / "cohort.csv", "--baselines", "false", "--out", tmp_path / "out")
    assert run("evaluate", detector, *options) == 0
    assert run("evaluate", detector, *options) == 0
    before = (tmp_path / "out" / "results.json").read_bytes()
    assert run("evaluate", detector, *options, "--split", "val") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.json").read_bytes() == before
    assert run("evaluate", detector, *options, "--split", "val", "--overwrite") == 0
    assert "set its threshold" in capsys.readouterr().out
    assert set(pd.read_csv(tmp_path / "out" / "scans.csv")["seen"]) == {"calibrated"}


def test_no_millimetres_without_a_spacing(folder, detector, tmp_path, capsys):
    out = tmp_path / "out"
    options = ("--cohort", folder / "cohort.csv", "--baselines", "false", "--out", out)
    assert run("evaluate", detector, *options) == 0
    parts = json.loads((out / "results.json").read_text())["pixels"]["segmentation"]
    assert (parts["unit"], parts["volume_unit"]) == ("px", "pixels")
    page = (out / "report.html").read_text()
    assert "HD95 (px)" in page and "under 5 px" in page
    assert "cm²" not in page and " mm" not in page
    assert run("predict", detector, folder / "p17.png", "--force", "--out", tmp_path / "found") == 0
    found = json.loads((tmp_path / "found" / "p17_finding.json").read_text())
    assert found["components"] and all(
        set(each) == {"voxels", "peak", "peak_index", "box"} for each in found["components"]
    )
    capsys.readouterr()
    grid = ("--sizes", "4,10", "--contrasts", "4", "--count", 2, "--replicates", 0)
    limits = ("limits", detector, "--cohort", folder / "cohort.csv", "--out", tmp_path / "limits")
    assert run(*limits, *grid) == 0
    assert "smallest diameter in px" in capsys.readouterr().out
    assert "Diameter, px" in (tmp_path / "limits" / "limits.html").read_text()


def test_the_promised_rate_stands_beside_the_decision(folder, detector, tmp_path, capsys):
    assert run("predict", detector, folder / "p17.png", "--force", "--out", tmp_path / "out") == 0
    # The highest of three healthy scores: 1 in 4.
    assert "anomalous (so are 25 % of healthy scans, 5 % were wanted)" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "p17_finding.json").read_text())
    assert found["false_alarms"]["expected"] == 0.25 and found["false_alarms"]["wanted"] == 0.05
    assert "25 %" in found["decision"]
    out = tmp_path / "evaluation"
    options = ("--cohort", folder / "cohort.csv", "--baselines", "false", "--out", out)
    assert run("evaluate", detector, *options) == 0
    text = " ".join((out / "report.html").read_text().split())
    assert (
        "expected to flag 25.0% of healthy scans" in text and "not the 5% that were wanted" in text
    )


def test_one_class_says_why_its_figures_are_undefined(folder, detector, tmp_path, capsys):
    options = ("--cohort", folder / "cohort.csv", "--baselines", "false", "--out", tmp_path / "out")
    assert run("evaluate", detector, *options, "--split", "train") == 0
    assert "for want of anomalous scans" in capsys.readouterr().out


def test_options_are_spelt_freely_and_never_guessed(folder, tmp_path, capsys):
    table = tmp_path / "cohort.csv"
    pd.read_csv(folder / "cohort.csv").drop(columns="split").assign(
        path=lambda t: [str(folder / p) for p in t["path"]], mask=""
    ).to_csv(table, index=False)
    out = tmp_path / "run"
    fit = ("fit", "mean_image", "--cohort", table, *TINY)
    assert run(*fit, "--out", out, "--fractions", "0.4,0.3,0.3", "--pixel-fpr", "0.1") == 0
    assert ns.load(out).pixel_fpr == 0.1
    assert ns.load(out).training["cohort_size"] == {"train": 6, "val": 5}
    for wrong, hint in (
        (("--coh", table), "--cohort"), (("--device", "cuda:x"), "cuda:0"),
        (("--seed", "1", "--wrapper", "flips"), "--wrappers"),
    ):  # fmt: skip
        assert run(*fit, "--out", tmp_path / "no", *wrong) == 2
        assert hint in capsys.readouterr().err
    assert run("train", "mean_image") == 2
    assert "normscan fit METHOD" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_labels_and_heads_are_read_as_people_write_them(folder, capsys):
    table = pd.read_csv(folder / "cohort.csv", keep_default_na=False)
    table["label"] = table["label"].map({0: "Control", 1: "patient"})
    table.columns = [name.upper() for name in table.columns]
    table.to_csv(folder / "words.csv", index=False)
    cohort = ns.Cohort.read(folder / "words.csv")
    plain = ns.Cohort.read(folder / "cohort.csv")
    assert list(cohort.table["label"]) == list(plain.table["label"])
    assert "Control as healthy; patient as anomalous" in " ".join(cohort.notes)
    assert not plain.notes
    pd.DataFrame({"image": ["p00.png"], "class": [0]}).to_csv(folder / "other.csv", index=False)
    assert run("cohort", folder / "other.csv") == 2
    err = capsys.readouterr().err
    assert "Is it 'image'? Call it path." in err and "Is it 'class'? Call it label." in err


def test_folders_patterns_and_tables_give_one_table_of_scores(folder, detector, tmp_path, capsys):
    some = tmp_path / "some"
    some.mkdir()
    for name in ("p00.png", "p16.png", "p16_mask.png", "p17.png"):
        shutil.copy(folder / name, some / name)
    (some / "p18.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert run("predict", detector, some, "--force", "--out", out) == 1
    table = pd.read_csv(out / "scores.csv").set_index("scan")
    assert list(table.index) == ["p00", "p16", "p17", "p18"]  # the mask is no scan
    found = json.loads((out / "p16_finding.json").read_text())
    assert table.loc["p16", "score"] == pytest.approx(found["score"])
    assert table.loc["p16", "anomalous"] and "is called .png" in table.loc["p18", "left_out"]
    assert "trained this detector" in table.loc["p00", "notes"]
    assert run("predict", detector, some / "p1[67].png", "--out", out) == 2  # they are there
    assert run("predict", detector, folder / "p1[29].png", "--force", "--out", out) == 0
    assert len(pd.read_csv(out / "scores.csv")) == 6
    page = (out / "index.html").read_text()
    assert f"{int(pd.read_csv(out / 'scores.csv')['anomalous'].sum())} of 5 scans flagged" in page
    links = set(re.findall(r'(?:href|src)="([^"#]+)"', page))
    assert {"p12_finding.json", "p16_overlay.png"} <= links
    assert all((out / unquote(link)).is_file() for link in links)
    assert set(re.findall(r'href="#([^"]+)"', page)) == set(re.findall(r'id="(scan-[^"]+)"', page))
    assert "p18" in page and "1 scan was left out" in page
    capsys.readouterr()
    assert run("predict", detector, folder / "z*.png", "--out", out) == 2
    assert "no file fits" in capsys.readouterr().err
    every = tmp_path / "every"
    assert (
        run("predict", detector, "--cohort", folder / "cohort.csv", "--force", "--out", every) == 0
    )
    assert len(pd.read_csv(every / "scores.csv")) == 20
    assert run("predict", detector) == 2


def test_an_array_of_images_is_no_volume(detector):
    loaded = ns.load(detector)
    with pytest.raises(ns.errors.ScanError, match="one volume"):
        loaded.predict(np.random.default_rng(0).random((8, 40, 36)))
    assert "expected false alarms 25.0%" in repr(loaded)
