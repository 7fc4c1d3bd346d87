"""A method over prepared scans: cut into pieces, run in batches, stitched together again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.detector.graph import Graph, Outputs, Pieces
from normscan.preprocess import Prepared
from normscan.preprocess.samples import split_slices

if TYPE_CHECKING:
    from normscan.methods.base import Method

OVERLAP = 0.5


@dataclass
class Stitched:
    """A method's results on the working grid of a scan.

    Attributes:
        map: (*grid) or None.
        reconstruction: (C, *grid) or None.
        uncertainty: (*grid) or None.
        scores: image scores of the slices or patches, if the method gives them.
        further: (*its grid) maps of further images by name; of several pieces the mean.
    """

    map: np.ndarray | None = None
    reconstruction: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    scores: list[float] = field(default_factory=list)
    further: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Sums:
    """Weighted results of a member on the working grid, while pieces are added.

    Attributes:
        weights: (*grid).
        totals: (C, *grid) by name.
        scores: image scores of the pieces.
        further: maps of further images, one of each piece.
    """

    weights: np.ndarray
    totals: dict[str, np.ndarray] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)
    further: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def total(self, name: str, channels: int) -> np.ndarray:
        """Return the sum of a name, zeros to begin with."""
        if name not in self.totals:
            self.totals[name] = np.zeros((channels, *self.weights.shape), np.float32)
        return self.totals[name]

    def stitched(self) -> Stitched:
        """Return the means."""
        means = {
            name: np.divide(total, self.weights, out=np.zeros_like(total), where=self.weights > 0)
            for name, total in self.totals.items()
        }
        only = {name: means[name][0] for name in ("map", "uncertainty") if name in means}
        further = {name: np.mean(maps, axis=0) for name, maps in self.further.items()}
        return Stitched(
            **only, scores=self.scores, reconstruction=means.get("reconstruction"), further=further
        )


@dataclass(frozen=True)
class Sample:
    """A piece of a prepared scan: where it lies, where in the subject that is, its neighbours."""

    place: tuple[slice | int, ...]
    position: float
    key: int
    around: tuple[tuple[slice | int, ...], ...] = ()


@dataclass(frozen=True)
class Job:
    """A prepared scan on its way through a method.

    Attributes:
        name: of the scan.
        prepared: the scan.
        columns: what the cohort says of it.
        samples: its pieces.
    """

    name: str
    prepared: Prepared
    columns: Mapping[str, Any]
    samples: Sequence[Sample]

    @property
    def kind(self) -> tuple[Any, ...]:
        """What scans must have in common to share a batch: size of a piece, what stands beside it."""
        beside = sorted((name, len(a)) for name, a in self.prepared.companions.items())
        further = sorted((name, one.image.shape) for name, one in self.prepared.further.items())
        return self.prepared.image[(slice(None), *self.samples[0].place)].shape, beside, further


# Number of the job that a sample is of, and the sample.
Piece = tuple[int, Sample]


class Predictor:
    """Runs a method over prepared scans.

    Args:
        method: in evaluation mode, on its device; or its exported graph.
        slices: cut volumes into slices.
        patch: side of the patches that volumes and images are cut into; None for whole ones.
        batch_size: samples at a time.
        seed: every sample's randomness comes from it and from the sample's place in the scan, so
            that neither order nor batch size matters.
    """

    def __init__(
        self, method: Method | Graph, slices: bool, patch: int | None, batch_size: int, seed: int
    ) -> None:
        self.method = method
        self.slices = slices
        self.patch = patch
        self.batch_size = batch_size
        self.seed = seed

    def __call__(
        self, prepared: Prepared, columns: Mapping[str, Any] | None = None
    ) -> list[Stitched]:
        """Predict a scan, by each member of the method; ``columns`` is what the cohort says of it."""
        return self.together([self.job(prepared, columns)])[0]

    def job(
        self, prepared: Prepared, columns: Mapping[str, Any] | None = None, name: str = ""
    ) -> Job:
        """Cut a prepared scan into its samples."""
        return Job(name, prepared, dict(columns or {}), self._samples(prepared))

    def together(self, jobs: Sequence[Job]) -> list[list[Stitched]]:
        """Predict several scans of one kind, see ``Job.kind``, in common batches."""
        pieces = [(n, sample) for n, job in enumerate(jobs) for sample in job.samples]
        members: list[list[Sums]] = []
        for start in range(0, len(pieces), self.batch_size):
            part = pieces[start : start + self.batch_size]
            for number, outputs in enumerate(self._run(self.pieces(jobs, part))):
                if number == len(members):
                    shapes = [job.prepared.grid.shape for job in jobs]
                    members.append([Sums(np.zeros(shape, np.float32)) for shape in shapes])
                self._add(jobs, part, outputs, members[number])
        return [[sums[n].stitched() for sums in members] for n in range(len(jobs))]

    def _samples(self, prepared: Prepared) -> list[Sample]:
        if self.slices:
            kept = split_slices(prepared)
            places = [(slice(None), slice(None), k) for k, _ in kept]
            around = self._around(places)
            return [Sample(places[i], at, k, around[i]) for i, (k, at) in enumerate(kept)]
        if self.patch is None:
            place = (slice(None),) * len(prepared.grid.shape)
            return [Sample(place, 0.5, 0, self._around([place])[0])]
        corners = list(self._corners(prepared.grid.shape, self.patch))
        last = max(1, len(corners) - 1)
        return [
            Sample(tuple(slice(c, c + self.patch) for c in corner), i / last, i)
            for i, corner in enumerate(corners)
        ]

    def _around(self, places: Sequence[tuple[slice | int, ...]]) -> list[tuple[Any, ...]]:
        """Each place among its neighbours, as ``Batch.context`` has them."""
        n, last = self.method.context, len(places) - 1
        if not n:
            return [()] * len(places)
        reach = range(-n, n + 1)
        return [tuple(places[min(max(i + d, 0), last)] for d in reach) for i in range(last + 1)]

    @staticmethod
    def _corners(shape: tuple[int, ...], patch: int) -> Iterator[tuple[int, ...]]:
        """Corners of windows that overlap by at least half and cover the grid."""
        axes = []
        for n in shape:
            count = (
                max(1, int(np.ceil((n - patch) / (patch * (1 - OVERLAP)))) + 1) if n > patch else 1
            )
            axes.append(np.linspace(0, max(0, n - patch), count).round().astype(int).tolist())
        return itertools.product(*axes)

    def pieces(self, jobs: Sequence[Job], part: Sequence[Piece]) -> Pieces:
        """Return what the method sees of some samples, each with the number of its job."""
        whole = [(jobs[n].prepared, sample) for n, sample in part]
        beside = {
            name: np.stack([scan.companions[name][(slice(None), *s.place)] for scan, s in whole])
            for name in whole[0][0].companions
        }
        if self.method.context:
            stacks = [[scan.image[(slice(None), *p)] for p in s.around] for scan, s in whole]
            beside["context"] = np.stack([np.stack(s, axis=1) for s in stacks])
        return Pieces(
            image=np.stack([scan.image[(slice(None), *s.place)] for scan, s in whole]),
            foreground=np.stack([scan.foreground[s.place] for scan, s in whole])[:, None],
            position=np.array([s.position for _, s in part], np.float32),
            keys=[s.key for _, s in part],
            columns=[dict(jobs[n].columns) for n, _ in part],
            beside=beside,
            further={
                name: np.stack([scan.further[name].image for scan, _ in whole])
                for name in whole[0][0].further
            },
        )

    def _run(self, pieces: Pieces) -> list[Outputs]:
        if isinstance(self.method, Graph):
            return self.method.run(pieces)
        from normscan.detector.runner import run

        return run(self.method, pieces, self.seed)

    def _add(
        self, jobs: Sequence[Job], part: Sequence[Piece], outputs: Outputs, sums: Sequence[Sums]
    ) -> None:
        """Add weighted results to the sums; the weight falls towards the edges of a patch."""
        if outputs.scores is not None:
            for (n, _), score in zip(part, outputs.scores, strict=True):
                sums[n].scores.append(score)
        for name, values in outputs.further.items():
            for (n, _), value in zip(part, values, strict=True):
                sums[n].further.setdefault(name, []).append(value[0])
        first, sample = part[0]
        size = jobs[first].prepared.image[(slice(None), *sample.place)].shape[1:]
        window = self._window(size) if self.patch else np.ones(size, np.float32)
        for name, values in outputs.arrays.items():
            for (n, sample), value in zip(part, values, strict=True):
                total = sums[n].total(name, values.shape[1])
                total[(slice(None), *sample.place)] += window * value
        for n, sample in part:
            sums[n].weights[sample.place] += window

    @staticmethod
    def _window(size: tuple[int, ...]) -> np.ndarray:
        window = np.ones((1,) * len(size), np.float32)
        for axis, n in enumerate(size):
            x = (np.arange(n) - (n - 1) / 2) / (n / 4)
            shape = [1] * len(size)
            shape[axis] = n
            window = window * np.exp(-0.5 * x**2).reshape(shape).astype(np.float32)
        return np.maximum(window, 1e-3)
