"""Pixel-level metrics in memory that doesn't grow, mergeable between processes."""

from __future__ import annotations

import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from normscan.errors import ArgumentError
from normscan.io import atomic_path
from normscan.metrics import curves
from normscan.metrics.counting import ordered_keys, scores_of
from normscan.metrics.curves import Floats, divide
from normscan.metrics.estimates import to_json
from normscan.metrics.maps import checked_map
from normscan.metrics.pixels import split_scores

_LARGEST = 32 * 2**24 + 2**16  # Bytes that `save` can write, 24 bits with every bin in use.
_LOWEST = ordered_keys(np.array([-np.inf], np.float32))[0]


@dataclass(frozen=True)
class StreamingMetrics:
    """Pixel-level results of a stream; every value lies within its `bounds`, and so does the exact.

    Attributes:
        auroc: pooled area under the ROC curve.
        ap: pooled step-wise average precision.
        aupro: area under the per-region overlap up to `limit`, divided by it.
        best_dice: best pooled Dice of the bins' edges, never above the exact one; an oracle.
        best_iou: the IoU of the same threshold.
        best_dice_threshold: `map > best_dice_threshold` reaches it.
        bounds: for each metric the lowest and highest value that the exact one can have, whatever
            the order of the scores inside the bins.
        dice: pooled Dice of `map > threshold`, exact; None without a threshold.
        sensitivity: pooled sensitivity of `map > threshold`, exact; None without a threshold.
        threshold: the threshold that was given, if any.
        limit: false-positive rate up to which `aupro` integrates.
        prevalence: fraction of lesion pixels.
        pixels: number of evaluated pixels.
        regions: number of connected lesion components with evaluated pixels.
        scans: number of maps.
        evaluated: `whole image`, `region`, or `mixed`.
    """

    auroc: float
    ap: float
    aupro: float
    best_dice: float
    best_iou: float
    best_dice_threshold: float
    bounds: dict[str, tuple[float, float]]
    dice: float | None
    sensitivity: float | None
    threshold: float | None
    limit: float
    prevalence: float
    pixels: int
    regions: int
    scans: int
    evaluated: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, None for NaN."""
        return to_json(self)


class StreamingPixelScores:
    """Counts scores in 2^bits bins of equal relative width, map by map; no score is kept.

    A bin is what float32 scores with the same upper `bits` bits share: sign, exponent, and
    `bits` - 9 bits of the mantissa, so its relative width is 2^(9 - bits) or less for normal
    numbers (1/512 by default) and no range has to be known beforehand. The memory is 24 bytes a
    bin (6 MiB by default). Subjects are not told apart: intervals by subject and Dice per subject
    need `PixelScores`.

    Args:
        threshold: where `map > threshold` is a lesion, counted exactly; None for none.
        bits: 10 to 24.

    Raises:
        ArgumentError: a threshold that is NaN, or bits out of range.
    """

    def __init__(self, threshold: float | None = None, bits: int = 18) -> None:
        if not 10 <= bits <= 24:
            raise ArgumentError(f"Streaming metrics take 10 to 24 bits, not {bits}.")
        if threshold is not None and math.isnan(threshold):
            raise ArgumentError("The pixel threshold is NaN.")
        self.threshold, self.bits = threshold, bits
        self._positives = np.zeros(2**bits, np.int64)
        self._negatives = np.zeros(2**bits, np.int64)
        self._regions = np.zeros(2**bits, np.float64)
        # Regions, whole images, restricted images, true and false positives at the threshold.
        self._tallies = np.zeros(5, np.int64)

    def __len__(self) -> int:
        return int(self._tallies[1] + self._tallies[2])

    def add(
        self,
        map: npt.ArrayLike,
        mask: npt.ArrayLike | None,
        region: npt.ArrayLike | None = None,
    ) -> None:
        """Add the map of one scan, as `PixelScores.add` does.

        Args:
            map: anomaly map (H, W) or (D, H, W), higher is more anomalous; may be infinite.
            mask: lesion mask of the same shape, 0 is healthy; None for a healthy scan.
            region: pixels to evaluate, same shape; None for the whole image.

        Raises:
            ArgumentError: NaN in the evaluated map, shapes that differ, or an empty region.
        """
        values, inside = checked_map(map, region)
        negatives, positives, weights, regions = split_scores(values, inside, mask)
        where = self._bin(positives)
        np.add.at(self._negatives, self._bin(negatives), 1)
        np.add.at(self._positives, where, 1)
        np.add.at(self._regions, where, weights)
        true = false = 0
        if self.threshold is not None:
            limit = np.float32(self.threshold)
            true, false = (int((scores > limit).sum()) for scores in (positives, negatives))
        self._tallies += [regions, region is None, region is not None, true, false]

    def _bin(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
        return (ordered_keys(scores) >> np.uint32(32 - self.bits)).astype(np.intp)

    def merge(self, other: StreamingPixelScores) -> StreamingPixelScores:
        """Return the scores of both together; neither changes.

        Raises:
            ArgumentError: they differ in bits or in the threshold.
        """
        if (self.bits, self.threshold) != (other.bits, other.threshold):
            raise ArgumentError(
                f"Streams of {self.bits} bits at threshold {self.threshold} and of {other.bits} "
                f"bits at {other.threshold} can't be merged; make them alike."
            )
        both = StreamingPixelScores(self.threshold, self.bits)
        for name in ("_positives", "_negatives", "_regions", "_tallies"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def evaluate(self, limit: float = 0.3) -> StreamingMetrics:
        """Return all pixel-level metrics with the bounds between which the exact values lie.

        Args:
            limit: false-positive rate in (0, 1] up to which AUPRO integrates.

        Raises:
            ArgumentError: nothing was added, or the limit is outside its range.
        """
        if not len(self):
            raise ArgumentError("No scan was added; there are no pixels to evaluate.")
        if not 0 < limit <= 1:
            raise ArgumentError(f"The AUPRO limit must be above 0 and at most 1, not {limit}.")
        used = np.flatnonzero(self._positives + self._negatives)[::-1]
        positives, negatives = self._positives[used] * 1.0, self._negatives[used] * 1.0
        regions = self._regions[used]
        best, cell = curves.best_dice(positives, negatives)
        lowest = (used[cell] << (32 - self.bits)) - 1  # of the best cell; `>` needs the one below
        threshold = scores_of(np.array([max(lowest, _LOWEST)], np.uint32))[0]
        lesion, healthy = positives.sum(), negatives.sum()
        shown, whole, restricted, true, false = (int(n) for n in self._tallies)
        at: dict[str, float | None] = {"dice": None, "sensitivity": None}
        if self.threshold is not None:
            known = lesion > 0 and healthy > 0
            at["dice"] = float(2 * true / (true + false + lesion)) if known else math.nan
            at["sensitivity"] = float(true / lesion) if known else math.nan
        return StreamingMetrics(
            auroc=float(curves.auroc(positives, negatives)),
            ap=float(curves.average_precision(positives, negatives)),
            aupro=float(curves.aupro(regions, negatives, limit)),
            best_dice=float(best),
            best_iou=float(best / (2 - best)),
            best_dice_threshold=math.nan if np.isnan(best) else float(threshold),
            bounds=_bounds(positives, negatives, regions, limit),
            **at,
            threshold=self.threshold,
            limit=limit,
            prevalence=float(lesion / (lesion + healthy)),
            pixels=int(lesion + healthy),
            regions=shown,
            scans=len(self),
            evaluated="mixed"
            if whole and restricted
            else "region"
            if restricted
            else "whole image",
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the counts as a compressed ``.npz`` of plain arrays."""
        used = np.flatnonzero(self._positives + self._negatives)
        settings = [self.bits, math.nan if self.threshold is None else self.threshold]
        with atomic_path(Path(path)) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                settings=np.array(settings, np.float64),
                tallies=self._tallies,
                bins=used.astype(np.int64),
                positives=self._positives[used],
                negatives=self._negatives[used],
                regions=self._regions[used],
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> StreamingPixelScores:
        """Return the counts that `save` wrote.

        Raises:
            ArgumentError: the file is no such file, or its content contradicts itself.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(item.file_size for item in archive.infolist()) > _LARGEST:
                    raise ValueError("it is larger than any such file")
            with np.load(path, allow_pickle=False) as stored:
                (bits, threshold), tallies = stored["settings"].tolist(), stored["tallies"]
                loaded = cls(None if math.isnan(threshold) else threshold, int(bits))
                bins, parts = stored["bins"], [stored[n] for n in ("positives", "negatives")]
                regions = stored["regions"]
            counts = (bins, tallies, *parts)
            if any(part.dtype != np.int64 or (part < 0).any() for part in counts):
                raise ValueError("a count is no whole number from 0")
            if regions.dtype != np.float64 or not np.isfinite(regions).all() or tallies.size != 5:
                raise ValueError("a region weight is no number")
            loaded._tallies = tallies
            for name, part in zip(("_positives", "_negatives"), parts, strict=True):
                getattr(loaded, name)[bins] = part
            loaded._regions[bins] = regions
        except (
            ArgumentError,
            OSError,
            ValueError,
            KeyError,
            IndexError,
            zipfile.BadZipFile,
            EOFError,
        ) as error:
            raise ArgumentError(f"{path} holds no stored pixel counts: {error}") from error
        return loaded


def _bounds(
    positives: Floats, negatives: Floats, regions: Floats, limit: float
) -> dict[str, tuple[float, float]]:
    """Return the lowest and highest value of each metric over all orders inside the bins (K,)."""
    lesion, healthy, count = positives.sum(), negatives.sum(), regions.sum()
    if not lesion or not healthy:
        return dict.fromkeys(("auroc", "ap", "aupro", "best_dice"), (math.nan, math.nan))
    true, false = np.cumsum(positives), np.cumsum(negatives)
    before = false - negatives

    area = float(curves.auroc(positives, negatives))
    slack = float(np.sum(positives * negatives) / (lesion * healthy) / 2)

    # Highest precision: all lesion pixels of a bin tied before its healthy ones. Lowest: one by one
    # behind them, sum_j (T + j) / (T + j + F), which its integral bounds from below.
    high_ap = np.sum(positives * true / np.maximum(true + before, 1)) / lesion
    earlier = true - positives + false
    ratio = np.log1p(divide(positives, earlier, 0.0))
    low_ap = np.sum(positives - false * ratio) / lesion

    inside = np.minimum(false / healthy, limit) - np.minimum(before / healthy, limit)
    overlap = np.cumsum(regions) - regions
    low_pro = np.sum(inside * overlap) / (count * limit)
    high_pro = np.sum(inside * (overlap + regions)) / (count * limit)

    dice = 2 * true / (true + false + lesion)
    hopeful = 2 * true / (true + before + lesion)
    return {
        "auroc": (max(0.0, area - slack), min(1.0, area + slack)),
        "ap": (max(0.0, float(low_ap)), float(high_ap)),
        "aupro": (float(low_pro), float(high_pro)),
        "best_dice": (float(dice.max()), float(hopeful.max())),
    }
