"""Results of steps on disk: the same bits, made once, safe beside others, never trusted blindly."""

from __future__ import annotations

import dataclasses
import json
import os
import time

import numpy as np
import pytest

from normscan.cohort import CohortRow
from normscan.io.cache import cache_folder
from normscan.parallel import each
from normscan.preprocess import Preprocess, cache
from normscan.preprocess.pipeline import Stepping
from normscan.preprocess.steps import STEPS, Working, step
from normscan.scan import Scan

CALLS: list[str] = []


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of its own, and a step that counts how often it ran."""
    monkeypatch.setenv("NORMSCAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_written", [float("inf")])
    Preprocess(steps=("reorient",))
    before = dict(STEPS)

    @step("noisy")
    def noisy(working: Working, amount: float = 1.0) -> Working:
        CALLS.append("noisy")
        data = working.scan.data * np.float32(amount) + np.float32(0.1)
        world = np.eye(4)
        world[0, 3] = 1 / 3
        mask = data[0] > np.median(data)
        affine = world @ working.scan.affine
        moved = working.moved(data, affine, mask, world)
        return moved.noted("a remark", bias=np.float64(1) / 3)

    CALLS.clear()
    yield cache_folder("steps")
    STEPS.clear()
    STEPS.update(before)


@pytest.fixture
def scan(rng, tmp_path):
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[:3, 3] = np.pi
    data = rng.normal(size=(7, 6, 5))
    return Scan.from_array(data, affine=affine, source=tmp_path / "DOE-JOHN.nii.gz")


def run(scan, steps=("noisy",), foreground=None, **options):
    settings = Preprocess(steps=steps)
    return cache.run_cached(settings.steps, Working.of(scan, foreground), **options)


def entries(home):
    return sorted(home.iterdir()) if home.exists() else []


def same(first, second):
    for name in ("data", "affine"):
        one, other = getattr(first.scan, name), getattr(second.scan, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    for name in ("to_world", "foreground", "origin_affine"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    for name in ("notes", "origin_shape"):
        assert getattr(first, name) == getattr(second, name)
    assert dict(first.facts) == dict(second.facts)
    assert (first.scan.channels, first.scan.source) == (second.scan.channels, second.scan.source)


def test_a_kept_result_is_the_same_bits_and_runs_nothing(home, scan):
    plain = run(scan, cache=False)
    assert CALLS == ["noisy"] and entries(home) == []
    first = run(scan)
    second = run(scan)
    assert CALLS == ["noisy"] * 2
    same(first, plain)
    same(second, plain)
    assert isinstance(second.scan.data.base, np.memmap)
    assert len(entries(home)) == 1


def test_changes_in_place_do_not_reach_the_entry(home, scan):
    run(scan)
    run(scan).scan.data[:] = 0
    same(run(scan), run(scan, cache=False))


def test_without_a_foreground_there_is_none(scan):
    run(scan, ("reorient",))
    assert run(scan, ("reorient",)).foreground is None


@pytest.mark.parametrize(
    "change", ["data", "affine", "channels", "dtype", "foreground", "argument", "version", "other"]
)
def test_whatever_the_result_depends_on_makes_another_entry(scan, change):
    run(scan)
    changed, steps, foreground = scan, ("noisy",), None
    if change == "data":
        data = scan.data.copy()
        data[0, 3, 2, 1] = np.nextafter(data[0, 3, 2, 1], np.float32(9))
        changed = scan.with_data(data)
    elif change == "affine":
        changed = dataclasses.replace(scan, affine=scan.affine + 1e-9)
    elif change == "channels":
        changed = scan.with_data(scan.data, ("t1",))
    elif change == "dtype":
        changed = dataclasses.replace(scan, dtype="uint8")
    elif change == "foreground":
        foreground = np.ones(scan.shape, bool)
    elif change == "argument":
        steps = ("noisy=2",)
    elif change == "version":
        STEPS["noisy"] = dataclasses.replace(STEPS["noisy"], version=2)
    else:
        steps = ("reorient", "noisy")
    run(changed, steps, foreground)
    assert CALLS == ["noisy"] * 2


def test_the_name_of_the_file_is_no_part_of_it(home, scan, tmp_path):
    run(scan)
    other = dataclasses.replace(scan, source=tmp_path / "copy.nii.gz")
    assert run(other).scan.source == other.source
    assert CALLS == ["noisy"]
    for file in home.rglob("*"):
        assert "DOE" not in str(file.relative_to(home))
        assert file.is_dir() or b"DOE" not in file.read_bytes()


def test_the_longest_part_that_was_done_before_is_taken(scan):
    run(scan, ("noisy",))
    straight = run(scan, ("noisy", "resample=2"), cache=False)
    CALLS.clear()
    same(run(scan, ("noisy", "resample=2")), straight)
    assert CALLS == []


@pytest.mark.parametrize(
    "damage", ["torn", "flipped", "mask", "json", "affine", "list", "missing", "empty"]
)
def test_a_damaged_entry_is_made_anew(home, scan, damage):
    plain = run(scan, cache=False)
    run(scan)
    (entry,) = entries(home)
    image, about = entry / cache.IMAGE, entry / cache.DESCRIPTION
    if damage == "torn":
        image.write_bytes(image.read_bytes()[:-40])
    elif damage in ("flipped", "mask"):
        file = image if damage == "flipped" else entry / cache.FOREGROUND
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    elif damage == "json":
        about.write_text(about.read_text()[:50])
    elif damage == "list":
        about.write_text("[]")
    elif damage == "affine":
        text = json.loads(about.read_text())
        text["affine"][0][3] += 1
        about.write_text(json.dumps(text))
    elif damage == "missing":
        image.unlink()
    else:
        for file in entry.iterdir():
            file.unlink()
    CALLS.clear()
    same(run(scan), plain)
    assert CALLS == ["noisy"]
    same(run(scan), plain)
    assert CALLS == ["noisy"]


def test_what_was_used_longest_ago_goes_first(home, scan, monkeypatch):
    scans = [scan.with_data(scan.data + i) for i in range(4)]
    made = []
    for i, one in enumerate(scans[:3]):
        before = set(entries(home))
        run(one)
        made += set(entries(home)) - before
        os.utime(made[-1], (1000 + i, 1000 + i))
    run(scans[0])  # now the youngest
    size = sum(f.stat().st_size for f in made[0].iterdir())
    monkeypatch.setenv("NORMSCAN_CACHE_GIB", str(3.5 * size / 2**30))
    run(scans[3])
    left = set(entries(home))
    assert made[1] not in left and {made[0], made[2]} < left and len(left) == 3


def test_leftovers_of_killed_writers_are_removed(home, scan):
    home.mkdir(parents=True)
    for name, age in (("old", 2 * cache.STALE_SECONDS), ("new", 0)):
        (home / f".tmp-{name}").mkdir()
        os.utime(home / f".tmp-{name}", (time.time() - age,) * 2)
    run(scan)
    assert [p.name for p in entries(home) if p.name.startswith(".")] == [".tmp-new"]


@pytest.mark.parametrize("variable", ["NORMSCAN_CACHE=off", "NORMSCAN_CACHE_GIB=0"])
def test_it_can_be_turned_off(home, scan, variable, monkeypatch, tmp_path):
    name, _, value = variable.partition("=")
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    run(scan)
    run(scan)
    assert CALLS == ["noisy"] * 2
    assert entries(home) == [] and not (tmp_path / "xdg").exists()


def test_a_cache_that_cannot_be_written_is_done_without(home, scan):
    home.parent.mkdir()
    home.write_text("a file in its place")
    same(run(scan), run(scan, cache=False))


def test_writers_at_once_leave_one_whole_entry(home, rng, tmp_path):
    """Eight tasks in two processes prepare the same content under other names."""
    data = rng.normal(size=(20, 18, 16)).astype(np.float32)
    rows = []
    for i in range(8):
        np.save(tmp_path / f"s{i}.npy", data)
        rows.append(CohortRow(f"s{i}", f"s{i}", (tmp_path / f"s{i}.npy",)))
    settings = Preprocess(steps=("reorient", "resample=0.7"))
    found = list(each(Stepping(settings), rows, 2))
    plain = settings.stepped(rows[0].load(), cache=False)
    for working in found:
        np.testing.assert_array_equal(working.scan.data, plain.scan.data)
    (entry,) = entries(home)
    assert {p.name for p in entry.iterdir()} == {cache.IMAGE, cache.DESCRIPTION}
    if os.name == "posix":
        assert entry.stat().st_mode & 0o077 == 0  # pixels of patients
