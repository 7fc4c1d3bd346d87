"""Regions of a label map (an atlas, an organ segmentation): how unusual each is, against healthy scans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normscan.cohort import Cohort, CohortRow
from normscan.cohort.table import read_table
from normscan.decide import ScanThreshold
from normscan.detector.finding import Finding
from normscan.detector.prediction import predict_rows
from normscan.detector.state import State
from normscan.errors import ArgumentError, CohortError, NormscanError, OutputError
from normscan.io.values import read_json, write_json
from normscan.metrics.comparisons import holm
from normscan.progress import Progress
from normscan.scores.reductions import LEVELLED, Reduction, reduce_map

FORMAT = 1
REDUCTION = "top_5_percent"


@dataclass(frozen=True)
class Regions:
    """Healthy scores of each region of a label map, against which a finding's are held.

    The score of a region is a reduction of the map inside it. Its p-value is conformal, as that of a
    scan: of the healthy subjects in whom the region was seen, each with its highest score.

    Attributes:
        names: of the regions by label.
        thresholds: healthy scores by label.
        reduction: from the map inside a region to its score.
        fingerprint: SHA-256 of the weights that scored.
    """

    names: Mapping[int, str]
    thresholds: Mapping[int, ScanThreshold]
    reduction: str
    fingerprint: str

    @classmethod
    def fit(
        cls,
        state: State,
        cohort: Cohort,
        names: Mapping[int, str] | None = None,
        reduction: str = REDUCTION,
        bar: Progress | None = None,
    ) -> Regions:
        """Score the regions of healthy scans that the detector did not learn from.

        Args:
            state: fitted.
            cohort: with label maps in the column ``structures``; its healthy scans of train and val
                are taken, all of them where it has no such split. 0 is no region.
            names: of the regions by label; ``region 7`` where it has none.
            reduction: such as top_5_percent, mean, max or p_norm_4.
            bar: shows progress.

        Raises:
            CohortError: no healthy scan with a label map that did not train can be scored.
            ArgumentError: a reduction that means nothing inside a region.
        """
        from normscan.detector.elsewhere import apart, chosen  # torch

        asked = Reduction.parse(reduction)
        if asked.inner or asked.place or asked.name in LEVELLED:
            raise ArgumentError(
                f"reduction '{reduction}' means nothing inside a region. Take top_5_percent, mean, max "
                "or p_norm_4."
            )
        rows = [row for row in apart(state, chosen(cohort))[0] if row.structures is not None]
        found: dict[int, list[tuple[float, str]]] = {}
        progress = bar or Progress(False)
        tracked = progress.track(rows, "regions", len(rows))
        for row, result in predict_rows(state, tracked, force=True):
            try:
                if isinstance(result, NormscanError):
                    raise result
                for label, score in _scores(result, labels_of(row, result), reduction):
                    found.setdefault(label, []).append((score, row.subject))
            except NormscanError as error:
                progress.say(f"left out {row.scan}: {error}")
        if not found:
            raise CohortError(
                "no healthy scan with a label map (column 'structures') that did not train could be "
                "scored, so there is nothing to hold regions against."
            )
        thresholds = {
            label: ScanThreshold.fit([s for s, _ in pairs], state.fpr, [who for _, who in pairs])
            for label, pairs in sorted(found.items())
        }
        return cls(dict(names or {}), thresholds, reduction, state.fingerprint)

    def name(self, label: int) -> str:
        """Return the name of a region."""
        return self.names.get(label, f"region {label}")

    def judge(self, finding: Finding, labels: np.ndarray) -> list[dict[str, Any]]:
        """Return the regions of a finding, the most unusual first.

        Args:
            finding: of the same detector.
            labels: (*scan.shape) whole numbers; 0 is no region.

        Returns:
            For each region its ``region``, ``label``, ``voxels``, ``score``, ``p_value`` and how many
            ``healthy`` subjects it rests on, and ``p_corrected`` for all the regions of the scan
            (Holm). A region that no healthy scan has, has no p-value.
        """
        rows: list[dict[str, Any]] = []
        for label, score in _scores(finding, labels, self.reduction):
            threshold = self.thresholds.get(label)
            rows.append({
                "region": self.name(label), "label": label, "voxels": int((labels == label).sum()),
                "score": score, "p_value": None if threshold is None else threshold.p_value(score),
                "healthy": 0 if threshold is None else threshold.n,
            })  # fmt: skip
        known = [np.nan if row["p_value"] is None else row["p_value"] for row in rows]
        for row, value in zip(rows, holm(known), strict=True):
            row["p_corrected"] = None if np.isnan(value) else float(value)
        return sorted(rows, key=lambda r: (r["p_value"] is None, r["p_value"], -r["score"]))

    def save(self, path: Path) -> None:
        """Write JSON."""
        write_json(path, {
            "format": FORMAT, "reduction": self.reduction, "sha256": self.fingerprint,
            "names": {str(label): name for label, name in self.names.items()},
            "thresholds": {str(label): t.to_dict() for label, t in self.thresholds.items()},
        })  # fmt: skip

    @classmethod
    def load(cls, path: Path, state: State) -> Regions:
        """Read what ``save`` wrote, for the detector that it was made with.

        Raises:
            OutputError: no such file, a damaged one, or one of another detector.
        """
        try:
            stored = read_json(path)
            if stored["format"] != FORMAT:
                raise ValueError(f"format {stored['format']}, this version reads {FORMAT}")
            found = cls(
                {int(label): str(name) for label, name in stored["names"].items()},
                {int(k): ScanThreshold.from_dict(t) for k, t in stored["thresholds"].items()},
                str(stored["reduction"]),
                str(stored["sha256"]),
            )
        except (OSError, KeyError, TypeError, ValueError, AttributeError, ArgumentError) as error:
            raise OutputError(f"{path}: no healthy regions are stored here ({error}).") from error
        if found.fingerprint != state.fingerprint:
            raise OutputError(
                f"{path}: the regions were scored by another detector. Make them again: normscan regions."
            )
        return found


def locate(finding: Finding, row: CohortRow, regions: Regions | None = None) -> None:
    """Name where a finding's components lie and judge its regions, where its scan has a label map.

    Raises:
        ScanError: the label map can't be read, or lies on another grid.
    """
    if row.structures is None or finding.map is None:
        return
    finding.labels = labels_of(row, finding)
    if regions is not None:
        finding.label_names = regions.names
        finding.regions = regions.judge(finding, finding.labels)


def labels_of(row: CohortRow, finding: Finding) -> np.ndarray:
    """Return the label map of a scan, (*shape).

    Raises:
        ScanError: it can't be read, or lies on another grid.
    """
    read = row.load_companion("structures", finding.scan)
    assert read is not None
    return read[0]


def read_names(path: Path) -> dict[int, str]:
    """Return names by label from a table with the columns ``label`` and ``name``.

    Raises:
        CohortError: no such table, a missing column, or a label that is no whole number.
    """
    table = read_table(path)
    if missing := {"label", "name"} - set(table.columns):
        raise CohortError(f"{path}: has no column '{min(missing)}'; it needs label and name.")
    try:
        labels = [int(value) for value in table["label"]]
    except (TypeError, ValueError) as error:
        raise CohortError(f"{path}: a label is no whole number ({error}).") from error
    return dict(zip(labels, map(str, table["name"]), strict=True))


def _scores(finding: Finding, labels: np.ndarray, reduction: str) -> Iterator[tuple[int, float]]:
    """Yield the score of each region of a finding."""
    if finding.map is None:
        raise ArgumentError("this method makes no maps, so regions have no scores.")
    if labels.shape != finding.map.shape:
        raise ArgumentError(f"labels of shape {labels.shape} for a map of {finding.map.shape}.")
    for label in np.unique(labels[labels > 0]).tolist():
        inside = finding.map[labels == label]
        yield int(label), float(reduce_map(reduction, inside, np.ones(inside.shape, bool)))
