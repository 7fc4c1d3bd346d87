"""What a segmentation is judged by beyond overlap: lesions found, surfaces, volumes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from normscan.metrics.agreement import VolumeAgreement, icc, surface_distances, volume_agreement
from normscan.metrics.curves import Floats, divide
from normscan.metrics.estimates import Estimate, bootstrap, to_json
from normscan.metrics.lesions import LesionMetrics, LesionScores, MatchRule
from normscan.metrics.maps import checked_map, checked_mask

# Diameters in mm that cut lesions into ranges: fixed, so that cohorts compare.
DIAMETERS = (5.0, 10.0, 20.0)


@dataclass(frozen=True)
class SizeStratum:
    """Lesions of one range of sizes.

    Attributes:
        sensitivity: fraction of them found; NaN without any.
        lesions: how many there are.
    """

    sensitivity: Estimate
    lesions: int


@dataclass(frozen=True)
class SegmentationMetrics:
    """Results of the segmentations of a test set.

    Attributes:
        lesions: lesion-level detection.
        strata: sensitivity by range of diameters in `unit`, of the sphere (disc in 2D) of the same
            size as the lesion: [0, 5), [5, 10), [10, 20), [20, inf).
        hd95: mean over the scans of the 95 % Hausdorff distance, in `unit`.
        surface_distance: mean over the scans of the average symmetric surface distance, in `unit`.
            The n of both are the subjects on which they are defined.
        surfaces: scans on which the two are defined.
        surfaces_undefined: scans with a lesion on which they are not: nothing was segmented.
        volumes: predicted against true volumes of the subjects, in `volume_unit`.
        volume_bias: mean of predicted minus true, with its interval.
        volume_icc: ICC(2,1), with its interval.
        volume_pairs: predicted and true volume of each subject.
        volume_unit: `ml`, or `cm2` in 2D; `voxels` or `pixels` where the unit is px.
        unit: of lengths: mm, or px where no scan has a spacing.
        without_spacing: scans that lengths and volumes leave out, since others have a spacing.
    """

    lesions: LesionMetrics
    strata: dict[str, SizeStratum]
    hd95: Estimate
    surface_distance: Estimate
    surfaces: int
    surfaces_undefined: int
    volumes: VolumeAgreement
    volume_bias: Estimate
    volume_icc: Estimate
    volume_pairs: list[list[float]]
    volume_unit: str
    unit: str
    without_spacing: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, None for NaN."""
        return to_json(self)


class _Sizes:
    """Lengths and volumes of scans that share a unit."""

    def __init__(self) -> None:
        self.scans = self.dims = 0
        self.distances: list[tuple[Hashable, float, float]] = []
        self.volumes: dict[Hashable, Floats] = defaultdict(lambda: np.zeros(2))
        self.found: list[tuple[Hashable, Floats, npt.NDArray[np.bool_]]] = []

    def take(self, other: _Sizes) -> None:
        """Take in what another one has."""
        self.scans, self.dims = self.scans + other.scans, max(self.dims, other.dims)
        self.distances += other.distances
        self.found += other.found
        for subject, volumes in other.volumes.items():
            self.volumes[subject] = self.volumes[subject] + volumes


