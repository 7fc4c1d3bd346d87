"""The one way from a scan to its finding: prepared, mapped piece by piece, stitched, scored."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from normscan.cohort import CohortRow
from normscan.detector.finding import Finding
from normscan.detector.state import State
from normscan.errors import ArgumentError, NormscanError, ScanError, of_scan
from normscan.io.companions import COMPANIONS, Given, read_companion
from normscan.io.read import check_array, read_scan
from normscan.methods.base import Batch, Maps, Method
from normscan.preprocess import Prepared
from normscan.rng import Rng, derive_seed
from normscan.scan import Scan
from normscan.scores.postprocess import apply_chain
from normscan.scores.reductions import reduce_map
from normscan.training.data import split_slices

OVERLAP = 0.5

SEEN = {
    "trained": "The scan trained this detector, so its score is lower than that of a new one.",
    "calibrated": "The scan set this detector's threshold, so its p-value says nothing new.",
}

# Slices or patches at a time; of a volume at once there is one.
BATCH = 16


@dataclass
class Stitched:
    """A method's results on the working grid of a scan.

    Attributes:
        map: (*grid) or None.
        reconstruction: (C, *grid) or None.
        uncertainty: (*grid) or None.
        scores: image scores of the slices or patches, if the method gives them.
    """

    map: np.ndarray | None = None
    reconstruction: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    scores: list[float] = field(default_factory=list)


@dataclass
class Sums:
    """Weighted results of a member on the working grid, while pieces are added.

    Attributes:
        weights: (*grid).
        totals: (C, *grid) by name.
        scores: image scores of the pieces.
    """

    weights: np.ndarray
    totals: dict[str, np.ndarray] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)

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
        return Stitched(**only, scores=self.scores, reconstruction=means.get("reconstruction"))


@dataclass(frozen=True)
class Sample:
    """A piece of a prepared scan: where it lies, where in the subject that is, its neighbours."""

    place: tuple[slice | int, ...]
    position: float
    key: int
    around: tuple[tuple[slice | int, ...], ...] = ()


class Predictor:
    """Runs a method over prepared scans.

    Args:
        method: in evaluation mode, on its device.
        slices: cut volumes into slices.
        patch: side of the patches that volumes and images are cut into; None for whole ones.
        batch_size: samples at a time.
        seed: every sample's randomness comes from it and from the sample's place in the scan, so
            that neither order nor batch size matters.
    """

    def __init__(
        self, method: Method, slices: bool, patch: int | None, batch_size: int, seed: int
    ) -> None:
        self.method = method
        self.slices = slices
        self.patch = patch
        self.batch_size = batch_size
        self.seed = seed
        self.device = next(
            (t.device for t in itertools.chain(method.parameters(), method.buffers())),
            torch.device("cpu"),
        )

    def __call__(
        self, prepared: Prepared, columns: Mapping[str, Any] | None = None
    ) -> list[Stitched]:
        """Predict a scan, by each member of the method; ``columns`` is what the cohort says of it."""
        samples = self._samples(prepared)
        members: list[Sums] = []
        for start in range(0, len(samples), self.batch_size):
            part = samples[start : start + self.batch_size]
            batch = self._batch(prepared, part)
            batch.columns = [dict(columns or {}) for _ in part]
            for number, maps in enumerate(self._run(batch)):
                if number == len(members):
                    members.append(Sums(np.zeros(prepared.grid.shape, np.float32)))
                self._add(part, maps, members[number], prepared)
        return [member.stitched() for member in members]

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

    def _batch(self, prepared: Prepared, samples: list[Sample]) -> Batch:
        images = np.stack([prepared.image[(slice(None), *s.place)] for s in samples])
        masks = np.stack([prepared.foreground[s.place] for s in samples])
        beside: dict[str, Any] = {
            name: torch.from_numpy(np.stack([array[(slice(None), *s.place)] for s in samples]))
            for name, array in prepared.companions.items()
        }
        context = None
        if self.method.context:
            stacks = [[prepared.image[(slice(None), *p)] for p in s.around] for s in samples]
            context = torch.from_numpy(np.stack([np.stack(s, axis=1) for s in stacks]))
        return Batch(
            image=torch.from_numpy(np.ascontiguousarray(images)),
            foreground=torch.from_numpy(np.ascontiguousarray(masks))[:, None],
            rng=Rng([derive_seed(self.seed, "predict", s.key) for s in samples]),
            position=torch.tensor([s.position for s in samples], dtype=torch.float32),
            context=context,
            **beside,
        ).to(self.device)

    def _run(self, batch: Batch) -> list[Maps]:
        with torch.set_grad_enabled(self.method.needs_grad):
            return self.method.each(batch)

    def _add(self, samples: list[Sample], maps: Maps, sums: Sums, prepared: Prepared) -> None:
        """Add weighted results to the sums; the weight falls towards the edges of a patch."""
        if maps.score is not None:
            sums.scores += maps.score.double().cpu().tolist()
        named = {"map": maps.map, "reconstruction": maps.reconstruction}
        named["uncertainty"] = maps.uncertainty
        size = tuple(np.array(prepared.image[(slice(None), *samples[0].place)].shape[1:]))
        window = self._window(size) if self.patch else np.ones(size, np.float32)
        for name, tensor in named.items():
            if tensor is None:
                continue
            values = self._resized(tensor.detach().float(), size).cpu().numpy()
            total = sums.total(name, values.shape[1])
            for sample, value in zip(samples, values, strict=True):
                total[(slice(None), *sample.place)] += window * value
        for sample in samples:
            sums.weights[sample.place] += window

    @staticmethod
    def _resized(values: Tensor, size: tuple[int, ...]) -> Tensor:
        """Enlarge a map from the method's own grid, linearly."""
        if tuple(values.shape[2:]) == size:
            return values
        mode = "bilinear" if len(size) == 2 else "trilinear"
        return torch.nn.functional.interpolate(values, size, mode=mode, align_corners=False)

    @staticmethod
    def _window(size: tuple[int, ...]) -> np.ndarray:
        window = np.ones((1,) * len(size), np.float32)
        for axis, n in enumerate(size):
            x = (np.arange(n) - (n - 1) / 2) / (n / 4)
            shape = [1] * len(size)
            shape[axis] = n
            window = window * np.exp(-0.5 * x**2).reshape(shape).astype(np.float32)
        return np.maximum(window, 1e-3)


