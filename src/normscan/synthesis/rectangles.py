"""Artificial anomalies: bright rectangles, and images of another contrast to compare them with.

Pure functions of images and a source of randomness. A rectangle is a cuboid in three dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normscan.rng import Rng

# Pixels of an image of 128 (Bercea et al. 2022); the third axis is our choice.
_STARTS = ((20, 90), (30, 90), (20, 90))
_SHORTEST = 3


def rectangles(
    n: int, spatial: Sequence[int], rng: Rng, most: int = 3, longest: int = 20
) -> Tensor:
    """Draw 1 to ``most`` rectangles in each image.

    The sides are 3 to ``longest`` pixels of 128, the first corner lies from 20 to 90 on the first axis and
    from 30 to 90 on the second; all scale with the size, upper ends excluded.

    Args:
        n: number of images.
        spatial: their size in pixels.
        rng: source of randomness.
        most: rectangles in an image at most.
        longest: side in pixels of 128.

    Returns:
        (n, most, *spatial) bool, empty where an image has fewer.
    """
    drawn = torch.arange(most)[None] < rng.integers(1, most + 1, (n, 1))
    mask = drawn.reshape(n, most, *[1] * len(spatial))
    for axis, size in enumerate(spatial):
        low, high, least, end = (
            max(1, round(pixels * size / 128)) for pixels in (*_STARTS[axis], _SHORTEST, longest)
        )
        start = rng.integers(low, max(low + 1, high), (n, most))[..., None]
        side = rng.integers(least, max(least + 1, end), (n, most))[..., None]
        at = torch.arange(size)
        shape = [n, most, *[1] * len(spatial)]
        shape[axis + 2] = size
        mask = mask & ((at >= start) & (at < start + side)).reshape(shape)
    return mask


def bright_values(
    image: Tensor,
    foreground: Tensor,
    rng: Rng,
    most: int = 3,
    span: tuple[float, float] = (1.25, 2),
) -> Tensor:
    """Draw an intensity brighter than the foreground's mean for each rectangle.

    Args:
        image: (B, C, *spatial).
        foreground: (B, 1, *spatial) bool.
        rng: source of randomness.
        most: rectangles in an image.
        span: multiples of the mean, uniform between them.

    Returns:
        (B, C, most); the channels of an image share the multiples.
    """
    inside = foreground.flatten(2)
    mean = (image.flatten(2) * inside).sum(2) / inside.sum(2).clamp_min(1)
    factors = span[0] + (span[1] - span[0]) * rng.uniform((len(image), most)).to(image)
    return mean[..., None] * factors[:, None]


def painted(image: Tensor, masks: Tensor, values: Tensor) -> Tensor:
    """Fill areas with one intensity each; a later one covers an earlier one.

    Args:
        image: (B, C, *spatial).
        masks: (B, K, *spatial) bool.
        values: (B, C, K).
    """
    ones = [1] * (image.ndim - 2)
    for mask, value in zip(masks.unbind(1), values.unbind(2), strict=True):
        image = torch.where(mask[:, None], value.reshape(*value.shape, *ones), image)
    return image


def gamma_shifted(image: Tensor, gamma: Tensor) -> Tensor:
    """Return m (x / m)^gamma, m the image's maximum: another contrast, the same range.

    Args:
        image: (B, C, *spatial); negative values become 0.
        gamma: (B,) above 0.
    """
    ones = [1] * (image.ndim - 1)
    top = image.flatten(1).amax(1).clamp_min(1e-6).reshape(-1, *ones)
    return top * (image.clamp_min(0) / top).pow(gamma.reshape(-1, *ones))
