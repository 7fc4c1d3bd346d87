"""The work of the node: one table of SQLite, whose rows are leased, so that nothing is lost.

A job is a series (or an upload). Whoever claims it holds a lease; when the process dies, the lease
runs out and another takes the job: at least once. What a job leaves behind has names that follow
from its key, so that doing it twice leaves it once.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRIES = 3
PAUSES = (1.0, 10.0)  # s between the tries
BUCKETS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 21600, 86400)
"""s, of the histogram of the time from a job's last object to its end."""
WAITING = "stage = 'score'"

_TABLES = """
create table if not exists jobs(
  id integer primary key, key text unique not null, kind text not null, source text not null,
  stage text not null default 'score', outcome text not null default '',
  due real not null, until real not null default 0, holder text not null default '',
  tries integer not null default 0, round integer not null default 1,
  instances integer not null default 0, bytes integer not null default 0,
  arrived real not null, scored real not null default 0, ended real not null default 0,
  reason text not null default '', result text not null default '{}');
create index if not exists free on jobs(stage, due);
create table if not exists tally(name text, label text, value real, primary key(name, label));
create table if not exists drift(detector text, scanner text, state text,
  primary key(detector, scanner));
"""


@dataclass(frozen=True)
class Job:
    """A row.

    Attributes:
        key: hash of the series' UID, or of the upload: fit for file names, and no identity.
        kind: ``series`` or ``upload``.
        source: who sent it: an AE title, ``rest``, an archive.
        stage: ``score``, ``send`` or ``end``.
        outcome: ``done``, ``refused`` or ``failed``; empty before it is known.
        due: not before.
        until: end of the lease, 0 without one.
        holder: of the lease.
        tries: of this stage.
        round: grows when more of a series arrives later.
        instances: that came.
        bytes: that they take, and the results.
        arrived: when the last came, in s since 1970.
        scored: when it was.
        ended: when it was.
        reason: of a refusal or failure.
        result: what is told of it.
    """

    id: int
    key: str
    kind: str
    source: str
    stage: str
    outcome: str
    due: float
    until: float
    holder: str
    tries: int
    round: int
    instances: int
    bytes: int
    arrived: float
    scored: float
    ended: float
    reason: str
    result: dict[str, Any]

    @property
    def state(self) -> str:
        """``waiting``, ``scoring``, ``sending``, ``done``, ``refused`` or ``failed``."""
        if self.stage == "end":
            return self.outcome
        if self.stage == "send":
            return "sending"
        return "scoring" if self.until > time.time() else "waiting"


def holder(part: str) -> str:
    """Return the name of a claim: of a part of the node and this process, unlike any other."""
    return f"{part}-{os.getpid()}-{secrets.token_hex(4)}"


class NotYetError(Exception):
    """A job that is to wait.

    Attributes:
        wait: s.
    """

    def __init__(self, wait: float) -> None:
        super().__init__(f"{wait:.0f} s")
        self.wait = wait


class LeaseLostError(Exception):
    """Another process has taken the job over; what was done of it is to be thrown away."""


