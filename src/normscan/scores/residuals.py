"""Residual maps that need more than the image and its restoration."""

from __future__ import annotations

from torch import Tensor


def normalised_squared(x: Tensor, restored: Tensor, log_variance: Tensor) -> Tensor:
    """exp(-s) (x - x^)^2 averaged over the channels, (B, 1, *spatial) (Mao et al. 2020).

    The squared residual in units of the variance that the network expects there.

    Args:
        x: (B, C, *spatial).
        restored: of the same shape.
        log_variance: s, of the same shape.
    """
    return ((-log_variance).exp() * (x - restored).square()).mean(dim=1, keepdim=True)
