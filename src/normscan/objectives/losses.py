"""Losses of reconstructions, codes and critics. Each says how it reduces."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def per_image_sum(values: Tensor) -> Tensor:
    """Sum over each image, mean over the batch: a scalar."""
    return values.flatten(1).sum(1).mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor,
    axis: int | None = None,
) -> Tensor:  # fmt: skip
    """Mean of (||grad critic|| - 1)^2 between real and fake images (Gulrajani et al. 2017).

    Args:
        critic: images to numbers.
        real: (B, C, *spatial).
        fake: (B, C, *spatial).
        mix: (B,) uniform in [0, 1), share of the fake image.
        axis: the only one over which the norm is taken, then averaged over the others; None for all
            but the batch's.
    """
    share = mix.reshape(-1, *[1] * (real.ndim - 1))
    between = (real + share * (fake - real)).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    norm = gradient.flatten(1).norm(dim=1) if axis is None else gradient.norm(dim=axis)
    return (norm - 1).square().mean()


def heteroscedastic(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """exp(-s) (x - mean)^2 + s per element, s the log variance (Mao et al. 2020).

    Twice the negative log density of a Gaussian, less a constant.
    """
    return (-log_variance).exp() * (x - mean).square() + log_variance


def gaussian_surprise(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log N(x; mean, exp(s)) per element, s the log variance."""
    return 0.5 * (heteroscedastic(x, mean, log_variance) + math.log(2 * math.pi))


def beta_cross_entropy(
    squares: Tensor, values: int, beta: float, std: float = 1.0, constant: bool = True
) -> Tensor:
    """Cross entropy of the beta divergence between data and a Gaussian around restorations, (B,).

    -(beta + 1) / beta (p(x)^beta - 1) with p a normal density of ``values`` dimensions (Akrami et al.
    2022). As beta goes to 0 it becomes -log p(x); the larger it is, the less an image far away counts.

    Args:
        squares: squared error of each image, summed, (B,).
        values: numbers in an image.
        beta: 0 or more; 0 is the limit.
        std: deviation of the Gaussian.
        constant: count the constant factor of the density, a tiny number for large images.
    """
    log_density = -squares / (2 * std**2)
    if constant:
        log_density = log_density - values / 2 * math.log(2 * math.pi * std**2)
    if beta == 0:
        return -log_density
    return -(beta + 1) / beta * torch.expm1(beta * log_density)


def optimal_surprise(x: Tensor, restored: Tensor) -> Tensor:
    """-log N(x; restored, s) with the s that makes it least for each image, less a constant, (B,).

    That is half the number of values times the logarithm of the mean squared error (Rybkin et al.
    2021). The error counts as 1e-6 at least.
    """
    squares = (x - restored).square().flatten(1)
    return squares.shape[1] / 2 * squares.mean(1).clamp_min(1e-6).log()
