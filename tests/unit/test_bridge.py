"""The bridge against closed forms, and what the method makes of labelled anomalies."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.methods.diffusion.prototypes import highest_mean
from normscan.networks.bridge import GaussianMixture, LightBridge
from normscan.registry import card
from normscan.rng import Rng


def mixture(kind, components=3, axes=4, epsilon=0.1, seed=0):
    g = torch.Generator().manual_seed(seed)
    made = kind(components, axes, epsilon).double()
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (epsilon if p.ndim == 1 else 0.5))
    return made


def test_the_density_is_that_of_torch():
    ours = mixture(GaussianMixture)
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(1)).double()
    weights = ours.log_weight / 0.1
    spread = (0.1 * ours.log_spread.exp()).sqrt()
    theirs = MixtureSameFamily(
        Categorical(logits=weights), Independent(Normal(ours.centre, spread), 1)
    )
    torch.testing.assert_close(ours.normalised(x), theirs.log_prob(x))
    torch.testing.assert_close(ours.log_density(x), theirs.log_prob(x) + weights.logsumexp(0))


def test_the_plan_is_the_potential_times_the_kernel():
    """pi(y | x) is v(y) exp(x'y / epsilon) normalised; its sum over y is C(x), its mean follows."""
    ours, epsilon = mixture(LightBridge, axes=1), 0.1
    x = torch.tensor([[-0.3], [0.1], [0.4]]).double()
    y = torch.linspace(-8, 8, 200_001, dtype=torch.float64)[:, None]
    log = ours.log_density(y)[None] + x @ y.T / epsilon
    total = log.logsumexp(1) + math.log(16 / 200_000)
    torch.testing.assert_close(ours.log_plan(x).logsumexp(1), total)
    torch.testing.assert_close(ours.carried(x), log.softmax(1) @ y)


@pytest.mark.parametrize("epsilon", [0.001, 0.3])
def test_the_loss_is_least_at_the_bridge_between_two_gaussians(epsilon):
    """From N(m, s^2) to N(n, t^2) the plan's mean is r + S x with S^2 s^2 + epsilon S = t^2."""
    m, s, n, t = 0.2, 0.5, -0.4, 0.7
    bridge = LightBridge(1, 1, epsilon).double()
    spread = (math.sqrt(epsilon**2 + 4 * s**2 * t**2) - epsilon) / (2 * s**2)
    with torch.no_grad():
        bridge.log_spread.fill_(math.log(spread))
        bridge.centre.fill_(n - spread * m)
    grid = Normal(0.0, 1.0).icdf((torch.arange(4000).double() + 0.5) / 4000)
    grid = grid[:, None] / grid.std(correction=0)
    start, end = m + s * grid, n + t * grid
    (epsilon * bridge.loss(start, end)).backward()
    for p in (bridge.centre, bridge.log_spread):
        torch.testing.assert_close(p.grad, torch.zeros_like(p), atol=1e-9, rtol=0)
    torch.testing.assert_close(bridge.carried(start).mean(), torch.tensor(n).double())


def test_weights_move_as_fast_as_what_they_stand_beside():
    mixture = GaussianMixture(4, 2, 0.001)
    torch.testing.assert_close((mixture.log_weight / 0.001).softmax(0), torch.full((4,), 0.25))


def tiny(**changes):
    made = card("dpdl")
    return made.create(**{**made.arguments("tiny"), **changes})


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    image = torch.rand(6, 1, 48, 48, generator=g)
    return Batch(
        image, torch.ones(6, 1, 48, 48, dtype=torch.bool), Rng(3), torch.full((6,), 0.5),
        label=torch.tensor([0, 1, 0, 1, 0, 0]),
    )  # fmt: skip


def test_only_labelled_anomalies_are_pushed():
    method, b = tiny(), batch()
    terms = method.loss(b, "bridge", "network")
    assert set(terms) == {"class", "bridge", "prototypes", "push", "dispersion"}
    healthy = dataclasses.replace(b, rng=Rng(3), label=torch.zeros(6))
    assert "push" not in method.loss(healthy, "bridge", "network")
    ill = dataclasses.replace(b, rng=Rng(3), label=torch.ones(6))
    assert set(method.loss(ill, "bridge", "network")) == {"class"}


def test_prototypes_start_at_healthy_patches_once():
    method, b = tiny(), batch()
    patches = method.features(b.image)[b.label == 0].flatten(0, 1)
    method.loss(b, "bridge", "network")
    for mixture in (method.prototypes, method.bridge):
        assert torch.cdist(mixture.centre, patches).amin(1).max() < 1e-3
    before = method.bridge.centre.clone()
    method.loss(batch(1), "bridge", "network")
    assert torch.equal(method.bridge.centre, before)


def test_samples_of_the_prototypes_have_their_moments():
    method = tiny(components=2)
    p = method.prototypes
    with torch.no_grad():
        p.log_weight.copy_(p.epsilon * torch.tensor([0.2, 0.8]).log())
    drawn = method.drawn(40_000, batch()).double()
    near = torch.cdist(drawn.float(), p.centre).argmin(1)
    assert float((near == 1).float().mean()) == pytest.approx(0.8, abs=0.01)
    apart = drawn[near == 1] - p.centre[1]
    expected = MultivariateNormal(torch.zeros(48), 0.05 * 0.1 * torch.eye(48)).variance
    torch.testing.assert_close(apart.var(0).float(), expected.float(), rtol=0.05, atol=0)


def test_the_score_is_the_mean_of_the_highest_share():
    scores = torch.arange(20.0).reshape(1, -1)
    mean, which = highest_mean(scores, 0.1)
    assert mean.item() == 18.5 and sorted(which[0].tolist()) == [18, 19]
    assert highest_mean(scores[:, :5], 0.1)[0].item() == 4


def test_features_lie_on_the_sphere_and_one_stage_is_asked_for():
    found = tiny().features(batch().image)
    torch.testing.assert_close(found.norm(dim=2), torch.ones(found.shape[:2]))
    assert F.normalize(found, dim=2).shape[2] == 48
    with pytest.raises(ArgumentError, match="one stage"):
        tiny(taps=("layer1", "layer2"))
