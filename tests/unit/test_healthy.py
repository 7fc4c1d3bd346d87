"""The healthy scans are questioned: trimmed ranks, exclusions, copies, the page, one subject alone."""

import csv
import shutil

import numpy as np
import pytest

import normscan as ns
from normscan.cli.main import _gathered, main
from normscan.decide import Calibration, CrossThreshold, ScanThreshold
from normscan.detector import healthy as scored
from normscan.detector.exclude import reasons_of, without
from normscan.detector.finding import UNDECIDED, Finding
from normscan.errors import ArgumentError, CohortError, OutputError, ScanError
from normscan.quality.copies import look_of, near_copies

# ---------------------------------------------------------------- trimmed ranks


def test_trimming_leaves_the_highest_out_of_the_rank():
    plain, trimmed = ScanThreshold(np.arange(20.0), 0.1), ScanThreshold(np.arange(20.0), 0.1, 3)
    assert (plain.threshold, plain.rank) == (18, 2)
    # 17 are ranked: floor(0.1 * 18) = 1.
    assert (trimmed.threshold, trimmed.rank, trimmed.n) == (16, 1, 17)
    assert trimmed.trimmed.tolist() == [17, 18, 19] and trimmed.p_value(18.5) == 1 / 18
    assert trimmed.expected_fpr == pytest.approx((1 + 3) / 21)
    assert not trimmed.certified and "not guaranteed" in trimmed.describe()
    assert "19.0% if those left out are healthy, 5.6% if they aren't" in trimmed.describe()
    again = ScanThreshold.from_dict(trimmed.to_dict())
    assert again.to_dict() == trimmed.to_dict()
    old = {k: v for k, v in plain.to_dict().items() if k != "trim"}
    assert ScanThreshold.from_dict(old).threshold == 18
    with pytest.raises(ArgumentError, match="trim is 5, but 5 healthy"):
        ScanThreshold(np.arange(5.0), 0.1, 5)
    with pytest.raises(ArgumentError, match="0 or more"):
        Calibration(trim=-1)


def test_trimming_is_by_subject_and_over_all_folds():
    made = CrossThreshold.of_subjects(
        [9, 8, 1, 2, 3, 4], [1, 1, 1, 2, 2, 2], 0.25, ["a", "a", "b", "c", "d", "e"], trim=1
    )
    assert [f.tolist() for f in made.folds] == [[1], [2, 3, 4]] and made.trimmed.tolist() == [9]
    assert made.threshold == 4 and made.n == 4
    again = CrossThreshold.from_dict(made.to_dict())
    assert again.to_dict() == made.to_dict() and again.folds[0].tolist() == [1]
    assert again.p_values_of([[3.5, 3.5]]) == pytest.approx([2 / 5])


@pytest.mark.parametrize("kind", ["split", "cross"])
@pytest.mark.parametrize("lesioned", [0, 3])
def test_the_rate_after_trimming(kind, lesioned):
    """What is said of both cases: those left out are healthy, or they were lesioned after all."""
    rng, repeats, n, trim, fpr = np.random.default_rng(lesioned), 3000, 40, 3, 0.1
    flagged = 0
    for _ in range(repeats):
        scores = rng.normal(size=n)
        scores[:lesioned] = 50 + np.arange(lesioned)
        if kind == "split":
            threshold = ScanThreshold(scores, fpr, trim)
        else:
            threshold = CrossThreshold(np.split(scores, 5), fpr, trim=trim)
        flagged += threshold.judge([float(rng.normal())])[1]
    expected = threshold.rank / (threshold.n + 1) if lesioned else threshold.expected_fpr
    assert abs(flagged / repeats - expected) < 4 * np.sqrt(expected * (1 - expected) / repeats)


# ---------------------------------------------------------------- folds without a score


def test_a_fold_without_a_score_takes_no_part_in_the_p_value():
    made = CrossThreshold.of_subjects([1, 5, 2, 3], [1, 1, 3, 3], 0.5, members=3)
    assert [f.tolist() for f in made.folds] == [[1, 5], [], [2, 3]]
    # Of fold 1 one is as high as 2, of fold 3 one as high as 3; member 2 may say what it will.
    for second in (-9.0, 9.0):
        assert made.p_values_of([[2.0, second, 3.0]]) == pytest.approx([(1 + 1 + 1) / 5])
    assert CrossThreshold.from_dict(made.to_dict()).to_dict() == made.to_dict()
    # The bound is that of the two folds which were scored.
    whole = CrossThreshold([[1.0, 5.0], [2.0, 3.0]], 0.5)
    assert made.guaranteed == whole.guaranteed
    with pytest.raises(ArgumentError, match="with scores"):
        CrossThreshold([[], []])


