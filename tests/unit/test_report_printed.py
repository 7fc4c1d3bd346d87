"""Charts as files, and what of a report's pictures is new for volumes and for two detectors."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgba_array
from PIL import Image
from sklearn.metrics import roc_curve
from tests.support.viewer_runs import finding

from normscan.cli.main import main
from normscan.display import cut, leaves
from normscan.evaluation.writing import choose
from normscan.report import charts
from normscan.report.printed import COLOURS, data_of, recolour, write_figures
from normscan.report.rows import LEAF, make_row


@pytest.fixture
def kept():
    rng = np.random.default_rng(0)
    labels, scores = np.repeat([0, 1], 20), np.r_[rng.normal(0, 1, 20), rng.normal(1, 1, 20)]
    with charts.keeping() as kept:
        charts.score_strip(scores[:5], scores[:20], scores[20:], 1.0)
        charts.score_histogram(scores[:20], scores[20:], scores[:5], 1.0)
        charts.roc_chart(labels, scores, scores > 1)
    return {one.name: one for one in kept}, labels, scores


def table(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_each_chart_becomes_a_drawing_a_pdf_and_its_data(kept, tmp_path):
    written = write_figures(tmp_path / "figures", list(kept[0].values()))
    assert {p.name for p in written} == {
        f"{name}.{kind}" for name in ("strip", "histogram", "roc") for kind in ("svg", "pdf", "csv")
    }
    for path in (tmp_path / "figures").glob("*.svg"):
        root = ElementTree.fromstring(path.read_text("utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(--" not in path.read_text("utf-8")
    for path in (tmp_path / "figures").glob("*.pdf"):
        data = path.read_bytes()
        assert data.startswith(b"%PDF-")
        assert data.rstrip().endswith(b"%%EOF")
        assert b"CreationDate" not in data  # the same input gives the same bytes


def test_the_data_are_what_is_drawn(kept):
    charts_by_name, labels, scores = kept
    rows = table(data_of(charts_by_name["roc"].figure))
    curve = [(float(r["x"]), float(r["y"])) for r in rows if r["series"].startswith("AUROC")]
    false, true, _ = roc_curve(labels, scores)
    np.testing.assert_allclose(curve, np.c_[false, true])
    rows = table(data_of(charts_by_name["strip"].figure))
    lesioned = sorted(float(r["x"]) for r in rows if r["series"] == "lesioned test")
    np.testing.assert_allclose(lesioned, np.sort(scores[20:]))
    rows = table(data_of(charts_by_name["histogram"].figure))
    counts = [float(r["y"]) for r in rows if r["series"] == "healthy (20)" and r["width"]]
    assert sum(counts) == 20
    assert any(r["series"].startswith("healthy validation") for r in rows)


def test_print_has_no_colour_that_stands_for_another(kept):
    for one in kept[0].values():
        recolour(one.figure)
        for artist in one.figure.findobj():
            for kind in COLOURS:
                try:
                    used = to_rgba_array(getattr(artist, f"get_{kind}")())
                except (AttributeError, ValueError, TypeError):
                    continue
                assert not {to_hex(c) for c in used} & set(charts.VARIABLES)


def test_charts_are_kept_only_where_they_are_asked_for():
    with charts.keeping() as outer:
        with charts.keeping() as inner:
            charts.score_strip(np.arange(3.0), np.empty(0), np.empty(0))
        charts.score_strip(np.arange(3.0), np.empty(0), np.empty(0))
    charts.score_strip(np.arange(3.0), np.empty(0), np.empty(0))
    assert (len(outer), len(inner)) == (1, 1)


def test_a_volume_stands_in_three_planes_and_either_convention():
    one = finding(3)
    mask = one.map > 1.2
    seen, mirrored = (
        make_row(one.picture(mask, 1, radiological=side), "scan-0-0", (0.8, 2.0), 1.2)
        for side in (False, True)
    )
    assert [name for name, _ in seen.around] == ["axial", "coronal", "sagittal"]
    assert (seen.letters, mirrored.letters) == (("A", "L"), ("A", "R"))

    def across(path):
        return np.array([float(x) for x in re.findall(r"[ML]([\d.]+) ", path)])

    np.testing.assert_allclose(
        np.sort(across(mirrored.lesion)), np.sort(seen.columns - across(seen.lesion)), atol=0.11
    )
    assert not finding(2).picture().around


def test_a_volume_is_leafed_through_from_the_top_with_its_peak():
    one = finding(3)
    scan, top_down = one.scan, leaves(one.scan.data, one.scan.affine, one.map, 7)
    peak = np.unravel_index(one.map.argmax(), one.map.shape)[2]
    each = [cut(scan.data, scan.affine, 2, k, one.map, True) for k in range(scan.shape[2])]
    at = [k for plane in top_down for k, known in enumerate(each)
          if np.array_equal(plane.map, known.map)]  # fmt: skip
    assert len(at) == len(top_down) <= 7 and at == sorted(at, reverse=True) and peak in at
    assert {plane.name for plane in top_down} == {"axial"}
    flipped = leaves(scan.data, scan.affine @ np.diag([1, 1, -1, 1.0]), one.map, 7)
    np.testing.assert_array_equal(flipped[0].image, top_down[-1].image)
    address, count = make_row(one.picture(), "scan-0-0", (0.8, 2.0), 1.2).leaves
    sheet = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert sheet.size == (LEAF, LEAF * count) and count > 3
    assert make_row(finding(2).picture(), "scan-0-0", (0.8, 2.0), 1.2).leaves is None


def test_typical_scans_are_those_of_the_subjects_in_the_middle():
    scans = pd.DataFrame(
        {
            "scan": [f"{s}{k}" for s in "abcdefg" for k in (0, 1)],
            "subject": list(np.repeat(list("abcdefg"), 2)),
            "label": 1,
            "score": [float(10 * i + k) for i in range(7) for k in (0, 1)],
            "anomalous": True,
        }
    )
    assert choose(scans)["Typical anomalous scans"] == ["e1", "d1", "c1"]
    assert choose(scans)["Typical healthy scans"] == []


def test_detectors_stand_side_by_side_on_the_same_scans(toy, tmp_path, capsys):
    cohort = str(toy(2))
    for name in ("first", "second"):
        size = "32" if name == "first" else "16"
        run = ["fit", "mean_image", "--cohort", cohort, "--out", str(tmp_path / name)]
        assert main([*run, "--size", size, "--calibration", "split", "--gate", "no"]) == 0
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    evaluate = ["evaluate", first, "--cohort", cohort, "--baselines", "no", "--compare"]
    assert main([*evaluate, second]) == 0
    folder = tmp_path / "first" / "evaluation"
    assert (folder / "figures" / "roc.pdf").is_file()
    page = (folder / "compare" / "side_by_side.html").read_text("utf-8")
    assert page.count('<article class="beside">') == 8
    assert page.count("Map of first of ") == page.count("Map of second of ") == 8
    pairs = pd.read_csv(folder / "compare" / "pairs.csv")
    auroc = [
        json.loads((place / "results.json").read_text())["metrics"]["image_auroc"]["value"]
        for place in (folder, folder / "compare" / "second")
    ]
    assert pairs[["a", "b"]].to_numpy().tolist() == [["first", "second"]]
    assert pairs["auroc_difference"][0] == pytest.approx(auroc[0] - auroc[1])
    capsys.readouterr()
    before = (folder / "results.json").read_text()
    assert main([*evaluate, first, "--overwrite"]) == 2
    assert "are the same" in capsys.readouterr().err
    assert (folder / "results.json").read_text() == before  # told before the work
