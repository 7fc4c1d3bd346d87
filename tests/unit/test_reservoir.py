"""Rows that come in parts, held in memory or on disk."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from normscan.errors import OutputError
from normscan.rng import Rng
from normscan.scores import reservoir
from normscan.scores.reservoir import Reservoir, on_disk

MEMORY = {"memory": 1e9, "disk": 0, "first memory, then disk": 40 * 3 * 4}


def filled(parts, largest, memory, seed=0):
    rows, rng = Reservoir(largest, memory), Rng(seed)
    for part in parts:
        rows.add(part, rng)
    return rows


@pytest.mark.parametrize("memory", MEMORY.values(), ids=list(MEMORY))
def test_all_rows_are_kept_in_order(memory):
    parts = [torch.rand(n, 3) for n in (30, 1, 0, 25, 44)]
    rows = filled(parts, 100, memory)
    assert rows.seen == 100
    torch.testing.assert_close(rows.finish(), torch.cat(parts), rtol=0, atol=0)


@pytest.mark.parametrize("memory", MEMORY.values(), ids=list(MEMORY))
def test_a_choice_is_the_same_wherever_it_lies(memory):
    parts = torch.arange(900.0).reshape(300, 3).split(70)
    kept = filled(parts, 50, memory).finish()
    assert kept.shape == (50, 3)
    assert len(kept.unique(dim=0)) == 50
    assert (kept[:, 1] == kept[:, 0] + 1).all()
    torch.testing.assert_close(kept, filled(parts, 50, 1e9).finish(), rtol=0, atol=0)


@pytest.mark.parametrize("size", [7, 40, 200])
def test_each_row_has_the_same_chance(size):
    """Chi-square over 4,000 choices of 20 of 40 rows, which come in parts of any size."""
    rows, n = torch.arange(40.0)[:, None], 4000
    counts = np.zeros(40)
    for seed in range(n):
        counts[filled(rows.split(size), 20, 1e9, seed).finish()[:, 0].long().numpy()] += 1
    expected = n / 2
    # The variance of a count is that of a draw without replacement.
    statistic = ((counts - expected) ** 2).sum() / (n * 0.25) * 39 / 40
    assert statistic < 73  # 0.1 % of chi-square with 39 degrees


def test_a_full_disk_says_what_to_do(monkeypatch):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reservoir, "_temporary", Full)
    with pytest.raises(OutputError, match=r"no room .*No space.*TMPDIR"):
        filled([torch.rand(9, 3)], 100, 0)
    monkeypatch.undo()
    monkeypatch.setattr("os.posix_fallocate", lambda *_: Full().write(b""), raising=False)
    with pytest.raises(OutputError, match=r"no room for 1e\+03 GiB"):
        on_disk((2**40,), torch.uint8)


def test_a_tensor_on_disk():
    x = on_disk((5, 3), torch.uint8)
    assert x.shape == (5, 3)
    assert x.dtype == torch.uint8
    assert not x.any()
    x[2] = 7
    assert x.sum() == 21
