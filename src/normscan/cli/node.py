"""The command ``normscan node``."""

from __future__ import annotations

from normscan.errors import ArgumentError, nearest

ACTIONS = ("run", "status", "purge", "again")


def node(
    action: str = "run",
    config: str = "node.toml",
    part: str = "all",
    older: str | None = None,
    outcome: str = "failed",
) -> None:
    """Score what a PACS sends and send the results back: normscan node --config node.toml.

    Args:
        action: run; status prints how many jobs are in each state; purge deletes scans and results
            of ended jobs; again scores those that failed once more.
        config: the file that says what listens, which detector scores what, where results go.
        part: of the node that runs: all, or receive, score, send, web, pull each by itself.
        older: of purge, how long ago a job must have ended, such as 30d or 12h.
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
    elif action == "purge":
        if older is None:
            raise ArgumentError("say how old: normscan node purge --older 30d.")
        print(f"{store.purge(seconds(older))} jobs deleted, their scans and results with them")
    else:
        if outcome not in ("failed", "refused", "done"):
            raise ArgumentError(f"--outcome {outcome}: say failed, refused or done.")
        print(f"{store.queue.again(outcome)} jobs wait to be scored again")
