"""Kullback-Leibler divergences of normal distributions in closed form."""

from __future__ import annotations

from torch import Tensor


def kl_standard_normal(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) per element: (mean^2 + std^2 - log std^2 - 1) / 2."""
    return 0.5 * (mean.square() + (2 * log_std).exp() - 2 * log_std - 1)


def kl_normals(mean: Tensor, log_std: Tensor, of_mean: Tensor, of_log_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(of_mean, of_std^2)) per element."""
    narrower = of_log_std - log_std
    away = (mean - of_mean) * (-of_log_std).exp()
    return narrower + 0.5 * ((-2 * narrower).exp() + away.square() - 1)
