"""``normscan benchmark`` on toy cohorts: cells, resuming, failures, and a table one can believe."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon
from sklearn.metrics import roc_auc_score

from normscan.benchmark import load, run, targets
from normscan.benchmark.data import Data
from normscan.benchmark.plan import make_plan
from normscan.cli.main import main
from normscan.errors import OutputError
from normscan.io.values import read_json, write_json

METHODS = ["ae_dense", "hist_threshold_baseline"]
SMALL = {"steps": 3, "width": 4, "latent": 4, "size": 32}


@pytest.fixture(scope="module")
def cohorts(toy, tmp_path_factory):
    """Three cohorts: the toy one and two with some of its test scans."""
    table = pd.read_csv(toy(2), dtype=str, keep_default_na=False)
    folder, given = tmp_path_factory.mktemp("cohorts"), [f"a={toy(2)}"]
    for name, kept in (("b", 7), ("c", 5)):
        test = table[table["split"] == "test"].groupby("label").head(kept)
        some = pd.concat([table[table["split"] != "test"].groupby("split").head(12), test])
        some["path"] = [f"{toy(2).parent}/{p}" for p in some["path"]]
        some["mask"] = [f"{toy(2).parent}/{p}" if p else "" for p in some["mask"]]
        some.to_csv(folder / f"{name}.csv", index=False)
        given.append(str(folder / f"{name}.csv"))
    return ",".join(given)


def bench(cohorts, out, methods=METHODS, **options):
    options = {"seeds": 2, "arguments": SMALL, "workers": 0, "preset": "tiny", **options}
    options = {"command": "normscan benchmark <local>", **options}
    return run(load("local"), methods, out, data=Data.parse(cohorts), device="cpu", **options)


@pytest.fixture(scope="module")
def done(cohorts, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "out"
    return out, bench(cohorts, out)


def cell(out, method, seed, name="a"):
    return out / "cells" / name / method / f"seed{seed}"


# ------------------------------------------------------------------ the figures


def test_every_cell_is_a_run_folder(done, capsys):
    out, _ = done
    folders = sorted(p.parent.relative_to(out / "cells") for p in out.glob("cells/*/*/*/cell.json"))
    assert len(folders) == 3 * (2 + 1 + 2)  # baselines and what isn't random run once
    one = read_json(cell(out, "ae_dense", 1) / "cell.json")
    assert one["memory_mib"]["host"] > 50 and one["seconds"]["fit"] > 0
    scan = pd.read_csv(out / "sets" / "b.csv")["path"][0]
    scan = str(out / "sets" / scan)
    where = out.parent / "predicted"
    assert main(["predict", str(cell(out, "ae_dense", 0)), scan, "--out", str(where)]) == 0


def test_the_ranking_equals_an_independent_one(done):
    out, ranking = done
    for name in "abc":
        rows = []
        for path in (out / "cells" / name).glob("*/seed*/evaluation/scans.csv"):
            scans = pd.read_csv(path)
            auroc = roc_auc_score(scans["label"], scans["score"])
            rows.append({"method": path.parents[2].name, "auroc": auroc})
        grouped = pd.DataFrame(rows).groupby("method")["auroc"].agg(["mean", "std", "count"])
        grouped["rank"] = grouped["mean"].rank(ascending=False, method="average")
        shown = ranking["sets"][name]["levels"]["image"]["rows"]
        assert [r["method"] for r in shown[:1]] == [grouped["mean"].idxmax()]
        assert len(shown) == len(grouped) == 4
        for row in shown:
            expected = grouped.loc[row["method"]]
            assert row["value"] == pytest.approx(expected["mean"], abs=1e-12)
            assert row["rank"] == expected["rank"] and row["seeds"] == expected["count"]
            if row["low"] is None:  # all resamples agree: a perfect or a useless score
                assert row["value"] in (0, 1)
            else:
                assert row["low"] <= row["value"] <= row["high"]
            if row["seeds"] > 1:
                assert row["sd"] == pytest.approx(expected["std"], abs=1e-12)
            else:
                assert row["sd"] is None


def test_mean_ranks_and_the_diagram_equal_an_independent_computation(done):
    out, ranking = done
    table = pd.DataFrame(
        {
            name: {r["method"]: r["value"] for r in entry["levels"]["image"]["rows"]}
            for name, entry in ranking["sets"].items()
        }
    )
    expected = table.rank(ascending=False).mean(axis=1)
    overall = ranking["overall"]["image"]
    assert overall["mean_ranks"] == pytest.approx(expected.to_dict())
    # Nemenyi's 2.569 for four methods (Demšar 2006, Table 5).
    assert overall["test"]["critical_difference"] == pytest.approx(
        2.569 * np.sqrt(4 * 5 / (6 * 3)), abs=2e-3
    )
    for level in ("image", "pixel"):
        assert (out / f"critical_difference_{level}.svg").exists() == bool(
            ranking["overall"][level]["test"]
        )
    assert ranking["overall"]["pixel"]["left_out"] == ["image_statistics"]


def test_pixel_tests_are_wilcoxon_by_scan_with_holm(done):
    out, ranking = done
    rows = ranking["sets"]["a"]["levels"]["pixel"]["rows"]
    values = {}
    for row in rows:
        tables = [
            pd.read_csv(p / "evaluation" / "pixels.csv", index_col="scan")["pixel_ap"]
            for p in sorted((out / "cells" / "a" / row["method"]).glob("seed*"))
        ]
        values[row["method"]] = pd.concat(tables, axis=1).mean(axis=1).sort_index()
    best = values[rows[0]["method"]]
    p = [wilcoxon(best - values[r["method"]]).pvalue for r in rows[1:]]
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(
        np.maximum.accumulate(np.array(p)[order] * (len(p) - np.arange(len(p)))), 1
    )
    assert [r["p"] for r in rows[1:]] == pytest.approx(list(adjusted))
    assert rows[0]["mark"] == "best" and rows[0]["p"] is None
    for row in rows[1:]:
        assert row["mark"] == ("worse" if row["p"] < 0.05 else "not different")
    for row in rows:
        ends = [
            read_json(p / "evaluation" / "results.json")["metrics"]["pixel_ap"]
            for p in (out / "cells" / "a" / row["method"]).glob("seed*")
        ]
        assert row["low"] == pytest.approx(np.mean([e["low"] for e in ends]))
        assert row["low"] <= row["value"] <= row["high"]


# ------------------------------------------------------------------- the tables


def test_the_tables_say_the_same_and_load_nothing(done):
    out, ranking = done
    assert json.loads((out / "ranking.json").read_text())["sets"].keys() == ranking["sets"].keys()
    flat = pd.read_csv(out / "table.csv")
    first = flat[(flat["set"] == "a") & (flat["metric"] == "image_auroc")]
    rows = ranking["sets"]["a"]["levels"]["image"]["rows"]
    assert list(first["method"]) == [r["method"] for r in rows]
    assert first["value"].to_numpy() == pytest.approx([r["value"] for r in rows])
    assert set(flat[flat["oracle"]]["metric"]) == {
        "sensitivity_at_rate", "image_f1_max", "best_dice",
    }  # fmt: skip
    markdown, page = (out / "table.md").read_text(), (out / "table.html").read_text()
    for text in (markdown, page):
        assert "Best Dice (oracle)" in text and "hist_threshold_baseline" in text
        assert f"{rows[0]['value']:.3f}" in text
    # What a user gets comes first, ranked by the AUROC all the same.
    head = next(line for line in markdown.splitlines() if line.startswith("| rank"))
    places = [head.index(t) for t in ("Sensitivity", "False alarms", "the rate (oracle)", "AUROC")]
    assert places == sorted(places)
    top = rows[0]["decision"]["sensitivity"]
    cells = (out / "cells" / "a" / rows[0]["method"]).glob("seed*/evaluation/results.json")
    each = [read_json(path)["metrics"]["sensitivity"] for path in cells]
    assert top["value"] == pytest.approx(np.mean([e["value"] for e in each]))
    assert top["low"] == pytest.approx(np.mean([e["low"] for e in each]))
    assert "*mean_image*" in markdown and "&lt;local&gt;" in page and "<local>" not in page
    loads = re.findall(
        r"(?:src|href)\s*=|@import|url\(", re.sub(r"xlink:href=\"#|href=\"#|url\(#", "", page)
    )
    assert not loads
    tex = (out / "table.tex").read_text()
    assert tex.count("\\begin{tabular}") == tex.count("\\bottomrule") > 3
    assert r"\emph{mean\_image}" in tex and not re.search(r"(?<!\\)_", tex.split("\n", 2)[2])


def test_published_figures_stand_beside_with_the_gap(done, cohorts, monkeypatch):
    out, before = done
    known = targets.Target("local", "a", "ae_dense", "image_auroc", 0.5, 0.01, "somewhere", "")
    other = dataclasses.replace(known, method="dae")
    monkeypatch.setattr(targets, "targets", lambda: (known, other))
    ranking = bench(cohorts, out)
    rows = {r["method"]: r for r in ranking["sets"]["a"]["levels"]["image"]["rows"]}
    (found,) = rows["ae_dense"]["published"]
    assert found["gap"] == pytest.approx(rows["ae_dense"]["value"] - 0.5)
    assert rows["mean_image"]["published"] == []
    section = (out / "table.md").read_text().partition("## a, image level")[2]
    line = next(x for x in section.split("\n") if "| ae_dense |" in x)
    assert f"{found['gap']:+.3f}" in line and "0.500 ± 0.010" in line
    assert "somewhere" in (out / "table.html").read_text()
    assert before["sets"]["a"]["levels"]["image"]["rows"][0]["value"] is not None


# ------------------------------------------------- stopping, failing, going on


def times(out):
    return {p: p.stat().st_mtime_ns for p in out.glob("cells/*/*/*/*.json")}


def test_only_what_is_missing_is_run_again(done, cohorts):
    out, ranking = done
    before = times(out)
    broken = cell(out, "ae_dense", 1, "b")
    kept = (broken / "evaluation" / "results.json").read_text()
    (broken / "evaluation" / "results.json").unlink()
    again = bench(cohorts, out)
    changed = {p.parent for p, t in times(out).items() if before[p] != t}
    assert changed == {broken}
    metrics = json.loads((broken / "evaluation" / "results.json").read_text())["metrics"]
    assert metrics == json.loads(kept)["metrics"]
    for name in "abc":
        assert [r["value"] for r in again["sets"][name]["levels"]["image"]["rows"]] == [
            r["value"] for r in ranking["sets"][name]["levels"]["image"]["rows"]
        ]


def test_other_settings_are_refused_and_redone_when_asked(cohorts, tmp_path):
    only = cohorts.split(",")[1]
    bench(only, tmp_path, ["mean_image"], arguments={"size": 32})
    with pytest.raises(OutputError, match="other settings or data"):
        bench(only, tmp_path, ["mean_image"], arguments={"size": 40})
    bench(only, tmp_path, ["mean_image"], arguments={"size": 40}, redo=True)
    config = read_json(cell(tmp_path, "mean_image", 0, "b") / "detector.json")
    assert config["configuration"]["arguments"]["size"] == 40


def test_a_killed_cell_goes_on_and_ends_as_the_straight_one(done, cohorts, tmp_path):
    out, _ = done
    data = Data.parse(cohorts)
    plan = make_plan(
        load("local"), ["ae_dense"], tmp_path, data, seeds=2, preset="tiny",
        arguments={**SMALL, "steps": 100000}, sets=["b"], device="cpu",
    )  # fmt: skip
    job = plan.jobs[0]
    write_json(tmp_path / "job.json", dataclasses.asdict(job))
    child = subprocess.Popen(
        [sys.executable, "-m", "normscan.benchmark.cell", str(tmp_path / "job.json")],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert any("training" in line for line in iter(child.stderr.readline, ""))
    child.stdin.close()  # the parent is gone: the cell doesn't outlive it
    assert child.wait(timeout=30) == 1
    assert job.state("b") == "open"
    folder = tmp_path / "cells" / "b" / "ae_dense" / "seed0"
    config = read_json(folder / "config.json")
    config["arguments"]["steps"] = SMALL["steps"]
    write_json(folder / "config.json", config)
    bench(cohorts, tmp_path, ["ae_dense"], sets=["b"])
    straight = cell(out, "ae_dense", 0, "b") / "model.safetensors"
    assert (folder / "model.safetensors").read_bytes() == straight.read_bytes()


def test_a_failing_method_is_shown_and_can_be_retried(cohorts, tmp_path):
    only = cohorts.split(",")[1]
    weights = tmp_path / "none.pth"
    options = {"seeds": 1, "arguments": {"size": 32, "patchcore": {"weights": str(weights)}}}
    ranking = bench(only, tmp_path / "out", ["patchcore"], **options)
    (failed,) = ranking["sets"]["b"]["failed"]
    assert failed["method"] == "patchcore" and "none.pth" in failed["reason"]
    assert len(ranking["sets"]["b"]["levels"]["image"]["rows"]) == 2
    assert "none.pth" in (tmp_path / "out" / "table.md").read_text()
    error = cell(tmp_path / "out", "patchcore", 0, "b") / "error.json"
    before = error.stat().st_mtime_ns
    bench(only, tmp_path / "out", ["patchcore"], **options)
    assert error.stat().st_mtime_ns == before
    bench(only, tmp_path / "out", ["patchcore"], retry=True, **options)
    assert error.stat().st_mtime_ns != before


def test_one_model_serves_all_sets_of_a_group(tmp_path, toy, monkeypatch):
    import shutil

    shutil.copytree(toy(2).parent, tmp_path / "copy")
    sets = [
        {"id": name, "group": "g", "parts": [{"folder": name, "get": "?"}]} for name in ("a", "b")
    ]
    from normscan.benchmark.protocol import Protocol

    protocol = Protocol.model_validate(
        load("ader").model_dump(exclude={"sets"})
        | {"sets": sets, "reduction": "max", "preprocess": {}, "seeds": 1}
    )
    known = targets.Target("ader", "g", "mean_image", "mad", 0.5, None, "here", "")
    monkeypatch.setattr(targets, "targets", lambda: (known,))
    data = Data.parse(f"a={toy(2)},b={tmp_path / 'copy'}")
    out = tmp_path / "out"
    ranking = run(
        protocol, ["mean_image"], out, data=data, preset="tiny", workers=0, budget="laptop",
        arguments={"size": 32}, device="cpu",
    )  # fmt: skip
    model = read_json(out / "models" / "g" / "mean_image" / "seed0" / "detector.json")
    assert model["training"]["cohort_size"]["train"] == 96
    assert not (out / "cells" / "a" / "mean_image" / "seed0" / "detector.json").exists()
    row = ranking["means"]["g"]["rows"]["mean_image"]
    seven = []
    for name in ("a", "b"):
        folder = out / "cells" / name / "mean_image" / "seed0"
        metrics = read_json(folder / "evaluation" / "results.json")["metrics"]
        own = read_json(folder / "cell.json")["variants"]
        names = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap")
        values = [metrics[n]["value"] for n in names]
        seven.append([*values, own["ader_pixel_f1"], own["ader_aupro"]])
    assert row["metrics"]["mad"] == pytest.approx(np.mean(seven))
    assert row["published"][0]["gap"] == pytest.approx(np.mean(seven) - 0.5)
    assert "mean of g" in (out / "table.md").read_text()


def test_the_command_runs_cells_in_processes(cohorts, tmp_path, capsys):
    options = ["--methods", "mean_image", "--data", cohorts.split(",")[2]]
    options += ["--preset", "tiny", "--device", "cpu", "--workers", "2", "--out", str(tmp_path)]
    assert main(["benchmark", "local", *options]) == 0
    said = capsys.readouterr()
    assert "2 of 2 runs to do" in said.err and "c, image level" in said.out
    memory = read_json(cell(tmp_path, "mean_image", 0, "c") / "cell.json")["memory_mib"]
    assert memory["host"] > 50
    assert (tmp_path / "logs" / "c-mean_image-0.log").exists()
    assert main(["benchmark", "local", *options]) == 0
    assert "0 of 2 runs to do" in capsys.readouterr().err


def test_a_process_that_dies_is_a_failed_cell(cohorts, tmp_path, monkeypatch):
    from normscan.benchmark import runner

    monkeypatch.setattr(runner.sys, "executable", "/bin/false")
    ranking = bench(cohorts.split(",")[1], tmp_path, [], workers=1)
    failed = ranking["sets"]["b"]["failed"]
    assert len(failed) == 2 and "code 1" in failed[0]["reason"]
    assert ranking["sets"]["b"]["levels"] == {}
