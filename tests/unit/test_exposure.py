"""Outlier exposure: the loss, the classes of the cohort, the pictures that are moved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.support.needs import batch_for

from normscan.errors import CohortError
from normscan.methods.supervised.exposure import Exposed, moved_a_little, to_uniform
from normscan.registry import card


def exposed(**arguments) -> Exposed:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = card("outlier_exposure").create(
            **card("outlier_exposure").arguments("tiny", **arguments)
        )
    assert isinstance(method, Exposed)
    return method


def test_unsure_is_a_cross_entropy():
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    spread = torch.full((4, 7), 1 / 7)
    theirs = torch.nn.functional.cross_entropy(logits, spread, reduction="none")
    torch.testing.assert_close(to_uniform(logits), theirs)


def test_one_class_is_a_binary_cross_entropy():
    method = exposed()
    batch = batch_for(method, 6, 1, (32, 32), 0, training=True)
    method.eval()
    batch.part = torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        chance = method.network(moved_a_little(batch)).sigmoid()[:, 0].double().numpy()
        batch = batch_for(method, 6, 1, (32, 32), 0, training=True)
        batch.part = torch.tensor([0, 1, 2, 0, 1, 2])
        terms = method.loss(batch, "expose", "network")
    assert float(terms["class"]) == pytest.approx(-np.log1p(-chance[[0, 3]]).mean(), rel=1e-4)
    other = -0.5 * np.log(chance[[1, 2, 4, 5]]).mean()
    assert float(terms["other"]) == pytest.approx(other, rel=1e-4)


def test_a_scan_without_its_class_is_refused():
    method = exposed(classes=3, column="kind")
    batch = batch_for(method, 4, 1, (32, 32), 0, training=True)
    batch.part = torch.tensor([0, 0, 1, 1])
    batch.columns = [{"kind": 2}, {"kind": "0"}, {}, {}]
    assert torch.isfinite(method.loss(batch, "expose", "network")["class"])
    for wrong in ("brain", 3, None):
        batch.columns[1]["kind"] = wrong
        with pytest.raises(CohortError, match="whole number from 0 to 2"):
            method.loss(batch, "expose", "network")


def test_images_are_moved_and_mirrored_whole():
    method = exposed()
    batch = batch_for(method, 3, 2, (12, 10), 1, training=True)
    found = moved_a_little(batch)
    for x, y in zip(batch.image.numpy(), found.numpy(), strict=True):
        ways = (
            np.pad(z, ((0, 0), (4, 4), (4, 4)))[:, i : i + 12, j : j + 10]
            for z in (x, x[..., ::-1]) for i in range(9) for j in range(9)
        )  # fmt: skip
        assert any(np.array_equal(way, y) for way in ways)