@dataclass
class Observed:
    """What a method sees in a scan, before anything is decided.

    Attributes:
        prepared: the scan on its working grid.
        members: results of each member, post-processed.
    """

    prepared: Prepared
    members: list[Stitched]


def observe(
    state: State,
    scan: Scan,
    foreground: np.ndarray | None = None,
    columns: Mapping[str, Any] | None = None,
    companions: Mapping[str, Given] | None = None,
) -> Observed:
    """Prepare a scan, run the method over it and post-process its maps.

    Raises:
        ScanError: it doesn't fit the detector, or the map isn't finite.
    """
    assert state.method is not None
    preparation = state.preparation()
    prepared = preparation.of(scan, foreground, _companions(state.method, scan, companions or {}))
    size = BATCH if state.arguments["dims"] == 2 else 1
    slices = preparation.slices(prepared)
    predictor = Predictor(state.method, slices, state.patch, size, state.seed)
    members = predictor(prepared, columns)
    for member in members:
        _post_process(state, member, prepared)
    return Observed(prepared, members)


def predict(
    state: State,
    scan: Scan | np.ndarray | str | os.PathLike[str] | list[str],
    foreground: np.ndarray | None = None,
    details: bool = True,
    force: bool = False,
    columns: Mapping[str, Any] | None = None,
    companions: Mapping[str, Given] | None = None,
) -> Finding:
    """Score a scan and map where it departs from healthy; see ``Detector.predict``."""
    if state.method is None:
        raise ArgumentError("this detector was not fitted; call fit(cohort) or load(folder).")
    seen = ""
    if isinstance(scan, np.ndarray):
        given, scan = scan.shape, check_array(scan)
        flat = state.gate is not None and state.gate.limits["dims"] == [2]
        if scan.dims == 3 and flat:
            raise ScanError(
                f"array: {given} is one volume, and this detector was trained on 2D scans. Predict "
                "images one by one; a volume on purpose as Scan.from_array(array, stack=True)."
            )
    elif not isinstance(scan, Scan):
        paths = [scan] if isinstance(scan, str | os.PathLike) else scan
        scan, seen = read_scan(scan), state.seen(map(Path, paths))
    begun = time.monotonic()
    verdict = None if state.gate is None else state.gate.check(scan)
    if verdict is not None and not (verdict.passed or force):
        raise ScanError(
            f"{scan.name}: refused by the quality gate: {' '.join(verdict.sentences)} "
            "Use force (--force) to score it all the same."
        )
    observed = observe(state, scan, foreground, columns, companions)
    finding = found_in(state, scan, observed, details, columns)
    if seen:
        finding.notes = (SEEN[seen], *finding.notes)
    finding.quality = verdict
    finding.seconds = time.monotonic() - begun
    return finding


