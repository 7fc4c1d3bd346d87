"""Monte-Carlo dropout against closed forms, and the methods that rest on it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from normscan.errors import ArgumentError
from normscan.methods.autoencoders.bayesian import (
    BayesianConvAutoencoder,
    bayesian_conv_autoencoder,
    bayesian_skip_autoencoder,
    healthy_anatomy_autoencoder,
)
from normscan.methods.base import Batch
from normscan.methods.monte_carlo import drop, moments, monte_carlo, monte_carlo_dropout
from normscan.networks.skip import ResidualConvAutoencoder, SkipAutoencoder
from normscan.rng import Rng


def batch(image: torch.Tensor, seeds: list[int]) -> Batch:
    foreground = torch.ones_like(image[:, :1], dtype=torch.bool)
    return Batch(image, foreground, Rng(seeds), torch.zeros(len(image)))


def test_moments_of_a_linear_net_with_dropout():
    """Mean w x and variance p / (1 - p) sum w^2 x^2."""
    p, x, w = 0.3, torch.tensor([[1.0, -2.0, 0.5, 3.0]]), torch.tensor([[0.5, 1.0, -2.0, 0.25]])
    net = nn.Sequential(nn.Dropout(p), nn.Linear(4, 1, bias=False)).eval()
    net[1].weight.data = w
    net.requires_grad_(False)
    mean, variance = monte_carlo(net, x.repeat(50, 1), Rng(list(range(50))), 400)
    assert float(mean.mean()) == pytest.approx(float((w * x).sum()), abs=0.03)
    expected = p / (1 - p) * float((w * x).square().sum())
    assert float(variance.mean()) == pytest.approx(expected, rel=0.03)


def test_moments_are_those_of_the_draws():
    draws = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0))
    rest = iter(draws)
    mean, variance = moments(lambda: next(rest), 7)
    torch.testing.assert_close(mean, draws.mean(0))
    torch.testing.assert_close(variance, draws.var(0, unbiased=False))
    with pytest.raises(ArgumentError, match="at least one"):
        moments(lambda: draws, 0)


@pytest.mark.parametrize("kind", [nn.Dropout2d, nn.Dropout3d])
def test_channel_dropout_drops_whole_channels(kind):
    x = torch.ones(4, 50, *[3] * (2 if kind is nn.Dropout2d else 3))
    layer = kind(0.4).eval()
    with monte_carlo_dropout(layer, Rng(0)):
        y = layer(x).flatten(2)
    assert torch.equal(y, y[..., :1].expand_as(y))
    assert y.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert (y == 0).float().mean() == pytest.approx(0.4, abs=0.1)
    assert not drop(x, 1.0, Rng(0)).any()


def test_masks_depend_on_the_sample_alone_and_nothing_else_changes():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Dropout2d(0.5))
    net.eval()
    x = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    plain, statistics = net(x), net[1].running_mean.clone()
    state = torch.random.get_rng_state()
    with monte_carlo_dropout(net, Rng([5, 6, 7])):
        together, again = net(x), net(x)
    with monte_carlo_dropout(net, Rng([6])):
        alone = net(x[1:2])
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(together[1:2], alone)
    assert not torch.equal(together, again), "each pass draws new masks"
    assert torch.equal(net(x), plain) and torch.equal(net[1].running_mean, statistics)


def test_modes_come_back_after_an_error():
    layer = nn.Dropout(0.5).train()
    with pytest.raises(RuntimeError), monte_carlo_dropout(layer, Rng(0)):
        assert not layer.training
        raise RuntimeError
    assert layer.training and not layer._forward_hooks


def test_a_net_without_dropout_is_refused():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0))
    with pytest.raises(ArgumentError, match="no dropout"), monte_carlo_dropout(net, Rng(0)):
        pass


# --- networks


@pytest.mark.parametrize("dims", [2, 3])
def test_skip_autoencoder_drops_every_skip_and_the_code(dims):
    net = SkipAutoencoder(dims, 2, 32, width=4, dropout=0.5).eval()
    assert net(torch.rand(1, 2, *[32] * dims)).shape == (1, 2, *[32] * dims)
    widths = [m.out_channels for m in net.modules() if type(m).__name__.startswith("ConvT")]
    seen = [m.in_channels for m in net.modules() if type(m).__name__.startswith("ConvT")]
    assert (widths, seen) == ([16, 8], [8, 16 + 4])
    shapes = []
    for layer in net.drop:
        layer.register_forward_hook(lambda m, i, o: shapes.append(o.shape[1:]))
    net(torch.rand(1, 2, *[32] * dims))
    assert shapes == [(4, *[16] * dims), (8, *[8] * dims)]


def test_skip_autoencoder_without_its_skips_is_blind_to_detail():
    """With all skips dropped, only the code reaches the output."""
    net = SkipAutoencoder(2, 1, 32, width=4, dropout=0.0).eval()
    x = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    whole = net(x)
    net.drop[0].p = 1.0
    net.drop[0].train()
    assert not torch.allclose(net(x), whole)
    net.drop[1].p = 1.0
    net.drop[1].train()
    assert torch.equal(net(x), net(torch.zeros_like(x))), "something passes beside the dropout"


@pytest.mark.parametrize("stages", [1, 3])
def test_residual_autoencoder_has_a_spatial_code(stages):
    net = ResidualConvAutoencoder(2, 1, 2, 4, stages, 0.2)
    assert net(torch.rand(2, 1, 16, 16)).shape == (2, 2, 16, 16)
    assert sum(isinstance(m, nn.Dropout) for m in net.modules()) == 2 * stages - 1


# --- methods


class Known(nn.Module):
    """Mean = dropout of x, log variance = 2 x."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(p)

    def forward(self, x):
        return torch.cat([self.drop(x), 2 * x], dim=1)


