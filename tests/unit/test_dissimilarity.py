"""Distances of codes against other ways to them, and which network does what."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from tests.golden.fill import fill
from tests.unit.test_variational import batch, create
from torch.distributions import Normal, kl_divergence

from normscan.methods.variational.dissimilarity import dissimilarity

A = (torch.tensor([[0.3, -1.0]]).double(), torch.tensor([[0.2, -0.5]]).double())
B = (torch.tensor([[-0.4, 0.5]]).double(), torch.tensor([[-0.3, 0.1]]).double())


def test_divergence_is_that_of_distributions_both_ways():
    p, q = (Normal(mean, log_std.exp()) for mean, log_std in (A, B))
    expected = (kl_divergence(p, q) + kl_divergence(q, p)).sum(1)
    torch.testing.assert_close(dissimilarity(A, B, "kl"), expected)


def test_wasserstein_by_quantiles():
    total = 0.0
    for i in range(2):
        p, q = (stats.norm(float(m[0, i]), float(np.exp(s[0, i]))) for m, s in (A, B))
        total += integrate.quad(lambda u, p=p, q=q: (p.ppf(u) - q.ppf(u)) ** 2, 0, 1)[0]
    assert float(dissimilarity(A, B, "wasserstein")) == pytest.approx(total**0.5, rel=1e-6)


def test_fisher_rao_is_the_length_of_the_geodesic():
    """By the metric (dm^2 + 2 ds^2) / s^2: a half circle in the plane of m / sqrt(2) and s."""
    total = 0.0
    for i in range(2):
        (x1, y1), (x2, y2) = ((float(m[0, i]) / 2**0.5, float(np.exp(s[0, i]))) for m, s in (A, B))
        middle = (x2**2 + y2**2 - x1**2 - y1**2) / (2 * (x2 - x1))
        ends = sorted(np.arctan2([y1, y2], [x1 - middle, x2 - middle]))
        length = integrate.quad(lambda t: 2**0.5 / np.sin(t), *ends)[0]
        total += length**2
    assert float(dissimilarity(A, B, "fisher_rao")) == pytest.approx(total**0.5, rel=1e-6)


@pytest.mark.parametrize("distance", ["euclidean", "kl", "wasserstein", "fisher_rao"])
def test_a_code_has_no_distance_from_itself(distance):
    assert float(dissimilarity(A, A, distance)) == pytest.approx(0.0, abs=1e-7)
    assert float(dissimilarity(A, B, distance)) > 0
    torch.testing.assert_close(dissimilarity(A, B, distance), dissimilarity(B, A, distance))


@pytest.mark.parametrize("encoder", ["mixed", "healthy"])
def test_one_network_restores_and_one_compares(encoder):
    method, b = create("latent_dissimilarity_vae", encoder=encoder), batch()
    mixed = method.member("mixed").network
    fill(mixed)
    healthy = method.member("healthy").network
    with torch.no_grad():
        restored = healthy.decode(healthy.encode(b.image)[0])
        by = {"mixed": mixed, "healthy": healthy}[encoder]
        expected = (by.encode(b.image)[0] - by.encode(restored)[0]).norm(dim=1)
    maps = method.maps(b)
    torch.testing.assert_close(maps.score, expected)
    torch.testing.assert_close(maps.reconstruction, restored)
    assert maps.map is None
    assert [(p.name, p.part) for p in method.phases()] == [
        ("healthy", "healthy"),
        ("mixed", "healthy+unlabelled"),
    ]
