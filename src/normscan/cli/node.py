"""The command ``normscan node``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from normscan.errors import ArgumentError, nearest

if TYPE_CHECKING:
    from normscan.node.store import Store

ACTIONS = ("run", "status", "drift", "purge", "again")


def node(
    action: str = "run",
    config: str = "node.toml",
    part: str = "all",
    older: str | None = None,
    outcome: str = "failed",
    reset: bool = False,
    page: str | None = None,
) -> None:
    """Score what a PACS sends and send the results back: normscan node --config node.toml.

    Args:
        action: run; status prints how many jobs are in each state; drift says whether scans still
            are what they were; purge deletes scans and results
            of ended jobs; again scores those that failed once more.
        config: the file that says what listens, which detector scores what, where results go.
        part: of the node that runs: all, or receive, score, send, web, pull each by itself.
        older: of purge, how long ago a job must have ended, such as 30d or 12h.
        page: of drift, an HTML file to write: what came today, and how the scores run. The node
            itself writes one a day into the folder ``pages``.
        reset: of drift, begin all tests anew, after what raised an alarm was looked at.
        outcome: of again, which jobs: failed, refused or done.
    """
    if action not in ACTIONS:
        raise ArgumentError(f"node {action}: say {', '.join(ACTIONS)}.{nearest(action, ACTIONS)}")
    from normscan.node import Config, Store, run
    from normscan.node.config import seconds

    if action == "run":
        run(config, part)
        return
    store = Store(Config.read(config))
    if action == "status":
        for state, count in sorted(store.queue.counts().items()):
            print(f"{state:<10}{count:>8}")
        print(f"{'bytes':<10}{store.queue.size():>8}")
    elif action == "drift":
        if page is not None:
            from normscan.node.daily import today, write_page

            print(write_page(store, today(), Path(page)))
        _drift(store, reset)
    elif action == "purge":
        if older is None:
            raise ArgumentError("say how old: normscan node purge --older 30d.")
        print(f"{store.purge(seconds(older))} jobs deleted, their scans and results with them")
    else:
        if outcome not in ("failed", "refused", "done"):
            raise ArgumentError(f"--outcome {outcome}: say failed, refused or done.")
        print(f"{store.queue.again(outcome)} jobs wait to be scored again")


def _drift(store: Store, begin: bool) -> None:
    from normscan.node.drift import SENTENCES, reset, streams

    found = streams(store.queue)
    for stream in found:
        evidence = ", ".join(f"{test} {value:.2f}" for test, value in stream.evidence.items())
        print(f"{stream.detector} on {stream.scanner}: {stream.scans} scans, evidence {evidence}")
        for test in stream.since:
            print(f"  ALARM: {SENTENCES[test]}")
    if not found:
        print("no scan was scored yet")
    if begin:
        print(f"{reset(store.queue)} tests begin anew")
