"""Volumes at the gate of a detector of pictures, what a wrong scan seems to be, the command."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from tests.unit.test_quality import SPACING, head, knee, part, picture, volume

from normscan.cli.main import main
from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.io import read_scan
from normscan.quality import Gate
from normscan.quality.slices import axial_slices, summed
from normscan.scan import Scan


def slice_of(seed: int, height: float) -> np.ndarray:
    """An axial slice as pictures lie: the front up, the patient's right at the right."""
    data = head(seed)
    return data[:, ::-1, round(height * data.shape[2])].T


@pytest.fixture(scope="module")
def flat() -> Gate:
    rng = np.random.default_rng(0)
    return Gate.fit(picture(slice_of(i, rng.uniform(0.35, 0.7))) for i in range(60))


def like(data: np.ndarray) -> Scan:
    return Scan.from_array(np.asarray(data, np.float32), spacing=SPACING)


def test_slices_lie_as_the_detector_cuts_them():
    scan = volume(3)
    planes = axial_slices(scan, 4)
    assert len(planes) == 4 and planes[0].shape == (40, 36)
    assert planes[0].spacing == pytest.approx((2.5, 2.0))
    same = [np.abs(p.data[0] - head(3)[:, ::-1, k].T).max() for p in planes for k in range(32)]
    assert sum(away < 1e-3 for away in same) == 4
    # However the file stores its axes.
    turned = Scan(
        np.ascontiguousarray(scan.data.transpose(0, 3, 1, 2)[:, ::-1]),
        scan.affine @ np.array([[0, 1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 31], [0, 0, 0, 1.0]]),
        scan.channels,
    )
    for a, b in zip(planes, axial_slices(turned, 4), strict=True):
        np.testing.assert_array_equal(a.data, b.data)


def test_right_volumes_are_told_that_they_are_volumes(flat):
    verdicts = [flat.check(volume(i)) for i in range(300, 310)]
    assert all(v.passed for v in verdicts), [v.reasons for v in verdicts]
    assert all("training scans are 2D" in " ".join(v.reasons) for v in verdicts)
    assert [len(v.reasons) for v in verdicts].count(1) >= 9
    assert verdicts[0].measures["slices"]["looked_at"] >= 8
    json.dumps(verdicts[0].to_dict(), allow_nan=False)


