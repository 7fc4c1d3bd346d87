"""Boxes and points of a cohort beside what a detector found: which columns, in which axes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from normscan.cohort import CohortRow
from normscan.detector.finding import Finding
from normscan.display import is_raster
from normscan.errors import ArgumentError, ScanError
from normscan.metrics.boxes import BoxScores, as_boxes

BOXES, POINTS = "boxes", "points"


def has_boxes(rows: Iterable[CohortRow]) -> bool:
    """Whether a scan of a cohort has boxes or points."""
    return any(row.columns.get(name) for row in rows for name in (BOXES, POINTS))


def add_boxes(scores: BoxScores, row: CohortRow, finding: Finding) -> None:
    """Add a scan with boxes or points, or a healthy one; others have unknown places.

    Boxes in the column ``boxes`` are JSON, ``[[x0, y0, x1, y1], ...]`` in pixels of a picture, x to
    the right and y down, the upper ends beyond the last pixel; of a volume six array indices,
    ``[x0, y0, z0, x1, y1, z1]``. Points in ``points`` likewise. Found boxes lie around the
    components of the segmentation, their scores are the peaks.

    Raises:
        ScanError: the columns hold something else.
    """
    if finding.map is None:
        return
    try:
        boxes = as_boxes(row.columns.get(BOXES), BOXES)
        points = as_boxes(row.columns.get(POINTS), POINTS)
        if not (boxes or points) and row.label != 0:
            return
        # Pictures are arrays of rows and columns, so x and y change places.
        flip = finding.scan.dims == 2 and is_raster(finding.scan.affine)
        order = [1, 0] if flip else list(range(finding.scan.dims))
        both = [*order, *(len(order) + k for k in order)]
        parts = finding.components()
        scores.add(
            [part["box"] for part in parts],
            [part["peak"] for part in parts],
            [part["peak_index"] for part in parts],
            [[box[k] for k in both] for box in boxes],
            row.subject,
            [[point[k] for k in order] for point in points],
            np.unravel_index(int(np.argmax(finding.map)), finding.map.shape),
        )
    except (ArgumentError, IndexError) as error:
        raise ScanError(f"the boxes or points of '{row.scan}' can't be used: {error}") from error
