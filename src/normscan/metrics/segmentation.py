"""What a segmentation is judged by beyond overlap: lesions found, surfaces, volumes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from normscan.metrics.agreement import VolumeAgreement, surface_distances, volume_agreement
from normscan.metrics.curves import Floats, divide
from normscan.metrics.estimates import Estimate, bootstrap, to_json
from normscan.metrics.lesions import LesionMetrics, LesionScores, MatchRule
from normscan.metrics.maps import checked_map, checked_mask


@dataclass(frozen=True)
class SegmentationMetrics:
    """Results of the segmentations of a test set.

    Attributes:
        lesions: lesion-level detection.
        hd95: mean over the scans of the 95 % Hausdorff distance, in mm.
        surface_distance: mean over the scans of the average symmetric surface distance, in mm.
        surfaces: scans on which the two are defined.
        surfaces_undefined: scans with a lesion on which they are not: nothing was segmented.
        volumes: predicted against true volumes of the subjects, in ml (cm2 in 2D).
    """

    lesions: LesionMetrics
    hd95: Estimate
    surface_distance: Estimate
    surfaces: int
    surfaces_undefined: int
    volumes: VolumeAgreement

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, None for NaN."""
        return to_json(self)


class SegmentationScores:
    """Collects segmentations scan by scan, then evaluates them.

    Args:
        rule: when a component finds a lesion; a rule or its name in `RULES`.
        surfaces: whether distances of surfaces are computed, the slow part in large volumes.
    """

    def __init__(self, rule: MatchRule | str = "any_overlap", surfaces: bool = True) -> None:
        self.lesions = LesionScores(rule)
        self.surfaces = surfaces
        self._distances: list[tuple[Hashable, float, float]] = []
        self._volumes: dict[Hashable, Floats] = defaultdict(lambda: np.zeros(2))

    def __len__(self) -> int:
        return len(self.lesions)

    def add(
        self,
        segmentation: npt.ArrayLike,
        map: npt.ArrayLike,
        mask: npt.ArrayLike,
        subject: Hashable,
        spacing: Sequence[float],
        region: npt.ArrayLike | None = None,
    ) -> None:
        """Add the segmentation of one scan.

        Args:
            segmentation: predicted mask (H, W) or (D, H, W).
            map: anomaly map of the same shape; ranks the components for the FROC curve.
            mask: lesion mask of the same shape, 0 is healthy.
            subject: whose scan it is; volumes are summed and intervals resampled by subject.
            spacing: mm for each axis.
            region: pixels that count, same shape; None for the whole image.

        Raises:
            ArgumentError: NaN in the map, shapes that differ, or an empty region.
        """
        values, inside = checked_map(map, region)
        predicted = checked_mask(segmentation, values.shape, "segmentation") & inside
        truth = checked_mask(mask, values.shape, "lesion mask") & inside
        ranked = np.where(predicted, np.maximum(values, np.finfo(np.float32).min), -np.inf)
        self.lesions.add(ranked, truth, subject, -np.inf, spacing=spacing)
        unit = float(np.prod(spacing)) / 10 ** len(spacing)
        self._volumes[subject] += [predicted.sum() * unit, truth.sum() * unit]
        if self.surfaces and truth.any():
            self._distances.append((subject, *surface_distances(predicted, truth, spacing)))

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
        numbers = {subject: i for i, subject in enumerate(self._volumes)}
        sums, counts = np.zeros((2, len(numbers))), np.zeros(len(numbers))
        for subject, *distances in self._distances:
            if not np.isnan(distances[0]):
                sums[:, numbers[subject]] += distances
                counts[numbers[subject]] += 1

        def means(weights: Floats) -> dict[str, Floats]:
            return {
                name: divide(weights @ part, weights @ counts, np.nan)
                for name, part in zip(("hd95", "surface_distance"), sums, strict=True)
            }

        point = {name: float(v[0]) for name, v in means(np.ones((1, len(numbers)))).items()}
        found = bootstrap(means, point, len(numbers), cells=len(numbers), **options)
        return SegmentationMetrics(
            lesions=lesions,
            **found,
            surfaces=int(counts.sum()),
            surfaces_undefined=len(self._distances) - int(counts.sum()),
            volumes=volume_agreement(*np.array(list(self._volumes.values())).T),
        )
