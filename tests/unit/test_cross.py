"""Cross-calibration: p-values against their definition, fits against fits by hand, resumed runs."""

import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tests.conftest import settled as choose

import normscan as ns
from normscan.decide import Calibration, CrossThreshold, ScanThreshold, promise
from normscan.decide.calibration import nearby
from normscan.detector import cross
from normscan.errors import ArgumentError
from normscan.training.data import healthy_folds


def by_definition(folds, scores):
    """(1 + #{healthy as high, by the member of their fold}) / (n + 1), counted one by one."""
    n = sum(map(len, folds))
    return (1 + sum(s >= x for fold, x in zip(folds, scores, strict=True) for s in fold)) / (n + 1)


def test_p_values_are_those_of_the_definition(rng):
    folds = [rng.integers(0, 9, size=n).astype(float) for n in (3, 4, 4)]
    threshold = CrossThreshold(folds, fpr=0.25)
    scans = rng.integers(0, 10, size=(40, 3)).astype(float)
    np.testing.assert_array_equal(
        threshold.p_values_of(scans), [by_definition(folds, row) for row in scans]
    )
    for row in scans:
        p, anomalous = threshold.judge(row)
        assert anomalous == (p <= 3 / 12 + 1e-12) and threshold.rank == 3
    # Members that agree are one detector, and its decision is that of a split.
    split = ScanThreshold(np.concatenate(folds), 0.25)
    for score in range(10):
        assert threshold.judge([score] * 3) == (split.p_value(score), split.is_anomalous(score))
        assert threshold.judge([score]) == threshold.judge([score] * 3)
    with pytest.raises(ArgumentError, match="2 scores came for 3 members"):
        threshold.judge([1.0, 2.0])


def test_it_is_stored_exactly(rng):
    threshold = CrossThreshold([[1.0, np.inf], [0.5, 0.25, 3.0]], 0.4)
    again = CrossThreshold.from_dict(threshold.to_dict())
    assert again.to_dict() == threshold.to_dict()
    assert [f.tolist() for f in again.folds] == [[1.0, np.inf], [0.25, 0.5, 3.0]]
    plain = ScanThreshold([1.0, 2.0])
    assert type(CrossThreshold.from_dict(plain.to_dict())) is ScanThreshold
    with pytest.raises(ArgumentError, match="not the one"):
        CrossThreshold.from_dict({**threshold.to_dict(), "threshold": 9.0})


def test_subjects_stand_with_their_highest_score():
    made = CrossThreshold.of_subjects([1, 5, 2, 3], [1, 1, 2, 2], 0.5, ["a", "a", "b", "c"])
    assert [f.tolist() for f in made.folds] == [[5], [2, 3]]
    with pytest.raises(ArgumentError, match="two folds"):
        CrossThreshold.of_subjects([1, 2], [1, 2], 0.5, ["a", "a"])
    with pytest.raises(ArgumentError, match="two folds or more"):
        CrossThreshold([[1.0]])


def test_the_bound_is_that_of_the_article():
    # Theorem 4: 2 alpha + min(2 (1 - 1/K) / (n/K + 1), (1 - K/n) / (K + 1)); jackknife+ where K = n.
    made = CrossThreshold([np.arange(20.0)] * 5, 0.05)
    assert made.guaranteed == pytest.approx(2 * 5 / 101 + min(1.6 / 21, 0.95 / 6))
    assert CrossThreshold([[float(i)] for i in range(19)], 0.1).guaranteed == pytest.approx(2 * 0.1)
    refitted = CrossThreshold([np.arange(20.0)] * 5, 0.05, refit=True)
    assert refitted.guaranteed == 1 and "nothing is proven" in refitted.describe()
    assert CrossThreshold.from_dict(refitted.to_dict()).refit and "at most" in made.describe()