WRONG = {
    "knee": (lambda d: knee(), "looks unlike", ""),
    "CT": (lambda d: np.round(d * 2 - 1024), "Hounsfield", "a CT"),
    "noise": (lambda d: np.random.default_rng(1).normal(500, 90, d.shape), "noise", "noise"),
    "top half empty": (lambda d: part(d, 2, slice(16, None), 0), "at one end are empty", "part is missing"),
    "left half empty": (lambda d: part(d, 0, slice(18, None), 0), "slices)", "part is missing"),
    "negative": (lambda d: d.max() - d, "looks unlike", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_volumes_are_refused_and_named(flat, name):
    change, reason, seems = WRONG[name]
    verdict = flat.check(like(change(head(300))))
    assert verdict.status == "refuse", verdict
    assert any(reason in text for text in verdict.reasons), verdict.reasons
    assert seems in verdict.seems and verdict.seems, verdict.seems
    assert verdict.sentences[-1] == f"It seems to be {verdict.seems}."


def test_missing_and_repeated_slices_inside(flat):
    gap = flat.check(like(part(head(300), 2, slice(14, 20), 0)))
    assert gap.status == "refuse" and any("though others around" in r for r in gap.reasons)
    data = head(300)
    data[:, :, 12:18] = data[:, :, 12:13]
    assert any("repeat the one before" in r for r in flat.check(like(data)).reasons)


def test_what_befalls_most_slices_counts():
    few = [[(True, "It is 3.1 times off.")]] * 4 + [[]] * 6
    assert summed(few) == ([], {"looked_at": 10, "flagged": 0, "refused": 4})
    many = [[(True, "It is 3.1 times off.")]] * 4 + [[(False, "It is 2 times off.")]] * 3 + [[]] * 3
    assert summed(many)[0] == [(False, "It is 3.1 times off (so 70% of 10 slices).")]
    two = [[(True, "Off.")]] * 4 + [[(True, "Noisy.")]] * 3 + [[]] * 3
    assert {severe for severe, _ in summed(two)[0]} == {True}


def test_pictures_are_named_too(flat):
    colours = np.stack([slice_of(1, 0.5)] * 3) * np.array([1, 0.5, 0.2]).reshape(3, 1, 1)
    photograph = Scan.from_array(colours, channels=("red", "green", "blue"))
    assert "photograph" in flat.check(photograph).seems
    field = gaussian_filter(np.random.default_rng(0).normal(size=(40, 36)), 3)
    filled = picture(300 + 100 * field / field.std())
    assert "fills its frame" in flat.check(filled).seems
    down = flat.check(picture(np.ascontiguousarray(slice_of(1, 0.5)[::-1])))
    assert "upside-down" in down.seems or "upside-down" in " ".join(down.reasons)
    assert flat.check(picture(slice_of(61, 0.5))).seems == ""


def test_a_series_says_its_part_of_the_body(flat):
    ct = Scan.from_array(head(1), spacing=SPACING)
    object.__setattr__(ct, "series", SimpleNamespace(modality="CT", headers=()))
    mr = Gate({**flat.limits, "modality": ["MR"]}, flat.nearest, flat.counts)
    assert mr.check(ct).status == "refuse" and mr.check(ct).seems == "a CT"
    for said, told in (("KNEE", "a CT of the knee"), ("DOE JANE", "a CT"), ("", "a CT")):
        header = SimpleNamespace(BodyPartExamined=said)
        object.__setattr__(ct, "series", SimpleNamespace(modality="CT", headers=(header,)))
        assert mr.check(ct).seems == told


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gate")
    for i in range(24):
        np.save(folder / f"h{i}.npy", slice_of(i, 0.5))
    rows = "\n".join(f"h{i}.npy,0,{'val' if i > 19 else 'train'}" for i in range(24))
    (folder / "cohort.csv").write_text(f"path,label,split\n{rows}\n")
    detector = Detector("mean_image", size=24, calibration="split")
    detector.fit(Cohort.read(folder / "cohort.csv"), folder / "run")
    np.save(folder / "noise.npy", np.random.default_rng(0).normal(500, 90, (40, 36)))
    return folder


def test_the_command(run, tmp_path, capsys):
    assert main(["check", str(run / "run"), str(run / "h1.npy"), str(run / "h2.npy")]) == 0
    assert "2 scans: 2 accepted" in capsys.readouterr().out
    (tmp_path / "bad.npy").write_bytes(b"no")
    files = [str(run / "noise.npy"), str(tmp_path / "bad.npy"), str(run / "h1.npy")]
    assert main(["check", str(run / "run"), *files]) == 1
    told = capsys.readouterr()
    assert "noise: refused" in told.out and "It seems to be noise." in told.out
    assert "1 accepted, 1 refused, 1 unreadable" in told.out and "bad: unreadable" in told.err
    assert main(["check", str(run / "run"), *files, "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["status"] for line in lines] == ["refuse", "unreadable", "ok"]
    assert lines[0]["seems"] == "noise"
    assert main(["check", str(run / "run"), "--cohort", str(run / "cohort.csv")]) == 0
    assert main(["check", str(run / "run")]) == 2
    assert main(["check", str(run), files[0]]) == 2
    assert main(["predict", str(run / "run"), files[0], "--out", str(tmp_path / "out")]) == 2
    assert "It seems to be noise." in capsys.readouterr().err


def test_a_head_ct_at_a_gate_of_mr_pictures(shared: Path):
    brain = Cohort.read(shared / "data" / "lgg_flair_slices")
    rows = list(brain.part("train"))[::4]
    gate = Gate.fit((r.load() for r in rows), subjects=[r.subject for r in rows])
    ct = read_scan(shared / "data" / "dicom_series" / "head_ct_ge")
    verdict = gate.check(ct)
    assert verdict.status == "refuse" and "a CT" in verdict.seems
