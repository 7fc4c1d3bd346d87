"""Noise fields for corruption and diffusion."""

from __future__ import annotations

import functools
import itertools
import math
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


_OPEN_SIMPLEX_GRADIENTS = {2: (5, 2), 3: (11, 4, 4), 4: (3, 1, 1, 1)}
_OPEN_SIMPLEX_NORM = {2: 47, 3: 103, 4: 30}
# Neighbours in the permutation that share a gradient.
_OPEN_SIMPLEX_STRIDE = {2: 2, 3: 1, 4: 4}


@functools.cache
def _open_simplex_tables(axes: int) -> tuple[Tensor, Tensor, float]:
    """Lattice offsets that can reach a point of a cell, the gradients, and the lattice's widening."""
    widen = axes / (math.sqrt(axes + 1) - 1)
    offsets = torch.cartesian_prod(*[torch.arange(-1, 3)] * axes)
    places = offsets + offsets.sum(1, keepdim=True) / widen
    cell = torch.cartesian_prod(*[torch.linspace(0, 1, 9 if axes < 4 else 5)] * axes)
    cell = cell + cell.sum(1, keepdim=True) / widen
    near = torch.cdist(places.double(), cell.double()).amin(1) < 2**0.5
    steep = _OPEN_SIMPLEX_GRADIENTS[axes]
    # In the order of the release, so that one permutation gives one field.
    ways = [(1, -1)] * (axes - 1) + [(-1, 1) if axes == 3 else (1, -1)]
    signs = [c[::-1] for c in itertools.product(*ways)]
    turns = torch.tensor([[steep[(j - i) % axes] for j in range(axes)] for i in range(axes)])
    gradients = (torch.tensor(signs)[:, None] * turns[None]).reshape(-1, axes).float()
    return offsets[near], gradients, widen


def open_simplex(points: Tensor, permutation: Tensor) -> Tensor:
    """OpenSimplex noise (Spencer 2014): a wider kernel than simplex noise, so a coarser grain.

    The sum over the lattice points within the square root of 2 of (2 - r^2)^4 times a gradient's
    product with the offset.

    Args:
        points: (B, N, D) with D of 2, 3 or 4.
        permutation: (B, 256) a permutation of 0..255 per field.

    Returns:
        (B, N), about in [-1, 1].
    """
    axes = points.shape[-1]
    offsets, gradients, widen = _open_simplex_tables(axes)
    gradients = gradients.to(points)
    shrink = axes / (1 - 1 / math.sqrt(axes + 1))
    stretched = points - points.sum(-1, keepdim=True) / shrink
    base = torch.floor(stretched)
    inside = stretched - base
    origin = inside + inside.sum(-1, keepdim=True) / widen
    cell = base.long()
    total = torch.zeros(points.shape[:2], dtype=points.dtype, device=points.device)
    for offset in offsets.to(points.device):
        place = offset.to(origin)
        d = origin - (place + place.sum() / widen)
        weight = (2 - d.square().sum(-1)).clamp_min(0).pow(4)
        index = _hashed(cell + offset, permutation) % len(gradients)
        total += weight * (gradients[index] * d).sum(-1)
    return total / _OPEN_SIMPLEX_NORM[axes]


def _hashed(cell: Tensor, permutation: Tensor) -> Tensor:
    """Number (B, N) of lattice points (B, N, D), which tells their gradient, by (B, 256)."""
    index = torch.zeros_like(cell[..., 0])
    for axis in range(cell.shape[-1]):
        index = torch.gather(permutation, 1, (index + cell[..., axis]) & 255)
    return index // _OPEN_SIMPLEX_STRIDE[cell.shape[-1]]


REACH = math.sqrt(2)  # of a lattice point's kernel
CHUNK = 2**17  # pixels that are worked on at a time, so that they stay in a cache


