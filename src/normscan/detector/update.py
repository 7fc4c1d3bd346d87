"""New healthy scans join what a fitted detector knows; nothing is fitted anew."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from normscan.cohort import Cohort, Division
from normscan.detector.elsewhere import Rates, apart, calibrated, check_new, stored
from normscan.detector.fitting import built, checked
from normscan.detector.healthy import Healthy
from normscan.detector.signed import check_trusted
from normscan.detector.state import State
from normscan.detector.storage import read_state
from normscan.errors import ArgumentError, CohortError
from normscan.progress import Progress
from normscan.rng import derive_seed, seeded
from normscan.training.data import prepare_sets
from normscan.training.loop import in_order

KEEP: Rates = (None, None)


def update_run(
    run: Path, cohort: Cohort, out: Path, device: str, workers: int, bar: Progress
) -> State:
    """Update a stored detector and write it to a new folder, which is whole or not there.

    Args:
        run: run folder of the detector, which stays as it is.
        cohort: see ``updated``.
        out: new folder.
        device: that does it.
        workers: processes that prepare scans.
        bar: shows progress.

    Raises:
        OutputError: ``out`` exists, or there is no detector in ``run``.
    """
    check_new(out)
    check_trusted(run)
    return stored(*updated(read_state(run, device), cohort, workers, bar), out)


def updated(
    state: State, cohort: Cohort, workers: int, bar: Progress
) -> tuple[State, Healthy | None]:
    """Return the state after new healthy scans have joined, and the scores that set its thresholds.

    The scans of train join. Those of val, which must be others, set the thresholds anew; where there
    are none the thresholds stay, and the state says that they are stale. What learnt from the first
    training scans and isn't part of the method stays too: steps of the preprocessing, the quality
    gate, what a reduction compares places with.

    Args:
        state: fitted; its method takes the scans in, in place.
        cohort: with healthy scans in train.
        workers: processes that prepare scans.
        bar: shows progress.

    Raises:
        ArgumentError: the detector was not fitted, its method can't take scans in, or has no room.
        CohortError: no healthy scans in train, or all of them trained already.
    """
    if state.method is None:
        raise ArgumentError("this detector was not fitted; call fit(cohort) or load(folder).")
    method = built(state)
    if not method.updates:
        raise ArgumentError(refusal(state))
    given = cohort.part("train")
    if not len(given):
        raise CohortError(
            "the cohort has no healthy scans in 'train', which are those that join. Give it some."
        )
    joining, seen, excluded = apart(state, given)
    if seen:
        bar.say(f"left out, since the detector knows them: {len(seen)} scans")
    if excluded:
        bar.say(f"left out, as by hand in its fit: {len(excluded)} scans")
    parts = checked(state, cohort, {"healthy": joining})
    with tempfile.TemporaryDirectory(prefix="normscan-") as folder:
        sets = prepare_sets(
            Path(folder), parts, state.preparation(), state.patch, method, workers, bar
        )
        device = next(method.buffers()).device
        seed = derive_seed(state.seed, "update", len(state.training.get("updates", [])))
        with seeded(seed):
            method.update(in_order(sets["healthy"], device, seed))
        method.requires_grad_(False).eval()
        samples = len(sets["healthy"])
        failed = [scan for scan, _ in sets["healthy"].failures]
    joined = joining.select([row.scan not in failed for row in joining])
    state = _told(state, joined, samples, failed)
    val = cohort.part("val")
    if len(val):
        return calibrated(state, val, KEEP, None, bar)
    return stale(state), None


def refusal(state: State) -> str:
    """Why the method takes in no further scans."""
    method, id = built(state), state.card.id
    if state.wrappers:
        why = f"it is wrapped by {', '.join(state.wrappers)}, whose parts learnt from all scans at once"
    elif method.phases():
        why = "it learns by gradient steps, and further steps on new scans alone would forget the others"
    elif not method.fits:
        why = "it learns nothing from healthy scans"
    else:
        why = "what it learnt can't be taken apart into what each scan gave"
    return f"'{id}' can't take in further scans: {why}. Fit it to all scans together."


def _told(state: State, joined: Cohort, samples: int, failed: list[str]) -> State:
    """Note in the training record and in the division who joined."""
    subjects = len({row.subject for row in joined})
    training: dict[str, Any] = dict(state.training)
    for name, more in (("cohort_size", len(joined)), ("subjects", subjects), ("samples", samples)):
        numbers = dict(training.get(name, {}))
        training[name] = numbers | {"train": numbers.get("train", 0) + more}
    about = {
        "cohort_sha256": joined.digest(), "scans": len(joined), "subjects": subjects,
        "samples": samples, "left_out": failed,
    }  # fmt: skip
    training["updates"] = [*training.get("updates", []), about]
    division = state.division
    if division is not None:
        division = Division([*division.members, *Division.of(joined, "train").members])
    return state.changed(training=training, division=division)


def stale(state: State) -> State:
    """Return the state with the note that its thresholds are older than what it knows."""
    if state.scan_threshold is None:
        return state
    before = int(state.training.get("stale", 0))
    joined = before + int(state.training["updates"][-1]["scans"])
    said = str(state.training["calibration"]).removeprefix(_stale_line(before))
    training = {**state.training, "stale": joined, "calibration": _stale_line(joined) + said}
    return state.changed(training=training)


def _stale_line(scans: int) -> str:
    return (
        f"Stale: {scans} healthy scans joined after the thresholds were set, so the rate isn't known; "
        "normscan calibrate sets them anew. Before: "
    )
