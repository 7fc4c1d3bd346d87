"""RQI, AHI and CACI of a benchmark, against the same figures computed by other means."""

from __future__ import annotations

import csv
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy import linalg
from skimage.metrics import structural_similarity

from normscan import load
from normscan.benchmark import run
from normscan.benchmark.data import Data
from normscan.benchmark.protocol import parse
from normscan.benchmark.restorations import quality
from normscan.cohort import Cohort
from normscan.io.values import read_json
from normscan.networks.backbones import Backbone, import_timm

PROTOCOL = {
    "title": "T", "source": "S", "budget": "laptop", "budgets": {"laptop": {"presets": ["tiny"]}},
    "headline": {"image": "image_auroc", "pixel": "pixel_ap"}, "metrics": ["rqi", "ahi", "caci"],
    "features": {"name": "resnet18", "taps": ["layer1"]},
    "sets": [{"id": "a", "parts": [{"local": True}]}],
}  # fmt: skip
SMALL = {"steps": 30, "width": 4, "latent": 4, "size": 32}
RESTORING = ("ae_dense", "mean_image")


@pytest.fixture(scope="module")
def cohort(toy, tmp_path_factory):
    table = pd.read_csv(toy(2), dtype=str, keep_default_na=False)
    test = table[table["split"] == "test"].groupby("label").head(4)
    some = pd.concat([table[table["split"] != "test"].groupby("split").head(8), test])
    some = some[some["split"] != "extra"]
    for column in ("path", "mask"):
        some[column] = [f"{toy(2).parent}/{p}" if p else "" for p in some[column]]
    path = tmp_path_factory.mktemp("cohort") / "a.csv"
    some.to_csv(path, index=False)
    return path


