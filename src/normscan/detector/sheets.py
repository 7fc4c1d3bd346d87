"""Maps of healthy scans, plain and with planted lesions, kept on disk until a reduction is settled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normscan.cohort import CohortRow
from normscan.detector.finding import Finding
from normscan.detector.prediction import (
    Observed,
    averaged,
    found_in,
    job_of,
    observe_all,
    own_score,
)
from normscan.detector.state import EVIDENCE, State
from normscan.errors import NormscanError, ScanError
from normscan.io.companions import Given
from normscan.planting.kinds import Cell, dealt, plant
from normscan.rng import derive_seed
from normscan.scan import Scan
from normscan.scores.reductions import Reduction
from normscan.training.checkpoint import load_state, save_state


@dataclass(frozen=True)
class Sheet:
    """Maps of one healthy scan on the working grid: the plain one, then one for each lesion.

    Attributes:
        maps: each (*grid) float32; empty where the method only scores.
        foregrounds: each (*grid) bool.
        own: scores that the method gives by itself; empty where it gives none.
        kinds: of the lesions, such as ``small bright``.
    """

    maps: list[np.ndarray]
    foregrounds: list[np.ndarray]
    own: list[float]
    kinds: list[str]

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: [torch.from_numpy(np.ascontiguousarray(a)) for a in getattr(self, name)]
            for name in ("maps", "foregrounds")
        }
        save_state(path, {**tensors, "own": self.own, "kinds": self.kinds})

    @classmethod
    def load(cls, path: str | Path) -> Sheet:
        """Read what ``save`` wrote."""
        stored = load_state(Path(path))
        arrays = {n: [t.numpy() for t in stored[n]] for n in ("maps", "foregrounds")}
        return cls(**arrays, own=stored["own"], kinds=stored["kinds"])


@dataclass(frozen=True)
class Sheets:
    """Where the sheets of a run lie, and which lesions go into which scan.

    Attributes:
        folder: of the sheets, one file a scan.
        cells: lesions by scan; a scan that isn't named gets none.
        seed: of places, outlines and strengths.
    """

    folder: Path
    cells: Mapping[str, Sequence[Cell]]
    seed: int

    @classmethod
    def needed(cls, state: State, rows: Iterable[CohortRow], folder: Path) -> Sheets | None:
        """Return the sheets for the healthy scans, or None where nothing is to be learnt of them."""
        if not learns(state.reduction):
            return None
        scans = [row.scan for row in rows]
        cells: dict[str, list[Cell]] = {}
        if state.reduction == EVIDENCE:
            order = np.random.default_rng(derive_seed(state.seed, EVIDENCE)).permutation(len(scans))
            cells = dealt([scans[i] for i in order])
        return cls(folder, cells, state.seed)

    def path(self, scan: str) -> Path:
        """The file of a scan."""
        return self.folder / f"{scan}.safetensors"

    def score(
        self,
        state: State,
        row: CohortRow,
        scan: Scan,
        foreground: np.ndarray | None,
        companions: Mapping[str, Given],
    ) -> Finding:
        """Predict a healthy scan and its twins with lesions, and write their maps.

        Returns:
            The finding of the plain scan, with the score of the method's usual reduction.
        """
        usual = state.changed(reduction=state.usual_reduction, replaces=False)
        planted = list(self._planted(row, scan, foreground))
        scans = [scan, *(lesion for _, lesion in planted)]
        jobs = [job_of(state, one, foreground, row.columns, companions) for one in scans]
        seen = []
        for result in observe_all(state, jobs):
            if isinstance(result, NormscanError):
                raise result
            seen.append(result)
        _sheet(seen, [kind for kind, _ in planted]).save(self.path(row.scan))
        return found_in(usual, scan, seen[0])

    def _planted(
        self, row: CohortRow, scan: Scan, foreground: np.ndarray | None
    ) -> Iterator[tuple[str, Scan]]:
        lesions = plant(scan, foreground, self.cells.get(row.scan, ()), self.seed, row.scan)
        while True:
            try:
                cell, lesion = next(lesions)
            except (StopIteration, ScanError):  # a scan without contrast takes none
                return
            yield f"{cell.band} {cell.kind}", lesion.scan


def learns(reduction: str) -> bool:
    """Whether healthy maps must be kept to settle a reduction."""
    return reduction == EVIDENCE or Reduction.parse(reduction).learns


def _sheet(seen: Sequence[Observed], kinds: list[str]) -> Sheet:
    together = [averaged(one.members) for one in seen]
    maps: list[Any] = [one.map for one in together]
    return Sheet(
        [] if maps[0] is None else maps,
        [one.prepared.foreground for one in seen],
        [own_score(one) for one in together] if together[0].scores else [],
        kinds,
    )
