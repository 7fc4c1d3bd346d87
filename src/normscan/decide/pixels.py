"""The pixel-level decision: a threshold that flags a given fraction of healthy pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from normscan.errors import ArgumentError
from normscan.metrics.maps import Singles, checked_map

# Blocks of equal rank kept of one image; a block is at most 1/20,001 + 1/pixels of the image.
POINTS = 20_001
# Of healthy pixels, at whose scores the shares are kept: enough to read others off on a log scale.
SHARES = (
    1, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1, 0.05, 0.02, 0.01, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4, 0,
)  # fmt: skip
# Means of fractions such as 5/100 carry rounding errors far below one pixel.
_SLACK = 1e-12


class PixelThreshold:
    """The smallest threshold t with mean over images of (fraction of pixels > t) <= fpr.

    Fitted on healthy validation maps; every image weighs the same, whatever its size. Maps are
    taken as float32 and the threshold is one of their scores, so `map > threshold` on a float32
    map repeats the decision exactly (round maps of another precision first). At most 20,001 scores
    of an image are kept. Images with no more pixels than that are exact; of larger ones, each kept
    score is the highest of a block of neighbouring ranks, so the fraction above t is overestimated
    by at most 1e-4 and the bound still holds.
    """

    def __init__(self, fpr: float = 0.05, images: Iterable[tuple[Singles, int]] = ()) -> None:
        self.fpr = _checked_rate(fpr)
        # Kept scores and number of pixels of each map.
        self.images: list[tuple[Singles, int]] = list(images)

    @classmethod
    def fit(
        cls,
        maps: Iterable[npt.ArrayLike],
        fpr: float = 0.05,
        regions: Iterable[npt.ArrayLike | None] | None = None,
    ) -> PixelThreshold:
        """Return the threshold for the maps of healthy validation scans, read one at a time.

        Args:
            maps: anomaly maps (H, W) or (D, H, W) of healthy scans.
            fpr: wanted mean fraction of flagged pixels in (0, 1).
            regions: pixels that count, one mask (or None) for each map; None for whole images.

        Raises:
            ArgumentError: no maps, NaN, shapes or lengths that differ, or a rate outside (0, 1).
        """
        fitted, missing = cls(fpr), object()
        masks: Iterator[Any] = repeat(None)
        if regions is not None:
            masks = chain(regions, repeat(missing))
        for map in maps:
            region = next(masks)
            if region is missing:
                raise ArgumentError("There are fewer regions than maps; give one for each.")
            fitted.add(map, region)
        if regions is not None and next(masks) is not missing:
            raise ArgumentError("There are more regions than maps; give one for each.")
        fitted.at(fpr)  # refuses an empty iterable here rather than at first use
        return fitted

    def __len__(self) -> int:
        return len(self.images)

    def add(self, map: npt.ArrayLike, region: npt.ArrayLike | None = None) -> None:
        """Add the map of one healthy validation scan.

        Args:
            map: anomaly map (H, W) or (D, H, W).
            region: pixels that count, same shape; None for the whole image.

        Raises:
            ArgumentError: NaN in the region, shapes that differ, or an empty region.
        """
        values, inside = checked_map(map, region)
        scores = np.sort(values[inside])
        blocks = min(scores.size, POINTS)
        # Block i holds the ranks i * n // blocks up to the next; its last score is its highest.
        last = np.arange(1, blocks + 1) * scores.size // blocks - 1
        self.images.append((scores[last], scores.size))

    @property
    def threshold(self) -> float:
        """The threshold for `fpr`: a pixel is anomalous if its score is above it."""
        return self.at(self.fpr)

    def at(self, fpr: float) -> float:
        """Return the threshold for another rate on the same maps, such as 0.01 beside 0.05.

        Raises:
            ArgumentError: no map was added, or the rate is outside (0, 1).
        """
        _checked_rate(fpr)
        if not self.images:
            raise ArgumentError("A pixel threshold needs at least one healthy validation map.")
        candidates = np.unique(np.concatenate([points for points, _ in self.images]))
        # The fraction falls as t rises and is 0 at the highest score: bisect for the first fit.
        low, high = 0, candidates.size - 1
        while low < high:
            middle = (low + high) // 2
            if self.fraction_above(candidates[middle]) <= fpr + _SLACK:
                high = middle
            else:
                low = middle + 1
        return float(candidates[low])

    def fraction_above(self, threshold: float | np.float32) -> float:
        """Return the mean over images of the fraction of pixels above t, at most 1e-4 too high.

        Args:
            threshold: t, rounded to float32 as in `map > t` for a float32 map.
        """
        single = np.float32(threshold)
        fractions = []
        for points, pixels in self.images:
            blocks = int(np.searchsorted(points, single, side="right"))
            fractions.append(1 - (blocks * pixels // points.size) / pixels)
        return float(np.mean(fractions))

    def shares(self) -> list[list[float]]:
        """Return scores, rising, and the share of healthy pixels above each: [score, share].

        The share is the mean over images, at most 1e-4 too high, as of ``fraction_above``. Between
        two scores it lies between theirs.
        """
        points = np.concatenate([points for points, _ in self.images])
        scores = np.unique(np.quantile(points, 1 - np.array(SHARES), method="nearest"))
        found = [[float(score), self.fraction_above(score)] for score in scores]
        return [pair for pair in found if np.isfinite(pair[0])]

    def to_dict(self) -> dict[str, Any]:
        """Return the operating point as JSON values (not the maps behind it)."""
        threshold = self.threshold
        return {
            "fpr": self.fpr,
            "threshold": threshold if np.isfinite(threshold) else str(threshold),
            "fraction_above": self.fraction_above(threshold),
            "images": len(self.images),
        }


def _checked_rate(fpr: float) -> float:
    if not 0 < fpr < 1:
        raise ArgumentError(f"The rate of flagged pixels must be between 0 and 1, not {fpr}.")
    return float(fpr)
