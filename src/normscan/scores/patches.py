"""Patches of images and back: cut with overlap, put together as the mean of what overlaps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.errors import ArgumentError


def check_cover(size: int, length: int, stride: int) -> None:
    """See that windows of this length and stride end where the image ends.

    Raises:
        ArgumentError: pixels would be left over; names a size that fits.
    """
    if size < length or (size - length) % stride:
        near = length + max(0, round((size - length) / stride)) * stride
        raise ArgumentError(
            f"size={size}: windows of {length} pixels every {stride} don't cover it. Use size={near}."
        )


def extract(x: Tensor, shape: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Cut images (B, C, H, W) into patches (B, N, C, *shape), row by row."""
    columns = F.unfold(x, shape, stride=stride)
    return columns.transpose(1, 2).unflatten(2, (x.shape[1], *shape))


def assemble(patches: Tensor, size: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Put the patches of ``extract`` together; a pixel is the mean of the patches that cover it.

    Args:
        patches: (B, N, C, h, w).
        size: (H, W) of the images.
        stride: that they were cut with.

    Returns:
        (B, C, H, W), zero where no patch lies.
    """
    shape = (patches.shape[3], patches.shape[4])
    total = F.fold(patches.flatten(2).transpose(1, 2), size, shape, stride=stride)
    ones = torch.ones(1, shape[0] * shape[1], patches.shape[1]).to(patches)
    return total / F.fold(ones, size, shape, stride=stride).clamp_min(1)
