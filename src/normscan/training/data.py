"""Prepared scans on disk: written one by one, read through a memory map, drawn by number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from normscan.errors import CohortError, ScanError
from normscan.methods.base import Batch
from normscan.parallel import each
from normscan.preprocess import Prepared
from normscan.preprocess.samples import EMPTY_SLICE, Preparation, Sampling, split_slices
from normscan.progress import Progress
from normscan.rng import Rng, derive_seed

if TYPE_CHECKING:
    from normscan.cohort import Cohort, CohortRow

__all__ = ["EMPTY_SLICE", "Draws", "PreparedSet", "prepare_sets", "select_part", "split_slices"]


class Stack:
    """Arrays on disk, one after the other, read by sample numbers."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self.arrays = arrays
        self.starts = np.cumsum([0, *map(len, arrays)])
        self.shape = (int(self.starts[-1]), *arrays[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Samples (len(indices), ...)."""
        which = np.searchsorted(self.starts, indices, "right") - 1
        return np.stack(
            [self.arrays[w][i - self.starts[w]] for w, i in zip(which, indices, strict=True)]
        )


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
        labels: (N,) 0 healthy, 1 anomalous, -1 not told.
        lesions: (N, *size) bool, memory-mapped, or None.
        scans: id of each scan.
        subjects: number of each scan's subject, counted as they come.
    """

    images: np.ndarray | Stack
    foregrounds: np.ndarray | Stack
    positions: np.ndarray
    rows: np.ndarray
    columns: list[dict[str, Any]]
    failures: list[tuple[str, str]]
    patch: int | None = None
    labels: np.ndarray | None = None
    lesions: np.ndarray | Stack | None = None
    scans: list[str] = field(default_factory=list)
    subjects: list[int] = field(default_factory=list)

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
        part: str = "healthy",
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
            part: what the rows are: ``healthy``, ``unlabelled``, or ``anomalous`` with lesions.

        Raises:
            ScanError: none of the scans could be prepared.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rows = list(rows)
        index: dict[str, Any] = {"positions": [], "rows": [], "columns": [], "failures": []}
        index |= {"labels": [], "scans": [], "subjects": []}
        drawn, numbers = part == "anomalous", dict[str, int]()
        shape: tuple[int, ...] | None = None
        with (
            (folder / "images.raw").open("wb") as images,
            (folder / "masks.raw").open("wb") as masks,
            (folder / "lesions.raw").open("wb") as lesions,
        ):
            results = track(each(Sampling(prepare, slices, drawn), rows, workers))
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
                for image, foreground, position, lesion in samples:
                    images.write(np.ascontiguousarray(image, "<f4").tobytes())
                    masks.write(np.ascontiguousarray(foreground, bool).tobytes())
                    if lesion is not None:
                        lesions.write(np.ascontiguousarray(lesion, bool).tobytes())
                    index["positions"].append(position)
                    index["rows"].append(len(index["columns"]))
                    index["labels"].append(_label(part, row, lesion, len(samples)))
                index["columns"].append({k: _plain(v) for k, v in row.columns.items()})
                index["scans"].append(row.scan)
                index["subjects"].append(numbers.setdefault(row.subject, len(numbers)))
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
        drawn = (folder / "lesions.raw").stat().st_size > 0
        return cls(
            np.memmap(folder / "images.raw", "<f4", "r", shape=(n, *shape)),
            np.memmap(folder / "masks.raw", bool, "r", shape=(n, *shape[1:])),
            np.asarray(index["positions"], dtype=np.float32),
            np.asarray(index["rows"]),
            index["columns"],
            [(scan, reason) for scan, reason in index["failures"]],
            patch,
            np.asarray(index["labels"]),
            np.memmap(folder / "lesions.raw", bool, "r", shape=(n, *shape[1:])) if drawn else None,
            index["scans"],
            index["subjects"],
        )

    @classmethod
    def join(cls, sets: Sequence[PreparedSet]) -> PreparedSet:
        """Return several sets as one, with the samples in their order; nothing is copied."""
        if len(sets) == 1:
            return sets[0]
        starts = np.cumsum([0, *(len(s.columns) for s in sets)])
        lesions = None
        if any(s.lesions is not None for s in sets):
            # Zeros that take no room: a broadcast value.
            nothing = [np.broadcast_to(np.False_, s.foregrounds.shape) for s in sets]
            lesions = Stack(
                [
                    none if s.lesions is None else s.lesions
                    for s, none in zip(sets, nothing, strict=True)
                ]
            )
        return cls(
            Stack([s.images for s in sets]),
            Stack([s.foregrounds for s in sets]),
            np.concatenate([s.positions for s in sets]),
            np.concatenate([s.rows + start for s, start in zip(sets, starts, strict=False)]),
            [c for s in sets for c in s.columns],
            [f for s in sets for f in s.failures],
            sets[0].patch,
            np.concatenate([s.told for s in sets]),
            lesions,
            [name for s in sets for name in s.scans],
            [n + int(start) for s, start in zip(sets, starts, strict=False) for n in s.subjects],
        )

    @property
    def told(self) -> np.ndarray:
        """(N,) labels; healthy where none are stored."""
        return np.zeros(len(self), int) if self.labels is None else self.labels

    def batch(self, indices: Sequence[int] | np.ndarray, rng: Rng, crop: bool = True) -> Batch:
        """Return samples by number; random patches of them where ``patch`` is set."""
        indices = np.asarray(indices)
        images, masks, rows = self.images[indices], self.foregrounds[indices], self.rows[indices]
        lesions = None if self.lesions is None else self.lesions[indices]
        if self.patch and crop:
            images, masks, lesions = self._crop(images, masks, lesions, rng)
        return Batch(
            image=torch.from_numpy(np.array(images)),
            foreground=torch.from_numpy(np.array(masks))[:, None],
            rng=rng,
            position=torch.from_numpy(self.positions[indices]),
            label=torch.from_numpy(self.told[indices]),
            lesion=None if lesions is None else torch.from_numpy(np.array(lesions))[:, None],
            index=torch.from_numpy(indices),
            subject=torch.tensor([self.subjects[r] for r in rows]) if self.subjects else None,
            columns=[self.columns[r] for r in rows],
        )

    def _crop(
        self, images: np.ndarray, masks: np.ndarray, lesions: np.ndarray | None, rng: Rng
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        assert self.patch is not None
        room = np.maximum(np.array(images.shape[2:]) - self.patch, 0)
        corners = (rng.uniform((len(images), len(room))).numpy() * (room + 1)).astype(int)
        windows = [tuple(slice(c, c + self.patch) for c in corner) for corner in corners]

        def cut(arrays: np.ndarray) -> np.ndarray:
            return np.stack([a[(..., *w)] for a, w in zip(arrays, windows, strict=True)])

        return cut(images), cut(masks), None if lesions is None else cut(lesions)

    def passes(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """One pass over all samples in order."""
        for start in range(0, len(self), batch_size):
            indices = range(start, min(len(self), start + batch_size))
            yield self.batch(indices, Rng(derive_seed(seed, "pass", start)))


def select_part(cohort: Cohort, name: str) -> Cohort:
    """Return the scans of a part that phases draw from, see ``Phase.part``.

    Raises:
        CohortError: it has none; says how to give some.
    """
    if name in ("healthy", "val"):
        return cohort.part("train" if name == "healthy" else "val")
    extra = cohort.part("extra")
    if name == "anomalous":
        extra = extra.select((extra.table["label"] == 1).fillna(False))
    if not len(extra):
        raise CohortError(
            f"this method also learns from {name} scans, and the cohort has none. Give them the "
            "split 'extra' in its table; none of their subjects may be in test."
        )
    return extra


def healthy_folds(cohort: Cohort, count: int, seed: int) -> list[Cohort]:
    """Part the healthy scans of train and val, by subject, into folds of nearly equal size.

    Args:
        cohort: whose split between train and val is forgotten.
        count: folds, at most as many as there are subjects.
        seed: of the order of the subjects.
    """
    table = cohort.table
    healthy = cohort.select(
        table["split"].isin(["train", "val"]) & (table["label"] == 0).fillna(False)
    )
    subjects = list(dict.fromkeys(row.subject for row in healthy))
    order = np.random.default_rng(seed).permutation(len(subjects))
    fold = {subjects[place]: i % count for i, place in enumerate(order)}
    numbers = np.array([fold[row.subject] for row in healthy])
    return [healthy.select(numbers == k) for k in range(count)]


def prepare_sets(
    folder: Path,
    parts: Mapping[str, Cohort],
    preparation: Preparation,
    patch: int | None,
    workers: int,
    bar: Progress,
) -> dict[str, PreparedSet]:
    """Prepare parts of a cohort, each in its folder under ``folder``; see ``PreparedSet.create``."""
    sets = {}
    for name, part in parts.items():
        track = partial(bar.track, name=f"prepare {name}", total=len(part))
        kind = "healthy" if name == "val" or name.startswith("fold") else name
        made = PreparedSet.create(
            folder / name, part, preparation, preparation.slices, patch, workers, track, kind
        )
        sets[name] = made
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


def _label(part: str, row: CohortRow, lesion: np.ndarray | None, samples: int) -> int:
    """What a sample is told to be: of a lesioned volume only the slices with lesion are so."""
    if part != "anomalous":
        return 0 if part == "healthy" else -1
    if row.mask is not None and samples > 1 and lesion is not None:
        return int(lesion.any())
    return 1
