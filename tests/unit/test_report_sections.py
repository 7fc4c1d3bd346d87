"""The sections Lesions and Calibration: the numbers of the results, and drawings that agree."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from tests.unit.test_report import FULL, HOSTILE, MINIMAL, Page, table, write

from normscan.metrics import calibration
from normscan.metrics.agreement import icc
from normscan.metrics.segmentation import SegmentationScores
from normscan.report.calibration import calibration_section, expected_band
from normscan.report.lesions import froc_chart, lesion_section, strata_chart, volume_chart

SPACING = (1.5, 2.0)


def scans(seed: int = 0, count: int = 20) -> list[tuple[np.ndarray, np.ndarray]]:
    """Maps with lesions of several sizes; every fifth scan is healthy, every third is blind."""
    rng, made = np.random.default_rng(seed), []
    for number in range(count):
        mask = np.zeros((48, 48), bool)
        if number % 5:
            for row, side in ((2, 1), (10, 4), (24, 12)):
                mask[row : row + side, 8 : 8 + side] = True
        values = rng.random((48, 48)) * 0.4
        if number % 3:
            values[mask & (rng.random(mask.shape) < 0.4)] += 1
        if number % 2:
            values[40:43, 30:33] += 0.8
        made.append((values.astype(np.float32), mask))
    return made


@pytest.fixture(scope="module")
def segmentation() -> dict:
    scores = SegmentationScores()
    for number, (values, mask) in enumerate(scans()):
        scores.add(values > 0.5, values, mask, f"s{number}", SPACING)
    return scores.evaluate().to_dict()


def pixels(segmentation: dict) -> dict:
    return {**FULL["pixels"], "segmentation": segmentation}


def test_strata_count_what_a_labelling_counts(segmentation: dict) -> None:
    found: dict[str, list[bool]] = {name: [] for name in segmentation["strata"]}
    for values, mask in scans():
        labels, n = ndimage.label(mask, np.ones((3, 3)))
        for lesion in range(1, n + 1):
            area = (labels == lesion).sum() * 3.0
            diameter = 2 * np.sqrt(area / np.pi)
            names = ["under 5 mm", "5 to 10 mm", "10 to 20 mm", "20 mm and more"]
            name = names[int(np.searchsorted([5, 10, 20], diameter, side="right"))]
            found[name].append(bool((values > 0.5)[labels == lesion].any()))
    for name, hits in found.items():
        entry = segmentation["strata"][name]
        assert entry["lesions"] == len(hits) == entry["sensitivity"]["n"]
        if hits:
            assert entry["sensitivity"]["value"] == pytest.approx(np.mean(hits))
        else:
            assert entry["sensitivity"]["value"] is None
    assert sum(map(len, found.values())) == segmentation["lesions"]["lesions"] == 48
    assert [len(hits) for hits in found.values()].count(0) == 1


def test_volume_figures_have_intervals_by_subject(segmentation: dict) -> None:
    pairs = np.array(segmentation["volume_pairs"])
    assert segmentation["volume_unit"] == "cm2" and pairs.shape == (20, 2)
    bias = segmentation["volume_bias"]
    assert bias["value"] == pytest.approx(np.mean(pairs[:, 0] - pairs[:, 1]), abs=1e-6)
    assert segmentation["volume_icc"]["value"] == pytest.approx(icc(pairs), abs=1e-5)
    drawn = np.random.default_rng(1).choice(pairs[:, 0] - pairs[:, 1], (4000, 20)).mean(1)
    np.testing.assert_allclose(
        [bias["low"], bias["high"]], np.quantile(drawn, [0.025, 0.975]), atol=0.15
    )


def test_the_page_shows_the_lesions(tmp_path: Path, segmentation: dict) -> None:
    html = write(tmp_path, {**FULL, "pixels": pixels(segmentation)})
    page = Page(html)
    lesions = segmentation["lesions"]
    undefined = segmentation["surfaces_undefined"]
    assert 0 < undefined < 16
    for text in (
        lesions["rule"], "48 lesions", f"{lesions['components']} components", "20 scans",
        f"{16 - undefined} of 16 scans", f"{undefined} scans with a lesion have no segmentation",
        f"{lesions['sensitivity']['value']:.3f}", f"{lesions['froc']['0.5']:.3f}", "5 to 10 mm",
        f"{segmentation['hd95']['low']:.3g}–", "Volume bias (cm²)", "of the disc of the same size",
    ):  # fmt: skip
        assert text in page.text, text
    assert len(page.identities) == len(set(page.identities)) and "#0102" not in html
    labels = re.findall(r'<svg role="img" aria-label="([^"]+)"', html)
    assert len(labels) >= 5 and any("FROC" in label for label in labels)


@pytest.mark.parametrize("given", [None, {}, {"segmentation": None}])
def test_nothing_is_shown_without_masks(given: dict | None, tmp_path: Path) -> None:
    assert lesion_section(given) is None
    text = Page(write(tmp_path, {**FULL, "pixels": given})).text
    assert "Lesions" not in text and "FROC" not in text
    empty = SegmentationScores()
    empty.add(np.zeros((8, 8)), np.zeros((8, 8)), np.zeros((8, 8)), "a", SPACING)
    assert lesion_section({"segmentation": empty.evaluate(replicates=0).to_dict()}) is None


def test_results_of_an_earlier_version_still_make_a_page(
    tmp_path: Path, segmentation: dict
) -> None:
    new = ("strata", "volume_bias", "volume_icc", "volume_pairs", "volume_unit")
    old = {k: v for k, v in segmentation.items() if k not in new}
    old["lesions"] = {k: v for k, v in segmentation["lesions"].items() if k != "components"}
    text = Page(write(tmp_path, {**FULL, "pixels": pixels(old)})).text
    assert "Volume bias (ml)" in text and "By size" not in text


def test_charts_cope_with_extremes(segmentation: dict) -> None:
    undefined = {"value": None, "low": None, "high": None}
    strata = {HOSTILE: {"lesions": 0, "sensitivity": undefined}}
    drawing = strata_chart(strata)
    assert "<script" not in drawing and "no lesion" in drawing
    missed = {
        "froc": {"0.125": 0.0, "8": 0.0}, "froc_mean": 0.0, "sensitivity": {"value": 0.0},
        "false_positives_per_scan": {"value": 0.0},
    }  # fmt: skip
    assert "operating point" not in froc_chart(missed)  # no place on a logarithmic axis
    assert "operating point" in froc_chart(segmentation["lesions"])
    one = dict.fromkeys(("bias", "low", "high")) | {"bias": 0.5}
    assert "without (1)" in volume_chart([[0.5, 0.0]], one, "ml")


def test_the_band_holds_what_calibrated_detectors_do() -> None:
    rng, n, m = np.random.default_rng(2), 19, 30
    validation, test = np.sort(rng.random((4000, n))), rng.random((4000, m))
    above = (validation[:, None, :] >= test[:, :, None]).sum(2)
    p = (1 + above) / (n + 1)
    levels, low, high = expected_band(m, n)
    assert levels[1] == pytest.approx(1 / 20) and len(levels) == 20
    for level, bottom, top in zip(levels[1:], low[1:], high[1:], strict=True):
        share = (p <= level + 1e-9).mean(1)
        inside = ((share >= bottom - 1e-9) & (share <= top + 1e-9)).mean()
        assert 0.94 < inside <= 1
        assert ((share > bottom + 1e-9) & (share < top - 1e-9)).mean() < 0.955  # and not wider


def test_the_calibration_of_the_lowest_p_value_of_each_subject(tmp_path: Path) -> None:
    values = table(6, 6, 8)
    values["p_value"] = [0.02, 0.3, 0.5, 0.5, 0.9, 1.0, *[0.01] * 6, *[0.5] * 8]
    values["subject"] = ["a", "a", *values["subject"][2:]]
    healthy = [0.02, 0.5, 0.5, 0.9, 1.0]
    decision = {**FULL["decision"], "calibration": calibration(healthy).to_dict()}
    section = calibration_section(values[values["split"] == "test"], decision)
    assert section is not None and "healthy subjects (5)" in section["chart"]
    text = Page(write(tmp_path, {**FULL, "decision": decision}, values)).text
    assert "Calibration" in text and "20.0% 0.5%–71.6% 5" in text and "8 validation and 5" in text
    assert calibration_section(values, FULL["decision"]) is None
    assert "Calibration" not in Page(write(tmp_path)).text


def test_calibration_without_p_values_in_the_table_keeps_its_numbers(tmp_path: Path) -> None:
    decision = {"calibration": calibration([0.2, 0.6]).to_dict()}
    bare = pd.DataFrame({"scan": ["a"], "score": [1.0]})
    text = Page(write(tmp_path, {**MINIMAL, "decision": decision}, bare, pictures={})).text
    assert "Kolmogorov–Smirnov" in text