@pytest.fixture(scope="module")
def cohort(toy):
    return ns.Cohort.read(toy(2, 1))


def fit(cohort, out=None, method="mean_image", **options):
    kept = {k: options.pop(k) for k in ("exclude", "resume", "progress") if k in options}
    detector = ns.create(method, preset="laptop", size=32, gate=False, fpr=0.2, **options)
    return detector.fit(cohort, out, **kept)


def test_a_fold_whose_every_scan_fails(cohort, tmp_path, monkeypatch, capsys):
    predict = scored.predict_rows

    def failing(state, rows, **options):
        for row, found in predict(state, rows, **options):
            yield row, ScanError("too dark") if row.scan in lost else found

    from normscan.detector.cross import fold_seed
    from normscan.training.data import healthy_folds

    part = healthy_folds(cohort, 3, fold_seed(0))[1]
    lost = {row.scan for row in part}
    monkeypatch.setattr(scored, "predict_rows", failing)
    detector = fit(cohort, tmp_path / "run", calibration="cross", folds=3, progress=True)
    said = capsys.readouterr().err
    assert f"{len(lost)} of {len(lost)} healthy scans could not be scored" in said
    assert {e["scan"] for e in detector.training["not_scored"]} == lost
    assert [fold.size > 0 for fold in detector.scan_threshold.folds] == [True, False, True]
    found = ns.load(tmp_path / "run").predict(next(iter(cohort.part("test"))).load())
    assert found.p_value is not None
    assert "too dark" in (tmp_path / "run" / "healthy.html").read_text()


# ---------------------------------------------------------------- exclusions


def test_reasons_are_read_and_checked(tmp_path):
    assert reasons_of(None) == {} and reasons_of({"a": "x  y"}) == {"a": "x y"}
    table = tmp_path / "out.csv"
    table.write_text("scan,reason\na,motion\nb,tumour\n")
    assert reasons_of([str(table), "c=1=2"]) == {"a": "motion", "b": "tumour", "c": "1=2"}
    assert reasons_of(table) == {"a": "motion", "b": "tumour"}
    for wrong in (["a"], ["a="], ["=x"], {"a": " "}):
        with pytest.raises(ArgumentError, match="why it is left out"):
            reasons_of(wrong)
    with pytest.raises(ArgumentError, match="named twice"):
        reasons_of(["a=x", "a=y"])
    table.write_text("scan,why\na,motion\n")
    with pytest.raises(CohortError, match="no column 'reason'"):
        reasons_of(table)


def test_the_option_may_be_given_several_times():
    given = ["--exclude", "a=motion", "--out", "x", "--exclude=b=two words"]
    assert _gathered(given, "exclude") == ["--out", "x", '--exclude=["a=motion", "b=two words"]']
    assert _gathered(["--exclude", '["a=b"]'], "exclude") == ['--exclude=["a=b"]']
    assert _gathered(["--out", "x"], "exclude") == ["--out", "x"]


def test_what_is_left_out_is_recorded_and_reported(cohort, toy, tmp_path, capsys):
    from normscan.evaluation import evaluate

    with pytest.raises(CohortError, match=r"no scan 'train99'.*Did you mean"):
        without(cohort, {"train99": "x"})
    for scan in ("test000", "extra100"):
        with pytest.raises(CohortError, match="no healthy scan of train or val"):
            without(cohort, {scan: "x"})
    out = tmp_path / "run"
    command = ["fit", "mean_image", "--cohort", str(toy(2, 1)), "--out", str(out), "--size", "32"]
    more = ["--exclude", "train003=motion", "--exclude", "val001=another scanner"]
    assert main([*command, "--gate", "false", "--calibration", "split", *more]) == 0
    assert (
        "left out by hand: train003 (motion), val001 (another scanner)" in capsys.readouterr().err
    )
    detector = ns.load(out)
    excluded = detector.training["excluded"]
    assert {e["scan"]: e["reason"] for e in excluded} == dict(t.split("=") for t in more[1::2])
    assert detector.training["cohort_size"] == {"train": 47, "val": 5}
    card = (out / "card.md").read_text()  # it travels, so that names are left out
    assert "(motion)" in card and "train003" not in card
    assert "another scanner" in (out / "healthy.html").read_text()
    with (out / "healthy.csv").open() as file:
        assert "val001" not in {row["scan"] for row in csv.DictReader(file)}
    results = evaluate(detector, cohort, tmp_path / "evaluation", baselines=())
    assert any("left out of the fit by hand" in note for note in results["cohort"]["notes"])
    with pytest.raises(OutputError, match="other settings"):
        fit(cohort, out, calibration="split", resume=True)


