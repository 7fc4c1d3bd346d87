"""A cohort is scored: one prediction path, scan after scan, and what is kept of each."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from normscan.cohort import Cohort, CohortRow, Opened
from normscan.detector import Detector
from normscan.detector.finding import Finding
from normscan.errors import NormscanError
from normscan.evaluation.columns import column_name
from normscan.evaluation.detection import add_boxes, has_boxes
from normscan.identity import about_files
from normscan.io import MaskReport, probe
from normscan.metrics import PixelScores
from normscan.metrics.boxes import BoxScores
from normscan.metrics.segmentation import SegmentationScores
from normscan.progress import Progress

Region = Literal["whole", "foreground"]

MOST_GROUPS = 12
# Of all scans and detectors, that are scored in one pass over the files: 512 MiB of float32.
MOST_PIXELS = 2**27


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
        seconds: of each stage, summed over the scans.
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
    seconds: dict[str, float] = field(default_factory=dict)

    def took(self, stages: Mapping[str, float]) -> None:
        """Add the seconds of a prediction, or of several."""
        for name, seconds in stages.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def stages(self) -> dict[str, float]:
        """Return the mean seconds of each stage of a prediction."""
        return {name: total / len(self.rows) for name, total in self.seconds.items()}

    boxes: BoxScores = field(default_factory=BoxScores)

    def join(self, other: Scores) -> Scores:
        """Return both together, the rows of this one first."""
        both = Scores(
            self.rows + other.rows, self.failures + other.failures, self.pixels.join(other.pixels),
            self.segmentations.join(other.segmentations), dict(self.groups),
            self.masked + other.masked, self.unmasked + other.unmasked, self.masks,
            boxes=self.boxes.join(other.boxes),
        )  # fmt: skip
        both.took(self.seconds)
        both.took(other.seconds)
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
        self.took(finding.stages)
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
) -> Scores:
    """Predict every scan; bad ones are reported and passed over."""
    return score_together([detector], rows, region, group, progress)[0]


def score_together(
    detectors: Sequence[Detector],
    rows: Cohort,
    region: Region = "whole",
    group: str | None = None,
    progress: Progress | None = None,
) -> list[Scores]:
    """Predict every scan with each detector; what they share of a scan is read and prepared once.

    Bad scans are reported and passed over, in the words of the first detector. Scores of pixels take
    memory: those of many large scans are taken detector by detector, over the files anew.

    Args:
        detectors: the first is the one that is evaluated; the others stand beside it.
        rows: scans.
        region: pixels that count.
        group: column whose values are told apart, for the first detector.
        progress: shows it.
    """
    bar = progress or Progress(False)
    pixels = _pixels(rows) * len(rows) * len(detectors)
    passes = [detectors] if pixels <= MOST_PIXELS else [[one] for one in detectors]
    found: list[Scores] = []
    for some in passes:
        name = "predict" if not found else f"baseline {some[0].card.id}"
        groups = [None if found or i else group for i in range(len(some))]
        found += _scored(some, rows, region, groups, bar, name)
    return found


def _pixels(rows: Cohort) -> int:
    """Pixels of the first scan that can be read."""
    for row in rows:
        try:
            return math.prod(probe(row.paths[0]).shape)
        except (NormscanError, OSError):
            continue
    return 0


def _scored(
    detectors: Sequence[Detector],
    rows: Cohort,
    region: Region,
    groups: Sequence[str | None],
    bar: Progress,
    name: str,
) -> list[Scores]:
    scores = [Scores() for _ in detectors]
    refused = [Scores(masks=each.masks) for each in scores]
    tracked: Iterable[CohortRow] = bar.track(rows, name, len(rows))
    several = len(detectors) > 1
    opened = map(Opened.of, tracked) if several else tracked
    copies = itertools.tee(opened, len(detectors))
    details, boxed = region == "foreground", name == "predict" and has_boxes(rows)
    predicted = [
        detector.predict_cohort(copy, details=details, force=True)
        for detector, copy in zip(detectors, copies, strict=True)
    ]
    for results in zip(*predicted, strict=True):
        for i, (row, result) in enumerate(results):
            try:
                if isinstance(result, NormscanError):
                    raise result
                no = result.quality is not None and not result.quality.passed
                taken, found = (refused if no else scores)[i], BoxScores()
                if boxed and i == 0:
                    add_boxes(found, row, result)
                taken.add(row, result, region, groups[i], result.seen)
                taken.boxes.take(found)
            except NormscanError as error:
                # Results and reports travel: they name files as the table does, not where they lie.
                reason = about_files(str(error), row.called()).replace(f"{rows.root}{os.sep}", "")
                scores[i].failures.append({"scan": row.scan, "reason": reason})
                if name == "predict" and i == 0:  # of the others it was said already
                    bar.say(f"left out {row.scan}: {error}")
    return [_joined(*both, rows) for both in zip(scores, refused, strict=True)]


def _joined(scores: Scores, refused: Scores, rows: Cohort) -> Scores:
    """Return all scans, with those that the gate lets pass beside them."""
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
