"""Codes against brute force, likelihoods of the transformers, orders and healing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.methods.variational.healing import Healing
from normscan.networks.ordered import OrderedCodes, raster_orders
from normscan.registry import card
from normscan.rng import Rng


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    return OrderedCodes(3, (2, 2), 8, dim=8, layers=2, heads=2).eval()


def method(**changes):
    torch.manual_seed(0)
    arguments = card("vqvae_transformer").arguments("tiny", **changes)
    return card("vqvae_transformer").create(**arguments).eval()


def batch(n=2, size=32):
    image = torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(0))
    return Batch(image, torch.ones_like(image) > 0, Rng(list(range(n))), torch.zeros(n))


def test_codes_are_the_nearest_of_the_codebook():
    m, b = method(), batch()
    features = m.network.encode(b.image).detach()
    codebook = m.network.quantizer.quantizer.embedding.weight.detach()
    nearest = torch.cdist(features.movedim(1, -1).reshape(1, -1, 8), codebook[None])[0].argmin(1)
    assert torch.equal(m.numbers(b.image).flatten(), nearest)


def test_orders_are_all_symmetries_of_a_square():
    grid = np.arange(16).reshape(4, 4)
    expected = {tuple(np.rot90(side, k).ravel()) for side in (grid, grid.T) for k in range(4)}
    found = raster_orders((4, 4), 99)
    assert {tuple(o) for o in found.tolist()} == expected and len(found) == 8
    assert found[0].tolist() == list(range(16))
    assert len({tuple(o) for o in raster_orders((2, 2, 2), 99).tolist()}) == 48


def test_values_come_back_to_their_places(prior):
    values = torch.rand(2, 2, 2)
    for order in range(8):
        assert torch.equal(prior.placed(prior.sequence(values, order), order), values)


def test_the_likelihood_of_all_sequences_sums_to_one(prior):
    """With the sequences that begin anew, whose token is part of the vocabulary."""
    tokens = torch.tensor(list(itertools.product(range(4), repeat=4)))
    with torch.no_grad():
        total = prior.log_likelihood(tokens, 3).double().sum(1).exp().sum()
        each = prior.logits(tokens, 3).softmax(-1).sum(-1)
    torch.testing.assert_close(total, torch.tensor(1.0, dtype=torch.double), rtol=1e-5, atol=0)
    torch.testing.assert_close(each, torch.ones_like(each))


def test_a_code_knows_those_before_it_only(prior):
    sequence = torch.tensor([[0, 1, 2, 0]])
    changed = torch.tensor([[0, 1, 0, 1]])
    with torch.no_grad():
        a, b = (prior.log_likelihood(s, 0) for s in (sequence, changed))
    torch.testing.assert_close(a[:, :2], b[:, :2])
    assert (a[:, 2:] != b[:, 2:]).all()


def test_healing_by_hand(prior):
    sequence = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]])
    unlikely = torch.tensor([[False, True, False, True], [True, False, False, False]])
    with torch.no_grad():
        got = prior.healed(sequence, unlikely, 5)
        for row in range(2):
            healed = sequence[row].tolist()
            for i in range(4):
                if unlikely[row, i]:
                    begun = torch.tensor([[3, *healed[:i]]])
                    healed[i] = int(prior.transformers[5](begun)[0, -1, :3].argmax())
            assert got[row].tolist() == healed


def test_drawn_codes_follow_their_chances(prior):
    n = 4000
    sequence = torch.zeros(n, 4, dtype=torch.long)
    unlikely = torch.zeros(n, 4, dtype=torch.bool)
    unlikely[:, 1] = True
    chance = torch.rand(n, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        drawn = prior.healed(sequence, unlikely, 0, chance)[:, 1]
        expected = prior.transformers[0](torch.tensor([[3, 0]]))[0, -1, :3].softmax(-1)
    share = torch.bincount(drawn, minlength=3) / n
    assert float((share - expected).abs().max()) < 4 * (0.25 / n) ** 0.5
    with torch.no_grad():
        last = prior.healed(sequence[:1], unlikely[:1], 0, torch.ones(1, 4))
    assert int(last.max()) <= 2


def test_masks():
    log_likelihood = torch.tensor([[0.001, 0.4, 0.01, 0.5, 0.6]]).log()
    assert Healing(0.005).unlikely(log_likelihood).tolist() == [[True, False, False, False, False]]
    lowest = Healing(quantile=0.3).unlikely(log_likelihood)
    assert lowest.tolist() == [[True, False, True, False, False]]
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 1] = True
    near = Healing(border="nearest").enlarged(mask, (8, 8))
    assert near.sum() == 4 and near[0, 0, 2:4, 2:4].all()
    assert 0 < float(Healing().enlarged(mask, (8, 8)).max()) <= 1


def test_nothing_unlikely_leaves_an_empty_map_and_the_score():
    m, b = method(threshold=0.0), batch()
    found = m.maps(b)
    assert not found.map.any() and (found.score > 0).all()
    torch.testing.assert_close(found.reconstruction, m.network(b.image)[0].detach())


def test_the_second_phase_leaves_the_codebook_alone():
    m, b = method(), batch()
    before = {k: v.clone() for k, v in m.network.state_dict().items()}
    m.prior.train()
    m.loss(b, "predict", "network")["code"].backward()
    assert all(torch.equal(v, before[k]) for k, v in m.network.state_dict().items())
    assert not any(p.grad is not None for p in m.network.parameters())


def test_sizes_are_refused():
    with pytest.raises(ArgumentError, match="multiple of 4"):
        method(size=34)


def test_lost_vectors_come_back_to_features():
    m, b = method(), batch()
    book = m.network.quantizer.quantizer
    with torch.no_grad():
        book.embedding.weight.fill_(100.0)
        book.embedding.weight[3] = 0.0
        book.ema_cluster_size.fill_(0.0)
        book.ema_cluster_size[3] = 7.0
        features = m.network.encode(b.image).movedim(1, -1).reshape(-1, 8)
    assert len(m.numbers(b.image).unique()) == 1
    m.revive(b)
    assert torch.equal(book.ema_cluster_size, torch.ones(16).index_fill(0, torch.tensor(3), 7.0))
    assert not book.embedding.weight[3].any()
    revived = book.embedding.weight[torch.arange(16) != 3]
    assert float(torch.cdist(revived, features).min(1).values.max()) < 1e-3
    assert len(m.numbers(b.image).unique()) > 4
