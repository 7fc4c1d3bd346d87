"""The node's folder: where scans, results and the audit log lie. No name in it is a patient's."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from normscan.node.config import Config
from normscan.node.queue import Job, Queue


def key_of(text: str) -> str:
    """Return the name under which a UID goes: 32 hexadecimal digits of its SHA-256."""
    return sha256(text.encode()).hexdigest()[:32]


class Store:
    """Folder and queue of a node.

    Args:
        config: of the node.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.folder = config, config.folder
        for name in ("incoming", "scans", "results", "audit"):
            (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self.queue = Queue(self.folder / "queue.sqlite", config.lease)
        self._room = (0.0, True)

    @property
    def incoming(self) -> Path:
        """What isn't whole yet."""
        return self.folder / "incoming"

    def scan(self, key: str) -> Path:
        """The folder of a job's files."""
        return self.folder / "scans" / key

    def results(self, key: str) -> Path:
        """The folder of its results."""
        return self.folder / "results" / key

    def has_room(self) -> bool:
        """Whether the quota and the disk have room for another object; asked once a second."""
        if time.monotonic() - self._room[0] > 1:
            free = shutil.disk_usage(self.folder).free
            room = self.queue.size() < self.config.quota and free > 2**28
            self._room = (time.monotonic(), room)
        return self._room[1]

    def keep(self, part: Path, key: str, name: str) -> int:
        """Put a received file into a job's folder so that it outlives a power cut.

        Returns:
            Its bytes; 0 where the same file was there already.
        """
        target = self.scan(key) / name
        if target.exists() and _same(part, target):
            part.unlink()
            return 0
        with part.open("rb") as file:
            os.fsync(file.fileno())
        made = not target.parent.exists()
        target.parent.mkdir(exist_ok=True, mode=0o700)
        size = part.stat().st_size
        os.replace(part, target)
        sync(target.parent)
        if made:
            sync(target.parent.parent)
        return size

    def clear_incoming(self, age: float) -> None:
        """Delete what came in half, of connections that are gone."""
        for path in self.incoming.iterdir():
            try:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif time.time() - path.stat().st_mtime >= age:
                    path.unlink()
            except FileNotFoundError:
                pass  # whole by now

    @contextmanager
    def making(self, job: Job) -> Iterator[Path]:
        """Give a folder for results; ``publish`` makes them those of the job."""
        folder = self.folder / "results" / f".{job.key}-{job.holder}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def clear_making(self, process: int | None = None) -> None:
        """Delete the half-made results of a process that is gone, or of all."""
        like = ".*" if process is None else f".*-{process}-*"
        for folder in (self.folder / "results").glob(like):
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, folder: Path, job: Job) -> int:
        """Put results in their place, durably; return their bytes."""
        size = 0
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            size += path.stat().st_size
        target = self.results(job.key)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(folder, target)
        sync(target.parent)
        return size

    def note(self, event: str, job: str = "", **facts: Any) -> None:
        """Write a line into today's audit log: what happened to which job, no identity."""
        now = time.time()
        stamp = (
            time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        )
        line = json.dumps({"time": stamp, "event": event, **({"job": job} if job else {}), **facts})
        path = self.folder / "audit" / f"{stamp[:10]}.jsonl"
        # One write of a short line to a file in append mode isn't torn between processes.
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def purge(self, older: float) -> int:
        """Delete scans and results of jobs that ended so many seconds ago; return how many."""
        gone = 0
        for job in self.queue.jobs("stage = 'end' and ended <= ?", time.time() - older):
            gone += self._forget(job)
        if gone:
            self.note("purged", jobs=gone, older_s=older)
        return gone

    def _forget(self, job: Job) -> bool:
        """Delete a job; False where more of it came meanwhile.

        Row and files go together: files without a row would be taken for a series that came.
        """
        away = self.incoming / f"gone-{job.key}-{secrets.token_hex(4)}"
        with self.queue.transaction():
            if not self.queue.forget(job):
                return False
            with suppress(FileNotFoundError):
                os.replace(self.scan(job.key), away)
        shutil.rmtree(away, ignore_errors=True)
        shutil.rmtree(self.results(job.key), ignore_errors=True)
        return True


def sync(folder: Path) -> None:
    """Let the names in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _same(one: Path, other: Path) -> bool:
    import filecmp

    return filecmp.cmp(one, other, shallow=False)