@pytest.mark.parametrize(("n", "folds"), [(8, 4), (20, 5), (20, 20), (50, 5)])
def test_the_realised_rate(n, folds):
    """Distance from the mean of the others: 1,500 simulated cohorts, each with a new healthy scan."""
    rng, repeats, fpr = np.random.default_rng(n + folds), 1500, 0.2
    data, new = rng.normal(size=(repeats, n, 2)), rng.normal(size=(repeats, 2))
    fold = np.arange(n) % folds
    flagged = 0
    for x, y in zip(data, new, strict=True):
        means = [x[fold != k].mean(0) for k in range(folds)]
        healthy = [np.linalg.norm(x[fold == k] - means[k], axis=1) for k in range(folds)]
        threshold = CrossThreshold(healthy, fpr)
        flagged += threshold.judge([float(np.linalg.norm(y - m)) for m in means])[1]
    rate, expected = flagged / repeats, threshold.expected_fpr
    assert rate <= threshold.guaranteed
    assert abs(rate - expected) < 4 * np.sqrt(expected * (1 - expected) / repeats)


@pytest.mark.parametrize(
    ("val", "healthy", "kind"),
    [
        (39, 300, "split"),
        (38, 300, "cross"),
        (0, 30, "cross"),
        (5, 18, "cross"),
        (5, 5, "split"),
        (5, 19, "cross"),
        (20, 30, "split"),
        (0, 1, "split"),
    ],
)
def test_auto_takes_what_the_cohort_supports(val, healthy, kind):
    # 39 scores: the second largest of them is the threshold for 5 %. 19 can promise it, by the
    # largest alone; where val has so many and all scans are less than 39, five fits gain nothing.
    assert choose(Calibration(), val, healthy, 0.05).kind == kind
    assert choose(Calibration("split"), val, healthy, 0.05).kind == "split"
    assert choose(Calibration(), val, healthy, 0.05, processes=2).kind == "split"


def test_what_can_not_be_had_is_refused():
    with pytest.raises(ArgumentError, match="auto, split, cross"):
        Calibration("loo")
    with pytest.raises(ArgumentError, match="2 or more"):
        Calibration("cross", 1)
    with pytest.raises(ArgumentError, match="one process"):
        choose(Calibration("cross"), 5, 30, 0.05, processes=2)
    assert choose(Calibration("cross", 9), 0, 4, 0.05).folds == 4
    assert promise(62, 0.05) == "4.8%, set by the 3 highest of 62 scores"
    assert promise(12, 0.05) == "7.7%, set by the highest of 12 scores"


def test_a_rate_that_is_nearer_is_named():
    for n in range(1, 200):
        near = nearby(n, 0.05)
        promised = ScanThreshold(np.arange(n), 0.05)
        if near is None:
            continue
        other = ScanThreshold(np.arange(n), near)
        assert other.rank == promised.rank + 1 <= 3 and other.certified
        assert 0 < other.expected_fpr - 0.05 < 0.05 - promised.expected_fpr
    assert [nearby(n, 0.05) for n in (12, 19, 37, 39)] == [None, None, 0.0527, None]


def fitted(cohort, method="mean_image", out=None, **options):
    detector = ns.create(method, preset="laptop", size=32, gate=False, fpr=0.2, **options)
    return detector.fit(cohort, out)


@pytest.fixture(scope="module")
def cohort(toy):
    return ns.Cohort.read(toy(2, 1))


def test_folds_are_by_subject(cohort):
    parts = healthy_folds(cohort, 3, seed=0)
    subjects = [{row.subject for row in part} for part in parts]
    every = {r.subject for s in ("train", "val") for r in cohort.part(s)}
    assert set.union(*subjects) == every and sum(map(len, subjects)) == len(every)
    assert max(map(len, subjects)) - min(map(len, subjects)) <= 1


