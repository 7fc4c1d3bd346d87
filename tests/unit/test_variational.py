"""Variational autoencoders scored by gradients: terms, gradients and corruptions against others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from tests.golden.fill import fill, images

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.networks.convolutional import PointCode
from normscan.objectives.gradients import input_gradient
from normscan.registry import card
from normscan.rng import Rng
from normscan.synthesis.augment import scanned_again
from normscan.synthesis.blur import gaussian_blur
from normscan.synthesis.rectangles import context_square


def batch(n: int = 2, size: int = 16, dims: int = 2) -> Batch:
    shape = (size,) * dims
    image = images(n, 1, *shape, rule="grain")
    return Batch(
        image, torch.ones(n, 1, *shape, dtype=torch.bool), Rng(list(range(n))), torch.zeros(n)
    )


def create(name: str, dims: int = 2, **changes):
    small = {"size": 16, "widths": (4, 8), "latent": 6, "dims": dims}
    method = card(name).create(**card(name).arguments("tiny", **small, **changes)).double()
    fill(method, "grain")
    return method.eval()


def posterior(method, x):
    mean, log_std = (v.detach() for v in method.network.encode(x))
    return torch.distributions.Normal(mean, log_std.exp())


def prior_distance(q):
    return torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))


def test_bound_of_kl_grad_is_that_of_distributions():
    method, b = create("vae_kl_grad", kl_weight=0.3), batch()
    q = posterior(method, b.image)
    density = torch.distributions.Normal(method.network.decode(q.loc).detach(), 1.0)
    surprise = -density.log_prob(b.image) - 0.5 * np.log(2 * np.pi)  # less its constant
    expected = surprise.sum((1, 2, 3)) + 0.3 * prior_distance(q).sum(1)
    torch.testing.assert_close(method.maps(b).score, expected)


def test_bound_of_ce_vae_weighs_means():
    method, b = create("ce_vae", kl_weight=0.3), batch()
    x = 2 * b.image - 1
    q = posterior(method, x)
    error = (x - method.network.decode(q.loc).detach()).abs().mean((1, 2, 3))
    torch.testing.assert_close(method.maps(b).score, error + 0.3 * prior_distance(q).mean(1))


def test_half_of_the_loss_restores_what_is_hidden():
    method, b = create("ce_vae", context_share=0.25, kl_weight=0.0), batch()
    terms = method.loss(b, "", "")
    again = batch()
    again.rng.normal((2, 6))  # the code of the plain image is drawn first
    x = 2 * again.image - 1
    hidden = context_square(x, again.rng)
    restored = method.network.decode(method.network.encode(hidden)[0])
    torch.testing.assert_close(terms["context"], 0.25 * (restored - x).abs().mean())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("part", ["bound", "divergence", "error"])
def test_gradients_are_those_of_finite_differences(dims, part):
    method, x = create("vae_kl_grad", dims), batch(dims=dims).image
    value, slope = input_gradient(lambda seen: method.terms(seen)[part], x)
    torch.testing.assert_close(value, method.terms(x)[part].detach())
    for place in [(3,) * dims, (7, 11, 5)[:dims]]:
        step = torch.zeros_like(x)
        step[(1, 0, *place)] = 1e-4
        rise = (method.terms(x + step)[part] - method.terms(x - step)[part]).detach()
        assert float(rise[0]) == 0, "another image has a say"
        torch.testing.assert_close(slope[(1, 0, *place)], rise[1] / 2e-4, rtol=1e-4, atol=1e-9)


def test_combined_map_by_hand():
    method, b = create("vae_kl_grad"), batch()
    gradient = (
        input_gradient(lambda x: method.terms(x)["divergence"], b.image)[1].abs()[:, 0].numpy()
    )
    weights = np.exp(-((np.arange(7) - 3) ** 2) / 18)
    residual = b.image - method.network.decode(method.network.encode(b.image)[0]).detach()
    for i, g in enumerate(gradient):
        smooth = (g - g.min()) / np.ptp(g)
        for axis in (0, 1):
            smooth = ndimage.convolve1d(smooth, weights / weights.sum(), axis, mode="constant")
        expected = smooth * (0.5 * residual[i, 0].numpy() ** 2 + 0.5 * np.log(2 * np.pi))
        np.testing.assert_allclose(method.maps(b).map[i, 0], expected, rtol=1e-6)


def test_the_release_takes_the_exponential_of_sigma_twice():
    right, twice = create("vae_kl_grad"), create("vae_kl_grad", exponent_twice=True)
    q = posterior(right, batch().image)
    wider = torch.distributions.Normal(q.loc, q.scale.exp())
    torch.testing.assert_close(
        twice.terms(batch().image)["divergence"].detach(), 0.01 * prior_distance(wider).sum(1)
    )


def test_training_images_are_cut_and_noisy_but_not_those_of_prediction():
    method, b = create("vae_kl_grad", noise=0.2), batch()
    b.image = 4 * b.image - 2
    assert float(method.scaled(b).image.abs().max()) == 1.5
    seen = []
    encode = method.network.encode
    method.network.encode = lambda x: (seen.append(x), encode(x))[1]
    method.train().loss(b, "", "")
    assert 1.5 < float(seen[0].abs().max()) < 1.5 + 0.2 * 6


def test_at_most_one_square_of_one_value_hides_two_thirds_of_the_images():
    x = torch.linspace(0, 1, 32 * 24).reshape(1, 1, 32, 24).repeat(600, 1, 1, 1)
    y = context_square(x, Rng(3))
    changed = y != x
    hit = changed.flatten(1).any(1)
    # Sides below one pixel hide nothing, so the share lies below two thirds.
    assert 0.5 < float(hit.float().mean()) < 0.7
    for image, mask in zip(y[hit], changed[hit], strict=True):
        rows, columns = mask[0].any(1).nonzero()[:, 0], mask[0].any(0).nonzero()[:, 0]
        box = image[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.unique().numel() == 1 and max(box.shape) < 16
    assert float(y.min()) >= 0 and float(y.max()) <= 1


def test_scanned_again_stays_near_and_keeps_the_middle():
    x = images(200, 1, 9, 9)
    y = scanned_again(x, Rng(0), 0.0)
    ratio = (y / x)[:, 0, 4, 4]
    assert float(ratio.min()) >= 0.95 - 1e-6 and float(ratio.max()) <= 1.1 + 1e-6
    flipped = (y - x.flip(-1)).abs().flatten(1).mean(1) < (y - x).abs().flatten(1).mean(1)
    assert 0.3 < float(flipped.float().mean()) < 0.7


def test_blur_of_volumes_is_that_of_scipy():
    x = images(2, 1, 9, 8, 7)
    result = gaussian_blur(x, torch.tensor([1.0, 2.0]), (5, 5, 5), "constant")
    for i, sigma in enumerate((1.0, 2.0)):
        expected = x[i, 0].numpy()
        weights = np.exp(-((np.arange(5) - 2) ** 2) / (2 * sigma**2))
        for axis in range(3):
            expected = ndimage.convolve1d(expected, weights / weights.sum(), axis, mode="constant")
        np.testing.assert_allclose(result[i, 0], expected, atol=1e-12)


def test_a_size_that_cannot_be_halved_is_refused():
    with pytest.raises(ArgumentError, match="multiple of 16 from 32 on"):
        PointCode(2, 1, 40, 8, (4, 4, 4, 4))


# --- two levels


def test_two_levels_sum_errors_and_divergences_of_distributions():
    method, b = create("high_low_vae", kl_weight=0.3), batch()
    x = 2 * b.image - 1
    network, normal = method.network, torch.distributions.Normal
    with torch.no_grad():
        small = torch.nn.functional.avg_pool2d(x, 2)
        mean, log_std = network.high.encode(small)
        coarse = network.high.decode(mean)
        low, expected = network.details(x, coarse), network.expected(coarse)
        restored = network.decode(low.mean, coarse)
    between = torch.distributions.kl_divergence(
        normal(low.mean, low.log_std.exp()), normal(expected.mean, expected.log_std.exp())
    )
    errors = (x - restored).abs().sum((1, 2, 3)) + (small - coarse).abs().sum((1, 2, 3))
    kl = prior_distance(normal(mean, log_std.exp())).sum(1) + between.sum((1, 2, 3))
    maps = method.maps(b)
    torch.testing.assert_close(maps.score, errors + 0.3 * kl)
    torch.testing.assert_close(maps.reconstruction, (restored + 1) / 2)


def test_two_levels_draw_both_codes_in_training():
    method, b = create("high_low_vae", kl_weight=0.3), batch()
    once, again = method.loss(b, "", ""), method.loss(b, "", "")
    assert once["error"] != again["error"] and once["high_error"] != again["high_error"]
    assert once["high_kl"] == again["high_kl"] and once["low_kl"] != again["low_kl"]
