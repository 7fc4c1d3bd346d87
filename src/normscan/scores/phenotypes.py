"""Numbers that describe a scan: extent, intensities, edges, and the same by region."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def count(channels: int, dims: int, cells: int) -> int:
    """How many numbers ``phenotypes`` gives."""
    return channels * (3 + len(QUANTILES) + 2 * cells**dims) + 1 + cells**dims


def phenotypes(image: Tensor, foreground: Tensor, cells: int = 3) -> Tensor:
    """Describe images by the values inside their foreground.

    In this order: share of foreground in the image; for each channel mean, standard deviation, the
    quantiles and the edge energy (mean absolute difference of neighbours in the foreground); for
    each cell of a regular grid its share of foreground, and for each channel its mean and standard
    deviation, those of the whole foreground where a cell has none.

    Args:
        image: (B, C, *spatial).
        foreground: (B, 1, *spatial) bool; where it is empty the whole image counts.
        cells: along each axis.

    Returns:
        (B, ``count(C, dims, cells)``) float64.
    """
    x = image.double().flatten(2)
    mask = foreground.flatten(2)
    mask = mask | ~mask.any(2, keepdim=True)
    n = mask.sum(2)
    mean, deviation = _moments(x, mask, torch.zeros_like(mask[0, 0], dtype=torch.long), 1)[1:]
    ordered = x.masked_fill(~mask, torch.inf).sort(2).values
    places = torch.tensor(QUANTILES, device=x.device) * (n - 1)
    quantiles = ordered.gather(2, places.round().long()[:, None].expand(-1, x.shape[1], -1))
    edges = _edges(image.double(), mask.reshape(foreground.shape))
    number = _cells(image.shape[2:], cells).to(x.device)
    shares, means, deviations = _moments(x, mask, number, cells ** (image.ndim - 2))
    empty = shares == 0
    means = torch.where(empty, mean, means)
    deviations = torch.where(empty, deviation, deviations)
    regions = torch.cat([shares, torch.stack([means, deviations], 2).flatten(1, 2)], 1)
    parts = (
        mask.double().mean(2), torch.cat([mean, deviation], 2), quantiles, edges,
        regions.transpose(1, 2),
    )  # fmt: skip
    return torch.cat([part.flatten(1) for part in parts], 1)


def _cells(shape: Sequence[int], cells: int) -> Tensor:
    """Number of the cell that each pixel lies in, flattened."""
    number = torch.zeros((), dtype=torch.long)
    for n in shape:
        bounds = torch.tensor([round(n * i / cells) for i in range(1, cells)])
        along = torch.bucketize(torch.arange(n), bounds, right=True)
        number = number[..., None] * cells + along
    return number.flatten()


def _moments(x: Tensor, mask: Tensor, number: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Share of the mask (B, 1, cells), mean and standard deviation (B, C, cells) by cell."""

    def total(values: Tensor) -> Tensor:
        zeros = values.new_zeros((*values.shape[:2], cells))
        return zeros.index_add_(2, number, values)

    inside, size = total(mask.double()), total(torch.ones_like(mask[:1], dtype=torch.double))
    n = inside.clamp_min(1)
    mean = total(x * mask) / n
    away = (x - mean[..., number]) * mask
    return inside / size.clamp_min(1), mean, (total(away.square()) / n).sqrt()


def _edges(x: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference between neighbours that both lie in the mask, (B, C)."""
    total, pairs = x.new_zeros(x.shape[:2]), x.new_zeros(len(x), 1)
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        both = mask.narrow(axis, 0, n - 1) & mask.narrow(axis, 1, n - 1)
        total += (x.diff(dim=axis).abs() * both).flatten(2).sum(2)
        pairs += both.flatten(1).sum(1, keepdim=True)
    return total / pairs.clamp_min(1)
