"""`normscan compare` and `normscan subgroups` on the tables that evaluations leave."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from normscan.cli.main import main


def table(folder, shift, seed, rows=60):
    """An evaluation whose anomalous scans score higher by ``shift``."""
    shared = np.random.default_rng(0)
    labels = np.arange(rows) % 2
    base = shared.normal(0, 1, rows)
    scores = base + shift * labels + np.random.default_rng(seed).normal(0, 0.3, rows)
    frame = pd.DataFrame(
        {
            "scan": [f"scan{i:02d}" for i in range(rows)],
            "subject": [f"{i:03d}" for i in range(rows)],
            "label": labels,
            "score": scores,
            "anomalous": scores > 1.0,
            "site": np.where(np.arange(rows) < rows // 3, "A", "B"),
            "age": np.linspace(20, 80, rows),
        }
    )
    folder.mkdir(parents=True)
    frame.sample(frac=1, random_state=seed).to_csv(folder / "scans.csv", index=False)
    return frame


@pytest.fixture
def runs(tmp_path):
    shifts = {"good": 3.0, "poor": 0.3, "same": 0.3}
    frames = {
        n: table(tmp_path / n / "evaluation", s, i) for i, (n, s) in enumerate(shifts.items())
    }
    return tmp_path, frames


def test_compare_tests_all_pairs(runs, capsys):
    folder, frames = runs
    names = ["good", "poor", "same"]
    command = ["compare", *(str(folder / n) for n in names), "--prevalence", "0.1", "--json=true"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {r["run"]: r for r in found["runs"]}
    for name, frame in frames.items():
        auroc = roc_auc_score(frame["label"], frame["score"])
        assert by_name[name]["auroc"]["value"] == pytest.approx(auroc)
        hit = (frame["anomalous"] & (frame["label"] == 1)).sum() / 30
        spared = (~frame["anomalous"] & (frame["label"] == 0)).sum() / 30
        ppv = 0.1 * hit / (0.1 * hit + 0.9 * (1 - spared))
        assert by_name[name]["sensitivity"]["value"] == pytest.approx(hit)
        assert by_name[name]["ppv"]["value"] == pytest.approx(ppv)
        exact = stats.binomtest(int(hit * 30 + 0.5), 30).proportion_ci(method="exact")
        assert by_name[name]["sensitivity"]["low"] == pytest.approx(exact.low)
        assert by_name[name]["false_alarms"]["value"] == pytest.approx(1 - spared)
        assert by_name[name]["sensitivity_at_rate"] is None  # nobody wrote which rate was wanted
    pairs = {(p["a"], p["b"]): p for p in found["pairs"]}
    assert set(pairs) == {("good", "poor"), ("good", "same"), ("poor", "same")}
    assert pairs["good", "poor"]["delong_holm"] < 0.001
    assert pairs["good", "poor"]["permutation_holm"] < 0.01
    assert pairs["poor", "same"]["delong"]["p_value"] > 0.05
    smallest = min(p["delong"]["p_value"] for p in found["pairs"])
    assert min(p["delong_holm"] for p in found["pairs"]) == pytest.approx(3 * smallest)


def test_compare_prints_a_table_and_leaves_out_what_one_lacks(runs, capsys):
    folder, _ = runs
    path = folder / "poor" / "evaluation" / "scans.csv"
    frame = pd.read_csv(path, dtype={"subject": str})
    frame[frame["scan"] != "scan07"].to_csv(path, index=False)
    for name in ("good", "poor"):
        text = json.dumps({"decision": {"fpr_wanted": 0.1, "threshold": 1.0}})
        (folder / name / "evaluation" / "results.json").write_text(text)
    assert main(["compare", str(folder / "good"), str(folder / "poor" / "evaluation")]) == 0
    out = capsys.readouterr().out
    head = next(line for line in out.splitlines() if line.startswith("run"))
    places = [head.index(t) for t in ("sensitivity", "false alarms", "(oracle)", "AUROC", "PPV")]
    assert places == sorted(places)
    assert "59 scans of 59 subjects, 29 anomalous" in out and "left out: 1 scans" in out
    assert "good - poor" in out


def test_compare_writes_its_tables_with_the_maps_figures(runs, capsys, tmp_path):
    """CSV with full digits, LaTeX, and a page; the maps' figures are those of the evaluations."""
    folder, frames = runs
    for name, value in (("good", 0.6543), ("poor", 0.25)):
        metrics = {
            "pixel_ap": {"title": "Pixel AP", "oracle": False, "value": value, "low": 0.1, "high": 0.9},
            "best_dice": {"title": "Best Dice", "oracle": True, "value": None},
        }  # fmt: skip
        text = json.dumps({"decision": {"fpr_wanted": 0.1}, "metrics": metrics})
        (folder / name / "evaluation" / "results.json").write_text(text)
    names = ["good", "poor", "same"]
    assert main(["compare", *(str(folder / n) for n in names), "--out", str(tmp_path / "c")]) == 0
    printed = capsys.readouterr().out
    assert "Best Dice (oracle)" in printed and "0.654 [0.100, 0.900]" in printed

    long = pd.read_csv(tmp_path / "c" / "compare.csv").set_index(["run", "metric"])
    for name, frame in frames.items():
        auroc = roc_auc_score(frame["label"], frame["score"])
        assert long.loc[(name, "auroc"), "value"] == pytest.approx(auroc)
    assert long.loc[("good", "pixel_ap"), ["value", "low", "high"]].tolist() == [0.6543, 0.1, 0.9]
    assert long.loc[("good", "best_dice"), "oracle"] and ("same", "pixel_ap") not in long.index
    pairs = pd.read_csv(tmp_path / "c" / "pairs.csv")
    assert pairs[["a", "b"]].to_numpy().tolist() == [
        ["good", "poor"], ["good", "same"], ["poor", "same"]
    ]  # fmt: skip
    assert (pairs["delong_holm"] >= pairs["delong_p"]).all()
    tex = (tmp_path / "c" / "compare.tex").read_text()
    assert tex.count(r"\toprule") == tex.count(r"\end{tabular}") == 3
    assert r"Decisions and ranking" in tex and "good & " in tex
    page = (tmp_path / "c" / "compare.html").read_text()
    assert page.count("<table>") == 3 and "http" not in page.replace("http://www.w3.org", "")


