"""What a conditional variational autoencoder is told, and its bound."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.unit.test_variational import batch, create, prior_distance
from torch.distributions import Normal

from normscan.methods.variational.conditional import waves


def placed(*at: float):
    return replace(batch(len(at)), position=torch.tensor(at))


def test_places_are_told_apart_and_neighbours_alike():
    told = waves(torch.linspace(0, 1, 21), 3)
    apart = torch.cdist(told, told)
    assert told.shape == (21, 6) and float(told.abs().max()) <= 1
    assert float((apart + 9 * torch.eye(21)).min()) > 0.2
    assert (apart[0].argsort()[:3] == torch.tensor([0, 1, 2])).all()
    torch.testing.assert_close(told[5, 0], torch.tensor(0.25 * torch.pi).sin())


def test_bound_and_map_given_the_place():
    method, b = create("conditional_vae", kl_weight=0.3), placed(0.2, 0.9)
    x = method.scaled(b).image
    told = waves(b.position.double(), 3)
    planes = told[:, :, None, None].expand(-1, -1, 16, 16)
    with torch.no_grad():
        mean, log_std = method.network.encode(torch.cat([x, planes], 1))
        drawn = mean + log_std.exp() * placed(0.2, 0.9).rng.normal(mean.shape)
        guess = method.network.decode(torch.cat([drawn, told], 1))
        restored = method.network.decode(torch.cat([mean, told], 1))
    kl = prior_distance(Normal(mean, log_std.exp())).sum(1)
    terms = method.loss(b, "", "")
    surprise = 0.5 * (x - guess).square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(terms["error"], surprise)
    torch.testing.assert_close(terms["kl"], 0.3 * kl.mean())
    torch.testing.assert_close(method.maps(b).map, (x - restored).abs())
    assert method.maps(b).score is None
    by_code = create("conditional_vae", score="code").maps(placed(0.2, 0.9)).score
    torch.testing.assert_close(by_code, kl)


@pytest.mark.parametrize("frequencies", [0, 2])
def test_the_place_changes_the_restoration_only_where_it_is_told(frequencies):
    method = create("conditional_vae", frequencies=frequencies)
    one, other = (method.maps(placed(at, at)).reconstruction for at in (0.1, 0.8))
    assert torch.equal(one, other) == (frequencies == 0)
