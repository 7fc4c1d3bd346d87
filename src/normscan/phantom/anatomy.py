"""One subject's brain: tissue fractions at any point, and points to put a lesion at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normscan.phantom.atlas import CSF, load_atlas
from normscan.phantom.config import PhantomConfig
from normscan.phantom.deform import random_warp
from normscan.phantom.fields import SmoothField, stream

_ANATOMY, _SULCI = 0, 1  # random streams of a subject
_SHARPEN = 1.6  # an average of 152 people has softer borders than any of them
_CHUNK = 400_000  # points at a time, to bound the memory that a volume takes


class Anatomy:
    """The brain of one subject, as a function of position.

    Args:
        config: amplitudes of the variation between people.
        subject: index from 0.
    """

    def __init__(self, config: PhantomConfig, subject: int) -> None:
        self.atlas = load_atlas(config.spacing)
        self.warp = random_warp(
            stream(config.seed, subject, _ANATOMY),
            config.deformation,
            config.scale_variation,
            config.rotation,
            config.shift,
        )
        rng = stream(config.seed, subject, _SULCI)
        self._sulci = config.sulci
        self._offsets = [SmoothField(rng, 7.0) for _ in range(2)]

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Return whether points (N, 3) in mm lie in the brain, (N,) bool."""
        chunks = [
            self.atlas.brain(self.warp(points[i : i + _CHUNK])) >= 0.5
            for i in range(0, len(points), _CHUNK)
        ]
        return np.concatenate(chunks)

    def tissue(self, points: np.ndarray) -> np.ndarray:
        """Return fractions (N, 3) of CSF, GM, WM at points (N, 3) in mm.

        They add up to 1 in the brain and are 0 outside.
        """
        chunks = [self._tissue(points[i : i + _CHUNK]) for i in range(0, len(points), _CHUNK)]
        return np.concatenate(chunks)

    def _tissue(self, points: np.ndarray) -> np.ndarray:
        fractions, _ = self.atlas.fractions(self.warp(points))
        if self._sulci > 0:
            fractions = fractions**_SHARPEN
            # Sulci and ventricles widen or narrow, and the border of grey and white matter wanders,
            # from place to place: another subject has other folds, not only moved ones.
            fractions[:, CSF] *= np.exp(self._sulci * self._offsets[0](points))
            fractions[:, 2] *= np.exp(self._sulci * self._offsets[1](points))
        total = fractions.sum(axis=1, keepdims=True)
        return np.asarray(fractions / np.where(total > 0, total, 1.0))

    def depth(self, points: np.ndarray) -> np.ndarray:
        """Return the distance (N,) in mm to the outside of the brain, measured in the template."""
        return self.atlas.depth(self.warp(points))

    def ventricle_distance(self, points: np.ndarray) -> np.ndarray:
        """Return the distance (N,) in mm to the lateral ventricles, measured in the template."""
        return self.atlas.ventricle_distance(self.warp(points))


@dataclass(frozen=True, eq=False)
class Places:
    """Points in the brain, to choose the centre of a lesion from.

    Attributes:
        points: (N, 3) mm.
        fractions: (N, 3) CSF, GM, WM.
        depth: (N,) mm below the surface of the brain.
        ventricle_distance: (N,) mm.
    """

    points: np.ndarray
    fractions: np.ndarray
    depth: np.ndarray
    ventricle_distance: np.ndarray

    def choose(self, rng: np.random.Generator, weights: np.ndarray) -> int | None:
        """Return the index of a point drawn by weights (N,), or None where all are 0."""
        total = float(weights.sum()) if len(weights) else 0.0
        return int(rng.choice(len(weights), p=weights / total)) if total > 0 else None


@dataclass(frozen=True, eq=False)
class Placer:
    """Where lesions may be centred: close to the planned slices, or within a range of heights.

    Attributes:
        anatomy: the subject.
        planes: heights in mm of the planned slices; empty for a volume.
        heights: lowest and highest centre in mm in a volume.
    """

    anatomy: Anatomy
    planes: tuple[float, ...]
    heights: tuple[float, float]

    def places(self, rng: np.random.Generator, reach: float, plane: int | None = None) -> Places:
        """Return candidate points.

        Args:
            rng: source of randomness.
            reach: largest distance in mm of the centre from the slice that must cut the lesion.
            plane: index of that slice; None means the middle of all.
        """
        side = np.stack(np.meshgrid(np.arange(-75.0, 76, 3), np.arange(-108.0, 78, 3)), axis=-1)
        flat = side.reshape(-1, 2) + rng.uniform(-1.5, 1.5, 2)
        if self.planes:
            middle = float(np.mean(self.planes)) if plane is None else self.planes[plane]
            height = np.full(len(flat), middle + reach * rng.uniform(-1, 1))
        else:
            height = rng.uniform(*self.heights, len(flat))
        points = np.column_stack([flat, height])
        points = points[self.anatomy.inside(points)]
        return Places(
            points,
            self.anatomy.tissue(points),
            self.anatomy.depth(points),
            self.anatomy.ventricle_distance(points),
        )
