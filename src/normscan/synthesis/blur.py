"""Gaussian blur: of a width of its own for each image, and as SciPy has it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_blur(
    x: Tensor,
    sigma: Tensor,
    kernel: tuple[int, ...],
    border: Literal["reflect", "constant"] = "reflect",
) -> Tensor:
    """Blur images with Gaussians cut to a small window.

    Args:
        x: (B, C, *spatial).
        sigma: (B,) standard deviation in pixels, above 0.
        kernel: odd length of the window along each axis, which is longer than half of it.
        border: ``reflect``, or ``constant`` for zeros.
    """
    for axis, n in zip(range(2, x.ndim), kernel, strict=True):
        at = torch.arange(n, device=x.device, dtype=x.dtype) - n // 2
        weights = torch.softmax(-at.square() / (2 * sigma.to(x)[:, None].square()), dim=1)
        lines = x.movedim(axis, -1)
        padded = F.pad(lines.flatten(1, -2), (n // 2, n // 2), mode=border)
        # Images stand as channels, so that each has its own filter; its lines are the batch.
        smooth = F.conv1d(padded.transpose(0, 1), weights[:, None], groups=len(x)).transpose(0, 1)
        x = smooth.reshape(lines.shape).movedim(-1, axis)
    return x


def smooth(x: Tensor, sigma: float = 2.0) -> Tensor:
    """Gaussian filter of (B, 1, H, W) as SciPy's: cut at 4 deviations, borders mirrored."""
    reach = int(4 * sigma + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).to(x)
    for axis in (2, 3):
        n = x.shape[axis]
        at = torch.arange(-reach, n + reach, device=x.device) % (2 * n)
        padded = x.index_select(axis, torch.minimum(at, 2 * n - 1 - at))
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        x = F.conv2d(padded, weights.reshape(shape))
    return x
