"""Pairs of sets, what carries over between them, and how they are weighed, beside other computations."""

from __future__ import annotations

from itertools import islice
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn
from torch.func import functional_call

from normscan.errors import ArgumentError
from normscan.methods.supervised import episodes as made
from normscan.methods.supervised.disentangled import HEALTHY, SEEN, SIMULATED
from normscan.methods.supervised.episodes import (
    Bank,
    Learner,
    Rhythm,
    Set,
    Watcher,
    episodes,
    trust,
)
from normscan.methods.supervised.heterogeneous import Heads
from normscan.networks.foretelling import Foreteller
from normscan.registry import card
from normscan.rng import Rng

RHYTHM = Rhythm(64, 2, 1, 0, 1, 9, 5.0, 2)
KINDS = torch.tensor([HEALTHY, SIMULATED, SEEN])


def bank(healthy: int = 12, anomalous: int = 6, width: int = 4) -> Bank:
    """Healthy images of two sorts, three changes of them, known anomalies."""
    source = torch.Generator().manual_seed(0)

    def some(n: int) -> list[torch.Tensor]:
        return [torch.rand(n, width, s, s, generator=source, dtype=torch.float64) for s in (4, 3)]

    groups = [*(some(healthy) for _ in range(4)), some(anomalous)]
    groups[0][0][::2] += 10
    return Bank(groups)


def test_pairs_hold_their_own_images_and_halves_of_the_anomalies():
    pairs = episodes(bank(), RHYTHM, Rng(0))
    assert len(pairs) == 2
    for (support, query), parity in zip(pairs, (0, 1), strict=True):
        told = []
        for part in (support, query):
            own = part.rows[part.kind != SEEN]
            kind = part.kind[part.kind != SEEN]
            assert torch.equal(own >= 12, kind == SIMULATED)
            assert len({int(v) for v in own[own >= 12] // 12}) <= 1  # one change for all
            assert (own % 12 % 2).unique().numel() == 1  # one sort of healthy images
            assert (kind == HEALTHY).any()
            told.append(own % 12 % 2)
        assert told[0][0] != told[1][0]
        known, left = (set(p.rows[p.kind == SEEN].tolist()) for p in (support, query))
        assert (len(known), len(left)) == (3, 5)
        assert known | left == set(range(48, 54)) and len(known & left) == 2, parity


def test_few_images_and_one_anomaly():
    pairs = episodes(bank(4, 1), RHYTHM, Rng(0))  # two clusters of two: halves stand for them
    assert len(pairs) == 2
    for support, query in pairs:
        assert support.rows[support.kind == SEEN].tolist() == [16]
        assert query.rows[query.kind == SEEN].tolist() == [16]
        healthy = [set((p.rows[p.kind != SEEN] % 4).tolist()) for p in (support, query)]
        assert healthy[0] | healthy[1] == set(range(4)) and not healthy[0] & healthy[1]


def test_batches_have_equal_parts_and_every_sample_in_turn():
    kinds = torch.tensor([HEALTHY] * 7 + [SEEN] * 3 + [SIMULATED] * 2)
    batches = list(islice(Set(torch.arange(12), kinds).batches(8, Rng(0)), 14))
    for batch in batches:
        assert torch.bincount(kinds[batch], minlength=3).tolist() == [2, 4, 2]
    times = torch.bincount(torch.cat(batches), minlength=12)
    assert times[:7].unique().tolist() == [4]
    assert times[10:].unique().tolist() == [14]
    assert times[7:10].max() - times[7:10].min() <= 1


def test_the_gradient_goes_through_the_first_step():
    torch.manual_seed(0)
    heads, known = Heads(4, 0.3, 1.0).double(), bank()
    support = Set(torch.tensor([0, 2, 12, 14, 48, 49]), KINDS.repeat_interleave(2))
    query = Set(torch.tensor([1, 3, 13, 15, 50, 51]), KINDS.repeat_interleave(2))
    weights = {n: w.detach().clone().requires_grad_() for n, w in heads.named_parameters()}
    source = torch.Generator().manual_seed(1)
    along = {n: torch.randn(w.shape, generator=source).to(w) for n, w in weights.items()}
    step = 0.05

    def judged(size: float) -> float:
        """The loss on the query after a step from weights that were moved."""
        there = {n: (w + size * along[n]).detach().requires_grad_() for n, w in weights.items()}
        learner = Learner(heads, known, RHYTHM, Rng(3))
        flow = support.batches(RHYTHM.batch_size, learner.rng)
        slopes = torch.autograd.grad(learner.loss(there, support, next(flow)), list(there.values()))
        moved = {n: w - step * s for (n, w), s in zip(there.items(), slopes, strict=True)}
        places = next(query.batches(9, learner.rng))
        return float(learner.loss(moved, query, places).detach())

    with patch.object(made, "INNER", step):
        _, slopes = Learner(heads, known, RHYTHM, Rng(3)).adapted(weights, support, query)
    found = sum(float((s * a).sum()) for s, a in zip(slopes, along.values(), strict=True))
    assert found == pytest.approx((judged(1e-6) - judged(-1e-6)) / 2e-6, rel=1e-5)


def test_heads_adapt_by_plain_gradient_descent():
    torch.manual_seed(0)
    heads, known = Heads(4, 0.3, 1.0).double(), bank()
    support = Set(torch.tensor([0, 2, 12, 14, 48, 49]), KINDS.repeat_interleave(2))
    weights = {n: w.detach().clone().requires_grad_() for n, w in heads.named_parameters()}
    longer = Rhythm(64, 2, 1, 2, 3, 3, 5.0, 2)
    moved, _ = Learner(heads, known, longer, Rng(0)).adapted(weights, support, support)
    learner, ours = Learner(heads, known, longer, Rng(0)), dict(heads.named_parameters())
    plain = torch.optim.SGD(ours.values(), lr=2e-4)
    for places in islice(support.batches(3, learner.rng), 1 + 2 * 3):
        plain.zero_grad()
        learner.loss(ours, support, places).backward()
        plain.step()
    for name, weight in ours.items():
        torch.testing.assert_close(moved[name], weight, check_stride=False)
    assert not torch.equal(ours["residual.scale"], weights["residual.scale"])


def test_the_foreteller_is_an_lstm_of_two_layers():
    torch.manual_seed(0)
    ours, theirs = Foreteller(3, 0.0), nn.LSTM(3, 3, 2, batch_first=True, bidirectional=True)
    for layer, part in enumerate((ours.first, ours.second)):
        for name, weight in part.named_parameters():
            getattr(theirs, name.replace("l0", f"l{layer}")).data.copy_(weight.data)
    rng = Rng(5)
    hidden, cell = rng.uniform((4, 2, 3)), rng.uniform((4, 2, 3))
    scores = torch.randn(2, 5, 3)
    with torch.no_grad():
        expected = ours.read(theirs(scores, (hidden, cell))[0][:, -1].relu())
        torch.testing.assert_close(ours(scores, Rng(5)), expected)
    dropped = Foreteller(3)
    assert not torch.equal(dropped(scores, Rng(5)), dropped(scores, Rng(6)))
    assert torch.equal(dropped(scores, Rng(5)), dropped(scores, Rng(5)))


def test_pairs_that_are_foretold_well_count_more(rng):
    kinds = [np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1, 2, 2])]
    foretold = [rng.normal(size=(len(k), 3)) for k in kinds]
    wrong = np.zeros(3)
    for kind, weight in ((0, 0.5), (2, 0.5), (1, 1.0)):
        number = sum((k == kind).sum() for k in kinds)
        for f, k in zip(foretold, kinds, strict=True):
            wrong += weight * ((f[k == kind] - (kind > 0)) ** 2).mean(0) / number
    found = trust([torch.from_numpy(f) for f in foretold], [torch.from_numpy(k) for k in kinds])
    np.testing.assert_allclose(found, softmax(-wrong))


