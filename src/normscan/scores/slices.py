"""A Gaussian with a shrunken covariance for each slice of a volume, stored by its axes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError

NEGLIGIBLE = 1e-10  # of the largest variance along an axis


class SliceGaussians(nn.Module):
    """Mean and covariance of vectors at each position, the latter by Ledoit and Wolf (2004).

    From n vectors a covariance has n - 1 axes along which it is more than its ridge, so that the
    distance to it is known from these: n * dim numbers a position in place of dim * dim. Where all
    vectors are equal the distance is 0, as with the pseudo-inverse. Before it is fitted it is a
    standard normal.

    Args:
        positions: number of Gaussians.
        dim: of the vectors.
    """

    mean: Tensor
    axes: Tensor
    gain: Tensor
    beside: Tensor

    def __init__(self, positions: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(positions, dim))
        self.register_buffer("axes", torch.zeros(positions, 0, dim))
        # Inverse variance along the axes beyond the one in all other directions.
        self.register_buffer("gain", torch.zeros(positions, 0))
        self.register_buffer("beside", torch.ones(positions))

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fit to vectors (B, positions, dim), batch by batch.

        Raises:
            ArgumentError: there are fewer than two.
        """
        from sklearn.covariance import ledoit_wolf_shrinkage

        rows = [batch.detach().float().cpu() for batch in batches]
        every = torch.cat(rows) if rows else torch.zeros(0, 1, 1)
        if len(every) < 2:
            raise ArgumentError(
                f"a covariance of slices needs at least two training volumes; there are {len(every)}."
            )
        n, positions, dim = every.shape
        most = min(n - 1, dim)
        mean = every.double().mean(0)
        axes, gain, beside = [], [], []
        for place in range(positions):
            centred = every[:, place].double() - mean[place]
            variance = float(centred.square().sum() / n / dim)
            shrunken = float(ledoit_wolf_shrinkage(centred.numpy(), assume_centered=True))
            _, sizes, along = torch.linalg.svd(centred, full_matrices=False)
            values = (sizes.square() / n)[:most]
            ridge = shrunken * variance
            kept = (1 - shrunken) * values > NEGLIGIBLE * max(float(values.max()), 1e-300)
            rest = 1 / ridge if ridge > NEGLIGIBLE * float(values.max()) else 0.0
            inverse = torch.where(
                kept, 1 / ((1 - shrunken) * values + ridge).clamp_min(1e-300), rest
            )
            axes.append(along[:most].float())
            gain.append((inverse - rest).float())
            beside.append(rest)
        self.mean, self.axes = mean.float().to(self.mean), torch.stack(axes).to(self.mean)
        self.gain, self.beside = torch.stack(gain).to(self.mean), torch.tensor(beside).to(self.mean)

    def forward(self, x: Tensor) -> Tensor:
        """Mahalanobis distances (B, positions) of vectors (B, positions, dim)."""
        centred = (x - self.mean).double()
        along = torch.einsum("bpd,prd->bpr", centred, self.axes.double()).square()
        square = centred.square().sum(2) * self.beside.double()
        square = square + (along * self.gain.double()).sum(2)
        return square.clamp_min(0).sqrt().to(x)
