"""Greedy k-center against the plain loop, and its streaming form against its bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from normscan.rng import Rng
from normscan.scores import coreset
from normscan.scores.coreset import Coreset, farthest_first, k_center_greedy


def brute_force_greedy(vectors, first, n):
    """Farthest point first, from the full matrix of distances."""
    distances = cdist(vectors, vectors)
    nearest = distances[:, first].mean(1)
    chosen = []
    for _ in range(n):
        row = int(nearest.argmax())
        chosen.append(row)
        nearest = np.minimum(nearest, distances[row])
        nearest[chosen] = -1
    return chosen


@pytest.mark.parametrize("d", [5, 40])
def test_greedy_equals_brute_force(rng, d):
    vectors = rng.normal(size=(120, d))
    got = k_center_greedy(torch.tensor(vectors), 25, Rng(3), projection=16, starts=7)
    draws = Rng(3)
    if d > 16:
        # An untrained linear layer without bias is uniform within one over the root of its inputs.
        matrix = (2 * draws.uniform((d, 16)).numpy() - 1) / np.sqrt(d)
        assert np.abs(matrix).max() <= 1 / np.sqrt(d)
        vectors = vectors @ matrix.astype(np.float64)
    first = draws.uniform((120,)).argsort()[:7].numpy()
    assert got.tolist() == brute_force_greedy(vectors, first, 25)


def test_greedy_covers_better_than_chance(rng):
    # A dense cloud and a few far ones, which a random choice misses.
    vectors = np.concatenate([rng.normal(size=(300, 3)), rng.normal(size=(6, 3)) * 20])
    chosen = k_center_greedy(torch.tensor(vectors), 20, Rng(0)).numpy()
    radius = cdist(vectors, vectors[chosen]).min(1).max()
    at_random = [
        cdist(vectors, vectors[rng.choice(306, 20, replace=False)]).min(1).max() for _ in range(20)
    ]
    assert radius < min(at_random)


def test_greedy_chooses_each_row_once():
    same = torch.ones(10, 4)
    assert sorted(k_center_greedy(same, 6, Rng(0)).tolist()) == sorted(
        set(k_center_greedy(same, 6, Rng(0)).tolist())
    )
    assert len(k_center_greedy(same, 6, Rng(0))) == 6
    assert k_center_greedy(same, 10, Rng(0)).tolist() == list(range(10))


@pytest.mark.parametrize("front", [2, 7, 64])
def test_choosing_many_at_a_time_is_the_plain_loop(rng, monkeypatch, front):
    monkeypatch.setattr(coreset, "FRONT", front)
    monkeypatch.setattr(coreset, "ROWS", 50)
    vectors = rng.normal(size=(300, 4))
    start = rng.uniform(0.5, 3, 300)
    rows, nearest = farthest_first(torch.tensor(vectors), torch.tensor(start**2), 60)
    distances, expected, remaining = cdist(vectors, vectors), [], start.copy()
    for _ in range(60):
        expected.append(int(remaining.argmax()))
        remaining = np.minimum(remaining, distances[expected[-1]])
        remaining[expected] = -1
    assert rows.tolist() == expected
    left = nearest >= 0
    assert (~left).sum() == 60
    np.testing.assert_allclose(nearest[left].sqrt(), remaining[left.numpy()], atol=1e-7)


def test_the_choice_stops_at_a_radius(rng):
    vectors = rng.uniform(size=(400, 2))
    start = torch.full((400,), float("inf"), dtype=torch.float64)
    rows, nearest = farthest_first(torch.tensor(vectors), start, 400, radius=0.2)
    centres = vectors[rows]
    assert 5 < len(rows) < 60
    assert cdist(vectors, centres).min(1).max() <= 0.2
    # Each was farther than the radius from all before it.
    assert (cdist(centres, centres) + 9 * np.eye(len(rows))).min() > 0.2
    assert nearest.max().sqrt() <= 0.2


@pytest.mark.parametrize("d", [3, 40])
def test_a_stream_that_fits_is_the_whole(rng, d):
    vectors = torch.tensor(rng.normal(size=(200, d)), dtype=torch.float32)
    stream = Coreset(50, 1000, Rng(3), projection=16)
    for part in vectors.split(33):
        stream.add(part)
    rows = k_center_greedy(vectors, 20, Rng(3), projection=16)
    assert stream.radius == 0 and stream.seen == 200
    assert torch.equal(stream.finish(20), vectors[rows.sort().values])


@pytest.mark.parametrize(("d", "projection"), [(2, 128), (20, 6)])
def test_a_stream_stays_small_and_covers_what_it_saw(rng, d, projection):
    # Clusters that come one after the other, so that late parts bring what was never seen.
    centres = rng.normal(size=(10, d)) * 8
    clouds = [c + rng.normal(size=(300, d)) for c in centres]
    vectors = torch.tensor(np.concatenate(clouds), dtype=torch.float32)
    stream = Coreset(60, 150, Rng(1), projection)
    most = 0
    for part in vectors.split(50):
        stream.add(part)
        most = max(most, sum(map(len, stream._kept)))
    assert most <= 150 and stream.seen == 3000
    kept = stream.finish(60)
    assert len(kept) == 60
    # All are vectors that came, and no cloud is forgotten.
    near = cdist(kept, vectors)
    assert near.min(1).max() == 0
    assert len({int(i) // 300 for i in near.argmin(1)}) == 10
    if d == 2:
        whole = vectors[k_center_greedy(vectors, 60, Rng(1))]
        radius = [cdist(vectors, c).min(1).max() for c in (kept, whole)]
        assert radius[0] <= 2.5 * radius[1]


def test_everything_seen_lies_within_the_radius(rng):
    vectors = torch.tensor(rng.normal(size=(2000, 3)), dtype=torch.float32)
    stream = Coreset(40, 80, Rng(0))
    for part in vectors.split(64):
        stream.add(part)
        held = torch.cat(stream._kept)
        seen = vectors[: stream.seen]
        assert cdist(seen, held).min(1).max() <= stream.radius + 1e-4
    assert stream.radius < 8
