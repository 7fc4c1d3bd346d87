"""The drift watch: a running test for each detector and scanner, kept in the database."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from normscan.decide.drift import DriftTest
from normscan.node.config import Drift
from normscan.node.queue import Job, Queue

TESTS = ("healthy", "time")
"""Against the healthy scans that calibrated the detector; against the scans that came before."""
SENTENCES = {
    "healthy": "scans are unlike the healthy ones that set its threshold",
    "time": "scans are unlike those that came before",
}


@dataclass(frozen=True)
class Stream:
    """What is known of a detector on a scanner.

    Attributes:
        detector: name of the rule, and the beginning of the detector's SHA-256.
        scanner: of it.
        scans: in this window.
        evidence: of each test, log10 of the highest wealth; 2 is a chance of at most 1 in 100.
        since: when each test that raised an alarm did, in s since 1970.
        scores: of these scans, in their order.
    """

    detector: str
    scanner: str
    scans: int
    evidence: dict[str, float]
    since: dict[str, float]
    scores: tuple[float, ...] = ()


class DriftWatch:
    """Takes scored scans, within the transaction that ends their job.

    Args:
        queue: of the node.
        settings: of the watch.
    """

    def __init__(self, queue: Queue, settings: Drift) -> None:
        self.queue, self.settings = queue, settings

    def take(self, job: Job, part: dict[str, Any], healthy: Sequence[float]) -> list[str]:
        """Take a scan's score; return what is to be said of a new alarm.

        Args:
            job: that the scan is of; scored for the first time.
            part: what is told of the scan, see ``score.told_of``.
            healthy: scores that calibrated its detector; none where nothing did.
        """
        name = (f"{part['rule']} {part['detector'][:8]}".strip(), part["scanner"] or "unknown")
        row = self.queue.db.execute(
            "select state from drift where detector = ? and scanner = ?", name
        ).fetchone()
        state = {"tests": {}, "since": {}} if row is None else json.loads(row[0])
        # The draw is the scan's own, so that a job that is done twice counts the same.
        draw = sha256(f"{job.key} {part['name']}".encode()).digest()
        tie = int.from_bytes(draw[:6], "big") / 2**48
        said = []
        for kind in TESTS if healthy else TESTS[1:]:
            reference = healthy if kind == "healthy" else ()
            test = DriftTest(reference)
            known = state["tests"].get(kind)
            if known is not None and len(known["scores"]) < self.settings.window:
                test = DriftTest.restored(known, reference)
            test.update(part["score"], tie)
            state["tests"][kind] = test.to_dict()
            if test.alarm(self.settings.alpha / 2) and kind not in state["since"]:
                state["since"][kind] = time.time()
                said.append(f"drift: {name[0]} on scanner {name[1]}: {SENTENCES[kind]}")
        self.queue.db.execute(
            "insert or replace into drift values(?, ?, ?)", (*name, json.dumps(state))
        )
        return said


def streams(queue: Queue) -> list[Stream]:
    """Return what is known of each detector on each scanner."""
    found = []
    for detector, scanner, text in queue.db.execute("select * from drift order by 1, 2"):
        state = json.loads(text)
        tests = state["tests"]
        evidence = {kind: test["peak"] / math.log(10) for kind, test in tests.items()}
        scores = max((tuple(test["scores"]) for test in tests.values()), key=len)
        found.append(Stream(detector, scanner, len(scores), evidence, state["since"], scores))
    return found


def reset(queue: Queue) -> int:
    """Begin all tests anew; return how many there were."""
    return queue.db.execute("delete from drift").rowcount
