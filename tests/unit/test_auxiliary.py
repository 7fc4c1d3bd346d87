"""A second cohort to learn from: what of it is drawn, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.support.regimes import registered

from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.errors import ArgumentError, CohortError, OutputError
from normscan.training.data import select_part
from normscan.training.loop import Trainer

OPTIONS = {"preprocess": {"scaling": "none", "crop": "none", "size": 32}, "gate": False}


@pytest.fixture(scope="module", autouse=True)
def toys():
    with registered():
        yield


@pytest.fixture(scope="module")
def textures(tmp_path_factory) -> Path:
    """Pictures of noise without labels, as a folder's table."""
    folder, rng, rows = tmp_path_factory.mktemp("textures"), np.random.default_rng(0), []
    for i in range(6):
        np.save(folder / f"{i}.npy", rng.uniform(1, 3, (40, 40)).astype(np.float32))
        rows.append({"path": f"{i}.npy", "label": ""})
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def test_fit_save_load_predict(toy, textures, tmp_path, monkeypatch):
    """Both domains in equal parts; afterwards bright noise is what isn't healthy."""
    seen, inner = [], Trainer._step

    def step(self, index, phase, at, steps, optimizers, data):
        seen.append(data.data.batch(data.indices(at), None).part.tolist())
        return inner(self, index, phase, at, steps, optimizers, data)

    monkeypatch.setattr(Trainer, "_step", step)
    cohort = Cohort.read(toy(2))
    detector = Detector("toy_exposed", **OPTIONS)
    detector.fit(cohort, tmp_path / "run", auxiliary=textures)
    assert all(sum(parts) == 4 and len(parts) == 8 for parts in seen) and len(seen) == 40
    assert detector.training["samples"] == {"train": 48, "val": 6, "auxiliary": 6}
    loaded = load(tmp_path / "run", "cpu")
    scan = cohort.part("test")[0].load()
    one, other = detector.predict(scan), loaded.predict(scan)
    np.testing.assert_array_equal(one.map, other.map)
    noise = loaded.predict(np.random.default_rng(9).uniform(1, 3, scan.shape).astype(np.float32))
    assert noise.score > 0.5 > one.score and noise.anomalous


def test_what_is_drawn_of_it(tmp_path):
    """train and extra; a published split is kept to, and without one unlabelled scans are extra."""
    rows = [(0, "train"), (0, "val"), (0, "test"), (1, "test"), (1, "extra"), (None, "extra")]
    table = pd.DataFrame(rows, columns=["label", "split"])
    table["path"] = [f"{i}.png" for i in range(6)]
    main = Cohort(pd.DataFrame({"path": ["m.png"], "label": [0], "split": ["train"]}))
    drawn = select_part(main.with_auxiliary(Cohort(table)), "auxiliary")
    assert [r.paths[0].name for r in drawn] == ["0.png", "4.png", "5.png"]
    for i, name in enumerate(("a.npy", "b.npy", "c.npy")):
        np.save(tmp_path / name, np.arange(4.0) + i)
    table = pd.DataFrame({"path": ["a.npy", "b.npy", "c.npy"], "label": [0, "", 1]})
    table.to_csv(tmp_path / "t.csv", index=False)
    drawn = select_part(main.with_auxiliary(tmp_path / "t.csv"), "auxiliary")
    assert [r.paths[0].name for r in drawn] == ["a.npy", "b.npy"]


def test_its_labels_are_told(toy, textures):
    frame = pd.read_csv(textures, dtype=str, keep_default_na=False)
    frame["label"], frame["split"] = ["0", "0", "1", "1", "", ""], ["train"] * 2 + ["extra"] * 4
    cohort = Cohort.read(toy(2)).with_auxiliary(Cohort(frame, textures.parent))
    labels = []

    class Spy(Trainer):
        def run(self):
            labels.extend(self.parts["auxiliary"].told.tolist())
            return super().run()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("normscan.detector.fitting.Trainer", Spy)
        Detector("toy_exposed", steps=1, **OPTIONS).fit(cohort)
    assert labels == [0, 0, 1, 1, -1, -1]


def test_it_goes_with_the_cohort(toy, textures):
    cohort = Cohort.read(toy(2)).with_auxiliary(textures)
    for other in (
        cohort.part("train"),
        cohort.references(2, 0),
        cohort.select([True] * len(cohort)),
    ):
        assert other.auxiliary is cohort.auxiliary
    assert cohort.digest() != Cohort.read(toy(2)).digest()


def test_without_one_or_with_one_too_many(toy, textures):
    cohort = Cohort.read(toy(2))
    with pytest.raises(CohortError, match="learns from a second cohort. Name it: --auxiliary"):
        Detector("toy_exposed", **OPTIONS).fit(cohort)
    with pytest.raises(ArgumentError, match="'mean_image' learns from no auxiliary cohort"):
        Detector("mean_image", **OPTIONS).fit(cohort, auxiliary=textures)
    test = pd.DataFrame({"path": ["x.png"], "label": [0], "split": ["test"]})
    with pytest.raises(CohortError, match="auxiliary cohort has no scans to learn from"):
        Detector("toy_exposed", **OPTIONS).fit(cohort, auxiliary=Cohort(test))


def test_a_copy_of_a_test_scan_is_refused(toy, tmp_path):
    cohort = Cohort.read(toy(2))
    for split, refused in (("test", True), ("val", True), ("train", False)):
        scan = cohort.part(split)[0].paths[0]
        (tmp_path / "copy.npy").write_bytes(scan.read_bytes())
        other = Cohort(
            pd.DataFrame({"path": ["copy.npy"], "label": [0], "split": ["train"]}), tmp_path
        )
        if refused:
            with pytest.raises(
                CohortError, match="'copy' of the auxiliary cohort is an exact copy"
            ):
                cohort.with_auxiliary(other)
        else:
            cohort.with_auxiliary(other)


class Killed(Exception):
    pass


def test_a_killed_run_resumes_and_ends_as_the_straight_one(toy, textures, tmp_path, monkeypatch):
    """With balanced draws from two cohorts; another auxiliary cohort is another run."""
    cohort, inner, killed = Cohort.read(toy(2)), Trainer._step, []
    straight = Detector("toy_exposed", steps=9, **OPTIONS).fit(cohort, auxiliary=textures)

    def step(self, index, phase, at, *rest):
        if at == 5 and not killed:
            killed.append(at)
            raise Killed
        return inner(self, index, phase, at, *rest)

    original = Trainer.__init__
    monkeypatch.setattr(Trainer, "_step", step)
    monkeypatch.setattr(
        Trainer, "__init__", lambda self, *a: original(self, *a, checkpoint_seconds=0.0)
    )
    resumed = Detector("toy_exposed", steps=9, **OPTIONS)
    with pytest.raises(Killed):
        resumed.fit(cohort, tmp_path / "run", auxiliary=textures)
    frame = pd.read_csv(textures, dtype=str, keep_default_na=False).iloc[:3]
    with pytest.raises(OutputError, match="begun with other settings"):
        resumed.fit(cohort, tmp_path / "run", resume=True,
                    auxiliary=Cohort.from_table(frame, textures.parent))  # fmt: skip
    resumed.fit(cohort, tmp_path / "run", resume=True, auxiliary=textures)
    for name, value in straight.method.state_dict().items():
        assert torch.equal(value, resumed.method.state_dict()[name]), name
    assert resumed.scan_threshold.threshold == straight.scan_threshold.threshold
