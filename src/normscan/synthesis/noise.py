"""Noise fields for corruption and diffusion."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.rng import Rng

# Gradients of simplex noise: the twelve edge middles of a cube (Perlin 2002).
_EDGES = torch.tensor(
    [[x, y, 0] for x in (-1, 1) for y in (-1, 1)]
    + [[x, 0, z] for x in (-1, 1) for z in (-1, 1)]
    + [[0, y, z] for y in (-1, 1) for z in (-1, 1)],
    dtype=torch.float32,
)


def coarse_noise(shape: Sequence[int], rng: Rng, std: float = 0.2, resolution: int = 16) -> Tensor:
    """Gaussian noise on a coarse grid, enlarged linearly and rolled (Kascenas et al. 2022).

    Args:
        shape: (B, C, *spatial).
        rng: source of randomness.
        std: of the coarse Gaussian noise.
        resolution: voxels of the coarse grid along each axis.

    Returns:
        (B, C, *spatial); the roll is the same for the whole batch.
    """
    spatial = tuple(shape[2:])
    grid = [min(resolution, n) for n in spatial]
    noise = std * rng.normal((*shape[:2], *grid))
    mode = "bilinear" if len(spatial) == 2 else "trilinear"
    noise = F.interpolate(noise, size=spatial, mode=mode, align_corners=True)
    shifts = [int(rng.integers(0, n, (shape[0],))[0]) for n in spatial]
    return torch.roll(noise, shifts, dims=tuple(range(2, 2 + len(spatial))))


def simplex_3d(points: Tensor, permutation: Tensor) -> Tensor:
    """Simplex noise at points in space (Perlin's algorithm in Gustavson's 2005 form).

    Args:
        points: (B, N, 3).
        permutation: (B, 256) a permutation of 0..255 per field.

    Returns:
        (B, N), about in [-1, 1].
    """
    skewed = torch.floor(points + points.sum(-1, keepdim=True) / 3)
    offset = points - skewed + skewed.sum(-1, keepdim=True) / 6
    # The order of the coordinates tells which of the six simplices of the cell holds the point.
    rank = torch.zeros_like(offset)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        ahead = (offset[..., a] >= offset[..., b]).to(offset.dtype)
        rank[..., a] += ahead
        rank[..., b] += 1 - ahead
    cell = skewed.long()
    edges = _EDGES.to(points)
    total = torch.zeros(points.shape[:2], dtype=points.dtype, device=points.device)
    for corner in range(4):
        step = (rank >= 3 - corner).to(offset.dtype)
        d = offset - step + corner / 6
        index = torch.zeros_like(cell[..., 0])
        for axis in (2, 1, 0):
            at = (cell[..., axis] + step[..., axis].long() + index) & 255
            index = torch.gather(permutation, 1, at)
        weight = (0.6 - d.square().sum(-1)).clamp_min(0).pow(4)
        total += weight * (edges[index % 12] * d).sum(-1)
    return 32 * total


@functools.cache
def _open_simplex_tables() -> tuple[Tensor, Tensor]:
    """Lattice offsets that can reach a point of a cell, and the 24 gradients."""
    offsets = torch.cartesian_prod(*[torch.arange(-1, 3)] * 3)
    places = offsets + offsets.sum(1, keepdim=True) / 3
    cell = torch.cartesian_prod(*[torch.linspace(0, 1, 9)] * 3)
    cell = cell + cell.sum(1, keepdim=True) / 3
    near = torch.cdist(places.double(), cell.double()).amin(1) < 2**0.5
    # In the order of the release, so that one permutation gives one field.
    signs = torch.tensor([(x, y, z) for z, y, x in itertools.product((1, -1), (1, -1), (-1, 1))])
    turns = torch.tensor([[11, 4, 4], [4, 11, 4], [4, 4, 11]])
    gradients = (signs[:, None] * turns[None]).reshape(-1, 3).float()
    return offsets[near], gradients


def open_simplex_3d(points: Tensor, permutation: Tensor) -> Tensor:
    """OpenSimplex noise (Spencer 2014): a wider kernel than simplex noise, so a coarser grain.

    The sum over the lattice points within the square root of 2 of (2 - r^2)^4 times a gradient's
    product with the offset.

    Args:
        points: (B, N, 3).
        permutation: (B, 256) a permutation of 0..255 per field.

    Returns:
        (B, N), about in [-1, 1].
    """
    offsets, gradients = _open_simplex_tables()
    gradients = gradients.to(points)
    stretched = points - points.sum(-1, keepdim=True) / 6
    base = torch.floor(stretched)
    inside = stretched - base
    origin = inside + inside.sum(-1, keepdim=True) / 3
    cell = base.long()
    total = torch.zeros(points.shape[:2], dtype=points.dtype, device=points.device)
    for offset in offsets.to(points.device):
        place = offset.to(origin)
        d = origin - (place + place.sum() / 3)
        weight = (2 - d.square().sum(-1)).clamp_min(0).pow(4)
        index = torch.zeros_like(cell[..., 0])
        for axis in range(3):
            index = torch.gather(permutation, 1, (index + cell[..., axis] + offset[axis]) & 255)
        total += weight * (gradients[index % 24] * d).sum(-1)
    return total / 103


def simplex_noise(
    shape: Sequence[int],
    rng: Rng,
    t: Tensor,
    octaves: int = 6,
    persistence: float = 0.8,
    frequency: float = 64,
    kind: Literal["simplex", "opensimplex"] = "simplex",
) -> Tensor:
    """Octaves of simplex noise in the plane, with the diffusion step as third coordinate.

    The sum over octaves o of persistence**o * S(x / f, y / f, t / f) with f = frequency / 2**o
    (Wyatt et al. 2022). Its variance is not one and its mean not zero, as in the article. Each
    channel of each sample has a field of its own.

    Args:
        shape: (B, C, H, W).
        rng: source of randomness.
        t: (B,) third coordinate.
        octaves: number of octaves.
        persistence: weight of an octave relative to the one before.
        frequency: period of the first octave in pixels.
        kind: of noise, the classic one or OpenSimplex.
    """
    field = simplex_3d if kind == "simplex" else open_simplex_3d
    batch, channels, height, width = shape
    permutation = rng.uniform((batch, channels * 256)).reshape(-1, 256).argsort(dim=1)
    fields = batch * channels
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    plane = torch.stack([x, y], -1).reshape(1, -1, 2).expand(fields, -1, -1).float()
    depth = t.cpu().float().repeat_interleave(channels).reshape(-1, 1, 1)
    depth = depth.expand(fields, height * width, 1)
    points = torch.cat([plane, depth], -1)
    noise = sum(
        persistence**o * field(points / (frequency / 2**o), permutation) for o in range(octaves)
    )
    assert isinstance(noise, Tensor)
    return noise.reshape(batch, channels, height, width)
