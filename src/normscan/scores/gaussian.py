"""A Gaussian at every position of a feature map, and the Mahalanobis distance to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normscan.errors import ArgumentError
from normscan.scores.counted import APART, Counted, told

# Numbers in a block of matrices that are factored or solved together: 256 MiB.
BLOCK = 2**26


@dataclass
class Sums:
    """What a covariance at each position is made of (Chan et al. 1979).

    Attributes:
        n: number of vectors.
        mean: of them (positions, dim).
        scatter: sum of the products of their deviations (positions, dim, dim).
    """

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> Sums:
        """The sums of vectors (B, positions, dim), batch by batch.

        Raises:
            ArgumentError: there are none.
        """
        found: Sums | None = None
        for batch in batches:
            x = batch.detach().float().transpose(0, 1)  # (positions, B, dim)
            if found is None:  # from its own mean, so that no large number is left to cancel
                dim = x.shape[2]
                found = cls(0, x.mean(1), torch.zeros(len(x), dim, dim, device=x.device))
            found.n += x.shape[1]
            before = x - found.mean[:, None]
            found.mean = found.mean + before.sum(1) / found.n
            found.scatter.baddbmm_(before.transpose(1, 2), x - found.mean[:, None])
        if found is None:
            raise ArgumentError("a Gaussian at each position needs at least one training image.")
        return found

    def join(self, other: Sums) -> None:
        """Take in the vectors of another."""
        apart = other.mean - self.mean
        weight = self.n * other.n / (self.n + other.n)
        self.n += other.n
        self.mean = self.mean + apart * (other.n / self.n)
        self.scatter += other.scatter
        self.scatter.baddbmm_(apart[:, :, None], apart[:, None], alpha=weight)

    def leave_out(self, total: Sums) -> None:
        """Become what is left of ``total``, which holds this one's vectors too."""
        left = total.n - self.n
        mean = total.mean + (total.mean - self.mean) * (self.n / left)
        apart = self.mean - mean
        self.scatter.neg_().add_(total.scatter)
        self.scatter.baddbmm_(apart[:, :, None], apart[:, None], alpha=-self.n * left / total.n)
        self.n, self.mean = left, mean


class PositionGaussians(Counted):
    """Mean and covariance of vectors at each position (PaDiM, Defard et al. 2021).

    Running sums of deviations need no second pass and no memory of the vectors (Chan et al. 1979).
    What is kept is the Cholesky factor of each covariance: positions * dim**2 numbers, and as many
    while it is fitted. Before that it is a standard normal at each position. After ``fit_folds``
    there is one Gaussian without each fold, and the numbers are as many times as many.

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
        sums = Sums.of(batches)
        self.mean, self.factor = sums.mean, self._factored(sums)
        self.count_as(sums.n)

    def update(self, batches: Iterable[Tensor]) -> None:
        """Add vectors to those that it was fitted to, as if all had come at once.

        After ``fit_folds`` they belong to no fold and join what each member knows.

        Raises:
            ArgumentError: there are none, or it doesn't say how many it was fitted to.
        """
        numbers, new = self.counted(), Sums.of(batches)
        several = self.mean.ndim == 3
        means, factors = [], []
        for n, mean, factor in zip(
            numbers,
            self.mean if several else self.mean[None],
            self.factor if several else self.factor[None],
            strict=True,
        ):
            sums = Sums(n, mean, self._scatter(factor, n))
            sums.join(new)
            means.append(sums.mean)
            factors.append(self._factored(sums))
        self.mean = torch.stack(means) if several else means[0]
        self.factor = torch.stack(factors) if several else factors[0]
        self.count_as(*(n + new.n for n in numbers))

    def merge(self, others: Sequence[Mapping[str, Tensor]]) -> None:
        """Add the vectors that others were fitted to, as if all had come at once.

        Args:
            others: of each the buffers, by name.

        Raises:
            ArgumentError: one doesn't say how many it was fitted to, or holds one without each fold.
        """
        if any(mean.ndim == 3 for mean in (self.mean, *(o["mean"] for o in others))):
            raise ArgumentError(APART)
        n = self.counted()[0]
        sums = Sums(n, self.mean, self._scatter(self.factor, n))
        for other in others:
            more = told(other["count"])[0]
            factor = other["factor"].to(self.factor)
            sums.join(Sums(more, other["mean"].to(self.mean), self._scatter(factor, more)))
        self.mean, self.factor = sums.mean, self._factored(sums)
        self.count_as(sums.n)

    def _scatter(self, factor: Tensor, n: int) -> Tensor:
        """What ``_factored`` made the factors (positions, dim, dim) of."""
        ridge = self.ridge * torch.eye(self.dim, device=factor.device)
        scatter = torch.empty_like(factor)
        rows = self._rows()
        for part, own in zip(scatter.split(rows), factor.split(rows), strict=True):
            own = own.double()  # the ridge may be larger than what is left of it
            part.copy_((own @ own.transpose(1, 2) - ridge) * max(1, n - 1))
        return scatter

    def fit_folds(self, folds: Sequence[Iterable[Tensor]]) -> None:
        """Fit without each fold of the vectors in turn, which are read once.

        Raises:
            ArgumentError: a fold without vectors.
        """
        parts = [Sums.of(fold) for fold in folds]
        total = Sums(0, torch.zeros_like(parts[0].mean), torch.zeros_like(parts[0].scatter))
        for part in parts:
            total.join(part)
        for part in parts:
            part.leave_out(total)
        del total
        self.mean = torch.stack([part.mean for part in parts])
        self.factor = torch.stack([self._factored(part) for part in parts])
        self.count_as(*(part.n for part in parts))

    def _factored(self, sums: Sums) -> Tensor:
        """The Cholesky factors (positions, dim, dim) of the covariances, in place of the sums."""
        ridge = self.ridge * torch.eye(self.dim, device=sums.scatter.device)
        for part in sums.scatter.split(self._rows()):  # views: the factors replace the sums
            # The sums are symmetric but for rounding.
            covariance = (part + part.transpose(1, 2)) / (2 * max(1, sums.n - 1)) + ridge
            part.copy_(torch.linalg.cholesky(covariance))
        return sums.scatter

    def forward(self, x: Tensor) -> Tensor:
        """Mahalanobis distances (B, positions) of vectors (B, positions, dim), at least 0."""
        return self._distances(x, self.mean, self.factor)

    def each(self, x: Tensor) -> list[Tensor]:
        """The distances to the Gaussians without each fold."""
        return [self._distances(x, *own) for own in zip(self.mean, self.factor, strict=True)]

    def _distances(self, x: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
        centred = (x.float() - mean).permute(1, 2, 0)  # (positions, dim, B)
        factor = factor.expand(len(centred), -1, -1)
        rows = self._rows()
        # |L^-1 (x - mean)| with covariance = L L^T
        parts = [
            torch.linalg.solve_triangular(f, c, upper=False).square().sum(1)
            for f, c in zip(factor.split(rows), centred.split(rows), strict=True)
        ]
        return torch.cat(parts).sqrt().T
