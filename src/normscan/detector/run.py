"""A run: its folder is claimed, a detector is fitted in it, and written when all is done."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normscan.cohort import Cohort, Division
from normscan.cohort.division import EXCLUDED
from normscan.decide import promise
from normscan.decide.calibration import SPLIT, nearby
from normscan.detector import cross, fitting
from normscan.detector.exclude import without
from normscan.detector.review import review
from normscan.detector.scaling import settle_scaling
from normscan.detector.state import State
from normscan.detector.storage import read_state, write_state
from normscan.errors import ArgumentError, OutputError
from normscan.io.lock import one_writer
from normscan.io.values import read_json, tupled, write_json
from normscan.progress import Progress
from normscan.training.fabric import Strategy, launch_fabric, together
from normscan.training.folder import (
    DETECTOR,
    DIVISION,
    MAPS,
    PLAN,
    claim_folder,
    first_process,
    tidied,
)

HEALTHY = "healthy.csv"
FEW = 10  # healthy subjects
SCALING = "scaling.json"
EVIDENCE = "evidence.json"  # what planted anomalies say of the members of a detector
REDUCTION = "reduction.json"  # which one planted lesions chose, with all figures


def fit(
    asked: State,
    cohort: Cohort,
    out: Path | None,
    machine: tuple[str, int, str, int, Strategy],
    workers: int,
    resume: bool,
    bar: Progress,
    exclude: Mapping[str, str],
) -> State:
    """Fit a detector to a cohort; see ``Detector.fit``.

    Args:
        asked: unfitted.
        cohort: with healthy scans in train, and for a split in val.
        out: run folder, or None for a temporary one.
        machine: device, number of processes on each machine, precision, number of machines,
            and whether each process holds the whole network (ddp) or a part (fsdp).
        workers: processes that prepare scans.
        resume: go on with the run in ``out``.
        bar: shows progress.
        exclude: healthy scans that are left out, with the reasons.

    Returns:
        The fitted state; in a process that isn't the first of several, without thresholds.
    """
    aside = [row for row in cohort if row.scan in exclude]
    cohort = without(cohort, exclude)
    left_out = [{"scan": scan, "reason": reason} for scan, reason in exclude.items()]
    if left_out:
        named = ", ".join(f"{entry['scan']} ({entry['reason']})" for entry in left_out)
        bar.say(f"left out by hand: {named}")
    processes = machine[1] * machine[3]
    settled = settle(asked, cohort, processes, bar)
    cohort = fitting.admit(settled, cohort)
    held = out if first_process() else None
    with one_writer(held), tempfile.TemporaryDirectory(prefix="normscan-") as temporary:
        folder = Path(temporary) if out is None else out
        left = Division.of(aside, EXCLUDED)
        division = None if out is not None else cohort.division().joined(left)
        if out is not None:
            about = {
                "cohort": cohort.digest(), "precision": machine[2], "exclude": dict(exclude),
                "processes": processes,  # they share each batch, so others see other batches
            }  # fmt: skip
            claim_folder(out, {**asked.configuration(), **about}, resume)
            division = _divided(cohort, left, out)
            if resume and (out / DETECTOR).exists():
                return read_state(out)
        with tidied(folder), together():
            fabric = launch_fabric(*machine)
            begun = time.monotonic()
            settled, scaled = scale(settled, cohort, bar)
            settled, planned = plan(settled, cohort, folder, bar)
            way = cross.fit if settled.calibration.kind == "cross" else fitting.fit
            state, healthy, judges = way(settled, cohort, folder, fabric, workers, bar)
            if left_out:
                state.training["excluded"] = left_out
            if cohort.anomalies is not None:
                state.training["anomalies"] = vars(cohort.anomalies)
            state.training["seconds"]["total"] = round(time.monotonic() - begun, 3)
            state = state.changed(division=division)
            if scaled:
                state.training["scaling"] = scaled
            evidence = fitting.built(state).learnt()
            if planned:
                state.training["plan"] = planned
            if evidence:
                state.training["evidence"] = evidence
            if fabric.is_global_zero:
                for fold in evidence.get("folds", [evidence]):
                    if "said" in fold:
                        bar.say(f"evidence: {fold['said']}")
            chosen = state.training.get("reduction")
            if fabric.is_global_zero and chosen:
                bar.say(f"reduction: {chosen['reason']}")
            if fabric.is_global_zero and (doubt := healthy.doubt()):
                bar.say(doubt)
            if out is not None and fabric.is_global_zero:
                healthy.write(out / HEALTHY)
                state.training["healthy"] = review(state, healthy, judges, out, bar)
                records = ((REDUCTION, chosen), (SCALING, scaled), (EVIDENCE, evidence))
                for name, record in records:
                    if record:
                        write_json(out / name, record)
                state = write_state(state, out)
                cross.remove_members(out)
                shutil.rmtree(out / MAPS, ignore_errors=True)
    return state


def _divided(cohort: Cohort, left: Division, out: Path) -> Division | None:
    """Write which scans are to be learnt from, or check that they are those that the run began with.

    Returns:
        The division; None in a process that isn't the first of several.

    Raises:
        OutputError: the content of a scan changed.
    """
    if not first_process():
        return None
    division = cohort.division().joined(left)
    if not (out / DIVISION).exists():
        division.write(out / DIVISION)
        return division
    if changed := Division.read(out / DIVISION).changed(division):
        shown = f"{', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''}"
        raise OutputError(
            f"{out} was begun with other images: the files of {len(changed)} scans have changed since "
            f"({shown}). Bring them back, or train in another folder."
        )
    return division


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


def plan(asked: State, cohort: Cohort, folder: Path, bar: Progress) -> tuple[State, dict[str, Any]]:
    """Let a method that plans settle its arguments; a run that goes on keeps its plan.

    Returns:
        The state with its arguments, and the plan; empty for a method that plans nothing.
    """
    if asked.card.plan is None:
        return asked, {}
    stored = folder / PLAN
    if stored.exists():
        planned = dict(read_json(stored))
    else:
        how = asked.calibration
        # What sets the threshold of a split takes no part in any choice.
        parts = ("train", "val") if how.kind == "cross" else ("train",)
        rows = [row for part in parts for row in cohort.part(part)]
        fits = how.folds + how.refit if how.kind == "cross" else 1
        planned = asked.card.plan(asked.arguments, asked.preprocess, rows, fits, asked.seed, bar)
        write_json(stored, planned)
    for reason in planned["reasons"].values():
        bar.say(f"plan: {reason}")
    for name, reason in planned["passed_over"].items():
        bar.say(f"plan: without {name}: {reason}")
    settled = {name: tupled(value) for name, value in planned["arguments"].items()}
    return asked.changed(arguments=asked.arguments | settled), planned


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
    if 1 < every < FEW:
        bar.say(
            f"only {every} healthy subjects train and set the threshold: figures will be rough."
        )
    wanted = f"threshold: {asked.fpr:.3g} false alarms are wanted"
    ranked = max(0, val - chosen.trim), max(0, every - chosen.trim)
    split = f"val alone ({val}) can promise {promise(ranked[0], asked.fpr)}"
    both = f"all healthy subjects in {chosen.folds} folds ({every}) {promise(ranked[1], asked.fpr)}"
    if every == 1 and not val:
        bar.say(
            "one healthy subject: nobody is left to set a threshold, so there will be maps and raw "
            "scores, and no decision"
        )
    elif chosen.kind == "cross":
        bar.say(f"{wanted}; {split}; taken: {both}")
    else:
        bar.say(f"{wanted}; taken: {split}; with --calibration cross, {both}.")
    n = ranked[chosen.kind == "cross"]
    if (more := nearby(n, asked.fpr)) is not None:
        bar.say(f"--fpr {more:g} is as near, and one more score would set it: {promise(n, more)}")
    if chosen.trim:
        bar.say(
            f"left out of the rank: the highest healthy subjects, {chosen.trim} of them; if they are "
            "healthy, the rate is higher than that"
        )
    return asked.changed(calibration=chosen)
