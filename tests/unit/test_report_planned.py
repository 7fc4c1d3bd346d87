"""The section on a detector that configured itself agrees with its plan and evidence."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from tests.unit.test_report import HOSTILE, MINIMAL, Page, table

from normscan.report import write_report
from normscan.report.planned import planned_section


def member(name: str, weight: float, area: float | None, **more: object) -> dict:
    by_kind = {"bright": area, "dark": 0.5, "missing": 0.99}
    return {
        "name": name, "weight": weight, "score": "max", "auroc": area, "error": 0.02,
        "behind_error": 0.01, "by_kind": by_kind, "why": "the best", **more,
    }  # fmt: skip


def fold(weight: float = 1.0) -> dict:
    dropped = member("dae:laptop", 1 - weight, 0.6, why="dropped: 0.200 behind the best")
    return {
        "judged_by": {"subjects": 9, "images": 9, "planted": 90},
        "members": [dropped, member("padim:lite0", weight, 0.8)],
        "kind_left_out": {
            "bright": {"together": 0.8, "best_single": 0.75},
            "dark": {"together": 0.55, "best_single": 0.5},
            "missing": {"together": None, "best_single": None},
        },
    }


FINGERPRINT = {
    "subjects": 40, "scans": 50, "read": 50, "modality": "", "dims": 2, "channels": ["image"],
    "size": [128.0, 96.5], "spacing": [1.5, 1.5], "measured": True, "depth": 1, "foreground": 0.4,
    "intensities": [0.0, 1.0, 2.0], "copies": 2, "explained": 0.83,
}  # fmt: skip
PLAN = {
    "fingerprint": FINGERPRINT,
    "reasons": {"time": "about 2.0 of 30 minutes"},
    "passed_over": {"fae": HOSTILE},
}


def config(evidence: dict) -> dict:
    return {"training": {"plan": copy.deepcopy(PLAN), "evidence": evidence}}


def test_a_detector_that_planned_nothing_has_no_section() -> None:
    for given in (None, {}, {"training": {}}, {"training": {"evidence": fold()}}):
        assert planned_section(given) is None


def test_members_of_several_folds_are_summed_up() -> None:
    found = planned_section(config({"folds": [fold(), fold(0.8)]}))
    assert found is not None
    first, second = found["members"]
    assert first["name"] == "padim:lite0" and first["weight"] == pytest.approx(0.9)
    assert first["weights"] == "80% to 100%"
    assert first["area"] == pytest.approx({"value": 0.8, "low": 0.76, "high": 0.84})
    assert first["why"] == "takes part in 2 of 2 folds"
    assert second["why"] == "takes part in 1 of 2 folds; else 0.200 behind the best"
    assert (found["planted"], found["judges"]) == (180, "9")


def test_what_it_cannot_see_is_said() -> None:
    found = planned_section(config(fold()))
    assert found is not None
    assert found["unseen"] == ["dark"]
    assert [k["word"] for k in found["kinds"] if k["together"] is None] == ["everybody"]


def test_no_judges_no_figures() -> None:
    few = fold()
    few["members"] = [member("padim:lite0", 1.0, None, error=None)]
    few["kind_left_out"] = {"bright": {"together": None, "best_single": None}}
    found = planned_section(config(few))
    assert found is not None
    assert found["members"][0]["area"] is None and found["unseen"] == ["bright"]


@pytest.mark.parametrize("evidence", [fold(), {"folds": [fold(), fold(0.7)]}])
def test_the_page_shows_it_unharmed(tmp_path: Path, evidence: dict) -> None:
    path = tmp_path / "report.html"
    write_report(
        path, results={**MINIMAL, "config": config(evidence)}, scans=table(), pictures={},
        pixel_threshold=None,
    )  # fmt: skip
    page = Page(path.read_text(encoding="utf-8"))
    for said in (
        "How it configured itself", "128 x 96.5, 1.5 x 1.5 mm", "padim:lite0", "0.76–0.84",
        "explains 83% of a scan", "about 2.0 of 30 minutes", "Hardly seen, or not at all: dark",
        f"not tried: {HOSTILE}",
    ):  # fmt: skip
        assert said in page.text
    assert "script" not in page.tags
