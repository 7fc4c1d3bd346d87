"""Prepared scans on disk: written one by one, read through a memory map, drawn by number."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from normscan.errors import CohortError, ScanError
from normscan.io.atomic import writing
from normscan.io.companions import MEANINGS
from normscan.methods.base import Batch, Method
from normscan.parallel import each
from normscan.preprocess import Prepared
from normscan.preprocess.samples import (
    EMPTY_SLICE,
    Aside,
    Looking,
    Preparation,
    Sampling,
    split_slices,
)
from normscan.progress import Progress
from normscan.rng import Rng, derive_seed

if TYPE_CHECKING:
    from normscan.cohort import Cohort, CohortRow

__all__ = ["EMPTY_SLICE", "Draws", "PreparedSet", "prepare_sets", "select_part", "split_slices"]


# How the arrays of a set are stored, by the names of their files.
TYPES = {
    "images": "<f4", "foregrounds": "?", "lesion": "?", "target": "<f4", "structures": "<i4",
}  # fmt: skip


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
        beside: (N, C, *size) by name of the field of ``Batch``, memory-mapped: lesions, companions.
        scans: id of each scan.
        subjects: number of each scan's subject, counted as they come.
        context: neighbouring slices on each side that batches bring, see ``Batch.context``.
        further: (number of scans, C, *its size) by name, memory-mapped: further images of a case.
        sizes: samples of each of the parts that were joined; empty for one part.
    """

    images: np.ndarray | Stack
    foregrounds: np.ndarray | Stack
    positions: np.ndarray
    rows: np.ndarray
    columns: list[dict[str, Any]]
    failures: list[tuple[str, str]]
    patch: int | None = None
    labels: np.ndarray | None = None
    beside: Mapping[str, np.ndarray | Stack] = field(default_factory=dict)
    scans: list[str] = field(default_factory=list)
    subjects: list[int] = field(default_factory=list)
    context: int = 0
    sizes: tuple[int, ...] = ()
    further: Mapping[str, np.ndarray | Stack] = field(default_factory=dict)

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
        context: int = 0,
        aside: Aside | None = None,
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
            part: what the rows are, see ``Phase.part``; ``anomalous`` ones bring their lesions.
            context: see the attribute.
            aside: what else is to be found out about the scans while they are open.

        Raises:
            ScanError: none of the scans could be prepared.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rows = list(rows)
        index: dict[str, Any] = {"positions": [], "rows": [], "columns": [], "failures": []}
        index |= {"labels": [], "scans": [], "subjects": [], "beside": {}, "further": {}}
        drawn, numbers = part == "anomalous", dict[str, int]()
        shape: tuple[int, ...] | None = None
        with writing(folder), contextlib.ExitStack() as stack:
            files = {
                name: stack.enter_context((folder / f"{name}.raw").open("wb")) for name in TYPES
            }
            look = Looking(Sampling(prepare, slices, drawn), aside.look if aside else None)
            items = [(row, aside is not None and row.scan in aside.scans) for row in rows]
            results = track(each(look, items, workers))
            for (row, wanted), (samples, seen) in zip(items, results, strict=True):
                if aside is not None and wanted:
                    aside.found[row.scan] = seen
                if isinstance(samples, Exception):
                    index["failures"].append((row.scan, str(samples)))
                    continue
                own = {name: array.shape for name, array in samples[0].further.items()}
                seen_so_far = (samples[0][0].shape, *own.items())
                if shape is not None and seen_so_far != (shape, *index["further"].items()):
                    others = [shape, *index["further"].items()]
                    reason = f"{row.scan}: prepared to {seen_so_far}, the others to {others}."
                    index["failures"].append((row.scan, reason))
                    continue
                shape, index["further"] = samples[0][0].shape, own
                for place, array in enumerate(samples[0].further.values()):
                    name = f"further{place}"
                    if name not in files:
                        files[name] = stack.enter_context((folder / f"{name}.raw").open("wb"))
                    files[name].write(np.ascontiguousarray(array, "<f4").tobytes())
                for image, foreground, position, beside, _ in samples:
                    arrays = {"images": image, "foregrounds": foreground, **beside}
                    for name, array in arrays.items():
                        files[name].write(np.ascontiguousarray(array, TYPES[name]).tobytes())
                    index["beside"] |= {name: len(array) for name, array in beside.items()}
                    lesion = beside.get("lesion")
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
        with writing(folder):
            (folder / "index.json").write_text(json.dumps(index))
        return cls.open(folder, patch, context)

    @classmethod
    def open(cls, folder: Path, patch: int | None = None, context: int = 0) -> PreparedSet:
        """Open a folder that ``create`` wrote."""
        index = json.loads((folder / "index.json").read_text())
        n, shape = len(index["positions"]), tuple(index["shape"])

        def mapped(name: str, *size: int) -> np.memmap:
            return np.memmap(folder / f"{name}.raw", TYPES[name], "r", shape=(n, *size))

        return cls(
            mapped("images", *shape),
            mapped("foregrounds", *shape[1:]),
            np.asarray(index["positions"], dtype=np.float32),
            np.asarray(index["rows"]),
            index["columns"],
            [(scan, reason) for scan, reason in index["failures"]],
            patch,
            np.asarray(index["labels"]),
            {name: mapped(name, c, *shape[1:]) for name, c in index["beside"].items()},
            index["scans"],
            index["subjects"],
            context,
            further={
                name: np.memmap(
                    folder / f"further{place}.raw", "<f4", "r", shape=(len(index["scans"]), *size)
                )
                for place, (name, size) in enumerate(index.get("further", {}).items())
            },
        )

    @classmethod
    def join(cls, sets: Sequence[PreparedSet]) -> PreparedSet:
        """Return several sets as one, with the samples in their order; nothing is copied."""
        if len(sets) == 1:
            return sets[0]
        starts = np.cumsum([0, *(len(s.columns) for s in sets)])
        beside = {}
        for name in dict.fromkeys(name for s in sets for name in s.beside):
            shape = next(s.beside[name].shape[1:] for s in sets if name in s.beside)
            # Zeros that take no room: a broadcast value.
            nothing = np.zeros((), TYPES[name])
            empty = [np.broadcast_to(nothing, (len(s), *shape)) for s in sets]
            beside[name] = Stack([s.beside.get(name, e) for s, e in zip(sets, empty, strict=True)])
        return cls(
            Stack([s.images for s in sets]),
            Stack([s.foregrounds for s in sets]),
            np.concatenate([s.positions for s in sets]),
            np.concatenate([s.rows + start for s, start in zip(sets, starts, strict=False)]),
            [c for s in sets for c in s.columns],
            [f for s in sets for f in s.failures],
            sets[0].patch,
            np.concatenate([s.told for s in sets]),
            beside,
            [name for s in sets for name in s.scans],
            [n + int(start) for s, start in zip(sets, starts, strict=False) for n in s.subjects],
            sets[0].context,
            tuple(map(len, sets)),
            {
                name: Stack([s.further[name] for s in sets])
                for name in sets[0].further if all(name in s.further for s in sets)
            },
        )  # fmt: skip

    def part_of(self, indices: np.ndarray) -> np.ndarray:
        """Which of the joined parts samples are from, counted from 0."""
        return np.searchsorted(np.cumsum(self.sizes or (len(self),)), indices, "right")

    @property
    def told(self) -> np.ndarray:
        """(N,) labels; healthy where none are stored."""
        return np.zeros(len(self), int) if self.labels is None else self.labels

    def batch(self, indices: Sequence[int] | np.ndarray, rng: Rng, crop: bool = True) -> Batch:
        """Return samples by number; random patches of them where ``patch`` is set."""
        indices = np.asarray(indices)
        images, masks, rows = self.images[indices], self.foregrounds[indices], self.rows[indices]
        arrays = {"image": images, "foreground": masks[:, None]}
        arrays |= {name: array[indices] for name, array in self.beside.items()}
        if self.patch and crop:
            arrays = self._crop(arrays, rng)
        return Batch(
            **{name: torch.from_numpy(np.array(array)) for name, array in arrays.items()},
            rng=rng,
            position=torch.from_numpy(self.positions[indices]),
            context=self._context(indices) if self.context else None,
            label=torch.from_numpy(self.told[indices]),
            index=torch.from_numpy(indices),
            subject=torch.tensor([self.subjects[r] for r in rows]) if self.subjects else None,
            part=torch.from_numpy(self.part_of(indices)),
            columns=[self.columns[r] for r in rows],
            further={
                name: torch.from_numpy(np.array(array[rows]))
                for name, array in self.further.items()
            },
        )

    def _context(self, indices: np.ndarray) -> torch.Tensor:
        """Slices with their neighbours; samples of one scan lie side by side."""
        own = self.rows[indices]
        first, last = (np.searchsorted(self.rows, own, side) for side in ("left", "right"))
        around = indices[:, None] + np.arange(-self.context, self.context + 1)
        around = np.clip(around, first[:, None], last[:, None] - 1)
        slices = self.images[around.ravel()]
        stacks = slices.reshape(*around.shape, *slices.shape[1:])
        return torch.from_numpy(np.ascontiguousarray(stacks.swapaxes(1, 2)))

    def _crop(self, arrays: dict[str, np.ndarray], rng: Rng) -> dict[str, np.ndarray]:
        """Cut one random window out of all arrays of a sample."""
        assert self.patch is not None
        images = arrays["image"]
        room = np.maximum(np.array(images.shape[2:]) - self.patch, 0)
        corners = (rng.uniform((len(images), len(room))).numpy() * (room + 1)).astype(int)
        windows = [tuple(slice(c, c + self.patch) for c in corner) for corner in corners]
        return {
            name: np.stack([a[(..., *w)] for a, w in zip(array, windows, strict=True)])
            for name, array in arrays.items()
        }

    def passes(
        self, batch_size: int, seed: int, most: int | None = None, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """One pass over the samples in order: all, or at most so many, evenly taken.

        Args:
            batch_size: samples in a batch.
            seed: of the batches' randomness.
            most: samples, or None for all.
            share: number of a process and how many there are; each gets every so-manyth batch.
        """
        rank, processes = share
        count = len(self) if most is None else min(most, len(self))
        taken = np.linspace(0, len(self) - 1, count).round().astype(int)
        for start in range(rank * batch_size, count, processes * batch_size):
            yield self.batch(
                taken[start : start + batch_size], Rng(derive_seed(seed, "pass", start))
            )


def select_part(cohort: Cohort, name: str) -> Cohort:
    """Return the scans of a part that phases draw from, see ``Phase.part``.

    Raises:
        CohortError: it has none; says how to give some.
    """
    if name in ("healthy", "val"):
        return cohort.part("train" if name == "healthy" else "val")
    if name == "auxiliary":
        return _auxiliary(cohort)
    extra = cohort.part("extra")
    if name in ("anomalous", "labelled"):
        extra = extra.select((extra.table["label"] == 1).fillna(False))
    if not len(extra):
        word = "anomalous" if name == "labelled" else name
        raise CohortError(
            f"this method also learns from {word} scans, and the cohort has none. Give them the "
            "split 'extra' in its table; none of their subjects may be in test."
            + (
                ""
                if name == "unlabelled"
                else " Or draw some from test: --anomalies 10, or cohort.with_anomalies(10) in Python."
            )
        )
    return extra


def _auxiliary(cohort: Cohort) -> Cohort:
    other = cohort.auxiliary
    if other is None:
        raise CohortError(
            "this method also learns from a second cohort. Name it: --auxiliary PATH, or "
            "fit(cohort, auxiliary=...) in Python."
        )
    other = other.select(other.table["split"].isin(["train", "extra"]))
    if not len(other):
        raise CohortError(
            "the auxiliary cohort has no scans to learn from. Give them the split 'train', or "
            "'extra' where they are anomalous or unlabelled."
        )
    return other


def check_companions(part: Cohort, name: str, needed: Sequence[str]) -> None:
    """Refuse a part of a cohort where nothing stands beside any scan.

    Raises:
        CohortError: says which column to fill.
    """
    for companion in needed:
        if not any(row.has(companion) for row in part):
            raise CohortError(
                f"this method learns from the {companion}{' images' * (companion == 'further')} of "
                f"{name} scans, and none of them has one. Fill the column '{companion}' of the "
                f"cohort: {MEANINGS[companion]}."
            )


def like(name: str) -> str:
    """The part that a fold of the healthy scans, ``fold1`` and so on, stands for."""
    return "healthy" if name.startswith("fold") else name


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
    method: Method,
    workers: int,
    bar: Progress,
    aside: Aside | None = None,
) -> dict[str, PreparedSet]:
    """Prepare parts of a cohort, each in its folder under ``folder``; see ``PreparedSet.create``."""
    sets = {}
    for name, part in parts.items():
        track = partial(bar.track, name=f"prepare {name}", total=len(part))
        kind = "healthy" if name == "val" else like(name)
        prepare = replace(preparation, companions=method.companions(like(name)))
        made = PreparedSet.create(
            folder / name, part, prepare, prepare.slices, patch, workers, track, kind,
            method.context, aside,
        )  # fmt: skip
        sets[name] = made
        for scan, reason in made.failures:
            bar.say(f"left out {scan}: {reason}")
    return sets


