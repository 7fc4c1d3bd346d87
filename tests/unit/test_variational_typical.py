"""Densities against scipy, the entropy by hand, and the study's finding on the toy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from tests.toy import toy_scan

from normscan.methods.base import Batch
from normscan.methods.variational.typical import density, masked_entropy
from normscan.registry import card
from normscan.rng import Rng


def test_densities_are_those_of_scipy():
    generator = torch.Generator().manual_seed(0)
    known, values = (torch.randn(n, 2, generator=generator).double() for n in (30, 7))
    expected = [stats.gaussian_kde(known[:, k].numpy())(values[:, k].numpy()) for k in range(2)]
    np.testing.assert_allclose(density(values, known).numpy(), np.stack(expected, 1), rtol=1e-10)


def test_entropy_by_hand():
    residual = torch.rand(2, 1, 6, 7, generator=torch.Generator().manual_seed(0)).double()
    mask = torch.zeros(2, 1, 6, 7, dtype=torch.bool)
    mask[0, :, 1:5, 1:6] = True
    mask[1, :, :2, :5] = True  # ten pixels, too few
    p = (residual[0] / residual[0].sum())[mask[0]].numpy()
    expected = -(p * np.log2(p + 1e-4)).sum() / np.log2(20)
    np.testing.assert_allclose(masked_entropy(residual, mask), [expected, 0], rtol=1e-10)
    even = torch.ones(1, 1, 8, 8).double()
    assert float(masked_entropy(even, even > 0)) == pytest.approx(1, abs=2e-3)


def heads(n, seed):
    rng = np.random.default_rng(seed)
    planes = [toy_scan(rng, 2, 1, False)[0][:, 6:38, 2:34] for _ in range(n)]
    return torch.from_numpy(np.stack(planes))


def batch(image, seed=0):
    return Batch(
        image, image > 0.01, Rng([seed + i for i in range(len(image))]), torch.zeros(len(image))
    )


def test_the_finding_of_the_study():
    """Fainter scans have a smaller error than healthy ones; the density of states finds them."""
    torch.manual_seed(0)
    arguments = card("ood_blind_spot").arguments("tiny")
    method = card("ood_blind_spot").create(**arguments)
    healthy, images = heads(24, 1), heads(48, 0)
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    method.train()
    for step in range(120):
        rows = torch.randint(0, 48, (16,), generator=torch.Generator().manual_seed(step))
        b = batch(images[rows], step)
        optimizer.zero_grad()
        sum(method.loss(b, "", "").values()).backward()
        optimizer.step()
    method.eval().fit([batch(images)])
    table = method.blind_spots(batch(healthy, 100), {"faint": batch(0.6 * healthy, 200)})
    areas = table["faint"]
    assert areas["dose"] > 0.75, areas
    assert min(areas[k] for k in ("error", "kl", "likelihood", "bound")) < 0.3, areas
