"""Losses against torch.distributions and closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from normscan.networks.divergences import kl_standard_normal
from normscan.objectives.losses import gradient_penalty, per_image_sum


def test_divergence_against_torch():
    mean, log_std = torch.randn(4, 6), torch.randn(4, 6)
    expected = kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_standard_normal(mean, log_std), expected)
    assert kl_standard_normal(torch.zeros(1), torch.zeros(1)).item() == 0


def test_sum_over_images_and_mean_over_the_batch():
    values = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert per_image_sum(values).item() == sum(range(24)) / 2


@pytest.mark.parametrize("norm", [0.25, 1.0, 3.0])
def test_penalty_of_a_linear_critic(norm):
    weight = torch.randn(1, 2 * 5 * 5)
    weight *= norm / weight.norm()
    real, fake = torch.randn(4, 2, 5, 5), torch.randn(4, 2, 5, 5)
    penalty = gradient_penalty(lambda x: x.flatten(1) @ weight.T, real, fake, torch.rand(4))
    assert penalty.item() == pytest.approx((norm - 1) ** 2, abs=1e-5)


def test_penalty_of_a_quadratic_critic_is_taken_between_the_images():
    real, fake = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    mix = torch.tensor([0.0, 0.3, 1.0])
    penalty = gradient_penalty(lambda x: 0.5 * x.square().flatten(1).sum(1), real, fake, mix)
    # The gradient of the critic is the image itself.
    points = [(1 - m) * r + m * f for m, r, f in zip(mix, real, fake, strict=True)]
    expected = sum((p.norm() - 1) ** 2 for p in points) / 3
    torch.testing.assert_close(penalty, expected)


def test_penalty_reaches_the_critic_and_not_the_images():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))
    real, fake = (torch.randn(2, 1, 4, 4, requires_grad=True) for _ in range(2))
    gradient_penalty(critic, real, fake, torch.rand(2)).backward()
    assert critic[1].weight.grad.abs().sum() > 0
    assert real.grad is None and fake.grad is None
