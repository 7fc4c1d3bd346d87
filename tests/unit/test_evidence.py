"""The reduction that planted lesions choose: from the fit to the loaded detector."""

from __future__ import annotations

import json

import numpy as np
import pytest

import normscan as ns
from normscan.detector import cross
from normscan.detector.evidence import FEWEST
from normscan.errors import CohortError, OutputError
from normscan.scores.reductions import Reduction

TINY = {"latent": 8, "width": 4}


def fitted(cohort, method="mean_image", out=None, **options):
    options = {"reduction": "evidence", "fpr": 0.2, "calibration": "split", **options}
    return ns.create(method, preset="laptop", size=32, gate=False, **options).fit(cohort, out)


@pytest.fixture(scope="module")
def cohort(toy):
    return ns.Cohort.read(toy(2, 1))


def scores(detector, cohort, split="val"):
    return sorted(found.score for _, found in detector.predict_cohort(cohort.part(split)))


def test_the_choice_is_written_kept_and_repeated(cohort, tmp_path, capfd):
    detector = ns.create(
        "mean_image", preset="laptop", size=32, gate=False, reduction="evidence", fpr=0.2,
        calibration="split",
    ).fit(cohort, tmp_path / "run", progress=True)  # fmt: skip
    record = json.loads((tmp_path / "run" / "reduction.json").read_text())
    assert record == detector.training["reduction"]
    assert f"reduction: {record['reason']}" in capfd.readouterr().err
    names = [entry["name"] for entry in record["judged"]]
    assert names[0] == record["usual"] == "mean" and record["chosen"] in names
    assert {"max", "p_norm_4", "top_0.1_percent+inner"} < set(names)
    assert record["subjects"] == 6 and record["lesions"] == 60
    assert all(len(entry["by_kind"]) == 10 for entry in record["judged"])
    assert detector.reduction == record["chosen"]
    if "+place" not in detector.reduction:
        np.testing.assert_allclose(scores(detector, cohort), detector.scan_threshold.scores)
    loaded = ns.load(tmp_path / "run")
    assert scores(loaded, cohort, "test") == scores(detector, cohort, "test")
    assert loaded.configuration() == detector.configuration()
    assert not (tmp_path / "run" / "maps").exists()
    again = fitted(cohort)
    assert again.training["reduction"] == record
    assert again.scan_threshold.to_dict() == detector.scan_threshold.to_dict()
    # Asked for anew, it is chosen anew.
    assert again.fit(cohort).training["reduction"] == record


def test_a_killed_run_chooses_the_same(cohort, tmp_path, monkeypatch):
    options = {"method": "ae_dense", "steps": 4, "calibration": "cross", "folds": 3, **TINY}
    straight = fitted(cohort, out=tmp_path / "straight", **options)
    member, out = cross.member, tmp_path / "killed"

    def killed(work, number):
        if number == 2:
            raise KeyboardInterrupt
        return member(work, number)

    monkeypatch.setattr(cross, "member", killed)
    with pytest.raises(KeyboardInterrupt):
        fitted(cohort, out=out, **options)
    monkeypatch.setattr(cross, "member", member)
    options.pop("method")
    detector = ns.create(
        "ae_dense", preset="laptop", size=32, gate=False, reduction="evidence", fpr=0.2, **options
    )
    detector.fit(cohort, out, resume=True)
    assert detector.training["reduction"] == straight.training["reduction"]
    assert detector.scan_threshold.to_dict() == straight.scan_threshold.to_dict()
    assert not list(out.glob("maps/*"))


def test_places_are_asked_for_kept_and_compared(cohort, tmp_path):
    detector = fitted(cohort, out=tmp_path / "run", reduction="max+place")
    assert detector.reduction == "max+place" and detector.places is not None
    maps = []
    for row in cohort.part("val"):
        scan = row.load()
        prepared = detector.preparation()(row)
        maps.append(np.abs(prepared.image - detector.method.mean.numpy()[0])[0])
        assert prepared.image.shape[1:] == detector.places.mean.shape and scan is not None
    np.testing.assert_allclose(detector.places.mean, np.mean(maps, axis=0), rtol=1e-4, atol=1e-5)
    loaded = ns.load(tmp_path / "run")
    assert scores(loaded, cohort) == scores(detector, cohort)
    # Thresholds rest on places that didn't see the subject, so that its score isn't too low.
    assert np.mean(scores(detector, cohort)) < np.mean(detector.scan_threshold.scores)
    path = tmp_path / "run" / "places.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    with pytest.raises(OutputError, match=r"places\.safetensors"):
        ns.load(tmp_path / "run")


def test_scans_on_several_grids_have_no_places(tmp_path, rng):
    rows = ["path,label,split"]
    for i in range(10):
        shape = (24, 20, 8 + i)  # volumes keep their own slices
        np.save(tmp_path / f"{i}.npy", rng.gamma(2, size=shape).astype(np.float32))
        rows.append(f"{i}.npy,0,{'train' if i < 4 else 'val'}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    cohort = ns.Cohort.read(tmp_path / "table.csv")
    with pytest.raises(CohortError, match=r"max\+place.*grids differ"):
        fitted(cohort, reduction="max+place", dims=2)
    record = fitted(cohort, dims=2).training["reduction"]
    assert "grids differ" in record["unaligned"]
    assert not any("+place" in entry["name"] for entry in record["judged"])


def test_a_level_is_learnt_from_healthy_maps(cohort):
    detector = fitted(cohort, reduction="component_mass+inner")
    parsed = Reduction.parse(detector.reduction)
    assert parsed.inner and parsed.level is not None
    above = []
    for row in cohort.part("val"):
        prepared = detector.preparation()(row)
        anomaly = np.abs(prepared.image - detector.method.mean.numpy()[0])[0]
        above.append((anomaly[prepared.foreground] > parsed.level).mean())
    assert 0.005 < np.mean(above) <= 0.01
    np.testing.assert_allclose(scores(detector, cohort), detector.scan_threshold.scores)


def test_too_few_scans_keep_the_usual_score(cohort):
    table = cohort.table[cohort.table["split"].isin(["train", "val"])]
    keep = [*table[table["split"] == "train"].index, *table[table["split"] == "val"].index[:3]]
    few = ns.Cohort(table.loc[keep], cohort.root)
    detector = fitted(few)
    assert detector.reduction == "mean" and not detector.reduction.startswith("evidence")
    reason = detector.training["reduction"]["reason"]
    assert f"3 healthy subjects are too few to judge by, {FEWEST} are needed" in reason
    usual = fitted(few, reduction=None)
    assert detector.scan_threshold.to_dict() == usual.scan_threshold.to_dict()


def test_a_reduction_that_is_asked_for_replaces_the_methods_own_score(cohort):
    options = {"backbone": "resnet18.tv_in1k", "weights": "random", "coreset": 0.5}
    own = fitted(cohort, "patchcore", reduction=None, **options)
    asked = fitted(cohort, "patchcore", reduction="foreground_mean", **options)
    row = next(iter(cohort.part("test")))
    assert own.predict(row.load()).score != asked.predict(row.load()).score
    judged = fitted(cohort, "patchcore", **options).training["reduction"]
    assert judged["judged"][0]["name"] == judged["usual"] == "own"