def _lattice(size: tuple[int, int], period: float, rest: Tensor) -> tuple[Tensor, Tensor]:
    """The lattice points whose kernel a plane may meet, (L, D) int64, and where they are, (L, D).

    Args:
        size: pixels (H, W) of the plane, which lies at the places ``rest`` of the other axes.
        period: pixels of a unit.
        rest: (D - 2,).
    """
    axes = 2 + len(rest)
    widen = axes / (math.sqrt(axes + 1) - 1)
    ends = [(-REACH, (n - 1) / period + REACH) for n in (size[1], size[0])]
    total = [sum(e[i] for e in ends) + float(rest.sum()) for i in (0, 1)]
    slack = REACH * len(rest)
    low, high = ((total[i] + (2 * i - 1) * slack) / (widen + axes) for i in (0, 1))
    grid = torch.cartesian_prod(
        *[torch.arange(math.floor(e[0] - high), math.ceil(e[1] - low) + 1) for e in ends]
    )
    if len(rest):
        # Where the other axes are level with the plane, and two steps around.
        centre = rest - grid.sum(1, keepdim=True) / widen
        centre = centre - centre.sum(1, keepdim=True) / (widen + len(rest))
        around = torch.cartesian_prod(*[torch.arange(-1, 3)] * len(rest)).reshape(-1, len(rest))
        others = centre.floor().long()[:, None] + around
        grid = torch.cat([grid[:, None].expand(-1, len(around), -1), others], 2).flatten(0, 1)
    places = grid + grid.sum(1, keepdim=True).to(rest) / widen
    near = (places[:, 2:] - rest).square().sum(1) < REACH**2
    for axis, (first, last) in enumerate(ends):
        near &= (places[:, axis] > first) & (places[:, axis] < last)
    return grid[near], places[near]