class SegmentationScores:
    """Collects segmentations scan by scan, then evaluates them.

    Args:
        rule: when a component finds a lesion; a rule or its name in `RULES`.
        surfaces: whether distances of surfaces are computed, the slow part in large volumes.
    """

    def __init__(self, rule: MatchRule | str = "any_overlap", surfaces: bool = True) -> None:
        self.lesions = LesionScores(rule)
        self.surfaces = surfaces
        self._sizes = {"mm": _Sizes(), "px": _Sizes()}

    def __len__(self) -> int:
        return len(self.lesions)

    def join(self, other: SegmentationScores) -> SegmentationScores:
        """Return the scans of both together, by the rule of the first."""
        both = SegmentationScores(self.lesions.rule, self.surfaces)
        both.lesions = self.lesions.join(other.lesions)
        for part in (self, other):
            for unit, sizes in part._sizes.items():
                both._sizes[unit].take(sizes)
        return both

    def add(
        self,
        segmentation: npt.ArrayLike,
        map: npt.ArrayLike,
        mask: npt.ArrayLike,
        subject: Hashable,
        spacing: Sequence[float] | None,
        region: npt.ArrayLike | None = None,
    ) -> None:
        """Add the segmentation of one scan.

        Args:
            segmentation: predicted mask (H, W) or (D, H, W).
            map: anomaly map of the same shape; ranks the components for the FROC curve.
            mask: lesion mask of the same shape, 0 is healthy.
            subject: whose scan it is; volumes are summed and intervals resampled by subject.
            spacing: mm for each axis; None where nobody knows them.
            region: pixels that count, same shape; None for the whole image.

        Raises:
            ArgumentError: NaN in the map, shapes that differ, or an empty region.
        """
        values, inside = checked_map(map, region)
        predicted = checked_mask(segmentation, values.shape, "segmentation") & inside
        truth = checked_mask(mask, values.shape, "lesion mask") & inside
        ranked = np.where(predicted, np.maximum(values, np.finfo(np.float32).min), -np.inf)
        match = self.lesions.add(ranked, truth, subject, -np.inf, spacing=spacing)
        sizes, dims = self._sizes["mm" if spacing is not None else "px"], predicted.ndim
        steps = (1.0,) * dims if spacing is None else spacing
        voxel = math.prod(steps) if self.lesions.rule.unit == "voxels" else 1.0
        sizes.found.append((subject, _diameter(match.sizes * voxel, dims), match.peaks > -np.inf))
        sizes.scans, sizes.dims = sizes.scans + 1, max(sizes.dims, dims)
        unit = 1.0 if spacing is None else math.prod(steps) / 10**dims
        sizes.volumes[subject] += [predicted.sum() * unit, truth.sum() * unit]
        if self.surfaces and truth.any():
            sizes.distances.append((subject, *surface_distances(predicted, truth, steps)))

    def evaluate(
        self, *, replicates: int = 1000, seed: int = 0, confidence: float = 0.95
    ) -> SegmentationMetrics:
        """Return the metrics with bootstrap intervals by subject.

        Args:
            replicates: bootstrap resamples; 0 for no intervals.
            seed: seed of the resampling.
            confidence: coverage of the intervals.

        Raises:
            ArgumentError: nothing was added.
        """
        options: dict[str, Any] = {
            "replicates": replicates,
            "seed": seed,
            "confidence": confidence,
        }
        lesions = self.lesions.evaluate(**options)
        length = "mm" if self._sizes["mm"].scans else "px"
        sizes = self._sizes[length]
        numbers = {subject: i for i, subject in enumerate(sizes.volumes)}
        sums, counts = np.zeros((2, len(numbers))), np.zeros(len(numbers))
        for subject, *distances in sizes.distances:
            if not np.isnan(distances[0]):
                sums[:, numbers[subject]] += distances
                counts[numbers[subject]] += 1

        hits, sized = np.zeros((2, len(DIAMETERS) + 1, len(numbers)))
        for subject, diameters, found_ones in sizes.found:
            stratum = np.digitize(diameters, DIAMETERS)
            np.add.at(sized[:, numbers[subject]], stratum, 1)
            np.add.at(hits[:, numbers[subject]], stratum, found_ones)

        def means(weights: Floats) -> dict[str, Floats]:
            parts = dict(
                zip(("hd95", "surface_distance"), ((s, counts) for s in sums), strict=True)
            )
            parts |= dict(zip(_STRATA, zip(hits, sized, strict=True), strict=True))
            return {
                name: divide(weights @ part, weights @ whole, np.nan)
                for name, (part, whole) in parts.items()
            }

        point = {name: float(v[0]) for name, v in means(np.ones((1, len(numbers)))).items()}
        found = bootstrap(means, point, len(numbers), cells=len(numbers), **options)
        subjects = {name: int((sized[i] > 0).sum()) for i, name in enumerate(_STRATA)}
        subjects |= dict.fromkeys(("hd95", "surface_distance"), int((counts > 0).sum()))
        found = {name: replace(value, n=subjects[name]) for name, value in found.items()}
        pairs = np.array(list(sizes.volumes.values()))

        def agreement(weights: Floats) -> dict[str, Floats]:
            drawn = [pairs.repeat(w.astype(int), axis=0) for w in weights]
            bias = [float(np.mean(p[:, 0] - p[:, 1])) for p in drawn]
            return {
                "volume_bias": np.array(bias),
                "volume_icc": np.array([icc(p) for p in drawn]),
            }

        whole = {name: float(v[0]) for name, v in agreement(np.ones((1, len(pairs)))).items()}
        found |= bootstrap(agreement, whole, len(pairs), cells=len(pairs), **options)
        return SegmentationMetrics(
            lesions=lesions,
            strata={
                n.replace("mm", length): SizeStratum(found.pop(n), int(sized[i].sum()))
                for i, n in enumerate(_STRATA)
            },
            **found,
            surfaces=int(counts.sum()),
            surfaces_undefined=len(sizes.distances) - int(counts.sum()),
            volumes=volume_agreement(*pairs.T),
            volume_pairs=pairs.round(6).tolist(),
            volume_unit=_VOLUMES[length][sizes.dims == 3],
            unit=length,
            without_spacing=self._sizes["px"].scans if length == "mm" else 0,
        )


_STRATA = [
    f"under {DIAMETERS[0]:g} mm",
    *(f"{low:g} to {high:g} mm" for low, high in zip(DIAMETERS[:-1], DIAMETERS[1:], strict=True)),
    f"{DIAMETERS[-1]:g} mm and more",
]

_VOLUMES = {"mm": ("cm2", "ml"), "px": ("pixels", "voxels")}  # of areas and of volumes


def _diameter(sizes: Floats, dims: int) -> Floats:
    """Return the diameter of the disc or sphere of each size, in its unit of length."""
    return 2 * np.sqrt(sizes / math.pi) if dims == 2 else np.cbrt(6 * sizes / math.pi)