class Queue:
    """The table, from any thread and process.

    Args:
        path: of the database.
        lease: s that a claim holds without being renewed.
    """

    def __init__(self, path: Path, lease: float = 60.0) -> None:
        self.path, self.lease = path, lease
        self.synchronous = "full"  # a commit outlives a power cut
        self._local = threading.local()
        self._beaten: dict[str, float] = {}
        self.db.executescript(_TABLES)

    @property
    def db(self) -> sqlite3.Connection:
        """The connection of this thread."""
        if not hasattr(self._local, "db"):
            db = sqlite3.connect(self.path, isolation_level=None, timeout=60)
            db.row_factory = sqlite3.Row
            db.execute("pragma journal_mode=wal")
            db.execute(f"pragma synchronous={self.synchronous}")
            self._local.db = db
        return self._local.db  # type: ignore[no-any-return]

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block, or nothing."""
        self.db.execute("begin immediate")
        try:
            yield self.db
        except BaseException:
            self.db.execute("rollback")
            raise
        self.db.execute("commit")

    # ------------------------------------------------------------------ coming in

    def arrive(self, key: str, source: str, size: int, quiet: float, count: int = 1) -> None:
        """Note that objects of a job came; the job is due when no more came for ``quiet`` s.

        A job that was scored already, or is being scored, is scored again with what came.
        """
        now = time.time()
        self.db.execute(
            """insert into jobs(key, kind, source, due, arrived, instances, bytes)
            values(?, 'series', ?, ?, ?, ?, ?) on conflict(key) do update set
            arrived = excluded.arrived, due = excluded.due,
            instances = instances + excluded.instances,
            bytes = bytes + excluded.bytes,
            round = round + (stage != 'score' or until > 0),
            tries = iif(until > 0, tries, 0),
            outcome = iif(until > 0, outcome, ''), reason = iif(until > 0, reason, ''),
            stage = iif(until > 0, stage, 'score')""",
            (key, source, now + quiet, now, count, size),
        )

    def arrive_once(self, key: str, source: str, size: int) -> None:
        """Put an upload into the queue, unless it is there."""
        now = time.time()
        self.db.execute(
            "insert or ignore into jobs(key, kind, source, due, arrived, instances, bytes) "
            "values(?, 'upload', ?, ?, ?, 1, ?)",
            (key, source, now, now, size),
        )

    def leave_out(self, key: str, source: str, reason: str) -> None:
        """Note a series that is none to be scored, such as the node's own results."""
        now = time.time()
        self.db.execute(
            "insert or ignore into jobs(key, kind, source, stage, outcome, due, arrived, ended, "
            "reason) values(?, 'series', ?, 'end', 'refused', ?, ?, ?, ?)",
            (key, source, now, now, now, reason),
        )

    def postpone(self, quiet: float) -> None:
        """Give senders time to go on where the node was down: what was coming in may be half."""
        now = time.time()
        self.db.execute(
            f"update jobs set due = max(due, ?) where {WAITING} and until = 0 and tries = 0 "
            "and kind = 'series' and arrived > ? - 3600",
            (now + quiet, now),
        )

    def hold(self, key: str, quiet: float) -> None:
        """Let a series wait whose sender is still there."""
        self.db.execute(
            f"update jobs set due = max(due, ?) where key = ? and {WAITING} and until = 0",
            (time.time() + quiet, key),
        )

    # ------------------------------------------------------------------- the work

    def claim(self, stage: str, holder: str) -> Job | None:
        """Take the job that has been due for longest; None where there is none."""
        now = time.time()
        row = self.db.execute(
            "update jobs set until = ?, holder = ?, tries = tries + 1 where id = (select id from jobs "
            "where stage = ? and due <= ? and until <= ? order by due limit 1) returning *",
            (now + self.lease, holder, stage, now, now),
        ).fetchone()
        return None if row is None else _job(row)

    def renew(self, job: Job) -> bool:
        """Hold on to a job; False where it was lost."""
        changed = self.db.execute(
            "update jobs set until = ? where id = ? and holder = ? and until > 0",
            (time.time() + self.lease, job.id, job.holder),
        )
        return changed.rowcount == 1

    def advance(self, job: Job, stage: str, **values: Any) -> None:
        """End a claim: the job goes on to a stage, or is scored again if more came meanwhile.

        Raises:
            LeaseLostError: another process holds it.
        """
        with self.transaction():
            self.advance_within(job, stage, **values)

    def advance_within(self, job: Job, stage: str, **values: Any) -> bool:
        """As ``advance``, in a transaction of the caller; False where it is scored again."""
        row = self.db.execute(
            "select * from jobs where id = ? and holder = ? and until > 0", (job.id, job.holder)
        ).fetchone()
        if row is None:
            raise LeaseLostError
        if row["round"] != job.round:
            self.db.execute(
                "update jobs set stage = 'score', outcome = '', reason = '', tries = 0, until = 0, "
                "holder = '' where id = ?",
                (job.id,),
            )
            return False
        if "result" in values:
            values["result"] = json.dumps(values["result"])
        if stage == "end":
            values["ended"] = time.time()
        values |= {"stage": stage, "until": 0, "holder": "", "tries": 0, "due": time.time()}
        names = ", ".join(f"{name} = ?" for name in values)
        self.db.execute(f"update jobs set {names} where id = ?", (*values.values(), job.id))
        return True

    @contextmanager
    def held(self, job: Job) -> Iterator[None]:
        """Renew the lease of a job while the block runs."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(self.lease / 4) and self.renew(job):
                self.beat(job.holder.partition("-")[0], every=0)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def later(self, job: Job, wait: float, tried: bool = True) -> None:
        """Give a job back, to be tried again after ``wait`` s; where nothing was tried it counts for none."""
        self.db.execute(
            "update jobs set until = 0, holder = '', due = max(due, ?), tries = tries - ? "
            "where id = ? and holder = ?",
            (time.time() + wait, 0 if tried else 1, job.id, job.holder),
        )

    def release(self, process: int | None = None) -> None:
        """Free the jobs of a process that is gone, or of all."""
        like = "%" if process is None else f"%-{process}-%"
        self.db.execute(
            "update jobs set until = 0, holder = '' where until > 0 and holder like ?", (like,)
        )

    def again(self, outcome: str) -> int:
        """Let all jobs of an outcome be scored again, with new tries; return how many."""
        return self.db.execute(
            "update jobs set stage = 'score', outcome = '', reason = '', tries = 0, due = ?, "
            "round = round + 1 where stage = 'end' and outcome = ? and instances > 0",
            (time.time(), outcome),
        ).rowcount

    # ------------------------------------------------------------------ looking in

    def find(self, key: str) -> Job | None:
        """Return the job of a key."""
        row = self.db.execute("select * from jobs where key = ?", (key,)).fetchone()
        return None if row is None else _job(row)

    def jobs(self, where: str = "1", *values: Any) -> list[Job]:
        """Return jobs in the order in which they came first."""
        rows = self.db.execute(f"select * from jobs where {where} order by id", values)
        return [_job(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """Return how many jobs there are in each state."""
        rows = self.db.execute(
            "select case stage when 'end' then outcome when 'send' then 'sending' else "
            "iif(until > ?, 'scoring', 'waiting') end as state, count(*) from jobs group by state",
            (time.time(),),
        )
        return {str(state): int(count) for state, count in rows}

    def waiting(self) -> int:
        """Return how many jobs wait to be scored, or are being scored."""
        return int(self.db.execute(f"select count(*) from jobs where {WAITING}").fetchone()[0])

    def size(self) -> int:
        """Return the bytes of all scans and results."""
        return int(self.db.execute("select coalesce(sum(bytes), 0) from jobs").fetchone()[0])

    def forget(self, job: Job) -> bool:
        """Delete an ended job; False where more of it came meanwhile."""
        gone = self.db.execute(
            "delete from jobs where id = ? and stage = 'end' and round = ?", (job.id, job.round)
        )
        return gone.rowcount == 1

    # -------------------------------------------------------------------- counting

    def count(self, name: str, label: str = "", value: float = 1.0) -> None:
        """Add to a number that outlives the processes."""
        self.db.execute(
            "insert into tally values(?, ?, ?) on conflict do update set value = value + ?",
            (name, label, value, value),
        )

    def count_end(self, job: Job, outcome: str) -> None:
        """Count a job that ended, and how long it took since its last object came."""
        waited = time.time() - job.arrived
        self.count("ended", outcome)
        self.count("seconds", "sum", waited)
        self.count("seconds", next((f"{b:g}" for b in BUCKETS if waited <= b), "+Inf"))

    def beat(self, part: str, every: float = 5.0) -> None:
        """Note that a part of the node is alive; at most so often from this object."""
        if time.monotonic() - self._beaten.get(part, float("-inf")) < every:
            return
        self._beaten[part] = time.monotonic()
        self.db.execute("insert or replace into tally values('beat', ?, ?)", (part, time.time()))

    def tallies(self) -> dict[tuple[str, str], float]:
        """Return all numbers by name and label."""
        rows = self.db.execute("select name, label, value from tally order by name, label")
        return {(name, label): value for name, label, value in rows}


def _job(row: sqlite3.Row) -> Job:
    return Job(**{**dict(row), "result": json.loads(row["result"])})
