"""A fit that is killed before each file that it puts in place ends as one that wasn't."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import pytest
import torch

import normscan as ns

OPTIONS = {
    "preset": "tiny", "size": 32, "gate": False, "fpr": 0.2, "calibration": "cross", "folds": 2,
    "reduction": "evidence",
}  # fmt: skip
SCALED = {"preprocess": {"scaling": "evidence"}}


class Killed(BaseException):
    """As abrupt as a signal: nothing catches it."""


def fit(cohort, method, out, resume=False):
    more = SCALED if method == "mean_image" else {"steps": 6}
    return ns.create(method, **OPTIONS, **more).fit(cohort, out, resume=resume)


@pytest.mark.parametrize("method", ["ae_dense", "mean_image"])
def test_killed_before_each_file_in_turn(method, toy, tmp_path: Path, monkeypatch):
    """Fits of folds, kept maps, the choices by planted lesions and all that is written at the end."""
    cohort = ns.Cohort.read(toy(2, 1))
    healthy = [row.scan for part in ("train", "val") for row in cohort.part(part)]
    cohort = cohort.select([row.scan in healthy[-8:] for row in cohort])
    straight = fit(cohort, method, tmp_path / "straight")
    dies = {"mean_image": ["scaling.json", "detector.json"]}  # its scaling is judged each time
    killed: list[str] = []
    replace, rename = os.replace, Path.rename

    def before(target):
        # Prepared scans and kept maps have names of their own; one of each kind stands for them.
        place = Path(target)
        name = place.suffix if place.parent.name in ("maps", "cache") else place.name
        if name not in killed and name in dies.get(method, [name]):
            killed.append(name)
            raise Killed

    def os_replace(source, target, **options):
        before(target)
        return replace(source, target, **options)

    def path_rename(self, target):
        before(target)
        return rename(self, target)

    monkeypatch.setattr(os, "replace", os_replace)
    monkeypatch.setattr(Path, "rename", path_rename)
    out = tmp_path / "run"
    for attempt in itertools.count():
        try:
            detector = fit(cohort, method, out, resume=attempt > 0 and out.exists())
            break
        except Killed:
            assert attempt < 80, killed
    expected = {"detector.json", "model.safetensors", "healthy.csv", "reduction.json"}
    expected |= {"member.safetensors", "division.csv"}
    assert set(dies.get(method, expected)) <= set(killed), killed
    for made in (detector, ns.load(out, "cpu")):
        for name, value in straight.method.state_dict().items():
            assert torch.equal(value, made.method.state_dict()[name]), name
        assert made.scan_threshold.to_dict() == straight.scan_threshold.to_dict()
        assert made.reduction == straight.reduction and made.preprocess == straight.preprocess
    files = [{str(p.relative_to(f)) for p in f.rglob("*")} for f in (tmp_path / "straight", out)]
    assert files[0] == files[1]
    shutil.rmtree(out)
