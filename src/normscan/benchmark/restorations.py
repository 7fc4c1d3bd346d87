"""RQI, AHI and CACI of the methods that restore; the formulas are `metrics.normative.FORMULAS`.

CACI and AHI belong to a cell. RQI compares methods, so it is added when they are ranked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.cohort import Cohort, CohortRow
from normscan.detector import Detector
from normscan.detector.finding import Finding
from normscan.errors import ArgumentError, NormscanError, WeightsError
from normscan.metrics.normative import (
    Extractor,
    anomaly_to_healthy,
    image_features,
    measure_restoration,
    restoration_estimates,
    restoration_quality,
)

if TYPE_CHECKING:
    import pandas as pd

INDICES = {"rqi": "RQI", "ahi": "AHI", "caci": "CACI"}
RESTORATIONS = "restorations.csv"
# Of the healthy training scans, evenly spaced, for the range of intensities and AHI.
MOST_TRAINING = 500


class Restorations:
    """Measures restored scans one by one.

    Both images are taken as the method saw them, on the scan's grid, and scaled by one window for
    the whole set, 0 to 1: the medians of the least and the greatest value of each training scan.

    Args:
        detector: fitted.
        training: healthy training scans of the set.
        features: network, taps and weights of the features; see `protocol.Features`.
        region: pixels that count, ``whole`` or ``foreground``.
    """

    def __init__(
        self, detector: Detector, training: Cohort, features: Mapping[str, Any], region: str
    ) -> None:
        step = max(1, math.ceil(len(training) / MOST_TRAINING))
        self.detector, self.training = detector, list(training)[::step]
        self.features, self.region = features, region
        self.rows: list[dict[str, Any]] = []
        self.note, self.missed = "", 0
        self._seen: dict[str, list[np.ndarray]] = {"healthy": [], "anomalous": [], "restored": []}
        self._subjects: dict[str, list[str]] = {"healthy": [], "anomalous": []}

    @cached_property
    def extractor(self) -> Extractor | None:
        """The frozen network, or None without its weights."""
        from normscan.networks.backbones import Backbone

        try:
            return Backbone(**self.features)
        except WeightsError as error:
            self.note = f"RQI and AHI left out: {error}"
            return None

    @cached_property
    def _healthy(self) -> list[np.ndarray]:
        """The prepared training scans; one that can't be prepared didn't train either."""
        preparation, images = self.detector.preparation(), []
        for row in self.training:
            try:
                prepared = preparation(row)
                images.append(prepared.back(prepared.image))
            except NormscanError:
                continue
        if not images:
            raise ArgumentError("No training scan is left to set the range of intensities.")
        return images

    @cached_property
    def window(self) -> tuple[float, float]:
        """Intensities that become 0 and 1."""
        low, high = np.median([(x.min(), x.max()) for x in self._healthy], axis=0)
        return float(low), float(high)

    def _scaled(self, image: np.ndarray) -> np.ndarray:
        low, high = self.window
        return (image - low) / max(high - low, 1e-12)

    def add(self, row: CohortRow, finding: Finding) -> None:
        """Measure a scan, where the method restored it; what can't be measured is counted."""
        if finding.reconstruction is None or finding.prepared is None:
            return
        try:
            self._add(row, finding, finding.prepared, finding.reconstruction)
        except NormscanError:
            self.missed += 1

    def _add(
        self, row: CohortRow, finding: Finding, prepared: np.ndarray, restored: np.ndarray
    ) -> None:
        before, after = self._scaled(prepared), self._scaled(restored)
        where = finding.foreground if self.region == "foreground" else None
        lesion = row.load_mask(finding.scan)
        found = measure_restoration(before, after, lesion, where, extractor=self.extractor)
        who = {"scan": row.scan, "subject": row.subject, "label": row.label}
        self.rows.append(who | found)
        if self.extractor is None or row.label is None:
            return
        kind = "anomalous" if row.label else "healthy"
        self._subjects[kind].append(row.subject)
        self._seen[kind].append(image_features([before], self.extractor)[0])
        if row.label:
            self._seen["restored"].append(image_features([after], self.extractor)[0])

    def indices(self) -> dict[str, dict[str, Any]]:
        """Return AHI and CACI with their intervals, as plain values; empty without restorations."""
        if not self.rows:
            return {}
        subjects = [row["subject"] for row in self.rows]
        if self.missed:
            self.note = f"{self.missed} restorations could not be measured and are left out"
        measures = [{k: v for k, v in r.items() if k not in _WHO} for r in self.rows]
        found = {"caci": restoration_estimates(measures, subjects)["caci"].to_dict()}
        parts = [self._seen[kind] for kind in ("healthy", "anomalous", "restored")]
        if self.extractor is not None and len(self._healthy) > 1 and min(map(len, parts)) > 1:
            training = image_features([self._scaled(x) for x in self._healthy], self.extractor)
            unseen, sick, mended = map(np.stack, parts)
            owners = self._subjects["healthy"], self._subjects["anomalous"]
            ahi = anomaly_to_healthy(training, unseen, sick, mended, *owners)
            found["ahi"] = ahi.to_dict()
            if math.isnan(ahi.value):
                self.note = f"AHI is undefined: {ahi.reason}"
        return found


_WHO = ("scan", "subject", "label")


def quality(tables: Mapping[str, Sequence[pd.DataFrame]]) -> dict[str, float]:
    """Return RQI by method, on the healthy scans that all of them restored.

    Args:
        tables: for each method its `restorations.csv`, one a seed; a scan's measures are averaged
            over the seeds first.
    """
    import pandas as pd

    healthy = {}
    for method, seeds in tables.items():
        whole = pd.concat(list(seeds))
        some = whole[whole["label"] == 0]
        means = some.drop(columns=list(_WHO[1:])).groupby("scan").mean()
        healthy[method] = means.join(some.groupby("scan")["subject"].first())
    if not healthy:
        return {}
    common = sorted(set.intersection(*(set(frame.index) for frame in healthy.values())))
    if not common:
        return dict.fromkeys(healthy, math.nan)
    first = next(iter(healthy.values())).loc[common]
    rows: Any = {
        method: frame.loc[common].drop(columns="subject").to_dict("records")
        for method, frame in healthy.items()
    }
    found = restoration_quality(rows, first["subject"].tolist(), replicates=0)
    return {method: estimate.value for method, estimate in found.items()}
