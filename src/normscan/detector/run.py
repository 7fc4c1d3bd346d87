"""A run: its folder is claimed, a detector is fitted in it, and written when all is done."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from normscan.cohort import Cohort
from normscan.decide import promise
from normscan.decide.calibration import SPLIT
from normscan.detector import cross, fitting
from normscan.detector.scaling import settle_scaling
from normscan.detector.state import State
from normscan.detector.storage import read_state, write_state
from normscan.errors import ArgumentError
from normscan.io.values import write_json
from normscan.progress import Progress
from normscan.training.fabric import launch_fabric
from normscan.training.folder import DETECTOR, MAPS, claim_folder, tidied

HEALTHY = "healthy.csv"
SCALING = "scaling.json"
REDUCTION = "reduction.json"  # which one planted lesions chose, with all figures


def fit(
    asked: State,
    cohort: Cohort,
    out: Path | None,
    machine: tuple[str, int, str],
    workers: int,
    resume: bool,
    bar: Progress,
) -> State:
    """Fit a detector to a cohort; see ``Detector.fit``.

    Args:
        asked: unfitted.
        cohort: with healthy scans in train, and for a split in val.
        out: run folder, or None for a temporary one.
        machine: device, number of processes, precision.
        workers: processes that prepare scans.
        resume: go on with the run in ``out``.
        bar: shows progress.

    Returns:
        The fitted state; in a process that isn't the first of several, without thresholds.
    """
    settled = settle(asked, cohort, machine[1], bar)
    cohort = fitting.admit(settled, cohort)
    with tempfile.TemporaryDirectory(prefix="normscan-") as temporary:
        folder = Path(temporary) if out is None else out
        if out is not None:
            about = {"cohort": cohort.digest(), "precision": machine[2]}
            claim_folder(out, {**asked.configuration(), **about}, resume)
            if resume and (out / DETECTOR).exists():
                return read_state(out)
        with tidied(folder):
            fabric = launch_fabric(*machine)
            begun = time.monotonic()
            settled, scaled = scale(settled, cohort, bar)
            way = cross.fit if settled.calibration.kind == "cross" else fitting.fit
            state, healthy = way(settled, cohort, folder, fabric, workers, bar)
            state.training["seconds"]["total"] = round(time.monotonic() - begun, 3)
            if scaled:
                state.training["scaling"] = scaled
            chosen = state.training.get("reduction")
            if fabric.is_global_zero and chosen:
                bar.say(f"reduction: {chosen['reason']}")
            if fabric.is_global_zero and (doubt := healthy.doubt()):
                bar.say(doubt)
            if out is not None and fabric.is_global_zero:
                healthy.write(out / HEALTHY)
                for name, record in ((REDUCTION, chosen), (SCALING, scaled)):
                    if record:
                        write_json(out / name, record)
                state = write_state(state, out)
                cross.remove_members(out)
                shutil.rmtree(out / MAPS, ignore_errors=True)
    return state


def scale(asked: State, cohort: Cohort, bar: Progress) -> tuple[State, dict[str, Any]]:
    """Let planted lesions choose how intensities are scaled, where that was asked for.

    Returns:
        The state with its scaling, and what was chosen and why; empty where nothing was asked for.
    """
    choice = settle_scaling(asked, cohort, bar)
    if choice is None:
        return asked, {}
    bar.say(f"scaling: {choice.record['reason']}")
    return asked.changed(preprocess=choice.preprocess), choice.record


def settle(asked: State, cohort: Cohort, processes: int, bar: Progress) -> State:
    """Choose how the threshold is set for this cohort, and say what it can promise.

    Raises:
        ArgumentError: a calibration that was asked for can't be had.
    """
    if asked.card.may_stay_open:
        if asked.calibration.kind == "cross":
            raise ArgumentError(
                f"calibration cross is for methods that learn from all healthy scans; "
                f"'{asked.card.id}' is {asked.card.regime}. Leave it out."
            )
        return asked.changed(calibration=SPLIT)
    subjects = {s: {r.subject for r in cohort.part(s)} for s in ("train", "val")}
    val, every = len(subjects["val"]), len(subjects["train"] | subjects["val"])
    chosen = asked.calibration.settled(val, every, asked.fpr, processes)
    wanted = f"threshold: {asked.fpr:.3g} false alarms are wanted"
    split = f"val alone ({val}) can promise {promise(val, asked.fpr)}"
    both = f"all healthy subjects in {chosen.folds} folds ({every}) {promise(every, asked.fpr)}"
    if chosen.kind == "cross":
        times = chosen.folds + chosen.refit
        bar.say(f"{wanted}; {split}; taken: {both}. The method is fitted {times} times.")
    else:
        bar.say(f"{wanted}; taken: {split}; with --calibration cross, {both}.")
    return asked.changed(calibration=chosen)
