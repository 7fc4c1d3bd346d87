"""Ascent under a local Gaussian: its distance, its slopes, when its mean is found anew."""

from __future__ import annotations

import math

import pytest
import torch
from tests.golden.fill import fill, images
from tests.unit.test_restoration import Undrawn, batch
from torch.distributions import Normal, kl_divergence

from normscan.errors import ArgumentError
from normscan.methods.variational.ascent import HELD, distance
from normscan.networks.residual import ResidualGrid
from normscan.registry import card
from normscan.rng import Rng


def create(**changes):
    small = {"size": 16, "width": 4, "levels": 2, "tv_weight": 0.3}
    name = "local_gaussian_ascent"
    method = card(name).create(**card(name).arguments("tiny", **{**small, **changes})).double()
    fill(method, "grain")
    return method.eval()


def test_distance_is_that_of_distributions_where_it_is_not_cut():
    x, mean = images(2, 1, 6, 6), images(2, 1, 6, 6, rule="grain")
    spread = 0.1 + images(2, 1, 6, 6).flip(-1)
    log_prob = Normal(mean, spread).log_prob(x)
    expected = -2 * (log_prob + spread.log() + 0.5 * math.log(2 * math.pi)).sum((1, 2, 3))
    torch.testing.assert_close(distance(x, mean, spread), expected)
    far = x.clone().requires_grad_()
    distance(far, mean, torch.full_like(x, 1e-6)).sum().backward()
    assert not far.grad.any(), "a pixel that far away pulls no longer"


def test_loss_is_made_of_squares_and_a_divergence():
    method, b, again = create(kl_weight=0.3), batch(size=16), batch(size=16)
    network = method.network
    with torch.no_grad():
        mean, log_std = network.encode(b.image)
        q = Normal(mean, log_std.exp())
        restored = network.decode(mean + q.scale * again.rng.normal(mean.shape))
        off = (b.image - restored).abs()
        guess = network.guess(b.image)
    terms = method.loss(b, "", "")
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    torch.testing.assert_close(terms["kl"], 0.3 * kl)
    torch.testing.assert_close(terms["error"], off.square().sum((1, 2, 3)).mean())
    torch.testing.assert_close(terms["residual"], (guess - off).square().sum((1, 2, 3)).mean())


def test_slope_by_finite_differences_and_the_mean_has_none():
    method, b = create(refresh_every=100), batch(size=16, rng=Undrawn())
    energy = method.prior(b.image, b)
    energy(b.image)  # finds the mean
    x = b.image.clone().requires_grad_()
    (slope,) = torch.autograd.grad(energy(x).sum(), x)
    step = torch.zeros_like(x)
    step[1, 0, 5, 9] = 1e-5
    rise = (energy(b.image + step) - energy(b.image - step)).detach()
    torch.testing.assert_close(slope[1, 0, 5, 9], rise[1] / 2e-5, rtol=1e-5, atol=1e-6)
    mean = method.restorations(b.image, b, 1)[0]
    within = (b.image - mean).square() < 4e3 * method.network.guess(b.image).square()
    expected = 2 * (b.image - mean) / (method.network.guess(b.image).square() + 1e-10)
    torch.testing.assert_close(slope[within], expected.detach()[within])


def test_the_mean_is_found_anew_every_few_steps():
    method = create(restoration_steps=7, refresh_every=3, samples=2)
    seen, encode = [], method.network.encode
    method.network.encode = lambda x: (seen.append(x.clone()), encode(x))[1]
    b = batch(size=16)
    method.maps(b)
    assert len(seen) == 3
    assert torch.equal(seen[0], b.image)
    assert not torch.equal(seen[1], seen[0]) and not torch.equal(seen[2], seen[1])


def test_a_sampled_spread_is_that_of_the_restorations():
    method, b = create(spread="sampled", samples=4), batch(size=16)
    drawn = method.restorations(b.image, b, 4).detach()
    again = batch(size=16)
    found = method.prior(again.image, again)(again.image)
    torch.testing.assert_close(found, distance(b.image, drawn.mean(0), drawn.std(0)))


@pytest.mark.parametrize("hold", ["tv", "l1"])
def test_the_objective_falls(hold):
    method = create(hold=hold, restoration_steps=30, refresh_every=1000, step_size=0.01)
    b = batch(size=16, rng=Undrawn())
    moved = method.moved(b, 0.3)
    prior = method.prior(b.image, b)
    prior(b.image)
    objective = lambda x: prior(x) + 0.3 * HELD[hold](x - b.image)  # noqa: E731
    assert (objective(moved) < objective(b.image)).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ArgumentError, match="Use size=96"):
        ResidualGrid(2, 1, 100, 4, 5)


def test_draws_are_each_image_s_own():
    method, b = create(), batch(size=16)
    alone = batch(n=1, size=16, rng=Rng([1]))
    alone.image, alone.foreground = b.image[1:], b.foreground[1:]
    torch.testing.assert_close(method.maps(b).map[1:], method.maps(alone).map)
