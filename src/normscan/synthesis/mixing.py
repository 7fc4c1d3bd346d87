"""Artificial anomalies from other images: patches of one image laid over another."""

from __future__ import annotations

import torch
from torch import Tensor

from normscan.rng import Rng


def square_patches(
    n: int,
    spatial: tuple[int, ...],
    rng: Rng,
    core: float = 0.8,
    half_width: tuple[float, float] = (0.05, 0.2),
) -> Tensor:
    """Draw a square (a cube in three dimensions) in each image, clipped at its border.

    Args:
        n: number of images.
        spatial: their size in pixels.
        rng: source of randomness.
        core: central share of each axis in which the centres lie.
        half_width: of the square, as shares of the shortest axis, rounded to pixels; the upper end
            excluded.

    Returns:
        (n, 1, *spatial) bool.
    """
    least, most = (round(share * min(spatial)) for share in half_width)
    least = max(1, least)
    most = max(least + 1, most)
    half = rng.integers(least, most, (n, 1))
    mask = torch.ones(n, 1, *spatial, dtype=torch.bool)
    for axis, size in enumerate(spatial):
        # Both ends are cut to whole pixels, as in the release; 0.2 / 2 is a bit less than 0.1.
        first, end = (int((1 + sign * core) / 2 * size + 1e-9) for sign in (-1, 1))
        centre = rng.integers(first, max(first + 1, end), (n, 1))
        at = torch.arange(size)[None]
        inside = (at >= centre - half) & (at < centre + half)
        shape = [n, 1, *[1] * len(spatial)]
        shape[axis + 2] = size
        mask &= inside.reshape(shape)
    return mask


def patch_mix(
    image: Tensor, partner: Tensor, rng: Rng, probability: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Blend a square patch of another image into each: (1 - a M) x + a M y, a uniform in 0..1.

    The foreign-patch interpolation of Tan et al. (2020) as Cai et al. (2023) draw it: centre in the
    central 80 %, half-width from 5 to 20 % of the side.

    Args:
        image: x, (B, C, *spatial).
        partner: y, of the same shape.
        rng: source of randomness.
        probability: of a patch; the other images stay as they are.

    Returns:
        Mixed images and masks (B, 1, *spatial) of the changed pixels, bool.
    """
    n, spatial = len(image), tuple(image.shape[2:])
    ones = [1] * len(spatial)
    mask = square_patches(n, spatial, rng) & (rng.uniform((n, 1, *ones)) < probability)
    share = rng.uniform((n, 1, *ones)) * mask
    share, mask = share.to(image), mask.to(image.device)
    return image + share * (partner - image), mask & (share > 0)
