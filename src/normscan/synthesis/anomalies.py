"""Artificial anomalies: disks of one intensity, and disks whose texture is changed.

Pure functions of images, places and a source of randomness. A disk is a ball in three dimensions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from normscan.rng import Rng


def random_places(foreground: Tensor, rng: Rng) -> Tensor:
    """Draw a pixel of the foreground in each image.

    Args:
        foreground: (B, 1, *spatial) bool, somewhere true in each image.
        rng: source of randomness.

    Returns:
        (B, dims) indices.
    """
    shares = rng.uniform((len(foreground), 1)).to(foreground.device)
    return torch.stack(
        [
            inside[int(share * len(inside))]
            for inside, share in zip(
                (f[0].nonzero() for f in foreground), shares[:, 0], strict=True
            )
        ]
    )


def _offsets(places: Tensor, spatial: tuple[int, ...]) -> Tensor:
    """Vectors from each image's place to its pixels, (B, dims, *spatial)."""
    axes = torch.meshgrid(*[torch.arange(n) for n in spatial], indexing="ij")
    grid = torch.stack(axes).to(places.device)
    return grid[None] - places.reshape(*places.shape, *[1] * len(spatial))


def disks(foreground: Tensor, places: Tensor, radius: float) -> Tensor:
    """Disks around places, clipped to the foreground.

    Args:
        foreground: (B, 1, *spatial) bool.
        places: (B, dims) centres.
        radius: in pixels; nearer pixels than this belong to the disk.

    Returns:
        (B, 1, *spatial) bool.
    """
    squared = _offsets(places, tuple(foreground.shape[2:])).square().sum(1, keepdim=True)
    return foreground & (squared < radius**2)


def filled(image: Tensor, mask: Tensor, intensity: float | Tensor) -> Tensor:
    """Return (B, C, *spatial) with one intensity inside a mask (B, 1, *spatial)."""
    return torch.where(mask, torch.as_tensor(intensity).to(image), image)


def deformed(
    image: Tensor, mask: Tensor, places: Tensor, radius: float, kind: Literal["source", "sink"]
) -> Tensor:
    """Move the pixels inside disks away from the centre (source) or towards it (sink).

    At an offset v from the centre c and with s = |v|^2 / radius^2 a pixel takes the value of the
    pixel nearest to c + s v (source) or c + v + (1 - s) v (sink), clipped to the image (Meissen et
    al. 2022).

    Args:
        image: (B, C, *spatial).
        mask: (B, 1, *spatial) bool, the pixels that change.
        places: (B, dims) centres.
        radius: of the disks, in pixels.
        kind: of the deformation.
    """
    spatial = tuple(image.shape[2:])
    v = _offsets(places, spatial).float()
    s = v.square().sum(1, keepdim=True) / radius**2
    centre = places.reshape(*places.shape, *[1] * len(spatial)).float()
    moved = centre + (s * v if kind == "source" else (2 - s) * v)
    flat = torch.zeros_like(mask[:, 0], dtype=torch.long)
    for axis, n in enumerate(spatial):
        flat = flat * n + moved[:, axis].round().long().clamp(0, n - 1)
    index = flat.flatten(1)[:, None].expand(-1, image.shape[1], -1)
    taken = image.flatten(2).gather(2, index).reshape(image.shape)
    return torch.where(mask, taken, image)


def shuffled(image: Tensor, mask: Tensor, rng: Rng) -> Tensor:
    """Shuffle the pixels inside a mask, all channels of a pixel together.

    Args:
        image: (B, C, *spatial).
        mask: (B, 1, *spatial) bool.
        rng: source of randomness.
    """
    result = image.clone().flatten(2)
    keys = rng.uniform((len(image), mask[0].numel())).to(image.device)
    for x, inside, key in zip(result, mask.flatten(1), keys, strict=True):
        places = inside.nonzero()[:, 0]
        x[:, places] = x[:, places[key[places].argsort()]]
    return result.reshape(image.shape)
