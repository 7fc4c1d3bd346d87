"""Boosted forests: the stored arrays beside the library's own trees; what trees on segments see."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.tree import DecisionTreeRegressor
from tests.support.needs import batch_for

from normscan.errors import ArgumentError
from normscan.methods.base import Method
from normscan.methods.supervised.segments import SegmentStatistics, statistics
from normscan.registry import card
from normscan.rng import Rng
from normscan.scores.boosted import Boosting, Forest


@pytest.fixture
def samples():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 5)).astype(np.float32)
    return x, (x[:, 1] * x[:, 3] > 0.2).astype(int)


def test_prediction_is_that_of_the_librarys_trees(samples, monkeypatch):
    x, y = samples
    trees, fit = [], DecisionTreeRegressor.fit

    def kept(self, part, *more, **options):
        trees.append((fit(self, part, *more, **options), part))
        return self

    monkeypatch.setattr(DecisionTreeRegressor, "fit", kept)
    forest = Forest()
    forest.grow(x, y, 1.0, Boosting(rounds=3, trees=4, depth=4, columns=1.0), 0)
    assert len(trees) == 12
    new = np.random.default_rng(1).normal(size=(50, 5)).astype(np.float32)
    # The leaf that each tree leads a sample to, with the value that is stored for it.
    total = np.full(50, 0.5)
    for number, (tree, _) in enumerate(trees, start=1):
        total += forest.value[number].numpy()[tree.apply(new)]
    np.testing.assert_allclose(forest(torch.from_numpy(new)), total, atol=1e-12)


def test_it_learns_what_no_single_feature_tells(samples):
    x, y = samples
    forest = Forest()
    forest.grow(x[:200], y[:200], 1.0, Boosting(rounds=10, trees=10), 0)
    alone = [roc_auc_score(y[200:], x[200:, k]) for k in range(5)]
    best = max(max(one, 1 - one) for one in alone)
    assert roc_auc_score(y[200:], forest(torch.from_numpy(x[200:]))) > best + 0.1


def test_it_is_stored_whole(samples):
    x, y = samples
    forest, other = Forest(), Forest()
    forest.grow(x, y, 1.0, Boosting(rounds=2, trees=3), 0)
    method = Method()
    method.forest = other
    method.load_weights({f"forest.{k}": v for k, v in forest.state_dict().items()})
    assert torch.equal(other(torch.from_numpy(x)), forest(torch.from_numpy(x)))
    assert not Forest()(torch.from_numpy(x)).any(), "before it is grown it says nothing"


def test_an_empty_and_a_constant_part_have_numbers():
    found = statistics(np.full((4, 4), 2.0), np.zeros((4, 4), int), 2)
    np.testing.assert_array_equal(found, [2, 0, 0, 2, 0, 0, 0, 0, 2])


class Seen(Method):
    """Remembers which samples it learnt from."""

    def __init__(self) -> None:
        super().__init__()
        self.subjects: set[int] = set()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def loss(self, batch, phase, player):
        self.subjects |= set(batch.subject.tolist())
        return {"loss": self.weight.sum()}

    def fit(self, batches):
        for batch in batches:
            assert not batch.label.any()
            self.subjects |= set(batch.subject.tolist())

    def maps(self, batch):
        from normscan.methods.base import Maps

        return Maps(batch.image[:, :1])


def test_the_detector_sees_neither_kept_scans_nor_anomalies():
    inner = Seen()
    method = SegmentStatistics(inner, (), 2, False, 3, Boosting(rounds=1, trees=2))
    batch = dataclasses.replace(batch_for(method, 8, 1, (16, 16), 0, training=True), rng=Rng(0))
    method.loss(batch, "", "")
    method.fit([batch])
    healthy = {n for n, part in zip(range(8), batch.part.tolist(), strict=True) if part == 0}
    assert inner.subjects & healthy and not {n for n in inner.subjects if n % 3 == 0}
    inner.subjects = set()
    method.fit([batch])
    assert inner.subjects == {n for n in healthy if n % 3}


@pytest.mark.parametrize("arguments", [{"base": "dpdl"}, {"held": 0.9}])
def test_a_base_that_does_not_fit_is_refused(arguments):
    with pytest.raises(ArgumentError, match="a method for healthy scans"):
        card("segad").create(**card("segad").arguments("tiny", **arguments))
