"""Nearest neighbours against scipy, in blocks and by coarse products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from normscan.scores import neighbours
from normscan.scores.neighbours import Neighbours, squared_distances


def test_squared_distances_against_scipy(rng):
    a, b = rng.normal(size=(30, 7)), rng.normal(size=(20, 7))
    expected = cdist(a, b, "sqeuclidean")
    a, b = torch.tensor(a), torch.tensor(b)
    np.testing.assert_allclose(squared_distances(a, b), expected, atol=1e-10)
    np.testing.assert_allclose(squared_distances(a, b, (b**2).sum(1)), expected, atol=1e-10)
    same = squared_distances(100 + a.float(), 100 + a.float())
    assert same.min() >= 0


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("search", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [5, 333])
def test_nearest_in_blocks_against_scipy(rng, monkeypatch, k, search, rows):
    monkeypatch.setattr(neighbours, "ROWS", 30)
    monkeypatch.setattr(neighbours, "BLOCK", 30 * 64)
    bank, queries = 5 + rng.normal(size=(rows, 12)), 5 + rng.normal(size=(70, 12))
    got = Neighbours(torch.tensor(bank).float(), search)(torch.tensor(queries).float(), k)
    expected = np.sort(cdist(queries, bank, "sqeuclidean"), axis=1)[:, :k]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_more_neighbours_than_rows(rng):
    bank, queries = torch.rand(3, 4), torch.rand(7, 4)
    for search in ("float32", "bfloat16"):
        assert Neighbours(bank, search)(queries, 9).shape == (7, 3)


def test_a_row_of_the_bank_has_distance_zero_by_coarse_products(rng):
    bank = torch.tensor(rng.normal(size=(500, 32)) + 10, dtype=torch.float32)
    assert Neighbours(bank, "bfloat16")(bank).max() == 0
    # The norms are large beside the distance: the fused form alone can't tell it from rounding.
    assert Neighbours(bank, "float32")(bank).max() < 1e-2


def test_coarse_products_lose_next_to_nothing(rng):
    """Rows of few independent directions, as features are: how often is another one the nearest?"""
    shape = rng.normal(size=(8, 64))
    bank, queries = (torch.tensor(rng.normal(size=(n, 8)) @ shape).float() for n in (5000, 1000))
    exact, coarse = (Neighbours(bank, s)(queries)[:, 0] for s in ("float32", "bfloat16"))
    assert (coarse >= exact - 1e-3 * exact - 1e-2).all()
    assert (coarse > exact * 1.001 + 1e-2).float().mean() < 0.02
    assert (coarse / exact.clamp_min(1e-2)).max() < 1.2


def test_gradients_go_through(rng):
    bank = torch.tensor(rng.normal(size=(20, 3)), requires_grad=False)
    queries = torch.tensor(rng.normal(size=(5, 3)), dtype=torch.float32, requires_grad=True)
    Neighbours(bank.float(), "float32")(queries, 2).sum().backward()
    order = cdist(queries.detach(), bank).argsort(1)[:, :2]
    expected = sum(2 * (queries.detach() - bank[order[:, i]].float()) for i in range(2))
    torch.testing.assert_close(queries.grad, expected)
