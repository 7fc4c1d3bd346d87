"""Run a protocol: one cell for each method, set and seed; what is done is never done again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from normscan import registry
from normscan.benchmark.cell import Job, clear, fail, run_job
from normscan.benchmark.data import Data, MissingDataError, joined, local_sets, prepare_set
from normscan.benchmark.protocol import Protocol, Set
from normscan.benchmark.restorations import INDICES
from normscan.errors import ArgumentError, NormscanError, OutputError, nearest
from normscan.io.atomic import check_folder
from normscan.io.values import plain, write_json
from normscan.parallel import THREADS
from normscan.progress import Progress

BASELINES = ("mean_image", "image_statistics")
# Nothing in them is random, so that one seed says it all.
DETERMINISTIC = (*BASELINES, "hist_threshold_baseline")


@dataclass
class Plan:
    """What is to be run.

    Attributes:
        protocol: the protocol.
        budget: name of the budget.
        methods: ids, baselines included.
        sets: those whose data are there.
        jobs: in the order of running.
        missing: why a set can't be run, by its id.
    """

    protocol: Protocol
    budget: str
    methods: list[str]
    sets: list[Set]
    jobs: list[Job] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def run(
    protocol: Protocol,
    methods: Sequence[str],
    out: str | os.PathLike[str],
    *,
    data: Data | None = None,
    seeds: int | None = None,
    sets: Sequence[str] = (),
    budget: str | None = None,
    preset: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    features: str | None = None,
    device: str = "auto",
    workers: int = 1,
    threads: int = 1,
    redo: bool = False,
    retry: bool = False,
    command: str = "",
    progress: bool = False,
) -> dict[str, Any]:
    """Run a protocol and write its tables.

    Args:
        protocol: from `load`.
        methods: ids; the baselines are always added.
        out: folder for the cells and the tables; the same one goes on where it stopped.
        data: where the data lie.
        seeds: number of seeds; the protocol's by default.
        sets: only these sets.
        budget: name of a budget of the protocol.
        preset: of every method, instead of the budget's.
        arguments: of all methods that have them; ``{"dae": {...}}`` is for a single method.
        features: file with the weights of the network behind RQI and AHI; the protocol's by
            default.
        device: ``auto``, ``cpu``, ``cuda``, ...
        workers: cells at a time, each a process of its own; 0 runs all in this process.
        threads: of each process.
        redo: make cells of other settings again, and failed ones.
        retry: try failed cells again.
        command: to be recorded.
        progress: show progress on stderr.

    Returns:
        The ranking, as in ``ranking.json``.

    Raises:
        ArgumentError: an unknown method, set, budget or argument.
        MissingDataError: no set has its data.
        OutputError: cells of other settings in ``out``, and no ``redo``.
    """
    from normscan.benchmark.table import rank
    from normscan.benchmark.write import write_tables

    folder = Path(out)
    check_folder(folder)
    with Progress(progress) as bar:
        plan = make_plan(
            protocol, methods, folder, data or Data(), seeds=seeds, sets=sets, budget=budget,
            preset=preset, arguments=arguments or {}, features=features, device=device, redo=redo,
            command=command, progress=bar,
        )  # fmt: skip
        for id, reason in plan.missing.items():
            bar.say(f"{id}: not run: {reason}")
        if not plan.jobs:
            reasons = "\n".join(f"  {id}: {reason}" for id, reason in plan.missing.items())
            raise MissingDataError(f"no set of '{protocol.id}' can be run:\n{reasons}")
        _run(plan, folder, workers, threads, redo, retry, bar)
        bar.say("ranking")
        ranking = rank(plan, command)
        write_tables(ranking, folder)
    return ranking


def make_plan(
    protocol: Protocol,
    methods: Sequence[str],
    folder: Path,
    data: Data,
    *,
    seeds: int | None = None,
    sets: Sequence[str] = (),
    budget: str | None = None,
    preset: str | None = None,
    arguments: Mapping[str, Any],
    features: str | None = None,
    device: str = "auto",
    redo: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Plan:
    """Prepare the cohorts and list the jobs; see `run` for the arguments."""
    names = list(dict.fromkeys([*methods, *BASELINES]))
    cards = [registry.card(name) for name in names]
    count = protocol.seeds if seeds is None else seeds
    if count < 1:
        raise ArgumentError(f"seeds is {count}; it must be 1 or more.")
    chosen = protocol.budget if budget is None else budget
    if chosen not in protocol.budgets:
        raise ArgumentError(
            f"the protocol '{protocol.id}' has no budget '{chosen}'."
            f"{nearest(chosen, protocol.budgets)} It has: {', '.join(protocol.budgets)}."
        )
    there = local_sets(protocol, data)
    unknown = [name for name in sets if name not in [s.id for s in there]]
    if unknown:
        known = ", ".join(s.id for s in there)
        raise ArgumentError(f"there is no set '{unknown[0]}' in '{protocol.id}'; it has {known}.")
    plan = Plan(protocol, chosen, names, [])
    network: dict[str, Any] = {}
    if set(INDICES) & set(protocol.shown):
        network = protocol.features.model_dump() | ({"weights": features} if features else {})
    tables: dict[str, Path] = {}
    for each in there:
        if sets and each.id not in sets:
            continue
        try:
            tables[each.id] = prepare_set(each, data, folder / "sets", redo, progress)
            plan.sets.append(each)
        except OutputError:
            raise
        except NormscanError as error:
            plan.missing[each.id] = str(error)
    for group, table in _groups(plan, tables, folder):
        for seed in range(count):
            for card in cards:
                if seed and card.id in DETERMINISTIC:
                    continue
                options, dropped = detector_options(
                    protocol, group[0], chosen, card, preset, arguments
                )
                cells = {s.id: folder / "cells" / s.id / card.id / f"seed{seed}" for s in group}
                run = cells[group[0].id]
                if protocol.together:
                    run = folder / "models" / group[0].group / card.id / f"seed{seed}"
                job = Job(
                    card.id, seed, options, str(table), str(run),
                    {id: str(path) for id, path in cells.items()},
                    {s.id: str(tables[s.id]) for s in group},
                    protocol.region, protocol.variants, network, device, dropped, command,
                )  # fmt: skip
                plan.jobs.append(job)
    return plan


def _groups(
    plan: Plan, tables: Mapping[str, Path], folder: Path
) -> Iterator[tuple[list[Set], Path]]:
    """Yield the sets that share a model, with the table to fit it on."""
    if not plan.protocol.together:
        for each in plan.sets:
            yield [each], tables[each.id]
        return
    from normscan.cohort import Cohort

    for name in dict.fromkeys(s.group for s in plan.sets):
        group = [s for s in plan.sets if s.group == name]
        lost = [s.id for s in plan.protocol.expanded() if s.group == name and s.id in plan.missing]
        if lost:  # a model for some of the classes would be another protocol
            for each in group:
                plan.missing[each.id] = f"shares a model with {', '.join(lost)}, which aren't there"
                plan.sets.remove(each)
            continue
        cohorts = [Cohort.read(tables[s.id]) for s in group]
        healthy = [c.select(c.table["split"].isin(["train", "val"])) for c in cohorts]
        whole = joined(healthy, name, [s.id for s in group])
        yield group, whole.write(folder / "sets" / f"together_{name}.csv")


def detector_options(
    protocol: Protocol,
    each: Set,
    budget: str,
    card: registry.Card,
    preset: str | None,
    arguments: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """Return the options of ``Detector`` for a method on a set, and what it can't take.

    The later wins: the budget's arguments, the protocol's, the set's, those for the method, and
    the user's.

    Raises:
        ArgumentError: an argument for a single method that it doesn't have.
    """
    allowed, methods = protocol.budgets[budget], registry.load_all()
    if preset is None:
        preset = next((p for p in allowed.presets if p in card.presets), "paper")
    common = {k: v for k, v in arguments.items() if k not in methods}
    known = {name for each_card in methods.values() for name in each_card.defaults}
    for name in common:
        if name not in known:
            raise ArgumentError(f"no method has an argument '{name}'.{nearest(name, known)}")
    chosen: dict[str, Any] = {}
    dropped: list[str] = []
    layers = [allowed.arguments, protocol.arguments, each.arguments, each.budgets.get(budget, {})]
    for layer in (*layers, allowed.methods.get(card.id, {}), common):
        chosen |= {k: v for k, v in layer.items() if k in card.defaults}
        dropped += [k for k in layer if k not in card.defaults and k not in dropped]
    chosen |= arguments.get(card.id) or {}
    defaults = card.arguments(preset)
    asked = card.arguments(preset, **chosen)
    # Only what differs from the preset is an option: `channels` and the like are the cohort's.
    options = {k: v for k, v in asked.items() if k in chosen and v != defaults[k]}
    return plain(
        {
            "preset": preset,
            **options,
            "preprocess": {**protocol.preprocess, **each.preprocess} or None,
            "postprocess": protocol.postprocess,
            "reduction": protocol.reduction,
            "fpr": protocol.fpr,
            "pixel_fpr": protocol.pixel_fpr,
        }
    ), dropped


def _run(
    plan: Plan, folder: Path, workers: int, threads: int, redo: bool, retry: bool, bar: Progress
) -> None:
    if workers < 0 or threads < 1:
        raise ArgumentError("workers must be 0 or more, threads 1 or more.")
    states = {(i, s): job.state(s) for i, job in enumerate(plan.jobs) for s in job.cells}
    other = [plan.jobs[i].cells[s] for (i, s), state in states.items() if state == "other"]
    if other and not redo:
        raise OutputError(
            f"{len(other)} cells, such as {other[0]}, were run with other settings or data. Take "
            "another --out, or --redo to run them again."
        )
    waiting: list[Job] = []
    for i, job in enumerate(plan.jobs):
        mine = {states[i, s] for s in job.cells}
        if redo and mine & {"other", "failed"}:
            clear(job, everything=True)
        elif retry and "failed" in mine:
            clear(job, everything=False)
        if any(job.state(s) == "open" for s in job.cells):
            waiting.append(job)
    kept = len(plan.jobs) - len(waiting)
    before = f", {kept} were finished before" if kept else ""
    bar.say(f"{len(waiting)} of {len(plan.jobs)} runs to do{before}")
    if workers == 0:
        for job in bar.track(waiting, "runs", len(waiting)):
            run_job(job)
        return
    _in_processes(waiting, folder / "logs", workers, threads, bar)


def _in_processes(
    jobs: Sequence[Job], logs: Path, workers: int, threads: int, bar: Progress
) -> None:
    """Run every job in a process of its own, a few at a time."""
    logs.mkdir(parents=True, exist_ok=True)
    running: set[subprocess.Popen] = set()
    with ThreadPoolExecutor(workers) as pool:
        pending = {pool.submit(_process, job, logs, threads, running): job for job in jobs}
        done = 0
        try:
            while pending:
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    job = pending.pop(future)
                    future.result()
                    done += 1
                    names = ", ".join(job.cells) if len(job.cells) < 3 else f"{len(job.cells)} sets"
                    bad = any(job.state(s) == "failed" for s in job.cells)
                    text = f"{job.method} on {names}, seed {job.seed}{', failed' if bad else ''}"
                    bar.update("runs", done, len(jobs), text)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise


def _process(job: Job, logs: Path, threads: int, running: set[subprocess.Popen]) -> None:
    name = f"{next(iter(job.cells))}-{job.method}-{job.seed}"
    settings = logs / f"{name}.json"
    write_json(settings, asdict(job))
    environment = {**os.environ, **dict.fromkeys(THREADS, str(threads))}
    with (logs / f"{name}.log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "normscan.benchmark.cell", str(settings)],
            stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment,
        )  # fmt: skip
        running.add(process)
        code = process.wait()  # not communicate(): it would close the pipe that says we live
        running.discard(process)
        if process.stdin is not None:
            process.stdin.close()
    for each in job.cells:
        # Ctrl-C (2) and a termination (15) are the user's wish, not the cell's failure.
        if job.state(each) == "open" and code not in (0, -2, -15):
            why = f"signal {-code}, mostly for want of memory" if code < 0 else f"code {code}"
            fail(job, each, f"its process ended with {why}. See logs/{name}.log.")
