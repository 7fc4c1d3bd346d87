"""The scaling of intensities that planted lesions choose."""

from __future__ import annotations

import json

import numpy as np
import pytest

import normscan as ns
from normscan.detector.scaling import FEWEST
from normscan.errors import ArgumentError
from normscan.preprocess import Preprocess

SHAPE = (40, 36)


def write(folder, rng, count, gain):
    """Heads with a fixed anatomy, each with its own gain; its maximum is a vessel of any brightness."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    head = sum(a**2 for a in axes) < 0.8
    inner = sum(a**2 for a in axes) < 0.3
    rows = ["path,label,split,subject"]
    for i in range(count):
        image = 100.0 * head + 60 * inner + head * rng.normal(0, 4, SHAPE)
        name, split = f"{i:02d}.npy", "train" if i % 3 else "val"
        np.save(folder / name, (image * gain(rng)).astype(np.float32))
        rows.append(f"{name},0,{split},s{i}")
    (folder / "table.csv").write_text("\n".join(rows))
    return ns.Cohort.read(folder / "table.csv")


def fit(cohort, out=None, **options):
    detector = ns.create(
        "mean_image", preset="laptop", size=32, gate=False, calibration="split",
        preprocess={"scaling": "evidence"}, **options,
    )  # fmt: skip
    return detector.fit(cohort, out)


def test_the_choice_is_written_kept_and_repeated(tmp_path, rng):
    cohort = write(tmp_path, rng, 18, lambda rng: 1.0)
    detector = fit(cohort, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "scaling.json").read_text())
    assert record == detector.training["scaling"] and record["subjects"] == 18
    names = [entry["name"] for entry in record["judged"]]
    assert names == ["auto", "percentile", "file", "landmarks"] and record["lesions"] > 80
    assert record["chosen"] in names and detector.preprocess.scaling != "evidence"
    loaded = ns.load(tmp_path / "run")
    scan = next(iter(cohort)).load()
    assert loaded.predict(scan).score == detector.predict(scan).score
    again = fit(cohort)
    assert again.training["scaling"] == record
    assert again.scan_threshold.to_dict() == detector.scan_threshold.to_dict()
    assert again.asked().preprocess.scaling == "evidence"


def test_scans_of_many_gains_are_not_scaled_alike(tmp_path, rng):
    cohort = write(tmp_path, rng, 24, lambda rng: np.exp(rng.normal(0, 0.7)))
    record = fit(cohort).training["scaling"]
    found = {entry["name"]: entry["sensitivity"] for entry in record["judged"]}
    assert found["file"] < found["auto"] and record["chosen"] != "file"


def test_too_few_scans_are_scaled_one_by_one(tmp_path, rng):
    detector = fit(write(tmp_path, rng, FEWEST - 1, lambda rng: 1.0))
    assert detector.preprocess.scaling == "auto"
    assert f"{FEWEST} are needed" in detector.training["scaling"]["reason"]


def test_outside_of_a_fit_it_is_refused(rng):
    scan = ns.Scan.from_array(rng.uniform(size=(20, 20)).astype(np.float32))
    with pytest.raises(ArgumentError, match="settled when a detector is fitted"):
        Preprocess(scaling="evidence")(scan, 2)