def test_pairs_are_weighed_from_the_eighth_round_on():
    watcher, kinds = Watcher(2, Rng(0)), [KINDS, KINDS]
    for _ in range(7):
        assert watcher.factors(kinds).tolist() == [0.5, 0.5]
        watcher.learn([torch.rand(3, 2), torch.rand(3, 2)])
    factors = watcher.factors(kinds)
    assert float(factors.sum()) == pytest.approx(1.5)
    assert (factors > 0.5).all()


def test_a_residual_head_that_begins_with_0_stays_there():
    torch.manual_seed(0)
    features = [torch.randn(3, 4, s, s) for s in (6, 3)]
    for scale, learns in ((0.0, False), (1.0, True)):
        heads = Heads(4, 0.3, scale)
        scores = heads(features, [f.mean(0) for f in features], torch.full((3,), -1))
        scores["residual"].sum().backward()
        slopes = [p.grad for p in heads.residual.parameters()]
        assert any(s is not None and s.abs().sum() > 0 for s in slopes) == learns
    weights = dict(heads.named_parameters())
    again = functional_call(heads, weights, (features, [f[0] for f in features], KINDS))
    assert (len(again["seen"]), len(again["simulated"])) == (2, 2)


def test_an_image_too_small_for_its_copies_is_refused():
    with pytest.raises(ArgumentError, match="Use size=192 or more"):
        card("ahl").create(size=128, weights="random")
