"""A search by healthy evidence: it finds what was planted, sees no label, and goes on where it stopped."""

from __future__ import annotations

import csv
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from tests.toy import toy_scan

from normscan import registry
from normscan.auto.kinds import KINDS
from normscan.cli.main import main
from normscan.cohort import Cohort
from normscan.detector import load
from normscan.errors import ArgumentError, CohortError, OutputError
from normscan.methods.base import Maps, Method
from normscan.registry import card

pytest.importorskip("optuna", reason="the extra tune isn't installed")

from normscan.tune import Asked, Engine, search, tune
from normscan.tune.space import Choices, Range, combinations, space_of
from normscan.tune.study import GivenUpError, Study
from normscan.tune.trial import Outcome

PLAIN = {
    "preprocess": {"scaling": "none", "crop": "none"}, "gate": False, "fpr": 0.3, "calibration": "split",
}  # fmt: skip


class Clouded(Method):
    """The distance from the mean healthy image, behind noise that hangs on the image."""

    def __init__(self, cloud: float) -> None:
        super().__init__()
        self.cloud = cloud
        self.register_buffer("mean", torch.zeros(0))

    def fit(self, batches):
        self.mean = torch.cat([b.image for b in batches]).mean(0, keepdim=True)

    def maps(self, batch):
        if self.cloud == 13:
            raise RuntimeError("thirteen brings bad luck")
        # Of pixels that nothing is planted into as a rule.
        seeds = (1e6 * batch.image[:, :, -3:, -3:].double().sum((1, 2, 3))).long()
        noise = [torch.rand(1, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
        return Maps(
            (batch.image - self.mean).abs() + self.cloud * torch.stack(noise)[:, :, None, None]
        )


def clouded(
    dims: int = 2, channels: int = 1, size: int = 32, cloud: float = 3.0, idle: int = 0
) -> Method:
    """Distance behind noise.

    Args:
        dims: axes.
        channels: of the scans.
        size: pixels.
        cloud: how much noise.
        idle: nothing.
    """
    return Clouded(cloud)


@pytest.fixture(scope="module", autouse=True)
def toy():
    registry.register("toy_clouded", paper="toy", presets={"laptop": {}})(clouded)
    yield
    registry._CARDS.pop("toy_clouded")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """24 healthy scans train, 4 set the threshold, 12 are tested, half of them with a lesion."""
    folder, rng, rows = tmp_path_factory.mktemp("tune"), np.random.default_rng(5), []
    for i in range(40):
        ill = i >= 34
        np.save(folder / f"{i}.npy", toy_scan(rng, 2, 1, ill)[0][0] + rng.normal(0, 1e-3))
        split = "train" if i < 24 else "val" if i < 28 else "test"
        rows.append({"path": f"{i}.npy", "label": int(ill), "split": split})
    frame = pd.DataFrame(rows)
    frame.to_csv(folder / "cohort.csv", index=False)
    turned = frame.copy()
    at = turned.index[turned["split"] == "test"]
    turned.loc[at, "label"] = 1 - turned.loc[at, "label"]
    turned.to_csv(folder / "turned.csv", index=False)
    return folder


def asked(**changes):
    values = {"space": {"cloud": "1.0,0.0,3.0"}, "trials": 6, "options": PLAIN, "planted": 60}
    return Asked("toy_clouded", **{**values, **changes})


def without_seconds(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def found(table, tmp_path_factory):
    out = tmp_path_factory.mktemp("found") / "search"
    return tune(asked(), Cohort.read(table / "cohort.csv"), out), out


def test_the_search_finds_the_planted_best(found):
    tuned, out = found
    assert tuned.arguments == {"cloud": 0.0} and "more than the preset's own" in tuned.reason
    # The preset's own first, then each other value once.
    assert [row["cloud"] for row in tuned.trials] == [3.0, 1.0, 0.0]
    detector = load(tuned.run)
    assert detector.arguments["cloud"] == 0.0
    with (out / "trials.csv").open() as file:
        assert [float(r["cloud"]) for r in csv.DictReader(file)] == [3.0, 1.0, 0.0]
    assert not (out / "prepared").exists()


def test_test_labels_cannot_matter(found, table, tmp_path):
    turned = tune(asked(), Cohort.read(table / "turned.csv"), tmp_path / "search")
    assert turned.arguments == found[0].arguments and turned.reason == found[0].reason
    assert without_seconds(turned.trials) == without_seconds(found[0].trials)
    a, b = (load(t.run) for t in (turned, found[0]))
    assert a.scan_threshold.threshold == b.scan_threshold.threshold


def test_a_search_that_was_stopped_ends_as_the_straight_one(table, tmp_path, monkeypatch):
    wide = asked(space={"cloud": "0.0..3.0", "idle": "0,1"}, trials=7)
    cohort = Cohort.read(table / "cohort.csv")
    straight = tune(wide, cohort, tmp_path / "straight")
    real, calls = search.worker, []

    def worker(*args):
        def run(item):
            calls.append(item)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return real(*args)(item)

        return run

    monkeypatch.setattr(search, "worker", worker)
    with pytest.raises(KeyboardInterrupt):
        tune(wide, cohort, tmp_path / "stopped")
    with pytest.raises(OutputError, match="resume"):
        tune(wide, cohort, tmp_path / "stopped")
    with pytest.raises(OutputError, match="other settings"):
        tune(asked(seed=1), cohort, tmp_path / "stopped", resume=True)
    resumed = tune(wide, cohort, tmp_path / "stopped", resume=True)
    assert len(calls) == 8  # three, the one that was stopped, and the four that were left
    assert without_seconds(resumed.trials) == without_seconds(straight.trials)
    assert len({row["cloud"] for row in straight.trials}) == 7


def test_one_bad_trial_is_told_and_the_rest_goes_on(table, tmp_path):
    bad = asked(space={"cloud": "13,0"}, trials=3)
    tuned = tune(bad, Cohort.read(table / "cohort.csv"), tmp_path / "search")
    assert [row["ended"] for row in tuned.trials] == [
        "judged",
        "thirteen brings bad luck",
        "judged",
    ]
    assert tuned.arguments == {"cloud": 0}
    only = asked(options={**PLAIN, "cloud": 13}, space={"idle": "0,1"})
    with pytest.raises(ArgumentError, match="no trial came to its end: thirteen"):
        tune(only, Cohort.read(table / "cohort.csv"), tmp_path / "none")


def test_nothing_clearly_better_leaves_the_preset(table, tmp_path):
    tuned = tune(
        asked(space={"idle": "1,2"}, minutes=1e-9, options={**PLAIN, "cloud": 0.0}),
        Cohort.read(table / "cohort.csv"), tmp_path / "search",
    )  # fmt: skip
    assert tuned.arguments == {} and len(tuned.trials) == 1  # the time was over after the first
    more = tune(
        asked(space={"idle": "1,2"}, options={**PLAIN, "cloud": 0.0}),
        Cohort.read(table / "cohort.csv"), tmp_path / "more",
    )  # fmt: skip
    assert more.arguments == {} and len(more.trials) == 3


def test_too_few_judges_and_methods_that_cannot_be_judged_are_refused(table, tmp_path):
    cohort = Cohort.read(table / "cohort.csv")
    few = cohort.select([row.split != "train" or int(row.scan) < 4 for row in cohort])
    with pytest.raises(CohortError, match="too few"):
        tune(asked(), few, tmp_path / "few")
    with pytest.raises(ArgumentError, match="can't be tuned"):
        tune(Asked("dra", space={"lr": "1,2"}), cohort, tmp_path / "dra")


def outcome(lift):
    """What a trial found: planted scores higher by so much."""
    rng = np.random.default_rng(0)
    healthy, kinds = rng.normal(size=12), np.arange(24) % len(KINDS)
    hosts = np.arange(24) % 12
    planted = healthy[hosts] + lift
    return Outcome(
        healthy.tolist(), planted.tolist(), [False] * len(KINDS), list(range(12)), hosts.tolist(),
        kinds.tolist(),
    )  # fmt: skip


def test_a_trial_far_below_the_others_is_given_up(tmp_path):
    space = {"cloud": Range(0.0, 3.0, False)}
    study = Study(space, {"cloud": 3.0}, tmp_path, 0)
    for k in range(6):
        ((number, arguments),) = study.proposals(1, 20)
        study.watch(number, 1, 0.7 + 0.01 * k)
        study.tell(number, arguments, outcome(1.0))
    ((number, arguments),) = study.proposals(1, 20)
    with pytest.raises(GivenUpError):
        study.watch(number, 1, 0.55)
    study.tell(number, arguments, None)
    ((number, arguments),) = study.proposals(1, 20)
    study.watch(number, 1, 0.9)
    assert [t.state.name for t in study.over()] == ["COMPLETE"] * 6 + ["PRUNED"]


def test_what_a_user_may_write():
    dae = card("dae")
    space = space_of(
        {"lr": "1e-5..1e-2", "steps": "100..400", "noise_std": "0.1,0.2"}, dae, "laptop"
    )
    assert space["lr"] == Range(1e-5, 1e-2, False) and space["lr"].log
    assert space["steps"] == Range(100, 400, True) and not space["steps"].log
    assert space["noise_std"] == Choices((0.1, 0.2)) and combinations(space) is None
    two = {"a": Choices((1, 2)), "b": Choices(("x", "y"))}
    assert combinations(two) == [{"a": a, "b": b} for a in (1, 2) for b in ("x", "y")]
    for wrong, why in (
        ({}, "name what may change"),
        ({"lr": "0.1"}, "nothing to choose"),
        ({"lr": "1..0.1"}, "the lower end comes first"),
        ({"lr": "a..b"}, "no numbers"),
        ({"channels": "1,2"}, "isn't searched"),
        ({"lrr": "1,2"}, "has no argument 'lrr'"),
    ):
        with pytest.raises(ArgumentError, match=why):
            space_of(wrong, dae, "laptop")


@pytest.mark.xdist_group("ray")
@pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray isn't installed")
def test_workers_of_ray_find_what_one_process_does(table, tmp_path):
    cohort = Cohort.read(table / "cohort.csv")
    options = {k: v for k, v in PLAIN.items() if k != "preprocess"}
    some = Asked(
        "image_statistics", "tiny", {"shrinkage": "0.01,0.5,0.9"}, options=options, planted=60
    )
    here = tune(some, cohort, tmp_path / "here")
    there = tune(some, cohort, tmp_path / "there", engine=Engine("ray", 2))
    assert without_seconds(there.trials) == without_seconds(here.trials)
    assert there.arguments == here.arguments


def test_the_command(table, tmp_path, capsys):
    command = [
        "tune",
        "toy_clouded",
        "--cohort",
        table / "cohort.csv",
        "--out",
        tmp_path / "search",
    ]
    options = [
        "--space",
        "cloud=1.0,0.0",
        "--calibration",
        "split",
        "--planted",
        "60",
        "--trials",
        "4",
    ]
    settings = ["--preprocess", '{"scaling": "none", "crop": "none"}', "--device", "cpu"]
    assert main([str(a) for a in (*command, *options, *settings)]) == 0
    out = capsys.readouterr().out
    assert (
        "chosen: trial 3 of 3 found most" in out and f"detector: {tmp_path / 'search/run'}" in out
    )
    assert main([str(a) for a in (*command, "--space", "cloud", *settings)]) == 2
    assert "isn't NAME=VALUES" in capsys.readouterr().err