def found_in(
    state: State, scan: Scan, observed: Observed, details: bool = False,
    columns: Mapping[str, Any] | None = None,
) -> Finding:  # fmt: skip
    """Score what was observed in a scan, and decide."""
    prepared, members = observed.prepared, observed.members
    scores = [_score(state, member, prepared) for member in members]
    stitched = averaged(members)
    finding = Finding(scan, None, float(np.mean(scores)))
    if stitched.map is not None:
        finding.map = prepared.back(stitched.map[None])[0]
    if details:
        _add_details(finding, stitched, prepared)
    compared = ""
    if state.scan_threshold is not None:
        threshold, compared = state.scan_threshold.among(columns or {})
        finding.threshold = threshold.threshold
        finding.p_value, finding.anomalous = threshold.judge(scores)
        finding.false_alarms = threshold.rates()
        finding.ranked = threshold.ranked(finding.p_value)
    finding.pixel_threshold = state.pixel_threshold
    finding.pixel_rule = "" if state.pixel_threshold is None else state.pixel_rule
    # The article counts voxels of its own grid; here they become those of the scan's.
    finding.smallest_component = round(state.card.smallest_component * prepared.voxel)
    finding.notes = (*scan.extra.get("notes", ()), *filter(None, [compared]))
    if prepared.working is not None:
        finding.notes += prepared.working.notes
        finding.facts = prepared.working.facts
    finding.provenance = state.provenance()
    return finding


def _companions(method: Method, scan: Scan, given: Mapping[str, Given]) -> dict[str, np.ndarray]:
    """What the method uses of what stands beside a scan.

    Raises:
        ArgumentError: it is of a kind that nobody knows.
        ScanError: it lies on another grid, or something that is needed isn't there.
    """
    if unknown := set(given) - set(COMPANIONS):
        raise ArgumentError(
            f"'{min(unknown)}' can't stand beside a scan; {', '.join(COMPANIONS)} can."
        )
    used = {name: use for name, use in method.uses.items() if use.at_prediction}
    for name, use in used.items():
        if use.prediction == "needed" and name not in given:
            raise ScanError(
                f"{scan.name}: this detector compares a scan with its {name}, and none was given. "
                f"Fill the column '{name}' of the cohort, or give --{name} (companions in Python)."
            )
    return {name: read_companion(name, given[name], scan) for name in used if name in given}


def predict_rows(
    state: State, rows: Iterable[CohortRow], details: bool = False, force: bool = False
) -> Iterator[tuple[CohortRow, Finding | NormscanError]]:
    """Predict scan after scan; a bad scan yields its error and the rest goes on."""

    def one(row: CohortRow, scan: Scan, foreground: np.ndarray | None, beside: Any) -> Finding:
        columns = row.columns
        if state.scan_threshold is not None and state.scan_threshold.grouped_by == "site":
            columns = {**columns, "site": row.site}
        found = predict(state, scan, foreground, details, force, columns, beside)
        if role := state.seen(row.paths):
            found.notes = (SEEN[role], *found.notes)
        return found

    return each_row(state, rows, one)


Result = TypeVar("Result")


def each_row(
    state: State, rows: Iterable[CohortRow], work: Callable[..., Result]
) -> Iterator[tuple[CohortRow, Result | NormscanError]]:
    """Yield the results of ``work(row, scan, foreground, companions)``, scan after scan.

    A bad scan yields its error and the rest goes on.
    """
    for row in rows:
        try:
            with of_scan(row.scan):
                scan = row.load()
                foreground = row.load_foreground(scan)
                used = {} if state.method is None else state.method.uses
                read = {n: row.load_companion(n, scan) for n, u in used.items() if u.at_prediction}
                beside = {name: array for name, array in read.items() if array is not None}
                found = work(row, scan, foreground, beside)
        except NormscanError as error:
            yield row, error
            continue
        # Outside of the block: what goes wrong with the consumer isn't this scan's.
        yield row, found


def averaged(members: list[Stitched]) -> Stitched:
    """Return the means of what the members found, each post-processed by itself."""
    if len(members) == 1:
        return members[0]

    def mean(name: str) -> np.ndarray | None:
        values = [getattr(member, name) for member in members]
        return None if values[0] is None else np.stack(values).mean(axis=0, dtype=np.float32)

    return Stitched(mean("map"), mean("reconstruction"), mean("uncertainty"))


def _post_process(state: State, stitched: Stitched, prepared: Prepared) -> None:
    if stitched.map is None:
        return
    stitched.map = apply_chain(state.postprocess, stitched.map, prepared.foreground, prepared.image)
    if not np.isfinite(stitched.map).all():
        raise ScanError("the method's map is not finite for this scan; was it trained?")


def _score(state: State, stitched: Stitched, prepared: Prepared) -> float:
    """The method's own score goes before a reduction of its map, unless that was asked for."""
    if stitched.scores and not (state.replaces and stitched.map is not None):
        return own_score(stitched)
    assert stitched.map is not None
    return reduce_map(state.reduction, stitched.map, prepared.foreground, state.places)


def own_score(stitched: Stitched) -> float:
    """The score that the method itself gives: the highest of its slices or patches."""
    return float(max(stitched.scores))


def _add_details(finding: Finding, stitched: Stitched, prepared: Prepared) -> None:
    back = prepared.back
    finding.foreground = back(prepared.foreground[None].astype(np.float32))[0] > 0.5
    if stitched.reconstruction is not None:
        finding.reconstruction = back(stitched.reconstruction)
        finding.prepared = back(prepared.image)
