"""The one way from a scan to its finding: read, checked, prepared, mapped, scored.

Over a cohort it is a pipeline: threads read, check and prepare the next scans while the method works,
and scans share its batches. Results come in the order of the rows and are the same for any number of
threads. In a batch with others a scan's numbers may differ from its own batch's in the last bits, as
products are summed in another order there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from normscan.cohort import CohortRow, Opened
from normscan.cohort.row import Memo
from normscan.detector.filled import filled_note
from normscan.detector.finding import Finding
from normscan.detector.further import given_images, maps_of, mean_maps, missing_note, unseen_note
from normscan.detector.predictor import Job, Predictor, Stitched
from normscan.detector.state import State
from normscan.errors import ArgumentError, NormscanError, ScanError, of_scan
from normscan.io.companions import COMPANIONS, Given, read_companion
from normscan.io.read import check_array, read_scan
from normscan.parallel import ahead, read_ahead
from normscan.preprocess import Prepared
from normscan.quality import Verdict
from normscan.scan import Scan
from normscan.scores.postprocess import apply_chain
from normscan.scores.reductions import reduce_map

# What stands beside a scan by name; under ``further`` the further images of its case by name.
Companions = Mapping[str, Given | Mapping[str, Given]]

UNFITTED = "this detector was not fitted; call fit(cohort) or load(folder)."

SEEN = {
    "trained": "The scan trained this detector, so its score is lower than that of a new one.",
    "calibrated": "The scan set this detector's threshold, so its p-value says nothing new.",
}

# Slices or patches at a time; of a volume at once there is one.
BATCH = 16


@dataclass
class Observed:
    """What a method sees in a scan, before anything is decided.

    Attributes:
        prepared: the scan on its working grid.
        members: results of each member, post-processed.
    """

    prepared: Prepared
    members: list[Stitched]


def batch_size(state: State) -> int:
    """Samples of a batch: slices or patches of one scan, or of several."""
    return BATCH if state.arguments["dims"] == 2 else 1


def job_of(
    state: State,
    scan: Scan,
    foreground: np.ndarray | None = None,
    columns: Mapping[str, Any] | None = None,
    companions: Companions | None = None,
    kept: Memo | None = None,
) -> Job:
    """Prepare a scan for the state's method, or take what another one's preparation kept.

    Raises:
        ScanError: it doesn't fit the detector.
    """
    preparation = state.preparation()
    beside = _companions(state, scan, companions or {})
    make = partial(preparation.of, scan, foreground, beside)
    prepared = make() if kept is None else kept((preparation.key, *beside), make)
    return _predictor(state, preparation.slices(prepared)).job(prepared, columns, scan.name)


def _predictor(state: State, slices: bool = False) -> Predictor:
    method = state.graph or state.method
    assert method is not None
    return Predictor(method, slices, state.patch, batch_size(state), state.seed)


def observe_all(state: State, jobs: Sequence[Job]) -> list[Observed | NormscanError]:
    """Run the method over scans of one kind and post-process their maps; a bad scan gives its error.

    Where they can't be predicted together, each is by itself.
    """
    try:
        with of_scan(jobs[0].name):
            found = _predictor(state).together(jobs)
    except NormscanError as error:
        if len(jobs) == 1:
            return [error]
        return [one for job in jobs for one in observe_all(state, [job])]
    return [_observed(state, job, each) for job, each in zip(jobs, found, strict=True)]


def _observed(state: State, job: Job, members: list[Stitched]) -> Observed | NormscanError:
    try:
        for member in members:
            _post_process(state, member, job.prepared)
    except NormscanError as error:
        return error
    return Observed(job.prepared, members)


@dataclass
class Ready:
    """A scan that was read, checked and prepared.

    Attributes:
        row: of the cohort.
        scan: as it was read.
        job: the prepared scan; None where there is an error.
        verdict: of the quality gate, or None.
        seen: what the scan was for the detector, see ``State.seen``.
        stages: seconds of each stage.
        error: why it goes no further.
    """

    row: CohortRow
    scan: Scan | None = None
    job: Job | None = None
    verdict: Verdict | None = None
    seen: str = ""
    stages: dict[str, float] = field(default_factory=dict)
    error: NormscanError | None = None

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        held = [] if self.scan is None else [self.scan.data]
        if self.job is not None:
            prepared = self.job.prepared
            held += [prepared.image, *(one.image for one in prepared.further.values())]
        return sum(array.nbytes for array in held)


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    stages[name] = stages.get(name, 0.0) + time.perf_counter() - begun


def _fill(
    ready: Ready,
    state: State,
    scan: Scan,
    foreground: np.ndarray | None,
    columns: Mapping[str, Any] | None,
    companions: Companions | None,
    force: bool,
    kept: Memo | None = None,
) -> None:
    """Check and prepare a scan that was read."""
    ready.scan = scan
    if state.gate is not None:
        with _timed(ready.stages, "gate"):
            verdict = ready.verdict = state.gate.check(scan)
        if not (verdict.passed or force):
            raise ScanError(
                f"{scan.name}: refused by the quality gate: {' '.join(verdict.sentences)} "
                "Use force (--force) to score it all the same."
            )
    with _timed(ready.stages, "prepare"):
        ready.job = job_of(state, scan, foreground, columns, companions, kept)


def predict(
    state: State,
    scan: Scan | np.ndarray | str | os.PathLike[str] | list[str],
    foreground: np.ndarray | None = None,
    details: bool = True,
    force: bool = False,
    columns: Mapping[str, Any] | None = None,
    companions: Companions | None = None,
) -> Finding:
    """Score a scan and map where it departs from healthy; see ``Detector.predict``."""
    if not state.fitted:
        raise ArgumentError(UNFITTED)
    ready = Ready(CohortRow("scan", "scan", ()))
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
        with _timed(ready.stages, "read"):
            scan, ready.seen = read_scan(scan), state.seen(map(Path, paths))
    _fill(ready, state, scan, foreground, columns, companions, force)
    ((_, found),) = _findings(state, [ready], details)
    if isinstance(found, NormscanError):
        raise found
    return found


@dataclass(frozen=True)
class Reader:
    """Reads, checks and prepares the scan of a row, in any thread.

    Attributes:
        state: of the detector.
        force: go on with what the quality gate refuses.
    """

    state: State
    force: bool = False

    def __call__(self, row: CohortRow) -> Ready:
        """Return the prepared scan, or why there is none."""
        state, ready, columns = self.state, Ready(row), row.columns
        if state.scan_threshold is not None and state.scan_threshold.grouped_by == "site":
            columns = {**columns, "site": row.site}
        try:
            with of_scan(row.scan):
                if not state.fitted:
                    raise ArgumentError(UNFITTED)
                with _timed(ready.stages, "read"):
                    scan, foreground, beside = opened(state, row)
                    ready.seen = "" if state.division is None else state.known(row.key())
                kept = row.memo if isinstance(row, Opened) else None
                _fill(ready, state, scan, foreground, columns, beside, self.force, kept)
        except NormscanError as error:
            ready.scan, ready.job, ready.error = None, None, error
        return ready


def opened(state: State, row: CohortRow) -> tuple[Scan, np.ndarray | None, dict[str, Any]]:
    """Read the scan of a row, its foreground, and what the method uses beside it."""
    if row.missing and set(row.missing) <= set(state.filled):
        row = replace(row, missing=())
    scan = row.load()
    foreground = row.load_foreground(scan)
    wanted = [name for name, use in state.uses.items() if use.at_prediction]
    read = {name: row.load_companion(name, scan) for name in wanted if name != "further"}
    beside: dict[str, Any] = {name: array for name, array in read.items() if array is not None}
    if "further" in wanted:
        known = dict(state.further)
        beside["further"] = {n: one for n, one in row.load_further().items() if n in known}
    elif row.further:
        scan = unseen_note(scan, list(row.further))
    return scan, foreground, beside


def predict_rows(
    state: State,
    rows: Iterable[CohortRow],
    details: bool = False,
    force: bool = False,
    workers: int | None = None,
) -> Iterator[tuple[CohortRow, Finding | NormscanError]]:
    """Predict the scans of a cohort, in order; a bad scan yields its error and the rest goes on.

    Threads read, check and prepare ahead; scans whose pieces fit in one batch share it.
    """
    threads = read_ahead() if workers is None else workers
    for group in grouped(
        ahead(Reader(state, force), rows, threads, lambda ready: ready.size), state
    ):
        yield from _findings(state, group, details)


def grouped(scans: Iterable[Ready], state: State) -> Iterator[list[Ready]]:
    """Gather scans that follow each other and share a batch; bad ones stay where they stand."""
    group: list[Ready] = []
    pieces, kind = 0, None
    for ready in scans:
        if ready.job is not None:
            most, count = batch_size(state), len(ready.job.samples)
            if kind not in (None, ready.job.kind) or (pieces and pieces + count > most):
                yield group
                group, pieces = [], 0
            pieces, kind = pieces + count, ready.job.kind
            group.append(ready)
            if pieces < most:
                continue
        elif group:  # there is something to wait for
            group.append(ready)
            continue
        else:
            group = [ready]
        yield group
        group, pieces, kind = [], 0, None
    if group:
        yield group


def _findings(
    state: State, group: Sequence[Ready], details: bool
) -> Iterator[tuple[CohortRow, Finding | NormscanError]]:
    """Run the method over scans that share a batch, then decide on each."""
    jobs = [ready.job for ready in group if ready.job is not None]
    begun = time.perf_counter()
    observed = iter(observe_all(state, jobs) if jobs else ())
    took = (time.perf_counter() - begun) / max(1, sum(len(job.samples) for job in jobs))
    for ready in group:
        result = ready.error or next(observed)
        try:
            with of_scan(ready.row.scan):
                if isinstance(result, NormscanError):
                    raise result
                assert ready.scan is not None and ready.job is not None
                ready.stages["network"] = took * len(ready.job.samples)
                with _timed(ready.stages, "decide"):
                    found = found_in(state, ready.scan, result, details, ready.job.columns)
        except NormscanError as error:
            yield ready.row, error
            continue
        if ready.seen:
            found.seen, found.notes = ready.seen, (SEEN[ready.seen], *found.notes)
        found.quality, found.stages = ready.verdict, ready.stages
        found.seconds = sum(s for name, s in ready.stages.items() if name != "read")
        # Outside of the block: what goes wrong with the consumer isn't this scan's.
        yield ready.row, found


Result = TypeVar("Result")


def each_row(
    state: State,
    rows: Iterable[CohortRow],
    work: Callable[..., Result],
    workers: int | None = None,
) -> Iterator[tuple[CohortRow, Result | NormscanError]]:
    """Yield the results of ``work(row, scan, foreground, companions)``, scan after scan.

    Threads read ahead. A bad scan yields its error and the rest goes on.
    """

    def read(row: CohortRow) -> tuple[CohortRow, Any]:
        try:
            with of_scan(row.scan):
                return row, opened(state, row)
        except NormscanError as error:
            return row, error

    threads = read_ahead() if workers is None else workers
    sized = ahead(read, rows, threads, lambda r: r[1][0].data.nbytes if _is_read(r[1]) else 0)
    for row, found in sized:
        result: Result | NormscanError
        try:
            with of_scan(row.scan):
                if isinstance(found, NormscanError):
                    raise found
                result = work(row, *found)
        except NormscanError as error:
            result = error
        yield row, result


def _is_read(found: Any) -> bool:
    return not isinstance(found, NormscanError)


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
    finding.pixel_shares = tuple((score, share) for score, share in state.pixel_shares)
    finding.pixel_rule = "" if state.pixel_threshold is None else state.pixel_rule
    # The article counts voxels of its own grid; here they become those of the scan's.
    finding.smallest_component = round(state.card.smallest_component * prepared.voxel)
    finding.notes = (*scan.extra.get("notes", ()), *filter(None, [compared]))
    if prepared.working is not None:
        finding.notes += prepared.working.notes
        finding.facts = prepared.working.facts
    if state.filled:
        finding.notes += (filled_note(state),)
    finding.notes += missing_note(state, prepared)
    finding.further = maps_of(stitched, prepared)
    finding.provenance = state.provenance()
    return finding


def _companions(state: State, scan: Scan, given: Companions) -> dict[str, Any]:
    """What the method uses of what stands beside a scan.

    Raises:
        ArgumentError: it is of a kind that nobody knows.
        ScanError: it lies on another grid, or something that is needed isn't there.
    """
    if unknown := set(given) - set(COMPANIONS):
        raise ArgumentError(
            f"'{min(unknown)}' can't stand beside a scan; {', '.join(COMPANIONS)} can."
        )
    used = {name: use for name, use in state.uses.items() if use.at_prediction}
    found: dict[str, Any] = {}
    if further := used.pop("further", None):
        images = cast(Mapping[str, Given], given.get("further", {}))
        found["further"] = given_images(state, scan, images, further)
    for name, use in used.items():
        if use.prediction == "needed" and name not in given:
            raise ScanError(
                f"{scan.name}: this detector compares a scan with its {name}, and none was given. "
                f"Fill the column '{name}' of the cohort, or give --{name} (companions in Python)."
            )
    return found | {
        name: read_companion(name, cast(Given, given[name]), scan) for name in used if name in given
    }


def averaged(members: list[Stitched]) -> Stitched:
    """Return the means of what the members found, each post-processed by itself."""
    if len(members) == 1:
        return members[0]

    def mean(name: str) -> np.ndarray | None:
        values = [getattr(member, name) for member in members]
        return None if values[0] is None else np.stack(values).mean(axis=0, dtype=np.float32)

    return Stitched(
        mean("map"), mean("reconstruction"), mean("uncertainty"), further=mean_maps(members)
    )


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
