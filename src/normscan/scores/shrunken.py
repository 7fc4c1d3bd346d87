"""One Gaussian with a shrunken covariance over vectors, and its squared distance."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError


class ShrunkenGaussian(nn.Module):
    """Mean and covariance of vectors, the latter by Ledoit and Wolf (2004).

    Before it is fitted it is a standard normal.

    Args:
        dim: of the vectors.
    """

    mean: Tensor
    precision: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("precision", torch.eye(dim))

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fit to vectors (B, dim), batch by batch.

        Raises:
            ArgumentError: there are none.
        """
        from sklearn.covariance import LedoitWolf

        rows = [batch.detach().double().cpu() for batch in batches]
        if not rows:
            raise ArgumentError("a Gaussian needs at least one training image.")
        found = LedoitWolf().fit(torch.cat(rows).numpy())
        self.mean.copy_(torch.from_numpy(found.location_))
        self.precision.copy_(torch.from_numpy(found.precision_))

    def forward(self, x: Tensor) -> Tensor:
        """Half the squared Mahalanobis distance (B,) of vectors (B, dim)."""
        centred = (x - self.mean).double()
        return (0.5 * (centred @ self.precision.double() * centred).sum(1)).float()