class Passes:
    """An endless row of shuffled passes over some samples, of which any place can be asked for."""

    def __init__(self, samples: np.ndarray, *seed: int | str) -> None:
        self.samples, self.seed = samples, seed
        self._epoch, self._order = -1, np.empty(0, int)

    def at(self, places: np.ndarray) -> np.ndarray:
        """Sample numbers at some places of the row."""
        result = np.empty(len(places), dtype=int)
        for i, (epoch, at) in enumerate(zip(*divmod(places, len(self.samples)), strict=True)):
            if epoch != self._epoch:
                generator = np.random.default_rng(derive_seed(*self.seed, "order", int(epoch)))
                self._epoch, self._order = int(epoch), generator.permutation(self.samples)
            result[i] = self._order[at]
        return result


class Draws:
    """Batches by number, so that any step can be drawn again.

    Args:
        data: to draw from.
        batch_size: samples in a draw.
        seed: of the order.
        balanced: take turns between the parts of ``data``, each with passes of its own.
    """

    def __init__(
        self, data: PreparedSet, batch_size: int, seed: int, balanced: bool = False
    ) -> None:
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.rows = [Passes(np.arange(len(data)), seed)]
        if balanced:
            parts = data.part_of(np.arange(len(data)))
            self.rows = [Passes(np.flatnonzero(parts == k), seed, k) for k in np.unique(parts)]

    def indices(self, draw: int) -> np.ndarray:
        """Sample numbers of a draw."""
        places = np.arange(draw * self.batch_size, (draw + 1) * self.batch_size)
        if len(self.rows) == 1:
            return self.rows[0].at(places)
        turns = places % len(self.rows)
        result = np.empty(self.batch_size, dtype=int)
        for k, row in enumerate(self.rows):
            result[turns == k] = row.at(places[turns == k] // len(self.rows))
        # Several processes share a draw: none must get one part alone.
        return np.random.default_rng(derive_seed(self.seed, "mix", draw)).permutation(result)


def _plain(value: Any) -> Any:
    """Numbers and text as JSON knows them."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, int | float | bool | str) or value is None else str(value)


def _label(part: str, row: CohortRow, lesion: np.ndarray | None, samples: int) -> int:
    """What a sample is told to be: of a lesioned volume only the slices with lesion are so."""
    if part == "auxiliary" and row.label is not None:
        return row.label
    if part not in ("anomalous", "labelled"):
        return 0 if part == "healthy" else -1
    if row.mask is not None and samples > 1 and lesion is not None:
        return int(lesion.any())
    return 1
