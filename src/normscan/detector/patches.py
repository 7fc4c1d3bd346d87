"""The patches of healthy scans that look most like the most anomalous patch of a finding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from normscan.cohort import CohortRow
from normscan.detector.finding import Finding
from normscan.detector.prediction import BATCH, averaged
from normscan.detector.predictor import Predictor, Sample
from normscan.detector.runner import batch_of
from normscan.detector.state import State
from normscan.errors import ArgumentError, NormscanError
from normscan.methods.base import Method
from normscan.preprocess import Prepared

Found = tuple[float, Sample, int, tuple[int, int]]  # squared distance, where, cell of the grid


@runtime_checkable
class HasPatches(Protocol):
    """A method whose map compares patches by features."""

    def patches(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return features (B, h * w, dim) of images (B, C, H, W), and the grid (h, w)."""
        ...


def patches_like(
    state: State, finding: Finding, rows: Iterable[CohortRow], count: int = 3
) -> list[dict[str, Any]]:
    """Return the patches nearest to that at the peak of a finding's map; see ``Detector.patches_like``."""
    if not isinstance(state.method, HasPatches):
        raise ArgumentError(
            f"'{state.card.id}' compares no patches with those of training scans; patchcore and "
            "simplenet do. finding.neighbours() names whole scans that look alike."
        )
    own = Patches(state, finding)
    query = own.peak()
    found = []
    for row in rows:
        try:
            nearest = own.nearest(row, query)
        except NormscanError:
            continue  # a bad scan says nothing of the others
        found.append(nearest)
    return sorted(found, key=lambda entry: float(entry["distance"]))[:count]


class Patches:
    """Reads the patch features of scans as a detector sees them.

    Args:
        state: fitted, with a method that has ``patches``.
        finding: whose peak is looked up.
    """

    def __init__(self, state: State, finding: Finding) -> None:
        self.state, self.finding = state, finding
        self.preparation = state.preparation()

    def _predictor(self, prepared: Prepared) -> Predictor:
        assert self.state.method is not None
        slices = self.preparation.slices(prepared)
        return Predictor(self.state.method, slices, self.state.patch, BATCH, self.state.seed)

    @torch.no_grad()
    def _features(
        self, prepared: Prepared
    ) -> Iterator[tuple[list[Sample], Tensor, tuple[int, int]]]:
        """Yield some samples at a time, their features (B, cells, dim) and the grid of the cells."""
        method, predictor = self.state.method, self._predictor(prepared)
        assert isinstance(method, HasPatches) and isinstance(method, Method)
        job = predictor.job(prepared)
        for start in range(0, len(job.samples), BATCH):
            some = list(job.samples[start : start + BATCH])
            pieces = predictor.pieces([job], [(0, sample) for sample in some])
            features, grid = method.patches(batch_of(method, pieces, self.state.seed).image)
            yield some, features.float(), grid

    def peak(self) -> Tensor:
        """Return the features (dim,) of the patch at the peak of the map on the working grid."""
        prepared = self.preparation.of(self.finding.scan)
        map = averaged(self._predictor(prepared)(prepared)).map
        assert map is not None
        top = np.unravel_index(int(np.argmax(map)), map.shape)
        for samples, features, grid in self._features(prepared):
            for sample, cells in zip(samples, features, strict=True):
                if (at := _cell(sample, top, map.shape, grid)) is not None:
                    return cells[at]
        raise ArgumentError("the peak of the map lies in no sample.")  # pragma: no cover

    def nearest(self, row: CohortRow, query: Tensor) -> dict[str, Any]:
        """Return the patch of a scan that is nearest to a query (dim,)."""
        scan = row.load()
        prepared = self.preparation.of(scan, row.load_foreground(scan))
        best: Found | None = None
        for samples, features, grid in self._features(prepared):
            away = (features - query.to(features)).square().sum(dim=2)
            for sample, distances in zip(samples, away, strict=True):
                at = int(distances.argmin())
                if best is None or float(distances[at]) < best[0]:
                    best = float(distances[at]), sample, at, grid
        assert best is not None
        return {
            "scan": row.scan, "distance": round(best[0] ** 0.5, 6), "index": _index(prepared, best)
        }  # fmt: skip


def _ends(sample: Sample, shape: tuple[int, ...]) -> list[tuple[int, int] | None]:
    """First index and length of a sample along each axis of the working grid; None for a fixed one."""
    ends: list[tuple[int, int] | None] = []
    for part, n in zip(sample.place, shape, strict=True):
        if isinstance(part, int):
            ends.append(None)
        else:
            first, last, _ = part.indices(n)
            ends.append((first, last - first))
    return ends


def _cell(
    sample: Sample, top: tuple[np.intp, ...], shape: tuple[int, ...], grid: tuple[int, int]
) -> int | None:
    """Number of the cell that a place of the working grid lies in; None where the sample lacks it."""
    cells: list[int] = []
    for part, end, place in zip(sample.place, _ends(sample, shape), top, strict=True):
        if end is None:
            if part != place:
                return None
            continue
        first, length = end
        if not first <= place < first + length:
            return None
        cells.append((int(place) - first) * grid[len(cells)] // length)
    return cells[0] * grid[1] + cells[1]


def _index(prepared: Prepared, found: Found) -> list[int]:
    """Array index in the scan, as it came in, of the middle of a cell."""
    _, sample, at, grid = found
    cell, n = divmod(at, grid[1]), 0
    where: list[slice | int] = []
    for part, end in zip(sample.place, _ends(sample, prepared.grid.shape), strict=True):
        if end is None:
            where.append(part)
            continue
        first, length = end
        low = first + cell[n] * length // grid[n]
        where.append(slice(low, max(low + 1, first + (cell[n] + 1) * length // grid[n])))
        n += 1
    mark = np.zeros((1, *prepared.grid.shape), np.float32)
    mark[(0, *where)] = 1
    middle = ndimage.center_of_mass(prepared.back(mark)[0])
    return [round(float(place)) for place in middle]
