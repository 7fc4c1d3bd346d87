"""Structural similarity of images and volumes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.errors import ArgumentError


def ssim_map(
    x: Tensor, y: Tensor, window: int = 11, sigma: float = 1.5, data_range: float = 1.0
) -> Tensor:
    """Structural similarity with a Gaussian window, where the window lies inside the image.

    Wang et al., IEEE TIP 2004: K1 = 0.01, K2 = 0.03, population covariance.

    Args:
        x: (B, C, *spatial), 2D or 3D.
        y: of the same shape.
        window: side of the window in pixels, odd.
        sigma: standard deviation of the window in pixels.
        data_range: largest minus smallest possible value.

    Returns:
        (B, C, *(spatial - window + 1)), -1 to 1, each channel on its own.

    Raises:
        ArgumentError: an axis is shorter than the window.
    """
    if min(x.shape[2:]) < window:
        raise ArgumentError(
            f"an image of {' x '.join(map(str, x.shape[2:]))} is smaller than the {window} pixels "
            f"of the SSIM window. Use a size of at least {window}."
        )
    dims = x.ndim - 2
    convolve = (F.conv2d, F.conv3d)[dims - 2]
    offset = torch.arange(window, device=x.device, dtype=x.dtype) - (window - 1) / 2
    kernel = (-0.5 * (offset / sigma) ** 2).exp()
    kernel = kernel / kernel.sum()
    moments = torch.stack([x, y, x * x, y * y, x * y])
    # Grouped over the channels: many times faster than one plane at a time where there are many.
    means, channels = moments.flatten(0, 1), x.shape[1]
    for axis in range(dims):  # A Gaussian window is a product of one-dimensional ones.
        shape = [1] * dims
        shape[axis] = window
        weight = kernel.reshape(1, 1, *shape).expand(channels, -1, *[-1] * dims)
        means = convolve(means, weight, groups=channels)
    mx, my, xx, yy, xy = means.reshape(*moments.shape[:3], *means.shape[2:])
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    rest = (2 * (xy - mx * my) + c2) / (xx - mx * mx + yy - my * my + c2)
    return luminance * rest


def ssim_residual(
    x: Tensor, restored: Tensor, window: int = 11, sigma: float = 1.5, data_range: float = 1.0
) -> Tensor:
    """1 - SSIM averaged over the channels and enlarged linearly to the image, (B, 1, *spatial).

    The border of half a window has no value of its own: the map of the inner part is stretched
    over the whole image, as in the codes of the field. Arguments as for ``ssim_map``.
    """
    map = 1 - ssim_map(x, restored, window, sigma, data_range).mean(1, keepdim=True)
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    return F.interpolate(map, x.shape[2:], mode=mode, align_corners=False)