def test_total_variance_is_noise_plus_spread():
    p, x = 0.2, torch.full((1, 1, 40, 40), 0.5)
    method = BayesianConvAutoencoder(Known(p), {}, likelihood=True, score="nll", passes=200).eval()
    maps = method.maps(batch(x, [0]))
    variance = math.exp(1.0) + p / (1 - p) * 0.25
    assert float(maps.uncertainty.mean()) == pytest.approx(variance, rel=1e-3)
    normal = torch.distributions.Normal(maps.reconstruction, maps.uncertainty.sqrt())
    torch.testing.assert_close(maps.map, -normal.log_prob(x))


def test_likelihood_loss_is_the_heteroscedastic_one():
    x = torch.rand(2, 1, 4, 4)
    terms = BayesianConvAutoencoder(Known(0.0), {}, likelihood=True, score="nll", passes=1).loss(
        batch(x, [0, 1]), "", ""
    )
    assert float(terms["error"]) == 0 and float(terms["spread"]) == pytest.approx(2 * x.mean())


def test_skip_method_divides_by_the_spread():
    options = {"size": 16, "width": 2, "code": 4, "passes": 6}
    method = bayesian_skip_autoencoder(normalised=True, floor=1e-3, **options).eval()
    image = torch.rand(2, 1, 16, 16)
    maps = method.maps(batch(image, [0, 1]))
    residual = (image - maps.reconstruction).clamp_min(0)
    torch.testing.assert_close(maps.map, residual / maps.uncertainty.sqrt().clamp_min(1e-3))
    mean, variance = monte_carlo(method.network, image, Rng([0, 1]), 6)
    torch.testing.assert_close(maps.reconstruction, mean)
    torch.testing.assert_close(maps.uncertainty, variance)


def test_single_pass_has_no_dropout_and_no_uncertainty():
    method = bayesian_skip_autoencoder(size=16, width=2, code=4, passes=0).eval()
    image = torch.rand(1, 1, 16, 16)
    maps = method.maps(batch(image, [0]))
    assert maps.uncertainty is None
    torch.testing.assert_close(maps.reconstruction, method.network(image))


@pytest.mark.parametrize("squash", [False, True])
def test_score_channel_alone_makes_the_map(squash):
    options = {"size": 16, "width": 2, "code": 4, "squash": squash}
    method = healthy_anatomy_autoencoder(channels=2, score_channel=1, **options).eval()
    image = torch.rand(1, 2, 16, 16)
    maps = method.maps(batch(image, [0]))
    r = (image[:, 1:] - maps.reconstruction[:, 1:]).clamp_min(0)
    torch.testing.assert_close(maps.map, torch.tanh(50 * r) if squash else r)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (healthy_anatomy_autoencoder, {"score_channel": 1}, "score_channel=1"),
        (bayesian_conv_autoencoder, {"size": 20}, "Use size=32"),
        (bayesian_conv_autoencoder, {"score": "nll"}, "likelihood=True"),
        (bayesian_skip_autoencoder, {"size": 100}, "Use size=128"),
    ],
)
def test_wrong_arguments_are_refused(build, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        build(**arguments)
