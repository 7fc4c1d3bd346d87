"""Boxes and points: MONAI's COCO metric, closed forms, columns of a cohort, refusals."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from monai.apps.detection.metrics.coco import COCOMetric
from monai.apps.detection.metrics.matching import matching_batch
from monai.data.box_utils import box_iou

from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.errors import ArgumentError, CohortError
from normscan.evaluation import evaluate
from normscan.metrics.boxes import IOUS, BoxScores, as_boxes, iou, precision


def random_boxes(rng: np.random.Generator, count: int, axes: int) -> np.ndarray:
    low = rng.integers(0, 20, (count, axes))
    return np.hstack([low, low + rng.integers(2, 9, (count, axes))]).astype(float)


def scans(seed: int, axes: int, count: int = 12) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Found boxes near the true ones and elsewhere, with scores, some of them equal."""
    rng, made = np.random.default_rng(seed), []
    for number in range(count):
        true = random_boxes(rng, number % 4, axes)
        near = true + rng.integers(-1, 2, true.shape)
        half = axes
        near[:, half:] = np.maximum(near[:, half:], near[:, :half] + 1)
        found = np.vstack([near, near[:1], random_boxes(rng, int(rng.integers(0, 4)), axes)])
        made.append((found, rng.integers(0, 9, len(found)) / 10, true))
    return made


def scored(made, **options) -> BoxScores:
    scores = BoxScores(**options)
    for number, (found, values, true) in enumerate(made):
        half = true.shape[1] // 2
        peaks = (found[:, :half] + found[:, half:]) / 2
        scores.add(found, values, peaks, true, f"s{number // 2}")
    return scores


@pytest.mark.parametrize("axes", [2, 3])
def test_average_precision_is_that_of_monai(axes):
    for seed in range(3):
        made = scans(seed, axes)
        options = {"iou_list": [0.3, 0.5], "iou_range": (0.5, 0.95, 0.05), "max_detection": [100]}
        metric = COCOMetric(classes=["lesion"], **options)
        results = matching_batch(
            iou_fn=lambda a, b: np.asarray(box_iou(a, b)),
            iou_thresholds=metric.iou_thresholds,
            pred_boxes=[f for f, _, _ in made],
            pred_classes=[np.zeros(len(f), int) for f, _, _ in made],
            pred_scores=[s for _, s, _ in made],
            gt_boxes=[t for _, _, t in made],
            gt_classes=[np.zeros(len(t), int) for _, _, t in made],
        )
        theirs = metric(results)[0]
        ours = scored(made).evaluate(replicates=0)
        assert ours.ap30.value == pytest.approx(theirs["AP_IoU_0.30_MaxDet_100"], abs=1e-6)
        assert ours.ap50.value == pytest.approx(theirs["AP_IoU_0.50_MaxDet_100"], abs=1e-6)
        (mean,) = (value for name, value in theirs.items() if name.startswith("mAP"))
        assert ours.map.value == pytest.approx(mean, abs=1e-6)
        assert ours.boxes == sum(len(t) for _, _, t in made) and len(IOUS) == 10


def test_overlap_by_hand():
    one, other = (
        np.array([[0, 0, 4, 4.0]]),
        np.array([[2, 2, 6, 6.0], [0, 0, 4, 4], [9, 9, 10, 10]]),
    )
    np.testing.assert_allclose(iou(one, other), [[4 / 28, 1, 0]])
    assert iou(one[:0], other).shape == (0, 3)


def test_weights_are_repeated_scans():
    """Average precision with a subject drawn twice is that of its scans standing twice."""
    made = scans(5, 2)
    twice = scored([*made, *made[:2]]).evaluate(replicates=0)
    met = np.array([True, False, True])
    assert precision(met, np.array([[2.0, 1, 1]]), np.array([3.0]))[0] == pytest.approx(
        precision(np.array([True, True, False, True]), np.ones((1, 4)), np.array([3.0]))[0]
    )
    assert 0 < twice.ap30.value < 1
    few = scored(made).evaluate(replicates=200)
    assert few.ap30.low < few.ap30.value < few.ap30.high