def open_simplex_plane(
    size: tuple[int, int], period: float, rest: Tensor, permutation: Tensor
) -> Tensor:
    """``open_simplex`` at all pixels (x / period, y / period, *rest) of a plane, (H, W).

    Lattice point by lattice point instead of pixel by pixel: each adds its kernel to the pixels in
    its reach, so nothing is computed where it is zero.

    Args:
        size: (H, W).
        period: pixels of a unit.
        rest: (D - 2,) places on the other axes.
        permutation: (256,).
    """
    rest = rest.double()
    axes = 2 + len(rest)
    cells, places = _lattice(size, period, rest)
    _, gradients, _ = _open_simplex_tables(axes)
    slopes = gradients[_hashed(cells[None], permutation[None])[0] % len(gradients)].double()
    away = rest - places[:, 2:]
    # What the other axes leave of 2 - r^2, and their part of the gradient's product.
    left, part = 2 - away.square().sum(1), (slopes[:, 2:] * away).sum(1)
    result = torch.zeros(size[0] * size[1])
    sides = [min(n, math.floor(2 * REACH * period) + 2) for n in (size[1], size[0])]
    for at in range(0, len(places), max(1, CHUNK // (sides[0] * sides[1]))):
        rows = slice(at, at + max(1, CHUNK // (sides[0] * sides[1])))
        squares, slants, pixels = [], [], []
        for axis, (n, side) in enumerate(zip((size[1], size[0]), sides, strict=True)):
            middle = places[rows, axis, None]
            first = torch.ceil((middle - REACH) * period).clamp(0, n - side)
            pixel = first.long() + torch.arange(side)
            d = pixel / period - middle
            squares.append(d.square().float())
            slants.append((slopes[rows, axis, None] * d).float())
            pixels.append(pixel)
        across = left[rows, None].float() - squares[0]
        weight = (across[:, None] - squares[1][:, :, None]).clamp_min_(0).square_().square_()
        slants[0] += part[rows, None].float()
        weight *= slants[0][:, None] + slants[1][:, :, None]
        index = pixels[0][:, None] + size[1] * pixels[1][:, :, None]
        result.index_add_(0, index.flatten(), weight.flatten())
    return result.reshape(size) / _OPEN_SIMPLEX_NORM[axes]


def simplex_noise(
    shape: Sequence[int],
    rng: Rng,
    t: Tensor,
    octaves: int = 6,
    persistence: float = 0.8,
    frequency: float = 64,
    kind: Literal["simplex", "opensimplex"] = "simplex",
    axes: Literal[2, 3, 4] = 3,
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
        axes: 2 leaves the step away, as Behrendt et al. 2023; with 4 the channel comes between the
            plane and the step, and the channels of a sample share their field (Kumar et al. 2023).
            Classic noise has the step 0 with 2, and no form with 4.
    """
    batch, channels, height, width = shape
    fields = batch if axes == 4 and kind == "opensimplex" else batch * channels
    permutation = rng.uniform((batch, fields // batch * 256)).reshape(-1, 256).argsort(dim=1)
    # The other axes of each plane, (batch * channels, axes - 2).
    depth = t.cpu().float().repeat_interleave(channels)
    rest = depth[:, None] if axes > 2 else torch.zeros(batch * channels, 0)
    if axes == 4:
        channel = torch.arange(channels).repeat(batch)
        rest = torch.stack([channel, depth], 1)
        permutation = permutation.repeat_interleave(len(rest) // fields, 0)
    if kind == "simplex":
        rest = rest if axes == 3 else torch.zeros(len(rest), 1)
        return _classic(shape, permutation, rest, octaves, persistence, frequency)
    planes = []
    for own, place in zip(permutation, rest, strict=True):
        total = torch.zeros(height, width)
        for octave in range(octaves):
            period = frequency / 2**octave
            total += persistence**octave * open_simplex_plane(
                (height, width), period, place / period, own
            )
        planes.append(total)
    return torch.stack(planes).reshape(batch, channels, height, width)


def _classic(
    shape: Sequence[int], permutation: Tensor, depth: Tensor, octaves: int, persistence: float,
    frequency: float,
) -> Tensor:  # fmt: skip
    """Octaves of classic noise on planes of a depth (B * C, 1)."""
    y, x = torch.meshgrid(torch.arange(shape[2]), torch.arange(shape[3]), indexing="ij")
    plane = torch.stack([x, y], -1).reshape(1, -1, 2).expand(len(depth), -1, -1).float()
    points = torch.cat([plane, depth[:, None].expand(-1, plane.shape[1], -1)], -1)
    noise = sum(
        persistence**o * simplex_3d(points / (frequency / 2**o), permutation)
        for o in range(octaves)
    )
    assert isinstance(noise, Tensor)
    return noise.reshape(tuple(shape))


def pyramid_noise(shape: Sequence[int], rng: Rng, discount: float = 0.8) -> Tensor:
    """Gaussian noise summed over grids of halving resolution, with variance 1 in each field.

    The multi-resolution noise of Whitaker 2023, with halves instead of random strides.

    Args:
        shape: (B, C, *spatial).
        rng: source of randomness.
        discount: weight of a grid relative to the finer one before.
    """
    spatial = tuple(shape[2:])
    mode = "bilinear" if len(spatial) == 2 else "trilinear"
    total, level, grid = torch.zeros(tuple(shape)), 0, list(spatial)
    while True:
        field = rng.normal((*shape[:2], *grid))
        total += discount**level * F.interpolate(field, spatial, mode=mode, align_corners=False)
        if max(grid) == 1:
            break
        level, grid = level + 1, [max(1, n // 2) for n in grid]
    axes = tuple(range(2, total.ndim))
    return total / total.std(dim=axes, keepdim=True).clamp_min(1e-6)


def poisson(shape: Sequence[int], rng: Rng, mean: float = 1.0, most: int = 20) -> Tensor:
    """Numbers that are Poisson distributed, by the inverse of the distribution.

    Args:
        shape: the first axis is the batch.
        rng: source of randomness.
        mean: of the numbers, small against ``most``.
        most: largest number.
    """
    k = torch.arange(most, dtype=torch.float64)
    cumulative = torch.exp(k * math.log(mean) - mean - torch.lgamma(k + 1)).cumsum(0)
    return torch.searchsorted(cumulative, rng.uniform(shape).double(), right=True).float()


def raised(x: Tensor, rng: Rng, amount: float = 0.1, coarse: int = 4) -> Tensor:
    """Images with coarse Poisson noise added in a box, as of raised uptake (Huang et al. 2024).

    The box has from an eighth to a third of each axis and stays a fifth away from the border; the
    noise is drawn on a grid ``coarse`` times coarser, enlarged linearly and rolled within the box.

    Args:
        x: (B, C, *spatial).
        rng: source of randomness.
        amount: what a unit of the noise adds.
        coarse: voxels of a cell of the noise's grid along each axis.
    """
    spatial = x.shape[2:]
    chances = rng.uniform((len(x), 3, len(spatial))).double()
    grid = [max(1, n // 3 // coarse) for n in spatial]
    cells = poisson((*x.shape[:2], *grid), rng).to(x)
    result = x.clone()
    for i in range(len(x)):
        sides, starts, shifts = [], [], []
        for n, (side, start, shift) in zip(spatial, chances[i].T.tolist(), strict=True):
            sides.append(n // 8 + int(side * max(1, n // 3 - n // 8)))
            starts.append(n // 5 + int(start * max(1, n - 2 * (n // 5) - sides[-1])))
            shifts.append(int(shift * sides[-1]))
        few: tuple[slice, ...] = tuple(slice(0, max(1, side // coarse)) for side in sides)
        noise = F.interpolate(
            cells[(slice(i, i + 1), slice(None), *few)],
            size=sides,
            mode="bilinear" if x.ndim == 4 else "trilinear",
        )
        box = tuple(slice(a, a + n) for a, n in zip(starts, sides, strict=True))
        result[i][(slice(None), *box)] += amount * noise[0].roll(
            shifts, tuple(range(1, x.ndim - 1))
        )
    return result
