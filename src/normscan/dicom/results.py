"""What is written of a finding, whatever made it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from normscan.series import Series

MOST_SEGMENTS = 50
"""Components beyond so many, by their peaks, share the last segment."""


@dataclass(frozen=True, eq=False)
class Results:
    """A finding on a DICOM series.

    Attributes:
        series: of the scan; its headers hold the patient's identity, which the objects inherit.
        affine: (4, 4) index of the map to RAS mm.
        map: (*series.shape) float32, or None for a method that only scores.
        labels: (*series.shape) number of each component, from 1, the highest peak first; None where
            no threshold was set.
        components: of each, in that order: ``voxels``, ``peak``, and ``volume_mm3`` or ``area_mm2``
            where the scan has a spacing.
        score: of the scan.
        p_value: against healthy scans, or None.
        anomalous: the decision, or None where it is open.
        threshold: of the score, or None.
        wanted: share of healthy scans that were to be flagged at that threshold, or None.
        expected: share that is expected to be, or None.
        pixel_threshold: of the map, or None.
        quality: ``ok``, ``flag`` or ``refuse``; None without a quality gate.
        method: name of the method.
        version: of normscan.
        detector: SHA-256 of the detector.
        picture: draws the map over the picture, (rows, columns, 3) uint8, or None.
        page: draws the page about it, as PDF, or None.
        refused: why it was not scored, in a sentence; empty where it was.
    """

    series: Series
    affine: np.ndarray
    map: np.ndarray | None
    labels: np.ndarray | None
    score: float
    components: Sequence[dict[str, Any]] = field(default=())
    p_value: float | None = None
    anomalous: bool | None = None
    threshold: float | None = None
    wanted: float | None = None
    expected: float | None = None
    pixel_threshold: float | None = None
    quality: str | None = None
    method: str = ""
    version: str = ""
    detector: str = ""
    picture: Callable[[], np.ndarray] | None = None
    page: Callable[[], bytes] | None = None
    refused: str = ""

    @property
    def spots(self) -> list[dict[str, Any]]:
        """The components as segments show them: those beyond ``MOST_SEGMENTS`` are summed up."""
        if len(self.components) <= MOST_SEGMENTS:
            return [dict(each) for each in self.components]
        rest = list(self.components[MOST_SEGMENTS - 1 :])
        summed: dict[str, Any] = {"peak": rest[0]["peak"], "parts": len(rest)}
        for name in ("voxels", "volume_mm3", "area_mm2"):
            if name in rest[0]:
                summed[name] = sum(each[name] for each in rest)
        return [*(dict(each) for each in self.components[: MOST_SEGMENTS - 1]), summed]

    @property
    def segments(self) -> np.ndarray | None:
        """(*series.shape) uint8 number of the segment of each voxel, 0 outside."""
        if self.labels is None:
            return None
        return np.minimum(self.labels, MOST_SEGMENTS).astype(np.uint8)