def test_out_of_fold_scores_are_those_of_separate_fits(cohort):
    detector = fitted(cohort, calibration="cross", folds=3)
    threshold = detector.scan_threshold
    members = []
    for k, part in enumerate(healthy_folds(cohort, 3, cross.fold_seed(0))):
        table = cohort.table[cohort.table["split"].isin(["train", "val"])].copy()
        held = {row.scan for row in part}
        table["split"] = ["val" if scan in held else "train" for scan in table["scan"]]
        alone = fitted(ns.Cohort(table, cohort.root), calibration="split")
        np.testing.assert_allclose(threshold.folds[k], alone.scan_threshold.scores, rtol=1e-6)
        members.append(alone)
    scan = next(iter(cohort.part("test"))).load()
    found = detector.predict(scan)
    scores = [member.predict(scan).score for member in members]
    assert found.score == pytest.approx(np.mean(scores), rel=1e-6)
    assert found.p_value == pytest.approx(by_definition(threshold.folds, scores))
    maps = np.mean([member.predict(scan).map for member in members], axis=0)
    np.testing.assert_allclose(found.map, maps, rtol=1e-5, atol=1e-6)


def same(one, other):
    assert one.scan_threshold.to_dict() == other.scan_threshold.to_dict()
    assert one.pixel_threshold == other.pixel_threshold
    state = other.method.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in one.method.state_dict().items())


def test_figures_on_scans_that_trained_are_said_to_be_too_good(cohort, tmp_path):
    from normscan.evaluation import evaluate
    from normscan.limits import detection_limits

    detector = fitted(cohort, calibration="cross", folds=2)
    for split in ("train", "val", "test"):
        found = evaluate(detector, cohort, tmp_path / split, split=split, baselines=())
        notes = " ".join(found["cohort"]["notes"])
        assert ("trained the detector" in notes) == (split != "test")
    assert found["decision"]["kind"] == "cross"
    limits = detection_limits(detector, cohort, split="val", count=1, replicates=0)
    assert "trained the detector" in " ".join(limits.notes)
    alone = fitted(cohort, calibration="split")
    assert "set its threshold" in " ".join(alone.doubts(list(cohort.part("val")), "val"))


@pytest.mark.parametrize("refit", [False, True])
def test_a_killed_run_goes_on_with_its_folds(cohort, tmp_path, refit, monkeypatch, capsys):
    options = {"method": "ae_dense", "steps": 8, "calibration": "cross", "folds": 3}
    options |= {"latent": 8, "width": 4, "refit": refit}
    straight = fitted(cohort, out=tmp_path / "straight", **options)
    assert not list((tmp_path / "straight").glob("folds/*/*.safetensors"))
    member, out = cross.member, tmp_path / "killed"

    def killed(work, number):
        if number == 2:
            raise KeyboardInterrupt
        return member(work, number)

    monkeypatch.setattr(cross, "member", killed)
    with pytest.raises(KeyboardInterrupt):
        fitted(cohort, out=out, **options)
    assert (out / "folds" / "1" / "member.safetensors").exists()
    monkeypatch.setattr(cross, "member", member)
    detector = ns.create(
        "ae_dense", preset="laptop", size=32, gate=False, fpr=0.2,
        **{k: v for k, v in options.items() if k != "method"},
    )  # fmt: skip
    same(detector.fit(cohort, out, resume=True, progress=True), straight)
    said = capsys.readouterr().err.splitlines()
    assert "fold 1 is kept from before, of 3" in said
    assert [line for line in said if line.endswith(" of 3")][1:] == ["fold 2 of 3", "fold 3 of 3"]
    same(ns.load(out), straight)
    assert ("nothing is proven" in straight.training["calibration"]) is refit
    rows = (out / "healthy.csv").read_text().splitlines()
    assert rows[0] == "scan,subject,fold,score"
    assert len(rows) == 1 + len(cohort.part("train")) + len(cohort.part("val"))


