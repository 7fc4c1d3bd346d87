"""Gaussian blur of a width of its own for each image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_blur(
    x: Tensor,
    sigma: Tensor,
    kernel: tuple[int, int],
    border: Literal["reflect", "constant"] = "reflect",
) -> Tensor:
    """Blur images with Gaussians cut to a small window.

    Args:
        x: (B, C, H, W).
        sigma: (B,) standard deviation in pixels, above 0.
        kernel: odd height and width of the window; each axis is longer than half of it.
        border: ``reflect``, or ``constant`` for zeros.
    """
    batch, channels = x.shape[:2]
    for axis, n in zip((2, 3), kernel, strict=True):
        at = torch.arange(n, device=x.device, dtype=x.dtype) - n // 2
        weights = torch.softmax(-at.square() / (2 * sigma.to(x)[:, None].square()), dim=1)
        shape = (batch, 1, n, 1) if axis == 2 else (batch, 1, 1, n)
        weights = weights.reshape(shape).repeat_interleave(channels, dim=0)
        pads = (0, 0, n // 2, n // 2) if axis == 2 else (n // 2, n // 2, 0, 0)
        folded = F.pad(x, pads, mode=border).flatten(0, 1)[None]
        x = F.conv2d(folded, weights, groups=batch * channels)[0].unflatten(0, (batch, channels))
    return x