def test_subgroups_are_those_of_the_column(runs, capsys):
    folder, frames = runs
    assert main(["subgroups", str(folder / "good"), "--column", "site", "--json=true"]) == 0
    found = {g["group"]: g for g in json.loads(capsys.readouterr().out)}
    for site, rows in frames["good"].groupby("site"):
        auroc = roc_auc_score(rows["label"], rows["score"])
        assert found[site]["metrics"]["auroc"]["value"] == pytest.approx(auroc)
        assert found[site]["scans"] == len(rows)
    command = ["subgroups", str(folder / "good"), "--column", "age", "--cuts", "[40, 60]"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["below", "40"], ["40", "to"], ["60", "and"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["compare", "good"], "two runs"),
        (["compare", "good", "nothing"], "holds no scans.csv"),
        (["compare", "good", "other"], "different cohorts"),
        (["subgroups", "good", "--column", "sites"], "Did you mean 'site'"),
    ],
)
def test_what_can_not_be_compared_is_refused(runs, capsys, command, reason):
    folder, frames = runs
    other = frames["good"].assign(label=1 - frames["good"]["label"])
    (folder / "other").mkdir()
    other.to_csv(folder / "other" / "scans.csv", index=False)
    places = [str(folder / c) if c in ("good", "nothing", "other") else c for c in command]
    assert main(places) == 2
    assert reason in capsys.readouterr().err


def test_the_permutation_agrees_with_the_sign_of_the_difference(runs, capsys):
    folder, frames = runs
    assert main(["compare", str(folder / "good"), str(folder / "same"), "--json=true"]) == 0
    pair = json.loads(capsys.readouterr().out)["pairs"][0]
    expected = roc_auc_score(frames["good"]["label"], frames["good"]["score"]) - roc_auc_score(
        frames["same"]["label"], frames["same"]["score"]
    )
    assert pair["permutation"]["difference"] == pytest.approx(expected)
    rho = stats.spearmanr(frames["good"]["score"], frames["same"]["score"]).statistic
    assert rho < 1 and pair["permutation"]["p_value"] < 0.05