def test_a_frozen_backbone_is_stored_once(cohort, tmp_path):
    options = {
        "backbone": "test_resnet.r160_in1k", "weights": "random", "taps": ("layer1", "layer2"),
        "steps": 2, "calibration": "cross", "folds": 3,
    }  # fmt: skip
    made = fitted(cohort, "rd4ad", tmp_path / "run", **options)
    with safe_open(tmp_path / "run" / "model.safetensors", "pt") as stored:
        names = list(stored.keys())
    heads = {n.split(".")[1] for n in names if ".teacher." in n}
    assert heads == {"0"} and {n.split(".")[1] for n in names} == {"0", "1", "2"}
    scan = next(iter(cohort.part("test"))).load()
    again = ns.load(tmp_path / "run").predict(scan)
    assert again.score == made.predict(scan).score
    shutil.rmtree(tmp_path / "run")


def test_a_bank_that_leaves_out_folds_is_loaded_as_it_was(cohort, tmp_path):
    options = {"preset": "tiny", "weights": "random", "calibration": "cross", "folds": 3}
    made = ns.create("patchcore", gate=False, fpr=0.2, **options).fit(cohort, tmp_path / "run")
    loaded, scan = ns.load(tmp_path / "run", "cpu"), next(iter(cohort.part("test"))).load()
    found, again = made.predict(scan), loaded.predict(scan)
    assert (again.score, again.p_value, again.anomalous) == (
        found.score, found.p_value, found.anomalous,
    )  # fmt: skip
    np.testing.assert_array_equal(again.map, found.map)


def test_a_healthy_scan_that_stands_alone_is_named():
    from normscan.detector.healthy import Healthy

    scores = [1.0, 2.0, 3.0, 9.0]
    some = Healthy(list("abcd"), list("abcd"), scores, [0] * 4)
    assert "d is among the healthy scans and scores 9, the others at most 3" in some.doubt()
    assert Healthy(list("abcd"), list("abcd"), [1.0, 2, 3, 3.5], [0] * 4).doubt() == ""


@pytest.mark.parametrize(("neighbours", "reweighted"), [(1, 3), (2, 0)])
def test_a_bank_leaves_out_each_fold(neighbours, reweighted):
    """Beside banks that hold the vectors of the other folds alone."""
    from normscan.methods.base import Batch
    from normscan.registry import card
    from normscan.rng import Rng

    def build():
        options = {"neighbours": neighbours, "reweighted": reweighted, "channels": 1}
        return card("patchcore").create(**{**card("patchcore").arguments("tiny"), **options}).eval()

    def batch(n, seed):
        images = torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(seed))
        return Batch(images, torch.ones_like(images, dtype=torch.bool), Rng(seed), torch.zeros(n))

    method, scans = build(), batch(2, 9)
    assert method.leaves_out and not build().requires_grad_(False).bank.sizes.numel()
    method.fit_folds([[batch(3, seed)] for seed in (1, 2, 3)])
    members = method.each(scans)
    parts = method.bank.vectors.split(method.bank.sizes.tolist())
    assert len(members) == len(parts) == 3
    for k, member in enumerate(members):
        other = build()
        other.load_state_dict(
            {n: v for n, v in method.state_dict().items() if "bank" not in n}, strict=False
        )
        other.bank.keep(torch.cat([part for j, part in enumerate(parts) if j != k]))
        alone = other.maps(scans)
        torch.testing.assert_close(member.map, alone.map, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(member.score, alone.score, rtol=1e-4, atol=1e-4)
    # What is kept of a fold doesn't depend on the other folds.
    again = build()
    again.load_state_dict(
        {n: v for n, v in method.state_dict().items() if "bank" not in n}, strict=False
    )
    again.fit_folds([[batch(3, seed)] for seed in (1, 7, 3)])
    kept = again.bank.vectors.split(again.bank.sizes.tolist())
    assert torch.equal(kept[0], parts[0]) and torch.equal(kept[2], parts[2])
    method.fit([batch(3, 1)])
    assert len(method.each(scans)) == 1
