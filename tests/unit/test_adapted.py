"""CFA's centres, loss and score, and SimpleNet's loss, written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from normscan.methods.base import Batch
from normscan.methods.features.adapted import CentreBank, CoordConv, Radius, softmin_score
from normscan.networks.aggregation import vectors
from normscan.registry import card
from normscan.rng import Rng


def build(method: str, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return card(method).create(**card(method).arguments("tiny", **changes))


def batch(n: int = 2, seed: int = 1):
    image = torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(seed))
    return Batch(image, image > -1, Rng(0), torch.full((n,), 0.5))


def test_coordinates_run_from_minus_one_to_one():
    layer = CoordConv(3, 2)
    torch.nn.init.zeros_(layer.conv.bias)
    with torch.no_grad():
        layer.conv.weight.zero_()
        layer.conv.weight[0, 3] = 1
        layer.conv.weight[1, 4] = 1
    got = layer(torch.rand(2, 3, 3, 5))
    assert got[1, 0, :, 2].tolist() == [-1, 0, 1]
    assert got[1, 1, 1].tolist() == [-1, -0.5, 0, 0.5, 1]


def test_phase_of_centres_is_the_running_mean():
    """Of the first output over the batches, whatever they weigh."""
    method = build("cfa")
    phase = method.phases()[0]
    (player,) = phase.players
    optimizer = player.optimizer(player.parameters())
    means = []
    for step in range(4):
        one = batch(3, step)
        means.append(vectors(method.described(one.image)).detach().mean(0))
        optimizer.zero_grad()
        method.loss(one, phase.name, player.name)["running_mean"].backward()
        optimizer.param_groups[0]["lr"] = player.schedule(step, 4)
        optimizer.step()
    expected = torch.stack(means).mean(0)
    torch.testing.assert_close(method.bank.means.detach(), expected, rtol=1e-4, atol=1e-5)
    assert method.descriptor.conv.weight.grad is None


def test_loss_and_score_by_hand(rng):
    x, centres = rng.normal(size=(2, 7, 4)), rng.normal(size=(9, 4))
    bank = CentreBank(9, 4).double()
    bank.means.data = torch.tensor(centres)
    got = bank.nearest(torch.tensor(x), 6)
    expected = np.sort(cdist(x.reshape(-1, 4), centres, "sqeuclidean"), 1)[:, :6]
    np.testing.assert_allclose(got.flatten(0, 1).detach(), expected, rtol=1e-6)

    r, nu, margin = 1.9, 0.5, 0.1
    terms = Radius(r)(torch.tensor(expected), 3, nu, margin)
    pull = np.maximum(0, expected[:, :3] - r**2).mean() / nu
    push = np.maximum(0, r**2 - expected[:, 3:] - margin).mean() / nu
    assert terms["attraction"].item() == pytest.approx(pull, rel=1e-5)
    assert terms["repulsion"].item() == pytest.approx(push, rel=1e-5)
    assert pull > 0 and push > 0

    near = np.sqrt(expected[:, :3])
    weight = np.exp(-near[:, 0]) / np.exp(-near).sum(1)
    np.testing.assert_allclose(softmin_score(torch.tensor(near)), weight * near[:, 0])


def test_compressed_centres_are_those_of_groups():
    groups = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    bank = CentreBank(12, 2, compression=4)
    bank.means.data = (
        groups[:, None] + torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    ).reshape(12, 2)
    bank.compress()
    assert bank.few.shape == (3, 2)
    for group in groups:
        assert (bank.few - group).norm(dim=1).min() < 1e-4
    found = bank.few
    bank.means.data.add_(1)
    bank.compress()  # once
    assert bank.few is found
    assert bank.nearest(groups[None], 5).shape == (1, 3, 3)


def test_simplenet_loss_by_hand():
    method = build("simplenet", weight_decay=0.1)
    method.discriminator.train()
    one = batch()
    got = method.loss(one, "discriminate", "network")
    real = method.patches(one.image)[0].detach()
    assert real.shape == (2, 256, 128)
    noise = torch.randn(2, 256, 128, generator=torch.Generator().manual_seed(0))
    both = torch.cat([real, real + 0.2 * noise]).reshape(-1, 128)
    linear, norm, _, last = method.discriminator
    h = both @ linear.weight.T + linear.bias
    h = (h - h.mean(0)) / (h.var(0, unbiased=False) + norm.eps).sqrt()
    d = torch.where(h > 0, h, 0.2 * h) @ last.weight.T
    n = len(d) // 2
    torch.testing.assert_close(got["real"], (0.5 - d[:n]).clamp_min(0).mean())
    torch.testing.assert_close(got["noisy"], (0.5 + d[n:]).clamp_min(0).mean())
    squares = sum(float((p.detach() ** 2).sum()) for p in method.discriminator.parameters())
    assert got["weight_decay"].item() == pytest.approx(0.05 * squares, rel=1e-5)


def test_simplenet_trains_two_parts_at_two_rates_at_once():
    method = build("simplenet")
    (phase,) = method.phases()
    (player,) = phase.players
    slow, fast = player.optimizer(player.parameters()).param_groups
    assert {id(p) for p in slow["params"]} == {id(p) for p in method.adaptor.parameters()}
    assert (slow["lr"], slow["weight_decay"]) == (1e-4, 0.01)
    assert (fast["lr"], fast["weight_decay"]) == (2e-3, 0.0)
    assert len(fast["params"]) == len(list(method.discriminator.parameters()))


def test_simplenet_score_is_the_highest_patch():
    method = build("simplenet").eval()
    maps = method.maps(batch())
    patches = method.patches(batch().image)[0]
    d = method.discriminator(patches.flatten(0, 1)).reshape(2, 256)
    torch.testing.assert_close(maps.map.flatten(1), 0.5 - d)
    torch.testing.assert_close(maps.score, 0.5 - d.amin(1))
