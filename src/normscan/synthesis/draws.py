"""Random numbers of other distributions, and images read at moved points."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.rng import Rng


def between(rng: Rng, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Uniform numbers in [low, high); the first axis of ``shape`` is the batch."""
    return low + (high - low) * rng.uniform(shape)


def erlang(rng: Rng, shape: tuple[int, ...], k: int, scale: float) -> Tensor:
    """Numbers of the gamma distribution with a whole shape k: the sum of k exponentials."""
    return -scale * torch.log1p(-rng.uniform((*shape, k))).sum(-1)


def signs(rng: Rng, shape: tuple[int, ...]) -> Tensor:
    """-1 or 1."""
    return 2.0 * (rng.uniform(shape) < 0.5) - 1


def rotations(rng: Rng, n: int, dims: int, most: float) -> Tensor:
    """Rotation matrices (n, dims, dims): an angle within +-most for every pair of axes."""
    result = torch.eye(dims).expand(n, -1, -1)
    for a in range(dims):
        for b in range(a + 1, dims):
            angle = between(rng, (n, 1), -most, most)[:, 0]
            turn = torch.eye(dims).repeat(n, 1, 1)
            turn[:, a, a] = turn[:, b, b] = angle.cos()
            turn[:, a, b], turn[:, b, a] = -angle.sin(), angle.sin()
            result = turn @ result
    return result


def spread_out(values: Tensor, dims: int) -> Tensor:
    """(n, k) as (n, k, 1, ...), to stand beside images with so many spatial axes."""
    return values.reshape(*values.shape, *[1] * dims)


def grid(spatial: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Coordinates of all pixels, (dims, *spatial) float."""
    axes = torch.meshgrid(*[torch.arange(n, device=device) for n in spatial], indexing="ij")
    return torch.stack(axes).float()


def read_at(image: Tensor, points: Tensor, beyond: str = "border") -> Tensor:
    """Values of images at points between their pixels, linearly.

    Args:
        image: (B, C, *spatial).
        points: (B, dims, *out) in pixels.
        beyond: what lies outside the frame: its nearest pixel (``border``) or 0 (``zeros``).

    Returns:
        (B, C, *out).
    """
    sizes = torch.tensor(image.shape[2:], device=image.device, dtype=points.dtype)
    scale = 2 / (sizes - 1).clamp_min(1)
    relative = points.movedim(1, -1) * scale - 1
    return F.grid_sample(
        image, relative.flip(-1).to(image), padding_mode=beyond, align_corners=True
    )


def taken_from(
    image: Tensor,
    source: Tensor,
    centre: Tensor,
    scale: Tensor | None = None,
    matrix: Tensor | None = None,
    beyond: str = "border",
) -> Tensor:
    """An image whose place ``source`` lies at ``centre``, enlarged and turned about it.

    Args:
        image: (B, C, *spatial).
        source: (B, dims) in pixels.
        centre: (B, dims) in pixels.
        scale: (B, 1) by which it is enlarged.
        matrix: (B, dims, dims) from offsets round the centre to offsets round the source.
        beyond: see ``read_at``.
    """
    dims = image.ndim - 2
    offsets = grid(tuple(image.shape[2:]), image.device)[None] - spread_out(
        centre.to(image.device), dims
    )
    if scale is not None:
        offsets = offsets / spread_out(scale.to(image.device), dims)
    if matrix is not None:
        offsets = torch.einsum("nij,nj...->ni...", matrix.to(offsets), offsets)
    return read_at(image, spread_out(source.to(image.device), dims) + offsets, beyond)


def on_edge(mask: Tensor) -> Tensor:
    """Pixels of a mask (B, 1, *spatial) with a neighbour along an axis that isn't in it."""
    inside = mask.clone()
    for axis in range(2, mask.ndim):
        for step in (1, -1):
            moved = mask.roll(step, axis)
            moved.select(axis, 0 if step == 1 else -1).fill_(False)
            inside &= moved
    return mask & ~inside
