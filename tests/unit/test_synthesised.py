"""Cohorts of artificial anomalies on disk, and the commands that list and write them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from normscan.cli.main import main
from normscan.cohort import Cohort
from normscan.synthesis.tasks import TASKS


def test_tasks_are_listed(capsys):
    assert main(["tasks", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["task"] for r in rows] == list(TASKS) and all(r["summary"] for r in rows)
    assert len({r["task"] for r in rows if r["group"] != "recipe"}) >= 12


@pytest.mark.parametrize("dims", [2, 3])
def test_what_is_written_can_be_read_as_a_cohort(dims, toy, tmp_path, capsys):
    table = toy(dims)
    out = tmp_path / "out"
    command = ["synthesise", str(table), "--task", "foreign", "--count", "3", "--out"]
    assert main([*command, str(out)]) == 0
    assert "3 scans written" in capsys.readouterr().out
    hosts = {row.scan: row for row in Cohort.read(table)}
    rows = list(Cohort.read(out / "cohort.csv"))
    assert len(rows) == 3 and {r.split for r in rows} == {"extra"}
    for row in rows:
        scan, host = row.load(), hosts[row.columns["source"]].load()
        mask = row.load_mask(scan)
        change = scan.data != host.data
        assert mask.any() and not change[:, ~mask].any() and change[:, mask].mean() > 0.9
        assert float(row.columns["size"]) == pytest.approx(mask.sum() * host.voxel_volume)
        assert row.columns["donor"] != row.columns["source"]
        assert (out / "pictures" / f"{row.scan}.png").exists()
    assert main([*command, str(tmp_path / "again")]) == 0
    first, second = (pd.read_csv(f / "cohort.csv") for f in (out, tmp_path / "again"))
    pd.testing.assert_frame_equal(first, second)


def test_channels_change_together(toy, tmp_path):
    out = tmp_path / "out"
    assert (
        main(["synthesise", str(toy(2, 3)), "--task", "dark", "--count", "1", "--out", str(out)])
        == 0
    )
    (row,) = Cohort.read(out / "cohort.csv")
    assert row.load().data.shape[0] == 3


def test_what_cannot_be_read_is_left_out(toy, tmp_path, capsys):
    frame = pd.read_csv(toy(2))
    frame = frame[(frame.split == "train")].head(3)
    frame["path"] = [str(toy(2).parent / p) for p in frame["path"]]
    frame["mask"] = ""
    broken = tmp_path / "broken.npy"
    broken.write_bytes(b"nothing")
    frame.iloc[1, frame.columns.get_loc("path")] = str(broken)
    frame.to_csv(tmp_path / "table.csv", index=False)
    out = tmp_path / "out"
    command = ["synthesise", str(tmp_path / "table.csv"), "--task", "bright", "--out", str(out)]
    assert main([*command, "--pictures", "false"]) == 0
    assert capsys.readouterr().err.count("left out") == 1
    there = sum(row.split == "train" for row in Cohort.read(tmp_path / "table.csv"))
    assert len(pd.read_csv(out / "cohort.csv")) == there - 1 > 0
    assert not list(out.rglob(".tmp*")) and not (out / "pictures").exists()
    assert np.isfinite(next(iter(Cohort.read(out / "cohort.csv"))).load().data).all()


def test_wrong_names_are_told(toy, tmp_path, capsys):
    assert main(["synthesise", str(toy(2)), "--task", "brigth", "--out", str(tmp_path / "o")]) == 2
    assert "'bright'" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
