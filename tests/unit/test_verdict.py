"""The verdict against baselines: figures of scikit-learn, Holm by hand, words, the page's head."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score
from tests.unit.test_report import FULL, HOSTILE, Page, write

from normscan.evaluation.scoring import Scores
from normscan.evaluation.verdict import verdicts
from normscan.report.summary import verdict_sentences

LABELS = np.repeat([0, 1], 40)


def scored(values, labels=LABELS) -> Scores:
    return Scores([
        {"scan": f"s{i}", "subject": f"p{i // 2}", "label": None if y is None else int(y), "score": v}
        for i, (v, y) in enumerate(zip(values, labels, strict=True))
    ])  # fmt: skip


@pytest.fixture(scope="module")
def three() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shift = {"own": 1.5, "mean_image": 0.2, "image_statistics": 1.4}
    return {name: rng.normal(size=80) + s * LABELS for name, s in shift.items()}


def test_better_worse_and_unclear(three):
    own = scored(three["own"])
    others = {name: scored(three[name]) for name in ("mean_image", "image_statistics")}
    first, second = verdicts(own, others)
    assert (first["verdict"], second["verdict"]) == ("better", "unclear")
    for entry in (first, second):
        assert entry["value"] == pytest.approx(roc_auc_score(LABELS, three["own"]))
        assert entry["other"] == pytest.approx(roc_auc_score(LABELS, three[entry["baseline"]]))
        assert entry["difference"] == pytest.approx(entry["value"] - entry["other"])
        assert entry["low"] < entry["difference"] < entry["high"] and entry["n"] == 40
    # Holm: the smaller of two p-values twice, the larger as it is; alone nothing is corrected.
    alone = [verdicts(own, {n: o})[0]["p_value"] for n, o in others.items()]
    assert first["p_value"] == pytest.approx(2 * alone[0])
    assert second["p_value"] == pytest.approx(alone[1])
    (worse,) = verdicts(others["mean_image"], {"own": own})
    assert worse["verdict"] == "worse"
    assert worse["difference"] == pytest.approx(-first["difference"])


def test_an_interval_that_holds_zero_is_never_a_claim(three):
    for seed in range(5):
        other = scored(np.random.default_rng(seed).normal(size=80) + 1.2 * LABELS)
        (entry,) = verdicts(scored(three["own"]), {"x": other})
        assert (entry["low"] <= 0 <= entry["high"]) == (entry["verdict"] == "unclear")


def test_perfect_scores_and_one_class():
    perfect = scored(LABELS + np.linspace(0, 0.5, 80))
    (same,) = verdicts(perfect, {"mean_image": perfect})
    assert same["p_value"] == 1 and same["verdict"] == "unclear" and math.isnan(same["low"])
    (far,) = verdicts(perfect, {"mean_image": scored(-LABELS - np.linspace(0, 0.5, 80))})
    assert far["verdict"] == "better" and far["test"].startswith("permutation")
    one = scored([1.0, 2.0], [1, 1])
    assert verdicts(one, {"mean_image": one})[0]["verdict"] == "undefined"
    unknown = scored([1.0, 2.0], [None, 0])
    assert verdicts(unknown, {"mean_image": unknown})[0]["verdict"] == "undefined"
    # Scans that a baseline could not score take no part.
    (fewer,) = verdicts(perfect, {"mean_image": Scores(perfect.rows[::2])})
    assert fewer["n"] == 40 and verdicts(perfect, {}) == []


def test_pixels_are_compared_within_lesioned_scans():
    rng, sets = np.random.default_rng(1), {"own": 3.0, "mean_image": 0.5}
    masks = [rng.random((12, 12)) < 0.1 for _ in range(14)]
    made, means = {}, {}
    for name, shift in sets.items():
        made[name], each = scored(np.zeros(80)), []
        for i, mask in enumerate(masks):
            values = (rng.normal(size=mask.shape) + shift * mask).astype(np.float32)
            made[name].pixels.add(values, mask, f"p{i // 2}")
            each.append(average_precision_score(mask.ravel(), values.ravel()))
        made[name].pixels.add(rng.normal(size=(12, 12)), np.zeros((12, 12)), "healthy")
        means[name] = np.array(each).reshape(7, 2).mean(axis=1)
    (entry,) = [e for e in verdicts(made["own"], {"mean_image": made["mean_image"]})
                if e["metric"] == "pixel_ap"]  # fmt: skip
    assert entry["value"] == pytest.approx(means["own"].mean(), abs=1e-6)
    assert entry["other"] == pytest.approx(means["mean_image"].mean(), abs=1e-6)
    # All seven subjects are better: of 128 ways to swap them two are as extreme.
    assert entry["n"] == 7 and entry["p_value"] == pytest.approx(2 / 128)
    gap = means["own"] - means["mean_image"]
    ends = stats.bootstrap((gap,), np.mean, method="percentile", random_state=0).confidence_interval
    assert (entry["low"], entry["high"]) == pytest.approx((ends.low, ends.high), abs=0.03)
    (said,) = verdict_sentences([entry])
    assert said.startswith("In pixel AP within lesioned scans it is better than the mean image")


def test_in_words(three):
    own = scored(three["own"])
    (said,) = verdict_sentences(
        verdicts(own, {n: scored(v) for n, v in three.items() if n != "own"})
    )
    assert said.startswith("In image AUROC it is better than the mean image (difference +0.")
    assert "and not clearly better than image statistics (difference " in said
    assert "95% interval +" in said and "corrected after Holm" in said
    nothing = {"baseline": "mean_image", "verdict": "undefined"}
    assert verdict_sentences([nothing])[0].startswith("There is no verdict against the mean image")
    assert verdict_sentences([]) == []


def test_the_first_screen(tmp_path: Path, three):
    found = verdicts(scored(three["own"]), {"mean_image": scored(three["mean_image"])})
    tested = {
        "cohort": HOSTILE, "split": "test", "scans": 80, "subjects": 40, "cohort_sha256": "ab" * 32,
        "preset": "laptop", "seed": 7, "normscan": "0.1.0", "detector_sha256": "cd" * 32,
    }  # fmt: skip
    html = write(tmp_path, {**FULL, "verdict": found, "tested": tested})
    first = Page(html).text.partition("Threshold")[0]
    for text in ("better than the mean image", "80 scans of 40 subjects", "laptop", "abababababab",
                 "cdcdcdcdcdcd", "0.1.0"):  # fmt: skip
        assert text in first, text
    assert HOSTILE not in html
