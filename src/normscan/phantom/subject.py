"""One simulated subject: its images, its healthy twin, the exact lesion mask and what is in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from normscan.errors import ArgumentError
from normscan.phantom.anatomy import Anatomy, Placer
from normscan.phantom.config import FIELD_OF_VIEW, PhantomConfig
from normscan.phantom.contrast import Appearance, noise_stream, rician
from normscan.phantom.deform import CENTRE
from normscan.phantom.fields import stream
from normscan.phantom.lesions import MAKERS, Lesion

_HEIGHT, _LESION = 2, 5  # random streams of a subject
_ATTEMPTS = 30


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of one image.

    Attributes:
        shape: (X, Y) or (X, Y, Z).
        affine: (4, 4) index to MNI mm; for a slice the third column is the slice normal and the
            origin carries the height.
    """

    shape: tuple[int, ...]
    affine: np.ndarray

    @classmethod
    def make(cls, config: PhantomConfig, height: float = 0.0) -> Grid:
        """Return the grid of a slice at a height in mm, or of a volume."""
        shape = config.size
        if shape is None:
            # Multiples of eight suit networks that halve the image three times.
            voxels = (int(np.ceil(f / config.spacing / 8)) * 8 for f in FIELD_OF_VIEW)
            shape = tuple(voxels)[: config.dims]
        origin = CENTRE - 0.5 * config.spacing * (np.array([*shape, 1, 1][:3]) - 1.0)
        if config.dims == 2:
            origin[2] = height
        affine = np.diag([config.spacing] * 3 + [1.0])
        affine[:3, 3] = origin
        return cls(shape, affine)

    @cached_property
    def points(self) -> np.ndarray:
        """Voxel centres (N, 3) in mm, last axis fastest."""
        steps = [np.arange(n) for n in (*self.shape, 1)[:3]]
        index = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
        return np.asarray(index @ self.affine[:3, :3].T + self.affine[:3, 3])

    @property
    def voxel(self) -> float:
        """Area of a pixel in mm2, or volume of a voxel in mm3."""
        return float(np.prod(np.diag(self.affine)[: len(self.shape)]))


@dataclass(frozen=True, eq=False)
class Phantom:
    """One image of a subject, and all that is known about it.

    Attributes:
        image: signal by modality, each of the shape of the grid; 1 is white matter in T1w.
        healthy_twin: the same subject without the lesion: same anatomy, texture, bias and noise.
        mask: lesion, bool: where it fills at least half of the voxel. Core and oedema for a tumour.
        fraction: how much of each voxel the lesion fills, 0 to 1.
        brain: brain mask, bool.
        grid: geometry.
        properties: kind, contrast, lesion area (mm2) or volume (mm3) as `lesion_size`, the warp
            that was used, and `lesions`, one entry per lesion.
    """

    image: dict[str, np.ndarray]
    healthy_twin: dict[str, np.ndarray]
    mask: np.ndarray
    fraction: np.ndarray
    brain: np.ndarray
    grid: Grid
    properties: dict[str, Any] = field(default_factory=dict)


