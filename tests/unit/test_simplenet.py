"""SimpleNet's loss, rates and score, written out by hand."""

from __future__ import annotations

import pytest
import torch

from normscan.methods.base import Batch
from normscan.registry import card
from normscan.rng import Rng


def build(**changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return card("simplenet").create(**card("simplenet").arguments("tiny", **changes))


def batch(n: int = 2, seed: int = 1):
    image = torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(seed))
    return Batch(image, image > -1, Rng(0), torch.full((n,), 0.5))


def test_simplenet_loss_by_hand():
    method = build(weight_decay=0.1)
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
    method = build()
    (phase,) = method.phases()
    (player,) = phase.players
    slow, fast = player.optimizer(player.parameters()).param_groups
    assert {id(p) for p in slow["params"]} == {id(p) for p in method.adaptor.parameters()}
    assert (slow["lr"], slow["weight_decay"]) == (1e-4, 0.01)
    assert (fast["lr"], fast["weight_decay"]) == (2e-3, 0.0)
    assert len(fast["params"]) == len(list(method.discriminator.parameters()))


def test_simplenet_score_is_the_highest_patch():
    method = build().eval()
    maps = method.maps(batch())
    patches = method.patches(batch().image)[0]
    d = method.discriminator(patches.flatten(0, 1)).reshape(2, 256)
    torch.testing.assert_close(maps.map.flatten(1), 0.5 - d)
    torch.testing.assert_close(maps.score, 0.5 - d.amin(1))