def bench(cohort, out, weights, seeds=2, **changes):
    return run(
        parse("small", {"small": {**PROTOCOL, **changes}}), ["ae_dense"], out,
        data=Data.parse(f"a={cohort}"), seeds=seeds, arguments=SMALL, workers=0, device="cpu",
        features=str(weights),
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("restorations")
    weights = folder / "r18.safetensors"
    torch.manual_seed(0)
    save_file(import_timm().create_model("resnet18").state_dict(), weights)
    return folder / "out", bench(cohort, folder / "out", weights), weights


def features(image, network):
    with torch.no_grad():
        return network(torch.from_numpy(image[None].astype(np.float32)))["layer1"][0].double()


def frechet(a, b):
    """By the eigenvalues of the product of the covariances."""
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    roots = np.sqrt(np.clip(linalg.eigvals(covariances[0] @ covariances[1]).real, 0, None))
    gap = a.mean(0) - b.mean(0)
    return gap @ gap + sum(np.trace(c) for c in covariances) - 2 * roots.sum()


def by_hand(folder, cohort, network):
    """Return RQI's parts by healthy scan, AHI and CACI of one cell."""
    detector = load(folder)
    rows = list(Cohort.read(cohort))
    found = {row.scan: detector.predict(row.load(), force=True) for row in rows}
    train = [found[row.scan].prepared for row in rows if row.split == "train"]
    low, high = np.median([x.min() for x in train]), np.median([x.max() for x in train])
    pooled = {"train": [], "healthy": [], "anomalous": [], "restored": []}
    parts, contrasts = {}, []
    for row in rows:
        finding = found[row.scan]
        x, y = ((v - low) / (high - low) for v in (finding.prepared, finding.reconstruction))
        fx, fy = features(x, network), features(y, network)
        if row.split == "train":
            pooled["train"].append(fx.mean((1, 2)).numpy())
        if row.split != "test":
            continue
        ssim = structural_similarity(
            x[0].astype(np.float32), y[0].astype(np.float32), data_range=1.0, full=True
        )[1]
        pooled["anomalous" if row.label else "healthy"].append(fx.mean((1, 2)).numpy())
        if row.label:
            pooled["restored"].append(fy.mean((1, 2)).numpy())
            mask = row.load_mask(finding.scan).astype(bool)
            contrasts.append(ssim[~mask].mean() - ssim[mask].mean())
        else:
            gap = torch.nn.functional.normalize(fx, dim=0) - torch.nn.functional.normalize(
                fy, dim=0
            )
            distance = torch.nn.functional.interpolate(
                gap.square().sum(0)[None, None], size=x.shape[1:], mode="bilinear"
            )
            parts[row.scan] = [ssim.mean(), float(distance.mean()), np.abs(x - y).mean()]
    distance = {k: frechet(np.stack(v), np.stack(pooled["train"])) for k, v in pooled.items()}
    ahi = (distance["anomalous"] - distance["restored"]) / (
        distance["anomalous"] - distance["healthy"]
    )
    if distance["anomalous"] <= distance["healthy"]:
        ahi = math.nan
    return np.mean(list(parts.values()), axis=0), max(0.0, ahi), max(0.0, np.mean(contrasts))


def test_the_table_shows_what_is_computed_by_hand(done, cohort):
    out, ranking, weights = done
    network = Backbone("resnet18", ["layer1"], str(weights))
    parts, indices = {}, {}
    for method, seeds in (("ae_dense", 2), ("mean_image", 1)):
        each = [
            by_hand(out / "cells/a" / method / f"seed{s}", cohort, network) for s in range(seeds)
        ]
        parts[method] = np.mean([part for part, _, _ in each], axis=0)
        indices[method] = [np.mean([e[i] for e in each]) for i in (1, 2)]
    table = np.stack(list(parts.values()))
    better = np.where([True, False, False], table, -table)  # SSIM high, the others low
    scaled = (better - better.min(0)) / (better.max(0) - better.min(0))
    rqi = dict(zip(parts, scaled.mean(1), strict=True))

    rows = {row["method"]: row for row in ranking["sets"]["a"]["levels"]["pixel"]["rows"]}
    for method in RESTORING:
        shown = {m: rows[method]["metrics"][m]["value"] for m in ("rqi", "ahi", "caci")}
        assert shown["rqi"] == pytest.approx(rqi[method], abs=1e-4)
        assert shown["caci"] == pytest.approx(indices[method][1], abs=1e-4)
        ahi = None if math.isnan(indices[method][0]) else indices[method][0]
        assert shown["ahi"] == pytest.approx(ahi, abs=1e-3)
    assert rqi["ae_dense"] != rqi["mean_image"]
    assert not math.isnan(indices["ae_dense"][0]) and indices["ae_dense"][1] > 0
    assert rows["ae_dense"]["metrics"]["rqi"]["sd"] is None
    cell = read_json(out / "cells/a/ae_dense/seed0/cell.json")
    caci = cell["restorations"]["caci"]
    assert caci["low"] <= caci["value"] <= caci["high"]


def test_columns_with_a_dash_and_the_formulas_beside(done):
    out, _, _ = done
    text = (out / "table.md").read_text()
    assert "RQI is mean of SSIM" in text and "CACI is max(0" in text
    lines = [line.split(" | ") for line in text.splitlines() if " | RQI | " in line]
    assert len(lines) == 1 and {"RQI", "AHI", "CACI"} <= set(lines[0])  # at the pixel level only
    with (out / "table.csv").open() as file:
        named = {(r["method"], r["metric"]) for r in csv.DictReader(file)}
    assert ("mean_image", "caci") in named


def test_a_method_that_restores_nothing_has_a_dash(done, cohort):
    out, _, weights = done
    again = out.parent / "again"  # the same cells, another table
    shutil.copytree(out, again)
    ranking = bench(cohort, again, weights, headline={"image": "image_auroc"}, metrics=["rqi"])
    rows = ranking["sets"]["a"]["levels"]["image"]["rows"]
    values = {row["method"]: row["metrics"]["rqi"]["value"] for row in rows}
    assert values["image_statistics"] is None and values["ae_dense"] is not None
    line = next(x for x in (again / "table.md").read_text().splitlines() if "image_stat" in x)
    assert "| – |" in line


def test_missing_weights_leave_caci_and_say_so(cohort, tmp_path):
    ranking = bench(cohort, tmp_path, tmp_path / "none.pth", seeds=1)
    entry = ranking["sets"]["a"]
    rows = {row["method"]: row["metrics"] for row in entry["levels"]["pixel"]["rows"]}
    assert rows["ae_dense"]["caci"]["value"] is not None
    assert rows["ae_dense"]["rqi"]["value"] is None is rows["ae_dense"]["ahi"]["value"]
    assert any("RQI and AHI left out" in note for note in entry["notes"])
    assert "RQI and AHI left out" in (tmp_path / "table.md").read_text()


def test_rqi_by_hand_from_the_means_of_common_healthy_scans():
    def table(*rows):
        names = ("scan", "subject", "label", "ssim", "feature", "mae")
        extra = {"ssim_healthy": 1.0, "ssim_lesion": math.nan}
        return pd.DataFrame([dict(zip(names, row, strict=True)) | extra for row in rows])

    good = table(("h1", "h1", 0, 0.9, 0.1, 0.1), ("h2", "h2", 0, 0.7, 0.1, 0.1))
    again = table(("h1", "h1", 0, 0.7, 0.1, 0.3), ("h2", "h2", 0, 0.9, 0.1, 0.3))
    bad = table(("h1", "h1", 0, 0.4, 0.5, 0.6), ("h2", "h2", 0, 0.4, 0.5, 0.6))
    middle = table(("h2", "h2", 0, 0.6, 0.2, 0.2), ("h1", "h1", 0, 0.6, 0.2, 0.2),
                   ("s", "s", 1, 0.0, 4.0, 9.0), ("h3", "h3", 0, 0.0, 4.0, 9.0))  # fmt: skip
    found = quality({"good": [good, again], "middle": [middle], "bad": [bad]})
    # SSIM 0.8, 0.6, 0.4; feature 0.1, 0.2, 0.5; MAE 0.2, 0.2, 0.6
    assert found["good"] == pytest.approx(1) and found["bad"] == pytest.approx(0)
    assert found["middle"] == pytest.approx((0.5 + 0.75 + 1) / 3)
    assert math.isnan(quality({"good": [good]})["good"]) and quality({}) == {}
