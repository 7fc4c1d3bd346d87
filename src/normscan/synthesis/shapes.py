"""Outlines of artificial anomalies: functions of a size and a source of randomness.

A shape draws an outline round the origin for each image; where it goes is the placement's choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from normscan.rng import Rng
from normscan.synthesis.draws import between, erlang, grid, rotations, spread_out
from normscan.synthesis.noise import simplex_3d
from normscan.synthesis.perlin import perlin_masks

Range = tuple[float, float]


class Outline(Protocol):
    """Areas round the origin, one for each image."""

    @property
    def extent(self) -> Tensor:
        """(n, dims) half of the box around each, in pixels."""
        ...

    def inside(self, offsets: Tensor) -> Tensor:
        """Tell which offsets (n, dims, *spatial) from the centre belong to it, (n, *spatial)."""
        ...


Shape = Callable[[int, tuple[int, ...], Rng], Outline]


@dataclass(frozen=True)
class Affine:
    """Boxes and ellipsoids, turned and sheared.

    Attributes:
        half: (n, dims) half-lengths along their own axes.
        matrix: (n, dims, dims) from offsets to their own axes.
        round: (n,) bool: ellipsoids; else boxes, which hold their lower ends and not their upper ones.
    """

    half: Tensor
    matrix: Tensor
    round: Tensor

    @property
    def extent(self) -> Tensor:
        sides = torch.linalg.inv(self.matrix) * self.half[:, None]
        return torch.where(self.round[:, None], sides.square().sum(-1).sqrt(), sides.abs().sum(-1))

    def own(self, offsets: Tensor) -> Tensor:
        """Offsets in units of the half-lengths along its own axes."""
        turned = torch.einsum("nij,nj...->ni...", self.matrix.to(offsets), offsets)
        return turned / spread_out(self.half.to(offsets), offsets.ndim - 2)

    def inside(self, offsets: Tensor) -> Tensor:
        u = self.own(offsets)
        ball = u.square().sum(1) <= 1
        # A turned corner is no whole number: a hair's width decides nothing then.
        box = ((u >= -1 - 1e-6) & (u < 1 - 1e-6)).all(1)
        return torch.where(spread_out(self.round, offsets.ndim - 2).to(ball.device), ball, box)

    def scaled(self, factor: Tensor) -> Affine:
        """The same outlines, larger by a factor (n, 1)."""
        return replace(self, half=self.half * factor)

    def way_out(self, start: Tensor, direction: Tensor) -> Tensor:
        """Distance (n, *spatial) from starts (n, dims) inside it to its edge along unit vectors."""
        dims = start.shape[1]
        u = self.own(spread_out(start, dims))
        v = self.own(direction)
        walls = torch.where(v == 0, torch.inf, (v.sign() - u) / v)
        a, b = v.square().sum(1), (u * v).sum(1)
        c = u.square().sum(1) - 1
        ball = (-b + (b * b - a * c).clamp_min(0).sqrt()) / a.clamp_min(1e-12)
        flat = spread_out(self.round, dims).to(ball.device)
        return torch.where(flat, ball, walls.amin(1)).clamp_min(1e-6)


def _straight(half: Tensor, round: bool = False) -> Affine:
    n, dims = half.shape
    return Affine(half, torch.eye(dims).repeat(n, 1, 1), torch.full((n,), round))


def squares(half: Range = (0.05, 0.2)) -> Shape:
    """Squares (cubes) whose half side is a whole number of pixels, shares of the first axis (FPI)."""

    def draw(n: int, spatial: tuple[int, ...], rng: Rng) -> Outline:
        low = max(1, round(half[0] * spatial[0]))
        high = max(low + 1, round(half[1] * spatial[0]))
        return _straight(rng.integers(low, high, (n, 1)).float().repeat(1, len(spatial)))

    return draw


def gamma_boxes(
    scale: float = 0.03, least: float = 0.05, bounds: Range = (0.03, 0.4), k: int = 2
) -> Shape:
    """Boxes with half sides (least + Gamma(k, scale)) D within bounds, for each axis (NSA)."""

    def draw(n: int, spatial: tuple[int, ...], rng: Rng) -> Outline:
        sizes = torch.tensor(spatial)
        drawn = (least + erlang(rng, (n, len(spatial)), k, scale)) * sizes
        low, high = ((share * sizes).round() for share in bounds)
        return _straight(torch.minimum(torch.maximum(drawn, low), high).floor().clamp_min(1))

    return draw


def area_boxes(area: Range = (0.02, 0.15), aspect: float = 0.3) -> Shape:
    """Boxes of a share of the image's area and an aspect ratio, whose logarithm is uniform (CutPaste).

    In three dimensions each side is that of the area's square, times two ratios of product one.
    """

    def draw(n: int, spatial: tuple[int, ...], rng: Rng) -> Outline:
        dims = len(spatial)
        share = between(rng, (n, 1), *area)
        ratios = between(rng, (n, dims), math.log(aspect), -math.log(aspect))
        if dims == 2:
            ratios = torch.stack([ratios[:, 0], -ratios[:, 0]], 1)
        ratios = (ratios - ratios.mean(1, keepdim=True)) / 2
        sides = share.sqrt() * ratios.exp() * torch.tensor(spatial)
        # Half a pixel is allowed: a side may be an odd number of pixels.
        return _straight((sides.round() / 2).clamp_min(0.5).minimum(torch.tensor(spatial) / 2))

    return draw


def scars(
    width: Range = (2, 16), height: Range = (10, 25), turn: float = 45, of: int = 256
) -> Shape:
    """Thin turned boxes; width and height in pixels of an image of 256, the turn in degrees."""

    def draw(n: int, spatial: tuple[int, ...], rng: Rng) -> Outline:
        dims, unit = len(spatial), min(spatial) / of
        across = between(rng, (n, dims - 1), *width)
        sides = torch.cat([between(rng, (n, 1), *height), across], 1) * unit
        matrix = rotations(rng, n, dims, math.radians(turn))
        return Affine((sides / 2).clamp_min(0.75), matrix, torch.zeros(n, dtype=torch.bool))

    return draw


def ellipses(size: Range = (0.1, 0.5), turn: float = 180) -> Shape:
    """Ellipsoids whose axes are shares of the image's, turned by up to so many degrees."""

    def draw(n: int, spatial: tuple[int, ...], rng: Rng) -> Outline:
        dims = len(spatial)
        half = between(rng, (n, dims), *size) * torch.tensor(spatial) / 2
        matrix = rotations(rng, n, dims, math.radians(turn))
        return Affine(half.clamp_min(1), matrix, torch.ones(n, dtype=torch.bool))

    return draw


