"""Tools of the Model Context Protocol, each a command of normscan; its JSON is the answer."""

from __future__ import annotations

import csv
import fnmatch
import functools
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from normscan import registry
from normscan.cli.assistant.allowed import Allowed, files_of
from normscan.cli.assistant.jobs import Job, Jobs
from normscan.cohort import CohortRow
from normscan.errors import ArgumentError, NormscanError, nearest
from normscan.identity import each_text, names_are_kept, pseudonym, unnamed
from normscan.io.values import read_json
from normscan.version import __version__

MOST = 200  # rows of an answer
PATIENCE = 45.0  # seconds that a call waits; clients give up after a minute
NAMES = "names.csv"  # beside results: which scan a name of an answer is
PLAIN = re.compile(r"[\w.+=-]*")
INSTRUCTIONS = """normscan learns what healthy looks like from healthy scans and shows what departs from it.
Research use, not for diagnosis. Work in this order: describe_cohort, methods, fit (then state until it
is finished), evaluate, limits; predict and check score new scans. Scans have other names in answers;
names.csv beside the results says which is which. Paths are relative to the first allowed folder."""


class Tools:
    """What an assistant may ask for; each public method is a tool and its docstring what it reads.

    Args:
        allowed: folders that may be used.
        patience: seconds that a call waits for a command.
    """

    def __init__(self, allowed: Allowed, patience: float = PATIENCE) -> None:
        self._allowed, self._patience = allowed, patience
        self._jobs = Jobs(allowed.roots[0])

    async def methods(self, pattern: str = "*", regime: str = "") -> dict[str, Any]:
        """List methods: id, family, regime (what they learn from), dimensions, presets, summary.

        pattern filters ids, such as dae*; regime is one of healthy, healthy+unlabelled,
        paired-modality, image-labels, few-anomalies, zero-shot, few-shot.
        """
        shown = ("family", "regime", "dims", "presets", "summary")
        entries = registry.index()["methods"]
        found = [
            {"id": id} | {key: entry[key] for key in shown}
            for id, entry in entries.items()
            if fnmatch.fnmatch(id, pattern) and regime in ("", entry["regime"])
        ]
        return {"methods": found}

    async def describe_cohort(self, cohort: str) -> dict[str, Any]:
        """Say what is in a table or folder of scans: counts by split, sizes, channels, copies, bad files."""
        path, names = self._cohort(cohort)
        job = self._started(["cohort", str(path), "--json"], path, names)
        return await self._answer(job)

    async def check(
        self, run: str, scans: list[str] | None = None, cohort: str = ""
    ) -> dict[str, Any]:
        """Say whether scans are of the kind that a detector was trained on; scores nothing.

        Give files, folders or patterns as scans, or a cohort.
        """
        folder = self._allowed.path(run)
        what, names = self._what(scans, cohort)
        job = self._started(["check", str(folder), *what, "--json"], folder, names)
        return await self._answer(job)

    async def fit(
        self,
        method: str,
        cohort: str,
        out: str,
        preset: str = "laptop",
        seed: int = 0,
        calibration: str = "auto",
        fpr: float = 0.05,
        preprocess: str = "",
        arguments: dict[str, Any] | None = None,
        resume: bool = False,
    ) -> dict[str, Any]:
        """Train a method on the healthy scans of a cohort; takes minutes to days.

        Returns at once with the run folder out and its state; ask state for more. preset: paper,
        code, laptop. preprocess: a preset of preprocessing, such as brain-mri. arguments: of the
        method, numbers and words.
        """
        known = registry.index()["methods"]
        if method not in known:
            raise ArgumentError(f"there is no method '{method}'.{nearest(method, known)}")
        path, names = self._cohort(cohort)
        folder = self._allowed.path(out, there=False)
        for name, value in (("preset", preset), ("calibration", calibration)):
            _plain(name, value)
        options = [f"--preset={preset}", f"--seed={seed}", f"--calibration={calibration}"]
        options += [f"--fpr={fpr}", *(["--resume"] if resume else [])]
        if preprocess:
            options.append(
                f"--preprocess={json.dumps({'preset': _plain('preprocess', preprocess)})}"
            )
        flags = {f"--{n}" for o in known[method]["options"] for n in _names(o[0])}
        for name, value in (arguments or {}).items():
            if f"--{name}" not in flags:
                raise ArgumentError(f"'{method}' has no argument '{name}'.{nearest(name, flags)}")
            options.append(f"--{name}={_plain(name, value)}")
        command = ["fit", method, f"--cohort={path}", f"--out={folder}", *options]
        job = self._jobs.start(command, folder, lambda: {"run": str(folder)}, names)
        return await self._settled(job, min(5.0, self._patience))

    async def state(self, folder: str) -> dict[str, Any]:
        """Say how far the work in a folder is: running, finished, failed, unfinished; with its results."""
        return self._jobs.state(self._allowed.path(folder, there=False))

    async def predict(
        self,
        run: str,
        out: str,
        scans: list[str] | None = None,
        cohort: str = "",
        force: bool = False,
    ) -> dict[str, Any]:
        """Score scans; maps, masks and pictures go to the folder out, scores are returned.

        Give files, folders or patterns as scans, or a cohort. force scores what the quality gate
        refuses, too. Ask state(out) where it takes longer.
        """
        detector, folder = self._allowed.path(run), self._allowed.path(out, there=False)
        what, names = self._what(scans, cohort)
        command = ["predict", str(detector), *what, f"--out={folder}"]
        command += ["--force"] if force else []

        def found() -> dict[str, Any]:
            with (folder / "scores.csv").open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self._keep(folder, names)
            return {"scans": unnamed(rows[:MOST], names), "left_off": max(0, len(rows) - MOST)}

        return await self._settled(self._jobs.start(command, folder, found, names))

    async def evaluate(
        self, run: str, cohort: str, out: str, split: str = "test"
    ) -> dict[str, Any]:
        """Compute metrics with 95 % intervals on a labelled part of a cohort, and a report page in out.

        Figures marked oracle are chosen with the test labels: never report them as performance.
        """
        detector, folder = self._allowed.path(run), self._allowed.path(out, there=False)
        path, names = self._cohort(cohort)
        command = ["evaluate", str(detector), f"--cohort={path}", f"--out={folder}"]

        def found() -> dict[str, Any]:
            results = read_json(folder / "results.json")
            keys = ("value", "low", "high", "oracle", "title")
            metrics = {k: {n: e.get(n) for n in keys} for k, e in results["metrics"].items()}
            about = {k: results[k] for k in ("decision", "quality_gate") if k in results}
            about["failures"] = len(results["failures"])
            about["decision"].pop("healthy_scores", None)
            return {"metrics": metrics, **about, "report": str(folder / "report.html")}

        command.append(f"--split={_plain('split', split)}")
        return await self._settled(self._jobs.start(command, folder, found, names))

    async def limits(self, run: str, cohort: str, out: str, count: int = 20) -> dict[str, Any]:
        """Plant lesions into healthy scans: the smallest and the faintest that the detector finds."""
        detector, folder = self._allowed.path(run), self._allowed.path(out, there=False)
        path, names = self._cohort(cohort)
        command = ["limits", str(detector), f"--cohort={path}", f"--out={folder}"]

        job = self._jobs.start(
            [*command, f"--count={int(count)}"], folder,
            lambda: {"said": job.text(0), "page": str(folder / "limits.html")}, names,
        )  # fmt: skip
        return await self._settled(job)

    # ------------------------------------------------------------------ below the tools

    def _cohort(self, text: str) -> tuple[Path, dict[str, str]]:
        path, cohort = self._allowed.cohort(text)
        return path, _other_names(cohort)

    def _what(self, scans: list[str] | None, cohort: str) -> tuple[list[str], dict[str, str]]:
        """Return scans or a cohort as a command takes them, and other names for them."""
        from normscan.cli.predict import rows_of

        if bool(scans) == bool(cohort):
            raise ArgumentError("name scans, or a cohort of them: one of the two.")
        if cohort:
            path, names = self._cohort(cohort)
            return [f"--cohort={path}"], names
        places = [
            ",".join(str(self._allowed.path(part, there=False)) for part in text.split(","))
            for text in scans or []
        ]
        rows = list(rows_of(places))
        self._allowed.check(file for row in rows for file in files_of(row))
        return places, _other_names(rows)

    def _started(self, command: list[str], folder: Path, names: Mapping[str, str]) -> Job:
        """Start a command that answers in JSON on its standard output."""

        def found() -> dict[str, Any]:
            text = job.said[0].read_text(encoding="utf-8")
            try:
                told = json.loads(text)
            except ValueError:
                told = {"scans": [json.loads(line) for line in text.splitlines()]}
            return each_text(told, lambda said: _renamed(said, names))

        job = self._jobs.start(command, folder, found, names)
        return job

    async def _answer(self, job: Job) -> dict[str, Any]:
        """Wait for a command that leaves nothing; what it said is not the state of its folder."""
        told = await self._settled(job)
        if told["state"] == "finished":
            self._jobs.known.pop(job.folder, None)
        return told

    async def _settled(self, job: Job, seconds: float | None = None) -> dict[str, Any]:
        """Wait a while for a command; return its state."""
        end = time.monotonic() + (self._patience if seconds is None else seconds)
        while job.process.poll() is None and time.monotonic() < end:
            await anyio.sleep(0.1)
        told = job.state()
        if told["state"] == "failed":
            self._jobs.known.pop(job.folder, None)
            said = told["said"].rpartition("normscan: error: ")[2]
            raise ArgumentError(said or f"the command ended with {told['code']}.")
        return told

    def _keep(self, folder: Path, names: Mapping[str, str]) -> None:
        """Write which scan is which beside the results, for the person who may know."""
        if names:
            with (folder / NAMES).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("name", "scan"), *((v, k) for k, v in names.items())])


