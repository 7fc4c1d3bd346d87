"""What healthy maps are like at each place: mean and deviation, for scans that share a grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from normscan.errors import ScanError

# Maps that the mean variance over all places counts for: few scans say little of one pixel.
PRIOR = 4.0


@dataclass(frozen=True)
class Places:
    """Healthy mean and deviation at each place.

    Attributes:
        mean: (*grid) float32.
        deviation: (*grid) float32, above 0.
    """

    mean: np.ndarray
    deviation: np.ndarray

    def normalised(self, anomaly: np.ndarray) -> np.ndarray:
        """Return a map (*grid) in healthy deviations from the healthy mean.

        Raises:
            ScanError: it is on another grid.
        """
        if anomaly.shape != self.mean.shape:
            raise ScanError(
                f"a map of {anomaly.shape} can't be compared place by place with healthy ones of "
                f"{self.mean.shape}. Use a reduction without +place."
            )
        return np.asarray((anomaly - self.mean) / self.deviation)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return its arrays by name."""
        return {"mean": self.mean, "deviation": self.deviation}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Places:
        """Return what ``arrays`` gave."""
        return cls(np.asarray(arrays["mean"]), np.asarray(arrays["deviation"]))


class Sums:
    """Sums over maps of one grid, of which some can be taken out again.

    Args:
        shape: of the maps.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.n = 0
        self.total = np.zeros(shape)
        self.squares = np.zeros(shape)

    def add(self, anomaly: np.ndarray) -> None:
        """Add a map (*grid)."""
        values = anomaly.astype(np.float64)
        self.n += 1
        self.total += values
        self.squares += values**2

    def less(self, other: Sums) -> Sums:
        """Return the sums without the maps of another."""
        left = Sums(self.total.shape)
        left.n = self.n - other.n
        left.total, left.squares = self.total - other.total, self.squares - other.squares
        return left

    def places(self) -> Places:
        """Return mean and deviation; the variance leans on the mean one as ``PRIOR`` maps would.

        Raises:
            ScanError: fewer than two maps.
        """
        if self.n < 2:
            raise ScanError(f"{self.n} healthy maps say nothing of how much healthy ones differ.")
        mean = self.total / self.n
        variance = np.maximum(self.squares - self.n * mean**2, 0) / (self.n - 1)
        # Where no healthy map differs from another, a departure counts in the unit of the map.
        usual = float(variance.mean()) or 1.0
        shrunk = ((self.n - 1) * variance + PRIOR * usual) / (self.n - 1 + PRIOR)
        spread = np.maximum(np.sqrt(shrunk), np.finfo(np.float32).tiny)
        return Places(mean.astype(np.float32), spread.astype(np.float32))
