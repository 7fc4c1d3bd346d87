"""The processes of the node: each does one thing, and one that dies is started again."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from normscan.errors import NormscanError

log = logging.getLogger("normscan.node")

PARENT = "NORMSCAN_NODE_PARENT"
POLL = 0.2
DRAIN = 60.0  # s in which a process may finish what it has in hand
START = "import sys; from normscan.cli.main import main; sys.exit(main())"


class Stop:
    """Says when a process is to end: told by a signal, or because its parent is gone."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.parent = int(os.environ.get(PARENT, 0))
        self.last = time.monotonic()

    def on_signals(self) -> Stop:
        """Listen to SIGTERM and SIGINT: what is in hand is finished, nothing new is taken."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.event.set())
        if self.parent:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def _watch(self) -> None:
        while os.getppid() == self.parent and not self.event.is_set():
            time.sleep(POLL)
        self.event.set()

    def wait(self, seconds: float) -> bool:
        """Wait; True as soon as it is to end."""
        return self.event.wait(seconds)

    def __bool__(self) -> bool:
        return self.event.is_set()


@dataclass
class Child:
    """A process that is kept alive.

    Attributes:
        name: of the part that it runs.
        command: that starts it.
    """

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    begun: float = 0.0
    pause: float = field(default=0.2)

    def keep_alive(self, died: Callable[[Child], None]) -> None:
        """Start it where it isn't running; one that dies at once is started ever more slowly."""
        if self.process is not None and self.process.poll() is None:
            if time.monotonic() - self.begun > 30:
                self.pause = 0.2
            return
        if self.process is not None:
            died(self)
            log.error("the process '%s' ended with %s", self.name, self.process.returncode)
            self.process = None
            self.begun = time.monotonic()
        if self.begun and time.monotonic() - self.begun < self.pause:
            return
        self.pause = min(2 * self.pause, 30) if self.begun else self.pause
        environment = {**os.environ, PARENT: str(os.getpid())}
        self.process = subprocess.Popen(self.command, env=environment)
        self.begun = time.monotonic()


def supervise(parts: dict[str, list[str]], stop: Stop, died: Callable[[Child], None]) -> None:
    """Run the parts until it is told to stop, then let them finish what they have in hand.

    Args:
        parts: command of each process by its name.
        stop: says when.
        died: is told of a process that ended by itself.
    """
    children = [Child(name, command) for name, command in parts.items()]
    try:
        while not stop.wait(POLL):
            for child in children:
                child.keep_alive(died)
    finally:
        running = [c.process for c in children if c.process and c.process.poll() is None]
        for process in running:
            process.terminate()
        until = time.monotonic() + DRAIN
        for process in running:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def command_of(config: str, part: str) -> list[str]:
    """Return the command of a part of the node."""
    return [sys.executable, "-c", START, "node", "--config", config, "--part", part]


def alone(folder: Path) -> IO[str]:
    """Hold the folder for this node.

    Raises:
        NormscanError: another node holds it.
    """
    file = (folder / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise NormscanError(
            f"{folder}: another node works in this folder. Stop it, or give this one its own."
        ) from None
    return file