# ---------------------------------------------------------------- the page, copies


def test_copies_are_found_and_others_are_not(rng):
    def picture(k):
        made = np.random.default_rng(k).normal(size=(12, 12)).repeat(8, 0).repeat(8, 1)
        return 100 + 20 * made

    scans = [picture(k) for k in range(12)]
    scans += [picture(3) * 1.2 + rng.normal(0, 1, (96, 96)), picture(5)[::2, ::2], picture(7)]
    looks = [look_of(ns.Scan.from_array(s.astype(np.float32))) for s in scans]
    subjects = [*map(str, range(14)), "7"]  # the last is of the subject that it copies
    assert {pair[:2] for pair in near_copies(looks, subjects)} == {(3, 12), (5, 13)}
    assert near_copies(looks[:1], ["a"]) == []
    assert not look_of(ns.Scan.from_array(np.ones((9, 9), np.float32))).any()


@pytest.mark.parametrize("calibration", ["split", "cross"])
def test_the_page_names_the_scan_that_sets_the_threshold(cohort, tmp_path, calibration):
    table = cohort.table.copy()
    original = cohort.root / table.loc[table["scan"] == "train000", "path"].item()
    copy = shutil.copy(original, tmp_path / "copy.npy")
    table.loc[table["scan"] == "val005", "path"] = str(copy)
    doubled = ns.Cohort(table, cohort.root)
    detector = fit(doubled, tmp_path / "run", calibration=calibration, folds=3)
    with (tmp_path / "run" / "healthy.csv").open() as file:
        rows = list(csv.DictReader(file))
    threshold = detector.scan_threshold
    found = detector.training["healthy"]
    at = [row["scan"] for row in rows if float(row["score"]) == threshold.threshold]
    assert found["sets_threshold"] in at
    page = (tmp_path / "run" / "healthy.html").read_text()
    assert found["sets_threshold"] in page and page.count('class="row"') == min(12, len(rows))
    assert f"of {threshold.n} healthy subjects" in page and "<script" not in page
    if calibration == "cross":
        assert [sorted(pair["scans"]) for pair in found["copies"]] == [["train000", "val005"]]
        assert "exact copy" in page


def test_a_scan_alone_at_the_top_is_named():
    found = scored.Healthy(list("abcde"), list("abcde"), [1.0, 2.0, 3.0, 9.2, 6.1], [0] * 5)
    assert found.doubt() == ""
    found.scores[4] = 3.5
    assert "d is among the healthy scans and scores 9.2, the others at most 3.5" in found.doubt()
    assert "--exclude 'd=REASON'" in found.doubt()


# ---------------------------------------------------------------- few healthy scans


def alone(cohort, count=1):
    names = [row.scan for row in cohort.part("train")][:count]
    return cohort.select([r.scan in names or r.split == "test" for r in cohort])


@pytest.mark.parametrize("method", ["mean_image", "ae_dense"])
def test_one_healthy_subject_gives_a_map_and_a_score_without_a_threshold(
    cohort, tmp_path, capsys, method
):
    steps = {"steps": 4, "latent": 8, "width": 4} if method == "ae_dense" else {}
    made = fit(alone(cohort), tmp_path / "run", method, progress=True, calibration="auto", **steps)
    assert "one healthy subject" in capsys.readouterr().err
    assert made.training["calibration"].startswith(UNDECIDED)
    loaded = ns.load(tmp_path / "run")
    found = loaded.predict(next(iter(cohort.part("test"))).load())
    assert isinstance(found, Finding) and found.map is not None and np.isfinite(found.score)
    assert (found.p_value, found.anomalous, found.threshold) == (None, None, None)
    assert (
        "not calibrated" in found.decision and UNDECIDED in (tmp_path / "run/card.md").read_text()
    )
    # Any healthy scan of another subject sets one afterwards.
    loaded.calibrate(cohort.part("val"))
    assert loaded.scan_threshold.n == 6


def test_a_detector_that_lost_its_threshold_is_damaged(cohort, tmp_path):
    from normscan.io.values import read_json, write_json

    fit(cohort, tmp_path / "run", calibration="split")
    about = dict(read_json(tmp_path / "run" / "detector.json"))
    write_json(tmp_path / "run" / "detector.json", {**about, "scan_threshold": None})
    with pytest.raises(OutputError, match="no scan threshold"):
        ns.load(tmp_path / "run")


def test_two_healthy_subjects_are_held_against_each_other(cohort):
    made = fit(alone(cohort, 2), calibration="cross")
    assert made.scan_threshold.n == 2 and "at least 4 are needed" in made.training["calibration"]
