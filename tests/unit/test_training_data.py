"""Prepared scans on disk and how they are drawn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from normscan.cohort import Cohort, CohortRow
from normscan.errors import CohortError, ScanError
from normscan.preprocess import Prepared
from normscan.preprocess.grid import Grid
from normscan.rng import Rng
from normscan.training.data import EMPTY_SLICE, Draws, PreparedSet, select_part, split_slices
from normscan.training.loop import looked_at

PARTS = ("healthy", "val", "unlabelled", "anomalous")


def prepared(image, foreground=None):
    shape = image.shape[1:]
    n = len(shape)
    grid = Grid(tuple(range(n)), (0.0,) * n, (1.0,) * n, shape, shape)
    inside = np.ones(shape, bool) if foreground is None else foreground
    return Prepared(image.astype(np.float32), inside, grid)


def rows(n, **columns):
    return [CohortRow(f"s{i}", f"s{i}", (), columns={"age": 40 + i, **columns}) for i in range(n)]


def numbered(i, shape):
    """An image whose values tell the scan and the place."""
    return (1000 * i + np.arange(2 * np.prod(shape))).reshape(2, *shape)


def make(tmp_path, shape=(6, 5), n=7, patch=None, slices=False):
    order = {f"s{i}": i for i in range(n)}
    return PreparedSet.create(
        tmp_path / "set",
        rows(n),
        lambda row: prepared(numbered(order[row.scan], shape)),
        lambda p: slices,
        patch,
    )


# --- the set


def test_what_is_read_is_what_was_prepared(tmp_path, rng):
    images = rng.normal(size=(4, 2, 6, 5)).astype(np.float32)
    masks = rng.uniform(size=(4, 6, 5)) > 0.5
    order = {f"s{i}": i for i in range(4)}
    create = PreparedSet.create(
        tmp_path / "set",
        rows(4),
        lambda row: prepared(images[order[row.scan]], masks[order[row.scan]]),
        lambda p: False,
    )
    for data in (create, PreparedSet.open(tmp_path / "set")):
        assert isinstance(data.images, np.memmap) and len(data) == 4
        np.testing.assert_array_equal(data.images, images)
        np.testing.assert_array_equal(data.foregrounds, masks)
        batch = data.batch([2, 0], Rng(0))
        np.testing.assert_array_equal(batch.image, images[[2, 0]])
        np.testing.assert_array_equal(batch.foreground, masks[[2, 0]][:, None])
        assert [c["age"] for c in batch.columns] == [42, 40]
        assert batch.label.tolist() == [0, 0] and data.failures == []


def test_a_batch_can_be_written_to(tmp_path):
    batch = make(tmp_path).batch([0], Rng(0))
    batch.image.add_(1)
    assert make(tmp_path).images[0, 0, 0, 0] == 0


def test_a_volume_is_cut_into_its_slices(tmp_path):
    data = make(tmp_path, (4, 3, 5), n=2, slices=True)
    assert data.images.shape == (10, 2, 4, 3)
    np.testing.assert_array_equal(data.images[7], numbered(1, (4, 3, 5))[..., 2])
    np.testing.assert_allclose(data.positions, [0, 0.25, 0.5, 0.75, 1] * 2)
    assert data.rows.tolist() == [0] * 5 + [1] * 5


def test_empty_slices_are_left_out():
    foreground = np.zeros((20, 20, 6), bool)
    foreground[:2, :2, 2] = True  # One percent.
    foreground[:1, :3, 3] = True  # Less.
    foreground[:, :, 4] = True
    assert EMPTY_SLICE == 0.01
    slices = split_slices(prepared(np.zeros((1, 20, 20, 6)), foreground))
    assert slices == [(2, 2 / 5), (4, 4 / 5)]
    foreground[:, :, [2, 4]] = False
    assert split_slices(prepared(np.zeros((1, 20, 20, 6)), foreground)) == [(3, 3 / 5)]


def test_a_bad_scan_is_noted_and_passed_over(tmp_path):
    shapes = {"s0": (6, 5), "s2": (5, 5), "s4": (6, 5)}

    def prepare(row):
        if row.scan == "s1":
            raise ScanError("s1: is damaged.")
        if row.scan == "s3":
            raise OSError("no such file")
        return prepared(numbered(int(row.scan[1]), shapes[row.scan]))

    data = PreparedSet.create(tmp_path / "set", rows(5), prepare, lambda p: False)
    assert [scan for scan, _ in data.failures] == ["s1", "s2", "s3"]
    assert data.failures[0][1] == "s1: is damaged." and "(2, 5, 5)" in data.failures[1][1]
    assert len(data) == 2 and [c["age"] for c in data.columns] == [40, 44]
    np.testing.assert_array_equal(data.images[1], numbered(4, (6, 5)))
    assert PreparedSet.open(tmp_path / "set").failures == data.failures


def test_a_mistake_in_the_code_is_no_bad_scan(tmp_path):
    def prepare(row):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        PreparedSet.create(tmp_path / "set", rows(2), prepare, lambda p: False)


def test_without_a_good_scan_the_first_reason_is_told(tmp_path):
    def prepare(row):
        raise ScanError(f"{row.scan} is damaged")

    with pytest.raises(ScanError, match="s0 is damaged"):
        PreparedSet.create(tmp_path / "set", rows(2), prepare, lambda p: False)
    with pytest.raises(ScanError, match="it has no scans"):
        PreparedSet.create(tmp_path / "set", [], prepare, lambda p: False)


def test_columns_become_plain_values(tmp_path):
    kinds = {"site": np.str_("a"), "dose": np.float64(1.5), "count": np.int64(3), "who": None}
    order = rows(1, **kinds, path=tmp_path)
    data = PreparedSet.create(
        tmp_path / "set", order, lambda row: prepared(numbered(0, (2, 2))), lambda p: False
    )
    assert data.columns == [
        {"age": 40, "site": "a", "dose": 1.5, "count": 3, "who": None, "path": str(tmp_path)}
    ]


# --- parts of the cohort


def part_of(tmp_path, name, images, masks=None, shape=(6, 5), slices=False):
    """A set of one part; ``masks`` by scan, None for a scan without one."""
    masks = masks or {}

    class Row(CohortRow):
        def load(self):
            return None

        def load_mask(self, scan, *_):
            return masks.get(self.scan)

    made = [
        Row(scan, scan, (), mask=tmp_path / "m" if scan in masks else None, columns={"who": scan})
        for scan in images
    ]
    prepare = lambda row: prepared(numbered(images[row.scan], shape))  # noqa: E731
    return PreparedSet.create(tmp_path / name, made, prepare, lambda p: slices, part=name)


def test_labels_and_lesions_of_a_part(tmp_path, rng):
    mask = rng.uniform(size=(6, 5)) > 0.5
    data = part_of(tmp_path, "anomalous", {"a": 1, "b": 2}, {"a": mask})
    batch = data.batch([1, 0], Rng(0))
    assert batch.label.tolist() == [1, 1] and batch.index.tolist() == [1, 0]
    np.testing.assert_array_equal(batch.lesion[1, 0], mask)
    assert not batch.lesion[0].any()
    hidden = part_of(tmp_path, "unlabelled", {"a": 1}, {"a": mask})
    assert hidden.batch([0], Rng(0)).label.tolist() == [-1] and not hidden.beside
    assert make(tmp_path).batch([0], Rng(0)).label.tolist() == [0]


def test_slices_without_lesion_of_a_lesioned_volume_are_healthy(tmp_path):
    mask = np.zeros((4, 3, 5), bool)
    mask[1, 1, 3] = True
    data = part_of(tmp_path, "anomalous", {"a": 1}, {"a": mask}, (4, 3, 5), slices=True)
    assert data.labels.tolist() == [0, 0, 0, 1, 0]
    assert data.beside["lesion"].sum() == 1 and data.beside["lesion"][3, 0, 1, 1]


def test_joined_parts_are_their_samples_in_order(tmp_path, rng):
    mask = rng.uniform(size=(6, 5)) > 0.5
    healthy = part_of(tmp_path, "healthy", {"a": 1, "b": 2})
    lesioned = part_of(tmp_path, "anomalous", {"c": 3}, {"c": mask})
    joined = PreparedSet.join([healthy, lesioned])
    assert len(joined) == 3 and PreparedSet.join([healthy]) is healthy
    batch = joined.batch([2, 0, 1, 2], Rng(0))
    expected = [numbered(i, (6, 5)) for i in (3, 1, 2, 3)]
    np.testing.assert_array_equal(batch.image, np.stack(expected).astype(np.float32))
    assert [c["who"] for c in batch.columns] == ["c", "a", "b", "c"]
    assert batch.label.tolist() == [1, 0, 0, 1] and batch.index.tolist() == [2, 0, 1, 2]
    assert batch.lesion.flatten(1).any(1).tolist() == [True, False, False, True]


def test_parts_are_taken_from_extra():
    table = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(6)],
            "label": [0, 0, 0, 1, 1, None],
            "split": ["train", "val", "extra", "extra", "test", "extra"],
        }
    )
    cohort = Cohort(table)
    scans = {n: [r.paths[0].name for r in select_part(cohort, n)] for n in PARTS}
    assert scans == {
        "healthy": ["0.png"],
        "val": ["1.png"],
        "unlabelled": ["2.png", "3.png", "5.png"],
        "anomalous": ["3.png"],
    }
    with pytest.raises(CohortError, match=r"learns from unlabelled scans.*split 'extra'"):
        select_part(cohort.select([True, True, False, False, True, False]), "unlabelled")


# --- patches


@pytest.mark.parametrize(("shape", "patch"), [((9, 7), 4), ((6, 7, 8), 3), ((5, 9), 5)])
def test_patches_lie_inside_and_match_their_masks(tmp_path, rng, shape, patch):
    image = np.arange(np.prod(shape)).reshape(1, *shape)
    mask = rng.uniform(size=shape) > 0.5
    data = PreparedSet.create(
        tmp_path / "set", rows(1), lambda row: prepared(image, mask), lambda p: False, patch
    )
    batch = data.batch([0] * 200, Rng(0))
    assert batch.image.shape == (200, 1, *[patch] * len(shape))
    corners = set()
    for x, m in zip(batch.image[:, 0].numpy(), batch.foreground[:, 0].numpy(), strict=True):
        corner = np.unravel_index(int(x.flat[0]), shape)
        window = tuple(slice(c, c + patch) for c in corner)
        np.testing.assert_array_equal(x, image[0][window])
        np.testing.assert_array_equal(m, mask[window])
        corners.add(corner)
    # All places are drawn, the last ones included.
    for axis, n in enumerate(shape):
        assert {int(c[axis]) for c in corners} == set(range(n - patch + 1))


def test_whole_samples_on_request(tmp_path):
    data = make(tmp_path, patch=3)
    assert data.batch([1], Rng(0)).image.shape[2:] == (3, 3)
    assert data.batch([1], Rng(0), crop=False).image.shape[2:] == (6, 5)


# --- draws


@pytest.mark.parametrize(("n", "batch_size"), [(7, 3), (7, 7), (5, 8), (1, 4)])
def test_every_sample_once_per_pass(tmp_path, n, batch_size):
    draws = Draws(make(tmp_path, n=n), batch_size, seed=1)
    drawn = np.concatenate([draws.indices(i) for i in range(4 * n)])
    assert len(drawn) == 4 * n * batch_size
    for one_pass in drawn.reshape(-1, n):
        assert sorted(one_pass.tolist()) == list(range(n))


def test_passes_are_shuffled_anew(tmp_path):
    data = make(tmp_path, n=20)
    first, second = (Draws(data, 20, seed=1).indices(i).tolist() for i in (0, 1))
    other = Draws(data, 20, seed=2).indices(0).tolist()
    assert len({tuple(first), tuple(second), tuple(other), tuple(range(20))}) == 4


def test_any_draw_can_be_made_again(tmp_path):
    data = make(tmp_path)
    forward = [Draws(data, 3, seed=5)] * 9
    straight = [d.indices(i).tolist() for i, d in enumerate(forward)]
    backward = Draws(data, 3, seed=5)
    assert [backward.indices(i).tolist() for i in reversed(range(9))] == straight[::-1]


def test_passes_go_through_in_order(tmp_path):
    data = make(tmp_path, n=7)
    batches = list(data.passes(3, seed=0))
    assert [len(b) for b in batches] == [3, 3, 1]
    together = torch.cat([b.image for b in batches])
    np.testing.assert_array_equal(together, data.images)
    again = [b.rng.normal((2,)) for b in data.passes(3, seed=0)]
    assert all(torch.equal(a, b.rng.normal((2,))) for a, b in zip(again, batches, strict=True))
    assert not torch.equal(again[0], again[1])


def test_a_pass_over_some_takes_them_evenly_and_the_same_each_time(tmp_path):
    data = make(tmp_path, n=10)
    taken = [b.index.tolist() for b in data.passes(2, seed=0, most=4)]
    assert taken == [[0, 3], [6, 9]] == [b.index.tolist() for b in data.passes(2, 1, 4)]
    assert [len(b) for b in data.passes(4, 0, most=99)] == [4, 4, 2]


@pytest.mark.parametrize(("every", "batch_size", "n"), [(10, 8, 26), (1, 8, 8), (40, 16, 213)])
def test_looks_take_a_tenth_of_the_work(every, batch_size, n):
    assert looked_at(every, batch_size) == n
    # A step is worth a forward and a backward pass, twice as dear.
    if n > batch_size:
        assert n / (n + 3 * every * batch_size) == pytest.approx(0.1, abs=0.005)
