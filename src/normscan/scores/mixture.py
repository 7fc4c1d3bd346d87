"""A mixture of Gaussians with full covariances, whose log density has gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError


class FullMixture(nn.Module):
    """Gaussians with full covariances over standardised vectors, fitted by scikit-learn.

    Before it is fitted all components are standard normal.

    Args:
        dim: of the vectors.
        components: Gaussians.
        ridge: added to the diagonal of each covariance.
        tolerance: of expectation maximisation, in the mean log density.
    """

    def __init__(
        self, dim: int, components: int, ridge: float = 1e-5, tolerance: float = 1e-2
    ) -> None:
        super().__init__()
        self.components, self.ridge, self.tolerance = components, ridge, tolerance
        self.shift: Tensor
        self.scale: Tensor
        self.mean: Tensor
        self.whiten: Tensor
        self.share: Tensor
        self.register_buffer("shift", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(dim, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(components, dim, dtype=torch.float64))
        whiten = torch.eye(dim, dtype=torch.float64).repeat(components, 1, 1)
        self.register_buffer("whiten", whiten)  # (x - mean) @ whiten is standard normal
        share = torch.full((components,), 1 / components, dtype=torch.float64)
        self.register_buffer("share", share)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fit to vectors (B, dim), batch by batch.

        Raises:
            ArgumentError: there are fewer than components, or than two.
        """
        from sklearn.mixture import GaussianMixture

        rows = [batch.detach().double().cpu() for batch in batches]
        x = torch.cat(rows) if rows else self.mean.new_zeros(0, self.mean.shape[1])
        if len(x) < max(2, self.components):
            raise ArgumentError(
                f"a mixture of {self.components} needs as many training images at least, and two; "
                f"there are {len(x)}. Add some, or use fewer components."
            )
        self.shift.copy_(x.mean(0))
        self.scale.copy_(x.std(0) + 1e-5)
        points = ((x - self.shift.cpu()) / self.scale.cpu()).numpy()
        found = GaussianMixture(
            self.components, tol=self.tolerance, reg_covar=self.ridge, max_iter=1000, random_state=0
        ).fit(points)
        self.mean.copy_(torch.from_numpy(found.means_))
        self.whiten.copy_(torch.from_numpy(found.precisions_cholesky_))
        self.share.copy_(torch.from_numpy(found.weights_))

    def forward(self, x: Tensor) -> Tensor:
        """-log p (B,) of vectors (B, dim), of the standardised ones, float64."""
        x = (x.double() - self.shift) / self.scale
        centred = x[None] - self.mean[:, None]  # (components, B, dim)
        squares = (centred @ self.whiten).square().sum(2)
        volume = self.whiten.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = self.share.log() + volume - 0.5 * x.shape[1] * math.log(2 * math.pi)
        return -torch.logsumexp(constant[:, None] - 0.5 * squares, dim=0)
