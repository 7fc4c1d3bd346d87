"""Boundaries of layers that lie one below the other: where a network sees them, and their shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def first_rows(labels: Tensor, boundaries: int) -> tuple[Tensor, Tensor]:
    """Rows of the boundaries of ordered layers, and where there are any.

    Args:
        labels: (B, H, W), growing downwards.
        boundaries: number of boundaries K; the k-th lies above the first pixel of label k or more.

    Returns:
        (B, K, W) rows, and bool of the same shape.
    """
    reached = torch.stack([labels >= k for k in range(1, boundaries + 1)], dim=1)
    return reached.int().argmax(2), reached.any(2)


def ordered_rows(chances: Tensor) -> Tensor:
    """Expected rows (B, K, W) of boundaries, none above an earlier one.

    Args:
        chances: (B, K, H, W) that sum to 1 along the rows.
    """
    rows = torch.arange(chances.shape[2], device=chances.device, dtype=chances.dtype)
    expected = (chances * rows[:, None]).sum(2)
    return expected.cummax(1).values


def disagreement(chances: Tensor, rows: Tensor) -> Tensor:
    """Chance that a boundary lies on the other side of a pixel than given rows, summed, (B, 1, H, W).

    Its sum down a column is the expected distance of the boundaries from the rows, rounded up.

    Args:
        chances: (B, K, H, W) that sum to 1 along the rows.
        rows: (B, K, W).
    """
    at = torch.arange(chances.shape[2], device=chances.device, dtype=chances.dtype)
    below = (at[:, None] >= rows[:, :, None]).to(chances)
    return (chances.cumsum(2) - below).abs().sum(1, keepdim=True)


class ShapeModel(nn.Module):
    """Mean and main directions of healthy boundaries, relative to the last one's mean row.

    Args:
        numbers: K * W of the boundaries' rows.
        components: directions that are kept.
    """

    mean: Tensor
    directions: Tensor

    def __init__(self, numbers: int, components: int) -> None:
        super().__init__()
        self.components = components
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("directions", torch.zeros(components, numbers))

    def fit(self, rows: Tensor) -> None:
        """Learn from rows (N, K, W) of healthy images."""
        flat = self._flat(rows)
        self.mean.copy_(flat.mean(0))
        _, _, directions = torch.linalg.svd(flat - self.mean, full_matrices=False)
        found = directions[: self.components]
        self.directions.zero_()
        self.directions[: len(found)] = found

    def forward(self, rows: Tensor) -> Tensor:
        """The nearest healthy shape of rows (B, K, W)."""
        apart = self._flat(rows) - self.mean
        near = self.mean + apart @ self.directions.T @ self.directions
        return near.reshape(rows.shape) + rows[:, -1:].mean(2, keepdim=True)

    @staticmethod
    def _flat(rows: Tensor) -> Tensor:
        return (rows - rows[:, -1:].mean(2, keepdim=True)).flatten(1)
