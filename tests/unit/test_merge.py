"""Detectors of several sites become one: sums as of one site, banks within a stated radius."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import cdist
from tests.toy import toy_scan

from normscan.cli.main import main
from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.methods.features.memory import Bank
from normscan.rng import Rng
from normscan.scores.coreset import k_center_greedy

PLAIN = {"preprocess": {"scaling": "none", "crop": "none"}, "gate": False, "fpr": 0.3}


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """A folder with the tables of two sites, and of both together."""
    folder, rng, rows = tmp_path_factory.mktemp("sites"), np.random.default_rng(7), []
    for i in range(18):
        np.save(folder / f"{i}.npy", toy_scan(rng, 2, 1, False)[0][0])
        rows.append(
            {"path": f"{i}.npy", "label": 0, "split": "val" if i in (0, 1, 9, 10) else "train"}
        )
    table = pd.DataFrame(rows)
    for name, part in {"a": table[:9], "b": table[9:], "both": table}.items():
        part.to_csv(folder / f"{name}.csv", index=False)
    return folder


def fitted(method, sites, name, out, **options):
    detector = Detector(method, preset="tiny", calibration="split", **{**PLAIN, **options})
    return detector.fit(Cohort.read(sites / f"{name}.csv"), out)


@pytest.mark.parametrize("method", ["padim", "mean_image", "image_statistics"])
def test_two_sites_know_what_one_with_all_scans_does(method, sites, tmp_path, capsys):
    for name in ("a", "b"):
        fitted(method, sites, name, tmp_path / name)
    runs = [str(tmp_path / name) for name in ("a", "b")]
    assert main(["merge", *runs, "--out", str(tmp_path / "merged")]) == 0
    assert "of 2 sites knows 14 scans" in capsys.readouterr().out
    merged = load(tmp_path / "merged")
    one = fitted(method, sites, "both", tmp_path / "one")
    for k, value in one.method.fitted_buffers().items():
        apart = (merged.method.fitted_buffers()[k].double() - value.double()).abs().max()
        assert float(apart / value.double().abs().max()) < 1e-6, k
    assert merged.training["samples"]["train"] == one.training["samples"]["train"] == 14
    assert merged.training["stale"] == 7
    # Who trained at either site may not set its threshold.
    assert [merged.seen([sites / f"{i}.npy"]) for i in (3, 12)] == ["trained", "trained"]
    assert merged.seen([sites / "0.npy"]) != "trained"


@pytest.mark.parametrize("largest", [1000, 60])
def test_a_merged_coreset_covers_within_the_sum_of_radii(largest):
    rng = np.random.default_rng(3)
    parts = [rng.normal(at, 1, (400, 8)) for at in (0, 6)]
    chosen = [
        torch.from_numpy(p).float()[k_center_greedy(torch.from_numpy(p).float(), 40, Rng(1))]
        for p in parts
    ]
    banks = [Bank(8), Bank(8)]
    for bank, vectors in zip(banks, chosen, strict=True):
        bank.keep(vectors)
    banks[0].merge([chosen[1]], largest, Rng(2), chosen=True)
    merged = banks[0].vectors.numpy()
    assert len(merged) == min(largest, 80)

    def radius(points, centres):
        return cdist(points, centres).min(1).max()

    # scipy measures: what a site's coreset covers, and what the choice among both leaves.
    own = max(radius(p, c.numpy()) for p, c in zip(parts, chosen, strict=True))
    choice = radius(torch.cat(chosen).numpy(), merged)
    assert (choice == 0) == (largest > 80)
    covered = radius(np.concatenate(parts), merged)
    assert own <= covered + 1e-6 and covered <= own + choice + 1e-6
    # One site alone leaves the other's patches far away.
    assert radius(np.concatenate(parts), chosen[0].numpy()) > 2 * covered


def test_what_differs_or_counts_twice_is_refused(sites, tmp_path, capsys):
    fitted("patchcore", sites, "a", tmp_path / "a")
    fitted("patchcore", sites, "b", tmp_path / "other", coreset=0.5)
    fitted("patchcore", sites, "a", tmp_path / "again")
    fitted("padim", sites, "b", tmp_path / "seed", seed=3)
    fitted("padim", sites, "a", tmp_path / "p")
    fitted("ae_dense", sites, "a", tmp_path / "ae", steps=1)
    for first, second, why in (
        ("a", "other", "another arguments"),
        ("a", "again", "would count twice"),
        ("p", "a", "another method (padim, patchcore)"),
        ("p", "seed", "Use the same seed"),
        ("ae", "a", "learns by gradient steps"),
    ):
        runs = [str(tmp_path / first), str(tmp_path / second)]
        assert main(["merge", *runs, "--out", str(tmp_path / "merged")]) == 2
        assert why in capsys.readouterr().err
        assert not (tmp_path / "merged").exists()
