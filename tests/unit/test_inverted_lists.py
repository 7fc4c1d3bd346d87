"""Banks searched by FAISS, against scipy."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from normscan.errors import ArgumentError
from normscan.methods.features.memory import GIB, Bank
from normscan.scores import inverted_lists
from normscan.scores.inverted_lists import InvertedLists
from normscan.scores.neighbours import Neighbours

pytest.importorskip("faiss", reason="FAISS isn't installed")


def vectors(rng, n, d=16):
    """Rows of few independent directions, as features are."""
    return torch.tensor(rng.normal(size=(n, 4)) @ rng.normal(size=(4, d))).float()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("k", [1, 3])
def test_nearest_against_scipy(rng, bits, k):
    bank, queries = vectors(rng, 3000).split([2900, 100])
    lists = InvertedLists(16)
    lists.build(bank, bits)
    assert lists.codes.shape == (2900, 2 * bits)
    got = Neighbours(bank, lists=lists)(queries, k)
    expected = np.sort(cdist(queries, bank, "sqeuclidean"), axis=1)[:, :k]
    right = np.isclose(got, expected, rtol=1e-3, atol=1e-5)
    assert right.mean() > (0.99 if bits == 8 else 0.9)
    assert (got.numpy() >= expected - 1e-4).all()
    # The distances are exact, those of what the codes propose.
    assert np.median(np.abs(got - expected)) < 1e-5


def test_rows_agree_with_the_distances(rng):
    bank, queries = vectors(rng, 2000).split([1950, 50])
    lists = InvertedLists(16)
    lists.build(bank)
    for index in (Neighbours(bank, lists=lists), Neighbours(bank, "float32")):
        found = (bank[index.rows(queries, 4)] - queries[:, None]).square().sum(2)
        torch.testing.assert_close(found, index(queries, 4), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 5, 39, 100])
def test_few_rows(rng, rows, capfd):
    bank, queries = vectors(rng, rows), vectors(rng, 7)
    lists = InvertedLists(16)
    lists.build(bank)
    got = Neighbours(bank, lists=lists)(queries, 9)
    expected = np.sort(cdist(queries, bank, "sqeuclidean"), axis=1)[:, :9]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    assert "WARNING" not in capfd.readouterr().err


def test_lists_that_hold_too_few_are_mended_by_all(rng, monkeypatch):
    monkeypatch.setattr(inverted_lists, "PROBES", 1)
    bank, queries = vectors(rng, 400), vectors(rng, 20)
    lists = InvertedLists(16)
    lists.build(bank)
    assert int(lists.sizes.min()) < 60
    got = Neighbours(bank, lists=lists)(queries, 60)
    expected = np.sort(cdist(queries, bank, "sqeuclidean"), axis=1)[:, :60]
    assert got.isfinite().all()
    short = (lists.propose(queries, 240) < 0).sum(1) > 240 - 60
    assert short.any()
    np.testing.assert_allclose(got[short], expected[short.numpy()], rtol=1e-3, atol=1e-3)


def test_the_state_makes_the_same_index(rng):
    bank, queries = vectors(rng, 2000), vectors(rng, 40)
    first, again, second = InvertedLists(16), InvertedLists(16), InvertedLists(16)
    first.build(bank)
    again.build(bank)
    for name, value in first.state_dict().items():
        setattr(second, name, value)
        torch.testing.assert_close(getattr(again, name), value, rtol=0, atol=0)
    torch.testing.assert_close(second.propose(queries, 5), first.propose(queries, 5))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rows", lambda x: x + 1),
        ("rows", lambda x: x[:-1]),
        ("sizes", lambda x: -x),
        ("sizes", lambda x: x + 1),
        ("sizes", lambda x: x.int()),
        ("sizes", lambda x: x[:0]),
        # Their sum is right, by overflow.
        ("sizes", lambda x: x + torch.tensor([2**62] * 4 + [0] * (len(x) - 4))),
        ("centres", lambda x: x[:, :3]),
        ("centres", lambda x: x[:0]),
        ("rows", lambda x: x.int()),
        ("ranges", lambda x: x[:1]),
        ("codes", lambda x: x[:, :3]),
        ("codes", lambda x: x[:0]),
    ],
)
def test_a_damaged_state_is_refused(rng, name, change):
    lists = InvertedLists(16)
    lists.build(vectors(rng, 200))
    assert len(lists.sizes) == 5
    setattr(lists, name, change(getattr(lists, name)))
    del lists.index
    with pytest.raises(ArgumentError, match="damaged"):
        lists.propose(torch.rand(1, 16), 1)


def test_lists_of_another_bank_are_refused(rng):
    lists = InvertedLists(16)
    lists.build(vectors(rng, 200))
    with pytest.raises(ArgumentError, match="not those of this"):
        Neighbours(vectors(rng, 199), lists=lists)


def test_a_bank_takes_lists_where_it_needs_more_than_the_memory(rng):
    rows = vectors(rng, 1000)
    small, large, asked = (
        Bank(16, memory=1.0),
        Bank(16, memory=30_000 / GIB),
        Bank(16, "faiss"),
    )
    for bank in (small, large, asked):
        bank.keep(rows)
    assert small.index.lists is None
    assert large.index.lists is not None
    assert asked.index.lists is not None
    # 24 bytes a row with 8 bits a number fit, or only 16 with 4.
    assert large.lists.codes.shape == (1000, 16)
    tight = Bank(16, memory=20_000 / GIB)
    tight.keep(rows)
    assert tight.lists.codes.shape == (1000, 8)
    assert tight.largest == 1250
    exact = Neighbours(rows, "float32")(rows[:50] + 0.1)
    for bank in (large, asked):
        torch.testing.assert_close(bank.nearest(rows[:50] + 0.1), exact, rtol=1e-3, atol=1e-4)
    asked.keep(rows[:10])
    assert asked.nearest(rows[500:501]).item() == pytest.approx(
        cdist(rows[500:501], rows[:10], "sqeuclidean").min(), rel=1e-4
    )


def test_what_a_bank_says_it_needs(monkeypatch):
    assert "keeps 1,000 of 1,000 training patches in 6" in Bank(16, memory=1.0).need(1000, 5000)
    text = Bank(16, memory=30_000 / GIB).need(9000, 1000)
    assert "1,000 of 9,000" in text
    assert "on disk" in text
    assert "FAISS finds them by 2.2e-05 GiB of codes" in text
    monkeypatch.setattr("normscan.methods.features.memory.has_faiss", lambda: False)
    assert "normscan[faiss]" in Bank(16, memory=30_000 / GIB).need(9000, 1000)


def test_lists_made_elsewhere_are_left_alone_without_faiss(monkeypatch, rng):
    rows = vectors(rng, 1000)
    banks = [Bank(16, search, 30_000 / GIB) for search in ("auto", "faiss")]
    for bank in banks:
        bank.keep(rows)
        bank._forget()
        bank.lists._forget()
    monkeypatch.setattr(inverted_lists, "has_faiss", lambda: False)
    monkeypatch.setattr("normscan.methods.features.memory.has_faiss", lambda: False)
    expected = cdist(rows[:9] + 0.1, rows, "sqeuclidean").min(1)[:, None]
    np.testing.assert_allclose(banks[0].nearest(rows[:9] + 0.1), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ArgumentError, match=r"pip install normscan\[faiss\]"):
        banks[1].nearest(rows[:9])


def test_without_faiss(monkeypatch, rng):
    monkeypatch.setattr(inverted_lists, "has_faiss", lambda: False)
    with pytest.raises(ArgumentError, match=r"pip install normscan\[faiss\]"):
        Bank(16, "faiss").keep(vectors(rng, 50))
    monkeypatch.setattr("normscan.methods.features.memory.has_faiss", lambda: False)
    rows = vectors(rng, 50)
    monkeypatch.setattr("normscan.scores.neighbours.SMALL", 1)
    bank = Bank(16, memory=0.0)
    bank.keep(rows)
    assert bank.index.lists is None
    assert bank.index.coarse is None  # no copy of what lies on disk
    expected = cdist(rows + 0.1, rows, "sqeuclidean").min(1)[:, None]
    np.testing.assert_allclose(bank.nearest(rows + 0.1), expected, rtol=1e-3, atol=1e-4)


def test_beside_simpleitk():
    """Two libraries made with SWIG share their types: the one that comes first names them."""
    script = """
import SimpleITK, torch
from normscan.scores.inverted_lists import InvertedLists
bank = torch.rand(500, 8, generator=torch.Generator().manual_seed(0))
first, second = InvertedLists(8), InvertedLists(8)
first.build(bank)
for name, value in first.state_dict().items():
    setattr(second, name, value)
found = first.propose(bank, 1)[:, 0]
assert (found == torch.arange(500)).float().mean() > 0.95
assert torch.equal(second.propose(bank, 1)[:, 0], found)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
