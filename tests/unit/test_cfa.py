"""CFA's centres, loss and score, written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from normscan.methods.base import Batch
from normscan.methods.features.cfa import CentreBank, CoordConv, Radius, Spheres, softmin_score
from normscan.networks.aggregation import vectors
from normscan.registry import card
from normscan.rng import Rng


def build(**changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return card("cfa").create(**card("cfa").arguments("tiny", **changes))


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
    method = build()
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
    terms = Radius(Spheres(3, 3, nu, margin), r)(torch.tensor(expected))
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
