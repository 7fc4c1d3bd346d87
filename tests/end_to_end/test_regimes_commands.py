"""The regimes from the command line: fit, predict, evaluate."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.support.pairs import write_pairs
from tests.support.regimes import registered

from normscan.cli.main import main
from normscan.io import read_scan

SETTINGS = ["--preprocess", '{"scaling": "none", "crop": "none"}', "--gate=false"]


@pytest.fixture(scope="module", autouse=True)
def toys():
    with registered():
        yield


def test_paired_modality(tmp_path: Path, capsys):
    table, out = write_pairs(tmp_path / "pairs"), tmp_path / "run"
    fit = ["fit", "toy_translation", "--cohort", str(table), "--out", str(out), "--steps", "5"]
    assert main([*fit, *SETTINGS]) == 0
    assert main([*fit, "--targets", "2"]) == 2  # the cohort says how many there are
    scan, other = str(table.parent / "test00.npy"), str(table.parent / "test00_t2.npy")
    predict = ["predict", str(out), scan, "--out", str(tmp_path / "found")]
    assert main([*predict, "--target", f"[{other}]"]) == 0
    assert (tmp_path / "found" / "test00_finding.json").is_file()
    assert main([*predict, "--target", f"[{other},{other}]"]) == 2
    assert "--target names 2 files for 1 scans" in capsys.readouterr().err
    assert main([*predict, "--overwrite"]) == 2
    assert "compares a scan with its target, and none was given" in capsys.readouterr().err
    assert main(["evaluate", str(out), "--cohort", str(table), "--baselines=false"]) == 0
    assert (out / "evaluation" / "report.html").is_file()


def test_few_shot(toy, tmp_path: Path, capsys):
    out = tmp_path / "run"
    fit = ["fit", "toy_nearest", "--cohort", str(toy(2)), "--out", str(out), "--shots", "4"]
    assert main([*fit, *SETTINGS]) == 0
    assert "from 50 healthy validation" in capsys.readouterr().out
    assert main([*fit, *SETTINGS, "--resume"]) == 0
    assert "was trained before" in capsys.readouterr().out
    other = [*fit[:-1], "5", *SETTINGS, "--resume"]
    assert main(other) == 2
    assert "begun with other settings (arguments, cohort)" in capsys.readouterr().err


def test_zero_shot(toy, tmp_path: Path, capsys):
    out, table = tmp_path / "run", str(toy(2))
    assert main(["fit", "toy_guess", "--out", str(out), "--state", "bright"]) == 0
    said = capsys.readouterr().out
    assert "the decision is left open" in said and f"normscan predict {out}" in said
    scan = str(toy(2).parent / "test000_c0.npy")
    assert main(["predict", str(out), scan, "--out", str(tmp_path / "found")]) == 0
    assert "decision open, not calibrated on healthy scans" in capsys.readouterr().out
    assert main(["evaluate", str(out), "--cohort", table, "--baselines=false"]) == 0
    assert "the decision is open" in capsys.readouterr().out
    assert main(["subgroups", str(out), "--column", "kind", "--lesions"]) == 0
    assert main(["compare", str(out), str(out)]) == 2
    assert "its decision is open" in capsys.readouterr().err
    assert main(["fit", "toy_nearest", "--out", str(tmp_path / "other")]) == 2
    assert "learns from scans: give it a cohort" in capsys.readouterr().err


def test_sentences_alone_and_with_references(toy, tmp_path: Path, capsys):
    """A vision-language method from the command line; its tower has random weights."""
    out, table = tmp_path / "run", toy(2)
    tower = ["--tower", "tiny", "--weights", "random", "--size", "32"]
    fit = ["fit", "winclip", "--prompts", "brain MRI", *tower]
    assert main([*fit, "--out", str(out)]) == 0
    assert "the decision is left open" in capsys.readouterr().out
    scan = str(table.parent / "test000_c0.npy")
    assert main(["predict", str(out), scan, "--out", str(tmp_path / "found")]) == 0
    assert main(["calibrate", str(out), "--cohort", str(table)]) == 0
    calibrated = str(tmp_path / "run_calibrated")
    assert main(["predict", calibrated, scan, "--out", str(tmp_path / "decided")]) == 0
    finding = json.loads((tmp_path / "decided" / "test000_c0_finding.json").read_text())
    assert finding["p_value"] is not None and finding["anomalous"] is not None
    few = ["fit", "winclip_plus", *tower, "--cohort", str(table), *SETTINGS]
    assert main([*few, "--out", str(tmp_path / "deep"), "--shots", "4"]) == 2
    assert "tiny has 4 blocks, no block 11: give --layer" in capsys.readouterr().err
    few, names = [*few, "--layer", "3"], []
    for seed in ("1", "1", "2"):
        run = tmp_path / f"few{len(names)}"
        assert main([*few, "--out", str(run), "--shots", "4", "--seed", seed]) == 0
        stored = json.loads((run / "detector.json").read_text())
        names.append({r["scan"] for r in stored["training"]["references"]})
    assert len(names[0]) == 4 and names[0] == names[1] != names[2]


def hashed(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def known_by_content(stored: dict) -> set[str]:
    """Hashes of the references of a stored detector, whose names may be those of people."""
    return {r["sha256"][0] for r in stored["training"]["references"]}


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_nothing_but_references(shots: int, toy, tmp_path: Path, capsys):
    """So many healthy scans and no more: a map, stored names, and no threshold of them."""
    table = pd.read_csv(toy(2), keep_default_na=False)
    few = table[table["split"] == "train"].head(shots)[["scan", "subject", "path", "label"]]
    few["path"] = [str(toy(2).parent / path) for path in few["path"]]
    few.to_csv(tmp_path / "few.csv", index=False)
    run, scan = tmp_path / "run", str(toy(2).parent / "test100_c0.npy")
    tower = ["--tower", "tiny", "--weights", "random", "--size", "32", "--layer", "3"]
    fit = ["fit", "winclip_plus", *tower, *SETTINGS, "--shots", str(shots), "--out", str(run)]
    assert main([*fit, "--cohort", str(tmp_path / "few.csv")]) == 0
    assert "the decision is left open" in capsys.readouterr().out
    stored = json.loads((run / "detector.json").read_text())
    assert known_by_content(stored) == {hashed(path) for path in few["path"]}
    assert stored["scan_threshold"] is None and stored["pixel_threshold"] is None
    assert main(["predict", str(run), scan, "--out", str(tmp_path / "found")]) == 0
    found = read_scan(tmp_path / "found" / "test100_c0_map.tif").data
    assert np.isfinite(found).all() and found.std() > 0


def test_a_threshold_of_references_is_of_other_healthy_scans(toy, tmp_path: Path, capsys):
    """A split of train alone: four are drawn by the seed, the other subjects set the threshold."""
    table = pd.read_csv(toy(2), keep_default_na=False)
    table = table[table["split"].isin(["train", "test"])]
    table["path"] = [str(toy(2).parent / path) for path in table["path"]]
    table = table.drop(columns=["mask"])
    tower = ["--tower", "tiny", "--weights", "random", "--size", "32", "--layer", "3"]
    names = {}
    for kept in (24, 4):
        train = table["split"].eq("train").cumsum().le(kept) & table["split"].eq("train")
        path, run = tmp_path / f"{kept}.csv", tmp_path / f"run{kept}"
        table[train | table["split"].eq("test")].to_csv(path, index=False)
        fit = ["fit", "winclip_plus", *tower, *SETTINGS, "--shots", "4", "--cohort", str(path)]
        assert main([*fit, "--out", str(run), "--seed", "3"]) == 0
        stored = json.loads((run / "detector.json").read_text())
        names[kept] = known_by_content(stored)
        division = pd.read_csv(run / "division.csv")
        val = set(division["sha256"][division["split"] == "val"])
        if kept == 24:
            assert len(val) == 20 and not val & names[kept]
            assert len(stored["scan_threshold"]["scores"]) == 20
        else:
            assert not val and stored["scan_threshold"] is None
            assert names[kept] == {hashed(path) for path in table["path"][train]}
    capsys.readouterr()
