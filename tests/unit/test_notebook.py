"""What objects look like in a notebook: planes, small pages, figures, widgets, and the notebook."""

from __future__ import annotations

import base64
import io
import itertools
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from tests.support.viewer_runs import finding

import normscan as ns
from normscan.display import cut, planes
from normscan.evaluation.results import Results
from normscan.report.charts import lone, score_strip
from normscan.scan import Scan

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


def pictures(html: str) -> list[Image.Image]:
    found = re.findall(r"src='data:image/png;base64,([^']+)'", html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_planes_are_those_of_nibabels_canonical_volume(order, signs):
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3, :3] = np.diag(signs)[:, list(order)] * [1.0, 2.0, 3.0]
    affine[:3, 3] = 50, -20, 7
    data = rng.uniform(0, 1, (5, 6, 7)).astype(np.float32)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(data, affine))
    turned = canonical.get_fdata()
    at = np.unravel_index(data.argmax(), data.shape)
    middle = np.unravel_index(turned.argmax(), turned.shape)
    found = planes(data[None], affine, map=data, radiological=False)
    assert [p.name for p in found] == ["axial", "coronal", "sagittal"]
    wanted = [turned[:, :, middle[2]], turned[:, middle[1]], turned[middle[0]]]
    for plane, whole in zip(found, wanted, strict=True):
        np.testing.assert_allclose(plane.map, whole.T[::-1])
    zooms = nib.affines.voxel_sizes(canonical.affine)
    assert found[0].spacing == pytest.approx((zooms[1], zooms[0]))
    mirrored = planes(data[None], affine, map=data, at=at)
    np.testing.assert_allclose(mirrored[0].map, found[0].map[:, ::-1])
    np.testing.assert_allclose(mirrored[2].map, found[2].map)
    assert [p.letters for p in found] == [("A", "L"), ("S", "L"), ("S", "P")]
    assert [p.letters for p in mirrored] == [("A", "R"), ("S", "R"), ("S", "P")]


def test_a_picture_is_one_plane_as_it_is():
    picture = np.random.default_rng(0).integers(0, 255, (6, 5, 3)).astype(np.uint8)
    picture[0, 0], picture[1, 1] = 255, 0
    scan = Scan.from_array(picture)
    (plane,) = planes(scan.data, scan.affine, rgb=scan.is_rgb)
    np.testing.assert_array_equal(plane.image, picture)
    assert plane.letters is None
    assert cut(scan.data, scan.affine, 0, 99, rgb=True).image.shape == picture.shape


@pytest.mark.parametrize("dims", [2, 3])
def test_a_finding_shows_the_peak_of_its_map_in_colour(dims):
    one = finding(dims)
    shown = pictures(one._repr_html_())
    assert len(shown) == (1 if dims == 2 else 3)
    for picture in shown:
        red, blue = (np.asarray(picture, int)[..., k] for k in (0, 2))
        assert (red - blue).max() > 60
    grey = pictures(one.scan._repr_html_())
    assert all(np.ptp(np.asarray(p, int), axis=-1).max() == 0 for p in grey)
    assert "Not for diagnosis" in one._repr_html_()


def test_names_can_do_nothing_in_a_page():
    one = finding()
    html = replace(
        one, scan=replace(one.scan, source=Path("<img src=x onerror=1>.nii"))
    )._repr_html_()
    assert "<img src=x" not in html
    assert "&lt;img src=x" in html


def test_figures_draw_themselves_and_volumes_turn():
    flat = finding(2).show()
    assert Image.open(io.BytesIO(flat._repr_png_())).width > 200
    planes_alone = finding(3).show(turn=False)
    assert len(planes_alone.axes) == 4  # three planes and the scale of colours
    assert len(finding(3).scan.show(turn=False).axes) == 3


def test_a_widget_holds_the_scan_and_its_map():
    ipyniivue = pytest.importorskip("ipyniivue", reason="needs normscan[notebook]")
    one = finding(3)
    widget = one.show()
    assert isinstance(widget, ipyniivue.NiiVue)
    scan, map = (nib.Nifti1Image.from_bytes(volume.data) for volume in widget.volumes)
    np.testing.assert_allclose(scan.get_fdata(), one.scan.data[0], atol=1e-4)
    np.testing.assert_allclose(map.get_fdata(), one.map, atol=1e-4)
    np.testing.assert_allclose(map.affine, one.scan.affine, atol=1e-4)


def test_a_cohort_shows_scans_of_each_label_and_passes_over_broken_ones(toy, tmp_path):
    cohort = ns.Cohort.read(toy(2))
    assert len(pictures(cohort._repr_html_())) == 4
    names = [axes.get_title() for axes in cohort.show(4).axes]
    assert sum("anomalous" in name for name in names) == 2
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    (tmp_path / "cohort.csv").write_text("path,label\na.png,0\nb.png,1\n")
    broken = ns.Cohort.read(tmp_path / "cohort.csv")
    assert pictures(broken._repr_html_()) == []
    with pytest.raises(ns.errors.CohortError, match="can be read"):
        broken.show()


def test_results_are_a_table_and_a_figure_of_values_with_intervals():
    def metric(title, value, low=None, high=None, oracle=False):
        return {"title": title, "value": value, "low": low, "high": high, "oracle": oracle}

    results = Results(
        method={"id": "dae"},
        metrics={
            "a": metric("Image AUROC", 0.9, 0.8, 0.95), "b": metric("HD95", 12.0),
            "c": metric("Best Dice", 0.5, oracle=True), "d": metric("Gone", None),
        },
    )  # fmt: skip
    html = results._repr_html_()
    assert "0.900 (0.800 to 0.950)" in html
    assert "0.500, oracle" in html
    assert "Gone" not in html
    (axes,) = results.plot().axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["Image AUROC", "Best Dice"]


def test_a_drawing_that_stands_alone_has_fixed_colours():
    drawn = score_strip(np.arange(5.0), np.empty(0), np.empty(0), 3.0)
    assert "var(--" in drawn
    assert "var(--" not in lone(drawn)
    assert lone(drawn).startswith("<svg")
    assert 'xmlns="http://www.w3.org/2000/svg"' in lone(drawn)


def test_the_notebook_of_the_docs_runs():
    nbclient = pytest.importorskip("nbclient", reason="needs normscan[notebook]")
    pytest.importorskip("ipykernel", reason="needs normscan[notebook]")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # none are committed
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    kinds = [
        set(o["data"]) for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o
    ]
    assert sum("text/html" in kind for kind in kinds) >= 5
    assert sum("image/png" in kind for kind in kinds) >= 3
