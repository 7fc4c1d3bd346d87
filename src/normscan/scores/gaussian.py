"""A Gaussian at every position of a feature map, and the Mahalanobis distance to it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from normscan.errors import ArgumentError
from normscan.scores.counted import Counted

# Numbers in a block of matrices that are factored or solved together: 256 MiB.
BLOCK = 2**26


class PositionGaussians(Counted):
    """Mean and covariance of vectors at each position (PaDiM, Defard et al. 2021).

    Running sums of deviations need no second pass and no memory of the vectors (Chan et al. 1979).
    What is kept is the Cholesky factor of each covariance: positions * dim**2 numbers, and as many
    while it is fitted. Before that it is a standard normal at each position.

    Args:
        dim: of the vectors.
        ridge: added to the diagonal of each covariance.
    """

    def __init__(self, dim: int, ridge: float = 0.01) -> None:
        super().__init__()
        self.dim, self.ridge = dim, ridge
        self.mean: Tensor
        self.factor: Tensor
        self.register_buffer("mean", torch.zeros(1, dim))
        self.register_buffer("factor", torch.eye(dim)[None])

    def _rows(self) -> int:
        """Positions in a block."""
        return max(1, BLOCK // self.dim**2)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fit to vectors (B, positions, dim), batch by batch.

        Raises:
            ArgumentError: there are none.
        """
        self._add(batches, 0, self.mean, self.factor)

    def update(self, batches: Iterable[Tensor]) -> None:
        """Add vectors to those that it was fitted to, as if all had come at once.

        Raises:
            ArgumentError: it doesn't say how many these were.
        """
        n = self.counted()
        ridge = self.ridge * torch.eye(self.dim, device=self.factor.device)
        scatter = torch.empty_like(self.factor)
        rows = self._rows()
        for part, factor in zip(scatter.split(rows), self.factor.split(rows), strict=True):
            part.copy_((factor @ factor.transpose(1, 2) - ridge) * max(1, n - 1))
        self._add(batches, n, self.mean, scatter)

    def _add(self, batches: Iterable[Tensor], n: int, mean: Tensor, scatter: Tensor) -> None:
        """Go on from the mean and the summed squares of deviations of n vectors at each position."""
        for batch in batches:
            x = batch.detach().float().transpose(0, 1)  # (positions, B, dim)
            if not n:  # from its own mean, so that no large number is left to cancel
                mean = x.mean(1)
                scatter = torch.zeros(len(x), self.dim, self.dim, device=x.device)
            n += x.shape[1]
            before = x - mean[:, None]
            mean = mean + before.sum(1) / n
            scatter.baddbmm_(before.transpose(1, 2), x - mean[:, None])
        if not n:
            raise ArgumentError("a Gaussian at each position needs at least one training image.")
        ridge = self.ridge * torch.eye(self.dim, device=scatter.device)
        for part in scatter.split(self._rows()):  # views: the factors replace the sums
            # The sums are symmetric but for rounding.
            covariance = (part + part.transpose(1, 2)) / (2 * max(1, n - 1)) + ridge
            part.copy_(torch.linalg.cholesky(covariance))
        self.mean, self.factor = mean, scatter
        self.count = torch.tensor(n)

    def forward(self, x: Tensor) -> Tensor:
        """Mahalanobis distances (B, positions) of vectors (B, positions, dim), at least 0."""
        centred = (x.float() - self.mean).permute(1, 2, 0)  # (positions, dim, B)
        factor = self.factor.expand(len(centred), -1, -1)
        rows = self._rows()
        # |L^-1 (x - mean)| with covariance = L L^T
        parts = [
            torch.linalg.solve_triangular(f, c, upper=False).square().sum(1)
            for f, c in zip(factor.split(rows), centred.split(rows), strict=True)
        ]
        return torch.cat(parts).sqrt().T
