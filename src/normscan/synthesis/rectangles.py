"""Artificial anomalies: bright rectangles, and images of another contrast to compare them with.

Pure functions of images and a source of randomness. A rectangle is a cuboid in three dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from normscan.rng import Rng

# Pixels of an image of 128, as in the release of Bercea et al. 2022; the third axis is our choice.
_STARTS = ((20, 90), (30, 90), (20, 90))
_SHORTEST = 3
_DARK = 0.15  # what is brighter counts for the intensity of rectangles


def rectangles(
    n: int, spatial: Sequence[int], rng: Rng, most: int = 3, longest: int = 20
) -> Tensor:
    """Draw up to ``most`` rectangles in each image, each with probability 0.5.

    The first side has 3 to ``longest`` pixels of 128, the others two to four thirds of it; the first
    corner lies from 20 to 90 on the first axis and from 30 to 90 on the second. All scale with the
    size, upper ends excluded.

    Args:
        n: number of images.
        spatial: their size in pixels.
        rng: source of randomness.
        most: rectangles in an image at most.
        longest: first side in pixels of 128.

    Returns:
        (n, most, *spatial) bool, empty where an image has fewer.
    """
    mask = (rng.uniform((n, most)) < 0.5).reshape(n, most, *[1] * len(spatial))
    first = rng.integers(_SHORTEST, max(_SHORTEST + 1, longest), (n, most))
    for axis, size in enumerate(spatial):
        least, end = 2 * first // 3, 4 * first // 3
        side = first if axis == 0 else least + (rng.uniform((n, most)) * (end - least)).long()
        low, high = (round(pixels * size / 128) for pixels in _STARTS[axis])
        start = rng.integers(low, max(low + 1, high), (n, most))
        side = (side * size / 128).round().clamp_min(1).long()
        at = torch.arange(size)
        shape = [n, most, *[1] * len(spatial)]
        shape[axis + 2] = size
        start, side = start[..., None], side[..., None]
        mask = mask & ((at >= start) & (at < start + side)).reshape(shape)
    return mask


def context_square(image: Tensor, rng: Rng, most: float = 0.5, share: float = 2 / 3) -> Tensor:
    """Hide one square of some images under one grey value (context encoding).

    Its side is uniform from 0 to ``most`` of the longest axis, its value uniform in the range of all
    images. It never touches the last pixel of an axis, as in Zimmerer's release.

    Args:
        image: (B, C, *spatial).
        rng: source of randomness.
        most: upper end of the side, as a share of the longest axis, excluded.
        share: of the images that have a square.
    """
    n, _, *spatial = image.shape
    ones = [1] * len(spatial)
    side = (rng.uniform((n, 1)) * int(most * max(spatial))).long()
    mask = (rng.uniform((n, 1)) < share).reshape(n, 1, *ones)
    for axis, size in enumerate(spatial):
        start = (rng.uniform((n, 1)) * (size - side)).long()
        at = torch.arange(size)
        shape = [n, 1, *ones]
        shape[axis + 2] = size
        mask = mask & ((at >= start) & (at < start + side)).reshape(shape)
    value = torch.lerp(image.min(), image.max(), rng.uniform((n, 1)).to(image))
    return torch.where(mask.to(image.device), value.reshape(n, 1, *ones), image)


Erasure = Literal["squares", "cuboids", "slabs"]


def erased(
    image: Tensor,
    foreground: Tensor,
    rng: Rng,
    kind: Erasure = "cuboids",
    count: int = 3,
    most: float = 0.5,
) -> Tensor:
    """Set boxes inside the bounding box of the foreground to 0 (spatial erasing).

    A side has 1 pixel to ``most`` of the bounding box along its axis.

    Args:
        image: (B, C, *spatial).
        foreground: (B, 1, *spatial) bool; where it is empty nothing is erased.
        rng: source of randomness.
        kind: ``squares`` of the first two axes, each slice its own, ``cuboids``, or ``slabs`` of
            whole slices; slices lie along the last axis. In the plane squares are cuboids and slabs
            are stripes.
        count: boxes, in each slice or volume.
        most: largest share of the bounding box along an axis.
    """
    spatial = image.shape[2:]
    n, dims = len(image), len(spatial)
    apart = spatial[-1] if kind == "squares" and dims == 3 else 1
    bounded = {"squares": range(2), "cuboids": range(dims), "slabs": range(dims - 1, dims)}[kind]
    gone = torch.zeros(n, *spatial, dtype=torch.bool)
    for _ in range(count):
        box = foreground.any(1).cpu()
        for axis in bounded:
            size = spatial[axis]
            seen = foreground.flatten(0, 1).movedim(axis + 1, 1).flatten(2).any(2).cpu()
            low = seen.int().argmax(1)[:, None]
            long = (seen * torch.arange(1, size + 1)).amax(1)[:, None] - low
            side = 1 + (rng.uniform((n, apart)) * (most * long).long().clamp_min(1)).long()
            start = low + (rng.uniform((n, apart)) * (long - side + 1)).long()
            at = torch.arange(size)
            within = (at >= start[..., None]) & (at < (start + side)[..., None])
            shape = [n, *[1] * dims]
            shape[axis + 1] = size
            shape[dims] = apart if axis < dims - 1 else shape[dims]
            within = within.movedim(1, -1) if axis < dims - 1 else within
            box = box & within.reshape(shape)
        gone |= box
    return torch.where(gone[:, None].to(image.device), 0, image)


def bright_values(image: Tensor, rng: Rng, most: int = 3) -> Tensor:
    """Draw the intensity of each rectangle among the image's bright ones.

    Uniform from the third quartile of what is above 0.15 up to 1.

    Args:
        image: (B, C, *spatial), 0 to 1.
        rng: source of randomness.
        most: rectangles in an image.

    Returns:
        (B, C, most); the channels of an image share the places in their spans.
    """
    bright = image.flatten(2).float()
    bright = torch.where(bright > _DARK, bright, torch.nan)
    # One image after the other: quantiles are limited in the numbers that they take.
    low = torch.stack([b.nanquantile(0.75, dim=1) for b in bright]).nan_to_num(1.0).clamp_max(1)
    share = rng.uniform((len(image), most)).to(image)[:, None]
    return torch.lerp(low[..., None].to(image), torch.ones_like(share), share)


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
