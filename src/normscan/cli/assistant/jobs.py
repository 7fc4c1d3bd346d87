"""Commands in processes of their own: started, waited for, asked how far they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normscan.errors import ArgumentError
from normscan.identity import names_are_kept
from normscan.training.folder import CONFIG, DETECTOR, LOG

ENOUGH = 4000  # characters of what a command said


@dataclass
class Job:
    """A command that runs or ran.

    Attributes:
        folder: of its results.
        process: its process.
        said: files of standard output and error.
        result: reads what it wrote.
        names: old to new, of scans in what it says.
        begun: seconds of the monotonic clock.
    """

    folder: Path
    process: subprocess.Popen[bytes]
    said: tuple[Path, Path]
    result: Callable[[], dict[str, Any]]
    names: Mapping[str, str] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    def text(self, which: int) -> str:
        """Return the end of standard output (0) or error (1), with other names for scans."""
        text = self.said[which].read_text(encoding="utf-8", errors="replace")
        for name in sorted(self.names, key=len, reverse=True):
            text = text.replace(name, self.names[name])
        return text[-ENOUGH:].strip()

    def state(self) -> dict[str, Any]:
        """Say how far it is: running, finished, failed; with its results or what it said."""
        code = self.process.poll()
        told: dict[str, Any] = {"folder": str(self.folder)}
        if code is None:
            told |= {"state": "running", "seconds": round(time.monotonic() - self.begun, 1)}
            told["said"] = self.text(1).rpartition("\n")[2]
            return told | _last_step(self.folder)
        if code not in (0, 1):  # 1: some scans failed, the rest was done
            return told | {"state": "failed", "code": code, "said": self.text(1)}
        return told | {"state": "finished", **self.result()}


class Jobs:
    """The commands of a server, one at a time.

    Args:
        home: folder that they run in.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.known: dict[Path, Job] = {}
        self._texts = tempfile.TemporaryDirectory(prefix="normscan-")

    def start(
        self,
        command: Sequence[str],
        folder: Path,
        result: Callable[[], dict[str, Any]],
        names: Mapping[str, str],
    ) -> Job:
        """Start a command.

        Raises:
            ArgumentError: another one runs.
        """
        for job in self.known.values():
            if job.process.poll() is None:
                raise ArgumentError(
                    f"{job.folder}: is being worked on. Ask for its state, and wait until it is done."
                )
        number = len(list(Path(self._texts.name).iterdir()))
        said = (Path(self._texts.name) / f"{number}.out", Path(self._texts.name) / f"{number}.err")
        kept = ["--keep-names"] if names_are_kept() else []
        with said[0].open("wb") as out, said[1].open("wb") as err:
            # In a session of its own: training goes on when the assistant goes.
            process = subprocess.Popen(
                [sys.executable, "-m", "normscan.cli.main", *command, *kept],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=self.home,
                start_new_session=True, env=os.environ | {"PYTHONSAFEPATH": "1"},
            )  # fmt: skip
        self.known[folder] = job = Job(folder, process, said, result, names)
        return job

    def state(self, folder: Path) -> dict[str, Any]:
        """Say how far the work in a folder is, also one that another server began."""
        if folder in self.known:
            return self.known[folder].state()
        if (folder / DETECTOR).is_file():
            return {"folder": str(folder), "state": "finished"}
        if (folder / CONFIG).is_file():
            return {"folder": str(folder), "state": "unfinished"} | _last_step(folder)
        raise ArgumentError(f"{folder}: nothing was begun there.")


def _last_step(folder: Path) -> dict[str, Any]:
    """Return the last record of the log of a run folder, if there is one."""
    try:
        lines = (folder / LOG).read_text().splitlines()
        return {"step": json.loads(lines[-1])}
    except (OSError, IndexError, ValueError):
        return {}
