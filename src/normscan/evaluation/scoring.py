"""A cohort is scored: one prediction path, scan after scan, and what is kept of each."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from normscan.cohort import Cohort, CohortRow
from normscan.detector import Detector
from normscan.detector.finding import Finding
from normscan.errors import NormscanError
from normscan.evaluation.columns import column_name
from normscan.evaluation.detection import add_boxes, has_boxes
from normscan.io import MaskReport
from normscan.metrics import PixelScores
from normscan.metrics.boxes import BoxScores
from normscan.metrics.segmentation import SegmentationScores
from normscan.progress import Progress

Region = Literal["whole", "foreground"]

MOST_GROUPS = 12


@dataclass
class Scores:
    """What an evaluation collects while it goes from scan to scan.

    Attributes:
        rows: of the table of scans.
        failures: scans that could not be scored, with the reason.
        pixels: maps and masks.
        segmentations: of the maps.
        groups: pixels of the lesioned scans of each kind.
        masked: scans with a lesion.
        unmasked: scans with a map and without a mask.
        masks: how the masks were read.
        accepted: the same of the scans that the quality gate lets pass; None where it refuses none.
        boxes: found and true ones, where the cohort has boxes or points.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    pixels: PixelScores = field(default_factory=PixelScores)
    segmentations: SegmentationScores = field(default_factory=SegmentationScores)
    groups: dict[str, PixelScores] = field(default_factory=dict)
    masked: int = 0
    unmasked: int = 0
    masks: MaskReport = field(default_factory=MaskReport)
    accepted: Scores | None = None
    boxes: BoxScores = field(default_factory=BoxScores)

    def join(self, other: Scores) -> Scores:
        """Return both together, the rows of this one first."""
        both = Scores(
            self.rows + other.rows, self.failures + other.failures, self.pixels.join(other.pixels),
            self.segmentations.join(other.segmentations), dict(self.groups),
            self.masked + other.masked, self.unmasked + other.unmasked, self.masks,
            boxes=self.boxes.join(other.boxes),
        )  # fmt: skip
        for name, pixels in other.groups.items():
            both.groups[name] = both.groups.get(name, PixelScores()).join(pixels)
        return both

    def add(
        self, row: CohortRow, finding: Finding, region: Region, group: str | None, seen: str = ""
    ) -> None:
        """Take in one scan, or nothing of it if its mask is bad.

        Args:
            row: the scan.
            finding: what the detector says of it.
            region: pixels that count.
            group: column whose values are told apart.
            seen: what the scan was for the detector, see ``State.seen``.
        """
        mask = row.load_mask(finding.scan, report=self.masks)
        self.rows.append(
            {
                "scan": row.scan,
                "subject": row.subject,
                "label": row.label,
                "split": row.split,
                **({"site": row.site} if row.site else {}),
                "score": finding.score,
                "p_value": finding.p_value,
                "anomalous": finding.anomalous,
                **({"quality": finding.quality.status} if finding.quality else {}),
                "seen": seen,
                "seconds": round(finding.seconds, 4),
                **{column_name(name): value for name, value in row.columns.items()},
            }
        )
        if finding.map is None:
            return
        if mask is None:
            self.unmasked += 1
            return
        where = finding.foreground if region == "foreground" else None
        self.pixels.add(finding.map, mask, row.subject, where)
        if (found := finding.segmentation) is not None:
            spacing = finding.scan.spacing if finding.scan.measured else None
            self.segmentations.add(found, finding.map, mask, row.subject, spacing, where)
        self.masked += bool(mask.any())
        if group and mask.any():
            value = str(row.columns.get(group, ""))
            self.groups.setdefault(value, PixelScores()).add(finding.map, mask, row.subject, where)


def score_cohort(
    detector: Detector,
    rows: Cohort,
    region: Region = "whole",
    group: str | None = None,
    progress: Progress | None = None,
    name: str = "predict",
) -> Scores:
    """Predict every scan; bad ones are reported and passed over."""
    scores = Scores()
    refused = Scores(masks=scores.masks)
    bar = progress or Progress(False)
    boxed = has_boxes(rows)
    tracked: Iterable[CohortRow] = bar.track(rows, name, len(rows))
    for row, result in detector.predict_cohort(tracked, details=region == "foreground", force=True):
        try:
            if isinstance(result, NormscanError):
                raise result
            no = result.quality is not None and not result.quality.passed
            taken = refused if no else scores
            found = BoxScores()
            if boxed:
                add_boxes(found, row, result)
            taken.add(row, result, region, group, detector.seen(row.paths))
            taken.boxes.take(found)
        except NormscanError as error:
            # Results and reports travel: they name files as the table does, not where they lie.
            reason = str(error).replace(f"{rows.root}{os.sep}", "")
            scores.failures.append({"scan": row.scan, "reason": reason})
            if name == "predict":  # of baselines it was said already
                bar.say(f"left out {row.scan}: {error}")
    if not refused.rows:
        return scores
    whole = scores.join(refused)
    order = {row.scan: i for i, row in enumerate(rows)}
    whole.rows.sort(key=lambda r: order[r["scan"]])
    whole.accepted = scores
    return whole


def group_column(cohort: Cohort) -> str | None:
    """Return the free text column that tells kinds of anomalies apart, if there is one."""
    for name in ("kind", "defect", "pathology", "diagnosis"):
        values = {str(r.columns[name]) for r in cohort if r.label == 1 and name in r.columns}
        if 1 < len(values) <= MOST_GROUPS:
            return name
    return None