def test_hits_points_and_froc_by_hand():
    scores = BoxScores(tolerance=3)
    # The peak of the first component lies in the box, the second is a false positive.
    scores.add([[0, 0, 4, 4], [20, 20, 22, 22]], [2, 5], [[1, 1], [21, 21]], [[0, 0, 5, 5]], "a",
               highest=[21, 21])  # fmt: skip
    # A point within three pixels of a peak, another one missed.
    scores.add([[8, 8, 12, 12]], [4], [[10, 10]], [], "b", points=[[12, 12], [40, 40]])
    scores.add([], [], [], [], "healthy")
    result = scores.evaluate(replicates=0)
    assert result.hit_rate.value == 0.5 and result.found.value == pytest.approx(2 / 3)
    # One false positive of score 5 on three scans: below 1/3 a scan only what scores above it.
    assert result.froc["0.25"] == 0 and result.froc["0.5"] == pytest.approx(2 / 3)
    assert (result.boxes, result.scans) == (3, 3)
    json.dumps(result.to_dict(), allow_nan=False)
    nothing = BoxScores()
    nothing.add([], [], [], [], "a")
    assert np.isnan(nothing.evaluate().ap50.value) and np.isnan(nothing.evaluate().hit_rate.value)


def test_what_is_refused():
    for boxes in ([[4, 4, 0, 0]], [[1, 2, 3]], [[0, 0, np.nan, 4]]):
        with pytest.raises(ArgumentError, match="box"):
            BoxScores().add([], [], [], boxes, "a")
    with pytest.raises(ArgumentError, match="don't fit"):
        BoxScores().add([[0, 0, 1, 1]], [1, 2], [[0, 0]], [], "a")
    with pytest.raises(ArgumentError, match="write JSON"):
        as_boxes("10 20 30 40", "boxes")
    assert (
        as_boxes(None, "boxes") == as_boxes(" ", "boxes") == as_boxes(float("nan"), "boxes") == []
    )
    assert as_boxes("[1, 2, 3, 4]", "boxes") == [[1, 2, 3, 4]]


@pytest.fixture
def folder(tmp_path):
    """Pictures of 40 rows and 60 columns; lesions are bright blocks whose boxes stand in the table."""
    rng, rows = np.random.default_rng(0), []
    for i in range(34):
        image = rng.normal(100, 2, (40, 60))
        boxes = points = ""
        if i >= 30:
            image[10:16, 30 + i - 30 : 42 + i - 30] += 60
            boxes = json.dumps([[30 + i - 30, 10, 42 + i - 30, 16]]) if i < 33 else ""
            points = "" if i < 33 else json.dumps([[39, 13]])
        np.save(tmp_path / f"{i}.npy", image)
        split = "train" if i < 15 else "val" if i < 26 else "test"
        rows.append({"path": f"{i}.npy", "label": int(i >= 30), "split": split, "boxes": boxes,
                     "points": points})  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "all.csv", index=False)
    return tmp_path


def test_a_cohort_with_boxes(folder):
    cohort = Cohort.read(folder / "all.csv")
    plain = {"scaling": "none", "crop": "none", "fit": "stretch"}
    detector = Detector("mean_image", size=64, calibration="split", pixel_fpr=0.001, gate=False,
                        preprocess=plain)  # fmt: skip
    detector.fit(cohort)
    results = evaluate(detector, cohort, folder / "out", baselines=())
    metrics = results["metrics"]
    assert metrics["hit_rate"]["value"] == 1 and metrics["boxes_found"]["value"] == 1
    assert metrics["box_ap30"]["value"] > 0.5
    assert results["boxes"]["boxes"] == 4 and results["boxes"]["scans"] == 8
    assert "Box mAP" in (folder / "out" / "report.html").read_text()
    finding = detector.predict(cohort.part("test")[4].load())
    rows_low, columns_low, rows_high, columns_high = finding.components()[0]["box"]
    assert 8 <= rows_low <= 12 and 14 <= rows_high <= 18
    assert 27 <= columns_low <= 33 and 39 <= columns_high <= 45

    cohort.table["boxes"] = ["[[1, 2, 3]]"] * len(cohort)
    with pytest.raises(CohortError, match="write JSON such as"):
        evaluate(detector, cohort, folder / "bad", baselines=())