class Subject:
    """One subject, to be imaged on any grid.

    Args:
        config: the cohort's settings.
        index: number of the subject from 0; with the seed it determines everything.
        kind: kind of lesion, or None for a healthy subject.

    Raises:
        ArgumentError: no place was found for a lesion of the wanted size.
    """

    def __init__(self, config: PhantomConfig, index: int, kind: str | None = None) -> None:
        self.config = config
        self.index = index
        self.kind = kind
        self.anatomy = Anatomy(config, index)
        self.grids = [Grid.make(config, height) for height in self._heights() or (0.0,)]
        self._appearance = {m: Appearance(config, index, m) for m in config.modalities}
        self.lesion = self._place(kind) if kind else None

    def _heights(self) -> tuple[float, ...]:
        """Heights of the slices in mm; drawn apart from the lesion, so that they betray none."""
        config = self.config
        if config.dims == 3:
            return ()
        half = 0.5 * (config.slices - 1) * config.slice_gap
        low, high = config.heights[0] + half, config.heights[1] - half
        middle = stream(config.seed, self.index, _HEIGHT).uniform(low, max(low, high))
        return tuple(
            round(float(middle - half + i * config.slice_gap), 3) for i in range(config.slices)
        )

    def _place(self, kind: str) -> Lesion:
        config = self.config
        rng = stream(config.seed, self.index, _LESION)
        planes = () if config.dims == 3 else tuple(float(g.affine[2, 3]) for g in self.grids)
        placer = Placer(self.anatomy, planes, config.heights)
        for _ in range(_ATTEMPTS):
            lesion = MAKERS[kind](rng, placer, config)
            if lesion is not None and self._visible(lesion):
                return lesion
        low, high = config.diameters(kind)
        raise ArgumentError(
            f"No place for a {kind} of {low:g} to {high:g} mm that shows at least "
            f"{config.min_area:g} mm2 on each of the {len(self.grids)} slices of subject "
            f"{self.index + 1}. Lower min_area, take fewer slices, or another diameter."
        )

    def _visible(self, lesion: Lesion) -> bool:
        wanted = sum(row["diameter_mm"] ** 3 for row in lesion.properties) * np.pi / 6.0
        found = sum(row["volume_mm3"] for row in lesion.properties)
        if found < 0.8 * wanted:
            return False
        if self.config.dims == 3:
            return True
        areas = [float((self._fraction(g, lesion) >= 0.5).sum()) * g.voxel for g in self.grids]
        return min(areas) >= self.config.min_area

    def _edge(self) -> float:
        return max(self.config.edge, self.config.spacing)

    def _fraction(self, grid: Grid, lesion: Lesion) -> np.ndarray:
        """Lesion fraction (N,) on a grid; the shape is that at full contrast, at any contrast."""
        total = np.zeros(len(grid.points))
        reach = np.zeros(len(grid.points), dtype=bool)
        for part, row in zip(lesion.parts, lesion.properties * len(lesion.parts), strict=False):
            away = np.linalg.norm(grid.points - part.shape.middle, axis=1)
            reach |= away < 2.1 * row["diameter_mm"]
        near = grid.points[reach]
        tissue = self.anatomy.tissue(lesion.pushed(near, 1.0))
        for part in lesion.parts:
            total[reach] = np.maximum(total[reach], part.fraction(near, tissue, self._edge()))
        return total

    def render(self, part: int = 0, twin: bool = False, noise: bool = True) -> Phantom:
        """Image the subject.

        Args:
            part: number of the slice; 0 for a volume.
            twin: also image the healthy twin; otherwise `Phantom.healthy_twin` is empty.
            noise: add Rician noise.
        """
        grid = self.grids[part]
        brain = self.anatomy.inside(grid.points)
        points = grid.points[brain]
        fraction = np.zeros(len(grid.points))
        image: dict[str, np.ndarray] = {}
        healthy: dict[str, np.ndarray] = {}
        contrast = self.config.contrast
        # Each at most once: the healthy tissue, that at the mass effect of this contrast, and that
        # at full contrast, which shapes the lesion.
        moved = self.lesion.pushed(points, contrast) if self.lesion else points
        tissue = self.anatomy.tissue(moved)
        full = tissue
        if self.lesion and self.lesion.mass and contrast < 1:
            full = self.anatomy.tissue(self.lesion.pushed(points, 1.0))
        still = self.anatomy.tissue(points) if twin and self.lesion else tissue
        for modality, look in self._appearance.items():
            signal = look.signal(moved, tissue)
            if self.lesion:
                painted, filled = self.lesion.paint(points, full, signal, look, self._edge())
                signal = signal + contrast * (painted - signal)
                fraction[brain] = filled
            image[modality] = self._acquire(signal, brain, look, part, noise)
            if twin:
                base = look.signal(points, still)
                healthy[modality] = self._acquire(base, brain, look, part, noise)
        return self._collect(image, healthy, fraction, brain, grid)

    def _acquire(
        self, signal: np.ndarray, brain: np.ndarray, look: Appearance, part: int, noise: bool
    ) -> np.ndarray:
        grid = self.grids[part]
        full = np.zeros(len(grid.points))
        # An intensity change times a large contrast can point below 0; a magnitude cannot.
        full[brain] = look.receive(grid.points[brain], np.maximum(signal, 0.0))
        if noise and self.config.noise > 0:
            rng = noise_stream(self.config, self.index, look.modality, part)
            full = rician(full, self.config.noise, rng)
        if self.config.skull_strip:
            full[~brain] = 0.0
        return full.reshape(grid.shape)

    def _collect(
        self,
        image: dict[str, np.ndarray],
        healthy: dict[str, np.ndarray],
        fraction: np.ndarray,
        brain: np.ndarray,
        grid: Grid,
    ) -> Phantom:
        mask = (fraction >= 0.5).reshape(grid.shape)
        warp = self.anatomy.warp
        properties: dict[str, Any] = {
            "kind": self.kind or "healthy",
            "contrast": self.config.contrast if self.lesion else 0.0,
            "lesion_size": float(mask.sum()) * grid.voxel,
            "deformation_mm": warp.amplitude,
            "jacobian_min": warp.jacobian_min,
            "lesions": [dict(row) for row in self.lesion.properties] if self.lesion else [],
        }
        return Phantom(
            image,
            healthy,
            mask,
            fraction.reshape(grid.shape),
            brain.reshape(grid.shape),
            grid,
            properties,
        )


def make_subject(
    config: PhantomConfig, index: int, kind: str | None = None, part: int = 0, noise: bool = True
) -> Phantom:
    """Simulate one image of a subject together with its healthy twin.

    Args:
        config: the cohort's settings.
        index: number of the subject from 0; with the seed it determines everything.
        kind: kind of lesion, or None for a healthy subject, who is their own twin.
        part: number of the slice, from 0; 0 for a volume.
        noise: add Rician noise, the same to both.

    Raises:
        ArgumentError: an unknown kind, or no place for a lesion of the wanted size.
    """
    from normscan.phantom.config import KINDS, _known

    if kind is not None:
        _known("lesion kind", (kind,), KINDS)
    return Subject(config, index, kind).render(part, twin=True, noise=noise)
