"""Every regime through what stands around a detector: wrappers, resuming, sites, the benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.support.pairs import write_pairs
from tests.support.regimes import TOYS, registered

from normscan.benchmark.cell import Job, run_job
from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.errors import ArgumentError, CohortError, NormscanError
from normscan.io.values import read_json
from normscan.training.loop import Trainer

OPTIONS = {"preprocess": {"scaling": "none", "crop": "none", "size": 24}, "gate": False}


@pytest.fixture(scope="module", autouse=True)
def toys():
    with registered():
        yield


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, toy) -> Cohort:
    """A cohort that has what every regime needs: pairs, structures, labels, a second cohort."""
    folder = tmp_path_factory.mktemp("everything")
    frame = pd.read_csv(write_pairs(folder), dtype=str, keep_default_na=False)
    frame["site"] = ["A" if i % 2 else "B" for i in range(len(frame))]
    frame["structures"] = frame["path"].str.replace(".npy", "_labels.npy")
    for path in frame["path"]:
        image = np.load(folder / path)
        np.save(folder / path.replace(".npy", "_labels.npy"), (image > 0.15) + (image > 0.55) * 1)
    ill = frame[frame["label"] == "1"].index[:2]
    frame.loc[ill, "split"] = "extra"
    frame.loc[ill, "site"] = ["A", "B"]
    return Cohort(frame, folder).with_auxiliary(Cohort(frame[frame["split"] == "train"], folder))


def short(method: str, **options) -> Detector:
    """An unfitted toy that trains for three steps."""
    steps = {"steps": 3} if "steps" in Detector(method).arguments else {}
    return Detector(method, **steps, **{**OPTIONS, **options})


def without_what_is_unused(cohort: Cohort, method: str) -> Cohort:
    """A cohort for a method that would refuse a second one."""
    if method in ("toy_exposed", "toy_segmenter"):
        return cohort
    return Cohort(cohort.table, cohort.root)


@pytest.mark.parametrize("method", TOYS)
def test_wrappers(method, cohort, tmp_path):
    """They pass on what the method asks for, and are saved with it."""
    own = without_what_is_unused(cohort, method)
    detector = short(method, wrappers=["impure", "ensemble=2", "flips=12"])
    detector.fit(own, tmp_path / "run")
    inner = detector.method.inner.members[1].inner
    assert detector.method.context == inner.context
    assert dict(detector.method.uses) == dict(inner.uses)
    loaded = load(tmp_path / "run", "cpu")
    test = own.part("test")
    for (_, one), (_, other) in zip(
        detector.predict_cohort(test), loaded.predict_cohort(test), strict=True
    ):
        assert one.score == other.score


@pytest.mark.parametrize("method", ["toy_translation", "toy_anatomy"])
def test_what_stands_beside_a_scan_is_flipped_with_it(method, cohort):
    """The toys know no place, so mirror images change nothing, if all is mirrored."""
    own = Cohort(cohort.table, cohort.root)
    flipped, plain = (short(method, wrappers=w).fit(own) for w in (["flips=12"], []))
    row = own.part("test")[0]
    beside = {name: row.load_companion(name, row.load()) for name in row.companions}
    a, b = (d.predict(row.load(), companions=beside).map for d in (flipped, plain))
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.ptp(a) > 0.01


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "method", ["toy_between", "toy_translation", "toy_classes", "toy_segmenter"]
)
def test_a_killed_run_resumes_and_ends_as_the_straight_one(method, cohort, tmp_path, monkeypatch):
    own, killed = without_what_is_unused(cohort, method), []
    straight = short(method).fit(own)
    inner, original = Trainer._step, Trainer.__init__

    def step(self, index, phase, at, *rest):
        if at == 2 and not killed:
            killed.append(at)
            raise Killed
        return inner(self, index, phase, at, *rest)

    monkeypatch.setattr(Trainer, "_step", step)
    monkeypatch.setattr(
        Trainer, "__init__", lambda self, *a: original(self, *a, checkpoint_seconds=0.0)
    )
    with pytest.raises(Killed):
        short(method).fit(own, tmp_path / "run")
    resumed = short(method).fit(own, tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / "cache").exists()
    for name, value in straight.method.state_dict().items():
        assert torch.equal(value, resumed.method.state_dict()[name]), name
    assert resumed.scan_threshold.threshold == straight.scan_threshold.threshold


def cell(method: str, table: Path, folder: Path) -> str:
    """Run a cell of a benchmark; return why it failed, or nothing."""
    steps = {"steps": 3} if "steps" in Detector(method).arguments else {}
    options = {"preset": "tiny", "preprocess": OPTIONS["preprocess"], **steps}
    where = {"a": str(folder / "cell")}
    run_job(Job(method, 0, options, str(table), str(folder / "run"), where, {"a": str(table)}))
    if (folder / "cell" / "cell.json").is_file():
        return ""
    return str(read_json(folder / "cell" / "error.json")["reason"])


SECOND = "learns from a second cohort"


@pytest.mark.parametrize(
    ("method", "rich", "plain"),
    [
        ("toy_translation", "", "learns from the target of healthy scans"),
        ("toy_anatomy", None, "learns from the structures of healthy scans"),
        ("toy_exposed", SECOND, SECOND),
        ("toy_segmenter", SECOND, SECOND),
        ("toy_between", "", None),
        ("toy_classes", "", None),
        ("toy_nearest", "", None),
        ("toy_guess", "", None),
    ],
)
def test_the_benchmark_runs_them_or_says_why_not(method, rich, plain, cohort, toy, tmp_path):
    """One cohort has targets, structures and labels, one has labels; a benchmark has no second."""
    table = Cohort(cohort.table, cohort.root).write(tmp_path / "rich.csv")
    for name, path, expected in (("rich", table, rich), ("plain", toy(2), plain)):
        if expected is not None:
            reason = cell(method, path, tmp_path / name)
            assert expected in reason and bool(expected) == bool(reason), reason


# ---------------------------------------------------------------- several sites


@pytest.fixture
def federate():
    pytest.importorskip("flwr", reason="Flower (normscan[federated]) is not installed")
    from normscan.federated.run import federate

    return federate


@pytest.mark.parametrize(
    "method", ["toy_between", "toy_translation", "toy_classes", "toy_exposed", "toy_segmenter"]
)
def test_sites_draw_from_their_own_scans(method, cohort, federate, tmp_path):
    own = without_what_is_unused(cohort, method)
    done = federate(method, own, tmp_path / "out", rounds=2, local_epochs=1, **OPTIONS)
    assert done.sites == ["A", "B"]
    for site, folder in zip(done.sites, done.folders, strict=True):
        detector = load(folder, "cpu")
        here = own.select(own.table["site"] == site)
        for part, split in (("train", "train"), ("labelled", "extra")):
            samples = detector.training["samples"].get(part)
            assert samples in (None, len(here.part(split)))
        assert all(not isinstance(found, NormscanError)
                   for _, found in detector.predict_cohort(own.part("test")))  # fmt: skip


def test_what_has_nothing_to_share_is_refused(cohort, toy, federate, tmp_path):
    own = Cohort(cohort.table, cohort.root)
    with pytest.raises(ArgumentError, match="'toy_guess' trains nothing"):
        federate("toy_guess", own, tmp_path / "a", rounds=2, **OPTIONS)
    with pytest.raises(ArgumentError, match="nothing to federate"):
        federate("toy_nearest", own, tmp_path / "b", rounds=2, shots=2, **OPTIONS)
    with pytest.raises(ArgumentError, match="nothing to federate"):
        federate("toy_anatomy", own, tmp_path / "d", rounds=2, **OPTIONS)
    bare = own.select([r.site == "A" or r.split != "extra" for r in own])
    with pytest.raises(CohortError, match=r"site 1 \(site B\): .*learns from anomalous scans"):
        federate("toy_classes", bare, tmp_path / "c", rounds=2, **OPTIONS)


def test_the_folder_of_a_refused_run_can_be_used_again(toy, cohort, tmp_path):
    out: Path = tmp_path / "run"
    with pytest.raises(CohortError):
        short("toy_translation").fit(Cohort.read(toy(2)), out)
    short("toy_translation").fit(Cohort(cohort.table, cohort.root), out)
