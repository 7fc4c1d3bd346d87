"""Likelihoods of variational autoencoders against torch.distributions."""

from __future__ import annotations

import pytest
import torch
from tests.golden.fill import fill, images
from torch.distributions import Normal, kl_divergence

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.networks.autoencoder import PerceptronHeads
from normscan.objectives.losses import beta_cross_entropy, gaussian_surprise, optimal_surprise
from normscan.registry import card
from normscan.rng import Rng


def batch(n: int = 3, size: int = 32, dims: int = 2) -> Batch:
    shape = (size,) * dims
    image = images(n, 1, *shape, rule="grain")
    mask = torch.ones(n, 1, *shape, dtype=torch.bool)
    return Batch(image, mask, Rng(list(range(n))), torch.zeros(n))


def create(name: str, **changes):
    method = card(name).create(**card(name).arguments("tiny", **changes)).double()
    fill(method, "grain")
    return method.eval()


def bound(method, b, spread=1.0):
    """Posterior and the output from a drawn code."""
    x = method.scaled(b).image
    with torch.no_grad():
        mean, second = method.network.encode(x)
        q = Normal(mean, (spread * second).exp())
        code = q.loc + q.scale * batch().rng.normal(mean.shape)
        kl = kl_divergence(q, Normal(0.0, 1.0)).flatten(1).sum(1).mean()
        return x, method.network.decode(code), kl


def test_surprise_is_that_of_a_normal():
    x, mean, spread = images(2, 3, 4, 4), images(2, 3, 4, 4).flip(-1), images(2, 3, 4, 4) - 0.7
    expected = -Normal(mean, (spread / 2).exp()).log_prob(x)
    torch.testing.assert_close(gaussian_surprise(x, mean, spread), expected)


def test_predicted_variance_learns_by_the_bound_and_maps_one_part_of_it():
    method, b = create("uncertainty_vae", kl_weight=0.3), batch()
    x, output, kl = bound(method, b, 0.5)
    mean, log_variance = method.split(output)
    expected = -Normal(mean, (log_variance / 2).exp()).log_prob(x).sum((1, 2, 3)).mean()
    terms = method.loss(batch(), "", "")
    torch.testing.assert_close(terms["likelihood"], expected)
    torch.testing.assert_close(terms["kl"], 0.3 * kl)
    maps = method.maps(b)
    with torch.no_grad():
        mean, log_variance = method.split(method.network.decode(method.network.encode(x)[0]))
    q = Normal(mean, (log_variance / 2).exp())
    torch.testing.assert_close(maps.map, q.log_prob(mean) - q.log_prob(x))
    torch.testing.assert_close(maps.uncertainty, q.variance)


def test_a_predicted_variance_has_a_floor():
    method = create("uncertainty_vae", least_variance=0.25)
    _, log_variance = method.split(torch.full((1, 2, 4, 4), -50.0))
    torch.testing.assert_close(log_variance.exp(), torch.full((1, 1, 4, 4), 0.25))


def test_beta_cross_entropy_by_its_definition_and_its_limit():
    x, restored = images(4, 1, 3, 3), images(4, 1, 3, 3).flip(-1) ** 2
    squares = (x - restored).square().flatten(1).sum(1)
    density = Normal(restored, 0.5).log_prob(x).flatten(1).sum(1)
    for beta in (0.3, 1e-2):
        expected = -(beta + 1) / beta * (density.exp() ** beta - 1)
        torch.testing.assert_close(beta_cross_entropy(squares, 9, beta, 0.5), expected)
    torch.testing.assert_close(beta_cross_entropy(squares, 9, 0.0, 0.5), -density)
    torch.testing.assert_close(
        beta_cross_entropy(squares, 9, 1e-9, 0.5), -density, rtol=1e-6, atol=1e-6
    )


def test_an_outlier_pulls_less_the_larger_beta_is():
    squares = torch.tensor([1.0, 400.0], dtype=torch.float64, requires_grad=True)

    def pulls(beta):
        entropy = beta_cross_entropy(squares, 100, beta, constant=False)
        (slope,) = torch.autograd.grad(entropy.sum(), squares)
        return slope

    even, robust = pulls(0.0), pulls(0.02)
    torch.testing.assert_close(even[0], even[1])
    assert robust[1] < 0.03 * robust[0]


def test_outliers_bend_a_robust_fit_less():
    """The centre of a Gaussian from nine values at 0 and one at 10, by gradient descent."""
    values = torch.tensor([0.0] * 9 + [10.0], dtype=torch.float64)
    found = {}
    for beta in (0.0, 0.5):
        centre = torch.zeros((), dtype=torch.float64, requires_grad=True)
        for _ in range(300):
            loss = beta_cross_entropy((values - centre).square(), 1, beta, constant=False).mean()
            (slope,) = torch.autograd.grad(loss, centre)
            centre = (centre - 0.1 * slope).detach().requires_grad_()
        found[beta] = float(centre.detach())
    assert found[0.0] == pytest.approx(1.0, abs=1e-3)
    assert abs(found[0.5]) < 1e-3


def test_optimal_surprise_is_the_least_of_all_deviations():
    x, restored = images(2, 1, 5, 5), images(2, 1, 5, 5).flip(-1) ** 2
    best = (x - restored).square().mean((1, 2, 3)).sqrt()
    constant = 25 / 2 * (1 + torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64)))
    for factor in (0.8, 1.0, 1.25):
        at = (factor * best).reshape(-1, 1, 1, 1)
        surprise = -Normal(restored, at).log_prob(x).sum((1, 2, 3)) - constant
        least = optimal_surprise(x, restored)
        if factor == 1.0:
            torch.testing.assert_close(surprise, least)
        else:
            assert (surprise > least).all()


@pytest.mark.parametrize(
    ("name", "term", "error"),
    [
        ("vae_3d", "likelihood", lambda x, r: optimal_surprise(x, r).mean()),
        ("real_world_dgm", "l2", lambda x, r: (x - r).square().sum((1, 2, 3)).mean()),
    ],
)
def test_bounds_of_distributions(name, term, error):
    method = create(name, kl_weight=0.3, **({"dims": 2} if name == "vae_3d" else {}))
    x, restored, kl = bound(method, batch())
    terms = method.loss(batch(), "", "")
    torch.testing.assert_close(terms[term], error(x, restored))
    torch.testing.assert_close(terms["kl"], 0.3 * kl)


def test_an_adversarial_model_has_the_same_layout():
    vae, aae = create("real_world_dgm"), create("real_world_dgm", model="aae", steps=3)
    one = sum(p.numel() for p in aae.network.heads.parameters())
    sizes = [sum(p.numel() for p in m.network.parameters()) for m in (vae, aae)]
    assert sizes[0] - sizes[1] == one
    assert [p.name for p in aae.phases()[1].players] == ["autoencoder", "critic", "encoder"]
    terms = aae.loss(batch(), "constrain", "autoencoder")
    assert float(terms["consistency"]) == 0 and float(terms["restoration"]) > 0


def test_a_size_that_cannot_be_halved_is_refused():
    with pytest.raises(ArgumentError, match="Use size=32"):
        PerceptronHeads(2, 1, 36, 4, 4, 8)
