"""Artificial anomalies with the outlines of Perlin noise and a foreign texture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normscan.rng import Rng


def perlin_noise(
    size: Sequence[int], gradients: Tensor, scales: Tensor, angles: Tensor | None = None
) -> Tensor:
    """Perlin's gradient noise with the fade 6 t^5 - 15 t^4 + 10 t^3, times the square root of two.

    Args:
        size: (H, W) pixels.
        gradients: (B, R + 1, R + 1) directions at the points of the lattice, radians.
        scales: (B, 2) cells of the lattice along H and W, whole numbers from 1 to R.
        angles: (B,) by which each field is turned about its centre, radians; outside the turned
            field the noise is 0.

    Returns:
        (B, 1, H, W), about in -1..1, 0 at the lattice points.
    """
    n, (height, width) = len(gradients), size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    extent = torch.tensor([height, width], dtype=torch.float32)
    at = torch.stack([y, x], -1).float().expand(n, -1, -1, -1)
    if angles is not None:
        cos, sin = angles.cos(), angles.sin()
        turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
        at = torch.einsum("nij,nhwj->nhwi", turn, at - extent / 2) + extent / 2
    share = at / extent
    inside = ((share >= 0) & (share < 1)).all(-1)
    point = share * scales[:, None, None]
    highest = (scales - 1)[:, None, None]
    cell = torch.minimum(point.floor().clamp_min(0), highest.to(point)).long()
    offset = point - cell
    flat, side = gradients.flatten(1), gradients.shape[2]

    def ramp(dy: int, dx: int) -> Tensor:
        index = (cell[..., 0] + dy) * side + cell[..., 1] + dx
        angle = flat.gather(1, index.flatten(1)).reshape(index.shape)
        return angle.cos() * (offset[..., 0] - dy) + angle.sin() * (offset[..., 1] - dx)

    fade = 6 * offset**5 - 15 * offset**4 + 10 * offset**3
    left = torch.lerp(ramp(0, 0), ramp(1, 0), fade[..., 0])
    right = torch.lerp(ramp(0, 1), ramp(1, 1), fade[..., 0])
    noise = 2**0.5 * torch.lerp(left, right, fade[..., 1])
    return torch.where(inside, noise, 0.0).unsqueeze(1)


def perlin_masks(
    foreground: Tensor,
    rng: Rng,
    threshold: float = 0.5,
    octaves: int = 6,
    turn: float = torch.pi / 2,
) -> Tensor:
    """Draw a mask for each image: where Perlin noise exceeds a threshold (DRAEM, ICCV 2021).

    The lattice has 2**k cells along each axis, k uniform in 0 .. octaves - 1; the field is turned by
    up to ``turn``. A mask may be empty.

    Args:
        foreground: (B, 1, H, W) bool, outside which nothing is drawn.
        rng: source of randomness.
        threshold: on the noise.
        octaves: number of scales.
        turn: largest angle in radians.

    Returns:
        (B, 1, H, W) bool.
    """
    n, most = len(foreground), 2 ** (octaves - 1)
    scales = 2 ** rng.integers(0, octaves, (n, 2))
    gradients = 2 * torch.pi * rng.uniform((n, most + 1, most + 1))
    angles = turn * (2 * rng.uniform((n, 1))[:, 0] - 1)
    noise = perlin_noise(foreground.shape[2:], gradients, scales, angles)
    return (noise > threshold).to(foreground.device) & foreground


def texture_blend(image: Tensor, texture: Tensor, mask: Tensor, share: Tensor) -> Tensor:
    """(1 - M) x + M ((1 - b) t + b x): a texture laid over the image inside a mask.

    Args:
        image: x, (B, C, H, W).
        texture: t, of the same shape.
        mask: M, (B, 1, H, W) bool.
        share: b, (B, 1, 1, 1), what shows of the image, 0 to 1.
    """
    return torch.where(mask, (1 - share) * texture + share * image, image)


def shuffled_tiles(
    image: Tensor, rng: Rng, grid: int = 8, inverted: float = 0.5, partner: bool = True
) -> Tensor:
    """Textures made of images: each is another one of the batch whose tiles are shuffled.

    Some are inverted (largest value of the image minus x), since tiles of dark images alone would
    hardly change a dark image.

    Args:
        image: (B, C, H, W).
        rng: source of randomness.
        grid: tiles along each axis; a rest of the division stays in place.
        inverted: share of the images that are.
        partner: take the next image of the batch; else each is made of its own tiles.
    """
    n, _, height, width = image.shape
    chosen = (torch.arange(n) + partner) % n
    order = rng.uniform((n, grid * grid)).argsort(1)
    flip = rng.uniform((n, 1, 1, 1)) < inverted
    x = image[chosen.to(image.device)]
    h, w = height // grid, width // grid
    if h and w:
        inner = x[:, :, : h * grid, : w * grid]
        tiles = inner.unflatten(2, (grid, h)).unflatten(4, (grid, w)).transpose(3, 4).flatten(2, 3)
        rows = torch.arange(n)[:, None].to(x.device)
        tiles = tiles.transpose(1, 2)[rows, order.to(x.device)].transpose(1, 2)
        x = x.clone()
        x[:, :, : h * grid, : w * grid] = (
            tiles.unflatten(2, (grid, grid)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
        )
    return torch.where(flip.to(x.device), x.amax((1, 2, 3), keepdim=True) - x, x)
