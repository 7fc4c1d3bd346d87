"""Prepared scans on disk: written one by one, read through a memory map, drawn by number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from normscan.errors import ScanError
from normscan.methods.base import Batch
from normscan.parallel import each
from normscan.preprocess import Prepared
from normscan.preprocess.samples import EMPTY_SLICE, Preparation, Sampling, split_slices
from normscan.progress import Progress
from normscan.rng import Rng, derive_seed

if TYPE_CHECKING:
    from normscan.cohort import Cohort, CohortRow

__all__ = ["EMPTY_SLICE", "Draws", "PreparedSet", "prepare_sets", "split_slices"]


@dataclass
class PreparedSet:
    """Samples of one size: whole images, slices of volumes, or whole volumes.

    Attributes:
        images: (N, C, *size) float32, memory-mapped.
        foregrounds: (N, *size) bool, memory-mapped.
        positions: (N,) place of a slice in its volume, 0 to 1.
        rows: index of each sample's scan in ``columns``.
        columns: the cohort's columns of each scan.
        failures: (scan, reason) of scans that could not be prepared.
        patch: side of random patches that training draws; None for whole samples.
    """

    images: np.ndarray
    foregrounds: np.ndarray
    positions: np.ndarray
    rows: np.ndarray
    columns: list[dict[str, Any]]
    failures: list[tuple[str, str]]
    patch: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def create(
        cls,
        folder: Path,
        rows: Iterable[CohortRow],
        prepare: Callable[[CohortRow], Prepared],
        slices: Callable[[Prepared], bool],
        patch: int | None = None,
        workers: int = 1,
        track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> PreparedSet:
        """Prepare scans and write them one at a time; a bad scan is noted and passed over.

        Args:
            folder: a new folder for the files.
            rows: scans of the cohort.
            prepare: loads and preprocesses a scan.
            slices: whether a prepared volume is cut into slices.
            patch: see the attribute.
            workers: processes that prepare; the files are the same for any number.
            track: passes scans on as they are done and shows their number.

        Raises:
            ScanError: none of the scans could be prepared.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rows = list(rows)
        index: dict[str, Any] = {"positions": [], "rows": [], "columns": [], "failures": []}
        shape: tuple[int, ...] | None = None
        with (
            (folder / "images.raw").open("wb") as images,
            (folder / "masks.raw").open("wb") as masks,
        ):
            results = track(each(Sampling(prepare, slices), rows, workers))
            for row, samples in zip(rows, results, strict=True):
                if isinstance(samples, Exception):
                    index["failures"].append((row.scan, str(samples)))
                    continue
                if shape is not None and samples[0][0].shape != shape:
                    reason = (
                        f"{row.scan}: prepared to {samples[0][0].shape}, the others to {shape}."
                    )
                    index["failures"].append((row.scan, reason))
                    continue
                shape = samples[0][0].shape
                for image, foreground, position in samples:
                    images.write(np.ascontiguousarray(image, "<f4").tobytes())
                    masks.write(np.ascontiguousarray(foreground, bool).tobytes())
                    index["positions"].append(position)
                    index["rows"].append(len(index["columns"]))
                index["columns"].append({k: _plain(v) for k, v in row.columns.items()})
        if shape is None:
            first = index["failures"][0][1] if index["failures"] else "it has no scans"
            raise ScanError(f"no scan of this part of the cohort could be prepared: {first}")
        index["shape"] = shape
        (folder / "index.json").write_text(json.dumps(index))
        return cls.open(folder, patch)

    @classmethod
    def open(cls, folder: Path, patch: int | None = None) -> PreparedSet:
        """Open a folder that ``create`` wrote."""
        index = json.loads((folder / "index.json").read_text())
        n, shape = len(index["positions"]), tuple(index["shape"])
        return cls(
            np.memmap(folder / "images.raw", "<f4", "r", shape=(n, *shape)),
            np.memmap(folder / "masks.raw", bool, "r", shape=(n, *shape[1:])),
            np.asarray(index["positions"], dtype=np.float32),
            np.asarray(index["rows"]),
            index["columns"],
            [(scan, reason) for scan, reason in index["failures"]],
            patch,
        )

    def batch(self, indices: Sequence[int] | np.ndarray, rng: Rng, crop: bool = True) -> Batch:
        """Return samples by number; random patches of them where ``patch`` is set."""
        indices = np.asarray(indices)
        images, masks = self.images[indices], self.foregrounds[indices]
        if self.patch and crop:
            images, masks = self._crop(images, masks, rng)
        return Batch(
            image=torch.from_numpy(np.array(images)),
            foreground=torch.from_numpy(np.array(masks))[:, None],
            rng=rng,
            position=torch.from_numpy(self.positions[indices]),
            label=torch.zeros(len(indices), dtype=torch.long),
            columns=[self.columns[r] for r in self.rows[indices]],
        )

    def _crop(
        self, images: np.ndarray, masks: np.ndarray, rng: Rng
    ) -> tuple[np.ndarray, np.ndarray]:
        assert self.patch is not None
        room = np.maximum(np.array(images.shape[2:]) - self.patch, 0)
        corners = (rng.uniform((len(images), len(room))).numpy() * (room + 1)).astype(int)
        windows = [tuple(slice(c, c + self.patch) for c in corner) for corner in corners]
        return (
            np.stack([x[(slice(None), *w)] for x, w in zip(images, windows, strict=True)]),
            np.stack([m[w] for m, w in zip(masks, windows, strict=True)]),
        )

    def passes(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """One pass over all samples in order."""
        for start in range(0, len(self), batch_size):
            indices = range(start, min(len(self), start + batch_size))
            yield self.batch(indices, Rng(derive_seed(seed, "pass", start)))


def prepare_sets(
    folder: Path,
    parts: tuple[Cohort, Cohort],
    preparation: Preparation,
    patch: int | None,
    workers: int,
    bar: Progress,
) -> list[PreparedSet]:
    """Prepare the scans of train and val under ``folder``; see ``PreparedSet.create``."""
    sets = []
    for name, part in zip(("train", "val"), parts, strict=True):
        track = partial(bar.track, name=f"prepare {name}", total=len(part))
        made = PreparedSet.create(
            folder / name, part, preparation, preparation.slices, patch, workers, track
        )
        sets.append(made)
        for scan, reason in made.failures:
            bar.say(f"left out {scan}: {reason}")
    return sets


class Draws:
    """Batches by number: an endless row of shuffled passes, so that any step can be drawn again."""

    def __init__(self, data: PreparedSet, batch_size: int, seed: int) -> None:
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self._epoch, self._order = -1, np.empty(0, int)

    def indices(self, draw: int) -> np.ndarray:
        """Sample numbers of a draw."""
        places = np.arange(draw * self.batch_size, (draw + 1) * self.batch_size)
        result = np.empty(self.batch_size, dtype=int)
        for i, (epoch, at) in enumerate(zip(*divmod(places, len(self.data)), strict=True)):
            if epoch != self._epoch:
                generator = np.random.default_rng(derive_seed(self.seed, "order", int(epoch)))
                self._epoch, self._order = int(epoch), generator.permutation(len(self.data))
            result[i] = self._order[at]
        return result


def _plain(value: Any) -> Any:
    """Numbers and text as JSON knows them."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, int | float | bool | str) or value is None else str(value)
