"""The same function on many items, in workers of Ray on one machine or several; the order stays.

One item is with a worker at a time. A worker that dies is started anew and given its item again, so
the function must be idempotent: what it writes for an item a second time replaces the first.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from normscan.errors import ArgumentError, NormscanError
from normscan.parallel import THREADS

Item = TypeVar("Item")
Result = TypeVar("Result")

TRIES = 3  # of an item whose workers die
STORE = 2**27  # bytes of a local cluster's shared memory: items and results are small
# Nothing is told to anybody, and no accelerator is hidden from a worker that asks for none.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
# A cluster of this machine listens on the loopback, as Ray does by itself on other systems than
# Linux, and takes work from those alone who know its token: whoever may give it work runs code here.
_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
_TOKEN = "RAY_AUTH_TOKEN"


class LostError(NormscanError):
    """The workers of an item died, one after the other."""


class Worker:
    """Works on items, one after the other, with what it was built from once.

    Args:
        build: returns the function of an item.
        threads: of the arithmetic; Ray has told OpenMP already, before numpy was imported.
    """

    def __init__(self, build: Callable[[], Callable[[Any], Any]], threads: int) -> None:
        os.environ.update(dict.fromkeys(THREADS, str(threads)))
        self._work = build()

    def run(self, item: Any) -> Any:
        """Return the result of an item."""
        return self._work(item)


@contextmanager
def cluster(address: str | None, workers: int) -> Iterator[Any]:
    """Give the library, connected: to a cluster, or to one of this machine for as long as it takes.

    Args:
        address: of a running cluster, ``auto`` for the one of this machine; None starts one, which
            listens on the loopback alone, wants a token, and has neither dashboard nor telemetry.
        workers: processor cores of that one.

    Raises:
        ArgumentError: Ray isn't installed, or there is no such cluster.
    """
    os.environ.update(_QUIET)
    if address is None and "ray" not in sys.modules:  # it reads them when it is imported
        os.environ.update(_ALONE)
        os.environ.setdefault(_TOKEN, secrets.token_hex(32))
    try:
        import ray
    except ImportError as error:
        raise ArgumentError(
            "the engine ray isn't installed: pip install ray, or pip install 'normscan[ray]'."
        ) from error
    if ray.is_initialized():  # of a program that is connected already
        yield ray
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init(num_cpus=workers, include_dashboard=False, object_store_memory=STORE, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ArgumentError(f"no cluster of Ray answers at '{address}': {reason}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def over(
    build: Callable[[], Callable[[Item], Result]],
    items: Sequence[Item],
    workers: int,
    address: str | None = None,
    threads: int = 1,
    gpus: float = 0,
) -> Iterator[Result | LostError]:
    """Yield the result of every item, in their order.

    Args:
        build: called once in each worker; it must be picklable, as items and results must.
        items: each is with one worker at a time.
        workers: processes, of ``threads`` cores each.
        address: see ``cluster``.
        threads: of the arithmetic of a worker.
        gpus: that a worker takes.

    Raises:
        ArgumentError: see ``cluster``; fewer than one worker.
    """
    if workers < 1:
        raise ArgumentError(f"workers is {workers}; the engine ray takes 1 or more.")
    with cluster(address, workers * threads) as ray:
        actor = ray.remote(Worker).options(
            num_cpus=threads, num_gpus=gpus, max_restarts=-1, max_task_retries=TRIES - 1
        )
        free = [actor.remote(build, threads) for _ in range(min(workers, len(items)))]
        running: dict[Any, tuple[int, Any]] = {}
        done: dict[int, Result | LostError] = {}
        given = following = 0
        while following < len(items):
            while free and given < len(items):
                one = free.pop()
                running[one.run.remote(items[given])] = given, one
                given += 1
            (finished,), _ = ray.wait(list(running), num_returns=1)
            number, one = running.pop(finished)
            done[number] = _result(ray, finished)
            free.append(one)
            while following in done:
                yield done.pop(following)
                following += 1


def _result(ray: Any, finished: Any) -> Any:
    try:
        return ray.get(finished)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError:
        return LostError(
            f"{TRIES} workers died over it, mostly for want of memory: take fewer workers, or look at "
            "it by itself."
        )
