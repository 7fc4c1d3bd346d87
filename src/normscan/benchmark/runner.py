"""Run a protocol: one cell for each method, set and seed; what is done is never done again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from normscan.benchmark.cell import Job, clear, fail, run_job
from normscan.benchmark.data import Data, MissingDataError
from normscan.benchmark.plan import Plan, make_plan
from normscan.benchmark.protocol import Protocol
from normscan.benchmark.table import rank
from normscan.benchmark.write import write_tables
from normscan.cohort.anomalies import FewAnomalies
from normscan.errors import ArgumentError, OutputError
from normscan.io import check_folder
from normscan.io.lock import one_writer
from normscan.io.values import write_json
from normscan.parallel import THREADS
from normscan.progress import Progress


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
    anomalies: FewAnomalies | None = None,
    device: str = "auto",
    workers: int = 1,
    threads: int = 1,
    redo: bool = False,
    retry: bool = False,
    command: str = "",
    progress: bool = False,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
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
        anomalies: of each set that may be learnt from; none of their subjects is tested.
        device: ``auto``, ``cpu``, ``cuda``, ...
        workers: cells at a time, each a process of its own; 0 runs all in this process.
        threads: of each process.
        redo: make cells of other settings again, and failed ones.
        retry: try failed cells again.
        command: to be recorded.
        progress: show progress on stderr.
        engine: ``local``, or ``ray``: cells in workers of Ray, see ``normscan.ray``.
        address: of a running cluster of Ray; None starts one here.

    Returns:
        The ranking, as in ``ranking.json``.

    Raises:
        ArgumentError: an unknown method, set, budget or argument.
        MissingDataError: no set has its data.
        OutputError: cells of other settings in ``out``, and no ``redo``.
    """
    folder = Path(out).absolute() if engine == "ray" else Path(out)
    check_folder(folder)
    with one_writer(folder), Progress(progress) as bar:
        plan = make_plan(
            protocol, methods, folder, data or Data(), seeds=seeds, sets=sets, budget=budget,
            preset=preset, arguments=arguments or {}, features=features, anomalies=anomalies,
            device=device, redo=redo, command=command, progress=bar,
        )  # fmt: skip
        for id, reason in plan.missing.items():
            bar.say(f"{id}: not run: {reason}")
        if not plan.jobs:
            reasons = "\n".join(f"  {id}: {reason}" for id, reason in plan.missing.items())
            raise MissingDataError(f"no set of '{protocol.id}' can be run:\n{reasons}")
        where = (address,) if engine == "ray" else None
        _run(plan, folder, workers, threads, redo, retry, bar, where)
        bar.say("ranking")
        ranking = rank(plan, command)
        write_tables(ranking, folder)
    return ranking


def _run(
    plan: Plan, folder: Path, workers: int, threads: int, redo: bool, retry: bool, bar: Progress,
    cluster: tuple[str | None] | None = None,
) -> None:  # fmt: skip
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
    if cluster is not None:
        _on_ray(waiting, folder / "logs", workers, threads, bar, *cluster)
        return
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
                    bar.update("runs", done, len(jobs), _told(job))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise


def _on_ray(
    jobs: Sequence[Job], logs: Path, workers: int, threads: int, bar: Progress, address: str | None
) -> None:
    """Run every job in a process of its own beside a worker of Ray; where that dies, once more."""
    from normscan.ray import LostError, over

    logs.mkdir(parents=True, exist_ok=True)
    build = partial(partial, _process, logs=logs.absolute(), threads=threads, running=set())
    results = over(build, jobs, max(1, workers), address, threads)
    for done, (job, result) in enumerate(zip(jobs, results, strict=True), 1):
        if isinstance(result, LostError):
            for name in job.cells:
                if job.state(name) == "open":
                    fail(job, name, result)
        bar.update("runs", done, len(jobs), _told(job))


def _told(job: Job) -> str:
    names = ", ".join(job.cells) if len(job.cells) < 3 else f"{len(job.cells)} sets"
    bad = any(job.state(s) == "failed" for s in job.cells)
    return f"{job.method} on {names}, seed {job.seed}{', failed' if bad else ''}"


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