def _other_names(rows: Iterable[CohortRow]) -> dict[str, str]:
    """Names for scans, subjects and files in what an assistant reads, unless names are kept."""
    if names_are_kept():
        return {}
    names: dict[str, str] = {}
    for row in rows:
        names[row.subject] = f"subject-{pseudonym(f'subject {row.subject}', 12)}"
    for row in rows:
        names[row.scan] = f"scan-{pseudonym(f'scan {row.scan}', 12)}"
        names |= {str(path): names[row.scan] for path in files_of(row)}
        names |= {path.name: names[row.scan] for path in files_of(row)}
    return names


def _renamed(text: str, names: Mapping[str, str]) -> str:
    if text in names:
        return names[text]
    for name in sorted((n for n in names if len(n) > 3 and n in text), key=len, reverse=True):
        text = text.replace(name, names[name])
    return text


def _plain(name: str, value: Any) -> str:
    """Return a value of an option as text; a word that could be a path is refused."""
    if isinstance(value, list) and all(isinstance(v, int | float) for v in value):
        return json.dumps(value)
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str) and PLAIN.fullmatch(value) and ".." not in value:
        return value
    raise ArgumentError(f"{name}: takes a number or a word here, no path.")


def _names(flags: str) -> list[str]:
    return [flag.lstrip("-") for flag in flags.split()]


def _explained(tool: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Hand the message of an error of ours to the assistant; of others it learns that there was one."""

    @functools.wraps(tool)
    async def call(*arguments: Any, **named: Any) -> Any:
        try:
            return await tool(*arguments, **named)
        except NormscanError as error:
            raise ToolError(str(error)) from error

    return call


def serve(roots: Iterable[str], patience: float = PATIENCE) -> None:
    """Serve the tools over standard input and output until the client goes.

    Args:
        roots: folders that may be used.
        patience: seconds that a call waits for a command.
    """
    tools = Tools(Allowed(roots), patience)
    server = MCPServer(
        "normscan", version=__version__, instructions=INSTRUCTIONS, log_level="ERROR"
    )
    for name in TOOLS:
        server.add_tool(_explained(getattr(tools, name)))
    server.run("stdio")


TOOLS = ("methods", "describe_cohort", "check", "fit", "state", "predict", "evaluate", "limits")