def cuboids(edges: Range = (10 / 64, 32 / 64), turn: float = 0.0) -> Shape:
    """Boxes with whole edges that are shares of the image's, the upper end included."""

    def draw(n: int, spatial: tuple[int, ...], rng: Rng) -> Outline:
        dims, sizes = len(spatial), torch.tensor(spatial)
        low, high = ((share * sizes).round().clamp_min(1) for share in edges)
        drawn = low + (rng.uniform((n, dims)) * (high - low + 1)).floor()
        matrix = rotations(rng, n, dims, math.radians(turn))
        return Affine(drawn.minimum(high) / 2, matrix, torch.zeros(n, dtype=torch.bool))

    return draw


def hypershapes(
    kind: Literal["either", "box", "ball"] = "either", bounds: Range = (0.06, 0.8),
    least: float = 0.03, scale: float = 0.1, shear: float = 0.2,
) -> Shape:  # fmt: skip
    """Boxes or ellipsoids, sheared and turned about every pair of axes (Baugh et al., 2023).

    Sides (least + Gamma(2, scale)) D within bounds; one shear term an axis, normal, on another axis;
    what is larger than the upper bound with all that is made smaller.
    """

    def draw(n: int, spatial: tuple[int, ...], rng: Rng) -> Outline:
        dims, sizes = len(spatial), torch.tensor(spatial)
        sides = (least + erlang(rng, (n, dims), 2, scale)) * sizes
        low, high = bounds[0] * sizes, bounds[1] * sizes
        sides = torch.minimum(torch.maximum(sides, low), high)
        sheared = torch.eye(dims).repeat(n, 1, 1)
        amount = shear * rng.normal((n, dims))
        other = rng.integers(1, dims, (n, dims))
        rows = torch.arange(n)
        for axis in range(dims):
            sheared[rows, axis, (axis + other[:, axis]) % dims] = amount[:, axis]
        forward = rotations(rng, n, dims, math.pi / 2) @ sheared
        ball = rng.uniform((n, 1))[:, 0] < {"either": 0.5, "box": 0.0, "ball": 1.0}[kind]
        found = Affine(sides / 2, torch.linalg.inv(forward), ball)
        shrink = (high / (2 * found.extent)).amin(1, keepdim=True).clamp_max(1)
        return found.scaled(shrink)

    return draw


@dataclass(frozen=True)
class Polygon:
    """Areas inside closed lines: (n, vertices, 2) offsets from the centre."""

    points: Tensor

    @property
    def extent(self) -> Tensor:
        return self.points.abs().amax(1)

    def inside(self, offsets: Tensor) -> Tensor:
        y, x = offsets[:, 0], offsets[:, 1]
        crossed = torch.zeros_like(y, dtype=torch.bool)
        points = self.points.to(offsets)
        for k in range(points.shape[1]):
            # Even-odd rule: how often a ray along x meets an edge from (ay, ax) to (by, bx).
            (ay, ax), (by, bx) = (
                spread_out(p, 2).unbind(1) for p in (points[:, k - 1], points[:, k])
            )
            between_ends = (ay > y) != (by > y)
            run = torch.where(ay == by, 1.0, by - ay)
            crossed ^= between_ends & (x < ax + (bx - ax) * (y - ay) / run)
        return crossed


