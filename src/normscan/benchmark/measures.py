"""What a benchmark measures of each scan beside the evaluation's own figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from normscan.benchmark.restorations import Restorations
from normscan.cohort import CohortRow
from normscan.detector import Detector
from normscan.detector.finding import Finding
from normscan.errors import NormscanError
from normscan.metrics import PixelScores, variants

# Variants need all maps at once: 2 GiB of float32.
MOST_PIXELS = 2**29


class Watched:
    """A detector that measures its findings as they pass; evaluation can't tell the difference.

    Args:
        detector: fitted.
        region: pixels that count, ``whole`` or ``foreground``.
        wanted: names of variants to compute.
        restorations: measures what the method restores; None where nobody asks for it.
    """

    def __init__(
        self,
        detector: Detector,
        region: str,
        wanted: Iterable[str] = (),
        restorations: Restorations | None = None,
    ) -> None:
        self.restorations = restorations
        self.detector, self.region, self.wanted = detector, region, list(wanted)
        self.scans: list[dict[str, Any]] = []
        self._maps: list[np.ndarray] = []
        self._masks: list[np.ndarray] = []
        self._pixels = 0
        self._measured: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.detector, name)

    def predict_cohort(
        self,
        rows: Iterable[CohortRow],
        details: bool = False,
        force: bool = False,
        workers: int | None = None,
    ) -> Iterator[tuple[CohortRow, Finding | NormscanError]]:
        """Predict as the detector does, and measure each scan that has a map and a mask, once."""
        details = details or self.restorations is not None
        for row, result in self.detector.predict_cohort(rows, details, force, workers):
            if row.scan in self._measured:  # it comes again for its picture
                yield row, result
                continue
            self._measured.add(row.scan)
            if isinstance(result, Finding) and self.restorations is not None:
                self.restorations.add(row, result)
            if isinstance(result, Finding) and result.map is not None:
                try:
                    self._measure(row, result, result.map)
                except NormscanError:
                    pass  # evaluation meets the same mask and reports it
            yield row, result

    def _measure(self, row: CohortRow, finding: Finding, found: np.ndarray) -> None:
        mask = row.load_mask(finding.scan)
        if mask is None:
            return
        where = finding.foreground if self.region == "foreground" else None
        if self.wanted:
            self._keep(found, mask, where)
        if not mask.any():
            return
        one = PixelScores()
        one.add(found, mask, row.subject, where)
        result = one.evaluate(finding.pixel_threshold, replicates=0)
        figures = {"pixel_auroc": result.auroc, "pixel_ap": result.ap, "aupro": result.aupro}
        figures |= {"best_dice": result.best_dice}
        if result.dice is not None:
            figures["dice"] = figures["subject_dice"] = result.dice
        self.scans.append(
            {"scan": row.scan, "subject": row.subject}
            | {name: estimate.value for name, estimate in figures.items()}
        )

    def _keep(self, found: np.ndarray, mask: np.ndarray, where: np.ndarray | None) -> None:
        self._pixels += found.size
        if self._pixels > MOST_PIXELS:
            self._maps, self._masks = [], []
            return
        if where is not None:  # a list of pixels has lost its components, so the rest is emptied
            found, mask = np.where(where, found, -np.inf), mask & where
        self._maps.append(found.astype(np.float32))
        self._masks.append(mask)

    def variants(self) -> tuple[dict[str, float | None], str]:
        """Return the variants by name, None where undefined, and a note where they are left out."""
        if not self.wanted or not any(mask.any() for mask in self._masks):
            too_many = self._pixels > MOST_PIXELS
            return {}, "variants left out: more than 2^29 pixels" if too_many else ""
        if self.region == "foreground":
            return {}, "variants left out: they are defined on whole images"
        values: dict[str, float | None] = {}
        for name in self.wanted:
            value = getattr(variants, name)(self._maps, self._masks)
            values[name] = value if math.isfinite(value) else None
        return values, ""
