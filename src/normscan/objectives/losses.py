"""Losses of reconstructions, codes and critics. Each says how it reduces."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def per_image_sum(values: Tensor) -> Tensor:
    """Sum over each image, mean over the batch: a scalar."""
    return values.flatten(1).sum(1).mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor
) -> Tensor:
    """Mean of (||grad critic|| - 1)^2 between real and fake images (Gulrajani et al. 2017).

    Args:
        critic: images to numbers.
        real: (B, C, *spatial).
        fake: (B, C, *spatial).
        mix: (B,) uniform in [0, 1), share of the fake image.
    """
    share = mix.reshape(-1, *[1] * (real.ndim - 1))
    between = (real + share * (fake - real)).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def heteroscedastic(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """exp(-s) (x - mean)^2 + s per element, s the log variance (Mao et al. 2020).

    Twice the negative log density of a Gaussian, less a constant.
    """
    return (-log_variance).exp() * (x - mean).square() + log_variance