@dataclass(frozen=True)
class Star:
    """Volumes with a radius for every direction, a weighted mean of that of drawn directions.

    Attributes:
        axes: (n, 3) half-lengths.
        directions: (n, k, 3) unit vectors.
        radii: (n, k) shares of the half-lengths.
    """

    axes: Tensor
    directions: Tensor
    radii: Tensor

    @property
    def extent(self) -> Tensor:
        return self.axes * self.radii.amax(1, keepdim=True)

    def inside(self, offsets: Tensor) -> Tensor:
        u = offsets / spread_out(self.axes.to(offsets), 3)
        distance = u.square().sum(1).sqrt()
        unit = u / distance[:, None].clamp_min(1e-6)
        near = torch.einsum("nkd,nd...->nk...", self.directions.to(u), unit)
        weights = torch.softmax(12 * near, 1)
        return distance <= (weights * spread_out(self.radii.to(u), 3)).sum(1)


def splines(size: Range = (0.1, 0.5), vertices: int = 10, straight: bool = False) -> Shape:
    """Areas inside a line through vertices at nearly equal angles and random radii (AutoSeg).

    Angles i 360 / n + U(-10, 10) degrees, radii U(0.1, 0.5) of a box whose sides are shares of the
    image's; a cubic spline goes through them from the first to the last, and a straight edge closes
    it. In three dimensions a radius for each of 20 directions.
    """

    def draw(n: int, spatial: tuple[int, ...], rng: Rng) -> Outline:
        box = between(rng, (n, len(spatial)), *size) * torch.tensor(spatial)
        if len(spatial) == 3:
            directions = rng.normal((n, 2 * vertices, 3))
            directions = directions / directions.norm(dim=2, keepdim=True)
            return Star(box, directions, between(rng, (n, 2 * vertices), 0.1, 0.5))
        angle = torch.arange(vertices) * 2 * math.pi / vertices
        angle = angle + between(rng, (n, vertices), -math.pi / 18, math.pi / 18)
        radius = between(rng, (n, vertices), 0.1, 0.5)
        points = radius[..., None] * torch.stack([angle.sin(), angle.cos()], -1)
        if not straight:
            points = torch.stack([_spline(p) for p in points])
        return Polygon(points * box[:, None])

    return draw


def _spline(points: Tensor, steps: int = 60) -> Tensor:
    """Points (steps, 2) along the cubic through points (k, 2), by their distances along the line."""
    from scipy.interpolate import make_interp_spline

    known = points.double().numpy()
    length = np.r_[0, np.linalg.norm(np.diff(known, axis=0), axis=1).cumsum()]
    curve = make_interp_spline(length, known, k=3)(np.linspace(0, length[-1], steps))
    return torch.from_numpy(curve).float()


@dataclass(frozen=True)
class Field:
    """Areas that lie where they were drawn, (n, *spatial) bool."""

    mask: Tensor

    @property
    def extent(self) -> Tensor:
        return torch.tensor(self.mask.shape[1:]).repeat(len(self.mask), 1) / 2

    def inside(self, offsets: Tensor) -> Tensor:
        return self.mask.to(offsets.device)


def perlin(threshold: float = 0.5, octaves: int = 6) -> Shape:
    """Where Perlin noise (in three dimensions simplex noise) exceeds a threshold (DRAEM).

    Cells 2**k along each axis, k uniform below ``octaves``, turned by up to 90 degrees in the plane.
    """

    def draw(n: int, spatial: tuple[int, ...], rng: Rng) -> Outline:
        if len(spatial) == 2:
            everywhere = torch.ones(n, 1, *spatial, dtype=torch.bool)
            return Field(perlin_masks(everywhere, rng, threshold, octaves)[:, 0])
        cells = 2.0 ** rng.integers(0, octaves, (n, 3))
        turned = rotations(rng, n, 3, math.pi / 2)
        order = rng.uniform((n, 256)).argsort(1)
        at = (grid(spatial) / torch.tensor(spatial).reshape(3, 1, 1, 1) - 0.5).flatten(1).T
        points = (at[None] @ turned) * cells[:, None] + 100 * rng.uniform((n, 1, 3))
        # Simplex noise keeps within about 0.9 of Perlin's range.
        return Field((simplex_3d(points, order) > 0.8 * threshold).reshape(n, *spatial))

    return draw
